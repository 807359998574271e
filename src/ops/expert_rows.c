/* expert_gather: tokens to the rows of their experts, each times its score; expert_combine: back,
 * each token the sum of its rows. Each is the other's gradient:
 *
 *   rows[r] = score[source r] x[token of r]        dx[t] = sum over slots of score drows[place]
 *                                                  dscore[t, slot] = dot(x[t], drows[place])
 *   y[t] = base[t] + sum over slots of weight rows[place]     drows = gather(dy, weight), dbase =
 *   dy
 * Without score or weight the factor is one. */
#include "ops/kernel.h"
#include "ops/rules.h"

#include <string.h>

CPU_DECLARE(expert_gather);
CPU_DECLARE(expert_gather_grad);
CPU_DECLARE(expert_combine);
CUDA_DECLARE(expert_gather);
CUDA_DECLARE(expert_gather_grad);
CUDA_DECLARE(expert_combine);

/* [B T k] beside tokens [B T D]: place, score or weight. */
static Status check_slots(const Value *slots, const Shape *tokens, DType dtype, const char *what)
{
    TRY(need_dtype(slots, dtype, what));
    if (tokens->rank < 1 || tokens->rank != slots->shape.rank || last_dim(slots) < 1)
        return fail(ERR_SHAPE,
                    "%s must be [batch seq topk] beside tokens of the same batch and seq", what);
    Shape like = *tokens;
    like.dim[like.rank - 1] = last_dim(slots);
    return need_shape(slots, &like, what);
}

static Status check_like_place(const Value *v, const Value *place, const char *what)
{
    if (!v) return OK;
    TRY(need_dtype(v, DTYPE_F32, what));
    return need_shape(v, &place->shape, what);
}

static Status check_source(const Value *source)
{
    TRY(need_dtype(source, DTYPE_I32, "source"));
    return source->shape.rank == 1
               ? OK
               : fail(ERR_SHAPE, "source must be one row number per expert row");
}

/* rows [R D] of tokens [... D] */
static Status check_rows(const Value *rows, int64_t width, const char *what)
{
    TRY(need_activation(rows, what));
    if (rows->shape.rank == 2 && last_dim(rows) == width) return OK;
    char text[SHAPE_TEXT];
    return fail(ERR_SHAPE, "%s is [%s] and must be rows of %lld", what,
                shape_text(&rows->shape, text), (long long)width);
}

/* ---- expert_gather(x, score, source, place) --------------------------------------------- */

static Status infer_gather(InferCtx *ctx)
{
    const Value *x = ctx->in[0], *place = ctx->in[3];
    TRY(need_activation(x, "x"));
    TRY(check_source(ctx->in[2]));
    TRY(check_slots(place, &x->shape, DTYPE_I32, "place"));
    TRY(check_like_place(ctx->in[1], place, "score"));
    const Shape *source = &ctx->in[2]->shape;
    ctx->out[0] = infer_out(x->dtype,
                            shape_make(2, (int64_t[]){source->dim[0], last_dim(x)},
                                       (Axis[]){AXIS_ROWS, x->shape.axis[x->shape.rank - 1]}));
    return OK;
}

static Status grad_gather(GradCtx *ctx)
{
    const Node *node = graph_node(ctx->graph, ctx->node);
    return op_expert_gather_grad(ctx->graph, node->in[0], node->in[1], node->in[3], ctx->dout[0],
                                 &ctx->din[0], &ctx->din[1]);
}

static Cost cost_gather(const Graph *g, const Node *node)
{
    double pairs = value_count(g, node->in[3]),
           width = (double)last_dim(graph_value(g, node->in[0]));
    Cost cost = {.write_bytes = value_bytes(g, node->out[0])};
    cost.flop = value_ok(node->in[1]) ? pairs * width : 0;
    cost.read_bytes = pairs * width * (double)dtype_bytes(graph_value(g, node->in[0])->dtype) +
                      value_bytes(g, node->in[1]) + value_bytes(g, node->in[2]);
    return cost;
}

const OpDef op_def_expert_gather = {
    .name = "expert_gather",
    .min_in = 4,
    .max_in = 4,
    .n_out = 1,
    .flags = OP_CHEAP,
    .strided_in = 1,
    .optional_in = 2,
    .infer = infer_gather,
    .cut = "&d &k! R &k! -> Rd",
    .grad = grad_gather,
    .cost = cost_gather,
    .cpu = CPU_KERNELS(expert_gather),
    .cuda = &cuda_expert_gather,
};

Status op_expert_gather(Graph *g, ValueId x, ValueId score, ValueId source, ValueId place,
                        ValueId *rows)
{
    return graph_add(g, &op_def_expert_gather, NULL, (ValueId[]){x, score, source, place}, 4, rows);
}

/* ---- expert_gather_grad(x, score, place, drows) -> dx, dscore --------------------------- */

static Status infer_gather_grad(InferCtx *ctx)
{
    const Value *x = ctx->in[0], *place = ctx->in[2], *drows = ctx->in[3];
    TRY(need_activation(x, "x"));
    TRY(check_slots(place, &x->shape, DTYPE_I32, "place"));
    TRY(check_like_place(ctx->in[1], place, "score"));
    TRY(check_rows(drows, last_dim(x), "drows"));
    TRY(need_dtype(drows, x->dtype, "drows"));
    ctx->out[0] = infer_like(x);
    ctx->out[1] = infer_out(DTYPE_F32, place->shape);
    return OK;
}

static Cost cost_gather_grad(const Graph *g, const Node *node)
{
    double pairs = value_count(g, node->in[2]),
           width = (double)last_dim(graph_value(g, node->in[0]));
    bool dx = value_ok(node->out[0]), dscore = value_ok(node->out[1]);
    Cost cost = {.flop = 2 * pairs * width * (dx + dscore)};
    cost.read_bytes = pairs * width * (double)dtype_bytes(graph_value(g, node->in[0])->dtype) +
                      (dscore ? value_bytes(g, node->in[0]) : 0) + value_bytes(g, node->in[1]) +
                      value_bytes(g, node->in[2]);
    cost.write_bytes = value_bytes(g, node->out[0]) + value_bytes(g, node->out[1]);
    return cost;
}

const OpDef op_def_expert_gather_grad = {
    .name = "expert_gather_grad",
    .min_in = 4,
    .max_in = 4,
    .n_out = 2,
    .flags = OP_SOURCE,
    .inplace = 1,
    .strided_in = 1,
    .strided_out = 1,
    .optional_in = 2,
    .infer = infer_gather_grad,
    .cut = "&d &k! &k! Rd~ -> &d &k!",
    .cost = cost_gather_grad,
    .cpu = CPU_KERNELS(expert_gather_grad),
    .cuda = &cuda_expert_gather_grad,
};

Status op_expert_gather_grad(Graph *g, ValueId x, ValueId score, ValueId place, ValueId drows,
                             ValueId *dx, ValueId *dscore)
{
    ValueId out[2];
    TRY(graph_add(g, &op_def_expert_gather_grad, NULL, (ValueId[]){x, score, place, drows}, 4,
                  out));
    *dx = out[0];
    *dscore = out[1];
    return OK;
}

/* ---- expert_combine(rows, source, place, weight, base) ---------------------------------- */

static Status infer_combine(InferCtx *ctx)
{
    const Value *rows = ctx->in[0], *place = ctx->in[2];
    Shape tokens;
    memcpy(&tokens, ctx->attr, sizeof tokens);
    if (tokens.rank < 1) return fail(ERR_SHAPE, "the tokens' shape has no axes");
    TRY(check_rows(rows, tokens.dim[tokens.rank - 1], "rows"));
    TRY(check_source(ctx->in[1]));
    TRY(check_slots(place, &tokens, DTYPE_I32, "place"));
    TRY(check_like_place(ctx->in[3], place, "weight"));
    if (ctx->in[4]) {
        TRY(need_dtype(ctx->in[4], rows->dtype, "base"));
        TRY(need_shape(ctx->in[4], &tokens, "base"));
    }
    ctx->out[0] = infer_out(rows->dtype, tokens);
    return OK;
}

static Status grad_combine(GradCtx *ctx)
{
    Graph *g = ctx->graph;
    const Node node = *graph_node(g, ctx->node);
    ValueId dy = ctx->dout[0], unused;
    ctx->din[4] = dy;
    if (ctx->need[0])
        TRY(op_expert_gather(g, dy, node.in[3], node.in[1], node.in[2], &ctx->din[0]));
    if (ctx->need[3] && value_ok(node.in[3]))
        TRY(op_expert_gather_grad(g, dy, node.in[3], node.in[2], node.in[0], &unused,
                                  &ctx->din[3]));
    return OK;
}

/* The shape of the tokens in the attribute becomes that of this rank's tokens. */
static Status cut_tokens(const CutCtx *ctx, void *attribute)
{
    Shape tokens;
    memcpy(&tokens, attribute, sizeof tokens);
    if (place_is_cut(ctx->out[0])) tokens.dim[ctx->out[0].dim] /= ctx->n;
    memcpy(attribute, &tokens, sizeof tokens);
    return OK;
}

static Cost cost_combine(const Graph *g, const Node *node)
{
    double pairs = value_count(g, node->in[2]),
           width = (double)last_dim(graph_value(g, node->in[0]));
    Cost cost = {.flop = pairs * width * (value_ok(node->in[3]) ? 2 : 1),
                 .write_bytes = value_bytes(g, node->out[0])};
    cost.read_bytes = pairs * width * (double)dtype_bytes(graph_value(g, node->in[0])->dtype);
    for (int i = 2; i < 5; i++) cost.read_bytes += value_bytes(g, node->in[i]);
    return cost;
}

const OpDef op_def_expert_combine = {
    .name = "expert_combine",
    .min_in = 5,
    .max_in = 5,
    .n_out = 1,
    .attr_bytes = sizeof(Shape),
    .inplace = 16,
    .strided_in = 16,
    .strided_out = 1,
    .optional_in = 8 | 16,
    .infer = infer_combine,
    .cut = "Rd~ R &k! &k! &d~ -> &d",
    .cut_attr = cut_tokens,
    .grad = grad_combine,
    .cost = cost_combine,
    .cpu = CPU_KERNELS(expert_combine),
    .cuda = &cuda_expert_combine,
};

Status op_expert_combine(Graph *g, ValueId rows, ValueId source, ValueId place, ValueId weight,
                         ValueId base, Shape token_shape, ValueId *y)
{
    return graph_add(g, &op_def_expert_combine, &token_shape,
                     (ValueId[]){rows, source, place, weight, base}, 5, y);
}
