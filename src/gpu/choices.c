/* A table of choices as text, and back. */
#include "gpu/choices.h"

#include <stdlib.h>
#include <string.h>

static const char first_line[] = "drover's choices for products on GPUs, 1";
enum { CHECKSUM_DIGITS = 16, ALGORITHM_DIGITS = 2 * ALGORITHM_BYTES, MOST_CHOICES = 100000 };

Choice *choice_find(const ChoiceTable *table, const char *key)
{
    int i = name_index_find(&table->index, key);
    return i < 0 ? NULL : table->choice.at[i];
}

Choice *choice_add(ChoiceTable *table, const char *key, const Algorithm *algorithm, double us)
{
    Choice *choice = choice_find(table, key);
    if (choice) return choice;
    choice = ARENA_NEW(&table->arena, Choice);
    *choice = (Choice){.key = arena_strdup(&table->arena, key), .algorithm = *algorithm, .us = us};
    VEC_PUSH(&table->choice, choice);
    name_index_put(&table->index, choice->key, (int)table->choice.n - 1);
    return choice;
}

void choice_table_deinit(ChoiceTable *table)
{
    VEC_FREE(&table->choice);
    name_index_deinit(&table->index);
    arena_deinit(&table->arena);
    *table = (ChoiceTable){0};
}

/* ---- reading ------------------------------------------------------------------------------ */

static int digit(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* 2 n hexadecimal digits, the first four bits first. */
static bool read_bytes(const char *text, uint8_t *out, int n)
{
    for (int i = 0; i < n; i++) {
        int high = digit(text[2 * i]), low = high < 0 ? -1 : digit(text[2 * i + 1]);
        if (low < 0) return false;
        out[i] = (uint8_t)(high << 4 | low);
    }
    return true;
}

static bool is_plain(const char *key)
{
    for (const char *c = key; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f) return false;
    return *key && strlen(key) < CHOICE_KEY_BYTES;
}

static void checksum_of(const char *rest, char out[CHECKSUM_DIGITS + 1])
{
    snprintf(out, CHECKSUM_DIGITS + 1, "%016llx",
             (unsigned long long)hash_bytes(rest, strlen(rest)));
}

/* A line without its end; it is cut up in place. */
static bool read_line(ChoiceTable *table, char *line)
{
    Algorithm algorithm;
    char sum[CHECKSUM_DIGITS + 1];
    double us;
    if (strlen(line) < CHECKSUM_DIGITS + 1 + ALGORITHM_DIGITS + 1) return false;
    char *rest = line + CHECKSUM_DIGITS + 1, *time = rest + ALGORITHM_DIGITS + 1,
         *key = strchr(time, ' ');
    checksum_of(rest, sum);
    if (memcmp(line, sum, CHECKSUM_DIGITS) != 0 || rest[-1] != ' ' || time[-1] != ' ' || !key)
        return false;
    *key++ = 0;
    if (!read_bytes(rest, algorithm.byte, ALGORITHM_BYTES) || !parse_f64(time, &us) || us < 0 ||
        !is_plain(key))
        return false;
    choice_add(table, key, &algorithm, us);
    return true;
}

int choice_table_read(ChoiceTable *table, Bytes text)
{
    char *copy = xmalloc(text.n + 1), *end = copy + text.n;
    if (text.n) memcpy(copy, text.at, text.n);
    *end = 0;
    int n = 0, bad = 0;
    bool ours = false;
    for (char *line = copy; line < end; n++) {
        char *next = memchr(line, '\n', (size_t)(end - line));
        if (next) *next = 0;
        if (n == 0)
            ours = !strcmp(line, first_line);
        else /* a line without an end was cut off */
            bad += !ours || !next || n > MOST_CHOICES || !read_line(table, line);
        line = next ? next + 1 : end;
    }
    free(copy);
    return bad + (n > 0 && !ours);
}

/* ---- writing ------------------------------------------------------------------------------ */

static int by_key(const void *a, const void *b)
{
    return strcmp((*(Choice *const *)a)->key, (*(Choice *const *)b)->key);
}

void choice_table_write(const ChoiceTable *table, Str *out)
{
    size_t n = table->choice.n;
    Choice **sorted = xcalloc(n + 1, sizeof(Choice *));
    if (n) memcpy(sorted, table->choice.at, n * sizeof(Choice *));
    qsort(sorted, n, sizeof(Choice *), by_key);
    str_printf(out, "%s\n", first_line);
    for (size_t i = 0; i < n; i++) {
        char hex[ALGORITHM_DIGITS + 1], sum[CHECKSUM_DIGITS + 1];
        for (int k = 0; k < ALGORITHM_BYTES; k++)
            snprintf(hex + 2 * k, 3, "%02x", sorted[i]->algorithm.byte[k]);
        Str rest = {0};
        str_printf(&rest, "%s %.9g %s", hex, sorted[i]->us, sorted[i]->key);
        checksum_of(rest.at, sum);
        str_printf(out, "%s %s\n", sum, rest.at);
        str_deinit(&rest);
    }
    free(sorted);
}
