/* The thread's error sentence. */
#include "base/base.h"

#include <stdlib.h>
#include <string.h>
#undef fail

static _Thread_local char sentence[2048] = "no error";

Status fail(Status status, const char *format, ...)
{
    char text[sizeof sentence]; /* the arguments may point into the present sentence */
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    memcpy(sentence, text, sizeof sentence);
    return status;
}

void fail_context(const char *format, ...)
{
    char text[sizeof sentence];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (n >= 0 && (size_t)n < sizeof text)
        snprintf(text + n, sizeof text - (size_t)n, ": %s", sentence);
    memcpy(sentence, text, sizeof sentence);
}

const char *status_message(void) { return sentence; }

const char *status_name(Status status)
{
    switch (status) {
    case OK: return "ok";
    case ERR_ARG: return "wrong argument";
    case ERR_SHAPE: return "wrong shape";
    case ERR_IO: return "input/output error";
    case ERR_FORMAT: return "wrong format";
    case ERR_MEMORY: return "out of memory";
    case ERR_DEVICE: return "device error";
    case ERR_COMM: return "communication error";
    case ERR_CANCELLED: return "interrupted";
    case ERR_UNSUPPORTED: return "not supported";
    case ERR_REFUSED: return "refused";
    }
    return "unknown status";
}

_Noreturn void check_failed(const char *file, int line, const char *condition)
{
    fprintf(stderr, "drover: internal error at %s:%d: %s does not hold\n", file, line, condition);
    abort();
}
