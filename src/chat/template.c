/* Which template a text is, and the texts in it that introduce tools.
 *
 * A Jinja template is read as far as its tags: what stands in {{ }} and {% %}, word by word, with
 * every text in quotes decoded. Two templates with the same words do the same, whatever their
 * comments, line breaks and indentation. So a hash of the words tells the published templates from
 * those that somebody changed. Left out of the hash are the texts that introduce tools, for they
 * are the model's own: a run of tags that only write a text without special tokens, directly before
 * the loop over the tools.
 */
#include "chat/chat_internal.h"

#include <ctype.h>

typedef struct TemplateReader {
    Bytes text;
    size_t at;
    Str words;   /* of the whole template */
    Str tag;     /* of the tag at hand */
    Str literal; /* the text in quotes, when the tag is nothing else */
    int n_words; /* in the tag */
    int n_literals;
    Str run;          /* the texts of the run of tags that only write texts */
    size_t run_start; /* where in words it begins */
    bool strips;      /* the last tag takes the white space behind it away */
    Arena *arena;
    TemplateFacts *facts;
} TemplateReader;

static bool at_mark(const TemplateReader *r, const char *mark)
{
    return r->text.n - r->at >= 2 && memcmp(r->text.at + r->at, mark, 2) == 0;
}

static void end_run(TemplateReader *r)
{
    str_clear(&r->run);
    r->run_start = r->words.n;
}

/* ---- words of a tag --------------------------------------------------------------------- */

/* 'text' or "text", escapes as in Python; at the quote. The words keep it between two bytes 1, so
 * that a text never looks like other words. */
static void read_literal(TemplateReader *r)
{
    uint8_t quote = r->text.at[r->at++];
    str_clear(&r->literal);
    for (; r->at < r->text.n && r->text.at[r->at] != quote; r->at++) {
        char c = (char)r->text.at[r->at];
        if (c == '\\' && r->at + 1 < r->text.n) {
            static const char from[] = "ntr", to[] = "\n\t\r";
            c = (char)r->text.at[++r->at];
            const char *known = c ? strchr(from, c) : NULL;
            if (known) c = to[known - from];
        }
        str_add_n(&r->literal, &c, 1);
    }
    r->at++; /* the quote, or past the end */
    str_add(&r->tag, "\1");
    if (r->literal.n) str_add_n(&r->tag, r->literal.at, r->literal.n);
    str_add(&r->tag, "\1");
    r->n_literals++;
}

static bool is_word(uint8_t c) { return isalnum(c) || c == '_' || c >= 0x80; }

static void read_word(TemplateReader *r)
{
    size_t start = r->at++;
    if (is_word(r->text.at[start]))
        while (r->at < r->text.n && is_word(r->text.at[r->at])) r->at++;
    str_add_n(&r->tag, (const char *)r->text.at + start, r->at - start);
}

/* To the end mark; true when a '-' stood before it. */
static bool read_words(TemplateReader *r, const char *end)
{
    while (r->at < r->text.n && !at_mark(r, end)) {
        uint8_t c = r->text.at[r->at];
        if (isspace(c)) {
            r->at++;
            continue;
        }
        if (c == '-' && r->text.n - r->at > 2 && memcmp(r->text.at + r->at + 1, end, 2) == 0) {
            r->at += 3;
            return true;
        }
        str_add(&r->tag, " ");
        r->n_words++;
        if (c == '\'' || c == '"')
            read_literal(r);
        else
            read_word(r);
    }
    r->at = r->at + 2 < r->text.n ? r->at + 2 : r->text.n;
    return false;
}

/* ---- tags ------------------------------------------------------------------------------- */

static bool is_loop_over_tools(const Str *tag)
{
    static const char start[] = "{% for ", end[] = " in tools";
    size_t n = strlen(start) + strlen(end);
    return tag->n > n && !memcmp(tag->at, start, strlen(start)) &&
           !memcmp(tag->at + tag->n - strlen(end), end, strlen(end)) &&
           !memchr(tag->at + strlen(start), ' ', tag->n - n);
}

static void take_preamble(TemplateReader *r)
{
    TemplateFacts *f = r->facts;
    r->words.n = r->run_start;
    str_add(&r->words, "\2");
    if (f->n_preambles < COUNT_OF(f->preamble))
        f->preamble[f->n_preambles++] = chat_copy(r->arena, str_bytes(&r->run));
}

/* A tag of kind '{' or '%' behind its two letters; `strips_before` tells of its first '-'. */
static void read_tag(TemplateReader *r, char kind, bool strips_before)
{
    char mark[3] = {'{', kind, 0};
    str_clear(&r->tag);
    r->n_words = r->n_literals = 0;
    str_add(&r->tag, mark);
    r->strips = read_words(r, kind == '{' ? "}}" : "%}");
    bool only_text = kind == '{' && r->n_words == 1 && r->n_literals == 1 &&
                     !(r->literal.n && memmem(r->literal.at, r->literal.n, "<|", 2));
    if (kind == '%' && r->run.n && is_loop_over_tools(&r->tag)) take_preamble(r);
    str_add_n(&r->words, r->tag.at, r->tag.n);
    str_add(&r->words,
            r->strips ? (strips_before ? "--\n" : "+-\n") : (strips_before ? "-+\n" : "++\n"));
    if (!only_text)
        end_run(r);
    else if (r->literal.n)
        str_add_n(&r->run, r->literal.at, r->literal.n);
}

static void skip_comment(TemplateReader *r)
{
    while (r->at < r->text.n && !at_mark(r, "#}")) r->at++;
    r->strips = r->at > 0 && r->text.at[r->at - 1] == '-';
    r->at = r->at + 2 < r->text.n ? r->at + 2 : r->text.n;
}

/* Text between tags, `strips_after` telling of the '-' of the tag behind it. White space that no
 * tag takes away is written, so it counts. */
static void read_data(TemplateReader *r, Bytes data, bool strips_after)
{
    while (r->strips && data.n && isspace(data.at[0])) data = (Bytes){data.at + 1, data.n - 1};
    while (strips_after && data.n && isspace(data.at[data.n - 1])) data.n--;
    if (data.n == 0) return;
    str_add_n(&r->words, (const char *)data.at, data.n);
    str_add(&r->words, "\3");
    end_run(r);
}

void template_read(Bytes text, Arena *arena, TemplateFacts *facts)
{
    *facts = (TemplateFacts){0};
    TemplateReader r = {.text = text, .arena = arena, .facts = facts};
    while (r.at < text.n) {
        size_t start = r.at;
        while (r.at < text.n && !at_mark(&r, "{{") && !at_mark(&r, "{%") && !at_mark(&r, "{#"))
            r.at++;
        bool strips = text.n - r.at > 2 && text.at[r.at + 2] == '-';
        size_t end = r.at;
        if (end == text.n) { /* Jinja drops one newline at the end of the template */
            if (end > start && text.at[end - 1] == '\n') end--;
            if (end > start && text.at[end - 1] == '\r') end--;
        }
        read_data(&r, (Bytes){text.at + start, end - start}, strips);
        if (r.at == text.n) break;
        char kind = (char)text.at[r.at + 1];
        r.at += strips ? 3 : 2;
        if (kind == '#')
            skip_comment(&r);
        else
            read_tag(&r, kind, strips);
    }
    facts->structure = hash_bytes(r.words.n ? r.words.at : "", r.words.n);
    str_deinit(&r.words);
    str_deinit(&r.tag);
    str_deinit(&r.literal);
    str_deinit(&r.run);
}
