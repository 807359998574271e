/* A layout's memory and time from its layers' profile. */
#include "planner/estimate.h"

#include <math.h>
#include <string.h>

/* ---- pipeline --------------------------------------------------------------------------- */

/* Micro-batches that a rank's stages hold at most, and the waiting in units of a rank's work on one
 * micro-batch, by schedule (docs/parallel.md; Narayanan 2021 for the interleaved one, Qi 2023 and
 * 2024 for zb-h1 and zb-v). */
static double slots_of(const Spread *s)
{
    double p = (double)s->pp, v = (double)s->virtual_stages, m = (double)s->n_micro;
    if (s->pp == 1) return 1;
    if (!strcmp(s->schedule, "gpipe")) return m;
    if (!strcmp(s->schedule, "interleaved")) return fmin(m * v, (v - 1) * p + 2 * (p - 1) + 1);
    if (v > 1) return fmin(m * v, 2 * p); /* placed like a V */
    return fmin(m, p);
}

static double waiting_of(const Spread *s)
{
    double p = (double)s->pp, v = (double)s->virtual_stages, m = (double)s->n_micro,
           waiting = p - 1;
    if (s->pp == 1) return 0;
    if (!strcmp(s->schedule, "interleaved"))
        waiting = (p - 1) / v;
    else if (!strcmp(s->schedule, "zb-h1"))
        waiting = (p - 1) / 3;
    else if (v > 1)
        waiting = (p - 1) / 6;
    return fmax(waiting, p + (m - 1) / v - m); /* the first micro-batch goes through all stages */
}

/* ---- stages ----------------------------------------------------------------------------- */

/* What adds up over layers; the rest is the largest of its layers'. */
static const size_t sums[] = {
    offsetof(StageProfile, forward_s),  offsetof(StageProfile, backward_s),
    offsetof(StageProfile, held_bytes), offsetof(StageProfile, weights),
    offsetof(StageProfile, copies),     offsetof(StageProfile, moments),
    offsetof(StageProfile, gradients),  offsetof(StageProfile, packed_bytes)};

static double *at(StageProfile *s, size_t offset) { return (double *)(void *)((char *)s + offset); }

/* `end` has what the embedding or the loss adds to a layer alone. */
static void add_end(StageProfile *rank, const StageProfile *end, const StageProfile *layer)
{
    StageProfile with = *end, without = *layer;
    for (int i = 0; i < COUNT_OF(sums); i++)
        *at(rank, sums[i]) += *at(&with, sums[i]) - *at(&without, sums[i]);
    rank->step_bytes = fmax(rank->step_bytes, end->step_bytes);
    rank->message_bytes = end->message_bytes;
    rank->input_bytes = fmax(rank->input_bytes, end->input_bytes);
}

/* Of so many layers, of each kind as many as in the whole model on average. */
static StageProfile layers_of(const Profile *p, double layers)
{
    StageProfile rank = {0};
    for (int k = 0; k < p->kinds.n; k++) {
        StageProfile kind = p->kind[k];
        for (int i = 0; i < COUNT_OF(sums); i++)
            *at(&rank, sums[i]) += layers * p->kinds.share[k] * *at(&kind, sums[i]);
        rank.step_bytes = fmax(rank.step_bytes, kind.step_bytes);
        rank.message_bytes = fmax(rank.message_bytes, kind.message_bytes);
        rank.input_bytes = fmax(rank.input_bytes, kind.input_bytes);
        rank.largest_layer = fmax(rank.largest_layer, kind.largest_layer);
    }
    return rank;
}

/* States of a rank, after replicas have shared them out. */
static double state_bytes(const StageProfile *r, const Spread *s)
{
    double masters = r->copies > 0 ? r->weights : 0, whole = r->weights - masters + r->copies,
           shared = masters + r->moments, gradients = r->gradients;
    double dp = s->zero >= 1 ? (double)s->dp : 1;
    shared /= dp;
    if (s->zero >= 2)
        gradients /= dp;
    else if (s->pp == 1 && s->n_micro == 1)
        gradients = 0; /* within the step */
    return (whole + shared + gradients) / (double)s->fsdp;
}

/* What two layers' weights and gradients take when they are gathered, and whole gradients before
 * they are shared out. */
static double gathered_bytes(const StageProfile *r, const Spread *s)
{
    double bytes = s->fsdp > 1 ? 4 * r->largest_layer : 0;
    return s->zero >= 2 && s->dp > 1 ? bytes + 4 * r->largest_layer : bytes;
}

static double rank_bytes(const StageProfile *r, const Spread *s)
{
    double packed = s->fsdp == 1 ? r->packed_bytes : 0;
    double slots = slots_of(s) / (double)s->virtual_stages; /* of all the rank's layers */
    return state_bytes(r, s) + gathered_bytes(r, s) + packed + slots * r->held_bytes +
           r->step_bytes + (double)s->virtual_stages * r->message_bytes +
           slots_of(s) * r->input_bytes;
}

/* ---- exchanges of replicas -------------------------------------------------------------- */

/* Weights that are gathered for each micro-batch beside the layer before, forward and backward, and
 * gradients scattered. */
static double fsdp_s(const Sim *sim, const StageProfile *r, const Spread *s)
{
    if (s->fsdp < 2) return 0;
    double weights = r->copies > 0 ? r->copies : r->weights,
           gather_s = sim_exchange_s(sim, COMM_ALL_GATHER, 1u << MESH_FSDP, weights);
    double scatter_s = sim_exchange_s(sim, COMM_REDUCE_SCATTER, 1u << MESH_FSDP, r->gradients);
    return fmax(0, gather_s - r->forward_s) + fmax(0, gather_s + scatter_s - r->backward_s);
}

static double dp_s(const Sim *sim, const StageProfile *r, const Spread *s)
{
    if (s->dp < 2) return 0;
    double fsdp = (double)s->fsdp, grads = r->gradients / fsdp,
           weights = (r->copies > 0 ? r->copies : r->weights) / fsdp;
    unsigned axis = 1u << MESH_DP;
    double hidden = s->pp == 1 ? r->backward_s : 0;
    if (s->zero == 0) return fmax(0, sim_exchange_s(sim, COMM_ALL_REDUCE, axis, grads) - hidden);
    double scatter_s = sim_exchange_s(sim, COMM_REDUCE_SCATTER, axis, grads),
           gather_s = sim_exchange_s(sim, COMM_ALL_GATHER, axis, weights);
    return gather_s + (s->zero == 2 ? (double)s->n_micro : 1) * fmax(0, scatter_s - hidden);
}

static double optimizer_s(const Sim *sim, const StageProfile *r, const Spread *s)
{
    double bytes = (r->weights + r->moments) * 2 + r->gradients + r->copies,
           share = (double)s->fsdp * (s->zero >= 1 ? (double)s->dp : 1);
    return bytes / share / (sim->device.memory.bytes_per_s * sim->device.memory.eta);
}

/* ---- entry ------------------------------------------------------------------------------ */

static Estimate rank_estimate(const Sim *sim, const StageProfile *r, const Spread *s)
{
    double work = r->forward_s + r->backward_s, each = work + fsdp_s(sim, r, s);
    return (Estimate){rank_bytes(r, s), (double)s->n_micro * each + waiting_of(s) * each +
                                            dp_s(sim, r, s) + optimizer_s(sim, r, s)};
}

Estimate estimate_layout(const Sim *sim, const Profile *p, const Spread *s, int64_t n_layers)
{
    int64_t stages = s->pp * s->virtual_stages, per_stage = (n_layers + stages - 1) / stages;
    StageProfile middle = layers_of(p, (double)(per_stage * s->virtual_stages)), first = middle,
                 last = middle;
    const StageProfile *last_kind = &p->kind[p->kinds.last];
    add_end(&first, &p->first, &p->kind[p->kinds.first]);
    if (s->pp == 1) { /* both ends on one rank */
        add_end(&first, &p->last, last_kind);
        first.message_bytes = 0;
        return rank_estimate(sim, &first, s);
    }
    add_end(&last, &p->last, last_kind);
    Estimate a = rank_estimate(sim, &first, s), b = rank_estimate(sim, &middle, s),
             c = rank_estimate(sim, &last, s);
    return (Estimate){fmax(a.bytes, fmax(b.bytes, c.bytes)),
                      fmax(a.step_s, fmax(b.step_s, c.step_s))};
}
