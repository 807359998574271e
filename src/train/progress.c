/* The progress bar. To stderr; NO_COLOR and the terminal's width are honoured, also when it
 * changes. */
#include "train/progress.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { LINE_EVERY_S = 10, MIN_BAR = 4, MAX_BAR = 30 };
enum { MARGIN = 3 }; /* columns that stay free: for the ^C that a terminal shows */
static const double draw_every_s = 0.1;

static int terminal_width(void)
{
    struct winsize size;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col >= 20) return size.ws_col;
    return 80;
}

static void put(const Str *text)
{
    ssize_t ignored = write(STDERR_FILENO, text->at, text->n);
    (void)ignored;
}

void progress_begin(Progress *p, int64_t step, int64_t steps)
{
    const char *term = getenv("TERM");
    progress_clear(p);
    *p = (Progress){.silent = p->silent,
                    .steps = steps,
                    .start_step = step,
                    .start_s = clock_s(),
                    .last_line_s = -1e9};
    p->terminal = !p->silent && isatty(STDERR_FILENO) && !(term && !strcmp(term, "dumb"));
    p->colour = p->terminal && !getenv("NO_COLOR");
}

/* ---- one line of a terminal, drawn again and again -------------------------------------- */

/* To where the line begins, with nothing on it. A terminal that became narrower has broken it into
 * rows. */
static void add_clear(const Progress *p, int width, Str *out)
{
    int rows = p->shown_columns > width ? (p->shown_columns - 1) / width : 0;
    str_add(out, "\r");
    if (rows) str_printf(out, "\033[%dA", rows);
    str_add(out, "\033[J");
}

void progress_clear(Progress *p)
{
    if (!p->shown_columns) return;
    Str text = {0};
    add_clear(p, terminal_width(), &text);
    put(&text);
    str_deinit(&text);
    p->shown_columns = 0;
}

/* One write, so that nothing flickers: `line` has `columns` columns, fewer than the terminal. */
static void draw(Progress *p, int width, const char *line, int columns)
{
    Str text = {0};
    add_clear(p, width, &text);
    str_add(&text, line);
    put(&text);
    str_deinit(&text);
    p->shown_columns = columns;
}

void progress_status(Progress *p, const char *format, ...)
{
    if (p->silent) return;
    char text[512];
    double now = clock_s(), last = fmax(p->last_line_s, p->terminal ? -1e9 : p->start_s);
    if (now - last < (p->terminal ? draw_every_s : LINE_EVERY_S)) return;
    p->last_line_s = now;
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (!p->terminal) {
        log_info("%s", text);
        return;
    }
    int width = terminal_width();
    if (strlen(text) > (size_t)(width - MARGIN)) text[width - MARGIN] = 0;
    draw(p, width, text, (int)strlen(text));
}

/* ---- steps ------------------------------------------------------------------------------ */

enum { CLOSE_SET = 2, SHORTEST = 5 };

/* Level 0 has everything; 1 leaves out the smoothed loss; from 2 on the facts stand close, and each
 * level leaves out one thing more, the least missed first. 80 columns take level 2 and a short bar.
 */
static void add_facts(const Progress *p, const StepMetrics *m, int level, Str *out)
{
    char text[32];
    double passed = clock_s() - p->start_s;
    int64_t done = m->step - p->start_step;
    const char *gap = level < CLOSE_SET ? "  " : " ";
    str_printf(out, "%s%lld/%lld", level < CLOSE_SET ? "step " : "", (long long)m->step,
               (long long)p->steps);
    str_printf(out, "%sloss %.4f", gap, m->loss);
    if (level < 1) str_printf(out, " (%.4f)", p->mean_loss);
    if (level < 5) str_printf(out, "%sgrad %.2f", gap, m->grad_norm);
    str_printf(out, "%s%.0f tok/s", gap, m->tokens_per_s);
    if (level < 4 && isfinite(m->mfu))
        str_printf(out, "%s%.0f%% %speak", gap, 100 * m->mfu, level < CLOSE_SET ? "of " : "");
    if (level < 3) str_printf(out, "%s%s", gap, format_bytes((double)m->peak_bytes, text));
    if (m->step >= p->steps)
        str_printf(out, "%sin %s", gap, format_duration(passed, text));
    else if (done > 0)
        str_printf(out, "%s%s left", gap,
                   format_duration(passed / (double)done * (double)(p->steps - m->step), text));
}

static void add_bar(const Progress *p, const StepMetrics *m, int room, Str *out)
{
    int full = p->steps > 0 ? (int)((double)room * (double)m->step / (double)p->steps) : 0;
    str_add(out, p->colour ? "[\033[32m" : "[");
    for (int i = 0; i < room; i++) str_add(out, i < full ? "=" : i == full ? ">" : " ");
    str_add(out, p->colour ? "\033[0m] " : "] ");
}

/* As much as the width takes beside a bar; on a very narrow terminal, the beginning. */
static void draw_bar(Progress *p, const StepMetrics *m)
{
    Str facts = {0}, line = {0};
    int width = terminal_width(), room = 0;
    for (int level = 0; level <= SHORTEST; level++) {
        str_clear(&facts);
        add_facts(p, m, level, &facts);
        room = width - MARGIN - (int)facts.n - 3;
        if (room >= MIN_BAR) break;
    }
    if (room > MAX_BAR) room = MAX_BAR;
    if (room >= MIN_BAR) add_bar(p, m, room, &line);
    int columns = (room >= MIN_BAR ? room + 3 : 0) + (int)min_i64((int64_t)facts.n, width - MARGIN);
    str_add_n(&line, facts.at, (size_t)min_i64((int64_t)facts.n, width - MARGIN));
    draw(p, width, line.at, columns);
    str_deinit(&facts);
    str_deinit(&line);
}

void progress_step(Progress *p, const StepMetrics *m, bool last)
{
    if (p->silent) return;
    if (isfinite(m->loss))
        p->mean_loss = p->mean_loss == 0 ? m->loss : 0.95 * p->mean_loss + 0.05 * m->loss;
    double now = clock_s();
    if (now - p->last_line_s < (p->terminal ? draw_every_s : LINE_EVERY_S) && !last) return;
    p->last_line_s = now;
    if (p->terminal) {
        draw_bar(p, m);
        return;
    }
    Str line = {0};
    add_facts(p, m, 0, &line);
    str_add(&line, "\n");
    put(&line);
    str_deinit(&line);
}

void progress_note(Progress *p, const char *format, ...)
{
    if (p->silent) return;
    char text[2048];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    Str line = {0};
    if (p->shown_columns) add_clear(p, terminal_width(), &line);
    str_printf(&line, "%s\n", text);
    put(&line);
    str_deinit(&line);
    p->shown_columns = 0;
}

void progress_end(Progress *p)
{
    if (!p->shown_columns) return;
    ssize_t ignored = write(STDERR_FILENO, "\n", 1);
    (void)ignored;
    p->shown_columns = 0;
}
