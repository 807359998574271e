/* A value from one pipeline stage to another.
 *
 *   send(x, buffers...)   starts the message of a copy of x, kept in one of the buffers (states)
 *                         until it has left
 *   recv() -> x           waits for the message
 *   put(x, buffers...)    the same to a stage of this very rank: a copy lies in one of the buffers
 *   take(buffers...) -> x until it is taken
 *
 * The buffers are used in turn. They are as many as messages may be under way at once: send waits
 * for the one that lay in the same buffer before, so that a stage does not wait for its neighbour
 * to want what it made. Messages of a channel keep their order, and stages run micro-batches in the
 * same order, so that they need no number. Both ends cut the value in the same way: along the
 * batch, the sequence where that is cut, nothing else. */
#include "ops/kernel.h"
#include "ops/pipe.h"
#include "ops/rules.h"

#include <stdlib.h>
#include <string.h>

/* ---- placements ------------------------------------------------------------------------- */

bool op_pipe_carries_summand(const Graph *g, const Shape *shape, MeshAxis axis)
{
    return g->canonical && shape->rank == 0 &&
           (axis == MESH_DP || axis == MESH_EP || axis == MESH_FSDP);
}

static Place agreed(const CutCtx *ctx)
{
    const PipeAttr *attr = ctx->attr;
    if (op_pipe_carries_summand(ctx->graph, &attr->shape, ctx->axis))
        return (Place){PLACE_PARTIAL, 0};
    bool batch = ctx->axis == MESH_DP || ctx->axis == MESH_EP || ctx->axis == MESH_FSDP;
    bool seq = ctx->axis == MESH_CP || (ctx->axis == MESH_TP && attr->sequence);
    for (int i = 0; i < attr->shape.rank; i++)
        if ((batch && attr->shape.axis[i] == AXIS_BATCH) ||
            (seq && attr->shape.axis[i] == AXIS_SEQ))
            return (Place){PLACE_CUT, (int8_t)i};
    return (Place){PLACE_SAME, 0};
}

/* send and put: x and the buffers; take: the buffers. */
static Status cut_all(CutCtx *ctx)
{
    for (int i = 0; i < ctx->n_in; i++) ctx->want[i] = agreed(ctx);
    ctx->out[0] = agreed(ctx);
    return OK;
}

static Status cut_attr(const CutCtx *ctx, void *attribute)
{
    PipeAttr *attr = attribute;
    if (place_is_cut(ctx->out[0])) attr->shape.dim[ctx->out[0].dim] /= ctx->n;
    return OK;
}

/* ---- shapes ----------------------------------------------------------------------------- */

static Status need_buffers(const InferCtx *ctx, int first)
{
    const PipeAttr *attr = ctx->attr;
    for (int i = first; i < ctx->n_in; i++) {
        TRY(need_dtype(ctx->in[i], attr->dtype, "a buffer"));
        TRY(need_shape(ctx->in[i], &attr->shape, "a buffer"));
        if (ctx->in[i]->kind != VALUE_STATE)
            return fail(
                ERR_ARG,
                "what is on its way must lie in a state: a temporary is gone before it has left");
    }
    return OK;
}

static Status infer_send(InferCtx *ctx)
{
    const PipeAttr *attr = ctx->attr;
    TRY(need_dtype(ctx->in[0], attr->dtype, "x"));
    TRY(need_shape(ctx->in[0], &attr->shape, "x"));
    TRY(need_buffers(ctx, 1));
    ctx->out[0] = infer_like(ctx->in[1]);
    ctx->out[0].alias = 1;
    return OK;
}

static Status infer_take(InferCtx *ctx)
{
    const PipeAttr *attr = ctx->attr;
    TRY(need_buffers(ctx, 0));
    ctx->out[0] = infer_out(attr->dtype, attr->shape);
    return OK;
}

static Status infer_recv(InferCtx *ctx)
{
    const PipeAttr *attr = ctx->attr;
    ctx->out[0] = infer_out(attr->dtype, attr->shape);
    return OK;
}

static Cost cost_send(const Graph *g, const Node *node)
{
    double bytes = value_bytes(g, node->in[0]);
    return (Cost){
        .read_bytes = 2 * bytes, .write_bytes = bytes, .wire_bytes = bytes, .kind = COST_MESSAGE};
}

static Cost cost_recv(const Graph *g, const Node *node)
{
    return (Cost){.write_bytes = value_bytes(g, node->out[0]), .kind = COST_MESSAGE};
}

static Cost cost_copy(const Graph *g, const Node *node)
{
    double bytes = value_bytes(g, node->in[0]);
    return (Cost){.read_bytes = bytes, .write_bytes = bytes};
}

static void attr_text(const void *attribute, Str *out)
{
    const PipeAttr *attr = attribute;
    str_printf(out, "stage %d, channel %d", attr->peer, attr->channel);
}

/* ---- kernels ---------------------------------------------------------------------------- */

typedef struct Prepared {
    Comm *comm;         /* send, recv */
    int64_t n_messages; /* so far: which buffer is next */
    int n_buffers;
    CommRequest *pending[]; /* send: of the message in each buffer */
} Prepared;

static Status make_prepared(KernelArgs *args, int n_buffers)
{
    Prepared *p = xcalloc(1, sizeof *p + (size_t)n_buffers * sizeof(CommRequest *));
    p->n_buffers = n_buffers;
    args->state = p;
    return OK;
}

static Status prepare_message(KernelArgs *args)
{
    TRY(make_prepared(args, args->n_in > 1 ? args->n_in - 1 : 0));
    return args->ranks->group(args->ranks, 1u << MESH_PP, &((Prepared *)args->state)->comm);
}

static Status prepare_put(KernelArgs *args) { return make_prepared(args, args->n_in - 1); }
static Status prepare_take(KernelArgs *args) { return make_prepared(args, args->n_in); }

static void release(KernelArgs *args)
{
    Prepared *p = args->state;
    for (int i = 0; p && i < p->n_buffers; i++) {
        Status ignored = p->pending[i] ? comm_wait(p->pending[i])
                                       : OK; /* a failed world has said so already */
        (void)ignored;
    }
    free(p);
    args->state = NULL;
}

static int next_buffer(Prepared *p) { return (int)(p->n_messages++ % p->n_buffers); }

static Status run_send(KernelArgs *args)
{
    Prepared *p = args->state;
    int k = next_buffer(p);
    const Tensor *buffer = &args->in[1 + k];
    if (p->pending[k]) {
        CommRequest *before = p->pending[k];
        p->pending[k] = NULL;
        TRY(comm_wait(before));
    }
    memcpy(buffer->data, args->in[0].data, tensor_bytes(&args->in[0]));
    CommOp op = pipe_message(args, COMM_SEND, buffer);
    return comm_start(p->comm, &op, &p->pending[k]);
}

static Status run_recv(KernelArgs *args)
{
    CommOp op = pipe_message(args, COMM_RECV, &args->out[0]);
    return comm_run(((Prepared *)args->state)->comm, &op);
}

static Status run_put(KernelArgs *args)
{
    memcpy(args->in[1 + next_buffer(args->state)].data, args->in[0].data,
           tensor_bytes(&args->in[0]));
    return OK;
}

static Status run_take(KernelArgs *args)
{
    memcpy(args->out[0].data, args->in[next_buffer(args->state)].data, tensor_bytes(&args->out[0]));
    return OK;
}

static const Kernel send_kernel = {.run = run_send, .prepare = prepare_message, .release = release};
static const Kernel recv_kernel = {.run = run_recv, .prepare = prepare_message, .release = release};
static const Kernel put_kernel = {.run = run_put, .prepare = prepare_put, .release = release};
static const Kernel take_kernel = {.run = run_take, .prepare = prepare_take, .release = release};

#define PIPE_OP(op, inputs, infer_rule, place_rule, cost_rule, more_flags)                         \
    CUDA_DECLARE(op);                                                                              \
    const OpDef op_def_##op = {                                                                    \
        .name = #op,                                                                               \
        inputs,                                                                                    \
        .n_out = 1,                                                                                \
        .attr_bytes = sizeof(PipeAttr),                                                            \
        .flags = OP_SOURCE | OP_EFFECT | (more_flags),                                             \
        .infer = infer_rule,                                                                       \
        .cut_rule = place_rule,                                                                    \
        .cut_attr = cut_attr,                                                                      \
        .cost = cost_rule,                                                                         \
        .attr_text = attr_text,                                                                    \
        .cpu = CPU_KERNEL_ANY(&op##_kernel),                                                       \
        .cuda = &cuda_##op,                                                                        \
    }
#define INPUTS(least, most) .min_in = (least), .max_in = (most)

PIPE_OP(send, INPUTS(2, -1), infer_send, cut_all, cost_send, OP_COLLECTIVE);
PIPE_OP(recv, INPUTS(0, 0), infer_recv, cut_all, cost_recv, OP_COLLECTIVE);
PIPE_OP(put, INPUTS(2, -1), infer_send, cut_all, cost_copy, 0);
PIPE_OP(take, INPUTS(1, -1), infer_take, cut_all, cost_copy, 0);

static PipeAttr make_attr(const PipeEnd *end, DType dtype, const Shape *shape)
{
    PipeAttr attr;
    memset(&attr, 0, sizeof attr); /* padding too: attributes are compared by their bytes */
    attr.peer = end->peer;
    attr.channel = end->channel;
    attr.sequence = end->sequence;
    attr.dtype = dtype;
    attr.shape = *shape;
    return attr;
}

/* The channel's buffers, behind x where there is one; in[1 + end->depth]. */
static void find_buffers(Graph *g, const PipeEnd *end, DType dtype, const Shape *shape, ValueId *in)
{
    for (int k = 0; k < end->depth; k++) {
        const char *name = arena_printf(&g->arena, "%s.%d.%d", end->buffers, end->channel, k);
        in[k] = graph_find_state(g, name);
        if (!value_ok(in[k])) in[k] = graph_state(g, name, dtype, *shape, STATE_PIPE);
    }
}

Status op_send(Graph *g, ValueId x, PipeEnd end)
{
    Value v = *graph_value(g, x);
    PipeAttr attr = make_attr(&end, v.dtype, &v.shape);
    ValueId *in = xcalloc((size_t)end.depth + 1, sizeof *in);
    in[0] = x;
    find_buffers(g, &end, v.dtype, &v.shape, in + 1);
    Status status = graph_add(g, end.here ? &op_def_put : &op_def_send, &attr, in, 1 + end.depth,
                              NULL);
    free(in);
    return status;
}

Status op_recv(Graph *g, DType dtype, Shape shape, PipeEnd end, ValueId *x)
{
    PipeAttr attr = make_attr(&end, dtype, &shape);
    if (!end.here) return graph_add(g, &op_def_recv, &attr, NULL, 0, x);
    ValueId *in = xcalloc((size_t)end.depth, sizeof *in);
    find_buffers(g, &end, dtype, &shape, in);
    Status status = graph_add(g, &op_def_take, &attr, in, end.depth, x);
    free(in);
    return status;
}
