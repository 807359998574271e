/* tokenizer.json of any bytes: refused, or a tokenizer whose encoding can be undone. */
#include "text/text_internal.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char text[] = "abc ab\n<|eot|>\xff\xc3\xa9 don't 1234";
    Tokenizer *t = NULL;
    Bytes file = {data, size};
    if (hf_parse(file, "fuzz", &t) != OK) {
        CHECK(!t);
        return 0;
    }
    (void)!hf_parse_config(file, "fuzz", t);
    Encoder *e;
    IdVec ids = {0};
    Str back = {0};
    CHECK(encoder_create(t, &e) == OK);
    Status status = encoder_encode(e, text, sizeof text, ENCODE_SPECIALS, &ids);
    CHECK(tokenizer_decode(t, ids.at, ids.n, &back) == OK);
    CHECK(status == ERR_REFUSED ||
          (back.n == sizeof text && memcmp(back.at, text, sizeof text) == 0));
    str_deinit(&back);
    VEC_FREE(&ids);
    encoder_destroy(e);
    tokenizer_destroy(t);
    return 0;
}
