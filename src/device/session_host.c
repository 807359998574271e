/* What the host sees of a session: inputs, outputs, states, and how states begin. */
#include "device/session_internal.h"

#include <stdlib.h>
#include <string.h>

/* ---- inputs and outputs ------------------------------------------------------------------- */

/* Inputs of a GPU are copied from pinned memory: not before the last copy has ended may they
 * change.
 */
static char *input_place(Session *s, const Loaded *l, const Operand *o)
{
    if (!o) return NULL;
    if (s->device->gpu && gpu_event_wait(s->inputs_read) != OK) return NULL;
    return session_io(s, l).host + o->offset;
}

void *session_input(Session *s, int program, const char *input)
{
    Loaded *l = &s->loaded[program];
    return input_place(s, l, program_input(l->program, input));
}

static Status check_size(const Operand *o, const char *name, const char *graph, size_t bytes)
{
    if (!o) return fail(ERR_ARG, "program %s has no input or output %s", graph, name);
    size_t expected = operand_bytes(o);
    if (expected != bytes)
        return fail(ERR_ARG, "%s of program %s has %zu bytes, not %zu", name, graph, expected,
                    bytes);
    return OK;
}

Status session_write(Session *s, int program, const char *input, const void *data, size_t bytes)
{
    const Loaded *l = &s->loaded[program];
    const Operand *o = program_input(l->program, input);
    TRY(check_size(o, input, l->program->graph->name, bytes));
    char *place = input_place(s, l, o);
    if (!place) return ERR_DEVICE;
    memcpy(place, data, bytes);
    return OK;
}

bool session_has_output(const Session *s, int program, const char *output)
{
    return program_output(s->loaded[program].program, output);
}

static Status read_output(const Session *s, const Loaded *l, const Operand *o, const char *name,
                          void *data)
{
    if (!stride_is_contiguous(&o->shape, o->stride))
        return fail(ERR_ARG, "output %s is not contiguous", name);
    const void *from = session_resolve(s, l, o).data;
    if (s->device->gpu) return gpu_read(s->device->stream, data, from, operand_bytes(o));
    memcpy(data, from, operand_bytes(o));
    return OK;
}

Status session_fetch_output(Session *s, int program, const char *output, const void **data)
{
    const Loaded *l = &s->loaded[program];
    const Operand *o = program_output(l->program, output);
    *data = NULL;
    if (!o) return fail(ERR_ARG, "program %s has no output %s", l->program->graph->name, output);
    if (!s->device->gpu) {
        *data = session_resolve(s, l, o).data;
        return OK;
    }
    char *place = l->fetched + session_outputs_end(l->program, (int)(o - l->program->output));
    TRY(read_output(s, l, o, output, place));
    *data = place;
    return OK;
}

Status session_read(Session *s, int program, const char *output, void *data, size_t bytes)
{
    const Loaded *l = &s->loaded[program];
    const Operand *o = program_output(l->program, output);
    TRY(check_size(o, output, l->program->graph->name, bytes));
    return read_output(s, l, o, output, data);
}

/* ---- states ------------------------------------------------------------------------------- */

Tensor session_state(Session *s, int entry)
{
    const StateEntry *e = &s->store->entry[entry];
    return tensor_make(s->state.host + e->offset, e->dtype, e->shape);
}

Tensor session_state_part(Session *s, int entry, int part)
{
    const StateEntry *e = &s->store->entry[entry];
    return tensor_make(s->state.host + e->offset + e->part[part].offset_bytes, e->dtype,
                       e->part[part].shape);
}

Status session_fetch_states(Session *s)
{
    if (!s->device->gpu) return OK;
    return gpu_read(s->device->stream, s->state.host, s->state.at, s->state.bytes);
}

Status session_store_states(Session *s)
{
    session_unpack(s);
    if (!s->device->gpu) return OK;
    TRY(gpu_write(s->device->stream, s->state.at, s->state.host, s->state.bytes));
    return gpu_stream_wait(s->device->stream);
}

Status session_clear_state(Session *s, int entry)
{
    const StateEntry *e = &s->store->entry[entry];
    memset(s->state.host + e->offset, 0, e->bytes);
    session_unpack(s);
    if (!s->device->gpu) return OK;
    return gpu_fill(s->device->stream, s->state.at + e->offset, 0, e->bytes);
}

enum { INIT_PIECE = 1 << 16 }; /* elements made at a time, in f32 */

typedef struct Init {
    const StateEntry *entry;
    char *data; /* of the entry */
    uint64_t seed;
    float *piece;
} Init;

/* A weight's elements are a function of its published name and their number in the whole tensor: a
 * rank makes its own and gets the same as a rank that makes all. */
static Status init_run(void *context, const StateRun *run)
{
    const Init *init = context;
    const StatePart *part = &init->entry->part[run->part];
    Str name = {0};
    str_printf(&name, "init/%s", part->name);
    uint64_t key = rng_key(init->seed, name.at);
    str_deinit(&name);
    for (int64_t at = 0; at < run->n; at += INIT_PIECE) {
        int64_t m = min_i64(run->n - at, INIT_PIECE);
        if (part->init_deviation > 0)
            rng_fill_normal(key, (uint64_t)(run->global + at), (double)part->init_deviation,
                            init->piece, (size_t)m);
        else
            for (int64_t i = 0; i < m; i++) init->piece[i] = part->init_value;
        TRY(dtype_convert(DTYPE_F32, init->piece, init->entry->dtype,
                          init->data + (size_t)(run->local + at) * dtype_bytes(init->entry->dtype),
                          m));
    }
    return OK;
}

Status session_init_weights(Session *s, uint64_t seed)
{
    Init init = {.seed = seed, .piece = xmalloc(INIT_PIECE * sizeof(float))};
    Status status = OK;
    for (int i = 0; i < s->store->n_entries && status == OK; i++) {
        init.entry = &s->store->entry[i];
        init.data = s->state.host + init.entry->offset;
        if (init.entry->role == STATE_PARAM) status = store_each_run(s->store, i, init_run, &init);
    }
    free(init.piece);
    TRY(status);
    return session_refresh_copies(s);
}

/* The mesh axis along which a master is cut and its copy is whole; -1: none. */
static int gathered_axis(const StateEntry *master, const StateEntry *copy)
{
    for (int a = 0; a < MESH_AXES; a++)
        if (place_is_cut(master->place[a]) && !place_is_cut(copy->place[a])) return a;
    return -1;
}

/* Each rank of the axis makes the run of the copy whose masters it has; then all get all. */
static Status gather_copy(Session *s, int axis, const Tensor *from, const Tensor *to)
{
    Comm *group;
    TRY(device_group(s->device, 1u << axis, &group));
    int n = comm_size(group), rank = comm_rank(group);
    int64_t part = tensor_count(from), left = tensor_count(to),
            *counts = xcalloc((size_t)n, sizeof *counts);
    for (int r = 0; r < n; r++, left -= counts[r - 1]) counts[r] = min_i64(part, left);
    char *own = (char *)to->data + (size_t)(part * rank) * dtype_bytes(to->dtype);
    Status status = counts[rank]
                        ? dtype_convert(from->dtype, from->data, to->dtype, own, counts[rank])
                        : OK;
    CommOp op = {.kind = COMM_ALL_GATHER,
                 .dtype = to->dtype,
                 .send = own,
                 .recv = to->data,
                 .counts = counts,
                 .node = "working weights"};
    if (status == OK) status = comm_run(group, &op);
    free(counts);
    return status;
}

Status session_refresh_copies(Session *s)
{
    for (int i = 0; i < s->store->n_entries; i++) {
        const StateEntry *e = &s->store->entry[i];
        if (e->role != STATE_COPY || e->master < 0) continue;
        Tensor from = session_state(s, e->master), to = session_state(s, i);
        int axis = gathered_axis(&s->store->entry[e->master], e);
        if (axis >= 0)
            TRY(gather_copy(s, axis, &from, &to));
        else
            TRY(dtype_convert(from.dtype, from.data, to.dtype, to.data, shape_count(&e->shape)));
    }
    return session_store_states(s);
}
