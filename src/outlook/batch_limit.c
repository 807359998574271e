/* A batch that may grow no further starves a large cluster: pipelines are not filled, products are
 * thin, exchanges have nothing to hide beside. What the limit costs is told by two more searches:
 * of a batch that feeds all devices, and of as many devices as the batch feeds. */
#include "outlook/outlook_internal.h"

enum { FEW = 8 };

static double rate(const Question *q, int64_t devices, int64_t max_batch)
{
    Answer *a = NULL;
    if (outlook_find(q, q->config, devices, max_batch, 0, &a) != OK) return 0;
    double tokens_per_s = a->outlook.plan.tokens_per_s;
    outlook_answer_destroy(a);
    return tokens_per_s;
}

/* Up to 7 times a power of two: such numbers are shared out well. */
static bool few_factors(int64_t n)
{
    while (n >= 8 && n % 2 == 0) n /= 2;
    return n < 8;
}

bool outlook_batch_limit(const Question *question, const Plan *plan, BatchLimit *out)
{
    Question q = *question;
    double seq = (double)q.config->train.seq, limit = (double)q.max_batch * seq;
    int64_t node = q.cluster->node.devices, nodes;
    *out = (BatchLimit){.tokens = limit, .tokens_per_device = plan->tokens / (double)plan->ranks};
    if (q.cluster->device.cores || out->tokens_per_device >= FLEET_MIN_TOKENS) return false;
    q.simulate = FEW;
    out->times = 2;
    while (out->tokens_per_device * (double)out->times < FLEET_MIN_TOKENS) out->times *= 2;
    nodes = max_i64(1, fleet_useful_devices(limit) / node);
    while (!few_factors(nodes)) nodes--;
    out->devices = nodes * node;
    out->rate = plan->tokens_per_s;
    out->rate_larger = rate(&q, cluster_devices(q.cluster), out->times * q.max_batch);
    out->rate_fewer = rate(&q, out->devices, q.max_batch);
    return true;
}

void outlook_batch_limit_text(const BatchLimit *b, Str *out)
{
    char limit[32], larger[32];
    str_printf(
        out, "limit    a batch of at most %s tokens is %.0f for a device and step: too few for %s",
        format_count(b->tokens, limit), b->tokens_per_device,
        "full pipelines and products that are not thin\n");
    if (b->rate_larger > 0)
        str_printf(
            out,
            "         with --max-batch %s the same cluster makes %.3g times as many tokens/s\n",
            format_count(b->tokens * (double)b->times, larger), b->rate_larger / b->rate);
    if (b->rate_fewer > 0)
        str_printf(out, "         with this one %lld devices make %.0f%% of them\n",
                   (long long)b->devices, 100 * b->rate_fewer / b->rate);
}

void outlook_batch_limit_json(const BatchLimit *b, Str *out)
{
    str_printf(out,
               ", \"batch_limit\": {\"tokens\": %.9g, \"tokens_per_device\": %.9g, "
               "\"larger_tokens\": %.9g, \"tokens_per_s_larger\": %.9g, \"fewer_devices\": %lld, "
               "\"tokens_per_s_fewer\": %.9g}",
               b->tokens, b->tokens_per_device, b->tokens * (double)b->times, b->rate_larger,
               (long long)b->devices, b->rate_fewer);
}
