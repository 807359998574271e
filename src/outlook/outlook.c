/* A plan, and what the fleet makes of weeks of such steps. */
#include "outlook/outlook.h"

/* Kernels of either kind keep their units as busy as the better published ones do; in the rest of a
 * step devices wait. */
enum { POWER_PHASES = 2 };
static void power_phases(const Plan *plan, PowerPhase *phase)
{
    const StepTime *t = &plan->time;
    phase[0] = (PowerPhase){
        "products", (t->part.work_s[SIM_MATRIX] + t->part.work_s[SIM_ATTENTION]) / t->step_s, 0.9,
        0.4};
    phase[1] = (PowerPhase){"what memory limits",
                            (t->part.work_s[SIM_MEMORY] + t->part.optimizer_s) / t->step_s, 0, 0.9};
}

/* Failures, goodput, power, money. */
static void make_fleet(Outlook *o)
{
    enum { STATE_BYTES = 12 }; /* of a weight in a checkpoint: f32, and both moments */
    const Plan *plan = &o->plan;
    const Cluster *cluster = o->cluster;
    PowerPhase *phase = ARENA_ARRAY(&o->arena, PowerPhase, POWER_PHASES);
    if (!plan->fits || cluster->device.cores || plan->ranks % cluster->node.devices) return;
    power_phases(plan, phase);
    int64_t idle = cluster_devices(cluster) - plan->ranks; /* more is somebody else's */
    if ((double)idle > SEARCH_IDLE * (double)cluster_devices(cluster)) idle = 0;
    FleetJob job = {.cluster = cluster,
                    .devices = plan->ranks,
                    .replicas = plan->config.parallel.dp,
                    .idle = idle / cluster->node.devices,
                    .state_bytes = STATE_BYTES * plan->weights,
                    .step_s = plan->time.step_s,
                    .batch_tokens = plan->tokens,
                    .tokens = o->tokens,
                    .phase = phase,
                    .n_phases = POWER_PHASES};
    o->has_fleet = fleet_report_make(&job, &o->arena, &o->fleet) == OK;
    if (!o->has_fleet)
        log_warn("nothing is said of failures, power and money: %s", status_message());
}

/* A run of less than one step is none. */
static Status check_tokens(const RunConfig *config, double tokens)
{
    double seq = (double)config->train.seq, batch = (double)config->train.batch * seq;
    char budget[32], one[32];
    if (tokens <= 0 || tokens >= batch) return OK;
    format_count(tokens, budget);
    format_count(batch, one);
    if (tokens < seq)
        return fail(ERR_REFUSED,
                    "a budget of %s tokens is less than one sequence of train.seq %lld; take that "
                    "many tokens or more",
                    budget, (long long)config->train.seq);
    return fail(ERR_REFUSED,
                "a budget of %s tokens is less than one batch of %s; train.batch=%lld would be one "
                "step of it",
                budget, one, (long long)(tokens / seq));
}

Status outlook_make(const RunConfig *config, const Cluster *cluster, const PlanOptions *options,
                    double tokens, Outlook *out)
{
    Outlook o = {.cluster = cluster, .tokens = tokens};
    TRY(check_tokens(config, tokens));
    Status status = plan_make(config, cluster, options, &o.plan);
    if (status == ERR_REFUSED) return outlook_refuse_layout(config, cluster, status);
    TRY(status);
    make_fleet(&o);
    *out = o;
    return OK;
}

void outlook_deinit(Outlook *o)
{
    plan_deinit(&o->plan);
    arena_deinit(&o->arena);
    *o = (Outlook){0};
}

double outlook_days(const Outlook *o)
{
    if (!(o->tokens > 0)) return 0;
    if (o->has_fleet && o->fleet.has_time) return o->fleet.time.days;
    return o->tokens / o->plan.tokens_per_s / 86400;
}

/* ---- text and JSON ---------------------------------------------------------------------- */

static void duration_text(const Outlook *o, Str *out)
{
    char count[32];
    const Plan *plan = &o->plan;
    double days = o->tokens / plan->tokens_per_s / 86400;
    str_printf(out, "budget   %s tokens: %.0f steps, %.*f days without failures\n",
               format_count(o->tokens, count), o->tokens / plan->tokens, days < 10 ? 2 : 1, days);
}

void outlook_text(const Outlook *o, Str *out)
{
    plan_text(&o->plan, out);
    outlook_jitter_text(o, out);
    if (o->tokens > 0) duration_text(o, out);
    if (o->has_fleet) fleet_report_text(&o->fleet, out);
}

void outlook_json(const Outlook *o, Str *out)
{
    plan_json(&o->plan, out);
    outlook_jitter_json(o, out);
    if (o->has_fleet) {
        str_add(out, ", ");
        fleet_report_json(&o->fleet, out);
    }
    if (o->tokens > 0)
        str_printf(out, ", \"budget_tokens\": %.17g, \"budget_s\": %.17g", o->tokens,
                   o->tokens / o->plan.tokens_per_s);
}
