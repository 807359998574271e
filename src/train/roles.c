/* Programs without a machine: what all ranks of a job compute and hold, each distinct program built
 * once.
 *
 * Ranks along pp have the same role when their stages have the same kinds of layers. Only a rank of
 * each role is built, on a short model that has the layers of these ranks alone
 * (Layout.stage_of_layer), and of its stages with the same layers only the first (stage_like). What
 * still differs between ranks of a role are two numbers that the schedule tells: how many
 * micro-batches a rank holds, and how many messages are on their way.
 * Where keys and values go round a ring ranks along cp differ too: roles are then those of one
 * coordinate of options' mesh. */
#include <stdlib.h>
#include <string.h>

#include "train/step.h"

typedef struct Builder {
    const ModelConfig *model;
    const StepOptions *options;
    const Pipeline *pipeline; /* NULL: none */
    StepRoles *out;
    int *own, *other;    /* [stages] of a rank */
    ModelConfig brief;   /* the short model; its layers are the builder's */
    int *stage_of_layer; /* of the short model */
    int *stage_like;     /* of each stage: which is built in its place */
} Builder;

/* ---- which ranks are alike -------------------------------------------------------------- */

/* The first layer of a stage, as pass/pipeline shares them out. */
static int64_t first_layer(const Builder *b, int stage)
{
    int64_t n = b->pipeline->n_stages;
    return (stage * b->model->n_layers + n - 1) / n;
}

/* Chunks as long as a sequence are no chunks. */
static bool same_kind(const Builder *b, const LayerConfig *x, const LayerConfig *y)
{
    int64_t seq = b->options->seq, chunk_x = x->chunk >= seq ? 0 : x->chunk,
            chunk_y = y->chunk >= seq ? 0 : y->chunk;
    return x->moe == y->moe && x->rope == y->rope && chunk_x == chunk_y;
}

/* A stage on the same rank is reached through memory. */
static bool is_here(const Pipeline *p, int stage, int neighbour)
{
    return neighbour >= 0 && neighbour < p->n_stages && p->rank_of[neighbour] == p->rank_of[stage];
}

static bool same_stage(const Builder *b, int s, int t)
{
    const Pipeline *p = b->pipeline;
    int64_t n = first_layer(b, s + 1) - first_layer(b, s);
    if ((s == 0) != (t == 0) || (s == p->n_stages - 1) != (t == p->n_stages - 1)) return false;
    if (is_here(p, s, s - 1) != is_here(p, t, t - 1) ||
        is_here(p, s, s + 1) != is_here(p, t, t + 1))
        return false;
    if (n != first_layer(b, t + 1) - first_layer(b, t)) return false;
    for (int64_t k = 0; k < n; k++)
        if (!same_kind(b, &b->model->layer[first_layer(b, s) + k],
                       &b->model->layer[first_layer(b, t) + k]))
            return false;
    return true;
}

static bool same_role(Builder *b, int rank, int like)
{
    CHECK(b->own && b->other); /* several ranks are those of a pipeline */
    int n = pipeline_stages_of(b->pipeline, rank, b->own);
    if (n != pipeline_stages_of(b->pipeline, like, b->other)) return false;
    for (int k = 0; k < n; k++)
        if (!same_stage(b, b->own[k], b->other[k])) return false;
    return true;
}

/* share: ranks that are alike have one role; else each has its own. */
static void find_roles(Builder *b, bool share)
{
    StepRoles *out = b->out;
    out->n = 0;
    for (int r = 0; r < out->n_ranks; r++) {
        int like = 0;
        while (like < out->n && !(share && same_role(b, r, out->role[like].built_for))) like++;
        if (like == out->n) out->role[out->n++] = (StepRole){.built_for = r};
        out->role[like].n_ranks++;
        out->role_of[r] = like;
    }
}

/* ---- the short model -------------------------------------------------------------------- */

/* Of a rank's stages with the same layers the first is built. */
static void find_twins(Builder *b)
{
    const Pipeline *p = b->pipeline;
    b->stage_like = xcalloc((size_t)p->n_stages, sizeof *b->stage_like);
    for (int s = 0; s < p->n_stages; s++) {
        int like = 0;
        while (like < s && !(p->rank_of[like] == p->rank_of[s] && same_stage(b, s, like))) like++;
        b->stage_like[s] = like;
    }
}

/* The layers of the ranks that are built, in their order. */
static void make_brief(Builder *b)
{
    const Pipeline *p = b->pipeline;
    bool *built = xcalloc((size_t)b->out->n_ranks, sizeof *built);
    for (int i = 0; i < b->out->n; i++) built[b->out->role[i].built_for] = true;
    find_twins(b);
    b->brief = *b->model;
    b->brief.n_layers = 0;
    b->brief.layer = xcalloc((size_t)b->model->n_layers, sizeof *b->brief.layer);
    b->stage_of_layer = xcalloc((size_t)b->model->n_layers, sizeof *b->stage_of_layer);
    for (int s = 0; s < p->n_stages; s++) {
        bool here = built[p->rank_of[s]] && b->stage_like[s] == s;
        for (int64_t l = first_layer(b, s); l < first_layer(b, s + 1) && here; l++) {
            b->stage_of_layer[b->brief.n_layers] = s;
            b->brief.layer[b->brief.n_layers++] = b->model->layer[l];
        }
    }
    free(built);
}

static Status build_roles(Builder *b, Target target)
{
    StepWhole whole;
    StepOptions o = *b->options;
    o.layout.stage_of_layer = b->stage_of_layer;
    o.layout.stage_like = b->stage_like;
    const ModelConfig *model = b->stage_of_layer ? &b->brief : b->model;
    TRY(step_whole_build(model, &o, &whole));
    Status status = OK;
    for (int i = 0; i < b->out->n && status == OK; i++) {
        o.layout.mesh.coord[MESH_PP] = b->out->role[i].built_for;
        status = step_rank_build(model, &o, &whole, target, &b->out->role[i].programs);
    }
    step_whole_destroy(&whole);
    return status;
}

/* ---- memory ----------------------------------------------------------------------------- */

/* A node that sends: into one of the channel's buffers, which are its operands from the second on.
 */
static bool sends(const Graph *g, const Node *node)
{
    if (node->n_in < 2 || !value_ok(node->in[0]) || !value_ok(node->in[1])) return false;
    return graph_value(g, node->in[1])->role == STATE_PIPE &&
           graph_value(g, node->in[0])->role != STATE_PIPE;
}

/* Bytes of the buffers in which a stage sends, and in which the program does that stands for it.
 * own: the program is that of this very stage, and must have as many. */
typedef struct Buffers {
    size_t wanted, built;
} Buffers;

static Status stage_buffers(const Builder *b, const Program *program, int stage, bool own,
                            Buffers *out)
{
    const Graph *g = program->graph;
    for (int i = 1; i < g->n_nodes; i++) {
        const Node *node = &g->node[i];
        if (!sends(g, node)) continue;
        bool forward = node->phase == PHASE_FORWARD;
        PipelineWork work = forward ? PIPELINE_FORWARD : PIPELINE_BACKWARD;
        const Value *v = graph_value(g, node->in[1]);
        int depth = pipeline_depth(b->pipeline, stage, work, forward ? stage + 1 : stage - 1, work);
        size_t bytes = round_up((size_t)shape_count(&v->shape) * dtype_bytes(v->dtype),
                                TENSOR_ALIGN);
        if (own && depth != node->n_in - 1)
            return fail(ERR_UNSUPPORTED,
                        "a message of stage %d is not for its neighbour's same phase", stage);
        out->wanted += (size_t)depth * bytes;
        out->built += (size_t)(node->n_in - 1) * bytes;
    }
    return OK;
}

static Status rank_buffers(const Builder *b, int rank, Buffers *out)
{
    const StepRole *role = &b->out->role[b->out->role_of[rank]];
    const StepPrograms *p = &role->programs;
    CHECK(b->own && b->other); /* several ranks are those of a pipeline */
    int n = pipeline_stages_of(b->pipeline, rank, b->own);
    *out = (Buffers){0};
    for (int k = 0; k < n; k++) {
        int stage = b->own[k];
        bool own = rank == role->built_for && !(b->stage_like && b->stage_like[stage] != stage);
        TRY(stage_buffers(b, p->at[p->index[PROGRAM_STEP] + k], stage, own, out));
    }
    return OK;
}

/* The rank's programs stand for others' stages, or others' for its own. */
static bool shares(const Builder *b, int rank)
{
    int n = b->pipeline ? pipeline_stages_of(b->pipeline, rank, b->own) : 0;
    bool twins = false;
    for (int k = 0; k < n && b->stage_like; k++) twins |= b->stage_like[b->own[k]] != b->own[k];
    return twins || b->out->role[b->out->role_of[rank]].n_ranks > 1;
}

/* As session_plan of the rank's own programs would say. */
static Status plan_rank(const Builder *b, int rank)
{
    const StepRole *role = &b->out->role[b->out->role_of[rank]];
    Program *at[COUNT_OF(role->programs.at)],
        *copy = xcalloc((size_t)role->programs.n, sizeof *copy);
    Store store = *role->programs.store;
    Buffers buffers = {0};
    Status status = b->pipeline && shares(b, rank) ? rank_buffers(b, rank, &buffers) : OK;
    bool slotted = b->pipeline && rank != role->built_for; /* else it is the rank itself */
    for (int i = 0; i < role->programs.n && status == OK; i++) {
        copy[i] = *role->programs.at[i];
        at[i] = &copy[i];
        for (int span = 0; slotted && copy[i].slotted && span < PIPELINE_SPANS; span++)
            copy[i].n_slots[span] = pipeline_slots(b->pipeline, rank, (PipelineSpan)span);
    }
    store.bytes += buffers.wanted - buffers.built;
    if (status == OK) b->out->memory[rank] = session_plan(&store, at, role->programs.n);
    b->out->message_bytes[rank] = store_role_bytes(role->programs.store, STATE_PIPE) +
                                  buffers.wanted - buffers.built;
    free(copy);
    return status;
}

/* ---- entry ------------------------------------------------------------------------------ */

static void forget(StepRoles *out)
{
    for (int i = 0; i < out->n; i++)
        if (out->role[i].programs.store) step_programs_destroy(&out->role[i].programs);
    memset(out->role, 0, sizeof *out->role * (size_t)out->n_ranks);
}

static Status build(Builder *b, bool share, Target target)
{
    find_roles(b, share);
    if (share && b->pipeline) make_brief(b);
    Status status = build_roles(b, target);
    for (int r = 0; r < b->out->n_ranks && status == OK; r++) status = plan_rank(b, r);
    free(b->brief.layer);
    free(b->stage_of_layer);
    free(b->stage_like);
    b->brief.layer = NULL;
    b->stage_of_layer = b->stage_like = NULL;
    return status;
}

Status step_roles_build(const ModelConfig *model, const StepOptions *options, Target target,
                        StepRoles *out)
{
    int n = mesh_size(&options->layout.mesh, MESH_PP);
    Builder b = {.model = model,
                 .options = options,
                 .pipeline = n > 1 ? options->layout.pipeline : NULL,
                 .out = out};
    *out = (StepRoles){.n_ranks = n,
                       .role = xcalloc((size_t)n, sizeof *out->role),
                       .role_of = xcalloc((size_t)n, sizeof *out->role_of),
                       .memory = xcalloc((size_t)n, sizeof *out->memory),
                       .message_bytes = xcalloc((size_t)n, sizeof *out->message_bytes)};
    Status status = step_check_pipeline(options);
    if (status == OK && b.pipeline && b.pipeline->n_stages > model->n_layers)
        status = fail(ERR_REFUSED,
                      "parallel.pp %d makes %d stages, and the model has %lld layers: take fewer",
                      n, b.pipeline->n_stages, (long long)model->n_layers);
    if (status == OK && b.pipeline) {
        b.own = xcalloc((size_t)b.pipeline->n_stages, sizeof *b.own);
        b.other = xcalloc((size_t)b.pipeline->n_stages, sizeof *b.other);
    }
    if (status == OK) status = build(&b, true, target);
    if (status == ERR_UNSUPPORTED &&
        b.pipeline) { /* stages that speak with others than their neighbours: none is left out */
        forget(out);
        status = build(&b, false, target);
    }
    free(b.own);
    free(b.other);
    if (status != OK) step_roles_destroy(out);
    return status;
}

void step_roles_destroy(StepRoles *roles)
{
    if (roles->role) forget(roles);
    free(roles->role);
    free(roles->role_of);
    free(roles->memory);
    free(roles->message_bytes);
    *roles = (StepRoles){0};
}
