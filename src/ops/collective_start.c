/* Collectives in two nodes, so that others run in between:
 *
 *   X_start(x)                     -> y, token, scratch    begins what X does; X is one of the
 *                                  collectives below
 *   wait(y, token, scratch, x)     -> y                    returns when it is done
 *
 * Nobody else may touch y, x and scratch in between: wait reads all of them, so that the memory
 * plan keeps them, and the verifier refuses other readers. scratch is there where parts do not lie
 * one behind the other in the whole. An all_reduce may take place in x itself. They are put in by
 * pass/overlap, once all cuts are made. */
#include "ops/collective.h"
#include "ops/kernel.h"
#include "ops/rules.h"

#include <string.h>

/* ---- start ------------------------------------------------------------------------------ */

static InferOut infer_token(void)
{
    return infer_out(DTYPE_I64, shape_make(1, (int64_t[]){1}, (Axis[]){AXIS_ANY}));
}

static Status infer_start(InferCtx *ctx, const OpDef *of)
{
    const CollectiveAttr *attr = ctx->attr;
    TRY(of->infer(ctx));
    if (attr->in_place) ctx->out[START_Y].alias = 0;
    ctx->out[START_TOKEN] = infer_token();
    if (of == &op_def_ring_pass) {
        ctx->out[START_SCRATCH] = infer_out(ctx->in[0]->dtype, ring_shape(attr, attr->ring.give));
        ctx->out[START_SCRATCH].wanted = ring_packs(attr);
        return OK;
    }
    ctx->out[START_SCRATCH] = infer_out(ctx->in[0]->dtype, attr->whole);
    ctx->out[START_SCRATCH].wanted = of != &op_def_all_reduce && !collective_parts_lie_apart(attr);
    return OK;
}

#define STARTED(op, operands, optional)                                                            \
    static Status infer_##op(InferCtx *ctx) { return infer_start(ctx, &op_def_##op); }             \
    static Status cut_##op(CutCtx *ctx) { return op_def_##op.cut_rule(ctx); }                      \
    static Cost cost_##op(const Graph *g, const Node *node) { return op_def_##op.cost(g, node); }  \
    static void text_##op(const void *attr, Str *out) { op_def_##op.attr_text(attr, out); }        \
    extern const Kernel collective_##op##_start_kernel;                                            \
    CUDA_DECLARE(op##_start);                                                                      \
    const OpDef op_def_##op##_start = {.name = #op "_start",                                       \
                                       .min_in = (operands),                                       \
                                       .max_in = (operands),                                       \
                                       .optional_in = (optional),                                  \
                                       .n_out = N_START_OUT,                                       \
                                       .attr_bytes = sizeof(CollectiveAttr),                       \
                                       .flags = OP_SOURCE | OP_COLLECTIVE | OP_STARTS,             \
                                       .infer = infer_##op,                                        \
                                       .cost = cost_##op,                                          \
                                       .cut_rule = cut_##op,                                       \
                                       .attr_text = text_##op,                                     \
                                       .cpu = CPU_KERNEL_ANY(&collective_##op##_start_kernel),     \
                                       .cuda = &cuda_##op##_start}

STARTED(all_reduce, 1, 0);
STARTED(all_gather, 1, 0);
STARTED(reduce_scatter, 1, 0);
STARTED(all_gather_into, 2, 0);
STARTED(ring_pass, 2, 2);

/* ---- wait ------------------------------------------------------------------------------- */

static Status infer_wait(InferCtx *ctx)
{
    TRY(need_dtype(ctx->in[START_TOKEN], DTYPE_I64, "the token"));
    if (((const WaitAttr *)ctx->attr)->unpack && !ctx->in[START_SCRATCH])
        return fail(ERR_ARG, "the scratch is missing");
    ctx->out[0].wanted = ctx->in[START_Y] != NULL; /* a hop of a ring may only give */
    if (!ctx->in[START_Y]) return OK;
    ctx->out[0] = infer_like(ctx->in[START_Y]);
    ctx->out[0].alias = START_Y;
    return OK;
}

static Status cut_wait(CutCtx *ctx)
{
    ctx->out[0] = ctx->place[START_Y];
    return OK;
}

static Cost cost_wait(const Graph *g, const Node *node)
{
    double bytes = ((const WaitAttr *)node->attr)->unpack ? value_bytes(g, node->in[START_SCRATCH])
                                                          : 0;
    return (Cost){.read_bytes = bytes, .write_bytes = bytes};
}

static void text_wait(const void *attr, Str *out)
{
    op_def_all_gather.attr_text(&((const WaitAttr *)attr)->of, out);
}

extern const Kernel collective_wait_kernel;
CUDA_DECLARE(wait);
const OpDef op_def_wait = {
    .name = "wait",
    .min_in = 4,
    .max_in = 4,
    .n_out = 1,
    .attr_bytes = sizeof(WaitAttr),
    .flags = OP_SOURCE | OP_COLLECTIVE | OP_WAITS,
    .optional_in = 1 << START_Y | 1 << START_SCRATCH | 1 << N_START_OUT,
    .infer = infer_wait,
    .cut_rule = cut_wait,
    .cost = cost_wait,
    .attr_text = text_wait,
    .cpu = CPU_KERNEL_ANY(&collective_wait_kernel),
    .cuda = &cuda_wait,
};

/* ---- builders --------------------------------------------------------------------------- */

const OpDef *op_start_form(const OpDef *op)
{
    extern const OpDef op_def_all_reduce_start, op_def_all_gather_start,
        op_def_reduce_scatter_start, op_def_all_gather_into_start, op_def_ring_pass_start;
    static const OpDef *const form[][2] = {{&op_def_all_reduce, &op_def_all_reduce_start},
                                           {&op_def_all_gather, &op_def_all_gather_start},
                                           {&op_def_reduce_scatter, &op_def_reduce_scatter_start},
                                           {&op_def_all_gather_into, &op_def_all_gather_into_start},
                                           {&op_def_ring_pass, &op_def_ring_pass_start}};
    for (int i = 0; i < COUNT_OF(form); i++)
        if (form[i][0] == op) return form[i][1];
    return NULL;
}

Status op_start(Graph *g, const OpDef *op, const void *attribute, const ValueId *in, OnItsWay *way)
{
    const OpDef *form = op_start_form(op);
    ValueId out[NODE_MAX_OUT];
    CHECK(form);
    memset(way, 0, sizeof *way);
    memcpy(&way->attr, attribute, sizeof way->attr);
    TRY(graph_add(g, form, &way->attr, in, form->min_in, out));
    way->y = out[START_Y];
    way->token = out[START_TOKEN];
    way->scratch = out[START_SCRATCH];
    way->unpack = op == &op_def_all_gather && value_ok(way->scratch);
    /* what is overwritten in place is y itself; the part that goes into a state is the second
     * operand */
    way->x = op == &op_def_all_gather_into ? in[1] : way->attr.in_place ? NO_VALUE : in[0];
    return OK;
}

Status op_wait(Graph *g, const OnItsWay *way, ValueId *y)
{
    WaitAttr attr;
    memset(&attr, 0, sizeof attr); /* padding too: attributes are compared by their bytes */
    memcpy(&attr.of, &way->attr, sizeof attr.of);
    attr.unpack = way->unpack;
    return graph_add(g, &op_def_wait, &attr, (ValueId[]){way->y, way->token, way->scratch, way->x},
                     4, y);
}
