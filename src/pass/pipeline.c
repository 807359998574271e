/* Pipeline parallelism: layers are shared out over stages. A stage keeps the nodes of its layers; the embedding
 * goes to the first stage, the loss to the last, what needs nothing but inputs to every stage that reads it. A value
 * that another stage reads is sent as soon as it is made, and received in front of its first reader.
 *
 * It runs on the differentiated graph with summed gradients: forward and backward are phases of one program, which
 * the host runs for one micro-batch after another as a schedule says. */
#include "ops/grad_norm.h"
#include "pass/pass_internal.h"

#include <stdlib.h>
#include <string.h>

enum { EVERYWHERE = -1 };

typedef struct Pipeline {
    const Graph *from;
    Rewrite rewrite;
    const Layout *layout;
    int n, stage;      /* stages; this one */
    int64_t n_layers;
    int *stage_of;     /* per node, EVERYWHERE: wherever it is read */
    int *channel;      /* [values x stages]: of a value that a stage receives, 0 none, else 1 + number */
    bool *made;        /* per node that is everywhere: already made here */
} Pipeline;

static int layer_stage(const Pipeline *p, int layer) { return (int)((int64_t)layer * p->n / p->n_layers); }

static const Node *producer_of(const Pipeline *p, ValueId v)
{
    if (!value_ok(v)) return NULL;
    const Value *value = graph_value(p->from, v);
    return value->kind == VALUE_TEMP ? graph_node(p->from, value->producer) : NULL;
}

static int producer_stage(const Pipeline *p, ValueId v) { return p->stage_of[graph_value(p->from, v)->producer.id]; }

/* Outside of layers: where its operands are made. */
static int stage_without_layer(const Pipeline *p, const Node *node)
{
    int stage = EVERYWHERE;
    bool state = false;
    for (int k = 0; k < node->n_in; k++) {
        if (producer_of(p, node->in[k])) {
            int s = producer_stage(p, node->in[k]);
            stage = s > stage ? s : stage;
        } else if (value_ok(node->in[k])) {
            state |= graph_value(p->from, node->in[k])->kind == VALUE_STATE;
        }
    }
    return stage == EVERYWHERE && state ? 0 : stage; /* the embedding reads a weight and the tokens */
}

static void find_stages(Pipeline *p)
{
    for (int i = 1; i < p->from->n_nodes; i++)
        if (p->from->node[i].layer >= p->n_layers) p->n_layers = p->from->node[i].layer + 1;
    for (int i = 1; i < p->from->n_nodes; i++) {
        const Node *node = &p->from->node[i];
        p->stage_of[i] = node->layer >= 0 ? layer_stage(p, node->layer) : stage_without_layer(p, node);
    }
}

/* Numbers every (value, reading stage) pair, the same on all stages. */
static Status find_channels(Pipeline *p)
{
    int n = 0;
    for (int i = 1; i < p->from->n_nodes; i++) {
        const Node *node = &p->from->node[i];
        for (int k = 0; k < node->n_in && p->stage_of[i] != EVERYWHERE; k++) {
            if (!producer_of(p, node->in[k])) continue;
            int made = producer_stage(p, node->in[k]), *channel = &p->channel[node->in[k].id * p->n + p->stage_of[i]];
            if (made != EVERYWHERE && made != p->stage_of[i] && !*channel) *channel = ++n;
        }
    }
    return n < COMM_TAG_LIMIT ? OK : fail(ERR_UNSUPPORTED, "%d values between stages, at most %d are possible", n, COMM_TAG_LIMIT);
}

static void stamp(Pipeline *p, const Node *node)
{
    Graph *g = p->rewrite.to;
    g->phase = node->phase;
    g->layer = node->layer;
    graph_set_scope(g, "pipe");
}

static PipeEnd end_of(const Pipeline *p, int channel, int peer)
{
    return (PipeEnd){.peer = peer, .channel = channel - 1, .sequence = p->layout->sequence};
}

/* What the node reads is brought here: received, or made here too. */
static Status bring_operands(Pipeline *p, const Node *node)
{
    for (int k = 0; k < node->n_in; k++) {
        const Node *producer = producer_of(p, node->in[k]);
        if (!producer) continue;
        int made = producer_stage(p, node->in[k]), index = graph_value(p->from, node->in[k])->producer.id;
        if (made == EVERYWHERE && !p->made[index]) {
            TRY(bring_operands(p, producer));
            TRY(rewrite_copy_node(&p->rewrite, (NodeId){index}));
            p->rewrite.to->node[p->rewrite.to->n_nodes - 1].phase = node->phase;
            p->made[index] = true;
        }
        if (made == EVERYWHERE || made == p->stage || value_ok(rewrite_get(&p->rewrite, node->in[k]))) continue;
        const Value *v = graph_value(p->from, node->in[k]);
        ValueId x;
        stamp(p, node);
        TRY(op_recv(p->rewrite.to, v->dtype, v->shape, end_of(p, p->channel[node->in[k].id * p->n + p->stage], made), &x));
        rewrite_set(&p->rewrite, node->in[k], x);
    }
    return OK;
}

static Status send_outputs(Pipeline *p, const Node *node)
{
    for (int k = 0; k < node->n_out; k++) {
        for (int s = 0; value_ok(node->out[k]) && s < p->n; s++) {
            int channel = p->channel[node->out[k].id * p->n + s];
            if (!channel) continue;
            ValueId x = rewrite_get(&p->rewrite, node->out[k]);
            const Value *v = graph_value(p->rewrite.to, x);
            stamp(p, node);
            if (!stride_is_contiguous(&v->shape, v->stride)) TRY(op_concat(p->rewrite.to, 1, &x, &x));
            TRY(op_send(p->rewrite.to, x, end_of(p, channel, s)));
        }
    }
    return OK;
}

static Status keep_own_nodes(Pipeline *p)
{
    for (int i = 1; i < p->from->n_nodes; i++) {
        if (p->stage_of[i] != p->stage) continue;
        TRY(bring_operands(p, &p->from->node[i]));
        TRY(rewrite_copy_node(&p->rewrite, (NodeId){i}));
        TRY(send_outputs(p, &p->from->node[i]));
    }
    return OK;
}

/* Outputs that other stages make are theirs. */
static void keep_own_outputs(const Pipeline *p, Graph *from)
{
    int kept = 0;
    for (int i = 0; i < from->n_outputs; i++)
        if (value_ok(rewrite_get(&p->rewrite, from->output[i].value)) && producer_stage(p, from->output[i].value) == p->stage)
            from->output[kept++] = from->output[i];
    from->n_outputs = kept;
}

/* States that no node here reads belong to other stages. */
static void forget_foreign_states(Graph *g)
{
    bool *read = xcalloc((size_t)g->n_values, sizeof *read);
    for (int i = 1; i < g->n_nodes; i++)
        for (int k = 0; k < g->node[i].n_in; k++) read[g->node[i].in[k].id] = true;
    for (int i = 1; i < g->n_values; i++) /* a master is read by the update */
        if (read[i] && g->value[i].kind == VALUE_STATE) read[g->value[i].master.id] = true;
    for (int i = 1; i < g->n_values; i++)
        if (g->value[i].kind == VALUE_STATE && !read[i]) g->value[i].role = STATE_NONE;
    free(read);
}

static Status refuse_shared_weights(const Pipeline *p)
{
    int *user = xcalloc((size_t)p->from->n_values, sizeof *user);
    Status status = OK;
    for (int i = 1; i < p->from->n_nodes && status == OK; i++) {
        const Node *node = &p->from->node[i];
        for (int k = 0; k < node->n_in && p->stage_of[i] != EVERYWHERE; k++) {
            const Value *v = graph_value(p->from, node->in[k]);
            if (!value_ok(node->in[k]) || v->kind != VALUE_STATE) continue;
            if (user[node->in[k].id] && user[node->in[k].id] != p->stage_of[i] + 1)
                status = fail(ERR_REFUSED, "parallel.pp %d: %s is read by stages %d and %d; a model with a tied head has no pipeline here: use parallel.fsdp or tp",
                              p->n, v->name, user[node->in[k].id] - 1, p->stage_of[i]);
            user[node->in[k].id] = p->stage_of[i] + 1;
        }
    }
    free(user);
    return status;
}

static Status split(Pipeline *p)
{
    find_stages(p);
    if (p->n > p->n_layers)
        return fail(ERR_REFUSED, "parallel.pp %d: the model has %lld layers, which cannot be shared out over more stages", p->n, (long long)p->n_layers);
    TRY(refuse_shared_weights(p));
    TRY(find_channels(p));
    return keep_own_nodes(p);
}

Status pass_pipeline(Graph **graph, const Layout *layout)
{
    Pipeline p = {.from = *graph, .layout = layout, .n = mesh_size(&layout->mesh, MESH_PP), .stage = layout->mesh.coord[MESH_PP]};
    if (p.n < 2) return OK;
    p.stage_of = xcalloc((size_t)p.from->n_nodes, sizeof *p.stage_of);
    p.made = xcalloc((size_t)p.from->n_nodes, sizeof *p.made);
    p.channel = xcalloc((size_t)p.from->n_values * (size_t)p.n, sizeof *p.channel);
    rewrite_begin(&p.rewrite, p.from);
    Status status = split(&p);
    if (status == OK) keep_own_outputs(&p, *graph);
    free(p.stage_of);
    free(p.made);
    free(p.channel);
    if (status != OK) {
        rewrite_abort(&p.rewrite);
        return status;
    }
    TRY(rewrite_end(&p.rewrite, graph));
    forget_foreign_states(*graph);
    return pass_check(*graph, "pipeline");
}

/* Stages differ in what they hold, one may have no experts: norms are joined along every axis that could have cut
 * gradients on any of them, or the stages would wait for each other in different groups. */
void pass_pipeline_norms(Graph *graph, const Layout *layout)
{
    static const MeshAxis cutting[] = {MESH_PP, MESH_FSDP, MESH_EP, MESH_TP};
    unsigned axes = layout->zero && mesh_size(&layout->mesh, MESH_DP) > 1 ? 1u << MESH_DP : 0;
    if (mesh_size(&layout->mesh, MESH_PP) < 2) return;
    for (int i = 0; i < COUNT_OF(cutting); i++)
        if (mesh_size(&layout->mesh, cutting[i]) > 1) axes |= 1u << cutting[i];
    graph->mesh.size[MESH_PP] = mesh_size(&layout->mesh, MESH_PP);
    graph->mesh.coord[MESH_PP] = layout->mesh.coord[MESH_PP];
    for (int i = 1; i < graph->n_nodes; i++) {
        Node *node = &graph->node[i];
        if (!node_is(node, "grad_norm") && !node_is(node, "join_norms")) continue;
        GradNormAttr *attr = arena_copy(&graph->arena, node->attr, sizeof *attr);
        attr->cut_axes |= axes;
        node->attr = attr;
        if (node_is(node, "grad_norm")) graph_value(graph, node->out[0])->place[MESH_PP] = (Place){PLACE_CUT, 0};
    }
}
