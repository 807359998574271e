/* Two layers of the rank in the middle, instruction by instruction: kernels, and exchanges along
 * each axis beside them. */
#include "report/report_internal.h"

#include <math.h>
#include <string.h>

enum { LEFT = 110, WIDTH = PAGE_WIDTH - LEFT - 10, ROW = 26 };
/* Neighbours that look the same are drawn as one where they are so narrow. */
static const double narrow = 0.6;

static bool has_track(const TimelineWindow *w, int track)
{
    for (int i = 0; i < w->n; i++)
        if (w->event[i].track == track) return true;
    return false;
}

static const char *class_of(const TimelineEvent *e)
{
    return e->track == SIM_TRACK_KERNELS ? work_class(e->work) : axis_class(e->track - 1);
}

static void draw_track(const TimelineWindow *w, const Chart *c, int track, double y, Str *out)
{
    for (int i = 0; i < w->n;) {
        const TimelineEvent *e = &w->event[i++];
        if (e->track != track) continue;
        double x0 = chart_x(c, fmax(e->begin_s, c->x0)), x1 = chart_x(c, fmin(e->end_s, c->x1));
        int more = 0;
        while (x1 - x0 < narrow && i < w->n && w->event[i].track == track &&
               !strcmp(class_of(&w->event[i]), class_of(e)) &&
               chart_x(c, w->event[i].begin_s) - x1 < narrow) {
            x1 = chart_x(c, fmin(w->event[i].end_s, c->x1));
            more++;
            i++;
        }
        Str also = {0};
        if (more) str_printf(&also, " and %d more", more);
        svg_rect(out, (Box){x0, y, fmax(x1 - x0 - (x1 - x0 > 3 ? 0.6 : 0), 0.2), ROW - 6},
                 class_of(e), "%s%s: %.4g us", e->name, more ? also.at : "",
                 (e->end_s - e->begin_s) * 1e6);
        str_deinit(&also);
    }
}

static void draw_window(const TimelineWindow *w, const char *name, Str *out)
{
    int tracks = 0, row = 0;
    for (int k = 0; k < SIM_TRACKS; k++) tracks += k == SIM_TRACK_KERNELS || has_track(w, k);
    double tick[MAX_TICKS], top = 22;
    char text[32];
    Chart c = {.left = LEFT,
               .top = top,
               .width = WIDTH,
               .height = tracks * ROW,
               .x0 = w->begin_s,
               .x1 = w->end_s};
    svg_begin(out, PAGE_WIDTH, top + tracks * ROW + 26, name);
    svg_text(out, LEFT, 12, "start", "strong", "%s", name);
    for (int k = 0; k < SIM_TRACKS; k++) {
        if (k != SIM_TRACK_KERNELS && !has_track(w, k)) continue;
        double y = top + row++ * ROW;
        svg_text(out, LEFT - 10, y + 14, "end", "", "%s",
                 k == SIM_TRACK_KERNELS ? "kernels" : mesh_axis_name((MeshAxis)(k - 1)));
        svg_rect(out, (Box){LEFT, y, WIDTH, ROW - 6}, "wait", "%s", "");
        draw_track(w, &c, k, y, out);
    }
    double y = top + tracks * ROW;
    int n = chart_ticks(0, (w->end_s - w->begin_s) * 1e3, false, tick);
    for (int i = 0; i < n; i++) {
        double x = chart_x(&c, w->begin_s + tick[i] * 1e-3);
        svg_line(out, x, y - 2, x, y + 3, "axis");
        if (x < LEFT + WIDTH - 40)
            svg_text(out, x, y + 16, "middle", "tick", "%s", chart_number(tick[i], text));
    }
    svg_text(out, LEFT + WIDTH, y + 16, "end", "label", "ms");
    svg_end(out);
}

static void draw_legend(Str *out)
{
    LegendItem item[SIM_WORKS + 1] = {{"matrix", "products"},
                                      {"attention", "attention"},
                                      {"memory", "what memory limits"},
                                      {"wait", "waiting, or nothing on its way"}};
    svg_begin(out, PAGE_WIDTH, 20, "Colours of kernels");
    svg_legend(out, LEFT, 2, item, COUNT_OF(item));
    svg_end(out);
}

void report_streams(const ReportInput *in, Str *out)
{
    static const char *const names[2] = {"forward", "backward"};
    const Timeline *t = in->timeline;
    char name[64];
    if (!t || (!t->window[0].layers && !t->window[1].layers)) return;
    html_section(out, "Two layers, stream by stream",
                 "What one rank in the middle of the pipeline does in the time of neighbouring "
                 "layers: kernels, and beside them exchanges along each axis.");
    draw_legend(out);
    for (int i = 0; i < 2; i++) {
        const TimelineWindow *w = &t->window[i];
        if (!w->layers) continue;
        snprintf(name, sizeof name, "%d layer%s %s", w->layers, w->layers == 1 ? "" : "s",
                 names[i]);
        draw_window(w, name, out);
    }
    html_section_end(out);
}
