/* A simulated step of all pipeline ranks: the whole of it to scale, and its beginning, middle and
 * end closely enough to tell micro-batches apart. */
#include "report/report_internal.h"

#include <math.h>
#include <stdlib.h>

enum {
    LEFT = 64,
    WIDTH = 1016,
    COLUMNS = 508, /* of the picture of the whole step, at most */
    MAX_ROWS = 32, /* ranks that are drawn; of more every second, third, ... */
    PANELS = 3,
    PANEL_GAP = 16,
    CELLS = 26 /* actions of usual length in one panel */
};

static const char *const classes[TIMELINE_WORKS] = {"forward", "backward", "weights", "update"};

/* Every which rank is drawn. */
static int stride_of(const Timeline *t) { return (t->n_ranks + MAX_ROWS - 1) / MAX_ROWS; }
static int rows_of(const Timeline *t) { return (t->n_ranks + stride_of(t) - 1) / stride_of(t); }
static double row_height(const Timeline *t)
{
    return rows_of(t) > 16 ? 14 : rows_of(t) > 4 ? 18 : 26;
}

static int legend(const Timeline *t, LegendItem item[TIMELINE_WORKS + 2])
{
    bool there[TIMELINE_WORKS] = {false}, exposed = false;
    int n = 0;
    for (int i = 0; i < t->n; i++) {
        there[t->action[i].work] = true;
        exposed = exposed || t->action[i].exposed_s > 0;
    }
    for (int w = 0; w < TIMELINE_WORKS; w++)
        if (there[w]) item[n++] = (LegendItem){classes[w], timeline_work_name((TimelineWork)w)};
    if (exposed) item[n++] = (LegendItem){"exposed", "of it waiting for exchanges"};
    item[n++] = (LegendItem){"wait", "waiting for other ranks"};
    return n;
}

static void row_names(const Timeline *t, double top, Str *out)
{
    int stride = stride_of(t);
    for (int row = 0; row < rows_of(t); row++)
        svg_text(out, LEFT - 8, top + (row + 0.5) * row_height(t) + 3, "end", "tick", "rank %d",
                 row * stride);
}

/* Seconds below, at round numbers. */
static void time_axis(const Chart *c, const char *name, Str *out)
{
    double tick[MAX_TICKS], y = c->top + c->height;
    char text[32];
    int n = chart_ticks(c->x0, c->x1, false, tick);
    svg_line(out, c->left, y, c->left + c->width, y, "axis");
    for (int i = 0; i < n; i++) {
        double x = chart_x(c, tick[i]);
        svg_line(out, x, y, x, y + 4, "axis");
        if (i + 1 < n || x < c->left + c->width - 60)
            svg_text(out, x, y + 16, "middle", "tick", "%s", chart_number(tick[i], text));
    }
    svg_text(out, c->left + c->width, y + 16, "end", "label", "%s", name);
}

static double usual_action_s(const Timeline *t)
{
    double sum = 0, n = 0;
    for (int i = 0; i < t->n; i++)
        if (t->action[i].work != TIMELINE_UPDATE) {
            sum += t->action[i].end_s - t->action[i].begin_s;
            n++;
        }
    return n > 0 ? sum / n : t->step_s;
}

/* ---- the whole step --------------------------------------------------------------------- */

typedef struct Share {
    double of[TIMELINE_WORKS];
} Share;

/* What share of each column's time a rank spends on which work. */
static void add_shares(const Timeline *t, int rank, int columns, Share *column)
{
    double width = t->step_s / columns;
    for (int i = 0; i < t->n; i++) {
        const TimelineAction *a = &t->action[i];
        if (a->rank != rank) continue;
        int first = (int)(a->begin_s / width), last = (int)(a->end_s / width);
        for (int c = first; c <= last && c < columns; c++)
            column[c].of[a->work] += fmax(0, fmin(a->end_s, (c + 1) * width) -
                                                 fmax(a->begin_s, c * width)) /
                                     width;
    }
}

static bool is_same(const Share *a, const Share *b)
{
    for (int w = 0; w < TIMELINE_WORKS; w++)
        if (fabs(a->of[w] - b->of[w]) > 1e-6) return false;
    return true;
}

/* One path for each kind of work: in a column the kinds lie on top of each other, by their
 * shares. */
static void draw_shares(const Share *column, int columns, double top, double height, Str *out)
{
    double wide = (double)WIDTH / columns;
    for (int w = 0; w < TIMELINE_WORKS; w++) {
        Str path = {0};
        for (int c = 0; c < columns;) {
            double below = 0, share = column[c].of[w];
            for (int k = 0; k < w; k++) below += column[c].of[k];
            int end = c + 1;
            while (end < columns && is_same(&column[c], &column[end])) end++;
            if (share > 0.004)
                str_printf(&path, "M%.5g %.5gh%.4gv%.3gh%.4gz", LEFT + wide * c,
                           top + height * fmax(0, 1 - below - share), wide * (end - c),
                           height * share, -wide * (end - c));
            c = end;
        }
        if (path.n) str_printf(out, "<path class=\"%s\" d=\"%s\"/>\n", classes[w], path.at);
        str_deinit(&path);
    }
}

/* Narrow ones where they tell actions apart; else of about two forward and backward actions, since
 * narrower ones would beat with them. */
static int columns_of(const Timeline *t)
{
    double actions = t->step_s / usual_action_s(t), wanted = actions / 4;
    if (3 * actions < COLUMNS) return COLUMNS;
    return wanted < 8 ? 8 : wanted > COLUMNS ? COLUMNS : (int)wanted;
}

static void draw_whole(const Timeline *t, Str *out)
{
    double height = row_height(t) * rows_of(t), top = 4;
    int columns = columns_of(t);
    svg_begin(out, PAGE_WIDTH, height + 30, "A simulated step of all pipeline ranks");
    Chart c = {.left = LEFT, .top = top, .width = WIDTH, .height = height, .x1 = t->step_s};
    row_names(t, top, out);
    for (int row = 0; row < rows_of(t); row++) {
        Share *column = xcalloc((size_t)columns, sizeof *column);
        double y = top + row * row_height(t), h = row_height(t) - 3;
        add_shares(t, row * stride_of(t), columns, column);
        svg_rect(out, (Box){LEFT, y, WIDTH, h}, "wait", "%s", "");
        draw_shares(column, columns, y, h, out);
        free(column);
    }
    time_axis(&c, "s", out);
    svg_end(out);
}

/* ---- three looks at it ------------------------------------------------------------------ */

static void draw_cell(const TimelineAction *a, const Chart *c, double y, double height, Str *out)
{
    double x0 = chart_x(c, fmax(a->begin_s, c->x0)), x1 = chart_x(c, fmin(a->end_s, c->x1)),
           gap = x1 - x0 > 3 ? 0.8 : 0;
    Str what = {0};
    str_printf(&what, "rank %d: %s", a->rank, timeline_work_name(a->work));
    if (a->stage >= 0) str_printf(&what, " of stage %d", a->stage);
    if (a->micro >= 0) str_printf(&what, ", micro-batch %d", a->micro);
    svg_rect(out, (Box){x0, y, x1 - x0 - gap, height}, classes[a->work],
             "%s; %.4g s from %.4g s, %.3g s of it waiting for exchanges", what.at,
             a->end_s - a->begin_s, a->begin_s, a->exposed_s);
    str_deinit(&what);
    double exposed = (x1 - x0 - gap) * a->exposed_s / (a->end_s - a->begin_s);
    if (exposed > 0.3)
        svg_rect(out, (Box){x1 - gap - exposed, y + height - 3, exposed, 3}, "exposed", "%s", "");
    double digits = a->micro < 10 ? 1 : a->micro < 100 ? 2 : 3;
    if (a->micro >= 0 && x1 - x0 > 5.5 * digits + 3)
        svg_text(out, (x0 + x1) / 2, y + height / 2 + 3, "middle",
                 a->work == TIMELINE_BACKWARD ? "dark" : "in", "%d", a->micro);
}

static void draw_panel(const Timeline *t, const Chart *c, const char *name, Str *out)
{
    double height = row_height(t) - 2;
    svg_text(out, c->left, c->top - 8, "start", "label", "%s", name);
    for (int row = 0; row < rows_of(t); row++)
        svg_rect(out, (Box){c->left, c->top + row * row_height(t), c->width, height}, "wait", "%s",
                 "");
    for (int i = 0; i < t->n; i++) {
        const TimelineAction *a = &t->action[i];
        if (a->rank % stride_of(t) || a->end_s <= c->x0 || a->begin_s >= c->x1) continue;
        draw_cell(a, c, c->top + a->rank / stride_of(t) * row_height(t), height, out);
    }
    time_axis(c, "s", out);
}

static void draw_close(const Timeline *t, bool all, Str *out)
{
    static const char *const names[PANELS] = {"the beginning", "the middle",
                                              "the end, and the update"};
    double window = CELLS * usual_action_s(t), top = 22, height = row_height(t) * rows_of(t);
    int panels = all ? 1 : PANELS;
    double width = (PAGE_WIDTH - LEFT - 8 - (panels - 1) * PANEL_GAP) / (double)panels;
    svg_begin(out, PAGE_WIDTH, top + height + 24, "Parts of the step, micro-batch by micro-batch");
    row_names(t, top, out);
    for (int p = 0; p < panels; p++) {
        double from = all ? 0 : p == 0 ? 0 : p == 1 ? (t->step_s - window) / 2 : t->step_s - window;
        Chart c = {.left = LEFT + p * (width + PANEL_GAP),
                   .top = top,
                   .width = width,
                   .height = height,
                   .x0 = from,
                   .x1 = all ? t->step_s : from + window};
        draw_panel(t, &c, all ? "" : names[p], out);
    }
    svg_end(out);
}

void report_timeline(const ReportInput *in, Str *out)
{
    const Timeline *t = in->timeline;
    LegendItem item[TIMELINE_WORKS + 2];
    if (!t || !t->n || !(t->step_s > 0)) return;
    bool all = PANELS * CELLS * usual_action_s(t) >= t->step_s;
    html_section(out, "A step, rank by rank",
                 all ? "One rank of each pipeline stage, with the numbers of micro-batches; ranks "
                       "that differ along other axes look the same."
                     : "One rank of each pipeline stage; ranks that differ along other axes look "
                       "the same. Above the whole step, in which the height of a colour is its "
                       "share of that moment; below parts of it with the numbers of "
                       "micro-batches.");
    svg_begin(out, PAGE_WIDTH, 22, "Colours of work");
    svg_legend(out, LEFT, 2, item, legend(t, item));
    svg_end(out);
    if (!all) draw_whole(t, out);
    draw_close(t, all, out);
    html_section_end(out);
}
