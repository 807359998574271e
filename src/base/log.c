/* The log sink: one line at a time to stderr. */
#include "base/base.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static LogLevel threshold = LOG_INFO; /* set once at the start, read from every thread */

static _Thread_local bool thread_quiet;

void log_set_level(LogLevel level) { threshold = level; }
void log_set_thread_quiet(bool quiet) { thread_quiet = quiet; }

/* On a terminal a progress bar may stand where the line goes. */
static const char *over_unfinished_line(void)
{
    const char *term = getenv("TERM");
    return isatty(STDERR_FILENO) && term && strcmp(term, "dumb") != 0 ? "\r\033[K" : "";
}

void log_line(LogLevel level, const char *format, ...)
{
    if (level < threshold || thread_quiet) return;
    char line[4096];
    const char *head = level == LOG_WARN    ? "drover: warning: "
                       : level == LOG_ERROR ? "drover: "
                                            : "";
    size_t used = (size_t)snprintf(line, sizeof line, "%s%s", over_unfinished_line(), head);
    va_list args;
    va_start(args, format);
    int n = vsnprintf(line + used, sizeof line - used - 1, format, args);
    va_end(args);
    if (n < 0) return;
    used += (size_t)n < sizeof line - used - 1 ? (size_t)n : sizeof line - used - 2;
    line[used++] = '\n';
    /* one write a line: lines of different threads do not mix */
    ssize_t ignored = write(STDERR_FILENO, line, used);
    (void)ignored;
}
