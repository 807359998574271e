/* Which tokens stand in which row of which step: computed, never stored.
 *
 * A source's tokens lie in one line of N, cut into S = ceil(N / seq) slots of seq inputs, each with
 * one token more as the last target, so that every token is an input once an epoch. In each epoch
 * the cuts are moved by a random phase below S seq - N + 1 and the slots come in a random order,
 * which is rng_permute: nothing has to be stored or replayed to know sample 10^9.
 *
 * Sources are mixed by a chain of two-way splits: of the first j samples that reach split i,
 * floor(j p_i) go to source i and the others on to the next split. Shares are exact at every
 * moment, to one sample per split, and both the source and its own count follow from j alone.
 *
 * The held-out split is not mixed: its slots, all sources together, come once, in one fixed order.
 */
#include "data/data_internal.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_SEQ = 1 << 24 };

struct DataLoader {
    const Data *data;
    DataPlan plan;
    uint64_t *share;  /* of 2^63: what split i of the chain keeps; [n_sources] */
    int64_t *n_slots; /* of each source */
    int64_t total_slots;
    int32_t *tokens;                       /* [seq + 1], of the row that is filled */
    int64_t counted_step, counted_targets; /* the last answer of data_step_targets; step -1: none */
};

/* ---- where a sample lies ---------------------------------------------------------------- */

typedef struct Sample {
    int source; /* -1: padding */
    /* of its seq inputs in the source's line; may lie before 0 or reach past the end */
    int64_t begin;
    uint64_t random; /* key of its random ids, when the source has no text */
} Sample;

__extension__ typedef unsigned __int128 Wide;

static int64_t kept(uint64_t share, int64_t j)
{
    return (int64_t)(((Wide)(uint64_t)j * share) >> 63);
}

/* Sample j of the run to its source and to its number there. */
static int mix(const DataLoader *l, int64_t j, int64_t *index)
{
    int last = l->data->n_sources - 1;
    for (int i = 0; i < last; i++) {
        int64_t before = kept(l->share[i], j);
        if (kept(l->share[i], j + 1) > before) {
            *index = before;
            return i;
        }
        j -= before;
    }
    *index = j;
    return last;
}

static Sample locate_train(const DataLoader *l, int64_t j)
{
    int64_t index, seq = l->plan.seq;
    int i = mix(l, j, &index);
    Sample sample = {.source = i};
    char purpose[64];
    if (!l->data->source[i].path) {
        snprintf(purpose, sizeof purpose, "data/random/%d/%lld", i, (long long)index);
        sample.random = rng_key(l->plan.seed, purpose);
        return sample;
    }
    int64_t slots = l->n_slots[i], epoch = index / slots, slot = index % slots, phase = 0;
    if (l->data->shuffle) {
        snprintf(purpose, sizeof purpose, "data/order/%d/%lld", i, (long long)epoch);
        uint64_t key = rng_key(l->plan.seed, purpose);
        int64_t slack = slots * seq - l->data->source[i].split[DATA_TRAIN].n_tokens;
        slot = (int64_t)rng_permute(key, (uint64_t)slot, (uint64_t)slots);
        phase = (int64_t)rng_below(rng_key(key, "phase"), 0, (uint64_t)slack + 1);
    }
    sample.begin = slot * seq - phase;
    return sample;
}

static Sample locate_holdout(const DataLoader *l, int64_t j)
{
    if (j >= l->total_slots) return (Sample){.source = -1};
    if (l->data->shuffle)
        j = (int64_t)rng_permute(rng_key(0, "data/holdout-order"), (uint64_t)j,
                                 (uint64_t)l->total_slots);
    int i = 0;
    while (j >= l->n_slots[i]) j -= l->n_slots[i++];
    return (Sample){.source = i, .begin = j * l->plan.seq};
}

static Status locate(const DataLoader *l, int64_t step, int64_t row, Sample *sample)
{
    int64_t j;
    if (step < 0 || __builtin_mul_overflow(step, l->plan.batch, &j) ||
        __builtin_add_overflow(j, row, &j) || j == INT64_MAX)
        return fail(ERR_ARG, "data: step %lld is out of range", (long long)step);
    *sample = l->plan.split == DATA_TRAIN ? locate_train(l, j) : locate_holdout(l, j);
    return OK;
}

static const Corpus *corpus_of(const DataLoader *l, const Sample *sample)
{
    return &l->data->source[sample->source].split[l->plan.split];
}

/* The inputs of a sample that exist: [*low, *high) of the source's line. */
static void clip(const DataLoader *l, const Sample *sample, int64_t *low, int64_t *high)
{
    *low = max_i64(sample->begin, 0);
    *high = max_i64(*low, min_i64(sample->begin + l->plan.seq, corpus_of(l, sample)->n_tokens));
}

/* ---- one row ---------------------------------------------------------------------------- */

typedef struct Row {
    int32_t *ids, *targets, *pos; /* [seq] */
} Row;

/* Padding is a document of its own, of zeros, that predicts nothing. */
static void pad(const Row *row, int64_t from, int64_t to)
{
    for (int64_t t = from; t < to; t++) {
        row->ids[t] = 0;
        row->targets[t] = -1;
        row->pos[t] = (int32_t)(t - from);
    }
}

static void fill_random(const DataLoader *l, const Sample *sample, const Row *row)
{
    for (int64_t t = 0; t < l->plan.seq; t++) {
        uint64_t vocab = (uint64_t)l->data->vocab_size;
        row->ids[t] = t ? row->targets[t - 1] : (int32_t)rng_below(sample->random, 0, vocab);
        row->targets[t] = (int32_t)rng_below(sample->random, (uint64_t)t + 1, vocab);
        row->pos[t] = (int32_t)t;
    }
}

/* Inputs [low, high) of the line, document by document. */
static Status fill_text(const DataLoader *l, const Sample *sample, const Row *row)
{
    const Corpus *c = corpus_of(l, sample);
    int64_t low, high, doc, begin, end;
    clip(l, sample, &low, &high);
    pad(row, 0, low - sample->begin);
    pad(row, high - sample->begin, l->plan.seq);
    if (low == high) return OK;
    TRY(data_corpus_read(c, low, min_i64(high + 1, c->n_tokens) - low, l->data->vocab_size,
                         l->tokens));
    TRY(data_corpus_ended(c, low, &doc));
    for (int64_t at = low; at < high; doc++) {
        if (doc >= c->n_docs) return fail(ERR_FORMAT, "data: a shard changed while it was in use");
        TRY(data_corpus_doc(c, doc, &begin, &end));
        int64_t first = max_i64(at, begin), stop = min_i64(end, high);
        if (first != at || stop <= at)
            return fail(ERR_FORMAT, "data: a shard changed while it was in use");
        for (; at < stop; at++) {
            int64_t t = at - sample->begin;
            row->ids[t] = l->tokens[at - low];
            row->targets[t] = at + 1 < end ? l->tokens[at + 1 - low] : -1;
            row->pos[t] = (int32_t)(at - first);
        }
    }
    return OK;
}

static Status fill_row(const DataLoader *l, int64_t step, int64_t r, const Row *row)
{
    Sample sample = {0};
    TRY(locate(l, step, r, &sample));
    if (sample.source < 0)
        pad(row, 0, l->plan.seq);
    else if (!l->data->source[sample.source].path)
        fill_random(l, &sample, row);
    else
        return fill_text(l, &sample, row);
    return OK;
}

/* ---- steps ------------------------------------------------------------------------------ */

static Status count_row(const DataLoader *l, int64_t step, int64_t r, int64_t *n_targets)
{
    Sample sample = {0};
    int64_t low, high, before, after;
    TRY(locate(l, step, r, &sample));
    if (sample.source < 0) return OK;
    if (!l->data->source[sample.source].path) {
        *n_targets += l->plan.seq;
        return OK;
    }
    clip(l, &sample, &low, &high);
    TRY(data_corpus_ended(corpus_of(l, &sample), low, &before));
    TRY(data_corpus_ended(corpus_of(l, &sample), high, &after));
    *n_targets += high - low - (after - before); /* a document's last token predicts nothing */
    return OK;
}

Status data_step_targets(DataLoader *l, int64_t step, int64_t *n_targets)
{
    if (l->counted_step != step) {
        int64_t n = 0;
        for (int64_t r = 0; r < l->plan.batch; r++) TRY(count_row(l, step, r, &n));
        l->counted_step = step;
        l->counted_targets = n;
    }
    *n_targets = l->counted_targets;
    return OK;
}

Status data_fill(DataLoader *l, int64_t step, int64_t micro_index, const DataBatch *batch)
{
    int64_t rows = l->plan.micro_batch, seq = l->plan.seq, n_targets;
    if (micro_index < 0 || micro_index >= l->plan.batch / rows)
        return fail(ERR_ARG, "data: micro-batch %lld of %lld", (long long)micro_index,
                    (long long)(l->plan.batch / rows));
    TRY(data_step_targets(l, step, &n_targets));
    float weight = n_targets ? 1.0f / (float)n_targets : 0.0f;
    for (int64_t r = 0; r < rows; r++) {
        Row row = {batch->ids + r * seq, batch->targets + r * seq, batch->pos + r * seq};
        TRY(fill_row(l, step, micro_index * rows + r, &row));
        for (int64_t t = 0; t < seq; t++)
            batch->weights[r * seq + t] = row.targets[t] >= 0 ? weight : 0.0f;
    }
    return OK;
}

int64_t data_loader_steps(const DataLoader *l)
{
    if (l->total_slots == INT64_MAX) return INT64_MAX;
    return (l->total_slots + l->plan.batch - 1) / l->plan.batch;
}

Status data_target_bytes(DataLoader *l, int64_t n_steps, uint64_t *bytes)
{
    if (!l->data->tokenizer) return fail(ERR_ARG, "data: random ids stand for no text");
    int64_t seq = l->plan.seq;
    int32_t *block = xmalloc((size_t)seq * 3 * sizeof *block);
    Row row = {block, block + seq, block + 2 * seq};
    uint64_t sum = 0;
    Status status = OK;
    n_steps = min_i64(n_steps, data_loader_steps(l));
    for (int64_t step = 0; step < n_steps && status == OK; step++)
        for (int64_t r = 0; r < l->plan.batch && status == OK; r++) {
            status = fill_row(l, step, r, &row);
            for (int64_t t = 0; t < seq && status == OK; t++)
                if (row.targets[t] >= 0) {
                    bool is_first = row.ids[t] ==
                                    tokenizer_bos(l->data->tokenizer); /* of its document */
                    sum += tokenizer_text_bytes(l->data->tokenizer, row.targets[t], is_first);
                }
        }
    free(block);
    if (status == OK) *bytes = sum;
    return status;
}

/* ---- create ----------------------------------------------------------------------------- */

static Status check_plan(const DataPlan *p)
{
    if (p->batch < 1 || p->micro_batch < 1 || p->batch % p->micro_batch != 0)
        return fail(ERR_ARG,
                    "data: a micro-batch of %lld sequences does not divide a batch of %lld",
                    (long long)p->micro_batch, (long long)p->batch);
    if (p->seq < 1 || p->seq > MAX_SEQ)
        return fail(ERR_ARG, "data: sequences of %lld tokens; 1 to %d are possible",
                    (long long)p->seq, MAX_SEQ);
    return OK;
}

/* share[i] of 2^63 is weight i over the weights from i on. */
static void make_shares(DataLoader *l)
{
    double rest = 0;
    for (int i = l->data->n_sources - 1; i >= 0; i--) {
        double weight = l->data->source[i].weight;
        rest += weight;
        l->share[i] = (uint64_t)(weight / rest * 0x1p63);
    }
}

Status data_loader_create(const Data *data, const DataPlan *plan, DataLoader **out)
{
    TRY(check_plan(plan));
    DataLoader *l = xcalloc(1, sizeof *l);
    l->data = data;
    l->plan = *plan;
    l->counted_step = -1;
    l->share = xcalloc((size_t)data->n_sources, sizeof *l->share);
    l->n_slots = xcalloc((size_t)data->n_sources, sizeof *l->n_slots);
    l->tokens = xmalloc(((size_t)plan->seq + 1) * sizeof *l->tokens);
    make_shares(l);
    for (int i = 0; i < data->n_sources; i++) {
        int64_t n = data->source[i].split[plan->split].n_tokens;
        bool endless = !data->source[i].path && plan->split == DATA_TRAIN;
        l->n_slots[i] = n / plan->seq + (n % plan->seq != 0);
        l->total_slots = endless || l->total_slots == INT64_MAX ? INT64_MAX
                                                                : l->total_slots + l->n_slots[i];
    }
    *out = l;
    return OK;
}

void data_loader_destroy(DataLoader *l)
{
    if (!l) return;
    free(l->share);
    free(l->n_slots);
    free(l->tokens);
    free(l);
}

/* ---- for prefetch.c and inspect.c ------------------------------------------------------- */

const DataPlan *data_loader_plan(const DataLoader *l) { return &l->plan; }
