/* Plans beside each other: columns, differences, and why the better one is better. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "outlook/outlook.h"
#include "setting/setting.h"

static const double noticeable = 0.0005; /* share of a step */

/* What the devices do for a token: their seconds over its number. Batches and devices may differ.
 */
static double token_s(const Plan *p) { return p->time.step_s * (double)p->ranks / p->tokens; }

/* Parts of steps as they are where the steps do the same on as many devices; else milliseconds of a
 * device for 1,000 tokens. */
static bool same_work(const Contender *c, int n)
{
    for (int i = 1; i < n; i++)
        if (c[i].outlook.plan.tokens != c[0].outlook.plan.tokens ||
            c[i].outlook.plan.ranks != c[0].outlook.plan.ranks)
            return false;
    return true;
}

static double scale_of(const Plan *p, bool same)
{
    return same ? 1 : (double)p->ranks / p->tokens * 1e6;
}

/* ---- which is better, and why ----------------------------------------------------------- */

int outlook_better(const Contender *c, int n)
{
    int best = 0;
    for (int i = 1; i < n; i++) {
        const Plan *a = &c[best].outlook.plan, *b = &c[i].outlook.plan;
        if (b->fits != a->fits ? b->fits : token_s(b) < token_s(a)) best = i;
    }
    return best;
}

typedef struct Difference {
    const char *name;
    double seconds; /* better less worse */
} Difference;

static int by_size(const void *a, const void *b)
{
    double x = fabs(((const Difference *)a)->seconds), y = fabs(((const Difference *)b)->seconds);
    return (x < y) - (x > y);
}

/* The largest differences that are at least a tenth of all. */
static void add_causes(const Plan *better, const Plan *worse, bool same, Str *out)
{
    enum { SHOWN = 4 };
    StepPart a[STEP_PARTS], b[STEP_PARTS];
    Difference d[STEP_PARTS];
    double more = scale_of(better, same), less = scale_of(worse, same),
           all = fabs(more * better->time.step_s - less * worse->time.step_s);
    step_parts(&better->time, a);
    step_parts(&worse->time, b);
    for (int i = 0; i < STEP_PARTS; i++)
        d[i] = (Difference){a[i].name, more * a[i].seconds - less * b[i].seconds};
    qsort(d, STEP_PARTS, sizeof *d, by_size);
    for (int i = 0; i < SHOWN && fabs(d[i].seconds) > 0.1 * all; i++)
        str_printf(out, "%s %s %.3g %s %s", i ? "," : ":", d[i].name, fabs(d[i].seconds),
                   same ? "s" : "ms", d[i].seconds < 0 ? "less" : "more");
}

void outlook_why(const Contender *c, int n, Str *out)
{
    const double alike = 0.002;
    int best = outlook_better(c, n), other = best == 0 ? 1 : 0;
    const Plan *a = &c[best].outlook.plan;
    for (int i = 0; i < n; i++) /* the next one */
        if (i != best && c[i].outlook.plan.fits == a->fits &&
            (c[other].outlook.plan.fits != a->fits ||
             token_s(&c[i].outlook.plan) < token_s(&c[other].outlook.plan)))
            other = i;
    const Plan *b = &c[other].outlook.plan;
    double gain = token_s(b) / token_s(a) - 1;
    char need[32], limit[32];
    if (!a->fits) {
        str_add(out, "none of them fits");
    } else if (!b->fits) {
        str_printf(out, "%s is better: %s does not fit, a rank needs %s of %s", c[best].label,
                   c[other].label, format_bytes((double)b->memory[b->largest].total, need),
                   format_bytes((double)b->limit_bytes, limit));
    } else if (gain < alike) {
        str_printf(out, "%s and %s come to the same", c[best].label, c[other].label);
    } else {
        str_printf(out, "%s is better than %s: %.3g%% more tokens per second%s", c[best].label,
                   c[other].label, 100 * gain, a->ranks == b->ranks ? "" : " of a device");
        add_causes(a, b, same_work(c, n), out);
    }
}

/* ---- figures ---------------------------------------------------------------------------- */

typedef double Figure(const Outlook *o);
static double f_devices(const Outlook *o) { return (double)o->plan.ranks; }
static double f_batch(const Outlook *o) { return o->plan.tokens * 1e-6; }
static double f_memory(const Outlook *o)
{
    return (double)o->plan.memory[o->plan.largest].total * 1e-9;
}
static double f_limit(const Outlook *o) { return (double)o->plan.limit_bytes * 1e-9; }
static double f_step(const Outlook *o) { return o->plan.time.step_s; }
static double f_rate(const Outlook *o) { return o->plan.tokens_per_s; }
static double f_device_rate(const Outlook *o)
{
    return o->plan.tokens_per_s / (double)o->plan.ranks;
}
static double f_mfu(const Outlook *o) { return 100 * o->plan.mfu; }
static double f_goodput(const Outlook *o)
{
    return o->has_fleet ? 100 * o->fleet.goodput[o->fleet.scheme].mean : 0;
}
static double f_power(const Outlook *o)
{
    return o->has_fleet ? o->fleet.power.meter_w.central * 1e-6 : 0;
}
static double f_capital(const Outlook *o)
{
    return o->has_fleet ? o->fleet.capital.total_usd.central * 1e-6 : 0;
}
static double f_trillion(const Outlook *o)
{
    return o->has_fleet ? o->fleet.usd_per_trillion_tokens.central * 1e-6 : 0;
}
static double f_run(const Outlook *o)
{
    return o->has_fleet && o->fleet.has_time ? o->fleet.run_usd.central * 1e-6 : 0;
}

static const struct {
    const char *name, *key;
    Figure *figure;
} figures[] = {
    {"devices", "devices", f_devices},
    {"batch, M tokens", "batch_tokens_m", f_batch},
    {"memory of the fullest, GB", "peak_gb", f_memory},
    {"limit, GB", "limit_gb", f_limit},
    {"step, s", "step_s", f_step},
    {"tokens/s", "tokens_per_s", f_rate},
    {"tokens/s on a device", "tokens_per_s_per_gpu", f_device_rate},
    {"MFU, %", "mfu_percent", f_mfu},
    {"goodput, %", "goodput_percent", f_goodput},
    {"days for the tokens", "days", outlook_days},
    {"M$ per trillion tokens", "m_usd_per_trillion_tokens", f_trillion},
    {"M$ for the run", "run_m_usd", f_run},
    {"M$ of capital", "capital_m_usd", f_capital},
    {"MW at the meter", "meter_mw", f_power},
};

/* A row of the comparison: false where none of them has the figure, or a part to speak of. */
static bool row_values(const Contender *c, int n, int row, bool same, CompareRow *out)
{
    bool any = false;
    double least[MAX_CONTENDERS] = {0};
    if (row < COUNT_OF(figures)) {
        out->name = figures[row].name;
        for (int i = 0; i < n; i++) out->value[i] = figures[row].figure(&c[i].outlook);
    } else {
        for (int i = 0; i < n; i++) {
            const Plan *p = &c[i].outlook.plan;
            StepPart part[STEP_PARTS];
            step_parts(&p->time, part);
            out->name = part[row - COUNT_OF(figures)].name;
            out->value[i] = part[row - COUNT_OF(figures)].seconds * scale_of(p, same);
            least[i] = noticeable * p->time.step_s * scale_of(p, same);
        }
    }
    for (int i = 0; i < n; i++) any |= out->value[i] > least[i];
    return any;
}

int outlook_compare_rows(const Contender *c, int n, CompareRow row[COMPARE_ROWS], int *first_part)
{
    bool same = same_work(c, n);
    int rows = 0;
    for (int k = 0; k < COUNT_OF(figures) + STEP_PARTS; k++) {
        if (k == COUNT_OF(figures)) *first_part = rows;
        rows += row_values(c, n, k, same, &row[rows]);
    }
    return rows;
}

const char *outlook_part_unit(const Contender *c, int n)
{
    return same_work(c, n) ? "parts of the step, s" : "parts, ms of a device for 1,000 tokens";
}

/* ---- text ------------------------------------------------------------------------------- */

enum { NAME = 30, COLUMN = 14, CHANGE = 10 };

static void text_row(const CompareRow *row, int n, Str *out)
{
    str_printf(out, "%-*s", NAME, row->name);
    for (int i = 0; i < n; i++) {
        char value[32], change[32] = "";
        if (fabs(row->value[i]) >= 9999.5)
            format_count(row->value[i], value);
        else
            snprintf(value, sizeof value, "%.4g", row->value[i]);
        str_printf(out, " %*s", COLUMN, value);
        if (i == 0) continue;
        if (row->value[0] > 0 && fabs(row->value[i] / row->value[0] - 1) >= 0.0005)
            snprintf(change, sizeof change, "%+.1f%%", 100 * (row->value[i] / row->value[0] - 1));
        str_printf(out, " %*s", CHANGE, change);
    }
    while (out->n && out->at[out->n - 1] == ' ') out->n--;
    str_add(out, "\n");
}

static void text_labels(const Contender *c, int n, Str *out)
{
    for (int i = 0; i < n; i++) {
        const Plan *p = &c[i].outlook.plan;
        str_printf(out, "%c  %s on %s: ", 'A' + i, c[i].label, p->cluster);
        plan_layout_words(p, out);
        str_printf(out, "%s\n", p->fits ? "" : "; DOES NOT FIT");
    }
    str_printf(out, "\n%-*s", NAME, "");
    for (int i = 0; i < n; i++) {
        str_printf(out, " %*c", COLUMN, 'A' + i);
        if (i) str_printf(out, " %*s", CHANGE, "to A");
    }
    str_add(out, "\n");
}

void outlook_compare_text(const Contender *c, int n, Str *out)
{
    CompareRow row[COMPARE_ROWS];
    int first_part = 0, rows = outlook_compare_rows(c, n, row, &first_part);
    text_labels(c, n, out);
    for (int i = 0; i < rows; i++) {
        if (i == first_part) str_printf(out, "%s\n", outlook_part_unit(c, n));
        text_row(&row[i], n, out);
    }
    str_add(out, "\n");
    outlook_why(c, n, out);
    str_add(out, "\n");
}

/* ---- JSON ------------------------------------------------------------------------------- */

void outlook_compare_json(const Contender *c, int n, Str *out)
{
    Str why = {0};
    outlook_why(c, n, &why);
    str_add(out, "\"compared\": [");
    for (int i = 0; i < n; i++) {
        str_printf(out, "%s{\"name\": ", i ? ",\n" : "\n");
        setting_write_quoted(c[i].label, out);
        str_add(out, ", \"cluster\": ");
        setting_write_quoted(c[i].outlook.plan.cluster, out);
        str_add(out, ", ");
        outlook_json(&c[i].outlook, out);
        str_add(out, "}");
    }
    str_printf(out, "\n], \"better\": %d, \"why\": ", outlook_better(c, n));
    setting_write_quoted(why.at, out);
    str_deinit(&why);
}
