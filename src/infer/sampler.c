/* From logits to a token. Probabilities are formed in double; only as many candidates are sorted as
 * the limits can let through, so that a vocabulary of 200,000 costs one walk and not a sort. */
#include "infer/infer.h"

#include <math.h>
#include <stdlib.h>

typedef struct Candidate {
    double weight; /* exp((logit - largest) / temperature); the first one's is 1 */
    int32_t id;
} Candidate;

struct Sampler {
    int64_t vocab;
    Candidate *candidate;
};

Sampler *sampler_create(int64_t vocab)
{
    Sampler *sampler = xcalloc(1, sizeof *sampler);
    sampler->vocab = vocab;
    sampler->candidate = xcalloc((size_t)vocab, sizeof *sampler->candidate);
    return sampler;
}

void sampler_destroy(Sampler *sampler)
{
    if (!sampler) return;
    free(sampler->candidate);
    free(sampler);
}

Status sampler_check(const SamplerOptions *o)
{
    if (!(o->temperature >= 0 && o->temperature <= 1000))
        return fail(ERR_ARG, "a temperature of %g; it must lie between 0 and 1000", o->temperature);
    if (o->top_k < 0)
        return fail(ERR_ARG, "a top-k of %lld; it must be 0 (all) or more", (long long)o->top_k);
    if (!(o->top_p > 0 && o->top_p <= 1))
        return fail(ERR_ARG, "a top-p of %g; it must lie above 0, up to 1", o->top_p);
    if (!(o->min_p >= 0 && o->min_p <= 1))
        return fail(ERR_ARG, "a min-p of %g; it must lie between 0 and 1", o->min_p);
    return OK;
}

static int by_weight(const void *a, const void *b)
{
    const Candidate *x = a, *y = b;
    if (x->weight != y->weight) return x->weight > y->weight ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}

/* The largest finite logit's place, or -1; NaN and infinities never win. */
static int64_t find_largest(const float *logits, int64_t n)
{
    int64_t best = -1;
    for (int64_t i = 0; i < n; i++)
        if (isfinite(logits[i]) && (best < 0 || logits[i] > logits[best])) best = i;
    return best;
}

static double weight_of(float logit, float largest, double temperature)
{
    return isfinite(logit) ? exp(((double)logit - (double)largest) / temperature) : 0;
}

/* Fills sampler->candidate with all tokens of at least this weight, in order of id; returns their
 * mass. */
static double collect(Sampler *s, const SamplerOptions *o, const float *logits, int64_t largest,
                      double least, int64_t *n)
{
    double mass = 0;
    *n = 0;
    for (int64_t i = 0; i < s->vocab; i++) {
        double w = weight_of(logits[i], logits[largest], o->temperature);
        if (w <= 0 || w < least) continue;
        mass += w;
        s->candidate[(*n)++] = (Candidate){w, (int32_t)i};
    }
    return mass;
}

/* Sorted candidates, at least all that the limits can let through: tokens below a weight are left
 * out as long as those above already hold more than the mass, or the number, that is kept. With
 * top_k, top_p is a share of the mass of those k, so all k are needed. */
static void collect_sorted(Sampler *s, const SamplerOptions *o, const float *logits,
                           int64_t largest, int64_t *n, double *total)
{
    int64_t all;
    *total = collect(s, o, logits, largest, 0, &all);
    int64_t wanted = o->top_k > 0 && o->top_k < all ? o->top_k : all;
    double floor = o->top_k > 0 ? 0 : o->min_p;
    double least = 1.0 / 64;
    for (;;) {
        if (least < floor) least = floor;
        double mass = collect(s, o, logits, largest, least, n);
        if (*n >= wanted || least <= floor) break;
        if (o->top_k == 0 && o->top_p < 1 && mass > o->top_p * *total) break;
        least = least > 1e-12 ? least / 256 : 0;
    }
    qsort(s->candidate, (size_t)*n, sizeof *s->candidate, by_weight);
    if (*n > wanted) *n = wanted;
}

/* Cuts the sorted candidates to what the limits keep; returns the mass that is left. */
static double cut(const Sampler *s, const SamplerOptions *o, double total, int64_t *n)
{
    double kept = 0;
    if (o->top_k > 0) {
        total = 0;
        for (int64_t i = 0; i < *n; i++) total += s->candidate[i].weight;
    }
    int64_t i = 0;
    for (; i < *n; i++) {
        double w = s->candidate[i].weight;
        if ((o->top_p < 1 && kept > o->top_p * total) || w < o->min_p) break;
        kept += w;
    }
    *n = i;
    return kept;
}

Status sampler_draw(Sampler *s, const SamplerOptions *o, const float *logits, uint64_t position,
                    int32_t *id)
{
    int64_t largest = find_largest(logits, s->vocab), n;
    if (largest < 0)
        return fail(ERR_FORMAT, "none of the %lld logits is a finite number", (long long)s->vocab);
    *id = (int32_t)largest;
    if (o->temperature <= 0) return OK;
    double total;
    if (o->top_k > 0 || o->top_p < 1 || o->min_p > 0) {
        collect_sorted(s, o, logits, largest, &n, &total);
        total = cut(s, o, total, &n);
    } else {
        total = collect(s, o, logits, largest, 0, &n);
    }
    double left = rng_uniform(rng_key(o->seed, "sample"), position) * total;
    for (int64_t i = 0; i < n; i++) {
        *id = s->candidate[i].id;
        left -= s->candidate[i].weight;
        if (left < 0) break;
    }
    return OK;
}
