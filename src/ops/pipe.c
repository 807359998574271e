/* send and recv: a value from one pipeline stage to another.
 *
 *   send(x, buffer)   starts the message of a copy of x, kept in the state `buffer` until it has left; waits first for
 *                     the one before it on the same channel, so that a stage never waits for its neighbour to want
 *                     what it made
 *   recv() -> x       waits for the message
 *
 * Messages of a channel keep their order, and stages run micro-batches in the same order, so that they need no
 * number. Both ends cut the value in the same way: along the batch, the sequence where that is cut, nothing else. */
#include "ops/kernel.h"
#include "ops/rules.h"

#include <stdlib.h>
#include <string.h>

typedef struct PipeAttr {
    int peer;      /* stage */
    int channel;   /* among the values between stages */
    bool sequence; /* tensor parallel ranks have parts of the sequence */
    DType dtype;
    Shape shape; /* of this rank's part */
} PipeAttr;

/* ---- placements -------------------------------------------------------------------------------------- */

static Place agreed(const CutCtx *ctx)
{
    const PipeAttr *attr = ctx->attr;
    bool batch = ctx->axis == MESH_DP || ctx->axis == MESH_EP || ctx->axis == MESH_FSDP;
    bool seq = ctx->axis == MESH_CP || (ctx->axis == MESH_TP && attr->sequence);
    for (int i = 0; i < attr->shape.rank; i++)
        if ((batch && attr->shape.axis[i] == AXIS_BATCH) || (seq && attr->shape.axis[i] == AXIS_SEQ)) return (Place){PLACE_CUT, (int8_t)i};
    return (Place){PLACE_SAME, 0};
}

static Status cut_send(CutCtx *ctx)
{
    ctx->want[0] = ctx->want[1] = ctx->out[0] = agreed(ctx);
    return OK;
}

static Status cut_recv(CutCtx *ctx)
{
    ctx->out[0] = agreed(ctx);
    return OK;
}

static Status cut_attr(const CutCtx *ctx, void *attribute)
{
    PipeAttr *attr = attribute;
    if (place_is_cut(ctx->out[0])) attr->shape.dim[ctx->out[0].dim] /= ctx->n;
    return OK;
}

/* ---- shapes -------------------------------------------------------------------------------------------- */

static Status infer_send(InferCtx *ctx)
{
    const PipeAttr *attr = ctx->attr;
    TRY(need_dtype(ctx->in[0], attr->dtype, "x"));
    TRY(need_shape(ctx->in[0], &attr->shape, "x"));
    TRY(need_like(ctx->in[1], ctx->in[0], "the buffer"));
    if (ctx->in[1]->kind != VALUE_STATE) return fail(ERR_ARG, "what is on its way must lie in a state: a temporary is gone before it has left");
    ctx->out[0] = infer_like(ctx->in[1]);
    ctx->out[0].alias = 1;
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
    return (Cost){.read_bytes = 2 * bytes, .write_bytes = bytes, .wire_bytes = bytes};
}

static Cost cost_recv(const Graph *g, const Node *node) { return (Cost){.write_bytes = value_bytes(g, node->out[0])}; }

static void attr_text(const void *attribute, Str *out)
{
    const PipeAttr *attr = attribute;
    str_printf(out, "stage %d, channel %d", attr->peer, attr->channel);
}

/* ---- kernels --------------------------------------------------------------------------------------------- */

typedef struct Prepared {
    Comm *comm;
    CommRequest *pending;
} Prepared;

static Status prepare(KernelArgs *args)
{
    Prepared *p = xcalloc(1, sizeof *p);
    args->state = p;
    return args->ranks->group(args->ranks, 1u << MESH_PP, &p->comm);
}

static void release(KernelArgs *args)
{
    Prepared *p = args->state;
    if (p && p->pending) {
        Status ignored = comm_wait(p->pending); /* a failed world has said so already */
        (void)ignored;
    }
    free(p);
    args->state = NULL;
}

static CommOp message(const KernelArgs *args, CommKind kind, const Tensor *t)
{
    const PipeAttr *attr = args->attr;
    return (CommOp){.kind = kind, .dtype = t->dtype, .send = kind == COMM_SEND ? t->data : NULL,
                    .recv = kind == COMM_RECV ? t->data : NULL, .count = tensor_count(t), .peer = attr->peer,
                    .tag = attr->channel, .node = args->node};
}

static Status run_send(KernelArgs *args)
{
    Prepared *p = args->state;
    if (p->pending) {
        CommRequest *before = p->pending;
        p->pending = NULL;
        TRY(comm_wait(before));
    }
    memcpy(args->in[1].data, args->in[0].data, tensor_bytes(&args->in[0]));
    CommOp op = message(args, COMM_SEND, &args->in[1]);
    return comm_start(p->comm, &op, &p->pending);
}

static Status run_recv(KernelArgs *args)
{
    CommOp op = message(args, COMM_RECV, &args->out[0]);
    return comm_run(((Prepared *)args->state)->comm, &op);
}

static const CpuKernel send_kernel = {.run = run_send, .prepare = prepare, .release = release};
static const CpuKernel recv_kernel = {.run = run_recv, .prepare = prepare, .release = release};

const OpDef op_def_send = {
    .name = "send",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .attr_bytes = sizeof(PipeAttr),
    .flags = OP_SOURCE | OP_EFFECT | OP_COLLECTIVE,
    .infer = infer_send,
    .cut_rule = cut_send,
    .cut_attr = cut_attr,
    .cost = cost_send,
    .attr_text = attr_text,
    .cpu = CPU_KERNEL_ANY(&send_kernel),
};

const OpDef op_def_recv = {
    .name = "recv",
    .min_in = 0,
    .max_in = 0,
    .n_out = 1,
    .attr_bytes = sizeof(PipeAttr),
    .flags = OP_SOURCE | OP_EFFECT | OP_COLLECTIVE,
    .infer = infer_recv,
    .cut_rule = cut_recv,
    .cut_attr = cut_attr,
    .cost = cost_recv,
    .attr_text = attr_text,
    .cpu = CPU_KERNEL_ANY(&recv_kernel),
};

static PipeAttr make_attr(PipeEnd end, DType dtype, const Shape *shape)
{
    PipeAttr attr;
    memset(&attr, 0, sizeof attr); /* padding too: attributes are compared by their bytes */
    attr.peer = end.peer;
    attr.channel = end.channel;
    attr.sequence = end.sequence;
    attr.dtype = dtype;
    attr.shape = *shape;
    return attr;
}

Status op_send(Graph *g, ValueId x, PipeEnd end)
{
    const Value *v = graph_value(g, x);
    PipeAttr attr = make_attr(end, v->dtype, &v->shape);
    ValueId buffer = graph_state(g, arena_printf(&g->arena, "pipe.%s.%d", g->name, end.channel), v->dtype, v->shape, STATE_PIPE);
    return graph_add(g, &op_def_send, &attr, (ValueId[]){x, buffer}, 2, NULL);
}

Status op_recv(Graph *g, DType dtype, Shape shape, PipeEnd end, ValueId *x)
{
    PipeAttr attr = make_attr(end, dtype, &shape);
    return graph_add(g, &op_def_recv, &attr, NULL, 0, x);
}
