/* A plan as a table that a person reads at a glance, and as the fields of a JSON object. */
#include <math.h>
#include <string.h>

#include "planner/planner.h"

static const double noticeable = 0.0005; /* share of the step */
enum { FEW = 5 };                        /* rows that say little */

static const char *const recompute_words[] = {"nothing made again", "selective recompute",
                                              "full recompute"};
static const char *const recompute_names[] = {"none", "selective", "full"};

/* ---- layout ----------------------------------------------------------------------------- */

static void add_size(Str *out, const char *name, int64_t n)
{
    if (n > 1) str_printf(out, "%s%s %lld", out->n ? ", " : "", name, (long long)n);
}

void plan_layout_words(const Plan *plan, Str *out)
{
    const RunParallel *p = &plan->config.parallel;
    Str text = {0};
    add_size(&text, "tp", p->tp);
    add_size(&text, "cp", p->cp);
    add_size(&text, "ep", p->ep);
    if (p->fold_experts && p->tp > 1) str_add(&text, " (experts folded over tp)");
    add_size(&text, "fsdp", p->fsdp);
    add_size(&text, "dp", p->dp);
    add_size(&text, "pp", p->pp);
    if (p->pp > 1) {
        int64_t stages = p->virtual_stages ? p->virtual_stages
                                           : pipeline_default_stages(p->schedule);
        str_printf(&text, " (%s, %lld stage%s on a rank)", p->schedule, (long long)stages,
                   stages == 1 ? "" : "s");
    }
    if (p->zero) str_printf(&text, "%szero %lld", text.n ? ", " : "", (long long)p->zero);
    str_add(out, text.n ? text.at : "one rank");
    str_deinit(&text);
}

static void layout_text(const Plan *plan, Str *out)
{
    const RunTrain *r = &plan->config.train;
    char tokens[32];
    str_add(out, "layout   ");
    plan_layout_words(plan, out);
    str_printf(
        out,
        "\n         batch %lld x %lld = %s tokens: %lld micro-batch%s of %lld on a rank; %s, %s\n",
        (long long)r->batch, (long long)r->seq, format_count(plan->tokens, tokens),
        (long long)run_n_micro(&plan->config), run_n_micro(&plan->config) == 1 ? "" : "es",
        (long long)run_micro_batch(&plan->config), run_precision_name(r->precision),
        recompute_words[r->recompute]);
}

/* ---- memory ----------------------------------------------------------------------------- */

typedef struct Line {
    const char *what, *key;
    size_t offset;
} Line;
static const Line memory_lines[] = {
    {"f32 weights", "weights", offsetof(PlanMemory, weights)},
    {"working weights", "copies", offsetof(PlanMemory, copies)},
    {"Adam moments", "moments", offsetof(PlanMemory, moments)},
    {"gradient sums", "gradients", offsetof(PlanMemory, gradients)},
    {"expert biases and loads", "buffers", offsetof(PlanMemory, buffers)},
    {"messages to other stages", "messages", offsetof(PlanMemory, messages)},
    {"activations in flight", "activations", offsetof(PlanMemory, activations)},
    {"step: gradients, workspace", "step", offsetof(PlanMemory, step)},
    {"packed weights", "packed", offsetof(PlanMemory, packed)},
    {"inputs", "inputs", offsetof(PlanMemory, inputs)},
};

static size_t bytes_of(const PlanMemory *m, const Line *line)
{
    size_t bytes;
    memcpy(&bytes, (const char *)m + line->offset, sizeof bytes);
    return bytes;
}

static void memory_text(const Plan *plan, Str *out)
{
    char a[32], b[32];
    const PlanMemory *m = &plan->memory[plan->largest];
    str_printf(out, "memory   %s of %s%s", format_bytes((double)m->total, a),
               format_bytes((double)plan->limit_bytes, b), plan->fits ? "" : ": DOES NOT FIT");
    if (plan->n_stages > 1) str_printf(out, "; rank %d of the pipeline holds most", plan->largest);
    str_add(out, "\n");
    for (int i = 0; i < COUNT_OF(memory_lines); i++) {
        size_t bytes = bytes_of(m, &memory_lines[i]);
        if (bytes)
            str_printf(out, "           %-28s %12s\n", memory_lines[i].what,
                       format_bytes((double)bytes, a));
    }
    if (plan->n_stages < 2) return;
    str_add(out, "         GB by rank:");
    for (int r = 0; r < plan->n_stages; r++)
        str_printf(out, " %.1f", (double)plan->memory[r].total * 1e-9);
    str_add(out, "\n");
}

/* ---- time ------------------------------------------------------------------------------- */

void step_parts(const StepTime *t, StepPart part[STEP_PARTS])
{
    static const char *const work[] = {"products", "attention", "what memory limits"};
    static const char *const waits[MESH_AXES] = {"waiting for messages (pp)",
                                                 "waiting for dp",
                                                 "waiting for fsdp",
                                                 "waiting for ep",
                                                 "waiting for cp",
                                                 "waiting for tp"};
    int n = 0;
    for (int w = 0; w < SIM_WORKS; w++) part[n++] = (StepPart){work[w], t->part.work_s[w], 0};
    part[n++] = (StepPart){"launching kernels", t->part.launch_s, 0};
    for (int a = MESH_AXES - 1; a >= 0; a--)
        part[n++] = (StepPart){waits[a], t->part.exposed_s[a], t->hidden_s[a]};
    part[n++] = (StepPart){"waiting for other stages", t->part.bubble_s, 0};
    part[n++] = (StepPart){"optimizer", t->part.optimizer_s, 0};
    part[n++] = (StepPart){"waiting for the slowest rank", t->part.jitter_s, 0};
}

static void part_text(const StepPart *p, double step_s, Str *out)
{
    if (p->seconds < noticeable * step_s && p->hidden_s < noticeable * step_s) return;
    str_printf(out, "           %-28s %9.4g s %6.1f%%", p->name, p->seconds,
               100 * p->seconds / step_s);
    if (p->hidden_s >= noticeable * step_s)
        str_printf(out, "   and %.4g s beside kernels", p->hidden_s);
    str_add(out, "\n");
}

/* With the error that plans of the family have. */
static void step_text(const Plan *plan, Str *out)
{
    static const char *const families[] = {"dense models", "models with experts", "long sequences"};
    PlanFamily family = plan_family_of(plan);
    PlanResiduals r = plan_residuals(family);
    double low, high;
    str_printf(out, "step     %.4g s", plan->time.step_s);
    if (plan_step_range(plan, &low, &high))
        str_printf(out, " (%.4g to %.4g; %s%lld of %lld published rows of %s lie within)", low,
                   high, r.rows < FEW ? "only " : "", (long long)r.within, (long long)r.rows,
                   families[family]);
    str_add(out, "\n");
}

static void time_text(const Plan *plan, Str *out)
{
    StepPart part[STEP_PARTS];
    step_text(plan, out);
    step_parts(&plan->time, part);
    for (int i = 0; i < STEP_PARTS; i++) part_text(&part[i], plan->time.step_s, out);
}

static void rate_text(const Plan *plan, Str *out)
{
    char all[32], one[32];
    str_printf(out, "rate     %s tokens/s, %s on a device; %.4g TFLOP/s on a device, MFU %.1f%%\n",
               format_count(plan->tokens_per_s, all),
               format_count(plan->tokens_per_s / (double)plan->ranks, one), plan->tflops_per_gpu,
               100 * plan->mfu);
    str_add(out, "         (FLOP of the model: 6 for each weight that is multiplied, causal "
                 "attention; nothing that is made again)\n");
}

void plan_text(const Plan *plan, Str *out)
{
    char total[32], active[32];
    const RunModel *m = &plan->config.model;
    str_printf(out, "plan     %s: %s weights, %s active, on %lld of %lld %s (%s)\n",
               *m->preset ? m->preset
               : *m->from ? m->from
                          : plan->config.name,
               format_count(plan->weights, total), format_count(plan->active_weights, active),
               (long long)plan->ranks, (long long)plan->devices, plan->device, plan->cluster);
    layout_text(plan, out);
    memory_text(plan, out);
    time_text(plan, out);
    rate_text(plan, out);
}

/* ---- JSON ------------------------------------------------------------------------------- */

static void number(Str *out, const char *key, double value)
{
    str_printf(out, "\"%s\": %.17g, ", key, isfinite(value) ? value : 0);
}

static void breakdown_json(const Plan *plan, Str *out)
{
    const StepTime *t = &plan->time;
    char name[32];
    str_add(out, "\"breakdown_s\": {");
    for (int w = 0; w < SIM_WORKS; w++) number(out, sim_work_name((SimWork)w), t->part.work_s[w]);
    number(out, "launch", t->part.launch_s);
    for (int a = 0; a < MESH_AXES; a++) {
        snprintf(name, sizeof name, "exposed_%s", mesh_axis_name((MeshAxis)a));
        number(out, name, t->part.exposed_s[a]);
    }
    number(out, "bubble", t->part.bubble_s);
    number(out, "optimizer", t->part.optimizer_s);
    number(out, "jitter", t->part.jitter_s);
    out->n -= 2; /* the last comma */
    str_add(out, "}, \"hidden_s\": {");
    for (int a = 0; a < MESH_AXES; a++) number(out, mesh_axis_name((MeshAxis)a), t->hidden_s[a]);
    out->n -= 2;
    str_add(out, "}, ");
}

static void layout_json(const Plan *plan, Str *out)
{
    const RunParallel *p = &plan->config.parallel;
    const RunTrain *r = &plan->config.train;
    str_printf(out,
               "\"layout\": {\"tp\": %lld, \"cp\": %lld, \"ep\": %lld, \"fsdp\": %lld, \"dp\": "
               "%lld, \"pp\": %lld, \"zero\": %lld, \"schedule\": \"%s\", ",
               (long long)p->tp, (long long)p->cp, (long long)p->ep, (long long)p->fsdp,
               (long long)p->dp, (long long)p->pp, (long long)p->zero,
               p->pp > 1 ? p->schedule : "none");
    str_printf(out,
               "\"fold_experts\": %s, \"virtual_stages\": %lld, \"batch\": %lld, \"seq\": %lld, "
               "\"micro_batch\": %lld, "
               "\"n_micro\": %lld, \"recompute\": \"%s\", \"precision\": \"%s\"}",
               p->fold_experts ? "true" : "false",
               (long long)(p->pp > 1 ? p->virtual_stages ? p->virtual_stages
                                                         : pipeline_default_stages(p->schedule)
                                     : 1),
               (long long)r->batch, (long long)r->seq, (long long)run_micro_batch(&plan->config),
               (long long)run_n_micro(&plan->config), recompute_names[r->recompute],
               run_precision_name(r->precision));
}

static void memory_json(const Plan *plan, Str *out)
{
    str_add(out, "\"memory\": [");
    for (int s = 0; s < plan->n_stages; s++) {
        str_printf(out, "%s{", s ? ", " : "");
        for (int i = 0; i < COUNT_OF(memory_lines); i++)
            str_printf(out, "\"%s\": %zu, ", memory_lines[i].key,
                       bytes_of(&plan->memory[s], &memory_lines[i]));
        str_printf(out, "\"total\": %zu}", plan->memory[s].total);
    }
    str_add(out, "], ");
}

static void step_range_json(const Plan *plan, Str *out)
{
    PlanResiduals r = plan_residuals(plan_family_of(plan));
    double low, high;
    if (plan_step_range(plan, &low, &high))
        str_printf(out, "\"step_s_range\": [%.17g, %.17g], ", low, high);
    else
        str_add(out, "\"step_s_range\": null, ");
    str_printf(out, "\"published_rows\": {\"family\": \"%s\", \"rows\": %lld, \"within\": %lld}, ",
               plan_family_name(plan_family_of(plan)), (long long)r.rows, (long long)r.within);
}

void plan_json(const Plan *plan, Str *out)
{
    str_printf(out, "\"fits\": %s, \"peak_bytes\": %zu, \"limit_bytes\": %zu, \"ranks\": %lld, ",
               plan->fits ? "true" : "false", plan->memory[plan->largest].total, plan->limit_bytes,
               (long long)plan->ranks);
    number(out, "step_s", plan->time.step_s);
    step_range_json(plan, out);
    number(out, "tokens_per_step", plan->tokens);
    number(out, "tokens_per_s", plan->tokens_per_s);
    number(out, "tokens_per_s_per_gpu", plan->tokens_per_s / (double)plan->ranks);
    number(out, "tflops_per_gpu", plan->tflops_per_gpu);
    number(out, "mfu", plan->mfu);
    breakdown_json(plan, out);
    memory_json(plan, out);
    number(out, "planning_s", plan->build_s + plan->simulate_s);
    layout_json(plan, out);
}
