/* What doubling a cluster buys: with the batch as it may be, and with one twice as large. */
#include "outlook/outlook_internal.h"

static double useful(const Answer *a)
{
    const Outlook *o = &a->outlook;
    return o->has_fleet ? o->fleet.useful_tokens_per_s : o->plan.tokens_per_s;
}

double outlook_speedup(const Doubling *d, int which)
{
    return useful(d->of[which]) / useful(d->of[AS_IT_IS]);
}

double outlook_elastic_speedup(const Doubling *d, int which)
{
    const Outlook *o = &d->of[which]->outlook;
    double goodput = o->has_fleet ? o->fleet.goodput[RECOVER_REPLICAS].mean : 1;
    return o->plan.tokens_per_s * goodput / useful(d->of[AS_IT_IS]);
}

static Status find_all(const Question *q, Doubling *out)
{
    int64_t devices = cluster_devices(q->cluster);
    Doubling d = {0};
    for (int i = 0; i < DOUBLINGS; i++) {
        Status status = outlook_find(q, q->config, i ? 2 * devices : devices,
                                     i == DOUBLED_BATCH ? 2 * q->max_batch : q->max_batch,
                                     q->tokens, &d.of[i]);
        if (status != OK) {
            outlook_doubling_deinit(&d);
            return status;
        }
    }
    *out = d;
    return OK;
}

Status outlook_doubling(const Question *question, Doubling *out)
{
    Question q = *question;
    if (!q.profiles) q.profiles = profile_store_create();
    Status status = find_all(&q, out);
    if (!question->profiles) profile_store_destroy(q.profiles);
    return status;
}

void outlook_doubling_deinit(Doubling *d)
{
    for (int i = 0; i < DOUBLINGS; i++) outlook_answer_destroy(d->of[i]);
    *d = (Doubling){0};
}
