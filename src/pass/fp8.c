/* Products of layers in 8 bits: linear, linear_dx and linear_dw inside layers become quantise and
 * linear_8 (Micikevicius 2022; DeepSeek-V3, 2024, 3.3). Values are e4m3, gradients e5m2;
 * embeddings, norms, routers, attention, experts' grouped products, the head and the loss stay as
 * they are, and so do masters, their bf16 copies and all sums.
 *
 * It comes behind the layout, so that a rank rounds what it multiplies, by sizes that it sees:
 * where one of them is no multiple of LINEAR_8_ALIGN the product stays bf16. Scales are over the
 * rank's own part of a sum.
 *
 * What is multiplied along its rows and along its columns is read once, where that costs no memory:
 * a gradient always; an activation whose only use in the backward pass is dw = dy^T x, which is
 * then kept with 8 bits instead of 16. Others are quantised anew there, and weights in each pass.
 */
#include "pass/pass_internal.h"

#include <stdlib.h>

enum { BY_ROWS, BY_COLUMNS, SIDES };

/* What is known of a value that products read. */
typedef struct Operand {
    bool wanted[PHASES][SIDES]; /* by products that become linear_8 */
    Scaled at[SIDES];           /* in the new graph */
    bool there[SIDES];
    Phase phase[SIDES]; /* in which it was made */
} Operand;

typedef struct Eight {
    const Graph *graph;
    Rewrite rewrite;
    Fp8 scaling;
    bool *gradient;   /* per value: of the loss */
    int *other_reads; /* per value that has storage: by the backward pass, but for dw */
    Operand *operand; /* per value */
} Eight;

/* The operands of a product and along what they are multiplied; both of the old graph. */
typedef struct Product {
    ValueId in[2];
    int side[2];
    bool weight; /* in[1] is one */
} Product;

static bool is_product(const Node *node, Product *p)
{
    bool y = node_is(node, "linear"), dx = node_is(node, "linear_dx"),
         dw = node_is(node, "linear_dw");
    if (!y && !dx && !dw) return false;
    *p = (Product){.in = {node->in[0], node->in[1]},
                   .side = {dw ? BY_COLUMNS : BY_ROWS, y ? BY_ROWS : BY_COLUMNS},
                   .weight = !dw};
    return true;
}

/* Rows and columns of a value. */
static void sizes_of(const Value *v, int64_t *rows, int64_t *columns)
{
    *columns = v->shape.dim[v->shape.rank - 1];
    *rows = *columns ? shape_count(&v->shape) / *columns : 0;
}

static bool fits(const Value *v)
{
    int64_t rows, columns;
    sizes_of(v, &rows, &columns);
    return v->dtype == DTYPE_BF16 && rows % LINEAR_8_ALIGN == 0 && columns % LINEAR_8_ALIGN == 0;
}

/* A product of two gradients would be one of two e5m2: there is none, of neither kind. */
static bool becomes_8(const Eight *e, const Node *node, Product *p)
{
    return node->layer >= 0 && is_product(node, p) && fits(graph_value(e->graph, p->in[0])) &&
           fits(graph_value(e->graph, p->in[1])) &&
           !(e->gradient[p->in[0].id] && e->gradient[p->in[1].id]);
}

/* ---- what is what ----------------------------------------------------------------------- */

/* Where gradients come from: the loss, and the stage behind this one. */
static bool begins_gradients(const Node *node)
{
    return node_is(node, "fill") || node_is(node, "recv") || node_is(node, "take");
}

/* The backward pass also makes activations again: what depends on no gradient is none. */
static void find_gradients(Eight *e)
{
    const Graph *g = e->graph;
    for (int i = 1; i < g->n_nodes; i++) {
        const Node *node = &g->node[i];
        if (node->phase == PHASE_FORWARD) continue;
        bool any = begins_gradients(node);
        for (int k = 0; k < node->n_in; k++) any |= e->gradient[node->in[k].id];
        for (int k = 0; k < node->n_out; k++)
            if (value_ok(node->out[k])) e->gradient[node->out[k].id] = any;
    }
}

static void find_operands(Eight *e)
{
    const Graph *g = e->graph;
    for (int i = 1; i < g->n_nodes; i++) {
        const Node *node = &g->node[i];
        Product p;
        bool eight = becomes_8(e, node, &p);
        for (int k = 0; k < 2 && eight; k++)
            e->operand[p.in[k].id].wanted[node->phase][p.side[k]] = true;
        for (int k = 0; k < node->n_in; k++)
            if (value_ok(node->in[k]) && node->phase != PHASE_FORWARD && !(eight && !p.weight))
                e->other_reads[graph_root(g, node->in[k]).id]++;
    }
    for (int i = 0; i < g->n_outputs; i++) e->other_reads[graph_root(g, g->output[i].value).id]++;
}

/* ---- quantising ------------------------------------------------------------------------- */

/* Whether the other side is made along with this one. */
static bool makes_both(const Eight *e, ValueId v, int other, bool weight, Phase phase)
{
    const Operand *o = &e->operand[v.id];
    if (o->wanted[phase][other]) return true;
    return !weight && phase == PHASE_FORWARD && o->wanted[PHASE_BACKWARD][other] &&
           graph_value(e->graph, graph_root(e->graph, v))->kind == VALUE_TEMP &&
           e->other_reads[graph_root(e->graph, v).id] == 0;
}

static Status quantise(Eight *e, ValueId v, int side, bool weight, Phase phase)
{
    Operand *o = &e->operand[v.id];
    const ScalingUnit scaling = e->scaling == FP8_ROW ? SCALING_ROW
                                : weight              ? SCALING_SQUARE
                                                      : SCALING_BLOCK;
    const DType dtype = e->gradient[v.id] ? DTYPE_F8_E5M2 : DTYPE_F8_E4M3;
    bool both = makes_both(e, v, !side, weight, phase), make[SIDES];
    for (int s = 0; s < SIDES; s++) make[s] = s == side || both;
    TRY(op_quantise(e->rewrite.to, rewrite_get(&e->rewrite, v), dtype, scaling,
                    make[BY_ROWS] ? &o->at[BY_ROWS] : NULL,
                    make[BY_COLUMNS] ? &o->at[BY_COLUMNS] : NULL));
    for (int s = 0; s < SIDES; s++) {
        if (!make[s]) continue;
        o->there[s] = true;
        o->phase[s] = phase;
    }
    return OK;
}

/* What the forward pass made of a value is used in the backward pass only where it was made for it:
 * that of a weight is not kept. */
static bool is_there(const Eight *e, ValueId v, int side, Phase phase)
{
    const Operand *o = &e->operand[v.id];
    return o->there[side] && (o->phase[side] == phase || !o->wanted[o->phase[side]][side]);
}

static Status add_product(Eight *e, const Node *node, const Product *p)
{
    Graph *to = e->rewrite.to;
    const Value *out = graph_value(e->graph, node->out[0]);
    ValueId y;
    to->phase = node->phase;
    to->layer = node->layer;
    to->scope = rewrite_scope(&e->rewrite, node->name);
    for (int k = 0; k < 2; k++)
        if (!is_there(e, p->in[k], p->side[k], node->phase))
            TRY(quantise(e, p->in[k], p->side[k], k == 1 && p->weight, node->phase));
    TRY(op_linear_8(to, &e->operand[p->in[0].id].at[p->side[0]],
                    &e->operand[p->in[1].id].at[p->side[1]], out->dtype, &y));
    if (out->name) graph_value(to, y)->name = arena_strdup(&to->arena, out->name);
    rewrite_set(&e->rewrite, node->out[0], y);
    return OK;
}

static Status rewrite_all(Eight *e)
{
    for (int i = 1; i < e->graph->n_nodes; i++) {
        const Node *node = &e->graph->node[i];
        Product p;
        if (becomes_8(e, node, &p))
            TRY(add_product(e, node, &p));
        else
            TRY(rewrite_copy_node(&e->rewrite, (NodeId){i}));
    }
    return OK;
}

Status pass_fp8(Graph **graph, Fp8 scaling)
{
    if (scaling == FP8_NONE) return OK;
    Eight e = {.graph = *graph, .scaling = scaling};
    size_t n = (size_t)e.graph->n_values;
    e.gradient = xcalloc(n, sizeof *e.gradient);
    e.other_reads = xcalloc(n, sizeof *e.other_reads);
    e.operand = xcalloc(n, sizeof *e.operand);
    find_gradients(&e);
    find_operands(&e);
    rewrite_begin(&e.rewrite, e.graph);
    Status status = rewrite_all(&e);
    free(e.gradient);
    free(e.other_reads);
    free(e.operand);
    if (status != OK) {
        rewrite_abort(&e.rewrite);
        return status;
    }
    TRY(rewrite_end(&e.rewrite, graph));
    return pass_check(*graph, "fp8");
}
