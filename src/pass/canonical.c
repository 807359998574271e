/* Canonical mode: every layout makes every sum in the same order, so that all of them give the same
 * bits.
 *
 * Over the batch. The batch is a fixed number of leaves, a power of two, each of the sequences that
 * a rank computes at once; kernels then see the same shapes under every layout. A gradient is the
 * sum over leaves as one balanced binary tree over their numbers. What is summed first has the
 * lowest bits of the number: ep (whose experts' gradients can only be summed where the experts
 * are), then fsdp, then a rank's micro-batches one after another (pass_accumulate_leaves), then dp,
 * whose ranks exchange sums once a step (with zero 2 in every micro-batch, before they are summed);
 * layout_leaf says which leaves are whose. pass_layout cuts in that order. Router losses are each
 * leaf's own.
 *
 * Over what tensor parallelism cuts. Products whose contraction it may cut are summed in a fixed
 * number of chunks (ops/chunks.h), here; so is the vocabulary (tensor.c). Partial sums are made
 * whole at once (graph/cut.c), in f32. Norms and residuals are not cut along the sequence.
 *
 * Over parts of a sequence nothing is summed: what would be sees whole sequences, on every rank of
 * cp (graph/cut.c).
 *
 * The norm of the gradient is an exact sum (ops/exact_sum.h). Losses of leaves are outputs of the
 * graph, each rank's own: the host adds them up in the order of leaves. */
#include "pass/pass_internal.h"

#include <stdlib.h>

int64_t layout_leaf(const Layout *layout, int64_t n_micro, int64_t micro)
{
    const Mesh *m = &layout->mesh;
    int64_t ep = mesh_size(m, MESH_EP), fsdp = mesh_size(m, MESH_FSDP), dp = mesh_size(m, MESH_DP),
            at_dp = m->coord[MESH_DP];
    int64_t block = layout->zero > 1 ? micro * dp + at_dp : at_dp * n_micro + micro;
    return (block * fsdp + m->coord[MESH_FSDP]) * ep + m->coord[MESH_EP];
}

typedef struct Canonical {
    Rewrite rewrite;
    int chunks;
} Canonical;

static bool is_cut_by_tensor(Axis axis)
{
    return 1u << axis &
           (1u << AXIS_HEADS | 1u << AXIS_KV_HEADS | 1u << AXIS_FFN | 1u << AXIS_VOCAB);
}

/* ---- what a contraction is made of ------------------------------------------------------ */

static const Value *weight_of(const Graph *g, ValueId w)
{
    const Value *v = graph_value(g, graph_root(g, w));
    return v->kind == VALUE_STATE ? v : NULL;
}

/* Of a matrix [O I] or [I O], whose rows may be those of several weights behind one another, and
 * each of these may hold blocks. False: nothing that tp cuts. */
static bool matrix_segments(const Value *w, int axis, Chunks *c)
{
    if (!w || w->shape.rank != 2 || w->n_parts < 1) return false;
    if (!is_cut_by_tensor(w->part[0].shape.axis[axis])) return false;
    int n_parts = axis == 0 ? w->n_parts : 1;
    c->n_segments = 0;
    for (int p = 0; p < n_parts; p++) {
        int blocks = part_blocks(&w->part[p], axis);
        for (int k = 0; k < blocks; k++) {
            if (c->n_segments == CHUNK_SEGMENTS) return false;
            c->width[c->n_segments++] = w->part[p].shape.dim[axis] / blocks;
        }
    }
    return true;
}

/* Of experts [E . .]: blocks behind one another (gate and up), or several matrices of each expert.
 * Those are parts of the master only. */
static bool expert_segments(const Graph *g, const Value *w, int axis, Chunks *c)
{
    if (!w || w->shape.rank != 3 || !is_cut_by_tensor(w->shape.axis[axis])) return false;
    const Value *master = value_ok(w->master) ? graph_value(g, w->master) : w;
    bool last = axis == w->shape.rank - 1, stacked = master->part[0].shape.rank == 2;
    int halves = last && w->part[0].halves > 1 ? w->part[0].halves : 1;
    if (stacked && !last) halves = (int)(w->shape.dim[axis] / master->part[0].shape.dim[0]);
    c->n_segments = halves;
    for (int s = 0; s < halves && s < CHUNK_SEGMENTS; s++)
        c->width[s] = w->shape.dim[axis] / halves;
    return halves <= CHUNK_SEGMENTS;
}

static Status check_chunks(const Chunks *c, const char *name)
{
    for (int s = 0; s < c->n_segments; s++)
        if (c->width[s] % c->n)
            return fail(ERR_REFUSED,
                        "train.canonical_chunks %d does not divide the %lld columns over which %s "
                        "is summed; a smaller power of two may",
                        c->n, (long long)c->width[s], name);
    return OK;
}

/* ---- nodes ------------------------------------------------------------------------------ */

static Status take_over(Canonical *c, const Node *node, ValueId y)
{
    Graph *g = c->rewrite.to;
    DType dtype = graph_value(c->rewrite.from, node->out[0])->dtype;
    if (graph_value(g, y)->dtype != dtype) TRY(op_cast(g, y, dtype, &y));
    rewrite_set(&c->rewrite, node->out[0], y);
    return OK;
}

static Status chunk_product(Canonical *c, const Node *node, bool *done)
{
    Graph *g = c->rewrite.to;
    bool dx = node_is(node, "linear_dx");
    const Value *w = weight_of(c->rewrite.from, node->in[1]);
    Chunks chunks = {.n = c->chunks};
    ValueId x = rewrite_get(&c->rewrite, node->in[0]),
            weight = rewrite_get(&c->rewrite, node->in[1]), y;
    if (!matrix_segments(w, dx ? 0 : 1, &chunks)) return OK;
    TRY(check_chunks(&chunks, w->name));
    *done = true;
    TRY(dx ? op_chunked_linear_dx(g, x, weight, &chunks, &y)
           : op_chunked_linear(g, x, weight, &chunks, &y));
    return take_over(c, node, y);
}

static Status chunk_grouped(Canonical *c, const Node *node, bool *done)
{
    int axis = op_grouped_contraction(node);
    const Value *w = weight_of(c->rewrite.from, node->in[1]);
    Chunks chunks = {.n = c->chunks};
    ValueId in[3], y;
    if (!expert_segments(c->rewrite.from, w, axis, &chunks)) return OK;
    TRY(check_chunks(&chunks, w->name));
    *done = true;
    for (int k = 0; k < 3; k++) in[k] = rewrite_get(&c->rewrite, node->in[k]);
    TRY(op_chunked_grouped_linear(c->rewrite.to, in[0], in[1], in[2], axis, &chunks, &y));
    return take_over(c, node, y);
}

static Status rewrite_node(Canonical *c, int i)
{
    const Node *node = &c->rewrite.from->node[i];
    Graph *g = c->rewrite.to;
    bool done = false;
    g->phase = node->phase;
    g->layer = node->layer;
    graph_set_scope(g, node->name);
    if (node_is(node, "linear") || node_is(node, "linear_dx"))
        TRY(chunk_product(c, node, &done));
    else if (op_grouped_contraction(node))
        TRY(chunk_grouped(c, node, &done));
    return done ? OK : rewrite_copy_node(&c->rewrite, (NodeId){i});
}

Status pass_canonical(Graph **graph, const Layout *layout, ParamGrads *grads)
{
    if (!layout->chunks) return OK;
    Canonical c = {.chunks = layout->chunks};
    rewrite_begin(&c.rewrite, *graph);
    Status status = OK;
    for (int i = 1; i < (*graph)->n_nodes && status == OK; i++) status = rewrite_node(&c, i);
    if (status != OK) {
        rewrite_abort(&c.rewrite);
        return status;
    }
    for (int i = 0; grads && i < grads->n; i++) {
        grads->at[i].leaf = rewrite_get(&c.rewrite, grads->at[i].leaf);
        grads->at[i].grad = rewrite_get(&c.rewrite, grads->at[i].grad);
    }
    TRY(rewrite_end(&c.rewrite, graph));
    return pass_check(*graph, "canonical");
}
