/* The simulated device: exchanges against published measurements, and the clock against programs
 * whose time can be told by hand. */
#include <math.h>
#include <stdlib.h>

#include "base/testing.h"
#include "device/sim.h"
#include "ops/ops.h"

static Sim make_sim(const char *text, Cluster *cluster, Mesh mesh)
{
    Sim sim;
    if (cluster_load(text, cluster) != OK) fail_msg("%s", status_message());
    if (sim_init(cluster, &mesh, &sim) != OK) fail_msg("%s", status_message());
    return sim;
}

/* ---- exchanges -------------------------------------------------------------------------- */

/* All-reduce among the 8 H100 of a node, measured (reference: dgxc recipe): 1 MiB 27 us, 8 MiB 83
 * us, 32 MiB 199 us, 128 MiB 586 us, 1 GiB 4.03 ms. */
static void test_one_node(void **state)
{
    (void)state;
    static const struct {
        double mib, us;
    } rows[] = {{1, 27}, {8, 83}, {32, 199}, {128, 586}, {1024, 4030}};
    Cluster cluster;
    Sim sim = make_sim("h100", &cluster, (Mesh){.size = {[MESH_TP] = 8}});
    for (int i = 0; i < COUNT_OF(rows); i++)
        assert_near(sim_exchange_s(&sim, COMM_ALL_REDUCE, 1u << MESH_TP, rows[i].mib * 1048576),
                    rows[i].us * 1e-6, 0.15);
    assert_near(sim_exchange_s(&sim, COMM_ALL_REDUCE, 1u << MESH_TP, 1048576.0 * 1024), 4030e-6,
                0.05);
    cluster_deinit(&cluster);
}

/* Rings over the network (SimAI's table, isolated): share of the NICs' rate at 1 GiB on 2, 8 and 32
 * nodes; others than rings may be faster. */
static void test_many_nodes(void **state)
{
    (void)state;
    static const struct {
        int nodes;
        double share;
    } rows[] = {{2, 0.92}, {8, 0.90}, {32, 0.74}};
    for (int i = 0; i < COUNT_OF(rows); i++) {
        Cluster cluster;
        Sim sim = make_sim("1024 h100, 8 per node, 400G", &cluster,
                           (Mesh){.size = {[MESH_DP] = 8 * rows[i].nodes}});
        sim.derating = 1;
        double n = 8.0 * rows[i].nodes, bytes = 1073741824,
               ideal = 2 * (n - 1) / n * bytes / (8 * 50e9);
        double share = ideal / sim_exchange_s(&sim, COMM_ALL_REDUCE, 1u << MESH_DP, bytes);
        assert_true(share > 0.85 * rows[i].share && share < 1);
        cluster_deinit(&cluster);
    }
}

/* A ring with g ranks on every node sends its traffic out of the node once for g NICs. */
static void test_rails(void **state)
{
    (void)state;
    Cluster cluster;
    double bytes = 16e9;
    Sim spread = make_sim("1024 h100, 8 per node, 400G", &cluster,
                          (Mesh){.size = {[MESH_DP] = 16, [MESH_TP] = 8}});
    double apart = sim_exchange_s(&spread, COMM_REDUCE_SCATTER, 1u << MESH_DP, bytes);
    cluster_deinit(&cluster);
    Sim together = make_sim("1024 h100, 8 per node, 400G", &cluster,
                            (Mesh){.size = {[MESH_DP] = 128}});
    double rails = sim_exchange_s(&together, COMM_REDUCE_SCATTER, 1u << MESH_DP, bytes);
    assert_true(apart > 6 * rails && apart < 9 * rails);
    cluster_deinit(&cluster);
}

/* A tier with a quarter of the bandwidth makes the exchange that crosses it four times as long, and
 * no other. */
static void test_oversubscription(void **state)
{
    (void)state;
    Cluster full, thin;
    Mesh mesh = {.size = {[MESH_PP] = 2, [MESH_DP] = 512, [MESH_TP] = 8}};
    Sim a = make_sim("8192 h100, 8 per node, 400G", &full, mesh),
        b = make_sim("8192 h100, 8 per node, 400G, spine 1:4", &thin, mesh);
    double bytes = 64e9, one = sim_exchange_s(&a, COMM_ALL_GATHER, 1u << MESH_DP, bytes),
           other = sim_exchange_s(&b, COMM_ALL_GATHER, 1u << MESH_DP, bytes);
    assert_true(other > one);
    assert_near(sim_exchange_s(&a, COMM_ALL_GATHER, 1u << MESH_TP, bytes),
                sim_exchange_s(&b, COMM_ALL_GATHER, 1u << MESH_TP, bytes), 1e-9);
    cluster_deinit(&full);
    cluster_deinit(&thin);
}

static void test_grows(void **state)
{
    (void)state;
    Cluster cluster;
    Sim sim = make_sim("8192 h100, 8 per node, 400G", &cluster,
                       (Mesh){.size = {[MESH_DP] = 64, [MESH_EP] = 16, [MESH_TP] = 8}});
    static const CommKind kinds[] = {COMM_ALL_REDUCE, COMM_ALL_GATHER, COMM_REDUCE_SCATTER,
                                     COMM_ALL_TO_ALL};
    for (int k = 0; k < COUNT_OF(kinds); k++)
        for (unsigned axes = 1; axes < 1u << MESH_AXES; axes++)
            for (double bytes = 1; bytes < 1e11; bytes *= 10) {
                double s = sim_exchange_s(&sim, kinds[k], axes, bytes),
                       more = sim_exchange_s(&sim, kinds[k], axes, 10 * bytes);
                assert_true(s >= 0 && more >= s && isfinite(more));
            }
    assert_true(sim_exchange_s(&sim, COMM_ALL_REDUCE, 1u << MESH_CP, 1e9) == 0); /* alone */
    cluster_deinit(&cluster);
}

static void test_too_many_ranks(void **state)
{
    (void)state;
    Cluster cluster;
    Sim sim;
    assert_int_equal(cluster_load("h100", &cluster), OK);
    assert_int_equal(sim_init(&cluster, &(Mesh){.size = {[MESH_DP] = 16}}, &sim), ERR_REFUSED);
    cluster_deinit(&cluster);
}

/* Ranks of a processor share its cores, and may be more of them than that. */
static void test_crowded(void **state)
{
    (void)state;
    Cluster cluster;
    double before = 0;
    for (int ranks = 2; ranks <= 64; ranks *= 2) {
        Sim sim = make_sim("cpu", &cluster, (Mesh){.size = {[MESH_DP] = ranks}});
        double s = sim_exchange_s(&sim, COMM_ALL_REDUCE, 1u << MESH_DP, 1e8);
        assert_true(isfinite(s) && s > before);
        before = s;
        cluster_deinit(&cluster);
        sim = make_sim("cpu", &cluster, (Mesh){.size = {[MESH_PP] = ranks}});
        s = sim_message_s(&sim, 0, ranks - 1, 1e8);
        assert_true(isfinite(s) && s > 0);
        cluster_deinit(&cluster);
    }
}

/* ---- the clock -------------------------------------------------------------------------- */

static const Target gpu = {.isa = ISA_GENERIC, .threads = 1, .gpu = true};

static ValueId matrix(Graph *g, const char *name, int64_t rows, int64_t columns)
{
    return graph_input(g, name, DTYPE_BF16,
                       shape_make(2, (int64_t[]){rows, columns}, (Axis[]){AXIS_ANY, AXIS_ANY}));
}

/* Two large products, one behind the other. */
static Program *products(Store *store)
{
    Graph *g = graph_create("products");
    ValueId x = matrix(g, "x", 8192, 8192), w = matrix(g, "w", 8192, 8192), y, z;
    assert_int_equal(op_linear(g, x, w, &y), OK);
    assert_int_equal(op_linear(g, y, w, &z), OK);
    graph_output(g, "z", z);
    Program *program;
    assert_int_equal(program_compile(g, gpu, store, &program), OK);
    return program;
}

static void count_events(void *context, const SimEvent *e)
{
    assert_true(e->end_s >= e->begin_s);
    ++*(int *)context;
}

/* 8,192 x 8,192 x 8,192 runs at 795 TFLOP/s on an H100. */
static void test_products(void **state)
{
    (void)state;
    Cluster cluster;
    Sim sim = make_sim("h100", &cluster, (Mesh){0});
    Store *store = store_create();
    Program *program = products(store);
    int n = 0;
    SimTime t = sim_run(&sim, program, PHASE_FORWARD, PHASE_FORWARD, count_events, &n);
    assert_int_equal(n, 2);
    assert_near(t.flop, 2 * 2 * pow(8192, 3), 1e-12);
    assert_near(t.flop / t.work_s[SIM_MATRIX], 795e12, 0.05);
    assert_near(t.total_s, t.work_s[SIM_MATRIX] + t.launch_s, 1e-12);
    program_destroy(program);
    store_destroy(store);
    cluster_deinit(&cluster);
}

/* Small kernels take as long as the host needs to launch them. */
static void test_launches(void **state)
{
    (void)state;
    enum { N = 100 };
    Cluster cluster;
    Sim sim = make_sim("h100", &cluster, (Mesh){0});
    Store *store = store_create();
    Graph *g = graph_create("small");
    ValueId x = matrix(g, "x", 16, 16);
    for (int i = 0; i < N; i++) assert_int_equal(op_scale(g, x, 0.5f, &x), OK);
    graph_output(g, "x", x);
    Program *program;
    assert_int_equal(program_compile(g, gpu, store, &program), OK);
    SimTime t = sim_run(&sim, program, PHASE_FORWARD, PHASE_FORWARD, NULL, NULL);
    assert_true(t.total_s >= N * fmax(sim.device.host_launch_s, sim.device.launch_s));
    assert_true(t.total_s < 3 * N * fmax(sim.device.host_launch_s, sim.device.launch_s));
    program_destroy(program);
    store_destroy(store);
    cluster_deinit(&cluster);
}

/* A host that takes longer to start a kernel is waited for; one that waits for each kernel adds its
 * time to theirs; neither counts in an update. */
static void test_slow_host(void **state)
{
    (void)state;
    Cluster cluster;
    Sim sim = make_sim("h100", &cluster, (Mesh){0});
    Store *store = store_create();
    Program *program = products(store);
    SimTime quick = sim_run(&sim, program, PHASE_FORWARD, PHASE_FORWARD, NULL, NULL);
    double each = quick.work_s[SIM_MATRIX] / 2;
    sim.stack.host_s = each / 2;
    SimTime ahead = sim_run(&sim, program, PHASE_FORWARD, PHASE_FORWARD, NULL, NULL);
    assert_near(ahead.total_s, 2.5 * each, 1e-9); /* the second one is started beside the first */
    sim.stack.blocking = true;
    SimTime waits = sim_run(&sim, program, PHASE_FORWARD, PHASE_FORWARD, NULL, NULL);
    assert_near(waits.total_s, 3 * each, 1e-9);
    assert_near(waits.launch_s, each, 1e-9);
    program_destroy(program);
    store_destroy(store);
    cluster_deinit(&cluster);
}

/* Heads whose rows do not begin at whole 16 bytes are multiplied without matrix units: of 108
 * elements they take several times as long as of 112, and as long as before where no rate is said.
 */
static void test_unaligned_heads(void **state)
{
    (void)state;
    Cluster cluster;
    Sim sim = make_sim("a100", &cluster, (Mesh){0});
    sim.stack.plain_attention = true;
    Cost c = {.kind = COST_ATTENTION, .dtype = DTYPE_BF16, .m = 2048, .n = 1024.5, .count = 64};
    c.k = 112;
    double aligned = sim_kernel_s(&sim, "attention", &c);
    c.k = 108;
    double not = sim_kernel_s(&sim, "attention", &c);
    assert_true(not > 3 * aligned && not < 12 * aligned);
    sim.device.vector_flop_per_s = 0;
    assert_true(sim_kernel_s(&sim, "attention", &c) < 1.5 * aligned);
    cluster_deinit(&cluster);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_node),        cmocka_unit_test(test_many_nodes),
        cmocka_unit_test(test_rails),           cmocka_unit_test(test_oversubscription),
        cmocka_unit_test(test_grows),           cmocka_unit_test(test_too_many_ranks),
        cmocka_unit_test(test_crowded),         cmocka_unit_test(test_products),
        cmocka_unit_test(test_launches),        cmocka_unit_test(test_slow_host),
        cmocka_unit_test(test_unaligned_heads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
