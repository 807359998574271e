/* join_norms among ranks, each with a part of the gradients and a GPU of its own (the emulated one,
 * or a real one where there are enough): rounded sums and the exact ones. */
#include "ops/exact_sum.h"
#include "ops/grad_norm.h"
#include "ops/kernel.h"
#include "ops/optest.h"

#include <pthread.h>

enum { RANKS = 3, N = 40 };

typedef struct RankJob {
    Ranks ranks; /* first: group finds the others from it */
    Comm *all;
    int rank;
    bool exact;
    Gpu *gpu;
    GpuStream *stream;
    float norm;
    Status status;
    char why[256];
} RankJob;

/* gradient i of rank r */
static float gradient(int r, int i) { return (float)(r + 1) * 0.25f + (float)i * 1e-3f; }

static Status group(Ranks *ranks, unsigned axes, Comm **comm)
{
    if (axes != 1u << MESH_FSDP) return fail(ERR_ARG, "axes %u", axes);
    *comm = ((RankJob *)(void *)ranks)->all;
    return OK;
}

/* What grad_norm makes of this rank's gradients. */
static void own_norm(const RankJob *j, int32_t words[EXACT_WORDS])
{
    float x[N];
    double squares = 0;
    for (int i = 0; i < N; i++) x[i] = gradient(j->rank, i);
    for (int i = 0; i < N; i++) squares += (double)x[i] * (double)x[i];
    ExactSum sum = {0};
    exact_add_squares(&sum, x, N);
    exact_write(&sum, words);
    float norm = (float)sqrt(squares);
    if (!j->exact) memcpy(words, &norm, sizeof norm);
}

static Status join(RankJob *j)
{
    const Kernel *kernel = op_find("join_norms")->cuda;
    GradNormAttr attr = {.cut_axes = 1u << MESH_FSDP, .exact = j->exact};
    int64_t n = j->exact ? EXACT_WORDS : 1;
    int32_t words[EXACT_WORDS];
    void *here, *norm, *workspace;
    size_t bytes = (size_t)n * sizeof *words;
    TRY(gpu_open(j->rank % gpu_count(NULL), &j->gpu));
    TRY(gpu_stream_create(j->gpu, &j->stream));
    TRY(gpu_alloc(j->gpu, bytes, "norm of a rank", &here));
    TRY(gpu_alloc(j->gpu, sizeof j->norm, "norm", &norm));
    TRY(gpu_alloc(j->gpu, RANKS * bytes, "norms of all ranks", &workspace));
    own_norm(j, words);
    TRY(gpu_write(j->stream, here, words, bytes));
    Tensor in = tensor_make(here, j->exact ? DTYPE_I32 : DTYPE_F32, SHAPE(n)),
           out = tensor_make(norm, DTYPE_F32, SCALAR);
    KernelArgs args = {.attr = &attr,
                       .in = &in,
                       .out = &out,
                       .n_in = 1,
                       .n_out = 1,
                       .workspace = workspace,
                       .workspace_bytes = RANKS * bytes,
                       .stream = j->stream,
                       .ranks = &j->ranks,
                       .node = "norm"};
    TRY(kernel->prepare(&args));
    TRY(kernel->run(&args));
    TRY(gpu_read(j->stream, &j->norm, norm, sizeof j->norm));
    kernel->release(&args);
    gpu_free(j->gpu, here);
    gpu_free(j->gpu, norm);
    gpu_free(j->gpu, workspace);
    return OK;
}

static void *rank_main(void *argument)
{
    RankJob *j = argument;
    j->status = join(j);
    if (j->status != OK) snprintf(j->why, sizeof j->why, "%s", status_message());
    if (j->status != OK) comm_abort(j->all, j->status);
    comm_leave_gpu(j->all);
    gpu_stream_destroy(j->stream);
    gpu_close(j->gpu);
    return NULL;
}

static void check(bool exact)
{
    RankJob job[RANKS] = {0};
    pthread_t thread[RANKS];
    CommWorld *world;
    double squares = 0;
    optest_ok(comm_world_create_local(RANKS, &(CommOptions){.deadline_s = 20}, &world));
    for (int r = 0; r < RANKS; r++) {
        for (int i = 0; i < N; i++) squares += (double)gradient(r, i) * (double)gradient(r, i);
        job[r] = (RankJob){
            .ranks = {group}, .all = comm_of_rank(world, r), .rank = r, .exact = exact};
        assert_int_equal(pthread_create(&thread[r], NULL, rank_main, &job[r]), 0);
    }
    for (int r = 0; r < RANKS; r++) pthread_join(thread[r], NULL);
    for (int r = 0; r < RANKS; r++) {
        if (job[r].status != OK) fail_msg("rank %d: %s", r, job[r].why);
        if (!(fabs((double)job[r].norm - sqrt(squares)) <= 1e-7 * sqrt(squares)))
            fail_msg("rank %d: %.9g, wanted %.9g", r, (double)job[r].norm, sqrt(squares));
    }
    comm_world_destroy(world);
}

static void test_norms_are_joined(void **state)
{
    (void)state;
    if (!op_find("join_norms")->cuda) skip();
    /* ranks that share a GPU cannot exchange by NCCL */
    if (gpu_count(NULL) < (gpu_is_emulated() ? 1 : RANKS)) skip();
    check(false);
    check(true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_norms_are_joined)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
