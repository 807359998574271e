/* For the tests of src/chat: the small tokenizers of tests/golden_chat, and conversations in a
 * line. */
#ifndef CHAT_CHAT_TEST_UTIL_H
#define CHAT_CHAT_TEST_UTIL_H

#include "chat/chat_internal.h"

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>

#define assert_ok(call)                                                                            \
    do {                                                                                           \
        if ((call) != OK) fail_msg("%s", status_message());                                        \
    } while (0)

static const char golden_dir[] = SOURCE_DIR "/tests/golden_chat";

typedef struct Speaker {
    Arena arena;
    Tokenizer *tokenizer;
    Encoder *encoder;
    ChatFormat *format;
} Speaker;

static inline Speaker speaker_make(const char *name, const char *vocabulary)
{
    Speaker s = {0};
    assert_ok(tokenizer_load(path_join(&s.arena, golden_dir, vocabulary), &s.tokenizer));
    assert_ok(encoder_create(s.tokenizer, &s.encoder));
    assert_ok(chat_format_create(s.tokenizer, name, "test", &s.format));
    return s;
}

static inline void speaker_free(Speaker *s)
{
    chat_format_destroy(s->format);
    encoder_destroy(s->encoder);
    tokenizer_destroy(s->tokenizer);
    arena_deinit(&s->arena);
}

/* The ids as text, names of special tokens included. */
static inline const char *speaker_text(Speaker *s, const IdVec *ids)
{
    Str text = {0};
    assert_ok(tokenizer_decode(s->tokenizer, ids->at, ids->n, &text));
    const char *copy = arena_strndup(&s->arena, text.n ? text.at : "", text.n);
    str_deinit(&text);
    return copy;
}

/* The rendered conversation as text; NULL when it is refused. */
static inline const char *speaker_render(Speaker *s, const char *json)
{
    Chat chat = {0};
    ChatTokens tokens = {0};
    assert_ok(chat_parse(bytes_of(json), "test", &chat));
    Status status = chat_render(s->format, s->encoder, &chat, &tokens);
    const char *text = status == OK ? speaker_text(s, &tokens.ids) : NULL;
    chat_tokens_deinit(&tokens);
    chat_deinit(&chat);
    return text;
}

#endif
