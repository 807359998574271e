/* A run of several ranks: its layout, and what the ranks must agree on. */
#include <string.h>

#include "train/trainer_internal.h"

/* ---- layout ------------------------------------------------------------------------------------------- */

Status trainer_setup_ranks(Trainer *t)
{
    const RunParallel *p = &t->config->parallel;
    Mesh mesh = {.size = {[MESH_PP] = (int)p->pp, [MESH_DP] = (int)p->dp, [MESH_FSDP] = (int)p->fsdp, [MESH_EP] = (int)p->ep,
                          [MESH_CP] = (int)p->cp, [MESH_TP] = (int)p->tp}};
    TRY(run_layout_check(t->config, t->planning ? run_ranks(t->config) : t->world ? comm_size(t->world) : 1));
    if (p->zero == 3) { /* the same ranks under their other name */
        mesh.size[MESH_FSDP] *= mesh.size[MESH_DP];
        mesh.size[MESH_DP] = 1;
    }
    t->rank = t->world ? comm_rank(t->world) : 0;
    t->layout = (Layout){.mesh = mesh_at(&mesh, t->rank), .zero = p->zero == 3 ? 0 : (int)p->zero, .blocking = !p->overlap,
                         .ring = p->context == RUN_CONTEXT_RING,
                         .bucket_bytes = (size_t)p->bucket};
    int64_t columns = t->config->train.seq / p->cp;
    t->layout.fold_experts = p->fold_experts && p->tp > 1;
    /* canonical sums over a sequence see all of it */
    t->layout.sequence = p->tp > 1 && columns % p->tp == 0 && !t->config->train.canonical;
    /* what a run file says is of the whole step; a rank's micro-batches are its share */
    t->micro_batch = run_micro_batch(t->config);
    t->n_micro = run_n_micro(t->config);
    TRY(train_pipeline(t->config, t->n_micro, &t->pipeline));
    t->layout.pipeline = t->pipeline;
    return OK;
}

/* The largest divisor of `most` that divides all of n counts, for a remedy. */
static int64_t works(int64_t most, const int64_t *count, int n)
{
    for (int64_t d = most; d > 1; d--) {
        bool all = true;
        for (int i = 0; i < n; i++) all &= count[i] % d == 0;
        if (all) return d;
    }
    return 1;
}

/* What is cut must divide: refused here, by the model's own words, before a graph finds it out. */
Status trainer_check_divides(const Trainer *t)
{
    const ModelConfig *m = &t->model;
    const RunParallel *p = &t->config->parallel;
    bool dense = false, moe = false;
    for (int64_t i = 0; i < m->n_layers; i++) *(m->layer[i].moe ? &moe : &dense) = true;
    const struct {
        const char *what;
        int64_t count;
    } cut[] = {{"query heads", m->n_heads}, {"key heads", m->n_kv_heads}, {"words in the vocabulary", m->vocab},
               {"feed-forward columns", dense ? m->ffn_dense : 0}, {"feed-forward columns of experts", moe && !p->fold_experts ? m->ffn_expert : 0}};
    int64_t counts[COUNT_OF(cut)];
    for (int i = 0; i < COUNT_OF(cut); i++) counts[i] = cut[i].count;
    for (int i = 0; i < COUNT_OF(cut); i++)
        if (cut[i].count % p->tp)
            return fail(ERR_REFUSED, "parallel.tp %lld does not divide the model's %lld %s; tp %lld would", (long long)p->tp,
                        (long long)cut[i].count, cut[i].what, (long long)works(p->tp, counts, COUNT_OF(cut)));
    if (p->ep > 1 && !moe) return fail(ERR_REFUSED, "parallel.ep %lld: the model has no experts to share; parallel.dp cuts the batch as well", (long long)p->ep);
    if (p->fold_experts && !moe)
        return fail(ERR_REFUSED, "parallel.fold_experts: the model has no experts to share; leave it out");
    if (p->fold_experts && m->n_experts % (p->tp * p->ep))
        return fail(ERR_REFUSED,
                    "parallel.fold_experts: tp %lld x ep %lld does not divide the model's %lld experts; leave it "
                    "out, or take tp x ep %lld",
                    (long long)p->tp, (long long)p->ep, (long long)m->n_experts,
                    (long long)works(p->tp * p->ep, &m->n_experts, 1));
    if (moe && m->n_experts % p->ep)
        return fail(ERR_REFUSED, "parallel.ep %lld does not divide the model's %lld experts; ep %lld would", (long long)p->ep,
                    (long long)m->n_experts, (long long)works(p->ep, &m->n_experts, 1));
    return OK;
}

/* ---- what this rank does ------------------------------------------------------------------------------ */

Status trainer_enter(Trainer *t, TrainerPhase phase)
{
    static const char *const names[] = {"data", "forward", "backward", "update", "validation", "save"};
    static const char *const points[] = {"train.data", "train.forward", "train.backward", "train.update", "train.validation", "train.save"};
    if (t->world) comm_note(t->world, names[phase], t->step + 1);
    return fault_hit(points[phase]) ? fail(ERR_DEVICE, "%s of step %lld failed (injected fault)", names[phase], (long long)t->step + 1) : OK;
}

/* ---- agreement ------------------------------------------------------------------------------------------ */

Status trainer_meet(Trainer *t)
{
    return t->world ? comm_run(t->world, &(CommOp){.kind = COMM_BARRIER, .node = "meeting"}) : OK;
}

Status trainer_agree(Trainer *t, int64_t *value)
{
    if (!t->world) return OK;
    return comm_run(t->world, &(CommOp){.kind = COMM_BROADCAST, .dtype = DTYPE_I64, .send = value, .recv = value, .count = 1, .node = "agreement"});
}

Status trainer_sum_stages(Trainer *t, double *value)
{
    float sum = (float)*value;
    Comm *stages;
    if (mesh_size(&t->layout.mesh, MESH_PP) < 2) return OK;
    TRY(device_group(t->device, 1u << MESH_PP, &stages));
    TRY(comm_run(stages, &(CommOp){.kind = COMM_ALL_REDUCE, .dtype = DTYPE_F32, .send = &sum, .recv = &sum, .count = 1, .node = "loss"}));
    *value = (double)sum;
    return OK;
}

Status trainer_any(Trainer *t, bool *flag)
{
    int32_t value = *flag;
    if (!t->world) return OK;
    TRY(comm_run(t->world, &(CommOp){.kind = COMM_ALL_REDUCE, .dtype = DTYPE_I32, .reduce = COMM_MAX, .send = &value,
                                     .recv = &value, .count = 1, .node = "agreement"}));
    *flag = value != 0;
    return OK;
}

Status trainer_accord(Trainer *t, Status mine)
{
    struct {
        int32_t status;
        char sentence[1020];
    } first = {.status = (int32_t)mine};
    if (!t->world) return mine;
    int32_t who = mine == OK ? 0 : comm_size(t->world) - t->rank; /* the largest is the lowest rank's: its word is taken */
    snprintf(first.sentence, sizeof first.sentence, "%s", mine == OK ? "" : status_message());
    TRY(comm_run(t->world, &(CommOp){.kind = COMM_ALL_REDUCE, .dtype = DTYPE_I32, .reduce = COMM_MAX, .send = &who, .recv = &who,
                                     .count = 1, .node = "agreement"}));
    if (who == 0) return OK;
    TRY(comm_run(t->world, &(CommOp){.kind = COMM_BROADCAST, .dtype = DTYPE_U8, .send = &first, .recv = &first, .count = sizeof first,
                                     .peer = comm_size(t->world) - who, .node = "agreement"}));
    first.sentence[sizeof first.sentence - 1] = 0;
    return fail((Status)first.status, "%s", first.sentence);
}

/* ---- a rank's share of a batch ------------------------------------------------------------------------------ */

/* Columns of the sequence that a context-parallel rank has: one block from the beginning and one from the end. */
static void copy_columns(const Trainer *t, const void *from, void *to, int64_t rows)
{
    int64_t cp = mesh_size(&t->layout.mesh, MESH_CP), seq = t->config->train.seq, half = seq / (2 * cp);
    int64_t first[2] = {t->layout.mesh.coord[MESH_CP] * half, (2 * cp - 1 - t->layout.mesh.coord[MESH_CP]) * half};
    const int32_t *in = from;
    int32_t *out = to;
    for (int64_t r = 0; r < rows; r++)
        for (int b = 0; b < 2; b++, out += half) memcpy(out, in + r * seq + first[b], (size_t)half * sizeof *out);
}

Status trainer_feed(Trainer *t, int program, const DataBatch *b, int64_t micro)
{
    const struct {
        const char *name;
        const void *data;
    } inputs[] = {{"ids", b->ids}, {"targets", b->targets}, {"pos", b->pos}, {"weights", b->weights}};
    size_t bytes = (size_t)(t->micro_batch * t->config->train.seq) * sizeof(int32_t);
    int32_t number = (int32_t)micro;
    if (session_input(t->session, program, MICRO_INPUT)) TRY(session_write(t->session, program, MICRO_INPUT, &number, sizeof number));
    for (int i = 0; i < COUNT_OF(inputs); i++) {
        if (mesh_size(&t->layout.mesh, MESH_CP) > 1)
            copy_columns(t, inputs[i].data, session_input(t->session, program, inputs[i].name), t->micro_batch);
        else
            TRY(session_write(t->session, program, inputs[i].name, inputs[i].data, bytes));
    }
    return OK;
}
