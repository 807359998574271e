/* A GPU's copies to and from the host and inside its memory; all-reduces among GPUs. */
#include "calibrate/calibrate_internal.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>

enum { COPY_ROUNDS = 5, ROUNDS = 11, SIZES = 8 };
static const size_t size_bytes[SIZES] = {256,     4 << 10,  32 << 10, 256 << 10,
                                         2 << 20, 16 << 20, 64 << 20, 256 << 20};

/* ---- copies ------------------------------------------------------------------------------- */

typedef struct Copies {
    GpuStream *stream;
    GpuEvent *from, *to;
    char *host, *device;
    size_t bytes; /* of the host's memory; the device has twice as much */
} Copies;

typedef Status CopyOnce(const Copies *c);
static Status to_device(const Copies *c)
{
    return gpu_write(c->stream, c->device, c->host, c->bytes);
}
static Status to_host(const Copies *c) { return gpu_read(c->stream, c->host, c->device, c->bytes); }
static Status inside(const Copies *c)
{
    return gpu_copy(c->stream, c->device, c->device + c->bytes, c->bytes);
}

static Status time_copy(const Copies *c, CopyOnce *copy, double *bytes_per_s)
{
    double times[COPY_ROUNDS];
    for (int i = -1; i < COPY_ROUNDS; i++) {
        double ms;
        TRY(gpu_event_record(c->from, c->stream));
        TRY(copy(c));
        TRY(gpu_event_record(c->to, c->stream));
        TRY(gpu_stream_wait(c->stream));
        TRY(gpu_event_ms(c->from, c->to, &ms));
        if (i >= 0) times[i] = fmax(ms * 1e-3, 1e-9);
    }
    *bytes_per_s = (double)c->bytes / calibrate_median(times, COPY_ROUNDS);
    return OK;
}

static Status measure_copies(Gpu *gpu, Copies *c, CopyRates *out)
{
    void *device, *host;
    TRY(gpu_stream_create(gpu, &c->stream));
    TRY(gpu_event_create(gpu, &c->from));
    TRY(gpu_event_create(gpu, &c->to));
    TRY(gpu_alloc(gpu, 2 * c->bytes, "copies", &device));
    c->device = device;
    TRY(gpu_host_alloc(gpu, c->bytes, &host));
    c->host = host;
    TRY(gpu_fill(c->stream, device, 0, 2 * c->bytes));
    TRY(time_copy(c, to_device, &out->write_bytes_per_s));
    TRY(time_copy(c, to_host, &out->read_bytes_per_s));
    TRY(time_copy(c, inside, &out->copy_bytes_per_s));
    out->copy_bytes_per_s *= 2; /* read and written */
    return OK;
}

Status calibrate_time_copies(int index, size_t bytes, CopyRates *out)
{
    Gpu *gpu;
    TRY(gpu_open(index, &gpu));
    Copies c = {.bytes = bytes};
    Status status = measure_copies(gpu, &c, out);
    gpu_host_free(gpu, c.host);
    gpu_free(gpu, c.device);
    gpu_event_destroy(c.from);
    gpu_event_destroy(c.to);
    gpu_stream_destroy(c.stream);
    gpu_close(gpu);
    return status;
}

/* ---- exchanges ---------------------------------------------------------------------------- */

typedef struct RankExchange {
    Comm *all;
    int index; /* of the GPU */
    size_t most;
    Gpu *gpu;
    GpuStream *stream;
    GpuEvent *from, *to;
    void *data;
    double seconds[SIZES];
    Status status;
    char message[512];
    pthread_t thread;
} RankExchange;

static Status open_rank(RankExchange *r)
{
    TRY(gpu_open(r->index, &r->gpu));
    TRY(gpu_stream_create(r->gpu, &r->stream));
    comm_join_gpu(r->all, r->stream);
    TRY(gpu_event_create(r->gpu, &r->from));
    TRY(gpu_event_create(r->gpu, &r->to));
    TRY(gpu_alloc(r->gpu, r->most, "exchanges", &r->data));
    return gpu_fill(r->stream, r->data, 0, r->most);
}

static void close_rank(RankExchange *r)
{
    if (r->gpu) comm_leave_gpu(r->all);
    if (r->gpu) gpu_free(r->gpu, r->data);
    gpu_event_destroy(r->from);
    gpu_event_destroy(r->to);
    gpu_stream_destroy(r->stream);
    gpu_close(r->gpu);
}

static Status time_once(RankExchange *r, size_t bytes, double *s)
{
    double ms;
    CommOp op = {COMM_ALL_REDUCE,
                 DTYPE_F32,
                 .send = r->data,
                 .recv = r->data,
                 .count = (int64_t)(bytes / sizeof(float)),
                 .node = "calibrate"};
    TRY(comm_run(r->all, &(CommOp){.kind = COMM_BARRIER}));
    TRY(gpu_event_record(r->from, r->stream));
    TRY(comm_enqueue(r->all, &op, r->stream));
    TRY(gpu_event_record(r->to, r->stream));
    TRY(gpu_stream_wait(r->stream));
    TRY(gpu_event_ms(r->from, r->to, &ms));
    *s = fmax(ms * 1e-3, 1e-9);
    return OK;
}

/* Who comes first waits for the others: of all ranks the shortest, which waited for nobody. */
static Status measure(RankExchange *r)
{
    TRY(open_rank(r));
    for (int i = 0; i < SIZES && size_bytes[i] <= r->most; i++) {
        double times[ROUNDS], ignored;
        for (int k = -2; k < ROUNDS; k++)
            TRY(time_once(r, size_bytes[i], k < 0 ? &ignored : &times[k]));
        float mine = (float)calibrate_median(times, ROUNDS), shortest = 0;
        TRY(comm_run(r->all, &(CommOp){COMM_ALL_REDUCE, DTYPE_F32, COMM_MIN, &mine, &shortest,
                                       .count = 1, .node = "calibrate"}));
        r->seconds[i] = (double)shortest;
    }
    return OK;
}

static void *rank_main(void *opaque)
{
    RankExchange *r = opaque;
    r->status = measure(r);
    if (r->status != OK) {
        snprintf(r->message, sizeof r->message, "%s", status_message());
        comm_abort(r->all, ERR_COMM);
    }
    close_rank(r);
    return NULL;
}

static Status run_threads(int ranks, size_t most, RankExchange *first)
{
    CommWorld *world;
    int gpus = gpu_count(NULL), started = 0;
    TRY(comm_world_create_local(ranks, NULL, &world));
    RankExchange *runs = xcalloc((size_t)ranks, sizeof *runs);
    Status status = OK;
    for (; started < ranks && status == OK; started++) {
        runs[started] = (RankExchange){
            .all = comm_of_rank(world, started), .index = gpus ? started % gpus : 0, .most = most};
        if (!pthread_create(&runs[started].thread, NULL, rank_main, &runs[started])) continue;
        status = fail(ERR_MEMORY, "no thread for rank %d of %d", started, ranks);
        comm_abort(runs[started--].all, ERR_COMM);
    }
    for (int i = 0; i < started; i++) {
        pthread_join(runs[i].thread, NULL);
        if (runs[i].status != OK && status == OK)
            status = fail(runs[i].status, "exchanges of GPUs: %s", runs[i].message);
    }
    *first = runs[0];
    free(runs);
    comm_world_destroy(world);
    return status;
}

Status calibrate_run_gpu_exchanges(int ranks, size_t most, Arena *arena, ExchangeSample **samples,
                                   int *n)
{
    RankExchange run;
    TRY(run_threads(ranks, most, &run));
    *samples = ARENA_ARRAY(arena, ExchangeSample, SIZES);
    for (*n = 0; *n < SIZES && size_bytes[*n] <= most; ++*n)
        (*samples)[*n] = (ExchangeSample){(double)size_bytes[*n], run.seconds[*n]};
    return OK;
}
