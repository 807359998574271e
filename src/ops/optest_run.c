/* The interpreter of optest: storage with guards and poison, one node after the other. */
#include "ops/optest.h"
#include "tensor/small_float.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Poison is 0xff in every byte: NaN in f32 and bf16, -1 in i32. With the address sanitizer blocks
 * end where the tensor ends, so that it sees every step outside. */
enum { POISON = 0xff };
#if defined(__SANITIZE_ADDRESS__)
enum { GUARD = 0 };
#else
enum { GUARD = 128 };
#endif

bool optest_isa_available(Isa isa)
{
    if (isa == ISA_GENERIC) return true;
#if defined(__x86_64__)
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (isa == ISA_AVX2) return avx2;
    if (isa == ISA_AVX512) return avx512;
    if (isa == ISA_AVX512BF16) return avx512 && __builtin_cpu_supports("avx512bf16");
#endif
    return false;
}

bool optest_target(const OpTest *t, int i, int threads, Target *target)
{
    bool gpu = i == ISA_COUNT;
    *target = (Target){.isa = gpu ? ISA_GENERIC : (Isa)i, .threads = threads, .gpu = gpu};
    return gpu ? optest_gpu_available(t->graph) : optest_isa_available((Isa)i);
}

int64_t optest_count(const OpTest *t, ValueId v)
{
    return shape_count(&graph_value(t->graph, v)->shape);
}

double optest_round(DType dtype, double x)
{
    if (dtype == DTYPE_BF16) return (double)bf16_to_f32(bf16_from_f32((float)x));
    return dtype == DTYPE_I32 ? (double)(int32_t)x : (double)(float)x;
}

static size_t extent_bytes(const Value *v)
{
    int64_t last = 0;
    for (int i = 0; i < v->shape.rank; i++) {
        if (v->shape.dim[i] == 0) return 0;
        last += (v->shape.dim[i] - 1) * v->stride[i];
    }
    return (size_t)(last + 1) * dtype_bytes(v->dtype);
}

static void block_init(struct OpRunBlock *block, size_t bytes)
{
    void *memory = NULL;
    CHECK(posix_memalign(&memory, 64, bytes + 2 * GUARD + 1) == 0);
    *block = (struct OpRunBlock){.memory = memory, .bytes = bytes};
    block->data = block->memory + GUARD;
    block->all_bytes = bytes + 2 * GUARD;
    memset(block->memory, POISON, block->all_bytes);
}

static bool block_guards_hold(const struct OpRunBlock *block)
{
    for (int i = 0; i < GUARD; i++)
        if (block->memory[i] != POISON || block->data[block->bytes + (size_t)i] != POISON)
            return false;
    return true;
}

/* Bytes from the start of v's block to its element i in row-major order. */
static size_t element_offset(const Value *v, int64_t i)
{
    int64_t at = 0;
    for (int a = v->shape.rank - 1; a >= 0; a--) {
        at += i % v->shape.dim[a] * v->stride[a];
        i /= v->shape.dim[a];
    }
    return (size_t)at * dtype_bytes(v->dtype);
}

static size_t value_offset(const OpRun *run, ValueId id)
{
    size_t offset = 0;
    const Graph *g = run->t->graph;
    for (ValueId v = id; value_ok(graph_value(g, v)->base); v = graph_value(g, v)->base)
        offset += graph_value(g, v)->offset_bytes;
    return offset;
}

static uint8_t *value_data(const OpRun *run, ValueId id)
{
    return run->block[run->storage[id.id]].data + value_offset(run, id);
}

double *optest_run_values(const OpRun *run, ValueId id)
{
    const Value *v = graph_value(run->t->graph, id);
    const uint8_t *data = value_data(run, id);
    int64_t n = shape_count(&v->shape);
    double *out = xcalloc((size_t)n, sizeof *out);
    for (int64_t i = 0; i < n; i++) {
        const uint8_t *p = data + element_offset(v, i);
        float f;
        uint16_t h;
        int32_t w;
        switch (v->dtype) {
        case DTYPE_F8_E4M3: out[i] = (double)f8_to_f32(e4m3_format, *p); break;
        case DTYPE_F8_E5M2: out[i] = (double)f8_to_f32(e5m2_format, *p); break;
        case DTYPE_BF16: memcpy(&h, p, 2), out[i] = (double)bf16_to_f32(h); break;
        case DTYPE_I32: memcpy(&w, p, 4), out[i] = (double)w; break;
        default: memcpy(&f, p, 4), out[i] = (double)f;
        }
    }
    return out;
}

static void write_values(const OpRun *run, ValueId id, const double *from)
{
    const Value *v = graph_value(run->t->graph, id);
    uint8_t *data = value_data(run, id);
    int64_t n = shape_count(&v->shape);
    for (int64_t i = 0; i < n; i++) {
        uint8_t *p = data + element_offset(v, i);
        float f = (float)from[i];
        uint16_t h = bf16_from_f32(f);
        int32_t w = v->dtype == DTYPE_I32 ? (int32_t)from[i] : 0;
        switch (v->dtype) {
        case DTYPE_BF16: memcpy(p, &h, 2); break;
        case DTYPE_I32: memcpy(p, &w, 4); break;
        default: memcpy(p, &f, 4);
        }
    }
}

static bool is_named(const OpTest *t, ValueId root)
{
    for (size_t i = 0; i < t->output.n; i++)
        if (graph_root(t->graph, t->output.at[i].value).id == root.id) return true;
    for (size_t i = 0; i < t->kept.n; i++)
        if (graph_root(t->graph, t->kept.at[i]).id == root.id) return true;
    return false;
}

/* True when nothing after node n reads the storage of operand k, nothing outside wants it, and the
 * node's other operands lie elsewhere. */
static bool dies_here(const OpTest *t, int n, int k)
{
    const Graph *g = t->graph;
    ValueId root = graph_root(g, g->node[n].in[k]);
    if (is_named(t, root) || graph_value(g, root)->kind == VALUE_STATE) return false;
    for (int i = n; i < g->n_nodes; i++)
        for (int j = 0; j < g->node[i].n_in; j++) {
            if (i == n && j == k) continue;
            ValueId in = g->node[i].in[j];
            if (value_ok(in) && graph_root(g, in).id == root.id) return false;
        }
    return true;
}

static bool may_overwrite(const OpRun *run, int n, int k)
{
    const Graph *g = run->t->graph;
    const Node *node = &g->node[n];
    if (k >= node->n_in || !(node->op->inplace >> k & 1) || !value_ok(node->in[k])) return false;
    const Value *in = graph_value(g, node->in[k]), *out = graph_value(g, node->out[0]);
    return !value_ok(in->base) && in->dtype == out->dtype && shape_equal(&in->shape, &out->shape) &&
           !memcmp(in->stride, out->stride, sizeof *in->stride * (size_t)in->shape.rank) &&
           run->storage[node->in[k].id] == node->in[k].id && dies_here(run->t, n, k);
}

static void place_values(OpRun *run)
{
    const Graph *g = run->t->graph;
    run->storage = xcalloc((size_t)g->n_values, sizeof *run->storage);
    run->block = xcalloc((size_t)g->n_values, sizeof *run->block);
    for (int i = 1; i < g->n_values; i++) run->storage[i] = i;
    for (int n = 1; n < g->n_nodes && run->inplace; n++) {
        const Node *node = &g->node[n];
        if (!value_ok(node->out[0]) || value_ok(graph_value(g, node->out[0])->base)) continue;
        int found = -1;
        for (int k = 0; k < 32; k++)
            if (may_overwrite(run, n, k) && (found < 0 || run->inplace == 2)) found = k;
        if (found >= 0) run->storage[node->out[0].id] = run->storage[node->in[found].id];
    }
    for (int i = 1; i < g->n_values; i++) {
        int root = graph_root(g, (ValueId){i}).id;
        if (root == i && run->storage[i] == i)
            block_init(&run->block[i], extent_bytes(&g->value[i]));
        run->storage[i] = run->storage[root];
    }
}

static bool run_fault(OpRun *run, const Node *node, const char *what)
{
    snprintf(run->fault, sizeof run->fault, "%s on %s with %d threads%s: %s", node->op->name,
             optest_target_name(&run->target), run->target.threads, run->inplace ? " in place" : "",
             what);
    return false;
}

Tensor optest_run_tensor(const OpRun *run, ValueId id)
{
    Tensor tensor = {0};
    if (!value_ok(id)) return tensor;
    const Value *v = graph_value(run->t->graph, id);
    tensor.data = value_data(run, id);
    tensor.dtype = v->dtype;
    tensor.shape = v->shape;
    memcpy(tensor.stride, v->stride, sizeof tensor.stride);
    return tensor;
}

const char *optest_target_name(const Target *target)
{
    return target->gpu ? "the GPU" : isa_name(target->isa);
}

/* The value as the kernels of the run's target get it. */
static Tensor operand(const OpRun *run, ValueId id)
{
    Tensor tensor = optest_run_tensor(run, id);
    if (value_ok(id) && run->target.gpu)
        tensor.data = optest_gpu_data(&run->block[run->storage[id.id]]) + value_offset(run, id);
    return tensor;
}

static Status run_kernel(OpRun *run, const Kernel *kernel, KernelArgs *args,
                         struct OpRunBlock *workspace)
{
    args->workspace = workspace->data;
    if (run->target.gpu) {
        TRY(optest_gpu_begin(args->workspace_bytes, workspace, &args->stream));
        args->workspace = optest_gpu_data(workspace);
    }
    TRY(kernel->prepare ? kernel->prepare(args) : OK);
    Status status = kernel->run(args);
    if (status == OK && run->target.gpu) status = optest_gpu_end(run, workspace);
    if (kernel->release) kernel->release(args);
    return status;
}

static bool run_node(OpRun *run, const Node *node)
{
    const Kernel *kernel = run->target.gpu ? node->op->cuda : node->op->cpu[run->target.isa];
    if (node->op->flags & OP_VIEW) return true;
    if (!kernel) return run_fault(run, node, "there is no kernel");
    Tensor out[NODE_MAX_OUT] = {0}, *in = xcalloc((size_t)node->n_in + 1, sizeof *in);
    for (int i = 0; i < node->n_in; i++) in[i] = operand(run, node->in[i]);
    for (int i = 0; i < node->n_out; i++) out[i] = operand(run, node->out[i]);
    KernelArgs args = {
        .attr = node->attr, .in = in, .out = out, .n_in = node->n_in, .n_out = node->n_out};
    args.threads = run->target.threads;
    if (run->target.gpu && node->op->gpu_workspace)
        args.workspace_bytes = node->op->gpu_workspace(run->t->graph, node);
    if (!run->target.gpu && kernel->workspace)
        args.workspace_bytes = kernel->workspace(run->t->graph, node, &run->target);
    struct OpRunBlock workspace;
    block_init(&workspace, run->target.gpu ? 0 : args.workspace_bytes);
    Status status = run_kernel(run, kernel, &args, &workspace);
    bool guards = block_guards_hold(&workspace);
    optest_gpu_free(&workspace);
    free(workspace.memory);
    free(in);
    if (status != OK) return run_fault(run, node, status_message());
    return guards ? true : run_fault(run, node, "wrote outside its workspace");
}

/* Guards, gaps of strided values, and inputs that nobody may have written. */
static bool check_memory(OpRun *run, const Node *node, ValueId id)
{
    if (!value_ok(id)) return true;
    const struct OpRunBlock *block = &run->block[run->storage[id.id]];
    if (!block_guards_hold(block)) return run_fault(run, node, "wrote outside a tensor");
    const Value *v = graph_value(run->t->graph, id);
    if (value_ok(v->base) || stride_is_contiguous(&v->shape, v->stride)) return true;
    uint8_t *covered = xcalloc(block->bytes + 1, 1);
    for (int64_t i = 0; i < shape_count(&v->shape); i++)
        memset(covered + element_offset(v, i), 1, dtype_bytes(v->dtype));
    bool holds = true;
    for (size_t i = 0; i < block->bytes; i++)
        holds = holds && (covered[i] || block->data[i] == POISON);
    free(covered);
    return holds ? true : run_fault(run, node, "wrote between the rows of a strided tensor");
}

static bool is_overwritten(const OpRun *run, ValueId input)
{
    const Graph *g = run->t->graph;
    for (int i = 1; i < g->n_values; i++)
        if (i != input.id && run->storage[i] == input.id && g->value[i].producer.id &&
            !(graph_node(g, g->value[i].producer)->op->flags & OP_VIEW))
            return true;
    return false;
}

static bool check_inputs(OpRun *run, const Node *last)
{
    for (size_t i = 0; i < run->t->input.n; i++) {
        const OpTestInput *input = &run->t->input.at[i];
        if (is_overwritten(run, input->value)) continue;
        double *now = optest_run_values(run, input->value);
        bool same = true;
        for (int64_t j = 0; j < optest_count(run->t, input->value); j++)
            same = same && (now[j] == input->data[j] || (isnan(now[j]) && isnan(input->data[j])));
        free(now);
        if (!same) return run_fault(run, last, "an input was written to");
    }
    return true;
}

bool optest_run(OpRun *run, const OpTest *t, Target target, int inplace)
{
    *run = (OpRun){.t = t, .target = target, .inplace = inplace};
    const Graph *g = t->graph;
    place_values(run);
    for (size_t i = 0; i < t->input.n; i++)
        write_values(run, t->input.at[i].value, t->input.at[i].data);
    if (target.gpu && optest_gpu_load(run) != OK)
        return run_fault(run, &g->node[1], status_message());
    for (int n = 1; n < g->n_nodes; n++) {
        const Node *node = &g->node[n];
        if (!run_node(run, node)) return false;
        for (int i = 0; i < node->n_in; i++)
            if (!check_memory(run, node, node->in[i])) return false;
        for (int i = 0; i < node->n_out; i++)
            if (!check_memory(run, node, node->out[i])) return false;
    }
    return g->n_nodes > 1 ? check_inputs(run, &g->node[g->n_nodes - 1]) : true;
}

void optest_run_end(OpRun *run)
{
    for (int i = 1; run->block && i < run->t->graph->n_values; i++) {
        optest_gpu_free(&run->block[i]);
        free(run->block[i].memory);
    }
    free(run->block);
    free(run->storage);
    run->block = NULL;
    run->storage = NULL;
}
