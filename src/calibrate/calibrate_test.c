/* Fits that find the rates that made the times; a job that is really run; a sheet that is a
 * cluster's file. */
#include "base/testing.h"
#include "calibrate/calibrate_internal.h"

static OpSample sample(double flop, double bytes, double fixed_s, double flop_per_s,
                       double bytes_per_s)
{
    return (OpSample){.op = "linear",
                      .matmul = true,
                      .flop = flop,
                      .bytes = bytes,
                      .seconds = fixed_s + flop / flop_per_s + bytes / bytes_per_s};
}

static void test_fit_recovers(void **state)
{
    (void)state;
    OpSample s[12];
    for (int i = 0; i < COUNT_OF(s); i++)
        s[i] = sample(1e6 * (1 << i), 1e5 * (1 + i * i), 3e-6, 40e9, 8e9);
    OpFit fit = calibrate_fit_op(s, COUNT_OF(s));
    assert_near(fit.rate.fixed_s, 3e-6, 1e-4);
    assert_near(fit.rate.flop_per_s, 40e9, 1e-4);
    assert_near(fit.rate.bytes_per_s, 8e9, 1e-4);
    assert_true(fit.error < 1e-5 && fabs(fit.bias) < 1e-5);
    assert_int_equal(fit.n, 12);
}

/* A term that the times do not have is left out, never negative; one sample is told exactly. */
static void test_fit_leaves_out(void **state)
{
    (void)state;
    OpSample s[8];
    for (int i = 0; i < COUNT_OF(s); i++) {
        s[i] = sample(1e6 * (1 + i), 1e6 * (8 - i), 0, 1e9, 1e30);
        s[i].seconds *= i % 2 ? 1.02 : 0.98;
    }
    OpFit fit = calibrate_fit_op(s, COUNT_OF(s));
    assert_near(fit.rate.flop_per_s, 1e9, 0.03);
    assert_true(fit.rate.fixed_s >= 0 && fit.rate.bytes_per_s >= 0);
    assert_near(fit.error, 0.02, 0.5);
    for (int i = 0; i < COUNT_OF(s); i++)
        s[i] = (OpSample){.op = "fill", .bytes = 0, .flop = 0, .seconds = 2e-6 + 1e-9 * i};
    fit = calibrate_fit_op(s, COUNT_OF(s));
    assert_near(fit.rate.fixed_s, 2e-6, 0.01);
    assert_true(fit.rate.flop_per_s == 0 && fit.rate.bytes_per_s == 0);
    OpSample one = {.op = "add", .bytes = 1e6, .seconds = 1e-4};
    fit = calibrate_fit_op(&one, 1);
    assert_near(fit.rate.fixed_s + (fit.rate.bytes_per_s > 0 ? 1e6 / fit.rate.bytes_per_s : 0),
                1e-4, 1e-6);
}

/* Times that no line tells, some nodes in the cache and some beside it: their sum is told all the
 * same. */
static void test_fit_has_no_bias(void **state)
{
    (void)state;
    OpSample s[40];
    for (int i = 0; i < COUNT_OF(s); i++) {
        double bytes = 1e5 * (1 + i * i), rate = i % 3 ? 40e9 : 6e9;
        s[i] = (OpSample){
            .op = "adamw", .bytes = bytes, .flop = bytes, .seconds = 1e-6 + bytes / rate};
    }
    OpFit fit = calibrate_fit_op(s, COUNT_OF(s));
    assert_true(fabs(fit.bias) < 1e-3);
    assert_true(fit.error > 0.3 && fit.error < 1);
}

/* Samples of one shape say that more work takes longer. */
static void test_fit_one_shape(void **state)
{
    (void)state;
    OpSample s[2] = {sample(1e9, 1e6, 0, 1e11, 1e30), sample(1e9, 1e6, 0, 0.99e11, 1e30)};
    OpFit fit = calibrate_fit_op(s, 2);
    assert_true(fit.rate.fixed_s == 0 && fit.rate.bytes_per_s == 0);
    assert_near(fit.rate.flop_per_s, 1e11, 0.01);
}

/* A team of four that is 3.2 times as fast once it is together; what takes the same however many
 * work; an op that no team ran. */
static void test_team_fit(void **state)
{
    (void)state;
    OpSample s[10];
    OpRate rate = {.op = "linear", .fixed_s = 1e-6, .flop_per_s = 40e9, .bytes_per_s = 8e9};
    for (int i = 0; i < COUNT_OF(s); i++) {
        s[i] = sample(1e5 * (1 << i), 1e4 * (1 + i * i), 0, 40e9, 8e9);
        s[i].seconds = 5e-6 + s[i].seconds / 3.2;
    }
    calibrate_fit_team(s, COUNT_OF(s), &rate);
    assert_near(rate.team_s, 5e-6, 1e-4);
    assert_near(rate.team_speed, 3.2, 1e-4);
    OpRate alone = {.op = "fill", .fixed_s = 2e-6};
    for (int i = 0; i < COUNT_OF(s); i++) s[i] = (OpSample){.op = "fill", .seconds = 4e-6};
    calibrate_fit_team(s, COUNT_OF(s), &alone);
    assert_near(alone.team_s, 4e-6, 1e-6);
    assert_true(alone.team_speed > 0);
    OpRate none = {.op = "add", .fixed_s = 2e-6, .bytes_per_s = 1e9};
    calibrate_fit_team(NULL, 0, &none);
    assert_true(none.team_speed == 0 && none.team_s == 0);
}

static void test_exchange_fit(void **state)
{
    (void)state;
    ExchangeSample s[6];
    for (int i = 0; i < COUNT_OF(s); i++) {
        double bytes = 64 * pow(32, i);
        s[i] = (ExchangeSample){bytes, 10e-6 + 1.5 * bytes / 5e9};
    }
    double base, hop, rate;
    calibrate_fit_exchange(s, COUNT_OF(s), 4, &base, &hop, &rate);
    assert_near(base + 6 * hop, 10e-6, 1e-6);
    assert_near(rate, 5e9, 1e-6);
}

static int count(const OpSamples *samples, const char *op, MathKind math)
{
    int n = 0;
    for (size_t i = 0; i < samples->n; i++)
        n += !strcmp(samples->at[i].op, op) && samples->at[i].math == math;
    return n;
}

/* Two ranks alone, then two that share each matrix: the same kinds of nodes from both, exchanges
 * left out. */
static void test_job(void **state)
{
    (void)state;
    CalibrateJob job = {"llama3-nano", DTYPE_F32, 1, 2, 32, RECOMPUTE_NONE, .cut = MESH_PP};
    OpSamples samples = {0};
    double step_s = 0;
    assert_ok(calibrate_run_job(&job, 2, 1, 2, &samples, &step_s));
    assert_true(step_s > 0);
    assert_int_equal(count(&samples, "linear", MATH_F32) % 2, 0);
    assert_true(count(&samples, "linear", MATH_F32) >= 2 * 4 * 3 &&
                count(&samples, "attention", MATH_F32) == 2 * 4);
    for (size_t i = 0; i < samples.n; i++) {
        const OpSample *s = &samples.at[i];
        assert_true(s->seconds > 0 && s->flop + s->bytes > 0);
        if (s->k) assert_near(s->flop, 2.0 * (double)s->m * (double)s->n * (double)s->k, 1e-12);
        assert_int_equal(s->k > 0, !strcmp(s->op, "linear"));
    }
    size_t alone = samples.n;
    job.cut = MESH_FSDP;
    assert_ok(calibrate_run_job(&job, 2, 1, 1, &samples, &step_s));
    assert_true(samples.n > alone);
    int exchanges = 0;
    for (size_t i = 0; i < samples.n; i++) {
        const OpSample *s = &samples.at[i];
        if (!s->among) continue;
        exchanges += s->whole_bytes > 0 && s->kind == COMM_ALL_GATHER;
        assert_true(i >= alone && s->among == 2 && s->seconds > 0 && !s->k);
    }
    assert_true(exchanges > 0);
    VEC_FREE(&samples);
    job.preset = "nosuch";
    assert_int_equal(calibrate_run_job(&job, 2, 1, 1, &samples, &step_s), ERR_ARG);
}

static void test_exchanges(void **state)
{
    (void)state;
    Arena arena = {0};
    ExchangeSample *s;
    int n;
    assert_ok(calibrate_run_exchanges(NULL, 2, &arena, &s, &n));
    assert_true(n == 9 && s[0].seconds > 0 && s[8].seconds > 10 * s[0].seconds);
    arena_deinit(&arena);
}

static void test_sheet_loads(void **state)
{
    (void)state;
    OpFit fits[] = {{.rate = {"linear", OP_BF16, 1e-6, 80e9, 9e9, 4e-6, 3.5}},
                    {.rate = {"rmsnorm", OP_ANY, 2e-6, 0, 5e9, 0, 0}},
                    {.rate = {"attention", OP_F32, 0, 20e9, 0, 0, 0}},
                    {.rate = {"attention_grad", OP_F32, 0, 15e9, 0, 0, 0}}};
    Calibration c = {.cores = 4,
                     .memory_bytes = 16e9,
                     .peak_flop_per_s = {50e9, 100e9, 0},
                     .read_bytes_per_s = 6e9,
                     .copy_bytes_per_s = 5e9,
                     .matrix = {{50e9, 0.9, 20}, {100e9, 0.8, 30}, {0}},
                     .fit = fits,
                     .n_fits = COUNT_OF(fits),
                     .team_eta = 0.95,
                     .exchange_ranks = 4,
                     .transport = "threads",
                     .exchange_base_s = 5e-6,
                     .exchange_hop_s = 1e-6,
                     .exchange_bytes_per_s = 4e9,
                     .machine = "measured by a test"};
    Str text = {0};
    Cluster cluster;
    calibrate_sheet(&c, &text);
    assert_ok(cluster_parse((Bytes){(const uint8_t *)text.at, text.n}, "cpu.yaml", &cluster));
    assert_int_equal(cluster.device.cores, 4);
    assert_near(cluster_op_s(&cluster.device, "linear", MATH_BF16, 80e9, 9e9), 2 + 1e-6, 1e-9);
    assert_true(cluster_op_s(&cluster.device, "linear", MATH_F32, 80e9, 9e9) < 0);
    assert_near(cluster_op_s(&cluster.device, "rmsnorm", MATH_BF16, 1e9, 5e9), 1 + 2e-6, 1e-9);
    DeviceSheet team = cluster_share(&cluster.device, 1);
    assert_near(team.op_speed, 4 * 0.95, 1e-9);
    assert_near(cluster_op_s(&team, "linear", MATH_BF16, 80e9, 9e9), 4e-6 + 2 / 3.5, 1e-9);
    assert_near(cluster.device.attention.eta_inf, 0.2, 1e-9);
    assert_near(cluster.device.attention.backward, 0.75, 1e-9);
    assert_near(cluster.device.memory.eta, 5.0 / 6, 1e-3);
    assert_near(cluster.network.ring.link_hop_s, 1e-6, 1e-9);
    assert_near(cluster.device.link_bytes_per_s, 4e9, 1e-9);
    assert_true(cluster.device.matrix[MATH_FP8].peak_flop_per_s == 0);
    assert_string_equal(cluster_source(&cluster, "device.team_eta"), "measured by a test");
    cluster_deinit(&cluster);
    str_deinit(&text);
}

/* ---- a GPU ------------------------------------------------------------------------------ */

/* Operands of chosen sizes, alone: the nodes that are wanted, with their work. */
static void test_gpu_shapes(void **state)
{
    (void)state;
    if (!gpu_count(NULL)) skip();
    Device *device;
    OpSamples samples = {0};
    assert_ok(device_create(DEVICE_CUDA, (CpuOptions){0}, &device));
    assert_ok(calibrate_run_shape(device, &(CalibrateShape){SHAPE_PRODUCTS, DTYPE_BF16, 16, 24, 32},
                                  1, &samples));
    assert_int_equal(samples.n, 3);
    for (int i = 0; i < 3; i++) {
        const OpSample *s = &samples.at[i];
        assert_true(s->matmul && s->math == MATH_BF16 && s->seconds > 0);
        assert_near(s->flop, 2.0 * 16 * 24 * 32, 1e-12);
    }
    assert_ok(calibrate_run_shape(device, &(CalibrateShape){SHAPE_ATTENTION, DTYPE_BF16, 16, 4, 64},
                                  1, &samples));
    assert_int_equal(samples.n, 5);
    assert_string_equal(samples.at[3].op, "attention");
    assert_string_equal(samples.at[4].op, "attention_grad");
    assert_near(samples.at[3].cost.k, 64, 1e-12);
    assert_near(samples.at[3].cost.n, 8.5, 1e-12); /* of 16 keys, as many as a query sees */
    assert_ok(calibrate_run_shape(device, &(CalibrateShape){SHAPE_CHAIN, DTYPE_F32, 1024, 3, 0}, 1,
                                  &samples));
    assert_int_equal(samples.n, 8);
    assert_near(samples.at[7].bytes, 3.0 * 4 * 1024, 1e-12);
    VEC_FREE(&samples);
    device_destroy(device);
}

/* Layers, experts and words are as many as the jobs say. */
static void test_gpu_models(void **state)
{
    (void)state;
    for (int i = 0; i < calibrate_gpu_jobs_n; i++) {
        const CalibrateJob *job = &calibrate_gpu_jobs[i];
        ModelConfig model;
        assert_ok(calibrate_read_model(job, &model));
        assert_true(model.n_layers == 1 || model.n_layers == 2);
        const char *words = strstr(job->fields, "vocab_size=");
        if (words) assert_int_equal(model.vocab, strtol(words + 11, NULL, 10));
        const char *experts = strstr(job->fields, "experts=");
        if (experts) assert_int_equal(model.n_experts, strtol(experts + 8, NULL, 10));
        assert_true(job->gpu && job->cut == MESH_PP);
        model_config_deinit(&model);
    }
}

static bool is_figure(double x) { return isfinite(x) && x > 0; }

/* The whole way on the emulated device: its times mean nothing, but each figure is one, and the
 * file is a cluster whose plans find every op that was measured. */
static void test_gpu_sheet(void **state)
{
    (void)state;
    if (!gpu_count(NULL)) skip();
    GpuCalibration c;
    Cluster cluster;
    Str text = {0};
    assert_ok(calibrate_gpu(&(CalibrateOptions){.rounds = 1, .small = true, .ranks = 2}, &c));
    assert_true(is_figure(c.launch.kernel_s) && is_figure(c.launch.graph_s) &&
                is_figure(c.launch.host_s));
    assert_true(is_figure(c.copy.write_bytes_per_s) && is_figure(c.copy.read_bytes_per_s) &&
                is_figure(c.copy.copy_bytes_per_s));
    for (int i = 0; i < MATH_KINDS; i++) /* an older GPU has no products of 8 bits */
        assert_true(is_figure(c.best_flop_per_s[i]) || (i == MATH_FP8 && !gpu_is_emulated()));
    assert_true(c.exchange_ranks == 2 && c.n_exchanges == 2 && is_figure(c.exchange[1].seconds));
    int grouped = 0;
    for (int i = 0; i < c.n_samples; i++) {
        assert_true(is_figure(c.sample[i].seconds));
        grouped += !strncmp(c.sample[i].op, "grouped_linear", 14);
    }
    assert_true(grouped >= 3);
    /* an emulated device is slower than any that the file may speak of: its peaks are those of a
     * device a million times as fast */
    for (int i = 0; i < MATH_KINDS && gpu_is_emulated(); i++)
        c.sheet.matrix[i].peak_flop_per_s *= 1e6;
    calibrate_gpu_sheet(&c, &text);
    assert_ok(cluster_parse((Bytes){(const uint8_t *)text.at, text.n}, "gpu.yaml", &cluster));
    const DeviceSheet *d = &cluster.device;
    assert_int_equal(d->cores, 0);
    assert_int_equal(d->units, c.info.multiprocessors);
    assert_int_equal(cluster.node.devices, c.gpus);
    assert_near(d->launch_s, c.launch.kernel_s, 1e-3);
    assert_near(d->host_launch_s, c.launch.host_s, 1e-3);
    assert_near(d->attention.backward, c.sheet.attention.backward, 1e-3);
    assert_near(cluster.node.pcie_bytes_per_s,
                fmin(c.copy.write_bytes_per_s, c.copy.read_bytes_per_s), 1e-5);
    assert_true(is_figure(cluster_attention_efficiency(d, 64, 100, true)));
    assert_true(is_figure(cluster_matrix_flop_per_s(d, MATH_BF16, 2, 512, 512, 512)));
    assert_true(is_figure(cluster_op_s(d, "rmsnorm", MATH_BF16, 1e6, 1e6)));
    assert_true(is_figure(cluster_op_s(d, "grouped_linear_dw", MATH_BF16, 1e6, 1e6)));
    assert_true(is_figure(cluster_op_s(d, "quantise", MATH_BF16, 1e6, 1e6)) || !gpu_is_emulated());
    assert_true(cluster_op_s(d, "linear_dx", MATH_BF16, 1e6, 1e6) < 0); /* it has a curve */
    assert_true(cluster_op_s(d, "linear_8", MATH_FP8, 1e6, 1e6) < 0);
    assert_true(cluster_op_s(d, "attention_grad", MATH_BF16, 1e6, 1e6) < 0);
    assert_non_null(strstr(cluster_source(&cluster, "device.launch_s"), c.info.name));
    cluster_deinit(&cluster);
    str_deinit(&text);
    calibrate_gpu_deinit(&c);
}

/* Of a GPU that a preset knows the peaks, prices and links are the preset's, the rest what was
 * measured. */
static void test_gpu_sheet_of_preset(void **state)
{
    (void)state;
    OpFit fits[] = {{.rate = {"grouped_linear", OP_BF16, 1e-6, 500e12, 3e12, 0, 0}},
                    {.rate = {"linear", OP_BF16, 1e-6, 700e12, 3e12, 0, 0}}};
    GpuCalibration c = {.info = {.name = "NVIDIA H100 80GB HBM3",
                                 .multiprocessors = 132,
                                 .memory_bytes = 85000000000},
                        .gpus = 8,
                        .preset = "h100",
                        .launch = {2e-6, 8e-6, 5e-6},
                        .copy = {50e9, 48e9, 2.9e12},
                        .best_flop_per_s = {50e12, 760e12, 0},
                        .fit = fits,
                        .n_fits = COUNT_OF(fits),
                        .exchange_ranks = 8,
                        .exchange_base_s = 6e-6,
                        .exchange_hop_s = 1e-6,
                        .exchange_bytes_per_s = 370e9,
                        .host_memory_bytes = 2e12,
                        .machine = "measured by a test"};
    c.sheet = (DeviceSheet){.matrix = {{495e12, 0.1, 20}, {989e12, 0.8, 450}, {1979e12, 0.7, 800}},
                            .units = 132,
                            .tile_m = 128,
                            .tile_n = 256,
                            .align = 8,
                            .unaligned = 0.75,
                            .attention = {0.7, 60, 300, 0.7},
                            .memory = {85e9, 3.35e12, 0.88, 3e6, 0},
                            .launch_s = 2e-6,
                            .host_launch_s = 5e-6};
    Str text = {0};
    Cluster cluster, preset;
    calibrate_gpu_sheet(&c, &text);
    assert_ok(cluster_load("h100", &preset));
    assert_ok(cluster_parse((Bytes){(const uint8_t *)text.at, text.n}, "gpu.yaml", &cluster));
    const DeviceSheet *d = &cluster.device;
    assert_near(d->matrix[MATH_BF16].peak_flop_per_s, 989e12, 1e-9);
    assert_near(d->matrix[MATH_BF16].k_half, 450, 1e-6);
    assert_near(d->matrix[MATH_FP8].k_half, preset.device.matrix[MATH_FP8].k_half, 1e-9);
    assert_near(d->max_w, 700, 1e-9);
    assert_near(cluster.node.price_usd.central, preset.node.price_usd.central, 1e-9);
    assert_near(d->memory.eta, 0.88, 1e-6);
    assert_near(d->link_bytes_per_s, 370e9, 1e-6);
    assert_near(cluster.network.ring.link_hop_s, 1e-6, 1e-6);
    assert_near(cluster.node.pcie_bytes_per_s, 48e9, 1e-6);
    assert_int_equal(cluster_devices(&cluster), 8);
    assert_int_equal(d->n_ops, 1);
    assert_near(cluster_op_s(d, "grouped_linear", MATH_BF16, 500e12, 3e12), 2 + 1e-6, 1e-9);
    assert_string_equal(cluster_source(&cluster, "device.memory.eta"), "measured by a test");
    cluster_deinit(&cluster);
    cluster_deinit(&preset);
    str_deinit(&text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fit_recovers),
        cmocka_unit_test(test_fit_leaves_out),
        cmocka_unit_test(test_fit_has_no_bias),
        cmocka_unit_test(test_team_fit),
        cmocka_unit_test(test_fit_one_shape),
        cmocka_unit_test(test_exchange_fit),
        cmocka_unit_test(test_job),
        cmocka_unit_test(test_exchanges),
        cmocka_unit_test(test_sheet_loads),
        cmocka_unit_test(test_gpu_shapes),
        cmocka_unit_test(test_gpu_models),
        cmocka_unit_test(test_gpu_sheet),
        cmocka_unit_test(test_gpu_sheet_of_preset),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
