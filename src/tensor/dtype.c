/* Element types and their conversions.
 *
 * Small floats round to nearest, ties to even. Beyond the largest finite number f16, bf16 and
 * f8_e5m2 become infinite; f8_e4m3 has no infinity and becomes NaN (a cast never hides an overflow:
 * scale first). Integers round to nearest even and stay inside their range; NaN becomes 0.
 * Data may be unaligned (a tensor in a file starts anywhere): elements move through memcpy, which
 * compiles to plain loads and still vectorises. */
#include "tensor/small_float.h"
#include "tensor/tensor.h"

#include <math.h>
#include <string.h>

typedef struct DTypeInfo {
    const char *name, *safetensors;
    size_t bytes;
} DTypeInfo;

static const DTypeInfo infos[DTYPE_COUNT] = {
#define X(id, name, st, bits) [DTYPE_##id] = {name, st, (bits) / 8},
    DTYPE_LIST(X)
#undef X
};

static const DTypeInfo *info(DType dtype)
{
    CHECK((unsigned)dtype < DTYPE_COUNT);
    return &infos[dtype];
}

const char *dtype_name(DType dtype) { return info(dtype)->name; }
const char *dtype_safetensors_name(DType dtype) { return info(dtype)->safetensors; }
size_t dtype_bytes(DType dtype) { return info(dtype)->bytes; }

bool dtype_from_name(const char *name, DType *dtype)
{
    for (int i = 0; i < DTYPE_COUNT; i++) {
        if (strcmp(infos[i].name, name) != 0) continue;
        *dtype = (DType)i;
        return true;
    }
    return false;
}

bool dtype_from_safetensors_name(const char *name, DType *dtype)
{
    for (int i = 0; i < DTYPE_COUNT; i++) {
        if (strcmp(infos[i].safetensors, name) != 0) continue;
        *dtype = (DType)i;
        return true;
    }
    return false;
}

/* ---- one element ------------------------------------------------------------------------ */

/* f64 to f32 with "round to odd": cut off, and set the last bit when anything was lost. Rounding
 * that once more to a smaller type equals rounding the f64 directly. */
static inline float f32_odd_from_f64(double x)
{
    float y = (float)x;
    if (isnan(x) || (double)y == x || (isinf(y) && isinf(x))) return y;
    uint32_t u = float_bits(y);
    if (fabs((double)y) > fabs(x)) u--; /* was rounded away from zero */
    return bits_float(u | 1);
}

static inline double clamp_round(double x, double low, double high)
{
    if (!(x == x)) return 0;
    x = rint(x);
    return x < low ? low : x > high ? high : x;
}

/* ---- a block ---------------------------------------------------------------------------- */

#define LOAD_LOOP(T, expression)                                                                   \
    for (int64_t i = 0; i < n; i++) {                                                              \
        T v;                                                                                       \
        memcpy(&v, (const uint8_t *)in + (size_t)i * sizeof v, sizeof v);                          \
        out[i] = (expression);                                                                     \
    }                                                                                              \
    break
#define STORE_LOOP(T, expression)                                                                  \
    for (int64_t i = 0; i < n; i++) {                                                              \
        T v = (T)(expression);                                                                     \
        memcpy((uint8_t *)out + (size_t)i * sizeof v, &v, sizeof v);                               \
    }                                                                                              \
    break

static void load_f32(DType from, const void *in, float *out, int64_t n)
{
    switch (from) {
    case DTYPE_F32: memcpy(out, in, (size_t)n * 4); break;
    case DTYPE_BF16: LOAD_LOOP(uint16_t, bf16_to_f32(v));
    case DTYPE_F16: LOAD_LOOP(uint16_t, f16_to_f32(v));
    case DTYPE_F8_E4M3: LOAD_LOOP(uint8_t, f8_to_f32(e4m3_format, v));
    case DTYPE_F8_E5M2: LOAD_LOOP(uint8_t, f8_to_f32(e5m2_format, v));
    case DTYPE_I8: LOAD_LOOP(int8_t, (float)v);
    case DTYPE_U8: LOAD_LOOP(uint8_t, (float)v);
    case DTYPE_I32: LOAD_LOOP(int32_t, (float)v);
    case DTYPE_I64: LOAD_LOOP(int64_t, (float)v);
    case DTYPE_F64: LOAD_LOOP(double, (float)v);
    case DTYPE_COUNT: break;
    }
}

static void load_f64(DType from, const void *in, double *out, int64_t n)
{
    switch (from) {
    case DTYPE_F64: memcpy(out, in, (size_t)n * 8); break;
    case DTYPE_F32: LOAD_LOOP(float, (double)v);
    case DTYPE_BF16: LOAD_LOOP(uint16_t, (double)bf16_to_f32(v));
    case DTYPE_F16: LOAD_LOOP(uint16_t, (double)f16_to_f32(v));
    case DTYPE_F8_E4M3: LOAD_LOOP(uint8_t, (double)f8_to_f32(e4m3_format, v));
    case DTYPE_F8_E5M2: LOAD_LOOP(uint8_t, (double)f8_to_f32(e5m2_format, v));
    case DTYPE_I8: LOAD_LOOP(int8_t, (double)v);
    case DTYPE_U8: LOAD_LOOP(uint8_t, (double)v);
    case DTYPE_I32: LOAD_LOOP(int32_t, (double)v);
    case DTYPE_I64: LOAD_LOOP(int64_t, (double)v);
    case DTYPE_COUNT: break;
    }
}

static void store_f32(DType to, const float *in, void *out, int64_t n)
{
    switch (to) {
    case DTYPE_F32: memcpy(out, in, (size_t)n * 4); break;
    case DTYPE_BF16: STORE_LOOP(uint16_t, bf16_from_f32(in[i]));
    case DTYPE_F16: STORE_LOOP(uint16_t, f16_from_f32(in[i]));
    case DTYPE_F8_E4M3: STORE_LOOP(uint8_t, f8_from_f32(e4m3_format, in[i]));
    case DTYPE_F8_E5M2: STORE_LOOP(uint8_t, f8_from_f32(e5m2_format, in[i]));
    case DTYPE_I8: STORE_LOOP(int8_t, clamp_round((double)in[i], -128, 127));
    case DTYPE_U8: STORE_LOOP(uint8_t, clamp_round((double)in[i], 0, 255));
    case DTYPE_F64:
    case DTYPE_I32:
    case DTYPE_I64:
    case DTYPE_COUNT: break; /* through f64 */
    }
}

static int64_t i64_from_f64(double x)
{
    if (!(x == x)) return 0;
    x = rint(x);
    return x >= 0x1p63 ? INT64_MAX : x < -0x1p63 ? INT64_MIN : (int64_t)x;
}

static void store_f64(DType to, const double *in, void *out, int64_t n)
{
    switch (to) {
    case DTYPE_F64: memcpy(out, in, (size_t)n * 8); break;
    case DTYPE_F32: STORE_LOOP(float, in[i]);
    case DTYPE_BF16: STORE_LOOP(uint16_t, bf16_from_f32(f32_odd_from_f64(in[i])));
    case DTYPE_F16: STORE_LOOP(uint16_t, f16_from_f32(f32_odd_from_f64(in[i])));
    case DTYPE_F8_E4M3: STORE_LOOP(uint8_t, f8_from_f32(e4m3_format, f32_odd_from_f64(in[i])));
    case DTYPE_F8_E5M2: STORE_LOOP(uint8_t, f8_from_f32(e5m2_format, f32_odd_from_f64(in[i])));
    case DTYPE_I8: STORE_LOOP(int8_t, clamp_round(in[i], -128, 127));
    case DTYPE_U8: STORE_LOOP(uint8_t, clamp_round(in[i], 0, 255));
    case DTYPE_I32: STORE_LOOP(int32_t, clamp_round(in[i], INT32_MIN, INT32_MAX));
    case DTYPE_I64: STORE_LOOP(int64_t, i64_from_f64(in[i]));
    case DTYPE_COUNT: break;
    }
}

/* ---- a tensor --------------------------------------------------------------------------- */

enum { BLOCK = 2048, PARALLEL_FROM = 1 << 17 };

static bool is_integer(DType d)
{
    return d == DTYPE_I8 || d == DTYPE_U8 || d == DTYPE_I32 || d == DTYPE_I64;
}
static bool is_wide(DType d) { return d == DTYPE_F64 || d == DTYPE_I32 || d == DTYPE_I64; }
static bool is_f32_or_f64(DType d) { return d == DTYPE_F32 || d == DTYPE_F64; }

static void convert_block(DType from, const void *in, DType to, void *out, int64_t n)
{
    /* what fits exactly through f32 goes through f32; i64 to f32 would round twice through f64 */
    bool through_f64 = is_wide(to) || (is_wide(from) && to != DTYPE_F32);
    union {
        float f32[BLOCK];
        double f64[BLOCK];
    } between;
    if (!through_f64) {
        load_f32(from, in, between.f32, n);
        store_f32(to, between.f32, out, n);
    } else {
        load_f64(from, in, between.f64, n);
        store_f64(to, between.f64, out, n);
    }
}

Status dtype_convert(DType from, const void *in, DType to, void *out, int64_t n)
{
    if (from == to) {
        if (n > 0) memmove(out, in, (size_t)n * dtype_bytes(to));
        return OK;
    }
    if ((is_integer(from) && !is_f32_or_f64(to)) || (is_integer(to) && !is_f32_or_f64(from)))
        return fail(ERR_UNSUPPORTED, "%s cannot be converted to %s directly; go through f32 or f64",
                    dtype_name(from), dtype_name(to));
    size_t from_bytes = dtype_bytes(from), to_bytes = dtype_bytes(to);
    int64_t blocks = (n + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(static) if (n >= PARALLEL_FROM)
    for (int64_t b = 0; b < blocks; b++) {
        size_t at = (size_t)b * BLOCK;
        convert_block(from, (const uint8_t *)in + at * from_bytes, to,
                      (uint8_t *)out + at * to_bytes, min_i64(BLOCK, n - (int64_t)at));
    }
    return OK;
}
