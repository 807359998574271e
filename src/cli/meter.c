/* See meter.h. */
#include "cli/meter.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void meter_begin(Meter *m)
{
    const char *term = getenv("TERM");
    *m = (Meter){.start_s = clock_s()};
    m->terminal = isatty(STDERR_FILENO) && !(term && !strcmp(term, "dumb"));
    m->next_s = m->start_s + (m->terminal ? 0.2 : 10);
}

bool meter_due(const Meter *m) { return clock_s() >= m->next_s; }

void meter_show(Meter *m, const char *format, ...)
{
    char text[160]; /* a narrow terminal wraps it: no harm */
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    m->next_s = clock_s() + (m->terminal ? 0.2 : 10);
    if (m->terminal)
        fprintf(stderr, "\r\033[K%s", text);
    else
        log_info("%s", text);
    m->shown = m->terminal;
}

void meter_end(Meter *m)
{
    if (m->shown) fputs("\r\033[K", stderr);
    m->shown = false;
}
