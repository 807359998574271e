/* Shared by the files of src/chat only. */
#ifndef CHAT_CHAT_INTERNAL_H
#define CHAT_CHAT_INTERNAL_H

#include "chat/chat.h"

#include <jansson.h>
#include <string.h>

enum {
    MAX_CHAT_BYTES = 64 << 20,  /* a conversation as JSON */
    MAX_TOOLS_BYTES = 16 << 20, /* all tools, indented */
    MAX_MESSAGES = 1 << 16,
    MAX_LIST = 4096,      /* parts, calls, arguments, tools */
    MAX_JSON_DEPTH = 100, /* the indentation grows with it */
    MAX_NAME_BYTES = 256, /* of a function */
    MAX_DATE_BYTES = 64,
    MAX_TEMPLATE_BYTES = 1 << 20,
};

static inline Bytes bytes_of(const char *text)
{
    return (Bytes){(const uint8_t *)text, strlen(text)};
}
static inline bool bytes_equal(Bytes a, const char *text)
{
    return a.n == strlen(text) && (a.n == 0 || memcmp(a.at, text, a.n) == 0);
}
static inline Bytes str_bytes(const Str *s)
{
    return (Bytes){(const uint8_t *)(s->at ? s->at : ""), s->n};
}
static inline Bytes json_bytes(const json_t *string)
{
    return (Bytes){(const uint8_t *)json_string_value(string), json_string_length(string)};
}
Bytes chat_copy(Arena *arena, Bytes text);

/* ---- JSON as Python writes it (json_text.c) --------------------------------------------- */

/* json.dumps(value, ensure_ascii=False, indent=...): indent 0 is one line. Refuses what is nested
 * too deeply or becomes longer than max_bytes. */
Status chat_json_write(const json_t *value, int indent, size_t max_bytes, const char *name,
                       Str *out);
void chat_json_string(Bytes text, Str *out); /* in quotes */

/* ---- calls (call.c) --------------------------------------------------------------------- */

/* A function's name: 1 to MAX_NAME_BYTES bytes that need no escape in JSON. */
Status chat_check_name(Bytes name, const char *where);
/* A name and an object of arguments as a call, in the arena. */
Status chat_make_call(Arena *arena, Bytes name, const json_t *arguments, const char *where,
                      ChatCall *call);
ChatCall chat_copy_call(Arena *arena, const ChatCall *call);

/* ---- templates (template.c) ------------------------------------------------------------- */

/* What identifies a Jinja template: a hash of its tags without comments, blanks and the texts that
 * introduce tools; and these texts, in order, in the arena. */
typedef struct TemplateFacts {
    uint64_t structure;
    Bytes preamble[2];
    int n_preambles;
} TemplateFacts;
void template_read(Bytes text, Arena *arena, TemplateFacts *facts);

/* ---- formats (format.c) ----------------------------------------------------------------- */

typedef enum FormatToken {
    TOKEN_BOS,
    TOKEN_HEADER_START,
    TOKEN_HEADER_END,
    TOKEN_EOT,        /* the turn is over */
    TOKEN_EOM,        /* the message is over, an answer of a tool is awaited */
    TOKEN_CALL_START, /* a call or code follows */
    TOKEN_CALL_END,
    TOKEN_IMAGE,
    FORMAT_TOKENS,
} FormatToken;

typedef struct Writer Writer;

/* Which texts a model of this format writes when it calls. */
typedef enum CallStyle { CALLS_NONE, CALLS_LLAMA3, CALLS_LLAMA4, CALLS_OWN } CallStyle;

typedef struct FormatDef {
    const char *name;
    const char *const
        *token_names; /* NULL: those of Llama 4 or of Llama 3, as the vocabulary has them */
    unsigned needs;   /* bits of FormatToken that the vocabulary must have */
    CallStyle calls;
    Status (*write)(Writer *w, const Chat *chat);
} FormatDef;

extern const FormatDef format_llama3, format_llama31, format_llama32, format_llama4, format_own;
extern const char *const llama3_tokens[FORMAT_TOKENS];
extern const char *const llama4_tokens[FORMAT_TOKENS];
extern const char preamble_system[], preamble_user[]; /* ours */

struct ChatFormat {
    const FormatDef *def;
    const Tokenizer *tokenizer;
    const char *const *token_names; /* in this vocabulary; NULL: the format does without */
    int32_t token[FORMAT_TOKENS];   /* -1: none */
    Arena arena;
    Bytes preamble[2];   /* in the user's, in the system's message */
    bool always_answers; /* the template of Llama 3.0 in its first edition: a header at the end,
                            asked for or not */
};

/* ---- writing (render.c) ----------------------------------------------------------------- */

struct Writer {
    const ChatFormat *format;
    Encoder *encoder;
    ChatTokens *out;
    Str text;         /* since the last special token */
    size_t said_from; /* where in text the assistant begins to speak; SIZE_MAX: nowhere */
    bool is_speaking;
};

Status write_special(Writer *w, FormatToken token);
void write_text(Writer *w, Bytes text);
void write_word(Writer *w, const char *text);
/* Between these two the assistant speaks; the end follows right after a special token. */
void write_speech_begin(Writer *w);
void write_speech_end(Writer *w);
Status write_header(Writer *w, const char *role); /* with the two newlines */
/* The texts of a message as one, with `trim` without white space around it. Images are refused. */
Status write_joined(Writer *w, const ChatMessage *message, bool trim);
/* Texts and images in order. */
Status write_parts(Writer *w, const ChatMessage *message);
void write_tools(Writer *w, const Chat *chat, ChatToolPlace place); /* preamble and tools */
/* {"name": "n", "parameters": {...}} */
void write_json_call(Writer *w, const ChatCall *call);
Bytes chat_trim(Bytes text); /* what Python's str.strip removes */
/* The tools go into the user's message, which is messages[first]. */
Status write_tools_in_user(Writer *w, const Chat *chat, size_t first);

/* ---- reading answers (pycall.c) --------------------------------------------------------- */

typedef struct ChatCalls {
    ChatCall *at;
    size_t n, cap;
} ChatCalls;

/* [f(a=1), g(b="x")] as a list of calls: false, and nothing added, when it is not that to the end.
 */
bool pycall_parse(Arena *arena, Bytes text, ChatCalls *calls);

#endif
