/* The table as text, and back. */
#include "pipeline/pipeline_internal.h"

#include <stdlib.h>
#include <string.h>

enum { FILE_BYTES = 256 << 20, MAX_NAME = 64 };

void pipeline_text(const Pipeline *p, Str *out)
{
    str_printf(out, "pipeline %s\nmicro-batches %d\nstages", p->name, p->n_micro);
    for (int s = 0; s < p->n_stages; s++) str_printf(out, " %d", p->rank_of[s]);
    str_add(out, "\n");
    for (int r = 0; r < p->n_ranks; r++) {
        str_printf(out, "rank %d:", r);
        for (int i = 0; i < p->rank[r].n; i++) {
            const PipelineAction *a = &p->rank[r].at[i];
            str_printf(out, "%c%s%d.%d", i > 0 && p->rank[r].at[i - 1].paired ? '&' : ' ',
                       pipeline_work_name(a->work), a->stage, a->micro);
        }
        str_add(out, "\n");
    }
}

/* ---- reading ---------------------------------------------------------------------------- */

typedef struct Reader {
    const char *at, *end; /* what is left; the text need not end in a zero byte */
    const char *from;
    int line;
    Pipeline *p;
    char name[MAX_NAME + 1];
    int n_micro; /* 0: not read yet */
    VEC(int) rank_of;
} Reader;

static Status wrong(const Reader *r, const char *what)
{
    int n = 0;
    while (r->at + n < r->end && n < 20 && r->at[n] > ' ' && r->at[n] < 127) n++;
    return fail(ERR_FORMAT, "%s:%d: %s%s%.*s%s", r->from, r->line, what, n ? ", not '" : "", n,
                n ? r->at : "", n ? "'" : "");
}

static void skip_blanks(Reader *r)
{
    while (r->at < r->end && (*r->at == ' ' || *r->at == '\t' || *r->at == '\r')) r->at++;
    if (r->at < r->end && *r->at == '#')
        while (r->at < r->end && *r->at != '\n') r->at++;
}

static bool at_line_end(Reader *r)
{
    skip_blanks(r);
    return r->at == r->end || *r->at == '\n';
}

static bool skip_text(Reader *r, const char *text)
{
    size_t n = strlen(text);
    if ((size_t)(r->end - r->at) < n || memcmp(r->at, text, n) != 0) return false;
    r->at += n;
    return true;
}

static bool is_digit(const Reader *r) { return r->at < r->end && *r->at >= '0' && *r->at <= '9'; }

/* 0 to limit - 1 */
static Status read_number(Reader *r, int limit, const char *what, int *out)
{
    const char *begin = r->at;
    int64_t value = 0;
    if (!is_digit(r)) return wrong(r, what);
    while (is_digit(r) && value < limit) value = 10 * value + (*r->at++ - '0');
    if (value >= limit) {
        r->at = begin;
        return wrong(r, what);
    }
    *out = (int)value;
    return OK;
}

static Status read_name(Reader *r)
{
    int n = 0;
    skip_blanks(r);
    while (r->at < r->end && n<MAX_NAME && * r->at> ' ' && *r->at < 127 && *r->at != '#')
        r->name[n++] = *r->at++;
    if (n == 0 || !at_line_end(r))
        return wrong(r, "the pipeline's name is a word of at most 64 letters");
    r->name[n] = 0;
    return OK;
}

static Status read_micro(Reader *r)
{
    skip_blanks(r);
    TRY(read_number(r, PIPELINE_MAX_MICRO + 1, "a number of micro-batches is wanted here",
                    &r->n_micro));
    return r->n_micro > 0 ? OK : fail(ERR_FORMAT, "%s:%d: no micro-batches", r->from, r->line);
}

static Status read_stages(Reader *r)
{
    int rank = 0;
    while (!at_line_end(r)) {
        TRY(read_number(r, PIPELINE_MAX_RANKS, "the rank of a stage is wanted here", &rank));
        if (r->rank_of.n == PIPELINE_MAX_STAGES) return wrong(r, "there are too many stages");
        VEC_PUSH(&r->rank_of, rank);
    }
    return r->rank_of.n ? OK : wrong(r, "the ranks of the stages are wanted here");
}

/* What a table of this size must say at least takes more bytes than the text has: refused before
 * memory is taken. */
static Status make_table(Reader *r, size_t text_bytes)
{
    int n_ranks = 0;
    if (r->n_micro == 0 || r->rank_of.n == 0)
        return wrong(r, "'micro-batches N' and 'stages RANK ...' come before the ranks");
    for (size_t s = 0; s < r->rank_of.n; s++)
        if (r->rank_of.at[s] >= n_ranks) n_ranks = r->rank_of.at[s] + 1;
    size_t actions = r->rank_of.n * (size_t)r->n_micro * 2;
    if (actions > PIPELINE_MAX_ACTIONS || actions * 4 > text_bytes ||
        (size_t)n_ranks > r->rank_of.n)
        return fail(ERR_FORMAT,
                    "%s:%d: the text is too short for %zu stages on %d ranks and %d micro-batches",
                    r->from, r->line, r->rank_of.n, n_ranks, r->n_micro);
    r->p = pipeline_new(*r->name ? r->name : "file", n_ranks, (int)r->rank_of.n, r->n_micro);
    memcpy(r->p->rank_of, r->rank_of.at, sizeof(int) * r->rank_of.n);
    return OK;
}

static Status read_action(Reader *r, int rank)
{
    PipelineWork work;
    int stage, micro;
    if (skip_text(r, "F"))
        work = PIPELINE_FORWARD;
    else if (skip_text(r, "BW"))
        work = PIPELINE_BOTH;
    else if (skip_text(r, "B"))
        work = PIPELINE_BACKWARD;
    else if (skip_text(r, "W"))
        work = PIPELINE_WEIGHTS;
    else
        return wrong(r, "an action such as F0.3, B0.3, W0.3 or BW0.3 is wanted here");
    TRY(read_number(r, r->p->n_stages, "the number of a stage is wanted here", &stage));
    if (!skip_text(r, ".")) return wrong(r, "a dot and a micro-batch are wanted here");
    TRY(read_number(r, r->p->n_micro, "the number of a micro-batch is wanted here", &micro));
    pipeline_add(r->p, rank, work, stage, micro);
    return OK;
}

static Status read_rank(Reader *r, size_t text_bytes)
{
    int rank;
    if (!r->p) TRY(make_table(r, text_bytes));
    CHECK(r->p);
    skip_blanks(r);
    TRY(read_number(r, r->p->n_ranks, "the number of a rank that has a stage is wanted here",
                    &rank));
    if (!skip_text(r, ":")) return wrong(r, "a colon is wanted here");
    if (r->p->rank[rank].n)
        return fail(ERR_FORMAT, "%s:%d: rank %d stands here twice", r->from, r->line, rank);
    while (!at_line_end(r)) {
        TRY(read_action(r, rank));
        if (r->at < r->end && *r->at == '&') {
            r->p->rank[rank].at[r->p->rank[rank].n - 1].paired = true;
            r->at++;
            if (at_line_end(r)) return wrong(r, "the other action of a pair is wanted here");
        } else if (r->at<r->end && * r->at> ' ' && *r->at != '#') {
            return wrong(r, "a blank is wanted between two actions");
        }
    }
    return OK;
}

static Status read_line(Reader *r, size_t text_bytes)
{
    if (at_line_end(r)) return OK;
    if (skip_text(r, "pipeline "))
        TRY(read_name(r));
    else if (!r->p && skip_text(r, "micro-batches "))
        TRY(read_micro(r));
    else if (!r->p && r->rank_of.n == 0 && skip_text(r, "stages "))
        TRY(read_stages(r));
    else if (skip_text(r, "rank "))
        TRY(read_rank(r, text_bytes));
    else
        return wrong(r, "a line begins with 'pipeline', 'micro-batches', 'stages' or 'rank'");
    return at_line_end(r) ? OK : wrong(r, "the line should end here");
}

Status pipeline_parse(Bytes text, const char *from, Pipeline **out)
{
    Reader r = {.at = (const char *)text.at,
                .end = (const char *)text.at + text.n,
                .from = from,
                .line = 1};
    Status status = OK;
    while (status == OK && r.at < r.end) {
        status = read_line(&r, text.n);
        if (status == OK && r.at < r.end) {
            r.at++; /* the end of the line */
            r.line++;
        }
    }
    VEC_FREE(&r.rank_of);
    if (status == OK && !r.p) status = fail(ERR_FORMAT, "%s: no rank has a line", from);
    if (status == OK) return pipeline_finish(r.p, from, out);
    pipeline_destroy(r.p);
    return status;
}

Status pipeline_load(const char *path, Pipeline **out)
{
    Arena arena = {0};
    Bytes text;
    Status status = file_read(&arena, path, FILE_BYTES, &text);
    if (status == OK) status = pipeline_parse(text, path, out);
    arena_deinit(&arena);
    return status;
}
