/* Sums of squares of f32 numbers without any rounding, as one long integer: additions of integers
 * may be made in any order, so that the sum over all gradients is the same bits however they are
 * cut and shared out. Internal to ops/.
 *
 * A finite x is m 2^(e - 150) with a whole m below 2^24 and 1 <= e <= 254, so x^2 is m^2 2^(2e -
 * 300), a multiple of 2^-298. Digit j of the integer counts 2^(16 j - 298). What is added to a
 * digit is below 2^32, so that 2^31 squares fit before carries must be made (Neal 2015, Fast exact
 * summation using small and large superaccumulators, does the same for doubles).
 *
 *     ExactSum sum = {0};
 *     exact_add_squares(&sum, x, n);        ... on any rank, in any order; exact_add(&sum, &other)
 *     double total = exact_value(&sum);     NaN if any x was not finite */
#ifndef OPS_EXACT_SUM_H
#define OPS_EXACT_SUM_H

#include "base/base.h"
#include "ops/device_too.h"

#include <math.h>
#include <string.h>

enum {
    EXACT_DIGIT_BITS = 16,
    EXACT_DIGITS = 38,   /* 506 + 48 bits of the largest square, and room for 2^54 of them */
    EXACT_LOWEST = -298, /* what digit 0 counts, as a power of two */
    EXACT_WORDS = EXACT_DIGITS +
                  1, /* digits with their carries made, then whether anything was not finite */
    EXACT_AT_ONCE = 1 << 30, /* squares between carries */
};

typedef struct ExactSum {
    int64_t digit[EXACT_DIGITS];
    bool bad; /* something was not finite */
} ExactSum;

/* Makes every digit one of 0 .. 65535 again; the value stays, and has one form only. */
DEVICE_TOO static inline void exact_carry(ExactSum *s)
{
    int64_t carry = 0;
    for (int j = 0; j < EXACT_DIGITS; j++) {
        int64_t v = s->digit[j] + carry;
        s->digit[j] = v & ((1 << EXACT_DIGIT_BITS) - 1);
        carry = v >> EXACT_DIGIT_BITS;
    }
}

DEVICE_TOO static inline void exact_add_bits(ExactSum *s, uint32_t bits)
{
    uint32_t exponent = bits >> 23 & 0xff, m = bits & 0x7fffff;
    if (exponent == 0xff) {
        s->bad = true;
        return;
    }
    if (exponent)
        m |= 0x800000;
    else
        exponent = 1;
    uint32_t place = 2 * (exponent - 1);
    uint64_t square = ((uint64_t)m * m) << (place % EXACT_DIGIT_BITS);
    int64_t *at = s->digit + place / EXACT_DIGIT_BITS;
    at[0] += (int64_t)(square & 0xffffffff);
    at[2] += (int64_t)(square >> 32);
}

static inline void exact_add_squares(ExactSum *s, const float *x, int64_t n)
{
    for (int64_t first = 0; first < n; first += EXACT_AT_ONCE) {
        int64_t end = n - first < EXACT_AT_ONCE ? n : first + EXACT_AT_ONCE;
        for (int64_t i = first; i < end; i++) {
            uint32_t bits;
            memcpy(&bits, x + i, sizeof bits);
            exact_add_bits(s, bits);
        }
        exact_carry(s);
    }
}

/* bf16 is the upper half of an f32. */
static inline void exact_add_squares_bf16(ExactSum *s, const uint16_t *x, int64_t n)
{
    for (int64_t first = 0; first < n; first += EXACT_AT_ONCE) {
        int64_t end = n - first < EXACT_AT_ONCE ? n : first + EXACT_AT_ONCE;
        for (int64_t i = first; i < end; i++) exact_add_bits(s, (uint32_t)x[i] << 16);
        exact_carry(s);
    }
}

DEVICE_TOO static inline void exact_add(ExactSum *s, const ExactSum *other)
{
    for (int j = 0; j < EXACT_DIGITS; j++) s->digit[j] += other->digit[j];
    s->bad |= other->bad;
    exact_carry(s);
}

/* As EXACT_WORDS numbers for other ranks, and back. */
DEVICE_TOO static inline void exact_write(const ExactSum *s, int32_t *words)
{
    for (int j = 0; j < EXACT_DIGITS; j++) words[j] = (int32_t)s->digit[j];
    words[EXACT_DIGITS] = s->bad;
}
DEVICE_TOO static inline ExactSum exact_read(const int32_t *words)
{
    ExactSum s = {.bad = words[EXACT_DIGITS] != 0};
    for (int j = 0; j < EXACT_DIGITS; j++) s.digit[j] = words[j];
    return s;
}

/* The four highest digits that count: at least 49 bits, cut off the same way whoever asks. */
DEVICE_TOO static inline double exact_value(const ExactSum *s)
{
    int top = EXACT_DIGITS - 1;
    uint64_t bits = 0;
    if (s->bad) return NAN;
    while (top > 3 && s->digit[top] == 0) top--;
    for (int j = top; j > top - 4; j--) bits = bits << EXACT_DIGIT_BITS | (uint64_t)s->digit[j];
    return ldexp((double)bits, EXACT_DIGIT_BITS * (top - 3) + EXACT_LOWEST);
}

#endif
