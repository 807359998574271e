/* Exchanges between ranks of one host: as threads, or as the processes that a launcher started. */
#include "calibrate/calibrate_internal.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { SIZES = 9, ROUNDS = 21 };
static const size_t size_bytes[SIZES] = {64,        256,     1 << 10,  4 << 10, 32 << 10,
                                         256 << 10, 2 << 20, 16 << 20, 64 << 20};

typedef struct RankExchange {
    Comm *all;
    double seconds[SIZES];
    Status status;
    char message[512];
    pthread_t thread;
} RankExchange;

/* The slowest rank counts, on every rank alike. */
static Status measure(RankExchange *r)
{
    size_t most = size_bytes[SIZES - 1];
    float *data = calloc(1, most);
    Status status = data ? OK : fail(ERR_MEMORY, "no memory for exchanges of %zu bytes", most);
    for (int i = 0; i < SIZES && status == OK; i++) {
        double times[ROUNDS];
        for (int k = -2; k < ROUNDS && status == OK; k++) {
            status = comm_run(r->all, &(CommOp){.kind = COMM_BARRIER});
            double begin = clock_s();
            CommOp op = {COMM_ALL_REDUCE,
                         DTYPE_F32,
                         .send = data,
                         .recv = data,
                         .count = (int64_t)(size_bytes[i] / sizeof *data),
                         .node = "calibrate"};
            if (status == OK) status = comm_run(r->all, &op);
            if (k >= 0) times[k] = clock_s() - begin;
        }
        float mine = status == OK ? (float)calibrate_median(times, ROUNDS) : 0, slowest = 0;
        if (status == OK)
            status = comm_run(r->all, &(CommOp){COMM_ALL_REDUCE, DTYPE_F32, COMM_MAX, &mine,
                                                &slowest, .count = 1, .node = "calibrate"});
        r->seconds[i] = (double)slowest;
    }
    free(data);
    return status;
}

static void *rank_main(void *opaque)
{
    RankExchange *r = opaque;
    r->status = measure(r);
    if (r->status == OK) return NULL;
    snprintf(r->message, sizeof r->message, "%s", status_message());
    comm_abort(r->all, ERR_COMM);
    return NULL;
}

static Status run_threads(int ranks, RankExchange *first)
{
    CommWorld *world;
    TRY(comm_world_create_local(ranks, NULL, &world));
    RankExchange *runs = xcalloc((size_t)ranks, sizeof *runs);
    Status status = OK;
    int started = 0;
    for (; started < ranks && status == OK; started++) {
        runs[started].all = comm_of_rank(world, started);
        if (!pthread_create(&runs[started].thread, NULL, rank_main, &runs[started])) continue;
        status = fail(ERR_MEMORY, "no thread for rank %d of %d", started, ranks);
        comm_abort(runs[started--].all, ERR_COMM);
    }
    for (int i = 0; i < started; i++) {
        pthread_join(runs[i].thread, NULL);
        if (runs[i].status != OK && status == OK)
            status = fail(runs[i].status, "%s", runs[i].message);
    }
    *first = runs[0];
    free(runs);
    comm_world_destroy(world);
    return status;
}

Status calibrate_run_exchanges(Comm *world, int ranks, Arena *arena, ExchangeSample **samples,
                               int *n)
{
    RankExchange run = {.all = world};
    TRY(world ? measure(&run) : run_threads(ranks, &run));
    *samples = ARENA_ARRAY(arena, ExchangeSample, SIZES);
    *n = SIZES;
    for (int i = 0; i < SIZES; i++)
        (*samples)[i] = (ExchangeSample){(double)size_bytes[i], run.seconds[i]};
    return OK;
}
