/* How the scales of an fp8 weight lie over it, told from the two shapes. A value is the stored
 * number times its scale, also where the name says scale_inv: that is the inverse of what the
 * writer multiplied with.
 *
 *     weight [out, in]            [] [1]                        one for all
 *                                 [out] [out, 1]                one per row
 *                                 [out / block, in / block]     one per block, rounded up at the
 *                                 edges
 *     weight [experts, in, out]   [] [1], [experts] [experts, 1, 1]
 *                                 [experts, 1, out], [experts, out, 1]       one per column: that
 *                                 is a row of [out, in]
 *                                 [experts, in / block, out / block]
 */
#include "weights/weights_internal.h"

static bool is_shape(const Shape *s, int rank, int64_t a, int64_t b, int64_t c)
{
    const int64_t dim[3] = {a, b, c};
    if (s->rank != rank) return false;
    for (int d = 0; d < rank; d++)
        if (s->dim[d] != dim[d]) return false;
    return true;
}

static int64_t blocks(int64_t n, int64_t block) { return n / block + (n % block != 0); }

static bool fit_matrix(const Shape *w, const Shape *s, const int64_t block[2], Scale *out)
{
    int64_t rows = w->dim[0], grid[2] = {blocks(rows, block[0]), blocks(w->dim[1], block[1])};
    if (is_shape(s, 1, rows, 0, 0) || is_shape(s, 2, rows, 1, 0)) {
        out->stride[0] = 1;
        out->what = "a scale per row";
        return true;
    }
    if (!is_shape(s, 2, grid[0], grid[1], 0)) return false;
    for (int d = 0; d < 2; d++) out->block[d] = block[d];
    out->stride[0] = grid[1];
    out->stride[1] = 1;
    out->what = "a scale per block";
    return true;
}

static bool fit_experts(const Shape *w, const Shape *s, const int64_t block[2], Scale *out)
{
    int64_t experts = w->dim[0], in = w->dim[1], columns = w->dim[2];
    int64_t grid[2] = {blocks(in, block[1]), blocks(columns, block[0])};
    if (is_shape(s, 1, experts, 0, 0) || is_shape(s, 3, experts, 1, 1)) {
        out->stride[0] = 1;
        out->what = "a scale per expert";
        return true;
    }
    if (is_shape(s, 3, experts, 1, columns) || is_shape(s, 3, experts, columns, 1)) {
        out->stride[0] = columns;
        out->stride[2] = 1;
        out->what = "a scale per row";
        return true;
    }
    if (!is_shape(s, 3, experts, grid[0], grid[1])) return false;
    out->block[1] = block[1];
    out->block[2] = block[0];
    out->stride[0] = grid[0] * grid[1];
    out->stride[1] = grid[1];
    out->stride[2] = 1;
    out->what = "a scale per block";
    return true;
}

Status scale_fit(const Stored *of, const Stored *scale, const int64_t block[2], Scale *out)
{
    char have[SHAPE_TEXT], weight[SHAPE_TEXT];
    const Shape *w = &of->shape, *s = &scale->shape;
    bool values = of->dtype == DTYPE_F8_E4M3 || of->dtype == DTYPE_F8_E5M2 || of->dtype == DTYPE_I8;
    bool numbers = scale->dtype == DTYPE_F32 || scale->dtype == DTYPE_BF16 ||
                   scale->dtype == DTYPE_F16;
    if (!values || !numbers)
        return fail(ERR_UNSUPPORTED,
                    "%s: tensor %s of type %s has scales of type %s; known are f8 and i8 with f32, "
                    "bf16 or f16",
                    of->map->path, of->name, of->type_name, scale->type_name);
    *out = (Scale){.from = *scale};
    for (int d = 0; d < MAX_RANK; d++) out->block[d] = 1;
    bool fits = false;
    if (shape_count(w) == 0) {
        fits = false; /* nothing to scale; and its sides could be of any size */
    } else if (shape_count(s) == 1) {
        out->what = "a scale";
        fits = true;
    } else if (w->rank == 2) {
        fits = fit_matrix(w, s, block, out);
    } else if (w->rank == 3) {
        fits = fit_experts(w, s, block, out);
    }
    if (fits) return OK;
    return fail(ERR_FORMAT,
                "%s: the scales %s are [%s], which does not cover %s of [%s] by tensor, row or "
                "blocks of %lldx%lld",
                of->map->path, scale->name, shape_text(s, have), of->name, shape_text(w, weight),
                (long long)block[0], (long long)block[1]);
}
