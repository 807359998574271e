/* attention_bench: attention forward and backward in GFLOP/s over the pairs of query and key that
 * the mask shows, beside the machine's own peak; rope, l2norm and decoding over caches in GB/s.
 *
 *     build/attention_bench [threads [filter [isa]]]     filter: a part of a line's name, e.g.
 *                                                        "grad bf16"
 *
 * A line is the median of up to 40 runs over about 0.3 s; with one thread the time is that of the
 * processor, so that neighbours on the machine disturb it less.
 */
#include "op_bench.h"
#include "ops/ops.h"

enum { MAX_OPERANDS = 8 };

typedef struct Case {
    const char *name;
    const char *op; /* the node that is timed, the last of the graph */
    int64_t batch, tokens, heads, kv_heads, d;
    int64_t cache_rows, document;
    float alibi; /* 0: no slopes */
} Case;

enum { PAGE = 16 }; /* positions of a cache */

static const Case cases[] = {
    {"small", "attention", 16, 256, 6, 2, 64, 0, 0, 0},
    {"small", "attention_grad", 16, 256, 6, 2, 64, 0, 0, 0},
    {"medium", "attention", 4, 512, 12, 4, 64, 0, 0, 0},
    {"medium", "attention_grad", 4, 512, 12, 4, 64, 0, 0, 0},
    {"alibi", "attention", 4, 512, 12, 12, 64, 0, 0, 8},
    {"alibi", "attention_grad", 4, 512, 12, 12, 64, 0, 0, 8},
    {"d128", "attention", 2, 1024, 8, 2, 128, 0, 0, 0},
    {"d128", "attention_grad", 2, 1024, 8, 2, 128, 0, 0, 0},
    {"long", "attention", 1, 8192, 2, 1, 128, 0, 0, 0},
    {"long", "attention_grad", 1, 8192, 2, 1, 128, 0, 0, 0},
    {"packed", "attention", 4, 512, 12, 4, 64, 0, 128, 0},
    {"packed", "attention_grad", 4, 512, 12, 4, 64, 0, 128, 0},
    {"prefill", "attention_cached", 1, 128, 12, 4, 64, 1024, 0, 0},
    {"decode1", "attention_cached", 1, 1, 12, 4, 64, 1024, 0, 0},
    {"decode1", "attention_cached", 1, 1, 32, 8, 128, 8192, 0, 0},
    {"decode16", "attention_cached", 16, 1, 12, 4, 64, 1024, 0, 0},
    {"small", "rope", 16, 256, 6, 2, 64, 0, 0, 0},
    {"small", "rope_table", 16, 256, 6, 2, 64, 0, 0, 0},
    {"small", "l2norm", 16, 256, 6, 2, 64, 0, 0, 0},
    {"small", "l2norm_grad", 16, 256, 6, 2, 64, 0, 0, 0},
    {"large", "rope", 4, 4096, 8, 2, 128, 0, 0, 0},
    {"large", "l2norm", 4, 4096, 8, 2, 128, 0, 0, 0},
};

typedef struct Bench {
    Graph *graph;
    const Node *node;
    const Kernel *kernel;
    KernelArgs args;
    Tensor in[MAX_OPERANDS], out[NODE_MAX_OUT];
} Bench;

static void *memory(size_t bytes)
{
    void *p = NULL;
    if (posix_memalign(&p, 64, bytes + 64)) abort();
    memset(p, 0, bytes + 64);
    return p;
}

static void fill(Tensor *t, uint64_t seed)
{
    for (int64_t i = 0; i < tensor_count(t); i++) {
        float x = (float)rng_normal(seed, (uint64_t)i);
        if (t->dtype == DTYPE_F32) ((float *)t->data)[i] = x;
        if (t->dtype == DTYPE_BF16) ((uint16_t *)t->data)[i] = bf16_from_f32(x);
    }
}

static ValueId input(Graph *g, const char *name, DType dtype, int rank, const int64_t *dim)
{
    return graph_input(g, name, dtype, shape_make(rank, dim, NULL));
}

/* The graph of a case; its last node is the one that is timed. */
static Status build(Graph *g, const Case *c, DType dtype)
{
    int64_t pages = c->cache_rows / PAGE;
    int64_t tokens[4] = {c->batch, c->tokens, c->kv_heads, c->d};
    int64_t pool[4] = {c->batch * pages, PAGE, c->kv_heads, c->d};
    ValueId q = input(g, "q", dtype, 4, (int64_t[]){c->batch, c->tokens, c->heads, c->d});
    ValueId k = input(g, "k", dtype, 4, pages ? pool : tokens);
    ValueId v = input(g, "v", dtype, 4, pages ? pool : tokens);
    ValueId pos = input(g, "pos", DTYPE_I32, 2, (int64_t[]){c->batch, c->tokens});
    ValueId table = input(g, "table", DTYPE_F32, 3, (int64_t[]){c->batch, c->tokens, c->d}), y[3];
    AttentionAttr attr = {.scale = 0.125f, .alibi = c->alibi};
    float eps = 1e-5f;
    if (!strcmp(c->op, "attention")) return op_attention(g, q, k, v, pos, attr, y);
    if (!strcmp(c->op, "attention_cached")) {
        ValueId of = input(g, "pages", DTYPE_I32, 2, (int64_t[]){c->batch, pages});
        return op_attention_cached(g, q, k, v, pos, of, attr, y);
    }
    if (!strcmp(c->op, "rope")) return op_rope(g, q, table, false, y);
    if (!strcmp(c->op, "rope_table")) return op_rope_table(g, pos, c->d, 1e4, (RopeScaling){0}, y);
    if (!strcmp(c->op, "l2norm")) return op_l2norm(g, q, eps, y);
    ValueId dout = input(g, "dout", dtype, 4, (int64_t[]){c->batch, c->tokens, c->heads, c->d});
    if (!strcmp(c->op, "l2norm_grad"))
        return graph_add(g, op_find(c->op), &eps, (ValueId[]){q, dout}, 2, y);
    ValueId o = input(g, "o", dtype, 4, (int64_t[]){c->batch, c->tokens, c->heads, c->d});
    ValueId lse = input(g, "lse", DTYPE_F32, 3, (int64_t[]){c->batch, c->heads, c->tokens});
    return graph_add(g, op_find(c->op), &attr, (ValueId[]){q, k, v, pos, o, lse, dout}, 7, y);
}

static void make_operands(Bench *b, const Case *c)
{
    for (int i = 0; i < b->node->n_in + b->node->n_out; i++) {
        bool in = i < b->node->n_in;
        ValueId id = in ? b->node->in[i] : b->node->out[i - b->node->n_in];
        Tensor *t = in ? &b->in[i] : &b->out[i - b->node->n_in];
        const Value *v = graph_value(b->graph, id);
        *t = tensor_make(memory((size_t)shape_count(&v->shape) * dtype_bytes(v->dtype)), v->dtype,
                         v->shape);
        if (!in) continue;
        fill(t, (uint64_t)i);
        /* log-sum-exps as large as they would be, so that probabilities are */
        for (int64_t j = 0; j < tensor_count(t) && !strcmp(v->name, "lse"); j++)
            ((float *)t->data)[j] = 6;
        for (int64_t j = 0; j < tensor_count(t) && v->dtype == DTYPE_I32; j++) {
            int64_t at = j % c->tokens;
            if (c->document) at %= c->document;
            if (c->cache_rows) at += c->cache_rows - c->tokens;
            if (!strcmp(v->name, "pages")) at = tensor_count(t) - 1 - j;
            ((int32_t *)t->data)[j] = (int32_t)at;
        }
    }
}

static Status bench_init(Bench *b, const Case *c, const Target *target)
{
    b->node = &b->graph->node[b->graph->n_nodes - 1];
    b->kernel = b->node->op->cpu[target->isa];
    make_operands(b, c);
    size_t bytes = b->kernel->workspace ? b->kernel->workspace(b->graph, b->node, target) : 0;
    b->args = (KernelArgs){.attr = b->node->attr,
                           .in = b->in,
                           .out = b->out,
                           .n_in = b->node->n_in,
                           .n_out = b->node->n_out,
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
}

/* flop over visible pairs; documents show less than the op's own count */
static double visible_share(const Case *c)
{
    if (!c->document) return 1;
    double n = (double)c->tokens, m = (double)c->document;
    return (m + 1) / (n + 1);
}

static Status bench_case(const Case *c, DType dtype, const Target *target, double peak)
{
    double took_s[2];
    Bench b = {.graph = graph_create("bench")};
    TRY(build(b.graph, c, dtype));
    TRY(bench_init(&b, c, target));
    TRY(op_bench_time(b.kernel, &b.args, OP_BENCH_MOST_RUNS, took_s));
    Cost cost = b.node->op->cost(b.graph, b.node);
    double work = cost.flop * visible_share(c) * 1e-9, bytes = cost.read_bytes + cost.write_bytes;
    printf("%-9s %-16s %-4s B %2lld T %4lld H %2lld K %lld d %3lld %9.3f ms (best %9.3f)", c->name,
           c->op, dtype_name(dtype), (long long)c->batch, (long long)c->tokens, (long long)c->heads,
           (long long)c->kv_heads, (long long)c->d, took_s[1] * 1e3, took_s[0] * 1e3);
    if (cost.kind != COST_STREAM && c->tokens > 1)
        printf("  %6.1f GFLOP/s  %3.0f%% of peak (best %3.0f%%)", work / took_s[1],
               100 * work / took_s[1] / peak, 100 * work / took_s[0] / peak);
    else
        printf("  %6.1f GB/s (best %6.1f)                ", bytes / took_s[1] * 1e-9,
               bytes / took_s[0] * 1e-9);
    printf("  workspace %5.2f MiB\n", (double)b.args.workspace_bytes / 1048576);
    fflush(stdout);
    bench_deinit(&b);
    graph_destroy(b.graph);
    return OK;
}

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
            snprintf(tag, sizeof tag, "%s %s %s", cases[i].name, cases[i].op, dtype_name(dtype));
            if (!strstr(tag, filter)) continue;
            if (bench_case(&cases[i], dtype, &target, peak[d]) != OK) {
                fprintf(stderr, "%s: %s\n", tag, status_message());
                return 1;
            }
        }
    return 0;
}
