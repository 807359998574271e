/* ring_pass: one hop of a block round the ring of a mesh axis, as attention wants it (pass/ring.c).
 *
 *   hop > 0    x is this rank's part        -> y: the part of the rank `hop` places before it,
 *              which lies PASSED hop
 *   home       x is what this rank made for the part that came from there (PASSED hop)
 *                                           -> y: what the rank as many places behind made for ours
 *                                           (PASSED -hop)
 *
 * A part comes straight from its owner, as two messages between the pairs of ranks of the hop: so
 * much and no more leaves a rank in a hop as when every block is handed on from neighbour to
 * neighbour, and a rank that nobody behind it wants anything of may keep silent. Only the halves
 * that a mask may show the receiver are sent. Which these are, all ranks know when the graph is
 * built. Along other mesh axes y lies as x does. */
#include "ops/collective.h"
#include "ops/kernel.h"
#include "ops/rules.h"

#include <string.h>

static Status cut(CutCtx *c)
{
    const CollectiveAttr *attr = c->attr;
    const RingHop *h = &attr->ring;
    if (c->axis != attr->axis) return collective_cut_other_axis(c);
    if (h->give)
        c->want[0] = h->home ? (Place){PLACE_PASSED, (int8_t)-h->hop}
                             : (Place){PLACE_CUT, (int8_t)attr->dim};
    c->out[0] = (Place){PLACE_PASSED, (int8_t)h->hop};
    return OK;
}

static Status infer(InferCtx *ctx)
{
    const CollectiveAttr *attr = ctx->attr;
    const RingHop *h = &attr->ring;
    const Value *x = ctx->in[0];
    TRY(need_activation(x, "x"));
    if (!h->hop || h->hop >= attr->n || -h->hop >= attr->n || h->home != (h->hop < 0) ||
        !(h->give | h->take))
        return fail(ERR_ARG, "a hop of %d on a ring of %d that gives %d and takes %d", h->hop,
                    attr->n, h->give, h->take);
    Shape given = ring_shape(attr, h->home && h->give ? h->give : HALF_BOTH);
    TRY(need_shape(x, &given, "x"));
    ctx->out[0] = infer_out(x->dtype, ring_shape(attr, h->take));
    ctx->out[0].wanted = h->take != 0;
    return OK;
}

static Cost cost(const Graph *g, const Node *node)
{
    const CollectiveAttr *attr = node->attr;
    Shape give = ring_shape(attr, attr->ring.give);
    CommOp op = {.kind = COMM_SEND,
                 .dtype = graph_value(g, node->in[0])->dtype,
                 .count = shape_count(&give)};
    double sent = attr->ring.give ? (double)comm_sent_bytes(&op, attr->n, attr->rank) : 0;
    Cost cost = {
        .read_bytes = sent, .write_bytes = value_bytes(g, node->out[0]), .wire_bytes = sent};
    if (sent > 0) cost_exchange(&cost, COMM_SEND, 1u << attr->axis, sent);
    return cost;
}

static void attr_text(const void *attribute, Str *out)
{
    static const char *const halves[] = {"nothing", "first half", "second half", "all"};
    const CollectiveAttr *attr = attribute;
    collective_attr_text(attr, out);
    str_printf(out, ", hop %d gives %s takes %s", attr->ring.hop, halves[attr->ring.give],
               halves[attr->ring.take]);
}

extern const Kernel collective_ring_pass_kernel;
CUDA_DECLARE(ring_pass);
const OpDef op_def_ring_pass = {
    .name = "ring_pass",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .attr_bytes = sizeof(CollectiveAttr),
    .flags = OP_SOURCE | OP_COLLECTIVE | OP_EFFECT, /* what is sent is read elsewhere */
    .optional_in = 2,
    .infer = infer,
    .cost = cost,
    .cut_rule = cut,
    .cut_attr = collective_cut_attr,
    .attr_text = attr_text,
    .cpu = CPU_KERNEL_ANY(&collective_ring_pass_kernel),
    .cuda = &cuda_ring_pass,
    .gpu_workspace = ring_gpu_workspace,
};

enum { SEQUENCE_DIM = 1 };

Status op_ring_pass(Graph *g, MeshAxis axis, ValueId x, ValueId after, const RingHop *hop,
                    ValueId *y)
{
    const Value *v = graph_value(g, x);
    bool half = hop->home && hop->give && hop->give != HALF_BOTH;
    Shape whole = v->shape;
    whole.dim[SEQUENCE_DIM] *= mesh_size(&g->mesh, axis) * (half ? 2 : 1);
    CollectiveAttr attr = collective_attr(g, axis, SEQUENCE_DIM, &whole);
    memcpy(&attr.ring, hop,
           sizeof attr.ring); /* its padding too: attributes are compared by their bytes */
    return graph_add(g, &op_def_ring_pass, &attr, (ValueId[]){x, after}, 2, y);
}
