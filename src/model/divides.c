/* What ranks share must divide: refused by the model's own words, before a graph finds it out by
 * the name of a weight or a cache. */
#include "model/model.h"

/* The largest number up to `most` that divides all of n counts, for a remedy. */
static int64_t works(int64_t most, const int64_t *count, int n)
{
    for (int64_t d = most; d > 1; d--) {
        bool all = true;
        for (int i = 0; i < n; i++) all &= count[i] % d == 0;
        if (all) return d;
    }
    return 1;
}

static Status check_tp(const ModelConfig *m, const ModelCut *c, bool dense, bool moe)
{
    const struct {
        const char *what;
        int64_t count;
    } cut[] = {{"query heads", m->n_heads},
               {"key heads", m->n_kv_heads},
               {"words in the vocabulary", m->vocab},
               {"feed-forward columns", dense ? m->ffn_dense : 0},
               {"feed-forward columns of experts", moe && !c->fold_experts ? m->ffn_expert : 0}};
    int64_t counts[COUNT_OF(cut)];
    for (int i = 0; i < COUNT_OF(cut); i++) counts[i] = cut[i].count;
    for (int i = 0; i < COUNT_OF(cut); i++)
        if (cut[i].count % c->tp)
            return fail(ERR_REFUSED,
                        "%stp %lld does not divide the model's %lld %s; %stp %lld would", c->before,
                        (long long)c->tp, (long long)cut[i].count, cut[i].what, c->before,
                        (long long)works(c->tp, counts, COUNT_OF(cut)));
    return OK;
}

static Status check_experts(const ModelConfig *m, const ModelCut *c)
{
    int64_t n = c->tp * c->ep;
    if (c->fold_experts && m->n_experts % n)
        return fail(ERR_REFUSED,
                    "%sfold_experts: tp %lld x ep %lld does not divide the model's %lld experts; "
                    "leave it out, or take tp x ep %lld",
                    c->before, (long long)c->tp, (long long)c->ep, (long long)m->n_experts,
                    (long long)works(n, &m->n_experts, 1));
    if (m->n_experts % c->ep == 0) return OK;
    return fail(ERR_REFUSED, "%sep %lld does not divide the model's %lld experts; %sep %lld would",
                c->before, (long long)c->ep, (long long)m->n_experts, c->before,
                (long long)works(c->ep, &m->n_experts, 1));
}

Status model_check_divides(const ModelConfig *m, const ModelCut *c)
{
    bool dense = false, moe = false;
    for (int64_t i = 0; i < m->n_layers; i++) *(m->layer[i].moe ? &moe : &dense) = true;
    TRY(check_tp(m, c, dense, moe));
    if (c->ep > 1 && !moe)
        return fail(ERR_REFUSED,
                    "%sep %lld: the model has no experts to share; %sdp cuts the batch as well",
                    c->before, (long long)c->ep, c->before);
    if (c->fold_experts && !moe)
        return fail(ERR_REFUSED, "%sfold_experts: the model has no experts to share; leave it out",
                    c->before);
    return moe ? check_experts(m, c) : OK;
}
