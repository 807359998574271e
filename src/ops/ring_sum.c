/* ring_sum: what another rank made for this rank's part has come home (ring_pass) and is added:
 *   sum [B T K d] f32, x [B T or T/2 K d] -> sum + x, where x stands; f32, and of x's dtype once it
 * is whole. Along the ring the sum is GROWING until its last summand, so that one that is missing
 * or taken twice is refused. */
#include "ops/collective.h"
#include "ops/kernel.h"
#include "ops/ring_sum.h"
#include "ops/rules.h"

CPU_DECLARE(ring_sum);
CUDA_DECLARE(ring_sum);

static Status cut(CutCtx *c)
{
    const RingSumAttr *attr = c->attr;
    if (c->axis != attr->axis) {
        graph_cut_text(c, "bt!hd! bs!hd! -> bt!hd!");
        return OK;
    }
    c->want[0] = (Place){PLACE_GROWING, (int8_t)attr->part};
    c->want[1] = (Place){PLACE_PASSED, (int8_t)-attr->hop};
    c->out[0] = attr->part + 1 == attr->parts ? (Place){PLACE_CUT, 1}
                                              : (Place){PLACE_GROWING, (int8_t)(attr->part + 1)};
    return OK;
}

static Status infer(InferCtx *ctx)
{
    const RingSumAttr *attr = ctx->attr;
    const Value *sum = ctx->in[0], *x = ctx->in[1];
    Shape shape = sum->shape;
    TRY(need_dtype(sum, DTYPE_F32, "the sum"));
    TRY(need_activation(x, "x"));
    if (shape.rank != 4 || shape.dim[1] % 2 || !attr->halves || attr->part < 1 ||
        attr->part >= attr->parts)
        return fail(ERR_SHAPE, "a sum of %d axes, halves %d, summand %d of %d", shape.rank,
                    attr->halves, attr->part, attr->parts);
    shape.dim[1] = shape.dim[1] / 2 * halves_count(attr->halves);
    TRY(need_shape(x, &shape, "x"));
    ctx->out[0] = infer_out(attr->part + 1 == attr->parts ? x->dtype : DTYPE_F32, sum->shape);
    return OK;
}

static Cost cost(const Graph *g, const Node *node)
{
    Cost cost = cost_streaming(g, node, 0);
    cost.flop = value_count(g, node->in[1]);
    return cost;
}

static void attr_text(const void *attribute, Str *out)
{
    const RingSumAttr *attr = attribute;
    str_printf(out, "summand %d of %d, from hop %d", attr->part, attr->parts, attr->hop);
}

const OpDef op_def_ring_sum = {
    .name = "ring_sum",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .attr_bytes = sizeof(RingSumAttr),
    .flags = OP_SOURCE,
    .inplace = 1,
    .strided_in = 1,
    .strided_out = 1,
    .infer = infer,
    .cost = cost,
    .cut_rule = cut,
    .attr_text = attr_text,
    .cpu = CPU_KERNELS(ring_sum),
    .cuda = &cuda_ring_sum,
};

Status op_ring_sum(Graph *g, ValueId sum, ValueId x, const RingSumAttr *attr, ValueId *y)
{
    return graph_add(g, &op_def_ring_sum, attr, (ValueId[]){sum, x}, 2, y);
}
