/* drover plan --days, --largest, --doubling: what cluster, what model, what for. */
#include <math.h>
#include <string.h>

#include "cli/plan.h"

static void print(Str *text)
{
    fputs(text->at, stdout);
    str_deinit(text);
}

static Status write_files(const PlanFlags *f, const Answer *a)
{
    if (f->report) TRY(plan_report_again(&a->outlook, f->report));
    return f->out ? run_config_write(&a->outlook.plan.config, f->out) : OK;
}

/* ---- the smallest cluster --------------------------------------------------------------- */

static Status smallest(const PlanFlags *f, const Question *q)
{
    SmallestAnswer s;
    Str text = {0};
    char tokens[32];
    if (!(q->tokens > 0))
        return fail(ERR_ARG,
                    "--days needs --tokens, which are to be trained in them; or --largest");
    TRY(outlook_smallest(q, &s));
    const Outlook *o = &s.answer->outlook;
    double days = outlook_days(o);
    if (f->json) {
        str_printf(&text, "{\"days_wanted\": %.9g, \"devices\": %lld, \"devices_below\": %lld, ",
                   q->days, (long long)s.answer->devices, (long long)s.devices_below);
        if (isfinite(s.days_below))
            str_printf(&text, "\"days_below\": %.9g, ", s.days_below);
        else
            str_add(&text, "\"days_below\": null, ");
        outlook_json(o, &text);
        str_add(&text, "}\n");
    } else {
        str_printf(&text, "smallest %lld %s: %.4g days for %s tokens, of %.4g wanted",
                   (long long)s.answer->devices, o->plan.device, days,
                   format_count(q->tokens, tokens), q->days);
        if (s.devices_below && isfinite(s.days_below))
            str_printf(&text, "; %lld would take %.4g days", (long long)s.devices_below,
                       s.days_below);
        else if (s.devices_below)
            str_printf(&text, "; %lld do not hold it", (long long)s.devices_below);
        str_add(&text, "\n");
        outlook_text(o, &text);
    }
    print(&text);
    Status status = write_files(f, s.answer);
    outlook_answer_destroy(s.answer);
    return status;
}

/* ---- the largest model ------------------------------------------------------------------ */

static void largest_words(const LargestAnswer *l, const Question *q, double per_weight, Str *out)
{
    const Outlook *o = &l->answer->outlook;
    char weights[32], active[32], tokens[32];
    str_printf(out,
               "largest  %s weights, %s active: %.4g days for %s tokens (%.4g of each active "
               "weight), of %.4g wanted\n        ",
               format_count(o->plan.weights, weights), format_count(o->plan.active_weights, active),
               outlook_days(o), format_count(l->tokens, tokens), per_weight, q->days);
    str_printf(out, " model: %s\n", l->config->model.fields_json);
}

static Status largest(const PlanFlags *f, const Question *q, const ConfigSource *source)
{
    LargestAnswer l;
    Str text = {0};
    Arena arena = {0};
    if (isnan(f->days))
        return fail(ERR_ARG, "--largest needs --days, in which the model is to be trained");
    if (q->tokens > 0)
        return fail(ERR_ARG, "--largest takes its tokens by the model's weights: "
                             "--tokens-per-weight, not --tokens");
    Status status = outlook_largest(&arena, q, source, f->tokens_per_weight, &l);
    if (status == OK) {
        if (f->json) {
            str_printf(&text,
                       "{\"days_wanted\": %.9g, \"weights\": %.17g, \"active_weights\": %.17g, "
                       "\"tokens_per_weight\": %.9g, \"model\": %s, ",
                       q->days, l.answer->outlook.plan.weights,
                       l.answer->outlook.plan.active_weights, f->tokens_per_weight,
                       l.config->model.fields_json);
            outlook_json(&l.answer->outlook, &text);
            str_add(&text, "}\n");
        } else {
            largest_words(&l, q, f->tokens_per_weight, &text);
            outlook_text(&l.answer->outlook, &text);
        }
        print(&text);
        status = write_files(f, l.answer);
        outlook_largest_deinit(&l);
    }
    arena_deinit(&arena);
    return status;
}

/* ---- twice the cluster ------------------------------------------------------------------ */

static const char *const doublings[DOUBLINGS] = {"as it is", "twice the devices",
                                                 "and twice the batch"};
static const char *const doubling_keys[DOUBLINGS] = {"now", "doubled", "doubled_batch"};

static double rate_of(const Doubling *d, int i) { return d->of[i]->outlook.plan.tokens_per_s; }

static void doubling_text(const Doubling *d, const Question *q, Str *out)
{
    char batch[32], rate[32], limit[32];
    str_printf(out, "%-20s %9s %8s %9s %9s %6s %8s %9s %9s %8s%s\n", "", "devices", "batch",
               "step, s", "tokens/s", "MFU", "goodput", "useful", "elastic", "M$ per T",
               q->tokens > 0 ? "     days" : "");
    for (int i = 0; i < DOUBLINGS; i++) {
        const Outlook *o = &d->of[i]->outlook;
        const Plan *p = &o->plan;
        const FleetReport *f = &o->fleet;
        double goodput = o->has_fleet ? f->goodput[f->scheme].mean : 1;
        str_printf(out, "%-20s %9lld %8s %9.4g %9s %5.1f%% %7.1f%% %8.2fx %8.2fx", doublings[i],
                   (long long)p->ranks, format_count(p->tokens, batch), p->time.step_s,
                   format_count(p->tokens_per_s, rate), 100 * p->mfu, 100 * goodput,
                   outlook_speedup(d, i), outlook_elastic_speedup(d, i));
        if (o->has_fleet)
            str_printf(out, " %8.4g", f->usd_per_trillion_tokens.central / 1e6);
        else
            str_printf(out, " %8s", "-");
        if (q->tokens > 0) str_printf(out, " %8.4g", outlook_days(o));
        str_add(out, "\n");
    }
    str_printf(
        out,
        "doubling buys %.2fx useful tokens/s with batches of at most %s tokens; %.2fx if "
        "twice as many in a batch train as well; steps alone become %.2fx and %.2fx as fast, "
        "the rest is goodput (elastic: if replicas went on without one that is lost)\n",
        outlook_speedup(d, DOUBLED),
        format_count((double)q->max_batch * (double)q->config->train.seq, limit),
        outlook_speedup(d, DOUBLED_BATCH), rate_of(d, DOUBLED) / rate_of(d, AS_IT_IS),
        rate_of(d, DOUBLED_BATCH) / rate_of(d, AS_IT_IS));
}

static Status doubling(const PlanFlags *f, const Question *q)
{
    Doubling d;
    Str text = {0};
    TRY(outlook_doubling(q, &d));
    if (f->json) {
        str_add(&text, "{");
        for (int i = 0; i < DOUBLINGS; i++) {
            str_printf(&text, "%s\"%s\": {\"speedup\": %.9g, \"elastic_speedup\": %.9g, ",
                       i ? ",\n" : "", doubling_keys[i], outlook_speedup(&d, i),
                       outlook_elastic_speedup(&d, i));
            outlook_json(&d.of[i]->outlook, &text);
            str_add(&text, "}");
        }
        str_add(&text, "}\n");
    } else
        doubling_text(&d, q, &text);
    print(&text);
    outlook_doubling_deinit(&d);
    return OK;
}

/* ---- entry ------------------------------------------------------------------------------ */

Status plan_inverse(const PlanFlags *f, const ConfigSource *source, const RunConfig *config,
                    const Cluster *cluster)
{
    Question q = {.config = config,
                  .cluster = cluster,
                  .days = f->days,
                  .max_usd = isnan(f->max_usd) ? 0 : 1e6 * f->max_usd,
                  .simulate = (int)min_i64(f->simulate, 16)};
    if (f->trace || (f->doubling && (f->report || f->out)))
        return fail(ERR_ARG, "--%s is of one plan%s",
                    f->trace    ? "trace"
                    : f->report ? "report"
                                : "out",
                    f->doubling ? ", and --doubling compares three"
                                : ": take --out FILE, and plan it");
    if (f->doubling && (f->largest || !isnan(f->days)))
        return fail(ERR_ARG, "--doubling and --%s: one question at a time",
                    f->largest ? "largest" : "days");
    TRY(plan_read_count("tokens", f->tokens, &q.tokens));
    TRY(plan_max_batch(config, f, &q.max_batch));
    if (f->doubling) return doubling(f, &q);
    return f->largest ? largest(f, &q, source) : smallest(f, &q);
}
