/* Sessions on the cuda device: the same graph gives what it gives on the processor; what the host
 * writes and reads goes through copies at the right moments. */
#include "device/device.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "gpu/gpu.h"
#include "ops/ops.h"

#define assert_ok(call) assert_int_equal((call), OK)

enum { ROWS = 5, WIDTH = 24, N = ROWS * WIDTH };

/* y = rmsnorm(x + bias, w), forward; z = rmsnorm(y, w), backward. bias and w are states. */
static Graph *make_graph(void)
{
    Graph *g = graph_create("small");
    Shape rows = shape_make(2, (int64_t[]){ROWS, WIDTH}, NULL),
          row = shape_make(1, (int64_t[]){WIDTH}, NULL);
    ValueId x = graph_input(g, "x", DTYPE_F32, rows);
    ValueId bias = graph_state(g, "bias", DTYPE_F32, rows, STATE_PARAM);
    ValueId w = graph_state(g, "w", DTYPE_F32, row, STATE_PARAM), h, y, z;
    graph_value(g, w)->part[0].init_value = 1;
    graph_value(g, bias)->part[0].init_deviation = 0.5f;
    assert_ok(op_add(g, x, bias, &h));
    assert_ok(op_rmsnorm(g, h, w, 1e-5f, &y));
    g->phase = PHASE_BACKWARD;
    assert_ok(op_rmsnorm(g, y, w, 1e-5f, &z));
    graph_output(g, "y", y);
    graph_output(g, "z", z);
    return g;
}

typedef struct Bench {
    Device *device;
    Store *store;
    Program *program;
    Session *session;
} Bench;

static Bench open_bench(DeviceKind kind)
{
    Bench b = {.store = store_create()};
    assert_ok(device_create(kind, (CpuOptions){.threads = 1}, &b.device));
    assert_ok(program_compile(make_graph(), device_target(b.device), b.store, &b.program));
    assert_ok(session_create(b.device, b.store, &b.program, 1, &b.session));
    assert_ok(session_init_weights(b.session, 7));
    return b;
}

static void close_bench(Bench *b)
{
    session_destroy(b->session);
    assert_int_equal(device_allocated_bytes(b->device), 0);
    program_destroy(b->program);
    store_destroy(b->store);
    device_destroy(b->device);
}

static void run(Bench *b, const float *x, float *y, float *z)
{
    assert_ok(session_write(b->session, 0, "x", x, N * sizeof *x));
    assert_ok(session_run(b->session, 0, PHASE_FORWARD, PHASE_FORWARD));
    assert_ok(session_run(b->session, 0, PHASE_BACKWARD, PHASE_BACKWARD));
    assert_ok(session_read(b->session, 0, "y", y, N * sizeof *y));
    assert_ok(session_read(b->session, 0, "z", z, N * sizeof *z));
}

static void assert_near(const float *a, const float *b)
{
    for (int i = 0; i < N; i++)
        if (!(fabsf(a[i] - b[i]) < 1e-5f))
            fail_msg("element %d: %g and %g", i, (double)a[i], (double)b[i]);
}

static void fill(float *x, int seed)
{
    for (int i = 0; i < N; i++) x[i] = (float)((i * 37 + seed * 11) % 23) * 0.1f - 1;
}

/* Three steps: the first is captured, the others are launched from what was. */
static void test_same_as_the_processor(void **state)
{
    (void)state;
    if (!gpu_count(NULL)) skip();
    Bench cpu = open_bench(DEVICE_CPU), gpu = open_bench(DEVICE_CUDA);
    assert_true(device_has_own_memory(gpu.device) && !device_has_own_memory(cpu.device));
    MemoryPlan plan = session_plan(gpu.store, &gpu.program, 1);
    assert_int_equal(plan.total_bytes, device_allocated_bytes(gpu.device));
    for (int step = 0; step < 3; step++) {
        float x[N], y[2][N], z[2][N];
        fill(x, step);
        run(&cpu, x, y[0], z[0]);
        run(&gpu, x, y[1], z[1]);
        assert_near(y[1], y[0]);
        assert_near(z[1], z[0]);
        const void *data;
        assert_true(session_has_output(gpu.session, 0, "y"));
        assert_ok(session_fetch_output(gpu.session, 0, "y", &data));
        assert_memory_equal(data, y[1], sizeof y[1]);
    }
    close_bench(&cpu);
    close_bench(&gpu);
}

/* The host's copy of a state changes nothing before it is stored, and is as old as the last fetch.
 */
static void test_states(void **state)
{
    (void)state;
    if (!gpu_count(NULL)) skip();
    Bench b = open_bench(DEVICE_CUDA);
    int bias = store_find(b.store, "bias");
    float x[N], before[N], same[N], after[N], z[N];
    fill(x, 3);
    run(&b, x, before, z);
    Tensor host = session_state(b.session, bias);
    float first = *(float *)host.data;
    assert_true(first != 0);
    *(float *)host.data = 100;
    run(&b, x, same, z);
    assert_memory_equal(same, before, sizeof same);
    assert_ok(session_store_states(b.session));
    run(&b, x, after, z);
    assert_true(memcmp(after, before, sizeof after) != 0);
    *(float *)host.data = 5;
    assert_ok(session_fetch_states(b.session));
    assert_true(*(float *)host.data == 100);
    assert_ok(session_clear_state(b.session, bias));
    assert_true(*(float *)host.data == 0);
    *(float *)host.data = 5;
    assert_ok(session_fetch_states(b.session));
    assert_true(*(float *)host.data == 0);
    close_bench(&b);
}

/* Batches are written as soon as a run has begun: it must not see the next one's. */
static void test_inputs_are_not_overtaken(void **state)
{
    (void)state;
    if (!gpu_count(NULL)) skip();
    Bench b = open_bench(DEVICE_CUDA);
    float x[2][N], want[N], y[N], z[N];
    fill(x[0], 1);
    fill(x[1], 2);
    run(&b, x[0], want, z);
    assert_ok(session_write(b.session, 0, "x", x[0], sizeof x[0]));
    assert_ok(session_run(b.session, 0, PHASE_FORWARD, PHASE_FORWARD));
    float *input = session_input(b.session, 0, "x");
    memcpy(input, x[1], sizeof x[1]);
    assert_ok(session_read(b.session, 0, "y", y, sizeof y));
    assert_memory_equal(y, want, sizeof y);
    close_bench(&b);
}

static void count_times(void *context, const InstrTime *time)
{
    assert_true(time->end_s >= time->begin_s);
    ++*(int *)context;
}

static void test_watched(void **state)
{
    (void)state;
    if (!gpu_count(NULL)) skip();
    Bench b = open_bench(DEVICE_CUDA);
    float x[N], y[2][N], z[N];
    int n = 0;
    fill(x, 1);
    run(&b, x, y[0], z);
    session_watch(b.session, count_times, &n);
    run(&b, x, y[1], z);
    assert_int_equal(n, 3);
    assert_memory_equal(y[0], y[1], sizeof y[0]);
    close_bench(&b);
}

/* Refused where memory ends, with the figures, and nothing is left behind. */
static void test_no_memory(void **state)
{
    (void)state;
    if (!gpu_count(NULL)) skip();
    for (int n = 1; n <= 3; n++) {
        Device *device;
        Session *session = NULL;
        Program *program;
        Store *store = store_create();
        char fault[32];
        assert_ok(device_create(DEVICE_CUDA, (CpuOptions){0}, &device));
        assert_ok(program_compile(make_graph(), device_target(device), store, &program));
        snprintf(fault, sizeof fault, "tensor_alloc:%d", n);
        fault_set(fault);
        assert_int_equal(session_create(device, store, &program, 1, &session), ERR_MEMORY);
        fault_set("");
        assert_null(session);
        assert_int_equal(device_allocated_bytes(device), 0);
        program_destroy(program);
        store_destroy(store);
        device_destroy(device);
    }
}

static void test_auto(void **state)
{
    (void)state;
    Device *device;
    assert_ok(device_create(DEVICE_AUTO, (CpuOptions){.threads = 1}, &device));
    assert_true(device_has_own_memory(device) == (gpu_count(NULL) > 0 && !gpu_is_emulated()));
    device_destroy(device);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_as_the_processor),
        cmocka_unit_test(test_states),
        cmocka_unit_test(test_inputs_are_not_overtaken),
        cmocka_unit_test(test_watched),
        cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_auto),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
