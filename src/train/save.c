/* Checkpoints on their way to the disk.
 *
 * Each rank's writer thread works on its own share (ckpt.h); what the ranks must tell each other
 * they say between steps, in the one small reduction that asks every rank about signals anyway.
 * Writers never touch the communicator, so nothing of theirs can come between the collectives of a
 * step, and a save takes some steps to end. When the loop has ended, or waits, the same question is
 * asked again and again. */
#include <stdlib.h>
#include <string.h>

#include "train/metrics.h"
#include "train/trainer_internal.h"

/* ---- the store -------------------------------------------------------------------------- */

static Status open_store(Trainer *t)
{
    CkptOptions options = {.keep = (int)t->config->checkpoint.keep};
    int64_t key = 0;
    t->save_alarm_s = 60;
    if (t->rank == 0) {
        TRY(ckpt_store_open(t->ckpt_dir, options, &t->store));
        key = (int64_t)ckpt_store_key(t->store);
    }
    TRY(trainer_agree(t, &key));
    return t->rank == 0 ? OK : ckpt_store_join(t->ckpt_dir, (uint64_t)key, options, &t->store);
}

Status trainer_open_store(Trainer *t)
{
    TRY(open_store(t));
    TRY(trainer_share_checkpoint(t));
    if (!t->config->checkpoint.async) return OK;
    return ckpt_reserve(t->store, t->saved.part, t->saved.n);
}

/* ---- what became of a save -------------------------------------------------------------- */

static void report_failure(Trainer *t, int64_t step, const char *sentence)
{
    progress_note(&t->progress,
                  "drover: checkpoint of step %lld was not written: %s; training goes on",
                  (long long)step, sentence);
    metrics_event(t->metrics, "checkpoint_failed", step, sentence);
}

static void report(Trainer *t, const CkptResult *r)
{
    char bytes[32], took[32];
    if (r->status != OK) {
        report_failure(t, r->step, r->message);
        return;
    }
    const Saving *s = &t->saving;
    Str text = {0};
    str_printf(&text, "checkpoint of step %lld: %s in %s, training was held for %.1f ms",
               (long long)r->step, format_bytes((double)r->bytes, bytes),
               format_duration(r->write_s, took), 1e3 * s->stall_s);
    progress_note(&t->progress, "%s", text.at);
    metrics_save(t->metrics,
                 &(SaveMetrics){.step = r->step,
                                .bytes = r->bytes,
                                .write_s = r->write_s,
                                .stall_s = s->stall_s,
                                .interval_s = s->interval_s},
                 text.at);
    str_deinit(&text);
}

/* On every rank; the first has something to say. */
static void take_result(Trainer *t, const CkptResult *r)
{
    t->saving.outcome = r->status;
    snprintf(t->saving.sentence, sizeof t->saving.sentence, "%s", r->message);
    report(t, r);
}

/* Storage that hangs stops no step, but somebody should know. */
static void alarm_if_late(Trainer *t, int rank)
{
    char took[32];
    Saving *s = &t->saving;
    if (s->alarmed || clock_s() - s->begin_s < t->save_alarm_s) return;
    s->alarmed = true;
    Str text = {0};
    str_printf(&text, "the checkpoint of step %lld is not written after %s: rank %d is still at it",
               (long long)s->step, format_duration(clock_s() - s->begin_s, took), rank);
    progress_note(&t->progress, "drover: %s", text.at);
    metrics_event(t->metrics, "checkpoint_late", s->step, text.at);
    str_deinit(&text);
}

/* ---- between steps ---------------------------------------------------------------------- */

/* One of the ranks could not end its phase: all hear why, and give the save up. */
static Status give_up(Trainer *t, const char *mine)
{
    Saving *s = &t->saving;
    Status status = trainer_accord(t, mine ? fail(ERR_IO, "%s", mine) : OK);
    if (status == ERR_COMM || status == OK) return status; /* the world is lost */
    snprintf(s->sentence, sizeof s->sentence, "%s", status_message());
    s->outcome = status;
    s->under_way = false;
    ckpt_go_on(t->store, status, s->sentence);
    if (t->rank == 0 && !s->begun_well)
        report_failure(t, s->step, s->sentence); /* no writer that would */
    return OK;
}

static Status go_on(Trainer *t)
{
    int n;
    CkptTally *tallies = ckpt_tallies(t->store, &n);
    TRY(trainer_sum_tallies(t, tallies, n));
    t->saving.under_way = ckpt_go_on(t->store, OK, NULL);
    if (!t->saving.under_way) t->saving.outcome = OK;
    return OK;
}

Status trainer_meet_between_steps(Trainer *t, bool *stop)
{
    enum { STOP, WORKS, FAILED, N };
    int32_t any[N] = {[STOP] = *stop};
    Saving *s = &t->saving;
    Status own = OK;
    const char *sentence = "";
    if (!t->world) return OK;
    TRY(trainer_await_copy(t));
    if (s->under_way) {
        any[WORKS] = s->begun_well && !ckpt_rests(t->store, 0, &own, &sentence) ? t->rank + 1 : 0;
        if (!s->begun_well) own = ERR_IO, sentence = s->sentence;
        any[FAILED] = own != OK;
    }
    char kept[sizeof s->sentence];
    snprintf(kept, sizeof kept, "%s", sentence);
    TRY(comm_run(t->world, &(CommOp){.kind = COMM_ALL_REDUCE,
                                     .dtype = DTYPE_I32,
                                     .reduce = COMM_MAX,
                                     .send = any,
                                     .recv = any,
                                     .count = N,
                                     .node = "agreement"}));
    *stop = any[STOP] != 0;
    if (s->under_way && any[WORKS]) alarm_if_late(t, any[WORKS] - 1);
    if (!s->under_way || any[WORKS]) return OK;
    double start = clock_s();
    Status status = any[FAILED] ? give_up(t, own != OK ? kept : NULL) : go_on(t);
    s->stall_s += clock_s() - start;
    return status;
}

/* Until the save under way has ended on all ranks, and its result is taken. */
static Status settle(Trainer *t)
{
    const double patience_s =
        0.2; /* then the others are asked, lest they wait for this rank beyond their deadline */
    CkptResult result;
    while (t->saving.under_way) {
        Status ignored;
        const char *sentence;
        bool stop = false;
        if (t->saving.begun_well) ckpt_rests(t->store, patience_s, &ignored, &sentence);
        TRY(trainer_meet_between_steps(t, &stop));
    }
    if (t->store && ckpt_wait(t->store, &result)) take_result(t, &result);
    return OK;
}

Status trainer_poll_save(Trainer *t)
{
    CkptResult result;
    if (t->store && ckpt_poll(t->store, &result)) take_result(t, &result);
    if (!t->world && ckpt_busy(t->store)) alarm_if_late(t, 0);
    return OK;
}

Status trainer_finish_saves(Trainer *t)
{
    t->saving.outcome = OK;
    TRY(settle(t));
    return t->saving.outcome == OK ? OK : fail(t->saving.outcome, "%s", t->saving.sentence);
}

/* ---- a save ----------------------------------------------------------------------------- */

char *trainer_run_json(const Trainer *t)
{
    const RunTrain *r = &t->config->train;
    json_t *json = json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:I, s:I, s:I, s:s}", "step", (json_int_t)t->step,
        "steps", (json_int_t)t->steps, "tokens", (json_int_t)t->tokens, "seed", (json_int_t)r->seed,
        "batch", (json_int_t)r->batch, "seq", (json_int_t)r->seq, "mean_loss",
        t->bad_steps.mean_loss, "good_steps", (json_int_t)t->bad_steps.n_good, "skipped_steps",
        (json_int_t)t->bad_steps.n_skipped, "skipped_in_a_row", (json_int_t)t->bad_steps.n_in_a_row,
        "precision", dtype_name(t->dtype));
    json_object_set_new(json, "sequences_together", json_integer(trainer_sequences_together(t)));
    json_object_set_new(json, "canonical_chunks", json_integer(t->layout.chunks));
    char *text = json_dumps(json, JSON_INDENT(1) | JSON_REAL_PRECISION(17));
    json_decref(json);
    return text;
}

static Status begin_save(Trainer *t, bool copy)
{
    Arena arena = {0};
    CkptFile files[TRAINER_MAX_FILES];
    CkptSave save = {.step = t->step, .share = &t->saved.share, .files = files};
    TRY(session_fetch_states(t->session));
    char *json = trainer_run_json(t);
    save.run_json = json;
    Status status = t->rank == 0 ? trainer_model_files(t, &arena, files, &save.n_files) : OK;
    if (status == OK) status = copy ? ckpt_snapshot(t->store, &save) : ckpt_start(t->store, &save);
    free(json);
    arena_deinit(&arena);
    return status;
}

/* A rank that cannot begin says so at the next meeting, and the others give up. */
static void begin(Trainer *t, double now)
{
    Saving *s = &t->saving;
    double last = s->begin_s > 0 ? s->begin_s : t->last_save_s; /* the start of the loop */
    *s = (Saving){.step = t->step, .begin_s = now, .interval_s = last > 0 ? now - last : 0};
    Status status = begin_save(t, t->config->checkpoint.async);
    s->begun_well = status == OK;
    s->under_way = t->world != NULL;
    if (status == OK) return;
    s->outcome = status;
    snprintf(s->sentence, sizeof s->sentence, "%s", status_message());
    if (!t->world) report_failure(t, t->step, s->sentence);
}

Status trainer_save(Trainer *t, bool wait)
{
    double start = clock_s();
    TRY(settle(t)); /* the one before, should it still be under way */
    begin(t, start);
    t->saving.stall_s = clock_s() - start;
    if (wait || !t->config->checkpoint.async) TRY(settle(t));
    t->last_save_s = clock_s();
    if (!wait || t->saving.outcome == OK) return OK; /* the next one starts afresh */
    return fail(t->saving.outcome, "%s", t->saving.sentence);
}
