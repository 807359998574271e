/* Overlap: communication under computation. Each collective becomes a start and a wait
 * (ops/collective_start.c), in the order that timetable.c finds; sums of gradients that share a
 * bucket become one all_reduce. What a sum is made of and in which order does not change, so the
 * numbers are the same bits. */
#include "pass/overlap.h"
#include "ops/bucket.h"
#include "ops/collective.h"
#include "pass/pass_internal.h"

#include <stdlib.h>
#include <string.h>

/* What a started flight is in the new graph. */
typedef struct Aloft {
    OnItsWay way;
    ValueId whole; /* the bucket with the result in it */
} Aloft;

typedef struct Overlap {
    Timetable table;
    Rewrite rewrite;
    Aloft *aloft; /* per flight */
    int *clears;  /* per old value: reads that only clear it */
} Overlap;

static const Node *member_at(const Overlap *o, const Flight *f, size_t k)
{
    return &o->rewrite.from->node[f->member.at[k]];
}

/* ---- start ------------------------------------------------------------------------------ */

/* Memory that this value alone shows, if only as what was reduced in place before: temporary, or
 * (sums of gradients) a state that is cleared afterwards. */
static bool is_own_memory(const Graph *g, ValueId x, bool cleared)
{
    while (value_ok(graph_value(g, x)->base)) {
        const OpDef *op = graph_node(g, graph_value(g, x)->producer)->op;
        bool whole = shape_equal(&graph_value(g, graph_value(g, x)->base)->shape,
                                 &graph_value(g, x)->shape);
        if (!(op->flags & (OP_STARTS | OP_WAITS)) && !(cleared && op->flags & OP_EFFECT && whole))
            return false;
        x = graph_value(g, x)->base;
    }
    return graph_value(g, x)->kind == (cleared ? VALUE_STATE : VALUE_TEMP);
}

static bool may_take_place(const Overlap *o, const Node *node, ValueId x)
{
    int clears = o->clears[node->in[0].id];
    return node_is(node, "all_reduce") && o->table.uses[node->in[0].id] == 1 + clears &&
           is_own_memory(o->rewrite.to, x, clears > 0);
}

static Status start_one(Overlap *o, int flight)
{
    const Node *node = member_at(o, &o->table.flight.at[flight], 0);
    Graph *g = o->rewrite.to;
    ValueId in[2];
    CollectiveAttr attr;
    CHECK(node->n_in > 0 && node->n_in <= COUNT_OF(in));
    memcpy(&attr, node->attr, sizeof attr);
    for (int k = 0; k < node->n_in; k++) in[k] = rewrite_get(&o->rewrite, node->in[k]);
    attr.in_place = may_take_place(o, node, in[0]);
    TRY(op_start(g, node->op, &attr, in, &o->aloft[flight].way));
    if (value_ok(node->out[0]))
        graph_value(g, o->aloft[flight].way.y)->whole =
            graph_value(o->rewrite.from, node->out[0])->whole;
    return OK;
}

/* The members are the results of another bucket, all of them in their order: it is handed on. */
static bool is_handed_on(const Overlap *o, const Flight *f)
{
    const Flight *by = &o->table.flight.at[f->handed_by];
    if (!f->handed_by || by->member.n != f->member.n) return false;
    for (size_t k = 0; k < f->member.n; k++)
        if (member_at(o, f, k)->in[0].id != member_at(o, by, k)->out[0].id) return false;
    return true;
}

static Status make_bucket(Overlap *o, const Flight *f, ValueId *bucket)
{
    ValueId *x = xcalloc(f->member.n, sizeof *x);
    if (is_handed_on(o, f)) {
        *bucket = o->aloft[f->handed_by].whole;
        free(x);
        return OK;
    }
    for (size_t k = 0; k < f->member.n; k++)
        x[k] = rewrite_get(&o->rewrite, member_at(o, f, k)->in[0]);
    Status status = op_bucket(o->rewrite.to, (int)f->member.n, x, bucket);
    free(x);
    return status;
}

static Status start_bucket(Overlap *o, int flight)
{
    const Flight *f = &o->table.flight.at[flight];
    Graph *g = o->rewrite.to;
    CollectiveAttr attr;
    ValueId bucket;
    TRY(make_bucket(o, f, &bucket));
    memcpy(&attr, member_at(o, f, 0)->attr, sizeof attr);
    attr.whole = graph_value(g, bucket)->shape;
    attr.in_place = true;
    return op_start(g, member_at(o, f, 0)->op, &attr, &bucket, &o->aloft[flight].way);
}

/* ---- wait ------------------------------------------------------------------------------- */

static Status land_bucket(Overlap *o, const Flight *f, ValueId bucket)
{
    size_t offset = 0;
    for (size_t k = 0; k < f->member.n; k++) {
        ValueId old = member_at(o, f, k)->out[0], x;
        const Value like = *graph_value(o->rewrite.from, old);
        TRY(op_bucket_part(o->rewrite.to, bucket, &like, offset, &x));
        offset += (size_t)shape_count(&like.shape) * dtype_bytes(like.dtype);
        rewrite_set(&o->rewrite, old, x);
    }
    return OK;
}

static Status land(Overlap *o, int flight)
{
    const Flight *f = &o->table.flight.at[flight];
    Aloft *a = &o->aloft[flight];
    TRY(op_wait(o->rewrite.to, &a->way, &a->whole));
    if (f->member.n > 1) return land_bucket(o, f, a->whole);
    if (a->way.attr.in_place)
        rewrite_set(&o->rewrite, member_at(o, f, 0)->in[0], a->whole); /* for who clears it */
    if (value_ok(member_at(o, f, 0)->out[0]))
        rewrite_set(&o->rewrite, member_at(o, f, 0)->out[0], a->whole);
    return OK;
}

/* ---- the new graph ---------------------------------------------------------------------- */

static void stamp(Overlap *o, const Flight *f, Phase phase)
{
    Graph *g = o->rewrite.to;
    const Node *last = member_at(o, f, f->member.n - 1);
    g->phase = phase;
    g->layer = last->layer;
    g->scope = f->member.n > 1 ? arena_printf(&g->arena, "%d gradients", (int)f->member.n)
               : last->name    ? arena_strdup(&g->arena, last->name)
                               : NULL;
}

static Status make_act(Overlap *o, const Act *act)
{
    if (act->kind == ACT_NODE) return rewrite_copy_node(&o->rewrite, (NodeId){act->index});
    const Flight *f = &o->table.flight.at[act->index];
    if (f->member.n == 0) return OK; /* was waited for where it stands */
    stamp(o, f, act->phase);
    if (act->kind == ACT_WAIT) return land(o, act->index);
    return f->member.n > 1 ? start_bucket(o, act->index) : start_one(o, act->index);
}

static int *count_clears(const Graph *g)
{
    int *clears = xcalloc((size_t)g->n_values, sizeof *clears);
    for (int i = 1; i < g->n_nodes; i++)
        if (node_is(&g->node[i], "clear")) clears[g->node[i].in[0].id]++;
    return clears;
}

Status pass_overlap(Graph **graph, const Layout *layout)
{
    if (mesh_ranks(&layout->mesh) < 2 || layout->blocking) return OK;
    Overlap o = {0};
    timetable_make(*graph, layout->bucket_bytes ? layout->bucket_bytes : LAYOUT_BUCKET_BYTES,
                   &o.table);
    o.aloft = xcalloc(o.table.flight.n, sizeof *o.aloft);
    o.clears = count_clears(*graph);
    rewrite_begin(&o.rewrite, *graph);
    Status status = OK;
    for (size_t i = 0; i < o.table.act.n && status == OK; i++)
        status = make_act(&o, &o.table.act.at[i]);
    timetable_free(&o.table);
    free(o.aloft);
    free(o.clears);
    if (status != OK) {
        rewrite_abort(&o.rewrite);
        return status;
    }
    TRY(rewrite_end(&o.rewrite, graph));
    return pass_check(*graph, "overlap");
}
