/* Programs loaded over their memory, ready to run. */
#include "device/device_internal.h"

#include <stdlib.h>
#include <string.h>

typedef struct Step {
    const CpuKernel *kernel;
    KernelArgs args;
    const Instr *instr;
} Step;

typedef struct Loaded {
    const Program *program;
    DeviceMemory io;
    Step *step;
    int n_prepared;           /* steps whose prepare succeeded, for release */
    int slot[PIPELINE_SPANS]; /* of the micro-batch in flight that is meant */
    Tensor *tensor;           /* all operands */
} Loaded;

/* The slots of all programs that have them, in the step region from its start. */
typedef struct SlotPlan {
    int n[PIPELINE_SPANS];
    size_t at[PIPELINE_SPANS], bytes[PIPELINE_SPANS]; /* of one slot */
    size_t end;
    size_t io_bytes; /* inputs of one slot */
} SlotPlan;

struct Session {
    Device *device;
    const Store *store;
    DeviceMemory state, step, slot_io;
    SlotPlan slots;
    Loaded *loaded;
    int n_loaded;
    SessionWatch *watch; /* NULL: nobody listens */
    void *watch_context;
};

/* What the programs with slots share. */
static SlotPlan plan_slots(Program *const *programs, int n)
{
    SlotPlan plan = {0};
    for (int i = 0; i < n; i++) {
        const Program *p = programs[i];
        if (!p->slotted) continue;
        for (int span = 0; span < PIPELINE_SPANS; span++) {
            if (p->n_slots[span] > plan.n[span]) plan.n[span] = p->n_slots[span];
            if (p->slot_bytes[span] > plan.bytes[span]) plan.bytes[span] = p->slot_bytes[span];
        }
        if (p->io_bytes > plan.io_bytes) plan.io_bytes = p->io_bytes;
    }
    if (plan.bytes[PIPELINE_BW] > plan.bytes[PIPELINE_FB])
        plan.bytes[PIPELINE_FB] = plan.bytes[PIPELINE_BW];
    plan.bytes[PIPELINE_BW] = plan.bytes[PIPELINE_FB]; /* they share slots */
    plan.at[PIPELINE_FW] = (size_t)plan.n[PIPELINE_FB] * plan.bytes[PIPELINE_FB];
    plan.end = plan.at[PIPELINE_FW] + (size_t)plan.n[PIPELINE_FW] * plan.bytes[PIPELINE_FW];
    return plan;
}

/* Slots stay while programs run; behind them the programs that have slots take turns, the others
 * take turns in all. */
MemoryPlan session_plan(const Store *store, Program *const *programs, int n)
{
    MemoryPlan plan = {.state_bytes = store->bytes};
    SlotPlan slots = plan_slots(programs, n);
    plan.step_bytes = plan.held_bytes = slots.end;
    plan.io_bytes = (size_t)slots.n[PIPELINE_FW] * slots.io_bytes;
    for (int i = 0; i < n; i++) {
        const Program *p = programs[i];
        size_t end = p->slotted ? slots.end + p->step_bytes : p->step_bytes;
        if (end > plan.step_bytes) plan.step_bytes = end;
        if (!p->slotted) plan.io_bytes += p->io_bytes;
    }
    plan.total_bytes = plan.state_bytes + plan.step_bytes + plan.io_bytes;
    return plan;
}

/* Where the program's own part of the step region begins. */
static char *step_of(const Session *s, const Loaded *l)
{
    return s->step.at + (l->program->slotted ? s->slots.end : 0);
}

static Tensor resolve(const Session *s, const Loaded *l, const Operand *o)
{
    Tensor t = {.dtype = o->dtype, .shape = o->shape};
    memcpy(t.stride, o->stride, sizeof t.stride);
    switch (o->region) {
    case REGION_NONE: break;
    case REGION_STATE: t.data = s->state.at + o->offset; break;
    case REGION_STEP: t.data = step_of(s, l) + o->offset; break;
    case REGION_IO:
        t.data = (l->program->slotted
                      ? s->slot_io.at + (size_t)l->slot[PIPELINE_FW] * s->slots.io_bytes
                      : l->io.at) +
                 o->offset;
        break;
    case REGION_HELD:
        t.data = s->step.at + s->slots.at[o->span] +
                 (size_t)l->slot[o->span] * s->slots.bytes[o->span] + o->offset;
        break;
    }
    return t;
}

static Status load_instr(Session *s, Loaded *l, int i, Tensor *tensor)
{
    const Instr *instr = &l->program->instr[i];
    Step *step = &l->step[i];
    step->instr = instr;
    step->kernel = instr->op->cpu[s->device->target.isa];
    KernelArgs *a = &step->args;
    *a = (KernelArgs){.attr = instr->node->attr,
                      .in = tensor,
                      .out = tensor + instr->node->n_in,
                      .n_in = instr->node->n_in,
                      .n_out = instr->node->n_out,
                      .workspace_bytes = instr->workspace_bytes,
                      .threads = s->device->target.threads,
                      .ranks = &s->device->ranks,
                      .node = instr->node->name};
    if (instr->workspace_bytes) a->workspace = step_of(s, l) + instr->workspace_offset;
    for (int k = 0; k < a->n_in; k++) a->in[k] = resolve(s, l, &instr->in[k]);
    for (int k = 0; k < a->n_out; k++) a->out[k] = resolve(s, l, &instr->out[k]);
    if (step->kernel->prepare) TRY_AS(step->kernel->prepare(a), "preparing %s", instr->op->name);
    l->n_prepared = i + 1;
    return OK;
}

static Status load(Session *s, Loaded *l, const Program *program)
{
    l->program = program;
    if (!program->slotted) TRY(device_alloc(s->device, program->io_bytes, "step inputs", &l->io));
    size_t n_tensors = 0;
    for (int i = 0; i < program->n_instr; i++)
        n_tensors += (size_t)(program->instr[i].node->n_in + program->instr[i].node->n_out);
    l->tensor = xcalloc(n_tensors + 1, sizeof *l->tensor);
    l->step = xcalloc((size_t)program->n_instr + 1, sizeof *l->step);
    Tensor *next = l->tensor;
    for (int i = 0; i < program->n_instr; i++) {
        TRY(load_instr(s, l, i, next));
        next += program->instr[i].node->n_in + program->instr[i].node->n_out;
    }
    return OK;
}

Status session_create(Device *device, const Store *store, Program *const *programs, int n,
                      Session **session)
{
    Session *s = xcalloc(1, sizeof *s);
    s->device = device;
    s->store = store;
    s->loaded = xcalloc((size_t)n + 1, sizeof *s->loaded);
    s->n_loaded = n;
    MemoryPlan plan = session_plan(store, programs, n);
    s->slots = plan_slots(programs, n);
    Status status = device_alloc(device, plan.state_bytes, "weights and optimizer state",
                                 &s->state);
    if (status == OK)
        status = device_alloc(device, plan.step_bytes, "activations and workspace", &s->step);
    if (status == OK)
        status = device_alloc(device, (size_t)s->slots.n[PIPELINE_FW] * s->slots.io_bytes,
                              "step inputs", &s->slot_io);
    for (int i = 0; i < n && status == OK; i++) status = load(s, &s->loaded[i], programs[i]);
    if (status != OK) {
        session_destroy(s);
        return status;
    }
    *session = s;
    return OK;
}

void session_destroy(Session *s)
{
    if (!s) return;
    for (int i = 0; i < s->n_loaded; i++) {
        Loaded *l = &s->loaded[i];
        for (int k = 0; k < l->n_prepared; k++)
            if (l->step[k].kernel->release) l->step[k].kernel->release(&l->step[k].args);
        free(l->step);
        free(l->tensor);
        device_free(s->device, &l->io);
    }
    device_free(s->device, &s->state);
    device_free(s->device, &s->step);
    device_free(s->device, &s->slot_io);
    free(s->loaded);
    free(s);
}

/* An error of a kernel, with the place in the model where it happened. */
static Status failed_at(const Step *step, Status status)
{
    const Node *node = step->instr->node;
    char layer[32] = "";
    if (node->layer >= 0) snprintf(layer, sizeof layer, " in layer %d", node->layer);
    fail_context("%s%s%s%s", step->instr->op->name, node->name ? " " : "",
                 node->name ? node->name : "", layer);
    return status;
}

/* The operands of these instructions lie where the present slots say. */
static void find_operands(const Session *s, Loaded *l, int begin, int end)
{
    for (int i = begin; i < end; i++) {
        Step *step = &l->step[i];
        for (int k = 0; k < step->args.n_in; k++)
            step->args.in[k].data = resolve(s, l, &step->instr->in[k]).data;
        for (int k = 0; k < step->args.n_out; k++)
            step->args.out[k].data = resolve(s, l, &step->instr->out[k]).data;
    }
}

Status session_run(Session *s, int program, Phase first, Phase last)
{
    Loaded *l = &s->loaded[program];
    int begin = l->program->phase_begin[first], end = l->program->phase_begin[last + 1];
    if (l->program->slotted) find_operands(s, l, begin, end);
    for (int i = begin; i < end; i++) {
        Step *step = &l->step[i];
        double begin_s = s->watch ? clock_s() : 0;
        Status status = step->kernel->run(&step->args);
        if (status != OK) return failed_at(step, status);
        if (s->watch)
            s->watch(s->watch_context, &(InstrTime){l->program, step->instr, l->slot[PIPELINE_FW],
                                                    begin_s, clock_s()});
    }
    return OK;
}

void session_use_slots(Session *s, int program, const int slot[PIPELINE_SPANS])
{
    memcpy(s->loaded[program].slot, slot, sizeof s->loaded[program].slot);
}

static void *place_of(const Session *s, int program, const Operand *o)
{
    return o ? resolve(s, &s->loaded[program], o).data : NULL;
}

void *session_input(Session *s, int program, const char *input)
{
    return place_of(s, program, program_input(s->loaded[program].program, input));
}

void *session_output(Session *s, int program, const char *output)
{
    return place_of(s, program, program_output(s->loaded[program].program, output));
}

static Status check_size(const Operand *o, const char *name, const char *graph, size_t bytes)
{
    if (!o) return fail(ERR_ARG, "program %s has no input or output %s", graph, name);
    size_t expected = (size_t)shape_count(&o->shape) * dtype_bytes(o->dtype);
    if (expected != bytes)
        return fail(ERR_ARG, "%s of program %s has %zu bytes, not %zu", name, graph, expected,
                    bytes);
    return OK;
}

Status session_write(Session *s, int program, const char *input, const void *data, size_t bytes)
{
    const Program *p = s->loaded[program].program;
    const Operand *o = program_input(p, input);
    TRY(check_size(o, input, p->graph->name, bytes));
    memcpy(place_of(s, program, o), data, bytes);
    return OK;
}

Status session_read(Session *s, int program, const char *output, void *data, size_t bytes)
{
    const Program *p = s->loaded[program].program;
    const Operand *o = program_output(p, output);
    TRY(check_size(o, output, p->graph->name, bytes));
    if (!stride_is_contiguous(&o->shape, o->stride))
        return fail(ERR_ARG, "output %s is not contiguous", output);
    memcpy(data, place_of(s, program, o), bytes);
    return OK;
}

Tensor session_state(Session *s, int entry)
{
    const StateEntry *e = &s->store->entry[entry];
    return tensor_make(s->state.at + e->offset, e->dtype, e->shape);
}

Tensor session_state_part(Session *s, int entry, int part)
{
    const StateEntry *e = &s->store->entry[entry];
    return tensor_make(s->state.at + e->offset + e->part[part].offset_bytes, e->dtype,
                       e->part[part].shape);
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
        init.data = s->state.at + init.entry->offset;
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
    return OK;
}

void session_watch(Session *s, SessionWatch *fn, void *context)
{
    s->watch = fn;
    s->watch_context = context;
}
