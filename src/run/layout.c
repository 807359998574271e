/* What a run file says of the ranks: how many its layout is for, and how they share a batch. */
#include "run/run.h"

int64_t run_ranks(const RunConfig *config)
{
    const RunParallel *p = &config->parallel;
    return p->pp * p->dp * p->fsdp * p->ep * p->cp * p->tp;
}

static int64_t data_ranks(const RunConfig *c)
{
    return c->parallel.dp * c->parallel.fsdp * c->parallel.ep;
}

int64_t run_micro_batch(const RunConfig *config)
{
    const RunTrain *r = &config->train;
    return r->micro_batch == r->batch && !r->canonical ? r->batch / data_ranks(config)
                                                       : r->micro_batch;
}

int64_t run_n_micro(const RunConfig *config)
{
    return config->train.batch / (run_micro_batch(config) * data_ranks(config));
}

static bool is_power_of_two(int64_t n) { return n > 0 && (n & (n - 1)) == 0; }

/* In canonical mode a step is a balanced binary tree over leaves of train.micro_batch sequences. */
static Status check_canonical(const RunConfig *config, int64_t data)
{
    const RunParallel *p = &config->parallel;
    const RunTrain *r = &config->train;
    int64_t leaves = r->batch / r->micro_batch;
    if (r->precision == RUN_FP8)
        return fail(ERR_REFUSED, "train.canonical: products of 8 bits have scales over what a rank "
                                 "has of their sums; take train.precision=bf16");
    static const int64_t few =
        8; /* rows: products of no more of them are summed in another order (ops/gemm.h) */
    if (p->cp > 1 && r->micro_batch * r->seq / p->cp <= few)
        return fail(ERR_REFUSED,
                    "train.canonical with parallel.cp %lld leaves a rank %lld tokens of a leaf, "
                    "and more than %lld are needed; take a smaller parallel.cp",
                    (long long)p->cp, (long long)(r->micro_batch * r->seq / p->cp), (long long)few);
    if (!is_power_of_two(leaves))
        return fail(
            ERR_REFUSED,
            "train.canonical sums over train.batch / train.micro_batch = %lld leaves, which must "
            "be a power of two; train.batch=%lld would do",
            (long long)leaves,
            (long long)(r->micro_batch << (63 - __builtin_clzll((unsigned long long)leaves))));
    if (leaves % data)
        return fail(ERR_REFUSED,
                    "train.canonical: %lld leaves of %lld sequences cannot be shared out over dp x "
                    "fsdp x ep = %lld ranks; their number must divide the leaves",
                    (long long)leaves, (long long)r->micro_batch, (long long)data);
    if (p->cp > 1 && p->context == RUN_CONTEXT_RING)
        return fail(ERR_REFUSED, "train.canonical: parallel.context ring joins parts of attention "
                                 "in an order of its own; take parallel.context=gather");
    if (r->canonical_chunks && !is_power_of_two(r->canonical_chunks))
        return fail(ERR_REFUSED, "train.canonical_chunks %lld is no power of two",
                    (long long)r->canonical_chunks);
    return OK;
}

Status run_layout_check(const RunConfig *config, int64_t n_ranks)
{
    const RunParallel *p = &config->parallel;
    const RunTrain *r = &config->train;
    int64_t wanted = run_ranks(config), data = data_ranks(config), micro = run_micro_batch(config);
    if (wanted != n_ranks)
        return fail(ERR_REFUSED,
                    "the layout pp %lld x dp %lld x fsdp %lld x ep %lld x cp %lld x tp %lld is for "
                    "%lld ranks, but %lld were started",
                    (long long)p->pp, (long long)p->dp, (long long)p->fsdp, (long long)p->ep,
                    (long long)p->cp, (long long)p->tp, (long long)wanted, (long long)n_ranks);
    if ((p->zero == 1 || p->zero == 2) && p->dp > 1 && p->fsdp > 1)
        return fail(ERR_REFUSED,
                    "parallel.zero %lld shares over dp %lld what parallel.fsdp %lld shares "
                    "already; take parallel.zero=0, or parallel.fsdp=1",
                    (long long)p->zero, (long long)p->dp, (long long)p->fsdp);
    if (r->batch % data)
        return fail(
            ERR_REFUSED,
            "train.batch %lld is shared by dp x fsdp x ep = %lld ranks, which does not divide it",
            (long long)r->batch, (long long)data);
    if (r->seq % (p->cp > 1 ? 2 * p->cp : 1))
        return fail(ERR_REFUSED,
                    "train.seq %lld is cut into 2 x cp = %lld blocks, which do not divide it",
                    (long long)r->seq, (long long)(2 * p->cp));
    if (p->context == RUN_CONTEXT_RING && p->cp > RUN_RING_RANKS)
        return fail(ERR_REFUSED,
                    "parallel.context ring is for up to %d ranks of parallel.cp, not %lld; take "
                    "parallel.context=gather",
                    RUN_RING_RANKS, (long long)p->cp);
    if (r->canonical) TRY(check_canonical(config, data));
    if (r->batch % (micro * data))
        return fail(ERR_REFUSED,
                    "train.micro_batch %lld on dp x fsdp x ep = %lld ranks makes %lld sequences at "
                    "once, which do not divide train.batch %lld",
                    (long long)micro, (long long)data, (long long)(micro * data),
                    (long long)r->batch);
    return OK;
}
