/* From a model to the programs of its training step: the passes, in order. */
#include <stdlib.h>
#include <string.h>

#include "train/step.h"

/* In canonical mode as many as can share the heads under any layout, so that the sums over copies
 * of a key head are the same under all: chunks is a power of two. */
static int64_t ranks_that_share(const StepOptions *o, const ModelConfig *model)
{
    int64_t n = o->layout.chunks;
    if (n == 0) return mesh_size(&o->layout.mesh, MESH_TP);
    while (model->n_heads % n) n /= 2;
    return n;
}

/* The graph of the whole is built for the sequences of all ranks; the layout's passes cut it. */
static ModelOptions model_options(const StepOptions *o, const ModelConfig *model, bool training,
                                  int64_t batch)
{
    return (ModelOptions){.purpose = MODEL_LOSS,
                          .batch = batch * mesh_data_ranks(&o->layout.mesh),
                          .seq = o->seq,
                          .dtype = o->dtype,
                          .library_attention = o->library_attention,
                          .training = training,
                          .share = ranks_that_share(o, model),
                          .balance = training ? o->balance : BALANCE_NONE,
                          .aux_loss = o->aux_loss,
                          .router_z_loss = training ? o->router_z_loss : 0,
                          .z_loss = training ? o->z_loss : 0};
}

static Status add_program(StepPrograms *out, int which, Graph *graph, Target target)
{
    TRY(program_compile(graph, target, out->store, &out->at[out->n]));
    out->index[which] = out->n++;
    return OK;
}

static Status differentiate(Graph **g, const StepOptions *o, ParamGrads *grads)
{
    TRY(pass_autodiff(*g, "loss", grads));
    TRY(pass_recompute(g, o->recompute, mesh_size(&o->layout.mesh, MESH_PP) > 1, grads));
    return pass_canonical(g, &o->layout, grads);
}

/* Fusion and pruning come late, when every reader of a value is known; the order of all nodes last.
 */
static Status finish(Graph **g, const StepOptions *o, bool splits, const Graph *like)
{
    TRY(pass_layout(g, &o->layout, like));
    TRY(pass_fp8(g, o->fp8));
    TRY(pass_fuse(g, mesh_size(&o->layout.mesh, MESH_PP) > 1));
    TRY(pass_prune(g));
    if (splits) TRY(pass_split_backward(g));
    return pass_overlap(g, &o->layout);
}

/* ---- stages ----------------------------------------------------------------------------- */

/* The graphs of a rank, one for each of its stages; one of the whole where there is no pipeline. */
typedef struct StageGraphs {
    Graph *at[MAX_OWN_STAGES];
    int like[MAX_OWN_STAGES]; /* itself; or an earlier one that is built in its place: then its own
                                 graph has nothing but its states */
    int n;
} StageGraphs;

static void destroy_graphs(StageGraphs *graphs)
{
    for (int i = 0; i < graphs->n; i++) graph_destroy(graphs->at[i]);
    graphs->n = 0;
}

Status step_check_pipeline(const StepOptions *o)
{
    const Pipeline *p = o->layout.pipeline;
    int ranks = mesh_size(&o->layout.mesh, MESH_PP);
    if (ranks < 2) return OK;
    if (!p) return fail(ERR_ARG, "a pipeline of %d ranks without a schedule", ranks);
    if (p->n_ranks != ranks || p->n_micro != o->n_micro)
        return fail(ERR_ARG,
                    "schedule %s is for %d ranks and %d micro-batches, not for %d and %lld",
                    p->name, p->n_ranks, p->n_micro, ranks, (long long)o->n_micro);
    int own = pipeline_stages_of(p, o->layout.mesh.coord[MESH_PP], NULL);
    if (own > MAX_OWN_STAGES)
        return fail(ERR_REFUSED, "schedule %s has %d stages on a rank, at most %d are possible",
                    p->name, own, MAX_OWN_STAGES);
    return OK;
}

/* How the names of the states begin of a stage for which another is built. */
static const char *twin_prefix(int k, char text[16])
{
    snprintf(text, 16, "twin %d ", k);
    return text;
}

/* Which of the rank's stages is built for its k-th. */
static int built_for(const Layout *layout, const int *stage, int k)
{
    int like = k;
    for (int j = k - 1; j >= 0 && layout->stage_like; j--)
        if (layout->stage_like[stage[k]] == stage[j]) like = j;
    return like;
}

/* The graphs of this rank's stages; without a pipeline the whole itself, which is then *whole no
 * longer. */
static Status cut_stages(Graph **whole, const StepOptions *o, bool one_at_a_time, StageGraphs *out)
{
    const Pipeline *p = o->layout.pipeline;
    Status status = OK;
    if (mesh_size(&o->layout.mesh, MESH_PP) < 2) {
        *out = (StageGraphs){.at = {*whole}, .n = 1};
        *whole = NULL;
        return OK;
    }
    int *stage = xcalloc((size_t)p->n_stages, sizeof *stage),
        n = pipeline_stages_of(p, o->layout.mesh.coord[MESH_PP], stage);
    for (int k = 0; k < n && status == OK; k++) {
        char prefix[16];
        out->like[k] = built_for(&o->layout, stage, k);
        if (out->like[k] < k)
            out->at[k] = pass_pipeline_twin(out->at[out->like[k]], twin_prefix(k, prefix));
        else
            status = pass_pipeline(*whole, &o->layout, stage[k], one_at_a_time, &out->at[k]);
        if (status == OK) out->n = k + 1;
    }
    free(stage);
    return status;
}

static Status finish_stages(StageGraphs *graphs, const StepOptions *o, bool splits)
{
    for (int k = 0; k < graphs->n; k++) {
        char prefix[16];
        int like = graphs->like[k];
        if (like == k) {
            TRY(finish(&graphs->at[k], o, splits, NULL));
            continue;
        }
        graph_destroy(graphs->at[k]);
        graphs->at[k] = pass_pipeline_twin(graphs->at[like], twin_prefix(k, prefix));
    }
    return OK;
}

/* The k-th stage's program: of its graph, which it takes; or that of the stage which is built for
 * it, on states of its own. */
static Status add_stage(StepPrograms *out, int first, const StageGraphs *graphs, int k,
                        Target target, const int *slots)
{
    Program **at = &out->at[out->n];
    char prefix[16];
    if (graphs->like[k] == k) {
        TRY(program_compile_slots(graphs->at[k], target, out->store, slots, at));
    } else {
        graph_destroy(graphs->at[k]);
        *at = out->at[first + graphs->like[k]];
        TRY(store_add_twin(out->store, (*at)->graph, twin_prefix(k, prefix)));
    }
    out->n++;
    return OK;
}

static Status add_all(StepPrograms *out, StageGraphs *graphs, Target target, const int *slots)
{
    int first = out->n, n = graphs->n;
    Status status = OK;
    graphs->n = 0; /* each is its program's from now on */
    for (int k = 0; k < n; k++) {
        if (status == OK)
            status = add_stage(out, first, graphs, k, target, slots);
        else
            graph_destroy(graphs->at[k]);
    }
    return status;
}

static Status add_stages(StepPrograms *out, const StepOptions *o, StageGraphs *graphs,
                         Target target)
{
    const Pipeline *p = mesh_size(&o->layout.mesh, MESH_PP) > 1 ? o->layout.pipeline : NULL;
    int slots[PIPELINE_SPANS];
    for (int span = 0; p && span < PIPELINE_SPANS; span++)
        slots[span] = pipeline_slots(p, o->layout.mesh.coord[MESH_PP], (PipelineSpan)span);
    out->index[PROGRAM_STEP] = out->n;
    out->n_stages = graphs->n;
    return add_all(out, graphs, target, p ? slots : NULL);
}

/* ---- step ------------------------------------------------------------------------------- */

/* The update as a graph of its own, over the states of these graphs: cut already (like), or not
 * (NULL). */
static Status make_update(const StageGraphs *graphs, const StepOptions *o, Graph **update)
{
    Graph *all = graphs->n > 1 ? pass_pipeline_states(graphs->at, graphs->n) : NULL;
    Status status = pass_optimizer_alone(all ? all : graphs->at[0], &o->layout, update);
    graph_destroy(all);
    return status;
}

static Status finish_update(const StageGraphs *graphs, const StepOptions *o, Graph **update)
{
    if (!*update || mesh_ranks(&o->layout.mesh) == 1) return OK;
    Graph *all = graphs->n > 1 ? pass_pipeline_states(graphs->at, graphs->n) : NULL;
    Status status = finish(update, o, false, all ? all : graphs->at[0]);
    graph_destroy(all);
    return status;
}

/* The graph of one micro-batch, of all ranks, with its update; sums: it sums its gradients in
 * states; last: and has the update all the same. */
static Status build_whole(const ModelConfig *model, const StepOptions *o, bool sums, bool last,
                          Graph **out)
{
    ParamGrads grads = {0};
    Graph *g;
    TRY(model_build(model, model_options(o, model, true, o->micro_batch), &g));
    Status status = pass_layout_prepare(&g, &o->layout);
    if (status == OK) status = differentiate(&g, o, &grads);
    if (status == OK && sums)
        status = o->layout.chunks ? pass_accumulate_leaves(g, o->n_micro, &grads)
                                  : pass_accumulate(g, &grads);
    if (status == OK && (!sums || last)) status = pass_optimizer(g, &grads);
    param_grads_deinit(&grads);
    if (status == OK)
        *out = g;
    else
        graph_destroy(g);
    return status;
}

/* The last micro-batch and the update, in a program of their own. */
static Status build_last(const ModelConfig *model, const StepOptions *o, Target target,
                         StepPrograms *out)
{
    Graph *g;
    TRY(build_whole(model, o, true, true, &g));
    Status status = finish(&g, o, false, NULL);
    if (status != OK) {
        graph_destroy(g);
        return status;
    }
    out->last = PROGRAM_UPDATE;
    return add_program(out, PROGRAM_UPDATE, g, target);
}

static bool has_pipeline(const StepOptions *o) { return mesh_size(&o->layout.mesh, MESH_PP) > 1; }
static bool sums_gradients(const StepOptions *o) { return o->n_micro > 1 || has_pipeline(o); }

static Status build_step(const ModelConfig *model, const StepOptions *o, Graph **whole,
                         Target target, StepPrograms *out)
{
    bool sums = sums_gradients(o);
    target.packs = o->pack_weights;
    bool last = o->update_last && o->n_micro > 1 && !has_pipeline(o) &&
                mesh_ranks(&o->layout.mesh) > 1;
    Graph *update = NULL;
    StageGraphs stages = {0};
    TRY(step_check_pipeline(o));
    Status status = cut_stages(whole, o, false, &stages);
    if (status == OK && sums && !last) status = make_update(&stages, o, &update);
    bool splits = has_pipeline(o) && o->layout.pipeline->splits;
    if (status == OK) status = finish_stages(&stages, o, splits);
    if (status == OK) status = finish_update(&stages, o, &update);
    if (status == OK) status = add_stages(out, o, &stages, target);
    destroy_graphs(&stages);
    if (status == OK && last) return build_last(model, o, target, out);
    if (status == OK && update) return add_program(out, PROGRAM_UPDATE, update, target);
    graph_destroy(update);
    return status;
}

static Status build_whole_eval(const ModelConfig *model, const StepOptions *o, Graph **out)
{
    Graph *g;
    TRY(model_build(model, model_options(o, model, false, o->eval_batch), &g));
    Status status = pass_layout_prepare(&g, &o->layout);
    if (status == OK) status = pass_canonical(&g, &o->layout, NULL);
    if (status == OK)
        *out = g;
    else
        graph_destroy(g);
    return status;
}

static Status build_eval(const StepOptions *o, Graph **whole, Target target, StepPrograms *out)
{
    StageGraphs stages = {0};
    Status status = cut_stages(whole, o, true, &stages);
    if (status == OK) status = finish_stages(&stages, o, false);
    out->index[PROGRAM_EVAL] = out->n;
    if (status == OK) status = add_all(out, &stages, target, NULL);
    destroy_graphs(&stages);
    return status;
}

static void start(StepPrograms *out)
{
    *out = (StepPrograms){.store = store_create(), .last = PROGRAM_STEP};
    for (int i = 0; i < PROGRAM_MAX; i++) out->index[i] = -1;
}

Status step_whole_build(const ModelConfig *model, const StepOptions *o, StepWhole *out)
{
    *out = (StepWhole){0};
    TRY(build_whole(model, o, sums_gradients(o), false, &out->step));
    Status status = o->eval_batch > 0 ? build_whole_eval(model, o, &out->eval) : OK;
    if (status != OK) step_whole_destroy(out);
    return status;
}

void step_whole_destroy(StepWhole *whole)
{
    graph_destroy(whole->step);
    graph_destroy(whole->eval);
    *whole = (StepWhole){0};
}

void step_count_products(const StepPrograms *programs, int *eight, int *others)
{
    *eight = *others = 0;
    for (int i = 0; i < programs->n_stages; i++) {
        const Graph *g = programs->at[programs->index[PROGRAM_STEP] + i]->graph;
        for (int k = 1; k < g->n_nodes; k++) {
            if (g->node[k].layer < 0) continue;
            if (strncmp(g->node[k].op->name, "linear_8", 8) == 0)
                ++*eight;
            else if (strncmp(g->node[k].op->name, "linear", 6) == 0)
                *others += graph_value(g, g->node[k].in[0])->dtype == DTYPE_BF16;
        }
    }
}

/* Widths that no product of 8 bits has: better told than trained in 16. */
static Status check_fp8(const StepOptions *o, const StepPrograms *programs)
{
    int eight, others;
    if (o->fp8 == FP8_NONE) return OK;
    step_count_products(programs, &eight, &others);
    if (eight) return OK;
    return fail(ERR_REFUSED,
                "train.precision fp8: of the layers' %d products none has sizes that are multiples "
                "of %d (tokens of a micro-batch, widths, each as a rank has them); take bf16",
                others, LINEAR_8_ALIGN);
}

Status step_rank_build(const ModelConfig *model, const StepOptions *options, StepWhole *whole,
                       Target target, StepPrograms *out)
{
    start(out);
    Status status = build_step(model, options, &whole->step, target, out);
    if (status == OK && options->eval_batch > 0)
        status = build_eval(options, &whole->eval, target, out);
    if (status == OK) status = check_fp8(options, out);
    if (status != OK) step_programs_destroy(out);
    return status;
}

Status step_programs_build(const ModelConfig *model, const StepOptions *options, Target target,
                           StepPrograms *out)
{
    StepWhole whole;
    TRY(step_whole_build(model, options, &whole));
    Status status = step_rank_build(model, options, &whole, target, out);
    step_whole_destroy(&whole);
    return status;
}

void step_programs_destroy(StepPrograms *programs)
{
    for (int i = programs->n - 1; i >= 0; i--) { /* one may serve several stages */
        bool again = false;
        for (int k = 0; k < i; k++) again |= programs->at[k] == programs->at[i];
        if (!again) program_destroy(programs->at[i]);
    }
    store_destroy(programs->store);
    *programs = (StepPrograms){0};
}

Status step_grads_build(const ModelConfig *model, const StepOptions *options, Target target,
                        StepPrograms *out)
{
    start(out);
    Graph *g;
    ParamGrads grads = {0};
    Status status = model_build(model, model_options(options, model, true, options->micro_batch),
                                &g);
    if (status != OK) {
        step_programs_destroy(out);
        return status;
    }
    status = differentiate(&g, options, &grads);
    for (int i = 0; i < grads.n && status == OK; i++) {
        const Value *leaf = graph_value(g, grads.at[i].leaf);
        const Value *master = leaf->role == STATE_COPY ? graph_value(g, leaf->master) : leaf;
        graph_output(g, master->name, grads.at[i].grad);
    }
    param_grads_deinit(&grads);
    if (status == OK) status = pass_fp8(&g, options->fp8);
    if (status == OK) status = pass_fuse(&g, false);
    if (status == OK) status = pass_prune(&g);
    if (status == OK)
        status = add_program(out, PROGRAM_STEP, g, target);
    else
        graph_destroy(g);
    if (status != OK) step_programs_destroy(out);
    return status;
}
