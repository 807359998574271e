/* Which values share storage.
 *
 * Three ways, in this order: views share with what they view (the graph says so); what is joined
 * (OP_JOINS) is written by its producers straight into the result, where it is one run there or
 * those can write rows with a pitch, also through a chain of in-place ops; and an output takes over
 * the storage of an operand that dies there, where the op can work in place. A shared storage lives
 * from its first value to the last read of any. */
#include "program/program_internal.h"

#include <stdlib.h>
#include <string.h>

/* ---- facts ------------------------------------------------------------------------------ */

static const Value *value_at(const Placement *p, int v) { return &p->graph->value[v]; }

static size_t value_bytes(const Value *v)
{
    return (size_t)shape_count(&v->shape) * dtype_bytes(v->dtype);
}

static bool is_view(const Node *node) { return node->op->flags & OP_VIEW; }

static void link_to(Placement *p, int v, int root)
{
    p->at[v].root = root;
    p->at[v].next = p->at[root].next;
    p->at[root].next = v;
}

static void start_from_graph(Placement *p)
{
    const Graph *g = p->graph;
    for (int v = 1; v < g->n_values; v++) {
        const Value *value = value_at(p, v);
        Placed *at = &p->at[v];
        at->last_read = -1;
        at->root = v;
        memcpy(at->stride, value->stride, sizeof at->stride);
        if (value_ok(value->base)) {
            p->views[value->base.id]++;
            at->offset_bytes = p->at[value->base.id].offset_bytes + value->offset_bytes;
            link_to(p, v, p->at[value->base.id].root);
        }
    }
    for (int i = 1; i < g->n_nodes; i++) {
        if (is_view(&g->node[i])) continue;
        for (int k = 0; k < g->node[i].n_in; k++) {
            int in = g->node[i].in[k].id;
            p->at[in].last_read = i;
            p->uses[in]++;
        }
    }
    for (int i = 0; i < g->n_outputs; i++) {
        p->at[g->output[i].value.id].last_read = g->n_nodes;
        p->uses[g->output[i].value.id]++;
    }
}

/* All readers of v, also through views, accept any row stride. */
static bool readers_take_strides(const Placement *p, int v)
{
    const Graph *g = p->graph;
    int last = p->views[v] > 0 ? g->n_nodes - 1 : p->at[v].last_read;
    if (last >= g->n_nodes) return false; /* the host reads it */
    for (int i = g->value[v].producer.id + 1; i <= last; i++) {
        const Node *node = &g->node[i];
        for (int k = 0; k < node->n_in; k++) {
            if (node->in[k].id != v) continue;
            if (is_view(node))
                return false; /* a view of a strided value: left to the graph's own strides */
            if (k >= 32 || !(node->op->strided_in >> k & 1)) return false;
        }
    }
    for (int i = 0; i < g->n_outputs; i++)
        if (g->output[i].value.id == v) return false;
    return true;
}

/* ---- joined operands -------------------------------------------------------------------- */

/* Strides of a value whose last axes, together `width` elements, are one row of a wider row. */
static bool strides_in_rows(const Value *v, int64_t width, int64_t pitch, int64_t stride[MAX_RANK])
{
    int64_t inner = 1, step = pitch;
    int i = v->shape.rank - 1;
    for (; i >= 0 && inner < width; i--) {
        stride[i] = inner;
        inner *= v->shape.dim[i];
    }
    if (inner != width) return false;
    for (; i >= 0; i--) {
        stride[i] = step;
        step *= v->shape.dim[i];
    }
    return true;
}

typedef struct Slot { /* part of a row: where a value is to be put */
    int root;
    size_t offset_bytes;
    int64_t width, pitch; /* elements */
} Slot;

/* Puts v, and the operand that its producer may overwrite, and so on, into the slot. */
static bool put_into(Placement *p, int v, const Slot *slot, int views_allowed)
{
    const Graph *g = p->graph;
    const Value *value = value_at(p, v);
    if (value->kind != VALUE_TEMP || p->views[v] > views_allowed) return false;
    const Node *producer = &g->node[value->producer.id];
    if (is_view(producer) && value_ok(value->base)) { /* a reshape: its base must go there */
        int base = value->base.id;
        if (p->uses[base] > 0 || p->at[v].offset_bytes != p->at[base].offset_bytes) return false;
        int64_t stride[MAX_RANK];
        if (!strides_in_rows(value, slot->width, slot->pitch, stride) ||
            !put_into(p, base, slot, 1))
            return false;
        memcpy(p->at[v].stride, stride, sizeof stride);
        p->at[v].offset_bytes = slot->offset_bytes;
        p->at[v].root = slot->root;
        return true;
    }
    int64_t stride[MAX_RANK];
    if (p->at[v].root != v || value_ok(value->base) ||
        !strides_in_rows(value, slot->width, slot->pitch, stride))
        return false;
    if (!(producer->op->strided_out >> value->out_index & 1) &&
        !stride_is_contiguous(&value->shape, stride))
        return false;
    memcpy(p->at[v].stride, stride, sizeof stride);
    p->at[v].offset_bytes = slot->offset_bytes;
    p->at[v].root = slot->root;
    for (int k = 0; k < producer->n_in && k < 32 && value->out_index == 0; k++) {
        int in = producer->in[k].id;
        if (!(producer->op->inplace >> k & 1) || !(producer->op->strided_in >> k & 1) ||
            p->uses[in] != 1)
            continue;
        if (in && shape_equal(&value_at(p, in)->shape, &value->shape) &&
            value_at(p, in)->dtype == value->dtype && put_into(p, in, slot, 0))
            break;
    }
    return true;
}

static void relink(Placement *p);

static void place_joined(Placement *p)
{
    const Graph *g = p->graph;
    for (int i = g->n_nodes - 1; i > 0; i--) {
        const Node *node = &g->node[i];
        if (!(node->op->flags & OP_JOINS)) continue;
        const Value *out = value_at(p, node->out[0].id);
        int64_t pitch = out->shape.dim[out->shape.rank - 1], column = 0;
        for (int k = 0; k < node->n_in; k++) {
            const Value *in = value_at(
                p, node->in[k].id); /* in a vector it is one run, whatever its shape */
            int64_t width = out->shape.rank == 1 ? shape_count(&in->shape)
                                                 : in->shape.dim[in->shape.rank - 1];
            Slot slot = {.root = p->at[node->out[0].id].root,
                         .width = width,
                         .pitch = pitch,
                         .offset_bytes = p->at[node->out[0].id].offset_bytes +
                                         (size_t)column * dtype_bytes(out->dtype)};
            column += width;
            if (p->uses[node->in[k].id] == 1) put_into(p, node->in[k].id, &slot, 0);
        }
    }
    relink(p);
}

/* Rebuilds the lists of values by storage from the roots. */
static void relink(Placement *p)
{
    for (int v = 1; v < p->graph->n_values; v++) p->at[v].next = 0;
    for (int v = p->graph->n_values - 1; v > 0; v--) {
        int root = p->at[v].root;
        if (root == v) continue;
        p->at[v].next = p->at[root].next;
        p->at[root].next = v;
    }
}

/* ---- in place --------------------------------------------------------------------------- */

/* The trailing contiguous axes as one row, the others collapsed into one pitch. */
static bool row_form(const Shape *shape, const int64_t *stride, int64_t *width, int64_t *pitch)
{
    int i = shape->rank - 1;
    *width = 1;
    while (i >= 0 && stride[i] == *width) *width *= shape->dim[i--];
    if (i < 0) return false;
    *pitch = stride[i];
    for (int64_t step = stride[i]; i >= 0; step *= shape->dim[i--])
        if (stride[i] != step) return false;
    return true;
}

/* Do a and b, of one storage, share a byte? Rows of one pitch are compared by their columns. */
static bool overlap(const Placement *p, int a, int b)
{
    const Value *x = value_at(p, a), *y = value_at(p, b);
    const Placed *u = &p->at[a], *w = &p->at[b];
    bool dense_x = stride_is_contiguous(&x->shape, u->stride),
         dense_y = stride_is_contiguous(&y->shape, w->stride);
    if (dense_x && dense_y)
        return u->offset_bytes < w->offset_bytes + value_bytes(y) &&
               w->offset_bytes < u->offset_bytes + value_bytes(x);
    if (dense_x || dense_y) return true;
    int64_t width_s, width_t, pitch_s, pitch_t;
    if (!row_form(&x->shape, u->stride, &width_s, &pitch_s)) return true;
    if (!row_form(&y->shape, w->stride, &width_t, &pitch_t) || pitch_s != pitch_t) return true;
    size_t size = dtype_bytes(x->dtype), row = (size_t)pitch_s * size;
    size_t begin_s = u->offset_bytes % row, begin_t = w->offset_bytes % row;
    return begin_s < begin_t + (size_t)width_t * size && begin_t < begin_s + (size_t)width_s * size;
}

/* May the output of node i take over the place of operand v? */
static bool dies_here(const Placement *p, int v, int i)
{
    if (value_at(p, v)->kind != VALUE_TEMP || p->at[v].last_read != i) return false;
    int root = p->at[v].root;
    if (value_at(p, root)->kind != VALUE_TEMP) return false;
    for (int other = root; other; other = p->at[other].next)
        if (other != v && p->at[other].last_read >= i && overlap(p, other, v)) return false;
    return true;
}

static bool take_over(Placement *p, int out, int in, const Node *node, int k)
{
    const Value *y = value_at(p, out), *x = value_at(p, in);
    if (value_bytes(y) != value_bytes(x) || !shape_equal(&y->shape, &x->shape)) return false;
    bool dense = stride_is_contiguous(&x->shape, p->at[in].stride);
    if (!dense && !(node->op->strided_out & 1 && node->op->strided_in >> k & 1 &&
                    readers_take_strides(p, out)))
        return false;
    memcpy(p->at[out].stride, p->at[in].stride, sizeof p->at[out].stride);
    for (int v = out, next; v; v = next) { /* out and what lives in its storage move together */
        next = p->at[v].next;
        p->at[v].offset_bytes += p->at[in].offset_bytes;
        link_to(p, v, p->at[in].root);
    }
    return true;
}

static void place_in_place(Placement *p)
{
    const Graph *g = p->graph;
    for (int i = 1; i < g->n_nodes; i++) {
        const Node *node = &g->node[i];
        int out = node->out[0].id;
        if (!out || !node->op->inplace || p->at[out].root != out) continue;
        if (value_at(p, out)->kind != VALUE_TEMP) continue;
        for (int k = 0; k < node->n_in && k < 32; k++) {
            int in = node->in[k].id;
            bool twice =
                false; /* the same value as another operand is read while it is overwritten */
            for (int j = 0; j < node->n_in; j++) twice |= j != k && node->in[j].id == in;
            if (!in || twice || !(node->op->inplace >> k & 1) || !dies_here(p, in, i)) continue;
            if (take_over(p, out, in, node, k)) break;
        }
    }
}

void placement_init(Placement *p, const Graph *graph)
{
    *p = (Placement){.graph = graph};
    p->at = xcalloc((size_t)graph->n_values, sizeof *p->at);
    p->uses = xcalloc((size_t)graph->n_values, sizeof *p->uses);
    p->views = xcalloc((size_t)graph->n_values, sizeof *p->views);
    start_from_graph(p);
    place_joined(p);
    place_in_place(p);
}

void placement_deinit(Placement *p)
{
    free(p->at);
    free(p->uses);
    free(p->views);
    *p = (Placement){0};
}
