/* linear_bench: GFLOP/s of the matrix-product ops at the shapes of small language models, beside
 * the machine's own peak, measured first.
 *
 *     build/linear_bench [threads [filter [isa]]]     filter: a part of "op dtype MxIxO",
 *                                                     e.g. "dw bf16"
 *
 * Each op runs as a program would run it: its graph node, its kernel, its planned workspace. A line
 * is the median of up to 40 runs over about 0.3 s.
 */
#include "op_bench.h"
#include "ops/ops.h"

enum { MAX_OPERANDS = 6, EXPERTS = 8 };

/* ---- one node --------------------------------------------------------------------------- */

typedef struct Bench {
    Graph *graph;
    KernelArgs args;
    const Kernel *kernel;
    Tensor in[MAX_OPERANDS], out[NODE_MAX_OUT];
} Bench;

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
static Status bench_init(Bench *b, Graph *graph, const Target *target)
{
    const Node *node = &graph->node[graph->n_nodes - 1];
    b->graph = graph;
    b->kernel = node->op->cpu[target->isa];
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
    size_t bytes = b->kernel->workspace ? b->kernel->workspace(graph, node, target) : 0;
    b->args = (KernelArgs){.attr = node->attr,
                           .in = b->in,
                           .out = b->out,
                           .n_in = node->n_in,
                           .n_out = node->n_out,
                           .workspace = memory(bytes),
                           .workspace_bytes = bytes,
                           .threads = target->threads};
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

static Status bench_case(const Case *c, DType dtype, const Target *target, double peak)
{
    double start = clock_s(), took_s[2];
    Graph *g = graph_create("bench");
    Bench b = {0};
    Status status = build(g, c, dtype);
    if (status != OK) {
        graph_destroy(g);
        return status;
    }
    TRY(bench_init(&b, g, target));
    double ready_s = clock_s() - start;
    TRY(op_bench_time(b.kernel, &b.args, OP_BENCH_MOST_RUNS, took_s));
    const Node *node = &g->node[g->n_nodes - 1];
    double rate = node->op->cost(g, node).flop / took_s[1] * 1e-9;
    printf("%-8s %-4s %6lld x %5lld -> %6lld  %8.3f ms  %7.1f GFLOP/s  %5.1f%%  workspace %8.2f "
           "MiB  ready %.1f ms\n",
           c->op, dtype_name(dtype), (long long)c->m, (long long)c->i, (long long)c->o,
           took_s[1] * 1e3, rate, 100 * rate / peak, (double)b.args.workspace_bytes / 1048576,
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
    Target target = {.isa = op_bench_isa(argc > 3 ? argv[3] : NULL), .threads = (int)threads};
    double peak[2];
    op_bench_peaks(&target, peak);
    for (int d = 0; d < 2; d++)
        for (int i = 0; i < COUNT_OF(cases); i++) {
            DType dtype = d ? DTYPE_BF16 : DTYPE_F32;
            char tag[80];
            snprintf(tag, sizeof tag, "%s %s %lldx%lldx%lld", cases[i].op, dtype_name(dtype),
                     (long long)cases[i].m, (long long)cases[i].i, (long long)cases[i].o);
            if (!strstr(tag, filter)) continue;
            if (bench_case(&cases[i], dtype, &target, peak[d]) != OK) {
                fprintf(stderr, "%s: %s\n", tag, status_message());
                return 1;
            }
        }
    return 0;
}
