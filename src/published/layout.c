/* Layouts as their authors write them: words with a number, "TP8 PP12 v3". */
#include <ctype.h>
#include <string.h>

#include "published/published_internal.h"

enum { NODE_DEVICES = 8 }; /* of all published machines that use HSDP */

typedef struct Word {
    const char *name;
    size_t offset; /* of an int64_t */
} Word;
#define AT(field) offsetof(PublishedLayout, field)

static const Word words[] = {
    {"TP", AT(tp)},        {"PP", AT(pp)}, {"VP", AT(virtual_stages)}, {"v", AT(virtual_stages)},
    {"CP", AT(cp)},        {"EP", AT(ep)}, {"ETP", AT(expert_tp)},     {"DP", AT(dp)},
    {"GA", AT(accumulate)}};

static bool read_word(const char *word, PublishedLayout *l)
{
    size_t letters = 0;
    int64_t n = 0;
    while (isalpha((unsigned char)word[letters])) letters++;
    bool number = parse_i64(word + letters, &n) && n >= 1 && n <= 1 << 24;
    if (!strcmp(word, "SP")) return l->sequence = true;
    if (!strcmp(word, "async-TP")) return l->async_tp = true;
    if (!strncmp(word, "ZeRO-", 5) && parse_i64(word + 5, &n) && n >= 0 && n <= 3) {
        l->zero = (int)n;
        return true;
    }
    if (number && letters == 4 && (!strncmp(word, "FSDP", 4) || !strncmp(word, "HSDP", 4))) {
        /* HSDP128: so many devices; their nodes are replicas (HYBRID_SHARD) */
        l->fsdp = *word == 'H' ? min_i64(n, NODE_DEVICES) : n;
        l->zero = 3;
        return true;
    }
    for (int i = 0; i < COUNT_OF(words) && number; i++)
        if (strlen(words[i].name) == letters && !strncmp(word, words[i].name, letters)) {
            *(int64_t *)(void *)((char *)l + words[i].offset) = n;
            return true;
        }
    return !strpbrk(word, "0123456789"); /* a remark */
}

Status published_layout_parse(Arena *arena, const char *text, PublishedLayout *layout)
{
    PublishedLayout l = {0};
    for (const char *at = text; *at;) {
        size_t n = strcspn(at, " ;,");
        char *word = arena_strndup(arena, at, n);
        if (n && !read_word(word, &l))
            return fail(ERR_FORMAT,
                        "'%.40s' in the layout '%.80s' is none of TP, PP, VP, v, CP, EP, ETP, DP, "
                        "FSDP, HSDP, GA with a number, "
                        "ZeRO-0 to ZeRO-3, SP, async-TP",
                        word, text);
        at += n + (at[n] != 0);
    }
    *layout = l;
    return OK;
}
