/* Floats of 16 and 8 bits as codes: what dtype.c converts whole tensors with, for kernels that make
 * such numbers themselves. Round to nearest, ties to even. */
#ifndef TENSOR_SMALL_FLOAT_H
#define TENSOR_SMALL_FLOAT_H

#include <math.h>
#include <stdint.h>
#include <string.h>

static inline uint32_t float_bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}

static inline float bits_float(uint32_t u)
{
    float x;
    memcpy(&x, &u, 4);
    return x;
}

/* An IEEE-like float with `mantissa` bits and exponent `bias`; codes without the sign bit. */
typedef struct SmallFloat {
    int mantissa, bias;
    uint32_t max_finite, overflow, nan;
} SmallFloat;

static const SmallFloat f16_format = {10, 15, 0x7bff, 0x7c00, 0x7e00};
static const SmallFloat e5m2_format = {2, 15, 0x7b, 0x7c, 0x7e};
static const SmallFloat e4m3_format = {3, 7, 0x7e, 0x7f, 0x7f};

static inline uint32_t small_encode(SmallFloat f, float x)
{
    uint32_t u = float_bits(x) & 0x7fffffffu;
    int drop = 23 - f.mantissa;
    /* normal: move the exponent, then add a half (less one unless the last kept bit is odd) */
    uint32_t normal = (u - ((uint32_t)(127 - f.bias) << 23) + (1u << (drop - 1)) - 1 +
                       (u >> drop & 1)) >>
                      drop;
    /* subnormal: adding a number whose last bit is our smallest step makes the adder round */
    uint32_t magic = (uint32_t)(127 + 1 - f.bias - f.mantissa + 23) << 23;
    uint32_t subnormal = float_bits(bits_float(u) + bits_float(magic)) - magic;
    uint32_t code = u < (uint32_t)(127 + 1 - f.bias) << 23 ? subnormal : normal;
    code = code > f.max_finite ? f.overflow : code;
    return u > 0x7f800000u ? f.nan : code;
}

static inline float small_decode(SmallFloat f, uint32_t code)
{
    uint32_t normal = (code << (23 - f.mantissa)) + ((uint32_t)(127 - f.bias) << 23);
    float step = bits_float((uint32_t)(127 + 1 - f.bias - f.mantissa) << 23);
    float x = code >> f.mantissa ? bits_float(normal) : (float)code * step;
    if (code > f.max_finite) x = code == f.overflow && f.overflow != f.nan ? INFINITY : NAN;
    return x;
}

static inline uint16_t f16_from_f32(float x)
{
    return (uint16_t)(float_bits(x) >> 16 & 0x8000u) | (uint16_t)small_encode(f16_format, x);
}
static inline float f16_to_f32(uint16_t h)
{
    return bits_float(float_bits(small_decode(f16_format, h & 0x7fffu)) | (uint32_t)(h & 0x8000u)
                                                                              << 16);
}
static inline uint8_t f8_from_f32(SmallFloat f, float x)
{
    return (uint8_t)((float_bits(x) >> 24 & 0x80u) | small_encode(f, x));
}
/* The same, but what is beyond the largest finite number becomes that number; NaN stays NaN. */
static inline uint8_t f8_from_f32_saturated(SmallFloat f, float x)
{
    uint32_t bits = float_bits(x), magnitude = bits & 0x7fffffffu, code = small_encode(f, x);
    code = code > f.max_finite && magnitude <= 0x7f800000u ? f.max_finite : code;
    return (uint8_t)((bits >> 24 & 0x80u) | code);
}
static inline float f8_to_f32(SmallFloat f, uint8_t h)
{
    return bits_float(float_bits(small_decode(f, h & 0x7fu)) | (uint32_t)(h & 0x80u) << 24);
}

#endif
