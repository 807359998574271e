/* Ranks as threads: every kind, sizes, orders; and worlds that are lost. */
#include "comm/comm_testkit.h"

#include <pthread.h>

#include "base/testing.h"

typedef struct RankRun {
    pthread_t thread;
    Comm *comm;
    CommBody *body;
    int64_t argument;
    Arena arena;
    Status status;
    char sentence[COMM_SENTENCE_BYTES];
} RankRun;

static void *run_rank(void *context)
{
    RankRun *r = context;
    r->status = r->body(r->comm, r->argument, &r->arena);
    if (r->status == OK) return NULL;
    snprintf(r->sentence, sizeof r->sentence, "%s", status_message());
    comm_abort(r->comm, r->status); /* the others must not wait for this one */
    return NULL;
}

/* Runs the body on n ranks; the caller frees what comes back. */
static RankRun *run_ranks(int n, double deadline_s, CommBody *body, int64_t argument)
{
    CommWorld *world;
    RankRun *run = xcalloc((size_t)n, sizeof *run);
    assert_ok(comm_world_create_local(n, &(CommOptions){.deadline_s = deadline_s}, &world));
    assert_int_equal(comm_world_size(world), n);
    for (int r = 0; r < n; r++) {
        run[r] = (RankRun){.comm = comm_of_rank(world, r), .body = body, .argument = argument};
        assert_int_equal(pthread_create(&run[r].thread, NULL, run_rank, &run[r]), 0);
    }
    for (int r = 0; r < n; r++) pthread_join(run[r].thread, NULL);
    for (int r = 0; r < n; r++) arena_deinit(&run[r].arena);
    comm_world_destroy(world);
    return run;
}

static void expect_good(int n, CommBody *body, int64_t argument)
{
    RankRun *run = run_ranks(n, 60, body, argument);
    for (int r = 0; r < n; r++)
        if (run[r].status != OK) fail_msg("%d ranks, rank %d: %s", n, r, run[r].sentence);
    free(run);
}

static const int sizes[] = {1, 2, 3, 5, 8, 64};

static void test_random(void **state)
{
    (void)state;
    for (int i = 0; i < COUNT_OF(sizes); i++)
        for (int seed = 0; seed < (sizes[i] <= 8 ? 4 : 1); seed++)
            expect_good(sizes[i], body_random, sizes[i] * 10 + seed);
}

static void test_subtrees(void **state)
{
    (void)state;
    for (int i = 0; i < COUNT_OF(sizes); i++) expect_good(sizes[i], body_subtrees, 0);
}

static void test_orders(void **state)
{
    (void)state;
    for (int i = 0; i < COUNT_OF(sizes); i++) expect_good(sizes[i], body_orders, 0);
}

static void test_messages(void **state)
{
    (void)state;
    for (int i = 0; i < COUNT_OF(sizes); i++) expect_good(sizes[i], body_messages, 0);
}

static void test_counts(void **state)
{
    (void)state;
    for (int i = 0; i < COUNT_OF(sizes); i++) expect_good(sizes[i], body_counts, 0);
}

/* ---- NaN, wrong arguments --------------------------------------------------------------- */

static void test_nan(void **state)
{
    (void)state;
    float a[3] = {NAN, 1, 2}, b[3] = {1, NAN, -1}, out[3];
    const void *in[] = {a, b};
    void *to[] = {out};
    for (CommReduce reduce = COMM_SUM; reduce <= COMM_MIN; reduce++) {
        comm_tree_reduce(&(CommTree){DTYPE_F32, reduce, in, to, 2, 1}, 3);
        assert_true(isnan(out[0]) && isnan(out[1]));
        assert_true(out[2] == (reduce == COMM_SUM ? 1.0f : reduce == COMM_MAX ? 2.0f : -1.0f));
    }
}

/* Which of two NaNs survives an addition is the compiler's choice of operands: one NaN is as good
 * as another. */
static void unify_nans(DType dtype, void *p, int n)
{
    for (int i = 0; i < n; i++) {
        if (dtype == DTYPE_F32 && isnan(((float *)p)[i])) ((float *)p)[i] = NAN;
        if (dtype == DTYPE_BF16 && isnan(bf16_to_f32(((uint16_t *)p)[i])))
            ((uint16_t *)p)[i] = 0x7fc0;
    }
}

/* Odd lengths, infinities and NaN: every form that this processor has gives the bits of the plain
 * one. */
static void test_forms(void **state)
{
    (void)state;
    enum { N = 1031, RANKS = 7 };
    static const DType dtypes[] = {DTYPE_F32, DTYPE_BF16, DTYPE_I32};
    uint32_t *in[RANKS], *want = xcalloc(N, 4), *got = xcalloc(N, 4);
    for (int r = 0; r < RANKS; r++) in[r] = xcalloc(N, 4);
    for (int k = 0; k < COUNT_OF(dtypes) * 3; k++) {
        for (int r = 0; r < RANKS; r++)
            for (int i = 0; i < N; i++) { /* some exponents are all ones */
                in[r][i] = (uint32_t)rng_u64((uint64_t)(k * RANKS + r), (uint64_t)i);
                if (i % 64 == r) in[r][i] |= 0x7f800000u | (uint32_t)(i % 128 ? 0 : 0x7f80);
            }
        void *to_want[] = {want}, *to_got[] = {got};
        const void *from[RANKS];
        for (int r = 0; r < RANKS; r++) from[r] = in[r];
        CommTree tree = {dtypes[k / 3], (CommReduce)(k % 3), from, to_want, RANKS, 1};
        comm_tree_form(COMM_TREE_GENERIC)(&tree, N);
        tree.out = to_got;
        for (CommTreeLevel level = COMM_TREE_AVX2; level < COMM_TREE_LEVELS; level++) {
            if (!comm_tree_form(level)) continue;
            memset(got, 0, N * 4);
            comm_tree_form(level)(&tree, N);
            unify_nans(tree.dtype, want, N);
            unify_nans(tree.dtype, got, N);
            assert_memory_equal(got, want, N * dtype_bytes(tree.dtype));
        }
    }
    for (int r = 0; r < RANKS; r++) free(in[r]);
    free(want);
    free(got);
}

static void expect_refused(Comm *c, CommOp op, const char *words)
{
    CommRequest *request = NULL;
    assert_int_equal(comm_start(c, &op, &request), ERR_ARG);
    assert_null(request);
    if (!strstr(status_message(), words)) fail_msg("'%s' has no '%s'", status_message(), words);
}

static void test_arguments(void **state)
{
    (void)state;
    CommWorld *world;
    Comm *group;
    float x[8] = {0};
    int64_t bad[2] = {3, -1};
    assert_int_equal(comm_world_create_local(0, NULL, &world), ERR_ARG);
    assert_ok(comm_world_create_local(2, NULL, &world));
    Comm *c = comm_of_rank(world, 1);
    expect_refused(c, (CommOp){COMM_ALL_REDUCE, DTYPE_F32, .send = x, .recv = x, .count = -1},
                   "negative");
    expect_refused(c,
                   (CommOp){COMM_ALL_REDUCE, DTYPE_F32, .send = x, .recv = x, .count = INT64_MAX},
                   "beyond reason");
    expect_refused(c, (CommOp){COMM_ALL_REDUCE, DTYPE_F32, .send = x, .recv = x + 1, .count = 4},
                   "overlap");
    expect_refused(c, (CommOp){COMM_ALL_REDUCE, DTYPE_F32, .send = x, .count = 4}, "missing");
    expect_refused(c, (CommOp){COMM_ALL_REDUCE, DTYPE_U8, .send = x, .recv = x, .count = 4},
                   "only f32");
    expect_refused(c,
                   (CommOp){COMM_ALL_REDUCE, DTYPE_F32, .send = (char *)x + 2,
                            .recv = (char *)x + 2, .count = 4},
                   "aligned");
    expect_refused(
        c, (CommOp){COMM_REDUCE_SCATTER, DTYPE_F32, COMM_MAX, .send = x, .recv = x + 2, .count = 2},
        "only sums");
    expect_refused(c, (CommOp){COMM_REDUCE_SCATTER, DTYPE_F32, .send = x, .recv = x, .count = 2},
                   "overlap");
    expect_refused(c, (CommOp){COMM_ALL_GATHER, DTYPE_F32, .send = x, .recv = x, .counts = bad},
                   "negative");
    expect_refused(c,
                   (CommOp){COMM_ALL_TO_ALL, DTYPE_F32, .send = x, .recv = x + 4,
                            .send_offsets = bad, .count = 1},
                   "offset");
    expect_refused(c,
                   (CommOp){COMM_BROADCAST, DTYPE_F32, .send = x, .recv = x, .count = 2, .peer = 2},
                   "not a rank");
    expect_refused(c, (CommOp){COMM_SEND, DTYPE_F32, .send = x, .count = 2, .peer = 1}, "itself");
    expect_refused(c, (CommOp){COMM_SEND, DTYPE_F32, .send = x, .count = 2, .tag = COMM_TAG_LIMIT},
                   "tag");
    expect_refused(c, (CommOp){.kind = COMM_KINDS}, "do not exist");
    assert_int_equal(comm_group(c, "g", (int[]){0}, 1, &group), ERR_ARG); /* without the caller */
    assert_int_equal(comm_group(c, "g", (int[]){1, 1}, 2, &group), ERR_ARG);
    assert_int_equal(comm_group(c, "g", (int[]){1, 2}, 2, &group), ERR_ARG);
    assert_int_equal(comm_group(c, "a name that is far too long for it", (int[]){1}, 1, &group),
                     ERR_ARG);
    comm_world_destroy(world); /* nothing was started */
}

/* ---- lost worlds ------------------------------------------------------------------------ */

/* All ranks must have failed with the same sentence, which has these words. */
static void expect_lost(RankRun *run, int n, int except, const char *const *words)
{
    for (int r = 0; r < n; r++) {
        if (r == except) continue;
        assert_int_equal(run[r].status, ERR_COMM);
        for (int w = 0; words[w]; w++)
            if (!strstr(run[r].sentence, words[w]))
                fail_msg("rank %d: '%s' has no '%s'", r, run[r].sentence, words[w]);
    }
}

static Status body_late(Comm *world, int64_t late, Arena *arena)
{
    Comm *tp;
    float *x = ARENA_ARRAY(arena, float, 4);
    int n = comm_size(world), ranks[64];
    for (int i = 0; i < n; i++) ranks[i] = i;
    TRY(comm_group(world, "tp", ranks, n, &tp));
    TRY(comm_run(tp, &(CommOp){.kind = COMM_BARRIER, .node = "start"}));
    if (comm_rank(world) == late) return OK;
    return run_sum(tp, x, x, 4);
}

static void test_late(void **state)
{
    (void)state;
    StallMeter meter;
    stall_begin(&meter);
    double start_s = clock_s();
    RankRun *run = run_ranks(5, 0.2, body_late, 3);
    double took_s = clock_s() - start_s - stall_end(&meter);
    expect_lost(run, 5, 3,
                (const char *[]){"tp: #2, all_reduce of 4 f32 (sum) in 'sum'",
                                 "not arrived: rank 3 on ", "left barrier #1 of tp in 'start'",
                                 NULL});
    assert_null(strstr(run[0].sentence, ", rank ")); /* only who is missing */
    assert_true(took_s < 1.2);                       /* one second after the deadline at most */
    free(run);
}

/* Rank 0 waits for 1, which waits for 2, and that for nobody: it has started an operation, if any,
 * and computes. Rank 1 has much more patience: so only rank 0's deadline passes. */
static Status body_chain(Comm *world, int64_t started, Arena *arena)
{
    Comm *pair;
    CommRequest *request;
    float *x = ARENA_ARRAY(arena, float, 4);
    int me = comm_rank(world);
    comm_note(world, "backward", 17);
    if (me == 2 && !started) return OK;
    if (me == 2) {
        TRY(comm_group(world, "other", (int[]){2, 3}, 2, &pair));
        return comm_start(pair,
                          &(CommOp){COMM_ALL_REDUCE, DTYPE_F32, .send = x, .recv = x, .count = 4},
                          &request);
    }
    if (me == 3) return OK;
    TRY(comm_group(world, me == 0 ? "low" : "high", (int[]){me, me + 1}, 2, &pair));
    comm_set_deadline(pair, me == 0 ? 0.1 : 30);
    if (me == 0) await_waiting(world, 1, "high");
    return run_sum(pair, x, x, 4);
}

/* The rank that hangs is named, not the one that waits for it, and within a second of the first
 * deadline. A thread that is kept from running for half a second cannot speak in time, whatever the
 * rules: only then it is tried again. */
static void test_chain(void **state)
{
    (void)state;
    for (int started = 0; started < 2; started++) {
        bool right = false;
        for (int try = 0; !right; try++) {
            StallMeter meter;
            stall_begin(&meter);
            double start_s = clock_s();
            RankRun *run = run_ranks(4, 20, body_chain, started);
            double took_s = clock_s() - start_s, stalled_s = stall_end(&meter);
            right = strstr(run[0].sentence, "high: #1") != NULL;
            if (right)
                for (int r = 0; r < 2; r++)
                    expect_lost(&run[r], 1, -1,
                                (const char *[]){
                                    "high: #1", "not arrived: rank 2 on ", "in backward of step 17",
                                    "behind it rank 0 waits in all_reduce #1 of low", NULL});
            if (right) assert_true(took_s - stalled_s < 1.1);
            if (!right && (stalled_s < 0.3 || try == 10)) fail_msg("%s", run[0].sentence);
            free(run);
        }
    }
}

/* Ranks 1, 2 and 3 wait for each other in a ring, and rank 0 for one of them: the line is about the
 * ring, and has all that are in it. */
static Status body_ring(Comm *world, int64_t argument, Arena *arena)
{
    static const char *const names[] = {"outside", "one", "two", "three"};
    Comm *pair;
    float *x = ARENA_ARRAY(arena, float, 4);
    int me = comm_rank(world), next = me == 3 ? 1 : me + 1;
    (void)argument;
    TRY(comm_group(world, names[me], (int[]){me, next}, 2, &pair));
    comm_set_deadline(pair, me == 0 ? 0.1 : 30);
    for (int r = 1; me == 0 && r < 4; r++) await_waiting(world, r, names[r]);
    return run_sum(pair, x, x, 4);
}

static void test_ring(void **state)
{
    (void)state;
    StallMeter meter;
    stall_begin(&meter);
    double start_s = clock_s();
    RankRun *run = run_ranks(4, 20, body_ring, 0);
    assert_true(clock_s() - start_s - stall_end(&meter) < 1.1);
    expect_lost(run, 4, -1,
                (const char *[]){"one: #1, all_reduce of 4 f32 (sum) in 'sum', waited ",
                                 " s on rank 1; not arrived: rank 2 on ",
                                 ", which waits for rank 3 on ",
                                 "last: waits in all_reduce #1 of three in 'sum' for rank 1 on ",
                                 "; behind it rank 0 waits in all_reduce #1 of outside", NULL});
    free(run);
}

/* Rank 0 waits for 1, which has left it behind and is in ever new operations with 2: it need not
 * wait for their deadline. */
static Status body_left_behind(Comm *world, int64_t argument, Arena *arena)
{
    Comm *pair;
    float *x = ARENA_ARRAY(arena, float, 4);
    int me = comm_rank(world);
    (void)argument;
    if (me == 0) {
        TRY(comm_group(world, "low", (int[]){0, 1}, 2, &pair));
        comm_set_deadline(pair, 0.1);
        return run_sum(pair, x, x, 4);
    }
    TRY(comm_group(world, "high", (int[]){1, 2}, 2, &pair));
    for (;;) TRY(run_sum(pair, x, x, 4));
}

static void test_left_behind(void **state)
{
    (void)state;
    StallMeter meter;
    stall_begin(&meter);
    double start_s = clock_s();
    RankRun *run = run_ranks(3, 20, body_left_behind, 0);
    assert_true(clock_s() - start_s - stall_end(&meter) < 1.1);
    expect_lost(run, 3, -1, (const char *[]){"low: #1", "not arrived: rank 1 on ", NULL});
    free(run);
}

/* Two wait for each other: each is named with what it waits in, and for whom. */
static Status body_cross(Comm *world, int64_t argument, Arena *arena)
{
    Comm *pair;
    float *x = ARENA_ARRAY(arena, float, 4);
    int me = comm_rank(world);
    (void)argument;
    TRY(comm_group(world, me == 0 ? "low" : "high", (int[]){0, 1}, 2, &pair));
    return run_sum(pair, x, x, 4);
}

static void test_cross(void **state)
{
    (void)state;
    StallMeter meter;
    stall_begin(&meter);
    double start_s = clock_s();
    RankRun *run = run_ranks(2, 0.2, body_cross, 0);
    assert_true(clock_s() - start_s - stall_end(&meter) < 1.2);
    expect_lost(run, 2, -1,
                (const char *[]){"not arrived: rank ", "last: waits in all_reduce #1 of ",
                                 " in 'sum' for rank ", NULL});
    free(run);
}

/* A rank leaves one of several equal collectives out, or says another size: it is found at the next
 * one. */
static Status body_layers(Comm *world, int64_t argument, Arena *arena)
{
    static const char *const nodes[] = {"layer0", "layer1", "layer2"};
    float *x = ARENA_ARRAY(arena, float, 4);
    (void)argument;
    for (int i = 0; i < COUNT_OF(nodes); i++)
        TRY(comm_run(world, &(CommOp){.kind = COMM_ALL_REDUCE,
                                      .dtype = DTYPE_F32,
                                      .send = x,
                                      .recv = x,
                                      .count = 4,
                                      .node = nodes[i]}));
    return OK;
}

static void test_left_out(void **state)
{
    (void)state;
    assert_ok(fault_set("comm_skip:4"));
    RankRun *run = run_ranks(3, 20, body_layers, 0);
    expect_lost(run, 3, -1,
                (const char *[]){"world: collective #2 differs: rank ",
                                 "all_reduce of 4 f32 (sum) in 'layer1'", "in 'layer2'", NULL});
    free(run);
    assert_ok(fault_set("comm_differ:4"));
    run = run_ranks(3, 20, body_layers, 0);
    expect_lost(run, 3, -1,
                (const char *[]){"world: collective #2 differs: rank ",
                                 "all_reduce of 4 f32 (sum) in 'layer1'",
                                 "all_reduce of 5 f32 (sum) in 'layer1'", NULL});
    free(run);
    assert_ok(fault_set(NULL));
}

static Status body_no_message(Comm *world, int64_t argument, Arena *arena)
{
    float *x = ARENA_ARRAY(arena, float, 4);
    (void)argument;
    if (comm_rank(world) == 1) return OK;
    return comm_run(world, &(CommOp){COMM_RECV, DTYPE_F32, .recv = x, .count = 4, .peer = 1,
                                     .tag = 7, .node = "stage"});
}

static void test_no_message(void **state)
{
    (void)state;
    RankRun *run = run_ranks(2, 0.1, body_no_message, 0);
    expect_lost(run, 2, 1,
                (const char *[]){"world: #1, recv of 4 f32 in 'stage'", "not arrived: rank 1",
                                 "nothing known", NULL});
    free(run);
}

static Status body_mismatch(Comm *world, int64_t which, Arena *arena)
{
    float *x = ARENA_ARRAY(arena, float, 800), *y = x + 400;
    int odd = comm_rank(world) == 1;
    int64_t uneven[3] = {1, 2, 3}, other[3] = {2, 2, 2};
    CommOp a = {COMM_ALL_REDUCE, DTYPE_F32, .send = x, .recv = y, .count = 100, .node = "a"}, b = a;
    TRY(comm_run(world, &(CommOp){.kind = COMM_BARRIER}));
    if (which == 0) b.kind = COMM_ALL_GATHER;
    if (which == 1) b.count = 99;
    if (which == 2) b.dtype = DTYPE_I32;
    if (which == 3) b.reduce = COMM_MAX;
    if (which == 4) {
        a.kind = b.kind = COMM_ALL_GATHER;
        a.counts = uneven;
        b.counts = other; /* the same total */
    }
    if (which == 5) {
        a.kind = b.kind = COMM_BROADCAST;
        b.peer = 2;
    }
    if (which == 6) {
        a.kind = b.kind = COMM_ALL_TO_ALL;
        b.count = 50;
    }
    if (which == 7 && comm_rank(world) == 2)
        return comm_run(world, &(CommOp){.kind = COMM_BARRIER});
    if (which == 7) {
        a.kind = COMM_SEND;
        b.kind = COMM_RECV;
        a.peer = 1;
        b.count = 98;
    }
    CommRequest *request = NULL;
    Status status = comm_start(world, odd ? &b : &a, &request);
    if (status == OK) return comm_wait(request);
    EXPECT(!request, "a start that failed gave a request, which is gone");
    return status;
}

static void test_mismatch(void **state)
{
    (void)state;
    for (int which = 0; which < 8; which++) {
        RankRun *run = run_ranks(3, 20, body_mismatch, which);
        expect_lost(run, 3, -1,
                    (const char *[]){which < 7 ? "world: collective #2 differs: rank "
                                               : "message #1 differs",
                                     ": rank ", "rank 1 on ", " calls ", NULL});
        free(run);
    }
}

static Status body_abort(Comm *world, int64_t argument, Arena *arena)
{
    if (comm_rank(world) == 2) return fail((Status)argument, "the roof is on fire");
    float *x = ARENA_ARRAY(arena, float, 1);
    for (int i = 0; i < 1000; i++) TRY(run_sum(world, x, x, 1));
    return OK;
}

static void test_abort(void **state)
{
    (void)state;
    double start_s = clock_s();
    RankRun *run = run_ranks(8, 20, body_abort, ERR_SHAPE);
    assert_true(clock_s() - start_s < 5);
    expect_lost(run, 8, 2, (const char *[]){"rank 2 on ", "gave up: the roof is on fire", NULL});
    free(run);
    run = run_ranks(3, 20, body_abort, ERR_REFUSED); /* is what all of them return */
    for (int r = 0; r < 3; r++) assert_int_equal(run[r].status, ERR_REFUSED);
    free(run);
}

/* The k-th operation of the process fails, or its rank stalls, for every k: nobody hangs, all know.
 */
static void test_faults(void **state)
{
    (void)state;
    int64_t calls = 0;
    for (int64_t k = 1; k == 1 || k <= calls + 1; k += 5) {
        char spec[32];
        snprintf(spec, sizeof spec, "comm:%lld", (long long)k);
        assert_ok(fault_set(spec));
        RankRun *run = run_ranks(3, 20, body_random, 1);
        if (k == 1) { /* then it is known how many there are */
            assert_ok(fault_set(NULL));
            expect_good(3, body_random, 1);
            calls = fault_count("comm");
        } else if (k > calls) {
            for (int r = 0; r < 3; r++) assert_int_equal(run[r].status, OK);
        }
        if (k == 1 || k <= calls) expect_lost(run, 3, -1, (const char *[]){"injected fault", NULL});
        free(run);
    }
    assert_ok(fault_set("comm_stall:20"));
    RankRun *run = run_ranks(3, 0.3, body_random, 1);
    expect_lost(run, 3, -1, (const char *[]){"not arrived: rank ", NULL});
    free(run);
    assert_ok(fault_set(NULL));
}

/* ---- many ranks ------------------------------------------------------------------------- */

static Status body_barrier(Comm *world, int64_t argument, Arena *arena)
{
    (void)argument;
    (void)arena;
    return comm_run(world, &(CommOp){.kind = COMM_BARRIER});
}

/* Creation, threads, one barrier and the end of a world of 64, the best of a few on a busy machine.
 */
static void test_many(void **state)
{
    (void)state;
    double best_s = 1e9;
    for (int i = 0; i < 10; i++) {
        double start_s = clock_s();
        expect_good(64, body_barrier, 0);
        best_s = fmin(best_s, clock_s() - start_s);
    }
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
    best_s /= 10;
#endif
    assert_true(best_s < 0.1);
    expect_good(256, body_barrier, 0);
    expect_good(256, body_messages, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random),     cmocka_unit_test(test_subtrees),
        cmocka_unit_test(test_orders),     cmocka_unit_test(test_messages),
        cmocka_unit_test(test_counts),     cmocka_unit_test(test_nan),
        cmocka_unit_test(test_arguments),  cmocka_unit_test(test_late),
        cmocka_unit_test(test_no_message), cmocka_unit_test(test_chain),
        cmocka_unit_test(test_ring),       cmocka_unit_test(test_left_behind),
        cmocka_unit_test(test_cross),      cmocka_unit_test(test_left_out),
        cmocka_unit_test(test_mismatch),   cmocka_unit_test(test_abort),
        cmocka_unit_test(test_faults),     cmocka_unit_test(test_many),
        cmocka_unit_test(test_forms),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
