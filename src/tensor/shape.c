/* Named axes, shapes and strides. */
#include "tensor/tensor.h"

#include <string.h>

static const char *const axis_names[AXIS_COUNT] = {
#define X(id, name) [AXIS_##id] = name,
    AXIS_LIST(X)
#undef X
};

const char *axis_name(Axis axis)
{
    CHECK((unsigned)axis < AXIS_COUNT);
    return axis_names[axis];
}

bool axis_from_name(const char *name, Axis *axis)
{
    for (int i = 0; i < AXIS_COUNT; i++) {
        if (strcmp(axis_names[i], name) != 0) continue;
        *axis = (Axis)i;
        return true;
    }
    return false;
}

Shape shape_make(int rank, const int64_t *dim, const Axis *axis)
{
    CHECK(rank >= 0 && rank <= MAX_RANK);
    Shape shape = {.rank = rank};
    for (int i = 0; i < rank; i++) {
        CHECK(dim[i] >= 0);
        shape.dim[i] = dim[i];
        shape.axis[i] = axis ? axis[i] : AXIS_ANY;
    }
    return shape;
}

/* A product that does not fit stays at the largest number: no memory and no file is that large, so
 * every later check refuses it. */
int64_t shape_count(const Shape *shape)
{
    int64_t count = 1;
    bool overflow = false;
    for (int i = 0; i < shape->rank; i++) {
        if (shape->dim[i] == 0) return 0;
        overflow |= __builtin_mul_overflow(count, shape->dim[i], &count);
    }
    return overflow ? INT64_MAX : count;
}

bool shape_equal(const Shape *a, const Shape *b)
{
    if (a->rank != b->rank) return false;
    for (int i = 0; i < a->rank; i++)
        if (a->dim[i] != b->dim[i]) return false;
    return true;
}

char *shape_text(const Shape *shape, char *buf)
{
    size_t used = 0;
    if (shape->rank == 0) memcpy(buf, "scalar", 7);
    for (int i = 0; i < shape->rank; i++) /* at most 5 x (1 + 8 + 1 + 20) bytes: always fits */
        used += (size_t)snprintf(buf + used, SHAPE_TEXT - used, "%s%s=%lld", i ? " " : "",
                                 axis_name(shape->axis[i]), (long long)shape->dim[i]);
    return buf;
}

/* ---- strides ---------------------------------------------------------------------------- */

void stride_contiguous(const Shape *shape, int64_t stride[MAX_RANK])
{
    int64_t step = 1;
    for (int i = MAX_RANK - 1; i >= shape->rank; i--) stride[i] = 0;
    for (int i = shape->rank - 1; i >= 0; i--) {
        stride[i] = step;
        if (__builtin_mul_overflow(step, shape->dim[i], &step)) step = INT64_MAX;
    }
}

bool stride_is_contiguous(const Shape *shape, const int64_t stride[MAX_RANK])
{
    if (shape_count(shape) == 0) return true;
    int64_t step = 1;
    for (int i = shape->rank - 1; i >= 0; i--) {
        if (shape->dim[i] == 1) continue; /* never stepped over */
        if (stride[i] != step) return false;
        step *= shape->dim[i];
    }
    return true;
}

Tensor tensor_make(void *data, DType dtype, Shape shape)
{
    Tensor t = {.data = data, .dtype = dtype, .shape = shape};
    stride_contiguous(&shape, t.stride);
    return t;
}

int64_t tensor_count(const Tensor *t) { return shape_count(&t->shape); }

size_t tensor_bytes(const Tensor *t)
{
    size_t bytes;
    if (!size_mul((size_t)tensor_count(t), dtype_bytes(t->dtype), &bytes)) return SIZE_MAX;
    return bytes;
}

bool tensor_rows(const Tensor *t, int64_t *rows, int64_t *columns, int64_t *row_stride)
{
    int last = t->shape.rank - 1;
    int64_t width = last < 0 ? 1 : t->shape.dim[last], n = 1, step = 0;
    if (width > 1 && t->stride[last] != 1) return false;
    for (int i = last - 1; i >= 0; i--) {
        if (t->shape.dim[i] == 1) continue;
        if (n == 1)
            step = t->stride[i]; /* the innermost axis that moves sets the pitch */
        else if (t->stride[i] != step * n)
            return false;
        n *= t->shape.dim[i];
    }
    *rows = n;
    *columns = width;
    *row_stride = step ? step : width; /* a single row: any pitch will do */
    return true;
}
