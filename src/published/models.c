/* models.csv, and the values of a record. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "published/published_internal.h"

const char *record_text(const Record *r, const char *column)
{
    int i = csv_column(r->csv, column);
    const char *text = i < 0 ? "" : r->csv->field[r->row][i];
    return !strcmp(text, "-") ? "" : text;
}

Status record_fail(const Record *r, const char *column, const char *wanted)
{
    return fail(ERR_FORMAT, "%s:%d: %s is '%.60s'; %s is wanted", r->csv->path,
                r->csv->line[r->row], column, record_text(r, column), wanted);
}

/* Thousands are parted by commas; a question mark means "about". */
Status record_number(const Record *r, const char *column, double *out)
{
    char digits[64];
    size_t n = 0;
    const char *text = record_text(r, column);
    *out = 0;
    if (!*text || !strcmp(text, "?")) return OK;
    for (; *text; text++) {
        if (*text == ',' || ((*text == '?' || *text == '%') && !text[1])) continue;
        if (n + 1 == sizeof digits) return record_fail(r, column, "a number");
        digits[n++] = *text;
    }
    digits[n] = 0;
    if (!parse_f64(digits, out) || !(*out >= 0) || *out > 1e18)
        return record_fail(r, column, "a number");
    return OK;
}

Status record_count(const Record *r, const char *column, int64_t *out)
{
    double number;
    TRY(record_number(r, column, &number));
    if (number != floor(number) || number > 1e12)
        return record_fail(r, column, "a whole number up to 1e12");
    *out = (int64_t)number;
    return OK;
}

/* ---- experts ---------------------------------------------------------------------------- */

/* The number behind `word` in the text, or in front of it; 0 where it does not stand there. */
static int64_t number_after(const char *text, const char *word)
{
    const char *at = strstr(text, word);
    return at ? strtoll(at + strlen(word), NULL, 10)
              : 0; /* NOLINT(cert-err34-c): 0 where there is none */
}

static int64_t number_before(const char *text, const char *word)
{
    const char *at = strstr(text, word);
    while (at && at > text && at[-1] >= '0' && at[-1] <= '9') at--;
    return at ? strtoll(at, NULL, 10) : 0; /* NOLINT(cert-err34-c): 0 where there is none */
}

/* "128 experts top-1, expert ffn 8192, shared 8192, 24 MoE layers; every other layer window 128" */
static Status read_experts(const Record *r, PublishedModel *m)
{
    const char *text = record_text(r, "MoE");
    if (!*text) return OK;
    m->experts = number_before(text, " experts");
    m->experts_per_token = number_after(text, "top-");
    m->expert_ffn = number_after(text, "expert ffn ");
    m->shared_ffn = number_after(text, "shared ");
    m->moe_layers = number_before(text, " MoE layers");
    m->window = number_after(text, "window ");
    m->mla = strstr(text, "MLA") != NULL;
    if (m->experts < 1 || m->experts > 1 << 20 || m->experts_per_token < 1 ||
        m->experts_per_token > m->experts || m->expert_ffn < 1 || m->expert_ffn > 1 << 24 ||
        m->shared_ffn < 0 || m->shared_ffn > 1 << 24 || m->moe_layers < 1 ||
        m->moe_layers > m->layers || m->window < 0)
        return record_fail(r, "MoE", "`N experts top-K, expert ffn F, shared S, L MoE layers`");
    return OK;
}

/* What the papers say of GPT blocks, which models.csv has no column for: GPT-2's and Megatron-LM's
 * have learned positions, GELU and biases; MPT and BLOOM have ALiBi, MPT no biases; Nemotron-4 has
 * rotary positions, a squared ReLU, no biases, and a head of its own (MosaicML 2023; BigScience
 * 2022; Parmar 2024). The published counts have two embeddings throughout; in all but Nemotron's
 * one serves as head. */
void published_gpt_blocks(PublishedModel *m)
{
    bool nemotron = !strncmp(m->key, "NM", 2), mpt = !strncmp(m->key, "MPT", 3),
         bloom = !strncmp(m->key, "BLOOM", 5);
    if (m->gated) return;
    m->positions = nemotron ? "rope" : mpt || bloom ? "alibi" : "learned";
    m->activation = nemotron ? "relu2" : "gelu";
    m->bias = !nemotron && !mpt;
    m->tied = !nemotron;
}

/* ---- models ----------------------------------------------------------------------------- */

static Status read_model(const Record *r, PublishedModel *m)
{
    const struct {
        const char *column;
        int64_t *value;
    } counts[] = {{"layers", &m->layers}, {"hidden", &m->hidden},     {"heads", &m->heads},
                  {"kv", &m->kv_heads},   {"head dim", &m->head_dim}, {"vocab", &m->vocab}};
    for (int i = 0; i < COUNT_OF(counts); i++) {
        TRY(record_count(r, counts[i].column, counts[i].value));
        if (*counts[i].value < 1 || *counts[i].value > 1 << 24)
            return record_fail(r, counts[i].column, "a number from 1 to 2^24");
    }
    TRY(record_count(r, "ffn", &m->ffn));
    const char *gated = record_text(r, "gated");
    if (strcmp(gated, "y") != 0 && strcmp(gated, "n") != 0)
        return record_fail(r, "gated", "y or n");
    m->gated = *gated == 'y';
    TRY(read_experts(r, m));
    if (m->ffn == 0 && m->moe_layers < m->layers)
        return record_fail(r, "ffn", "the width of dense layers");
    double params, active;
    TRY(record_number(r, "params B", &params));
    TRY(record_number(r, "active B", &active));
    m->params = params * 1e9;
    m->active_params = active * 1e9;
    published_gpt_blocks(m);
    return OK;
}

/* Layers with experts keep their share. */
static Status cut_layers(const Csv *models, const char *key, const char *layers, PublishedModel *m)
{
    int64_t n;
    if (!parse_i64(layers, &n) || n < 1 || n > m->layers)
        return fail(ERR_FORMAT,
                    "%s: model %s has %lld layers; 1 to that many behind the @ are wanted",
                    models->path, key, (long long)m->layers);
    m->moe_layers = m->moe_layers * n / m->layers;
    m->layers = n;
    m->params = m->active_params = 0;
    return OK;
}

Status published_model_find(const Csv *models, Arena *arena, const char *key, PublishedModel *model)
{
    const char *at = strchr(key, '@'),
               *name = at ? arena_strndup(arena, key, (size_t)(at - key)) : key;
    const char **names = ARENA_ARRAY(arena, const char *, models->rows + 1);
    for (int i = 0; i < models->rows; i++) {
        Record r = {arena, models, i};
        names[i] = record_text(&r, "key");
        if (strcmp(names[i], name) != 0) continue;
        PublishedModel m = {.key = key};
        TRY(read_model(&r, &m));
        if (at) TRY(cut_layers(models, key, at + 1, &m));
        *model = m;
        return OK;
    }
    const char *near = name_nearest(name, names, models->rows);
    return fail(ERR_FORMAT, "%s has no model %.60s%s%s", models->path ? models->path : "models.csv",
                name, near ? "; did you mean " : "", near ? near : "");
}
