/* Walks operands of equal shape side by side, in pieces that fit the first-level cache, over
 * threads. Included by *_cpu.c files only.
 *
 * Each operand is rows of contiguous elements with a pitch between them; the width is the largest
 * that is contiguous in all of them, so that contiguous operands are one long row.
 */
#ifndef OPS_ELEMENTWISE_H
#define OPS_ELEMENTWISE_H

#include "ops/kernel.h"
#include "ops/simd.h"

enum {
    WALK_MAX = 16,
    WALK_PIECE = 4096,     /* elements */
    WALK_PARALLEL = 32768, /* elements below which one thread is faster than waking others */
};

typedef struct Piece {
    void *at[WALK_MAX]; /* NULL where the operand is left out */
    int64_t n;
    const void *user;
} Piece;

typedef struct Walk {
    const Tensor *tensor[WALK_MAX]; /* f32, bf16 or i32; the first is there and gives the shape */
    int n;
    const void *user;
} Walk;

/* Elements at the end of t that lie one behind the other. */
static inline int64_t walk_contiguous(const Tensor *t)
{
    int64_t width = 1;
    for (int i = t->shape.rank - 1; i >= 0; i--) {
        if (t->shape.dim[i] != 1 && t->stride[i] != width) break;
        width *= t->shape.dim[i];
    }
    return width;
}

/* Elements from row to row of `width`: the stride of the innermost axis outside the row that moves.
 */
static inline int64_t walk_pitch(const Tensor *t, int64_t width)
{
    int64_t inside = 1;
    for (int i = t->shape.rank - 1; i >= 0; i--) {
        if (inside >= width && t->shape.dim[i] != 1) return t->stride[i];
        inside *= t->shape.dim[i];
    }
    return width;
}

typedef void (*WalkPiece)(const Piece *piece);

static inline void walk(const Walk *w, int threads, WalkPiece run)
{
    int64_t count = tensor_count(w->tensor[0]), width = count, pitch[WALK_MAX] = {0};
    size_t size[WALK_MAX] = {0};
    if (count == 0) return;
    for (int k = 0; k < w->n; k++)
        if (w->tensor[k]->data) width = min_i64(width, walk_contiguous(w->tensor[k]));
    for (int k = 0; k < w->n; k++) {
        if (!w->tensor[k]->data) continue;
        pitch[k] = walk_pitch(w->tensor[k], width);
        size[k] = w->tensor[k]->dtype == DTYPE_BF16 ? 2 : 4;
    }
    int64_t pieces = (width + WALK_PIECE - 1) / WALK_PIECE, rows = count / width;
#pragma omp parallel for num_threads(threads) if (count >= WALK_PARALLEL) schedule(static)
    for (int64_t i = 0; i < rows * pieces; i++) {
        int64_t row = i / pieces, first = i % pieces * WALK_PIECE;
        Piece piece = {.n = min_i64(WALK_PIECE, width - first), .user = w->user};
        for (int k = 0; k < w->n; k++)
            if (w->tensor[k]->data)
                piece.at[k] = (char *)w->tensor[k]->data +
                              (size_t)(row * pitch[k] + first) * size[k];
        run(&piece);
    }
}

/* Loads and stores of up to a vector: m >= VL is known when compiling in the loop below. */
SIMD Vf load_part(const void *p, int64_t i, int64_t m, int bf16)
{
    return m >= VL ? vf_load_as(p, i, bf16) : vf_load_as_n(p, i, m, bf16);
}
SIMD void store_part(void *p, int64_t i, int64_t m, Vf v, int bf16)
{
    if (m >= VL)
        vf_store_as(p, i, v, bf16);
    else
        vf_store_as_n(p, i, v, m, bf16);
}

/* step(i, m, ...) for whole vectors, then for the rest; step is an always-inlined function. */
#define EACH_VECTOR(n, step, ...)                                                                  \
    do {                                                                                           \
        int64_t at_ = 0, n_ = (n);                                                                 \
        for (; at_ + VL <= n_; at_ += VL) step(at_, VL, __VA_ARGS__);                              \
        if (at_ < n_) step(at_, n_ - at_, __VA_ARGS__);                                            \
    } while (0)

#endif
