/* Curves against published measurements, and the constants in the presets against a fit to these
 * points. */
#include "base/testing.h"
#include "cluster/cluster.h"

static Cluster load(const char *text)
{
    Cluster c;
    if (cluster_load(text, &c) != OK) fail_msg("%s", status_message());
    return c;
}

/* DeepGEMM's table for H800: FP8 products of m, n, k at so many TFLOP/s. */
static const MatrixPoint deepgemm[] = {
    {64, 2112, 7168, 206e12},    {64, 7168, 16384, 336e12},    {128, 7168, 16384, 645e12},
    {128, 24576, 1536, 535e12},  {4096, 2112, 7168, 1058e12},  {4096, 24576, 1536, 990e12},
    {4096, 32768, 512, 590e12},  {4096, 7168, 16384, 1358e12}, {4096, 4096, 7168, 1304e12},
    {4096, 7168, 2048, 1025e12},
};

static void test_fp8_products(void **state)
{
    (void)state;
    Cluster c = load("h800");
    MatrixCurve curve;
    double residual = cluster_fit_matrix(&c.device, MATH_FP8, 1, deepgemm, COUNT_OF(deepgemm),
                                         &curve);
    assert_true(residual < 0.13);
    assert_near(c.device.matrix[MATH_FP8].eta_inf, curve.eta_inf, 0.01);
    assert_near(c.device.matrix[MATH_FP8].k_half, curve.k_half, 0.01);
    for (int i = 0; i < COUNT_OF(deepgemm); i++) {
        const MatrixPoint *p = &deepgemm[i];
        double rate = cluster_matrix_flop_per_s(&c.device, MATH_FP8, 1, p->m, p->n, p->k);
        if (fabs(rate / p->flop_per_s - 1) > 0.3) fail_msg("%g against %g", rate, p->flop_per_s);
    }
    cluster_deinit(&c);
}

/* Squares of 4,096 reach 716 TFLOP/s, of 8,192 795; no shape more than 794.5 (mamf). */
static void test_bf16_products(void **state)
{
    (void)state;
    Cluster c = load("h100");
    assert_near(cluster_matrix_flop_per_s(&c.device, MATH_BF16, 2, 4096, 4096, 4096) / 716e12, 1,
                0.05);
    assert_near(cluster_matrix_flop_per_s(&c.device, MATH_BF16, 2, 8192, 8192, 8192) / 795e12, 1,
                0.06);
    for (int64_t k = 1024; k <= 65536; k *= 2)
        assert_true(cluster_matrix_flop_per_s(&c.device, MATH_BF16, 2, 16896, 16384, k) <
                    1.05 * 794.5e12);
    cluster_deinit(&c);
}

/* FlashAttention-3, forward, s = 512 ... 16384, TFLOP/s of the work that is done. */
static void test_attention(void **state)
{
    (void)state;
    static const double causal128[] = {292, 423, 521, 579, 602, 616},
                        full128[] = {467, 565, 625, 638, 646, 648};
    static const double causal64[] = {197, 265, 371, 420, 460, 473};
    AttentionPoint point[18];
    for (int i = 0; i < 6; i++) {
        double s = (double)(512 << i);
        point[i] = (AttentionPoint){128, s / 2, causal128[i] * 1e12};
        point[6 + i] = (AttentionPoint){128, s, full128[i] * 1e12};
        point[12 + i] = (AttentionPoint){64, s / 2, causal64[i] * 1e12};
    }
    Cluster c = load("h100");
    AttentionCurve curve;
    double residual = cluster_fit_attention(&c.device, point, COUNT_OF(point), &curve);
    assert_true(residual < 0.065);
    for (int i = 0; i < COUNT_OF(point); i++) {
        double rate = 989e12 * cluster_attention_efficiency(&c.device, point[i].head_dim,
                                                            point[i].keys, false);
        if (fabs(rate / point[i].flop_per_s - 1) > 0.15)
            fail_msg("%d: %g against %g", i, rate, point[i].flop_per_s);
    }
    assert_near(cluster_attention_efficiency(&c.device, 128, 2048, true) /
                    cluster_attention_efficiency(&c.device, 128, 2048, false),
                0.8, 1e-12);
    cluster_deinit(&c);
}

/* FlashAttention-2 on H100, causal, forward and backward together, s = 512 ... 16384: A100's sheet
 * has the shape of these, for both sizes of heads, and the rate that is known of A100. */
static void test_flash2(void **state)
{
    (void)state;
    static const double causal128[] = {163, 221, 265, 294, 308, 328},
                        causal64[] = {141, 192, 232, 257, 273, 284};
    Cluster c = load("a100");
    double unit = cluster_attention_efficiency(&c.device, 128, 8192, false) / 328;
    for (int i = 0; i < COUNT_OF(causal64); i++) {
        double keys = 256 << i;
        assert_near(cluster_attention_efficiency(&c.device, 128, keys, false) / unit / causal128[i],
                    1, 0.04);
        assert_near(cluster_attention_efficiency(&c.device, 64, keys, false) / unit / causal64[i],
                    1, 0.04);
    }
    assert_near(312e12 * cluster_attention_efficiency(&c.device, 128, 8192, false) / 225e12, 1,
                0.02);
    cluster_deinit(&c);
}

/* A fit finds the curve that made the points. */
static void test_fit_recovers(void **state)
{
    (void)state;
    Cluster c = load("a100");
    DeviceSheet d = c.device;
    d.matrix[MATH_BF16].eta_inf = 0.7;
    d.matrix[MATH_BF16].k_half = 333;
    MatrixPoint point[6];
    for (int i = 0; i < COUNT_OF(point); i++) {
        point[i] = (MatrixPoint){4096 + 1000 * i, 2048, 256 << i, 0};
        point[i].flop_per_s = cluster_matrix_flop_per_s(&d, MATH_BF16, 2, point[i].m, point[i].n,
                                                        point[i].k);
    }
    MatrixCurve curve;
    assert_true(cluster_fit_matrix(&c.device, MATH_BF16, 2, point, COUNT_OF(point), &curve) < 1e-3);
    assert_near(curve.eta_inf, 0.7, 0.01);
    assert_near(curve.k_half, 333, 0.02);
    cluster_deinit(&c);
}

/* One tile too many costs a wave; a side that is not aligned its factor. */
static void test_waves(void **state)
{
    (void)state;
    Cluster c = load("h100");
    DeviceSheet *d = &c.device;
    double whole = cluster_matrix_efficiency(d, MATH_BF16, 132 * 128, 256, 4096);
    assert_near(whole, 0.835 * 4096 / (4096 + 500), 1e-12);
    double more = cluster_matrix_efficiency(d, MATH_BF16, 133 * 128, 256,
                                            4096); /* half tiles both ways: 532 in 5 waves of 132 */
    assert_near(more / whole, 532.0 / 660, 1e-9);
    assert_near(cluster_matrix_efficiency(d, MATH_BF16, 132 * 128, 256, 4095) / whole, 0.75, 1e-3);
    cluster_deinit(&c);
}

static void test_memory_and_kinds(void **state)
{
    (void)state;
    Cluster c = load("h100");
    assert_near(cluster_memory_efficiency(&c.device, 4e6), 0.45, 1e-12);
    assert_true(cluster_memory_efficiency(&c.device, 1e9) > 0.89);
    assert_int_equal(cluster_math(DTYPE_BF16), MATH_BF16);
    assert_int_equal(cluster_math(DTYPE_F16), MATH_BF16);
    assert_int_equal(cluster_math(DTYPE_F8_E5M2), MATH_FP8);
    assert_int_equal(cluster_math(DTYPE_F32), MATH_F32);
    assert_string_equal(cluster_math_name(MATH_FP8), "fp8");
    cluster_deinit(&c);
}

/* Four cores: as one rank 3.4 times one, two ranks of two, eight ranks of half a core each. */
static void test_share_of_a_processor(void **state)
{
    (void)state;
    OpRate rates[] = {
        {.op = "rmsnorm", .fixed_s = 1e-6, .flop_per_s = 2e9, .bytes_per_s = 4e9},
        {.op = "rmsnorm", .math = OP_BF16, .flop_per_s = 1e9, .team_s = 3e-6, .team_speed = 2.5}};
    DeviceSheet d = {.cores = 4,
                     .team_eta = 0.85,
                     .matrix[MATH_F32].peak_flop_per_s = 1e10,
                     .memory.bytes_per_s = 5e9,
                     .memory.bytes = 8e9,
                     .op = rates,
                     .n_ops = 2,
                     .op_speed = 1};
    assert_near(cluster_share(&d, 4).matrix[MATH_F32].peak_flop_per_s, 1e10, 1e-12);
    assert_near(cluster_share(&d, 1).matrix[MATH_F32].peak_flop_per_s, 3.4e10, 1e-12);
    assert_near(cluster_share(&d, 2).memory.bytes_per_s, 2 * 5e9 * 0.95, 1e-12);
    assert_near(cluster_share(&d, 8).memory.bytes_per_s, 2.5e9, 1e-12);
    assert_near(cluster_share(&d, 8).memory.bytes, 1e9, 1e-12);
    DeviceSheet half = cluster_share(&d, 8);
    assert_near(cluster_op_s(&d, "rmsnorm", MATH_F32, 2e3, 4e3), 1e-6 + 1e-6 + 1e-6, 1e-12);
    assert_near(cluster_op_s(&half, "rmsnorm", MATH_F32, 2e3, 4e3), 1e-6 + 4e-6, 1e-12);
    assert_near(cluster_op_s(&d, "rmsnorm", MATH_BF16, 2e3, 4e3), 2e-6, 1e-12);
    assert_true(cluster_op_s(&d, "linear", MATH_F32, 1, 1) < 0);
    /* a team as it was measured, half of it half as much more than one; else as fast as all are */
    DeviceSheet team = cluster_share(&d, 1), pair = cluster_share(&d, 2);
    assert_near(cluster_op_s(&team, "rmsnorm", MATH_BF16, 2e3, 0), 3e-6 + 2e-6 / 2.5, 1e-12);
    assert_near(cluster_op_s(&pair, "rmsnorm", MATH_BF16, 2e3, 0), 3e-6 + 2e-6 / 1.5, 1e-12);
    assert_near(cluster_op_s(&team, "rmsnorm", MATH_F32, 2e3, 4e3), 1e-6 + 2e-6 / 3.4, 1e-12);
    d.cores = 0;
    assert_near(cluster_share(&d, 8).memory.bytes_per_s, 5e9, 1e-12);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fp8_products),     cmocka_unit_test(test_bf16_products),
        cmocka_unit_test(test_attention),        cmocka_unit_test(test_flash2),
        cmocka_unit_test(test_fit_recovers),     cmocka_unit_test(test_waves),
        cmocka_unit_test(test_memory_and_kinds), cmocka_unit_test(test_share_of_a_processor),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
