/* Cross entropy over a vocabulary whose rows lie on several ranks, in two steps that a gathering of
 * three numbers per token and rank joins:
 *
 *   vocab_stats(x, w, targets) -> stats [S ... 3]     of each of S parts of the vocabulary: the
 *                                                     largest logit, the
 *                                                     sum of exp(logit - largest), the target's
 *                                                     logit or zero
 *   vocab_loss(stats, targets, weights) -> loss, nll  log sum exp over the parts, in their order
 *
 * Going back, the loss gives three factors per token, [... 3]: log sum exp, the softmax's factor
 * and the target's; vocab_stats_grad makes the logits of its part again and from them dx, a partial
 * sum, and dw:
 *   dlogits = scale softmax - hit one_hot(target),  scale = hit (1 + 2 z_loss lse),  hit = weights
 *   dloss
 *
 * With one part it computes what linear_cross_entropy does, which makes the logits only once.
 *
 * In a canonical graph the vocabulary has a fixed number of parts, of which a rank has several:
 * their stats stand behind one another, and dx is the sum of what each gives, as a balanced binary
 * tree in f32. */
#include "ops/vocab_loss.h"
#include "ops/chunks.h"
#include "ops/kernel.h"
#include "ops/linear_cross_entropy.h"
#include "ops/rules.h"

#include <math.h>
#include <string.h>

CPU_DECLARE(vocab_stats);
CPU_DECLARE(vocab_stats_grad);
CUDA_DECLARE(vocab_stats);
CUDA_DECLARE(vocab_stats_grad);
CUDA_DECLARE(vocab_loss);
CUDA_DECLARE(vocab_loss_grad);

/* ---- vocab_stats ------------------------------------------------------------------------ */

static Status check(const InferCtx *ctx)
{
    const Value *x = ctx->in[0], *w = ctx->in[1];
    char a[SHAPE_TEXT], b[SHAPE_TEXT];
    TRY(need_activation(x, "x"));
    TRY(need_dtype(w, x->dtype, "w"));
    if (x->shape.rank < 2 || x->shape.rank + 1 > MAX_RANK || w->shape.rank != 2 ||
        w->shape.dim[1] != last_dim(x))
        return fail(ERR_SHAPE, "rows of [%s] do not fit the weight [%s]", shape_text(&x->shape, a),
                    shape_text(&w->shape, b));
    Shape tokens = x->shape;
    tokens.rank--;
    TRY(need_dtype(ctx->in[2], DTYPE_I32, "targets"));
    return need_shape(ctx->in[2], &tokens, "targets");
}

static Status infer_stats(InferCtx *ctx)
{
    TRY(check(ctx));
    const Shape *x = &ctx->in[0]->shape;
    Shape shape = {.rank = x->rank + 1};
    const VocabAttr *attr = ctx->attr;
    shape.dim[0] = max_i64(1, attr->parts);
    for (int i = 0; i + 1 < x->rank; i++) {
        shape.dim[i + 1] = x->dim[i];
        shape.axis[i + 1] = x->axis[i];
    }
    shape.dim[x->rank] = VOCAB_STATS;
    ctx->out[0] = infer_out(DTYPE_F32, shape);
    return OK;
}

static bool words_are_cut(const CutCtx *ctx)
{
    return place_is_cut(ctx->want[1]) && ctx->want[1].dim == 0;
}

/* The number of parts is in the gathered shape; unless it is fixed, a rank's is 1 also in the uncut
 * graph. */
static Status cut_words(const CutCtx *ctx, void *attribute)
{
    VocabAttr *attr = attribute;
    if (!words_are_cut(ctx)) return OK;
    attr->first += ctx->rank * ctx->in[1]->shape.dim[0];
    if (attr->parts % ctx->n)
        return fail(ERR_REFUSED,
                    "%lld parts of the vocabulary cannot be shared out over parallel.%s %d",
                    (long long)attr->parts, mesh_axis_name(ctx->axis), ctx->n);
    attr->parts /= ctx->n;
    return OK;
}

static Status infer_stats_grad(InferCtx *ctx)
{
    TRY(check(ctx));
    Shape factors = ctx->in[0]->shape;
    factors.dim[factors.rank - 1] = VOCAB_STATS;
    factors.axis[factors.rank - 1] = AXIS_ANY;
    TRY(need_dtype(ctx->in[3], DTYPE_F32, "factors"));
    TRY(need_shape(ctx->in[3], &factors, "factors"));
    ctx->out[0] = infer_like(ctx->in[0]);
    if (((const VocabAttr *)ctx->attr)->parts) ctx->out[0].dtype = DTYPE_F32;
    ctx->out[1] = infer_out(DTYPE_F32, ctx->in[1]->shape);
    return OK;
}

static Status grad_stats(GradCtx *ctx)
{
    const Node *node = graph_node(ctx->graph, ctx->node);
    ValueId in[4] = {node->in[0], node->in[1], node->in[2], ctx->dout[0]}, out[2];
    if (!ctx->need[0] && !ctx->need[1]) return OK;
    DType dtype = graph_value(ctx->graph, in[0])->dtype;
    TRY(graph_add(ctx->graph, op_find("vocab_stats_grad"), node->attr, in, 4, out));
    if (graph_value(ctx->graph, out[0])->dtype != dtype)
        TRY(op_cast(ctx->graph, out[0], dtype, &out[0]));
    if (ctx->need[0]) ctx->din[0] = out[0];
    if (ctx->need[1]) ctx->din[1] = out[1];
    return OK;
}

static Cost products(const Graph *g, const Node *node, int n)
{
    Cost cost = cost_streaming(g, node, 0);
    cost.flop = 2 * n * value_count(g, node->in[2]) * value_count(g, node->in[1]);
    cost_product(&cost, graph_value(g, node->in[1]), value_count(g, node->in[2]), n);
    return cost;
}

static Cost cost_stats(const Graph *g, const Node *node) { return products(g, node, 1); }

/* the logits once more */
static Cost cost_stats_grad(const Graph *g, const Node *node)
{
    Cost cost = products(g, node, 3);
    cost.again = 1;
    cost.unwritten = cost.m * cost.n;
    return cost;
}

static void attr_text(const void *attr, Str *out)
{
    str_printf(out, "from word %lld", (long long)((const VocabAttr *)attr)->first);
}

/* In a canonical graph dx is summed over the parts in a tree, its result aside as well. */
static size_t gpu_workspace_of(const Graph *g, const Node *node, bool grad)
{
    int64_t parts = ((const VocabAttr *)node->attr)->parts,
            words = graph_value(g, node->in[1])->shape.dim[0] / max_i64(1, parts);
    int64_t sums = grad && parts ? 1 + tree_levels((int)parts) : 0;
    return gpu_logits_space((int64_t)value_count(g, node->in[2]), words,
                            sums * (int64_t)value_count(g, node->in[0]))
        .bytes;
}

static size_t gpu_workspace_stats(const Graph *g, const Node *node)
{
    return gpu_workspace_of(g, node, false);
}

static size_t gpu_workspace_stats_grad(const Graph *g, const Node *node)
{
    return gpu_workspace_of(g, node, true);
}

const OpDef op_def_vocab_stats = {
    .name = "vocab_stats",
    .min_in = 3,
    .max_in = 3,
    .n_out = 1,
    .attr_bytes = sizeof(VocabAttr),
    .strided_in = 1,
    .infer = infer_stats,
    .cut = "*d! vd! * -> v*c!",
    .cut_attr = cut_words,
    .grad = grad_stats,
    .cost = cost_stats,
    .attr_text = attr_text,
    .cpu = CPU_KERNELS(vocab_stats),
    .cuda = &cuda_vocab_stats,
    .gpu_workspace = gpu_workspace_stats,
};

const OpDef op_def_vocab_stats_grad = {
    .name = "vocab_stats_grad",
    .min_in = 4,
    .max_in = 4,
    .n_out = 2,
    .attr_bytes = sizeof(VocabAttr),
    .flags = OP_SOURCE,
    .strided_in = 1,
    .strided_out = 1,
    .infer = infer_stats_grad,
    .cut = "*d! vd! * *c! -> *d! vd!",
    .cut_attr = cut_words,
    .cost = cost_stats_grad,
    .attr_text = attr_text,
    .cpu = CPU_KERNELS(vocab_stats_grad),
    .cuda = &cuda_vocab_stats_grad,
    .gpu_workspace = gpu_workspace_stats_grad,
};

/* ---- vocab_loss ------------------------------------------------------------------------- */

static Status check_loss(const InferCtx *ctx)
{
    const Value *stats = ctx->in[0], *targets = ctx->in[1];
    Shape like = targets->shape;
    TRY(need_dtype(stats, DTYPE_F32, "stats"));
    if (stats->shape.rank != like.rank + 2) return fail(ERR_SHAPE, "stats must be [parts ... 3]");
    like.rank += 2;
    for (int i = like.rank - 2; i > 0; i--) {
        like.dim[i] = targets->shape.dim[i - 1];
        like.axis[i] = targets->shape.axis[i - 1];
    }
    like.dim[0] = stats->shape.dim[0];
    like.dim[like.rank - 1] = VOCAB_STATS;
    TRY(need_shape(stats, &like, "stats"));
    TRY(need_dtype(targets, DTYPE_I32, "targets"));
    TRY(need_dtype(ctx->in[2], DTYPE_F32, "weights"));
    return need_shape(ctx->in[2], &targets->shape, "weights");
}

static Status infer_loss(InferCtx *ctx)
{
    TRY(check_loss(ctx));
    ctx->out[0] = infer_out(DTYPE_F32, shape_make(0, NULL, NULL));
    ctx->out[1] = infer_out(DTYPE_F32, ctx->in[1]->shape);
    return OK;
}

static Status infer_loss_grad(InferCtx *ctx)
{
    TRY(check_loss(ctx));
    TRY(need_scalar(ctx->in[3], "dloss"));
    Shape shape = ctx->in[1]->shape;
    shape.dim[shape.rank] = VOCAB_STATS;
    shape.axis[shape.rank++] = AXIS_ANY;
    ctx->out[0] = infer_out(DTYPE_F32, shape);
    return OK;
}

static Status grad_loss(GradCtx *ctx)
{
    const Node *node = graph_node(ctx->graph, ctx->node);
    if (value_ok(ctx->dout[1]))
        return fail(ERR_UNSUPPORTED, "no gradient flows through nll, only through loss");
    ValueId in[4] = {node->in[0], node->in[1], node->in[2], ctx->dout[0]};
    return graph_add(ctx->graph, op_find("vocab_loss_grad"), node->attr, in, 4, &ctx->din[0]);
}

typedef struct Token {
    double lse, target;
} Token;

/* Parts are joined in their order. */
static Token join_parts(const Tensor *stats, int64_t token)
{
    int64_t parts = stats->shape.dim[0], n = tensor_count(stats) / parts / VOCAB_STATS;
    const float *at = (const float *)stats->data + token * VOCAB_STATS;
    double most = -INFINITY, sum = 0, target = 0;
    for (int64_t s = 0; s < parts; s++)
        most = fmax(most, (double)at[s * n * VOCAB_STATS + VOCAB_MAX]);
    for (int64_t s = 0; s < parts; s++) {
        const float *p = at + s * n * VOCAB_STATS;
        sum += exp((double)p[VOCAB_MAX] - most) * (double)p[VOCAB_SUM];
        target += (double)p[VOCAB_TARGET];
    }
    return (Token){most + log(sum), target};
}

static Status run_loss(KernelArgs *args)
{
    const int32_t *targets = args->in[1].data;
    const float *weights = args->in[2].data, z_loss = *(const float *)args->attr;
    float *nll = args->out[1].data;
    double loss = 0;
    for (int64_t i = 0; i < tensor_count(&args->in[1]); i++) {
        Token t = join_parts(&args->in[0], i);
        double each = targets[i] >= 0 ? t.lse - t.target : 0;
        if (nll) nll[i] = (float)each;
        if (targets[i] >= 0) loss += (double)weights[i] * (each + (double)z_loss * t.lse * t.lse);
    }
    if (args->out[0].data) *(float *)args->out[0].data = (float)loss;
    return OK;
}

static Status run_loss_grad(KernelArgs *args)
{
    const int32_t *targets = args->in[1].data;
    const float *weights = args->in[2].data, dloss = *(const float *)args->in[3].data,
                z_loss = *(const float *)args->attr;
    float *factors = args->out[0].data;
    for (int64_t i = 0; i < tensor_count(&args->in[1]); i++) {
        Token t = join_parts(&args->in[0], i);
        float hit = targets[i] >= 0 ? weights[i] * dloss : 0;
        factors[i * VOCAB_STATS + VOCAB_LSE] = (float)t.lse;
        factors[i * VOCAB_STATS + VOCAB_SCALE] = hit * (1 + 2 * z_loss * (float)t.lse);
        factors[i * VOCAB_STATS + VOCAB_HIT] = hit;
    }
    return OK;
}

static const Kernel loss_kernel = {.run = run_loss}, loss_grad_kernel = {.run = run_loss_grad};

static Cost cost_loss(const Graph *g, const Node *node) { return cost_streaming(g, node, 12); }

/* What each token adds. */
static size_t gpu_workspace_loss(const Graph *g, const Node *node)
{
    return (size_t)value_count(g, node->in[1]) * sizeof(double);
}

static void loss_text(const void *attr, Str *out)
{
    str_printf(out, "z_loss=%g", (double)*(const float *)attr);
}

const OpDef op_def_vocab_loss = {
    .name = "vocab_loss",
    .min_in = 3,
    .max_in = 3,
    .n_out = 2,
    .attr_bytes = sizeof(float),
    .infer = infer_loss,
    .cut = "v!*c! * * -> - *",
    .grad = grad_loss,
    .cost = cost_loss,
    .attr_text = loss_text,
    .cpu = CPU_KERNEL_ANY(&loss_kernel),
    .cuda = &cuda_vocab_loss,
    .gpu_workspace = gpu_workspace_loss,
};

const OpDef op_def_vocab_loss_grad = {
    .name = "vocab_loss_grad",
    .min_in = 4,
    .max_in = 4,
    .n_out = 1,
    .attr_bytes = sizeof(float),
    .flags = OP_SOURCE,
    .infer = infer_loss_grad,
    .cut = "v!*c! * * - -> *c!",
    .cost = cost_loss,
    .attr_text = loss_text,
    .cpu = CPU_KERNEL_ANY(&loss_grad_kernel),
    .cuda = &cuda_vocab_loss_grad,
};

/* ---- builders --------------------------------------------------------------------------- */

Status op_vocab_stats(Graph *g, ValueId x, ValueId w, ValueId targets, int parts, ValueId *stats)
{
    VocabAttr attr = {.parts = parts};
    if (parts && graph_value(g, w)->shape.dim[0] % parts)
        return fail(ERR_REFUSED, "a vocabulary of %lld words cannot be cut into %d equal parts",
                    (long long)graph_value(g, w)->shape.dim[0], parts);
    return graph_add(g, &op_def_vocab_stats, &attr, (ValueId[]){x, w, targets}, 3, stats);
}

Status op_vocab_loss(Graph *g, ValueId stats, ValueId targets, ValueId weights, float z_loss,
                     ValueId *loss, ValueId *nll)
{
    ValueId out[2];
    TRY(graph_add(g, &op_def_vocab_loss, &z_loss, (ValueId[]){stats, targets, weights}, 3, out));
    *loss = out[0];
    *nll = out[1];
    return OK;
}
