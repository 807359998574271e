/* expert_bias_update: balances experts without a loss. bias += delta - mean(delta), with
 * delta = rate * sign(mean(load) - load). */
#include "ops/kernel.h"
#include "ops/rules.h"

CUDA_DECLARE(expert_bias_update);

static Status infer(InferCtx *ctx)
{
    int64_t n = shape_count(&ctx->in[0]->shape);
    TRY(need_vector(ctx->in[0], n, DTYPE_F32, "bias"));
    TRY(need_vector(ctx->in[1], n, DTYPE_F32, "load"));
    TRY(need_vector(ctx->in[2], HYPER_COUNT, DTYPE_F32, "hyper"));
    ctx->out[0] = infer_like(ctx->in[0]);
    ctx->out[0].alias = 0;
    return OK;
}

/* -1, 0 or 1 */
static int direction(double mean, float load)
{
    return (mean > (double)load) - (mean < (double)load);
}

static Status run(KernelArgs *args)
{
    float *bias = args->in[0].data, *load = args->in[1].data;
    double rate = (double)((const float *)args->in[2].data)[HYPER_BIAS_RATE], mean = 0,
           mean_direction = 0;
    int64_t n = tensor_count(&args->in[0]);
    for (int64_t i = 0; i < n; i++)
        mean += (double)load[i]; /* whole numbers: exact before the division */
    mean /= (double)n;
    for (int64_t i = 0; i < n; i++) mean_direction += (double)direction(mean, load[i]) / (double)n;
    for (int64_t i = 0; i < n; i++)
        bias[i] += (float)(rate * ((double)direction(mean, load[i]) - mean_direction));
    return OK;
}

static const Kernel kernel = {.run = run};

static Cost cost(const Graph *g, const Node *node) { return cost_streaming(g, node, 6); }

const OpDef op_def_expert_bias_update = {
    .name = "expert_bias_update",
    .min_in = 3,
    .max_in = 3,
    .n_out = 1,
    .flags = OP_SOURCE | OP_EFFECT,
    .infer = infer,
    .cost = cost,
    .cpu = CPU_KERNEL_ANY(&kernel),
    .cuda = &cuda_expert_bias_update,
};

Status op_expert_bias_update(Graph *g, ValueId bias, ValueId load, ValueId hyper)
{
    return graph_add(g, &op_def_expert_bias_update, NULL, (ValueId[]){bias, load, hyper}, 3, NULL);
}
