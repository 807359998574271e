/* quantise: x [..., C] bf16 as numbers of 8 bits with scales, by rows, by columns, or both.
 *
 *     scale = max |x| / M, M = 448 (e4m3) or 57344 (e5m2); q = round(x (1 / scale))
 *
 * The maximum is over what shares the scale: a row, 128 of its neighbours, or 128 rows of 128
 * columns (Micikevicius 2022 for the formats; DeepSeek-V3, 2024, 3.3 for blocks and squares).
 * Tensor cores multiply 8 bits only where both operands lie along the sum, so gradients need
 * transposes: columns are x^T [C, rows], whose scales are over its own rows, and both come out of
 * one walk.
 *
 * Cut along any axis: a rank's rows, or its part of every row, have scales of their own. Cut in
 * whole blocks these are the numbers of the whole; scales by row are those of the part. */
#include "ops/quantise.h"
#include "ops/kernel.h"
#include "ops/rules.h"

enum { N_OUT = COLUMNS_SCALE + 1 };

const char *scaling_name(ScalingUnit scaling)
{
    static const char *const names[] = {"row", "block", "square"};
    return names[scaling];
}

static Status infer(InferCtx *ctx)
{
    const Value *x = ctx->in[0];
    const QuantiseAttr *a = ctx->attr;
    TRY(need_dtype(x, DTYPE_BF16, "x"));
    if (a->dtype != DTYPE_F8_E4M3 && a->dtype != DTYPE_F8_E5M2)
        return fail(ERR_ARG, "q cannot be %s, only f8_e4m3 or f8_e5m2", dtype_name(a->dtype));
    if (x->shape.rank < 1) return fail(ERR_SHAPE, "a scalar has no rows");
    int last = x->shape.rank - 1;
    int64_t width = x->shape.dim[last], n = width ? shape_count(&x->shape) / width : 0;
    Axis axes[2] = {x->shape.axis[last], x->shape.rank == 2 ? x->shape.axis[0] : AXIS_ANY};
    ctx->out[ROWS_Q] = infer_out(a->dtype, x->shape);
    ctx->out[ROWS_SCALE] = infer_out(DTYPE_F32, scaling_shape(a->scaling, n, width));
    ctx->out[COLUMNS_Q] = infer_out(a->dtype, shape_make(2, (int64_t[]){width, n}, axes));
    ctx->out[COLUMNS_SCALE] = infer_out(DTYPE_F32, scaling_shape(a->scaling, width, n));
    for (int k = 0; k < N_OUT; k++) ctx->out[k].wanted = k < COLUMNS_Q ? a->rows : a->columns;
    return OK;
}

static Place cut_at(int dim) { return (Place){PLACE_CUT, (int8_t)dim}; }

static Status cut_rule(CutCtx *ctx)
{
    const QuantiseAttr *a = ctx->attr;
    Place x = ctx->place[0];
    if (!place_is_cut(x) || x.dim == PLACE_FLAT) {
        ctx->want[0] = (Place){PLACE_SAME, 0};
        return OK;
    }
    /* scales of squares lie as what they are of; others have the axis of the sum first */
    int across = x.dim == ctx->in[0]->shape.rank - 1, square = a->scaling == SCALING_SQUARE;
    ctx->out[ROWS_Q] = x;
    ctx->out[ROWS_SCALE] = cut_at(square ? across : !across);
    ctx->out[COLUMNS_Q] = cut_at(!across);
    ctx->out[COLUMNS_SCALE] = cut_at(square ? !across : across);
    return OK;
}

static Cost cost(const Graph *g, const Node *node) { return cost_streaming(g, node, 2); }

static void attr_text(const void *attr, Str *out)
{
    const QuantiseAttr *a = attr;
    str_printf(out, "%s by %s%s%s", dtype_name(a->dtype), scaling_name(a->scaling),
               a->rows ? " rows" : "", a->columns ? " columns" : "");
}

/* Maxima of tiles, where a scale is over more than one. */
static size_t gpu_workspace(const Graph *graph, const Node *node)
{
    const QuantiseAttr *a = node->attr;
    const Value *x = graph_value(graph, node->in[0]);
    int64_t width = last_dim(x), n = width ? shape_count(&x->shape) / width : 0;
    if (a->scaling != SCALING_ROW) return 0;
    return 4 * (size_t)((a->rows ? scaling_blocks(width) * n : 0) +
                        (a->columns ? scaling_blocks(n) * width : 0));
}

CPU_DECLARE(quantise);
CUDA_DECLARE(quantise);
const OpDef op_def_quantise = {.name = "quantise",
                               .min_in = 1,
                               .max_in = 1,
                               .n_out = N_OUT,
                               .attr_bytes = sizeof(QuantiseAttr),
                               .flags = OP_SOURCE,
                               .strided_in = 1,
                               .infer = infer,
                               .cut_rule = cut_rule,
                               .cost = cost,
                               .attr_text = attr_text,
                               .cpu = CPU_KERNELS(quantise),
                               .cuda = &cuda_quantise,
                               .gpu_workspace = gpu_workspace};

Status op_quantise(Graph *g, ValueId x, DType dtype, ScalingUnit scaling, Scaled *rows,
                   Scaled *columns)
{
    QuantiseAttr attr = {dtype, scaling, .rows = rows, .columns = columns};
    ValueId out[N_OUT];
    TRY(graph_add(g, &op_def_quantise, &attr, &x, 1, out));
    if (rows) *rows = (Scaled){out[ROWS_Q], out[ROWS_SCALE], scaling};
    if (columns) *columns = (Scaled){out[COLUMNS_Q], out[COLUMNS_SCALE], scaling};
    return OK;
}
