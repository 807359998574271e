/* Rows of experts between ranks that share the experts' products by columns (tensor parallelism
 * inside experts). All of them want all rows, but on the way between tokens' and experts' ranks
 * (expert_exchange.c) each carries a part of the columns, so that every row is sent once.
 *
 *   expert_unite(part [R D/n], owned)   -> rows [R D]     all columns, for the experts' products
 *   expert_divide(rows [R D], owned)    -> part [R D/n]   this rank's columns of the ranks' sum
 *
 * Each is the other's gradient. Only rows that are there are sent, those in front of owned[E]; all
 * ranks have as many. On one rank both are copies. */
#include "ops/expert_attr.h"
#include "ops/kernel.h"
#include "ops/rules.h"

#include <stdlib.h>
#include <string.h>

/* ---- placements ------------------------------------------------------------------------- */

static const Place same = {PLACE_SAME, 0}, columns = {PLACE_CUT, 1}, summand = {PLACE_PARTIAL, 0};

/* Along other axes rows keep their place, and the offsets are those of the same rows. */
static Status cut_rows(CutCtx *c, Place in, Place out)
{
    bool along = c->axis != MESH_TP;
    if (!along) c->want[0] = in;
    c->want[1] = along && place_is_cut(c->want[0]) ? c->want[0] : same;
    c->out[0] = along ? c->want[0] : out;
    return OK;
}

static Status cut_unite(CutCtx *c) { return cut_rows(c, columns, same); }
static Status cut_divide(CutCtx *c) { return cut_rows(c, summand, columns); }

static Status cut_attr(const CutCtx *c, void *attribute)
{
    if (c->axis != MESH_TP) return OK;
    ColumnsAttr *attr = attribute;
    attr->n = c->n;
    attr->rank = c->rank;
    return OK;
}

/* ---- shapes ----------------------------------------------------------------------------- */

static Status check(const InferCtx *ctx)
{
    TRY(need_activation(ctx->in[0], "rows"));
    TRY(need_dtype(ctx->in[1], DTYPE_I32, "offsets"));
    return ctx->in[0]->shape.rank == 2 ? OK : fail(ERR_SHAPE, "rows must be [rows width]");
}

static Status infer_unite(InferCtx *ctx)
{
    TRY(check(ctx));
    ctx->out[0] = infer_like(ctx->in[0]);
    ctx->out[0].shape.dim[1] *= ((const ColumnsAttr *)ctx->attr)->n;
    return OK;
}

static Status infer_divide(InferCtx *ctx)
{
    int n = ((const ColumnsAttr *)ctx->attr)->n;
    TRY(check(ctx));
    if (ctx->in[0]->shape.dim[1] % n)
        return fail(ERR_SHAPE, "rows of %lld columns cannot be cut into %d equal parts",
                    (long long)ctx->in[0]->shape.dim[1], n);
    ctx->out[0] = infer_like(ctx->in[0]);
    ctx->out[0].shape.dim[1] /= n;
    return OK;
}

static Status grad_unite(GradCtx *ctx)
{
    return op_expert_divide(ctx->graph, ctx->dout[0], graph_node(ctx->graph, ctx->node)->in[1],
                            &ctx->din[0]);
}

static Status grad_divide(GradCtx *ctx)
{
    return op_expert_unite(ctx->graph, ctx->dout[0], graph_node(ctx->graph, ctx->node)->in[1],
                           &ctx->din[0]);
}

/* The buffer has room for the rows of all owners of experts; on average as many come as one of them
 * has. `whole`: all columns. */
static Cost cost_of(const Graph *g, const Node *node, ValueId whole, CommKind kind)
{
    int n = ((const ColumnsAttr *)node->attr)->n;
    double bytes = value_bytes(g, whole) / expert_room(g, graph_value(g, node->in[0]));
    Cost cost = {.read_bytes = bytes + bytes / n,
                 .write_bytes = bytes + bytes / n,
                 .wire_bytes = bytes * (n - 1) / n};
    if (n > 1) cost_exchange(&cost, kind, 1u << MESH_TP, bytes);
    return cost;
}

static Cost cost_unite(const Graph *g, const Node *node)
{
    return cost_of(g, node, node->out[0], COMM_ALL_GATHER);
}

static Cost cost_divide(const Graph *g, const Node *node)
{
    return cost_of(g, node, node->in[0], COMM_REDUCE_SCATTER);
}

static void attr_text(const void *attribute, Str *out)
{
    const ColumnsAttr *attr = attribute;
    str_printf(out, "tp %d of %d", attr->rank, attr->n);
}

/* ---- kernels ---------------------------------------------------------------------------- */

static Status prepare(KernelArgs *args)
{
    Comm *group = NULL;
    if (((const ColumnsAttr *)args->attr)->n > 1)
        TRY(args->ranks->group(args->ranks, 1u << MESH_TP, &group));
    args->state = group; /* the ranks' own */
    return OK;
}

/* Rows that are there, and the bytes of a rank's part of one. */
typedef struct Parts {
    int64_t rows;
    size_t bytes;
} Parts;

static Parts parts_of(const KernelArgs *args, const Tensor *part)
{
    const int32_t *offset = args->in[1].data;
    return (Parts){offset[tensor_count(&args->in[1]) - 1],
                   (size_t)part->shape.dim[1] * dtype_bytes(part->dtype)};
}

/* Between whole rows and the ranks' parts, one rank's behind the other's. */
static void reorder(const Parts *p, int n, char *whole, char *by_rank, bool uniting)
{
    for (int64_t r = 0; r < p->rows; r++)
        for (int k = 0; k < n; k++) {
            char *there = whole + (size_t)(r * n + k) * p->bytes,
                 *here = by_rank + (size_t)(k * p->rows + r) * p->bytes;
            if (uniting)
                memcpy(there, here, p->bytes);
            else
                memcpy(here, there, p->bytes);
        }
}

static CommOp exchange_of(const KernelArgs *args, const Parts *p, CommKind kind)
{
    DType dtype = args->in[0].dtype;
    return (CommOp){.kind = kind,
                    .dtype = dtype,
                    .count = p->rows * (int64_t)(p->bytes / dtype_bytes(dtype)),
                    .node = args->node};
}

static Status run_unite(KernelArgs *args)
{
    int n = ((const ColumnsAttr *)args->attr)->n;
    Parts p = parts_of(args, &args->in[0]);
    if (n == 1) memcpy(args->out[0].data, args->in[0].data, (size_t)p.rows * p.bytes);
    if (n == 1 || p.rows == 0) return OK;
    CommOp op = exchange_of(args, &p, COMM_ALL_GATHER);
    op.send = args->in[0].data;
    op.recv = args->workspace;
    TRY(comm_run(args->state, &op));
    reorder(&p, n, args->out[0].data, args->workspace, true);
    return OK;
}

static Status run_divide(KernelArgs *args)
{
    int n = ((const ColumnsAttr *)args->attr)->n;
    Parts p = parts_of(args, &args->out[0]);
    if (n == 1) memcpy(args->out[0].data, args->in[0].data, (size_t)p.rows * p.bytes);
    if (n == 1 || p.rows == 0) return OK;
    reorder(&p, n, args->in[0].data, args->workspace, false);
    CommOp op = exchange_of(args, &p, COMM_REDUCE_SCATTER);
    op.send = args->workspace;
    op.recv = args->out[0].data;
    return comm_run(args->state, &op);
}

/* All ranks' parts. */
static size_t gpu_workspace(const Graph *graph, const Node *node)
{
    if (((const ColumnsAttr *)node->attr)->n == 1) return 0;
    double in = value_bytes(graph, node->in[0]), out = value_bytes(graph, node->out[0]);
    return (size_t)(in > out ? in : out);
}

static size_t workspace(const Graph *graph, const Node *node, const Target *target)
{
    (void)target;
    return gpu_workspace(graph, node);
}

static const Kernel unite_kernel = {.run = run_unite, .prepare = prepare, .workspace = workspace},
                    divide_kernel = {.run = run_divide, .prepare = prepare, .workspace = workspace};

CUDA_DECLARE(expert_unite);
CUDA_DECLARE(expert_divide);

#define COLUMNS(op)                                                                                \
    const OpDef op_def_expert_##op = {.name = "expert_" #op,                                       \
                                      .min_in = 2,                                                 \
                                      .max_in = 2,                                                 \
                                      .n_out = 1,                                                  \
                                      .attr_bytes = sizeof(ColumnsAttr),                           \
                                      .flags = OP_COLLECTIVE,                                      \
                                      .infer = infer_##op,                                         \
                                      .cut_rule = cut_##op,                                        \
                                      .cut_attr = cut_attr,                                        \
                                      .grad = grad_##op,                                           \
                                      .cost = cost_##op,                                           \
                                      .attr_text = attr_text,                                      \
                                      .cpu = CPU_KERNEL_ANY(&op##_kernel),                         \
                                      .cuda = &cuda_expert_##op,                                   \
                                      .gpu_workspace = gpu_workspace}
COLUMNS(unite);
COLUMNS(divide);

/* ---- builders --------------------------------------------------------------------------- */

Status op_expert_unite(Graph *g, ValueId part, ValueId owned, ValueId *rows)
{
    ColumnsAttr attr = {.n = 1};
    return graph_add(g, &op_def_expert_unite, &attr, (ValueId[]){part, owned}, 2, rows);
}

Status op_expert_divide(Graph *g, ValueId rows, ValueId owned, ValueId *part)
{
    ColumnsAttr attr = {.n = 1};
    return graph_add(g, &op_def_expert_divide, &attr, (ValueId[]){rows, owned}, 2, part);
}
