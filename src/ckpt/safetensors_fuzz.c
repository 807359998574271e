/* Fuzz target: a whole safetensors file. What is accepted must be readable to the last element, and
 * its tensors must tile the data. */
#include <stdlib.h>
#include <string.h>

#include "ckpt/ckpt_internal.h"

static void check(Safetensors *file)
{
    uint64_t at = file->header_bytes;
    for (int i = 0; i < file->n; i++) {
        const SafetensorsEntry *entry = safetensors_at(file, i);
        Hash128 hash;
        CHECK(entry->offset == at && safetensors_find(file, entry->name) == entry);
        CHECK(safetensors_hash(file, entry, &hash) == OK);
        at += entry->bytes;
        if (entry->dtype == DTYPE_COUNT || entry->bytes == 0) continue;
        int64_t count = shape_count(&entry->shape);
        void *out = xmalloc((size_t)count * sizeof(double));
        CHECK(safetensors_read(entry, 0, count, entry->dtype, out) == OK);
        (void)!safetensors_read(entry, 0, count, DTYPE_F32, out);
        free(out);
    }
    CHECK(at == file->map.n);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    Safetensors *file;
    Status status = safetensors_open_memory((Bytes){data, size}, "fuzz", &file);
    if (status != OK) return 0;
    check(file);
    safetensors_close(file);
    return 0;
}
