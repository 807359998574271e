/* What ranks share must divide: refused by the model's own words, before a graph finds it out by
 * the name of a weight or a cache. */
#include "model/model.h"

/* The largest number up to `most` that divides the count, for a remedy. */
static int64_t works(int64_t most, int64_t count)
{
    int64_t d = most;
    while (d > 1 && count % d) d--;
    return d;
}

/* What ranks of tp share out; with keys as many of them as have one each, or several the same. */
enum { SHARED = 5, KEYS = 1 };

static bool can_share(const int64_t count[SHARED], int which, int64_t n)
{
    return count[which] % n == 0 || (which == KEYS && n % count[which] == 0);
}

static int64_t largest_tp(const int64_t count[SHARED], int64_t tp)
{
    for (int64_t n = tp; n > 1; n--) {
        bool all = true;
        for (int i = 0; i < SHARED; i++) all &= can_share(count, i, n);
        if (all) return n;
    }
    return 1;
}

static Status check_tp(const ModelConfig *m, const ModelCut *c, bool dense, bool moe)
{
    static const char *const what[SHARED] = {"query heads", "key heads", "words in the vocabulary",
                                             "feed-forward columns",
                                             "feed-forward columns of experts"};
    const int64_t count[SHARED] = {m->n_heads, m->n_kv_heads, m->vocab, dense ? m->ffn_dense : 0,
                                   moe && !c->fold_experts ? m->ffn_expert : 0};
    for (int i = 0; i < SHARED; i++)
        if (!can_share(count, i, c->tp))
            return fail(ERR_REFUSED,
                        "%stp %lld does not divide the model's %lld %s; %stp %lld would", c->before,
                        (long long)c->tp, (long long)count[i], what[i], c->before,
                        (long long)largest_tp(count, c->tp));
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
                    (long long)works(n, m->n_experts));
    if (m->n_experts % c->ep == 0) return OK;
    return fail(ERR_REFUSED, "%sep %lld does not divide the model's %lld experts; %sep %lld would",
                c->before, (long long)c->ep, (long long)m->n_experts, c->before,
                (long long)works(c->ep, m->n_experts));
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
