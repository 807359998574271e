/* The length of all gradients as one vector: grad_norm of those here, then join_norms, before which
 * the norms of ranks that hold other parts are gathered; clip_factor: what brings it down to the
 * limit. */
#include "ops/exact_sum.h"
#include "ops/grad_norm.h"
#include "ops/kernel.h"
#include "ops/rules.h"

#include <math.h>
#include <string.h>

CPU_DECLARE(grad_norm);
CUDA_DECLARE(grad_norm);
CUDA_DECLARE(join_norms);
CUDA_DECLARE(clip_factor);

/* ---- grad_norm(gradients...) -> [1], or the digits of an exact sum of squares ----------- */

static int64_t words_of(const GradNormAttr *attr) { return attr->exact ? EXACT_WORDS : 1; }
static DType dtype_of(const GradNormAttr *attr) { return attr->exact ? DTYPE_I32 : DTYPE_F32; }

static Status infer(InferCtx *ctx)
{
    for (int i = 0; i < ctx->n_in; i++) TRY(need_activation(ctx->in[i], "a gradient"));
    ctx->out[0] = infer_out(dtype_of(ctx->attr),
                            shape_make(1, (int64_t[]){words_of(ctx->attr)}, (Axis[]){AXIS_ANY}));
    return OK;
}

static Cost cost(const Graph *g, const Node *node)
{
    Cost cost = cost_streaming(g, node, 0);
    for (int i = 0; i < node->n_in; i++) cost.flop += 2 * value_count(g, node->in[i]);
    return cost;
}

/* With cut gradients each rank has a norm of its own; those that all ranks hold are counted on the
 * first. */
static Status cut_rule(CutCtx *ctx)
{
    const GradNormAttr *attr = ctx->attr;
    bool any = attr->cut_axes >> ctx->axis & 1;
    for (int i = 0; i < ctx->n_in; i++) {
        if (place_is_cut(ctx->place[i])) any = true;
        if (ctx->place[i].kind == PLACE_PARTIAL) ctx->want[i] = (Place){PLACE_SAME, 0};
    }
    if (any) ctx->out[0] = (Place){PLACE_CUT, 0};
    for (int i = 0; any && ctx->drop && i < ctx->n_in; i++)
        ctx->drop[i] = !place_is_cut(ctx->want[i]) && ctx->rank > 0;
    return OK;
}

static Status cut_attr(const CutCtx *ctx, void *attribute)
{
    GradNormAttr *attr = attribute;
    if (place_is_cut(ctx->out[0])) attr->cut_axes |= 1u << ctx->axis;
    return OK;
}

/* Of each block its sum, or the words of its exact sum, 8 bytes each. */
static size_t gpu_workspace(const Graph *g, const Node *node)
{
    int64_t blocks = 0;
    for (int k = 0; k < node->n_in; k++)
        blocks += gpu_norm_blocks(shape_count(&graph_value(g, node->in[k])->shape));
    return (size_t)(blocks * words_of(node->attr)) * sizeof(int64_t);
}

const OpDef op_def_grad_norm = {
    .name = "grad_norm",
    .min_in = 0,
    .max_in = -1,
    .n_out = 1,
    .attr_bytes = sizeof(GradNormAttr),
    .flags = OP_SOURCE,
    .infer = infer,
    .cost = cost,
    .cut_rule = cut_rule,
    .cut_attr = cut_attr,
    .cpu = CPU_KERNELS(grad_norm),
    .cuda = &cuda_grad_norm,
    .gpu_workspace = gpu_workspace,
};

/* ---- join_norms(x): of all ranks that hold other parts of the gradients ----------------- */

static Status infer_join(InferCtx *ctx)
{
    TRY(need_vector(ctx->in[0], words_of(ctx->attr), dtype_of(ctx->attr), "x"));
    ctx->out[0] = infer_out(DTYPE_F32, shape_make(0, NULL, NULL));
    return OK;
}

static Status cut_join(CutCtx *ctx)
{
    const GradNormAttr *attr = ctx->attr;
    bool cut = ctx->localized ? attr->cut_axes >> ctx->axis & 1 : place_is_cut(ctx->place[0]);
    ctx->want[0] = (Place){cut ? PLACE_CUT : PLACE_SAME, 0};
    return OK; /* the result is the same everywhere */
}

static Status cut_join_attr(const CutCtx *ctx, void *attribute)
{
    if (place_is_cut(ctx->want[0])) ((GradNormAttr *)attribute)->cut_axes |= 1u << ctx->axis;
    return OK;
}

static Status prepare_join(KernelArgs *args)
{
    const GradNormAttr *attr = args->attr;
    Comm *comm;
    if (!attr->cut_axes) return OK;
    TRY(args->ranks->group(args->ranks, attr->cut_axes, &comm));
    args->state = comm;
    CHECK((size_t)(comm_size(comm) * words_of(attr)) * sizeof(float) <= args->workspace_bytes);
    return OK;
}

static void release_join(KernelArgs *args) { args->state = NULL; /* the group is the device's */ }

/* Squares of norms can be beyond f32: they are double. */
static double join_rounded(const float *x, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    return sqrt(sum);
}

static double join_exact(const int32_t *words, int n)
{
    ExactSum sum = {0};
    for (int i = 0; i < n; i++) {
        ExactSum one = exact_read(words + i * EXACT_WORDS);
        exact_add(&sum, &one);
    }
    return sqrt(exact_value(&sum));
}

static Status run_join(KernelArgs *args)
{
    const GradNormAttr *attr = args->attr;
    const void *x = args->in[0].data;
    int n = 1;
    if (args->state) {
        n = comm_size(args->state);
        TRY(comm_run(args->state, &(CommOp){.kind = COMM_ALL_GATHER,
                                            .dtype = dtype_of(attr),
                                            .send = x,
                                            .recv = args->workspace,
                                            .count = words_of(attr),
                                            .node = args->node}));
        x = args->workspace;
    }
    *(float *)args->out[0].data = (float)(attr->exact ? join_exact(x, n) : join_rounded(x, n));
    return OK;
}

static size_t workspace_join(const Graph *graph, const Node *node, const Target *target)
{
    (void)target;
    size_t n = 1;
    for (int a = 0; a < MESH_AXES; a++)
        if (((const GradNormAttr *)node->attr)->cut_axes >> a & 1)
            n *= (size_t)mesh_size(&graph->mesh, (MeshAxis)a);
    return n > 1 ? n * (size_t)words_of(node->attr) * sizeof(float) : 0;
}

static size_t gpu_workspace_join(const Graph *g, const Node *node)
{
    return workspace_join(g, node, NULL);
}

static const Kernel join_kernel = {
    .run = run_join, .prepare = prepare_join, .release = release_join, .workspace = workspace_join};

static Cost cost_join(const Graph *g, const Node *node)
{
    Cost cost = cost_streaming(g, node, 2);
    size_t bytes = workspace_join(g, node, NULL);
    cost.wire_bytes = bytes ? (double)bytes - value_bytes(g, node->in[0]) : 0;
    if (bytes)
        cost_exchange(&cost, COMM_ALL_GATHER, ((const GradNormAttr *)node->attr)->cut_axes,
                      (double)bytes);
    return cost;
}

const OpDef op_def_join_norms = {
    .name = "join_norms",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .attr_bytes = sizeof(GradNormAttr),
    .flags = OP_SOURCE | OP_COLLECTIVE,
    .infer = infer_join,
    .cut_rule = cut_join,
    .cut_attr = cut_join_attr,
    .cost = cost_join,
    .cpu = CPU_KERNEL_ANY(&join_kernel),
    .cuda = &cuda_join_norms,
    .gpu_workspace = gpu_workspace_join,
};

Status op_grad_norm(Graph *g, int n, const ValueId *grads, ValueId *norm)
{
    ValueId here;
    GradNormAttr attr;
    memset(&attr, 0, sizeof attr); /* padding too: attributes are compared by their bytes */
    attr.exact = g->canonical;
    TRY(graph_add(g, &op_def_grad_norm, &attr, grads, n, &here));
    return graph_add(g, &op_def_join_norms, &attr, &here, 1, norm);
}

/* ---- clip_factor(norm, hyper) ----------------------------------------------------------- */

static Status infer_clip(InferCtx *ctx)
{
    TRY(need_scalar(ctx->in[0], "norm"));
    TRY(need_vector(ctx->in[1], HYPER_COUNT, DTYPE_F32, "hyper"));
    ctx->out[0] = infer_out(DTYPE_F32, shape_make(0, NULL, NULL));
    return OK;
}

/* A norm that is no number gives a factor that is none: adamw then leaves everything as it is. */
static Status run_clip(KernelArgs *args)
{
    float norm = *(const float *)args->in[0].data,
          clip = ((const float *)args->in[1].data)[HYPER_CLIP];
    float *factor = args->out[0].data;
    if (!isfinite(norm))
        *factor = NAN;
    else
        *factor = clip > 0 && norm > clip ? clip / norm : 1;
    return OK;
}

static const Kernel clip_kernel = {.run = run_clip};

static Cost cost_clip(const Graph *g, const Node *node) { return cost_streaming(g, node, 1); }

const OpDef op_def_clip_factor = {
    .name = "clip_factor",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .flags = OP_SOURCE,
    .infer = infer_clip,
    .cost = cost_clip,
    .cpu = CPU_KERNEL_ANY(&clip_kernel),
    .cuda = &cuda_clip_factor,
};

Status op_clip_factor(Graph *g, ValueId norm, ValueId hyper, ValueId *factor)
{
    return graph_add(g, &op_def_clip_factor, NULL, (ValueId[]){norm, hyper}, 2, factor);
}
