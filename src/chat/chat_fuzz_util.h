/* For the fuzz targets of src/chat: one vocabulary with the tokens for turns, and every format over
 * it. */
#ifndef CHAT_CHAT_FUZZ_UTIL_H
#define CHAT_CHAT_FUZZ_UTIL_H

#include "chat/chat_internal.h"

#include <stdlib.h>

enum { FUZZ_FORMATS = 5 };

static inline Status fuzz_next_text(void *context, Bytes *text)
{
    Bytes *left = context;
    *text = *left;
    *left = (Bytes){0};
    return OK;
}

/* Made once and kept. Names are those of Llama 4, whatever the format: only ids count. */
static inline ChatFormat *fuzz_format(int index, Encoder **encoder)
{
    static const FormatDef *const defs[FUZZ_FORMATS] = {
        &format_llama3, &format_llama31, &format_llama32, &format_llama4, &format_own};
    static Tokenizer *tokenizer;
    static Encoder *shared;
    static ChatFormat formats[FUZZ_FORMATS];
    if (!tokenizer) {
        Bytes text = bytes_of("assistant\n\nuser\n\n{\"name\": \"\", \"parameters\": {\"a\": 1}} "
                              "call( Environment: ipython\n");
        TextSource source = {fuzz_next_text, &text};
        TokenizerTrainOptions options = {.vocab_size = 340, .threads = 1, .min_count = 1};
        log_set_level(LOG_SILENT);
        CHECK(tokenizer_train(&options, &source, &tokenizer) == OK);
        CHECK(encoder_create(tokenizer, &shared) == OK);
        for (int i = 0; i < FUZZ_FORMATS; i++) {
            formats[i] = (ChatFormat){
                .def = defs[i], .tokenizer = tokenizer, .token_names = llama4_tokens};
            for (int t = 0; t < FORMAT_TOKENS; t++)
                formats[i].token[t] = tokenizer_id_of(tokenizer, llama4_tokens[t]);
            if (i < 3) formats[i].token[TOKEN_IMAGE] = formats[i].token[TOKEN_CALL_END] = -1;
            formats[i].preamble[0] = bytes_of(preamble_user);
            formats[i].preamble[1] = bytes_of(preamble_system);
        }
    }
    *encoder = shared;
    return &formats[index];
}

/* The messages of answers: whole text, arguments that are JSON objects. */
static inline void fuzz_check_message(const ChatMessage *m)
{
    for (int i = 0; i < m->n_parts; i++) CHECK(utf8_valid(m->part[i].text.at, m->part[i].text.n));
    for (int i = 0; i < m->n_calls; i++) {
        Bytes arguments = m->call[i].arguments;
        json_t *json = json_loadb((const char *)arguments.at, arguments.n,
                                  JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, NULL);
        CHECK(json_is_object(json) && (int)json_object_size(json) == m->call[i].n_arguments);
        json_decref(json);
    }
}

#endif
