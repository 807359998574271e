/* The progress bar. To stderr; NO_COLOR and the terminal's width are honoured. */
#include "train/progress.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { LINE_EVERY_S = 10 };

static int terminal_width(void)
{
    struct winsize size;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col >= 40) return size.ws_col;
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
    *p = (Progress){.steps = steps, .start_step = step, .start_s = clock_s(), .last_line_s = -1e9};
    p->terminal = isatty(STDERR_FILENO) && !(term && !strcmp(term, "dumb"));
    p->colour = p->terminal && !getenv("NO_COLOR");
}

static void add_facts(const Progress *p, const StepMetrics *m, Str *out)
{
    char memory[32], left[32] = "?";
    int64_t done = m->step - p->start_step;
    if (done > 0)
        format_duration((clock_s() - p->start_s) / (double)done * (double)(p->steps - m->step), left);
    str_printf(out, "step %lld/%lld  loss %.4f (%.4f)  grad %.2f  %.0f tok/s", (long long)m->step,
               (long long)p->steps, m->loss, p->mean_loss, m->grad_norm, m->tokens_per_s);
    if (isfinite(m->mfu)) str_printf(out, "  %.0f%% of peak", 100 * m->mfu);
    str_printf(out, "  %s  %s left", format_bytes((double)m->peak_bytes, memory), left);
    if (!isnan(m->val_loss)) str_printf(out, "  val %.4f", m->val_loss);
}

static void draw_bar(Progress *p, const StepMetrics *m)
{
    Str facts = {0}, line = {0};
    add_facts(p, m, &facts);
    int width = terminal_width() - 1, room = width - (int)facts.n - 3;
    str_add(&line, "\r");
    if (room >= 8) {
        if (room > 30) room = 30;
        int full = p->steps > 0 ? (int)((double)room * (double)m->step / (double)p->steps) : 0;
        str_add(&line, p->colour ? "[\033[32m" : "[");
        for (int i = 0; i < room; i++) str_add(&line, i < full ? "=" : i == full ? ">" : " ");
        str_add(&line, p->colour ? "\033[0m] " : "] ");
    }
    str_add_n(&line, facts.at, facts.n < (size_t)width ? facts.n : (size_t)width);
    str_add(&line, "\033[K");
    put(&line);
    p->bar_shown = true;
    str_deinit(&facts);
    str_deinit(&line);
}

void progress_step(Progress *p, const StepMetrics *m, bool last)
{
    if (isfinite(m->loss)) p->mean_loss = p->mean_loss == 0 ? m->loss : 0.95 * p->mean_loss + 0.05 * m->loss;
    double now = clock_s();
    if (p->terminal) {
        if (now - p->last_line_s < 0.1 && !last) return;
        p->last_line_s = now;
        draw_bar(p, m);
        return;
    }
    if (now - p->last_line_s < LINE_EVERY_S && !last) return;
    p->last_line_s = now;
    Str line = {0};
    add_facts(p, m, &line);
    str_add(&line, "\n");
    put(&line);
    str_deinit(&line);
}

void progress_note(Progress *p, const char *format, ...)
{
    char text[2048];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    Str line = {0};
    str_printf(&line, "%s%s\n", p->bar_shown ? "\r\033[K" : "", text);
    put(&line);
    str_deinit(&line);
    p->bar_shown = false;
}

void progress_end(Progress *p)
{
    if (!p->bar_shown) return;
    ssize_t ignored = write(STDERR_FILENO, "\n", 1);
    (void)ignored;
    p->bar_shown = false;
}
