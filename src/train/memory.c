/* The programs of the run, their memory, and the refusal of what does not fit, with what would. */
#include <stdlib.h>

#include "train/trainer_internal.h"

enum { PICTURE_COLUMNS = 120 };

size_t trainer_total_bytes(const Trainer *t)
{
    MemoryPlan plan = session_plan(t->programs.store, t->programs.at, t->programs.n);
    return plan.total_bytes + t->snapshot_bytes + trainer_copies_bytes(t) + t->prefetch_bytes;
}

static size_t role(const Trainer *t, StateRole which)
{
    return store_role_bytes(t->programs.store, which);
}

static void line(Str *out, const char *what, size_t bytes)
{
    char text[32];
    if (bytes)
        str_printf(out, "  %-28s %14zu  %s\n", what, bytes, format_bytes((double)bytes, text));
}

void trainer_plan_text(const Trainer *t, Str *out)
{
    MemoryPlan plan = session_plan(t->programs.store, t->programs.at, t->programs.n);
    str_add(out, "memory, bytes\n");
    line(out, "weights (f32)", role(t, STATE_PARAM));
    line(out, "working weights", role(t, STATE_COPY));
    line(out, "Adam moments", role(t, STATE_ADAM_M) + role(t, STATE_ADAM_V));
    line(out, "gradient sums", role(t, STATE_GRAD) + role(t, STATE_GRAD_PART));
    line(out, "expert biases and loads", role(t, STATE_BUFFER) + role(t, STATE_LOAD));
    line(out, "step: activations, gradients", plan.step_bytes);
    line(out, "packed weights", plan.packed_bytes);
    line(out, "step inputs", plan.io_bytes);
    line(out, "prefetched batches", t->prefetch_bytes);
    line(out, "checkpoint snapshot", t->snapshot_bytes);
    line(out, "copies in memory", trainer_copies_bytes(t));
    line(out, "total", trainer_total_bytes(t));
    str_add(out, "largest at the peak of a step\n");
    const Program *step = t->programs.at[0];
    for (int i = 0; i < step->n_top; i++) line(out, step->top[i].what, step->top[i].bytes);
    if (t->pipeline) train_pipeline_report(t->pipeline, step, PICTURE_COLUMNS, out);
    trainer_canonical_text(t, out);
    if (t->n_leaves) str_add(out, "\n");
}

/* ---- what would fit --------------------------------------------------------------------- */

typedef struct Remedy {
    const char *text;
    StepOptions options;
    bool no_snapshot, no_copies;
} Remedy;

static size_t needed_with(Trainer *t, const Remedy *r)
{
    StepPrograms p;
    Pipeline *pipeline = NULL; /* of as many micro-batches */
    StepOptions o = r->options;
    if (train_pipeline(t->config, o.n_micro, &pipeline) != OK) return SIZE_MAX;
    o.layout.pipeline = pipeline;
    Status status = step_programs_build(&t->model, &o, device_target(t->device), &p);
    pipeline_destroy(pipeline);
    if (status != OK) return SIZE_MAX;
    size_t bytes = session_plan(p.store, p.at, p.n).total_bytes;
    step_programs_destroy(&p);
    if (device_has_own_memory(t->device)) return bytes;
    bytes += t->prefetch_bytes;
    if (!r->no_snapshot) bytes += t->snapshot_bytes;
    if (!r->no_copies) bytes += trainer_copies_bytes(t);
    return bytes;
}

/* Tries ever stronger measures, each on top of those before it. */
static const char *find_remedy(Trainer *t, size_t limit)
{
    Remedy r = {.options = t->options};
    Str text = {0};
    const char *join = "";
#define ATTEMPT(change, words)                                                                     \
    do {                                                                                           \
        change;                                                                                    \
        str_printf(&text, "%s%s", join, words);                                                    \
        join = " ";                                                                                \
        if (needed_with(t, &r) <= limit) goto found;                                               \
    } while (0)
    if (t->options.pack_weights && !device_has_own_memory(t->device))
        ATTEMPT(r.options.pack_weights = false, "train.pack_weights=false");
    bool own = device_has_own_memory(t->device); /* then these are the host's */
    if (!own && trainer_copies_bytes(t)) ATTEMPT(r.no_copies = true, "checkpoint.memory_every=0");
    if (!own && t->snapshot_bytes) ATTEMPT(r.no_snapshot = true, "checkpoint.async=false");
    if (mesh_ranks(&t->layout.mesh) > 1 && !t->layout.blocking)
        ATTEMPT((r.options.layout.blocking = true, r.options.update_last = false),
                "parallel.overlap=false");
    if (mesh_size(&t->layout.mesh, MESH_CP) > 1 && !t->layout.ring)
        ATTEMPT(r.options.layout.ring = true, "parallel.context=ring");
    if (r.options.library_attention)
        ATTEMPT(r.options.library_attention = false, "train.attention=own");
    if (r.options.recompute != RECOMPUTE_FULL)
        ATTEMPT(r.options.recompute = RECOMPUTE_FULL, "train.recompute=full");
    if (r.options.dtype != DTYPE_BF16)
        ATTEMPT(r.options.dtype = DTYPE_BF16, "train.precision=bf16");
    if (r.options.micro_batch > 1) {
        r.options.n_micro *= r.options.micro_batch;
        ATTEMPT((r.options.micro_batch = r.options.eval_batch = 1), "train.micro_batch=1");
    }
#undef ATTEMPT
    str_deinit(&text);
    return NULL;
found:;
    const char *copy = arena_strdup(&t->arena, text.at);
    str_deinit(&text);
    return copy;
}

static Status check_fits(Trainer *t)
{
    size_t need = trainer_total_bytes(t), limit = (size_t)t->config->train.memory_limit;
    bool own = device_has_own_memory(t->device);
    if (own) need = session_plan(t->programs.store, t->programs.at, t->programs.n).total_bytes;
    if (!limit)
        limit = device_available_bytes(t->device) /
                (size_t)(t->ranks_here > 0 && !own ? t->ranks_here : 1);
    if (need <= limit) return OK;
    char a[32], b[32];
    const char *remedy = find_remedy(t, limit);
    format_bytes((double)need, a);
    format_bytes((double)limit, b);
    if (remedy)
        return fail(ERR_REFUSED, "the run needs %s of memory, %s may be used; it fits with: %s", a,
                    b, remedy);
    return fail(ERR_REFUSED,
                "the run needs %s of memory, %s may be used; no setting makes this model fit here: "
                "take a smaller model, or train.seq below %lld",
                a, b, (long long)t->options.seq);
}

/* Sizes alone: the snapshot is reserved once the session is there. */
static size_t snapshot_bytes(Trainer *t)
{
    trainer_list_parts(t);
    return t->config->checkpoint.async ? ckpt_snapshot_bytes(t->saved.part, t->saved.n) : 0;
}

/* What stays in 16 bits is worth knowing: its sizes are no multiples of 16, or it is of experts. */
static void tell_fp8(const Trainer *t)
{
    int eight, others;
    if (t->options.fp8 == FP8_NONE || t->rank) return;
    step_count_products(&t->programs, &eight, &others);
    log_info("fp8: %d of %d products of layers have 8 bits, scaled by %ss%s", eight, eight + others,
             t->options.fp8 == FP8_ROW ? "row" : "block",
             t->model.n_experts ? "; those of experts have 16" : "");
}

Status trainer_setup_programs(Trainer *t)
{
    const RunTrain *r = &t->config->train;
    t->options = train_step_options(t->config, &t->layout, t->dtype, t->val_steps > 0);
    if (t->options.balance == BALANCE_BIAS) t->model.expert_bias = true;
    TRY(train_check_divides(t->config, &t->model));
    Status status = step_programs_build(&t->model, &t->options, device_target(t->device),
                                        &t->programs);
    if (status == ERR_ARG || status == ERR_SHAPE ||
        status == ERR_UNSUPPORTED) /* no graph can be what the run file asks for */
        return fail(ERR_REFUSED,
                    "this model cannot be built with train.micro_batch %lld and train.seq %lld: %s",
                    (long long)t->micro_batch, (long long)r->seq, status_message());
    TRY(status);
    tell_fp8(t);
    TRY(trainer_check_attention(t));
    t->prefetch_bytes += trainer_pipeline_bytes(t);
    t->snapshot_bytes = snapshot_bytes(t);
    TRY(trainer_plan_copies(t));
    TRY(trainer_check_from(t));
    return check_fits(t);
}
