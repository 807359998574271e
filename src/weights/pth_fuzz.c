/* Fuzz target: a file of torch.save, container and pickle. What is accepted lies inside the file,
 * and can be read. */
#include <stdlib.h>
#include <string.h>

#include "weights/weights_internal.h"

static void read_tensor(const Pth *file, const PthTensor *t)
{
    enum { MAX_READ = 1 << 16 };
    Stored stored = {.name = t->name,
                     .map = pth_map(file),
                     .dtype = t->dtype,
                     .type_name = t->type_name,
                     .shape = t->shape,
                     .offset = t->offset,
                     .bytes = t->bytes};
    memcpy(stored.stride, t->stride, sizeof stored.stride);
    WeightPiece piece = piece_whole(&stored);
    Weight w = {.name = t->name,
                .shape = t->shape,
                .dtype = t->dtype,
                .kind = t->type_name,
                .piece = &piece,
                .n_pieces = 1};
    int64_t n = shape_count(&t->shape);
    if (t->dtype == DTYPE_COUNT || n > MAX_READ) return;
    void *values = xmalloc((size_t)n * dtype_bytes(t->dtype));
    CHECK(weights_read_range(&w, 0, n, t->dtype, values) == OK);
    free(values);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    Pth *file;
    if (pth_open_memory((Bytes){data, size}, "fuzz", &file) != OK) return 0;
    for (int i = 0; i < pth_count(file); i++) {
        const PthTensor *t = pth_at(file, i);
        CHECK(t->offset <= size && t->bytes <= size - t->offset && pth_find(file, t->name) == t);
        read_tensor(file, t);
    }
    (void)pth_verify(file);
    pth_close(file);
    return 0;
}
