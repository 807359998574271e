/* send, recv, put and take on GPUs (pipe.c says what they are). A channel has a lane beside the
 * stream and a group of its two ranks: messages of one channel go one way only, so that no
 * two ranks wait for each other whatever the schedule's order. */
#include "gpu/gpu.h"
#include "ops/collective.h"
#include "ops/pipe.h"

#include <stdlib.h>

typedef struct Prepared {
    Comm *comm;
    int lane;
    int64_t n_messages; /* so far: which buffer is next */
    int n_buffers;
    CommRequest *pending[]; /* send: of the message in each buffer, where the host carries it */
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
    const PipeAttr *attr = args->attr;
    Comm *stages;
    char name[COMM_NAME_BYTES];
    TRY(make_prepared(args, args->n_in > 1 ? args->n_in - 1 : 0));
    Prepared *p = args->state;
    TRY(args->ranks->group(args->ranks, 1u << MESH_PP, &stages));
    snprintf(name, sizeof name, "pp.%d", attr->channel);
    TRY(collective_gpu_pair(stages, attr->peer, name, &p->comm));
    p->lane = 1 + attr->channel % (GPU_LANES - 1);
    return collective_gpu_expect(args, p->lane, p->comm);
}

static Status prepare_put(KernelArgs *args) { return make_prepared(args, args->n_in - 1); }
static Status prepare_take(KernelArgs *args) { return make_prepared(args, args->n_in); }

static void release(KernelArgs *args)
{
    Prepared *p = args->state;
    for (int i = 0; p && i < p->n_buffers; i++) {
        Status ignored = p->pending[i] ? comm_wait(p->pending[i]) : OK;
        (void)ignored; /* a failed world has said so already */
    }
    free(p);
    args->state = NULL;
}

static int next_buffer(Prepared *p) { return (int)(p->n_messages++ % p->n_buffers); }

/* Into a buffer that the message before it has left, and from there. */
static Status run_send(KernelArgs *args)
{
    Prepared *p = args->state;
    int k = next_buffer(p);
    const Tensor *buffer = &args->in[1 + k];
    GpuStream *side;
    if (p->pending[k]) {
        CommRequest *before = p->pending[k];
        p->pending[k] = NULL;
        TRY(comm_wait(before));
    }
    TRY(gpu_side_join(args->stream, buffer->data));
    TRY(gpu_copy(args->stream, buffer->data, args->in[0].data, tensor_bytes(&args->in[0])));
    CommOp op = pipe_message(args, COMM_SEND, buffer);
    op.peer = !comm_rank(p->comm);
    TRY(gpu_side_begin(args->stream, p->lane, &side));
    TRY(comm_enqueue_send(p->comm, &op, side, &p->pending[k]));
    return gpu_side_end(args->stream, p->lane, buffer->data);
}

static Status run_recv(KernelArgs *args)
{
    Prepared *p = args->state;
    CommOp op = pipe_message(args, COMM_RECV, &args->out[0]);
    op.peer = !comm_rank(p->comm);
    GpuStream *side;
    TRY(gpu_side_begin(args->stream, p->lane, &side));
    TRY(comm_enqueue(p->comm, &op, side));
    TRY(gpu_side_end(args->stream, p->lane, args));
    return gpu_side_join(args->stream, args);
}

static Status run_put(KernelArgs *args)
{
    return gpu_copy(args->stream, args->in[1 + next_buffer(args->state)].data, args->in[0].data,
                    tensor_bytes(&args->in[0]));
}

static Status run_take(KernelArgs *args)
{
    return gpu_copy(args->stream, args->out[0].data, args->in[next_buffer(args->state)].data,
                    tensor_bytes(&args->out[0]));
}

const Kernel cuda_send = {.run = run_send, .prepare = prepare_message, .release = release};
const Kernel cuda_recv = {.run = run_recv, .prepare = prepare_message, .release = release};
const Kernel cuda_put = {.run = run_put, .prepare = prepare_put, .release = release};
const Kernel cuda_take = {.run = run_take, .prepare = prepare_take, .release = release};
