/* Between embed.c and its kernels. */
#ifndef OPS_EMBED_H
#define OPS_EMBED_H

#include "tensor/tensor.h"

typedef struct EmbedGradAttr {
    Shape table; /* of the weight: [V D] */
} EmbedGradAttr;

#endif
