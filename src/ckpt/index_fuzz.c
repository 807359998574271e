/* Fuzz target: model.safetensors.index.json. What is accepted names plain files only, sorted by
 * tensor. */
#include <string.h>

#include "ckpt/ckpt_internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    Arena arena = {0};
    ModelIndex index;
    if (model_index_parse(&arena, "fuzz", (const char *)data, size, &index) == OK) {
        CHECK(index.n > 0 && index.total_bytes >= -1);
        for (int i = 0; i < index.n; i++) {
            CHECK(path_is_plain_name(index.entries[i].shard));
            CHECK(i == 0 || strcmp(index.entries[i - 1].tensor, index.entries[i].tensor) < 0);
        }
    }
    arena_deinit(&arena);
    return 0;
}
