/* Any answer in every format: a message. One with calls, written again, reads back with the same
 * calls. */
#include "chat/chat_fuzz_util.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_again(const ChatFormat *f, Encoder *encoder, const ChatMessage *message)
{
    Chat chat = {0};
    ChatTokens tokens = {0};
    ChatAnswer answer;
    chat_add_message(&chat, message);
    chat.date = bytes_of("1 Jan 2000");
    if (chat_render(f, encoder, &chat, &tokens) == OK) {
        size_t first = 0;
        while (!tokens.mask.at[first]) first++;
        CHECK(chat_parse_answer(f, tokens.ids.at + first, tokens.ids.n - first, &answer) == OK);
        CHECK(answer.message.n_calls == message->n_calls);
        for (int i = 0; i < message->n_calls; i++) {
            Bytes a = message->call[i].arguments, b = answer.message.call[i].arguments;
            CHECK(a.n == b.n && memcmp(a.at, b.at, a.n) == 0);
        }
        chat_answer_deinit(&answer);
    }
    chat_tokens_deinit(&tokens);
    chat_deinit(&chat);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size > 4096) return 0;
    for (int i = 0; i < FUZZ_FORMATS; i++) {
        Encoder *encoder;
        const ChatFormat *f = fuzz_format(i, &encoder);
        IdVec ids = {0};
        ChatAnswer answer;
        CHECK(encoder_encode(encoder, data, size, ENCODE_SPECIALS, &ids) == OK);
        CHECK(chat_parse_answer(f, ids.at, ids.n, &answer) == OK);
        fuzz_check_message(&answer.message);
        if (answer.message.n_calls) check_again(f, encoder, &answer.message);
        chat_answer_deinit(&answer);
        VEC_FREE(&ids);
    }
    return 0;
}
