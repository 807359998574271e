/* An overlay as a table that a person reads, and as JSON. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "planner/overlay.h"
#include "setting/setting.h"

enum { SHOWN = 24 };

/* Nodes of one name and phase in all layers, of a rank on average. */
typedef struct Line {
    const char *phase, *name;
    double times, measured_s, simulated_s; /* in a step */
} Line;

static int by_name(const void *left, const void *right)
{
    const Line *a = left, *b = right;
    int order = strcmp(a->phase, b->phase);
    return order ? order : strcmp(a->name, b->name);
}

static double size_of(const Line *l) { return fmax(l->measured_s, l->simulated_s); }

static int by_size(const void *left, const void *right)
{
    double a = size_of(left), b = size_of(right);
    return (a < b) - (a > b);
}

static int ranks_of(const Overlay *o)
{
    int n = 0;
    for (int i = 0; i < o->n; i++) n = o->node[i].rank >= n ? o->node[i].rank + 1 : n;
    return n;
}

static int make_lines(const Overlay *o, Line *line)
{
    int n = 0;
    double ranks = ranks_of(o);
    for (int i = 0; i < o->n; i++) {
        const OverlayNode *node = &o->node[i];
        double times = (double)node->times / ranks;
        line[i] = (Line){node->phase, node->name, times, times * node->measured_s,
                         times * node->simulated_s};
    }
    qsort(line, (size_t)o->n, sizeof *line, by_name);
    for (int i = 0; i < o->n; i++) {
        Line *last = n ? &line[n - 1] : NULL;
        if (!last || by_name(last, &line[i])) {
            line[n++] = line[i];
            continue;
        }
        last->times += line[i].times;
        last->measured_s += line[i].measured_s;
        last->simulated_s += line[i].simulated_s;
    }
    qsort(line, (size_t)n, sizeof *line, by_size);
    return n;
}

static void add_line(const Line *l, Str *out)
{
    char ratio[16] = "";
    if (l->measured_s > 0)
        snprintf(ratio, sizeof ratio, "%.2f", fmin(l->simulated_s / l->measured_s, 9999));
    str_printf(out, "         %10.4g %10.4g %7s %7.4g  %-8s %s\n", 1e3 * l->measured_s,
               1e3 * l->simulated_s, ratio, l->times, l->phase, l->name);
}

void overlay_text(const Overlay *o, Str *out)
{
    Line *line = xcalloc((size_t)o->n, sizeof *line), rest = {"", "all others", 0, 0, 0},
         sum = rest;
    int n = make_lines(o, line);
    for (int i = 0; i < n; i++) {
        Line *to[] = {&sum, i < SHOWN ? NULL : &rest};
        for (int k = 0; k < COUNT_OF(to); k++) {
            if (!to[k]) continue;
            to[k]->times += line[i].times;
            to[k]->measured_s += line[i].measured_s;
            to[k]->simulated_s += line[i].simulated_s;
        }
    }
    str_printf(
        out,
        "overlay  %g measured step%s of %.4g s beside a simulated one of %.4g s; %d nodes in "
        "both, %d measured only, %d simulated only%s%s\n",
        o->steps, o->steps == 1 ? "" : "s", o->measured_s, o->simulated_s, o->n, o->n_measured_only,
        o->n_simulated_only, o->odd ? ": " : "", o->odd ? o->odd : "");
    str_add(out, "         ms a step of a rank\n"
                 "           measured  simulated   ratio   times  node\n");
    for (int i = 0; i < n && i < SHOWN; i++) add_line(&line[i], out);
    if (n > SHOWN) add_line(&rest, out);
    sum.name = "all nodes";
    add_line(&sum, out);
    free(line);
}

void overlay_json(const Overlay *o, Str *out)
{
    str_printf(out,
               "\"overlay\": {\"steps\": %g, \"measured_s\": %.9g, \"simulated_s\": %.9g, "
               "\"measured_only\": %d, \"simulated_only\": %d, \"nodes\": [",
               o->steps, o->measured_s, o->simulated_s, o->n_measured_only, o->n_simulated_only);
    for (int i = 0; i < o->n; i++) {
        const OverlayNode *node = &o->node[i];
        str_printf(out, "%s\n{\"rank\": %d, \"program\": ", i ? "," : "", node->rank);
        setting_write_quoted(node->program, out);
        str_printf(out, ", \"stage\": %d, \"phase\": ", node->stage);
        setting_write_quoted(node->phase, out);
        str_printf(out, ", \"instr\": %d, \"layer\": %d, \"name\": ", node->instr, node->layer);
        setting_write_quoted(node->name, out);
        str_printf(out, ", \"times\": %lld, \"measured_s\": %.9g, \"simulated_s\": %.9g}",
                   (long long)node->times, node->measured_s, node->simulated_s);
    }
    str_add(out, "]}");
}
