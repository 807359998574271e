/* Weights that stay packed from run to run (Packing): every kernel that can read one makes the same
 * bits as from the weight itself, at every instruction set; what changes a state makes it packed
 * anew; what programs share is there once, and what a session holds is its plan. */
#include "device/device.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ops/ops.h"

#define assert_ok(call) assert_int_equal((call), OK)

/* No multiple of a tile; the contraction of dx takes several blocks, and its last is short. */
enum { TOKENS = 48, WIDTH = 77, OUT = 1101, WORDS = 203, EXPERTS = 3, FFN = 37 };

static ValueId matrix(Graph *g, const char *name, DType dtype, Shape shape)
{
    ValueId w = graph_state(g, name, dtype, shape, STATE_PARAM);
    graph_value(g, w)->part[0].init_deviation = 0.3f;
    return w;
}

static Shape shape_2(int64_t a, int64_t b) { return shape_make(2, (int64_t[]){a, b}, NULL); }

/* Products of one weight forward and backward, twice forward; experts; the loss. */
static Graph *make_graph(const char *name, DType dtype)
{
    Graph *g = graph_create(name);
    ValueId x = graph_input(g, "x", dtype, shape_2(TOKENS, WIDTH)), y, again, dx, loss, nll, dh, dw;
    ValueId w = matrix(g, "w", dtype, shape_2(OUT, WIDTH));
    ValueId head = matrix(g, "head", dtype, shape_2(WORDS, WIDTH));
    ValueId e = matrix(g, "experts", dtype, shape_make(3, (int64_t[]){EXPERTS, WIDTH, FFN}, NULL));
    ValueId offsets = graph_input(g, "offsets", DTYPE_I32,
                                  shape_make(1, (int64_t[]){EXPERTS + 1}, NULL)),
            of_experts, dx_of_experts;
    ValueId targets = graph_input(g, "targets", DTYPE_I32,
                                  shape_make(1, (int64_t[]){TOKENS}, NULL));
    ValueId weights = graph_input(g, "weights", DTYPE_F32,
                                  shape_make(1, (int64_t[]){TOKENS}, NULL));
    ValueId one = graph_input(g, "one", DTYPE_F32, shape_make(0, NULL, NULL));
    assert_ok(op_linear(g, x, w, &y));
    assert_ok(op_linear(g, x, w, &again));
    assert_ok(op_grouped_linear(g, x, e, offsets, EXPERTS_IN_OUT, &of_experts));
    g->phase = PHASE_BACKWARD;
    assert_ok(op_linear_dx(g, y, w, &dx));
    assert_ok(op_grouped_linear_dx(g, of_experts, e, offsets, EXPERTS_IN_OUT, &dx_of_experts));
    assert_ok(op_linear_cross_entropy_grad(g, x, head, targets, weights, one, 1e-4f, &loss, &nll,
                                           &dh, &dw));
    const ValueId out[] = {y, again, dx, of_experts, dx_of_experts, dh, dw};
    static const char *const names[] = {"y", "again", "dx", "ey", "edx", "dh", "dw"};
    for (int i = 0; i < COUNT_OF(out); i++) graph_output(g, names[i], out[i]);
    return g;
}

typedef struct Bench {
    Device *device;
    Store *store;
    Program *program[2]; /* two alike, over the same states */
    Session *session;
} Bench;

static Bench open_bench(Isa isa, DType dtype, bool packs)
{
    Bench b = {.store = store_create()};
    CpuOptions options = {.threads = 2, .limit_isa = true, .max_isa = isa};
    assert_ok(device_create(DEVICE_CPU, options, &b.device));
    Target target = device_target(b.device);
    target.packs = packs;
    for (int i = 0; i < 2; i++)
        assert_ok(
            program_compile(make_graph(i ? "b" : "a", dtype), target, b.store, &b.program[i]));
    assert_ok(session_create(b.device, b.store, b.program, 2, &b.session));
    MemoryPlan plan = session_plan(b.store, b.program, 2);
    assert_int_equal(plan.total_bytes, device_allocated_bytes(b.device));
    assert_int_equal(plan.packed_bytes > 0, packs);
    if (packs) { /* y and dx, of experts too; dx of the loss: each once for both programs */
        assert_int_equal(b.program[0]->n_packed, 5);
        assert_true(plan.packed_bytes == session_plan(b.store, b.program, 1).packed_bytes);
    }
    assert_ok(session_init_weights(b.session, 5));
    return b;
}

static void close_bench(Bench *b)
{
    session_destroy(b->session);
    assert_int_equal(device_allocated_bytes(b->device), 0);
    for (int i = 0; i < 2; i++) program_destroy(b->program[i]);
    store_destroy(b->store);
    device_destroy(b->device);
}

static void write_inputs(Bench *b, int program, int seed)
{
    float x[TOKENS * WIDTH], weights[TOKENS], one = 1;
    int32_t offsets[EXPERTS + 1] = {0, 16, 16, 48}, targets[TOKENS];
    for (int i = 0; i < COUNT_OF(x); i++) x[i] = (float)((i * 37 + seed * 11) % 23) * 0.1f - 1;
    for (int i = 0; i < TOKENS; i++) {
        weights[i] = 1.0f / TOKENS;
        targets[i] = i * 7 % WORDS;
    }
    const Operand *to = program_input(b->program[program], "x");
    void *place = session_input(b->session, program, "x");
    assert_ok(dtype_convert(DTYPE_F32, x, to->dtype, place, COUNT_OF(x)));
    assert_ok(session_write(b->session, program, "offsets", offsets, sizeof offsets));
    assert_ok(session_write(b->session, program, "targets", targets, sizeof targets));
    assert_ok(session_write(b->session, program, "weights", weights, sizeof weights));
    assert_ok(session_write(b->session, program, "one", &one, sizeof one));
}

/* Both benches run the program: the same bits in every output. */
static void compare(Bench *plain, Bench *packed, int program, int seed)
{
    Bench *both[] = {plain, packed};
    for (int i = 0; i < 2; i++) {
        write_inputs(both[i], program, seed);
        assert_ok(session_run(both[i]->session, program, PHASE_FORWARD, PHASE_BACKWARD));
    }
    const Program *p = plain->program[program];
    for (int i = 0; i < p->n_outputs; i++) {
        const void *a, *b;
        const Operand *o = &p->output[i];
        assert_ok(session_fetch_output(plain->session, program, p->output_name[i], &a));
        assert_ok(session_fetch_output(packed->session, program, p->output_name[i], &b));
        size_t bytes = (size_t)shape_count(&o->shape) * dtype_bytes(o->dtype);
        if (memcmp(a, b, bytes)) fail_msg("%s has other bits", p->output_name[i]);
    }
}

/* The first element of every weight becomes another, and the device is told. */
static void change_states(Bench *b)
{
    for (int e = 0; e < b->store->n_entries; e++) {
        Tensor t = session_state(b->session, e);
        memset(t.data, 0, dtype_bytes(t.dtype) * WIDTH);
    }
    assert_ok(session_store_states(b->session));
}

static void check_isa(Isa isa, DType dtype)
{
    Bench plain = open_bench(isa, dtype, false), packed = open_bench(isa, dtype, true);
    for (int seed = 0; seed < 2; seed++) compare(&plain, &packed, seed, seed);
    change_states(&plain);
    change_states(&packed);
    compare(&plain, &packed, 0, 3);
    compare(&plain, &packed, 1, 4);
    close_bench(&plain);
    close_bench(&packed);
}

static void test_same_bits(void **state)
{
    (void)state;
    for (Isa isa = ISA_GENERIC; isa <= cpu_best_isa(); isa++) {
        check_isa(isa, DTYPE_F32);
        check_isa(isa, DTYPE_BF16);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_same_bits)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
