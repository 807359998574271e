/* Rows of experts to the ranks that own the experts, and back (expert parallelism).
 *
 *   expert_plan(offsets [E+1])      -> table [n (E+1)], owned [E/n + 1]   everybody's offsets;
 *                                   where the rows of this
 *                                                                         rank's experts will lie;
 *                                                                         in a canonical graph
 *                                                                         owned [E+1]: where each
 *                                                                         rank's rows of each do
 *   expert_dispatch(rows, table)    -> rows of this rank's experts, of all ranks: for each expert
 *                                   the ranks' rows in
 *                                      the order of ranks
 *   expert_collect(rows, table)     -> back to where they came from
 *
 * Each of the last two is the other's gradient. An expert's rows on a rank begin at a multiple of
 * EXPERT_ROW_ALIGN and are padded to one, so what arrives is aligned as well. Nothing is dropped:
 * the buffer has room for all rows of all ranks. On one rank all three are copies. */
#include "ops/expert_table.h"
#include "ops/kernel.h"
#include "ops/rules.h"

#include <stdlib.h>
#include <string.h>

CUDA_DECLARE(expert_plan);
CUDA_DECLARE(expert_dispatch);
CUDA_DECLARE(expert_collect);

/* ---- placements ------------------------------------------------------------------------- */

static const Place same = {PLACE_SAME, 0}, of_tokens = {PLACE_CUT, 0}, of_owners = {PLACE_OWNED, 0};

static Status cut_plan(CutCtx *c)
{
    bool exchanged = c->axis == MESH_EP && c->n > 1;
    if (exchanged) c->want[0] = of_tokens;
    c->out[0] = exchanged ? same : c->want[0];
    c->out[1] = exchanged ? of_owners : c->want[0];
    return OK;
}

/* Along other axes rows keep their place, and the table is that of the same tokens or, where
 * experts are shared out along that axis too (expert_fold.c), of the same owners. */
static void cut_along(CutCtx *c)
{
    if (c->axis == MESH_TP && ((const ExchangeAttr *)c->attr)->columns)
        c->want[0] = (Place){PLACE_CUT, 1};
    bool cut = place_equal(c->want[0], of_tokens) || place_equal(c->want[0], of_owners);
    c->out[0] = c->want[0];
    c->want[1] = cut ? c->want[0] : same;
}

static Status cut_dispatch(CutCtx *c)
{
    cut_along(c);
    if (c->axis != MESH_EP) return OK;
    c->want[0] = of_tokens;
    c->want[1] = same;
    c->out[0] = of_owners;
    return OK;
}

static Status cut_collect(CutCtx *c)
{
    cut_along(c);
    if (c->axis != MESH_EP) return OK;
    c->want[0] = of_owners;
    c->want[1] = same;
    c->out[0] = of_tokens;
    return OK;
}

static Status cut_attr(const CutCtx *c, void *attribute)
{
    if (c->axis != MESH_EP) return OK;
    ExchangeAttr *attr = attribute;
    attr->n = c->n;
    attr->rank = c->rank;
    return OK;
}

/* ---- shapes ----------------------------------------------------------------------------- */

static Status infer_plan(InferCtx *ctx)
{
    const ExchangeAttr *attr = ctx->attr;
    TRY(need_dtype(ctx->in[0], DTYPE_I32, "offsets"));
    int64_t experts = shape_count(&ctx->in[0]->shape) - 1;
    if (experts < 1 || experts % attr->n)
        return fail(ERR_REFUSED, "%lld experts cannot be shared evenly by %d ranks for parallel.ep",
                    (long long)experts, attr->n);
    ctx->out[0] = infer_out(
        DTYPE_I32, shape_make(1, (int64_t[]){attr->n * (experts + 1)}, (Axis[]){AXIS_ANY}));
    int64_t owned = attr->apart ? experts : experts / attr->n;
    ctx->out[1] = infer_out(DTYPE_I32, shape_make(1, (int64_t[]){owned + 1}, (Axis[]){AXIS_ANY}));
    return OK;
}

static Status check_rows(const InferCtx *ctx)
{
    TRY(need_activation(ctx->in[0], "rows"));
    TRY(need_dtype(ctx->in[1], DTYPE_I32, "table"));
    return ctx->in[0]->shape.rank == 2 ? OK : fail(ERR_SHAPE, "rows must be [rows width]");
}

/* Times as many rows as a rank sends. */
static int64_t room_of(const InferCtx *ctx)
{
    int n = ((const ExchangeAttr *)ctx->attr)->n, room = ctx->graph->expert_room;
    return room && room < n ? room : n;
}

static Status infer_dispatch(InferCtx *ctx)
{
    TRY(check_rows(ctx));
    ctx->out[0] = infer_like(ctx->in[0]);
    if (__builtin_mul_overflow(ctx->in[0]->shape.dim[0], room_of(ctx), &ctx->out[0].shape.dim[0]) ||
        ctx->out[0].shape.dim[0] > INT32_MAX)
        return fail(ERR_SHAPE, "more rows than i32 can count");
    return OK;
}

static Status infer_collect(InferCtx *ctx)
{
    TRY(check_rows(ctx));
    ctx->out[0] = infer_like(ctx->in[0]);
    ctx->out[0].shape.dim[0] /= room_of(ctx);
    return OK;
}

static Status grad_dispatch(GradCtx *ctx)
{
    const Node *node = graph_node(ctx->graph, ctx->node);
    return graph_add(ctx->graph, op_find("expert_collect"), node->attr,
                     (ValueId[]){ctx->dout[0], node->in[1]}, 2, &ctx->din[0]);
}

static Status grad_collect(GradCtx *ctx)
{
    const Node *node = graph_node(ctx->graph, ctx->node);
    return graph_add(ctx->graph, op_find("expert_dispatch"), node->attr,
                     (ValueId[]){ctx->dout[0], node->in[1]}, 2, &ctx->din[0]);
}

/* As many rows as a rank has on average go through; (n - 1) / n of them to others. */
static Cost cost_rows(const Graph *g, const Node *node)
{
    const ExchangeAttr *attr = node->attr;
    ValueId few = graph_value(g, node->in[0])->shape.dim[0] <
                          graph_value(g, node->out[0])->shape.dim[0]
                      ? node->in[0]
                      : node->out[0];
    double bytes = value_bytes(g, few);
    if (graph_value(g, few)->place[MESH_TP].kind == PLACE_OWNED) /* folded: each took its own */
        bytes /= mesh_size(&g->mesh, MESH_TP);
    Cost cost = {.read_bytes = 2 * bytes,
                 .write_bytes = 2 * bytes,
                 .wire_bytes = bytes * (attr->n - 1) / attr->n};
    if (attr->n > 1) cost_exchange(&cost, COMM_ALL_TO_ALL, 1u << MESH_EP, bytes);
    return cost;
}

static Cost cost_plan(const Graph *g, const Node *node)
{
    Cost cost = cost_streaming(g, node, 0);
    int n = ((const ExchangeAttr *)node->attr)->n;
    cost.wire_bytes = value_bytes(g, node->in[0]) * (n - 1);
    if (n > 1)
        cost_exchange(&cost, COMM_ALL_GATHER, 1u << MESH_EP, value_bytes(g, node->in[0]) * n);
    return cost;
}

static void attr_text(const void *attribute, Str *out)
{
    const ExchangeAttr *attr = attribute;
    str_printf(out, "ep %d of %d", attr->rank, attr->n);
}

/* ---- kernels ---------------------------------------------------------------------------- */

typedef struct Prepared {
    Comm *comm;
    int64_t *counts; /* [4 n]: rows sent, their places, rows received, their places; in elements */
} Prepared;

static Status prepare(KernelArgs *args)
{
    const ExchangeAttr *attr = args->attr;
    Prepared *p = xcalloc(1, sizeof *p);
    args->state = p;
    p->counts = xcalloc(4 * (size_t)attr->n, sizeof *p->counts);
    return attr->n > 1 ? args->ranks->group(args->ranks, 1u << MESH_EP, &p->comm) : OK;
}

static void release(KernelArgs *args)
{
    Prepared *p = args->state;
    if (p) free(p->counts);
    free(p);
    args->state = NULL;
}

static Status run_plan(KernelArgs *args)
{
    const ExchangeAttr *attr = args->attr;
    const Prepared *p = args->state;
    int64_t count = tensor_count(&args->in[0]);
    if (attr->n > 1)
        TRY(comm_run(p->comm, &(CommOp){.kind = COMM_ALL_GATHER,
                                        .dtype = DTYPE_I32,
                                        .send = args->in[0].data,
                                        .recv = args->out[0].data,
                                        .count = count,
                                        .node = args->node}));
    else
        memcpy(args->out[0].data, args->in[0].data, (size_t)count * sizeof(int32_t));
    ExpertTable t = expert_table(args->out[0].data, tensor_count(&args->out[0]), attr);
    int32_t *owned = args->out[1].data;
    for (int64_t e = 0; e < t.each; e++)
        for (int r = 0; r < (attr->apart ? t.n : 1); r++) *owned++ = (int32_t)expert_use(&t, r, e);
    *owned = (int32_t)expert_use(&t, 0, t.each);
    return OK;
}

/* Between the order of arrival and the order of use. */
static void reorder(const ExpertTable *t, char *arrived, char *used, size_t row_bytes,
                    bool arriving)
{
    for (int64_t e = 0; e < t->each; e++)
        for (int r = 0; r < t->n; r++) {
            char *there = arrived + (size_t)expert_arrival(t, r, e) * row_bytes,
                 *here = used + (size_t)expert_use(t, r, e) * row_bytes;
            size_t bytes = (size_t)expert_rows(t, r, e) * row_bytes;
            if (arriving)
                memcpy(here, there, bytes);
            else
                memcpy(there, here, bytes);
        }
}

/* Rows of tokens at their offsets <-> in the order of arrival, in the workspace. */
static Status exchange(KernelArgs *args, const ExpertTable *t, bool out)
{
    const Tensor *tokens = out ? &args->in[0] : &args->out[0],
                 *owned = out ? &args->out[0] : &args->in[0];
    const Prepared *p = args->state;
    ExpertCounts c = expert_counts_at(p->counts, t->n);
    TRY(expert_count(t, tokens->shape.dim[1], tokens->shape.dim[0], owned->shape.dim[0], &c));
    return comm_run(p->comm, &(CommOp){.kind = COMM_ALL_TO_ALL,
                                       .dtype = tokens->dtype,
                                       .send = out ? tokens->data : args->workspace,
                                       .recv = out ? args->workspace : tokens->data,
                                       .send_counts = out ? c.tokens : c.owned,
                                       .send_offsets = out ? c.tokens_at : c.owned_at,
                                       .recv_counts = out ? c.owned : c.tokens,
                                       .recv_offsets = out ? c.owned_at : c.tokens_at,
                                       .node = args->node});
}

static Status run_rows(KernelArgs *args, bool out)
{
    const Tensor *rows = &args->in[0], *table = &args->in[1];
    ExpertTable t = expert_table(table->data, tensor_count(table), args->attr);
    size_t row_bytes = (size_t)rows->shape.dim[1] * dtype_bytes(rows->dtype);
    if (t.n == 1) {
        memcpy(args->out[0].data, rows->data, (size_t)expert_offset(&t, 0, t.experts) * row_bytes);
        return OK;
    }
    if (!out) reorder(&t, args->workspace, rows->data, row_bytes, false);
    TRY(exchange(args, &t, out));
    if (out) reorder(&t, args->workspace, args->out[0].data, row_bytes, true);
    return OK;
}

static Status run_dispatch(KernelArgs *args) { return run_rows(args, true); }
static Status run_collect(KernelArgs *args) { return run_rows(args, false); }

/* Rows in the order of arrival. */
static size_t gpu_workspace(const Graph *graph, const Node *node)
{
    if (((const ExchangeAttr *)node->attr)->n == 1) return 0;
    double in = value_bytes(graph, node->in[0]), out = value_bytes(graph, node->out[0]);
    return (size_t)(in > out ? in : out);
}

static size_t workspace(const Graph *graph, const Node *node, const Target *target)
{
    (void)target;
    return gpu_workspace(graph, node);
}

static const Kernel plan_kernel = {.run = run_plan, .prepare = prepare, .release = release};
static const Kernel dispatch_kernel = {
    .run = run_dispatch, .prepare = prepare, .release = release, .workspace = workspace};
static const Kernel collect_kernel = {
    .run = run_collect, .prepare = prepare, .release = release, .workspace = workspace};

const OpDef op_def_expert_plan = {
    .name = "expert_plan",
    .min_in = 1,
    .max_in = 1,
    .n_out = 2,
    .attr_bytes = sizeof(ExchangeAttr),
    .flags = OP_SOURCE | OP_COLLECTIVE,
    .infer = infer_plan,
    .cut_rule = cut_plan,
    .cut_attr = cut_attr,
    .cost = cost_plan,
    .attr_text = attr_text,
    .cpu = CPU_KERNEL_ANY(&plan_kernel),
    .cuda = &cuda_expert_plan,
};

const OpDef op_def_expert_dispatch = {
    .name = "expert_dispatch",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .attr_bytes = sizeof(ExchangeAttr),
    .flags = OP_COLLECTIVE,
    .infer = infer_dispatch,
    .cut_rule = cut_dispatch,
    .cut_attr = cut_attr,
    .grad = grad_dispatch,
    .cost = cost_rows,
    .attr_text = attr_text,
    .cpu = CPU_KERNEL_ANY(&dispatch_kernel),
    .cuda = &cuda_expert_dispatch,
    .gpu_workspace = gpu_workspace,
};

const OpDef op_def_expert_collect = {
    .name = "expert_collect",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .attr_bytes = sizeof(ExchangeAttr),
    .flags = OP_COLLECTIVE,
    .infer = infer_collect,
    .cut_rule = cut_collect,
    .cut_attr = cut_attr,
    .grad = grad_collect,
    .cost = cost_rows,
    .attr_text = attr_text,
    .cpu = CPU_KERNEL_ANY(&collect_kernel),
    .cuda = &cuda_expert_collect,
    .gpu_workspace = gpu_workspace,
};

bool op_expert_sends_columns(const Node *node)
{
    return node->op == &op_def_expert_dispatch && ((const ExchangeAttr *)node->attr)->columns;
}

/* ---- builders --------------------------------------------------------------------------- */

Status op_expert_plan(Graph *g, ValueId offsets, ValueId *table, ValueId *owned)
{
    ValueId out[2];
    ExchangeAttr attr = {.n = 1, .apart = g->canonical};
    TRY(graph_add(g, &op_def_expert_plan, &attr, &offsets, 1, out));
    *table = out[0];
    *owned = out[1];
    return OK;
}

Status op_expert_dispatch(Graph *g, ValueId rows, ValueId table, bool columns, ValueId *of_experts)
{
    ExchangeAttr attr = {.n = 1, .columns = columns};
    return graph_add(g, &op_def_expert_dispatch, &attr, (ValueId[]){rows, table}, 2, of_experts);
}

Status op_expert_collect(Graph *g, ValueId of_experts, ValueId table, bool columns, ValueId *rows)
{
    ExchangeAttr attr = {.n = 1, .columns = columns};
    return graph_add(g, &op_def_expert_collect, &attr, (ValueId[]){of_experts, table}, 2, rows);
}
