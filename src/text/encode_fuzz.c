/* Any text, a tokenizer trained on the text itself: encoding can be undone, the cache changes
 * nothing, the two ways of merging agree, and what streams out is UTF-8. */
#include "text/text_internal.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static Status next_text(void *context, Bytes *text)
{
    Bytes *left = context;
    *text = *left;
    *left = (Bytes){0};
    return OK;
}

static void check_merging(const Tokenizer *t, Bytes piece)
{
    MergeScratch scratch = {0};
    IdVec a = {0}, b = {0};
    merge_short(t, piece, &a);
    merge_long(t, &scratch, piece, &b);
    CHECK(a.n == b.n && memcmp(a.at, b.at, a.n * sizeof *a.at) == 0);
    merge_scratch_deinit(&scratch);
    VEC_FREE(&a);
    VEC_FREE(&b);
}

static void check_decoding(const Tokenizer *t, const IdVec *ids, Bytes text)
{
    Str back = {0}, stream = {0};
    Decoder d = {.tokenizer = t};
    CHECK(tokenizer_decode(t, ids->at, ids->n, &back) == OK);
    CHECK(back.n == text.n && (text.n == 0 || memcmp(back.at, text.at, text.n) == 0));
    for (size_t i = 0; i < ids->n; i++) {
        size_t before = stream.n;
        CHECK(decoder_push(&d, ids->at[i], &stream) == OK);
        if (stream.n > before)
            CHECK(utf8_valid((const uint8_t *)stream.at + before, stream.n - before));
    }
    decoder_finish(&d, &stream);
    CHECK(!utf8_valid(text.at, text.n) ||
          (stream.n == text.n && memcmp(stream.at, back.at, text.n) == 0));
    str_deinit(&back);
    str_deinit(&stream);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0 || size > 4096) return 0;
    Bytes text = {data, size}, left = text;
    TextSource source = {next_text, &left};
    TokenizerTrainOptions options = {.vocab_size = 256 + TRAINED_SPECIALS + data[0], .threads = 1};
    Tokenizer *t;
    Encoder *e;
    IdVec first = {0}, again = {0};
    log_set_level(LOG_SILENT);
    CHECK(tokenizer_train(&options, &source, &t) == OK);
    CHECK(encoder_create(t, &e) == OK);
    for (unsigned flags = ENCODE_TEXT; flags <= ENCODE_SPECIALS; flags++) {
        first.n = again.n = 0;
        CHECK(encoder_encode(e, data, size, flags, &first) == OK);
        CHECK(encoder_encode(e, data, size, flags, &again) == OK);
        CHECK(first.n == again.n && memcmp(first.at, again.at, first.n * sizeof *first.at) == 0);
        check_decoding(t, &first, text);
    }
    check_merging(t, (Bytes){data, size < MERGE_SHORT_BYTES ? size : MERGE_SHORT_BYTES});
    VEC_FREE(&first);
    VEC_FREE(&again);
    encoder_destroy(e);
    tokenizer_destroy(t);
    return 0;
}
