/* Every value of the small types, and rounding against a search in double precision. */
#include "tensor/small_float.h"
#include "tensor/tensor.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <setjmp.h>
#include <cmocka.h>

typedef struct Small {
    DType dtype;
    int exponent_bits, mantissa_bits;
    bool has_infinity;
} Small;
static const Small smalls[] = {
    {DTYPE_BF16, 8, 7, true},
    {DTYPE_F16, 5, 10, true},
    {DTYPE_F8_E5M2, 5, 2, true},
    {DTYPE_F8_E4M3, 4, 3, false},
};

/* The value of a code, straight from the definition. */
static double value_of(const Small *s, uint32_t code)
{
    int bias = (1 << (s->exponent_bits - 1)) - 1, top = (1 << s->exponent_bits) - 1;
    uint32_t sign = code >> (s->exponent_bits + s->mantissa_bits) & 1;
    int e = (int)(code >> s->mantissa_bits) & top, m = (int)code & ((1 << s->mantissa_bits) - 1);
    double x = e ? ldexp(m + (1 << s->mantissa_bits), e - bias - s->mantissa_bits)
                 : ldexp(m, 1 - bias - s->mantissa_bits);
    if (e == top && s->has_infinity) x = m ? (double)NAN : (double)INFINITY;
    if (e == top && !s->has_infinity && m == (1 << s->mantissa_bits) - 1) x = (double)NAN;
    return sign ? -x : x;
}

static uint32_t get(DType dtype, const void *p)
{
    uint16_t h = 0;
    memcpy(&h, p, dtype_bytes(dtype));
    return h;
}

static void every_code_round_trips(void **state)
{
    (void)state;
    for (int t = 0; t < COUNT_OF(smalls); t++) {
        const Small *s = &smalls[t];
        size_t bytes = dtype_bytes(s->dtype);
        uint32_t n = 1u << (8 * bytes);
        for (int wide = 0; wide < 2; wide++) {
            DType between = wide ? DTYPE_F64 : DTYPE_F32;
            for (uint32_t code = 0; code < n; code++) {
                float f = 0;
                double d = 0;
                void *mid = wide ? (void *)&d : (void *)&f;
                uint16_t back = 0;
                assert_int_equal(dtype_convert(s->dtype, &code, between, mid, 1), OK);
                if (!wide) d = (double)f;
                double expected = value_of(s, code);
                if (isnan(expected)) {
                    assert_true(isnan(d));
                } else {
                    assert_true(d == expected && signbit(d) == signbit(expected));
                }
                assert_int_equal(dtype_convert(between, mid, s->dtype, &back, 1), OK);
                if (isnan(expected))
                    assert_true(isnan(value_of(s, back)));
                else
                    assert_int_equal(back, code);
            }
        }
    }
}

/* Between each two neighbours: the middle goes to the even code, a hair beside it to the nearer
 * one. */
static void ties_go_to_even(void **state)
{
    (void)state;
    for (int t = 0; t < COUNT_OF(smalls); t++) {
        const Small *s = &smalls[t];
        for (uint32_t code = 0;; code++) {
            double a = value_of(s, code), b = value_of(s, code + 1);
            bool last = isnan(b) || isinf(b); /* beyond it lies what would be the next number */
            if (last) b = a + (a - value_of(s, code - 1));
            double middle = (a + b) / 2;
            uint32_t even = code % 2 == 0 ? code : code + 1;
            for (int sign = 0; sign < 2; sign++) {
                uint32_t sign_bit = sign ? 1u << (s->exponent_bits + s->mantissa_bits) : 0;
                double x[5] = {middle, nextafter(middle, a), nextafter(middle, b), a,
                               nextafter(a, b)};
                uint32_t expected[5] = {even, code, code + 1, code, code};
                uint16_t out16[5];
                uint8_t out8[5], *out = dtype_bytes(s->dtype) == 1 ? out8 : (uint8_t *)out16;
                for (int i = 0; i < 5; i++) x[i] = sign ? -x[i] : x[i];
                assert_int_equal(dtype_convert(DTYPE_F64, x, s->dtype, out, 5), OK);
                for (int i = 0; i < 5; i++)
                    assert_int_equal(get(s->dtype, out + (size_t)i * dtype_bytes(s->dtype)),
                                     expected[i] | sign_bit);
                /* the same through f32, whose neighbours are further apart */
                float y[3] = {(float)x[0], nextafterf((float)x[0], sign ? -(float)a : (float)a),
                              nextafterf((float)x[0], sign ? -(float)b : (float)b)};
                if ((double)y[0] != x[0]) continue; /* below f32's smallest step */
                assert_int_equal(dtype_convert(DTYPE_F32, y, s->dtype, out, 3), OK);
                for (int i = 0; i < 3; i++)
                    assert_int_equal(get(s->dtype, out + (size_t)i * dtype_bytes(s->dtype)),
                                     expected[i] | sign_bit);
            }
            if (last) break;
        }
    }
}

/* As a cast, but for what is beyond the largest number: that becomes the largest. */
static void saturation(void **state)
{
    (void)state;
    static const DType types[] = {DTYPE_F8_E4M3, DTYPE_F8_E5M2};
    for (int t = 0; t < 2; t++)
        for (uint32_t h = 0; h < 1u << 16; h++) {
            SmallFloat format = t ? e5m2_format : e4m3_format;
            float x = bf16_to_f32((uint16_t)h);
            uint8_t cast, code = f8_from_f32_saturated(format, x);
            assert_int_equal(dtype_convert(DTYPE_F32, &x, types[t], &cast, 1), OK);
            bool beyond = (cast & 0x7fu) > format.max_finite;
            if (beyond && !isnan(x))
                assert_int_equal(code, (cast & 0x80u) | format.max_finite);
            else
                assert_int_equal(code, cast);
        }
}

static void beyond_the_range(void **state)
{
    (void)state;
    float huge[5] = {3.4e38f, INFINITY, -INFINITY, NAN, -1e-45f};
    uint16_t h[5];
    uint8_t b[5];
    assert_int_equal(dtype_convert(DTYPE_F32, huge, DTYPE_F16, h, 5), OK);
    assert_int_equal(h[0], 0x7c00);
    assert_int_equal(h[1], 0x7c00);
    assert_int_equal(h[2], 0xfc00);
    assert_int_equal(h[3] & 0x7e00, 0x7e00);
    assert_int_equal(h[4], 0x8000);
    assert_int_equal(dtype_convert(DTYPE_F32, huge, DTYPE_F8_E4M3, b, 5), OK);
    assert_int_equal(b[0], 0x7f);
    assert_int_equal(b[1], 0x7f);
    assert_int_equal(b[2], 0xff);
    assert_int_equal(dtype_convert(DTYPE_F32, huge, DTYPE_F8_E5M2, b, 5), OK);
    assert_int_equal(b[0], 0x7c);
    assert_int_equal(b[2], 0xfc);
    double far[2] = {1e300, -1e300};
    float f[2];
    assert_int_equal(dtype_convert(DTYPE_F64, far, DTYPE_F32, f, 2), OK);
    assert_true(isinf(f[0]) && f[1] < 0);
    assert_int_equal(dtype_convert(DTYPE_F64, far, DTYPE_BF16, h, 2), OK);
    assert_int_equal(h[0], 0x7f80);
    assert_int_equal(h[1], 0xff80);
}

/* Rounding to f32 first and to bf16 then would give 1: the tie is seen only in double precision. */
static void no_double_rounding(void **state)
{
    (void)state;
    double x = 1 + 0x1p-8 + 0x1p-40;
    uint16_t h;
    assert_int_equal(dtype_convert(DTYPE_F64, &x, DTYPE_BF16, &h, 1), OK);
    assert_int_equal(h, 0x3f81);
    int64_t big = (INT64_C(1) << 60) + (INT64_C(1) << 36) + 1;
    float f;
    assert_int_equal(dtype_convert(DTYPE_I64, &big, DTYPE_F32, &f, 1), OK);
    assert_true(f == (float)big && f > 0x1p60f);
}

static void integers(void **state)
{
    (void)state;
    double d[8] = {2.5, 3.5, -2.5, 1e30, -1e30, (double)NAN, 200.4, -0.5};
    int8_t i8[8];
    uint8_t u8[8];
    int32_t i32[8];
    int64_t i64[8];
    static const int8_t e8[8] = {2, 4, -2, 127, -128, 0, 127, 0};
    static const uint8_t eu[8] = {2, 4, 0, 255, 0, 0, 200, 0};
    static const int32_t e32[8] = {2, 4, -2, INT32_MAX, INT32_MIN, 0, 200, 0};
    static const int64_t e64[8] = {2, 4, -2, INT64_MAX, INT64_MIN, 0, 200, 0};
    float f[8];
    assert_int_equal(dtype_convert(DTYPE_F64, d, DTYPE_F32, f, 8), OK);
    for (int from = 0; from < 2; from++) {
        DType type = from ? DTYPE_F32 : DTYPE_F64;
        const void *in = from ? (const void *)f : (const void *)d;
        assert_int_equal(dtype_convert(type, in, DTYPE_I8, i8, 8), OK);
        assert_int_equal(dtype_convert(type, in, DTYPE_U8, u8, 8), OK);
        assert_int_equal(dtype_convert(type, in, DTYPE_I32, i32, 8), OK);
        assert_int_equal(dtype_convert(type, in, DTYPE_I64, i64, 8), OK);
        assert_memory_equal(i8, e8, sizeof e8);
        assert_memory_equal(u8, eu, sizeof eu);
        assert_memory_equal(i32, e32, sizeof e32);
        assert_memory_equal(i64, e64, sizeof e64);
    }
    assert_int_equal(dtype_convert(DTYPE_I32, i32, DTYPE_F64, d, 8), OK);
    assert_true(d[3] == INT32_MAX && d[4] == INT32_MIN);
    assert_int_equal(dtype_convert(DTYPE_I8, i8, DTYPE_F32, f, 8), OK);
    assert_true(f[4] == -128);
}

/* Each pair answers, and one that cannot is a sentence. */
static void every_pair(void **state)
{
    (void)state;
    uint8_t in[8 * 3] = {0}, out[8 * 3];
    for (int from = 0; from < DTYPE_COUNT; from++)
        for (int to = 0; to < DTYPE_COUNT; to++) {
            bool from_integer = from >= DTYPE_I8, to_integer = to >= DTYPE_I8;
            bool allowed = from == to || (!from_integer && !to_integer) ||
                           (from_integer && (to == DTYPE_F32 || to == DTYPE_F64)) ||
                           (to_integer && (from == DTYPE_F32 || from == DTYPE_F64));
            memset(out, 0xaa, sizeof out);
            assert_int_equal(dtype_convert((DType)from, in, (DType)to, out, 3),
                             allowed ? OK : ERR_UNSUPPORTED);
            for (size_t i = 0; i < 3 * dtype_bytes((DType)to); i++)
                assert_int_equal(out[i], allowed ? 0 : 0xaa);
            for (size_t i = 3 * dtype_bytes((DType)to); i < sizeof out; i++)
                assert_int_equal(out[i], 0xaa);
        }
}

/* Large (parallel, ragged end, unaligned) equals one by one. */
static void large_and_unaligned(void **state)
{
    (void)state;
    enum { N = 300007 };
    uint8_t *in = xmalloc(2 * N + 1), *out = xmalloc(4 * N + 3);
    for (size_t i = 0; i < 2 * N + 1; i++) in[i] = (uint8_t)(rng_u64(5, i));
    assert_int_equal(dtype_convert(DTYPE_F16, in + 1, DTYPE_F32, out + 3, N), OK);
    for (size_t i = 0; i < N; i++) {
        float one;
        assert_int_equal(dtype_convert(DTYPE_F16, in + 1 + 2 * i, DTYPE_F32, &one, 1), OK);
        assert_memory_equal(&one, out + 3 + 4 * i, 4);
    }
    assert_int_equal(dtype_convert(DTYPE_F16, in, DTYPE_F32, out, 0), OK);
    free(in);
    free(out);
}

static void names(void **state)
{
    (void)state;
    for (int i = 0; i < DTYPE_COUNT; i++) {
        DType d = DTYPE_COUNT;
        assert_true(dtype_from_name(dtype_name((DType)i), &d) && (int)d == i);
        assert_true(dtype_from_safetensors_name(dtype_safetensors_name((DType)i), &d) &&
                    (int)d == i);
    }
    DType d = DTYPE_I8;
    assert_false(dtype_from_name("BF16", &d) || dtype_from_safetensors_name("bf16", &d) ||
                 dtype_from_name("", &d));
    assert_int_equal(d, DTYPE_I8);
    assert_int_equal(dtype_bytes(DTYPE_F8_E4M3), 1);
    assert_int_equal(dtype_bytes(DTYPE_I64), 8);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_code_round_trips),
        cmocka_unit_test(ties_go_to_even),
        cmocka_unit_test(saturation),
        cmocka_unit_test(beyond_the_range),
        cmocka_unit_test(no_double_rounding),
        cmocka_unit_test(integers),
        cmocka_unit_test(every_pair),
        cmocka_unit_test(large_and_unaligned),
        cmocka_unit_test(names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
