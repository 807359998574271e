/* join_stages(x) -> y: the sum of x on two pipeline ranks, on both. A weight that two stages read
 * (a tied embedding) lies on both of their ranks, and each has a summand of its gradient. x + y and
 * y + x have the same bits, so both ranks then make the same update. */
#include "ops/kernel.h"
#include "ops/join_stages.h"
#include "ops/rules.h"

#include <string.h>

static Status infer(InferCtx *ctx)
{
    TRY(need_dtype(ctx->in[0], DTYPE_F32, "x"));
    ctx->out[0] = infer_like(ctx->in[0]);
    return OK;
}

static Status cut(CutCtx *ctx)
{
    if (ctx->axis != MESH_PP) { /* canonical: the summands are sums of all leaves (add_whole) */
        graph_cut_text(ctx, ctx->graph->canonical ? "* -> *" : "*~ -> *");
        return OK;
    }
    ctx->want[0] = (Place){PLACE_PARTIAL, 0};
    ctx->out[0] = (Place){PLACE_SAME, 0};
    return OK;
}

static Cost cost(const Graph *g, const Node *node)
{
    Cost cost = cost_streaming(g, node, 1);
    cost.wire_bytes = value_bytes(g, node->in[0]);
    cost_exchange(&cost, COMM_SEND, 1u << MESH_PP, cost.wire_bytes);
    return cost;
}

static void attr_text(const void *attribute, Str *out)
{
    str_printf(out, "rank %d", ((const JoinAttr *)attribute)->peer);
}

static Status prepare(KernelArgs *args)
{
    Comm *comm;
    TRY(args->ranks->group(args->ranks, 1u << MESH_PP, &comm));
    args->state = comm;
    return OK;
}

static void release(KernelArgs *args) { args->state = NULL; /* the group is the device's */ }

/* These two ranks exchange nothing else at this time; the tag is that of no channel
 * (pass/pipeline). */
static Status run(KernelArgs *args)
{
    const Tensor *x = &args->in[0], *y = &args->out[0];
    CommOp op = {.kind = COMM_SEND,
                 .dtype = DTYPE_F32,
                 .send = x->data,
                 .count = tensor_count(x),
                 .peer = ((const JoinAttr *)args->attr)->peer,
                 .tag = COMM_TAG_LIMIT - 1,
                 .node = args->node};
    CommRequest *sent;
    TRY(comm_start(args->state, &op, &sent));
    op.kind = COMM_RECV;
    op.send = NULL;
    op.recv = y->data;
    Status received = comm_run(args->state, &op), left = comm_wait(sent);
    TRY(received);
    TRY(left);
    const float *mine = x->data;
    float *sum = y->data;
    for (int64_t i = 0; i < tensor_count(x); i++) sum[i] += mine[i];
    return OK;
}

CUDA_DECLARE(join_stages);
static const Kernel kernel = {.run = run, .prepare = prepare, .release = release};

const OpDef op_def_join_stages = {
    .name = "join_stages",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .attr_bytes = sizeof(JoinAttr),
    .flags = OP_SOURCE | OP_COLLECTIVE,
    .infer = infer,
    .cut_rule = cut,
    .cost = cost,
    .attr_text = attr_text,
    .cpu = CPU_KERNEL_ANY(&kernel),
    .cuda = &cuda_join_stages,
};

Status op_join_stages(Graph *g, ValueId x, int peer, ValueId *y)
{
    JoinAttr attr = {.peer = peer};
    return graph_add(g, &op_def_join_stages, &attr, &x, 1, y);
}
