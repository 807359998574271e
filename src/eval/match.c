/* Whether an answer is the one that was wanted. */
#include "eval/eval_internal.h"

#include <string.h>

static bool is_space(uint8_t c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
static bool is_punctuation(uint8_t c)
{
    return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') ||
           (c >= '{' && c <= '~');
}

static bool is_article(const char *word, size_t n)
{
    return (n == 1 && word[0] == 'a') || (n == 2 && !memcmp(word, "an", 2)) ||
           (n == 3 && !memcmp(word, "the", 3));
}

/* The usual way of question answering (SQuAD 1.1). */
void match_normalise(Bytes text, Str *out)
{
    Str word = {0};
    bool first = true;
    for (size_t i = 0; i <= text.n; i++) {
        uint8_t c = i < text.n ? text.at[i] : ' ';
        if (!is_space(c)) {
            char lower = (char)(c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : c);
            if (!is_punctuation(c)) str_add_n(&word, &lower, 1);
            continue;
        }
        if (word.n > 0 && !is_article(word.at, word.n)) {
            if (!first) str_add(out, " ");
            str_add_n(out, word.at, word.n);
            first = false;
        }
        str_clear(&word);
    }
    str_deinit(&word);
}

static Bytes trim(Bytes t)
{
    while (t.n > 0 && is_space(t.at[0])) t = (Bytes){t.at + 1, t.n - 1};
    while (t.n > 0 && is_space(t.at[t.n - 1])) t.n--;
    return t;
}

bool match_equal(Bytes a, Bytes b)
{
    a = trim(a);
    b = trim(b);
    return a.n == b.n && (a.n == 0 || memcmp(a.at, b.at, a.n) == 0);
}

size_t match_stop(Bytes text, const Bytes *stop, int n)
{
    size_t first = text.n;
    for (int i = 0; i < n; i++) {
        if (stop[i].n == 0 || text.n == 0) continue;
        const uint8_t *found = memmem(text.at, text.n, stop[i].at, stop[i].n);
        if (found && (size_t)(found - text.at) < first) first = (size_t)(found - text.at);
    }
    return first;
}
