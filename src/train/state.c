/* What a run keeps across steps, and its way to the disk and back. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "train/trainer_internal.h"

/* ---- lists ---------------------------------------------------------------------------------------------- */

/* With the prefix that the names have in checkpoints, or as they are in the graph. Before there is a session the
 * tensors have no data yet. */
static NamedTensor *list_roles(Trainer *t, unsigned roles, const char *prefix, int *n)
{
    const Store *store = t->programs.store;
    VEC(NamedTensor) list = {0};
    for (int i = 0; i < store->n_entries; i++) {
        const StateEntry *e = &store->entry[i];
        if (!(roles >> e->role & 1)) continue;
        for (int k = 0; k < e->n_parts; k++)
            VEC_PUSH(&list, ((NamedTensor){arena_printf(&t->arena, "%s%s", prefix, e->part[k].name),
                                           t->session ? session_state_part(t->session, i, k)
                                                      : tensor_make(NULL, e->dtype, e->part[k].whole)}));
    }
    NamedTensor *copy = arena_copy(&t->arena, list.at, list.n * sizeof *list.at);
    *n = (int)list.n;
    VEC_FREE(&list);
    return copy;
}

/* Expert biases are no part of the published architecture: in the model's files they would make other
 * programs complain, so they lie with the moments. */
void trainer_list_state(Trainer *t)
{
    t->weights = list_roles(t, 1u << STATE_PARAM, t->model.weight_prefix, &t->n_weights);
    t->others = list_roles(t, 1u << STATE_ADAM_M | 1u << STATE_ADAM_V | 1u << STATE_BUFFER, "", &t->n_others);
}

/* ---- load ------------------------------------------------------------------------------------------------ */

static double number(const json_t *json, const char *key, double otherwise)
{
    const json_t *v = json_object_get(json, key);
    double x = json_is_number(v) ? json_number_value(v) : otherwise;
    return fabs(x) < 0x1p62 ? x : otherwise; /* also for what is no number */
}

/* That all ranks compute at once: the router's losses are means over them. */
static int64_t sequences_together(const Trainer *t) { return t->micro_batch * mesh_data_ranks(&t->layout.mesh); }

/* What must be the same for the same bits to follow; a difference is said, not refused. */
static void compare_settings(const Trainer *t, const json_t *run)
{
    const RunTrain *r = &t->config->train;
    const struct {
        const char *key;
        double now;
    } list[] = {{"seed", (double)r->seed}, {"batch", (double)r->batch}, {"seq", (double)r->seq}};
    for (int i = 0; i < COUNT_OF(list); i++) {
        double was = number(run, list[i].key, list[i].now);
        if (was != list[i].now)
            log_warn("train.%s was %.0f when the checkpoint was written and is %.0f now; the data order changes", list[i].key,
                     was, list[i].now);
    }
    double together = (double)sequences_together(t), was = number(run, "sequences_together", together);
    if (was != together && t->model.n_experts > 0 && t->config->train.balance == RUN_BALANCE_AUX)
        log_warn("the router's balancing loss was a mean over %.0f sequences when the checkpoint was written and is over %.0f now; "
                 "train.micro_batch=%.0f would keep it", was, together, was * (double)t->micro_batch / together);
}

/* Two lists, one after the other. */
static NamedTensor *join_lists(Trainer *t, const NamedTensor *a, int n_a, const NamedTensor *b, int n_b)
{
    NamedTensor *both = ARENA_ARRAY(&t->arena, NamedTensor, n_a + n_b);
    if (n_a) memcpy(both, a, sizeof *both * (size_t)n_a);
    if (n_b) memcpy(both + n_a, b, sizeof *both * (size_t)n_b);
    return both;
}

/* One element range of a weight, or of what lies beside the weights. */
static Status read_weight(const void *source, const StateEntry *entry, const StatePart *part, const StateRun *run, void *out)
{
    const Weight *w = weights_find(source, part->name);
    if (!w) return fail(ERR_FORMAT, "%s has no %s", weights_path(source), part->name);
    if (!shape_equal(&w->shape, &part->whole)) return fail(ERR_SHAPE, "%s of %s has another shape", part->name, weights_path(source));
    return weights_read_range(w, run->global, run->n, entry->dtype, out);
}

static Status read_beside(const void *source, const StateEntry *entry, const StatePart *part, const StateRun *run, void *out)
{
    const SafetensorsEntry *e = ckpt_optimizer_find(source, part->name);
    if (!e) return fail(ERR_FORMAT, "%s has no %s", ckpt_path(source), part->name);
    if (!shape_equal(&e->shape, &part->whole)) return fail(ERR_SHAPE, "%s of %s has another shape", part->name, ckpt_path(source));
    return safetensors_read(e, run->global, run->n, entry->dtype, out);
}

enum { BESIDE = 1u << STATE_ADAM_M | 1u << STATE_ADAM_V | 1u << STATE_BUFFER };

static Status load_shares(Trainer *t, const Ckpt *ckpt)
{
    Weights *weights;
    TRY(weights_open(ckpt_path(ckpt), CKPT_VERIFY_SIZES, &weights));
    Status status = trainer_load_runs(t, 1u << STATE_PARAM, read_weight, weights);
    weights_close(weights);
    TRY(status);
    return trainer_load_runs(t, BESIDE, read_beside, ckpt);
}

static Status load_whole(Trainer *t, const Ckpt *ckpt)
{
    int n_biases;
    CkptTensors all = {0}; /* biases are looked up as the model's: an older checkpoint has them there */
    const NamedTensor *biases = list_roles(t, 1u << STATE_BUFFER, "", &n_biases);
    all.model = join_lists(t, t->weights, t->n_weights, biases, n_biases);
    all.n_model = t->n_weights + n_biases;
    all.optimizer = list_roles(t, 1u << STATE_ADAM_M | 1u << STATE_ADAM_V, "", &all.n_optimizer);
    return ckpt_load(ckpt, &all);
}

static Status resume(Trainer *t, Ckpt *ckpt)
{
    json_t *run = json_loads(ckpt_run_json(ckpt), JSON_REJECT_DUPLICATES, NULL);
    if (!run) return fail(ERR_FORMAT, "%s: the manifest's run object is not JSON", ckpt_path(ckpt));
    Status status = t->world ? load_shares(t, ckpt) : load_whole(t, ckpt);
    if (status == ERR_SHAPE || status == ERR_FORMAT) /* its hashes were good: it is another model's */
        status = fail(ERR_REFUSED, "%s; the run file's model is not the one of this run: give the run another name, or set the model back",
                      status_message());
    if (status == OK) {
        t->step = ckpt_step(ckpt);
        t->tokens = (int64_t)number(run, "tokens", 0);
        t->steps = (int64_t)number(run, "steps", (double)t->steps);
        if (t->config->train.minutes == 0) t->steps = t->config->train.steps; /* the user may have changed it */
        t->bad_steps.mean_loss = number(run, "mean_loss", 0);
        t->bad_steps.n_good = (int64_t)number(run, "good_steps", 0);
        t->bad_steps.n_skipped = (int64_t)number(run, "skipped_steps", 0);
        t->bad_steps.n_in_a_row = (int64_t)number(run, "skipped_in_a_row", 0);
        compare_settings(t, run);
        t->resumed = true;
        log_info("resuming after step %lld from %s", (long long)t->step, ckpt_path(ckpt));
    }
    json_decref(run);
    TRY(status);
    return session_refresh_copies(t->session);
}

/* Weights, and the expert biases if the directory has them: published models balance otherwise, and begin with
 * biases of zero. */
static NamedTensor *list_from(Trainer *t, const Weights *from, int *n)
{
    int n_buffers, found = 0;
    const NamedTensor *weights = list_roles(t, 1u << STATE_PARAM, "", n);
    NamedTensor *buffers = list_roles(t, 1u << STATE_BUFFER, "", &n_buffers);
    for (int i = 0; i < n_buffers; i++)
        if (weights_find(from, buffers[i].name)) buffers[found++] = buffers[i];
    NamedTensor *wanted = join_lists(t, weights, *n, buffers, found);
    *n += found;
    return wanted;
}

Status trainer_check_from(Trainer *t)
{
    Weights *from;
    int n;
    if (!*t->config->model.from) return OK;
    TRY_AS(weights_open(t->config->model.from, CKPT_VERIFY_SIZES, &from), "model.from");
    const NamedTensor *wanted = list_from(t, from, &n);
    Status status = weights_match(from, wanted, n);
    weights_close(from);
    if (status == ERR_SHAPE) status = fail(ERR_REFUSED, "%s; fields beside model.from cannot change a weight's shape", status_message());
    TRY_AS(status, "model.from");
    return OK;
}

static Status start_from(Trainer *t)
{
    Weights *from;
    int n;
    TRY_AS(weights_open(t->config->model.from, CKPT_VERIFY_HASHES, &from), "model.from");
    Status status;
    if (t->world) {
        status = trainer_load_runs(t, 1u << STATE_PARAM, read_weight, from);
    } else {
        const NamedTensor *wanted = list_from(t, from, &n);
        status = weights_load(from, wanted, n);
    }
    if (status == OK) log_info("weights from %s (%s)", t->config->model.from, weights_form(from));
    weights_close(from);
    TRY_AS(status, "model.from");
    return session_refresh_copies(t->session);
}

/* The newest good checkpoint. The first rank finds and verifies it; the others open the same. */
static Status find_checkpoint(Trainer *t, Ckpt **found)
{
    char path[4096] = "";
    Status status = OK;
    *found = NULL;
    if (t->rank == 0) {
        status = ckpt_find(t->ckpt_dir, found);
        if (status == OK && *found) snprintf(path, sizeof path, "%s", ckpt_path(*found));
    }
    if (!t->world || status != OK) return status;
    TRY(comm_run(t->world, &(CommOp){.kind = COMM_BROADCAST, .dtype = DTYPE_U8, .send = path, .recv = path, .count = sizeof path, .node = "checkpoint"}));
    return t->rank > 0 && *path ? ckpt_open(path, CKPT_VERIFY_SIZES, found) : OK;
}

Status trainer_load_or_init(Trainer *t)
{
    Ckpt *found;
    TRY(find_checkpoint(t, &found));
    if (found) {
        Status status = resume(t, found);
        ckpt_close(found);
        return status;
    }
    if (*t->config->model.from) return start_from(t);
    return session_init_weights(t->session, (uint64_t)t->config->train.seed);
}

/* ---- save ------------------------------------------------------------------------------------------------ */

static char *run_json(const Trainer *t)
{
    const RunTrain *r = &t->config->train;
    json_t *json = json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:I, s:I, s:I, s:s}", "step", (json_int_t)t->step, "steps",
                             (json_int_t)t->steps, "tokens", (json_int_t)t->tokens, "seed", (json_int_t)r->seed, "batch",
                             (json_int_t)r->batch, "seq", (json_int_t)r->seq, "mean_loss", t->bad_steps.mean_loss,
                             "good_steps", (json_int_t)t->bad_steps.n_good, "skipped_steps",
                             (json_int_t)t->bad_steps.n_skipped, "skipped_in_a_row", (json_int_t)t->bad_steps.n_in_a_row,
                             "precision", dtype_name(t->dtype));
    json_object_set_new(json, "sequences_together", json_integer(sequences_together(t)));
    char *text = json_dumps(json, JSON_INDENT(1) | JSON_REAL_PRECISION(17));
    json_decref(json);
    return text;
}

static void report(Trainer *t, const CkptResult *r)
{
    char bytes[32], took[32];
    if (r->status != OK) {
        progress_note(&t->progress, "drover: checkpoint of step %lld was not written: %s; training goes on",
                      (long long)r->step, r->message);
        metrics_event(t->metrics, "checkpoint_failed", r->step, r->message);
        return;
    }
    Str text = {0};
    str_printf(&text, "checkpoint of step %lld: %s in %s", (long long)r->step, format_bytes((double)r->bytes, bytes),
               format_duration(r->write_s, took));
    progress_note(&t->progress, "%s", text.at);
    metrics_event(t->metrics, "checkpoint", r->step, text.at);
    str_deinit(&text);
}

/* All ranks: the first gathers what the others hold and writes it. */
static Status save_gathered(Trainer *t, CkptSave *save)
{
    GatheredList list = {0};
    Status status = trainer_gather(t, 1u << STATE_PARAM | BESIDE, &list);
    if (status == OK && t->rank == 0) {
        NamedTensor *tensor = xcalloc(list.n + 1, sizeof *tensor);
        int n_model = 0, n_beside = 0;
        for (size_t i = 0; i < list.n; i++) /* weights first, the others from the end of the list on */
            if (list.at[i].role == STATE_PARAM) tensor[n_model++] = list.at[i].tensor;
        for (size_t i = 0; i < list.n; i++)
            if (list.at[i].role != STATE_PARAM) tensor[n_model + n_beside++] = list.at[i].tensor;
        save->tensors = (CkptTensors){.model = tensor, .n_model = n_model, .optimizer = tensor + n_model, .n_optimizer = n_beside};
        status = ckpt_save(t->store, save);
        free(tensor);
    }
    trainer_gathered_free(&list);
    return status;
}

static Status save_of_ranks(Trainer *t, bool wait)
{
    Arena arena = {0};
    CkptFile files[TRAINER_MAX_FILES];
    CkptResult result;
    CkptSave save = {.step = t->step, .files = files};
    char *json = run_json(t);
    save.run_json = json;
    Status status = t->rank == 0 ? trainer_model_files(t, &arena, files, &save.n_files) : OK;
    if (status == OK) status = save_gathered(t, &save);
    if (t->rank == 0 && ckpt_poll(t->store, &result)) report(t, &result);
    free(json);
    arena_deinit(&arena);
    t->last_save_s = clock_s();
    return wait || status == ERR_COMM ? status : OK;
}

Status trainer_save(Trainer *t, bool wait)
{
    if (t->world) return save_of_ranks(t, wait);
    Arena arena = {0};
    CkptFile files[TRAINER_MAX_FILES];
    CkptResult result;
    CkptSave save = {.step = t->step, .files = files};
    save.tensors = (CkptTensors){.model = t->weights, .n_model = t->n_weights, .optimizer = t->others, .n_optimizer = t->n_others};
    if (ckpt_wait(t->store, &result)) report(t, &result); /* the one before, should it still be under way */
    char *json = run_json(t);
    save.run_json = json;
    Status status = trainer_model_files(t, &arena, files, &save.n_files);
    bool async = t->config->checkpoint.async;
    if (status == OK) status = async ? ckpt_snapshot(t->store, &save) : ckpt_save(t->store, &save);
    if (status == OK && wait && async) {
        if (ckpt_wait(t->store, &result)) {
            report(t, &result);
            if (result.status != OK) status = fail(result.status, "%s", result.message);
        }
    } else if (status == OK && !async) {
        if (ckpt_poll(t->store, &result)) report(t, &result);
    }
    free(json);
    arena_deinit(&arena);
    t->last_save_s = clock_s();
    if (status == OK || wait) return status;
    result = (CkptResult){.step = t->step, .status = status};
    snprintf(result.message, sizeof result.message, "%s", status_message());
    report(t, &result);
    return OK; /* the next one starts afresh */
}

Status trainer_poll_save(Trainer *t)
{
    CkptResult result;
    if (t->store && ckpt_poll(t->store, &result)) report(t, &result);
    return OK;
}

Status trainer_finish_saves(Trainer *t)
{
    CkptResult result;
    if (!t->store || !ckpt_wait(t->store, &result)) return OK;
    report(t, &result);
    return result.status == OK ? OK : fail(result.status, "%s", result.message);
}
