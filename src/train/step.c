/* From a model to the programs of its training step: the passes, in order. */
#include <stdlib.h>

#include "train/train.h"

/* The graph of the whole is built for the sequences of all ranks; the layout's passes cut it. */
static ModelOptions model_options(const StepOptions *o, bool training, int64_t batch)
{
    return (ModelOptions){.purpose = MODEL_LOSS, .batch = batch * mesh_data_ranks(&o->layout.mesh), .seq = o->seq, .dtype = o->dtype,
                          .training = training, .balance = training ? o->balance : BALANCE_NONE,
                          .aux_loss = o->aux_loss, .router_z_loss = training ? o->router_z_loss : 0,
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
    TRY(pass_recompute(g, o->recompute, grads));
    return OK;
}

/* Fusion and pruning come late, when every reader of a value is known; the order of all nodes last. */
static Status finish(Graph **g, const StepOptions *o, const Graph *like)
{
    TRY(pass_layout(g, &o->layout, like));
    TRY(pass_fuse(g));
    TRY(pass_prune(g));
    return pass_overlap(g, &o->layout);
}

/* Forward and backward, and the update in the same graph or, unless it is NULL, in *update. */
static Status build_graphs(const ModelConfig *model, const StepOptions *o, Graph **g, Graph **update)
{
    ParamGrads grads = {0};
    TRY(model_build(model, model_options(o, true, o->micro_batch), g));
    Status status = pass_layout_prepare(g, &o->layout);
    if (status == OK) status = differentiate(g, o, &grads);
    bool sums = o->n_micro > 1 || mesh_size(&o->layout.mesh, MESH_PP) > 1;
    if (status == OK && sums) status = pass_accumulate(*g, &grads);
    if (status == OK && sums && update) {
        status = pass_pipeline(g, &o->layout);
        if (status == OK) status = pass_optimizer_alone(*g, &o->layout, update);
    } else if (status == OK) {
        status = pass_optimizer(*g, &grads);
    }
    param_grads_deinit(&grads);
    return status == OK ? finish(g, o, NULL) : status;
}

/* The last micro-batch and the update, in a program of their own. */
static Status build_last(const ModelConfig *model, const StepOptions *o, Target target, StepPrograms *out)
{
    Graph *g = NULL;
    Status status = build_graphs(model, o, &g, NULL);
    if (status != OK) {
        graph_destroy(g);
        return status;
    }
    out->last = PROGRAM_UPDATE;
    return add_program(out, PROGRAM_UPDATE, g, target);
}

static Status build_step(const ModelConfig *model, const StepOptions *o, Target target, StepPrograms *out)
{
    Graph *g = NULL, *update = NULL;
    const Mesh *mesh = &o->layout.mesh;
    bool last = o->update_last && o->n_micro > 1 && mesh_size(mesh, MESH_PP) == 1 && mesh_ranks(mesh) > 1;
    Status status = build_graphs(model, o, &g, &update);
    if (status == OK && update && !last && mesh_ranks(mesh) > 1) status = finish(&update, o, g);
    if (status != OK) {
        graph_destroy(g);
        graph_destroy(update);
        return status;
    }
    status = add_program(out, PROGRAM_STEP, g, target);
    if (status == OK && mesh_size(mesh, MESH_PP) > 1)
        out->at[out->index[PROGRAM_STEP]]->n_slots =
            (int)pipeline_slots(o->pipeline, mesh_size(mesh, MESH_PP), mesh->coord[MESH_PP], o->n_micro);
    if (!update) return status;
    if (status == OK && !last) return add_program(out, PROGRAM_UPDATE, update, target);
    graph_destroy(update);
    return status == OK ? build_last(model, o, target, out) : status;
}

static Status build_eval(const ModelConfig *model, const StepOptions *o, Target target, StepPrograms *out)
{
    Graph *g;
    TRY(model_build(model, model_options(o, false, o->eval_batch), &g));
    Status status = pass_layout_prepare(&g, &o->layout);
    if (status == OK) status = pass_pipeline(&g, &o->layout);
    if (status == OK) status = finish(&g, o, NULL);
    if (status != OK) {
        graph_destroy(g);
        return status;
    }
    return add_program(out, PROGRAM_EVAL, g, target);
}

static void start(StepPrograms *out)
{
    *out = (StepPrograms){.store = store_create(), .last = PROGRAM_STEP};
    for (int i = 0; i < PROGRAM_MAX; i++) out->index[i] = -1;
}

Status step_programs_build(const ModelConfig *model, const StepOptions *options, Target target, StepPrograms *out)
{
    start(out);
    Status status = build_step(model, options, target, out);
    if (status == OK && options->eval_batch > 0) status = build_eval(model, options, target, out);
    if (status != OK) step_programs_destroy(out);
    return status;
}

void step_programs_destroy(StepPrograms *programs)
{
    for (int i = 0; i < programs->n; i++) program_destroy(programs->at[i]);
    store_destroy(programs->store);
    *programs = (StepPrograms){0};
}

Status step_grads_build(const ModelConfig *model, const StepOptions *options, Target target, StepPrograms *out)
{
    start(out);
    Graph *g;
    ParamGrads grads = {0};
    Status status = model_build(model, model_options(options, true, options->micro_batch), &g);
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
    if (status == OK) status = pass_fuse(&g);
    if (status == OK) status = pass_prune(&g);
    if (status == OK)
        status = add_program(out, PROGRAM_STEP, g, target);
    else
        graph_destroy(g);
    if (status != OK) step_programs_destroy(out);
    return status;
}
