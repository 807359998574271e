/* elem_bench: the ops that are limited by memory, in GB/s of what their cost counts, beside a plain
 * copy.
 *
 *     build/elem_bench [threads [filter [runs]]]     filter: a part of a line's name, e.g.
 *                                                    "rmsnorm_grad bf16"
 *
 * A line is the median (and best) of up to `runs` (40) runs over about 0.3 s, caches as the
 * previous run left them; with one thread the time is that of the processor, so that neighbours on
 * the machine disturb it less.
 */
#include "op_bench.h"
#include "ops/ops.h"

enum { TOKENS = 4096, WIDTH = 512, FFN = 1376, VOCAB = 8192, EXPERTS = 8, PARAMS = 24 << 20 };

typedef struct Case {
    const char *name;
    Status (*build)(Graph *g, DType dtype);
    bool f32_only;
    const char *op; /* the node that is timed; NULL: the last one */
} Case;

/* ---- graphs ----------------------------------------------------------------------------- */

static ValueId matrix(Graph *g, DType dtype, int64_t rows, int64_t width)
{
    char name[32];
    snprintf(name, sizeof name, "x%d", g->n_values);
    return graph_input(g, name, dtype, shape_make(width ? 2 : 1, (int64_t[]){rows, width}, NULL));
}
/* what an op changes in place */
static ValueId params(Graph *g, DType dtype)
{
    char name[32];
    snprintf(name, sizeof name, "x%d", g->n_values);
    return graph_state(g, name, dtype, shape_make(1, (int64_t[]){PARAMS}, NULL), STATE_NONE);
}

static Status build_add(Graph *g, DType d)
{
    ValueId y;
    return op_add(g, matrix(g, d, TOKENS, WIDTH), matrix(g, d, TOKENS, WIDTH), &y);
}
static Status build_cast(Graph *g, DType d)
{
    ValueId y;
    return op_cast(g, matrix(g, d, TOKENS, FFN), d == DTYPE_F32 ? DTYPE_BF16 : DTYPE_F32, &y);
}
static Status build_swiglu(Graph *g, DType d)
{
    ValueId y;
    return op_swiglu(g, matrix(g, d, TOKENS, FFN), matrix(g, d, TOKENS, FFN), &y);
}
static Status build_swiglu_grad(Graph *g, DType d)
{
    ValueId y[2], gate = matrix(g, d, TOKENS, FFN), up = matrix(g, d, TOKENS, FFN);
    return op_swiglu_grad(g, gate, up, matrix(g, d, TOKENS, FFN), &y[0], &y[1]);
}
static Status build_rmsnorm(Graph *g, DType d)
{
    ValueId y;
    return op_rmsnorm(g, matrix(g, d, TOKENS, WIDTH), matrix(g, DTYPE_F32, WIDTH, 0), 1e-5f, &y);
}
static Status build_add_rmsnorm(Graph *g, DType d)
{
    ValueId h, y, a = matrix(g, d, TOKENS, WIDTH), b = matrix(g, d, TOKENS, WIDTH);
    return op_add_rmsnorm(g, a, b, matrix(g, DTYPE_F32, WIDTH, 0), 1e-5f, &h, &y);
}
static Status build_rmsnorm_grad(Graph *g, DType d)
{
    ValueId dx, dw, dy = matrix(g, d, TOKENS, WIDTH), x = matrix(g, d, TOKENS, WIDTH);
    ValueId residual = matrix(g, d, TOKENS, WIDTH);
    return op_rmsnorm_grad(g, dy, x, matrix(g, DTYPE_F32, WIDTH, 0), residual, 1e-5f, &dx, &dw);
}
static Status build_layernorm(Graph *g, DType d)
{
    ValueId y, w = matrix(g, DTYPE_F32, WIDTH, 0);
    return op_layernorm(g, matrix(g, d, TOKENS, WIDTH), w, matrix(g, DTYPE_F32, WIDTH, 0), 1e-5f,
                        &y);
}
static Status build_layernorm_grad(Graph *g, DType d)
{
    ValueId out[3], in[4];
    for (int k = 0; k < 4; k++)
        in[k] = k == 2 ? matrix(g, DTYPE_F32, WIDTH, 0) : matrix(g, d, TOKENS, WIDTH);
    return op_layernorm_grad(g, in, 1e-5f, true, out);
}
static Status build_gelu(Graph *g, DType d)
{
    ValueId y;
    return op_activation(g, matrix(g, d, TOKENS, FFN), ACTIVATION_GELU, &y);
}
static Status build_gelu_grad(Graph *g, DType d)
{
    ValueId dx, x = matrix(g, d, TOKENS, FFN);
    return op_activation_grad(g, x, matrix(g, d, TOKENS, FFN), ACTIVATION_GELU, &dx);
}
static Status build_add_bias(Graph *g, DType d)
{
    ValueId y;
    return op_add_bias(g, matrix(g, d, TOKENS, FFN), matrix(g, DTYPE_F32, FFN, 0), &y);
}
static Status build_bias_grad(Graph *g, DType d)
{
    ValueId db;
    return op_bias_grad(g, matrix(g, d, TOKENS, FFN), &db);
}
static ValueId whole(Graph *g, int64_t rows, int64_t width)
{
    return matrix(g, DTYPE_I32, rows, width);
}
static Status build_embed(Graph *g, DType d)
{
    ValueId y;
    return op_embed(g, whole(g, TOKENS, 0), matrix(g, DTYPE_F32, VOCAB, WIDTH), d, &y);
}
static Status build_embed_grad(Graph *g, DType d)
{
    ValueId dw;
    Shape table = shape_make(2, (int64_t[]){VOCAB, WIDTH}, NULL);
    return op_embed_grad(g, whole(g, TOKENS, 0), matrix(g, d, TOKENS, WIDTH), table, &dw);
}
static Status build_embed_grad_large(Graph *g, DType d)
{
    ValueId dw;
    Shape table = shape_make(2, (int64_t[]){200000, WIDTH}, NULL);
    return op_embed_grad(g, whole(g, TOKENS, 0), matrix(g, d, TOKENS, WIDTH), table, &dw);
}

typedef struct Sorted {
    ValueId offsets, source, place, load, score;
} Sorted;
static Status sorted(Graph *g, Sorted *s)
{
    s->score = matrix(g, DTYPE_F32, TOKENS, 1);
    return op_expert_sort(g, whole(g, TOKENS, 1), EXPERTS, &s->offsets, &s->source, &s->place,
                          &s->load);
}
static Status build_sort(Graph *g, DType d)
{
    Sorted s;
    (void)d;
    return sorted(g, &s);
}
static Status build_gather(Graph *g, DType d)
{
    Sorted s;
    ValueId rows;
    TRY(sorted(g, &s));
    return op_expert_gather(g, matrix(g, d, TOKENS, WIDTH), s.score, s.source, s.place, &rows);
}
static Status build_gather_grad(Graph *g, DType d)
{
    Sorted s;
    ValueId dx, dscore, x = matrix(g, d, TOKENS, WIDTH);
    TRY(sorted(g, &s));
    ValueId drows = matrix(g, d, TOKENS + EXPERTS * EXPERT_ROW_ALIGN, WIDTH);
    return op_expert_gather_grad(g, x, s.score, s.place, drows, &dx, &dscore);
}
static Status build_combine(Graph *g, DType d)
{
    Sorted s;
    ValueId y, base = matrix(g, d, TOKENS, WIDTH);
    TRY(sorted(g, &s));
    ValueId rows = matrix(g, d, TOKENS + EXPERTS * EXPERT_ROW_ALIGN, WIDTH);
    return op_expert_combine(g, rows, s.source, s.place, NO_VALUE, base,
                             graph_value(g, base)->shape, &y);
}
static Status build_route(Graph *g, DType d)
{
    ValueId choice, score;
    return op_route(g, matrix(g, d, TOKENS, 16 * EXPERTS), NO_VALUE, 2, ROUTER_SIGMOID, &choice,
                    &score);
}
static Status build_router_loss(Graph *g, DType d)
{
    ValueId loss, logits = matrix(g, d, TOKENS, 16 * EXPERTS), weights = matrix(g, d, TOKENS, 0);
    return op_router_loss(g, logits, whole(g, TOKENS, 1), weights, 0.01f, 0.001f, ROUTER_SIGMOID,
                          &loss);
}
static Status build_router_loss_grad(Graph *g, DType d)
{
    ValueId dlogits, logits = matrix(g, d, TOKENS, 16 * EXPERTS), weights = matrix(g, d, TOKENS, 0);
    ValueId choice = whole(g, TOKENS, 1), dloss = matrix(g, d, 1, 0);
    return op_router_loss_grad(g, logits, choice, weights, dloss, 0.01f, 0.001f, ROUTER_SIGMOID,
                               &dlogits);
}
static Status build_update(Graph *g, bool copy, bool zero_grad)
{
    ValueId s[4];
    for (int k = 0; k < 4; k++) s[k] = params(g, DTYPE_F32);
    ValueId bf16 = copy ? params(g, DTYPE_BF16) : NO_VALUE, factor = matrix(g, DTYPE_F32, 1, 0);
    AdamWAttr attr = {.decay = true, .zero_grad = zero_grad};
    return op_adamw(g, s[0], s[1], s[2], s[3], bf16, factor, matrix(g, DTYPE_F32, HYPER_COUNT, 0),
                    attr);
}
static Status build_adamw(Graph *g, DType d)
{
    (void)d;
    return build_update(g, false, false);
}
static Status build_adamw_copy(Graph *g, DType d)
{
    (void)d;
    return build_update(g, true, true);
}
static Status build_grad_norm(Graph *g, DType d)
{
    ValueId norm, grad = matrix(g, d, PARAMS, 0);
    return op_grad_norm(g, 1, &grad, &norm);
}
static Status build_accumulate(Graph *g, DType d)
{
    ValueId sum, state = params(g, DTYPE_F32);
    return op_accumulate(g, state, matrix(g, d, PARAMS, 0), &sum);
}

static const Case cases[] = {
    {"add", build_add, false, NULL},
    {"cast", build_cast, false, NULL},
    {"swiglu", build_swiglu, false, NULL},
    {"swiglu_grad", build_swiglu_grad, false, NULL},
    {"rmsnorm", build_rmsnorm, false, NULL},
    {"add_rmsnorm", build_add_rmsnorm, false, NULL},
    {"rmsnorm_grad", build_rmsnorm_grad, false, NULL},
    {"layernorm", build_layernorm, false, NULL},
    {"layernorm_grad", build_layernorm_grad, false, NULL},
    {"gelu", build_gelu, false, NULL},
    {"gelu_grad", build_gelu_grad, false, NULL},
    {"add_bias", build_add_bias, false, NULL},
    {"bias_grad", build_bias_grad, false, NULL},
    {"embed", build_embed, false, NULL},
    {"embed_grad", build_embed_grad, false, NULL},
    {"embed_grad 200k rows", build_embed_grad_large, false, NULL},
    {"expert_sort", build_sort, true, NULL},
    {"expert_gather", build_gather, false, NULL},
    {"expert_gather_grad", build_gather_grad, false, NULL},
    {"expert_combine", build_combine, false, NULL},
    {"route 128 experts", build_route, true, NULL},
    {"router_loss 128", build_router_loss, true, NULL},
    {"router_loss_grad 128", build_router_loss_grad, true, NULL},
    {"grad_norm", build_grad_norm, false, "grad_norm"},
    {"accumulate", build_accumulate, false, NULL},
    {"adamw", build_adamw, true, NULL},
    {"adamw, copy, zero grad", build_adamw_copy, true, NULL},
};

/* ---- running ---------------------------------------------------------------------------- */

/* 4,096 numbers over and over: enough to be odd, little enough to be quick. */
static void fill(Tensor *t, uint64_t seed)
{
    enum { PERIOD = 4096 };
    const size_t size = dtype_bytes(t->dtype);
    for (int64_t i = 0; i < tensor_count(t); i++) {
        if (i >= PERIOD && t->dtype != DTYPE_I32) {
            memcpy((char *)t->data + (size_t)i * size,
                   (char *)t->data + (size_t)(i - PERIOD) * size, size);
            continue;
        }
        float x = (float)rng_normal(seed, (uint64_t)i);
        if (t->dtype == DTYPE_F32)
            ((float *)t->data)[i] = x * x; /* second moments are not negative */
        if (t->dtype == DTYPE_BF16) ((uint16_t *)t->data)[i] = bf16_from_f32(x);
        if (t->dtype == DTYPE_I32)
            ((int32_t *)t->data)[i] = (int32_t)rng_below(seed, (uint64_t)i, EXPERTS);
    }
}

static Tensor make_tensor(const Graph *g, ValueId id)
{
    const Value *v = graph_value(g, id);
    Tensor t = tensor_make(NULL, v->dtype, v->shape);
    size_t bytes = tensor_bytes(&t) + 64;
    if (posix_memalign(&t.data, 64, bytes)) abort();
    memset(t.data, 0, bytes);
    if (!v->producer.id) fill(&t, (uint64_t)id.id);
    return t;
}

typedef struct Prepared {
    KernelArgs args;
    Tensor in[8], out[NODE_MAX_OUT];
} Prepared;

static void prepare(Prepared *p, const Graph *g, const Node *node, Tensor *value,
                    const Target *target)
{
    *p = (Prepared){0};
    for (int i = 0; i < node->n_in; i++) p->in[i] = value[node->in[i].id];
    for (int i = 0; i < node->n_out; i++) {
        const Value *v = graph_value(g, node->out[i]);
        p->out[i] = value_ok(v->base) ? value[v->base.id] : value[node->out[i].id];
    }
    p->args = (KernelArgs){
        .attr = node->attr, .in = p->in, .out = p->out, .n_in = node->n_in, .n_out = node->n_out};
    p->args.threads = target->threads;
    const Kernel *kernel = node->op->cpu[target->isa];
    p->args.workspace_bytes = kernel->workspace ? kernel->workspace(g, node, target) : 0;
    if (posix_memalign(&p->args.workspace, 64, p->args.workspace_bytes + 64)) abort();
}

static int timed_node(const Graph *g, const Case *c)
{
    for (int i = 1; i < g->n_nodes && c->op; i++)
        if (!strcmp(g->node[i].op->name, c->op)) return i;
    return g->n_nodes - 1;
}

/* Runs all nodes up to `timed` once, and that one many times; best and median seconds of it. */
static Status time_node(const Graph *g, int timed, Tensor *value, const Target *target,
                        int most_runs, double took_s[2])
{
    for (int i = 1; i <= timed; i++) {
        Prepared p;
        const Kernel *kernel = g->node[i].op->cpu[target->isa];
        prepare(&p, g, &g->node[i], value, target);
        Status status = i == timed ? op_bench_time(kernel, &p.args, most_runs, took_s)
                                   : kernel->run(&p.args);
        free(p.args.workspace);
        TRY(status);
    }
    return OK;
}

static Status bench_case(const Case *c, DType dtype, const Target *target, int most_runs)
{
    Graph *g = graph_create("bench");
    Status status = c->build(g, dtype);
    Tensor *value = xcalloc((size_t)g->n_values, sizeof *value);
    for (int i = 1; i < g->n_values; i++)
        if (!value_ok(g->value[i].base)) value[i] = make_tensor(g, (ValueId){i});
    double took_s[2];
    int timed = timed_node(g, c);
    if (status == OK) status = time_node(g, timed, value, target, most_runs, took_s);
    if (status == OK) {
        const Node *node = &g->node[timed];
        Cost cost = node->op->cost(g, node);
        double bytes = cost.read_bytes + cost.write_bytes;
        printf("%-22s %-4s %8.2f MB %8.3f ms (best %8.3f) %7.1f GB/s (best %6.1f)\n", c->name,
               dtype_name(dtype), bytes * 1e-6, took_s[1] * 1e3, took_s[0] * 1e3,
               bytes / took_s[1] * 1e-9, bytes / took_s[0] * 1e-9);
    }
    for (int i = 1; i < g->n_values; i++) free(value[i].data);
    free(value);
    graph_destroy(g);
    return status;
}

/* What memory gives: a plain copy of as many bytes as adamw has parameters. */
static void bench_copy(int threads)
{
    size_t bytes = (size_t)PARAMS * 4, block = 1 << 16;
    char *from = xmalloc(bytes), *to = xmalloc(bytes);
    double best = 1e9;
    memset(from, 1, bytes);
    memset(to, 1, bytes);
    for (int run = 0; run < 10; run++) {
        double start = op_bench_now_s(threads);
#pragma omp parallel for num_threads(threads) schedule(static)
        for (size_t at = 0; at < bytes; at += block) memcpy(to + at, from + at, block);
        double took_s = op_bench_now_s(threads) - start;
        if (took_s < best) best = took_s;
    }
    printf("plain copy of %zu MB: %.1f GB/s read and written\n", bytes / 1000000,
           2 * (double)bytes / best * 1e-9);
    free(from);
    free(to);
}

int main(int argc, char **argv)
{
    int64_t threads = 2, runs = OP_BENCH_MOST_RUNS;
    const char *filter = argc > 2 ? argv[2] : "";
    if (argc > 1 && (!parse_i64(argv[1], &threads) || threads < 1)) return 2;
    if (argc > 3 && (!parse_i64(argv[3], &runs) || runs < 1 || runs > OP_BENCH_MOST_RUNS)) return 2;
    Target target = {.isa = op_bench_isa(NULL), .threads = (int)threads};
    printf("%s, %d threads\n", isa_name(target.isa), target.threads);
    bench_copy(target.threads);
    for (int i = 0; i < COUNT_OF(cases); i++)
        for (int d = 0; d < (cases[i].f32_only ? 1 : 2); d++) {
            DType dtype = d ? DTYPE_BF16 : DTYPE_F32;
            char name[64];
            snprintf(name, sizeof name, "%s %s", cases[i].name, dtype_name(dtype));
            if (!strstr(name, filter)) continue;
            if (bench_case(&cases[i], dtype, &target, (int)runs) == OK) continue;
            fprintf(stderr, "elem_bench: %s\n", status_message());
            return 1;
        }
    return 0;
}
