/* Hopper's instructions (hopper.cuh) one by one, against plain loops: on the emulated device, or on
 * a GPU of compute capability 9.0 where the tests were built for one. What no kernel may do, the
 * emulated device must find. */
#include "gpu/gpu.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* hopper_test.cu */
bool test_hopper_has(GpuStream *stream);
Status test_product(GpuStream *stream, const void *a, const void *b, float *d, int n, bool by_m,
                    bool by_n, bool registers);
Status test_swizzle(GpuStream *stream, const void *a, const void *b, float *d, int line_bytes,
                    bool by_n);
Status test_box(GpuStream *stream, const void *from, const int size[4], const int at[4], void *to);
Status test_fault(GpuStream *stream, const void *from, float *to, int which);

enum { DEPTH = 64, ROWS = 64, MOST = 256 };

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
    return 0;
}

#define NEED_HOPPER()                                                                              \
    if (!gpu || !test_hopper_has(stream)) skip()
#define assert_ok(call) assert_int_equal((call), OK)

/* n small numbers that bf16 holds, on the host and on the device. */
typedef struct Numbers {
    uint16_t bits[MOST * DEPTH];
    float value[MOST * DEPTH];
    void *device;
} Numbers;

static void numbers_make(Numbers *x, int n, int seed)
{
    for (int i = 0; i < n; i++) {
        x->value[i] = (float)((i * 37 + seed * 11 + i / 64 * 5) % 31 - 15) / 4;
        x->bits[i] = bf16_from_f32(x->value[i]);
    }
    assert_ok(gpu_alloc(gpu, (size_t)n * 2, "a test", &x->device));
    assert_ok(gpu_write(stream, x->device, x->bits, (size_t)n * 2));
}

/* All are sums of products of quarters: exact. */
static void check_product(int n, bool by_m, bool by_n, bool registers)
{
    static Numbers a, b;
    static float d[ROWS * MOST], before[ROWS * MOST];
    void *device;
    numbers_make(&a, ROWS * DEPTH, 1);
    numbers_make(&b, n * DEPTH, 2);
    for (int i = 0; i < ROWS * n; i++) before[i] = (float)(i % 7);
    assert_ok(gpu_alloc(gpu, sizeof d, "a test", &device));
    assert_ok(gpu_write(stream, device, before, sizeof before));
    assert_ok(test_product(stream, a.device, b.device, device, n, by_m, by_n, registers));
    assert_ok(gpu_read(stream, d, device, sizeof d));
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < n; j++) {
            float sum = before[i * n + j];
            for (int k = 0; k < DEPTH; k++)
                sum += a.value[by_m ? k * ROWS + i : i * DEPTH + k] *
                       b.value[by_n ? k * n + j : j * DEPTH + k];
            if (d[i * n + j] != sum)
                fail_msg("n %d, by m %d, by n %d, registers %d: [%d %d] is %g, not %g", n, by_m,
                         by_n, registers, i, j, (double)d[i * n + j], (double)sum);
        }
    gpu_free(gpu, a.device);
    gpu_free(gpu, b.device);
    gpu_free(gpu, device);
}

static void test_products(void **state)
{
    (void)state;
    NEED_HOPPER();
    for (int n = 64; n <= 256; n *= 2)
        for (int by_n = 0; by_n < 2; by_n++) {
            check_product(n, false, by_n, false);
            check_product(n, true, by_n, false);
            if (n < 256) check_product(n, false, by_n, true);
        }
}

/* b is small numbers [64 16], rows along n. */
static void test_swizzles(void **state)
{
    (void)state;
    NEED_HOPPER();
    static Numbers a, b;
    static float d[ROWS * ROWS];
    void *device;
    numbers_make(&a, ROWS * DEPTH, 3);
    numbers_make(&b, 64 * 16, 4);
    assert_ok(gpu_alloc(gpu, sizeof d, "a test", &device));
    for (int line = 16; line <= 128; line *= 2)
        for (int by_n = 0; by_n < 2; by_n++) {
            assert_ok(test_swizzle(stream, a.device, b.device, device, line, by_n));
            assert_ok(gpu_read(stream, d, device, sizeof d));
            for (int i = 0; i < ROWS; i++)
                for (int j = 0; j < 64; j++) {
                    float sum = 0;
                    for (int k = 0; k < 16; k++)
                        sum += a.value[i * DEPTH + k] * b.value[j * 16 + k];
                    if (d[i * 64 + j] != sum)
                        fail_msg("lines of %d bytes, by n %d: [%d %d] is %g, not %g", line, by_n, i,
                                 j, (double)d[i * 64 + j], (double)sum);
                }
        }
    gpu_free(gpu, a.device);
    gpu_free(gpu, b.device);
    gpu_free(gpu, device);
}

/* Every element of a box in its place, zeros outside of the tensor, on all sides. */
static void test_boxes(void **state)
{
    (void)state;
    NEED_HOPPER();
    enum { LINES = 24 }; /* boxes of 64 x 3 x 2 x 4 */
    static const int size[4] = {72, 5, 3, 6};
    static const int at[][4] = {{0, 0, 0, 0}, {8, 2, 1, 2}, {64, 3, 2, 4}, {-8, -1, -1, -2}};
    static uint16_t x[72 * 5 * 3 * 6], box[LINES * 64];
    void *from, *to;
    for (int i = 0; i < COUNT_OF(x); i++) x[i] = (uint16_t)(i + 1);
    assert_ok(gpu_alloc(gpu, sizeof x, "a test", &from));
    assert_ok(gpu_alloc(gpu, sizeof box, "a test", &to));
    assert_ok(gpu_write(stream, from, x, sizeof x));
    for (int c = 0; c < COUNT_OF(at); c++) {
        assert_ok(test_box(stream, from, size, at[c], to));
        assert_ok(gpu_read(stream, box, to, sizeof box));
        for (int i = 0; i < LINES * 64; i++) {
            int line = i / 64, column = i % 64, piece = (column / 8) ^ (line % 8), j[4];
            j[0] = at[c][0] + column;
            j[1] = at[c][1] + line % 3;
            j[2] = at[c][2] + line / 3 % 2;
            j[3] = at[c][3] + line / 6;
            bool there = true;
            for (int a = 0; a < 4; a++) there = there && j[a] >= 0 && j[a] < size[a];
            uint16_t wanted = there ? x[((j[3] * 3 + j[2]) * 5 + j[1]) * 72 + j[0]] : 0;
            assert_int_equal(box[line * 64 + piece * 8 + column % 8], wanted);
        }
    }
    gpu_free(gpu, from);
    gpu_free(gpu, to);
}

/* What goes wrong in hopper_test.cu's fault_kernel, and what must come of it: words of the error,
 * or NULL for results that are not numbers. */
static const struct {
    const char *what, *words;
} faults[] = {
    {"nothing", ""},
    {"a copy is not waited for", NULL},
    {"a product is not waited for", NULL},
    {"a buffer is filled anew too early", NULL},
    {"no fence", "no fence between"},
    {"sums are touched", "sums were written"},
    {"a warp's own product", "different products"},
    {"too few bytes", "do not come"},
    {"too many bytes", "more bytes arrive"},
    {"a copy is left", "copies have arrived"},
    {"a product is left", "products are waited for"},
};

static void test_faults(void **state)
{
    (void)state;
    NEED_HOPPER();
    if (!gpu_is_emulated()) skip();
    static Numbers a;
    static float d[ROWS * ROWS];
    for (int which = 0; which < COUNT_OF(faults); which++) {
        void *device;
        GpuStream *own; /* an error stays with its stream */
        assert_ok(gpu_stream_create(gpu, &own));
        numbers_make(&a, ROWS * DEPTH, which);
        assert_ok(gpu_alloc(gpu, sizeof d, "a test", &device));
        assert_ok(gpu_stream_wait(stream));
        for (int order = 0; order < 3; order++) assert_ok(test_fault(own, a.device, device, which));
        Status status = gpu_read(own, d, device, sizeof d);
        const char *words = faults[which].words;
        bool found = words && *words ? status == ERR_DEVICE && strstr(status_message(), words)
                                     : status == OK;
        if (!found)
            fail_msg("%s: %s", faults[which].what,
                     status == OK ? "found by nobody" : status_message());
        for (int i = 0; status == OK && i < COUNT_OF(d); i++) {
            float sum = 0;
            for (int k = 0; k < DEPTH; k++)
                sum += a.value[i / ROWS * DEPTH + k] * a.value[i % ROWS * DEPTH + k];
            if (words ? d[i] != sum : !isnan(d[i]))
                fail_msg("%s: [%d] is %g", faults[which].what, i, (double)d[i]);
        }
        gpu_stream_destroy(own);
        gpu_free(gpu, a.device);
        gpu_free(gpu, device);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_products),
        cmocka_unit_test(test_swizzles),
        cmocka_unit_test(test_boxes),
        cmocka_unit_test(test_faults),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
