/* metrics.jsonl: one JSON object a step and an event, appended with one write each. */
#include "train/metrics.h"

#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <unistd.h>

struct Metrics {
    int fd; /* -1: to be opened again */
    char *path;
    EventFile events;
    bool tensorboard;
    bool warned;
};

static void warn_once(Metrics *m)
{
    if (!m->warned)
        log_warn("metrics are not being written: %s; training goes on", status_message());
    m->warned = true;
}

static bool open_again(Metrics *m)
{
    if (m->fd >= 0) return true;
    m->fd = open(m->path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (m->fd < 0) return false;
    char last; /* a line that a kill or a full disk cut short must not spoil the next one */
    off_t size = lseek(m->fd, 0, SEEK_END);
    if (size > 0 && pread(m->fd, &last, 1, size - 1) == 1 && last != '\n') {
        ssize_t ignored = write(m->fd, "\n", 1);
        (void)ignored;
    }
    return true;
}

static void write_line(Metrics *m, const Str *line)
{
    if (!open_again(m)) {
        Status ignored = fail(ERR_IO, "cannot open %s", m->path);
        (void)ignored;
        warn_once(m);
        return;
    }
    if (file_write(m->fd, line->at, line->n, m->path) == OK) {
        m->warned = false;
        return;
    }
    warn_once(m);
    close(m->fd); /* the directory may have been removed: open afresh next time */
    m->fd = -1;
}

Metrics *metrics_open(const char *dir, bool tensorboard, int64_t first_step)
{
    Metrics *m = xcalloc(1, sizeof *m);
    Arena arena = {0};
    m->fd = -1;
    m->events.fd = -1;
    m->path = xstrdup(path_join(&arena, dir, "metrics.jsonl"));
    m->tensorboard = tensorboard;
    if (tensorboard &&
        event_file_open(path_join(&arena, dir, "tensorboard"), first_step, &m->events) != OK)
        log_warn("no TensorBoard file: %s; training goes on", status_message());
    arena_deinit(&arena);
    return m;
}

/* JSON has no NaN: what is not known is null. */
static void add_number(Str *s, const char *key, double x)
{
    if (isfinite(x))
        str_printf(s, ", \"%s\": %.9g", key, x);
    else
        str_printf(s, ", \"%s\": null", key);
}

static void add_exposed(Str *s, const double exposed_s[COMM_KINDS])
{
    const char *join = "";
    str_add(s, ", \"exposed_s\": {");
    for (int k = 0; k < COMM_KINDS; k++) {
        if (exposed_s[k] == 0) continue;
        str_printf(s, "%s\"%s\": %.9g", join, comm_kind_name((CommKind)k), exposed_s[k]);
        join = ", ";
    }
    str_add(s, "}");
}

static void write_events(Metrics *m, const StepMetrics *s)
{
    static const char *const tag[] = {
        "train/loss",         "train/grad_norm", "train/learning_rate", "speed/step_s",
        "speed/tokens_per_s", "speed/mfu",       "validation/loss",     "validation/bits_per_byte"};
    const double value[] = {s->loss,         s->grad_norm, s->lr,       s->step_s,
                            s->tokens_per_s, s->mfu,       s->val_loss, s->val_bits_per_byte};
    const char *known_tag[COUNT_OF(tag)];
    double known[COUNT_OF(tag)];
    int n = 0;
    for (int i = 0; i < COUNT_OF(tag); i++) {
        if (!isfinite(value[i])) continue;
        known_tag[n] = tag[i];
        known[n++] = value[i];
    }
    if (event_file_scalars(&m->events, s->step, n, known_tag, known) != OK) {
        warn_once(m);
        event_file_close(&m->events);
    }
}

void metrics_step(Metrics *m, const StepMetrics *s)
{
    if (!m) return;
    Str line = {0};
    str_printf(&line, "{\"step\": %lld, \"tokens\": %lld", (long long)s->step,
               (long long)s->tokens);
    add_number(&line, "loss", s->loss);
    add_number(&line, "grad_norm", s->grad_norm);
    add_number(&line, "lr", s->lr);
    add_number(&line, "step_s", s->step_s);
    add_number(&line, "tokens_per_s", s->tokens_per_s);
    add_number(&line, "mfu", s->mfu);
    add_number(&line, "data_wait_s", s->data_wait_s);
    str_printf(&line, ", \"peak_bytes\": %zu", s->peak_bytes);
    if (!isnan(s->val_loss)) add_number(&line, "val_loss", s->val_loss);
    if (!isnan(s->val_bits_per_byte)) add_number(&line, "val_bits_per_byte", s->val_bits_per_byte);
    if (s->has_exposed) add_exposed(&line, s->exposed_s);
    if (s->skipped) str_add(&line, ", \"skipped\": true");
    str_add(&line, "}\n");
    write_line(m, &line);
    str_deinit(&line);
    if (m->tensorboard && m->events.fd >= 0) write_events(m, s);
}

static void add_text(Str *s, const char *text)
{
    str_add(s, "\"");
    for (const char *p = text; *p; p++) {
        unsigned char c = (unsigned char)*p;
        if (c == '"' || c == '\\')
            str_printf(s, "\\%c", c);
        else if (c < 0x20)
            str_printf(s, "\\u%04x", c);
        else
            str_add_n(s, p, 1);
    }
    str_add(s, "\"");
}

static void begin_event(Str *line, const char *kind, int64_t step)
{
    str_printf(line, "{\"event\": \"%s\", \"step\": %lld, \"time\": %.3f", kind, (long long)step,
               clock_wall_s());
}

static void end_event(Metrics *m, Str *line, const char *text)
{
    str_add(line, ", \"text\": ");
    add_text(line, text);
    str_add(line, "}\n");
    write_line(m, line);
    str_deinit(line);
}

void metrics_event(Metrics *m, const char *kind, int64_t step, const char *text)
{
    if (!m) return;
    Str line = {0};
    begin_event(&line, kind, step);
    end_event(m, &line, text);
}

void metrics_save(Metrics *m, const SaveMetrics *s, const char *text)
{
    if (!m) return;
    Str line = {0};
    begin_event(&line, "checkpoint", s->step);
    str_printf(&line, ", \"bytes\": %llu", (unsigned long long)s->bytes);
    add_number(&line, "write_s", s->write_s);
    add_number(&line, "stall_s", s->stall_s);
    add_number(&line, "interval_s", s->interval_s);
    end_event(m, &line, text);
}

void metrics_close(Metrics *m)
{
    if (!m) return;
    if (m->fd >= 0) close(m->fd);
    event_file_close(&m->events);
    free(m->path);
    free(m);
}
