/* The device behind gpu.h: the emulated one, or a GPU where the tests were built for one. */
#include "gpu/numbers.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* kernels_test.cu */
Status test_sums(GpuStream *stream, const float *x, float *y, int n);
Status test_lanes(GpuStream *stream, int *y);
Status test_race(GpuStream *stream, int *y);
Status test_stuck(GpuStream *stream, int *y);
Status test_poison(GpuStream *stream, float *y);

static Gpu *gpu;
static GpuStream *stream;

static int setup(void **state)
{
    (void)state;
    if (!gpu_count(NULL)) return 0;
    return gpu_open(0, &gpu) != OK || gpu_stream_create(gpu, &stream) != OK;
}

static int teardown(void **state)
{
    (void)state;
    gpu_stream_destroy(stream);
    gpu_close(gpu);
    stream = NULL;
    gpu = NULL;
    return 0;
}

#define NEED_GPU()                                                                                 \
    if (!gpu) skip()
#define assert_ok(call) assert_int_equal((call), OK)

static void *alloc(size_t bytes)
{
    void *memory;
    assert_ok(gpu_alloc(gpu, bytes, "a test", &memory));
    return memory;
}

static void test_info(void **state)
{
    (void)state;
    const char *why = NULL;
    int n = gpu_count(&why);
    assert_true(n > 0 ? !why : why && *why);
    NEED_GPU();
    assert_true(gpu_info(gpu)->major >= 8);
    assert_true(gpu_info(gpu)->multiprocessors > 0);
    Gpu *other = NULL;
    assert_int_equal(gpu_open(999, &other), ERR_UNSUPPORTED);
    assert_null(other);
}

static void test_copies(void **state)
{
    (void)state;
    NEED_GPU();
    uint8_t out[1000], back[1000];
    for (int i = 0; i < 1000; i++) out[i] = (uint8_t)(i * 7);
    char *a = alloc(1000), *b = alloc(1000);
    assert_int_equal((uintptr_t)a % 256, 0);
    assert_ok(gpu_write(stream, a, out, 1000));
    memset(out, 1, 500); /* pageable memory: it was taken already */
    assert_ok(gpu_fill(stream, b, 0xab, 1000));
    assert_ok(gpu_copy(stream, b + 10, a + 20, 100));
    assert_ok(gpu_read(stream, back, b, 1000));
    for (int i = 0; i < 1000; i++)
        assert_int_equal(back[i], i >= 10 && i < 110 ? (uint8_t)((i + 10) * 7) : 0xab);
    gpu_free(gpu, a);
    gpu_free(gpu, b);
    void *none = NULL;
    assert_int_equal(gpu_alloc(gpu, (size_t)1 << 50, "too much", &none), ERR_MEMORY);
    assert_null(none);
    assert_non_null(strstr(status_message(), "too much"));
}

/* Two events with work between, on two streams of which one waits for the other. */
static void test_events(void **state)
{
    (void)state;
    NEED_GPU();
    GpuStream *second;
    GpuEvent *from, *to;
    assert_ok(gpu_stream_create(gpu, &second));
    assert_ok(gpu_event_create(gpu, &from));
    assert_ok(gpu_event_create(gpu, &to));
    char *a = alloc(64), *b = alloc(64), back[64];
    assert_ok(gpu_event_record(from, stream));
    assert_ok(gpu_fill(stream, a, 5, 64));
    assert_ok(gpu_event_record(to, stream));
    assert_ok(gpu_stream_wait_event(second, to));
    assert_ok(gpu_copy(second, b, a, 64));
    assert_ok(gpu_read(second, back, b, 64));
    for (int i = 0; i < 64; i++) assert_int_equal(back[i], 5);
    double ms = -1;
    assert_ok(gpu_event_wait(to));
    assert_ok(gpu_event_ms(from, to, &ms));
    assert_true(ms >= 0);
    gpu_event_destroy(from);
    gpu_event_destroy(to);
    gpu_stream_destroy(second);
    gpu_free(gpu, a);
    gpu_free(gpu, b);
}

/* The host reads what was there when it was fetched, waits once, and is refused what nobody
 * fetched. */
static void test_numbers(void **state)
{
    (void)state;
    NEED_GPU();
    GpuStream *side;
    const void *found, *again;
    char *a = alloc(256), *b = alloc(64), owner;
    assert_int_equal(gpu_numbers_find(stream, a, &found), ERR_ARG);
    for (int round = 1; round <= 3; round++) {
        size_t bytes = round == 2 ? 256 : 64; /* more than before; less */
        assert_ok(gpu_fill(stream, a, round, 256));
        assert_ok(gpu_fill(stream, b, 10 + round, 64));
        assert_ok(gpu_side_begin(stream, 0, &side));
        assert_ok(gpu_numbers_fetch(stream, side, a, bytes, &owner));
        assert_ok(gpu_numbers_fetch(stream, side, b, 64, &found));
        assert_ok(gpu_side_end(stream, 0, &a));
        assert_ok(gpu_side_join(stream, &a));
        assert_ok(gpu_fill(stream, a, 99, 256));
        assert_ok(gpu_numbers_find(stream, a, &found));
        for (size_t i = 0; i < bytes; i++) assert_int_equal(((const char *)found)[i], round);
        assert_ok(gpu_numbers_find(stream, b, &again));
        assert_int_equal(*(const char *)again, 10 + round);
        assert_ok(gpu_numbers_find(stream, a, &again));
        assert_ptr_equal(found, again);
    }
    gpu_numbers_drop(stream, &owner);
    assert_int_equal(gpu_numbers_find(stream, a, &found), ERR_ARG);
    assert_ok(gpu_numbers_find(stream, b, &found));
    gpu_numbers_drop(stream, &found);
    assert_ok(gpu_stream_wait(stream));
    gpu_free(gpu, a);
    gpu_free(gpu, b);
}

/* The side goes on behind what was on the stream, and the stream behind what it joins, not before.
 */
static void test_side(void **state)
{
    (void)state;
    NEED_GPU();
    GpuStream *side;
    char *a = alloc(64), *b = alloc(64), *c = alloc(64), back[64];
    for (int round = 1; round <= 3; round++) {
        assert_ok(gpu_fill(stream, a, round, 64));
        assert_ok(gpu_side_begin(stream, round, &side));
        assert_ok(gpu_copy(side, b, a, 64));
        assert_ok(gpu_side_end(stream, round, &a));
        assert_int_equal(gpu_side_end(stream, round, &a), ERR_ARG); /* nobody has joined it */
        assert_ok(gpu_side_begin(stream, round, &side));
        assert_ok(gpu_fill(side, c, 9, 64));
        assert_ok(gpu_side_end(stream, round, &b));
        assert_ok(gpu_side_join(stream, &a));
        assert_ok(gpu_side_join(stream, &c)); /* nobody has promised anything */
        assert_ok(gpu_copy(stream, a, b, 64));
        assert_ok(gpu_side_join(stream, &b));
        assert_ok(gpu_copy(stream, a, c, 32));
        assert_ok(gpu_read(stream, back, a, 64));
        for (int i = 0; i < 64; i++) assert_int_equal(back[i], i < 32 ? 9 : round);
    }
    gpu_free(gpu, a);
    gpu_free(gpu, b);
    gpu_free(gpu, c);
}

/* What is captured does not run until it is launched, and then with what memory holds by then. */
static void test_graph(void **state)
{
    (void)state;
    NEED_GPU();
    enum { N = 500 };
    float x[N], sums[6], again[6];
    for (int i = 0; i < N; i++) x[i] = (float)(i % 9);
    float *dx = alloc(sizeof x), *dy = alloc(sizeof sums);
    GpuGraph *graph;
    assert_ok(gpu_fill(stream, dy, 0, sizeof sums));
    assert_ok(gpu_stream_wait(stream));
    assert_ok(gpu_capture_begin(stream));
    assert_ok(test_sums(stream, dx, dy, N));
    assert_ok(gpu_capture_end(stream, &graph));
    assert_ok(gpu_read(stream, sums, dy, sizeof sums));
    for (int b = 0; b < 6; b++) assert_true(sums[b] == 0);
    for (int round = 1; round <= 2; round++) {
        assert_ok(gpu_write(stream, dx, x, sizeof x));
        assert_ok(gpu_graph_launch(graph, stream));
        assert_ok(gpu_read(stream, again, dy, sizeof again));
        for (int b = 0; b < 6; b++) {
            float want = 0;
            for (int i = b * 96; i < (b + 1) * 96 && i < N; i++) want += x[i];
            assert_true(again[b] == want);
        }
        for (int i = 0; i < N; i++) x[i] += 1;
    }
    gpu_graph_destroy(graph);
    gpu_free(gpu, dx);
    gpu_free(gpu, dy);
}

static void test_warps(void **state)
{
    (void)state;
    NEED_GPU();
    int got[192], *y = alloc(sizeof got);
    assert_ok(test_lanes(stream, y));
    assert_ok(gpu_read(stream, got, y, sizeof got));
    for (int i = 0; i < 32; i++) {
        assert_int_equal(got[i], 100 + (i + 5) % 32);
        assert_int_equal(got[32 + i], i ^ 3);
        assert_int_equal(got[64 + i], i < 4 ? i : i - 4);
        assert_int_equal(got[96 + i], i + 4 > 31 ? i : i + 4);
        assert_int_equal((unsigned)got[128 + i], 0x49249249u);
        assert_int_equal(got[160 + i], i / 8 * 8 + 2);
    }
    gpu_free(gpu, y);
}

/* What the emulated device finds that a real one may hide. */
static void test_faults_are_seen(void **state)
{
    (void)state;
    NEED_GPU();
    if (!gpu_is_emulated()) skip();
    int got[64], first[64], *y = alloc(sizeof got);
    float lost[32];
    bool differ = false;
    for (int round = 0; round < 3; round++) {
        assert_ok(test_race(stream, y));
        assert_ok(gpu_read(stream, got, y, sizeof got));
        if (round == 0) memcpy(first, got, sizeof got);
        differ |= memcmp(first, got, sizeof got) != 0;
    }
    assert_true(differ);
    assert_ok(test_poison(stream, (float *)(void *)y));
    assert_ok(gpu_read(stream, lost, y, sizeof lost));
    for (int i = 0; i < 32; i++) assert_true(isnan(lost[i]));
    GpuStream *broken;
    assert_ok(gpu_stream_create(gpu, &broken));
    assert_ok(test_stuck(broken, y)); /* the error comes when somebody waits */
    assert_int_equal(gpu_stream_wait(broken), ERR_DEVICE);
    assert_non_null(strstr(status_message(), "wait for others"));
    assert_int_equal(gpu_stream_wait(broken), ERR_DEVICE); /* and stays */
    gpu_stream_destroy(broken);
    gpu_free(gpu, y);
}

/* ---- products ----------------------------------------------------------------------------- */

static double value(const void *data, DType dtype, int64_t i)
{
    return dtype == DTYPE_BF16 ? (double)bf16_to_f32(((const uint16_t *)data)[i])
                               : (double)((const float *)data)[i];
}

static void put(void *data, DType dtype, int64_t i, double x)
{
    if (dtype == DTYPE_BF16)
        ((uint16_t *)data)[i] = bf16_from_f32((float)x);
    else
        ((float *)data)[i] = (float)x;
}

/* Whole numbers, whose sums are exact in f32; rows are a few elements further apart than needed. */
static void check_product(GpuProduct p)
{
    enum { MOST = 64 * 64 };
    static float a[MOST], b[MOST], c[MOST], got[MOST];
    int64_t a_rows = p.a_transposed ? p.k : p.m, b_rows = p.b_transposed ? p.n : p.k;
    p.a_pitch = (p.a_transposed ? p.m : p.k) + 8;
    p.b_pitch = (p.b_transposed ? p.k : p.n) + 8;
    p.c_pitch = p.n + 8;
    assert_true(a_rows * p.a_pitch <= MOST && b_rows * p.b_pitch <= MOST &&
                p.m * p.c_pitch <= MOST);
    for (int64_t i = 0; i < MOST; i++) {
        if (i < a_rows * p.a_pitch) put(a, p.dtype, i, (double)(i * 7 % 5 - 2));
        if (i < b_rows * p.b_pitch) put(b, p.dtype, i, (double)(i * 3 % 7 - 3));
        if (i < p.m * p.c_pitch) put(c, p.c_dtype, i, (double)(i % 4));
    }
    void *da = alloc(sizeof a), *db = alloc(sizeof b), *dc = alloc(sizeof c);
    GpuProductPlan *plan;
    assert_ok(gpu_product_plan(stream, &p, &plan));
    assert_ok(gpu_write(stream, da, a, sizeof a));
    assert_ok(gpu_write(stream, db, b, sizeof b));
    assert_ok(gpu_write(stream, dc, c, sizeof c));
    assert_ok(gpu_product_run(plan, da, db, dc, NULL));
    assert_ok(gpu_read(stream, got, dc, sizeof got));
    for (int64_t i = 0; i < p.m; i++)
        for (int64_t j = 0; j < p.c_pitch; j++) {
            double want = value(c, p.c_dtype, i * p.c_pitch + j);
            if (j < p.n && !p.accumulate) want = 0;
            for (int64_t k = 0; k < p.k && j < p.n; k++)
                want += value(a, p.dtype, p.a_transposed ? k * p.a_pitch + i : i * p.a_pitch + k) *
                        value(b, p.dtype, p.b_transposed ? j * p.b_pitch + k : k * p.b_pitch + j);
            assert_true(value(got, p.c_dtype, i * p.c_pitch + j) == want);
        }
    gpu_product_plan_destroy(plan);
    gpu_free(gpu, da);
    gpu_free(gpu, db);
    gpu_free(gpu, dc);
}

static void test_products(void **state)
{
    (void)state;
    NEED_GPU();
    for (int i = 0; i < 32; i++)
        check_product((GpuProduct){.m = 16,
                                   .n = 24,
                                   .k = 8,
                                   .dtype = i & 1 ? DTYPE_BF16 : DTYPE_F32,
                                   .c_dtype = (i & 1) && (i & 2) ? DTYPE_BF16 : DTYPE_F32,
                                   .a_transposed = i & 4,
                                   .b_transposed = i & 8,
                                   .accumulate = i & 16});
}

/* Of 8 bits: whole numbers that both formats have, scales that are powers of two and differ from
 * block to block, so that sums are exact. */
static void check_scaled(GpuScaling a_scaling, GpuScaling b_scaling, bool accumulate)
{
    enum { M = 144, N = 160, K = 272, BLOCKS = 3, PITCH = 4 };
    static uint8_t a[M * K], b[N * K];
    static float sa[BLOCKS * M], sb[BLOCKS * N], c[M * N], got[M * N];
    static const uint8_t e5m2[] = {0, 0x3c, 0x40, 0xc0, 0xc4}, /* 0 1 2 -2 -4 */
        e4m3[] = {0, 0x38, 0x40, 0xb8, 0x44, 0xc8};            /* 0 1 2 -1 3 -4 */
    static const double wide[] = {0, 1, 2, -2, -4}, narrow[] = {0, 1, 2, -1, 3, -4};
    for (int i = 0; i < M * K; i++) a[i] = e5m2[i * 7 % 5];
    for (int i = 0; i < N * K; i++) b[i] = e4m3[i * 5 % 6];
    for (int i = 0; i < BLOCKS * M; i++) sa[i] = ldexpf(1, i % 5 - 2);
    for (int i = 0; i < BLOCKS * N; i++) sb[i] = ldexpf(1, i % 3 - 1);
    for (int i = 0; i < M * N; i++) c[i] = (float)(i % 4);
    void *da = alloc(sizeof a), *db = alloc(sizeof b), *dc = alloc(sizeof c),
         *dsa = alloc(sizeof sa), *dsb = alloc(sizeof sb), *space = alloc(32 << 20);
    GpuProduct p = {.m = M,
                    .n = N,
                    .k = K,
                    .dtype = DTYPE_F8_E5M2,
                    .c_dtype = DTYPE_F32,
                    .b_transposed = true,
                    .accumulate = accumulate,
                    .a_pitch = K,
                    .b_pitch = K,
                    .c_pitch = N,
                    .workspace_bytes = 32 << 20,
                    .b_dtype = DTYPE_F8_E4M3,
                    .a_scaling = a_scaling,
                    .b_scaling = b_scaling,
                    .scale = {dsa, dsb}};
    GpuProductPlan *plan;
    assert_ok(gpu_product_plan(stream, &p, &plan));
    assert_ok(gpu_write(stream, da, a, sizeof a));
    assert_ok(gpu_write(stream, db, b, sizeof b));
    assert_ok(gpu_write(stream, dc, c, sizeof c));
    assert_ok(gpu_write(stream, dsa, sa, sizeof sa));
    assert_ok(gpu_write(stream, dsb, sb, sizeof sb));
    assert_ok(gpu_product_run_scaled(plan, (const void *[]){da, db}, (const float *[]){dsa, dsb},
                                     dc, space));
    assert_ok(gpu_read(stream, got, dc, sizeof got));
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) {
            double want = accumulate ? (double)c[i * N + j] : 0;
            for (int k = 0; k < K; k++) {
                int block = k / 128;
                double x = wide[(i * K + k) * 7 % 5] * narrow[(j * K + k) * 5 % 6];
                x *= (double)sa[a_scaling == GPU_SCALE_ROW ? i : block * M + i];
                x *= (double)sb[b_scaling == GPU_SCALE_ROW     ? j
                                : b_scaling == GPU_SCALE_BLOCK ? block * N + j
                                                               : j / 128 * PITCH + block];
                want += x;
            }
            assert_true((double)got[i * N + j] == want);
        }
    gpu_product_plan_destroy(plan);
    void *const all[] = {da, db, dc, dsa, dsb, space};
    for (int i = 0; i < COUNT_OF(all); i++) gpu_free(gpu, all[i]);
}

static void test_scaled_products(void **state)
{
    (void)state;
    NEED_GPU();
    if (gpu_check_8_bits(gpu) != OK) skip();
    check_scaled(GPU_SCALE_ROW, GPU_SCALE_ROW, false);
    check_scaled(GPU_SCALE_BLOCK, GPU_SCALE_SQUARE, false);
    check_scaled(GPU_SCALE_BLOCK, GPU_SCALE_BLOCK, true);
}

/* Older GPUs have no such products, later ones no such scales. */
static void test_who_multiplies_8_bits(void **state)
{
    (void)state;
    NEED_GPU();
    if (!gpu_is_emulated()) skip();
    GpuInfo *info = (GpuInfo *)(uintptr_t)gpu_info(gpu);
    static const int capability[][3] = {{8, 0, 0}, {8, 9, 0}, {9, 0, 1}, {10, 0, 0}};
    for (int i = 0; i < COUNT_OF(capability); i++) {
        info->major = capability[i][0];
        info->minor = capability[i][1];
        Status status = gpu_check_8_bits(gpu);
        assert_int_equal(status, capability[i][2] ? OK : ERR_UNSUPPORTED);
        if (status != OK) assert_non_null(strstr(status_message(), "take bf16"));
    }
    info->major = 9;
    info->minor = 0;
}

/* What no device has is refused in our words, before a library is asked. */
static void test_refused_products(void **state)
{
    (void)state;
    const GpuProduct good = {.m = 16,
                             .n = 32,
                             .k = 48,
                             .dtype = DTYPE_F8_E4M3,
                             .c_dtype = DTYPE_BF16,
                             .b_transposed = true,
                             .a_pitch = 48,
                             .b_pitch = 48,
                             .c_pitch = 32,
                             .b_dtype = DTYPE_F8_E4M3,
                             .a_scaling = GPU_SCALE_ROW,
                             .b_scaling = GPU_SCALE_ROW};
    GpuProduct p = good;
    assert_ok(gpu_product_check(&p));
#define REFUSED(change, words)                                                                     \
    p = good;                                                                                      \
    change;                                                                                        \
    assert_int_equal(gpu_product_check(&p), ERR_ARG);                                              \
    assert_non_null(strstr(status_message(), words))
    REFUSED(p.dtype = p.b_dtype = DTYPE_F8_E5M2, "no product of f8_e5m2 with f8_e5m2");
    REFUSED(p.b_dtype = DTYPE_BF16, "no product");
    REFUSED(p.b_transposed = false, "along the sum");
    REFUSED(p.a_transposed = true, "along the sum");
    REFUSED(p.a_scaling = GPU_SCALE_NONE, "are scaled by rows");
    REFUSED(p.b_scaling = GPU_SCALE_BLOCK, "are scaled by rows");
    REFUSED(p.a_scaling = p.b_scaling = GPU_SCALE_SQUARE, "are scaled by rows");
    REFUSED(p.k = 40, "multiples of 16");
    REFUSED(p.n = 24, "multiples of 16");
    REFUSED(p.c_pitch = 36, "multiples of 16");
    REFUSED(p.alignment = 8, "multiples of 16");
#undef REFUSED
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_info),
        cmocka_unit_test(test_copies),
        cmocka_unit_test(test_events),
        cmocka_unit_test(test_graph),
        cmocka_unit_test(test_side),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_warps),
        cmocka_unit_test(test_faults_are_seen),
        cmocka_unit_test(test_products),
        cmocka_unit_test(test_scaled_products),
        cmocka_unit_test(test_who_multiplies_8_bits),
        cmocka_unit_test(test_refused_products),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
