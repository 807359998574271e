/* Graphs as text that can be diffed, and as dot. */
#include "graph/graph.h"

static void value_text(const Graph *g, ValueId id, Str *out)
{
    if (!value_ok(id)) {
        str_add(out, "-");
        return;
    }
    const Value *v = graph_value(g, id);
    if (v->kind != VALUE_TEMP)
        str_add(out, v->name);
    else
        str_printf(out, "%%%d", id.id);
}

static void type_text(const Value *v, Str *out)
{
    char shape[SHAPE_TEXT];
    str_printf(out, "%s[%s]", dtype_name(v->dtype), shape_text(&v->shape, shape));
    if (!stride_is_contiguous(&v->shape, v->stride)) {
        str_add(out, " stride");
        for (int i = 0; i < v->shape.rank; i++)
            str_printf(out, "%c%lld", i ? ',' : ' ', (long long)v->stride[i]);
    }
}

static void node_text(const Graph *g, const Node *node, Str *out)
{
    for (int k = 0; k < node->n_out; k++) {
        str_add(out, k ? ", " : "  ");
        value_text(g, node->out[k], out);
    }
    str_printf(out, " = %s(", node->op->name);
    for (int k = 0; k < node->n_in; k++) {
        str_add(out, k ? ", " : "");
        value_text(g, node->in[k], out);
    }
    str_add(out, ")");
    if (node->op->attr_text) {
        str_add(out, " {");
        node->op->attr_text(node->attr, out);
        str_add(out, "}");
    }
    for (int k = 0; k < node->n_out; k++) {
        str_add(out, k ? ", " : " : ");
        if (value_ok(node->out[k]))
            type_text(graph_value(g, node->out[k]), out);
        else
            str_add(out, "-");
    }
    if (node->name) str_printf(out, "  # %s", node->name);
    if (node->layer >= 0) str_printf(out, "%s layer %d", node->name ? "" : "  #", node->layer);
    str_add(out, "\n");
}

void graph_dump(const Graph *g, Str *out)
{
    str_printf(out, "graph %s\n", g->name);
    for (int i = 1; i < g->n_values; i++) {
        const Value *v = &g->value[i];
        if (v->kind == VALUE_TEMP) continue;
        str_printf(out, "  %s %s : ", v->kind == VALUE_INPUT ? "input" : "state", v->name);
        type_text(v, out);
        for (int k = 0; v->n_parts > 1 && k < v->n_parts; k++)
            str_printf(out, "%s%s", k ? ", " : " = ", v->part[k].name);
        str_add(out, "\n");
    }
    Phase phase = (Phase)-1;
    for (int i = 1; i < g->n_nodes; i++) {
        if (g->node[i].phase != phase) {
            phase = g->node[i].phase;
            str_printf(out, "%s:\n", phase_name(phase));
        }
        node_text(g, &g->node[i], out);
    }
    for (int i = 0; i < g->n_outputs; i++) {
        str_printf(out, "  output %s = ", g->output[i].name);
        value_text(g, g->output[i].value, out);
        str_add(out, "\n");
    }
}

void graph_dump_dot(const Graph *g, Str *out)
{
    static const char *const colour[] = {"#d7e8ff", "#ffe3d1", "#fff3c4", "#e0f2d8"};
    str_printf(out, "digraph \"%s\" {\n  node [shape=box style=filled fontname=monospace];\n",
               g->name);
    for (int i = 1; i < g->n_nodes; i++) {
        const Node *node = &g->node[i];
        str_printf(out, "  n%d [label=\"%s%s%s\" fillcolor=\"%s\"];\n", i, node->op->name,
                   node->name ? "\\n" : "", node->name ? node->name : "", colour[node->phase]);
        for (int k = 0; k < node->n_in; k++) {
            if (!value_ok(node->in[k])) continue;
            const Value *v = graph_value(g, node->in[k]);
            if (v->producer.id) str_printf(out, "  n%d -> n%d;\n", v->producer.id, i);
        }
    }
    str_add(out, "}\n");
}
