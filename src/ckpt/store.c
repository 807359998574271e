/* A run's checkpoint directory, opened for saving: the lock, the snapshot buffer, the writer thread and
 * the results it hands back. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ckpt/ckpt_internal.h"

enum { ALIGN = 64, PAGE = 4096, MIN_KEEP = 2, PIECE_ELEMENTS = 1 << 20 };

struct CkptStore {
    char *root;
    int lock_fd;
    CkptOptions options;
    Steps known; /* verified steps; used by whoever saves, one at a time */

    void *buffer;
    size_t buffer_bytes;

    /* the save that the thread works on: a copy of everything the caller passed */
    Arena arena;
    CkptSave save;
    double snapshot_s;
    pthread_t thread;
    bool started; /* the thread has to be joined */

    pthread_mutex_t mutex; /* guards what follows */
    pthread_cond_t finished;
    bool busy;
    double busy_since_s;
    VEC(CkptResult) results; /* not yet asked for */
};

Status ckpt_store_open(const char *root, CkptOptions options, CkptStore **out)
{
    int lock;
    TRY(dir_create(root));
    TRY(lock_take(root, &lock));
    commit_clean(root);
    CkptStore *store = xcalloc(1, sizeof *store);
    store->root = xstrdup(root);
    store->lock_fd = lock;
    store->options = options;
    if (store->options.keep < MIN_KEEP) store->options.keep = MIN_KEEP;
    pthread_mutex_init(&store->mutex, NULL);
    pthread_cond_init(&store->finished, NULL);
    *out = store;
    return OK;
}

static void join_writer(CkptStore *store)
{
    if (store->started) pthread_join(store->thread, NULL);
    store->started = false;
}

void ckpt_store_close(CkptStore *store)
{
    if (!store) return;
    join_writer(store);
    arena_deinit(&store->arena);
    VEC_FREE(&store->results);
    VEC_FREE(&store->known);
    pthread_cond_destroy(&store->finished);
    pthread_mutex_destroy(&store->mutex);
    free(store->buffer);
    free(store->root);
    close(store->lock_fd); /* gives the lock back */
    free(store);
}

/* ---- the snapshot ---------------------------------------------------------------------- */

static size_t list_bytes(const NamedTensor *tensors, int n)
{
    size_t bytes = 0;
    for (int i = 0; i < n; i++) bytes += round_up(tensor_bytes(&tensors[i].tensor), ALIGN);
    return bytes;
}

size_t ckpt_snapshot_bytes(const CkptTensors *t)
{
    return list_bytes(t->model, t->n_model) + list_bytes(t->optimizer, t->n_optimizer);
}

Status ckpt_reserve(CkptStore *store, const CkptTensors *tensors)
{
    char need[32], have[32];
    size_t bytes = round_up(ckpt_snapshot_bytes(tensors), PAGE);
    if (ckpt_busy(store))
        return fail(ERR_ARG, "the snapshot buffer cannot change while a save is under way");
    void *buffer = fault_hit("tensor_alloc") ? NULL : aligned_alloc(PAGE, bytes ? bytes : PAGE);
    if (!buffer)
        return fail(ERR_MEMORY, "no memory for a checkpoint snapshot of %s (%s are free)",
                    format_bytes((double)bytes, need),
                    format_bytes((double)memory_available_bytes(), have));
        /* touched now, so that the first snapshot does not wait for the kernel to find the pages */
#pragma omp parallel for schedule(static) num_threads(parallel_threads(bytes))
    for (size_t i = 0; i < bytes; i += PAGE) ((char *)buffer)[i] = 0;
    free(store->buffer);
    store->buffer = buffer;
    store->buffer_bytes = bytes;
    return OK;
}

typedef struct Piece {
    const Tensor *from, *to;
    int64_t first, n;
} Piece;

typedef VEC(Piece) Pieces;

static Status copy_piece(void *context, int i)
{
    const Piece *p = &((const Pieces *)context)->at[i];
    size_t size = dtype_bytes(p->to->dtype);
    tensor_gather(p->from, p->first, p->n, (char *)p->to->data + (size_t)p->first * size);
    return OK;
}

/* The list again, with packed tensors in the buffer from *at on; the copies to make go to `pieces`. */
static const NamedTensor *shadow(CkptStore *store, const NamedTensor *tensors, int n, size_t *at,
                                 Pieces *pieces)
{
    NamedTensor *copies = ARENA_ARRAY(&store->arena, NamedTensor, n);
    for (int i = 0; i < n; i++) {
        const Tensor *from = &tensors[i].tensor;
        copies[i].name = arena_strdup(&store->arena, tensors[i].name);
        copies[i].tensor = tensor_make((char *)store->buffer + *at, from->dtype, from->shape);
        *at += round_up(tensor_bytes(from), ALIGN);
        int64_t count = tensor_count(from);
        for (int64_t first = 0; first < count; first += PIECE_ELEMENTS)
            VEC_PUSH(pieces, ((Piece){from, &copies[i].tensor, first,
                                      min_i64(PIECE_ELEMENTS, count - first)}));
    }
    return copies;
}

static void take_snapshot(CkptStore *store, const CkptSave *save)
{
    double start = clock_s();
    size_t at = 0;
    Pieces pieces = {0};
    arena_deinit(&store->arena);
    store->save = *save;
    CkptTensors *t = &store->save.tensors;
    t->model = shadow(store, t->model, t->n_model, &at, &pieces);
    t->optimizer = shadow(store, t->optimizer, t->n_optimizer, &at, &pieces);
    CkptFile *files = ARENA_ARRAY(&store->arena, CkptFile, save->n_files);
    for (int i = 0; i < save->n_files; i++) {
        Bytes bytes = save->files[i].bytes;
        files[i].name = arena_strdup(&store->arena, save->files[i].name);
        files[i].bytes = (Bytes){arena_copy(&store->arena, bytes.at, bytes.n), bytes.n};
    }
    store->save.files = files;
    store->save.run_json = save->run_json ? arena_strdup(&store->arena, save->run_json) : NULL;
    /* copies do not fail */
    (void)parallel_each((int)pieces.n, parallel_threads(at), copy_piece, &pieces);
    VEC_FREE(&pieces);
    store->snapshot_s = clock_s() - start;
}

/* ---- saving ---------------------------------------------------------------------------- */

/* A save that failed has cleaned up after itself; what could not be removed then is tried again here. */
static Status save_now(CkptStore *store, const CkptSave *save, int threads, uint64_t *bytes)
{
    Commit commit = {store->root, store->options.shard_bytes, threads};
    commit_clean(store->root);
    TRY(commit_save(&commit, save, bytes));
    VEC_PUSH(&store->known, save->step);
    if (commit_retain(&commit, store->options.keep, &store->known) != OK)
        log_warn("old checkpoints stay: %s", status_message());
    return OK;
}

/* On one core: training has the others. */
static void *write_snapshot(void *context)
{
    CkptStore *store = context;
    double start = clock_s();
    CkptResult result = {.step = store->save.step, .snapshot_s = store->snapshot_s};
    result.status = save_now(store, &store->save, 1, &result.bytes);
    if (result.status != OK)
        snprintf(result.message, sizeof result.message, "%s", status_message());
    result.write_s = clock_s() - start;
    pthread_mutex_lock(&store->mutex);
    VEC_PUSH(&store->results, result);
    store->busy = false;
    pthread_cond_broadcast(&store->finished);
    pthread_mutex_unlock(&store->mutex);
    return NULL;
}

static void set_busy(CkptStore *store, bool busy)
{
    pthread_mutex_lock(&store->mutex);
    store->busy = busy;
    store->busy_since_s = clock_s();
    pthread_mutex_unlock(&store->mutex);
}

Status ckpt_snapshot(CkptStore *store, const CkptSave *save)
{
    if (ckpt_busy(store))
        return fail(ERR_ARG, "step %lld: the previous checkpoint is still being written",
                    (long long)save->step);
    if (!store->buffer || ckpt_snapshot_bytes(&save->tensors) > store->buffer_bytes)
        return fail(ERR_ARG, "step %lld: no snapshot buffer of %zu bytes was reserved",
                    (long long)save->step, ckpt_snapshot_bytes(&save->tensors));
    join_writer(store);
    take_snapshot(store, save);
    set_busy(store, true);
    int error = pthread_create(&store->thread, NULL, write_snapshot, store);
    if (error) {
        set_busy(store, false);
        return fail(ERR_IO, "cannot start the checkpoint writer: %s", strerror(error));
    }
    store->started = true;
    return OK;
}

bool ckpt_busy(CkptStore *store)
{
    pthread_mutex_lock(&store->mutex);
    bool busy = store->busy;
    pthread_mutex_unlock(&store->mutex);
    return busy;
}

double ckpt_busy_s(CkptStore *store)
{
    pthread_mutex_lock(&store->mutex);
    double seconds = store->busy ? clock_s() - store->busy_since_s : 0;
    pthread_mutex_unlock(&store->mutex);
    return seconds;
}

/* With the mutex held. */
static bool take_result(CkptStore *store, CkptResult *result)
{
    if (store->results.n == 0) return false;
    *result = store->results.at[0];
    store->results.n--;
    memmove(store->results.at, store->results.at + 1, store->results.n * sizeof *store->results.at);
    return true;
}

bool ckpt_poll(CkptStore *store, CkptResult *result)
{
    pthread_mutex_lock(&store->mutex);
    bool taken = take_result(store, result);
    pthread_mutex_unlock(&store->mutex);
    return taken;
}

bool ckpt_wait(CkptStore *store, CkptResult *result)
{
    pthread_mutex_lock(&store->mutex);
    while (store->busy) pthread_cond_wait(&store->finished, &store->mutex);
    bool taken = take_result(store, result);
    pthread_mutex_unlock(&store->mutex);
    return taken;
}

Status ckpt_save(CkptStore *store, const CkptSave *save)
{
    uint64_t bytes;
    join_writer(store); /* one save at a time */
    return save_now(store, save, cpu_count(), &bytes);
}
