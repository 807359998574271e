/* When collectives start and when they are waited for: the order of a graph's nodes for
 * pass/overlap.
 *
 * A phase is seen as segments: what comes before the layers, each layer, what comes behind them.
 *   - A weight that is gathered starts on its way one segment before the one that reads it.
 *   - Rows that are made again for the backward pass of a layer are gathered when it begins.
 *   - Any other collective starts as soon as its operand is made.
 *   - It is waited for in front of the first node that needs its result. What can wait (sums of
 *   gradients, their further
 *     reductions: all that only the norm and the update read) is put off instead, until the segment
 *     after next begins, so
 *     that every reduction has a whole layer's time and no more than two layers' gradients are on
 *     their way.
 *   - Sums of gradients that are reduced along one axis share a bucket until it is full.
 * Nothing is on its way from one phase to the next, since the host may use another slot there.
 *
 * Collectives of a group must start in the same order on all its ranks, whose graphs differ in what
 * the norm reads: there everything is waited for, in the order of the starts. */
#include "ops/collective.h"
#include "pass/overlap.h"
#include "pass/pass_internal.h"

#include <stdlib.h>
#include <string.h>

typedef struct Planner {
    const Graph *graph;
    Timetable *table;
    size_t bucket_bytes;
    bool *late;   /* per node: only the norm and the update wait for it */
    Phase *phase; /* per node: in which it is run, with what comes behind it at the latest */
    int *segment; /* per node */
    bool *gone;   /* per node: in the table, or put off */
    int *pending; /* per value: the flight without which it is not there, 0: none */
    int *first_started,
        *next_started;   /* per node: the collectives that read its outputs first, as a list */
    int open[MESH_AXES]; /* flights that take more members */
    int now;             /* segment */
    int work;            /* kernels so far that take their time: products, attention */
    Phase phase_now;
    int landing; /* flight whose readers are being placed */
} Planner;

static Flight *flight_at(const Planner *p, int f) { return &p->table->flight.at[f]; }

/* ---- facts ------------------------------------------------------------------------------ */

static bool is_startable(const Node *node) { return op_start_form(node->op) != NULL; }

/* A gathering that can begin at any time in its phase: of a state, or of what an earlier phase
 * kept. */
static bool gathers_what_is_there(const Graph *g, const Node *node)
{
    if (!node_is(node, "all_gather")) return false;
    const Value *x = graph_value(g, node->in[0]);
    return x->kind == VALUE_STATE ||
           (x->kind == VALUE_TEMP && g->node[x->producer.id].phase < node->phase);
}

/* The next rank waits for a hop; and what came home is added before the one after next comes. */
static bool is_of_ring(const Node *node)
{
    return node_is(node, "ring_pass") || node_is(node, "ring_sum");
}

/* Makes a weight's gradient, or hands it on. All else in a backward pass is on the way to the next
 * layer and its stage, though in the end only the update reads what comes of it. */
static bool is_of_sums(const Node *node)
{
    static const char *const products[] = {"linear_dw", "grouped_linear_dw", "embed_grad", "cut",
                                           "concat"};
    const unsigned hands_on = OP_CHEAP | OP_VIEW | OP_JOINS | OP_EFFECT;
    if (node_is(node, "put")) return false; /* to another stage of this rank */
    for (int i = 0; i < COUNT_OF(products); i++)
        if (node_is(node, products[i])) return true;
    return is_startable(node) || node->op->flags & hands_on || node->phase == PHASE_UPDATE;
}

static void find_late(Planner *p)
{
    const Graph *g = p->graph;
    bool *needed = xcalloc((size_t)g->n_values, sizeof *needed); /* by something that is not late */
    for (int i = 0; i < g->n_outputs; i++) needed[g->output[i].value.id] = true;
    for (int i = g->n_nodes - 1; i > 0; i--) {
        const Node *node = &g->node[i];
        bool late = node->phase != PHASE_FORWARD && is_of_sums(node) && !is_of_ring(node) &&
                    !(node->op->flags & OP_COLLECTIVE && !is_startable(node));
        for (int k = 0; k < node->n_out && late; k++) late = !needed[node->out[k].id];
        p->late[i] = late && !node_is(node, "grad_norm");
        for (int k = 0; k < node->n_in; k++)
            if (!p->late[i] && !node_is(node, "grad_norm") && node->phase != PHASE_UPDATE)
                needed[node->in[k].id] = true;
        needed[0] = false;
    }
    free(needed);
}

static void find_phases(Planner *p)
{
    Phase phase = PHASE_UPDATE;
    for (int i = p->graph->n_nodes - 1; i > 0; i--) {
        if (p->graph->node[i].phase < phase) phase = p->graph->node[i].phase;
        p->phase[i] = phase;
    }
}

/* In each phase a segment begins where a layer is first seen, and behind the last node of any. */
static void find_segments(Planner *p)
{
    const Graph *g = p->graph;
    int n_layers = 0, now = 0;
    for (int i = 1; i < g->n_nodes; i++)
        n_layers = g->node[i].layer >= n_layers ? g->node[i].layer + 1 : n_layers;
    int *seen = xcalloc((size_t)n_layers + 1,
                        sizeof *seen); /* phase + 1 in which the layer was seen last */
    int last[PHASES] = {0};
    for (int i = 1; i < g->n_nodes; i++)
        if (g->node[i].layer >= 0) last[p->phase[i]] = i;
    for (int i = 1; i < g->n_nodes; i++) {
        int layer = g->node[i].layer, phase = (int)p->phase[i];
        bool fresh = i == 1 || p->phase[i] != p->phase[i - 1] || i - 1 == last[phase];
        if (layer >= 0 && seen[layer] != phase + 1) {
            seen[layer] = phase + 1;
            fresh = true;
        }
        now += fresh;
        p->segment[i] = now;
    }
    free(seen);
}

/* Collectives behind the nodes that make their operands. */
static void find_started(Planner *p)
{
    const Graph *g = p->graph;
    for (int i = g->n_nodes - 1; i > 0; i--) {
        const Node *node = &g->node[i];
        if (!is_startable(node)) continue;
        int producer = graph_value(g, node->in[node->n_in - 1])->producer.id;
        if (!producer || p->phase[producer] != p->phase[i]) continue;
        p->next_started[i] = p->first_started[producer];
        p->first_started[producer] = i;
    }
}

/* ---- flights ---------------------------------------------------------------------------- */

static void act(Planner *p, ActKind kind, int index)
{
    VEC_PUSH(&p->table->act, ((Act){kind, index, p->phase_now}));
}

static void visit(Planner *p, int i);
static void land(Planner *p, int f);

static int new_flight(Planner *p)
{
    VEC_PUSH(&p->table->flight, ((Flight){.handed_by = p->landing}));
    return (int)p->table->flight.n - 1;
}

static size_t sent_bytes(const Graph *g, const Node *node)
{
    const Value *x = graph_value(g, node->in[node->n_in - 1]);
    return (size_t)shape_count(&x->shape) * dtype_bytes(x->dtype);
}

static void join(Planner *p, int f, int i)
{
    const Node *node = &p->graph->node[i];
    VEC_PUSH(&flight_at(p, f)->member, i);
    flight_at(p, f)->bytes += sent_bytes(p->graph, node);
    if (flight_at(p, f)->handed_by != p->landing) flight_at(p, f)->handed_by = 0;
    if (value_ok(node->out[0])) p->pending[node->out[0].id] = f;
    p->gone[i] = true;
}

static void close_bucket(Planner *p, int f)
{
    for (int a = 0; a < MESH_AXES; a++)
        if (p->open[a] == f) p->open[a] = 0;
}

static void start(Planner *p, int f)
{
    close_bucket(p, f);
    flight_at(p, f)->started = true;
    flight_at(p, f)->segment = p->now;
    flight_at(p, f)->work = p->work;
    act(p, ACT_START, f);
}

/* Outside of layers there are no segments to go by: no more than a bucket's bytes beside the
 * newest. */
static void limit_flights(Planner *p, int newest)
{
    size_t bytes = 0;
    for (int f = newest - 1; f > 0; f--) {
        if (!flight_at(p, f)->started || flight_at(p, f)->landed) continue;
        bytes += flight_at(p, f)->bytes;
        if (bytes > p->bucket_bytes) land(p, f);
    }
}

static bool takes_bucket(const Planner *p, int i)
{
    const Graph *g = p->graph;
    const Node *node = &g->node[i];
    const Value *x = graph_value(g, node->in[0]);
    return node_is(node, "all_reduce") && node->phase == PHASE_BACKWARD && p->late[i] &&
           x->dtype == DTYPE_F32 && x->kind == VALUE_TEMP && !value_ok(x->base) &&
           p->table->uses[node->in[0].id] == 1;
}

/* Along every axis both are summands, or neither is. */
static bool lie_alike(const Graph *g, const Node *a, const Node *b)
{
    for (int m = 0; m < MESH_AXES; m++)
        if ((graph_value(g, a->in[0])->place[m].kind == PLACE_PARTIAL) !=
            (graph_value(g, b->in[0])->place[m].kind == PLACE_PARTIAL))
            return false;
    return true;
}

static void begin(Planner *p, int i)
{
    const Graph *g = p->graph;
    const Node *node = &g->node[i];
    if (!takes_bucket(p, i)) {
        int f = new_flight(p);
        join(p, f, i);
        start(p, f);
        if (node->phase == PHASE_UPDATE) limit_flights(p, f);
        return;
    }
    int *open = &p->open[((const CollectiveAttr *)node->attr)->axis];
    if (*open && !lie_alike(g, node, &g->node[flight_at(p, *open)->member.at[0]])) start(p, *open);
    if (!*open) *open = new_flight(p);
    join(p, *open, i);
    if (flight_at(p, *open)->bytes >= p->bucket_bytes) start(p, *open);
}

/* The results of a bucket are handed on as a whole where they are reduced along another axis. */
static void close_all(Planner *p)
{
    for (int a = 0; a < MESH_AXES; a++)
        if (p->open[a]) start(p, p->open[a]);
}

static void land(Planner *p, int f)
{
    const Graph *g = p->graph;
    if (!flight_at(p, f)->started) start(p, f);
    act(p, ACT_WAIT, f);
    flight_at(p, f)->landed = true;
    for (size_t k = 0; k < flight_at(p, f)->member.n; k++)
        p->pending[g->node[flight_at(p, f)->member.at[k]].out[0].id] = 0;
    bool whole = flight_at(p, f)->member.n > 1 && flight_at(p, f)->later.n > 0;
    int outer = p->landing;
    if (whole) close_all(p);
    p->landing = f;
    for (size_t k = 0; k < flight_at(p, f)->later.n; k++) {
        int i = flight_at(p, f)->later.at[k];
        for (int j = 0; j < g->node[i].n_out; j++) p->pending[g->node[i].out[j].id] = 0;
        p->gone[i] = false;
        visit(p, i);
    }
    p->landing = outer;
    if (whole) close_all(p);
}

static void land_all(Planner *p)
{
    for (size_t f = 1; f < p->table->flight.n; f++)
        if (!flight_at(p, (int)f)->landed) land(p, (int)f);
}

/* ---- nodes ------------------------------------------------------------------------------ */

static int last_pending(const Planner *p, const Node *node)
{
    int f = 0;
    for (int k = 0; k < node->n_in; k++)
        if (p->pending[node->in[k].id] > f) f = p->pending[node->in[k].id];
    return f;
}

static void put_off(Planner *p, int i, int f)
{
    const Node *node = &p->graph->node[i];
    VEC_PUSH(&flight_at(p, f)->later, i);
    for (int k = 0; k < node->n_out; k++)
        if (value_ok(node->out[k])) p->pending[node->out[k].id] = f;
    p->gone[i] = true;
}

/* What is gathered for a weight's gradient has had a product beside it: it is waited for, since the
 * sums of the other gradients have this product beside them. */
static bool had_its_time(const Planner *p, int f)
{
    const Flight *flight = flight_at(p, f);
    return flight->started && flight->work < p->work &&
           node_is(&p->graph->node[flight->member.at[0]], "all_gather");
}

static bool reads_storage(const Planner *p, int i, int root)
{
    const Node *node = &p->graph->node[i];
    for (int k = 0; k < node->n_in; k++)
        if (value_ok(node->in[k]) && graph_root(p->graph, node->in[k]).id == root) return true;
    return false;
}

/* Before a state changes, whatever still reads it as it is must have done so. */
static void land_readers(Planner *p, int writer)
{
    const Graph *g = p->graph;
    const Node *node = &g->node[writer];
    for (int k = 0; k < node->n_out; k++) {
        if (!value_ok(node->out[k]) || !value_ok(graph_value(g, node->out[k])->base)) continue;
        int root = graph_root(g, node->out[k]).id;
        for (size_t f = 1; f < p->table->flight.n; f++) {
            const Flight *flight = flight_at(p, (int)f);
            bool reads = false;
            if (flight->landed) continue;
            for (size_t m = 0; m < flight->member.n; m++)
                reads |= reads_storage(p, flight->member.at[m], root);
            for (size_t m = 0; m < flight->later.n; m++)
                reads |= reads_storage(p, flight->later.at[m], root);
            if (reads) land(p, (int)f);
        }
    }
}

static bool takes_time(const Node *node)
{
    static const char *const begins[] = {"linear", "grouped_linear", "attention"};
    for (int i = 0; i < COUNT_OF(begins); i++)
        if (!strncmp(node->op->name, begins[i], strlen(begins[i]))) return true;
    return false;
}

static void visit(Planner *p, int i)
{
    const Node *node = &p->graph->node[i];
    int f;
    if (p->gone[i]) return;
    if (node->op->flags & OP_EFFECT && node->phase == PHASE_UPDATE) land_readers(p, i);
    while ((f = last_pending(p, node))) {
        if (p->late[i] && !had_its_time(p, f)) {
            put_off(p, i, f);
            return;
        }
        land(p, f);
    }
    if (is_startable(node)) {
        begin(p, i);
        return;
    }
    p->gone[i] = true;
    p->work += takes_time(node);
    act(p, ACT_NODE, i);
    for (int c = p->first_started[i]; c; c = p->next_started[c]) visit(p, c);
}

/* ---- the walk --------------------------------------------------------------------------- */

/* A row's reduction that is made again, of operands that an earlier phase kept: its gathering can
 * begin with the layer. */
static bool gathers_what_is_remade(const Graph *g, const Node *node)
{
    if (!node_is(node, "all_gather") || node->phase != PHASE_BACKWARD) return false;
    const Value *x = graph_value(g, node->in[0]);
    const Node *by = &g->node[x->producer.id];
    if (x->kind != VALUE_TEMP || by->phase != node->phase || !(by->op->flags & OP_CHEAP) ||
        by->op->flags & OP_COLLECTIVE)
        return false;
    for (int k = 0; k < by->n_in; k++) {
        const Value *in = value_ok(by->in[k]) ? graph_value(g, by->in[k]) : NULL;
        if (in && in->kind == VALUE_TEMP && g->node[in->producer.id].phase >= node->phase)
            return false;
    }
    return true;
}

static void remake(Planner *p, int first)
{
    const Graph *g = p->graph;
    for (int i = first; i < g->n_nodes && p->segment[i] <= p->now; i++)
        if (p->segment[i] == p->now && p->phase[i] == p->phase_now &&
            gathers_what_is_remade(g, &g->node[i]))
            visit(p, graph_value(g, g->node[i].in[0])->producer.id);
}

static void prefetch(Planner *p, int first, int segment)
{
    const Graph *g = p->graph;
    for (int i = first; i < g->n_nodes && p->segment[i] <= segment; i++)
        if (p->segment[i] == segment && p->phase[i] == p->phase_now &&
            gathers_what_is_there(g, &g->node[i]))
            visit(p, i);
}

/* A sum that stays in its own place and that nothing has to follow costs nothing until the norm. */
static bool is_worth_landing(const Planner *p, const Flight *f)
{
    const Node *node = &p->graph->node[f->member.at[0]];
    return f->later.n > 0 || !node_is(node, "all_reduce");
}

/* Sums have a whole layer's time; what a weight's gradient waits for only the rest of its layer's,
 * since its other operand is held as long. */
static bool is_due(const Planner *p, const Flight *f)
{
    bool gathers = node_is(&p->graph->node[f->member.at[0]], "all_gather");
    return f->segment + (gathers && f->later.n > 0 ? 1 : 2) <= p->now && is_worth_landing(p, f);
}

static void enter_segment(Planner *p, int i)
{
    bool fresh_phase = i == 1 || p->phase[i] != p->phase_now;
    if (fresh_phase) land_all(p);
    p->phase_now = p->phase[i];
    p->now = p->segment[i];
    for (size_t f = 1; f < p->table->flight.n; f++) {
        const Flight *flight = flight_at(p, (int)f);
        if (flight->started && !flight->landed && is_due(p, flight)) land(p, (int)f);
    }
    if (fresh_phase) prefetch(p, i, p->now);
    remake(p, i);
    prefetch(p, i, p->now + 1);
}

static void walk(Planner *p)
{
    const Graph *g = p->graph;
    for (int i = 1; i < g->n_nodes; i++) {
        if (p->segment[i] != p->now) enter_segment(p, i);
        if (node_is(&g->node[i], "grad_norm")) land_all(p);
        visit(p, i);
    }
    land_all(p);
}

/* What nothing runs beside is waited for where it stands. */
static void join_neighbours(const Planner *p)
{
    Timetable *t = p->table;
    for (size_t a = 0; a < t->act.n; a++) {
        Act *begin = &t->act.at[a];
        if (begin->kind != ACT_START || flight_at(p, begin->index)->member.n > 1) continue;
        for (size_t b = a + 1; b < t->act.n; b++) {
            Act *end = &t->act.at[b];
            if (end->kind == ACT_NODE && !(p->graph->node[end->index].op->flags & OP_VIEW)) break;
            if (end->kind != ACT_WAIT || end->index != begin->index) continue;
            end->index = 0; /* no flight: nothing to do */
            begin->kind = ACT_NODE;
            begin->index = flight_at(p, begin->index)->member.at[0];
            break;
        }
    }
}

void timetable_make(const Graph *g, size_t bucket_bytes, Timetable *table)
{
    size_t n_nodes = (size_t)g->n_nodes;
    *table = (Timetable){.uses = pass_count_uses(g)};
    VEC_PUSH(&table->flight, ((Flight){.landed = true}));
    Planner p = {.graph = g, .table = table, .bucket_bytes = bucket_bytes};
    p.late = xcalloc(n_nodes, sizeof *p.late);
    p.phase = xcalloc(n_nodes, sizeof *p.phase);
    p.segment = xcalloc(n_nodes, sizeof *p.segment);
    p.gone = xcalloc(n_nodes, sizeof *p.gone);
    p.pending = xcalloc((size_t)g->n_values, sizeof *p.pending);
    p.first_started = xcalloc(n_nodes, sizeof *p.first_started);
    p.next_started = xcalloc(n_nodes, sizeof *p.next_started);
    find_late(&p);
    find_phases(&p);
    find_segments(&p);
    find_started(&p);
    walk(&p);
    join_neighbours(&p);
    free(p.late);
    free(p.phase);
    free(p.segment);
    free(p.gone);
    free(p.pending);
    free(p.first_started);
    free(p.next_started);
}

void timetable_free(Timetable *t)
{
    for (size_t f = 0; f < t->flight.n; f++) {
        VEC_FREE(&t->flight.at[f].member);
        VEC_FREE(&t->flight.at[f].later);
    }
    VEC_FREE(&t->flight);
    VEC_FREE(&t->act);
    free(t->uses);
}
