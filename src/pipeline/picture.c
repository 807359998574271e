/* Schedules as pictures: rows of letters, and SVG. Every F, B and W takes one unit of time. */
#include "pipeline/pipeline_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Which of its rank's stages, in their order. */
static int chunk_of(const Pipeline *p, int stage)
{
    int chunk = 0;
    for (int s = 0; s < stage; s++) chunk += p->rank_of[s] == p->rank_of[stage];
    return chunk;
}

static int width_of(int number)
{
    int width = 1;
    while (number >= 10) number /= 10, width++;
    return width;
}

static double last_end(const Pipeline *p)
{
    double last = 0;
    for (int r = 0; r < p->n_ranks; r++) last = fmax(last, p->rank[r].at[p->rank[r].n - 1].end);
    return last;
}

/* ---- text ------------------------------------------------------------------------------- */

static void put_cell(char *row, int width, int unit, char letter, int micro)
{
    char cell[16];
    int n = snprintf(cell, sizeof cell, "%c%d", letter, micro);
    memset(row + unit * width, ' ', (size_t)width);
    memcpy(row + unit * width, cell, (size_t)(n < width ? n : width));
}

static void draw_rank(const Pipeline *p, int rank, int width, int units, char *row)
{
    static const char letters[] = "FBWBfbwb";
    memset(row, ' ', (size_t)(units * width));
    for (int u = 0; u < units; u++) row[u * width] = '.';
    for (int i = 0; i < p->rank[rank].n; i++) {
        const PipelineAction *a = &p->rank[rank].at[i];
        int unit = (int)a->start, small = 4 * (chunk_of(p, a->stage) & 1);
        if (unit < units) put_cell(row, width, unit, letters[small + (int)a->work], a->micro);
        if (a->work == PIPELINE_BOTH && unit + 1 < units)
            put_cell(row, width, unit + 1, letters[small + 2], a->micro);
    }
    row[units * width] = 0;
}

void pipeline_picture(const Pipeline *p, int columns, Str *out)
{
    int width = width_of(p->n_micro - 1) + 2, head = 6 + width_of(p->n_ranks - 1),
        all = (int)last_end(p);
    int fit = (columns - head - 3) / width, units = fit < 1 ? 1 : fit < all ? fit : all;
    char *row = xmalloc((size_t)(units * width) + 1);
    for (int r = 0; r < p->n_ranks; r++) {
        draw_rank(p, r, width, units, row);
        for (int n = units * width; n > 0 && row[n - 1] == ' '; n--) row[n - 1] = 0;
        str_printf(out, "rank %-*d %s%s\n", head - 6, r, row, units < all ? " ..." : "");
    }
    free(row);
}

/* ---- SVG -------------------------------------------------------------------------------- */

enum { CELL = 24, ROW = 28, LEFT = 70, TOP = 34 };

static void draw_action(const Pipeline *p, int rank, const PipelineAction *a, Str *out)
{
    static const char *const colour[2][4] = {{"#9ec5fe", "#ffd08a", "#a8d8a0", "#ffb877"},
                                             {"#6ea0f0", "#f0b050", "#7cc070", "#f09850"}};
    double x = LEFT + a->start * CELL, width = (a->end - a->start) * CELL;
    str_printf(out,
               "<rect x=\"%.6g\" y=\"%d\" width=\"%.6g\" height=\"%d\" fill=\"%s\" "
               "stroke=\"#fff\"><title>%s of stage %d, micro-batch %d</title></rect>\n",
               x, TOP + rank * ROW, width, ROW - 4, colour[chunk_of(p, a->stage) & 1][a->work],
               pipeline_work_name(a->work), a->stage, a->micro);
    str_printf(out, "<text x=\"%.6g\" y=\"%d\" text-anchor=\"middle\">%d</text>\n", x + width / 2,
               TOP + rank * ROW + 16, a->micro);
}

/* A name comes from a file: what is markup there is none here. */
static void add_escaped(const char *text, Str *out)
{
    for (; *text; text++) {
        if (*text == '<')
            str_add(out, "&lt;");
        else if (*text == '>')
            str_add(out, "&gt;");
        else if (*text == '&')
            str_add(out, "&amp;");
        else
            str_add_n(out, text, 1);
    }
}

void pipeline_svg(const Pipeline *p, Str *out)
{
    PipelineTime time = pipeline_time(p, pipeline_equal_cost());
    str_printf(out,
               "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%d\" "
               "font-family=\"sans-serif\" font-size=\"11\">\n",
               LEFT + time.total * CELL + 10, TOP + p->n_ranks * ROW + 6);
    str_add(out, "<text x=\"8\" y=\"20\">");
    add_escaped(p->name, out);
    str_printf(out,
               ": %d ranks, %d stages, %d micro-batches; %.1f%% of the time is waiting when F, B "
               "and W take the same (blue F, yellow B, green W, orange B and W)</text>\n",
               p->n_ranks, p->n_stages, p->n_micro, 100 * time.bubble);
    for (int r = 0; r < p->n_ranks; r++) {
        str_printf(out, "<text x=\"8\" y=\"%d\">rank %d</text>\n", TOP + r * ROW + 16, r);
        for (int i = 0; i < p->rank[r].n; i++) draw_action(p, r, &p->rank[r].at[i], out);
    }
    str_add(out, "</svg>\n");
}
