/* Several ranks at work on one model. Every rank makes the same calls with the same arguments.
 * Sequences are dealt out to the ranks of the data axes (dp, fsdp, ep), and what they computed is
 * gathered, so that every rank has every answer, to the bit. */
#include "infer/infer_internal.h"

#include <stdlib.h>
#include <string.h>

enum { DATA_AXES = 1u << MESH_DP | 1u << MESH_FSDP | 1u << MESH_EP };

static int64_t share(int64_t all, int64_t n) { return (all + n - 1) / n; }

/* Elements that the ranks exchange at most. */
static int64_t exchanged(const Infer *infer)
{
    const InferOptions *o = &infer->options;
    int64_t vocab = infer->model->config.vocab, n = infer->data_ranks;
    int64_t most = max_i64(n * infer->slots * vocab, n * infer->rows * o->score_tokens);
    return max_i64(most, o->logits_tokens * vocab);
}

static Status find_place(Infer *infer)
{
    InferOptions *o = &infer->options;
    int wanted = mesh_ranks(&o->layout.mesh), n = comm_size(o->world);
    if (mesh_size(&o->layout.mesh, MESH_CP) > 1)
        return fail(ERR_REFUSED, "context parallelism cuts the sequences of training only; tensor "
                                 "parallelism (tp) cuts caches too");
    if (wanted != n)
        return fail(ERR_REFUSED, "the layout is for %d ranks, but %d were started", wanted, n);
    TRY(model_check_divides(&infer->model->config,
                            &(ModelCut){.tp = mesh_size(&o->layout.mesh, MESH_TP),
                                        .ep = mesh_size(&o->layout.mesh, MESH_EP),
                                        .fold_experts = o->layout.fold_experts,
                                        .before = "--"}));
    o->layout.mesh = mesh_at(&o->layout.mesh, comm_rank(o->world));
    o->layout.sequence = false; /* a single token cannot be cut */
    return OK;
}

Status infer_ranks_setup(Infer *infer)
{
    InferOptions *o = &infer->options;
    infer->data_ranks = 1;
    if (o->world) {
        TRY(find_place(infer));
        infer->data_ranks = mesh_data_ranks(&o->layout.mesh);
    }
    infer->slots = share(o->batch, infer->data_ranks);
    infer->rows = share(o->score_rows, infer->data_ranks);
    infer->exchange_bytes = o->world ? sizeof(float) * (size_t)exchanged(infer) : 0;
    return OK;
}

Status infer_ranks_start(Infer *infer)
{
    const Mesh *mesh = &infer->options.layout.mesh;
    if (!infer->options.world) return OK;
    TRY(device_group(infer->device, DATA_AXES, &infer->data));
    TRY(device_group(infer->device, 1u << MESH_PP, &infer->stages));
    infer->data_rank = comm_rank(infer->data);
    infer->has_answers = mesh->coord[MESH_PP] == mesh_size(mesh, MESH_PP) - 1;
    infer->exchange = xcalloc(infer->exchange_bytes, 1);
    return OK;
}

static Status from_last_stage(Infer *infer, float *all, int64_t n)
{
    int stages = comm_size(infer->stages);
    if (stages < 2) return OK;
    return comm_run(infer->stages, &(CommOp){.kind = COMM_BROADCAST,
                                             .dtype = DTYPE_F32,
                                             .send = infer->has_answers ? all : NULL,
                                             .recv = all,
                                             .count = n,
                                             .peer = stages - 1,
                                             .node = "answers"});
}

Status infer_fetch(Infer *infer, int program, const char *output, const float **own)
{
    const void *data = NULL;
    if (session_has_output(infer->session, program, output))
        TRY(session_fetch_output(infer->session, program, output, &data));
    *own = data;
    return OK;
}

Status infer_share_rows(Infer *infer, const float *own, int64_t n, const float **all)
{
    *all = own;
    if (!infer->options.world) return OK;
    if (infer->has_answers)
        TRY(comm_run(infer->data, &(CommOp){.kind = COMM_ALL_GATHER,
                                            .dtype = DTYPE_F32,
                                            .send = own,
                                            .recv = infer->exchange,
                                            .count = n,
                                            .node = "answers"}));
    *all = infer->exchange;
    return from_last_stage(infer, infer->exchange, n * infer->data_ranks);
}

Status infer_share_same(Infer *infer, const float *own, int64_t n, const float **all)
{
    *all = own;
    if (!infer->options.world || comm_size(infer->stages) < 2) return OK;
    if (infer->has_answers) memcpy(infer->exchange, own, sizeof *own * (size_t)n);
    *all = infer->exchange;
    return from_last_stage(infer, infer->exchange, n);
}

Status infer_agree(Infer *infer, int32_t *flags, int64_t n)
{
    if (!infer->options.world) return OK;
    return comm_run(infer->options.world, &(CommOp){.kind = COMM_BROADCAST,
                                                    .dtype = DTYPE_I32,
                                                    .send = flags,
                                                    .recv = flags,
                                                    .count = n,
                                                    .node = "agreement"});
}

/* ---- weights ---------------------------------------------------------------------------- */

typedef struct Loading {
    const Weight *weight; /* of the part `part` */
    int part;
    const StateEntry *entry;
    const Weights *from;
    char *data;
} Loading;

static Status find_weight(Loading *l, int part)
{
    const StatePart *p = &l->entry->part[part];
    l->part = part;
    l->weight = weights_find(l->from, p->name);
    if (!l->weight) return fail(ERR_FORMAT, "%s has no %s", weights_path(l->from), p->name);
    if (!shape_equal(&l->weight->shape, &p->whole))
        return fail(ERR_SHAPE, "%s of %s has another shape", p->name, weights_path(l->from));
    return OK;
}

static Status load_run(void *context, const StateRun *run)
{
    Loading *l = context;
    if (run->part != l->part) TRY(find_weight(l, run->part));
    return weights_read_range(l->weight, run->global, run->n, l->entry->dtype,
                              l->data + (size_t)run->local * dtype_bytes(l->entry->dtype));
}

Status infer_load_share(Infer *infer)
{
    for (int i = 0; i < infer->store->n_entries; i++) {
        const StateEntry *e = &infer->store->entry[i];
        if (e->role != STATE_PARAM && e->role != STATE_BUFFER) continue;
        Loading l = {.part = -1,
                     .entry = e,
                     .from = infer->model->weights,
                     .data = session_state(infer->session, i).data};
        TRY(store_each_run(infer->store, i, load_run, &l));
    }
    return session_store_states(infer->session);
}
