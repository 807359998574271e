/* Experts that are shared out, whole, over ranks which hold the same rows (expert parallelism
 * folded over the tensor axis: Liu 2025, "MoE Parallel Folding"). Nothing is sent for it: a rank
 * takes the rows of its experts, and what it makes of them is a summand of the whole.
 *
 *   expert_share(offsets [E+1])   -> owned [E/n + 1]   where the rows of this rank's experts will
 *                                 lie
 *   expert_pick(rows, offsets)    -> the rows of this rank's experts, from the buffer's begin on
 *   expert_put(rows, offsets)     -> back where they were; zeros where other ranks' experts have
 *                                 rows
 *
 * pick and put are each other's gradients. Nothing is dropped: the buffer has room for all rows. On
 * one rank all three are copies. */
#include "ops/expert_attr.h"
#include "ops/kernel.h"
#include "ops/rules.h"

#include <string.h>

CUDA_DECLARE(expert_share);
CUDA_DECLARE(expert_pick);
CUDA_DECLARE(expert_put);

/* ---- placements ------------------------------------------------------------------------- */

static const Place same = {PLACE_SAME, 0}, of_tokens = {PLACE_CUT, 0}, of_owners = {PLACE_OWNED, 0};

static Status cut_share(CutCtx *c)
{
    if (c->axis == MESH_TP) c->want[0] = same;
    c->out[0] = c->axis == MESH_TP ? of_owners : c->want[0];
    return OK;
}

/* Along other axes rows keep their place, and offsets are those of the same tokens. */
static void cut_along(CutCtx *c)
{
    c->out[0] = c->want[0];
    c->want[1] = place_equal(c->want[0], of_tokens) ? of_tokens : same;
}

static Status cut_pick(CutCtx *c)
{
    cut_along(c);
    if (c->axis != MESH_TP) return OK;
    c->want[0] = c->want[1] = same;
    c->out[0] = of_owners;
    return OK;
}

static Status cut_put(CutCtx *c)
{
    cut_along(c);
    if (c->axis != MESH_TP) return OK;
    c->want[0] = of_owners;
    c->want[1] = same;
    c->out[0] = (Place){PLACE_PARTIAL, 0};
    return OK;
}

static Status cut_attr(const CutCtx *c, void *attribute)
{
    if (c->axis != MESH_TP) return OK;
    FoldAttr *attr = attribute;
    attr->n = c->n;
    attr->rank = c->rank;
    return OK;
}

/* ---- shapes ----------------------------------------------------------------------------- */

static Status infer_share(InferCtx *ctx)
{
    const FoldAttr *attr = ctx->attr;
    TRY(need_dtype(ctx->in[0], DTYPE_I32, "offsets"));
    int64_t experts = shape_count(&ctx->in[0]->shape) - 1;
    if (experts < 1 || experts % attr->n)
        return fail(ERR_REFUSED,
                    "parallel.fold_experts: %lld experts cannot be shared evenly by %d ranks of "
                    "parallel.tp; leave it out",
                    (long long)experts, attr->n);
    Shape owned = shape_make(1, (int64_t[]){experts / attr->n + 1}, (Axis[]){AXIS_ANY});
    ctx->out[0] = infer_out(DTYPE_I32, owned);
    return OK;
}

static Status infer_rows(InferCtx *ctx)
{
    TRY(need_activation(ctx->in[0], "rows"));
    TRY(need_dtype(ctx->in[1], DTYPE_I32, "offsets"));
    if (ctx->in[0]->shape.rank != 2) return fail(ERR_SHAPE, "rows must be [rows width]");
    ctx->out[0] = infer_like(ctx->in[0]);
    return OK;
}

static Status grad_pick(GradCtx *ctx)
{
    const Node *node = graph_node(ctx->graph, ctx->node);
    ValueId in[] = {ctx->dout[0], node->in[1]};
    return graph_add(ctx->graph, op_find("expert_put"), node->attr, in, 2, &ctx->din[0]);
}

static Status grad_put(GradCtx *ctx)
{
    const Node *node = graph_node(ctx->graph, ctx->node);
    ValueId in[] = {ctx->dout[0], node->in[1]};
    return graph_add(ctx->graph, op_find("expert_pick"), node->attr, in, 2, &ctx->din[0]);
}

static Cost cost_share(const Graph *g, const Node *node) { return cost_streaming(g, node, 0); }

/* A rank's experts have an n-th of the rows on average. */
static Cost cost_pick(const Graph *g, const Node *node)
{
    double bytes = value_bytes(g, node->in[0]) / ((const FoldAttr *)node->attr)->n;
    return (Cost){.read_bytes = bytes, .write_bytes = bytes};
}

static Cost cost_put(const Graph *g, const Node *node)
{
    Cost cost = cost_pick(g, node);
    cost.write_bytes = value_bytes(g, node->out[0]);
    return cost;
}

static void attr_text(const void *attribute, Str *out)
{
    const FoldAttr *attr = attribute;
    str_printf(out, "tp %d of %d", attr->rank, attr->n);
}

/* ---- kernels ---------------------------------------------------------------------------- */

static Status run_share(KernelArgs *args)
{
    const FoldAttr *attr = args->attr;
    int64_t each = (tensor_count(&args->in[0]) - 1) / attr->n;
    const int32_t *offset = (const int32_t *)args->in[0].data + attr->rank * each;
    int32_t *owned = args->out[0].data;
    for (int64_t e = 0; e <= each; e++) owned[e] = offset[e] - offset[0];
    return OK;
}

/* The rows of this rank's experts among all: bytes from the buffer's begin. */
typedef struct Stretch {
    size_t begin, end;
} Stretch;

static Stretch own_rows(const KernelArgs *args)
{
    const FoldAttr *attr = args->attr;
    int64_t each = (tensor_count(&args->in[1]) - 1) / attr->n;
    const int32_t *offset = (const int32_t *)args->in[1].data + attr->rank * each;
    size_t row_bytes = (size_t)args->in[0].shape.dim[1] * dtype_bytes(args->in[0].dtype);
    return (Stretch){(size_t)offset[0] * row_bytes, (size_t)offset[each] * row_bytes};
}

static Status run_pick(KernelArgs *args)
{
    Stretch own = own_rows(args);
    memcpy(args->out[0].data, (const char *)args->in[0].data + own.begin, own.end - own.begin);
    return OK;
}

/* Rows behind the last expert's are nobody's and stay as they are. */
static Status run_put(KernelArgs *args)
{
    const int32_t *offset = args->in[1].data;
    Stretch own = own_rows(args);
    size_t row_bytes = (size_t)args->in[0].shape.dim[1] * dtype_bytes(args->in[0].dtype);
    size_t all = (size_t)offset[tensor_count(&args->in[1]) - 1] * row_bytes;
    char *out = args->out[0].data;
    memset(out, 0, own.begin);
    memcpy(out + own.begin, args->in[0].data, own.end - own.begin);
    memset(out + own.end, 0, all - own.end);
    return OK;
}

static const Kernel share_kernel = {.run = run_share}, pick_kernel = {.run = run_pick},
                    put_kernel = {.run = run_put};

const OpDef op_def_expert_share = {
    .name = "expert_share",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .attr_bytes = sizeof(FoldAttr),
    .flags = OP_SOURCE,
    .infer = infer_share,
    .cut_rule = cut_share,
    .cut_attr = cut_attr,
    .cost = cost_share,
    .attr_text = attr_text,
    .cpu = CPU_KERNEL_ANY(&share_kernel),
    .cuda = &cuda_expert_share,
};

const OpDef op_def_expert_pick = {
    .name = "expert_pick",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .attr_bytes = sizeof(FoldAttr),
    .infer = infer_rows,
    .cut_rule = cut_pick,
    .cut_attr = cut_attr,
    .grad = grad_pick,
    .cost = cost_pick,
    .attr_text = attr_text,
    .cpu = CPU_KERNEL_ANY(&pick_kernel),
    .cuda = &cuda_expert_pick,
};

const OpDef op_def_expert_put = {
    .name = "expert_put",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .attr_bytes = sizeof(FoldAttr),
    .infer = infer_rows,
    .cut_rule = cut_put,
    .cut_attr = cut_attr,
    .grad = grad_put,
    .cost = cost_put,
    .attr_text = attr_text,
    .cpu = CPU_KERNEL_ANY(&put_kernel),
    .cuda = &cuda_expert_put,
};

/* ---- builders --------------------------------------------------------------------------- */

Status op_expert_share(Graph *g, ValueId offsets, ValueId *owned)
{
    FoldAttr attr = {.n = 1};
    return graph_add(g, &op_def_expert_share, &attr, &offsets, 1, owned);
}

Status op_expert_pick(Graph *g, ValueId rows, ValueId offsets, ValueId *own)
{
    FoldAttr attr = {.n = 1};
    return graph_add(g, &op_def_expert_pick, &attr, (ValueId[]){rows, offsets}, 2, own);
}

Status op_expert_put(Graph *g, ValueId own, ValueId offsets, ValueId *rows)
{
    FoldAttr attr = {.n = 1};
    return graph_add(g, &op_def_expert_put, &attr, (ValueId[]){own, offsets}, 2, rows);
}
