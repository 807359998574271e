/* From files into the caller's tensors: everything is matched and checked first, then all is read
 * in pieces on all cores. */
#include <stdlib.h>
#include <string.h>

#include "ckpt/ckpt_internal.h"

/* Elements per piece: large enough that a thread streams, small enough that the last ones spread.
 */
enum { PIECE_ELEMENTS = 1 << 20 };

typedef struct Piece {
    const SafetensorsEntry *entry;
    const Tensor *tensor;
    int64_t first, n;
} Piece;

typedef VEC(Piece) Pieces;

static Status match(const NamedTensor *named, const SafetensorsEntry *entry, const char *where)
{
    char have[SHAPE_TEXT], want[SHAPE_TEXT];
    if (!entry) return fail(ERR_FORMAT, "%s has no tensor %s", where, named->name);
    if (!shape_equal(&named->tensor.shape, &entry->shape))
        return fail(ERR_SHAPE, "%s: tensor %s is [%s], but [%s] is needed",
                    safetensors_path(entry->file), named->name, shape_text(&entry->shape, have),
                    shape_text(&named->tensor.shape, want));
    if (entry->dtype == DTYPE_COUNT)
        return fail(ERR_UNSUPPORTED,
                    "%s: tensor %s has elements of type %s, which drover cannot read",
                    safetensors_path(entry->file), named->name, entry->type_name);
    return OK;
}

static Status read_piece(void *context, int i)
{
    const Piece *piece = &((const Pieces *)context)->at[i];
    const Tensor *tensor = piece->tensor;
    size_t size = dtype_bytes(tensor->dtype);
    if (stride_is_contiguous(&tensor->shape, tensor->stride))
        return safetensors_read(piece->entry, piece->first, piece->n, tensor->dtype,
                                (char *)tensor->data + (size_t)piece->first * size);
    void *packed = xmalloc((size_t)piece->n * size);
    Status status = safetensors_read(piece->entry, piece->first, piece->n, tensor->dtype, packed);
    if (status == OK) tensor_scatter(packed, tensor, piece->first, piece->n);
    free(packed);
    return status;
}

Status tensors_match(TensorSource source, const NamedTensor *tensors, int n)
{
    for (int i = 0; i < n; i++)
        TRY(match(&tensors[i], source.find(source.from, tensors[i].name), source.where));
    if (source.count > n)
        log_warn("%s holds %d tensors that are not used", source.where, source.count - n);
    return OK;
}

Status tensors_load(TensorSource source, const NamedTensor *tensors, int n)
{
    Pieces pieces = {0};
    uint64_t bytes = 0;
    TRY(tensors_match(source, tensors, n));
    for (int i = 0; i < n; i++) {
        const SafetensorsEntry *entry = source.find(source.from, tensors[i].name);
        int64_t count = shape_count(&entry->shape);
        bytes += entry->bytes;
        for (int64_t first = 0; first < count; first += PIECE_ELEMENTS)
            VEC_PUSH(&pieces, ((Piece){entry, &tensors[i].tensor, first,
                                       min_i64(PIECE_ELEMENTS, count - first)}));
    }
    Status status = parallel_each((int)pieces.n, parallel_threads(bytes), read_piece, &pieces);
    VEC_FREE(&pieces);
    return status;
}

static const SafetensorsEntry *find_in_dir(const void *dir, const char *name)
{
    return modeldir_find(dir, name);
}

Status modeldir_load(const ModelDir *dir, const NamedTensor *tensors, int n)
{
    return tensors_load((TensorSource){find_in_dir, dir, modeldir_path(dir), modeldir_count(dir)},
                        tensors, n);
}
