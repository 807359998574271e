/* What a run file says of a step, for one rank: its place among the others, and what its programs are made from. */
#include "train/train.h"

Layout train_layout(const RunConfig *config, int rank)
{
    const RunParallel *p = &config->parallel;
    Mesh mesh = {.size = {[MESH_PP] = (int)p->pp, [MESH_DP] = (int)p->dp, [MESH_FSDP] = (int)p->fsdp, [MESH_EP] = (int)p->ep,
                          [MESH_CP] = (int)p->cp, [MESH_TP] = (int)p->tp}};
    if (p->zero == 3) { /* the same ranks under their other name */
        mesh.size[MESH_FSDP] *= mesh.size[MESH_DP];
        mesh.size[MESH_DP] = 1;
    }
    int64_t columns = config->train.seq / p->cp;
    return (Layout){.mesh = mesh_at(&mesh, rank), .zero = p->zero == 3 ? 0 : (int)p->zero, .blocking = !p->overlap,
                    .bucket_bytes = (size_t)p->bucket, .ring = p->context == RUN_CONTEXT_RING,
                    /* canonical sums over a sequence see all of it */
                    .sequence = p->tp > 1 && columns % p->tp == 0 && !config->train.canonical,
                    .fold_experts = p->fold_experts && p->tp > 1};
}

StepOptions train_step_options(const RunConfig *config, const Layout *layout, DType dtype, bool evaluates)
{
    static const Recompute recompute[] = {RECOMPUTE_NONE, RECOMPUTE_SELECTIVE, RECOMPUTE_FULL};
    static const ModelBalance balance[] = {BALANCE_BIAS, BALANCE_AUX, BALANCE_NONE};
    const RunTrain *r = &config->train;
    /* what a run file says is of the whole step; a rank's micro-batches are its share */
    int64_t n_micro = run_n_micro(config), micro_batch = run_micro_batch(config);
    double means = (double)(r->canonical ? r->batch / micro_batch : n_micro); /* of which the step's losses are means */
    return (StepOptions){.micro_batch = micro_batch, .n_micro = n_micro, .seq = r->seq, .dtype = dtype, .eval_batch = evaluates ? micro_batch : 0,
                         .recompute = recompute[r->recompute], .balance = balance[r->balance],
                         /* each micro-batch's share of losses that are means */
                         .aux_loss = (float)(r->balance_aux / means), .router_z_loss = (float)(r->router_z_loss / means),
                         .z_loss = (float)r->z_loss, .layout = *layout, .update_last = config->parallel.overlap};
}

/* ---- what does not divide --------------------------------------------------------------------------------- */

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
Status train_check_divides(const RunConfig *config, const ModelConfig *m)
{
    const RunParallel *p = &config->parallel;
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
