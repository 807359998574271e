/* Emulated GPUs that exchange among themselves, as NCCL makes real ones do: ranks are threads of
 * this process, with a GPU each. An operation is work on its stream that ends when all who take
 * part in it have come to theirs; nobody's gift is taken into a buffer between, so that who gives
 * without being taken from waits for ever. */
#include "gpu/emulated_internal.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef enum Kind { ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, REDUCE, BROADCAST, SEND, RECV } Kind;

/* One operation as one rank says it. */
typedef struct Part {
    Kind kind;
    DType dtype;
    GpuReduce reduce;
    int64_t count;
    int peer; /* root, or the other end */
    const void *send;
    void *recv;
    int rank;
    int64_t number; /* among the rank's collectives */
    bool done;
} Part;

/* What is done as one. It and all it points to stay until the process ends: work that is never done
 * may still be on the stream of a rank that has given up. */
typedef struct Batch {
    struct GpuGroup *group;
    bool begun;
    VEC(Part *) part;
} Batch;

/* As all of its ranks have it. */
typedef struct Ring {
    uint8_t id[GPU_GROUP_ID_BYTES];
    int n, joined;
    VEC(Part *) waits; /* begun, for others */
    VEC(Batch *) batch;
} Ring;

struct GpuGroup {
    Ring *ring;
    GpuStream *stream;
    int rank, open; /* open: batches within one another */
    int64_t n_collectives;
    bool given_up;
    Batch *batch; /* while it is put together */
};

/* What joins threads of a process stands for the wires between GPUs: it is nobody's. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t moved;
    VEC(Gpu *) gpu;
    VEC(Ring *) ring;
    VEC(GpuGroup *) group;
    int n_gpus, n_ids;
} wires = {.lock = PTHREAD_MUTEX_INITIALIZER, .moved = PTHREAD_COND_INITIALIZER};

/* ---- going on ----------------------------------------------------------------------------- */

bool emulated_exchanges(void)
{
    const char *text = getenv("DROVER_EMULATED_EXCHANGE");
    return text && *text;
}

void emulated_enter(const Gpu *gpu)
{
    if (gpu_can_exchange((Gpu *)(uintptr_t)gpu)) pthread_mutex_lock(&wires.lock);
}

void emulated_leave(const Gpu *gpu)
{
    if (!gpu_can_exchange((Gpu *)(uintptr_t)gpu)) return;
    pthread_cond_broadcast(&wires.moved);
    pthread_mutex_unlock(&wires.lock);
}

int emulated_join(Gpu *gpu)
{
    pthread_mutex_lock(&wires.lock);
    VEC_PUSH(&wires.gpu, gpu);
    int number = wires.n_gpus++;
    pthread_mutex_unlock(&wires.lock);
    return number;
}

void emulated_part(Gpu *gpu)
{
    pthread_mutex_lock(&wires.lock);
    for (size_t i = 0; i < wires.gpu.n; i++)
        if (wires.gpu.at[i] == gpu) wires.gpu.at[i--] = wires.gpu.at[--wires.gpu.n];
    pthread_mutex_unlock(&wires.lock);
}

/* All GPUs, as far as they can. */
static void go_on(const GpuStream *stream, const GpuEvent *event, int64_t time)
{
    bool any = true;
    for (size_t i = 0; i < wires.gpu.n; i++) emulated_open(wires.gpu.at[i], true);
    while (any && !emulated_is_done(stream, event, time)) {
        any = false;
        for (size_t i = 0; i < wires.gpu.n; i++) any |= emulated_go_on(wires.gpu.at[i]);
    }
    for (size_t i = 0; i < wires.gpu.n; i++) emulated_open(wires.gpu.at[i], false);
}

Status emulated_wait_together(GpuStream *stream, GpuEvent *event, int64_t time)
{
    Status status = OK;
    pthread_mutex_lock(&wires.lock);
    for (;;) {
        go_on(stream, event, time);
        if (emulated_is_done(stream, event, time) || status != OK) break;
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += 2000000;
        if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
        pthread_cond_timedwait(&wires.moved, &wires.lock, &until);
        pthread_mutex_unlock(&wires.lock);
        status = emulated_look(stream);
        pthread_mutex_lock(&wires.lock);
    }
    pthread_cond_broadcast(&wires.moved);
    pthread_mutex_unlock(&wires.lock);
    return status;
}

/* ---- groups ------------------------------------------------------------------------------- */

Status gpu_group_id(Gpu *gpu, uint8_t id[GPU_GROUP_ID_BYTES])
{
    emulated_enter(gpu);
    int number = ++wires.n_ids;
    emulated_leave(gpu);
    memset(id, 0, GPU_GROUP_ID_BYTES);
    memcpy(id, &number, sizeof number);
    return OK;
}

static Ring *ring_of(const uint8_t id[GPU_GROUP_ID_BYTES], int n)
{
    for (size_t i = 0; i < wires.ring.n; i++)
        if (!memcmp(wires.ring.at[i]->id, id, GPU_GROUP_ID_BYTES)) return wires.ring.at[i];
    Ring *ring = xcalloc(1, sizeof *ring);
    memcpy(ring->id, id, GPU_GROUP_ID_BYTES);
    ring->n = n;
    VEC_PUSH(&wires.ring, ring);
    return ring;
}

Status gpu_group_create(GpuStream *stream, const uint8_t id[GPU_GROUP_ID_BYTES], int n, int rank,
                        GpuGroup **out)
{
    Gpu *gpu = gpu_stream_device(stream);
    GpuGroup *group = xcalloc(1, sizeof *group);
    emulated_enter(gpu);
    group->ring = ring_of(id, n);
    group->ring->joined++;
    group->stream = stream;
    group->rank = rank;
    VEC_PUSH(&wires.group, group);
    emulated_leave(gpu);
    *out = group;
    return group->ring->n == n ? OK
                               : fail(ERR_COMM, "a group of %d ranks, or of %d", n, group->ring->n);
}

static void forget(Ring *ring, size_t i)
{
    Part **at = ring->waits.at;
    memmove(at + i, at + i + 1, (--ring->waits.n - i) * sizeof *at);
}

/* What this rank has begun is taken by nobody any more. */
void gpu_group_destroy(GpuGroup *group)
{
    if (!group) return;
    pthread_mutex_lock(&wires.lock);
    Ring *ring = group->ring;
    for (size_t i = ring->waits.n; i-- > 0;)
        if (ring->waits.at[i]->rank == group->rank) forget(ring, i);
    group->given_up = true;
    pthread_mutex_unlock(&wires.lock);
}

Status gpu_group_look(GpuGroup *group, bool *ready)
{
    pthread_mutex_lock(&wires.lock);
    *ready = group->ring->joined == group->ring->n;
    pthread_mutex_unlock(&wires.lock);
    return OK;
}

/* ---- what operations do ------------------------------------------------------------------- */

static size_t bytes_of(const Part *p) { return (size_t)p->count * dtype_bytes(p->dtype); }

static bool is_message(const Part *p) { return p->kind == SEND || p->kind == RECV; }

static double element(DType dtype, const void *x, int64_t i)
{
    if (dtype == DTYPE_I32) return ((const int32_t *)x)[i];
    return dtype == DTYPE_BF16 ? (double)bf16_to_f32(((const uint16_t *)x)[i])
                               : (double)((const float *)x)[i];
}

static void set_element(DType dtype, void *x, int64_t i, double value)
{
    if (dtype == DTYPE_I32)
        ((int32_t *)x)[i] = (int32_t)value;
    else if (dtype == DTYPE_BF16)
        ((uint16_t *)x)[i] = bf16_from_f32((float)value);
    else
        ((float *)x)[i] = (float)value;
}

/* One after the other from the last rank on: another order than the host's tree. */
static void reduce(Part *const *part, int n, int64_t at, void *out)
{
    const Part *p = part[0];
    for (int64_t i = 0; i < p->count; i++) {
        double y = element(p->dtype, part[n - 1]->send, at + i);
        for (int r = n - 2; r >= 0; r--) {
            double x = element(p->dtype, part[r]->send, at + i);
            if (p->reduce == GPU_SUM)
                y = p->dtype == DTYPE_I32 ? y + x : (double)((float)y + (float)x);
            else if ((p->reduce == GPU_MAX) == (x > y))
                y = x;
        }
        set_element(p->dtype, out, i, y);
    }
}

/* All ranks' parts, in their order; buffers may be the same. */
static void collect(Part *const *part, int n)
{
    const Part *p = part[0];
    size_t bytes = bytes_of(p);
    bool scatter = p->kind == REDUCE_SCATTER, gather = p->kind == ALL_GATHER;
    char *result = xmalloc((scatter || gather ? (size_t)n : 1) * bytes + 1);
    for (int r = 0; r < n && gather; r++) memcpy(result + (size_t)r * bytes, part[r]->send, bytes);
    for (int r = 0; r < n && scatter; r++)
        reduce(part, n, r * p->count, result + (size_t)r * bytes);
    if (p->kind == ALL_REDUCE || p->kind == REDUCE) reduce(part, n, 0, result);
    if (p->kind == BROADCAST) memcpy(result, part[p->peer]->send, bytes);
    for (int r = 0; r < n; r++) {
        part[r]->done = true;
        if (p->kind == REDUCE && r != p->peer) continue;
        memcpy(part[r]->recv, result + (scatter ? (size_t)r * bytes : 0),
               gather ? (size_t)n * bytes : bytes);
    }
    free(result);
}

static bool agree(const Part *a, const Part *b)
{
    return a->kind == b->kind && a->dtype == b->dtype && a->count == b->count &&
           a->reduce == b->reduce && a->peer == b->peer;
}

static void forget_done(Ring *ring)
{
    for (size_t i = ring->waits.n; i-- > 0;)
        if (ring->waits.at[i]->done) forget(ring, i);
}

/* The first of the other end that is open, in the order in which they were begun. */
static Status meet(Ring *ring, Part *mine)
{
    for (size_t i = 0; i < ring->waits.n; i++) {
        Part *other = ring->waits.at[i];
        if (!is_message(other) || other->kind == mine->kind || other->rank != mine->peer ||
            other->peer != mine->rank)
            continue;
        Part *from = mine->kind == SEND ? mine : other, *to = mine->kind == SEND ? other : mine;
        if (bytes_of(from) != bytes_of(to))
            return fail(ERR_COMM, "rank %d sends %zu bytes, rank %d takes %zu", from->rank,
                        bytes_of(from), to->rank, bytes_of(to));
        if (bytes_of(from)) memcpy(to->recv, from->send, bytes_of(from));
        from->done = to->done = true;
        return OK;
    }
    return OK;
}

static Status meet_all(Ring *ring, const Part *mine)
{
    Part **part = xcalloc((size_t)ring->n, sizeof *part);
    int n = 0;
    Status status = OK;
    for (size_t i = 0; i < ring->waits.n; i++) {
        Part *p = ring->waits.at[i];
        if (is_message(p) || p->number != mine->number) continue;
        part[p->rank] = p;
        n++;
        if (!agree(p, mine))
            status = fail(ERR_COMM, "ranks %d and %d of a group say different operations", p->rank,
                          mine->rank);
    }
    if (n == ring->n && status == OK) collect(part, n);
    free(part);
    return status;
}

static Status exchange_work(GpuStream *stream, void *context)
{
    Batch *batch = *(Batch **)context;
    GpuGroup *group = batch->group;
    Ring *ring = group->ring;
    bool all = true;
    if (group->given_up) return fail(ERR_COMM, "the group was given up");
    for (size_t i = 0; i < batch->part.n; i++) {
        Part *p = batch->part.at[i];
        if (batch->begun) break;
        p->done = false;
        if (!is_message(p)) p->number = group->n_collectives++;
        VEC_PUSH(&ring->waits, p);
        TRY(is_message(p) ? meet(ring, p) : meet_all(ring, p));
        forget_done(ring);
    }
    batch->begun = true;
    for (size_t i = 0; i < batch->part.n; i++) all &= batch->part.at[i]->done;
    if (!all) {
        emulated_not_yet(stream);
        return OK;
    }
    batch->begun = false; /* a captured one comes again */
    return OK;
}

/* ---- what ranks say ----------------------------------------------------------------------- */

Status gpu_batch_begin(GpuGroup *g)
{
    if (g->open++) return OK;
    g->batch = xcalloc(1, sizeof *g->batch);
    g->batch->group = g;
    pthread_mutex_lock(&wires.lock);
    VEC_PUSH(&g->ring->batch, g->batch);
    pthread_mutex_unlock(&wires.lock);
    return OK;
}

Status gpu_batch_end(GpuGroup *g)
{
    if (--g->open || !g->batch->part.n) return OK;
    return emulated_submit(g->stream, exchange_work, &g->batch, sizeof g->batch);
}

static Status say(GpuGroup *g, Part part)
{
    part.rank = g->rank;
    TRY(gpu_batch_begin(g));
    Part *p = xmalloc(sizeof *p);
    *p = part;
    VEC_PUSH(&g->batch->part, p);
    return gpu_batch_end(g);
}

Status gpu_all_reduce(GpuGroup *g, const void *send, void *recv, int64_t count, DType dtype,
                      GpuReduce reduction)
{
    return say(g, (Part){ALL_REDUCE, dtype, reduction, count, .send = send, .recv = recv});
}

Status gpu_all_gather(GpuGroup *g, const void *send, void *recv, int64_t count, DType dtype)
{
    return say(g, (Part){ALL_GATHER, dtype, .count = count, .send = send, .recv = recv});
}

Status gpu_reduce_scatter(GpuGroup *g, const void *send, void *recv, int64_t count, DType dtype)
{
    return say(g, (Part){REDUCE_SCATTER, dtype, .count = count, .send = send, .recv = recv});
}

Status gpu_reduce(GpuGroup *g, const void *send, void *recv, int64_t count, DType dtype, int root)
{
    return say(g, (Part){REDUCE, dtype, .count = count, .peer = root, .send = send, .recv = recv});
}

Status gpu_broadcast(GpuGroup *g, const void *send, void *recv, int64_t count, DType dtype,
                     int root)
{
    return say(g,
               (Part){BROADCAST, dtype, .count = count, .peer = root, .send = send, .recv = recv});
}

Status gpu_send(GpuGroup *g, const void *data, int64_t count, DType dtype, int to)
{
    return say(g, (Part){SEND, dtype, .count = count, .peer = to, .send = data});
}

Status gpu_recv(GpuGroup *g, void *data, int64_t count, DType dtype, int from)
{
    return say(g, (Part){RECV, dtype, .count = count, .peer = from, .recv = data});
}
