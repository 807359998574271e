/* Products, attention and plain traffic of chosen sizes on a GPU, alone: what curves over sizes are
 * fitted to, beside the programs that are really run. And what it costs to launch anything. */
#include "calibrate/calibrate_internal.h"
#include "ops/ops.h"

#include <stdlib.h>
#include <string.h>

enum { WARM_UPS = 2, LAUNCHES = 64, LAUNCH_RUNS = 20, LAUNCH_ELEMENTS = 64 };

/* ---- graphs ------------------------------------------------------------------------------- */

/* Operands are states: they lie on the device, and the host has pages of them only while it fills
 * them. */
static ValueId operand(Graph *g, const char *name, DType dtype, int rank, const int64_t *dim)
{
    return graph_state(g, name, dtype, shape_make(rank, dim, NULL), STATE_BUFFER);
}

/* y = x w^T of 8 bits, scaled by rows, which come from bf16. */
static Status build_product_8(Graph *g, const CalibrateShape *s)
{
    ValueId x = operand(g, "x", DTYPE_BF16, 2, (int64_t[]){s->m, s->k}),
            w = operand(g, "w", DTYPE_BF16, 2, (int64_t[]){s->n, s->k}), y;
    Scaled a, b;
    TRY(op_quantise(g, x, s->dtype, SCALING_ROW, &a, NULL));
    TRY(op_quantise(g, w, s->dtype, SCALING_ROW, &b, NULL));
    return op_linear_8(g, &a, &b, DTYPE_BF16, &y);
}

/* y = x w^T and its two gradients. */
static Status build_products(Graph *g, const CalibrateShape *s)
{
    if (s->dtype == DTYPE_F8_E4M3) return build_product_8(g, s);
    ValueId x = operand(g, "x", s->dtype, 2, (int64_t[]){s->m, s->k}),
            w = operand(g, "w", s->dtype, 2, (int64_t[]){s->n, s->k}),
            dy = operand(g, "dy", s->dtype, 2, (int64_t[]){s->m, s->n}), out;
    TRY(op_linear(g, x, w, &out));
    TRY(op_linear_dx(g, dy, w, &out));
    return op_linear_dw(g, dy, x, &out);
}

/* Causal, a key head for four query heads where that divides; m tokens, n heads of k elements. */
static Status build_attention(Graph *g, const CalibrateShape *s)
{
    int64_t kv = s->n % 4 ? s->n : s->n / 4;
    const int64_t queries[] = {1, s->m, s->n, s->k}, keys[] = {1, s->m, kv, s->k};
    ValueId q = operand(g, "q", s->dtype, 4, queries), k = operand(g, "k", s->dtype, 4, keys),
            v = operand(g, "v", s->dtype, 4, keys), o = operand(g, "o", s->dtype, 4, queries),
            dout = operand(g, "dout", s->dtype, 4, queries),
            pos = operand(g, "pos", DTYPE_I32, 2, queries),
            lse = operand(g, "lse", DTYPE_F32, 3, (int64_t[]){1, s->n, s->m}), out[NODE_MAX_OUT];
    AttentionAttr attr = {.scale = 0.125f};
    TRY(op_attention(g, q, k, v, pos, attr, out));
    return graph_add(g, op_find("attention_grad"), &attr, (ValueId[]){q, k, v, pos, o, lse, dout},
                     7, out);
}

/* n sums, each of the one before, of m elements. */
static Status build_chain(Graph *g, const CalibrateShape *s)
{
    ValueId x = operand(g, "x", s->dtype, 1, &s->m), y = operand(g, "y", s->dtype, 1, &s->m);
    for (int64_t i = 0; i < s->n; i++) TRY(op_add(g, x, y, &y));
    return OK;
}

static Status build(Graph *g, const CalibrateShape *s)
{
    switch (s->kind) {
    case SHAPE_PRODUCTS: return build_products(g, s);
    case SHAPE_ATTENTION: return build_attention(g, s);
    default: return build_chain(g, s);
    }
}

/* ---- programs ----------------------------------------------------------------------------- */

typedef struct ShapeRun {
    Store *store;
    Program *program;
    Session *session;
    VEC(double) * times; /* per instruction */
} ShapeRun;

/* Numbers of all magnitudes below one: a GPU is faster at zeros. */
static void fill(Tensor *t, const char *name)
{
    int64_t n = tensor_count(t);
    bool is_lse = !strcmp(name, "lse"); /* as large as they would be, so that probabilities are */
    for (int64_t i = 0; i < n; i++) {
        float x = (float)((double)(int64_t)((uint64_t)i * 0x9e3779b97f4a7c15ull) * 0x1p-63);
        if (t->dtype == DTYPE_I32) ((int32_t *)t->data)[i] = (int32_t)i;
        if (t->dtype == DTYPE_F32) ((float *)t->data)[i] = is_lse ? 6 : x;
        if (t->dtype == DTYPE_BF16) ((uint16_t *)t->data)[i] = bf16_from_f32(x);
    }
}

static Status fill_all(const ShapeRun *r)
{
    for (int i = 0; i < r->store->n_entries; i++) {
        Tensor t = session_state(r->session, i);
        fill(&t, r->store->entry[i].name);
    }
    return session_store_states(r->session);
}

static void close_shape(ShapeRun *r)
{
    for (int i = 0; r->program && r->times && i < r->program->n_instr; i++) VEC_FREE(&r->times[i]);
    free(r->times);
    session_destroy(r->session);
    program_destroy(r->program);
    store_destroy(r->store);
}

static Status open_shape(Device *device, const CalibrateShape *shape, ShapeRun *r)
{
    Graph *g = graph_create("calibrate");
    *r = (ShapeRun){.store = store_create()};
    g->phase = PHASE_FORWARD;
    Status status = build(g, shape);
    if (status != OK)
        graph_destroy(g);
    else
        status = program_compile(g, device_target(device), r->store, &r->program);
    if (status == OK) status = session_create(device, r->store, &r->program, 1, &r->session);
    if (status == OK) status = fill_all(r);
    if (status != OK) {
        close_shape(r);
        return status;
    }
    r->times = xcalloc((size_t)r->program->n_instr + 1, sizeof *r->times);
    return OK;
}

static void note(void *context, const InstrTime *t)
{
    ShapeRun *r = context;
    VEC_PUSH(&r->times[t->instr - r->program->instr], t->end_s - t->begin_s);
}

Status calibrate_run_shape(Device *device, const CalibrateShape *shape, int rounds,
                           OpSamples *samples)
{
    ShapeRun r;
    TRY(open_shape(device, shape, &r));
    Status status = OK;
    for (int i = -WARM_UPS; i < rounds && status == OK; i++) {
        if (i == 0) session_watch(r.session, note, &r);
        status = session_run(r.session, 0, PHASE_FORWARD, PHASE_UPDATE);
    }
    for (int i = 0; i < r.program->n_instr && status == OK; i++) {
        OpSample s;
        const Node *node = r.program->instr[i].node;
        if (r.times[i].n &&
            calibrate_sample(r.program->graph, node,
                             calibrate_median(r.times[i].at, (int)r.times[i].n), &s))
            VEC_PUSH(samples, s);
    }
    close_shape(&r);
    return status;
}

/* ---- launches ----------------------------------------------------------------------------- */

static Status time_chain(Device *device, int64_t n, bool one_by_one, SessionTime *time)
{
    ShapeRun r;
    CalibrateShape shape = {SHAPE_CHAIN, DTYPE_F32, LAUNCH_ELEMENTS, n, 0};
    TRY(open_shape(device, &shape, &r));
    Status status = session_time(r.session, 0, LAUNCH_RUNS, one_by_one, time);
    close_shape(&r);
    return status;
}

/* A kernel is what a long chain takes more than a short one; what is left of the short one is the
 * launch of the whole. */
Status calibrate_time_launches(Device *device, LaunchTimes *out)
{
    SessionTime alone, many, by_host;
    TRY(time_chain(device, 1, false, &alone));
    TRY(time_chain(device, 1 + LAUNCHES, false, &many));
    TRY(time_chain(device, 1 + LAUNCHES, true, &by_host));
    const double least_s = 1e-9; /* of a clock that did not tell them apart */
    double kernel_s = (many.device_s - alone.device_s) / LAUNCHES;
    out->kernel_s = kernel_s > least_s ? kernel_s : least_s;
    out->host_s = by_host.host_s / (1 + LAUNCHES);
    out->graph_s = alone.device_s - out->kernel_s > least_s ? alone.device_s - out->kernel_s
                                                            : least_s;
    return OK;
}
