/* For the tests of comm/: what a rank does and checks, the same body whatever carries it.
 *
 * A body returns a sentence instead of asserting, since it may run in a thread or in a process of
 * its own. The expected result of an operation is computed from the inputs of all ranks, which are
 * a pure function of (seed, rank, index), by a tree written anew here. */
#ifndef COMM_COMM_TESTKIT_H
#define COMM_COMM_TESTKIT_H

#include "comm/comm_internal.h"

#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define EXPECT(condition, ...)                                                                     \
    do {                                                                                           \
        if (!(condition)) return fail(ERR_ARG, __VA_ARGS__);                                       \
    } while (0)

/* What a body allocates in the arena lives until all ranks have ended: when one fails, others may
 * still read its buffers. */
typedef Status CommBody(Comm *world, int64_t argument, Arena *arena);

/* ---- what a busy machine takes ---------------------------------------------------------- */

/* How long threads of this process that wanted to run were not let: by so much any deadline may be
 * missed. */
typedef struct StallMeter {
    pthread_t thread;
    atomic_bool stop;
    _Atomic double stalled_s;
} StallMeter;

static inline void *stall_measure(void *context)
{
    StallMeter *m = context;
    const double sleep_s = 0.002, usual_s = 0.01;
    while (!atomic_load(&m->stop)) {
        double start_s = clock_s();
        nanosleep(&(struct timespec){.tv_nsec = (long)(sleep_s * 1e9)}, NULL);
        sched_yield(); /* as ranks do that wait */
        double late_s = clock_s() - start_s - sleep_s;
        if (late_s > usual_s) atomic_store(&m->stalled_s, atomic_load(&m->stalled_s) + late_s);
    }
    return NULL;
}

static inline void stall_begin(StallMeter *m)
{
    atomic_init(&m->stop, false);
    atomic_init(&m->stalled_s, 0);
    if (pthread_create(&m->thread, NULL, stall_measure, m)) abort();
}

static inline double stall_end(StallMeter *m)
{
    atomic_store(&m->stop, true);
    pthread_join(m->thread, NULL);
    return atomic_load(&m->stalled_s);
}

/* Until a rank of this host waits in an operation of that group. */
static inline void await_waiting(const Comm *comm, int world_rank, const char *group)
{
    CommRow row;
    while (!comm_board_read(comm->world->board, world_rank, &row) ||
           row.phase != COMM_PHASE_WAITING || strcmp(row.group, group))
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

/* ---- inputs and the tree ---------------------------------------------------------------- */

/* Neither small integers nor powers of two: the order of a sum shows in its last bits. */
static inline float input_value(uint64_t seed, int rank, int64_t i)
{
    return (float)(rng_uniform(seed * 1000 + (uint64_t)rank, (uint64_t)i) * 2 - 1);
}

static inline void input_store(DType dtype, void *p, int64_t i, float x)
{
    switch (dtype) {
    case DTYPE_F32: ((float *)p)[i] = x; break;
    case DTYPE_BF16: ((uint16_t *)p)[i] = bf16_from_f32(x); break;
    case DTYPE_I32: ((int32_t *)p)[i] = (int32_t)(x * 2e9f); break;
    default: ((uint8_t *)p)[i] = (uint8_t)(x * 127); break;
    }
}

static inline float input_load(DType dtype, uint64_t seed, int rank, int64_t i)
{
    float x = input_value(seed, rank, i);
    return dtype == DTYPE_BF16 ? bf16_to_f32(bf16_from_f32(x)) : x;
}

static inline float join(CommReduce reduce, float a, float b)
{
    if (reduce == COMM_SUM) return a + b;
    return (reduce == COMM_MAX) == (a > b) ? a : b;
}

static inline float tree_value(CommReduce reduce, const float *x, int n)
{
    if (n == 1) return x[0];
    int mid = 1 << (31 - __builtin_clz((unsigned)(n - 1)));
    return join(reduce, tree_value(reduce, x, mid), tree_value(reduce, x + mid, n - mid));
}

/* What element i of the reduction over ranks 0..n-1 must be, into p[at]. Also checks the sum in
 * double. */
static inline bool tree_store(const CommOp *op, uint64_t seed, int n, int64_t i, void *p,
                              int64_t at)
{
    float x[256];
    if (op->dtype == DTYPE_I32) {
        int64_t result = 0;
        for (int r = 0; r < n; r++) {
            int32_t v;
            input_store(DTYPE_I32, &v, 0, input_value(seed, r, i));
            if (op->reduce == COMM_SUM)
                result = (int32_t)(uint32_t)((uint64_t)result + (uint64_t)v);
            else if (!r || (op->reduce == COMM_MAX) == (v > result))
                result = v;
        }
        ((int32_t *)p)[at] = (int32_t)result;
        return true;
    }
    double exact = 0, scale = 0;
    for (int r = 0; r < n; r++) {
        x[r] = input_load(op->dtype, seed, r, i);
        exact += (double)x[r];
        scale += fabs((double)x[r]);
    }
    float y = tree_value(op->reduce, x, n);
    input_store(op->dtype, p, at, y);
    return op->reduce != COMM_SUM || fabs((double)y - exact) <= 1e-6 * scale;
}

/* ---- one random operation --------------------------------------------------------------- */

enum { PAD = 8, POISON = 0xa5 };

typedef struct Trial {
    CommOp op;
    uint64_t seed;
    int n, rank;
    int64_t counts[256],
        matrix[256 * 2]; /* counts of ranks; all_to_all: what this rank sends, receives */
    void *send, *recv, *want;
    int64_t n_send, n_recv;
    bool in_place;
} Trial;

static inline int64_t random_count(uint64_t seed, uint64_t i, int64_t most)
{
    uint64_t pick = rng_below(seed, 2 * i, 4);
    return pick == 0   ? 0
           : pick == 1 ? (int64_t)rng_below(seed, 2 * i + 1, 4)
                       : (int64_t)rng_below(seed, 2 * i + 1, (uint64_t)most + 1);
}

/* Elements from rank i to rank j in an all_to_all. */
static inline int64_t pair_count(const Trial *t, int i, int j, int64_t most)
{
    return random_count(t->seed + 77, (uint64_t)(i * t->n + j), most / t->n + 1);
}

static inline void trial_sizes(Trial *t, int64_t most)
{
    int64_t total = 0;
    t->op.count = random_count(t->seed, 50, most);
    for (int r = 0; r < t->n; r++) {
        t->counts[r] = random_count(t->seed, 100 + (uint64_t)r, most / t->n + 1);
        total += t->counts[r];
    }
    t->n_send = t->n_recv = t->op.count;
    if (t->op.kind == COMM_REDUCE_SCATTER || t->op.kind == COMM_ALL_GATHER) {
        bool scatter = t->op.kind == COMM_REDUCE_SCATTER;
        t->op.counts = t->counts;
        t->n_send = scatter ? total : t->counts[t->rank];
        t->n_recv = scatter ? t->counts[t->rank] : total;
    }
    if (t->op.kind == COMM_BROADCAST && t->op.peer != t->rank) t->n_send = 0;
    if (t->op.kind == COMM_BARRIER) t->n_send = t->n_recv = t->op.count = 0;
    if (t->op.kind != COMM_ALL_TO_ALL) return;
    t->op.send_counts = t->matrix;
    t->op.recv_counts = t->matrix + t->n;
    t->n_send = t->n_recv = 0;
    for (int r = 0; r < t->n; r++) {
        t->n_send += t->matrix[r] = pair_count(t, t->rank, r, most);
        t->n_recv += t->matrix[t->n + r] = pair_count(t, r, t->rank, most);
    }
}

static inline int64_t sum_before(const int64_t *counts, int r)
{
    int64_t sum = 0;
    while (r-- > 0) sum += counts[r];
    return sum;
}

/* The input of rank r at element i is input_value(seed, r, i); in all_to_all i counts within the
 * pair. */
static inline bool trial_want(Trial *t)
{
    CommOp *op = &t->op;
    bool good = true;
    int64_t at = 0;
    switch (op->kind) {
    case COMM_ALL_REDUCE:
        for (int64_t i = 0; i < op->count; i++)
            good &= tree_store(op, t->seed, t->n, i, t->want, i);
        break;
    case COMM_REDUCE_SCATTER:
        at = sum_before(t->counts, t->rank);
        for (int64_t i = 0; i < t->n_recv; i++)
            good &= tree_store(op, t->seed, t->n, at + i, t->want, i);
        break;
    case COMM_BROADCAST:
        for (int64_t i = 0; i < op->count; i++)
            input_store(op->dtype, t->want, i, input_value(t->seed, op->peer, i));
        break;
    case COMM_ALL_GATHER:
    case COMM_ALL_TO_ALL:
        for (int r = 0; r < t->n; r++) {
            int64_t count = op->kind == COMM_ALL_GATHER ? t->counts[r] : t->matrix[t->n + r];
            uint64_t seed = op->kind == COMM_ALL_GATHER ? t->seed
                                                        : t->seed * 300 + (uint64_t)t->rank;
            for (int64_t i = 0; i < count; i++)
                input_store(op->dtype, t->want, at++, input_value(seed, r, i));
        }
        break;
    default: break;
    }
    return good;
}

static inline void trial_fill(Trial *t)
{
    int64_t at = 0;
    if (t->op.kind != COMM_ALL_TO_ALL)
        for (int64_t i = 0; i < t->n_send; i++)
            input_store(t->op.dtype, t->send, i, input_value(t->seed, t->rank, i));
    else
        for (int to = 0; to < t->n; to++)
            for (int64_t i = 0; i < t->matrix[to]; i++)
                input_store(t->op.dtype, t->send, at++,
                            input_value(t->seed * 300 + (uint64_t)to, t->rank, i));
}

/* Buffers with room for working in place and poison behind what recv may hold. */
static inline void trial_alloc(Trial *t, Arena *arena)
{
    size_t unit = dtype_bytes(t->op.dtype), bytes = (size_t)(t->n_send + t->n_recv + PAD) * unit;
    size_t before = (size_t)sum_before(t->counts, t->rank) * unit;
    char *send = arena_alloc(arena, bytes), *recv = arena_alloc(arena, bytes);
    memset(recv, POISON, bytes);
    memset(send, POISON, bytes);
    t->want = arena_alloc(arena, bytes);
    t->in_place = rng_below(t->seed, 9, 2) && t->op.kind != COMM_ALL_TO_ALL;
    if (t->in_place && t->op.kind == COMM_ALL_GATHER)
        send = recv + before;
    else if (t->in_place && t->op.kind == COMM_REDUCE_SCATTER)
        recv = send + before;
    else if (t->in_place && t->n_send)
        recv = send;
    t->op.send = t->send = send;
    t->op.recv = t->recv = recv;
}

static inline void trial_init(Trial *t, Comm *c, uint64_t seed, int64_t most, Arena *arena)
{
    static const DType dtypes[] = {DTYPE_F32, DTYPE_BF16, DTYPE_I32, DTYPE_U8};
    *t = (Trial){.seed = seed, .n = comm_size(c), .rank = comm_rank(c)};
    t->op.kind = (CommKind)rng_below(seed, 1, COMM_SEND);
    bool reduces = t->op.kind == COMM_ALL_REDUCE || t->op.kind == COMM_REDUCE_SCATTER;
    t->op.dtype = dtypes[rng_below(seed, 2, reduces ? 3 : 4)];
    if (t->op.kind == COMM_ALL_REDUCE) t->op.reduce = (CommReduce)rng_below(seed, 3, 3);
    t->op.peer = t->op.kind == COMM_BROADCAST ? (int)rng_below(seed, 4, (uint64_t)t->n) : 0;
    t->op.node = "trial";
    trial_sizes(t, most);
    trial_alloc(t, arena);
    trial_fill(t);
}

static inline Status trial_check(Trial *t)
{
    size_t unit = dtype_bytes(t->op.dtype);
    EXPECT(trial_want(t), "the tree is far from the sum in double precision");
    EXPECT(!memcmp(t->recv, t->want, (size_t)t->n_recv * unit),
           "seed %llu: rank %d of %d: %s of %lld %s%s is wrong", (unsigned long long)t->seed,
           t->rank, t->n, comm_kind_name(t->op.kind), (long long)t->n_recv, dtype_name(t->op.dtype),
           t->in_place ? " in place" : "");
    const uint8_t *end = (const uint8_t *)t->recv + (size_t)t->n_recv * unit;
    for (int i = 0; !t->in_place && i < PAD; i++)
        EXPECT(end[i] == POISON, "%s wrote behind its end", comm_kind_name(t->op.kind));
    return OK;
}

/* ---- bodies ----------------------------------------------------------------------------- */

/* Random operations, up to `in_flight` at once, waited for in any order. */
static inline Status body_random(Comm *world, int64_t argument, Arena *arena)
{
    enum { ROUNDS = 24, IN_FLIGHT = 4 };
    for (uint64_t round = 0; round < ROUNDS; round++) {
        Trial *t = ARENA_ARRAY(arena, Trial, IN_FLIGHT);
        CommRequest *request[IN_FLIGHT];
        uint64_t seed = (uint64_t)argument * 1000 + round * 10;
        for (int i = 0; i < IN_FLIGHT; i++) {
            trial_init(&t[i], world, seed + (uint64_t)i,
                       round % 6 == 5 ? 20000 / comm_size(world) : 700, arena);
            TRY(comm_start(world, &t[i].op, &request[i]));
        }
        int first = comm_rank(world) % IN_FLIGHT; /* ranks wait in different orders */
        for (int i = 0; i < IN_FLIGHT; i++) TRY(comm_wait(request[(first + i) % IN_FLIGHT]));
        for (int i = 0; i < IN_FLIGHT; i++) TRY(trial_check(&t[i]));
    }
    return OK;
}

static inline Status run_sum(Comm *c, const float *in, float *out, int64_t n)
{
    return comm_run(c, &(CommOp){COMM_ALL_REDUCE, DTYPE_F32, .send = in, .recv = out, .count = n,
                                 .node = "sum"});
}

/* Each half of a group of 2^k ranks is a subtree: adding the halves' sums gives the bits of the
 * whole. */
static inline Status body_subtrees(Comm *world, int64_t argument, Arena *arena)
{
    enum { N = 1000 };
    int n = comm_size(world), me = comm_rank(world), ranks[256];
    float *in = ARENA_ARRAY(arena, float, 4 * N), *whole = in + N, *half = whole + N,
          *both = half + N;
    (void)argument;
    for (int i = 0; i < N; i++) in[i] = input_value(5, me, i);
    TRY(run_sum(world, in, whole, N));
    if (n == 1 || (n & (n - 1))) return OK;
    Comm *low_high, *pair;
    int base = me / (n / 2) * (n / 2);
    for (int i = 0; i < n / 2; i++) ranks[i] = base + i;
    TRY(comm_group(world, me < n / 2 ? "half.0" : "half.1", ranks, n / 2, &low_high));
    int across[2] = {me % (n / 2), me % (n / 2) + n / 2};
    TRY(comm_group(world, "across", across, 2, &pair));
    TRY(run_sum(low_high, in, half, N));
    TRY(run_sum(pair, half, both, N));
    EXPECT(!memcmp(both, whole, N * sizeof *both), "the sum of the halves is not the whole");
    Comm *again;
    TRY(comm_group(world, "across", across, 2, &again));
    EXPECT(again == pair, "the same group was made twice");
    EXPECT(comm_world_rank(pair, 1) == across[1] && comm_rank(pair) == (me >= n / 2),
           "ranks of a group");
    return OK;
}

/* Operations of two groups of the same ranks, started in different orders and waited for in
 * different orders. */
static inline Status body_orders(Comm *world, int64_t argument, Arena *arena)
{
    enum { N = 30000 };
    int n = comm_size(world), me = comm_rank(world), ranks[256];
    (void)argument;
    for (int i = 0; i < n; i++) ranks[i] = i;
    Comm *group[2];
    TRY(comm_group(world, "first", ranks, n, &group[0]));
    TRY(comm_group(world, "second", ranks, n, &group[1]));
    float *in = ARENA_ARRAY(arena, float, N),
          *out[2] = {ARENA_ARRAY(arena, float, N), ARENA_ARRAY(arena, float, N)};
    for (int64_t i = 0; i < N; i++) in[i] = 1.0f + (float)me;
    CommRequest *request[2];
    for (int k = 0; k < 2; k++) {
        int g = (k + me) % 2;
        CommOp op = {COMM_ALL_REDUCE, DTYPE_F32,  .send = in,
                     .recv = out[g],  .count = N, .node = "orders"};
        TRY(comm_start(group[g], &op, &request[g]));
    }
    for (int k = 0; k < 2; k++) TRY(comm_wait(request[(k + me / 2) % 2]));
    for (int64_t i = 0; i < N; i++)
        EXPECT(out[0][i] == (float)(n * (n + 1) / 2) && out[1][i] == out[0][i],
               "sums of two groups");
    return OK;
}

/* A ring: each rank sends two messages per micro-batch to the next, which takes the tags in the
 * other order. */
static inline Status body_messages(Comm *world, int64_t argument, Arena *arena)
{
    enum { TAGS = 4, N = 20000 };
    int n = comm_size(world), me = comm_rank(world), next = (me + 1) % n, before = (me + n - 1) % n;
    (void)argument;
    if (n == 1) return OK;
    CommRequest *send[2 * TAGS], *recv[2 * TAGS];
    float *out = ARENA_ARRAY(arena, float, 2 * TAGS * N),
          *in = ARENA_ARRAY(arena, float, 2 * TAGS * N);
    for (int64_t i = 0; i < 2 * TAGS * N; i++) out[i] = input_value(3, me, i);
    for (int k = 0; k < 2 * TAGS;
         k++) { /* message k: tag k / 2, the odd ones short, the last empty */
        int64_t count = k == 2 * TAGS - 1 ? 0 : k % 2 ? 5 : N;
        CommOp op = {COMM_SEND,    DTYPE_F32,    .send = out + k * N, .count = count,
                     .peer = next, .tag = k / 2, .node = "send"};
        TRY(comm_start(world, &op, &send[k]));
    }
    for (int t = TAGS - 1; t >= 0; t--) {
        for (int k = 2 * t; k < 2 * t + 2; k++) {
            int64_t count = k == 2 * TAGS - 1 ? 0 : k % 2 ? 5 : N;
            CommOp op = {COMM_RECV,      DTYPE_F32, .recv = in + k * N, .count = count,
                         .peer = before, .tag = t,  .node = "recv"};
            TRY(comm_start(world, &op, &recv[k]));
        }
    }
    for (int k = 0; k < 2 * TAGS; k++) TRY(comm_wait(recv[k]));
    for (int k = 0; k < 2 * TAGS; k++) TRY(comm_wait(send[k]));
    for (int k = 0; k < 2 * TAGS - 1; k++)
        for (int64_t i = 0; i < (k % 2 ? 5 : N); i++)
            EXPECT(in[k * N + i] == input_value(3, before, k * N + i),
                   "message %d of rank %d at %lld", k, before, (long long)i);
    return OK;
}

/* Bytes by the formulas of comm.h's kinds, exactly, and traces in order. */
static inline Status body_counts(Comm *world, int64_t argument, Arena *arena)
{
    int n = comm_size(world), me = comm_rank(world), ranks[256];
    int64_t counts[256], total = 0, own = 10 + me;
    (void)argument;
    for (int i = 0; i < n; i++) {
        ranks[i] = i;
        total += counts[i] = 10 + i;
    }
    Comm *c;
    TRY(comm_group(world, "counts", ranks, n, &c));
    float *x = ARENA_ARRAY(arena, float, total * 2), *y = x + total;
    int64_t part = 1000 / n + (me < 1000 % n);
    float *even = ARENA_ARRAY(arena, float, 2000);
    TRY(comm_run(c, &(CommOp){.kind = COMM_BARRIER}));
    TRY(comm_run(c, &(CommOp){COMM_ALL_REDUCE, DTYPE_F32, .send = even, .recv = even, .count = 1000,
                              .node = "even"}));
    TRY(comm_run(
        c, &(CommOp){COMM_REDUCE_SCATTER, DTYPE_F32, .send = x, .recv = y, .counts = counts}));
    TRY(comm_run(c, &(CommOp){COMM_ALL_GATHER, DTYPE_F32, .send = y, .recv = x, .counts = counts}));
    TRY(comm_run(c, &(CommOp){COMM_ALL_TO_ALL, DTYPE_U8, .send = x, .recv = y, .count = 4}));
    TRY(comm_run(c, &(CommOp){COMM_BROADCAST, DTYPE_BF16, .send = even, .recv = even + 1000,
                              .count = 1000, .peer = n - 1}));
    CommStats s = comm_stats(c);
    EXPECT(s.kind[COMM_ALL_REDUCE].sent_bytes == 4 * (1000 - part + part * (n - 1)),
           "all_reduce sent %lld bytes", (long long)s.kind[COMM_ALL_REDUCE].sent_bytes);
    EXPECT(s.kind[COMM_REDUCE_SCATTER].sent_bytes == 4 * (total - own), "reduce_scatter bytes");
    EXPECT(s.kind[COMM_ALL_GATHER].sent_bytes == 4 * own * (n - 1), "all_gather bytes");
    EXPECT(s.kind[COMM_ALL_TO_ALL].sent_bytes == 4 * (n - 1), "all_to_all bytes");
    int64_t root = 1000 - part + part * (n - 1);
    EXPECT(s.kind[COMM_BROADCAST].sent_bytes == 2 * (me == n - 1 ? root
                                                     : n > 2     ? part * (n - 2)
                                                                 : 0),
           "broadcast bytes");
    CommTrace trace[COMM_TRACES];
    EXPECT(comm_traces(c, trace) == 6, "six traces");
    for (int i = 0; i < 6; i++) {
        EXPECT(trace[i].kind == (CommKind)i && trace[i].number == i + 1, "trace %d", i);
        EXPECT(trace[i].end_s >= trace[i].start_s && s.kind[i].calls == 1,
               "times and calls of trace %d", i);
    }
    EXPECT(!strcmp(trace[1].node, "even") && trace[1].bytes == s.kind[COMM_ALL_REDUCE].sent_bytes,
           "node of a trace");
    comm_stats_reset(c);
    EXPECT(comm_stats(c).kind[COMM_BARRIER].calls == 0, "reset");
    for (int i = 0; i < COMM_TRACES + 3; i++) TRY(comm_run(c, &(CommOp){.kind = COMM_BARRIER}));
    EXPECT(comm_traces(c, trace) == COMM_TRACES && trace[0].number == 6 + 3 + 1,
           "the ring keeps the latest");
    return OK;
}

#endif
