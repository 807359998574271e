/* linear_bench: GFLOP/s of the matrix-product ops at the shapes of small language models, beside
 * the machine's own peak, measured first by a loop of independent multiply-adds in registers.
 *
 *     build/linear_bench [threads [filter]]        filter: a part of "op dtype MxIxO", e.g. "dw
 *                                                  bf16"
 *
 * Each op runs as a program would run it: its graph node, its kernel, its planned workspace. A line
 * is the median of up to 40 runs over about 0.3 s.
 */
#include "ops/kernel.h"
#include "ops/ops.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { MAX_RUNS = 40, MAX_OPERANDS = 6, EXPERTS = 8 };

/* ---- the peak --------------------------------------------------------------------------- */

#if defined(__x86_64__)
/* sums that never leave their registers */
#define PEAK_LOOP(name, isa, vector, zero, multiply_add)                                           \
    __attribute__((target(isa))) static double name(int64_t rounds)                                \
    {                                                                                              \
        vector a = zero, b = zero, c = zero, d = zero, e = zero, f = zero, g = zero, h = zero;     \
        for (int64_t r = 0; r < rounds; r++) {                                                     \
            a = multiply_add(a, a, a), b = multiply_add(b, b, b), c = multiply_add(c, c, c);       \
            d = multiply_add(d, d, d), e = multiply_add(e, e, e), f = multiply_add(f, f, f);       \
            g = multiply_add(g, g, g), h = multiply_add(h, h, h);                                  \
            __asm__ volatile(""                                                                    \
                             : "+v"(a), "+v"(b), "+v"(c), "+v"(d), "+v"(e), "+v"(f), "+v"(g),      \
                               "+v"(h));                                                           \
        }                                                                                          \
        double first;                                                                              \
        memcpy(&first, &a, sizeof first);                                                          \
        return first;                                                                              \
    }
#define DOT_BF16(c, x, y) _mm512_dpbf16_ps(c, (__m512bh)(x), (__m512bh)(y))
PEAK_LOOP(peak_f32_512, "avx512f", __m512, _mm512_setzero_ps(), _mm512_fmadd_ps)
PEAK_LOOP(peak_f32_256, "avx2,fma", __m256, _mm256_setzero_ps(), _mm256_fmadd_ps)
PEAK_LOOP(peak_bf16_512, "avx512f,avx512bf16", __m512, _mm512_setzero_ps(), DOT_BF16)
#endif

/* flop per round of 8 instructions, and the loop, for this machine; NULL when there is none */
typedef double (*PeakLoop)(int64_t rounds);
static PeakLoop peak_loop(bool bf16, double *flop)
{
#if defined(__x86_64__)
    if (bf16 && __builtin_cpu_supports("avx512bf16")) {
        *flop = 8 * 64;
        return peak_bf16_512;
    }
    if (!bf16 && __builtin_cpu_supports("avx512f")) {
        *flop = 8 * 32;
        return peak_f32_512;
    }
    if (!bf16 && __builtin_cpu_supports("fma")) {
        *flop = 8 * 16;
        return peak_f32_256;
    }
#endif
    (void)bf16;
    *flop = 0;
    return NULL;
}

/* One thread is timed by its own clock, which a busy machine disturbs less. */
static double now_s(int threads)
{
    struct timespec t;
    if (threads > 1) return clock_s();
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double measure_peak(bool bf16, int threads)
{
    double flop, best = 0;
    PeakLoop loop = peak_loop(bf16, &flop);
    if (!loop) return NAN;
    for (int trial = 0; trial < 5; trial++) {
        int64_t rounds = 10 * 1000 * 1000;
        double start = now_s(threads);
#pragma omp parallel for num_threads(threads)
        for (int t = 0; t < threads; t++) {
            volatile double sink = loop(rounds);
            (void)sink;
        }
        double rate = flop * (double)rounds * threads / (now_s(threads) - start) * 1e-9;
        best = rate > best ? rate : best;
    }
    return best;
}

/* ---- one node --------------------------------------------------------------------------- */

typedef struct Bench {
    Graph *graph;
    Target target;
    KernelArgs args;
    const CpuKernel *kernel;
    Tensor in[MAX_OPERANDS], out[NODE_MAX_OUT];
} Bench;

static Isa best_isa(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512bf16")) return ISA_AVX512BF16;
    if (__builtin_cpu_supports("avx512bw")) return ISA_AVX512;
    if (__builtin_cpu_supports("avx2")) return ISA_AVX2;
#endif
    return ISA_GENERIC;
}

static void *memory(size_t bytes)
{
    void *p = NULL;
    if (posix_memalign(&p, 64, bytes + 64)) abort();
    memset(p, 0, bytes + 64);
    return p;
}

static Tensor tensor_of(const Graph *graph, ValueId id)
{
    const Value *v = graph_value(graph, id);
    return tensor_make(memory((size_t)shape_count(&v->shape) * dtype_bytes(v->dtype)), v->dtype,
                       v->shape);
}

static void fill(Tensor *t, uint64_t seed)
{
    int64_t n = tensor_count(t);
    for (int64_t i = 0; i < n; i++) {
        float x = (float)((double)(int64_t)((uint64_t)i * 0x9e3779b97f4a7c15ull + seed) * 0x1p-63);
        if (t->dtype == DTYPE_F32) ((float *)t->data)[i] = x;
        if (t->dtype == DTYPE_BF16) ((uint16_t *)t->data)[i] = bf16_from_f32(x);
    }
}

/* Offsets of experts with loads in the proportion 1 : 2 : ... : 8, 128 rows left over. */
static void fill_offsets(Tensor *t, int64_t rows)
{
    int32_t *at = t->data;
    int64_t n = tensor_count(t) - 1, unit = (rows - 128) / (n * (n + 1) / 2) / 16 * 16;
    for (int64_t e = 0; e < n; e++) at[e + 1] = (int32_t)(at[e] + unit * (e + 1));
    at[n] = (int32_t)(rows - 128);
}

/* The last node of the graph becomes the one that is timed. */
static Status bench_init(Bench *b, Graph *graph, int threads)
{
    const Node *node = &graph->node[graph->n_nodes - 1];
    b->graph = graph;
    b->target = (Target){.isa = best_isa(), .threads = threads};
    b->kernel = node->op->cpu[b->target.isa];
    for (int i = 0; i < node->n_in; i++) {
        b->in[i] = tensor_of(graph, node->in[i]);
        fill(&b->in[i], (uint64_t)i);
        if (i == 2 && b->in[i].dtype == DTYPE_I32 && tensor_count(&b->in[i]) == EXPERTS + 1)
            fill_offsets(&b->in[i], b->in[0].shape.dim[0]);
    }
    for (int i = 0; i < node->n_out; i++) {
        if (!value_ok(node->out[i])) continue;
        b->out[i] = tensor_of(graph, node->out[i]);
    }
    size_t bytes = b->kernel->workspace ? b->kernel->workspace(graph, node, &b->target) : 0;
    b->args = (KernelArgs){.attr = node->attr,
                           .in = b->in,
                           .out = b->out,
                           .n_in = node->n_in,
                           .n_out = node->n_out,
                           .workspace = memory(bytes),
                           .workspace_bytes = bytes,
                           .threads = threads};
    return b->kernel->prepare ? b->kernel->prepare(&b->args) : OK;
}

static void bench_deinit(Bench *b)
{
    if (b->kernel->release) b->kernel->release(&b->args);
    for (int i = 0; i < MAX_OPERANDS; i++) free(b->in[i].data);
    for (int i = 0; i < NODE_MAX_OUT; i++) free(b->out[i].data);
    free(b->args.workspace);
    graph_destroy(b->graph);
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static Status bench_time(Bench *b, double *median_s)
{
    double run_s[MAX_RUNS], start = clock_s();
    int n = 0;
    TRY(b->kernel->run(&b->args));
    while (n < MAX_RUNS && (n < 5 || clock_s() - start < 0.3)) {
        double t = now_s(b->args.threads);
        TRY(b->kernel->run(&b->args));
        run_s[n++] = now_s(b->args.threads) - t;
    }
    qsort(run_s, (size_t)n, sizeof *run_s, compare_doubles);
    *median_s = run_s[n / 2];
    return OK;
}

/* ---- the table -------------------------------------------------------------------------- */

typedef struct Case {
    const char *op;
    int64_t m, i, o; /* tokens, inputs, outputs */
} Case;

static ValueId input(Graph *g, const char *name, DType dtype, int rank, const int64_t *dim)
{
    Axis axes[MAX_RANK] = {AXIS_ANY};
    return graph_input(g, name, dtype, shape_make(rank, dim, axes));
}

static Status build_experts(Graph *g, const Case *c, DType dtype, ValueId *out)
{
    ValueId x = input(g, "x", dtype, 2, (int64_t[]){c->m, c->i});
    ValueId dy = input(g, "dy", dtype, 2, (int64_t[]){c->m, c->o});
    ValueId w = input(g, "w", dtype, 3, (int64_t[]){EXPERTS, c->i, c->o});
    ValueId offsets = input(g, "offsets", DTYPE_I32, 1, (int64_t[]){EXPERTS + 1});
    if (!strcmp(c->op, "ey")) return op_grouped_linear(g, x, w, offsets, EXPERTS_IN_OUT, out);
    if (!strcmp(c->op, "edx")) return op_grouped_linear_dx(g, dy, w, offsets, EXPERTS_IN_OUT, out);
    ExpertWeight like = {graph_value(g, w)->shape, EXPERTS_IN_OUT};
    return op_grouped_linear_dw(g, dy, x, offsets, like, out);
}

static Status build_loss(Graph *g, const Case *c, DType dtype, ValueId *out)
{
    ValueId x = input(g, "x", dtype, 2, (int64_t[]){c->m, c->i});
    ValueId w = input(g, "w", dtype, 2, (int64_t[]){c->o, c->i});
    ValueId targets = input(g, "targets", DTYPE_I32, 1, (int64_t[]){c->m});
    ValueId weights = input(g, "weights", DTYPE_F32, 1, (int64_t[]){c->m});
    ValueId dloss = graph_input(g, "dloss", DTYPE_F32, shape_make(0, NULL, NULL));
    if (!strcmp(c->op, "loss"))
        return op_linear_cross_entropy(g, x, w, targets, weights, 0, &out[0], &out[1]);
    return op_linear_cross_entropy_grad(g, x, w, targets, weights, dloss, 0, &out[0], &out[1],
                                        &out[2], &out[3]);
}

static Status build(Graph *g, const Case *c, DType dtype)
{
    ValueId out[NODE_MAX_OUT];
    if (c->op[0] == 'e') return build_experts(g, c, dtype, out);
    if (c->op[0] == 'l') return build_loss(g, c, dtype, out);
    ValueId x = input(g, "x", dtype, 2, (int64_t[]){c->m, c->i});
    ValueId dy = input(g, "dy", dtype, 2, (int64_t[]){c->m, c->o});
    ValueId w = input(g, "w", dtype, 2, (int64_t[]){c->o, c->i});
    if (!strcmp(c->op, "y")) return op_linear(g, x, w, out);
    if (!strcmp(c->op, "dx")) return op_linear_dx(g, dy, w, out);
    return op_linear_dw(g, dy, x, out);
}

static Status bench_case(const Case *c, DType dtype, int threads, double peak)
{
    double start = clock_s(), median_s;
    Graph *g = graph_create("bench");
    Bench b = {0};
    Status status = build(g, c, dtype);
    if (status != OK) {
        graph_destroy(g);
        return status;
    }
    TRY(bench_init(&b, g, threads));
    double ready_s = clock_s() - start;
    TRY(bench_time(&b, &median_s));
    const Node *node = &g->node[g->n_nodes - 1];
    double rate = node->op->cost(g, node).flop / median_s * 1e-9;
    printf("%-8s %-4s %6lld x %5lld -> %6lld  %8.3f ms  %7.1f GFLOP/s  %5.1f%%  workspace %8.2f "
           "MiB  ready %.1f ms\n",
           c->op, dtype_name(dtype), (long long)c->m, (long long)c->i, (long long)c->o,
           median_s * 1e3, rate, 100 * rate / peak, (double)b.args.workspace_bytes / 1048576,
           ready_s * 1e3);
    fflush(stdout);
    bench_deinit(&b);
    return OK;
}

/* small: 384 wide, 4096 tokens; medium: 768 wide, 2048 tokens. ey, edx, edw: 8 experts of uneven
 * load. */
static const Case cases[] = {
    {"y", 4096, 384, 640},          {"y", 4096, 384, 384},      {"y", 4096, 384, 2048},
    {"y", 4096, 1024, 384},         {"y", 2048, 768, 1280},     {"y", 2048, 768, 768},
    {"y", 2048, 768, 4096},         {"y", 2048, 2048, 768},     {"dx", 4096, 384, 640},
    {"dx", 4096, 384, 384},         {"dx", 4096, 384, 2048},    {"dx", 4096, 1024, 384},
    {"dx", 2048, 768, 1280},        {"dx", 2048, 768, 768},     {"dx", 2048, 768, 4096},
    {"dx", 2048, 2048, 768},        {"dw", 4096, 384, 640},     {"dw", 4096, 384, 384},
    {"dw", 4096, 384, 2048},        {"dw", 4096, 1024, 384},    {"dw", 2048, 768, 1280},
    {"dw", 2048, 768, 768},         {"dw", 2048, 768, 4096},    {"dw", 2048, 2048, 768},
    {"ey", 4224, 384, 2048},        {"ey", 4224, 1024, 384},    {"edx", 4224, 384, 2048},
    {"edx", 4224, 1024, 384},       {"edw", 4224, 384, 2048},   {"edw", 4224, 1024, 384},
    {"loss", 4096, 384, 4096},      {"loss", 2048, 768, 32000}, {"lossgrad", 4096, 384, 4096},
    {"lossgrad", 2048, 768, 32000}, {"y", 1, 768, 4096},        {"y", 4, 768, 4096},
    {"y", 16, 768, 4096},
};

int main(int argc, char **argv)
{
    int64_t threads = cpu_count();
    if (argc > 1 && !parse_i64(argv[1], &threads)) return 2;
    const char *filter = argc > 2 ? argv[2] : "";
    double peak[] = {measure_peak(false, (int)threads), measure_peak(true, (int)threads)};
    printf("peak of %d threads: f32 %.1f, bf16 %.1f GFLOP/s\n", (int)threads, peak[0], peak[1]);
    for (int d = 0; d < 2; d++)
        for (int i = 0; i < COUNT_OF(cases); i++) {
            DType dtype = d ? DTYPE_BF16 : DTYPE_F32;
            char tag[80];
            snprintf(tag, sizeof tag, "%s %s %lldx%lldx%lld", cases[i].op, dtype_name(dtype),
                     (long long)cases[i].m, (long long)cases[i].i, (long long)cases[i].o);
            if (!strstr(tag, filter)) continue;
            if (bench_case(&cases[i], dtype, (int)threads, peak[d]) != OK) {
                fprintf(stderr, "%s: %s\n", tag, status_message());
                return 1;
            }
        }
    return 0;
}
