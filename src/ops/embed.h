/* Between embed.c and its kernels. */
#ifndef OPS_EMBED_H
#define OPS_EMBED_H

#include "tensor/tensor.h"

typedef struct EmbedAttr {
    DType dtype;
    unsigned cut_axes; /* mesh axes along which the table's rows are cut: ids of other ranks' rows
                          give zeros */
    int64_t first;     /* this rank's first row */
} EmbedAttr;

typedef struct EmbedGradAttr {
    Shape table; /* of the weight: [V D] */
    unsigned cut_axes;
    int64_t first;
} EmbedGradAttr;

#endif
