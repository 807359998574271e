/* A template of any bytes: the same facts twice, no text in them that is longer than the template.
 */
#include "chat/chat_internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    Arena arena = {0};
    TemplateFacts facts, again;
    template_read((Bytes){data, size}, &arena, &facts);
    template_read((Bytes){data, size}, &arena, &again);
    CHECK(facts.structure == again.structure && facts.n_preambles == again.n_preambles &&
          facts.n_preambles <= 2);
    for (int i = 0; i < facts.n_preambles; i++) CHECK(facts.preamble[i].n < size);
    arena_deinit(&arena);
    return 0;
}
