/* What send, recv, put and take say of themselves: pipe.c, pipe_gpu.c. */
#ifndef OPS_PIPE_H
#define OPS_PIPE_H

#include "ops/kernel.h"

typedef struct PipeAttr {
    int peer;      /* stage */
    int channel;   /* among the values between stages */
    bool sequence; /* tensor parallel ranks have parts of the sequence */
    DType dtype;
    Shape shape; /* of this rank's part */
} PipeAttr;

/* The message of a channel that takes t along. */
static inline CommOp pipe_message(const KernelArgs *args, CommKind kind, const Tensor *t)
{
    const PipeAttr *attr = args->attr;
    return (CommOp){.kind = kind,
                    .dtype = t->dtype,
                    .send = kind == COMM_SEND ? t->data : NULL,
                    .recv = kind == COMM_RECV ? t->data : NULL,
                    .count = tensor_count(t),
                    .peer = attr->peer,
                    .tag = attr->channel,
                    .node = args->node};
}

#endif
