/* What the run costs, and what more and fewer devices would make of days and money. */
#include <math.h>

#include "report/report_internal.h"

enum { HALF = 500, HEIGHT = 250 };

/* A value of each point of the scaling, with its range. */
typedef Range PointValue(const ScalePoint *p);
static Range days_of(const ScalePoint *p) { return (Range){p->days, p->days, p->days}; }
static Range rate_of(const ScalePoint *p)
{
    return (Range){p->tokens_per_s, p->tokens_per_s, p->tokens_per_s};
}
static Range usd_of(const ScalePoint *p)
{
    Range r = p->usd_per_trillion_tokens;
    return (Range){r.low / 1e6, r.central / 1e6, r.high / 1e6};
}

/* ---- one curve -------------------------------------------------------------------------- */

static Chart chart_of(const Scaling *s, PointValue *value, double left)
{
    Chart c = {.left = left + 60,
               .top = 34,
               .width = HALF - 80,
               .height = HEIGHT,
               .log_x = true,
               .log_y = true};
    double least = (double)INFINITY, most = 0;
    for (int i = 0; i < s->n; i++) {
        Range r = value(&s->point[i]);
        least = fmin(least, r.low);
        most = fmax(most, r.high);
    }
    chart_fit_x(&c, (double)s->point[0].devices, (double)s->point[s->n - 1].devices);
    chart_fit_y(&c, least, most);
    return c;
}

static void draw_band(const Scaling *s, PointValue *value, const Chart *c, Str *out)
{
    Str path = {0};
    for (int i = 0; i < s->n; i++)
        str_printf(&path, "%s%.5g %.5g", i ? "L" : "M", chart_x(c, (double)s->point[i].devices),
                   chart_y(c, value(&s->point[i]).high));
    for (int i = s->n - 1; i >= 0; i--)
        str_printf(&path, "L%.5g %.5g", chart_x(c, (double)s->point[i].devices),
                   chart_y(c, value(&s->point[i]).low));
    str_printf(out, "<path class=\"band\" d=\"%sz\"/>\n", path.at);
    str_deinit(&path);
}

/* As if every device did as much as those of the smallest. power: of devices. */
static void draw_ideal(const Scaling *s, PointValue *value, const Chart *c, double power, Str *out)
{
    const ScalePoint *a = &s->point[0], *b = &s->point[s->n - 1];
    double y0 = value(a).central, y1 = y0 * pow((double)b->devices / (double)a->devices, power);
    y1 = fmin(fmax(y1, c->y0), c->y1);
    double x1 = (double)a->devices * pow(y1 / y0, 1 / power);
    svg_line(out, chart_x(c, (double)a->devices), chart_y(c, y0), chart_x(c, x1), chart_y(c, y1),
             "ideal");
}

static void draw_curve(const Scaling *s, PointValue *value, const Chart *c, Str *out)
{
    Str path = {0};
    for (int i = 0; i < s->n; i++)
        str_printf(&path, "%s%.5g %.5g", i ? "L" : "M", chart_x(c, (double)s->point[i].devices),
                   chart_y(c, value(&s->point[i]).central));
    str_printf(out, "<path class=\"curve\" d=\"%s\"/>\n", path.at);
    str_deinit(&path);
    for (int i = 0; i < s->n; i++) {
        const ScalePoint *p = &s->point[i];
        str_printf(out, "<circle cx=\"%.5g\" cy=\"%.5g\" r=\"%d\" class=\"%s\"><title>",
                   chart_x(c, (double)p->devices), chart_y(c, value(p).central),
                   i == s->here ? 6 : 4, p->fits ? "best" : "point");
        html_printf(out, "%lld devices: %.4g s a step, MFU %.1f%%, %.4g%s", (long long)p->devices,
                    p->step_s, 100 * p->mfu, value(p).central, p->fits ? "" : "; does not fit");
        str_add(out, "</title></circle>\n");
    }
    const ScalePoint *here = &s->point[s->here];
    svg_text(out, chart_x(c, (double)here->devices) + 8, chart_y(c, value(here).central) - 10,
             "start", "strong", "this plan");
}

/* Where the layout does not fit nothing is said of months, and so of money. */
static Scaling with_prices(const Scaling *s)
{
    Scaling some = {.here = -1};
    for (int i = 0; i < s->n; i++) {
        if (!(s->point[i].usd_per_trillion_tokens.low > 0)) continue;
        if (i == s->here) some.here = some.n;
        some.point[some.n++] = s->point[i];
    }
    return some;
}

static void draw_scaling(const Scaling *s, bool days, Str *out)
{
    PointValue *left = days ? days_of : rate_of;
    svg_begin(out, PAGE_WIDTH, HEIGHT + 84, "More and fewer devices");
    Chart c = chart_of(s, left, 0);
    chart_axes(out, &c, "devices", days ? "days for the tokens" : "tokens/s");
    draw_ideal(s, left, &c, days ? -1 : 1, out);
    draw_curve(s, left, &c, out);
    Scaling priced = with_prices(s);
    if (priced.n > 1 && priced.here >= 0) {
        c = chart_of(&priced, usd_of, PAGE_WIDTH - HALF);
        chart_axes(out, &c, "devices", "M$ per trillion tokens");
        draw_band(&priced, usd_of, &c, out);
        draw_curve(&priced, usd_of, &c, out);
    }
    svg_end(out);
}

/* ---- capital ---------------------------------------------------------------------------- */

static void money_row(Str *out, const char *what, Range r)
{
    char central[32], low[32], high[32];
    html_row(out, what, "%s (%s to %s)", money_words(r.central, central), money_words(r.low, low),
             money_words(r.high, high));
}

static void draw_capital(const FleetReport *f, Str *out)
{
    enum { ROW = 24, LEFT = 140, BAR = 620 };
    char central[32], low[32], high[32];
    double most = 0;
    for (int i = 0; i < CAPITAL_PARTS; i++) most = fmax(most, f->capital.part_usd[i].high);
    svg_begin(out, PAGE_WIDTH, CAPITAL_PARTS * ROW + 6, "Capital by part");
    for (int i = 0; i < CAPITAL_PARTS; i++) {
        Range r = f->capital.part_usd[i];
        double y = i * ROW, scale = most > 0 ? BAR / most : 0;
        svg_text(out, LEFT - 10, y + 13, "end", "", "%s", fleet_capital_name((CapitalPart)i));
        svg_rect(out, (Box){LEFT, y + 1, r.central * scale, 16}, "matrix", "%.6g $", r.central);
        svg_line(out, LEFT + r.low * scale, y + 9, LEFT + r.high * scale, y + 9, "mark");
        svg_text(out, LEFT + r.high * scale + 8, y + 13, "start", "", "%s (%s to %s)",
                 money_words(r.central, central), money_words(r.low, low),
                 money_words(r.high, high));
    }
    svg_end(out);
}

static void table(const Outlook *o, Str *out)
{
    const FleetReport *f = &o->fleet;
    char tokens[32];
    str_add(out, "<table>\n");
    money_row(out, "a device and hour", f->cost.device_usd_per_hour);
    Range rent = f->cost.rent_usd_per_hour;
    double devices = (double)f->job.devices;
    money_row(out, "the same on the market",
              (Range){rent.low / devices, rent.central / devices, rent.high / devices});
    money_row(out, "a trillion tokens", f->usd_per_trillion_tokens);
    if (f->has_time) {
        html_row(out, "tokens", "%s in %lld steps, %.4g days%s",
                 format_count(f->job.tokens, tokens), (long long)f->time.steps, f->time.days,
                 f->time.starved ? "; so few for a device and step that products become thin" : "");
        money_row(out, "the run", f->run_usd);
        html_row(out, "energy of the run", "%.4g GWh", f->run_kwh / 1e6);
    }
    html_row(out, "power", "%.4g MW of computers, %.4g MW at the meter (%.4g to %.4g)",
             f->power.it_w / 1e6, f->power.meter_w.central / 1e6, f->power.meter_w.low / 1e6,
             f->power.meter_w.high / 1e6);
    html_row(out, "swings of power", "%.3g MW within every step, %.3g MW at a failure%s%s",
             f->power.step_swing_w / 1e6, f->power.failure_swing_w / 1e6,
             f->power.over_ramp ? "; more than the site takes" : "",
             f->power.over_limit ? "; the peak is above the site's power" : "");
    str_add(out, "</table>\n");
}

void report_money(const ReportInput *in, Str *out)
{
    const Outlook *o = in->outlook;
    const Scaling *s = in->scaling;
    if (s && s->n > 1) {
        html_section(out, "More and fewer devices",
                     "The same layout and batch with other numbers of replicas: what devices buy "
                     "when the batch may not grow. Dotted: as if each did as much as those of the "
                     "smallest; open circles do not fit, and are without failures.");
        draw_scaling(s, o->tokens > 0, out);
        html_section_end(out);
    }
    if (!o->has_fleet) return;
    html_section(out, "Money and power",
                 "Bars: central values, lines from low to high ones; what the cluster's sheet says "
                 "of prices has its sources in drover inspect --cluster.");
    draw_capital(&o->fleet, out);
    table(o, out);
    html_section_end(out);
}
