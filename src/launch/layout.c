/* Which layouts are left when there are fewer slots: data parallelism shrinks, the cut of the model
 * stays. The batch stays too: each rank takes more micro-batches, none of them larger than before.
 */
#include "launch/launch.h"

#include <stdlib.h>

LaunchLayout launch_layout_of(const RunConfig *config)
{
    const RunParallel *p = &config->parallel;
    return (LaunchLayout){.dp = p->dp,
                          .fsdp = p->fsdp,
                          .ranks = run_ranks(config),
                          .micro_batch = run_micro_batch(config),
                          .n_micro = run_n_micro(config)};
}

static int64_t largest_divisor(int64_t n, int64_t most)
{
    int64_t d = most < n ? most : n;
    while (n % d) d--;
    return d;
}

/* The largest dp that divides the batch (canonical mode: its leaves, which stay what they are) with
 * this fsdp and has room; false when none does. */
static bool best_with(const RunConfig *c, const LaunchLayout *full, int64_t fsdp, int64_t slots,
                      LaunchLayout *out)
{
    int64_t fixed = full->ranks / (full->dp * full->fsdp), ep = c->parallel.ep;
    for (int64_t dp = min_i64(full->dp, slots / (fixed * fsdp)); dp > 0; dp--) {
        int64_t leaf = c->train.canonical ? full->micro_batch : 1;
        if (c->train.batch / leaf % (dp * fsdp * ep)) continue;
        int64_t share = c->train.batch / (dp * fsdp * ep),
                micro = c->train.canonical ? leaf : largest_divisor(share, full->micro_batch);
        *out = (LaunchLayout){dp, fsdp, fixed * dp * fsdp, micro, share / micro};
        return true;
    }
    return false;
}

static int compare(const void *a, const void *b)
{
    const LaunchLayout *x = a, *y = b;
    if (x->ranks != y->ranks) return x->ranks < y->ranks ? 1 : -1;
    return (x->fsdp < y->fsdp) - (x->fsdp > y->fsdp);
}

Status launch_layouts(Arena *arena, const RunConfig *config, int64_t min_ranks, int64_t slots,
                      LaunchLayout **list, int *n)
{
    const RunParallel *p = &config->parallel;
    VEC(LaunchLayout) all = {0};
    LaunchLayout full = launch_layout_of(config), one;
    for (int64_t fsdp = full.fsdp; fsdp > 0; fsdp--)
        if (best_with(config, &full, fsdp, slots, &one) && one.ranks >= min_ranks)
            VEC_PUSH(&all, one);
    if (all.n) qsort(all.at, all.n, sizeof *all.at, compare);
    *n = (int)all.n;
    *list = arena_copy(arena, all.at, all.n * sizeof *all.at);
    VEC_FREE(&all);
    if (*n) return OK;
    int64_t fixed = full.ranks / (full.dp * full.fsdp);
    return fail(ERR_REFUSED,
                "no layout fits the %lld slots that are left: pp %lld x cp %lld x tp %lld x ep "
                "%lld needs multiples of %lld ranks%s%s",
                (long long)slots, (long long)p->pp, (long long)p->cp, (long long)p->tp,
                (long long)p->ep, (long long)fixed,
                min_ranks > fixed ? ", and --min-ranks asks for more" : "",
                "; wait for the hosts, or change parallel.*");
}
