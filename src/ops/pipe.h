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

#endif
