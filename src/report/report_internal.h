/* Shared by the files of report/: escaped text, a few SVG shapes, axes. */
#ifndef REPORT_REPORT_INTERNAL_H
#define REPORT_REPORT_INTERNAL_H

#include "report/report.h"

/* ---- text ------------------------------------------------------------------------------- */

void html_add(Str *out, const char *text); /* < > & " escaped */
void html_printf(Str *out, const char *format, ...) PRINTF_LIKE(2, 3);
/* A section with its heading, and a sentence below it that may be NULL. */
void html_section(Str *out, const char *heading, const char *sentence);
void html_section_end(Str *out);
/* A row of a table of two columns. */
void html_row(Str *out, const char *what, const char *format, ...) PRINTF_LIKE(3, 4);

/* ---- SVG -------------------------------------------------------------------------------- */

enum { PAGE_WIDTH = 1080 };

void svg_begin(Str *out, double width, double height, const char *label);
void svg_end(Str *out);
/* `class` as in the style sheet of page.c; an anchor: "start", "middle" or "end". */
void svg_text(Str *out, double x, double y, const char *anchor, const char *class,
              const char *format, ...) PRINTF_LIKE(6, 7);
typedef struct Box {
    double x, y, width, height;
} Box;
/* A rectangle with what is shown when one points at it (escaped; empty: nothing). */
void svg_rect(Str *out, Box box, const char *class, const char *format, ...) PRINTF_LIKE(4, 5);
void svg_line(Str *out, double x1, double y1, double x2, double y2, const char *class);
/* Small squares with names, from x to the right, on to further lines where the page ends; returns
 * the height that they take. */
typedef struct LegendItem {
    const char *class, *name;
} LegendItem;
double svg_legend(Str *out, double x, double y, const LegendItem *item, int n);

/* ---- axes ------------------------------------------------------------------------------- */

/* A plot: pixels, and values at its borders. */
typedef struct Chart {
    double left, top, width, height;
    double x0, x1, y0, y1;
    bool log_x, log_y;
} Chart;
double chart_x(const Chart *chart, double value);
double chart_y(const Chart *chart, double value);
/* Borders that are round numbers around the values: linear from 0 or, where that would waste most
 * of the plot, from below the least; logarithmic with some room. */
void chart_fit_x(Chart *chart, double least, double most);
void chart_fit_y(Chart *chart, double least, double most);
void chart_axes(Str *out, const Chart *chart, const char *x_label, const char *y_label);
/* Values for ticks, at most `most`; returns how many. */
enum { MAX_TICKS = 10 };
int chart_ticks(double from, double to, bool is_log, double tick[MAX_TICKS]);
/* "0.5", "1,024", "1.2M". */
char *chart_number(double value, char buf[32]);
char *money_words(double usd, char buf[32]); /* "$5.21 B", "$312 M", "$0.93" */

/* ---- kinds ------------------------------------------------------------------------------ */

/* Class in the style sheet and name of a part of a step. */
const char *axis_class(int axis);
const char *work_class(int work);
/* A step's parts in one bar, to scale. */
void report_step_bar(const StepTime *time, Box box, Str *out);

/* ---- sections --------------------------------------------------------------------------- */

void report_headline(const ReportInput *in, Str *out);
void report_comparison(const ReportInput *in, Str *out);
void report_assumptions(const ReportInput *in, Str *out);
void report_timeline(const ReportInput *in, Str *out);
void report_streams(const ReportInput *in, Str *out);
void report_breakdown(const ReportInput *in, Str *out);
void report_memory(const ReportInput *in, Str *out);
void report_front(const ReportInput *in, Str *out);
void report_goodput(const ReportInput *in, Str *out);
void report_money(const ReportInput *in, Str *out);

#endif
