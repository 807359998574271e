/* A run of several ranks: its layout, and what the ranks must agree on. */
#include <string.h>

#include "train/trainer_internal.h"

/* ---- layout ----------------------------------------------------------------------------- */

Status trainer_setup_ranks(Trainer *t)
{
    t->rank = t->world ? comm_rank(t->world) : 0;
    TRY(run_layout_check(t->config, t->planning ? run_ranks(t->config)
                                    : t->world  ? comm_size(t->world)
                                                : 1));
    t->layout = train_layout(t->config, t->rank);
    t->micro_batch = run_micro_batch(t->config);
    t->n_micro = run_n_micro(t->config);
    TRY(train_pipeline(t->config, t->n_micro, &t->pipeline));
    t->layout.pipeline = t->pipeline;
    return OK;
}

/* ---- what this rank does ---------------------------------------------------------------- */

Status trainer_enter(Trainer *t, TrainerPhase phase)
{
    static const char *const names[] = {"data",   "forward",    "backward",
                                        "update", "validation", "save"};
    static const char *const points[] = {"train.data",   "train.forward",    "train.backward",
                                         "train.update", "train.validation", "train.save"};
    if (t->world) comm_note(t->world, names[phase], t->step + 1);
    return fault_hit(points[phase]) ? fail(ERR_DEVICE, "%s of step %lld failed (injected fault)",
                                           names[phase], (long long)t->step + 1)
                                    : OK;
}

/* ---- agreement -------------------------------------------------------------------------- */

Status trainer_meet(Trainer *t)
{
    return t->world ? comm_run(t->world, &(CommOp){.kind = COMM_BARRIER, .node = "meeting"}) : OK;
}

Status trainer_agree(Trainer *t, int64_t *value)
{
    if (!t->world) return OK;
    return comm_run(t->world, &(CommOp){.kind = COMM_BROADCAST,
                                        .dtype = DTYPE_I64,
                                        .send = value,
                                        .recv = value,
                                        .count = 1,
                                        .node = "agreement"});
}

Status trainer_sum_stages(Trainer *t, double *value)
{
    float sum = (float)*value;
    Comm *stages;
    if (mesh_size(&t->layout.mesh, MESH_PP) < 2) return OK;
    TRY(device_group(t->device, 1u << MESH_PP, &stages));
    TRY(comm_run(stages, &(CommOp){.kind = COMM_ALL_REDUCE,
                                   .dtype = DTYPE_F32,
                                   .send = &sum,
                                   .recv = &sum,
                                   .count = 1,
                                   .node = "loss"}));
    *value = (double)sum;
    return OK;
}

Status trainer_any(Trainer *t, bool *flag)
{
    int32_t value = *flag;
    if (!t->world) return OK;
    TRY(comm_run(t->world, &(CommOp){.kind = COMM_ALL_REDUCE,
                                     .dtype = DTYPE_I32,
                                     .reduce = COMM_MAX,
                                     .send = &value,
                                     .recv = &value,
                                     .count = 1,
                                     .node = "agreement"}));
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
    int32_t who = mine == OK
                      ? 0
                      : comm_size(t->world) -
                            t->rank; /* the largest is the lowest rank's: its word is taken */
    snprintf(first.sentence, sizeof first.sentence, "%s", mine == OK ? "" : status_message());
    TRY(comm_run(t->world, &(CommOp){.kind = COMM_ALL_REDUCE,
                                     .dtype = DTYPE_I32,
                                     .reduce = COMM_MAX,
                                     .send = &who,
                                     .recv = &who,
                                     .count = 1,
                                     .node = "agreement"}));
    if (who == 0) return OK;
    TRY(comm_run(t->world, &(CommOp){.kind = COMM_BROADCAST,
                                     .dtype = DTYPE_U8,
                                     .send = &first,
                                     .recv = &first,
                                     .count = sizeof first,
                                     .peer = comm_size(t->world) - who,
                                     .node = "agreement"}));
    first.sentence[sizeof first.sentence - 1] = 0;
    return fail((Status)first.status, "%s", first.sentence);
}

/* ---- a rank's share of a batch ---------------------------------------------------------- */

/* Columns of the sequence that a context-parallel rank has: one block from the beginning and one
 * from the end. */
static void copy_columns(const Trainer *t, const void *from, void *to, int64_t rows)
{
    int64_t cp = mesh_size(&t->layout.mesh, MESH_CP), seq = t->config->train.seq,
            half = seq / (2 * cp);
    int64_t first[2] = {t->layout.mesh.coord[MESH_CP] * half,
                        (2 * cp - 1 - t->layout.mesh.coord[MESH_CP]) * half};
    const int32_t *in = from;
    int32_t *out = to;
    for (int64_t r = 0; r < rows; r++)
        for (int b = 0; b < 2; b++, out += half)
            memcpy(out, in + r * seq + first[b], (size_t)half * sizeof *out);
}

Status trainer_feed(Trainer *t, int program, const DataBatch *b, int64_t micro)
{
    const struct {
        const char *name;
        const void *data;
    } inputs[] = {
        {"ids", b->ids}, {"targets", b->targets}, {"pos", b->pos}, {"weights", b->weights}};
    size_t bytes = (size_t)(t->micro_batch * t->config->train.seq) * sizeof(int32_t);
    int32_t number = (int32_t)micro;
    if (session_input(t->session, program, MICRO_INPUT))
        TRY(session_write(t->session, program, MICRO_INPUT, &number, sizeof number));
    for (int i = 0; i < COUNT_OF(inputs); i++) {
        if (mesh_size(&t->layout.mesh, MESH_CP) > 1)
            copy_columns(t, inputs[i].data, session_input(t->session, program, inputs[i].name),
                         t->micro_batch);
        else
            TRY(session_write(t->session, program, inputs[i].name, inputs[i].data, bytes));
    }
    return OK;
}
