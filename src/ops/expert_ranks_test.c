/* What brings rows of experts from rank to rank (expert_exchange.c, expert_columns.c), on ranks
 * that are threads with a GPU each: the cuda device's kernels leave the same bytes as the
 * processor's in every buffer, also where nothing was to be written, and these are what the table
 * says. */
#include "ops/optest.h"

#include "comm/comm.h"
#include "ops/expert_attr.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 4, EXPERTS = 8, ROWS = 40, MOST_OPS = 8, POISON = 0x5a, GUARD = 64 };

typedef struct Case {
    int n, apart;
    DType dtype;
    int64_t width;
    int64_t room; /* of owners; 0: enough */
} Case;

/* On the processor and on the GPU. */
typedef struct Pair {
    Tensor at[2];
} Pair;

typedef struct Op {
    KernelArgs args;
    Tensor tensor[4];
    const Kernel *kernel;
} Op;

typedef struct RankJob {
    Ranks ranks; /* first: found by its address */
    Case test;
    CommWorld *world;
    Comm *all;
    int rank;
    Gpu *gpu;
    GpuStream *stream;
    Arena arena;
    Op op[2 * MOST_OPS];
    int n_ops;
    VEC(void *) memory; /* of the GPU */
    Status status;
    char why[512];
} RankJob;

static Status whole_world(Ranks *ranks, unsigned axes, Comm **group)
{
    (void)axes;
    *group = ((RankJob *)ranks)->all;
    return OK;
}

/* Rank 1 has nothing; others leave experts out, and rows behind the last one's. */
static void offsets_of(int rank, int32_t offset[EXPERTS + 1])
{
    offset[0] = 0;
    for (int e = 0; e < EXPERTS; e++) {
        int rows = rank == 1 ? 0 : (int)(rng_u64(5, (uint64_t)(rank * EXPERTS + e)) % 6);
        offset[e + 1] = offset[e] + (rows > 4 ? 0 : rows);
    }
}

static Status alloc_on_gpu(RankJob *j, size_t bytes, void **at)
{
    TRY(gpu_alloc(j->gpu, bytes, "a test", at));
    VEC_PUSH(&j->memory, *at);
    return gpu_fill(j->stream, *at, POISON, bytes);
}

/* Both hold `content`, or nothing yet. */
static Status make(RankJob *j, DType dtype, Shape shape, const void *content, Pair *pair)
{
    Tensor t = tensor_make(NULL, dtype, shape);
    size_t bytes = tensor_bytes(&t) + GUARD;
    pair->at[0] = pair->at[1] = t;
    pair->at[0].data = arena_alloc(&j->arena, bytes);
    memset(pair->at[0].data, POISON, bytes);
    TRY(alloc_on_gpu(j, bytes, &pair->at[1].data));
    if (!content) return OK;
    memcpy(pair->at[0].data, content, tensor_bytes(&t));
    return gpu_write(j->stream, pair->at[1].data, content, tensor_bytes(&t));
}

static Status begin(RankJob *j, const OpDef *op, int device, const void *attr, Pair *const value[4],
                    Op **out)
{
    Op *o = *out = &j->op[j->n_ops++];
    size_t bytes = 0;
    for (int i = 0; i < 4; i++) {
        if (!value[i]) continue;
        o->tensor[i] = value[i]->at[device];
        bytes += tensor_bytes(&o->tensor[i]);
    }
    o->args = (KernelArgs){.attr = attr,
                           .in = o->tensor,
                           .out = o->tensor + op->min_in,
                           .n_in = op->min_in,
                           .n_out = op->n_out,
                           .threads = 1,
                           .stream = j->stream,
                           .ranks = &j->ranks,
                           .node = "experts"};
    if (device)
        TRY(alloc_on_gpu(j, bytes, &o->args.workspace));
    else
        o->args.workspace = arena_alloc(&j->arena, bytes);
    o->kernel = device ? op->cuda : op->cpu[ISA_GENERIC];
    return o->kernel->prepare(&o->args);
}

/* On both; the same bytes in the outputs. */
static Status run(RankJob *j, const char *name, const void *attr, Pair *const value[4])
{
    const OpDef *op = op_find(name);
    for (int device = 0; device < 2; device++) {
        Op *o = NULL;
        TRY(begin(j, op, device, attr, value, &o));
        TRY(o->kernel->run(&o->args));
    }
    for (int i = op->min_in; i < op->min_in + op->n_out; i++) {
        size_t bytes = tensor_bytes(&value[i]->at[0]) + GUARD;
        char *got = arena_alloc(&j->arena, bytes);
        TRY(gpu_read(j->stream, got, value[i]->at[1].data, bytes));
        if (memcmp(got, value[i]->at[0].data, bytes) != 0)
            return fail(ERR_DEVICE, "%s: output %d has other bytes on the GPU", name,
                        i - op->min_in);
    }
    return OK;
}

/* Of a row, as its rank wrote it: small whole numbers, which bf16 holds and sums exactly. */
static float element(int rank, int64_t row, int64_t column)
{
    return (float)((rank * 64 + row * 3 + column) % 61);
}

static void *rows_of(RankJob *j, int64_t rows, int64_t width, int rank)
{
    DType dtype = j->test.dtype;
    char *at = arena_alloc(&j->arena, (size_t)(rows * width) * dtype_bytes(dtype));
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < width; c++) {
            float x = element(rank, r, c);
            uint16_t half = bf16_from_f32(x);
            memcpy(at + (size_t)(r * width + c) * dtype_bytes(dtype),
                   dtype == DTYPE_BF16 ? (const void *)&half : (const void *)&x,
                   dtype_bytes(dtype));
        }
    return at;
}

#define EXPECT(condition)                                                                          \
    do {                                                                                           \
        if (!(condition)) return fail(ERR_ARG, "line %d: %s", __LINE__, #condition);               \
    } while (0)

/* By expert, then by rank, as the offsets that ranks have say. */
static Status check_dispatched(RankJob *j, const Pair *owned, const Pair *arrived, int64_t *n_rows)
{
    int n = j->test.n, each = EXPERTS / n;
    size_t row_bytes = (size_t)j->test.width * dtype_bytes(j->test.dtype);
    const int32_t *at = owned->at[0].data;
    const char *row = arrived->at[0].data;
    int32_t sum = 0;
    for (int e = j->rank * each; e < (j->rank + 1) * each; e++)
        for (int r = 0; r < n; r++) {
            int32_t offset[EXPERTS + 1];
            offsets_of(r, offset);
            if (r == 0 || j->test.apart) EXPECT(*at++ == sum);
            const char *sent = rows_of(j, ROWS, j->test.width, r);
            size_t bytes = (size_t)(offset[e + 1] - offset[e]) * row_bytes;
            EXPECT(!memcmp(row, sent + (size_t)offset[e] * row_bytes, bytes));
            row += bytes;
            sum += offset[e + 1] - offset[e];
        }
    EXPECT(*at == sum);
    *n_rows = sum;
    return OK;
}

static Shape matrix(int64_t rows, int64_t width)
{
    return shape_make(2, (int64_t[]){rows, width}, NULL);
}
static Shape vector(int64_t n) { return shape_make(1, (int64_t[]){n}, NULL); }

/* There and back again. */
static Status send_rows(RankJob *j, Pair *table, Pair *owned)
{
    const Case *c = &j->test;
    ExchangeAttr attr = {.n = c->n, .rank = j->rank, .apart = c->apart};
    Pair rows, arrived, back;
    int32_t offset[EXPERTS + 1];
    int64_t n_rows;
    const char *sent = rows_of(j, ROWS, c->width, j->rank);
    offsets_of(j->rank, offset);
    TRY(make(j, c->dtype, matrix(ROWS, c->width), sent, &rows));
    TRY(make(j, c->dtype, matrix(c->room ? c->room : c->n * ROWS, c->width), NULL, &arrived));
    TRY(make(j, c->dtype, matrix(ROWS, c->width), NULL, &back));
    TRY(run(j, "expert_dispatch", &attr, (Pair *[4]){&rows, table, &arrived}));
    TRY(check_dispatched(j, owned, &arrived, &n_rows));
    TRY(run(j, "expert_collect", &attr, (Pair *[4]){&arrived, table, &back}));
    size_t bytes = (size_t)(offset[EXPERTS] * c->width) * dtype_bytes(c->dtype);
    EXPECT(!memcmp(back.at[0].data, sent, bytes));
    return OK;
}

/* The ranks hold parts of the same rows: as many as this rank's owned say is not so here, hence
 * those of rank 0 of all. */
static Status send_columns(RankJob *j, Pair *owned)
{
    const Case *c = &j->test;
    ColumnsAttr attr = {.n = c->n, .rank = j->rank};
    Pair part, whole, sum;
    int64_t there = ((const int32_t *)owned->at[0].data)[tensor_count(&owned->at[0]) - 1];
    size_t bytes = (size_t)c->width * dtype_bytes(c->dtype);
    TRY(make(j, c->dtype, matrix(ROWS, c->width), rows_of(j, ROWS, c->width, j->rank), &part));
    TRY(make(j, c->dtype, matrix(ROWS, c->n * c->width), NULL, &whole));
    TRY(make(j, c->dtype, matrix(ROWS, c->width), NULL, &sum));
    TRY(run(j, "expert_unite", &attr, (Pair *[4]){&part, owned, &whole}));
    for (int k = 0; k < c->n; k++) {
        const char *theirs = rows_of(j, ROWS, c->width, k);
        for (int64_t r = 0; r < there; r++)
            EXPECT(!memcmp((char *)whole.at[0].data + (size_t)(r * c->n + k) * bytes,
                           theirs + (size_t)r * bytes, bytes));
    }
    return run(j, "expert_divide", &attr, (Pair *[4]){&whole, owned, &sum});
}

static Status plan_rows(RankJob *j, int of, Pair *table, Pair *owned)
{
    const Case *c = &j->test;
    int64_t each = c->apart ? EXPERTS : EXPERTS / c->n;
    ExchangeAttr *attr = arena_alloc(&j->arena, sizeof *attr);
    int32_t offset[EXPERTS + 1];
    Pair offsets;
    *attr = (ExchangeAttr){.n = c->n, .rank = of, .apart = c->apart};
    offsets_of(j->rank, offset);
    TRY(make(j, DTYPE_I32, vector(EXPERTS + 1), offset, &offsets));
    TRY(make(j, DTYPE_I32, vector(c->n * (EXPERTS + 1)), NULL, table));
    TRY(make(j, DTYPE_I32, vector(each + 1), NULL, owned));
    return run(j, "expert_plan", attr, (Pair *[4]){&offsets, table, owned});
}

static Status exchange(RankJob *j)
{
    Pair table, owned, same_owned;
    j->ranks.group = whole_world;
    j->all = comm_of_rank(j->world, j->rank);
    TRY(gpu_open(j->rank % gpu_count(NULL), &j->gpu));
    TRY(gpu_stream_create(j->gpu, &j->stream));
    comm_join_gpu(j->all, j->stream);
    TRY(plan_rows(j, j->rank, &table, &owned));
    TRY(send_rows(j, &table, &owned));
    TRY(plan_rows(j, 0, &table, &same_owned));
    return send_columns(j, &same_owned);
}

static void *rank_main(void *argument)
{
    RankJob *j = argument;
    j->status = exchange(j);
    if (j->status != OK) snprintf(j->why, sizeof j->why, "%s", status_message());
    if (j->status != OK) comm_abort(j->all, j->status);
    for (int i = 0; i < j->n_ops; i++)
        if (j->op[i].kernel && j->op[i].kernel->release) j->op[i].kernel->release(&j->op[i].args);
    comm_leave_gpu(j->all);
    for (size_t i = 0; i < j->memory.n; i++) gpu_free(j->gpu, j->memory.at[i]);
    VEC_FREE(&j->memory);
    gpu_stream_destroy(j->stream);
    gpu_close(j->gpu);
    arena_deinit(&j->arena);
    return NULL;
}

/* The status of the rank that failed first. */
static Status run_ranks(const Case *c, char why[512])
{
    RankJob job[MOST];
    pthread_t thread[MOST];
    CommWorld *world;
    memset(job, 0, sizeof job);
    optest_ok(comm_world_create_local(c->n, &(CommOptions){.deadline_s = 20}, &world));
    for (int r = 0; r < c->n; r++) {
        job[r].test = *c;
        job[r].world = world;
        job[r].rank = r;
        assert_int_equal(pthread_create(&thread[r], NULL, rank_main, &job[r]), 0);
    }
    for (int r = 0; r < c->n; r++) pthread_join(thread[r], NULL);
    Status status = OK;
    for (int r = c->n; r-- > 0;)
        if (job[r].status != OK) {
            status = job[r].status;
            snprintf(why, 512, "%s", job[r].why);
        }
    comm_world_destroy(world);
    return status;
}

/* Rows that a GPU moves 16, 4 and 2 bytes at a time, and more of them than a run of blocks takes at
 * once. */
static void check_rows(void)
{
    static const Case cases[] = {
        {2, 0, DTYPE_F32, 8, 0},  {4, 0, DTYPE_F32, 5, 0},   {4, 1, DTYPE_BF16, 6, 0},
        {2, 1, DTYPE_BF16, 5, 0}, {4, 0, DTYPE_F32, 400, 0},
    };
    for (int i = 0; i < COUNT_OF(cases); i++) {
        char why[512];
        if (run_ranks(&cases[i], why) != OK) fail_msg("case %d: %s", i, why);
    }
}

static void test_rows(void **state)
{
    (void)state;
    if (!gpu_count(NULL)) skip();
    check_rows();
}

/* Without the host between. */
static void test_rows_among_gpus(void **state)
{
    (void)state;
    if (!gpu_is_emulated()) skip();
    setenv("DROVER_EMULATED_EXCHANGE", "1", 1);
    check_rows();
    unsetenv("DROVER_EMULATED_EXCHANGE");
}

/* Said before anything is sent. */
static void test_no_room(void **state)
{
    (void)state;
    char why[512];
    if (!gpu_count(NULL)) skip();
    assert_int_not_equal(run_ranks(&(Case){2, 0, DTYPE_F32, 4, 3}, why), OK);
    if (!strstr(why, "rows from all ranks in one of 3")) fail_msg("%s", why);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rows),
                                       cmocka_unit_test(test_rows_among_gpus),
                                       cmocka_unit_test(test_no_room)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
