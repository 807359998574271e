/* Collectives: what brings a value from one placement along a mesh axis to another.
 *
 *   all_reduce      partial -> same        the sum of all ranks' summands
 *   all_gather      cut     -> same        all parts, one behind the other along the cut axis
 *   reduce_scatter  partial -> cut         this rank's part of the sum
 *   cut             same    -> cut         this rank's part; nothing is sent
 *   all_gather_into cut     -> same        all parts, into a state that all ranks hold
 *
 * They are put in by pass/shard after differentiation, so they have no gradient rule. Along other
 * mesh axes a value keeps its place. */
#include "ops/collective.h"
#include "ops/kernel.h"
#include "ops/rules.h"

#include <stdlib.h>
#include <string.h>

/* ---- placements ------------------------------------------------------------------------- */

/* Along another axis a value keeps its place; but of two axes that cut the same dimension the inner
 * one must be gathered first, or the parts would come in another order. */
Status collective_cut_other_axis(CutCtx *c)
{
    const CollectiveAttr *attr = c->attr;
    bool inner = mesh_axis_nesting(c->axis) > mesh_axis_nesting(attr->axis);
    if (place_is_cut(c->place[0]) &&
        (c->place[0].dim == PLACE_FLAT || (c->place[0].dim == attr->dim && inner)))
        c->want[0] = (Place){PLACE_SAME, 0};
    c->out[0] = c->want[0];
    return OK;
}

static Status move(CutCtx *c, Place from, Place to)
{
    if (c->axis != ((const CollectiveAttr *)c->attr)->axis) return collective_cut_other_axis(c);
    c->want[0] = from;
    c->out[0] = to;
    return OK;
}

static Place part(const CutCtx *c)
{
    return (Place){PLACE_CUT, (int8_t)((const CollectiveAttr *)c->attr)->dim};
}

/* A sum goes element by element: along another axis x may lie anyhow. Summands that are wanted in
 * parts there are scattered first, so that a part is all that is summed here; in a canonical graph
 * that would be another order of sums. */
static Status cut_all_reduce(CutCtx *c)
{
    if (c->axis == ((const CollectiveAttr *)c->attr)->axis)
        return move(c, (Place){PLACE_PARTIAL, 0}, (Place){PLACE_SAME, 0});
    bool parts = c->place[0].kind == PLACE_PARTIAL && c->hint && place_is_cut(c->hint[0]);
    if (parts && !c->graph->canonical) c->want[0] = c->hint[0];
    c->out[0] = c->want[0];
    return OK;
}

static Status cut_all_gather(CutCtx *c) { return move(c, part(c), (Place){PLACE_SAME, 0}); }
static Status cut_reduce_scatter(CutCtx *c) { return move(c, (Place){PLACE_PARTIAL, 0}, part(c)); }
static Status cut_cut(CutCtx *c) { return move(c, (Place){PLACE_SAME, 0}, part(c)); }

/* Along other axes the parts lie as the state does. */
static Status cut_all_gather_into(CutCtx *c)
{
    bool own = c->axis == ((const CollectiveAttr *)c->attr)->axis;
    c->out[0] = c->want[0] = own ? (Place){PLACE_SAME, 0} : c->place[0];
    c->want[1] = own ? part(c) : c->place[0];
    return OK;
}

/* What is whole for one axis is a part for another that comes after it. */
Status collective_cut_attr(const CutCtx *c, void *attribute)
{
    CollectiveAttr *attr = attribute;
    Place p = c->want[0];
    if (c->axis == attr->axis || p.kind != PLACE_CUT) return OK;
    if (p.dim == PLACE_FLAT && c->op == &op_def_all_reduce)
        attr->whole = shape_make(1,
                                 (int64_t[]){collective_flat_part(shape_count(&attr->whole), c->n)},
                                 (Axis[]){AXIS_ANY});
    else if (p.dim != PLACE_FLAT && p.dim < attr->whole.rank)
        attr->whole.dim[p.dim] /= c->n;
    return OK;
}

/* ---- shapes ----------------------------------------------------------------------------- */

static Shape part_shape(const CollectiveAttr *attr)
{
    if (attr->dim == PLACE_FLAT)
        return shape_make(1, (int64_t[]){collective_flat_part(shape_count(&attr->whole), attr->n)},
                          (Axis[]){AXIS_ANY});
    Shape shape = attr->whole;
    shape.dim[attr->dim] /= attr->n;
    return shape;
}

static Status check_type(const Value *x)
{
    return x->dtype == DTYPE_I32 ? OK : need_activation(x, "x");
}

static Status infer_all_reduce(InferCtx *ctx)
{
    TRY(check_type(ctx->in[0]));
    ctx->out[0] = infer_like(ctx->in[0]);
    return OK;
}

static Status infer_all_gather(InferCtx *ctx)
{
    const CollectiveAttr *attr = ctx->attr;
    Shape shape = part_shape(attr);
    TRY(check_type(ctx->in[0]));
    TRY(need_shape(ctx->in[0], &shape, "the part"));
    ctx->out[0] = infer_out(ctx->in[0]->dtype, attr->whole);
    return OK;
}

static Status infer_all_gather_into(InferCtx *ctx)
{
    const CollectiveAttr *attr = ctx->attr;
    const Value *state = ctx->in[0], *x = ctx->in[1];
    Shape shape = part_shape(attr);
    TRY(need_activation(state, "the state"));
    TRY(need_dtype(x, state->dtype, "the part"));
    TRY(need_shape(state, &attr->whole, "the state"));
    TRY(need_shape(x, &shape, "the part"));
    ctx->out[0] = infer_like(state);
    ctx->out[0].alias = 0;
    return OK;
}

static Status infer_part(InferCtx *ctx)
{
    const CollectiveAttr *attr = ctx->attr;
    const Value *x = ctx->in[0];
    TRY(check_type(x));
    TRY(need_shape(x, &attr->whole, "x"));
    if (attr->dim != PLACE_FLAT && x->shape.dim[attr->dim] % (attr->zigzag ? 2 * attr->n : attr->n))
        return fail(ERR_REFUSED, "%lld %s cannot be cut into %d equal parts for parallel.%s",
                    (long long)x->shape.dim[attr->dim], axis_name(x->shape.axis[attr->dim]),
                    attr->zigzag ? 2 * attr->n : attr->n, mesh_axis_name(attr->axis));
    ctx->out[0] = infer_out(x->dtype, part_shape(attr));
    return OK;
}

/* ---- costs ------------------------------------------------------------------------------ */

/* What this rank sends is what the communicator says of the operation. */
static Cost cost_of(const Graph *g, const Node *node, CommKind kind)
{
    const CollectiveAttr *attr = node->attr;
    int64_t count = shape_count(&graph_value(g, node->in[0])->shape),
            *counts = xcalloc((size_t)attr->n, sizeof *counts);
    for (int r = 0; r < attr->n; r++) counts[r] = collective_part_count(attr, r);
    CommOp op = {.kind = kind,
                 .dtype = graph_value(g, node->in[0])->dtype,
                 .count = kind == COMM_ALL_REDUCE ? count : 0,
                 .counts = kind == COMM_ALL_REDUCE ? NULL : counts};
    Cost cost = cost_streaming(g, node, 0);
    cost.wire_bytes = (double)comm_sent_bytes(&op, attr->n, attr->rank);
    int64_t all = kind == COMM_ALL_GATHER ? shape_count(&attr->whole) : count;
    cost_exchange(&cost, kind, 1u << attr->axis, (double)all * (double)dtype_bytes(op.dtype));
    free(counts);
    return cost;
}

static Cost cost_all_reduce(const Graph *g, const Node *node)
{
    return cost_of(g, node, COMM_ALL_REDUCE);
}
static Cost cost_all_gather(const Graph *g, const Node *node)
{
    return cost_of(g, node, COMM_ALL_GATHER);
}
static Cost cost_reduce_scatter(const Graph *g, const Node *node)
{
    return cost_of(g, node, COMM_REDUCE_SCATTER);
}
static Cost cost_all_gather_into(const Graph *g, const Node *node)
{
    Cost cost = cost_of(g, node, COMM_ALL_GATHER);
    cost.read_bytes = value_bytes(g, node->in[1]);
    cost.write_bytes = value_bytes(g, node->in[0]);
    return cost;
}
static Cost cost_cut(const Graph *g, const Node *node)
{
    return (Cost){.read_bytes = value_bytes(g, node->out[0]),
                  .write_bytes = value_bytes(g, node->out[0])};
}

void collective_attr_text(const void *attribute, Str *out)
{
    const CollectiveAttr *attr = attribute;
    str_printf(out, "%s %d of %d", mesh_axis_name(attr->axis), attr->rank, attr->n);
    if (attr->dim == PLACE_FLAT)
        str_add(out, ", flat");
    else if (attr->dim >= 0)
        str_printf(out, ", axis %d%s", attr->dim, attr->zigzag ? " zigzag" : "");
}

/* overwrites: bit 0 where the result may take the place of x. packs: GPUs need room to pack in. */
#define COLLECTIVE(op, operands, how, overwrites, more_flags, packs)                               \
    extern const Kernel collective_##op##_kernel;                                                  \
    CUDA_DECLARE(op);                                                                              \
    const OpDef op_def_##op = {.name = #op,                                                        \
                               .min_in = (operands),                                               \
                               .max_in = (operands),                                               \
                               .n_out = 1,                                                         \
                               .attr_bytes = sizeof(CollectiveAttr),                               \
                               .flags = OP_SOURCE | (more_flags),                                  \
                               .inplace = (overwrites),                                            \
                               .infer = how,                                                       \
                               .cost = cost_##op,                                                  \
                               .cut_rule = cut_##op,                                               \
                               .cut_attr = collective_cut_attr,                                    \
                               .attr_text = collective_attr_text,                                  \
                               .cpu = CPU_KERNEL_ANY(&collective_##op##_kernel),                   \
                               .cuda = &cuda_##op,                                                 \
                               .gpu_workspace = (packs) ? collective_gpu_workspace : NULL}

COLLECTIVE(all_reduce, 1, infer_all_reduce, 1, OP_COLLECTIVE, false);
COLLECTIVE(all_gather, 1, infer_all_gather, 0, OP_COLLECTIVE | OP_CHEAP, true);
COLLECTIVE(reduce_scatter, 1, infer_part, 0, OP_COLLECTIVE, true);
COLLECTIVE(cut, 1, infer_part, 0, 0, false);
COLLECTIVE(all_gather_into, 2, infer_all_gather_into, 0, OP_COLLECTIVE | OP_EFFECT, false);

enum { NO_DIM = -2 }; /* a sum has nothing cut */

/* ---- builders --------------------------------------------------------------------------- */

CollectiveAttr collective_attr(const Graph *g, MeshAxis axis, int dim, const Shape *whole)
{
    CollectiveAttr attr;
    memset(&attr, 0, sizeof attr); /* padding too: attributes are compared by their bytes */
    attr.axis = axis;
    attr.n = mesh_size(&g->mesh, axis);
    attr.rank = g->mesh.coord[axis];
    attr.dim = dim;
    attr.zigzag = axis == MESH_CP && dim >= 0 && whole->axis[dim] == AXIS_SEQ;
    attr.whole = *whole;
    return attr;
}

Status op_all_reduce(Graph *g, MeshAxis axis, ValueId x, ValueId *y)
{
    Shape shape = graph_value(g, x)->shape;
    CollectiveAttr attr = collective_attr(g, axis, NO_DIM, &shape);
    return graph_add(g, &op_def_all_reduce, &attr, &x, 1, y);
}

Status op_all_gather(Graph *g, MeshAxis axis, ValueId x, ValueId *y)
{
    const Value *v = graph_value(g, x);
    Place p = v->place[axis];
    Shape whole = p.dim == PLACE_FLAT ? v->whole : v->shape;
    if (p.dim != PLACE_FLAT) whole.dim[p.dim] *= mesh_size(&g->mesh, axis);
    CollectiveAttr attr = collective_attr(g, axis, p.dim, &whole);
    return graph_add(g, &op_def_all_gather, &attr, &x, 1, y);
}

static Status add_part(Graph *g, const OpDef *op, MeshAxis axis, ValueId x, int dim, ValueId *y)
{
    Shape whole = graph_value(g, x)->shape;
    CollectiveAttr attr = collective_attr(g, axis, dim, &whole);
    TRY(graph_add(g, op, &attr, &x, 1, y));
    if (dim == PLACE_FLAT) graph_value(g, *y)->whole = whole;
    return OK;
}

Status op_reduce_scatter(Graph *g, MeshAxis axis, ValueId x, int dim, ValueId *y)
{
    return add_part(g, &op_def_reduce_scatter, axis, x, dim, y);
}

Status op_cut(Graph *g, MeshAxis axis, ValueId x, int dim, ValueId *y)
{
    return add_part(g, &op_def_cut, axis, x, dim, y);
}

Status op_all_gather_into(Graph *g, MeshAxis axis, ValueId state, ValueId x, ValueId *fresh)
{
    Shape whole = graph_value(g, state)->shape;
    CollectiveAttr attr = collective_attr(g, axis, PLACE_FLAT, &whole);
    return graph_add(g, &op_def_all_gather_into, &attr, (ValueId[]){state, x}, 2, fresh);
}
