/* Many weights into the caller's tensors: everything is matched and checked first, then all is read
 * in boxes of about equal size on all cores. */
#include <stdlib.h>
#include <string.h>

#include "weights/weights_internal.h"

/* Elements per box: large enough that a thread streams, small enough that the last ones spread. */
enum { BOX_ELEMENTS = 1 << 20, MAX_BOXES = 1 << 16 };

/* A box of one slice. */
typedef struct Box {
    const Weight *weight;
    const WeightSlice *slice;
    int64_t at[MAX_RANK], dim[MAX_RANK]; /* within the slice */
} Box;

typedef VEC(Box) BoxVec;

/* ---- what must be there ----------------------------------------------------------------- */

static Status check_weight(const Weights *weights, const NamedTensor *wanted)
{
    char have[SHAPE_TEXT], want[SHAPE_TEXT];
    const Weight *w = weights_find(weights, wanted->name);
    if (!w) return fail(ERR_FORMAT, "%s has no tensor %s", weights->path, wanted->name);
    const char *file = w->n_pieces ? w->piece[0].from->map->path : weights->path;
    if (!shape_equal(&wanted->tensor.shape, &w->shape))
        return fail(ERR_SHAPE, "%s: tensor %s is [%s], but [%s] is needed", file, wanted->name,
                    shape_text(&w->shape, have), shape_text(&wanted->tensor.shape, want));
    if (w->dtype == DTYPE_COUNT)
        return fail(ERR_UNSUPPORTED,
                    "%s: tensor %s has elements of type %s, which drover cannot read", file,
                    wanted->name, w->kind);
    return OK;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* A tensor that no one asks for means that the model is another one than config.json says, or is
 * stored in a way that is not known here. Only a head is left over in good order: that of a model
 * which ties it to the embedding. */
static Status check_left_over(const Weights *weights, const NamedTensor *wanted, int n)
{
    const char **names = xmalloc(sizeof *names * (size_t)(n + 1));
    for (int i = 0; i < n; i++) names[i] = wanted[i].name;
    qsort(names, (size_t)n, sizeof *names, by_name);
    const Weight *stranger = NULL;
    for (int i = 0; i < weights->n && !stranger; i++) {
        const Weight *w = &weights->weight[i];
        bool known = (n > 0 && bsearch(&w->name, names, (size_t)n, sizeof *names, by_name)) ||
                     !strcmp(w->name, "lm_head.weight");
        if (!known) stranger = w;
    }
    free(names);
    if (!stranger) return OK;
    const char *file = stranger->n_pieces ? stranger->piece[0].from->map->path : weights->path;
    return fail(ERR_FORMAT,
                "%s: tensor %s (%s) has no place in the model that config.json describes", file,
                stranger->name, stranger->kind);
}

Status weights_match(const Weights *weights, const NamedTensor *tensors, int n)
{
    TRY(check_left_over(weights, tensors, n));
    for (int i = 0; i < n; i++) TRY(check_weight(weights, &tensors[i]));
    return OK;
}

static Status check_slice(const Weights *weights, const WeightSlice *slice)
{
    char have[SHAPE_TEXT], want[SHAPE_TEXT];
    const Weight *w = weights_find(weights, slice->name);
    const Shape *s = &slice->tensor.shape;
    if (!w) return fail(ERR_FORMAT, "%s has no tensor %s", weights->path, slice->name);
    bool inside = s->rank == w->shape.rank && w->dtype != DTYPE_COUNT;
    for (int d = 0; inside && d < s->rank; d++)
        inside = slice->first[d] >= 0 && s->dim[d] <= w->shape.dim[d] &&
                 slice->first[d] <= w->shape.dim[d] - s->dim[d];
    if (inside) return OK;
    return fail(ERR_SHAPE, "%s: a part of [%s] is not inside tensor %s, %s of [%s]", weights->path,
                shape_text(s, want), slice->name, w->kind, shape_text(&w->shape, have));
}

/* ---- boxes ------------------------------------------------------------------------------ */

/* Cuts the slice where its weight's parts meet, and further until the boxes are small: first along
 * the axis that is outermost in the file, so that a box is one stretch of it. */
static void cut_box(Box box, const WeightPiece *piece, int64_t limit, BoxVec *boxes)
{
    int64_t count = 1, step;
    int widest = 0;
    int rank = box.slice->tensor.shape.rank;
    for (int d = 0; d < rank; d++) count *= box.dim[d];
    if (count == 0) return;
    for (int d = 1; d < rank; d++)
        if (box.dim[widest] == 1 || (box.dim[d] > 1 && piece->stride[d] > piece->stride[widest]))
            widest = d;
    step = rank ? max_i64(1, (int64_t)((double)box.dim[widest] * (double)limit / (double)count))
                : 1;
    if (count <= limit || box.dim[widest] <= step) {
        VEC_PUSH(boxes, box);
        return;
    }
    int64_t end = box.at[widest] + box.dim[widest];
    for (; box.at[widest] < end; box.at[widest] += step) {
        Box part = box;
        part.dim[widest] = min_i64(step, end - box.at[widest]);
        cut_box(part, piece, limit, boxes);
    }
}

static void cut_slice(const Weight *weight, const WeightSlice *slice, int64_t limit, BoxVec *boxes)
{
    for (int i = 0; i < weight->n_pieces; i++) {
        const WeightPiece *piece = &weight->piece[i];
        Box box = {.weight = weight, .slice = slice};
        bool empty = false;
        for (int d = 0; d < slice->tensor.shape.rank; d++) {
            int64_t begin = max_i64(piece->at[d], slice->first[d]);
            int64_t end = min_i64(piece->at[d] + piece->dim[d],
                                  slice->first[d] + slice->tensor.shape.dim[d]);
            empty = empty || begin >= end;
            box.at[d] = begin - slice->first[d];
            box.dim[d] = end - begin;
        }
        if (!empty) cut_box(box, piece, limit, boxes);
    }
}

static Status read_box(void *context, int i)
{
    const Box *box = &((const BoxVec *)context)->at[i];
    const Tensor *whole = &box->slice->tensor;
    int64_t first[MAX_RANK] = {0}, offset = 0;
    Tensor part = *whole;
    for (int d = 0; d < whole->shape.rank; d++) {
        first[d] = box->slice->first[d] + box->at[d];
        offset += box->at[d] * whole->stride[d];
        part.shape.dim[d] = box->dim[d];
    }
    part.data = (char *)whole->data + offset * (int64_t)dtype_bytes(whole->dtype);
    return weights_read(box->weight, first, &part);
}

static Status load(const Weights *weights, const WeightSlice *slices, int n)
{
    BoxVec boxes = {0};
    double elements = 0;
    uint64_t bytes = 0;
    for (int i = 0; i < n; i++) {
        elements += (double)tensor_count(&slices[i].tensor);
        bytes += tensor_bytes(&slices[i].tensor);
    }
    int64_t limit = max_i64(BOX_ELEMENTS, (int64_t)(elements / MAX_BOXES));
    for (int i = 0; i < n; i++)
        cut_slice(weights_find(weights, slices[i].name), &slices[i], limit, &boxes);
    Status status = parallel_each((int)boxes.n, parallel_threads(bytes), read_box, &boxes);
    VEC_FREE(&boxes);
    return status;
}

/* ---- entry ------------------------------------------------------------------------------ */

Status weights_load_slices(const Weights *weights, const WeightSlice *slices, int n)
{
    for (int i = 0; i < n; i++) TRY(check_slice(weights, &slices[i]));
    return load(weights, slices, n);
}

Status weights_load(const Weights *weights, const NamedTensor *tensors, int n)
{
    TRY(weights_match(weights, tensors, n));
    TRY(weights_verify(weights));
    WeightSlice *slices = xcalloc((size_t)n + 1, sizeof *slices);
    for (int i = 0; i < n; i++)
        slices[i] = (WeightSlice){.name = tensors[i].name, .tensor = tensors[i].tensor};
    Status status = load(weights, slices, n);
    free(slices);
    return status;
}
