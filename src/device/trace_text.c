/* The text of a trace: one event a line. */
#include "device/trace_text.h"

static void add_string(Str *out, const char *text)
{
    str_add(out, "\"");
    for (const char *p = text; *p; p++) {
        if (*p == '"' || *p == '\\') str_add(out, "\\");
        if ((unsigned char)*p >= 0x20) str_add_n(out, p, 1);
    }
    str_add(out, "\"");
}

void trace_text_begin(Str *out) { str_add(out, "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n"); }

void trace_text_end(Str *out)
{
    if (out->n >= 2 && out->at[out->n - 2] == ',') out->n -= 2; /* the last comma */
    str_add(out, "\n]}\n");
}

static void add_name(Str *out, int process, int track, const char *what, const char *name)
{
    str_printf(out,
               "{\"ph\":\"M\",\"pid\":%d,\"tid\":%d,\"name\":\"%s\",\"args\":{\"name\":", process,
               track, what);
    add_string(out, name);
    str_add(out, "}},\n");
}

void trace_text_process(Str *out, int process, const char *name)
{
    add_name(out, process, 0, "process_name", name);
}
void trace_text_track(Str *out, int process, int track, const char *name)
{
    add_name(out, process, track, "thread_name", name);
}

void trace_text_box(Str *out, const TraceBox *box, const char *name, const char *category)
{
    str_add(out, "{\"name\":");
    add_string(out, name);
    str_printf(
        out,
        ",\"cat\":\"%s\",\"ph\":\"X\",\"pid\":%d,\"tid\":%d,\"ts\":%.3f,\"dur\":%.3f,\"args\":{",
        category, box->process, box->track, box->begin_s * 1e6, (box->end_s - box->begin_s) * 1e6);
}

void trace_text_instr(Str *out, const TraceBox *box, const Program *program, const Instr *instr,
                      int stage, int64_t layers_before)
{
    const Node *node = instr->node;
    Str name = {0};
    str_printf(&name, "%s%s%s", node->name ? node->name : "", node->name ? ": " : "",
               node->op->name);
    trace_text_box(out, box, name.at, phase_name(node->phase));
    str_printf(out, "\"op\":\"%s\",\"program\":\"%s\",\"instr\":%d", node->op->name,
               program->graph->name, (int)(instr - program->instr));
    if (stage >= 0) str_printf(out, ",\"stage\":%d", stage);
    if (node->layer >= 0)
        str_printf(out, ",\"layer\":%lld", (long long)(node->layer + layers_before));
    str_deinit(&name);
}

void trace_text_end_box(Str *out) { str_add(out, "}},\n"); }
