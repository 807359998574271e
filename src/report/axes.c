/* Axes: round borders, few ticks, a unit at each. */
#include "report/report_internal.h"

#include <math.h>

enum { WANTED_TICKS = 5 };
static const double log_room = 1.25;

/* ---- ticks ------------------------------------------------------------------------------ */

/* 1, 2 or 5 times a power of ten, at least `least`. */
static double round_step(double least)
{
    double power = pow(10, floor(log10(least))), share = least / power;
    return power * (share <= 1 ? 1 : share <= 2 ? 2 : share <= 5 ? 5 : 10);
}

static int log_ticks(double from, double to, double tick[MAX_TICKS])
{
    static const double digit[] = {1, 2, 5};
    double decades = log10(to / from);
    int digits = decades > 2.4 ? 1 : COUNT_OF(digit), n = 0,
        every = (int)fmax(1, ceil(decades * digits / MAX_TICKS));
    for (int power = (int)floor(log10(from)), k = 0; pow(10, power) <= to * 1.001; power++)
        for (int i = 0; i < digits; i++) {
            double value = digit[i] * pow(10, power);
            if (value < from * 0.999 || value > to * 1.001) continue;
            if (k++ % every == 0 && n < MAX_TICKS) tick[n++] = value;
        }
    return n;
}

int chart_ticks(double from, double to, bool is_log, double tick[MAX_TICKS])
{
    int n = 0;
    if (!(to > from)) {
        tick[0] = from;
        return 1;
    }
    if (is_log) return log_ticks(from, to, tick);
    double step = round_step((to - from) / WANTED_TICKS);
    int64_t first = (int64_t)ceil(from / step - 1e-9), last = (int64_t)floor(to / step + 1e-9);
    for (int64_t k = first; k <= last && n < MAX_TICKS; k++) tick[n++] = (double)k * step;
    return n;
}

char *chart_number(double value, char buf[32])
{
    if (fabs(value) >= 1000) return format_count(value, buf);
    snprintf(buf, 32, "%.4g", fabs(value) < 1e-12 ? 0 : value);
    return buf;
}

char *money_words(double usd, char buf[32])
{
    if (usd >= 0.9995e9)
        snprintf(buf, 32, usd < 1e12 ? "$%.3g B" : "$%.4g B", usd * 1e-9);
    else if (usd >= 0.9995e6)
        snprintf(buf, 32, "$%.3g M", usd * 1e-6);
    else if (usd >= 999.5)
        snprintf(buf, 32, "$%.3g k", usd * 1e-3);
    else
        snprintf(buf, 32, "$%.3g", usd);
    return buf;
}

/* ---- scales ----------------------------------------------------------------------------- */

static double share_of(double value, double from, double to, bool is_log)
{
    if (!(to > from)) return 0.5;
    return is_log ? log10(value / from) / log10(to / from) : (value - from) / (to - from);
}

double chart_x(const Chart *c, double value)
{
    return c->left + c->width * share_of(value, c->x0, c->x1, c->log_x);
}

double chart_y(const Chart *c, double value)
{
    return c->top + c->height * (1 - share_of(value, c->y0, c->y1, c->log_y));
}

static void fit(double least, double most, bool is_log, double *from, double *to)
{
    if (is_log) {
        *from = least / log_room;
        *to = most * log_room;
        return;
    }
    if (least > 0 && least < 0.6 * most) least = 0;
    double width = most > least ? most - least : fabs(most) > 0 ? fabs(most) / 2 : 1;
    double step = round_step(width / WANTED_TICKS);
    *from = floor(least / step) * step;
    *to = ceil(most / step) * step;
    if (*to <= *from) *to = *from + step;
}

void chart_fit_x(Chart *c, double least, double most)
{
    fit(least, most, c->log_x, &c->x0, &c->x1);
}
void chart_fit_y(Chart *c, double least, double most)
{
    fit(least, most, c->log_y, &c->y0, &c->y1);
}

/* ---- drawing ---------------------------------------------------------------------------- */

void chart_axes(Str *out, const Chart *c, const char *x_label, const char *y_label)
{
    double tick[MAX_TICKS], bottom = c->top + c->height, right = c->left + c->width;
    char text[32];
    int n = chart_ticks(c->y0, c->y1, c->log_y, tick);
    for (int i = 0; i < n; i++) {
        double y = chart_y(c, tick[i]);
        svg_line(out, c->left, y, right, y, "grid");
        svg_text(out, c->left - 8, y + 4, "end", "tick", "%s", chart_number(tick[i], text));
    }
    svg_line(out, c->left, bottom, right, bottom, "axis");
    n = chart_ticks(c->x0, c->x1, c->log_x, tick);
    for (int i = 0; i < n; i++) {
        double x = chart_x(c, tick[i]);
        svg_line(out, x, bottom, x, bottom + 5, "axis");
        svg_text(out, x, bottom + 19, "middle", "tick", "%s", chart_number(tick[i], text));
    }
    svg_text(out, right, bottom + 38, "end", "label", "%s", x_label);
    svg_text(out, c->left - 48 > 0 ? c->left - 48 : 0, c->top - 12, "start", "label", "%s",
             y_label);
}
