/* Sharding along one mesh axis: the graph of the whole becomes the graph of one rank.
 *
 * First the leaves are cut, as the plan says: inputs by the names of their axes, weights by theirs
 * or flat. Then every node is added anew over the cut operands. Its op's cutting rule says how the
 * operands must lie; where they lie otherwise, a collective is put in front, once for all readers.
 * Shapes follow by themselves. Gradients that updates read are brought to lie as their weights do
 * as soon as they are made, so that the sum over ranks can start early and is made once. */
#include "pass/pass_internal.h"
#include "pass/ring.h"
#include "pass/shard.h"

#include <stdlib.h>
#include <string.h>

/* A value brought to another place; some anew in each phase and layer (move), so that what is
 * gathered is given up between forward and backward. */
typedef struct Moved {
    ValueId from, to;
    Place place;
    Phase phase;
    int layer;
} Moved;

typedef struct Sharding {
    const ShardPlan *plan;
    Rewrite rewrite;
    bool *has_copy; /* per leaf of the new graph: some state is its working copy */
    bool *is_wanted;
    Place *wanted; /* per old value: how it is to lie as soon as it is made */
    ValueId *sum;  /* per old value: the state itself (or its version), where readers are given its
                      reduction */
    VEC(Moved) moved;
} Sharding;

/* ---- leaves ----------------------------------------------------------------------------- */

static int axis_in(const Shape *shape, unsigned axes)
{
    for (int i = 0; i < shape->rank; i++)
        if (axes >> shape->axis[i] & 1) return i;
    return -1;
}

static Status cannot_cut(const ShardPlan *plan, const char *name, const Shape *shape, int dim,
                         int n)
{
    return fail(ERR_REFUSED,
                "parallel.%s %d: %s has %lld %s, which cannot be cut into %d equal parts",
                mesh_axis_name(plan->axis), plan->n, name, (long long)shape->dim[dim],
                axis_name(shape->axis[dim]), n);
}

/* Parts that are the matrices of single experts have one axis less than the state that stacks them.
 */
static int stacked_axes(const Value *v) { return v->shape.rank - v->part[0].shape.rank; }

static void place_parts(Value *v)
{
    size_t offset = 0;
    for (int k = 0; k < v->n_parts; k++) {
        v->part[k].offset_bytes = offset;
        offset += (size_t)shape_count(&v->part[k].shape) * dtype_bytes(v->dtype);
    }
}

/* Whole experts: some of the parts. */
static Status share_parts(const ShardPlan *plan, Value *v)
{
    if (v->shape.dim[0] % plan->n || v->n_parts % plan->n)
        return cannot_cut(plan, v->name, &v->shape, 0, plan->n);
    v->n_parts /= plan->n;
    v->part += plan->rank * v->n_parts;
    v->shape.dim[0] /= plan->n;
    place_parts(v);
    return OK;
}

static Status cut_parts(const ShardPlan *plan, Value *v, int dim)
{
    int stacked = stacked_axes(v), at = dim - stacked;
    if (at < 0) return share_parts(plan, v);
    int64_t sum = 0;
    for (int k = 0; k < v->n_parts; k++) {
        StatePart *part = &v->part[k];
        int n = plan->n * part_blocks(part, at);
        if (part->shape.dim[at] % n) return cannot_cut(plan, part->name, &part->shape, at, n);
        part->shape.dim[at] /= plan->n;
        sum += part->shape.dim[at];
    }
    v->shape.dim[dim] = stacked ? v->shape.dim[dim] / plan->n : sum;
    place_parts(v);
    return OK;
}

static Status cut_leaf(const ShardPlan *plan, Value *v, Place place)
{
    v->place[plan->axis] = place;
    if (!place_is_cut(place)) return OK;
    if (place.dim == PLACE_FLAT) {
        v->whole = v->shape;
        v->shape = shape_make(1, (int64_t[]){shard_flat_part(shape_count(&v->whole), plan->n)},
                              (Axis[]){AXIS_ANY});
    } else if (v->n_parts) {
        TRY(cut_parts(plan, v, place.dim));
    } else {
        int n = plan->n * (plan->axis == MESH_CP ? 2 : 1);
        if (v->shape.dim[place.dim] % n) return cannot_cut(plan, v->name, &v->shape, place.dim, n);
        v->shape.dim[place.dim] /= plan->n;
    }
    stride_contiguous(&v->shape, v->stride);
    return OK;
}

static bool follows_weight(const Value *v)
{
    return v->role == STATE_PARAM || v->role == STATE_COPY || v->role == STATE_ADAM_M ||
           v->role == STATE_ADAM_V;
}

/* Sums over micro-batches lie as what is added to them, known when that is made; or as another
 * graph of the step has decided. */
static bool decided_later(const Value *v)
{
    return v->role == STATE_GRAD || v->role == STATE_GRAD_PART || v->role == STATE_LOAD;
}

static void find_copies(Sharding *s)
{
    const Graph *g = s->rewrite.to;
    s->has_copy = xcalloc((size_t)g->n_values, sizeof *s->has_copy);
    for (int i = 1; i < g->n_values; i++)
        if (g->value[i].role == STATE_COPY) s->has_copy[g->value[i].master.id] = true;
}

/* With working copies nothing but the update reads the weights themselves. */
static bool is_flat(const Sharding *s, const Value *v)
{
    const ShardPlan *plan = s->plan;
    if (!plan->zero) return plan->flat && follows_weight(v);
    return v->role == STATE_ADAM_M || v->role == STATE_ADAM_V ||
           (v->role == STATE_PARAM && s->has_copy[v - s->rewrite.to->value]);
}

static Status cut_state(const Sharding *s, Value *v)
{
    const ShardPlan *plan = s->plan;
    const Graph *g = s->rewrite.to;
    if (decided_later(v)) {
        ValueId twin = plan->like ? graph_find_state(plan->like, v->name) : NO_VALUE;
        return value_ok(twin) ? cut_leaf(plan, v, graph_value(plan->like, twin)->place[plan->axis])
                              : OK;
    }
    if (v->role == STATE_PIPE) { /* as the value that is sent through it */
        if (op_pipe_carries_summand(g, &v->shape, plan->axis))
            return cut_leaf(plan, v, (Place){PLACE_PARTIAL, 0});
        int cut = axis_in(&v->shape, plan->input_axes | (plan->sequence ? 1u << AXIS_SEQ : 0));
        return cut >= 0 ? cut_leaf(plan, v, (Place){PLACE_CUT, (int8_t)cut}) : OK;
    }
    if (!follows_weight(v) && v->role != STATE_CACHE) return OK;
    /* a cache is of sequences: it lies as what is written into it */
    int dim = axis_in(&v->part[0].shape, v->role == STATE_CACHE
                                             ? plan->state_axes | plan->input_axes
                                             : plan->state_axes);
    /* a router's rows are experts too, but every rank routes to all: only stacks of matrices are
     * shared out */
    if (plan->experts && v->shape.rank == 3 && v->shape.axis[0] == AXIS_EXPERTS)
        dim = 0;
    else if (dim >= 0)
        dim += stacked_axes(v);
    if (dim >= 0) return cut_leaf(plan, v, (Place){PLACE_CUT, (int8_t)dim});
    return is_flat(s, v) ? cut_leaf(plan, v, (Place){PLACE_CUT, PLACE_FLAT}) : OK;
}

static Status cut_leaves(Sharding *s)
{
    Graph *g = s->rewrite.to;
    find_copies(s);
    for (int i = 1; i < g->n_values; i++) {
        Value *v = &g->value[i];
        if (v->kind == VALUE_STATE) {
            TRY(cut_state(s, v));
        } else if (v->kind == VALUE_INPUT) {
            int dim = axis_in(&v->shape, s->plan->input_axes);
            if (dim >= 0) TRY(cut_leaf(s->plan, v, (Place){PLACE_CUT, (int8_t)dim}));
        }
    }
    return OK;
}

/* ---- moving values ---------------------------------------------------------------------- */

Status shard_contiguous(Graph *g, ValueId x, ValueId *y)
{
    const Value *v = graph_value(g, x);
    *y = x;
    return stride_is_contiguous(&v->shape, v->stride) ? OK : op_concat(g, 1, &x, y);
}

static Status move_anew(Sharding *s, ValueId x, Place to, ValueId *y)
{
    Graph *g = s->rewrite.to;
    MeshAxis axis = s->plan->axis;
    Place from = graph_value(g, x)->place[axis];
    if (to.kind != PLACE_PARTIAL) TRY(shard_contiguous(g, x, &x));
    if (from.kind == PLACE_PARTIAL && to.kind == PLACE_SAME) return op_all_reduce(g, axis, x, y);
    if (from.kind == PLACE_PARTIAL && to.kind == PLACE_CUT)
        return op_reduce_scatter(g, axis, x, to.dim, y);
    if (from.kind == PLACE_SAME && to.kind == PLACE_CUT) return op_cut(g, axis, x, to.dim, y);
    if (from.kind == PLACE_CUT && to.kind != PLACE_PARTIAL) {
        TRY(op_all_gather(g, axis, x, y));
        return to.kind == PLACE_CUT ? op_cut(g, axis, *y, to.dim, y) : OK;
    }
    char a[16], b[16];
    return fail(ERR_UNSUPPORTED, "what lies %s along %s cannot be made to lie %s",
                place_text(from, a), mesh_axis_name(axis), place_text(to, b));
}

/* Sequences that the ranks of tp have in parts are kept in parts for the backward pass
 * (Korthikanti 2022). */
static bool is_gathered_again(const Sharding *s, ValueId x, Place to)
{
    Place from = graph_value(s->rewrite.to, x)->place[s->plan->axis];
    return s->plan->sequence && from.kind == PLACE_CUT && to.kind == PLACE_SAME;
}

static Status move(Sharding *s, ValueId x, Place to, ValueId *y)
{
    Graph *g = s->rewrite.to;
    bool state = graph_value(g, graph_root(g, x))->kind == VALUE_STATE,
         again = state || is_gathered_again(s, x, to);
    for (size_t i = s->moved.n; i-- > 0;) {
        const Moved *m = &s->moved.at[i];
        if (m->from.id != x.id || !place_equal(m->place, to)) continue;
        if (again && (m->phase != g->phase || m->layer != g->layer)) continue;
        *y = m->to;
        return OK;
    }
    TRY(move_anew(s, x, to, y));
    Moved moved = {.from = x, .to = *y, .place = to, .phase = g->phase, .layer = g->layer};
    VEC_PUSH(&s->moved, moved);
    return OK;
}

/* ---- what is wanted at once ------------------------------------------------------------- */

static Place place_of(const Sharding *s, ValueId old)
{
    return graph_value(s->rewrite.to, rewrite_get(&s->rewrite, old))->place[s->plan->axis];
}

static void want(Sharding *s, ValueId old, Place place)
{
    s->is_wanted[old.id] = true;
    s->wanted[old.id] = place;
}

enum { ADAMW_M = 1, ADAMW_GRAD = 3 };

/* How a sum of gradients over micro-batches is to lie; same: it does not matter. */
static Place place_of_sum(const Sharding *s, Place master)
{
    if (!s->plan->zero) return master;
    return s->plan->zero > 1 ? (Place){PLACE_CUT, PLACE_FLAT} : (Place){PLACE_SAME, 0};
}

static void find_wanted(Sharding *s)
{
    const Graph *g = s->rewrite.from;
    for (int i = 1; i < g->n_nodes; i++) {
        const Node *node = &g->node[i];
        /* tokens are cut, before they become rows: those are padded, and what cuts them later along
         * the batch could not tell how many there are */
        if (s->plan->axis == MESH_TP && op_expert_sends_columns(node))
            want(s, node->in[0], (Place){PLACE_CUT, 1});
        if (node_is(node, "adamw")) want(s, node->in[ADAMW_GRAD], place_of(s, node->in[ADAMW_M]));
        if (!op_adds_to_state(node)) continue;
        ValueId master = graph_value(g, graph_root(g, node->in[0]))->master;
        if (!value_ok(master) || graph_value(g, graph_root(g, node->in[0]))->role != STATE_GRAD)
            continue;
        Place place = place_of_sum(s, place_of(s, master));
        if (place_is_cut(place) || s->plan->at_once) want(s, node->in[1], place);
    }
    for (int i = 0; i < g->n_outputs; i++) want(s, g->output[i].value, (Place){PLACE_SAME, 0});
}

static bool is_output(const Graph *g, ValueId v)
{
    for (int i = 0; i < g->n_outputs; i++)
        if (g->output[i].value.id == v.id) return true;
    return false;
}

/* An output of the graph may stay cut along the batch: each rank reads its own; or, when the plan
 * says so, a summand. */
static Status bring_wanted(Sharding *s, ValueId old)
{
    if (!value_ok(old) || !s->is_wanted[old.id]) return OK;
    ValueId at = rewrite_get(&s->rewrite, old);
    Place is = graph_value(s->rewrite.to, at)->place[s->plan->axis], to = s->wanted[old.id];
    if (place_equal(is, to) || (is.kind == PLACE_CUT && mesh_axis_is_data(s->plan->axis)))
        return OK;
    if (is.kind == PLACE_PARTIAL && s->plan->leaves && is_output(s->rewrite.from, old)) return OK;
    if (graph_value(s->rewrite.to, graph_root(s->rewrite.to, at))->kind == VALUE_STATE)
        s->sum[old.id] = at;
    TRY(move(s, at, to, &at));
    rewrite_set(&s->rewrite, old, at);
    return OK;
}

/* ---- nodes ------------------------------------------------------------------------------ */

/* The place of a sum over micro-batches follows from the weight's and from what is added. */
static Status decide_sum(Sharding *s, const Node *node, const ValueId *in)
{
    Graph *g = s->rewrite.to;
    MeshAxis axis = s->plan->axis;
    Value *sum = graph_value(g, in[0]);
    if (!op_adds_to_state(node) || sum->kind != VALUE_STATE || !decided_later(sum) || s->plan->like)
        return OK;
    Place x = graph_value(g, in[1])->place[axis], place = {PLACE_SAME, 0};
    if (sum->role == STATE_GRAD && value_ok(sum->master))
        place = place_of_sum(s, graph_value(g, sum->master)->place[axis]);
    if (!place_is_cut(place) && x.kind == PLACE_PARTIAL) place = x;
    for (int k = ACCUMULATE_FIRST_PART; k < node->n_in; k++)
        TRY(cut_leaf(s->plan, graph_value(g, in[k]), place));
    return cut_leaf(s->plan, sum, place);
}

typedef struct Operands {
    ValueId *in;
    const Value **value;
    Place *place, *want;
    bool *drop;
    int n;
} Operands;

static Operands operands_of(const Sharding *s, const Node *node)
{
    size_t n = (size_t)node->n_in + 1; /* one piece of memory for all five lists */
    Operands o = {
        .value = xcalloc(n, sizeof *o.value + sizeof *o.in + 2 * sizeof *o.place + sizeof *o.drop),
        .n = node->n_in};
    o.in = (ValueId *)(void *)(o.value + n);
    o.place = (Place *)(void *)(o.in + n);
    o.want = o.place + n;
    o.drop = (bool *)(o.want + n);
    for (int i = 0; i < node->n_in; i++) o.in[i] = rewrite_get(&s->rewrite, node->in[i]);
    if (node_is(node, "clear"))
        o.in[0] = s->sum[node->in[0].id].id ? s->sum[node->in[0].id] : o.in[0];
    return o;
}

static void read_places(const Sharding *s, Operands *o)
{
    const Graph *g = s->rewrite.to;
    for (int i = 0; i < o->n; i++) {
        o->value[i] = value_ok(o->in[i]) ? graph_value(g, o->in[i]) : NULL;
        if (o->value[i]) o->place[i] = o->value[i]->place[s->plan->axis];
    }
}

static void free_operands(Operands *o) { free(o->value); /* the others lie behind it */ }

/* Collectives in front of the node; pointers to values move while they are added. */
static Status move_operands(Sharding *s, Operands *o)
{
    int kept = 0;
    for (int i = 0; i < o->n; i++) {
        if (o->drop[i]) continue;
        if (value_ok(o->in[i]) && !place_equal(o->place[i], o->want[i]))
            TRY(move(s, o->in[i], o->want[i], &o->in[i]));
        o->want[kept] = o->want[i];
        o->in[kept++] = o->in[i];
    }
    o->n = kept;
    read_places(s, o);
    return OK;
}

/* A state that every rank holds whole, but of which this rank updated its part: all parts go back
 * into it. */
static Status gather_updated(Sharding *s, const Node *old, const ValueId *out)
{
    Graph *g = s->rewrite.to;
    MeshAxis axis = s->plan->axis;
    for (int k = 0; s->plan->zero && k < old->n_out; k++) {
        ValueId before = value_ok(old->out[k]) ? graph_value(s->rewrite.from, old->out[k])->base
                                               : NO_VALUE;
        if (!value_ok(before)) continue;
        ValueId state = rewrite_get(&s->rewrite, before);
        if (graph_value(g, state)->kind != VALUE_STATE ||
            graph_value(g, out[k])->base.id == state.id)
            continue;
        TRY(op_all_gather_into(g, axis, state, out[k], NULL));
    }
    return OK;
}

/* The old node's outputs are these from now on. */
static void set_outputs(Sharding *s, const Node *old, const ValueId *out)
{
    Graph *g = s->rewrite.to;
    for (int k = 0; k < old->n_out; k++) {
        if (!value_ok(old->out[k])) continue;
        rewrite_set(&s->rewrite, old->out[k], out[k]);
        const char *name = graph_value(s->rewrite.from, old->out[k])->name;
        if (name) graph_value(g, out[k])->name = arena_strdup(&g->arena, name);
    }
}

static Status add_ring(Sharding *s, const Node *old, Operands *o)
{
    ValueId out[NODE_MAX_OUT];
    read_places(s, o);
    for (int i = 0; i < o->n; i++) o->want[i] = ring_operand(i);
    TRY(move_operands(s, o));
    TRY(ring_attention(s->rewrite.to, s->plan, old, o->in, out));
    set_outputs(s, old, out);
    return OK;
}

static Status add_node(Sharding *s, const Node *old, Operands *o)
{
    Graph *g = s->rewrite.to;
    const ShardPlan *plan = s->plan;
    Place hint[NODE_MAX_OUT] = {{0}};
    ValueId out[NODE_MAX_OUT];
    for (int k = 0; k < old->n_out; k++)
        if (value_ok(old->out[k]) && s->is_wanted[old->out[k].id])
            hint[k] = s->wanted[old->out[k].id];
    read_places(s, o);
    CutCtx ctx = {.graph = g,
                  .op = old->op,
                  .attr = old->attr,
                  .axis = plan->axis,
                  .n = plan->n,
                  .rank = plan->rank,
                  .sequence = plan->sequence,
                  .n_in = o->n,
                  .in = o->value,
                  .place = o->place,
                  .hint = hint,
                  .want = o->want,
                  .drop = o->drop};
    TRY(graph_cut(&ctx));
    TRY(move_operands(s, o));
    ctx.n_in = o->n;
    void *attr = old->op->attr_bytes ? arena_copy(&g->arena, old->attr, old->op->attr_bytes) : NULL;
    if (old->op->cut_attr) TRY(old->op->cut_attr(&ctx, attr));
    TRY(graph_add(g, old->op, attr, o->in, o->n, out));
    Node *fresh = &g->node[g->n_nodes - 1];
    for (int k = 0; k < old->n_out; k++)
        if (!value_ok(old->out[k])) fresh->out[k] = NO_VALUE; /* was pruned */
    set_outputs(s, old, out);
    return old->op->flags & OP_EFFECT ? gather_updated(s, old, out) : OK;
}

static Status shard_node(Sharding *s, int index)
{
    const Node *old = &s->rewrite.from->node[index];
    Graph *g = s->rewrite.to;
    g->phase = old->phase;
    g->layer = old->layer;
    g->scope = rewrite_scope(&s->rewrite, old->name);
    Operands o = operands_of(s, old);
    Status status = decide_sum(s, old, o.in);
    if (status == OK)
        status = ring_takes(s->plan, old) ? add_ring(s, old, &o) : add_node(s, old, &o);
    free_operands(&o);
    for (int k = 0; k < old->n_out && status == OK; k++) status = bring_wanted(s, old->out[k]);
    return status;
}

/* Sums that are read as states by the update: brought to their weights' place before anything reads
 * them. */
static Status bring_states(Sharding *s)
{
    const Graph *from = s->rewrite.from;
    s->rewrite.to->phase = PHASE_BACKWARD;
    s->rewrite.to->layer = -1;
    s->rewrite.to->scope = "reduce";
    for (int i = 1; i < from->n_values; i++) {
        if (from->value[i].kind != VALUE_STATE || from->value[i].role != STATE_GRAD) continue;
        TRY(bring_wanted(s, (ValueId){i}));
    }
    return OK;
}

Status pass_shard(Graph **graph, const ShardPlan *plan)
{
    if (plan->n < 2) return OK;
    Sharding s = {.plan = plan};
    int n_values = (*graph)->n_values;
    rewrite_begin(&s.rewrite, *graph);
    s.rewrite.to->mesh.size[plan->axis] = plan->n;
    s.rewrite.to->mesh.coord[plan->axis] = plan->rank;
    s.is_wanted = xcalloc((size_t)n_values, sizeof *s.is_wanted);
    s.wanted = xcalloc((size_t)n_values, sizeof *s.wanted);
    s.sum = xcalloc((size_t)n_values, sizeof *s.sum);
    Status status = cut_leaves(&s);
    if (status == OK) {
        find_wanted(&s);
        status = bring_states(&s);
    }
    for (int i = 1; i < (*graph)->n_nodes && status == OK; i++) status = shard_node(&s, i);
    free(s.is_wanted);
    free(s.wanted);
    free(s.sum);
    free(s.has_copy);
    VEC_FREE(&s.moved);
    if (status != OK) {
        rewrite_abort(&s.rewrite);
        return status;
    }
    TRY(rewrite_end(&s.rewrite, graph));
    return pass_check(*graph, mesh_axis_name(plan->axis));
}
