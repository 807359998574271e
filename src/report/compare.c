/* Plans beside each other. */
#include <math.h>

#include "report/report_internal.h"

static void draw_bars(const Contender *c, int n, Str *out)
{
    enum { LEFT = 40, ROW = 34, BAR = 24, RIGHT = 210 };
    double most = 0;
    for (int i = 0; i < n; i++) {
        const Plan *p = &c[i].outlook.plan;
        most = fmax(most, p->time.step_s * (double)p->ranks / p->tokens);
    }
    svg_begin(out, PAGE_WIDTH, n * ROW + 4, "Time of a device for a token, by what it is spent on");
    for (int i = 0; i < n; i++) {
        const Plan *p = &c[i].outlook.plan;
        double token_s = p->time.step_s * (double)p->ranks / p->tokens,
               width = (PAGE_WIDTH - LEFT - RIGHT) * token_s / most;
        svg_text(out, LEFT - 10, i * ROW + 17, "end", "strong", "%c", 'A' + i);
        report_step_bar(&p->time, (Box){LEFT, i * ROW, width, BAR}, out);
        svg_text(out, LEFT + width + 8, i * ROW + 17, "start", "", "%.4g ms for 1,000 tokens%s",
                 token_s * 1e6, p->fits ? "" : "; does not fit");
    }
    svg_end(out);
}

static void table_row(const CompareRow *row, int n, Str *out)
{
    char text[32];
    str_add(out, "<tr><th>");
    html_add(out, row->name);
    str_add(out, "</th>");
    for (int i = 0; i < n; i++) {
        double change = row->value[0] > 0 ? row->value[i] / row->value[0] - 1 : 0;
        str_printf(out, "<td class=\"n\">%s", chart_number(row->value[i], text));
        if (i && fabs(change) >= 0.0005) html_printf(out, " (%+.1f%%)", 100 * change);
        str_add(out, "</td>");
    }
    str_add(out, "</tr>\n");
}

void report_comparison(const ReportInput *in, Str *out)
{
    const Contender *c = in->compared;
    int n = in->n_compared, first_part = 0;
    CompareRow row[COMPARE_ROWS];
    Str why = {0};
    if (n < 2) return;
    outlook_why(c, n, &why);
    html_section(out, "Compared", why.at);
    str_deinit(&why);
    draw_bars(c, n, out);
    str_add(out, "<div class=\"wide\">\n<table>\n<tr><th></th>");
    for (int i = 0; i < n; i++) {
        str_add(out, "<td class=\"n\">");
        html_printf(out, "%c: %s on %s", 'A' + i, c[i].label, c[i].outlook.plan.cluster);
        str_add(out, "</td>");
    }
    str_add(out, "</tr>\n");
    int rows = outlook_compare_rows(c, n, row, &first_part);
    for (int i = 0; i < rows; i++) {
        if (i == first_part) {
            str_printf(out, "<tr><td colspan=\"%d\">", n + 1);
            html_add(out, outlook_part_unit(c, n));
            str_add(out, "</td></tr>\n");
        }
        table_row(&row[i], n, out);
    }
    str_add(out, "</table>\n</div>\n");
    html_section_end(out);
}
