/* Loading a model for inference: programs, plan, memory, weights. */
#include "infer/infer_internal.h"

#include <stdlib.h>
#include <string.h>

#include "pass/pass.h"

enum { DEFAULT_PREFILL = 64, FEWEST_PREFILL = 16, MOST_PREFILL_ROWS = 8 };

/* ---- programs --------------------------------------------------------------------------- */

/* The layers of this rank: a stage for each rank, in turn. */
static Status cut_layers(Graph **graph, Layout layout)
{
    Pipeline *pipeline;
    Graph *stage;
    int n = mesh_size(&layout.mesh, MESH_PP);
    if (n < 2) return OK;
    TRY(pipeline_create("1f1b", n, 1, 1, &pipeline));
    layout.pipeline = pipeline;
    Status status = pass_pipeline(*graph, &layout, layout.mesh.coord[MESH_PP], true, &stage);
    pipeline_destroy(pipeline);
    TRY(status);
    graph_destroy(*graph);
    *graph = stage;
    return OK;
}

/* What this rank computes of it. */
static Status cut(Graph **graph, const Layout *layout)
{
    TRY(pass_layout_prepare(graph, layout));
    TRY(cut_layers(graph, *layout));
    TRY(pass_layout(graph, layout, NULL));
    return pass_prune(graph);
}

/* batch: of each data rank */
static Status add_program(Infer *infer, ModelPurpose purpose, int64_t batch, int64_t seq,
                          int *index)
{
    const InferOptions *o = &infer->options;
    Graph *graph;
    ModelOptions with = {.purpose = purpose,
                         .batch = batch * infer->data_ranks,
                         .seq = seq,
                         .cache = o->context,
                         .page_tokens = o->page_tokens,
                         .share = o->world ? mesh_size(&o->layout.mesh, MESH_TP) : 0,
                         .dtype = o->dtype,
                         .no_master = true};
    for (int i = 0; i < infer->n_kinds; i++)
        with.pool_pages[i] = infer->kind[i].pages * infer->data_ranks;
    TRY(model_build(&infer->model->config, with, &graph));
    Status status = OK;
    if (o->world) status = cut(&graph, &o->layout);
    if (status == OK) status = pass_fuse(&graph, false);
    if (status != OK) {
        graph_destroy(graph);
        return status;
    }
    TRY(program_compile(graph, device_target(infer->device), infer->store,
                        &infer->program[infer->n_programs]));
    *index = infer->n_programs++;
    return OK;
}

static Status complete_options(const InferModel *model, InferOptions *o)
{
    if (!o->dtype_set) o->dtype = infer_model_dtype(model);
    o->dtype_set = true;
    if (o->dtype != DTYPE_F32 && o->dtype != DTYPE_BF16)
        return fail(ERR_ARG, "inference computes in f32 or bf16, not in %s", dtype_name(o->dtype));
    int64_t most = model->config.max_positions;
    if (o->context <= 0) o->context = most;
    int64_t needed = max_i64(o->context, max_i64(o->logits_tokens, o->score_tokens));
    if (needed > most)
        return fail(ERR_REFUSED,
                    "%s has %lld positions (max_position_embeddings), but %lld are needed",
                    model->path, (long long)most, (long long)needed);
    if (o->score_rows <= 0) o->score_rows = 1;
    if (o->prefill <= 0) o->prefill = DEFAULT_PREFILL;
    /* not so few rows that products would sum them in another way than those of many slots */
    o->prefill = min_i64(o->prefill, max_i64(o->context, FEWEST_PREFILL));
    if (o->ranks_here <= 0) o->ranks_here = 1;
    if (o->threads == 0 && o->ranks_here > 1)
        o->threads = cpu_count() > o->ranks_here ? cpu_count() / o->ranks_here : 1;
    return OK;
}

static Status compile(Infer *infer)
{
    InferOptions *o = &infer->options;
    infer->logits = infer->score = infer->prefill = infer->decode = -1;
    TRY(complete_options(infer->model, o));
    TRY(infer_ranks_setup(infer));
    infer->prefill_rows = min_i64(infer->slots, MOST_PREFILL_ROWS);
    TRY(infer_cache_setup(infer));
    TRY(device_create(
        o->device,
        (CpuOptions){
            .threads = o->threads, .world = o->world, .mesh = o->layout.mesh, .tune = o->tune},
        &infer->device));
    infer->store = store_create();
    if (o->logits_tokens > 0)
        TRY(add_program(infer, MODEL_LOGITS, 1, o->logits_tokens, &infer->logits));
    if (o->score_tokens > 0)
        TRY(add_program(infer, MODEL_LOSS, infer->rows, o->score_tokens, &infer->score));
    if (o->batch <= 0) return OK;
    TRY(add_program(infer, MODEL_DECODE, infer->slots, 1, &infer->decode));
    return add_program(infer, MODEL_PREFILL, infer->prefill_rows, o->prefill, &infer->prefill);
}

static InferPlan make_plan(const Infer *infer)
{
    MemoryPlan memory = session_plan(infer->store, infer->program, infer->n_programs);
    size_t cache = store_role_bytes(infer->store, STATE_CACHE);
    return (InferPlan){.dtype = infer->options.dtype,
                       .context = infer->options.context,
                       .weight_bytes = memory.state_bytes - cache,
                       .cache_bytes = cache,
                       .step_bytes = memory.step_bytes,
                       .io_bytes = memory.io_bytes + infer->exchange_bytes,
                       .total_bytes = memory.total_bytes + infer->exchange_bytes};
}

Status infer_plan(const InferModel *model, const InferOptions *options, InferPlan *plan)
{
    Infer *infer = xcalloc(1, sizeof *infer);
    infer->model = model;
    infer->options = *options;
    Status status = compile(infer);
    if (status == OK) *plan = make_plan(infer);
    infer_destroy(infer);
    return status;
}

/* ---- refusal ---------------------------------------------------------------------------- */

/* The most whole pages of context that fit, by planning with less and less; 0: not even one does.
 */
static int64_t context_that_fits(const Infer *infer, DType dtype, size_t limit)
{
    InferOptions o = infer->options;
    InferPlan plan;
    int64_t fits = 0, too_many = o.context / o.page_tokens + 1;
    o.dtype = dtype;
    while (o.batch > 0 && too_many - fits > 1) {
        int64_t pages = fits + (too_many - fits) / 2;
        o.context = pages * o.page_tokens;
        bool fit = infer_plan(infer->model, &o, &plan) == OK && plan.total_bytes <= limit;
        *(fit ? &fits : &too_many) = pages;
    }
    return fits * o.page_tokens;
}

static void add_remedy(const Infer *infer, size_t limit, Str *out)
{
    int64_t context = context_that_fits(infer, infer->options.dtype, limit);
    if (context > 0) str_printf(out, "; a context of %lld would fit", (long long)context);
    InferOptions o = infer->options;
    InferPlan plan;
    char size[32];
    if (o.dtype == DTYPE_BF16) return;
    o.dtype = DTYPE_BF16;
    if (infer_plan(infer->model, &o, &plan) != OK) return;
    if (plan.total_bytes <= limit) {
        str_printf(out, "; bf16 would fit, in %s", format_bytes((double)plan.total_bytes, size));
        return;
    }
    context = context_that_fits(infer, DTYPE_BF16, limit);
    if (context > 0) str_printf(out, "; bf16 with a context of %lld would fit", (long long)context);
}

static Status check_memory(const Infer *infer)
{
    const InferPlan *p = &infer->plan;
    size_t limit = infer->options.memory_limit_bytes
                       ? infer->options.memory_limit_bytes
                       : device_available_bytes(infer->device) / (size_t)infer->options.ranks_here;
    if (p->total_bytes <= limit) return OK;
    char total[32], weights[32], cache[32], rest[32], have[32];
    Str remedy = {0};
    add_remedy(infer, limit, &remedy);
    Status status = fail(
        ERR_REFUSED, "%s needs %s in %s (weights %s, caches %s, work %s), but %s can be had%s",
        infer->model->path, format_bytes((double)p->total_bytes, total), dtype_name(p->dtype),
        format_bytes((double)p->weight_bytes, weights), format_bytes((double)p->cache_bytes, cache),
        format_bytes((double)(p->step_bytes + p->io_bytes), rest),
        format_bytes((double)limit, have),
        remedy.n ? remedy.at : "; a machine with more memory or a smaller model is needed");
    str_deinit(&remedy);
    return status;
}

/* ---- weights ---------------------------------------------------------------------------- */

static bool is_weight(const StateEntry *e)
{
    return e->role == STATE_PARAM || e->role == STATE_BUFFER;
}

static Status load_weights(Infer *infer)
{
    Arena arena = {0};
    int n = 0, count = 0;
    for (int i = 0; i < infer->store->n_entries; i++) count += infer->store->entry[i].n_parts;
    NamedTensor *tensors = ARENA_ARRAY(&arena, NamedTensor, count + 1);
    for (int i = 0; i < infer->store->n_entries; i++) {
        const StateEntry *e = &infer->store->entry[i];
        for (int k = 0; is_weight(e) && k < e->n_parts; k++)
            tensors[n++] = (NamedTensor){e->part[k].name, session_state_part(infer->session, i, k)};
    }
    Status status = weights_load(infer->model->weights, tensors, n);
    arena_deinit(&arena);
    TRY(status);
    return session_store_states(infer->session);
}

/* ---- entry ------------------------------------------------------------------------------ */

static Status load(Infer *infer)
{
    TRY(compile(infer));
    infer->plan = make_plan(infer);
    TRY(check_memory(infer));
    TRY(session_create(infer->device, infer->store, infer->program, infer->n_programs,
                       &infer->session));
    TRY(infer_ranks_start(infer));
    infer->length = xcalloc((size_t)max_i64(infer->options.batch, 1), sizeof *infer->length);
    infer_cache_start(infer);
    infer->sampler = sampler_create(infer->model->config.vocab);
    if (infer->model->weights)
        return infer->options.world ? infer_load_share(infer) : load_weights(infer);
    return session_init_weights(infer->session,
                                infer->model->seed); /* a training run's start with this seed */
}

Status infer_create(const InferModel *model, InferOptions options, Infer **out)
{
    Infer *infer = xcalloc(1, sizeof *infer);
    infer->model = model;
    infer->options = options;
    Status status = load(infer);
    if (status == OK)
        *out = infer;
    else
        infer_destroy(infer);
    return status;
}

void infer_destroy(Infer *infer)
{
    if (!infer) return;
    session_destroy(infer->session);
    for (int i = 0; i < infer->n_programs; i++) program_destroy(infer->program[i]);
    store_destroy(infer->store);
    device_destroy(infer->device);
    sampler_destroy(infer->sampler);
    infer_cache_end(infer);
    free(infer->length);
    free(infer->exchange);
    free(infer);
}

InferPlan infer_planned(const Infer *infer) { return infer->plan; }
const char *infer_device_text(const Infer *infer) { return device_text(infer->device); }
