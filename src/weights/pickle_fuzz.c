/* Fuzz target: the pickle alone, which the container's checksum hides from a mutation. */
#include <string.h>

#include "weights/weights_internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    Arena arena = {0};
    Pickle pickle;
    if (pickle_read(&arena, "fuzz", (Bytes){data, size}, &pickle) == OK)
        for (int i = 0; i < pickle.n; i++) {
            const PickleTensor *t = &pickle.tensor[i];
            CHECK(t->name && t->key && t->type_name && t->element_bytes > 0 &&
                  t->shape.rank <= MAX_RANK);
            CHECK(i == 0 || strcmp(pickle.tensor[i - 1].name, t->name) < 0);
        }
    CHECK(arena.used_bytes <= 16 * size + (4 << 20));
    arena_deinit(&arena);
    return 0;
}
