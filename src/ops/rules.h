/* What the files of ops share when they state their rules: checks of operands and counting of
 * bytes. */
#ifndef OPS_RULES_H
#define OPS_RULES_H

#include "ops/ops.h"

static inline bool dtype_is_activation(DType dtype)
{
    return dtype == DTYPE_F32 || dtype == DTYPE_BF16;
}

static inline int64_t last_dim(const Value *v)
{
    return v->shape.rank ? v->shape.dim[v->shape.rank - 1] : 1;
}

static inline Status need_activation(const Value *v, const char *what)
{
    if (dtype_is_activation(v->dtype)) return OK;
    return fail(ERR_ARG, "%s must be f32 or bf16, not %s", what, dtype_name(v->dtype));
}

static inline Status need_dtype(const Value *v, DType dtype, const char *what)
{
    if (v->dtype == dtype) return OK;
    return fail(ERR_ARG, "%s must be %s, not %s", what, dtype_name(dtype), dtype_name(v->dtype));
}

static inline Status need_shape(const Value *v, const Shape *shape, const char *what)
{
    char got[SHAPE_TEXT], wanted[SHAPE_TEXT];
    if (shape_equal(&v->shape, shape)) return OK;
    return fail(ERR_SHAPE, "%s is [%s] and must be [%s]", what, shape_text(&v->shape, got),
                shape_text(shape, wanted));
}

static inline Status need_vector(const Value *v, int64_t n, DType dtype, const char *what)
{
    TRY(need_dtype(v, dtype, what));
    if (v->shape.rank == 1 && v->shape.dim[0] == n) return OK;
    char got[SHAPE_TEXT];
    return fail(ERR_SHAPE, "%s is [%s] and must have %lld elements", what,
                shape_text(&v->shape, got), (long long)n);
}

static inline Status need_scalar(const Value *v, const char *what)
{
    TRY(need_dtype(v, DTYPE_F32, what));
    return shape_count(&v->shape) == 1 ? OK : fail(ERR_SHAPE, "%s must be a scalar", what);
}

/* Same dtype and shape as another operand. */
static inline Status need_like(const Value *v, const Value *other, const char *what)
{
    TRY(need_dtype(v, other->dtype, what));
    return need_shape(v, &other->shape, what);
}

static inline InferOut infer_out(DType dtype, Shape shape)
{
    return (InferOut){.dtype = dtype, .shape = shape, .wanted = true, .alias = -1};
}
static inline InferOut infer_like(const Value *v) { return infer_out(v->dtype, v->shape); }

static inline double value_count(const Graph *g, ValueId v)
{
    return value_ok(v) ? (double)shape_count(&graph_value(g, v)->shape) : 0;
}
static inline double value_bytes(const Graph *g, ValueId v)
{
    return value_ok(v) ? value_count(g, v) * (double)dtype_bytes(graph_value(g, v)->dtype) : 0;
}

/* Every operand read once, every output written once, so many operations per element of operand 0.
 */
static inline Cost cost_streaming(const Graph *g, const Node *node, double flop_per_element)
{
    Cost cost = {0};
    for (int i = 0; i < node->n_in; i++) cost.read_bytes += value_bytes(g, node->in[i]);
    for (int i = 0; i < node->n_out; i++) cost.write_bytes += value_bytes(g, node->out[i]);
    if (node->n_in) cost.flop = flop_per_element * value_count(g, node->in[0]);
    return cost;
}

/* How many times the rows of experts that come on average a buffer has room for: owners of experts
 * have it for what all ranks send. */
static inline double expert_room(const Graph *g, const Value *rows)
{
    double owners = 1;
    for (int a = 0; a < MESH_AXES; a++) {
        int n = rows->place[a].kind == PLACE_OWNED ? mesh_size(&g->mesh, (MeshAxis)a) : 1;
        owners *= a == MESH_EP && g->expert_room && g->expert_room < n ? g->expert_room : n;
    }
    return owners;
}

static inline void cost_exchange(Cost *cost, CommKind kind, unsigned axes, double whole_bytes)
{
    cost->kind = COST_EXCHANGE;
    cost->exchange = kind;
    cost->axes = axes;
    cost->whole_bytes = whole_bytes;
}

/* Of `count` products of so many rows with a weight [O I] or its transpose. */
static inline void cost_product(Cost *cost, const Value *w, double rows, double count)
{
    cost->kind = COST_MATMUL;
    cost->m = rows;
    cost->n = (double)w->shape.dim[0];
    cost->k = (double)w->shape.dim[1];
    cost->count = count;
    cost->dtype = w->dtype;
}

#endif
