/* What a run keeps across steps, and where it comes from: a checkpoint, a directory of weights, or
 * nothing. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "train/trainer_internal.h"

/* ---- lists ------------------------------------------------------------------------------ */

/* With the prefix that the names have in checkpoints, or as they are in the graph. Before there is
 * a session the tensors have no data yet. */
static NamedTensor *list_roles(Trainer *t, unsigned roles, const char *prefix, int *n)
{
    const Store *store = t->programs.store;
    VEC(NamedTensor) list = {0};
    for (int i = 0; i < store->n_entries; i++) {
        const StateEntry *e = &store->entry[i];
        if (!(roles >> e->role & 1)) continue;
        for (int k = 0; k < e->n_parts; k++)
            VEC_PUSH(&list,
                     ((NamedTensor){arena_printf(&t->arena, "%s%s", prefix, e->part[k].name),
                                    t->session ? session_state_part(t->session, i, k)
                                               : tensor_make(NULL, e->dtype, e->part[k].whole)}));
    }
    NamedTensor *copy = arena_copy(&t->arena, list.at, list.n * sizeof *list.at);
    *n = (int)list.n;
    VEC_FREE(&list);
    return copy;
}

void trainer_list_weights(Trainer *t)
{
    t->weights = list_roles(t, 1u << STATE_PARAM, "", &t->n_weights);
}

/* ---- load ------------------------------------------------------------------------------- */

static double number(const json_t *json, const char *key, double otherwise)
{
    const json_t *v = json_object_get(json, key);
    double x = json_is_number(v) ? json_number_value(v) : otherwise;
    return fabs(x) < 0x1p62 ? x : otherwise; /* also for what is no number */
}

/* That all ranks compute at once, or in canonical mode a leaf's: the router's losses are means over
 * them. */
int64_t trainer_sequences_together(const Trainer *t)
{
    return t->micro_batch * (t->n_leaves ? 1 : mesh_data_ranks(&t->layout.mesh));
}

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
            log_warn("train.%s was %.0f when the checkpoint was written and is %.0f now; the data "
                     "order changes",
                     list[i].key, was, list[i].now);
    }
    double chunks = number(run, "canonical_chunks", t->layout.chunks);
    if (chunks != (double)t->layout.chunks)
        log_warn("train.canonical_chunks was %.0f when the checkpoint was written and is %d now "
                 "(0: not canonical): sums are made in another order",
                 chunks, t->layout.chunks);
    double together = (double)trainer_sequences_together(t),
           was = number(run, "sequences_together", together);
    if (was != together && t->model.n_experts > 0 && t->config->train.balance == RUN_BALANCE_AUX)
        log_warn("the router's balancing loss was a mean over %.0f sequences when the checkpoint "
                 "was written and is over %.0f now; "
                 "train.micro_batch=%.0f would keep it",
                 was, together, was * (double)t->micro_batch / together);
}

/* Two lists, one after the other. */
static NamedTensor *join_lists(Trainer *t, const NamedTensor *a, int n_a, const NamedTensor *b,
                               int n_b)
{
    NamedTensor *both = ARENA_ARRAY(&t->arena, NamedTensor, n_a + n_b);
    if (n_a) memcpy(both, a, sizeof *both * (size_t)n_a);
    if (n_b) memcpy(both + n_a, b, sizeof *both * (size_t)n_b);
    return both;
}

/* One element range of a weight, or of what lies beside the weights. */
static Status read_weight(const void *source, const StateEntry *entry, const StatePart *part,
                          const StateRun *run, void *out)
{
    const Weight *w = weights_find(source, part->name);
    if (!w && entry->role == STATE_BUFFER)
        return OK; /* published models balance otherwise: biases begin at zero */
    if (!w) return fail(ERR_FORMAT, "%s has no %s", weights_path(source), part->name);
    if (!shape_equal(&w->shape, &part->whole))
        return fail(ERR_SHAPE, "%s of %s has another shape", part->name, weights_path(source));
    return weights_read_range(w, run->global, run->n, entry->dtype, out);
}

/* ---- a checkpoint ----------------------------------------------------------------------- */

/* Biases of before they lay with the moments are in the model's files. */
static const SafetensorsEntry *find_saved(const Ckpt *ckpt, const CkptTensor *tensor)
{
    const SafetensorsEntry *e = tensor->optimizer ? ckpt_optimizer_find(ckpt, tensor->name)
                                                  : modeldir_find(ckpt_model(ckpt), tensor->name);
    return e || !tensor->optimizer ? e : ckpt_model_find(ckpt, tensor->name);
}

/* Its hashes are good by now: what does not fit is another model's. */
static Status match(const Trainer *t, const Ckpt *ckpt)
{
    char have[SHAPE_TEXT], want[SHAPE_TEXT];
    int n_model = 0;
    for (int i = 0; i < t->saved.share.n_tensors; i++) {
        const CkptTensor *tensor = &t->saved.share.tensors[i];
        const SafetensorsEntry *e = find_saved(ckpt, tensor);
        n_model += !tensor->optimizer;
        if (e && shape_equal(&e->shape, &tensor->shape)) continue;
        const char *remedy = "the run file's model is not the one of this run: give the run "
                             "another name, or set the model back";
        if (!e)
            return fail(ERR_REFUSED, "%s has no tensor %s; %s", ckpt_path(ckpt), tensor->name,
                        remedy);
        return fail(ERR_REFUSED, "%s: tensor %s is [%s], but [%s] is needed; %s",
                    safetensors_path(e->file), tensor->name, shape_text(&e->shape, have),
                    shape_text(&tensor->shape, want), remedy);
    }
    int unused = modeldir_count(ckpt_model(ckpt)) - n_model;
    if (unused > 0) log_warn("%s holds %d tensors that are not used", ckpt_path(ckpt), unused);
    return OK;
}

typedef struct Loading {
    Trainer *t;
    const Ckpt *ckpt;
    CkptTally *tally; /* of each tensor: what this rank has read of it */
} Loading;

typedef struct LoadingRuns {
    const Ckpt *ckpt;
    const SafetensorsEntry *from;
    const StateEntry *entry;
    char *data;
    CkptTally *tally;
} LoadingRuns;

static Status load_run(void *context, const StateRun *run)
{
    const LoadingRuns *l = context;
    void *out = l->data + (size_t)run->local * dtype_bytes(l->entry->dtype);
    return ckpt_read(l->ckpt, l->from, run->global, run->n, l->entry->dtype, out, l->tally);
}

/* The runs of a tensor that this rank holds, and no others. */
static Status load_tensor(void *context, int i)
{
    const Loading *l = context;
    const Saved *s = &l->t->saved;
    SavedPlace place = s->place[i];
    if (place.saved < 0) return OK;
    int entry = s->entry[place.saved].entry;
    const Store *store = l->t->programs.store;
    LoadingRuns runs = {.ckpt = l->ckpt,
                        .from = find_saved(l->ckpt, &s->share.tensors[i]),
                        .entry = &store->entry[entry],
                        .data = session_state(l->t->session, entry).data,
                        .tally = &l->tally[i]};
    return store_each_part_run(store, entry, place.part, 0, shape_count(&runs.entry->shape),
                               load_run, &runs);
}

/* Every rank sums what it reads; all sums together are those of the manifest, times the ranks that
 * hold the same. */
static Status load_tensors(Trainer *t, const Ckpt *ckpt)
{
    const CkptShare *share = &t->saved.share;
    CkptTally *tally = xcalloc((size_t)share->n_tensors + 1, sizeof *tally);
    Loading l = {t, ckpt, tally};
    int threads = parallel_threads(t->programs.store->bytes),
        most = device_target(t->device).threads;
    Status status = ckpt_has_sums(ckpt) ? OK : ckpt_verify_share(ckpt, t->rank, share->ranks);
    if (status == OK)
        status = parallel_each(share->n_tensors, threads < most ? threads : most, load_tensor, &l);
    status = trainer_accord(t, status);
    if (status == OK) status = trainer_sum_tallies(t, tally, share->n_tensors);
    for (int i = 0; i < share->n_tensors && status == OK; i++)
        status = ckpt_check_tally(ckpt, find_saved(ckpt, &share->tensors[i]), &tally[i]);
    free(tally);
    return status;
}

/* What else the next step depends on: the text that a save or a copy in memory holds. */
static Status take_run(Trainer *t, const char *text, const char *from)
{
    json_t *run = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    if (!run) return fail(ERR_FORMAT, "%s: the state of the run is not JSON", from);
    t->tokens = (int64_t)number(run, "tokens", 0);
    t->steps = (int64_t)number(run, "steps", (double)t->steps);
    if (t->config->train.minutes == 0)
        t->steps = t->config->train.steps; /* the user may have changed it */
    t->bad_steps.mean_loss = number(run, "mean_loss", 0);
    t->bad_steps.n_good = (int64_t)number(run, "good_steps", 0);
    t->bad_steps.n_skipped = (int64_t)number(run, "skipped_steps", 0);
    t->bad_steps.n_in_a_row = (int64_t)number(run, "skipped_in_a_row", 0);
    compare_settings(t, run);
    t->resumed = true;
    json_decref(run);
    log_info("resuming after step %lld from %s", (long long)t->step, from);
    return session_refresh_copies(t->session);
}

static Status take_checkpoint(Trainer *t, const Ckpt *ckpt)
{
    t->step = ckpt_step(ckpt);
    ckpt_store_know(t->store, t->step);
    return take_run(t, ckpt_run_json(ckpt), ckpt_path(ckpt));
}

/* Of each file the first rank looks at all but the tensors' bytes; those who hold them look at
 * these. */
static Status open_candidate(Trainer *t, const char *path, Ckpt **ckpt)
{
    *ckpt = NULL;
    Status status = ckpt_open(path, t->rank == 0 ? CKPT_VERIFY_FILES : CKPT_VERIFY_SIZES, ckpt);
    if (status == OK && !ckpt_has_manifest(*ckpt))
        status = fail(ERR_FORMAT, "%s has no manifest", path);
    return trainer_accord(t, status);
}

/* ERR_REFUSED and ERR_COMM end the search, on all ranks. */
static Status try_candidate(Trainer *t, const char *path)
{
    Ckpt *ckpt;
    Status status = open_candidate(t, path, &ckpt);
    if (status == OK) status = trainer_accord(t, match(t, ckpt));
    if (status == OK) status = load_tensors(t, ckpt);
    if (status == OK) status = trainer_accord(t, take_checkpoint(t, ckpt));
    ckpt_close(ckpt);
    return status;
}

/* The steps to try, as the first rank finds them. */
static Status list_candidates(Trainer *t, Arena *arena, int64_t **steps, int *n)
{
    int64_t count = 0;
    *n = 0;
    Status status = t->rank == 0 ? ckpt_candidates(arena, t->ckpt_dir, steps, n) : OK;
    TRY(trainer_accord(t, status));
    count = *n;
    TRY(trainer_agree(t, &count));
    *n = (int)count;
    if (t->rank > 0) *steps = ARENA_ARRAY(arena, int64_t, *n + 1);
    if (!t->world || *n == 0) return OK;
    return comm_run(t->world, &(CommOp){.kind = COMM_BROADCAST,
                                        .dtype = DTYPE_I64,
                                        .send = *steps,
                                        .recv = *steps,
                                        .count = *n,
                                        .node = "checkpoint"});
}

/* The newest good checkpoint, the same one on all ranks: what one of them finds damaged none uses.
 */
static Status resume_from_disk(Trainer *t, const int64_t *steps, int n, bool *found)
{
    Arena arena = {0};
    Status status = OK;
    for (int i = 0; steps && i < n && status == OK && !*found; i++) {
        const char *path = ckpt_step_path(&arena, t->ckpt_dir, steps[i]);
        Status tried = try_candidate(t, path);
        *found = tried == OK;
        if (*found && i > 0) log_warn("going on from %s instead", path);
        if (tried == ERR_REFUSED || tried == ERR_COMM) status = tried;
        if (tried != OK) log_warn("checkpoint %s is not used: %s", path, status_message());
    }
    if (status == OK && n > 0 && !*found)
        status = fail(ERR_FORMAT, "%s: none of its %d checkpoints is good; the newest: %s",
                      t->ckpt_dir, n, status_message());
    arena_deinit(&arena);
    return status;
}

/* What the hosts hold in memory, where that is newer than what is on the disk. */
static Status resume_from_memory(Trainer *t, int64_t step)
{
    char *json = NULL;
    Status status = trainer_restore_copies(t, &json);
    if (status == OK) {
        t->step = step;
        status = trainer_accord(t, take_run(t, json, "copies in memory"));
    }
    if (status != OK)
        log_warn("copies in memory of step %lld are not used: %s", (long long)step,
                 status_message());
    return status;
}

static Status resume(Trainer *t, bool *found)
{
    Arena arena = {0};
    int64_t *steps = NULL, in_memory = -1;
    int n = 0;
    *found = false;
    Status status = list_candidates(t, &arena, &steps, &n);
    if (status == OK) status = trainer_find_copies(t, steps && n > 0 ? steps[0] : -1, &in_memory);
    if (status == OK && in_memory >= 0) {
        Status tried = resume_from_memory(t, in_memory);
        *found = tried == OK;
        if (tried == ERR_COMM) status = tried;
    }
    trainer_forget_copies(t);
    bool from_memory = *found;
    if (status == OK && !*found) status = resume_from_disk(t, steps, n, found);
    arena_deinit(&arena);
    TRY(status);
    return trainer_accord(t, trainer_open_copies(t, from_memory ? in_memory : -1));
}

/* ---- a directory of weights ------------------------------------------------------------- */

/* Weights, and the expert biases if the directory has them: published models balance otherwise, and
 * begin with biases of zero. */
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
    if (status == ERR_SHAPE)
        status = fail(ERR_REFUSED, "%s; fields beside model.from cannot change a weight's shape",
                      status_message());
    TRY_AS(status, "model.from");
    return OK;
}

/* Several ranks share out the checking of a checkpoint, and each reads what it holds. */
static Status load_share_from(Trainer *t, const Weights *from)
{
    const Ckpt *ckpt = weights_ckpt(from);
    Status status = ckpt ? ckpt_verify_share(ckpt, t->rank, comm_size(t->world)) : OK;
    if (status == OK)
        status = trainer_load_runs(t, 1u << STATE_PARAM | 1u << STATE_BUFFER, read_weight, from);
    return trainer_accord(t, status);
}

static Status start_from(Trainer *t)
{
    Weights *from;
    int n;
    CkptVerify verify = !t->world      ? CKPT_VERIFY_HASHES
                        : t->rank == 0 ? CKPT_VERIFY_FILES
                                       : CKPT_VERIFY_SIZES;
    TRY_AS(weights_open(t->config->model.from, verify, &from), "model.from");
    Status status;
    if (t->world) {
        status = load_share_from(t, from);
    } else {
        const NamedTensor *wanted = list_from(t, from, &n);
        status = weights_load(from, wanted, n);
    }
    if (status == OK) log_info("weights from %s (%s)", t->config->model.from, weights_form(from));
    weights_close(from);
    TRY_AS(status, "model.from");
    return session_refresh_copies(t->session);
}

Status trainer_load_or_init(Trainer *t)
{
    bool found;
    TRY(resume(t, &found));
    if (found) return OK;
    if (*t->config->model.from) return start_from(t);
    return session_init_weights(t->session, (uint64_t)t->config->train.seed);
}
