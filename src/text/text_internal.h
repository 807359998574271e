/* Shared by the files of src/text only. */
#ifndef TEXT_TEXT_INTERNAL_H
#define TEXT_TEXT_INTERNAL_H

#include "text/text.h"

#include <string.h>

enum {
    MAX_FILE_BYTES = 64 << 20, /* the largest published tokenizer.json has 34 MB */
    MAX_TOKENS = 2 << 20,      /* entries of a vocabulary; published: up to 262,144 */
    MAX_MERGES = 8 << 20,      /* Llama 4, all that ranks imply: 439,802 */
    MAX_JSON_VALUES = 6 << 20, /* Llama 4's tokenizer.json: 1.5 million */
    MAX_TOKEN_BYTES = 512,     /* longest published: 128 */
    MAX_PATTERN_BYTES = 16 << 10,
    MAX_TEMPLATE_BYTES = 1 << 20,
    MAX_PIECE_BYTES = 4 << 20,
    MAX_PROBES =
        1000, /* of a hash table half full: far beyond chance, so only a forged file has it */
    MAX_STOPS = 8,
};

/* ---- Unicode ---------------------------------------------------------------------------- */

/* Class of a code point: one bit, so that a set of classes is a mask. */
enum {
    CHAR_OTHER = 0x01,   /* punctuation, symbols, control, unassigned */
    CHAR_UPPER = 0x02,   /* Lu Lt */
    CHAR_LOWER = 0x04,   /* Ll */
    CHAR_LETTER = 0x08,  /* Lm Lo: neither upper nor lower case */
    CHAR_MARK = 0x10,    /* M */
    CHAR_NUMBER = 0x20,  /* N */
    CHAR_SPACE = 0x40,   /* White_Space less the two below */
    CHAR_NEWLINE = 0x80, /* CR LF */
    CHAR_L = CHAR_UPPER | CHAR_LOWER | CHAR_LETTER,
    CHAR_S = CHAR_SPACE | CHAR_NEWLINE,
};

enum { CODE_POINTS = 0x110000, UNICODE_RANGES = 3194 };
extern const uint32_t unicode_ranges[UNICODE_RANGES];
/* First and last of the ranges where \w (Alphabetic, M, Nd, Pc, Join_Control) and the classes of
 * letters, marks and numbers disagree. */
enum { UNICODE_WORD_RANGES = 82 };
extern const uint32_t unicode_word_ranges[UNICODE_WORD_RANGES][2];
bool unicode_is_word(uint32_t code_point);
bool unicode_is_space(uint32_t code_point); /* White_Space */
/* Fills one class per code point. */
void unicode_expand(uint8_t classes[CODE_POINTS]);
/* Length of the longest valid UTF-8 beginning of text, and of the longest beginning of which no
 * byte starts a valid character. One of the two is 0, unless n is. */
size_t utf8_valid_run(const uint8_t *text, size_t n);
size_t utf8_invalid_run(const uint8_t *text, size_t n);

/* ---- tokenizer -------------------------------------------------------------------------- */

/* A piece of text as a key: up to 16 bytes as they are, longer ones by hash. */
typedef struct PieceKey {
    uint64_t low, high;
    uint32_t n;
} PieceKey;

typedef struct VocabSlot {
    uint64_t low, high;
    uint32_t n; /* 0 = empty */
    int32_t id;
} VocabSlot;

/* left + right give result; lower priority first, leftmost among equals. */
typedef struct MergeRule {
    int32_t left, right, result;
    uint32_t priority;
} MergeRule;
enum { NO_MERGE = -1 }; /* left of an empty slot */
#define PRIORITY_NONE UINT32_MAX

/* What a kind of tokenizer does in its own way; all the rest of the folder is common to them. */
typedef struct TokenizerKind {
    const char *name;
    /* Text without added tokens to ids, of which nothing came before if is_first. */
    Status (*encode)(Encoder *e, Bytes text, bool is_first, IdVec *ids);
    /* The text that a token stands for. *at_start: no text came before it; cleared where it is
     * text. */
    Bytes (*surface)(const Tokenizer *t, int32_t id, bool *at_start);
    int32_t (*find)(const Tokenizer *t, Bytes text); /* the plain token with this text, or -1 */
    uint64_t (*hash)(const Tokenizer *t);            /* of all that the ids depend on */
    bool (*is_reversible)(const Tokenizer *t);
} TokenizerKind;
extern const TokenizerKind kind_byte_level, kind_sentencepiece;

/* Added tokens as tokenizers knows them; ADDED_MERGEABLE: merging can make it, too. */
enum {
    ADDED_LSTRIP = 0x01,      /* takes the white space before it */
    ADDED_RSTRIP = 0x02,      /* and behind it */
    ADDED_SINGLE_WORD = 0x04, /* not inside a word */
    ADDED_NORMALIZED = 0x08,  /* looked for only in what the others leave */
    ADDED_MERGEABLE = 0x10,
};

/* Ids of added tokens, sorted by their bytes. */
typedef struct AddedSet {
    int32_t *id;
    int32_t n;
} AddedSet;
enum { ADDED_PASSES = 2 }; /* those that are not normalized first */

typedef enum PatternKind { PATTERN_LLAMA3, PATTERN_LLAMA4, PATTERN_PCRE2 } PatternKind;

typedef struct Tokenizer {
    Arena arena; /* owns all that follows, less what is said otherwise */
    const TokenizerKind *how;
    /* vocabulary */
    int32_t n_ids;
    uint32_t *offset; /* [n_ids + 1] into bytes */
    uint8_t *bytes;
    uint8_t *kind;  /* [n_ids] TokenKind */
    uint8_t *flags; /* [n_ids] ADDED_* */
    int32_t byte_id[256];
    uint32_t max_plain_bytes; /* longest plain token */
    VocabSlot *vocab;         /* plain tokens by bytes */
    uint64_t vocab_mask;
    /* merges */
    MergeRule *merges; /* [n_merges] in order of priority, as they would be listed */
    size_t n_merges;
    MergeRule *pairs; /* the same, hashed by (left, right) */
    uint64_t pairs_mask;
    MergeRule *byte_pairs; /* [256][256] by bytes: the first round of every piece */
    bool whole_piece;      /* a piece that is a token needs no merging ("ignore_merges") */
    struct SpModel *sp;    /* of kind_sentencepiece */
    /* pattern of kind_byte_level */
    char *pattern; /* or NULL */
    PatternKind pattern_kind;
    void *regex;      /* pcre2_code of PATTERN_PCRE2, freed by tokenizer_destroy */
    uint8_t *classes; /* [CODE_POINTS] */
    /* added and special tokens */
    AddedSet added[ADDED_PASSES];
    int32_t bos, eos, pad;
    int32_t stops[MAX_STOPS];
    int n_stops;
    bool adds_bos;
    double model_max_length;                 /* 0 = not said */
    char *chat_template;                     /* or NULL */
    TokenizerFile file[TOKENIZER_MAX_FILES]; /* that it came with, to be written back */
    int n_files;
    uint64_t hash;
} Tokenizer;

static inline Bytes token_bytes(const Tokenizer *t, int32_t id)
{
    return (Bytes){t->bytes + t->offset[id], t->offset[id + 1] - t->offset[id]};
}

/* ---- building (build.c) ----------------------------------------------------------------- */

/* A vocabulary as read: token[i] of kind[i], owned by the reader. */
typedef struct TokenList {
    int32_t n;
    Bytes *token;
    uint8_t *kind, *flags; /* flags may be NULL: none */
    const char *where;     /* the file, for sentences */
} TokenList;

/* Builders call these in turn; each may fail, and tokenizer_destroy takes a half-made one.
 *   tokens:     copies the tokens; refuses repeated or over-long ones.
 *   vocabulary: the same, and refuses missing single bytes.
 *   rules:      the merges, copied; priorities set by the caller.
 *   merges:     the same with what byte-level merging needs; or all that ranks imply.
 *   pattern:    recognises the two published ones, compiles any other.
 *   finish:     special tokens by name where they are not set, hash. */
Tokenizer *tokenizer_new(const TokenizerKind *kind);
Status build_tokens(Tokenizer *t, const TokenList *list);
Status build_vocabulary(Tokenizer *t, const TokenList *list);
Status build_rules(Tokenizer *t, const MergeRule *rules, size_t n, const char *where);
Status build_merges(Tokenizer *t, const MergeRule *rules, size_t n, const char *where);
Status build_merges_by_rank(Tokenizer *t, const char *where);
Status build_pattern(Tokenizer *t, const char *pattern, const char *where);
void build_finish(Tokenizer *t);

PieceKey piece_key(const uint8_t *piece, size_t n, size_t room); /* room: bytes readable there */
uint64_t piece_key_hash(PieceKey key);
int32_t vocab_find(const Tokenizer *t, const uint8_t *piece, PieceKey key);
int32_t vocab_find_bytes(const Tokenizer *t, const uint8_t *piece, size_t n);
const MergeRule *merge_find(const Tokenizer *t, int32_t left, int32_t right); /* NULL: none */
void *table_alloc(Tokenizer *t, size_t n_entries, size_t entry_bytes, uint64_t *mask);

/* ---- added tokens (added.c) ------------------------------------------------------------- */

/* Which ids belong to a set: kinds from lowest to highest, with ADDED_NORMALIZED or with 0. */
typedef struct AddedWanted {
    TokenKind lowest, highest;
    uint8_t normalized;
} AddedWanted;
/* Fills the set; two tokens of the same bytes are refused. */
Status added_sort(Tokenizer *t, AddedSet *set, AddedWanted wanted, const char *where);
/* The longest token of the set that text begins with: its id or -1. */
int32_t added_find(const Tokenizer *t, const AddedSet *set, Bytes text);

/* Where tokens of a set can begin in text: by their first two bytes. */
typedef struct AddedFilter {
    uint8_t first[256];      /* 1: some token begins with this byte */
    uint8_t pair[65536 / 8]; /* bit: some token begins with these two, or is the first alone */
} AddedFilter;
void added_fill(const Tokenizer *t, const AddedSet *set, AddedFilter *filter);
static inline bool added_may_begin(const AddedFilter *filter, const uint8_t *at, size_t n)
{
    if (!filter->first[at[0]]) return false;
    int pair = n > 1 ? at[0] << 8 | at[1] : 0;
    return n == 1 || (filter->pair[pair / 8] >> pair % 8 & 1);
}
/* Cuts the added tokens out of the text and encodes the rest in t->how's way. */
Status added_encode(Encoder *e, Bytes text, unsigned flags, IdVec *ids);

/* ---- splitting (split.c) ---------------------------------------------------------------- */

extern const char pattern_llama3[], pattern_llama4[], pattern_gpt2[];
/* End of the piece that begins at pos, of valid UTF-8, pos < n. */
size_t split_llama3(const uint8_t *classes, Bytes text, size_t pos);
size_t split_llama4(const uint8_t *classes, Bytes text, size_t pos);

/* PCRE2's per-thread state (pattern.c). */
typedef struct Matcher {
    void *data, *context, *jit_stack;
} Matcher;
Status pattern_compile(const char *pattern, const char *where, void **regex);
void pattern_free(void *regex);
void matcher_init(Matcher *m, const void *regex);
void matcher_deinit(Matcher *m);
Status matcher_split(Matcher *m, const void *regex, Bytes text, size_t pos, size_t *end);

/* ---- merging (merge.c) ------------------------------------------------------------------ */

typedef struct HeapItem {
    uint32_t priority, pos;
    int32_t left, right;
} HeapItem;

/* Scratch of the merging of long pieces. */
typedef struct MergeScratch {
    HeapItem *heap;
    int32_t *id;
    uint32_t *before, *after;
    size_t cap; /* bytes of the longest piece so far */
} MergeScratch;

void merge_piece(const Tokenizer *t, MergeScratch *scratch, Bytes piece, IdVec *ids);
/* Merges the symbols id[0..n) in place, n <= MERGE_SHORT_BYTES, or those in scratch->id: how many
 * are left. */
size_t merge_few_symbols(const Tokenizer *t, int32_t *id, size_t n);
size_t merge_many_symbols(const Tokenizer *t, MergeScratch *scratch, size_t n);
void merge_reserve(MergeScratch *scratch, size_t n);
void merge_release(MergeScratch *scratch); /* what a piece of unusual length took */
/* The two ways that merge_piece chooses from, for tests. */
enum { MERGE_SHORT_BYTES = 40 };
void merge_short(const Tokenizer *t, Bytes piece, IdVec *ids); /* n <= MERGE_SHORT_BYTES */
void merge_long(const Tokenizer *t, MergeScratch *scratch, Bytes piece, IdVec *ids);
void merge_scratch_deinit(MergeScratch *scratch);

/* ---- special tokens (special.c) --------------------------------------------------------- */

typedef enum SpecialSet { SPECIALS_LLAMA3, SPECIALS_LLAMA4, SPECIALS_TRAINED } SpecialSet;
/* The name of the i-th special token of a set; beyond the end, of a trained set: reserved ones. */
char *special_name(Arena *arena, SpecialSet set, int i);
enum { LLAMA3_SPECIALS = 256, LLAMA4_SPECIALS = 2048, TRAINED_SPECIALS = 32 };

/* ---- files ------------------------------------------------------------------------------ */

/* From text in memory, for the fuzz targets too; name goes into the sentences. */
Status sp_parse(Bytes file, const char *name, Tokenizer **out);
Status tiktoken_parse(Bytes file, const char *name, bool any_size, Tokenizer **out);
Status hf_parse(Bytes file, const char *name, Tokenizer **out);
Status hf_parse_config(Bytes file, const char *name, Tokenizer *t);
Status hf_parse_special_map(Bytes file, const char *name, Tokenizer *t);
/* tokenizer.json and tokenizer_config.json, appended to text. */
void hf_write_tokenizer(const Tokenizer *t, Str *text);
void hf_write_config(const Tokenizer *t, Str *text);
/* The GPT-2 map between bytes and printable characters. */
int32_t byte_char(uint8_t byte);
int byte_of_char(uint32_t code_point); /* -1: not in the map */

#endif
