/* vocab_loss and its gradient on the cuda device. */
#include "ops/vocab_loss.cuh"

/* in: stats, targets, weights */
static LossTokens tokens_of(const KernelArgs *args)
{
    LossTokens l = {};
    l.stats = (const float *)args->in[0].data;
    l.parts = args->in[0].shape.dim[0];
    l.tokens = tensor_count(&args->in[1]);
    l.targets = (const int32_t *)args->in[1].data;
    l.words = INT32_MAX;
    l.weights = (const float *)args->in[2].data;
    l.z_loss = *(const float *)args->attr;
    return l;
}

static Status run(KernelArgs *args)
{
    LossTokens l = tokens_of(args);
    return gpu_loss(args->stream, &l, (double *)args->workspace, (float *)args->out[0].data,
                    (float *)args->out[1].data);
}

static Status run_grad(KernelArgs *args)
{
    LossTokens l = tokens_of(args);
    return gpu_loss_factors(args->stream, &l, (const float *)args->in[3].data,
                            (float *)args->out[0].data);
}

CUDA_KERNEL(vocab_loss) = {.run = run};
CUDA_KERNEL(vocab_loss_grad) = {.run = run_grad};
