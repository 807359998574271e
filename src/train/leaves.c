/* Canonical mode: what must divide, and the losses of leaves (pass/canonical.c), which are added up
 * in the order of leaves whoever computed them. */
#include "train/trainer_internal.h"

enum { MOST_CHUNKS = 8 };

/* The largest power of two, at most MOST_CHUNKS, that divides all that tp may cut. */
static int chunks_of(const ModelConfig *m)
{
    int chunks = MOST_CHUNKS;
    bool dense = false, moe = false;
    for (int64_t i = 0; i < m->n_layers; i++) *(m->layer[i].moe ? &moe : &dense) = true;
    int64_t cut[] = {m->n_heads * m->head_dim, m->n_kv_heads * m->head_dim, m->vocab,
                     dense ? m->ffn_dense : 0, moe ? m->ffn_expert : 0};
    for (int i = 0; i < COUNT_OF(cut); i++)
        while (cut[i] % chunks) chunks /= 2;
    return chunks;
}

Status train_layout_chunks(const RunConfig *config, const ModelConfig *model, Layout *layout)
{
    const RunTrain *r = &config->train;
    int64_t tp = config->parallel.tp, most = (int64_t)1 << NODE_MAX_OUT,
            n_micro = run_n_micro(config);
    if (!r->canonical) return OK;
    layout->chunks = r->canonical_chunks ? (int)r->canonical_chunks : chunks_of(model);
    if (layout->chunks % tp)
        return fail(ERR_REFUSED,
                    "parallel.tp %lld does not divide the %d chunks in which train.canonical sums "
                    "products; take %stp %d or less",
                    (long long)tp, layout->chunks,
                    r->canonical_chunks ? "a larger train.canonical_chunks, or " : "",
                    layout->chunks);
    if (n_micro > most)
        return fail(ERR_REFUSED,
                    "train.canonical: %lld micro-batches on a rank, at most %lld can be summed as "
                    "a tree; a larger train.micro_batch is wanted",
                    (long long)n_micro, (long long)most);
    return OK;
}

Status trainer_setup_leaves(Trainer *t)
{
    if (!t->config->train.canonical) return OK;
    TRY(train_layout_chunks(t->config, &t->model, &t->layout));
    t->n_leaves = t->config->train.batch / t->micro_batch;
    t->leaf_loss = xcalloc((size_t)t->n_leaves, sizeof *t->leaf_loss);
    return OK;
}

/* Adding zeros rounds nothing. */
Status trainer_gather_leaves(Trainer *t, float *leaf, int64_t n)
{
    static const MeshAxis shares[] = {MESH_PP, MESH_DP, MESH_FSDP, MESH_EP};
    unsigned axes = 0;
    Comm *group;
    for (int i = 0; i < COUNT_OF(shares); i++)
        if (mesh_size(&t->layout.mesh, shares[i]) > 1) axes |= 1u << shares[i];
    if (!axes) return OK;
    TRY(device_group(t->device, axes, &group));
    return comm_run(group, &(CommOp){.kind = COMM_ALL_REDUCE,
                                     .dtype = DTYPE_F32,
                                     .send = leaf,
                                     .recv = leaf,
                                     .count = n,
                                     .node = "loss"});
}

Status trainer_sum_leaves(Trainer *t, double *loss)
{
    TRY(trainer_gather_leaves(t, t->leaf_loss, t->n_leaves));
    *loss = 0;
    for (int64_t i = 0; i < t->n_leaves; i++) *loss += (double)t->leaf_loss[i];
    return OK;
}

/* ---- what it costs ---------------------------------------------------------------------- */

/* Of a rank in one step. */
typedef struct StepCost {
    double memory, wire, traffic; /* bytes allocated, sent, read and written */
} StepCost;

static StepCost cost_of_step(const StepPrograms *p, int64_t n_micro)
{
    StepCost cost = {.memory = (double)session_plan(p->store, p->at, p->n).total_bytes};
    bool last = p->last == PROGRAM_UPDATE;
    for (int i = 0; i < p->n; i++) {
        if (p->index[PROGRAM_EVAL] >= 0 && i >= p->index[PROGRAM_EVAL] &&
            i < p->index[PROGRAM_EVAL] + p->n_stages)
            continue;
        double runs = i == p->index[PROGRAM_UPDATE] ? 1 : (double)(n_micro - last);
        Cost c = program_cost(p->at[i]);
        cost.wire += runs * c.wire_bytes;
        cost.traffic += runs * (c.read_bytes + c.write_bytes);
    }
    return cost;
}

/* "+12.0 MiB of memory (+3.1%)" */
static void add_more(Str *out, const char *what, double more, double than)
{
    char text[32];
    str_printf(out, "%s%s %s", more < 0 ? "-" : "+", format_bytes(more < 0 ? -more : more, text),
               what);
    if (than > 0) str_printf(out, " (%+.1f%%)", 100 * more / than);
}

void trainer_canonical_text(const Trainer *t, Str *out)
{
    StepOptions plain = t->options;
    StepPrograms programs;
    if (!t->n_leaves) return;
    plain.layout.chunks = 0;
    plain.layout.sequence = mesh_size(&plain.layout.mesh, MESH_TP) > 1 &&
                            plain.seq % mesh_size(&plain.layout.mesh, MESH_TP) == 0;
    str_printf(out, "canonical: %lld leaves of %lld sequence%s, products in %d chunks",
               (long long)t->n_leaves, (long long)t->micro_batch, t->micro_batch == 1 ? "" : "s",
               t->layout.chunks);
    if (step_programs_build(&t->model, &plain, device_target(t->device), &programs) != OK)
        return; /* only the figures would be missing */
    StepCost with = cost_of_step(&t->programs, t->n_micro),
             without = cost_of_step(&programs, t->n_micro);
    step_programs_destroy(&programs);
    str_add(out, "; beside the same layout without it ");
    add_more(out, "of memory", with.memory - without.memory, without.memory);
    str_add(out, ", ");
    add_more(out, "sent a step", with.wire - without.wire, without.wire);
    str_add(out, ", ");
    add_more(out, "read and written a step", with.traffic - without.traffic, without.traffic);
    str_add(out, ", on this rank");
}
