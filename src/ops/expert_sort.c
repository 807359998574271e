/* expert_sort: where each (token, choice) pair goes when pairs are grouped by expert, in token
 * order; each group starts at a multiple of EXPERT_ROW_ALIGN. A counting sort of small integers,
 * one thread: a few microseconds. */
#include "ops/expert_sort.h"
#include "ops/kernel.h"
#include "ops/rules.h"

#include <string.h>

CUDA_DECLARE(expert_sort);

static Status infer(InferCtx *ctx)
{
    const Value *choice = ctx->in[0];
    int64_t experts = *(const int64_t *)ctx->attr, pairs = shape_count(&choice->shape), rows;
    TRY(need_dtype(choice, DTYPE_I32, "choice"));
    if (choice->shape.rank < 1) return fail(ERR_SHAPE, "choice must be [... topk]");
    if (experts < 1 || experts > INT32_MAX / EXPERT_ROW_ALIGN)
        return fail(ERR_ARG, "%lld experts are not possible", (long long)experts);
    if (__builtin_add_overflow(pairs, experts * EXPERT_ROW_ALIGN, &rows) || rows > INT32_MAX)
        return fail(ERR_SHAPE, "more rows than i32 can count");
    ctx->out[0] = infer_out(DTYPE_I32, shape_make(1, (int64_t[]){experts + 1}, (Axis[]){AXIS_ANY}));
    ctx->out[1] = infer_out(DTYPE_I32, shape_make(1, (int64_t[]){rows}, (Axis[]){AXIS_ROWS}));
    ctx->out[2] = infer_out(DTYPE_I32, choice->shape);
    ctx->out[3] = infer_out(DTYPE_F32, shape_make(1, (int64_t[]){experts}, (Axis[]){AXIS_EXPERTS}));
    return OK;
}

/* next, in the workspace: pairs so far, then the next free row of each expert */
static Status run(KernelArgs *args)
{
    int64_t experts = *(const int64_t *)args->attr, pairs = tensor_count(&args->in[0]);
    const int32_t *choice = args->in[0].data;
    int32_t *offsets = args->out[0].data, *source = args->out[1].data, *place = args->out[2].data;
    int32_t *next = args->workspace, start = 0;
    float *load = args->out[3].data;
    memset(next, 0, (size_t)experts * sizeof *next);
    for (int64_t i = 0; i < pairs; i++) {
        if (choice[i] < 0 || choice[i] >= experts)
            return fail(ERR_ARG, "expert_sort: choice %lld is expert %d of %lld", (long long)i,
                        (int)choice[i], (long long)experts);
        next[choice[i]]++;
    }
    for (int64_t e = 0; e < experts; e++) {
        int32_t count = next[e];
        if (load) load[e] = (float)count;
        offsets[e] = next[e] = start;
        start += (count + EXPERT_ROW_ALIGN - 1) / EXPERT_ROW_ALIGN * EXPERT_ROW_ALIGN;
    }
    offsets[experts] = start;
    memset(source, 0xff, tensor_bytes(&args->out[1])); /* -1 */
    for (int64_t i = 0; i < pairs; i++) {
        int32_t row = next[choice[i]]++;
        source[row] = (int32_t)i;
        if (place) place[i] = row;
    }
    return OK;
}

static size_t workspace(const Graph *graph, const Node *node, const Target *target)
{
    (void)graph;
    (void)target;
    return (size_t) * (const int64_t *)node->attr * sizeof(int32_t);
}

static const Kernel kernel = {.run = run, .workspace = workspace};

/* The pairs of each expert, in each run and in all. */
static size_t gpu_workspace(const Graph *graph, const Node *node)
{
    int64_t runs = gpu_sort_runs(shape_count(&graph_value(graph, node->in[0])->shape));
    return (size_t)((runs + 1) * *(const int64_t *)node->attr) * sizeof(int32_t);
}

static Cost cost(const Graph *g, const Node *node) { return cost_streaming(g, node, 0); }

static void attr_text(const void *attr, Str *out)
{
    str_printf(out, "experts %lld", (long long)*(const int64_t *)attr);
}

const OpDef op_def_expert_sort = {
    .name = "expert_sort",
    .min_in = 1,
    .max_in = 1,
    .n_out = 4,
    .attr_bytes = sizeof(int64_t),
    .flags = OP_SOURCE,
    .infer = infer,
    .cut = "&k! -> R R &k! e!",
    .cost = cost,
    .attr_text = attr_text,
    .cpu = CPU_KERNEL_ANY(&kernel),
    .cuda = &cuda_expert_sort,
    .gpu_workspace = gpu_workspace,
};

Status op_expert_sort(Graph *g, ValueId choice, int64_t n_experts, ValueId *offsets,
                      ValueId *source, ValueId *place, ValueId *load)
{
    ValueId out[4];
    TRY(graph_add(g, &op_def_expert_sort, &n_experts, &choice, 1, out));
    *offsets = out[0];
    *source = out[1];
    *place = out[2];
    *load = out[3];
    return OK;
}
