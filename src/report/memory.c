/* Memory of each of the pipeline's ranks by kind, against what a device has. */
#include <math.h>

#include "report/report_internal.h"

typedef struct Kind {
    const char *class, *name;
    size_t offset;
} Kind;

/* From the bottom: what is there all the time, then what comes and goes. */
static const Kind kinds[] = {
    {"matrix", "f32 weights", offsetof(PlanMemory, weights)},
    {"attention", "working weights", offsetof(PlanMemory, copies)},
    {"memory", "Adam moments", offsetof(PlanMemory, moments)},
    {"tp", "gradient sums", offsetof(PlanMemory, gradients)},
    {"launch", "expert biases and loads", offsetof(PlanMemory, buffers)},
    {"ep", "activations in flight", offsetof(PlanMemory, activations)},
    {"fsdp", "within one action", offsetof(PlanMemory, step)},
    {"pp", "messages", offsetof(PlanMemory, messages)},
    {"optimizer", "inputs", offsetof(PlanMemory, inputs)},
    {"dp", "packed weights", offsetof(PlanMemory, packed)},
};

static double bytes_of(const PlanMemory *m, const Kind *kind)
{
    return (double)*(const size_t *)(const void *)((const char *)m + kind->offset);
}

static void stage_bar(const Plan *plan, const Chart *chart, int rank, double x, double width,
                      Str *out)
{
    const PlanMemory *m = &plan->memory[rank];
    double below = 0;
    char text[32];
    for (int k = 0; k < COUNT_OF(kinds); k++) {
        double bytes = bytes_of(m, &kinds[k]), y0 = chart_y(chart, below * 1e-9),
               y1 = chart_y(chart, (below + bytes) * 1e-9);
        below += bytes;
        if (y0 - y1 > 0.05)
            svg_rect(out, (Box){x, y1, width, y0 - y1}, kinds[k].class, "rank %d, %s: %s", rank,
                     kinds[k].name, format_bytes(bytes, text));
    }
    if (width >= 24)
        svg_text(out, x + width / 2, chart_y(chart, below * 1e-9) - 5, "middle", "", "%.1f",
                 below * 1e-9);
}

static double draw_legend(const Plan *plan, double left, Str *out)
{
    LegendItem item[COUNT_OF(kinds)];
    int n = 0;
    for (int k = 0; k < COUNT_OF(kinds); k++) {
        double most = 0;
        for (int r = 0; r < plan->n_stages; r++)
            most = fmax(most, bytes_of(&plan->memory[r], &kinds[k]));
        if (most > 0.002 * (double)plan->memory[plan->largest].total)
            item[n++] = (LegendItem){kinds[k].class, kinds[k].name};
    }
    return svg_legend(out, left, 2, item, n);
}

static void draw_ranks(const Plan *plan, const Chart *c, Str *out)
{
    double each = c->width / plan->n_stages, width = fmin(0.72 * each, 90);
    int every = plan->n_stages > 32 ? 8 : plan->n_stages > 16 ? 4 : 1;
    for (int r = 0; r < plan->n_stages; r++) {
        double middle = c->left + (r + 0.5) * each;
        stage_bar(plan, c, r, middle - width / 2, width, out);
        if (r % every == 0)
            svg_text(out, middle, c->top + c->height + 17, "middle", "tick", "%d", r);
    }
    svg_text(out, c->left + c->width, c->top + c->height + 36, "end", "label", "%s",
             "rank of the pipeline");
}

/* One bar from left to right, with the limit at its end. */
static void draw_alone(const Plan *plan, Str *out)
{
    enum { LEFT = 8, BAR = 44 };
    const PlanMemory *m = &plan->memory[0];
    double limit = (double)plan->limit_bytes, most = fmax((double)m->total, limit), below = 0;
    char text[32];
    svg_begin(out, PAGE_WIDTH, BAR + 96, "Memory of a device by kind");
    double top = draw_legend(plan, LEFT, out) + 24;
    Chart c = {.left = LEFT,
               .top = top,
               .width = PAGE_WIDTH - LEFT - 120,
               .height = BAR,
               .x1 = most * 1.02};
    for (int k = 0; k < COUNT_OF(kinds); k++) {
        double bytes = bytes_of(m, &kinds[k]), x0 = chart_x(&c, below),
               x1 = chart_x(&c, below + bytes);
        below += bytes;
        if (x1 - x0 > 0.05)
            svg_rect(out, (Box){x0, top, x1 - x0, BAR}, kinds[k].class, "%s: %s", kinds[k].name,
                     format_bytes(bytes, text));
    }
    double end = chart_x(&c, below), x = chart_x(&c, limit);
    svg_text(out, end + 8, top + 27, "start", "strong", "%s", format_bytes(below, text));
    svg_line(out, x, top - 8, x, top + BAR + 8, "limit");
    svg_text(out, x, top + BAR + 24, "middle", "strong", "limit %s", format_bytes(limit, text));
    svg_end(out);
}

static void draw_stages(const Plan *plan, Str *out)
{
    enum { HEIGHT = 340 };
    double limit = (double)plan->limit_bytes * 1e-9,
           most = (double)plan->memory[plan->largest].total * 1e-9;
    svg_begin(out, PAGE_WIDTH, HEIGHT + 40, "Memory by pipeline rank and kind");
    double legend = draw_legend(plan, 48, out);
    Chart c = {.left = 48,
               .top = legend + 34,
               .width = PAGE_WIDTH - 48 - 90,
               .height = HEIGHT - legend - 34};
    chart_fit_y(&c, 0, fmax(most, limit));
    double tick[MAX_TICKS];
    char text[32];
    int n = chart_ticks(c.y0, c.y1, false, tick);
    for (int i = 0; i < n; i++) {
        double y = chart_y(&c, tick[i]);
        svg_line(out, c.left, y, c.left + c.width, y, "grid");
        svg_text(out, c.left - 8, y + 4, "end", "tick", "%s", chart_number(tick[i], text));
    }
    svg_text(out, 0, c.top - 10, "start", "label", "GB");
    draw_ranks(plan, &c, out);
    double y = chart_y(&c, limit);
    svg_line(out, c.left, y, c.left + c.width + 6, y, "limit");
    svg_text(out, c.left + c.width + 10, y + 4, "start", "strong", "%.1f GB", limit);
    svg_text(out, c.left + c.width + 10, y + 19, "start", "soft", "limit");
    svg_line(out, c.left, c.top + c.height, c.left + c.width, c.top + c.height, "axis");
    svg_end(out);
}

void report_memory(const ReportInput *in, Str *out)
{
    const Plan *plan = &in->outlook->plan;
    html_section(out, plan->n_stages > 1 ? "Memory of a device by stage" : "Memory of a device",
                 "To the byte: the offsets of the programs that the trainer would run.");
    if (plan->n_stages > 1)
        draw_stages(plan, out);
    else
        draw_alone(plan, out);
    html_section_end(out);
}
