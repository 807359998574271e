/* Where the time of a step goes, and what the devices do of it. */
#include "report/report_internal.h"

#include <math.h>

enum { ROW = 22, TOP = 44, LEFT = 210, BAR = 600 };

/* In the order of step_parts. */
static const char *const classes[STEP_PARTS] = {"matrix", "attention", "memory", "launch", "tp",
                                                "cp",     "ep",        "fsdp",   "dp",     "pp",
                                                "wait",   "optimizer", "jitter"};

/* One bar of all parts, to scale. */
void report_step_bar(const StepTime *t, Box box, Str *out)
{
    StepPart part[STEP_PARTS];
    double x = box.x;
    step_parts(t, part);
    for (int i = 0; i < STEP_PARTS; i++) {
        double wide = box.width * part[i].seconds / t->step_s;
        if (wide <= 0) continue;
        svg_rect(out, (Box){x, box.y, wide, box.height}, classes[i], "%s: %.4g s, %.1f%%",
                 part[i].name, part[i].seconds, 100 * part[i].seconds / t->step_s);
        x += wide;
    }
}

static void draw_part(const StepPart *p, const char *class, double y, double step_s, double scale,
                      Str *out)
{
    double width = scale * p->seconds, hidden = scale * p->hidden_s;
    svg_text(out, LEFT - 10, y + 12, "end", "", "%s", p->name);
    svg_rect(out, (Box){LEFT, y, width, 15}, class, "%s: %.6g s", p->name, p->seconds);
    if (hidden > 0)
        svg_rect(out, (Box){LEFT + width, y + 1, hidden, 13}, "hatch", "%s beside kernels: %.6g s",
                 p->name, p->hidden_s);
    svg_text(out, LEFT + width + hidden + 8, y + 12, "start", "", "%.4g s, %.1f%%", p->seconds,
             100 * p->seconds / step_s);
}

/* How steps differ from each other. */
static void steps_words(const Outlook *o, Str *out)
{
    Jitter j;
    if (o->plan.ranks < 2) return;
    outlook_jitter(o, &j);
    str_add(out, "<p>");
    html_printf(out,
                "Nine of ten steps take %.4g to %.4g s, as ranks vary from step to step. Beside a "
                "machine that is %.0f%% slower, as one in %.0f was found to be, a step takes %.4g "
                "s; of so many nodes %.3g are expected to be, unless they are looked for.",
                j.p5_s, j.p95_s, 100 * SLOW_BY, 1 / SLOW_SHARE, j.slow_step_s, j.slow_nodes);
    str_add(out, "</p>\n");
}

static bool shown(const StepPart *p, const StepTime *t)
{
    return p->seconds + p->hidden_s >= 0.0005 * t->step_s;
}

void report_breakdown(const ReportInput *in, Str *out)
{
    const StepTime *t = &in->outlook->plan.time;
    StepPart part[STEP_PARTS];
    int n = 0, row = 0;
    double most = 0;
    step_parts(t, part);
    for (int i = 0; i < STEP_PARTS; i++) {
        most = fmax(most, part[i].seconds + part[i].hidden_s);
        n += shown(&part[i], t);
    }
    html_section(out, "Where a step's time goes",
                 "Mean over the pipeline's ranks. What runs beside kernels costs no time of its "
                 "own, and is drawn as an outline.");
    svg_begin(out, PAGE_WIDTH, TOP + n * ROW, "Breakdown of a step's time");
    report_step_bar(t, (Box){0, 0, PAGE_WIDTH, 28}, out);
    for (int i = 0; i < STEP_PARTS; i++)
        if (shown(&part[i], t))
            draw_part(&part[i], classes[i], TOP + row++ * ROW, t->step_s, BAR / most, out);
    svg_end(out);
    steps_words(in->outlook, out);
    html_section_end(out);
}
