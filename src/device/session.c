/* Programs loaded over their memory, ready to run. */
#include "device/session_internal.h"

#include <stdlib.h>
#include <string.h>

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

static PackedState *find_packed(PackedState *packed, int n, const Packed *p)
{
    for (int i = 0; i < n; i++)
        if (packed[i].as->packing == p->packing && packed[i].as->state == p->state)
            return &packed[i];
    return NULL;
}

/* Of a plan for stages that are alike: the program of one stands for another's, whose states are
 * others. */
static bool is_twin(Program *const *programs, int i)
{
    for (int j = 0; j < i; j++)
        if (programs[j]->packed == programs[i]->packed) return true;
    return false;
}

/* What the programs read packed, each once however many of them do: into `out`, which has room for
 * all, or only counted (NULL); the bytes in all. */
static size_t merge_packed(Program *const *programs, int n, PackedState *out, int *n_out)
{
    int room = 0;
    size_t bytes = 0;
    for (int i = 0; i < n; i++) room += programs[i]->n_packed;
    PackedState *all = out ? out : xcalloc((size_t)room + 1, sizeof *all);
    *n_out = 0;
    for (int i = 0; i < n; i++) {
        bool twin = is_twin(programs, i);
        for (int k = 0; k < programs[i]->n_packed; k++) {
            const Packed *p = &programs[i]->packed[k];
            if (!twin && find_packed(all, *n_out, p)) continue;
            all[(*n_out)++].as = p;
            bytes += p->bytes;
        }
    }
    if (!out) free(all);
    return bytes;
}

/* Slots stay while programs run; behind them the programs that have slots take turns, the others
 * take turns in all. */
MemoryPlan session_plan(const Store *store, Program *const *programs, int n)
{
    int n_packed;
    MemoryPlan plan = {.state_bytes = store->bytes,
                       .packed_bytes = merge_packed(programs, n, NULL, &n_packed)};
    SlotPlan slots = plan_slots(programs, n);
    plan.step_bytes = plan.held_bytes = slots.end;
    plan.io_bytes = (size_t)slots.n[PIPELINE_FW] * slots.io_bytes;
    for (int i = 0; i < n; i++) {
        const Program *p = programs[i];
        size_t end = p->slotted ? slots.end + p->step_bytes : p->step_bytes;
        if (end > plan.step_bytes) plan.step_bytes = end;
        if (!p->slotted) plan.io_bytes += p->io_bytes;
    }
    plan.total_bytes = plan.state_bytes + plan.step_bytes + plan.io_bytes + plan.packed_bytes;
    return plan;
}

DeviceMemory session_io(const Session *s, const Loaded *l)
{
    if (!l->program->slotted) return l->io;
    DeviceMemory io = s->slot_io;
    size_t at = (size_t)l->slot[PIPELINE_FW] * s->slots.io_bytes;
    io.at += at;
    if (io.host) io.host += at;
    io.bytes = l->program->io_bytes;
    return io;
}

/* Where the program's own part of the step region begins. */
static char *step_of(const Session *s, const Loaded *l)
{
    return s->step.at + (l->program->slotted ? s->slots.end : 0);
}

Tensor session_resolve(const Session *s, const Loaded *l, const Operand *o)
{
    Tensor t = {.dtype = o->dtype, .shape = o->shape};
    memcpy(t.stride, o->stride, sizeof t.stride);
    switch (o->region) {
    case REGION_NONE: break;
    case REGION_STATE: t.data = s->state.at + o->offset; break;
    case REGION_STEP: t.data = step_of(s, l) + o->offset; break;
    case REGION_IO: t.data = session_io(s, l).at + o->offset; break;
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
    step->kernel = s->device->gpu ? instr->op->cuda : instr->op->cpu[s->device->target.isa];
    if (!step->kernel)
        return fail(ERR_UNSUPPORTED, "%s computes no %s; take the cpu device",
                    device_text(s->device), instr->op->name);
    KernelArgs *a = &step->args;
    *a = (KernelArgs){.attr = instr->node->attr,
                      .in = tensor,
                      .out = tensor + instr->node->n_in,
                      .n_in = instr->node->n_in,
                      .n_out = instr->node->n_out,
                      .workspace_bytes = instr->workspace_bytes,
                      .threads = s->device->target.threads,
                      .stream = s->device->stream,
                      .ranks = &s->device->ranks,
                      .node = instr->node->name};
    if (instr->packed) {
        step->packed = find_packed(s->packed, s->n_packed, &l->program->packed[instr->packed - 1]);
        a->packed = step->packed->at;
    }
    if (instr->workspace_bytes) a->workspace = step_of(s, l) + instr->workspace_offset;
    for (int k = 0; k < a->n_in; k++) a->in[k] = session_resolve(s, l, &instr->in[k]);
    for (int k = 0; k < a->n_out; k++) a->out[k] = session_resolve(s, l, &instr->out[k]);
    if (step->kernel->prepare) TRY_AS(step->kernel->prepare(a), "preparing %s", instr->op->name);
    l->n_prepared = i + 1;
    return OK;
}

size_t session_outputs_end(const Program *program, int n)
{
    size_t end = 0;
    for (int i = 0; i < n; i++) end += round_up(operand_bytes(&program->output[i]), TENSOR_ALIGN);
    return end;
}

static Status create_packed(Session *s, Program *const *programs, int n)
{
    int room = 0;
    for (int i = 0; i < n; i++) room += programs[i]->n_packed;
    s->packed = xcalloc((size_t)room + 1, sizeof *s->packed);
    const size_t bytes = merge_packed(programs, n, s->packed, &s->n_packed);
    TRY(device_alloc(s->device, bytes, "packed weights", HOST_NONE, &s->packed_memory));
    char *at = s->packed_memory.at;
    for (int i = 0; i < s->n_packed; i++) {
        s->packed[i].at = at;
        at += s->packed[i].as->bytes;
    }
    return OK;
}

static Status load(Session *s, Loaded *l, const Program *program)
{
    l->program = program;
    if (!program->slotted)
        TRY(device_alloc(s->device, program->io_bytes, "step inputs", HOST_PINNED, &l->io));
    if (s->device->gpu) l->fetched = xmalloc(session_outputs_end(program, program->n_outputs) + 1);
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
    Status status = device_alloc(device, plan.state_bytes, "weights and optimizer state", HOST_LAZY,
                                 &s->state);
    if (status == OK)
        status = device_alloc(device, plan.step_bytes, "activations and workspace", HOST_NONE,
                              &s->step);
    if (status == OK)
        status = device_alloc(device, (size_t)s->slots.n[PIPELINE_FW] * s->slots.io_bytes,
                              "step inputs", HOST_PINNED, &s->slot_io);
    if (status == OK && device->gpu) status = gpu_event_create(device->gpu, &s->inputs_read);
    if (status == OK) status = create_packed(s, programs, n);
    for (int i = 0; i < n && status == OK; i++) status = load(s, &s->loaded[i], programs[i]);
    if (status == OK) status = device_agree(device);
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
    if (s->device->gpu && gpu_stream_wait(s->device->stream) != OK) {
        log_warn("%s", status_message());
        /* memory is not given back while the GPU waits for a rank that does not come */
        if (s->device->world) comm_leave_gpu(s->device->world);
    }
    for (int i = 0; i < s->n_loaded; i++) {
        Loaded *l = &s->loaded[i];
        for (int k = 0; k < l->n_captured; k++) gpu_graph_destroy(l->captured[k].graph);
        free(l->fetched);
        for (int k = 0; k < l->n_prepared; k++)
            if (l->step[k].kernel->release) l->step[k].kernel->release(&l->step[k].args);
        free(l->step);
        free(l->tensor);
        device_free(s->device, &l->io);
    }
    device_free(s->device, &s->state);
    device_free(s->device, &s->step);
    device_free(s->device, &s->slot_io);
    device_free(s->device, &s->packed_memory);
    free(s->packed);
    gpu_event_destroy(s->inputs_read);
    session_forget_moments(s);
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
            step->args.in[k].data = session_resolve(s, l, &step->instr->in[k]).data;
        for (int k = 0; k < step->args.n_out; k++)
            step->args.out[k].data = session_resolve(s, l, &step->instr->out[k]).data;
    }
}

void session_unpack(Session *s)
{
    for (int i = 0; i < s->n_packed; i++) s->packed[i].fresh = false;
}

Status session_run_step(Step *step)
{
    PackedState *packed = step->packed;
    if (packed && !packed->fresh) {
        step->kernel->packing->pack(&step->args, packed->at);
        packed->fresh = true;
    }
    Status status = step->kernel->run(&step->args);
    return status == OK ? OK : failed_at(step, status);
}

static Status run_steps(Session *s, Loaded *l, int begin, int end)
{
    if (s->watch) return session_run_watched(s, l, begin, end);
    for (int i = begin; i < end; i++) TRY(session_run_step(&l->step[i]));
    return OK;
}

/* Steps whose operands never move and that speak with nobody can be kept as one launch. */
static bool can_capture(const Session *s, const Loaded *l, int begin, int end)
{
    if (l->program->slotted || s->watch || s->one_by_one) return false;
    for (int i = begin; i < end; i++)
        if (l->step[i].instr->op->flags & OP_COLLECTIVE) return false;
    return true;
}

static Status capture(Session *s, Loaded *l, Phase first, Phase last, Captured **out)
{
    int begin = l->program->phase_begin[first], end = l->program->phase_begin[last + 1];
    CHECK(l->n_captured < MAX_CAPTURED);
    Captured *c = &l->captured[l->n_captured];
    *c = (Captured){.first = first, .last = last};
    TRY(gpu_capture_begin(s->device->stream));
    Status status = run_steps(s, l, begin, end);
    char why[512];
    snprintf(why, sizeof why, "%s", status_message());
    Status ended = gpu_capture_end(s->device->stream, &c->graph);
    if (status != OK) {
        gpu_graph_destroy(ended == OK ? c->graph : NULL);
        return fail(status, "%s", why);
    }
    TRY(ended);
    l->n_captured++;
    *out = c;
    return OK;
}

static Status run_on_gpu(Session *s, Loaded *l, Phase first, Phase last)
{
    GpuStream *stream = s->device->stream;
    int begin = l->program->phase_begin[first], end = l->program->phase_begin[last + 1];
    DeviceMemory io = session_io(s, l);
    TRY(gpu_write(stream, io.at, io.host, io.bytes));
    TRY(gpu_event_record(s->inputs_read, stream));
    if (begin == end) return OK;
    if (!can_capture(s, l, begin, end)) return run_steps(s, l, begin, end);
    Captured *c = NULL;
    for (int k = 0; k < l->n_captured; k++)
        if (l->captured[k].first == first && l->captured[k].last == last) c = &l->captured[k];
    if (!c && l->n_captured == MAX_CAPTURED) return run_steps(s, l, begin, end);
    if (!c) TRY(capture(s, l, first, last, &c));
    return gpu_graph_launch(c->graph, stream);
}

Status session_run(Session *s, int program, Phase first, Phase last)
{
    Loaded *l = &s->loaded[program];
    int begin = l->program->phase_begin[first], end = l->program->phase_begin[last + 1];
    if (l->program->slotted) find_operands(s, l, begin, end);
    Status status = s->device->gpu ? run_on_gpu(s, l, first, last) : run_steps(s, l, begin, end);
    if (first <= PHASE_UPDATE && last >= PHASE_UPDATE) session_unpack(s);
    return status;
}

void session_use_slots(Session *s, int program, const int slot[PIPELINE_SPANS])
{
    memcpy(s->loaded[program].slot, slot, sizeof s->loaded[program].slot);
}

void session_watch(Session *s, SessionWatch *fn, void *context)
{
    s->watch = fn;
    s->watch_context = context;
}
