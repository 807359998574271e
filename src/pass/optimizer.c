/* The update as nodes: gradients summed over micro-batches, their norm, clipping, AdamW, expert
 * bias. */
#include "pass/pass_internal.h"

#include <stdlib.h>
#include <string.h>

static ValueId master_of(const Graph *g, ValueId leaf)
{
    const Value *v = graph_value(g, leaf);
    return v->role == STATE_COPY ? v->master : leaf;
}

/* A state beside a parameter: its name with a suffix, its parts with the same suffix. */
static ValueId state_beside(Graph *g, ValueId param, const char *suffix, StateRole role)
{
    const char *name = arena_printf(&g->arena, "%s%s", graph_value(g, param)->name, suffix);
    ValueId found = graph_find_state(g, name);
    if (value_ok(found)) return found;
    ValueId id = graph_state(g, name, DTYPE_F32, graph_value(g, param)->shape, role);
    const Value *p = graph_value(g, param);
    Value *v = graph_value(g, id);
    v->master = param;
    v->twin = p->twin;
    v->part = arena_copy(&g->arena, p->part, sizeof *p->part * (size_t)p->n_parts);
    v->n_parts = p->n_parts;
    for (int k = 0; k < v->n_parts; k++) {
        v->part[k].name = arena_printf(&g->arena, "%s%s", p->part[k].name, suffix);
        v->part[k].init_deviation = v->part[k].init_value = 0;
    }
    return id;
}

Status pass_accumulate(Graph *graph, ParamGrads *grads)
{
    graph->phase = PHASE_BACKWARD;
    for (int i = 0; i < grads->n; i++) {
        ValueId master = master_of(graph, grads->at[i].leaf);
        ValueId state = state_beside(graph, master, ".grad", STATE_GRAD), sum;
        graph_set_scope(graph, "accumulate");
        TRY(op_accumulate(graph, state, grads->at[i].grad, &sum));
        grads->at[i].grad = sum;
    }
    graph_set_scope(graph, NULL);
    return pass_check(graph, "accumulate");
}

/* Gradients of one leaf stand behind one another: how many before the i-th are of its leaf. */
static int earlier_of_leaf(const ParamGrads *grads, int i)
{
    int n = 0;
    while (n < i && grads->at[i - n - 1].leaf.id == grads->at[i].leaf.id) n++;
    return n;
}

/* How many from the i-th on are of its leaf. */
static int grads_of_leaf(const ParamGrads *grads, int i)
{
    int n = 1;
    while (i + n < grads->n && grads->at[i + n].leaf.id == grads->at[i].leaf.id) n++;
    return n;
}

static const char *sum_suffix(Graph *g, const ParamGrads *grads, int i)
{
    int n = earlier_of_leaf(grads, i);
    return n ? arena_printf(&g->arena, ".grad%d", n + 1) : ".grad";
}

/* The sums that wait, beside the sum of all. */
static int parts_beside(Graph *g, ValueId sum, const char *suffix, int64_t n_micro,
                        ValueId part[NODE_MAX_OUT])
{
    int n = op_accumulate_leaf_parts(n_micro);
    for (int k = 0; k < n && k < NODE_MAX_OUT; k++) {
        ValueId master = graph_value(g, sum)->master;
        part[k] = state_beside(g, master, arena_printf(&g->arena, "%s.%d", suffix, k),
                               STATE_GRAD_PART);
        graph_value(g, part[k])->master = sum;
    }
    return n;
}

Status pass_accumulate_leaves(Graph *graph, int64_t n_micro, ParamGrads *grads)
{
    if (n_micro < 1 || n_micro & (n_micro - 1) || n_micro > 1 << NODE_MAX_OUT)
        return fail(ERR_REFUSED,
                    "%lld micro-batches of a rank cannot be summed as a balanced tree: a power of "
                    "two up to %d can",
                    (long long)n_micro, 1 << NODE_MAX_OUT);
    ValueId micro = graph_input(graph, MICRO_INPUT, DTYPE_I32,
                                shape_make(1, (int64_t[]){1}, (Axis[]){AXIS_ANY}));
    graph->phase = PHASE_BACKWARD;
    for (int i = 0; i < grads->n; i++) {
        const char *suffix = sum_suffix(graph, grads, i);
        ValueId state = state_beside(graph, master_of(graph, grads->at[i].leaf), suffix,
                                     STATE_GRAD),
                part[NODE_MAX_OUT];
        int n = parts_beside(graph, state, suffix, n_micro, part);
        graph_set_scope(graph, "accumulate");
        TRY(op_accumulate_leaf(graph, state, grads->at[i].grad, micro, n, part,
                               &grads->at[i].grad));
    }
    graph_set_scope(graph, NULL);
    return pass_check(graph, "accumulate");
}

static ValueId hyper_input(Graph *g)
{
    ValueId hyper = graph_find_input(g, "hyper");
    if (value_ok(hyper)) return hyper;
    return graph_input(g, "hyper", DTYPE_F32,
                       shape_make(1, (int64_t[]){HYPER_COUNT}, (Axis[]){AXIS_ANY}));
}

static ValueId copy_of(const Graph *g, ValueId leaf)
{
    return graph_value(g, leaf)->role == STATE_COPY ? leaf : NO_VALUE;
}

static Status update_param(Graph *g, const ParamGrad *p, bool zero_grad, ValueId factor,
                           ValueId hyper)
{
    ValueId w = master_of(g, p->leaf);
    ValueId m = state_beside(g, w, ".adam_m", STATE_ADAM_M),
            v = state_beside(g, w, ".adam_v", STATE_ADAM_V);
    AdamWAttr attr = {.decay = graph_value(g, w)->decay, .zero_grad = zero_grad};
    return op_adamw(g, w, m, v, p->grad, copy_of(g, p->leaf), factor, hyper, attr);
}

/* The newest version of a state: what the last node made that updated it in place, or the state
 * itself. */
static ValueId latest_version(const Graph *g, ValueId state)
{
    for (int v = g->n_values - 1; v > state.id; v--)
        if (g->value[v].kind == VALUE_TEMP && graph_root(g, (ValueId){v}).id == state.id)
            return (ValueId){v};
    return state;
}

/* The expert biases of the graph move by the loads that the routers counted. */
static Status update_expert_biases(Graph *g, ValueId hyper)
{
    int n_values = g->n_values;
    for (int i = 1; i < n_values; i++) {
        if (g->value[i].kind != VALUE_STATE || g->value[i].role != STATE_LOAD) continue;
        ValueId load = latest_version(g, (ValueId){i});
        TRY(op_expert_bias_update(g, g->value[i].master, load, hyper));
        TRY(op_clear(g, load));
    }
    return OK;
}

/* What becomes of the gradients after they were read. */
typedef enum AfterUpdate {
    GRADS_DIE,        /* they are temporaries */
    GRADS_ZEROED,     /* states, which AdamW clears on its walk */
    GRADS_ZERO_APART, /* states that may be read through a reduction: cleared by themselves */
} AfterUpdate;

/* The gradient of the i-th's leaf: what there is of it here, and on another rank of a pipeline. */
static Status make_whole(Graph *g, const ParamGrads *grads, int i, ValueId *whole)
{
    *whole = grads->at[i].grad;
    for (int k = 1; k < grads_of_leaf(grads, i); k++)
        TRY(op_add_whole(g, *whole, grads->at[i + k].grad, whole));
    return pass_pipeline_join(g, grads->at[i].grad, whole);
}

/* Makes the gradients whole, and their norm, in which each counts once. whole [grads->n]: of a leaf
 * with several the first is set. */
static Status emit_norm(Graph *g, const ParamGrads *grads, ValueId *whole, ValueId *norm)
{
    ValueId *counted = xcalloc((size_t)grads->n + 1, sizeof *counted);
    int n = 0;
    Status status = OK;
    for (int i = 0; i < grads->n && status == OK; i += grads_of_leaf(grads, i)) {
        status = make_whole(g, grads, i, &whole[i]);
        if (pass_pipeline_counts(g, grads->at[i].grad)) counted[n++] = whole[i];
    }
    if (status == OK) status = op_grad_norm(g, n, counted, norm);
    free(counted);
    return status;
}

/* What is added to another is no operand of its own. */
static bool is_cleared_by_adamw(const ParamGrads *grads, AfterUpdate after, int i)
{
    return after == GRADS_ZEROED && grads_of_leaf(grads, i) == 1;
}

static Status emit_parts(Graph *g, const ParamGrads *grads, AfterUpdate after, ValueId *whole)
{
    ValueId norm, factor, hyper = hyper_input(g);
    g->phase = PHASE_BACKWARD; /* the host looks at the norm before the update phase begins */
    graph_set_layer(g, -1);
    graph_set_scope(g, "grad_norm");
    TRY(emit_norm(g, grads, whole, &norm));
    graph_output(g, "grad_norm", norm);
    g->phase = PHASE_UPDATE;
    graph_set_scope(g, "clip");
    TRY(op_clip_factor(g, norm, hyper, &factor));
    graph_set_scope(g, "adamw");
    for (int i = 0; i < grads->n; i += grads_of_leaf(grads, i))
        TRY(update_param(g, &(ParamGrad){grads->at[i].leaf, whole[i]},
                         is_cleared_by_adamw(grads, after, i), factor, hyper));
    for (int i = 0; after != GRADS_DIE && i < grads->n; i++)
        if (!is_cleared_by_adamw(grads, after, i - earlier_of_leaf(grads, i)))
            TRY(op_clear(g, grads->at[i].grad));
    graph_set_scope(g, "balance");
    TRY(update_expert_biases(g, hyper));
    graph_set_scope(g, NULL);
    return pass_check(g, "optimizer");
}

static Status emit_update(Graph *g, const ParamGrads *grads, AfterUpdate after)
{
    ValueId *whole = xcalloc((size_t)grads->n + 1, sizeof *whole);
    Status status = emit_parts(g, grads, after, whole);
    free(whole);
    return status;
}

Status pass_optimizer(Graph *graph, const ParamGrads *grads)
{
    bool sums = grads->n > 0 &&
                graph_value(graph, graph_root(graph, grads->at[0].grad))->kind == VALUE_STATE;
    return emit_update(graph, grads, sums ? GRADS_ZERO_APART : GRADS_DIE);
}

static ValueId copy_state(Graph *to, const Graph *from, ValueId id)
{
    const Value *old = graph_value(from, id);
    ValueId found = graph_find_state(to, old->name);
    if (value_ok(found)) return found;
    ValueId fresh = graph_state(to, old->name, old->dtype, old->shape, old->role);
    Value *v = graph_value(to, fresh);
    v->decay = old->decay;
    v->twin = old->twin;
    v->place[MESH_PP] = old->place[MESH_PP];
    v->part = arena_copy(&to->arena, old->part, sizeof *old->part * (size_t)old->n_parts);
    v->n_parts = old->n_parts;
    for (int k = 0; k < v->n_parts; k++)
        v->part[k].name = arena_strdup(&to->arena, old->part[k].name);
    return fresh;
}

/* Only canonical graphs have several of a leaf. */
static void add_grad(ParamGrads *grads, ParamGrad p, bool canonical)
{
    int at = grads->n;
    for (int i = 0; canonical && i < grads->n; i++)
        if (grads->at[i].leaf.id == p.leaf.id) at = i + 1;
    memmove(&grads->at[at + 1], &grads->at[at], (size_t)(grads->n - at) * sizeof *grads->at);
    grads->at[at] = p;
    grads->n++;
}

Status pass_optimizer_alone(const Graph *like, const Layout *layout, Graph **update)
{
    Graph *g = graph_create("update");
    g->mesh.size[MESH_PP] = mesh_size(&layout->mesh, MESH_PP);
    g->mesh.coord[MESH_PP] = layout->mesh.coord[MESH_PP];
    g->canonical = like->canonical;
    ParamGrads grads = {.at = xcalloc((size_t)like->n_values, sizeof *grads.at)};
    for (int i = 1; i < like->n_values; i++) {
        const Value *v = &like->value[i];
        if (v->kind != VALUE_STATE) continue;
        if (v->role == STATE_GRAD) {
            ValueId master = copy_state(g, like, v->master),
                    grad = copy_state(g, like, (ValueId){i});
            graph_value(g, grad)->master = master;
            add_grad(&grads, (ParamGrad){.leaf = master, .grad = grad}, g->canonical);
        } else if (v->role == STATE_LOAD) {
            ValueId bias = copy_state(g, like, v->master), load = copy_state(g, like, (ValueId){i});
            graph_value(g, load)->master = bias;
        }
    }
    for (int i = 1; i < like->n_values; i++) { /* working copies are the leaves of their masters */
        const Value *v = &like->value[i];
        if (v->kind != VALUE_STATE || v->role != STATE_COPY) continue;
        ValueId master = graph_find_state(g, graph_value(like, v->master)->name);
        for (int k = 0; k < grads.n && value_ok(master); k++) {
            if (grads.at[k].leaf.id != master.id) continue;
            grads.at[k].leaf = copy_state(g, like, (ValueId){i});
            graph_value(g, grads.at[k].leaf)->master = master;
        }
    }
    Status status = emit_update(g, &grads,
                                mesh_ranks(&layout->mesh) > 1 ? GRADS_ZERO_APART : GRADS_ZEROED);
    param_grads_deinit(&grads);
    if (status != OK) {
        graph_destroy(g);
        return status;
    }
    *update = g;
    return OK;
}
