/* linear_8: y[..., n] = sum_k a[..., k] b[n, k] of numbers of 8 bits, each with a scale (quantise).
 * linear_8_accumulate: the same, added to an f32 state in place.
 *
 * Both operands lie along the sum, the one form that tensor cores of Hopper have for 8 bits. With
 * blocks sums go block by block: y = sum over blocks of 128 of scale_a scale_b (sum of a b); by
 * rows the scales are taken once, at the end. Sums are f32. One product serves all three of a
 * layer:
 *
 *     y  = x w^T     a = x by rows, b = w by rows
 *     dx = dy w      a = dy by rows, b = columns of w
 *     dw = dy^T x    a = columns of dy, b = columns of x */
#include "ops/kernel.h"
#include "ops/quantise.h"
#include "ops/rules.h"

enum { A, A_SCALE, B, B_SCALE, STATE };

static bool is_f8(const Value *v) { return v->dtype == DTYPE_F8_E4M3 || v->dtype == DTYPE_F8_E5M2; }

/* Rows with rows, blocks with blocks, blocks with squares. */
static bool go_together(ScalingUnit a, ScalingUnit b)
{
    return a == b ? a != SCALING_SQUARE : a == SCALING_BLOCK && b == SCALING_SQUARE;
}

static Status check_types(const Value *a, const Value *b, const Linear8Attr *attr)
{
    if (!is_f8(a) || !is_f8(b) || (a->dtype == DTYPE_F8_E5M2 && b->dtype == DTYPE_F8_E5M2))
        return fail(ERR_ARG,
                    "operands of %s and %s; both have 8 bits, one of them at least is "
                    "f8_e4m3",
                    dtype_name(a->dtype), dtype_name(b->dtype));
    if (!go_together(attr->a, attr->b))
        return fail(ERR_ARG,
                    "a by %s, b by %s: there are rows with rows, blocks with blocks, and blocks "
                    "with squares",
                    scaling_name(attr->a), scaling_name(attr->b));
    return OK;
}

static Status check(const InferCtx *ctx)
{
    const Value *a = ctx->in[A], *b = ctx->in[B];
    const Linear8Attr *attr = ctx->attr;
    char x[SHAPE_TEXT], y[SHAPE_TEXT];
    if (a->shape.rank < 1 || b->shape.rank != 2 || last_dim(a) != last_dim(b))
        return fail(ERR_SHAPE, "rows of [%s] do not fit [%s]", shape_text(&a->shape, x),
                    shape_text(&b->shape, y));
    TRY(check_types(a, b, attr));
    int64_t k = last_dim(a), n = b->shape.dim[0], rows = k ? shape_count(&a->shape) / k : 0;
    if (k % LINEAR_8_ALIGN || n % LINEAR_8_ALIGN || rows % LINEAR_8_ALIGN)
        return fail(ERR_SHAPE, "rows of [%s] with [%s]: all sizes must be multiples of %d",
                    shape_text(&a->shape, x), shape_text(&b->shape, y), LINEAR_8_ALIGN);
    Shape of_a = scaling_shape(attr->a, rows, k), of_b = scaling_shape(attr->b, n, k);
    TRY(need_dtype(ctx->in[A_SCALE], DTYPE_F32, "the scale of a"));
    TRY(need_dtype(ctx->in[B_SCALE], DTYPE_F32, "the scale of b"));
    TRY(need_shape(ctx->in[A_SCALE], &of_a, "the scale of a"));
    return need_shape(ctx->in[B_SCALE], &of_b, "the scale of b");
}

static Shape result(const InferCtx *ctx)
{
    Shape s = ctx->in[A]->shape;
    s.dim[s.rank - 1] = ctx->in[B]->shape.dim[0];
    s.axis[s.rank - 1] = ctx->in[B]->shape.axis[0];
    return s;
}

static Status infer(InferCtx *ctx)
{
    const Linear8Attr *attr = ctx->attr;
    TRY(check(ctx));
    if (!dtype_is_activation(attr->dtype))
        return fail(ERR_ARG, "y cannot be %s, only f32 or bf16", dtype_name(attr->dtype));
    ctx->out[0] = infer_out(attr->dtype, result(ctx));
    return OK;
}

static Status infer_accumulate(InferCtx *ctx)
{
    TRY(check(ctx));
    Shape shape = result(ctx);
    TRY(need_dtype(ctx->in[STATE], DTYPE_F32, "the state"));
    TRY(need_shape(ctx->in[STATE], &shape, "the state"));
    ctx->out[0] = infer_out(DTYPE_F32, shape);
    ctx->out[0].alias = STATE;
    return OK;
}

/* ---- cutting ---------------------------------------------------------------------------- */

static Place cut_at(int dim) { return (Place){PLACE_CUT, (int8_t)dim}; }

/* Scales of squares lie as what they are of; others have the axis of the sum first. */
static Status cut_rule(CutCtx *ctx)
{
    const Linear8Attr *attr = ctx->attr;
    const Place a = ctx->place[A], b = ctx->place[B], same = {PLACE_SAME, 0};
    const int last = ctx->in[A]->shape.rank - 1, squares = attr->b == SCALING_SQUARE;
    for (int i = A; i <= B_SCALE; i++) ctx->want[i] = same;
    ctx->out[0] = same;
    if ((place_is_cut(a) && a.dim == last) || (place_is_cut(b) && b.dim == 1)) { /* the sum */
        ctx->want[A] = cut_at(last);
        ctx->want[A_SCALE] = cut_at(0);
        ctx->want[B] = cut_at(1);
        ctx->want[B_SCALE] = cut_at(squares ? 1 : 0);
        ctx->out[0] = (Place){PLACE_PARTIAL, 0};
    } else if (place_is_cut(b)) { /* rows of b: columns of y */
        ctx->want[B] = cut_at(0);
        ctx->want[B_SCALE] = cut_at(squares ? 0 : 1);
        ctx->out[0] = cut_at(last);
    } else if (place_is_cut(a)) {
        ctx->want[A] = ctx->out[0] = a;
        ctx->want[A_SCALE] = cut_at(1);
    }
    if (ctx->n_in > STATE) ctx->want[STATE] = ctx->out[0];
    return OK;
}

/* ---- cost and definition ---------------------------------------------------------------- */

static Cost product_cost(const Graph *g, const Node *node, bool accumulate)
{
    const Value *a = graph_value(g, node->in[A]);
    double n = (double)graph_value(g, node->in[B])->shape.dim[0], k = (double)last_dim(a),
           count = (double)shape_count(&a->shape), y_bytes = value_bytes(g, node->out[0]);
    Cost cost = {.flop = 2 * count * n,
                 .read_bytes = accumulate ? y_bytes : 0,
                 .write_bytes = y_bytes,
                 .kind = COST_MATMUL,
                 .m = k > 0 ? count / k : 0,
                 .n = n,
                 .k = k,
                 .count = 1,
                 .dtype = DTYPE_F8_E4M3};
    for (int i = A; i <= B_SCALE; i++) cost.read_bytes += value_bytes(g, node->in[i]);
    return cost;
}

static Cost cost(const Graph *g, const Node *node) { return product_cost(g, node, false); }
static Cost cost_accumulate(const Graph *g, const Node *node)
{
    return product_cost(g, node, true);
}

static void attr_text(const void *attr, Str *out)
{
    const Linear8Attr *a = attr;
    str_printf(out, "%s %s %s", dtype_name(a->dtype), scaling_name(a->a), scaling_name(a->b));
}

static size_t gpu_workspace(const Graph *graph, const Node *node)
{
    (void)graph;
    (void)node;
    return GPU_PRODUCT_WORKSPACE_BYTES;
}

CPU_DECLARE(linear_8);
CPU_DECLARE(linear_8_accumulate);
CUDA_DECLARE(linear_8);
CUDA_DECLARE(linear_8_accumulate);

const OpDef op_def_linear_8 = {.name = "linear_8",
                               .min_in = 4,
                               .max_in = 4,
                               .n_out = 1,
                               .attr_bytes = sizeof(Linear8Attr),
                               .flags = OP_SOURCE,
                               .infer = infer,
                               .cut_rule = cut_rule,
                               .cost = cost,
                               .attr_text = attr_text,
                               .cpu = CPU_KERNELS(linear_8),
                               .cuda = &cuda_linear_8,
                               .gpu_workspace = gpu_workspace};

const OpDef op_def_linear_8_accumulate = {.name = "linear_8_accumulate",
                                          .min_in = 5,
                                          .max_in = 5,
                                          .n_out = 1,
                                          .attr_bytes = sizeof(Linear8Attr),
                                          .flags = OP_SOURCE | OP_EFFECT,
                                          .infer = infer_accumulate,
                                          .cut_rule = cut_rule,
                                          .cost = cost_accumulate,
                                          .attr_text = attr_text,
                                          .cpu = CPU_KERNELS(linear_8_accumulate),
                                          .cuda = &cuda_linear_8_accumulate,
                                          .gpu_workspace = gpu_workspace};

static Linear8Attr attr_of(const Scaled *a, const Scaled *b, DType dtype)
{
    return (Linear8Attr){dtype, a->scaling, b->scaling};
}

Status op_linear_8(Graph *g, const Scaled *a, const Scaled *b, DType dtype, ValueId *y)
{
    Linear8Attr attr = attr_of(a, b, dtype);
    return graph_add(g, &op_def_linear_8, &attr, (ValueId[]){a->q, a->scale, b->q, b->scale}, 4, y);
}

Status op_linear_8_accumulate(Graph *g, const Scaled *a, const Scaled *b, ValueId state,
                              ValueId *sum)
{
    Linear8Attr attr = attr_of(a, b, DTYPE_F32);
    return graph_add(g, &op_def_linear_8_accumulate, &attr,
                     (ValueId[]){a->q, a->scale, b->q, b->scale, state}, 5, sum);
}

Status op_linear_8_into(Graph *g, const Node *node, const ValueId in[4], ValueId state,
                        ValueId *sum)
{
    return graph_add(g, &op_def_linear_8_accumulate, node->attr,
                     (ValueId[]){in[A], in[A_SCALE], in[B], in[B_SCALE], state}, 5, sum);
}
