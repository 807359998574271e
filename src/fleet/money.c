/* What a cluster costs to buy, to run, and per token. */
#include "fleet/fleet.h"

#include <math.h>

static const double hours_per_year = 8760;

const char *fleet_capital_name(CapitalPart part)
{
    static const char *const names[] = {"servers", "switches", "optics and cables", "storage",
                                        "facility"};
    return names[part];
}

static Range scale(Range r, double factor)
{
    return (Range){r.low * factor, r.central * factor, r.high * factor};
}
static Range add(Range a, Range b)
{
    return (Range){a.low + b.low, a.central + b.central, a.high + b.high};
}
static Range product(Range a, Range b)
{
    return (Range){a.low * b.low, a.central * b.central, a.high * b.high};
}
/* The lowest quotient has the highest divisor. */
static Range quotient(Range a, Range b)
{
    return (Range){a.low / b.high, a.central / b.central, a.high / b.low};
}

/* A facility is built for devices at their limit. */
static double rated_w(const Cluster *c, double nodes)
{
    double devices = (double)c->node.devices;
    double servers = nodes * (devices * c->device.max_w + c->node.overhead_w);
    return servers * (1 + c->site.storage_w_share) + nodes * devices * c->network.device_w;
}

Capital fleet_capital(const Cluster *c, int64_t nodes)
{
    double n = (double)nodes, devices = n * (double)c->node.devices;
    Capital capital = {.it_w = rated_w(c, n)};
    Range *part = capital.part_usd;
    part[CAPITAL_SERVERS] = c->node.price_usd.high > 0 ? scale(c->node.price_usd, n)
                                                       : scale(c->device.price_usd, devices);
    part[CAPITAL_SWITCHES] = scale(c->network.switch_price_usd, devices);
    part[CAPITAL_OPTICS] = scale(c->network.optics_price_usd, devices);
    part[CAPITAL_STORAGE] = product(part[CAPITAL_SERVERS], c->prices.storage_share);
    part[CAPITAL_FACILITY] = scale(c->prices.facility_usd_per_w, capital.it_w);
    for (int i = 0; i < CAPITAL_PARTS; i++) capital.total_usd = add(capital.total_usd, part[i]);
    return capital;
}

RunningCost fleet_running_cost(const Cluster *c, int64_t nodes, const Power *power)
{
    Capital capital = fleet_capital(c, nodes);
    double devices = (double)nodes * (double)c->node.devices;
    Range machines = {0}, facility = capital.part_usd[CAPITAL_FACILITY];
    for (int i = 0; i < CAPITAL_PARTS; i++)
        if (i != CAPITAL_FACILITY) machines = add(machines, capital.part_usd[i]);
    RunningCost cost = {
        .capital_usd_per_hour = scale(add(quotient(machines, c->prices.lifetime_years),
                                          quotient(facility, c->prices.facility_years)),
                                      1 / hours_per_year),
        .energy_usd_per_hour = scale(product(power->meter_w, c->site.usd_per_kwh), 1e-3),
        .operation_usd_per_hour = scale(product(capital.total_usd, c->prices.operation_share),
                                        1 / hours_per_year),
        .rent_usd_per_hour = scale(c->prices.rent_usd_per_hour, devices),
    };
    cost.total_usd_per_hour = add(add(cost.capital_usd_per_hour, cost.energy_usd_per_hour),
                                  cost.operation_usd_per_hour);
    cost.device_usd_per_hour = scale(cost.total_usd_per_hour, 1 / devices);
    return cost;
}

Range fleet_usd_per_tokens(const RunningCost *cost, double tokens, double tokens_per_s)
{
    return scale(cost->total_usd_per_hour, tokens / tokens_per_s / 3600);
}

/* ---- time ------------------------------------------------------------------------------- */

int64_t fleet_useful_devices(double max_batch_tokens)
{
    return (int64_t)(max_batch_tokens / FLEET_MIN_TOKENS);
}

Status fleet_token_time(const TokenBudget *b, TokenTime *out)
{
    char most[32], batch[32], all[32];
    if (!(b->batch_tokens >= 1) || !(b->step_s > 0) || !(b->goodput > 0) || b->goodput > 1 ||
        b->devices < 1)
        return fail(ERR_ARG,
                    "a batch of %g tokens, steps of %g s, goodput %g on %lld devices: above 0, and "
                    "goodput at most 1, are wanted",
                    b->batch_tokens, b->step_s, b->goodput, (long long)b->devices);
    format_count(b->max_batch_tokens, most);
    format_count(b->batch_tokens, batch);
    format_count(b->tokens, all);
    if (b->max_batch_tokens > 0 && b->batch_tokens > b->max_batch_tokens)
        return fail(ERR_REFUSED,
                    "a batch of %s tokens is above the limit of %s, beyond which it learns no more "
                    "per step; %s, on at most %lld devices, would do",
                    batch, most, most,
                    (long long)max_i64(1, fleet_useful_devices(b->max_batch_tokens)));
    if (!(b->tokens >= b->batch_tokens))
        return fail(
            ERR_REFUSED,
            "a budget of %s tokens is less than one batch of %s; a batch of at most %s would do",
            all, batch, all);
    TokenTime t = {.steps = (int64_t)ceil(b->tokens / b->batch_tokens),
                   .tokens_per_device = b->batch_tokens / (double)b->devices};
    t.seconds = (double)t.steps * b->step_s / b->goodput;
    t.days = t.seconds / 86400;
    t.starved = t.tokens_per_device < FLEET_MIN_TOKENS;
    *out = t;
    return OK;
}
