/* The sum of a tensor's bytes: a hash that ranks can share.
 *
 * Each rank sums the ranges that it holds, wherever they lie in the tensor and in whatever order,
 * and the ranks' sums add up to that of the whole. No cut of the tensor leaves a trace in it, so a
 * checkpoint's manifest says the same whatever the layout it was written under, and nobody has to
 * read what another rank has read.
 *
 *     sum = sum over words w of  word[w] * table[w mod 1024] * factor(w / 1024)   (mod 2^64), twice
 *
 * word[w] is bytes 4w to 4w+3, the first the lowest; tables (32 bits) and factors (64 bits, odd)
 * are random numbers, fixed for good. This is multilinear hashing (Carter and Wegman 1979; Lemire
 * and Kaser, "Strongly universal string hashing is fast", 2014): a change that no one aims at these
 * numbers goes unseen with a probability near 2^-64. Being linear, it cannot tell a range that
 * nobody wrote from zeros: beside it elements and their places are counted (CkptTally). */
#include <stdlib.h>
#include <string.h>

#include "ckpt/ckpt_internal.h"

enum { WORD = 4, WORDS = 1024 };

struct SumKeys {
    uint64_t seed;
    uint32_t table[2][WORDS];
};

SumKeys *sum_keys_create(void)
{
    SumKeys *keys = xmalloc(sizeof *keys);
    keys->seed = rng_key(0, "checkpoint sum");
    for (uint64_t i = 0; i < WORDS; i++) {
        Philox p = rng_philox(keys->seed, 0, i);
        keys->table[0][i] = p.word[0];
        keys->table[1][i] = p.word[1];
    }
    return keys;
}

void sum_keys_destroy(SumKeys *keys) { free(keys); }

/* Words j to j+n-1 of a block, weighted by the tables. */
static void add_block(const SumKeys *keys, uint64_t block, size_t j, const uint8_t *at, size_t n,
                      uint64_t sum[2])
{
    const uint32_t *a = keys->table[0] + j, *b = keys->table[1] + j;
    uint64_t in_a = 0, in_b = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t word;
        memcpy(&word, at + WORD * i, WORD);
        in_a += (uint64_t)word * a[i];
        in_b += (uint64_t)word * b[i];
    }
    Philox p = rng_philox(keys->seed, 1, block);
    sum[0] += in_a * ((uint64_t)p.word[1] << 32 | p.word[0] | 1);
    sum[1] += in_b * ((uint64_t)p.word[3] << 32 | p.word[2] | 1);
}

/* Up to `n` bytes inside one word; returns how many. */
static size_t add_part(const SumKeys *keys, uint64_t offset, const uint8_t *at, size_t n,
                       uint64_t sum[2])
{
    uint8_t word[WORD] = {0};
    size_t within = (size_t)(offset % WORD), take = WORD - within < n ? WORD - within : n;
    memcpy(word + within, at, take);
    add_block(keys, offset / WORD / WORDS, (size_t)(offset / WORD % WORDS), word, 1, sum);
    return take;
}

void sum_add(const SumKeys *keys, uint64_t offset, const void *data, size_t n, uint64_t sum[2])
{
    const uint8_t *at = data;
    while (n > 0) {
        size_t j = (size_t)(offset / WORD % WORDS),
               words = n / WORD < WORDS - j ? n / WORD : WORDS - j, done;
        if (offset % WORD || words == 0) {
            done = add_part(keys, offset, at, n, sum);
        } else {
            add_block(keys, offset / WORD / WORDS, j, at, words, sum);
            done = words * WORD;
        }
        offset += done;
        at += done;
        n -= done;
    }
}

/* ---- tallies ---------------------------------------------------------------------------- */

/* 0 + 1 + ... + n-1. Of two consecutive numbers the even one is halved, so that nothing is lost. */
static uint64_t sum_below(uint64_t n) { return n % 2 ? n * ((n - 1) / 2) : n / 2 * (n - 1); }

void tally_add(const SumKeys *keys, CkptTally *tally, int64_t first, int64_t n, DType dtype,
               const void *data)
{
    size_t size = dtype_bytes(dtype);
    uint64_t from = (uint64_t)first, count = (uint64_t)n;
    sum_add(keys, from * size, data, (size_t)n * size, tally->sum);
    tally->n += count;
    tally->places += from * count + sum_below(count);
}

Status tally_check(const CkptTally *t, uint64_t times, uint64_t count, const char *name)
{
    if (t->n == times * count && t->places == times * sum_below(count)) return OK;
    return fail(
        ERR_ARG,
        "tensor %s has %llu elements, but the ranks hold %llu, or some twice and others not at all",
        name, (unsigned long long)(times * count), (unsigned long long)t->n);
}
