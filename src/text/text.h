/* text: tokenizers. Byte-level and SentencePiece BPE: load, save, encode, decode; the former also
 * train.
 *
 * What it is.   Text to token ids and back: as tiktoken and Hugging Face tokenizers do it for the
 *               Llama 3 and Llama 4 vocabularies and for any other byte-level BPE; as sentencepiece
 *               does it for a BPE model without normalization table, such as Grok-1's.
 * Depends on.   base; jansson (files), PCRE2 (patterns other than the two that are built in).
 * Owns.         Tokenizer: vocabulary, merges, special tokens; does not change after it was made,
 *               so
 *               that threads share it. Encoder: a thread's scratch and its cache of pieces.
 * Invariants.   decode(encode(x)) == x for every byte string x. What is not valid UTF-8 is allowed:
 *               each longest run of such bytes is a piece of its own, and the valid text between
 *               two such runs is split as if it stood alone. (SentencePiece: with byte pieces and
 *               without remove_extra_whitespaces, and but for U+2581, which is its space:
 *               sp_encode.c.
 *               Added tokens that strip white space take it away, as their flags say.)
 *               Pieces of more than 4 MiB are cut there. Time is O(n log n), memory O(longest
 *               piece).
 *               Letters, marks, digits and spaces are those of Unicode 16 for the Llama patterns
 *               (as
 *               in tiktoken 0.14 and tokenizers 0.23), those of the PCRE2 library for other
 *               patterns.
 * Use:
 *     Tokenizer *tokenizer; Encoder *encoder; IdVec ids = {0}; Str text = {0};
 *     TRY(tokenizer_load("llama4/", &tokenizer));
 *     TRY(encoder_create(tokenizer, &encoder));
 *     TRY(encoder_encode(encoder, "Hello", 5, ENCODE_TEXT, &ids));
 *     TRY(tokenizer_decode(tokenizer, ids.at, ids.n, &text));
 */
#ifndef TEXT_TEXT_H
#define TEXT_TEXT_H

#include "base/base.h"

typedef struct Tokenizer Tokenizer;
typedef struct Encoder Encoder;

/* Token ids on the heap, of the VEC family: VEC_PUSH, VEC_FREE. */
typedef struct IdVec {
    int32_t *at;
    size_t n, cap;
} IdVec;

/* ---- files ------------------------------------------------------------------------------ */

/* A directory with tokenizer.json or tokenizer.model, or one of these files. Beside it are read,
 * where they exist: tokenizer_config.json, special_tokens_map.json, chat_template.jinja. A
 * tokenizer.model is a SentencePiece model or a tiktoken file, as its content tells. The latter
 * names neither its pattern nor its special tokens: 128000 ranks are taken for Llama 3, 200000 for
 * Llama 4, any other number is refused. */
Status tokenizer_load(const char *path, Tokenizer **out);
/* Whether `path` is a file, or a directory with a file that tokenizer_load would take. */
bool tokenizer_exists(const char *path);

/* What holds a tokenizer on disk, as Hugging Face transformers reads it: the files it came with,
 * byte for byte; tokenizer.json and tokenizer_config.json where it came from a tiktoken file or was
 * trained. */
enum { TOKENIZER_MAX_FILES = 5 };
typedef struct TokenizerFile {
    const char *name;
    Bytes text; /* of the tokenizer or of the arena */
} TokenizerFile;
void tokenizer_files(const Tokenizer *tokenizer, Arena *arena,
                     TokenizerFile files[TOKENIZER_MAX_FILES], int *n_files);
/* Writes them; the files of another kind of tokenizer, which would be found first, are removed. */
Status tokenizer_save(const Tokenizer *tokenizer, const char *dir);
void tokenizer_destroy(Tokenizer *tokenizer);

/* ---- vocabulary ------------------------------------------------------------------------- */

typedef enum TokenKind {
    TOKEN_NONE,    /* an id that nothing uses */
    TOKEN_PLAIN,   /* bytes that merging can make */
    TOKEN_ADDED,   /* a word added by hand: always recognised in text */
    TOKEN_SPECIAL, /* recognised only with ENCODE_SPECIALS */
} TokenKind;

int32_t tokenizer_vocab_size(const Tokenizer *tokenizer); /* ids are below this */
TokenKind tokenizer_token_kind(const Tokenizer *tokenizer, int32_t id);
/* Of a special token: its name. Empty for ids out of range. */
Bytes tokenizer_token_bytes(const Tokenizer *tokenizer, int32_t id);
/* How many bytes of text it stands for: none if it is special; one less for SentencePiece's space
 * in front where it is the first of a text. */
size_t tokenizer_text_bytes(const Tokenizer *tokenizer, int32_t id, bool is_first);
/* The id of an added or special token ("<|eot|>"), else of a plain token with these bytes, or -1.
 */
int32_t tokenizer_id_of(const Tokenizer *tokenizer, const char *name);
/* -1 where the tokenizer has none. */
int32_t tokenizer_bos(const Tokenizer *tokenizer);
int32_t tokenizer_eos(const Tokenizer *tokenizer);
int32_t tokenizer_pad(const Tokenizer *tokenizer);
/* Ids that end a generation: end of text, end of turn, end of message. */
const int32_t *tokenizer_stops(const Tokenizer *tokenizer, int *n);
/* Whether Hugging Face's encode would put the begin-of-text token in front; ours never does. */
bool tokenizer_adds_bos(const Tokenizer *tokenizer);
const char *tokenizer_algorithm(const Tokenizer *tokenizer); /* "byte-level BPE" */
const char *tokenizer_pattern(const Tokenizer *tokenizer);   /* NULL: no pattern splits its text */
/* decode(encode(x)) == x for all x, but for U+2581 where the model writes it for a space. */
bool tokenizer_is_reversible(const Tokenizer *tokenizer);
const char *tokenizer_chat_template(const Tokenizer *tokenizer); /* Jinja, or NULL */
/* The one change to a tokenizer that was made: before it is shared. Copies. */
void tokenizer_set_chat_template(Tokenizer *tokenizer, const char *text);
size_t tokenizer_merge_count(const Tokenizer *tokenizer);
/* Equal for tokenizers that give equal ids and have equal special tokens; names shard caches. */
uint64_t tokenizer_hash(const Tokenizer *tokenizer);

/* ---- encoding --------------------------------------------------------------------------- */

enum {
    ENCODE_TEXT = 0,     /* "<|eot|>" in the text is seven letters: for text from outside */
    ENCODE_SPECIALS = 1, /* "<|eot|>" is that token: for templates of ours */
};

/* One per thread; the tokenizer must outlive it. About 1.5 MiB. */
Status encoder_create(const Tokenizer *tokenizer, Encoder **out);
void encoder_destroy(Encoder *encoder);
/* Appends the ids of text[0..n), nothing in front or behind. Fails only when a foreign pattern
 * exceeds PCRE2's match limit; ids may then hold a part of the text. */
Status encoder_encode(Encoder *encoder, const void *text, size_t n, unsigned flags, IdVec *ids);

/* ---- decoding --------------------------------------------------------------------------- */

/* Appends the bytes of the tokens, names of special tokens included. */
Status tokenizer_decode(const Tokenizer *tokenizer, const int32_t *ids, size_t n, Str *out);

/* For text that appears while it is made: only whole UTF-8 characters come out, bytes that can
 * never become one come out as U+FFFD. {tokenizer} starts one. */
typedef struct Decoder {
    const Tokenizer *tokenizer;
    bool skip_special; /* special tokens give no text */
    bool continues;    /* text came before: a first space is one, and not SentencePiece's dummy
                        prefix */
    uint8_t held[4];   /* the beginning of a character */
    int n_held;
} Decoder;

Status decoder_push(Decoder *decoder, int32_t id, Str *out);
void decoder_finish(Decoder *decoder, Str *out); /* what is held becomes U+FFFD */

/* ---- training --------------------------------------------------------------------------- */

/* Texts one after another. A piece never spans two texts. */
typedef struct TextSource {
    Status (*next)(void *context,
                   Bytes *text); /* at == NULL after the last; valid until the next call */
    void *context;
} TextSource;

typedef struct TrainProgress {
    uint64_t read_bytes;          /* text counted so far */
    int64_t n_merges, max_merges; /* merges found so far, of how many */
} TrainProgress;

typedef struct TokenizerTrainOptions {
    int32_t vocab_size;      /* 256 bytes + merges + specials, exactly; at least 288 */
    int32_t max_token_bytes; /* 0 = 128, as the longest token of Llama 3 */
    int64_t min_count;       /* a pair seen less often is not merged; 0 = 2 */
    int threads;             /* 0 = all cores; the result does not depend on it */
    /* Called now and then from the calling thread; anything but OK stops the training. May be
     NULL. */
    Status (*progress)(void *context, const TrainProgress *progress);
    void *progress_context;
} TokenizerTrainOptions;

/* Learns merges with the Llama 4 pattern: the most frequent pair first, among equals the one with
 * the lowest ids. Ids: the 256 bytes, the merges, the special tokens by their Llama 4 names and, to
 * make up vocab_size, <|reserved_special_token_N|>. */
Status tokenizer_train(const TokenizerTrainOptions *options, const TextSource *source,
                       Tokenizer **out);

#endif
