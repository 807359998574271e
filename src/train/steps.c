/* One optimizer step: micro-batches forward and backward, the verdict, the update. */
#include <math.h>
#include <string.h>

#include "train/trainer_internal.h"

/* ---- inputs ----------------------------------------------------------------------------- */

static Status set_hyper(Trainer *t, int program, double lr)
{
    const RunTrain *r = &t->config->train;
    double updates = (double)(t->bad_steps.n_good > 0 ? t->bad_steps.n_good
                                                      : 1); /* this one included */
    float hyper[HYPER_COUNT];
    hyper[HYPER_LR] = (float)lr;
    hyper[HYPER_BETA1] = (float)r->beta1;
    hyper[HYPER_BETA2] = (float)r->beta2;
    hyper[HYPER_BIAS1] = (float)(1 - pow(r->beta1, updates));
    hyper[HYPER_BIAS2] = (float)(1 - pow(r->beta2, updates));
    hyper[HYPER_EPS] = (float)r->eps;
    hyper[HYPER_DECAY] = (float)r->weight_decay;
    hyper[HYPER_CLIP] = (float)r->clip;
    hyper[HYPER_BIAS_RATE] = (float)r->balance_rate;
    return session_write(t->session, program, "hyper", hyper, sizeof hyper);
}

/* ---- phases ----------------------------------------------------------------------------- */

static Status forward(Trainer *t, const StepFaults *faults, int program, int64_t micro)
{
    const DataBatch *batch;
    TRY(trainer_enter(t, TRAINER_DATA));
    TRY(data_prefetch_next(t->prefetch, t->step, micro, &batch));
    TRY(trainer_feed(t, program, batch, micro));
    faults_in_batch(faults, t, program);
    return trainer_enter(t, TRAINER_FORWARD);
}

/* Weights count the targets of the whole step: losses add up to the mean. */
Status trainer_add_loss(Trainer *t, int program, int64_t micro, double *loss)
{
    float value;
    if (!session_has_output(t->session, program, "loss")) return OK; /* another stage's */
    TRY(session_read(t->session, program, "loss", &value, sizeof value));
    if (t->n_leaves)
        t->leaf_loss[layout_leaf(&t->layout, t->n_micro, micro)] = value;
    else
        *loss += (double)value;
    return OK;
}

static Status run_micro_batches(Trainer *t, const StepFaults *faults, StepMetrics *m)
{
    for (int64_t micro = 0; micro < t->n_micro; micro++) {
        int program = t->programs.index[micro + 1 < t->n_micro ? PROGRAM_STEP : t->programs.last];
        TRY(forward(t, faults, program, micro));
        TRY(session_run(t->session, program, PHASE_FORWARD, PHASE_FORWARD));
        TRY(trainer_enter(t, TRAINER_BACKWARD));
        TRY(session_run(t->session, program, PHASE_BACKWARD, PHASE_BACKWARD));
        TRY(trainer_add_loss(t, program, micro, &m->loss));
    }
    return OK;
}

static Status gradients(Trainer *t, const StepFaults *faults, StepMetrics *m, int64_t *tokens)
{
    int step = t->programs.index[PROGRAM_STEP], update = t->programs.index[PROGRAM_UPDATE];
    float norm;
    m->loss = 0;
    *tokens += t->n_micro * t->micro_batch * t->options.seq * mesh_data_ranks(&t->layout.mesh);
    if (t->n_leaves) memset(t->leaf_loss, 0, (size_t)t->n_leaves * sizeof *t->leaf_loss);
    TRY(t->pipeline ? trainer_run_pipeline(t, faults, &m->loss) : run_micro_batches(t, faults, m));
    if (t->n_leaves) TRY(trainer_sum_leaves(t, &m->loss));
    TRY(faults_in_sums(faults, t));
    if (update >= 0 && t->programs.last != PROGRAM_UPDATE)
        TRY(session_run(t->session, update, PHASE_FORWARD, PHASE_BACKWARD));
    TRY(session_read(t->session, update >= 0 ? update : step, "grad_norm", &norm, sizeof norm));
    m->grad_norm = faults_in_norm(faults, t, (double)norm);
    return OK;
}

/* A skipped step leaves nothing behind: sums over micro-batches start again from zero. */
static Status forget_sums(Trainer *t)
{
    const Store *store = t->programs.store;
    for (int i = 0; i < store->n_entries; i++) {
        if (store->entry[i].role != STATE_GRAD && store->entry[i].role != STATE_LOAD) continue;
        TRY(session_clear_state(t->session, i));
    }
    return OK;
}

static Status update(Trainer *t, double lr)
{
    int program = t->programs.index[PROGRAM_UPDATE];
    if (program < 0) program = t->programs.index[PROGRAM_STEP];
    TRY(set_hyper(t, program, lr));
    t->torn = true;
    TRY(trainer_enter(t, TRAINER_UPDATE));
    TRY(session_run(t->session, program, PHASE_UPDATE, PHASE_UPDATE));
    t->torn = false;
    return OK;
}

static Status judge(Trainer *t, StepMetrics *m)
{
    const char *why;
    StepVerdict verdict = bad_steps_judge(&t->bad_steps, m->loss, m->grad_norm, &why);
    if (verdict == STEP_GOOD) return update(t, m->lr);
    m->skipped = true;
    TRY(forget_sums(t));
    progress_note(&t->progress, "drover: step %lld skipped: %s (loss %g, gradient norm %g)",
                  (long long)t->step + 1, why, m->loss, m->grad_norm);
    metrics_event(t->metrics, verdict == STEP_SKIP ? "skip" : "stop", t->step + 1, why);
    if (verdict == STEP_SKIP) return OK;
    return fail(ERR_FORMAT,
                "%lld bad steps in a row at step %lld, the last because %s; lower train.lr, or "
                "look at the data around this step",
                (long long)t->bad_steps.n_in_a_row, (long long)t->step + 1, why);
}

/* Time in which this rank waited for others in the step, by kind. */
static void count_exposed(const Trainer *t, const CommStats *before, StepMetrics *m)
{
    if (!t->world) return;
    CommStats now = comm_stats_of_rank(t->world);
    m->has_exposed = true;
    for (int k = 0; k < COMM_KINDS; k++)
        m->exposed_s[k] = now.kind[k].blocked_s - before->kind[k].blocked_s;
}

Status trainer_run_step(Trainer *t, StepMetrics *m)
{
    CommStats before = t->world ? comm_stats_of_rank(t->world) : (CommStats){0};
    double start = clock_s(), waited = data_prefetch_wait_s(t->prefetch);
    *m = (StepMetrics){.val_loss = NAN,
                       .val_bits_per_byte = NAN,
                       .mfu = NAN,
                       .lr = schedule_lr(&t->schedule, t->step)};
    int64_t tokens = 0;
    trainer_begin_timing(t);
    StepFaults faults;
    TRY(faults_begin(t, &faults));
    TRY(gradients(t, &faults, m, &tokens));
    TRY(faults_end(&faults, t));
    TRY(judge(t, m));
    t->step++;
    t->tokens += tokens;
    m->step = t->step;
    m->tokens = t->tokens;
    m->step_s = clock_s() - start;
    m->tokens_per_s = (double)tokens / m->step_s;
    m->data_wait_s = data_prefetch_wait_s(t->prefetch) - waited;
    m->peak_bytes = trainer_total_bytes(t);
    count_exposed(t, &before, m);
    if (t->peak_flop_per_s > 0)
        m->mfu = m->tokens_per_s * model_train_flop_per_token(&t->model, t->options.seq) /
                 (t->peak_flop_per_s * mesh_ranks(&t->layout.mesh));
    return trainer_end_timing(t, m->step_s);
}
