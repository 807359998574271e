/* How often a job fails, by cause, and how many spare nodes that asks for. */
#include "fleet/fleet.h"

#include <math.h>
#include <string.h>

enum { DAY_S = 86400 };

/* Groups fail as a whole: those of the named tier, else of the largest below the last. */
static const Tier *group_tier(const Cluster *c, const FailureCause *cause)
{
    const Network *network = &c->network;
    for (int i = 0; *cause->tier && i < network->n_tiers; i++)
        if (!strcmp(network->tier[i].name, cause->tier)) return &network->tier[i];
    return &network->tier[network->n_tiers > 1 ? network->n_tiers - 2 : 0];
}

static double units_of(const Cluster *c, const FailureCause *cause, int64_t nodes)
{
    double n = (double)nodes;
    switch (cause->unit) {
    case PER_DEVICE: return n * (double)c->node.devices;
    case PER_NODE: return n;
    case PER_NIC: return n * (double)c->node.nics;
    case PER_GROUP: return ceil(n / (double)group_tier(c, cause)->nodes);
    case PER_JOB: return 1;
    }
    return 0;
}

double fleet_cause_rate(const Cluster *c, const FailureCause *cause, int64_t nodes, Level level)
{
    return units_of(c, cause, nodes) * range_at(cause->per_day, level) / DAY_S;
}

double fleet_failure_rate(const Cluster *c, int64_t nodes, Level level)
{
    double rate = 0;
    for (int i = 0; i < c->n_failures; i++)
        rate += fleet_cause_rate(c, &c->failure[i], nodes, level);
    return rate;
}

double fleet_cause_nodes(const Cluster *c, const FailureCause *cause, int64_t nodes)
{
    if (cause->repair_s.high <= 0) return 0;
    if (cause->unit == PER_JOB) return (double)nodes;
    return cause->unit == PER_GROUP ? (double)min_i64(nodes, group_tier(c, cause)->nodes) : 1;
}

/* Sums probabilities from 0 up, in logarithms so that large means do not vanish. */
int64_t fleet_poisson_quantile(double mean, double quantile)
{
    double log_term = -mean, sum = exp(log_term);
    int64_t k = 0;
    if (mean <= 0) return 0;
    while (sum < quantile && (double)k < mean + 20 * sqrt(mean) + 100) {
        k++;
        log_term += log(mean / (double)k);
        sum += exp(log_term);
    }
    return k;
}

int64_t fleet_spares(const Cluster *c, int64_t nodes, double quantile, Level level)
{
    double mean = 0;
    for (int i = 0; i < c->n_failures; i++) {
        const FailureCause *cause = &c->failure[i];
        if (fleet_cause_nodes(c, cause, nodes) > 1) continue;
        mean += fleet_cause_rate(c, cause, nodes, level) * range_at(cause->repair_s, level);
    }
    return fleet_poisson_quantile(mean, quantile);
}
