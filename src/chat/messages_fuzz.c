/* A conversation of any bytes in every format: refused, or ids in which the special tokens are the
 * format's, each said by the assistant only where it speaks; what it says reads back as a message.
 */
#include "chat/chat_fuzz_util.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool is_of_format(const ChatFormat *f, int32_t id)
{
    for (int i = 0; i < FORMAT_TOKENS; i++)
        if (f->token[i] == id) return true;
    return false;
}

static void check_tokens(const ChatFormat *f, const ChatTokens *tokens)
{
    CHECK(tokens->ids.n == tokens->mask.n);
    for (size_t i = 0; i < tokens->ids.n; i++)
        if (tokenizer_token_kind(f->tokenizer, tokens->ids.at[i]) == TOKEN_SPECIAL)
            CHECK(is_of_format(f, tokens->ids.at[i]));
    for (size_t i = 0, end = 0; i < tokens->ids.n; i = end) {
        end = i + 1;
        if (!tokens->mask.at[i]) continue;
        while (end < tokens->ids.n && tokens->mask.at[end]) end++;
        CHECK(tokens->ids.at[end - 1] == f->token[TOKEN_EOT] ||
              tokens->ids.at[end - 1] == f->token[TOKEN_EOM]);
        ChatAnswer answer;
        CHECK(chat_parse_answer(f, tokens->ids.at + i, end - i, &answer) == OK);
        fuzz_check_message(&answer.message);
        chat_answer_deinit(&answer);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    Chat chat = {0};
    if (size > 1 << 16 || chat_parse((Bytes){data, size}, "fuzz", &chat) != OK) return 0;
    if (!chat.date.n) chat.date = bytes_of("1 Jan 2000");
    for (int i = 0; i < FUZZ_FORMATS; i++) {
        Encoder *encoder;
        const ChatFormat *f = fuzz_format(i, &encoder);
        ChatTokens tokens = {0};
        if (chat_render(f, encoder, &chat, &tokens) == OK)
            check_tokens(f, &tokens);
        else
            CHECK(tokens.ids.n == 0);
        chat_tokens_deinit(&tokens);
    }
    chat_deinit(&chat);
    return 0;
}
