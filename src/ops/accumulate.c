/* accumulate: state += x; assign: state = x; clear: state = 0. In place on a state. */
#include "ops/kernel.h"
#include "ops/rules.h"

#include <string.h>

CPU_DECLARE(accumulate);
CPU_DECLARE(assign);
CUDA_DECLARE(accumulate);
CUDA_DECLARE(assign);
CUDA_DECLARE(clear);

/* x must lie as the state does. */
static Status cut_like_state(CutCtx *ctx)
{
    ctx->want[1] = ctx->out[0] = ctx->place[0];
    return OK;
}

static Status infer(InferCtx *ctx)
{
    TRY(need_dtype(ctx->in[0], DTYPE_F32, "state"));
    TRY(need_activation(ctx->in[1], "x"));
    TRY(need_shape(ctx->in[1], &ctx->in[0]->shape, "x"));
    ctx->out[0] = infer_like(ctx->in[0]);
    ctx->out[0].alias = 0;
    return OK;
}

static Cost cost(const Graph *g, const Node *node) { return cost_streaming(g, node, 1); }

const OpDef op_def_accumulate = {
    .name = "accumulate",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .flags = OP_SOURCE | OP_EFFECT,
    .strided_in = 2,
    .infer = infer,
    .cut_rule = cut_like_state,
    .cost = cost,
    .cpu = CPU_KERNELS(accumulate),
    .cuda = &cuda_accumulate,
};

Status op_accumulate(Graph *g, ValueId state, ValueId x, ValueId *sum)
{
    return graph_add(g, &op_def_accumulate, NULL, (ValueId[]){state, x}, 2, sum);
}

/* ---- assign ----------------------------------------------------------------------------- */

static Status infer_assign(InferCtx *ctx)
{
    const Value *to = ctx->in[0], *x = ctx->in[1];
    TRY(need_shape(x, &to->shape, "x"));
    if (to->dtype != DTYPE_I32) TRY(need_activation(to, "state"));
    if (to->dtype == DTYPE_I32)
        TRY(need_dtype(x, DTYPE_I32, "x"));
    else
        TRY(need_activation(x, "x"));
    ctx->out[0] = infer_like(to);
    ctx->out[0].alias = 0;
    return OK;
}

static Cost cost_assign(const Graph *g, const Node *node)
{
    return (Cost){.read_bytes = value_bytes(g, node->in[1]),
                  .write_bytes = value_bytes(g, node->in[0])};
}

const OpDef op_def_assign = {
    .name = "assign",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .flags = OP_SOURCE | OP_EFFECT,
    .strided_in = 2,
    .infer = infer_assign,
    .cut_rule = cut_like_state,
    .cost = cost_assign,
    .cpu = CPU_KERNELS(assign),
    .cuda = &cuda_assign,
};

Status op_assign(Graph *g, ValueId state, ValueId x)
{
    return graph_add(g, &op_def_assign, NULL, (ValueId[]){state, x}, 2, NULL);
}

/* ---- clear ------------------------------------------------------------------------------ */

static Status infer_clear(InferCtx *ctx)
{
    TRY(need_dtype(ctx->in[0], DTYPE_F32, "state"));
    ctx->out[0] = infer_like(ctx->in[0]);
    ctx->out[0].alias = 0;
    return OK;
}

static Status cut_anywhere(CutCtx *ctx)
{
    ctx->out[0] = ctx->place[0];
    return OK;
}

static Status run_clear(KernelArgs *args)
{
    memset(args->in[0].data, 0, tensor_bytes(&args->in[0]));
    return OK;
}

static const Kernel clear_kernel = {.run = run_clear};

static Cost cost_clear(const Graph *g, const Node *node)
{
    return (Cost){.write_bytes = value_bytes(g, node->in[0])};
}

const OpDef op_def_clear = {
    .name = "clear",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .flags = OP_SOURCE | OP_EFFECT,
    .infer = infer_clear,
    .cut_rule = cut_anywhere,
    .cost = cost_clear,
    .cpu = CPU_KERNEL_ANY(&clear_kernel),
    .cuda = &cuda_clear,
};

Status op_clear(Graph *g, ValueId state)
{
    return graph_add(g, &op_def_clear, NULL, &state, 1, NULL);
}
