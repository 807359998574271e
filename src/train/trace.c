/* A trace of some steps in the format of chrome://tracing and Perfetto ("Trace Event Format"): a
 * process for every rank, in it a track of the instructions as they ran one after the other, and
 * for each group of ranks the exchanges from their start to their end, on as many tracks as are on
 * their way at once.
 *
 * Clocks of hosts differ: zero is when all ranks have met in front of the first traced step. */
#include <stdlib.h>
#include <string.h>

#include "device/trace_text.h"
#include "train/trainer_internal.h"

enum { MAX_GROUPS = 64, MAX_LANES = 64, COMPUTE_TRACK = 1 };

typedef struct Exchange {
    int group; /* among those seen */
    CommTrace trace;
} Exchange;

struct Trace {
    double zero_s;
    VEC(InstrTime) instr;
    VEC(Exchange) exchange;
    const char *group[MAX_GROUPS]; /* names; the communicators' */
    int n_groups;
};

/* ---- recording -------------------------------------------------------------------------- */

static void note_instr(void *context, const InstrTime *time)
{
    Trace *trace = context;
    VEC_PUSH(&trace->instr, *time);
}

static void note_exchange(void *context, const Comm *group, const CommTrace *done)
{
    Trace *trace = context;
    const char *name = comm_name(group);
    int g = 0;
    while (g < trace->n_groups && strcmp(trace->group[g], name) != 0) g++;
    if (g == MAX_GROUPS) return;
    if (g == trace->n_groups) trace->group[trace->n_groups++] = name;
    Exchange e = {g, *done};
    VEC_PUSH(&trace->exchange, e);
}

/* ---- as text ---------------------------------------------------------------------------- */

/* Of the pipeline, whose step program this is; -1: none. */
static int stage_of(const Trainer *t, const Program *program)
{
    const StepPrograms *p = &t->programs;
    int stage = -1;
    if (!t->pipeline) return -1;
    int *own = xcalloc((size_t)t->pipeline->n_stages, sizeof *own);
    pipeline_stages_of(t->pipeline, t->layout.mesh.coord[MESH_PP], own);
    for (int k = 0; k < p->n_stages; k++)
        if (p->at[p->index[PROGRAM_STEP] + k] == program) stage = own[k];
    free(own);
    return stage;
}

static void add_instr(Str *out, const Trainer *trainer, const InstrTime *t)
{
    const Trace *trace = trainer->trace;
    TraceBox box = {trainer->rank, COMPUTE_TRACK, t->begin_s - trace->zero_s,
                    t->end_s - trace->zero_s};
    trace_text_instr(out, &box, t->program, t->instr, stage_of(trainer, t->program), 0);
    if (t->program->slotted) str_printf(out, ",\"slot\":%d", t->slot);
    trace_text_end_box(out);
}

static void add_exchange(Str *out, const Trace *trace, int rank, int track, const Exchange *e)
{
    const CommTrace *t = &e->trace;
    Str name = {0};
    str_printf(&name, "%s%s%s", comm_kind_name(t->kind), *t->node ? ": " : "", t->node);
    TraceBox box = {rank, track, t->start_s - trace->zero_s, t->end_s - trace->zero_s};
    trace_text_box(out, &box, name.at, comm_kind_name(t->kind));
    str_printf(out,
               "\"group\":\"%s\",\"number\":%lld,\"bytes\":%lld,\"all_arrived_us\":%.3f,\"exposed_"
               "us\":%.3f",
               trace->group[e->group], (long long)t->number, (long long)t->bytes,
               (t->arrived_s - trace->zero_s) * 1e6, t->blocked_s * 1e6);
    trace_text_end_box(out);
    str_deinit(&name);
}

static int by_start(const void *a, const void *b)
{
    const Exchange *x = a, *y = b;
    return (x->trace.start_s > y->trace.start_s) - (x->trace.start_s < y->trace.start_s);
}

/* Intervals of one track must not overlap: each goes to the first track of its group that is free.
 */
static void add_exchanges(Str *out, Trace *trace, int rank)
{
    double(*busy_until)[MAX_LANES] = xcalloc(MAX_GROUPS, sizeof *busy_until);
    if (trace->exchange.n)
        qsort(trace->exchange.at, trace->exchange.n, sizeof *trace->exchange.at, by_start);
    for (size_t i = 0; i < trace->exchange.n; i++) {
        const Exchange *e = &trace->exchange.at[i];
        double *until = busy_until[e->group];
        int lane = 0;
        while (lane + 1 < MAX_LANES && until[lane] > e->trace.start_s) lane++;
        int track = COMPUTE_TRACK + 1 + e->group * MAX_LANES + lane;
        if (until[lane] == 0) {
            char name[64];
            snprintf(name, sizeof name, lane ? "%s (%d)" : "%s", trace->group[e->group], lane + 1);
            trace_text_track(out, rank, track, name);
        }
        until[lane] = e->trace.end_s;
        add_exchange(out, trace, rank, track, e);
    }
    free(busy_until);
}

static void add_rank(Str *out, const Trainer *t)
{
    char name[32];
    snprintf(name, sizeof name, "rank %d", t->rank);
    trace_text_process(out, t->rank, name);
    trace_text_track(out, t->rank, COMPUTE_TRACK, "instructions");
    for (size_t i = 0; i < t->trace->instr.n; i++) add_instr(out, t, &t->trace->instr.at[i]);
    add_exchanges(out, t->trace, t->rank);
}

/* ---- to the first rank, and to the disk ------------------------------------------------- */

static Status exchange_bytes(Trainer *t, CommKind kind, int peer, void *data, int64_t n)
{
    if (n == 0) return OK;
    return comm_run(t->world, &(CommOp){.kind = kind,
                                        .dtype = DTYPE_U8,
                                        .send = kind == COMM_SEND ? data : NULL,
                                        .recv = kind == COMM_RECV ? data : NULL,
                                        .count = n,
                                        .peer = peer,
                                        .node = "trace"});
}

static Status gather(Trainer *t, Str *text)
{
    int64_t n = (int64_t)text->n;
    if (!t->world) return OK;
    if (t->rank > 0) {
        TRY(exchange_bytes(t, COMM_SEND, 0, &n, sizeof n));
        return exchange_bytes(t, COMM_SEND, 0, text->at, n);
    }
    for (int r = 1; r < comm_size(t->world); r++) {
        TRY(exchange_bytes(t, COMM_RECV, r, &n, sizeof n));
        char *theirs = xmalloc((size_t)n + 1);
        Status status = exchange_bytes(t, COMM_RECV, r, theirs, n);
        if (status == OK) str_add_n(text, theirs, (size_t)n);
        free(theirs);
        TRY(status);
    }
    return OK;
}

/* A trace that cannot be written costs a line, not the run. */
static void write_file(Trainer *t, Str *text)
{
    const char *path = t->config->log.trace;
    trace_text_end(text);
    if (file_write_atomic(path, text->at, text->n) == OK)
        progress_note(&t->progress, "trace of %lld steps: %s",
                      (long long)t->config->log.trace_steps, path);
    else
        log_warn("no trace: %s; training goes on", status_message());
}

static Status write_trace(Trainer *t)
{
    Str text = {0};
    if (t->world) comm_on_done(t->world, NULL, NULL);
    session_watch(t->session, NULL, NULL);
    if (t->rank == 0) trace_text_begin(&text);
    add_rank(&text, t);
    Status status = gather(t, &text);
    if (status == OK && t->rank == 0) write_file(t, &text);
    str_deinit(&text);
    trainer_trace_end(t);
    return status;
}

Status trainer_trace_before(Trainer *t, int64_t done)
{
    const RunLog *log = &t->config->log;
    if (!*log->trace || done != log->trace_after) return OK;
    t->trace = xcalloc(1, sizeof *t->trace);
    TRY(trainer_meet(t));
    t->trace->zero_s = clock_s();
    session_watch(t->session, note_instr, t->trace);
    if (t->world) comm_on_done(t->world, note_exchange, t->trace);
    return OK;
}

Status trainer_trace_after(Trainer *t, int64_t done)
{
    const RunLog *log = &t->config->log;
    if (!t->trace || (done < log->trace_after + log->trace_steps && t->step < t->steps)) return OK;
    return write_trace(t);
}

void trainer_trace_end(Trainer *t)
{
    if (!t->trace) return;
    if (t->world) comm_on_done(t->world, NULL, NULL);
    session_watch(t->session, NULL, NULL);
    VEC_FREE(&t->trace->instr);
    VEC_FREE(&t->trace->exchange);
    free(t->trace);
    t->trace = NULL;
}

/* ---- exposed time ----------------------------------------------------------------------- */

void trainer_exposed_text(const Trainer *t, const CommStats *before, double seconds, int64_t steps,
                          Str *out)
{
    CommStats now = comm_stats_of_rank(t->world);
    double sum = 0;
    for (int k = 0; k < COMM_KINDS; k++) {
        double exposed_s = now.kind[k].blocked_s - before->kind[k].blocked_s;
        if (exposed_s <= 0) continue;
        str_printf(out, "%s%s %.3f ms", out->n ? ", " : "", comm_kind_name((CommKind)k),
                   exposed_s * 1e3 / (double)steps);
        sum += exposed_s;
    }
    if (sum > 0)
        str_printf(out, " a step, %.1f%% of the time", 100 * sum / seconds);
    else
        str_add(out, "not at all");
}
