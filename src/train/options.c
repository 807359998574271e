/* What a run file says of a step, for one rank: its place among the others, and what its programs
 * are made from. */
#include "train/train.h"

Layout train_layout(const RunConfig *config, int rank)
{
    const RunParallel *p = &config->parallel;
    Mesh mesh = {.size = {[MESH_PP] = (int)p->pp,
                          [MESH_DP] = (int)p->dp,
                          [MESH_FSDP] = (int)p->fsdp,
                          [MESH_EP] = (int)p->ep,
                          [MESH_CP] = (int)p->cp,
                          [MESH_TP] = (int)p->tp}};
    if (p->zero == 3) { /* the same ranks under their other name */
        mesh.size[MESH_FSDP] *= mesh.size[MESH_DP];
        mesh.size[MESH_DP] = 1;
    }
    int64_t columns = config->train.seq / p->cp;
    return (Layout){.mesh = mesh_at(&mesh, rank),
                    .zero = p->zero == 3 ? 0 : (int)p->zero,
                    .blocking = !p->overlap,
                    .bucket_bytes = (size_t)p->bucket,
                    .ring = p->context == RUN_CONTEXT_RING,
                    /* canonical sums over a sequence see all of it */
                    .sequence = p->tp > 1 && columns % p->tp == 0 && !config->train.canonical,
                    .fold_experts = p->fold_experts && p->tp > 1};
}

StepOptions train_step_options(const RunConfig *config, const Layout *layout, DType dtype,
                               bool evaluates)
{
    static const Recompute recompute[] = {RECOMPUTE_NONE, RECOMPUTE_SELECTIVE, RECOMPUTE_FULL};
    static const ModelBalance balance[] = {BALANCE_BIAS, BALANCE_AUX, BALANCE_NONE};
    const RunTrain *r = &config->train;
    /* what a run file says is of the whole step; a rank's micro-batches are its share */
    int64_t n_micro = run_n_micro(config), micro_batch = run_micro_batch(config);
    double means = (double)(r->canonical ? r->batch / micro_batch
                                         : n_micro); /* of which the step's losses are means */
    return (StepOptions){.micro_batch = micro_batch,
                         .n_micro = n_micro,
                         .seq = r->seq,
                         .dtype = dtype,
                         .fp8 = r->precision != RUN_FP8         ? FP8_NONE
                                : r->fp8_scaling == RUN_FP8_ROW ? FP8_ROW
                                                                : FP8_BLOCK,
                         .eval_batch = evaluates ? micro_batch : 0,
                         .recompute = recompute[r->recompute],
                         .balance = balance[r->balance],
                         /* each micro-batch's share of losses that are means */
                         .aux_loss = (float)(r->balance_aux / means),
                         .router_z_loss = (float)(r->router_z_loss / means),
                         .z_loss = (float)r->z_loss,
                         .pack_weights = r->pack_weights,
                         .library_attention = r->attention == RUN_ATTENTION_CUDNN,
                         .layout = *layout,
                         .update_last = config->parallel.overlap};
}

/* ---- what does not divide --------------------------------------------------------------- */

Status train_check_divides(const RunConfig *config, const ModelConfig *m)
{
    const RunParallel *p = &config->parallel;
    return model_check_divides(
        m, &(ModelCut){
               .tp = p->tp, .ep = p->ep, .fold_experts = p->fold_experts, .before = "parallel."});
}
