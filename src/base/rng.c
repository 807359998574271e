/* Counter-based random numbers: Philox4x32-10. */
#include "base/base.h"

#include <math.h>
#include <string.h>

Philox rng_philox(uint64_t key, uint64_t counter_high, uint64_t counter_low)
{
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    uint32_t c0 = (uint32_t)counter_low, c1 = (uint32_t)(counter_low >> 32);
    uint32_t c2 = (uint32_t)counter_high, c3 = (uint32_t)(counter_high >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return (Philox){{c0, c1, c2, c3}};
}

uint64_t rng_key(uint64_t seed, const char *purpose)
{
    Philox p = rng_philox(seed, 0, hash_bytes(purpose, strlen(purpose)));
    return (uint64_t)p.word[1] << 32 | p.word[0];
}

uint64_t rng_u64(uint64_t key, uint64_t index)
{
    Philox p = rng_philox(key, 0, index);
    return (uint64_t)p.word[1] << 32 | p.word[0];
}

double rng_uniform(uint64_t key, uint64_t index)
{
    return (double)(rng_u64(key, index) >> 11) * 0x1p-53;
}

uint64_t rng_below(uint64_t key, uint64_t index, uint64_t bound)
{
    CHECK(bound > 0);
    /* multiply-shift on 64 bits; the bias, below bound / 2^64, is far under what can be seen */
    __extension__ typedef unsigned __int128 Wide;
    return (uint64_t)(((Wide)rng_u64(key, index) * bound) >> 64);
}

double rng_normal(uint64_t key, uint64_t index)
{
    Philox p = rng_philox(key, 1, index);
    double u = ((double)p.word[0] + 0.5) * 0x1p-32, v = (double)p.word[1] * 0x1p-32;
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

void rng_fill_normal(uint64_t key, uint64_t first, double deviation, float *out, size_t n)
{
#pragma omp parallel for schedule(static) if (n >= 4096)
    for (size_t i = 0; i < n; i++) out[i] = (float)(deviation * rng_normal(key, first + i));
}

uint64_t rng_permute(uint64_t key, uint64_t index, uint64_t n)
{
    CHECK(index < n);
    int half = 1;
    while (half < 32 && (uint64_t)1 << (2 * half) < n) half++;
    uint64_t mask = ((uint64_t)1 << half) - 1, x = index;
    do { /* cycle walking: 2^(2 half) < 4 n, so four rounds on average at most */
        uint64_t left = x >> half, right = x & mask;
        for (uint64_t round = 0; round < 6; round++) {
            uint64_t mixed = rng_philox(key, 2 + round, right).word[0] & mask;
            uint64_t next = left ^ mixed;
            left = right;
            right = next;
        }
        x = left << half | right;
    } while (x >= n);
    return x;
}
