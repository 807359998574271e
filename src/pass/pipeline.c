/* Pipeline parallelism: layers are shared out over stages. A stage keeps the nodes of its layers;
 * the embedding goes to the first stage, the loss to the last, what needs nothing but inputs to
 * every stage that reads it. A value that another stage reads is sent as soon as it is made, and
 * received in front of its first reader.
 *
 * A weight that two stages read (a tied embedding) lies on both. Each stage sums its own part of
 * the gradient; where the stages lie on two ranks, the update adds the parts (pipeline_update.c).
 * In a canonical graph the parts are summed by themselves anyway (autodiff.c).
 *
 * It runs on the differentiated graph with summed gradients: forward and backward are phases of one
 * program for each stage, which the host runs for one micro-batch after another as a schedule says.
 */
#include "pass/pass_internal.h"

#include <stdlib.h>
#include <string.h>

enum { EVERYWHERE = -1, NOWHERE = -2 };

/* Of a value, to one stage that reads it. */
typedef struct Channel {
    int stage;  /* the reader */
    Phase read; /* phase of the first reader */
    int next;   /* channel of the same value, 0: the last; channels count from 1 */
} Channel;

typedef struct Cut {
    const Graph *from;
    Rewrite rewrite;
    const Layout *layout;
    const Pipeline *pipeline;
    bool one_at_a_time;
    const char *buffers; /* how the names of this graph's begin */
    int n, stage;        /* stages; this one */
    int64_t n_layers;
    int *uses;     /* per value */
    int *stage_of; /* per node. EVERYWHERE: wherever it is read; NOWHERE: a sum whose summands each
                      stage adds itself */
    VEC(Channel) channel;
    int *first_channel; /* per value: of those that carry it; 0 none */
    bool *there;        /* per stage: it is in the list of Layout.stage_of_layer, if there is one */
    bool *made;         /* per node that is everywhere: already made here */
    int (*holder)[2];   /* per state: 1 + the ranks that have it; 0 none */
} Cut;

static const Node *producer_of(const Cut *c, ValueId v)
{
    if (!value_ok(v)) return NULL;
    const Value *value = graph_value(c->from, v);
    return value->kind == VALUE_TEMP ? graph_node(c->from, value->producer) : NULL;
}

static int producer_stage(const Cut *c, ValueId v)
{
    return c->stage_of[graph_value(c->from, v)->producer.id];
}

/* ---- whose a node is -------------------------------------------------------------------- */

static int layer_stage(const Cut *c, int layer)
{
    const int *table = c->layout->stage_of_layer;
    return table ? table[layer] : (int)((int64_t)layer * c->n / c->n_layers);
}

/* Outside of layers: where its operands are made. */
static int stage_without_layer(const Cut *c, const Node *node)
{
    int stage = EVERYWHERE;
    bool state = false;
    for (int k = 0; k < node->n_in; k++) {
        if (producer_of(c, node->in[k])) {
            int s = producer_stage(c, node->in[k]);
            stage = s > stage ? s : stage;
        } else if (value_ok(node->in[k])) {
            state |= graph_value(c->from, node->in[k])->kind == VALUE_STATE;
        }
    }
    return stage == EVERYWHERE && state ? 0
                                        : stage; /* the embedding reads a weight and the tokens */
}

typedef VEC(ValueId) Values;

/* What is added up to v, when nobody else reads the sums on the way; *sums: the nodes that add. */
static void find_summands(const Cut *c, ValueId v, Values *summands, Values *sums)
{
    const Node *node = producer_of(c, v);
    if (!node || !node_is(node, "add") || c->uses[v.id] != 1) {
        VEC_PUSH(summands, v);
        return;
    }
    VEC_PUSH(sums, v);
    find_summands(c, node->in[0], summands, sums);
    find_summands(c, node->in[1], summands, sums);
}

/* A gradient whose parts are made on several stages is not brought together: each adds its own to
 * the sum. */
static void split_sum(Cut *c, int i)
{
    Values summands = {0}, sums = {0};
    find_summands(c, c->from->node[i].in[1], &summands, &sums);
    bool several = false;
    for (size_t k = 1; k < summands.n; k++)
        several |= producer_stage(c, summands.at[k]) != producer_stage(c, summands.at[0]);
    if (several) {
        c->stage_of[i] = NOWHERE;
        for (size_t k = 0; k < sums.n; k++)
            c->stage_of[graph_value(c->from, sums.at[k])->producer.id] = NOWHERE;
    }
    VEC_FREE(&summands);
    VEC_FREE(&sums);
}

static void find_stages(Cut *c)
{
    for (int i = 1; i < c->from->n_nodes; i++)
        if (c->from->node[i].layer >= c->n_layers) c->n_layers = c->from->node[i].layer + 1;
    for (int i = 1; i < c->from->n_nodes; i++) {
        const Node *node = &c->from->node[i];
        c->stage_of[i] = node->layer >= 0 ? layer_stage(c, node->layer)
                                          : stage_without_layer(c, node);
        if (c->stage_of[i] >= 0) c->there[c->stage_of[i]] = true;
    }
    for (int i = 1; i < c->from->n_nodes; i++)
        if (op_adds_to_state(&c->from->node[i]) && producer_of(c, c->from->node[i].in[1]))
            split_sum(c, i);
}

/* ---- whose a state is ------------------------------------------------------------------- */

static Status add_holder(Cut *c, ValueId v, int stage)
{
    if (!value_ok(v) || graph_value(c->from, v)->kind != VALUE_STATE || stage < 0) return OK;
    int rank = 1 + c->pipeline->rank_of[stage], *holder = c->holder[v.id];
    for (int k = 0; k < 2; k++) {
        if (holder[k] == 0) holder[k] = rank;
        if (holder[k] == rank)
            return add_holder(c, graph_value(c->from, v)->master, stage); /* the update reads it */
    }
    return fail(
        ERR_REFUSED,
        "parallel.pp %d: %s is read on more than two ranks of the pipeline, which is not supported",
        c->pipeline->n_ranks, graph_value(c->from, v)->name);
}

static Status find_holders(Cut *c)
{
    for (int i = 1; i < c->from->n_nodes; i++) {
        const Node *node = &c->from->node[i];
        for (int k = 0; k < node->n_in; k++) TRY(add_holder(c, node->in[k], c->stage_of[i]));
        if (c->stage_of[i] != NOWHERE || !op_adds_to_state(node)) continue;
        Values summands = {0}, sums = {0};
        find_summands(c, node->in[1], &summands, &sums);
        Status status = OK;
        for (size_t k = 0; k < summands.n && status == OK; k++)
            status = add_holder(c, node->in[0], producer_stage(c, summands.at[k]));
        VEC_FREE(&summands);
        VEC_FREE(&sums);
        TRY(status);
    }
    return OK;
}

/* The ranks of a weight have a summand of its gradient each, if in states of different names. */
static const int *holders_of(const Cut *c, int state)
{
    const Value *v = &c->from->value[state];
    return c->holder[v->role == STATE_GRAD && value_ok(v->master) ? v->master.id : state];
}

/* A gradient that two ranks have is a summand on each. */
static void mark_twins(Cut *c)
{
    int here = 1 + c->pipeline->rank_of[c->stage];
    for (int i = 1; i < c->from->n_values; i++) {
        const int *holder = holders_of(c, i);
        if (!holder[1] || (holder[0] != here && holder[1] != here)) continue;
        ValueId here_too = rewrite_get(&c->rewrite, (ValueId){i});
        if (!value_ok(here_too)) continue; /* another stage's of this rank */
        Value *v = graph_value(c->rewrite.to, here_too);
        v->twin = holder[0] == here ? holder[1] : holder[0];
        if (v->role == STATE_GRAD) v->place[MESH_PP] = (Place){PLACE_PARTIAL, 0};
    }
}

/* Whether this stage adds to a sum that several have a part in. */
static bool has_summand(const Cut *c, const Node *node)
{
    Values summands = {0}, sums = {0};
    bool any = false;
    find_summands(c, node->in[1], &summands, &sums);
    for (size_t k = 0; k < summands.n; k++) any |= producer_stage(c, summands.at[k]) == c->stage;
    VEC_FREE(&summands);
    VEC_FREE(&sums);
    return any;
}

/* The states that nodes here read, and their masters, which the update reads; others belong to
 * other stages. */
static bool *find_own_states(const Cut *c)
{
    const Graph *g = c->from;
    bool *own = xcalloc((size_t)g->n_values, sizeof *own);
    for (int i = 1; i < g->n_nodes; i++) {
        const Node *node = &g->node[i];
        bool here = c->stage_of[i] == c->stage || c->stage_of[i] == EVERYWHERE;
        if (c->stage_of[i] == NOWHERE && node_is(node, "accumulate")) here = has_summand(c, node);
        for (int k = 0; k < node->n_in && here; k++)
            for (ValueId v = node->in[k]; value_ok(v); v = graph_value(g, v)->kind == VALUE_STATE
                                                               ? graph_value(g, v)->master
                                                               : graph_value(g, v)->base)
                own[v.id] = true;
    }
    return own;
}

/* ---- messages --------------------------------------------------------------------------- */

/* The last tag is join_stages'. */
enum { MAX_CHANNELS = COMM_TAG_LIMIT - 1 };

/* 0: none */
static int channel_of(const Cut *c, ValueId v, int stage)
{
    int channel = c->first_channel[v.id];
    while (channel && c->channel.at[channel].stage != stage) channel = c->channel.at[channel].next;
    return channel;
}

/* Where stages are left out only neighbours may speak: others could not tell how far apart they
 * are. */
static bool are_neighbours(const Cut *c, int a, int b)
{
    int low = a < b ? a : b, high = a < b ? b : a;
    for (int s = low + 1; s < high; s++)
        if (c->there[s]) return false;
    return true;
}

/* Numbers every (value, reading stage) pair, the same on all stages. */
static Status find_channels(Cut *c)
{
    VEC_PUSH(&c->channel, (Channel){0});
    for (int i = 1; i < c->from->n_nodes; i++) {
        const Node *node = &c->from->node[i];
        for (int k = 0; k < node->n_in && c->stage_of[i] >= 0; k++) {
            if (!producer_of(c, node->in[k])) continue;
            int made = producer_stage(c, node->in[k]);
            if (made < 0 || made == c->stage_of[i] || channel_of(c, node->in[k], c->stage_of[i]))
                continue;
            bool forward = producer_of(c, node->in[k])->phase == PHASE_FORWARD;
            if (forward !=
                (made < c->stage_of[i])) /* its stage would wait for one that waits for it */
                return fail(ERR_UNSUPPORTED,
                            "%s of stage %d reads what stage %d makes in its %s phase",
                            node->op->name, c->stage_of[i], made,
                            phase_name(producer_of(c, node->in[k])->phase));
            if (c->layout->stage_of_layer && !are_neighbours(c, made, c->stage_of[i]))
                return fail(ERR_UNSUPPORTED,
                            "%s of stage %d reads what stage %d makes, and stages are left out",
                            node->op->name, c->stage_of[i], made);
            Channel channel = {c->stage_of[i], node->phase, c->first_channel[node->in[k].id]};
            c->first_channel[node->in[k].id] = (int)c->channel.n;
            VEC_PUSH(&c->channel, channel);
        }
    }
    int n = (int)c->channel.n - 1;
    return n < MAX_CHANNELS
               ? OK
               : fail(ERR_UNSUPPORTED, "%d values between stages, at most %d are possible", n,
                      MAX_CHANNELS);
}

static void stamp(Cut *c, const Node *node)
{
    Graph *g = c->rewrite.to;
    g->phase = node->phase;
    g->layer = node->layer;
    graph_set_scope(g, "pipe");
}

static PipelineWork work_of(Phase phase)
{
    return phase == PHASE_FORWARD ? PIPELINE_FORWARD : PIPELINE_BACKWARD;
}

/* The end that this stage has of the channel on which `to` reads v. */
static PipeEnd end_of(const Cut *c, ValueId v, int to, bool sends)
{
    int from = producer_stage(c, v), channel = channel_of(c, v, to);
    if (c->layout->stage_of_layer && sends)
        to = to > from ? from + 1 : from - 1;
    else if (c->layout->stage_of_layer)
        from = from < to ? to - 1 : to + 1;
    int peer = c->pipeline->rank_of[sends ? to : from];
    PipelineWork made = work_of(producer_of(c, v)->phase),
                 read = work_of(c->channel.at[channel].read);
    return (PipeEnd){.peer = peer,
                     .here = peer == c->pipeline->rank_of[c->stage],
                     .channel = channel - 1,
                     .depth = c->one_at_a_time ? 1
                                               : pipeline_depth(c->pipeline, from, made, to, read),
                     .buffers = c->buffers,
                     .sequence = c->layout->sequence};
}

/* What the node reads is brought here: received, or made here too. */
static Status bring_operands(Cut *c, const Node *node)
{
    for (int k = 0; k < node->n_in; k++) {
        const Node *producer = producer_of(c, node->in[k]);
        if (!producer) continue;
        int made = producer_stage(c, node->in[k]),
            index = graph_value(c->from, node->in[k])->producer.id;
        if (made == EVERYWHERE && !c->made[index]) {
            TRY(bring_operands(c, producer));
            TRY(rewrite_copy_node(&c->rewrite, (NodeId){index}));
            c->rewrite.to->node[c->rewrite.to->n_nodes - 1].phase = node->phase;
            c->made[index] = true;
        }
        if (made == EVERYWHERE || made == c->stage ||
            value_ok(rewrite_get(&c->rewrite, node->in[k])))
            continue;
        const Value *v = graph_value(c->from, node->in[k]);
        ValueId x;
        stamp(c, node);
        TRY(op_recv(c->rewrite.to, v->dtype, v->shape, end_of(c, node->in[k], c->stage, false),
                    &x));
        rewrite_set(&c->rewrite, node->in[k], x);
    }
    return OK;
}

static Status send_outputs(Cut *c, const Node *node)
{
    for (int k = 0; k < node->n_out; k++) {
        for (int s = 0; value_ok(node->out[k]) && c->first_channel[node->out[k].id] && s < c->n;
             s++) {
            if (!channel_of(c, node->out[k], s)) continue;
            ValueId x = rewrite_get(&c->rewrite, node->out[k]);
            const Value *v = graph_value(c->rewrite.to, x);
            stamp(c, node);
            if (!stride_is_contiguous(&v->shape, v->stride))
                TRY(op_concat(c->rewrite.to, 1, &x, &x));
            TRY(op_send(c->rewrite.to, x, end_of(c, node->out[k], s, true)));
        }
    }
    return OK;
}

/* ---- nodes ------------------------------------------------------------------------------ */

/* This stage's summands of a sum that several have a part in. */
static Status add_own_summands(Cut *c, const Node *node)
{
    Values summands = {0}, sums = {0};
    Status status = OK;
    ValueId sum = rewrite_get(&c->rewrite, node->in[0]);
    find_summands(c, node->in[1], &summands, &sums);
    stamp(c, node);
    graph_set_scope(c->rewrite.to, node->name);
    for (size_t k = 0; k < summands.n && status == OK; k++)
        if (producer_stage(c, summands.at[k]) == c->stage)
            status = op_accumulate(c->rewrite.to, sum, rewrite_get(&c->rewrite, summands.at[k]),
                                   &sum);
    VEC_FREE(&summands);
    VEC_FREE(&sums);
    return status;
}

static Status keep_own_nodes(Cut *c)
{
    for (int i = 1; i < c->from->n_nodes; i++) {
        const Node *node = &c->from->node[i];
        if (c->stage_of[i] == NOWHERE && node_is(node, "accumulate"))
            TRY(add_own_summands(c, node));
        if (c->stage_of[i] != c->stage) continue;
        TRY(bring_operands(c, node));
        TRY(rewrite_copy_node(&c->rewrite, (NodeId){i}));
        TRY(send_outputs(c, node));
    }
    return OK;
}

/* Outputs that other stages make are theirs. */
static void keep_own_outputs(Cut *c)
{
    for (int i = 0; i < c->from->n_outputs; i++) {
        ValueId v = c->from->output[i].value;
        if (value_ok(rewrite_get(&c->rewrite, v)) && producer_stage(c, v) == c->stage)
            graph_output(c->rewrite.to, c->from->output[i].name, rewrite_get(&c->rewrite, v));
    }
}

static Status cut(Cut *c)
{
    find_stages(c);
    if (!c->layout->stage_of_layer && c->n > c->n_layers)
        return fail(ERR_REFUSED,
                    "parallel.pp %d with %d stage%s on a rank: the model has %lld layers, which "
                    "cannot be shared out over %d stages",
                    c->pipeline->n_ranks, c->n / c->pipeline->n_ranks,
                    c->n > c->pipeline->n_ranks ? "s" : "", (long long)c->n_layers, c->n);
    TRY(find_holders(c));
    TRY(find_channels(c));
    bool *own = find_own_states(c);
    rewrite_begin_of(&c->rewrite, c->from, own);
    free(own);
    c->buffers = c->one_at_a_time ? arena_printf(&c->rewrite.to->arena, "pipe.%s", c->from->name)
                                  : "pipe";
    mark_twins(c);
    TRY(keep_own_nodes(c));
    keep_own_outputs(c);
    return OK;
}

Status pass_pipeline(const Graph *whole, const Layout *layout, int stage, bool one_at_a_time,
                     Graph **out)
{
    CHECK(layout->pipeline);
    Cut c = {.from = whole,
             .layout = layout,
             .pipeline = layout->pipeline,
             .one_at_a_time = one_at_a_time,
             .n = layout->pipeline->n_stages,
             .stage = stage};
    c.uses = pass_count_uses(whole);
    c.stage_of = xcalloc((size_t)whole->n_nodes, sizeof *c.stage_of);
    c.made = xcalloc((size_t)whole->n_nodes, sizeof *c.made);
    c.first_channel = xcalloc((size_t)whole->n_values, sizeof *c.first_channel);
    c.there = xcalloc((size_t)c.n, sizeof *c.there);
    c.holder = xcalloc((size_t)whole->n_values, sizeof *c.holder);
    Status status = cut(&c);
    free(c.uses);
    free(c.stage_of);
    free(c.made);
    free(c.first_channel);
    free(c.there);
    VEC_FREE(&c.channel);
    free(c.holder);
    Graph *g = c.rewrite.to;
    if (status == OK) {
        free(c.rewrite.map);
        g->layer = -1;
        g->scope = NULL;
        status = pass_check(g, "pipeline");
        if (status != OK) graph_destroy(g);
    } else if (g) {
        rewrite_abort(&c.rewrite);
    }
    if (status == OK) *out = g;
    return status;
}
