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

#include <pthread.h>
#include <unistd.h>

#include "gpu/choices.h"
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

typedef struct Heard {
    int n;
    double end_s;
} Heard;

static void count_times(void *context, const InstrTime *time)
{
    Heard *heard = context;
    assert_true(time->end_s >= time->begin_s && time->begin_s >= heard->end_s);
    assert_true(time->end_s <= clock_s());
    heard->end_s = time->end_s;
    heard->n++;
}

static void test_watched(void **state)
{
    (void)state;
    if (!gpu_count(NULL)) skip();
    Bench b = open_bench(DEVICE_CUDA);
    float x[N], y[2][N], z[N];
    Heard heard = {0, clock_s()};
    fill(x, 1);
    run(&b, x, y[0], z);
    heard.end_s = clock_s();
    session_watch(b.session, count_times, &heard);
    run(&b, x, y[1], z);
    assert_int_equal(heard.n, 3);
    assert_memory_equal(y[0], y[1], sizeof y[0]);
    close_bench(&b);
}

/* Runs are timed as one launch and as one of each instruction, on both devices; afterwards the
 * session runs as before. */
static void test_timed(void **state)
{
    (void)state;
    for (int gpu = 0; gpu <= (gpu_count(NULL) > 0); gpu++) {
        Bench b = open_bench(gpu ? DEVICE_CUDA : DEVICE_CPU);
        float x[N], y[2][N], z[N];
        fill(x, 1);
        run(&b, x, y[0], z);
        for (int one_by_one = 0; one_by_one < 2; one_by_one++) {
            SessionTime time = {0};
            double begin_s = clock_s();
            assert_ok(session_time(b.session, 0, 3, one_by_one, &time));
            double all_s = clock_s() - begin_s;
            assert_true(time.device_s > 0 && 3 * time.device_s <= all_s * 1.001);
            assert_true(time.host_s > 0 && 3 * time.host_s <= all_s);
        }
        run(&b, x, y[1], z);
        assert_memory_equal(y[0], y[1], sizeof y[0]);
        close_bench(&b);
    }
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

/* ---- algorithms of products --------------------------------------------------------------- */

enum { INNER = 96 };

/* y = x w^T, whose bits tell how its sums were formed. */
static Graph *make_product(void)
{
    Graph *g = graph_create("product");
    ValueId x = graph_input(g, "x", DTYPE_F32, shape_make(2, (int64_t[]){ROWS, INNER}, NULL)), y;
    ValueId w = graph_state(g, "w", DTYPE_F32, shape_make(2, (int64_t[]){WIDTH, INNER}, NULL),
                            STATE_PARAM);
    graph_value(g, w)->part[0].init_deviation = 1;
    assert_ok(op_linear(g, x, w, &y));
    graph_output(g, "y", y);
    return g;
}

typedef struct Tuned {
    const char *choices;
    Comm *world;
    float y[ROWS * WIDTH];
    Status status;
    pthread_t thread;
} Tuned;

static Status run_tuned(Tuned *t)
{
    float x[ROWS * INNER];
    Device *device;
    Store *store = store_create();
    Program *program;
    Session *session;
    for (int i = 0; i < ROWS * INNER; i++) x[i] = (float)rng_normal(5, (uint64_t)i);
    TRY(device_create_cuda((CudaOptions){.world = t->world, .choices = t->choices}, &device));
    TRY(program_compile(make_product(), device_target(device), store, &program));
    TRY(session_create(device, store, &program, 1, &session));
    TRY(session_init_weights(session, 7));
    TRY(session_write(session, 0, "x", x, sizeof x));
    TRY(session_run(session, 0, PHASE_FORWARD, PHASE_UPDATE));
    TRY(session_read(session, 0, "y", t->y, sizeof t->y));
    session_destroy(session);
    program_destroy(program);
    store_destroy(store);
    device_destroy(device);
    return OK;
}

static void *tuned_main(void *opaque)
{
    Tuned *t = opaque;
    t->status = run_tuned(t);
    return NULL;
}

/* The file's one choice replaced by the emulated device's algorithm `number`. */
static void write_choice(const char *from, const char *to, int number)
{
    Arena arena = {0};
    ChoiceTable table = {0};
    Str text = {0};
    Bytes old;
    assert_ok(file_read(&arena, from, 1 << 16, &old));
    assert_int_equal(choice_table_read(&table, old), 0);
    assert_int_equal(table.choice.n, 1);
    table.choice.at[0]->algorithm.byte[0] = (uint8_t)number;
    choice_table_write(&table, &text);
    assert_ok(file_write_atomic(to, text.at, text.n));
    str_deinit(&text);
    choice_table_deinit(&table);
    arena_deinit(&arena);
}

/* A choice that was made once is every later run's; ranks whose files differ take the lowest
 * rank's. */
static void test_choices(void **state)
{
    (void)state;
    if (!gpu_is_emulated()) skip(); /* what algorithms there are is known there */
    enum { FILES = 3, RANKS = 3 };
    char dir[64] = "/tmp/drover-tuned-XXXXXX", path[FILES + 1][96];
    assert_non_null(mkdtemp(dir));
    for (int i = 0; i <= FILES; i++) snprintf(path[i], sizeof path[i], "%s/%d", dir, i);
    Tuned first = {.choices = path[0]}, again = {.choices = path[0]}, alone[FILES + 1];
    assert_ok(run_tuned(&first));
    assert_ok(run_tuned(&again));
    assert_memory_equal(first.y, again.y, sizeof first.y);
    for (int i = 1; i <= FILES; i++) {
        write_choice(path[0], path[i], i);
        alone[i] = (Tuned){.choices = path[i]};
        assert_ok(run_tuned(&alone[i]));
        for (int k = 1; k < i; k++)
            assert_memory_not_equal(alone[k].y, alone[i].y, sizeof alone[i].y);
    }
    CommWorld *world;
    Tuned rank[RANKS];
    assert_ok(comm_world_create_local(RANKS, NULL, &world));
    for (int i = 0; i < RANKS; i++) {
        rank[i] = (Tuned){.choices = path[FILES - i], .world = comm_of_rank(world, i)};
        assert_int_equal(pthread_create(&rank[i].thread, NULL, tuned_main, &rank[i]), 0);
    }
    for (int i = 0; i < RANKS; i++) pthread_join(rank[i].thread, NULL);
    for (int i = 0; i < RANKS; i++) {
        assert_ok(rank[i].status);
        assert_memory_equal(rank[i].y, alone[FILES].y, sizeof rank[i].y);
    }
    comm_world_destroy(world);
    assert_ok(dir_remove_tree(dir));
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
        cmocka_unit_test(test_timed),
        cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_choices),
        cmocka_unit_test(test_auto),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
