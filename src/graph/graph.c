/* The builder: values and nodes appended in order. */
#include "graph/graph.h"
#include "graph/graph_internal.h"

#include <stdlib.h>
#include <string.h>

const char *phase_name(Phase phase)
{
    static const char *const names[] = {"forward", "backward", "weights", "update"};
    return names[phase];
}

const char *isa_name(Isa isa)
{
    static const char *const names[] = {"generic", "avx2", "avx512", "avx512bf16"};
    return isa >= 0 && isa < ISA_COUNT ? names[isa] : "unknown";
}

Graph *graph_create(const char *name)
{
    Graph *graph = xcalloc(1, sizeof *graph);
    graph->name = arena_strdup(&graph->arena, name);
    graph_new_value(graph); /* index 0 is none: there, zeroed, and never handed out */
    graph_new_node(graph);
    graph->layer = -1;
    return graph;
}

void graph_destroy(Graph *graph)
{
    if (!graph) return;
    free(graph->node);
    free(graph->value);
    free(graph->output);
    name_index_deinit(&graph->states);
    arena_deinit(&graph->arena);
    free(graph);
}

/* In debug builds small graphs move whenever they grow: whoever keeps a pointer into one while it
 * does is found by the address sanitizer in the first test that comes by, not in one of a size that
 * happens to be full. */
#ifdef DEBUG
enum { MOVES_UP_TO = 400 };
#else
enum { MOVES_UP_TO = 0 };
#endif

static int more(int cap)
{
    if (cap < MOVES_UP_TO) return cap + 1;
    return cap < 256 ? 256 : 2 * cap;
}

ValueId graph_new_value(Graph *graph)
{
    if (graph->n_values >= graph->value_cap) {
        graph->value_cap = more(graph->value_cap);
        graph->value = xrealloc(graph->value, sizeof(Value) * (size_t)graph->value_cap);
    }
    memset(&graph->value[graph->n_values], 0, sizeof(Value));
    return (ValueId){graph->n_values++};
}

Node *graph_new_node(Graph *graph)
{
    if (graph->n_nodes >= graph->node_cap) {
        graph->node_cap = more(graph->node_cap);
        graph->node = xrealloc(graph->node, sizeof(Node) * (size_t)graph->node_cap);
    }
    Node *node = &graph->node[graph->n_nodes++];
    memset(node, 0, sizeof *node);
    return node;
}

static ValueId named_value(Graph *graph, const char *name, DType dtype, Shape shape)
{
    ValueId id = graph_new_value(graph);
    Value *v = graph_value(graph, id);
    v->name = arena_strdup(&graph->arena, name);
    v->dtype = dtype;
    v->shape = shape;
    stride_contiguous(&shape, v->stride);
    return id;
}

ValueId graph_input(Graph *graph, const char *name, DType dtype, Shape shape)
{
    ValueId id = named_value(graph, name, dtype, shape);
    graph_value(graph, id)->kind = VALUE_INPUT;
    return id;
}

ValueId graph_state(Graph *graph, const char *name, DType dtype, Shape shape, StateRole role)
{
    ValueId id = named_value(graph, name, dtype, shape);
    Value *v = graph_value(graph, id);
    v->kind = VALUE_STATE;
    v->role = role;
    v->part = ARENA_NEW(&graph->arena, StatePart);
    v->part[0] = (StatePart){.name = v->name, .shape = shape, .whole = shape};
    v->n_parts = 1;
    name_index_put(&graph->states, v->name, id.id);
    return id;
}

ValueId graph_find_state(const Graph *graph, const char *name)
{
    int found = name_index_find(&graph->states, name);
    return (ValueId){found > 0 ? found : 0};
}

ValueId graph_find_input(const Graph *graph, const char *name)
{
    for (int i = 1; i < graph->n_values; i++) {
        const Value *v = &graph->value[i];
        if (v->kind == VALUE_INPUT && !strcmp(v->name, name)) return (ValueId){i};
    }
    return NO_VALUE;
}

void graph_output(Graph *graph, const char *name, ValueId value)
{
    if (graph->n_outputs >= graph->output_cap) {
        graph->output_cap = graph->output_cap ? 2 * graph->output_cap : 8;
        graph->output = xrealloc(graph->output, sizeof *graph->output * (size_t)graph->output_cap);
    }
    graph->output[graph->n_outputs].name = arena_strdup(&graph->arena, name);
    graph->output[graph->n_outputs++].value = value;
}

ValueId graph_find_output(const Graph *graph, const char *name)
{
    for (int i = 0; i < graph->n_outputs; i++)
        if (!strcmp(graph->output[i].name, name)) return graph->output[i].value;
    return NO_VALUE;
}

ValueId graph_root(const Graph *graph, ValueId v)
{
    while (value_ok(graph_value(graph, v)->base)) v = graph_value(graph, v)->base;
    return v;
}

void graph_set_layer(Graph *graph, int layer) { graph->layer = layer; }

void graph_set_scope(Graph *graph, const char *name)
{
    graph->scope = name ? arena_strdup(&graph->arena, name) : NULL;
}

/* "model.layers.0.mlp: linear(x f32 batch=2 seq=8 embed=4, ...)" in front of what the op said. */
static void refused(const Graph *graph, const InferCtx *ctx)
{
    Str text = {0};
    char shape[SHAPE_TEXT];
    if (graph->layer >= 0) str_printf(&text, "layer %d ", graph->layer);
    if (graph->scope) str_printf(&text, "%s ", graph->scope);
    str_printf(&text, "%s(", ctx->op->name);
    for (int i = 0; i < ctx->n_in; i++) {
        const Value *v = ctx->in[i];
        str_add(&text, i ? ", " : "");
        if (v)
            str_printf(&text, "%s%s%s [%s]", v->name ? v->name : "", v->name ? " " : "",
                       dtype_name(v->dtype), shape_text(&v->shape, shape));
        else
            str_add(&text, "-");
    }
    fail_context("%s)", text.at);
    str_deinit(&text);
}

static Status infer(const Graph *graph, const ValueId *in, InferCtx *ctx)
{
    const OpDef *op = ctx->op;
    for (int i = 0; i < ctx->n_in; i++) {
        if (!value_ok(in[i]) && !(i < 32 && op->optional_in >> i & 1))
            return fail(ERR_ARG, "%s: operand %d is missing", op->name, i);
        ctx->in[i] = value_ok(in[i]) ? graph_value(graph, in[i]) : NULL;
    }
    for (int i = 0; i < op->n_out; i++) ctx->out[i] = (InferOut){.wanted = true, .alias = -1};
    Status status = op->infer(ctx);
    if (status != OK) refused(graph, ctx);
    return status;
}

Status graph_infer(const Graph *graph, const OpDef *op, const void *attr, const ValueId *in,
                   int n_in, InferCtx *ctx)
{
    const Value *few[GRAPH_FEW];
    if (n_in < op->min_in || (op->max_in >= 0 && n_in > op->max_in))
        return fail(ERR_ARG, "%s takes %d to %d operands, got %d", op->name, op->min_in, op->max_in,
                    n_in);
    ctx->graph = graph; /* one by one: the results' places, which are much larger, are set later */
    ctx->op = op;
    ctx->n_in = n_in;
    ctx->attr = attr;
    ctx->in = n_in <= GRAPH_FEW ? few : xcalloc((size_t)n_in, sizeof *ctx->in);
    Status status = infer(graph, in, ctx);
    if (ctx->in != few) free(ctx->in);
    ctx->in = NULL;
    return status;
}

static void make_output(Graph *graph, const InferOut *out, Node *node, int i)
{
    ValueId id = graph_new_value(graph);
    Value *v = graph_value(graph, id);
    v->dtype = out->dtype;
    v->shape = out->shape;
    stride_contiguous(&v->shape, v->stride);
    v->producer = (NodeId){graph->n_nodes - 1};
    v->out_index = i;
    if (out->alias >= 0) {
        v->base = node->in[out->alias];
        v->offset_bytes = out->offset_bytes;
        if (out->strided) memcpy(v->stride, out->stride, sizeof v->stride);
    }
    node->out[i] = id;
}

static void place_output(const Graph *graph, const Node *node, Value *y, MeshAxis axis, Place place)
{
    y->place[axis] = place;
    if (!place_is_cut(place) || place.dim != PLACE_FLAT) return;
    for (int i = 0; i < node->n_in && !y->whole.rank; i++)
        if (value_ok(node->in[i])) y->whole = graph_value(graph, node->in[i])->whole;
}

/* How the outputs lie follows from how the operands do, on every mesh axis. */
static Status place_outputs(Graph *graph, const Node *node)
{
    for (int a = 0; a < MESH_AXES; a++) {
        Place place[NODE_MAX_OUT];
        if (mesh_size(&graph->mesh, (MeshAxis)a) < 2) continue;
        Status status = graph_place_node(graph, node, (MeshAxis)a, place);
        if (status != OK) {
            fail_context("%s%s%s in layer %d", node->op->name, node->name ? " " : "",
                         node->name ? node->name : "", node->layer);
            return status;
        }
        for (int k = 0; k < node->n_out; k++)
            if (value_ok(node->out[k]))
                place_output(graph, node, graph_value(graph, node->out[k]), (MeshAxis)a, place[k]);
    }
    return OK;
}

/* What an op changes must be a state itself: changes to a copy of one would be lost. Of a part that
 * goes back into its state the verifier sees whether it does. */
static Status check_effect(const Graph *graph, const OpDef *op, const InferCtx *ctx,
                           const ValueId *in)
{
    if (op->flags & OP_PARTS) return OK;
    for (int i = 0; i < op->n_out && op->flags & OP_EFFECT; i++) {
        if (!ctx->out[i].wanted || ctx->out[i].alias < 0) continue;
        if (graph_value(graph, graph_root(graph, in[ctx->out[i].alias]))->kind != VALUE_STATE)
            return fail(
                ERR_ARG,
                "%s changes operand %d, which is no state but a copy: the change would be lost",
                op->name, ctx->out[i].alias);
    }
    return OK;
}

Status graph_add(Graph *graph, const OpDef *op, const void *attr, const ValueId *in, int n_in,
                 ValueId *out)
{
    InferCtx ctx;
    TRY(graph_infer(graph, op, attr, in, n_in, &ctx));
    TRY(check_effect(graph, op, &ctx, in));
    Node *node = graph_new_node(graph);
    node->op = op;
    node->name = graph->scope;
    node->phase = graph->phase;
    node->layer = graph->layer;
    node->n_in = n_in;
    node->n_out = op->n_out;
    node->in = arena_copy(&graph->arena, in, sizeof *in * (size_t)n_in);
    node->attr = op->attr_bytes ? arena_copy(&graph->arena, attr, op->attr_bytes) : NULL;
    for (int i = 0; i < op->n_out; i++) {
        if (ctx.out[i].wanted) make_output(graph, &ctx.out[i], node, i);
        if (out) out[i] = node->out[i];
    }
    return mesh_ranks(&graph->mesh) > 1 ? place_outputs(graph, node) : OK;
}

Cost graph_cost(const Graph *graph)
{
    Cost sum = {0};
    for (int i = 1; i < graph->n_nodes; i++) {
        const Node *node = &graph->node[i];
        if (!node->op->cost) continue;
        Cost c = node->op->cost(graph, node);
        sum.flop += c.flop;
        sum.read_bytes += c.read_bytes;
        sum.write_bytes += c.write_bytes;
        sum.wire_bytes += c.wire_bytes;
    }
    return sum;
}
