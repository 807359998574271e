/* Operations on buffers of GPUs: ranks as threads, each with a device of its own. On the emulated
 * one the host carries the data, or the devices exchange by themselves. */
#include "comm/comm.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>
#undef fail /* of base.h is meant */
#undef fail_msg
#define fail_msg(...) (print_error(__VA_ARGS__), _fail(__FILE__, __LINE__))

#include "gpu/gpu.h"

enum { MOST = 4, N = 64 };

typedef struct RankJob {
    CommWorld *world;
    int rank, n;
    Gpu *gpu;
    GpuStream *stream;
    void *memory; /* given back at the end */
    Comm *all;
    Status (*body)(struct RankJob *job);
    Status status;
    char why[512];
} RankJob;

/* x of rank r, element i */
static float value(int r, int64_t i) { return (float)(100 * (r + 1) + (int)i); }

#define EXPECT(condition)                                                                          \
    do {                                                                                           \
        if (!(condition)) return fail(ERR_ARG, "line %d: %s", __LINE__, #condition);               \
    } while (0)

/* `before` on the device, the operation, what is there then in `after`. at < 0: recv is a buffer of
 * its own, else send lies in it (or it in send) at that element. */
static Status enqueue(RankJob *j, CommOp op, const float *send, int64_t n_send, float *recv,
                      int64_t n_recv)
{
    void *s, *r;
    TRY(gpu_alloc(j->gpu, (size_t)n_send * sizeof *send, "send", &s));
    TRY(gpu_alloc(j->gpu, (size_t)n_recv * sizeof *recv, "recv", &r));
    TRY(gpu_write(j->stream, s, send, (size_t)n_send * sizeof *send));
    TRY(gpu_write(j->stream, r, recv, (size_t)n_recv * sizeof *recv));
    op.dtype = DTYPE_F32;
    op.send = s;
    op.recv = r;
    TRY(comm_enqueue(j->all, &op, j->stream));
    TRY(gpu_read(j->stream, recv, r, (size_t)n_recv * sizeof *recv));
    gpu_free(j->gpu, s);
    gpu_free(j->gpu, r);
    return OK;
}

static Status reductions(RankJob *j, const float *x)
{
    float y[N] = {0}, sum;
    int64_t counts[MOST] = {20, 7, 0, 13}, at[MOST + 1] = {0};
    for (int r = 0; r < j->n; r++) at[r + 1] = at[r] + counts[r];
    TRY(enqueue(j, (CommOp){.kind = COMM_ALL_REDUCE, .count = N}, x, N, y, N));
    for (int i = 0; i < N; i++) {
        sum = 0;
        for (int r = 0; r < j->n; r++) sum += value(r, i);
        EXPECT(y[i] == sum);
    }
    TRY(enqueue(j, (CommOp){.kind = COMM_REDUCE_SCATTER, .counts = counts}, x, N, y, N));
    for (int i = 0; i < counts[j->rank]; i++) {
        sum = 0;
        for (int r = 0; r < j->n; r++) sum += value(r, at[j->rank] + i);
        EXPECT(y[i] == sum);
    }
    return OK;
}

static Status moves(RankJob *j, const float *x)
{
    float y[N] = {0};
    int64_t counts[MOST] = {20, 7, 0, 13}, at[MOST + 1] = {0};
    for (int r = 0; r < j->n; r++) at[r + 1] = at[r] + counts[r];
    TRY(enqueue(j, (CommOp){.kind = COMM_ALL_GATHER, .counts = counts}, x, N, y, N));
    for (int r = 0; r < j->n; r++)
        for (int i = 0; i < counts[r]; i++) EXPECT(y[at[r] + i] == value(r, i));
    TRY(enqueue(j, (CommOp){.kind = COMM_BROADCAST, .count = 9, .peer = 1}, x, N, y, N));
    for (int i = 0; i < 9; i++) EXPECT(y[i] == value(1, i));
    /* rank r sends 1 + s elements to rank s, from 5 s on; they lie 6 apart, and between is kept */
    int64_t send_counts[MOST], recv_counts[MOST], send_offsets[MOST], recv_offsets[MOST];
    for (int r = 0; r < j->n; r++) {
        send_counts[r] = 1 + r;
        recv_counts[r] = 1 + j->rank;
        send_offsets[r] = 5 * r;
        recv_offsets[r] = 6 * r;
    }
    for (int i = 0; i < N; i++) y[i] = -1;
    TRY(enqueue(j,
                (CommOp){.kind = COMM_ALL_TO_ALL,
                         .send_counts = send_counts,
                         .recv_counts = recv_counts,
                         .send_offsets = send_offsets,
                         .recv_offsets = recv_offsets},
                x, N, y, N));
    for (int r = 0; r < j->n; r++)
        for (int i = 0; i < 6; i++)
            EXPECT(y[6 * r + i] == (i < 1 + j->rank ? value(r, 5 * j->rank + i) : -1));
    return OK;
}

/* All give to the next and take from the one before at once, in place of nothing: who waited for
 * his own gift to be taken would wait for ever. An all_reduce in place on the same stream comes
 * behind. */
static Status ring(RankJob *j, const float *x)
{
    void *s, *r;
    float y[N];
    TRY(gpu_alloc(j->gpu, sizeof y, "send", &s));
    TRY(gpu_alloc(j->gpu, sizeof y, "recv", &r));
    TRY(gpu_write(j->stream, s, x, sizeof y));
    CommOp op[2] = {{.kind = COMM_SEND,
                     .dtype = DTYPE_F32,
                     .send = s,
                     .count = N,
                     .peer = (j->rank + 1) % j->n,
                     .tag = 3},
                    {.kind = COMM_RECV,
                     .dtype = DTYPE_F32,
                     .recv = r,
                     .count = N,
                     .peer = (j->rank + j->n - 1) % j->n,
                     .tag = 3}};
    TRY(comm_enqueue_all(j->all, op, 2, j->stream));
    TRY(gpu_read(j->stream, y, r, sizeof y));
    for (int i = 0; i < N; i++) EXPECT(y[i] == value((j->rank + j->n - 1) % j->n, i));
    TRY(comm_enqueue(
        j->all,
        &(CommOp){.kind = COMM_ALL_REDUCE, .dtype = DTYPE_F32, .send = r, .recv = r, .count = N},
        j->stream));
    TRY(gpu_read(j->stream, y, r, sizeof y));
    for (int i = 0; i < N; i++) {
        float sum = 0;
        for (int k = 0; k < j->n; k++) sum += value(k, i);
        EXPECT(y[i] == sum);
    }
    gpu_free(j->gpu, s);
    gpu_free(j->gpu, r);
    return OK;
}

static Status open_device(RankJob *j)
{
    j->all = comm_of_rank(j->world, j->rank);
    TRY(gpu_open(j->rank % gpu_count(NULL), &j->gpu));
    TRY(gpu_stream_create(j->gpu, &j->stream));
    comm_join_gpu(j->all, j->stream);
    return OK;
}

static Status exchange(RankJob *j)
{
    float x[N];
    TRY(open_device(j));
    for (int i = 0; i < N; i++) x[i] = value(j->rank, i);
    TRY(reductions(j, x));
    TRY(moves(j, x));
    TRY(ring(j, x));
    return comm_stats(j->all).kind[COMM_ALL_REDUCE].calls == 2 ? OK : fail(ERR_ARG, "not counted");
}

static void *rank_main(void *argument)
{
    RankJob *j = argument;
    j->status = j->body(j);
    if (j->status != OK) snprintf(j->why, sizeof j->why, "%s", status_message());
    if (j->status != OK) comm_abort(j->all, j->status);
    comm_leave_gpu(j->all);
    gpu_free(j->gpu, j->memory);
    gpu_stream_destroy(j->stream);
    gpu_close(j->gpu);
    return NULL;
}

static void run(int n, double deadline_s, Status (*body)(RankJob *job), RankJob *job)
{
    pthread_t thread[MOST];
    CommWorld *world;
    CommOptions options = {.deadline_s = deadline_s};
    assert_int_equal(comm_world_create_local(n, &options, &world), OK);
    for (int r = 0; r < n; r++) {
        job[r] = (RankJob){.world = world, .rank = r, .n = n, .body = body};
        assert_int_equal(pthread_create(&thread[r], NULL, rank_main, &job[r]), 0);
    }
    for (int r = 0; r < n; r++) pthread_join(thread[r], NULL);
    comm_world_destroy(world);
}

static void check_all(void)
{
    for (int n = 2; n <= MOST; n++) {
        RankJob job[MOST];
        run(n, 20, exchange, job);
        for (int r = 0; r < n; r++)
            if (job[r].status != OK) print_error("rank %d of %d: %s\n", r, n, job[r].why);
        for (int r = 0; r < n; r++) assert_int_equal(job[r].status, OK);
    }
}

static void test_all(void **state)
{
    (void)state;
    /* ranks that share a GPU cannot exchange by NCCL */
    if (gpu_count(NULL) < (gpu_is_emulated() ? 1 : MOST)) skip();
    check_all();
}

static void test_among_gpus(void **state)
{
    (void)state;
    if (!gpu_is_emulated()) skip();
    setenv("DROVER_EMULATED_EXCHANGE", "1", 1);
    check_all();
    unsetenv("DROVER_EMULATED_EXCHANGE");
}

/* The last rank is in the first operation, not in the second. */
static Status leave_one_out(RankJob *j)
{
    float y[N] = {0};
    CommOp op = {.kind = COMM_ALL_REDUCE, .dtype = DTYPE_F32, .count = N, .node = "first"};
    TRY(open_device(j));
    TRY(gpu_alloc(j->gpu, sizeof y, "x", &j->memory));
    void *x = op.recv = j->memory;
    op.send = x;
    TRY(gpu_write(j->stream, x, y, sizeof y));
    TRY(comm_enqueue(j->all, &op, j->stream));
    TRY(gpu_read(j->stream, y, x, sizeof y));
    while (j->rank == j->n - 1 && comm_failed_rank(j->all) < 0)
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    op.node = "second";
    if (j->rank < j->n - 1) TRY(comm_enqueue(j->all, &op, j->stream));
    return gpu_read(j->stream, y, x, sizeof y);
}

/* It is named by those whose hosts wait for their GPUs. */
static void test_who_is_missing(void **state)
{
    (void)state;
    RankJob job[MOST];
    if (!gpu_is_emulated()) skip();
    setenv("DROVER_EMULATED_EXCHANGE", "1", 1);
    run(3, 2, leave_one_out, job);
    unsetenv("DROVER_EMULATED_EXCHANGE");
    for (int r = 0; r < 3; r++) {
        assert_int_equal(job[r].status, ERR_COMM);
        if (!strstr(job[r].why, "'second'") || !strstr(job[r].why, "rank 2") ||
            strstr(job[r].why, "rank 1 on"))
            fail_msg("rank %d: %s", r, job[r].why);
    }
}

/* Rank 0 waits for rank 1 in a group of the two, which waits for the last rank with all. */
static Status wait_behind_one(RankJob *j)
{
    float y[N] = {0};
    int two[] = {0, 1};
    Comm *pair = NULL;
    TRY(open_device(j));
    TRY(gpu_alloc(j->gpu, sizeof y, "x", &j->memory));
    void *x = j->memory;
    CommOp op = {.kind = COMM_ALL_REDUCE,
                 .dtype = DTYPE_F32,
                 .send = x,
                 .recv = x,
                 .count = N,
                 .node = "first"};
    TRY(gpu_write(j->stream, x, y, sizeof y));
    if (j->rank < 2) TRY(comm_group(j->all, "pair", two, 2, &pair));
    TRY(comm_enqueue(j->all, &op, j->stream));
    if (pair) TRY(comm_enqueue(pair, &op, j->stream));
    TRY(gpu_read(j->stream, y, x, sizeof y));
    op.node = j->rank ? "second" : "third";
    while (j->rank == 2 && comm_failed_rank(j->all) < 0)
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    if (j->rank < 2) TRY(comm_enqueue(j->rank ? j->all : pair, &op, j->stream));
    return gpu_read(j->stream, y, x, sizeof y);
}

static void test_who_is_behind(void **state)
{
    (void)state;
    RankJob job[MOST];
    if (!gpu_is_emulated()) skip();
    setenv("DROVER_EMULATED_EXCHANGE", "1", 1);
    run(3, 2, wait_behind_one, job);
    unsetenv("DROVER_EMULATED_EXCHANGE");
    for (int r = 0; r < 3; r++) {
        assert_int_equal(job[r].status, ERR_COMM);
        if (!strstr(job[r].why, "not arrived: rank 2") || !strstr(job[r].why, "'second'"))
            fail_msg("rank %d: %s", r, job[r].why);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all), cmocka_unit_test(test_among_gpus),
        cmocka_unit_test(test_who_is_missing), cmocka_unit_test(test_who_is_behind)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
