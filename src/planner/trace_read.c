/* The instructions of a trace, measured (train/trace.c) or simulated (planner/trace.c). */
#include "planner/trace_read.h"

#include <math.h>
#include <string.h>

/* A trace is three levels deep; jansson's parser recurses once for each, so what goes further is
 * refused before it is parsed. */
enum { MAX_DEPTH = 16, MAX_NUMBER = 1 << 28 };

static bool read_whole(const json_t *object, const char *key, int64_t *out)
{
    const json_t *v = json_object_get(object, key);
    if (!json_is_integer(v)) return false;
    *out = (int64_t)json_integer_value(v);
    return *out >= 0 && *out <= MAX_NUMBER;
}

static bool read_seconds(const json_t *object, const char *key, double *out)
{
    const json_t *v = json_object_get(object, key);
    *out = json_number_value(v) * 1e-6;
    return json_is_number(v) && isfinite(*out);
}

static bool read_word(const json_t *object, const char *key, const char **out)
{
    *out = json_string_value(json_object_get(object, key));
    return *out != NULL;
}

/* What is no instruction (names of tracks, exchanges, actions) is passed over. */
static bool is_instruction(const json_t *event, const json_t *args)
{
    const char *kind = json_string_value(json_object_get(event, "ph"));
    return kind && !strcmp(kind, "X") && json_object_get(args, "instr") &&
           !json_object_get(args, "exchange");
}

static bool read_node(const json_t *event, const json_t *args, TraceNode *out)
{
    TraceNode n = {.stage = -1, .layer = -1};
    if (!read_whole(event, "pid", &n.process) || !read_whole(args, "instr", &n.instr)) return false;
    if (json_object_get(args, "stage") && !read_whole(args, "stage", &n.stage)) return false;
    if (json_object_get(args, "layer") && !read_whole(args, "layer", &n.layer)) return false;
    double length;
    if (!read_seconds(event, "ts", &n.begin_s) || !read_seconds(event, "dur", &length))
        return false;
    n.end_s = n.begin_s + length;
    *out = n;
    return length >= 0 && read_word(event, "name", &out->name) &&
           read_word(event, "cat", &out->phase) && read_word(args, "program", &out->program);
}

static Status read_events(const json_t *events, const char *name, TraceNodes *out)
{
    for (size_t i = 0; i < json_array_size(events); i++) {
        const json_t *event = json_array_get(events, i), *args = json_object_get(event, "args");
        TraceNode node;
        if (!is_instruction(event, args)) continue;
        if (!read_node(event, args, &node))
            return fail(
                ERR_FORMAT,
                "%s: event %zu is no instruction of a trace that drover wrote: pid, ts, dur, "
                "name, cat, args.program and args.instr are wanted",
                name, i);
        node.event = i;
        VEC_PUSH(out, node);
    }
    if (out->n == 0)
        return fail(ERR_FORMAT, "%s: no instruction; drover train writes a trace with log.trace",
                    name);
    return OK;
}

Status trace_read(Bytes text, const char *name, json_t **root, TraceNodes *out)
{
    json_error_t error;
    *out = (TraceNodes){0};
    if (json_is_deeper((const char *)text.at, text.n, MAX_DEPTH))
        return fail(ERR_FORMAT, "%s: JSON more than %d levels deep is no trace", name, MAX_DEPTH);
    *root = json_loadb((const char *)text.at, text.n, 0, &error);
    if (!*root) return fail(ERR_FORMAT, "%s: line %d: %s", name, error.line, error.text);
    const json_t *events = json_object_get(*root, "traceEvents");
    Status status = json_is_array(events)
                        ? read_events(events, name, out)
                        : fail(ERR_FORMAT, "%s: no traceEvents; it is no trace", name);
    if (status == OK) return OK;
    VEC_FREE(out);
    json_decref(*root);
    *root = NULL;
    return status;
}
