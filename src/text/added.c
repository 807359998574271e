/* Added tokens: words that are cut out of a text before anything else looks at it.
 *
 * The rules are those of Hugging Face tokenizers with no normalizer. Tokens that are not to be
 * normalized come first; the others are looked for in what is left. In each pass the leftmost match
 * counts, the longest among those that begin there, and the search goes on behind it, also when the
 * match is then not used: because it is special and special tokens are not asked for, or because it
 * stands inside a word and must not.
 */
#include "text/encoder.h"

#include <stdlib.h>

/* ---- sets ------------------------------------------------------------------------------- */

/* Shorter first where one begins the other, as memcmp and length order them. */
static int compare_added(const void *a, const void *b, void *tokenizer)
{
    const Tokenizer *t = tokenizer;
    Bytes x = token_bytes(t, *(const int32_t *)a), y = token_bytes(t, *(const int32_t *)b);
    int order = memcmp(x.at, y.at, x.n < y.n ? x.n : y.n);
    return order ? order : (x.n > y.n) - (x.n < y.n);
}

Status added_sort(Tokenizer *t, AddedSet *set, AddedWanted wanted, const char *where)
{
    set->id = ARENA_ARRAY(&t->arena, int32_t, t->n_ids);
    set->n = 0;
    for (int32_t id = 0; id < t->n_ids; id++)
        if (t->kind[id] >= wanted.lowest && t->kind[id] <= wanted.highest &&
            (t->flags[id] & ADDED_NORMALIZED) == wanted.normalized)
            set->id[set->n++] = id;
    qsort_r(set->id, (size_t)set->n, sizeof *set->id, compare_added, t);
    for (int32_t i = 1; i < set->n; i++)
        if (compare_added(&set->id[i - 1], &set->id[i], t) == 0)
            return fail(ERR_FORMAT, "%s: added tokens %d and %d have the same text", where,
                        set->id[i - 1], set->id[i]);
    return OK;
}

/* Narrows the sorted range of added tokens byte by byte; a token that ends at a depth is the first
 * of its range there. O(length of the match x log n). */
int32_t added_find(const Tokenizer *t, const AddedSet *set, Bytes text)
{
    int32_t low = 0, high = set->n, found = -1;
    for (size_t depth = 0; low < high; depth++) {
        if (token_bytes(t, set->id[low]).n == depth) found = set->id[low++];
        if (depth == text.n) break;
        uint8_t byte = text.at[depth];
        for (int side = 0; side < 2; side++) { /* first not below byte, then first above it */
            int32_t a = low, b = high;
            while (a < b) {
                int32_t middle = a + (b - a) / 2;
                uint8_t other = token_bytes(t, set->id[middle]).at[depth];
                if (side == 0 ? other < byte : other <= byte)
                    a = middle + 1;
                else
                    b = middle;
            }
            if (side == 0)
                low = a;
            else
                high = a;
        }
    }
    return found;
}

void added_fill(const Tokenizer *t, const AddedSet *set, AddedFilter *filter)
{
    for (int32_t i = 0; i < set->n; i++) {
        Bytes b = token_bytes(t, set->id[i]);
        filter->first[b.at[0]] = 1;
        for (int second = b.n > 1 ? b.at[1] : 0; second < (b.n > 1 ? b.at[1] + 1 : 256); second++) {
            int pair = b.at[0] << 8 | second;
            filter->pair[pair / 8] |= (uint8_t)(1 << pair % 8);
        }
    }
}

/* ---- what stands around a match --------------------------------------------------------- */

/* Start of the character that ends at `end` > 0; a byte that is no part of one stands alone. */
static size_t char_before(Bytes text, size_t end, uint32_t *code_point)
{
    for (size_t n = 1; n <= 4 && n <= end; n++)
        if ((size_t)utf8_decode(text.at + end - n, n, code_point) == n) return end - n;
    *code_point = UINT32_MAX;
    return end - 1;
}

static size_t char_behind(Bytes text, size_t start, uint32_t *code_point)
{
    int n = utf8_decode(text.at + start, text.n - start, code_point);
    if (n == 0) *code_point = UINT32_MAX;
    return start + (n ? (size_t)n : 1);
}

static bool is_single_word(Bytes text, size_t start, size_t stop)
{
    uint32_t c;
    if (start > 0) {
        char_before(text, start, &c);
        if (unicode_is_word(c)) return false;
    }
    if (stop == text.n) return true;
    char_behind(text, stop, &c);
    return !unicode_is_word(c);
}

static size_t strip_left(Bytes text, size_t start)
{
    uint32_t c;
    for (size_t before; start > 0; start = before) {
        before = char_before(text, start, &c);
        if (!unicode_is_space(c)) break;
    }
    return start;
}

static size_t strip_right(Bytes text, size_t stop)
{
    uint32_t c;
    for (size_t behind; stop < text.n; stop = behind) {
        behind = char_behind(text, stop, &c);
        if (!unicode_is_space(c)) break;
    }
    return stop;
}

/* ---- a text ----------------------------------------------------------------------------- */

/* A walk over one text in one pass. */
typedef struct Cut {
    Encoder *e;
    Bytes text;
    int pass;
    unsigned flags; /* ENCODE_* */
    size_t from;    /* what lies before has been encoded */
} Cut;

static Status encode_pass(Encoder *e, Bytes text, int pass, unsigned flags, IdVec *ids);

/* The rest of the passes for what lies between two matches. */
static Status encode_between(Cut *cut, size_t end, IdVec *ids)
{
    if (cut->from >= end) return OK;
    Bytes part = {cut->text.at + cut->from, end - cut->from};
    return encode_pass(cut->e, part, cut->pass + 1, cut->flags, ids);
}

/* The match of token id at [start, stop): cut out, or left to those that come after. */
static Status encode_match(Cut *cut, int32_t id, size_t start, size_t stop, IdVec *ids)
{
    const Tokenizer *t = cut->e->tokenizer;
    uint8_t how = t->flags[id];
    if (t->kind[id] == TOKEN_SPECIAL && !(cut->flags & ENCODE_SPECIALS)) return OK;
    if ((how & ADDED_SINGLE_WORD) && !is_single_word(cut->text, start, stop)) return OK;
    if (how & ADDED_LSTRIP) {
        size_t left = strip_left(cut->text, start);
        start = left > cut->from ? left : cut->from;
    }
    if (how & ADDED_RSTRIP) stop = strip_right(cut->text, stop);
    TRY(encode_between(cut, start, ids));
    VEC_PUSH(ids, id);
    if (t->kind[id] != TOKEN_SPECIAL) cut->e->is_first = false;
    cut->from = stop;
    return OK;
}

static Status encode_pass(Encoder *e, Bytes text, int pass, unsigned flags, IdVec *ids)
{
    const Tokenizer *t = e->tokenizer;
    while (pass < ADDED_PASSES && !e->pass[pass].any[flags & ENCODE_SPECIALS]) pass++;
    if (pass == ADDED_PASSES) {
        if (text.n == 0) return OK;
        bool is_first = e->is_first;
        e->is_first = false;
        return t->how->encode(e, text, is_first, ids);
    }
    Cut cut = {.e = e, .text = text, .pass = pass, .flags = flags};
    const AddedFilter *filter = &e->pass[pass].filter;
    for (size_t pos = 0; pos < text.n;) {
        int32_t id = -1;
        if (added_may_begin(filter, text.at + pos, text.n - pos))
            id = added_find(t, &t->added[pass], (Bytes){text.at + pos, text.n - pos});
        if (id < 0) {
            pos++;
            continue;
        }
        size_t stop = pos + token_bytes(t, id).n;
        TRY(encode_match(&cut, id, pos, stop, ids));
        pos = stop;
    }
    return encode_between(&cut, text.n, ids);
}

Status added_encode(Encoder *e, Bytes text, unsigned flags, IdVec *ids)
{
    e->is_first = true;
    return encode_pass(e, text, 0, flags, ids);
}
