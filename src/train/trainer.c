/* A run from its first byte to its last: set up, loop, stop in order. */
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "ops/probe.h"
#include "train/trainer_internal.h"

static volatile sig_atomic_t stop_requested; /* set by signal handlers */

void trainer_request_stop(void) { stop_requested = 1; }
bool trainer_stop_requested(void) { return stop_requested != 0; }

/* ---- create ----------------------------------------------------------------------------- */

static Status check_combinations(Trainer *t)
{
    t->steps = t->config->train.steps;
    return trainer_setup_ranks(t);
}

static Status open_device(Trainer *t)
{
    const RunTrain *r = &t->config->train;
    int threads = (int)r->threads;
    if (threads == 0 && t->ranks_here > 1)
        threads = cpu_count() > t->ranks_here ? cpu_count() / t->ranks_here : 1;
    TRY(device_create((DeviceKind)r->device,
                      (CpuOptions){.threads = threads,
                                   .world = t->world,
                                   .mesh = t->layout.mesh,
                                   .tune = r->tune == RUN_TUNE_AUTO},
                      &t->device));
    Target target = device_target(t->device);
    bool fast_bf16 = target.gpu || target.isa == ISA_AVX512BF16;
    const bool fp8 = r->precision == RUN_FP8,
               bf16 = r->precision == RUN_BF16 || (r->precision == RUN_AUTO && fast_bf16);
    t->dtype = fp8 || bf16 ? DTYPE_BF16 : DTYPE_F32;
    if (fp8) TRY_AS(device_check_fp8(t->device), "train.precision fp8");
    if (fp8 && !target.gpu)
        log_warn("processors have no products of 8 bits: train.precision=fp8 gives their numbers, "
                 "at less than the speed of f32");
    else if (t->dtype == DTYPE_BF16 && !fast_bf16)
        log_warn("this processor has no bf16 products: train.precision=f32 is faster here");
    DType products = !fp8 ? t->dtype : target.gpu ? DTYPE_F8_E4M3 : DTYPE_F32;
    TRY(device_peak_flop_per_s(t->device, products, &t->peak_flop_per_s));
    char peak[48] = "";
    if (t->peak_flop_per_s > 0)
        snprintf(peak, sizeof peak, ", peak %.0f GFLOP/s", t->peak_flop_per_s / 1e9);
    log_info("device: %s, %s%s", device_text(t->device), fp8 ? "fp8" : dtype_name(t->dtype), peak);
    return OK;
}

static Status open_session(Trainer *t)
{
    TRY(session_create(t->device, t->programs.store, t->programs.at, t->programs.n, &t->session));
    TRY(trainer_open_store(t));
    if (!t->world) trainer_list_weights(t);
    return trainer_load_or_init(t);
}

static void set_schedule(Trainer *t)
{
    const RunTrain *r = &t->config->train;
    static const int64_t longest_warmup = 2000;
    t->warmup = r->warmup >= 0 ? r->warmup : min_i64(t->steps / 20, longest_warmup);
    t->schedule = (Schedule){.kind = r->schedule,
                             .lr = r->lr,
                             .min_ratio = r->min_lr_ratio,
                             .steps = t->steps,
                             .warmup = t->warmup,
                             .decay_steps = (int64_t)llround(r->decay * (double)t->steps)};
}

/* The measuring of train.minutes runs real steps; their traces are wiped by starting again. */
static Status choose_steps(Trainer *t)
{
    if (t->config->train.minutes <= 0 || t->resumed) return OK;
    set_schedule(t);
    BadSteps before = t->bad_steps;
    TRY(trainer_choose_steps(t));
    t->step = t->tokens = 0;
    t->bad_steps = before;
    for (int i = 0; i < t->programs.store->n_entries; i++) TRY(session_clear_state(t->session, i));
    data_prefetch_destroy(t->prefetch);
    t->prefetch = NULL;
    TRY(trainer_load_or_init(t));
    return data_prefetch_create(t->loader, t->step, PREFETCH_DEPTH, &t->prefetch);
}

static Status write_resolved(Trainer *t)
{
    RunConfig resolved = *t->config;
    resolved.train.steps = t->steps;
    if (!t->world) resolved.train.micro_batch = t->micro_batch;
    if (t->n_leaves) resolved.train.canonical_chunks = t->layout.chunks;
    resolved.train.warmup = t->warmup;
    if (resolved.train.precision == RUN_AUTO)
        resolved.train.precision = t->dtype == DTYPE_BF16 ? RUN_BF16 : RUN_F32;
    return run_config_write(&resolved, path_join(&t->arena, t->dir, "run.yaml"));
}

static Status begin(Trainer *t)
{
    const RunTrain *r = &t->config->train;
    t->bad_steps = (BadSteps){.spike_factor = r->spike_factor,
                              .max_skips = r->max_skips,
                              .skip_nonfinite = r->skip_nonfinite};
    TRY(open_session(t));
    if (t->rank == 0) t->metrics = metrics_open(t->dir, t->config->log.tensorboard, t->step);
    TRY(data_prefetch_create(t->loader, t->step, PREFETCH_DEPTH, &t->prefetch));
    TRY(choose_steps(t));
    set_schedule(t);
    if (t->rank == 0) TRY(write_resolved(t));
    metrics_event(t->metrics, t->resumed ? "resume" : "start", t->step, device_text(t->device));
    return OK;
}

static Status read_text(Trainer *t)
{
    TRY(trainer_setup_model(t));
    TRY(trainer_setup_leaves(t));
    return trainer_setup_data(t);
}

/* Tokenizer and shards: the first rank makes what is not there yet, the others find it made. */
static Status setup_text(Trainer *t)
{
    FirstRank *first;
    if (t->world) comm_set_deadline(t->world, t->config->parallel.deadline);
    if (t->world) comm_note(t->world, "set-up", 0);
    if (t->rank > 0) {
        TRY(first_rank_await(t));
        return read_text(t);
    }
    TRY(first_rank_begin(t, &first));
    return first_rank_end(first, read_text(t));
}

/* All that can be known and refused before anything is allocated for the run itself. */
static Status plan(Trainer *t)
{
    TRY(check_combinations(t));
    t->dir = arena_strdup(&t->arena, t->config->dir);
    t->ckpt_dir = path_join(&t->arena, t->dir, "ckpt");
    TRY(dir_create(t->dir));
    progress_begin(&t->progress, 0, t->steps);
    TRY(open_device(t));
    TRY(setup_text(t));
    return trainer_setup_programs(t);
}

Status trainer_plan(const RunConfig *config, Str *out)
{
    Trainer *t = xcalloc(1, sizeof *t);
    t->config = config;
    t->planning = true;
    Status status = plan(t);
    if (status == OK) trainer_plan_text(t, out);
    trainer_destroy(t);
    return status;
}

Status trainer_create(const RunConfig *config, Trainer **trainer)
{
    return trainer_create_rank(config, NULL, 1, trainer);
}

static void log_pipeline(const Trainer *t)
{
    Str text = {0};
    if (!t->pipeline) return;
    train_pipeline_report(t->pipeline, t->programs.at[t->programs.index[PROGRAM_STEP]], 0, &text);
    log_info("%.*s", (int)strcspn(text.at, "\n"), text.at);
    str_deinit(&text);
}

static void log_canonical(const Trainer *t)
{
    Str text = {0};
    if (t->rank > 0) return;
    trainer_canonical_text(t, &text);
    if (text.n) log_info("%s", text.at);
    str_deinit(&text);
}

Status trainer_create_rank(const RunConfig *config, Comm *world, int ranks_here, Trainer **trainer)
{
    Trainer *t = xcalloc(1, sizeof *t);
    t->config = config;
    t->world = world && comm_size(world) > 1 ? world : NULL;
    t->ranks_here = ranks_here;
    t->progress.silent = t->world && comm_rank(world) > 0;
    Status status = plan(t);
    if (status == OK) status = begin(t);
    if (status != OK) {
        trainer_destroy(t);
        return status;
    }
    ModelCounts n = model_counts(&t->model);
    char total[32], active[32], bytes[32];
    log_info("model: %s weights, %s active; %lld steps of %lld tokens; memory %s",
             format_count((double)n.total, total), format_count((double)n.active, active),
             (long long)t->steps, (long long)(config->train.batch * config->train.seq),
             format_bytes((double)trainer_total_bytes(t), bytes));
    log_pipeline(t);
    if (t->model.expert_bias && !t->progress.silent)
        log_warn("experts are chosen with a bias that only drover reads (train.balance=bias): "
                 "in transformers this model's logits will be others");
    log_canonical(t);
    *trainer = t;
    return OK;
}

void trainer_destroy(Trainer *t)
{
    if (!t) return;
    progress_end(&t->progress);
    data_prefetch_destroy(t->prefetch);
    data_loader_destroy(t->loader);
    data_loader_destroy(t->val_loader);
    data_close(t->data);
    ckpt_store_close(t->store);
    trainer_close_copies(t);
    trainer_end_watch(t);
    metrics_close(t->metrics);
    session_destroy(t->session);
    step_programs_destroy(&t->programs);
    device_destroy(t->device);
    model_config_deinit(&t->model);
    tokenizer_destroy(t->tokenizer);
    arena_deinit(&t->arena);
    trainer_pipeline_free(t);
    pipeline_destroy(t->pipeline);
    free(t->leaf_loss);
    free(t);
}

/* ---- loop ------------------------------------------------------------------------------- */

static bool is_multiple(int64_t step, int64_t every) { return every > 0 && step % every == 0; }

/* Nothing that one rank holds otherwise than its peers becomes a checkpoint. */
static Status save(Trainer *t, bool wait)
{
    TRY(trainer_check_replicas(t));
    TRY(trainer_enter(t, TRAINER_SAVE));
    return trainer_save(t, wait);
}

/* Clocks differ: what goes by time is decided by the first rank. */
static Status save_is_due(Trainer *t, bool *due)
{
    double minutes = t->config->checkpoint.minutes;
    int64_t late = minutes > 0 && clock_s() - t->last_save_s > 60 * minutes;
    if (minutes > 0) TRY(trainer_agree(t, &late));
    *due = late || is_multiple(t->step, t->config->checkpoint.every);
    return OK;
}

static Status after_step(Trainer *t, StepMetrics *m, TrainOutcome *outcome)
{
    bool last = t->step >= t->steps;
    if (is_multiple(t->step, t->config->train.check_replicas)) TRY(trainer_check_replicas(t));
    if (t->val_steps > 0 && (last || is_multiple(t->step, t->config->train.val_every))) {
        TRY(trainer_enter(t, TRAINER_VALIDATE));
        TRY(trainer_validate(t, &m->val_loss, &m->val_bits_per_byte));
        if (!isnan(m->val_loss)) {
            outcome->val_loss = m->val_loss;
            outcome->val_bits_per_byte = m->val_bits_per_byte;
            progress_note(&t->progress, "step %lld: validation loss %.4f, %.3f bits per byte",
                          (long long)t->step, m->val_loss, m->val_bits_per_byte);
        }
    }
    if (last || is_multiple(t->step, t->config->log.every) || !isnan(m->val_loss) || m->skipped)
        metrics_step(t->metrics, m);
    progress_step(&t->progress, m, last);
    TRY(trainer_poll_save(t));
    bool due;
    TRY(save_is_due(t, &due));
    if (!last && is_multiple(t->step, t->config->checkpoint.memory_every))
        TRY(trainer_check_replicas(t)); /* a copy is a checkpoint too */
    if (!last) TRY(trainer_take_copy(t));
    return !last && due ? save(t, false) : OK;
}

static Status one_step(Trainer *t, int64_t done, TrainOutcome *outcome)
{
    StepMetrics m;
    TRY(trainer_trace_before(t, done));
    TRY(trainer_run_step(t, &m));
    TRY(trainer_trace_after(t, done + 1));
    if (!m.skipped) outcome->loss = m.loss;
    return after_step(t, &m, outcome);
}

/* The run fails, but what it learnt up to its last whole step is kept. The sentence of the failure
 * stays. */
static Status keep_what_is_whole(Trainer *t, bool any, Status status)
{
    char sentence[1024];
    snprintf(sentence, sizeof sentence, "%s", status_message());
    if (any && !t->torn && !t->world && trainer_save(t, true) != OK)
        progress_note(&t->progress, "drover: %s", status_message());
    metrics_event(t->metrics, "failed", t->step, sentence);
    return fail(status, "%s", sentence);
}

static void say_exposed(Trainer *t, const CommStats *before, double seconds, int64_t steps)
{
    Str text = {0};
    if (!t->world || steps == 0) return;
    trainer_exposed_text(t, before, seconds, steps, &text);
    progress_note(&t->progress, "exposed communication: %s", text.at);
    metrics_event(t->metrics, "exposed", t->step, text.at);
    str_deinit(&text);
}

static Status loop(Trainer *t, TrainOutcome *outcome)
{
    int64_t first = t->step, first_tokens = t->tokens;
    double start = clock_s();
    CommStats before = t->world ? comm_stats_of_rank(t->world) : (CommStats){0};
    t->last_save_s = start;
    Status status = OK;
    for (bool stop = false; t->step < t->steps;) {
        stop = trainer_stop_requested();
        status = trainer_meet_between_steps(t, &stop); /* a signal may reach one rank only */
        if (status == OK && stop) break;
        if (status == OK) status = one_step(t, t->step - first, outcome);
        if (status != OK) break;
    }
    trainer_trace_end(t);
    if (status != OK) return keep_what_is_whole(t, t->step > first, status);
    if (t->step > first)
        outcome->tokens_per_s = (double)(t->tokens - first_tokens) / (clock_s() - start);
    say_exposed(t, &before, clock_s() - start, t->step - first);
    outcome->step = t->step;
    outcome->interrupted = t->step < t->steps;
    return t->step > first ? save(t, true) : trainer_finish_saves(t);
}

Status trainer_run(Trainer *t, TrainOutcome *outcome)
{
    *outcome = (TrainOutcome){.loss = NAN, .val_loss = NAN, .val_bits_per_byte = NAN};
    progress_begin(&t->progress, t->step, t->steps);
    if (t->step >= t->steps)
        progress_note(&t->progress, "all %lld steps are done; a larger train.steps goes on",
                      (long long)t->steps);
    Status status = loop(t, outcome);
    progress_end(&t->progress);
    t->copies.done = status == OK; /* what is on the disk is no older */
    if (status == OK)
        metrics_event(t->metrics, outcome->interrupted ? "interrupted" : "done", t->step, "");
    return status;
}
