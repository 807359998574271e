/* A run's checkpoint directory, opened for saving: the lock, the snapshot buffer and the results
 * that the writer hands back (writer.c). */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ckpt/ckpt_internal.h"

enum { ALIGN = 64, PAGE = 4096, MIN_KEEP = 2, PIECE_ELEMENTS = 1 << 20 };

static CkptStore *store_create(const char *root, int lock, uint64_t key, CkptOptions options)
{
    CkptStore *store = xcalloc(1, sizeof *store);
    store->root = xstrdup(root);
    store->lock_fd = lock;
    store->key = key;
    store->options = options;
    if (store->options.keep < MIN_KEEP) store->options.keep = MIN_KEEP;
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&store->mutex, NULL);
    pthread_cond_init(&store->changed, &attr);
    pthread_condattr_destroy(&attr);
    return store;
}

/* Of no other process at any time, as far as anybody can tell. */
static uint64_t make_key(void)
{
    char host[64] = "";
    gethostname(host, sizeof host - 1);
    struct {
        double wall_s, s;
        int64_t pid;
    } now = {clock_wall_s(), clock_s(), (int64_t)getpid()};
    return hash_bytes(&now, sizeof now) ^ hash_bytes(host, sizeof host);
}

Status ckpt_store_open(const char *root, CkptOptions options, CkptStore **out)
{
    int lock;
    TRY(dir_create(root));
    TRY(lock_take(root, &lock));
    commit_clean(root);
    *out = store_create(root, lock, make_key(), options);
    return OK;
}

Status ckpt_store_join(const char *root, uint64_t key, CkptOptions options, CkptStore **out)
{
    if (!dir_exists(root))
        return fail(ERR_IO,
                    "%s is not there, though the first rank has made it: all ranks need the same "
                    "file system",
                    root);
    *out = store_create(root, -1, key, options);
    return OK;
}

uint64_t ckpt_store_key(const CkptStore *store) { return store->key; }

void ckpt_store_know(CkptStore *store, int64_t step)
{
    CHECK(!ckpt_busy(store));
    VEC_PUSH(&store->known, step);
}

static void join_writer(CkptStore *store)
{
    if (store->started) pthread_join(store->thread, NULL);
    store->started = false;
}

void ckpt_store_close(CkptStore *store)
{
    if (!store) return;
    pthread_mutex_lock(&store->mutex);
    store->closing = true;
    pthread_cond_broadcast(&store->changed);
    pthread_mutex_unlock(&store->mutex);
    join_writer(store);
    arena_deinit(&store->arena);
    VEC_FREE(&store->results);
    VEC_FREE(&store->known);
    pthread_cond_destroy(&store->changed);
    pthread_mutex_destroy(&store->mutex);
    free(store->buffer);
    free(store->root);
    if (store->lock_fd >= 0) close(store->lock_fd); /* gives the lock back */
    free(store);
}

/* ---- the snapshot ----------------------------------------------------------------------- */

size_t ckpt_snapshot_bytes(const Tensor *parts, int n)
{
    size_t bytes = 0;
    for (int i = 0; i < n; i++) bytes += round_up(tensor_bytes(&parts[i]), ALIGN);
    return round_up(bytes, PAGE);
}

size_t ckpt_reserved_bytes(const CkptStore *store) { return store->buffer_bytes; }

Status ckpt_reserve(CkptStore *store, const Tensor *parts, int n)
{
    char need[32], have[32];
    size_t bytes = ckpt_snapshot_bytes(parts, n);
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

/* The share again, with parts packed in the buffer. */
static void copy_parts(CkptStore *store, const CkptShare *share)
{
    Tensor *copies = ARENA_ARRAY(&store->arena, Tensor, share->n_parts);
    Pieces pieces = {0};
    size_t at = 0;
    for (int i = 0; i < share->n_parts; i++) {
        const Tensor *from = &share->parts[i];
        copies[i] = tensor_make((char *)store->buffer + at, from->dtype, from->shape);
        at += round_up(tensor_bytes(from), ALIGN);
        int64_t count = tensor_count(from);
        for (int64_t first = 0; first < count; first += PIECE_ELEMENTS)
            VEC_PUSH(&pieces,
                     ((Piece){from, &copies[i], first, min_i64(PIECE_ELEMENTS, count - first)}));
    }
    /* copies do not fail */
    (void)parallel_each((int)pieces.n, parallel_threads(at), copy_piece, &pieces);
    VEC_FREE(&pieces);
    store->share.parts = copies;
}

/* Takes over what the caller may change afterwards. */
static void take_save(CkptStore *store, const CkptSave *save)
{
    arena_deinit(&store->arena);
    store->save = *save;
    store->share = *save->share;
    store->save.share = &store->share;
    CkptFile *files = ARENA_ARRAY(&store->arena, CkptFile, save->n_files);
    for (int i = 0; i < save->n_files; i++) {
        Bytes bytes = save->files[i].bytes;
        files[i].name = arena_strdup(&store->arena, save->files[i].name);
        files[i].bytes = (Bytes){arena_copy(&store->arena, bytes.at, bytes.n), bytes.n};
    }
    store->save.files = files;
    store->save.run_json = save->run_json ? arena_strdup(&store->arena, save->run_json) : NULL;
    store->n_saves++;
}

/* ---- saving ----------------------------------------------------------------------------- */

static void set_busy(CkptStore *store, bool busy)
{
    pthread_mutex_lock(&store->mutex);
    store->busy = busy;
    store->busy_since_s = clock_s();
    pthread_mutex_unlock(&store->mutex);
}

static Status start(CkptStore *store, const CkptSave *save, bool copy)
{
    double begin = clock_s();
    if (ckpt_busy(store))
        return fail(ERR_ARG, "step %lld: the previous checkpoint is still being written",
                    (long long)save->step);
    join_writer(store);
    take_save(store, save);
    if (copy) copy_parts(store, save->share);
    store->snapshot_s = clock_s() - begin;
    store->threads = copy || save->share->ranks > 1
                         ? 1
                         : cpu_count(); /* training has the others, if it goes on */
    set_busy(store, true);
    int error = pthread_create(&store->thread, NULL, writer_run, store);
    if (error) {
        set_busy(store, false);
        return fail(ERR_IO, "cannot start the checkpoint writer: %s", strerror(error));
    }
    store->started = true;
    return OK;
}

Status ckpt_snapshot(CkptStore *store, const CkptSave *save)
{
    size_t bytes = ckpt_snapshot_bytes(save->share->parts, save->share->n_parts);
    if (!store->buffer || bytes > store->buffer_bytes)
        return fail(ERR_ARG, "step %lld: no snapshot buffer of %zu bytes was reserved",
                    (long long)save->step, bytes);
    return start(store, save, true);
}

Status ckpt_start(CkptStore *store, const CkptSave *save) { return start(store, save, false); }

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
    while (store->busy) pthread_cond_wait(&store->changed, &store->mutex);
    bool taken = take_result(store, result);
    pthread_mutex_unlock(&store->mutex);
    return taken;
}

Status ckpt_save(CkptStore *store, const CkptSave *save)
{
    join_writer(store); /* one save at a time */
    CHECK(save->share->ranks <= 1);
    take_save(store, save);
    Status status = writer_save(store, cpu_count());
    commit_end(&store->commit);
    return status;
}

/* ---- a single rank's share -------------------------------------------------------------- */

static Status whole_tensor(const void *tensors, int i, CkptRunFn fn, void *to)
{
    int64_t n = shape_count(&((const CkptTensor *)tensors)[i].shape);
    return n ? fn(to, &(CkptRun){.part = i, .n = n}) : OK;
}

CkptShare ckpt_share_whole(Arena *arena, const CkptTensors *t)
{
    int n = t->n_model + t->n_optimizer;
    CkptTensor *tensors = ARENA_ARRAY(arena, CkptTensor, n);
    Tensor *parts = ARENA_ARRAY(arena, Tensor, n);
    for (int i = 0; i < n; i++) {
        bool optimizer = i >= t->n_model;
        const NamedTensor *from = optimizer ? &t->optimizer[i - t->n_model] : &t->model[i];
        tensors[i] = (CkptTensor){arena_strdup(arena, from->name), from->tensor.dtype,
                                  from->tensor.shape, optimizer};
        parts[i] = from->tensor;
    }
    return (CkptShare){.tensors = tensors,
                       .n_tensors = n,
                       .parts = parts,
                       .n_parts = n,
                       .each_run = whole_tensor,
                       .context = tensors,
                       .ranks = 1};
}
