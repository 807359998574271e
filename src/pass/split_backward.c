/* Takes the gradients of weights out of the backward phase, into a phase of their own that may run
 * later (zero-bubble schedules, Qi 2023).
 *
 * Which nodes these are is seen in the graph. What leads to another layer, another stage or the
 * host must be made at once, and so must whatever that is made from; the rest leads to nothing but
 * sums of gradients and can wait. What only passes on one result of the backward phase (a sum, a
 * collective) stays behind it: to put that off would keep the result alive and save no time. */
#include "pass/pass_internal.h"

#include <stdlib.h>

typedef struct Splitting {
    const Graph *graph;
    int begin;    /* the first node behind the forward phase */
    bool *needed; /* per value: read by what must be made at once */
    bool *lead;   /* per node: must be made at once */
    bool *waits;  /* per node: goes to the new phase */
} Splitting;

/* Does the node add to a sum of gradients, and nothing else? */
static bool is_sum(const Graph *g, const Node *node)
{
    if (!(node->op->flags & OP_EFFECT) || node->op->flags & OP_COLLECTIVE) return false;
    for (int k = 0; k < node->n_out; k++) {
        StateRole role = value_ok(node->out[k]) ? graph_value(g, graph_root(g, node->out[k]))->role
                                                : STATE_GRAD;
        if (role != STATE_GRAD && role != STATE_GRAD_PART) return false;
    }
    return true;
}

static int producer_of(const Splitting *s, ValueId v)
{
    return value_ok(v) && graph_value(s->graph, v)->kind == VALUE_TEMP
               ? graph_value(s->graph, v)->producer.id
               : 0;
}

static void find_lead(Splitting *s)
{
    const Graph *g = s->graph;
    for (int i = 0; i < g->n_outputs; i++) s->needed[g->output[i].value.id] = true;
    for (int i = g->n_nodes - 1; i >= s->begin; i--) {
        const Node *node = &g->node[i];
        bool sum = is_sum(g, node);
        s->lead[i] = node->op->flags & OP_EFFECT && !sum;
        for (int k = 0; k < node->n_out; k++)
            s->lead[i] |= value_ok(node->out[k]) && s->needed[node->out[k].id];
        for (int k = 0; k < node->n_in; k++) {
            int producer = producer_of(s, node->in[k]);
            if (producer && (s->lead[i] || (!sum && node->layer != g->node[producer].layer)))
                s->needed[node->in[k].id] = true;
        }
    }
}

/* Everything that can wait, but what has a single operand, made in the backward phase. */
static void find_waiting(Splitting *s)
{
    const Graph *g = s->graph;
    for (int i = s->begin; i < g->n_nodes; i++) {
        const Node *node = &g->node[i];
        int made = 0, other = 0;
        bool after = false; /* reads what waits */
        for (int k = 0; k < node->n_in; k++) {
            int producer = producer_of(s, node->in[k]);
            if (!value_ok(node->in[k])) continue;
            after |= s->waits[producer];
            if (graph_value(g, graph_root(g, node->in[k]))->kind == VALUE_STATE) continue;
            if (producer >= s->begin)
                made++;
            else
                other++;
        }
        s->waits[i] = !s->lead[i] && (after || made != 1 || other > 0);
    }
}

static Status copy_phase(const Splitting *s, Rewrite *rewrite, int begin, bool waiting, Phase phase)
{
    for (int i = begin; i < (begin ? s->graph->n_nodes : s->begin); i++) {
        if (i == 0 || s->waits[i] != waiting) continue;
        TRY(rewrite_copy_node(rewrite, (NodeId){i}));
        rewrite->to->node[rewrite->to->n_nodes - 1].phase = phase;
    }
    return OK;
}

Status pass_split_backward(Graph **graph)
{
    const Graph *g = *graph;
    Splitting s = {.graph = g, .begin = 1};
    for (int i = 1; i < g->n_nodes; i++)
        if (g->node[i].phase == PHASE_FORWARD) s.begin = i + 1;
    s.needed = xcalloc((size_t)g->n_values, sizeof *s.needed);
    s.lead = xcalloc((size_t)g->n_nodes, sizeof *s.lead);
    s.waits = xcalloc((size_t)g->n_nodes, sizeof *s.waits);
    find_lead(&s);
    find_waiting(&s);
    Rewrite rewrite;
    rewrite_begin(&rewrite, g);
    Status status = copy_phase(&s, &rewrite, 0, false, PHASE_FORWARD);
    if (status == OK) status = copy_phase(&s, &rewrite, s.begin, false, PHASE_BACKWARD);
    if (status == OK) status = copy_phase(&s, &rewrite, s.begin, true, PHASE_WEIGHTS);
    free(s.needed);
    free(s.lead);
    free(s.waits);
    if (status != OK) {
        rewrite_abort(&rewrite);
        return status;
    }
    TRY(rewrite_end(&rewrite, graph));
    return pass_check(*graph, "split_backward");
}
