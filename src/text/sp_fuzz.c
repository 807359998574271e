/* SentencePiece models of any bytes: refused, or a tokenizer whose encoding can be undone where it
 * says so. */
#include "text/text_internal.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char text[] = " abc  the\n\n12 \xc3\xa9\xff\xe7\x89\x9b<|sep|>\t  a ";
    Tokenizer *t = NULL;
    if (sp_parse((Bytes){data, size}, "fuzz", &t) != OK) {
        CHECK(!t);
        return 0;
    }
    for (int32_t id = 0; id < tokenizer_vocab_size(t); id++) {
        bool at_start = true;
        CHECK(t->how->surface(t, id, &at_start).n <= MAX_TOKEN_BYTES + size);
    }
    Encoder *e;
    CHECK(encoder_create(t, &e) == OK);
    for (unsigned flags = ENCODE_TEXT; flags <= ENCODE_SPECIALS; flags++) {
        IdVec ids = {0};
        Str back = {0};
        CHECK(encoder_encode(e, text, sizeof text - 1, flags, &ids) == OK);
        CHECK(tokenizer_decode(t, ids.at, ids.n, &back) == OK);
        if (tokenizer_is_reversible(t))
            CHECK(back.n == sizeof text - 1 && memcmp(back.at, text, back.n) == 0);
        str_deinit(&back);
        VEC_FREE(&ids);
    }
    encoder_destroy(e);
    tokenizer_destroy(t);
    return 0;
}
