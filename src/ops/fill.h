/* Between fill.c and its kernel. */
#ifndef OPS_FILL_H
#define OPS_FILL_H

#include "tensor/tensor.h"

typedef struct FillAttr {
    DType dtype;
    float value;
    Shape shape;
} FillAttr;

#endif
