/* tensor: what a tensor is: element type, named axes, shape, strides.
 *
 * What it is.   DType and its conversions, Axis names, Shape, and Tensor: a described piece of
 *               memory that somebody else owns.
 * Depends on.   base
 * Owns.         Nothing.
 * Invariants.   Row-major, the last axis has stride 1. A Shape has at most MAX_RANK axes; rank 0 is
 *               a scalar with one element. Every axis has a name, so that a layout can say which
 *               mesh axis cuts it.
 * Use:
 *     Shape s = shape_make(3, (int64_t[]){2, 128, 384}, (Axis[]){AXIS_BATCH, AXIS_SEQ,
 *     AXIS_EMBED});
 *     Tensor x = tensor_make(data, DTYPE_F32, s);
 *     char text[64];
 *     printf("%s %s\n", dtype_name(x.dtype), shape_text(&x.shape, text));   (f32 batch=2 seq=128
 *     embed=384)
 */
#ifndef TENSOR_TENSOR_H
#define TENSOR_TENSOR_H

#include "base/base.h"

/* name in our text, safetensors name, bits per element */
#define DTYPE_LIST(X)                                                                              \
    X(F32, "f32", "F32", 32)                                                                       \
    X(BF16, "bf16", "BF16", 16)                                                                    \
    X(F16, "f16", "F16", 16)                                                                       \
    X(F8_E4M3, "f8_e4m3", "F8_E4M3", 8)                                                            \
    X(F8_E5M2, "f8_e5m2", "F8_E5M2", 8)                                                            \
    X(F64, "f64", "F64", 64)                                                                       \
    X(I8, "i8", "I8", 8)                                                                           \
    X(U8, "u8", "U8", 8)                                                                           \
    X(I32, "i32", "I32", 32)                                                                       \
    X(I64, "i64", "I64", 64)

typedef enum DType {
#define X(id, name, st, bits) DTYPE_##id,
    DTYPE_LIST(X)
#undef X
        DTYPE_COUNT
} DType;

const char *dtype_name(DType dtype);
const char *dtype_safetensors_name(DType dtype);
bool dtype_from_name(const char *name, DType *dtype);             /* ours: "bf16" */
bool dtype_from_safetensors_name(const char *name, DType *dtype); /* theirs: "BF16" */
size_t dtype_bytes(DType dtype);                                  /* per element */

/* n elements from one type to another, rounding to nearest even; any pair of float types, and the
 * integer types to and from f32, f64. Parallel for large n. */
Status dtype_convert(DType from, const void *in, DType to, void *out, int64_t n);

static inline uint16_t bf16_from_f32(float x)
{
    union {
        float f;
        uint32_t u;
    } v = {x};
    if ((v.u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(v.u >> 16 | 0x40); /* keep NaN a NaN */
    return (uint16_t)((v.u + 0x7fffu + (v.u >> 16 & 1)) >> 16);
}
static inline float bf16_to_f32(uint16_t h)
{
    union {
        uint32_t u;
        float f;
    } v = {(uint32_t)h << 16};
    return v.f;
}

#define AXIS_LIST(X)                                                                               \
    X(ANY, "any") /* no meaning that a layout could use */                                         \
    X(BATCH, "batch")                                                                              \
    X(SEQ, "seq")                                                                                  \
    X(EMBED, "embed")                                                                              \
    X(HEADS, "heads") /* query heads, or heads x head_dim in a weight */                           \
    X(KV_HEADS, "kv_heads")                                                                        \
    X(HEAD_DIM, "head_dim")                                                                        \
    X(FFN, "ffn")                                                                                  \
    X(VOCAB, "vocab")                                                                              \
    X(EXPERTS, "experts")                                                                          \
    X(TOPK, "topk")     /* an expert choice of a token */                                          \
    X(ROWS, "rows")     /* (token, choice) pairs sorted by expert */                               \
    X(TOKENS, "tokens") /* batch x seq, flattened */                                               \
    X(CACHE, "cache")   /* positions of a key/value cache */

typedef enum Axis {
#define X(id, name) AXIS_##id,
    AXIS_LIST(X)
#undef X
        AXIS_COUNT
} Axis;

const char *axis_name(Axis axis);
bool axis_from_name(const char *name, Axis *axis);

enum { MAX_RANK = 5 };

typedef struct Shape {
    int rank;
    int64_t dim[MAX_RANK];
    Axis axis[MAX_RANK];
} Shape;

Shape shape_make(int rank, const int64_t *dim, const Axis *axis);
int64_t shape_count(const Shape *shape);          /* elements */
bool shape_equal(const Shape *a, const Shape *b); /* rank and dims; names may differ */
/* "batch=2 seq=128"; "scalar" for rank 0. buf holds at least SHAPE_TEXT bytes. */
enum { SHAPE_TEXT = 192 };
char *shape_text(const Shape *shape, char *buf);

/* strides in elements */
typedef struct Tensor {
    void *data;
    DType dtype;
    Shape shape;
    int64_t stride[MAX_RANK];
} Tensor;

Tensor tensor_make(void *data, DType dtype, Shape shape); /* contiguous */
void stride_contiguous(const Shape *shape, int64_t stride[MAX_RANK]);
bool stride_is_contiguous(const Shape *shape, const int64_t stride[MAX_RANK]);
size_t
tensor_bytes(const Tensor *t); /* elements times their size, padding of strides not counted */
int64_t tensor_count(const Tensor *t);
/* The tensor seen as rows x columns, columns being the last axis: true and *row_stride when all
 * leading axes collapse into one with a single stride. */
bool tensor_rows(const Tensor *t, int64_t *rows, int64_t *columns, int64_t *row_stride);

#endif
