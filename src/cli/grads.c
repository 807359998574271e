/* drover grads MODEL --ids FILE.json --out FILE.safetensors */
#include "cli/cli.h"

#include <stdlib.h>
#include <string.h>

#include "train/train.h"

typedef struct GradsOptions {
    const char *ids, *out;
    int64_t threads;
} GradsOptions;

static const Option options[] = {
    {"ids", OPTION_TEXT, "FILE.json", 0, 0, NULL, NULL, offsetof(GradsOptions, ids),
     "token ids: {\"ids\": [[...], ...]}, rows of equal length"},
    {"out", OPTION_TEXT, "FILE.safetensors", 0, 0, NULL, NULL, offsetof(GradsOptions, out),
     "where loss and gradients go, one tensor per weight by its published name"},
    {"threads", OPTION_INT, "N", 0, 4096, "0", NULL, offsetof(GradsOptions, threads),
     "0: all cores"},
};

/* ---- ids -------------------------------------------------------------------------------- */

typedef struct Rows {
    int32_t *ids, *pos, *targets;
    float *weights;
    int64_t n, length;
} Rows;

/* Every token but a row's last predicts the next. */
static void fill_row(const IdVec *ids, int64_t index, Rows *r)
{
    for (int64_t t = 0; t < r->length; t++) {
        int64_t at = index * r->length + t;
        r->ids[at] = ids->at[t];
        r->pos[at] = (int32_t)t;
        r->targets[at] = t + 1 < r->length ? ids->at[t + 1] : -1;
        r->weights[at] = t + 1 < r->length ? 1.0f / (float)(r->n * (r->length - 1)) : 0;
    }
}

static Status check_row(const IdVec *ids, int64_t index, int64_t length, int64_t vocab,
                        const char *path)
{
    if ((int64_t)ids->n != length)
        return fail(ERR_FORMAT, "%s: row %lld has not %lld ids as the first", path,
                    (long long)index, (long long)length);
    for (size_t t = 0; t < ids->n; t++)
        if (ids->at[t] >= vocab)
            return fail(ERR_FORMAT, "%s: row %lld, place %zu is not an id from 0 to %lld", path,
                        (long long)index, t, (long long)vocab - 1);
    return OK;
}

/* The loss is the mean over all predictions. */
static Status read_rows(Arena *arena, const char *path, int64_t vocab, Rows *r)
{
    IdRows read;
    TRY(ids_read(arena, path, &read));
    *r = (Rows){.n = read.n, .length = (int64_t)read.row[0].n};
    if (r->length < 2)
        return fail(ERR_FORMAT, "%s: \"ids\" must hold rows of at least two ids", path);
    for (int64_t i = 0; i < r->n; i++) TRY(check_row(&read.row[i], i, r->length, vocab, path));
    r->ids = ARENA_ARRAY(arena, int32_t, r->n * r->length);
    r->pos = ARENA_ARRAY(arena, int32_t, r->n * r->length);
    r->targets = ARENA_ARRAY(arena, int32_t, r->n * r->length);
    r->weights = ARENA_ARRAY(arena, float, r->n * r->length);
    for (int64_t i = 0; i < r->n; i++) fill_row(&read.row[i], i, r);
    return OK;
}

/* ---- run -------------------------------------------------------------------------------- */

static Status load_weights(Session *session, const Store *store, const Weights *weights)
{
    VEC(NamedTensor) list = {0};
    for (int i = 0; i < store->n_entries; i++) {
        bool wanted = store->entry[i].role == STATE_PARAM || store->entry[i].role == STATE_BUFFER;
        for (int k = 0; wanted && k < store->entry[i].n_parts; k++)
            VEC_PUSH(&list, ((NamedTensor){store->entry[i].part[k].name,
                                           session_state_part(session, i, k)}));
    }
    Status status = weights_load(weights, list.at, (int)list.n);
    VEC_FREE(&list);
    TRY(status);
    return session_store_states(session);
}

static Status write_gradients(Session *session, const Store *store, const char *path)
{
    VEC(SafetensorsItem) items = {0};
    const void *loss, *grad;
    TRY(session_fetch_output(session, 0, "loss", &loss));
    VEC_PUSH(&items, ((SafetensorsItem){.name = "loss", .dtype = DTYPE_F32, .data = loss}));
    Status status = OK;
    for (int i = 0; i < store->n_entries && status == OK; i++) {
        const StateEntry *e = &store->entry[i];
        grad = NULL;
        if (e->role == STATE_PARAM && session_has_output(session, 0, e->name))
            status = session_fetch_output(session, 0, e->name, &grad);
        for (int k = 0; grad && k < e->n_parts; k++)
            VEC_PUSH(&items,
                     ((SafetensorsItem){.name = e->part[k].name,
                                        .dtype = DTYPE_F32,
                                        .shape = e->part[k].shape,
                                        .data = (const char *)grad + e->part[k].offset_bytes}));
    }
    if (status == OK) status = safetensors_write(path, items.at, (int)items.n, NULL);
    VEC_FREE(&items);
    return status;
}

static Status compute(const InferModel *model, const Rows *r, const GradsOptions *o)
{
    StepPrograms p;
    Session *session = NULL;
    Device *device;
    size_t n = (size_t)(r->n * r->length);
    StepOptions step = {.micro_batch = r->n, .n_micro = 1, .seq = r->length, .dtype = DTYPE_F32};
    TRY(device_create_cpu((CpuOptions){.threads = (int)o->threads}, &device));
    Status status = step_grads_build(&model->config, &step, device_target(device), &p);
    if (status != OK) {
        device_destroy(device);
        return status;
    }
    TRY_GOTO(session_create(device, p.store, p.at, p.n, &session), done);
    TRY_GOTO(load_weights(session, p.store, model->weights), done);
    TRY_GOTO(session_write(session, 0, "ids", r->ids, 4 * n), done);
    TRY_GOTO(session_write(session, 0, "pos", r->pos, 4 * n), done);
    TRY_GOTO(session_write(session, 0, "targets", r->targets, 4 * n), done);
    TRY_GOTO(session_write(session, 0, "weights", r->weights, 4 * n), done);
    TRY_GOTO(session_run(session, 0, PHASE_FORWARD, PHASE_BACKWARD), done);
    status = write_gradients(session, p.store, o->out);
done:
    session_destroy(session);
    step_programs_destroy(&p);
    device_destroy(device);
    return status;
}

static Status run(const void *chosen, Operands operands)
{
    const GradsOptions *o = chosen;
    if (!o->ids || !o->out)
        return fail(ERR_ARG, "grads needs --ids FILE.json and --out FILE.safetensors");
    Arena arena = {0};
    InferModel model;
    Rows rows = {0};
    Status status = infer_model_open(operands.at[0], &model);
    if (status == OK) {
        status = read_rows(&arena, o->ids, model.config.vocab, &rows);
        if (status == OK) status = compute(&model, &rows, o);
        infer_model_deinit(&model);
    }
    arena_deinit(&arena);
    return status;
}

const Command command_grads = {
    .name = "grads",
    .operands = "MODEL",
    .min_operands = 1,
    .max_operands = 1,
    .sentence = "loss and gradients of token ids, to be compared",
    COMMAND_OPTIONS(GradsOptions, options),
    .run = run,
};
