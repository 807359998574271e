/* All that is said of a job over weeks, as figures, as text and as JSON. */
#include "fleet/fleet.h"

#include <math.h>

#include "setting/setting.h"

static Status make_goodput(const FleetJob *job, Arena *arena, FleetReport *r)
{
    int64_t wanted = fleet_spares(job->cluster, r->nodes, FLEET_SPARES, LEVEL_CENTRAL);
    GoodputJob goodput = {.cluster = job->cluster,
                          .nodes = r->nodes,
                          .spares = job->idle > wanted ? job->idle : -1,
                          .replicas = job->replicas,
                          .state_bytes = job->state_bytes,
                          .step_s = job->step_s,
                          .months = job->months,
                          .seed = job->seed};
    for (int s = 0; s < RECOVERY_SCHEMES; s++) {
        Status status = fleet_goodput(&goodput, (RecoveryScheme)s, arena, &r->goodput[s]);
        r->possible[s] = status == OK;
        if (status != OK && s != RECOVER_MEMORY) return status;
    }
    bool memory = r->possible[RECOVER_MEMORY] &&
                  r->goodput[RECOVER_MEMORY].mean > r->goodput[RECOVER_SPARES].mean;
    r->scheme = memory ? RECOVER_MEMORY : RECOVER_SPARES;
    return OK;
}

static Status make_time(const FleetJob *job, double goodput, FleetReport *r)
{
    if (!(job->tokens > 0)) return OK;
    TokenBudget budget = {.tokens = job->tokens,
                          .batch_tokens = job->batch_tokens,
                          .max_batch_tokens = job->max_batch_tokens,
                          .step_s = job->step_s,
                          .goodput = goodput,
                          .devices = job->devices};
    TRY(fleet_token_time(&budget, &r->time));
    r->has_time = true;
    r->run_usd = fleet_usd_per_tokens(&r->cost, job->tokens, r->useful_tokens_per_s);
    r->run_kwh = r->power.energy_kwh_per_day.central * r->time.days;
    return OK;
}

Status fleet_report_make(const FleetJob *job, Arena *arena, FleetReport *report)
{
    const Cluster *c = job->cluster;
    FleetReport r = {.job = *job, .nodes = job->devices / c->node.devices};
    if (job->devices < 1 || job->devices % c->node.devices != 0)
        return fail(ERR_REFUSED, "%s: %lld devices are no whole number of nodes of %lld", c->name,
                    (long long)job->devices, (long long)c->node.devices);
    if (!(job->step_s > 0) || !(job->batch_tokens > 0))
        return fail(ERR_ARG, "%s: a step of %g s and %g tokens", c->name, job->step_s,
                    job->batch_tokens);
    TRY(make_goodput(job, arena, &r));
    double goodput = r.goodput[r.scheme].mean, rate = fleet_failure_rate(c, r.nodes, LEVEL_CENTRAL);
    r.mtbf_s = rate > 0 ? 1 / rate : 0;
    r.spares = r.goodput[r.scheme].spares;
    r.power = fleet_power(c, r.nodes, r.spares, job->phase, job->n_phases);
    r.capital = fleet_capital(c, r.nodes + r.spares);
    r.cost = fleet_running_cost(c, r.nodes + r.spares, &r.power);
    r.useful_tokens_per_s = job->batch_tokens / job->step_s * goodput;
    r.usd_per_trillion_tokens = fleet_usd_per_tokens(&r.cost, 1e12, r.useful_tokens_per_s);
    TRY(make_time(job, goodput, &r));
    *report = r;
    return OK;
}

/* ---- text ------------------------------------------------------------------------------- */

static void add_range(Str *out, const char *what, Range r, double scale, const char *unit)
{
    str_printf(out, "  %-28s %10.4g %s  (%.3g to %.3g)\n", what, r.central / scale, unit,
               r.low / scale, r.high / scale);
}

static void text_failures(const FleetReport *r, Str *out)
{
    const Cluster *c = r->job.cluster;
    char time[32];
    if (r->mtbf_s <= 0) {
        str_add(out, "failures: none are described\n");
        return;
    }
    str_printf(out, "failures: one in %s on %lld nodes\n", format_duration(r->mtbf_s, time),
               (long long)r->nodes);
    for (int i = 0; i < c->n_failures; i++)
        str_printf(out, "  %-28s %10.3g a day  (%.3g to %.3g)\n", c->failure[i].name,
                   fleet_cause_rate(c, &c->failure[i], r->nodes, LEVEL_CENTRAL) * 86400,
                   fleet_cause_rate(c, &c->failure[i], r->nodes, LEVEL_LOW) * 86400,
                   fleet_cause_rate(c, &c->failure[i], r->nodes, LEVEL_HIGH) * 86400);
}

static void text_goodput(const FleetReport *r, Str *out)
{
    char every[32];
    str_printf(out, "goodput over %d simulated months (5%% and 95%% of them)\n",
               r->goodput[r->scheme].n_months);
    for (int s = 0; s < RECOVERY_SCHEMES; s++) {
        const Goodput *g = &r->goodput[s];
        if (!r->possible[s]) {
            str_printf(out, "  %-10s two copies of the states do not fit into the hosts' memory\n",
                       fleet_scheme_name((RecoveryScheme)s));
            continue;
        }
        str_printf(out, "%c %-10s %5.1f%% (%.1f to %.1f)  checkpoint every %-7s",
                   s == (int)r->scheme ? '*' : ' ', fleet_scheme_name((RecoveryScheme)s),
                   100 * g->mean, 100 * g->p5, 100 * g->p95, format_duration(g->interval_s, every));
        for (int k = 0; k < GOODPUT_LOSSES; k++)
            if (g->lost[k] >= 0.0005)
                str_printf(out, "  %s %.1f%%", fleet_loss_name((GoodputLoss)k), 100 * g->lost[k]);
        str_add(out, "\n");
    }
    str_printf(out, "  %lld warm spare nodes%s; the line with the star is counted on\n",
               (long long)r->spares,
               r->spares == r->job.idle && r->spares ? ", all that the layout leaves idle" : "");
}

static void text_power(const FleetReport *r, Str *out)
{
    const Power *p = &r->power;
    str_printf(out, "power: %.4g MW of computers, %.4g MW at the meter, %.0f W per device\n",
               p->it_w / 1e6, p->meter_w.central / 1e6, p->device_w);
    str_printf(out, "  swings: %.3g MW within every step, %.3g MW at a failure%s%s\n",
               p->step_swing_w / 1e6, p->failure_swing_w / 1e6,
               p->over_ramp ? "; MORE THAN THE SITE TAKES" : "",
               p->over_limit ? "; THE PEAK IS ABOVE THE SITE'S POWER" : "");
}

void fleet_report_text(const FleetReport *r, Str *out)
{
    text_failures(r, out);
    text_goodput(r, out);
    text_power(r, out);
    str_printf(out, "capital for %lld nodes\n", (long long)(r->nodes + r->spares));
    for (int i = 0; i < CAPITAL_PARTS; i++)
        add_range(out, fleet_capital_name((CapitalPart)i), r->capital.part_usd[i], 1e6, "M$");
    add_range(out, "together", r->capital.total_usd, 1e6, "M$");
    str_add(out, "cost\n");
    add_range(out, "per device and hour", r->cost.device_usd_per_hour, 1, "$");
    add_range(out, "per trillion tokens", r->usd_per_trillion_tokens, 1e6, "M$");
    if (!r->has_time) return;
    char tokens[32];
    str_printf(out, "%s tokens: %lld steps, %.4g days%s\n", format_count(r->job.tokens, tokens),
               (long long)r->time.steps, r->time.days,
               r->time.starved ? "; so few tokens per device and step that products become thin"
                               : "");
    add_range(out, "cost of the run", r->run_usd, 1e6, "M$");
    str_printf(out, "  %-28s %10.4g GWh\n", "energy", r->run_kwh / 1e6);
}

/* ---- JSON ------------------------------------------------------------------------------- */

/* JSON has no infinity. */
static void json_number(Str *out, double x)
{
    if (isfinite(x))
        str_printf(out, "%.9g", x);
    else
        str_add(out, "null");
}

static void json_range(Str *out, const char *name, Range r)
{
    str_printf(out, ", \"%s\": ", name);
    json_number(out, r.central);
    str_printf(out, ", \"%s_range\": [", name);
    json_number(out, r.low);
    str_add(out, ", ");
    json_number(out, r.high);
    str_add(out, "]");
}

static void json_goodput(const FleetReport *r, Str *out)
{
    const Goodput *chosen = &r->goodput[r->scheme];
    str_printf(out,
               "\"goodput\": %.6g, \"goodput_p5\": %.6g, \"goodput_p95\": %.6g, \"recovery\": "
               "\"%s\", \"checkpoint_interval_s\": %.6g, ",
               chosen->mean, chosen->p5, chosen->p95, fleet_scheme_name(r->scheme),
               chosen->interval_s);
    str_printf(out, "\"spare_nodes\": %lld, \"mtbf_s\": %.6g, \"failures_per_day\": {",
               (long long)r->spares, r->mtbf_s);
    for (int i = 0; i < r->job.cluster->n_failures; i++) {
        const FailureCause *cause = &r->job.cluster->failure[i];
        str_add(out, i ? ", " : "");
        setting_write_quoted(cause->name, out);
        str_printf(out, ": %.6g",
                   fleet_cause_rate(r->job.cluster, cause, r->nodes, LEVEL_CENTRAL) * 86400);
    }
    str_add(out, "}, \"goodput_by_recovery\": {");
    const char *lead = "";
    for (int s = 0; s < RECOVERY_SCHEMES; s++) {
        const Goodput *g = &r->goodput[s];
        if (!r->possible[s]) continue;
        str_printf(out, "%s\"%s\": {\"mean\": %.6g, \"p5\": %.6g, \"p50\": %.6g, \"p95\": %.6g",
                   lead, fleet_scheme_name((RecoveryScheme)s), g->mean, g->p5, g->p50, g->p95);
        for (int k = 0; k < GOODPUT_LOSSES; k++)
            str_printf(out, ", \"%s\": %.6g", fleet_loss_name((GoodputLoss)k), g->lost[k]);
        str_add(out, "}");
        lead = ", ";
    }
    str_add(out, "}");
}

void fleet_report_json(const FleetReport *r, Str *out)
{
    json_goodput(r, out);
    str_printf(out,
               ", \"power_w\": %.9g, \"power_peak_w\": %.9g, \"power_step_swing_w\": %.9g, "
               "\"power_failure_swing_w\": %.9g",
               r->power.it_w, r->power.peak_w, r->power.step_swing_w, r->power.failure_swing_w);
    str_printf(out, ", \"power_over_limit\": %s, \"power_over_ramp\": %s",
               r->power.over_limit ? "true" : "false", r->power.over_ramp ? "true" : "false");
    json_range(out, "meter_w", r->power.meter_w);
    json_range(out, "capex_usd", r->capital.total_usd);
    str_add(out, ", \"capex_parts_usd\": {");
    for (int i = 0; i < CAPITAL_PARTS; i++)
        str_printf(out, "%s\"%s\": %.9g", i ? ", " : "", fleet_capital_name((CapitalPart)i),
                   r->capital.part_usd[i].central);
    str_add(out, "}");
    json_range(out, "usd_per_device_hour", r->cost.device_usd_per_hour);
    json_range(out, "usd_per_trillion_tokens", r->usd_per_trillion_tokens);
    str_printf(out, ", \"useful_tokens_per_s\": %.9g", r->useful_tokens_per_s);
    if (!r->has_time) return;
    str_printf(out,
               ", \"steps\": %lld, \"days\": %.9g, \"tokens_per_device_and_step\": %.9g, "
               "\"starved\": %s, \"energy_kwh\": %.9g",
               (long long)r->time.steps, r->time.days, r->time.tokens_per_device,
               r->time.starved ? "true" : "false", r->run_kwh);
    json_range(out, "run_usd", r->run_usd);
}
