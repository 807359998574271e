/* Escaped text and the few SVG shapes that the pictures are made of. */
#include "report/report_internal.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* ---- text ------------------------------------------------------------------------------- */

/* Control characters are no XML. */
void html_add(Str *out, const char *text)
{
    for (; *text; text++) {
        switch (*text) {
        case '<': str_add(out, "&lt;"); break;
        case '>': str_add(out, "&gt;"); break;
        case '&': str_add(out, "&amp;"); break;
        case '"': str_add(out, "&quot;"); break;
        default:
            if ((unsigned char)*text >= 0x20 || *text == '\n') str_add_n(out, text, 1);
        }
    }
}

static void add_formatted(Str *out, const char *format, va_list args) PRINTF_LIKE(2, 0);
static void add_formatted(Str *out, const char *format, va_list args)
{
    va_list again;
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    char *text = xmalloc((size_t)(n < 0 ? 0 : n) + 1);
    text[0] = 0;
    if (n > 0) vsnprintf(text, (size_t)n + 1, format, again);
    va_end(again);
    html_add(out, text);
    free(text);
}

void html_printf(Str *out, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    add_formatted(out, format, args);
    va_end(args);
}

void html_section(Str *out, const char *heading, const char *sentence)
{
    str_add(out, "<section>\n<h2>");
    html_add(out, heading);
    str_add(out, "</h2>\n");
    if (!sentence) return;
    str_add(out, "<p>");
    html_add(out, sentence);
    str_add(out, "</p>\n");
}

void html_section_end(Str *out) { str_add(out, "</section>\n"); }

void html_row(Str *out, const char *what, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    str_add(out, "<tr><th>");
    html_add(out, what);
    str_add(out, "</th><td>");
    add_formatted(out, format, args);
    str_add(out, "</td></tr>\n");
    va_end(args);
}

/* ---- shapes ----------------------------------------------------------------------------- */

void svg_begin(Str *out, double width, double height, const char *label)
{
    str_printf(out, "<svg viewBox=\"0 0 %.6g %.6g\" role=\"img\" aria-label=\"", width, height);
    html_add(out, label);
    str_add(out, "\">\n");
}

void svg_end(Str *out) { str_add(out, "</svg>\n"); }

void svg_text(Str *out, double x, double y, const char *anchor, const char *class,
              const char *format, ...)
{
    va_list args;
    va_start(args, format);
    str_printf(out, "<text x=\"%.5g\" y=\"%.5g\" text-anchor=\"%s\"", x, y, anchor);
    if (*class) str_printf(out, " class=\"%s\"", class);
    str_add(out, ">");
    add_formatted(out, format, args);
    str_add(out, "</text>\n");
    va_end(args);
}

void svg_rect(Str *out, Box box, const char *class, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    str_printf(out, "<rect x=\"%.5g\" y=\"%.5g\" width=\"%.4g\" height=\"%.4g\" class=\"%s\"",
               box.x, box.y, box.width, box.height, class);
    if (*format) {
        str_add(out, "><title>");
        add_formatted(out, format, args);
        str_add(out, "</title></rect>\n");
    } else
        str_add(out, "/>\n");
    va_end(args);
}

void svg_line(Str *out, double x1, double y1, double x2, double y2, const char *class)
{
    str_printf(out, "<line x1=\"%.5g\" y1=\"%.5g\" x2=\"%.5g\" y2=\"%.5g\" class=\"%s\"/>\n", x1,
               y1, x2, y2, class);
}

/* About, in the usual fonts at 12 units. */
static double text_width(const char *text)
{
    double width = 0;
    for (; *text; text++)
        width += strchr("iljtf.,:;'|()I ", *text) ? 4.3 : strchr("mwMW", *text) ? 11 : 7.5;
    return width;
}

double svg_legend(Str *out, double x, double y, const LegendItem *item, int n)
{
    const double line = 20, square = 12;
    double at = x, top = y;
    for (int i = 0; i < n; i++) {
        double width = square + 6 + text_width(item[i].name) + 14;
        if (at + width > PAGE_WIDTH && at > x) {
            at = x;
            y += line;
        }
        svg_rect(out, (Box){at, y, square, square}, item[i].class, "%s", "");
        svg_text(out, at + square + 6, y + 10, "start", "", "%s", item[i].name);
        at += width;
    }
    return y + line - top;
}
