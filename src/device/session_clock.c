/* How long instructions and programs take, by the clock of the device that runs them. */
#include "device/session_internal.h"

#include <stdlib.h>

void session_forget_moments(Session *s)
{
    for (size_t i = 0; i < s->moment.n; i++) gpu_event_destroy(s->moment.at[i]);
    VEC_FREE(&s->moment);
}

static Status need_moments(Session *s, int n)
{
    while (s->moment.n < (size_t)n) {
        GpuEvent *event;
        TRY(gpu_event_create(s->device->gpu, &event));
        VEC_PUSH(&s->moment, event);
    }
    return OK;
}

static void tell(const Session *s, const Loaded *l, int i, double begin_s, double end_s)
{
    s->watch(s->watch_context,
             &(InstrTime){l->program, l->step[i].instr, l->slot[PIPELINE_FW], begin_s, end_s});
}

static Status run_on_cpu(const Session *s, const Loaded *l, int begin, int end)
{
    for (int i = begin; i < end; i++) {
        double begin_s = clock_s();
        TRY(session_run_step(&l->step[i]));
        tell(s, l, i, begin_s, clock_s());
    }
    return OK;
}

/* Moments of the GPU between the instructions: nobody waits in between, so that each takes what it
 * takes in a step. They are laid on the host's clock by the last one. */
static Status run_on_gpu(Session *s, const Loaded *l, int begin, int end)
{
    GpuStream *stream = s->device->stream;
    int n = end - begin;
    double all_ms, from_ms, to_ms = 0;
    if (n <= 0) return OK;
    TRY(need_moments(s, n + 1));
    TRY(gpu_event_record(s->moment.at[0], stream));
    for (int i = 0; i < n; i++) {
        TRY(session_run_step(&l->step[begin + i]));
        TRY(gpu_event_record(s->moment.at[i + 1], stream));
    }
    TRY(gpu_stream_wait(stream));
    TRY(gpu_event_ms(s->moment.at[0], s->moment.at[n], &all_ms));
    double begin_s = clock_s() - all_ms * 1e-3;
    for (int i = 0; i < n; i++) {
        from_ms = to_ms;
        TRY(gpu_event_ms(s->moment.at[0], s->moment.at[i + 1], &to_ms));
        tell(s, l, begin + i, begin_s + from_ms * 1e-3, begin_s + to_ms * 1e-3);
    }
    return OK;
}

Status session_run_watched(Session *s, Loaded *l, int begin, int end)
{
    return s->device->gpu ? run_on_gpu(s, l, begin, end) : run_on_cpu(s, l, begin, end);
}

/* ---- whole programs ----------------------------------------------------------------------- */

/* host_s: until the host has put all of it on the device's stream. */
static Status run_often(Session *s, int program, int runs, double *host_s)
{
    double begin_s = clock_s();
    for (int i = 0; i < runs; i++) TRY(session_run(s, program, PHASE_FORWARD, PHASE_UPDATE));
    *host_s = (clock_s() - begin_s) / runs;
    return OK;
}

static Status time_on_gpu(Session *s, int program, int runs, SessionTime *time)
{
    GpuStream *stream = s->device->stream;
    double ms;
    TRY(need_moments(s, 2));
    TRY(gpu_event_record(s->moment.at[0], stream));
    TRY(run_often(s, program, runs, &time->host_s));
    TRY(gpu_event_record(s->moment.at[1], stream));
    TRY(gpu_stream_wait(stream));
    TRY(gpu_event_ms(s->moment.at[0], s->moment.at[1], &ms));
    time->device_s = ms * 1e-3 / runs;
    return OK;
}

Status session_time(Session *s, int program, int runs, bool one_by_one, SessionTime *time)
{
    SessionTime taken = {0};
    s->one_by_one = one_by_one;
    Status status = run_often(s, program, 1, &taken.host_s); /* what is done once */
    if (status == OK && s->device->gpu)
        status = time_on_gpu(s, program, runs, &taken);
    else if (status == OK)
        status = run_often(s, program, runs, &taken.host_s);
    s->one_by_one = false;
    if (!s->device->gpu) taken.device_s = taken.host_s;
    if (status == OK) *time = taken;
    return status;
}
