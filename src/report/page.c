/* The page around the sections: style, headline, assumptions, all figures. */
#include <math.h>

#include "report/report_internal.h"

/* Colours are Okabe and Ito's and Tol's, which people with any colour vision tell apart; on paper
 * the light ones are used. */
static const char light[] =
    "--paper:#fff;--ink:#1b1d21;--soft:#5d636c;--grid:#e3e6ea;--axis:#8a9099;--card:#f5f6f8;"
    "--wait:#dfe2e7;--matrix:#0072b2;--attention:#56b4e9;--memory:#009e73;--launch:#999;"
    "--tp:#e69f00;--cp:#aa4499;--ep:#cc79a7;--fsdp:#d55e00;--dp:#882255;--pp:#999933;"
    "--optimizer:#e5d53a;--jitter:#55585e;--bad:#b3261e;--on-dark:#fff;--on-light:#1b1d21";
static const char dark[] =
    "--paper:#15171a;--ink:#e8eaed;--soft:#a3a9b2;--grid:#2b2f35;--axis:#6d747e;--card:#1f2226;"
    "--wait:#383d45;--matrix:#2a93d5;--attention:#7cc7f2;--memory:#20b88c;--launch:#8c8c8c;"
    "--tp:#f0b030;--cp:#c76ab8;--ep:#e09ac0;--fsdp:#ee7a2a;--dp:#b5507f;--pp:#b5b54d;"
    "--optimizer:#e8da55;--jitter:#9aa0a8;--bad:#ff8a80;--on-dark:#fff;--on-light:#15171a";

static const char rules[] =
    "body{margin:0 auto;padding:24px;max-width:1080px;background:var(--paper);color:var(--ink);"
    "font:15px/1.5 system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif}\n"
    "h1{font-size:26px;line-height:1.25;margin:0 0 4px}h2{font-size:18px;margin:40px 0 4px}"
    "h3{font-size:15px;margin:20px 0 2px}p{margin:2px 0 10px;color:var(--soft);max-width:86ch}\n"
    ".cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(190px,1fr));gap:12px;"
    "margin:20px 0}.cards div{background:var(--card);border-radius:8px;padding:12px 14px}"
    ".cards b{display:block;font-size:22px;line-height:1.25}.cards span{color:var(--soft);"
    "font-size:13px;display:block}.bad b{color:var(--bad)}\n"
    "svg{display:block;width:100%;height:auto;margin:6px 0;font-size:12px}"
    "svg text{fill:var(--ink)}svg text.tick,svg text.label,svg text.soft{fill:var(--soft)}"
    "svg text.in{fill:var(--on-dark);font-size:9px}svg text.dark{fill:var(--on-light);"
    "font-size:9px}svg text.strong{font-weight:600}\n"
    ".grid{stroke:var(--grid)}.axis{stroke:var(--axis)}.limit{stroke:var(--bad);stroke-width:1.5;"
    "stroke-dasharray:6 4}.ideal{stroke:var(--axis);stroke-dasharray:3 4;fill:none}"
    ".mark{stroke:var(--ink);stroke-width:2}.curve{stroke:var(--matrix);stroke-width:2;fill:none}"
    ".band{fill:var(--matrix);opacity:.16}.point{fill:var(--paper);stroke:var(--axis);"
    "stroke-width:1.2}.best{fill:var(--matrix);stroke:var(--matrix)}.front{stroke:var(--matrix);"
    "stroke-width:1.5;fill:none;stroke-dasharray:2 3}.frame{fill:none;stroke:var(--axis)}"
    ".hatch{fill:none;stroke:var(--axis);stroke-dasharray:2 2}\n"
    ".matrix,.forward{fill:var(--matrix)}.attention{fill:var(--attention)}"
    ".memory,.weights{fill:var(--memory)}.launch{fill:var(--launch)}.tp,.backward{fill:var(--tp)}"
    ".cp{fill:var(--cp)}.ep{fill:var(--ep)}.fsdp{fill:var(--fsdp)}.dp{fill:var(--dp)}"
    ".pp{fill:var(--pp)}.wait,.track{fill:var(--wait)}.optimizer,.update{fill:var(--optimizer)}"
    ".jitter{fill:var(--jitter)}.exposed{fill:#26282c;stroke:var(--axis);stroke-width:.3}\n"
    "table{border-collapse:collapse;font-size:14px;margin:8px 0}th,td{text-align:left;"
    "padding:3px 16px 3px 0;vertical-align:top;border-bottom:1px solid var(--grid);"
    "font-weight:normal}th{color:var(--soft)}td.n,th.n{text-align:right}"
    ".wide{overflow-x:auto}\n"
    "details{margin:32px 0}summary{cursor:pointer;color:var(--soft)}pre{white-space:pre-wrap;"
    "overflow-wrap:anywhere;font:12px/1.5 ui-monospace,monospace;background:var(--card);"
    "padding:12px;border-radius:8px}\n"
    "@media print{body{max-width:none;padding:0;font-size:12px}section,svg,.cards{break-inside:"
    "avoid}h2{margin-top:20px}svg,.cards div{print-color-adjust:exact;"
    "-webkit-print-color-adjust:exact}}\n";

static void add_style(Str *out)
{
    str_printf(out, "<style>\n:root{color-scheme:light dark;%s}\n", light);
    str_printf(out, "@media (prefers-color-scheme:dark){:root{%s}}\n", dark);
    str_printf(out, "@media print{:root{%s}}\n", light);
    str_add(out, rules);
    str_add(out, "</style>\n");
}

static const char *model_name(const Plan *plan)
{
    const RunModel *m = &plan->config.model;
    return *m->preset ? m->preset : *m->from ? m->from : plan->config.name;
}

/* ---- words ------------------------------------------------------------------------------ */

const char *axis_class(int axis) { return mesh_axis_name((MeshAxis)axis); }

const char *work_class(int work)
{
    static const char *const classes[] = {"matrix", "attention", "memory"};
    return classes[work];
}

/* ---- headline --------------------------------------------------------------------------- */

static void card(Str *out, const char *class, const char *value, const char *what)
{
    str_printf(out, "<div%s%s%s><b>", *class ? " class=\"" : "", class, *class ? "\"" : "");
    html_add(out, value);
    str_add(out, "</b><span>");
    html_add(out, what);
    str_add(out, "</span></div>\n");
}
#define CARD(class, value_words, ...)                                                              \
    do {                                                                                           \
        Str value_ = {0}, what_ = {0};                                                             \
        str_printf(&value_, value_words);                                                          \
        str_printf(&what_, __VA_ARGS__);                                                           \
        card(out, class, value_.at, what_.at);                                                     \
        str_deinit(&value_);                                                                       \
        str_deinit(&what_);                                                                        \
    } while (0)
#define WORDS(...) __VA_ARGS__

static void step_card(const Plan *plan, Str *out)
{
    double low, high;
    PlanResiduals r = plan_residuals(plan_family_of(plan));
    if (plan_step_range(plan, &low, &high))
        CARD("", WORDS("%.4g s", plan->time.step_s),
             "a step; %.4g to %.4g by %lld of %lld published rows like it", low, high,
             (long long)r.within, (long long)r.rows);
    else
        CARD("", WORDS("%.4g s", plan->time.step_s), "a step");
}

/* The central value, and below it the range and what it is. */
static void money_card(Str *out, Range r, const char *what)
{
    char central[32], low[32], high[32];
    CARD("", WORDS("%s", money_words(r.central, central)), "%s; %s to %s", what,
         money_words(r.low, low), money_words(r.high, high));
}

static void fleet_cards(const Outlook *o, Str *out)
{
    const FleetReport *f = &o->fleet;
    const Goodput *g = &f->goodput[f->scheme];
    char tokens[32];
    if (o->tokens > 0)
        CARD("", WORDS("%.4g days", outlook_days(o)), "for %s tokens, failures included",
             format_count(o->tokens, tokens));
    if (f->has_time) money_card(out, f->run_usd, "the run");
    money_card(out, f->usd_per_trillion_tokens, "a trillion tokens");
    CARD("", WORDS("%.1f %%", 100 * g->mean), "goodput; %.1f to %.1f in 90%% of months",
         100 * g->p5, 100 * g->p95);
    CARD("", WORDS("%.4g MW", f->power.meter_w.central / 1e6), "at the meter, %.0f W a device",
         f->power.device_w);
    money_card(out, f->capital.total_usd, "to build");
}

void report_headline(const ReportInput *in, Str *out)
{
    const Outlook *o = in->outlook;
    const Plan *plan = &o->plan;
    char a[32], b[32];
    Str layout = {0};
    double peak = (double)plan->memory[plan->largest].total;
    str_add(out, "<h1>");
    html_printf(out, "%s on %lld %s", model_name(plan), (long long)plan->ranks, plan->device);
    str_add(out, "</h1>\n<p>");
    plan_layout_words(plan, &layout);
    html_printf(out, "%s; batch of %s tokens; cluster %s", layout.at, format_count(plan->tokens, a),
                plan->cluster);
    str_deinit(&layout);
    str_add(out, "</p>\n<div class=\"cards\">\n");
    CARD(plan->fits ? "" : "bad", WORDS("%s", plan->fits ? "fits" : "does not fit"),
         "%s of %s on the fullest device", format_bytes(peak, a),
         format_bytes((double)plan->limit_bytes, b));
    step_card(plan, out);
    CARD("", WORDS("%s", format_count(plan->tokens_per_s, a)), "tokens/s; %s on a device",
         format_count(plan->tokens_per_s / (double)plan->ranks, b));
    CARD("", WORDS("%.1f %%", 100 * plan->mfu), "MFU; %.4g TFLOP/s on a device",
         plan->tflops_per_gpu);
    if (o->has_fleet)
        fleet_cards(o, out);
    else if (o->tokens > 0)
        CARD("", WORDS("%.4g days", outlook_days(o)), "for %s tokens, without failures",
             format_count(o->tokens, a));
    str_add(out, "</div>\n");
}

/* ---- assumptions ------------------------------------------------------------------------ */

static void network_row(const Cluster *c, Str *out)
{
    Str text = {0};
    const char *lead = "";
    if (c->device.link_bytes_per_s > 0) {
        str_printf(&text, "NVLink %.0f GB/s among %lld", c->device.link_bytes_per_s / 1e9,
                   (long long)c->node.link_domain);
        lead = "; ";
    }
    if (c->n_nodes > 1) {
        str_printf(&text, "%s%lld NICs of %.0f GB/s a node", lead, (long long)c->node.nics,
                   c->node.nic_bytes_per_s / 1e9);
        for (int i = 0; i < c->network.n_tiers; i++) {
            const Tier *t = &c->network.tier[i];
            str_printf(&text, "; %s of %lld nodes 1:%.3g", t->name, (long long)t->nodes,
                       t->oversubscription);
        }
        str_printf(&text, "; derating in training %.3g", c->network.derating.central);
    }
    if (text.n) html_row(out, "network", "%s", text.at);
    str_deinit(&text);
}

void report_assumptions(const ReportInput *in, Str *out)
{
    const Outlook *o = in->outlook;
    const Plan *plan = &o->plan;
    const Cluster *c = o->cluster;
    const RunTrain *r = &plan->config.train;
    static const char *const recompute[] = {"nothing", "selective", "full"};
    char a[32], b[32];
    Str layout = {0};
    html_section(out, "Assumptions", NULL);
    str_add(out, "<table>\n");
    html_row(out, "model", "%s: %s weights, %s active", model_name(plan),
             format_count(plan->weights, a), format_count(plan->active_weights, b));
    html_row(out, "cluster", "%s%s%s; %lld %s, %lld used", c->name, *c->about ? ": " : "", c->about,
             (long long)plan->devices, plan->device, (long long)plan->ranks);
    network_row(c, out);
    plan_layout_words(plan, &layout);
    html_row(out, "layout", "%s", layout.at);
    str_deinit(&layout);
    html_row(
        out, "batch",
        "%lld sequences of %lld tokens; micro-batches on a rank: %lld, sequences in each: %lld",
        (long long)r->batch, (long long)r->seq, (long long)run_n_micro(&plan->config),
        (long long)run_micro_batch(&plan->config));
    html_row(out, "numbers", "%s products, f32 masters; recomputed: %s",
             run_precision_name(r->precision), recompute[r->recompute]);
    html_row(out, "counting",
             "MFU counts 6 FLOP for each weight that is multiplied and causal attention; nothing "
             "that is made again, nothing for embeddings");
    html_row(out, "memory", "the programs' own plan; %s of %s are left to contexts and libraries",
             format_bytes(fmax(0, c->device.memory.bytes - (double)plan->limit_bytes), a),
             format_bytes(c->device.memory.bytes, b));
    html_row(out, "drover", "%s", in->version);
    str_add(out, "</table>\n");
    html_section_end(out);
}

/* ---- page ------------------------------------------------------------------------------- */

static void all_figures(const ReportInput *in, Str *out)
{
    str_add(out, "<details>\n<summary>All figures, as --json prints them</summary>\n<pre>");
    html_add(out, in->json);
    str_add(out, "</pre>\n</details>\n");
}

void report_page(const ReportInput *in, Str *out)
{
    str_add(out, "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n<meta "
                 "name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n<title>");
    html_printf(out, "Plan: %s on %lld %s", model_name(&in->outlook->plan),
                (long long)in->outlook->plan.ranks, in->outlook->plan.device);
    str_add(out, "</title>\n");
    add_style(out);
    str_add(out, "</head>\n<body>\n");
    report_headline(in, out);
    report_comparison(in, out);
    report_assumptions(in, out);
    report_breakdown(in, out);
    report_timeline(in, out);
    report_streams(in, out);
    report_memory(in, out);
    report_front(in, out);
    report_goodput(in, out);
    report_money(in, out);
    if (in->json) all_figures(in, out);
    str_add(out, "</body>\n</html>\n");
}
