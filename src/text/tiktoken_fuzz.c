/* tiktoken files of any bytes: refused, or a tokenizer that finds its own tokens. */
#include "text/text_internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    Tokenizer *t = NULL;
    if (tiktoken_parse((Bytes){data, size}, "fuzz", true, &t) != OK) {
        CHECK(!t);
        return 0;
    }
    for (int32_t id = 0; id < tokenizer_vocab_size(t); id++) {
        Bytes b = tokenizer_token_bytes(t, id);
        if (tokenizer_token_kind(t, id) == TOKEN_PLAIN) CHECK(vocab_find_bytes(t, b.at, b.n) == id);
    }
    tokenizer_destroy(t);
    return 0;
}
