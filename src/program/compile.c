/* Graph to program: instructions in the graph's order, lifetimes, offsets. */
#include "program/program_internal.h"

#include <stdlib.h>
#include <string.h>

typedef struct Compiler {
    Program *program;
    Store *store;
    Placement placement;
    Block *block; /* storages and workspaces of the step region and of slots */
    int n_blocks;
    int *block_of;         /* per root value: its block, -1 none */
    int *workspace_of;     /* per node: its block, -1 none */
    size_t *io_offset;     /* per input value */
    int phase_end[PHASES]; /* the node behind the last one of each phase */
} Compiler;

static size_t value_bytes(const Value *v)
{
    return (size_t)shape_count(&v->shape) * dtype_bytes(v->dtype);
}

/* Birth and death of every storage in the step region. */
static void add_storages(Compiler *c)
{
    const Graph *g = c->program->graph;
    for (int v = 1; v < g->n_values; v++) c->block_of[v] = -1;
    for (int v = 1; v < g->n_values; v++) {
        const Placed *at = &c->placement.at[v];
        const Value *root = &g->value[at->root], *value = &g->value[v];
        if (root->kind != VALUE_TEMP) continue;
        int *b = &c->block_of[at->root];
        if (*b < 0) {
            *b = c->n_blocks++;
            c->block[*b] = (Block){
                .bytes = value_bytes(root), .birth = root->producer.id, .death = root->producer.id};
        }
        Block *block = &c->block[*b];
        if (value->producer.id < block->birth) block->birth = value->producer.id;
        if (value->producer.id > block->death) block->death = value->producer.id;
        if (at->last_read > block->death) block->death = at->last_read;
    }
}

static size_t workspace_bytes(const Program *p, const Node *node)
{
    const OpDef *op = node->op;
    if (p->target.gpu && op->gpu_workspace) return op->gpu_workspace(p->graph, node);
    const Kernel *kernel = op->cpu[p->target.isa];
    return kernel && kernel->workspace ? kernel->workspace(p->graph, node, &p->target) : 0;
}

static void add_workspaces(Compiler *c)
{
    const Program *p = c->program;
    for (int i = 1; i < p->graph->n_nodes; i++) {
        size_t bytes = workspace_bytes(p, &p->graph->node[i]);
        c->workspace_of[i] = bytes ? c->n_blocks : -1;
        if (bytes) c->block[c->n_blocks++] = (Block){.bytes = bytes, .birth = i, .death = i};
    }
}

/* ---- regions ---------------------------------------------------------------------------- */

static void find_phases(Compiler *c)
{
    const Graph *g = c->program->graph;
    for (int i = 1; i < g->n_nodes; i++) c->phase_end[g->node[i].phase] = i + 1;
}

/* In which phase node i runs; what lives to the end lives to the last one. */
static Phase phase_at(const Compiler *c, int i)
{
    int phase = PHASE_FORWARD, last = PHASE_FORWARD;
    for (int p = 0; p < PHASES; p++)
        if (c->phase_end[p]) last = p;
    while (phase < last && i >= c->phase_end[phase]) phase++;
    return (Phase)phase;
}

/* The slots in which a block lies that lives from one phase to a later one; PIPELINE_SPANS: in
 * none. */
static PipelineSpan span_of(const Compiler *c, const Block *block)
{
    Phase from = phase_at(c, block->birth), to = phase_at(c, block->death);
    if (!c->program->slotted || from == to) return PIPELINE_SPANS;
    return from == PHASE_BACKWARD ? PIPELINE_BW : to == PHASE_BACKWARD ? PIPELINE_FB : PIPELINE_FW;
}

/* Offsets of the blocks of one span; returns the bytes that they need. */
static size_t plan_span(Compiler *c, PipelineSpan span)
{
    Block *group = xcalloc((size_t)c->n_blocks + 1, sizeof *group);
    int *index = xcalloc((size_t)c->n_blocks + 1, sizeof *index), n = 0;
    for (int b = 0; b < c->n_blocks; b++) {
        if (span_of(c, &c->block[b]) != span) continue;
        index[n] = b;
        group[n++] = c->block[b];
    }
    size_t bytes = round_up(plan_blocks(group, n), TENSOR_ALIGN);
    for (int k = 0; k < n; k++) c->block[index[k]] = group[k];
    free(group);
    free(index);
    return bytes;
}

static void plan_regions(Compiler *c)
{
    Program *p = c->program;
    find_phases(c);
    for (int span = 0; p->slotted && span < PIPELINE_SPANS; span++)
        p->slot_bytes[span] = plan_span(c, (PipelineSpan)span);
    p->step_bytes = plan_span(c, PIPELINE_SPANS);
}

static Operand operand(Compiler *c, ValueId id)
{
    if (!value_ok(id)) return (Operand){.region = REGION_NONE};
    const Graph *g = c->program->graph;
    const Value *v = graph_value(g, id);
    const Placed *at = &c->placement.at[id.id];
    const Value *root = &g->value[at->root];
    Operand o = {.value = id, .dtype = v->dtype, .shape = v->shape, .offset = at->offset_bytes};
    memcpy(o.stride, at->stride, sizeof o.stride);
    switch (root->kind) {
    case VALUE_STATE:
        o.region = REGION_STATE;
        o.offset += c->store->entry[store_find(c->store, root->name)].offset;
        break;
    case VALUE_INPUT:
        o.region = REGION_IO;
        o.offset += c->io_offset[at->root];
        break;
    case VALUE_TEMP: {
        const Block *block = &c->block[c->block_of[at->root]];
        o.span = span_of(c, block);
        o.region = o.span < PIPELINE_SPANS ? REGION_HELD : REGION_STEP;
        o.offset += block->offset;
        break;
    }
    }
    return o;
}

/* ---- operands that stay packed ---------------------------------------------------------- */

/* Of the program's packed operands, 1 + the place of this one, which is added when it is new. */
static int packed_place(Program *p, Packed packed)
{
    for (int i = 0; i < p->n_packed; i++)
        if (p->packed[i].packing == packed.packing && p->packed[i].state == packed.state)
            return 1 + i;
    p->packed[p->n_packed++] = packed;
    return p->n_packed;
}

/* Whole states only; what is cut or gathered on its way is packed each time. */
static void pack_operand(Program *p, Instr *instr)
{
    const Kernel *kernel = instr->op->cpu[p->target.isa];
    const Packing *packing = p->target.packs && !p->target.gpu && kernel ? kernel->packing : NULL;
    if (!packing || instr->in[packing->operand].region != REGION_STATE) return;
    const size_t bytes = packing->bytes(p->graph, instr->node);
    if (bytes)
        instr->packed = packed_place(p, (Packed){packing, instr->in[packing->operand].offset,
                                                 round_up(bytes, TENSOR_ALIGN)});
}

/* A concatenation whose parts were all written in place leaves nothing to do. */
static bool nothing_to_do(const Compiler *c, const Node *node)
{
    if (node->op->flags & OP_VIEW) return true;
    if (!(node->op->flags & OP_JOINS)) return false;
    for (int k = 0; k < node->n_in; k++)
        if (c->placement.at[node->in[k].id].root != c->placement.at[node->out[0].id].root)
            return false;
    return true;
}

static void emit(Compiler *c)
{
    Program *p = c->program;
    p->instr = ARENA_ARRAY(&p->arena, Instr, p->graph->n_nodes);
    p->packed = ARENA_ARRAY(&p->arena, Packed, p->graph->n_nodes);
    for (int i = 1; i < p->graph->n_nodes; i++) {
        const Node *node = &p->graph->node[i];
        for (int phase = (int)node->phase + 1; phase <= PHASES; phase++)
            p->phase_begin[phase] = p->n_instr;
        if (nothing_to_do(c, node)) continue;
        Instr *instr = &p->instr[p->n_instr++];
        for (int phase = (int)node->phase + 1; phase <= PHASES; phase++)
            p->phase_begin[phase] = p->n_instr;
        instr->op = node->op;
        instr->node = node;
        instr->in = ARENA_ARRAY(&p->arena, Operand, node->n_in);
        instr->out = ARENA_ARRAY(&p->arena, Operand, node->n_out);
        for (int k = 0; k < node->n_in; k++) instr->in[k] = operand(c, node->in[k]);
        for (int k = 0; k < node->n_out; k++) instr->out[k] = operand(c, node->out[k]);
        if (c->workspace_of[i] >= 0) {
            instr->workspace_offset = c->block[c->workspace_of[i]].offset;
            instr->workspace_bytes = c->block[c->workspace_of[i]].bytes;
        }
        pack_operand(p, instr);
    }
}

static void emit_ends(Compiler *c)
{
    Program *p = c->program;
    const Graph *g = p->graph;
    p->input = ARENA_ARRAY(&p->arena, Operand, g->n_values);
    p->input_name = ARENA_ARRAY(&p->arena, const char *, g->n_values);
    for (int v = 1; v < g->n_values; v++) {
        if (g->value[v].kind != VALUE_INPUT) continue;
        p->input_name[p->n_inputs] = g->value[v].name;
        p->input[p->n_inputs++] = operand(c, (ValueId){v});
    }
    p->output = ARENA_ARRAY(&p->arena, Operand, g->n_outputs);
    p->output_name = ARENA_ARRAY(&p->arena, const char *, g->n_outputs);
    for (int i = 0; i < g->n_outputs; i++) {
        p->output_name[p->n_outputs] = g->output[i].name;
        p->output[p->n_outputs++] = operand(c, g->output[i].value);
    }
}

/* ---- what is alive at the peak ---------------------------------------------------------- */

static const char *describe(Compiler *c, const Block *b, int index)
{
    const Graph *g = c->program->graph;
    const Node *node = &g->node[b->birth];
    bool workspace = index >= 0 && c->workspace_of[b->birth] == index;
    Str text = {0};
    if (node->layer >= 0) str_printf(&text, "layer %d ", node->layer);
    str_printf(&text, "%s%s%s (%s)%s", node->name ? node->name : "", node->name ? ": " : "",
               node->op->name, phase_name(node->phase), workspace ? " workspace" : "");
    const char *copy = arena_strdup(&c->program->arena, text.at);
    str_deinit(&text);
    return copy;
}

static void find_peak(Compiler *c)
{
    Program *p = c->program;
    int n = p->graph->n_nodes, peak = 0;
    int64_t *change = xcalloc((size_t)n + 2, sizeof *change), live = 0;
    for (int b = 0; b < c->n_blocks; b++) {
        int death = c->block[b].death < n ? c->block[b].death : n;
        change[c->block[b].birth] += (int64_t)c->block[b].bytes;
        change[death + 1] -= (int64_t)c->block[b].bytes;
    }
    for (int i = 0; i <= n; i++) {
        live += change[i];
        if ((size_t)live > p->live_bytes) {
            p->live_bytes = (size_t)live;
            peak = i;
        }
    }
    free(change);
    for (int b = 0; b < c->n_blocks; b++) { /* insertion into the sorted ten */
        const Block *block = &c->block[b];
        if (block->birth > peak || block->death < peak) continue;
        int at = p->n_top < PROGRAM_TOP ? p->n_top++ : PROGRAM_TOP - 1;
        if (p->top[at].what && p->top[at].bytes >= block->bytes) continue;
        for (; at > 0 && p->top[at - 1].bytes < block->bytes; at--) p->top[at] = p->top[at - 1];
        p->top[at] = (LiveValue){describe(c, block, b), block->bytes};
    }
}

/* ---- entry ------------------------------------------------------------------------------ */

static Status check_kernels(const Program *p)
{
    for (int i = 1; i < p->graph->n_nodes; i++) {
        const Node *node = &p->graph->node[i];
        if (!(node->op->flags & OP_VIEW) && !node->op->cpu[p->target.isa])
            return fail(ERR_UNSUPPORTED, "graph %s: %s has no kernel for %s", p->graph->name,
                        node->op->name, isa_name(p->target.isa));
    }
    return OK;
}

/* Sizes come from run files and strangers' configurations. With every tensor below this, no sum of
 * bytes over a graph leaves 64 bits; whether it fits this machine is asked later. */
static const int64_t tensor_bytes_max = (int64_t)1 << 44;

static Status check_sizes(const Graph *g)
{
    char shape[SHAPE_TEXT];
    for (int v = 1; v < g->n_values; v++) {
        const Value *value = &g->value[v];
        if (shape_count(&value->shape) <= tensor_bytes_max / (int64_t)dtype_bytes(value->dtype))
            continue;
        return fail(ERR_REFUSED,
                    "graph %s: %s [%s] of %s has more than 2^44 bytes, which fits no machine",
                    g->name, value->name ? value->name : g->node[value->producer.id].op->name,
                    shape_text(&value->shape, shape), dtype_name(value->dtype));
    }
    return OK;
}

static void place_inputs(Compiler *c)
{
    const Graph *g = c->program->graph;
    for (int v = 1; v < g->n_values; v++) {
        if (g->value[v].kind != VALUE_INPUT) continue;
        c->io_offset[v] = c->program->io_bytes;
        c->program->io_bytes += round_up(value_bytes(&g->value[v]), TENSOR_ALIGN);
    }
}

static void compile(Compiler *c)
{
    Program *p = c->program;
    size_t n_values = (size_t)p->graph->n_values, n_nodes = (size_t)p->graph->n_nodes;
    c->block = xcalloc(n_values + n_nodes, sizeof *c->block);
    c->block_of = xcalloc(n_values, sizeof *c->block_of);
    c->workspace_of = xcalloc(n_nodes, sizeof *c->workspace_of);
    c->io_offset = xcalloc(n_values, sizeof *c->io_offset);
    placement_init(&c->placement, p->graph);
    place_inputs(c);
    add_storages(c);
    add_workspaces(c);
    plan_regions(c);
    find_peak(c);
    emit(c);
    emit_ends(c);
    placement_deinit(&c->placement);
    free(c->block);
    free(c->block_of);
    free(c->workspace_of);
    free(c->io_offset);
}

Status program_compile_slots(Graph *graph, Target target, Store *store,
                             const int n_slots[PIPELINE_SPANS], Program **program)
{
    Program *p = xcalloc(1, sizeof *p);
    p->graph = graph;
    p->target = target;
    p->slotted = n_slots != NULL;
    for (int span = 0; p->slotted && span < PIPELINE_SPANS; span++)
        p->n_slots[span] = n_slots[span];
    Status status = check_kernels(p);
    if (status == OK) status = check_sizes(graph);
    if (status == OK) status = store_add_graph(store, graph);
    if (status != OK) {
        program_destroy(p);
        return status;
    }
    Compiler c = {.program = p, .store = store};
    compile(&c);
    *program = p;
    return OK;
}

Status program_compile(Graph *graph, Target target, Store *store, Program **program)
{
    return program_compile_slots(graph, target, store, NULL, program);
}

void program_destroy(Program *program)
{
    if (!program) return;
    graph_destroy(program->graph);
    arena_deinit(&program->arena);
    free(program);
}

const Operand *program_input(const Program *program, const char *name)
{
    for (int i = 0; i < program->n_inputs; i++)
        if (!strcmp(program->input_name[i], name)) return &program->input[i];
    return NULL;
}

const Operand *program_output(const Program *program, const char *name)
{
    for (int i = 0; i < program->n_outputs; i++)
        if (!strcmp(program->output_name[i], name)) return &program->output[i];
    return NULL;
}

Cost program_cost(const Program *program) { return graph_cost(program->graph); }
