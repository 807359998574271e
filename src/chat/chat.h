/* chat: conversations as token ids, and the ids of an answer as a message.
 *
 * What it is.   Messages, tools and their results in; token ids and a mask of what the assistant
 *               says
 *               out, as the chat templates of Llama 3, 3.1 (and 3.3), 3.2 and 4 write them, or a
 *               template of our own for models trained here. And the way back.
 * Depends on.   base, text; jansson.
 * Owns.         Chat: its messages and tools. ChatFormat: the ids of its special tokens, the two
 *               texts
 *               that introduce tools; does not change after it was made, so that threads share it.
 * Invariants.   Special tokens come from the format alone: a message that spells "<|eot_id|>" is
 *               ten
 *               letters of text, whoever wrote it. The text between two special tokens is encoded
 *               as one
 *               stretch, as a tokenizer does with a rendered template. A token of which one byte
 *               was said
 *               by the assistant counts as said by the assistant.
 * Use:
 *     Chat chat = {0}; ChatFormat *format; ChatTokens tokens = {0};
 *     TRY(chat_parse(text, "request", &chat));
 *     TRY(chat_format_create(tokenizer, NULL, "model/", &format));     NULL: the model has no
 *     format
 *     TRY(chat_render(format, encoder, &chat, &tokens));               tokens.ids, tokens.mask
 *     TRY(chat_parse_answer(format, ids, n, &answer));                 answer.message.call, .part
 */
#ifndef CHAT_CHAT_H
#define CHAT_CHAT_H

#include "text/text.h"

/* ---- messages --------------------------------------------------------------------------- */

typedef enum ChatRole {
    CHAT_SYSTEM,
    CHAT_USER,
    CHAT_ASSISTANT,
    CHAT_TOOL,    /* what a tool gave back */
    CHAT_IPYTHON, /* the same, by the name that the formats give it */
    CHAT_ROLES,
} ChatRole;
const char *chat_role_name(ChatRole role);

typedef enum ChatPartKind { CHAT_TEXT, CHAT_IMAGE } ChatPartKind;

typedef struct ChatPart {
    ChatPartKind kind;
    Bytes text; /* of an image: its URL or path, empty where the part names none */
} ChatPart;

typedef struct ChatArgument {
    Bytes name, text;
    bool is_text; /* a string: text is what it says; any other value: text is its JSON */
} ChatArgument;

typedef struct ChatCall {
    Bytes name;
    Bytes arguments; /* a JSON object on one line, in the order of the caller */
    const ChatArgument *argument;
    int n_arguments;
} ChatCall;

/* What the pointers reach belongs to the Chat or ChatAnswer that the message is in. */
typedef struct ChatMessage {
    ChatRole role;
    const ChatPart *part;
    int n_parts;
    const ChatCall *call; /* of the assistant */
    int n_calls;
    Bytes result; /* of a tool: the content as JSON, a plain text in quotes; part holds it only if
                     it is a plain text */
} ChatMessage;

typedef enum ChatToolPlace {
    CHAT_TOOLS_DEFAULT,
    CHAT_TOOLS_IN_USER,
    CHAT_TOOLS_IN_SYSTEM
} ChatToolPlace;

/* {0} is an empty conversation; chat_deinit frees it. */
typedef struct Chat {
    Arena arena; /* all text */
    struct {
        ChatMessage *at;
        size_t n, cap;
    } messages;
    struct {
        Bytes *at; /* JSON, indented by four */
        size_t n, cap;
    } tools;
    struct {
        Bytes *at; /* names, for formats that know built-in tools */
        size_t n, cap;
    } builtins;
    bool has_builtins; /* a list was given; an empty one counts */
    ChatToolPlace tool_place;
    Bytes date;        /* "26 Jul 2024"; empty: as the format does */
    bool wants_answer; /* ends in the header of the assistant's next message */
} Chat;

/* A list of messages as the OpenAI API has them, or an object with "messages" and, if wanted,
 * "tools", "builtin_tools", "tools_in_user_message", "date_string", "add_generation_prompt", named
 * as in transformers' apply_chat_template. name goes into the sentences. What is not known is
 * refused. */
Status chat_parse(Bytes json, const char *name, Chat *chat);
void chat_add_text(Chat *chat, ChatRole role, Bytes text);     /* copies */
void chat_add_message(Chat *chat, const ChatMessage *message); /* copies */
void chat_deinit(Chat *chat);

/* ---- formats ---------------------------------------------------------------------------- */

typedef struct ChatFormat ChatFormat;

/* The names to choose from, NULL past the end: "llama3", "llama3.1", ... */
const char *chat_format_name_at(int index);
/* By name; or, name NULL, the one whose template the tokenizer carries: *out is NULL when it
 * carries none, and, with a warning that names `where`, when it is one that we do not know. */
Status chat_format_create(const Tokenizer *tokenizer, const char *name, const char *where,
                          ChatFormat **out);
void chat_format_destroy(ChatFormat *format);
const char *chat_format_name(const ChatFormat *format);
/* The texts that introduce tools in the system's and in the first user's message. They are those of
 * the model's template; of ours where it has none. */
Bytes chat_format_preamble(const ChatFormat *format, ChatToolPlace place);
void chat_format_set_preamble(ChatFormat *format, ChatToolPlace place, Bytes text); /* copies */

/* Our own template, in Jinja, with the token names of this vocabulary; NULL when it has no tokens
 * for turns. In the arena. A tokenizer that carries it has the format "drover". */
const char *chat_template_own(const Tokenizer *tokenizer, Arena *arena);

/* ---- to tokens and back ----------------------------------------------------------------- */

typedef struct ChatTokens {
    IdVec ids;
    struct {
        uint8_t *at; /* [ids.n] 1: said by the assistant, its end-of-turn token included */
        size_t n, cap;
    } mask;
} ChatTokens;

/* Appends the whole conversation, begin-of-text included. What the format cannot say is refused. */
Status chat_render(const ChatFormat *format, Encoder *encoder, const Chat *chat,
                   ChatTokens *tokens);
void chat_tokens_deinit(ChatTokens *tokens);

typedef struct ChatAnswer {
    Arena arena;
    ChatMessage message; /* of the assistant: one part of text or none, and its calls */
    bool open;           /* it may yet become a call: not to be shown while it grows */
    bool is_code;        /* the text stood behind the token for code */
} ChatAnswer;

/* Ids after the header of the assistant, to the end of its turn or to where they are so far. What
 * is not a call to the last letter stays text. */
Status chat_parse_answer(const ChatFormat *format, const int32_t *ids, size_t n,
                         ChatAnswer *answer);
void chat_answer_deinit(ChatAnswer *answer);

#endif
