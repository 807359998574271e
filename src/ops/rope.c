/* rope: rotary positions (Su 2021), with Llama 3's scaling of the frequencies (models.md 1.3).
 *
 * Two ops: rope_table turns positions into cosines and sines once per step, rope rotates queries
 * and keys by them. A rotation's gradient is the rotation backwards, so rope is its own gradient
 * op.
 */
#include "ops/rope_internal.h"
#include "ops/kernel.h"

#include <math.h>

CPU_DECLARE(rope);
CUDA_DECLARE(rope_table);
CUDA_DECLARE(rope);

/* ---- rope_table ------------------------------------------------------------------------- */

static Status table_infer(InferCtx *ctx)
{
    const RopeTableAttr *attr = ctx->attr;
    const Value *pos = ctx->in[0];
    if (pos->dtype != DTYPE_I32 || pos->shape.rank != 2) {
        char text[SHAPE_TEXT];
        return fail(ERR_SHAPE, "rope_table: positions must be i32 [batch seq], not %s [%s]",
                    dtype_name(pos->dtype), shape_text(&pos->shape, text));
    }
    if (attr->head_dim < 2 || attr->head_dim % 2 != 0)
        return fail(ERR_ARG, "rope_table: head_dim must be even and positive, not %lld",
                    (long long)attr->head_dim);
    if (!(attr->theta > 0))
        return fail(ERR_ARG, "rope_table: theta must be positive, not %g", attr->theta);
    int64_t dim[3] = {pos->shape.dim[0], pos->shape.dim[1], attr->head_dim};
    Axis axis[3] = {pos->shape.axis[0], pos->shape.axis[1], AXIS_HEAD_DIM};
    ctx->out[0].dtype = DTYPE_F32;
    ctx->out[0].shape = shape_make(3, dim, axis);
    return OK;
}

static Cost table_cost(const Graph *graph, const Node *node)
{
    double n = (double)shape_count(&graph_value(graph, node->out[0])->shape);
    double tokens = (double)shape_count(&graph_value(graph, node->in[0])->shape);
    /* a sine and a cosine in double are about 60 operations each */
    return (Cost){.flop = 60 * n, .read_bytes = 4 * tokens, .write_bytes = 4 * n};
}

static void table_text(const void *attr, Str *out)
{
    const RopeTableAttr *a = attr;
    str_printf(out, "theta=%g", a->theta);
    if (a->scaling.factor != 0 && a->scaling.factor != 1)
        str_printf(out, " factor=%g low=%g high=%g original=%g", (double)a->scaling.factor,
                   (double)a->scaling.low_freq_factor, (double)a->scaling.high_freq_factor,
                   (double)a->scaling.original_max_position);
}

/* The frequencies, f32. */
static size_t table_workspace(const Graph *graph, const Node *node, const Target *target)
{
    (void)graph, (void)target;
    const RopeTableAttr *attr = node->attr;
    return (size_t)(attr->head_dim / 2) * sizeof(float);
}

/* pos [B T] i32 -> table [B T d] f32. Angles are products of f32, as in the published code; their
 * sine and cosine are exact to f32. */
static Status table_run(KernelArgs *args)
{
    const RopeTableAttr *attr = args->attr;
    int64_t half = attr->head_dim / 2, n = tensor_count(&args->in[0]);
    const int32_t *pos = args->in[0].data;
    float *table = args->out[0].data, *frequency = args->workspace;
    for (int64_t j = 0; j < half; j++) frequency[j] = rope_frequency(attr, j);
    int threads = n * half < 4096 ? 1 : args->threads;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; i++) {
        float *row = table + i * 2 * half, p = (float)pos[i];
        for (int64_t j = 0; j < half; j++) {
            float angle = p * frequency[j];
            row[j] = (float)cos((double)angle);
            row[half + j] = (float)sin((double)angle);
        }
    }
    return OK;
}

static const Kernel table_kernel = {.run = table_run, .workspace = table_workspace};

const OpDef op_def_rope_table = {
    .name = "rope_table",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .attr_bytes = sizeof(RopeTableAttr),
    .flags = OP_SOURCE,
    .infer = table_infer,
    .cut = "* -> *d!",
    .cost = table_cost,
    .attr_text = table_text,
    .cpu = CPU_KERNEL_ANY(&table_kernel),
    .cuda = &cuda_rope_table,
};

Status op_rope_table(Graph *g, ValueId pos, int64_t head_dim, double theta, RopeScaling scaling,
                     ValueId *table)
{
    RopeTableAttr attr = {.head_dim = head_dim, .theta = theta, .scaling = scaling};
    return graph_add(g, &op_def_rope_table, &attr, &pos, 1, table);
}

/* ---- rope ------------------------------------------------------------------------------- */

static Status rope_infer(InferCtx *ctx)
{
    const Value *x = ctx->in[0], *table = ctx->in[1];
    char a[SHAPE_TEXT], b[SHAPE_TEXT];
    bool float_x = x->dtype == DTYPE_F32 || x->dtype == DTYPE_BF16;
    if (!float_x || table->dtype != DTYPE_F32)
        return fail(ERR_SHAPE, "rope: x must be f32 or bf16 and the table f32, not %s and %s",
                    dtype_name(x->dtype), dtype_name(table->dtype));
    const int64_t *d = x->shape.dim, *t = table->shape.dim;
    if (x->shape.rank != 4 || table->shape.rank != 3 || d[0] != t[0] || d[1] != t[1] ||
        d[3] != t[2] || d[3] % 2 != 0)
        return fail(ERR_SHAPE,
                    "rope: x is [%s], the table [%s]; wanted [B T H d] and [B T d], d even",
                    shape_text(&x->shape, a), shape_text(&table->shape, b));
    ctx->out[0].dtype = x->dtype;
    ctx->out[0].shape = x->shape;
    return OK;
}

static Status rope_grad(GradCtx *ctx)
{
    const Node *node = graph_node(ctx->graph, ctx->node);
    if (!ctx->need[0]) return OK;
    RopeAttr attr = *(const RopeAttr *)node->attr;
    attr.inverse = !attr.inverse;
    ValueId in[2] = {ctx->dout[0], node->in[1]};
    return graph_add(ctx->graph, &op_def_rope, &attr, in, 2, &ctx->din[0]);
}

static Cost rope_cost(const Graph *graph, const Node *node)
{
    const Value *x = graph_value(graph, node->in[0]), *table = graph_value(graph, node->in[1]);
    double n = (double)shape_count(&x->shape), bytes = n * (double)dtype_bytes(x->dtype);
    return (Cost){.flop = 3 * n,
                  .read_bytes = bytes + 4 * (double)shape_count(&table->shape),
                  .write_bytes = bytes};
}

static void rope_text(const void *attr, Str *out)
{
    const RopeAttr *a = attr;
    str_printf(out, "%s%s", a->interleaved ? "interleaved" : "halves",
               a->inverse ? " inverse" : "");
}

const OpDef op_def_rope = {
    .name = "rope",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .attr_bytes = sizeof(RopeAttr),
    .flags = OP_CHEAP,
    .inplace = 1,
    .strided_in = 1,
    .strided_out = 1,
    .infer = rope_infer,
    .cut = "*hd! *d! -> *hd!",
    .grad = rope_grad,
    .cost = rope_cost,
    .attr_text = rope_text,
    .cpu = CPU_KERNELS(rope),
    .cuda = &cuda_rope,
};

Status op_rope(Graph *g, ValueId x, ValueId table, bool interleaved, ValueId *y)
{
    RopeAttr attr = {.interleaved = interleaved};
    ValueId in[2] = {x, table};
    return graph_add(g, &op_def_rope, &attr, in, 2, y);
}
