/* The sum that ranks share: pieces in any cut and order add up to the whole; what changes is seen.
 */
#include "ckpt/ckpt_testkit.h"

enum { BYTES = 50000 };

static uint8_t data[BYTES];

static void fill(void)
{
    uint64_t key = rng_key(1, "sum");
    for (size_t i = 0; i < BYTES; i += 8) {
        uint64_t word = rng_u64(key, i);
        memcpy(data + i, &word, 8);
    }
}

static Hash128 sum_of(const SumKeys *keys, size_t from, size_t n)
{
    uint64_t sum[2] = {0};
    sum_add(keys, from, data + from, n, sum);
    return (Hash128){sum[0], sum[1]};
}

/* Written out, word by word, as the head of sum.c says. */
static Hash128 slow_sum(size_t n)
{
    uint64_t seed = rng_key(0, "checkpoint sum"), a = 0, b = 0;
    for (size_t w = 0; 4 * w < n; w++) {
        uint64_t word = 0;
        for (size_t k = 0; k < 4 && 4 * w + k < n; k++) word |= (uint64_t)data[4 * w + k] << 8 * k;
        Philox t = rng_philox(seed, 0, w % 1024), f = rng_philox(seed, 1, w / 1024);
        a += word * t.word[0] * (((uint64_t)f.word[1] << 32 | f.word[0]) | 1);
        b += word * t.word[1] * (((uint64_t)f.word[3] << 32 | f.word[2]) | 1);
    }
    return (Hash128){a, b};
}

static void assert_same(Hash128 a, Hash128 b) { assert_true(a.low == b.low && a.high == b.high); }

static void test_definition(void **state)
{
    (void)state;
    SumKeys *keys = sum_keys_create();
    fill();
    static const size_t sizes[] = {0, 1, 3, 4, 5, 4095, 4096, 4097, 8191, BYTES};
    for (int i = 0; i < COUNT_OF(sizes); i++)
        assert_same(sum_of(keys, 0, sizes[i]), slow_sum(sizes[i]));
    sum_keys_destroy(keys);
}

/* In pieces of random sizes, begun anywhere, from the last to the first. */
static void test_pieces(void **state)
{
    (void)state;
    SumKeys *keys = sum_keys_create();
    fill();
    Hash128 whole = sum_of(keys, 0, BYTES);
    for (uint64_t round = 0; round < 200; round++) {
        uint64_t key = rng_key(round, "pieces"), sum[2] = {0};
        size_t end = BYTES;
        for (uint64_t i = 0; end > 0; i++) {
            size_t n = 1 + (size_t)rng_below(key, i, round % 2 ? 40 : 9000);
            if (n > end) n = end;
            end -= n;
            sum_add(keys, end, data + end, n, sum);
        }
        assert_same((Hash128){sum[0], sum[1]}, whole);
    }
    sum_keys_destroy(keys);
}

static void test_changes_are_seen(void **state)
{
    (void)state;
    enum { N = 12288 };
    SumKeys *keys = sum_keys_create();
    fill();
    Hash128 good = sum_of(keys, 0, N);
    for (size_t bit = 0; bit < 8 * N; bit += 7) {
        data[bit / 8] = (uint8_t)(data[bit / 8] ^ 1u << bit % 8);
        Hash128 bad = sum_of(keys, 0, N);
        assert_true(bad.low != good.low && bad.high != good.high);
        data[bit / 8] = (uint8_t)(data[bit / 8] ^ 1u << bit % 8);
    }
    for (size_t at = 0; at + 512 <= N;
         at += 512) { /* a block that was never written; two that changed places */
        uint8_t kept[512], other[512];
        size_t to = (at + 4096) % N;
        memcpy(kept, data + at, 512);
        memset(data + at, 0, 512);
        Hash128 zeroed = sum_of(keys, 0, N);
        memcpy(other, data + to, 512);
        memcpy(data + at, other, 512);
        memcpy(data + to, kept, 512);
        Hash128 swapped = sum_of(keys, 0, N);
        memcpy(data + at, kept, 512);
        memcpy(data + to, other, 512);
        assert_true(zeroed.low != good.low && zeroed.high != good.high);
        assert_true(swapped.low != good.low && swapped.high != good.high);
    }
    for (size_t w = 0; w + 1 < N / 4; w++) { /* two signs of f32 that flip together */
        data[4 * w + 3] ^= 0x80;
        data[4 * w + 7] ^= 0x80;
        Hash128 bad = sum_of(keys, 0, N);
        assert_true(bad.low != good.low || bad.high != good.high);
        data[4 * w + 3] ^= 0x80;
        data[4 * w + 7] ^= 0x80;
    }
    assert_same(sum_of(keys, 0, N), good);
    sum_keys_destroy(keys);
}

/* A hole, a range held twice, and both at once. */
static void test_tallies(void **state)
{
    (void)state;
    SumKeys *keys = sum_keys_create();
    fill();
    CkptTally whole = {0}, parts = {0};
    tally_add(keys, &whole, 0, 1000, DTYPE_F32, data);
    tally_add(keys, &parts, 600, 400, DTYPE_F32, data + 2400);
    tally_add(keys, &parts, 0, 599, DTYPE_F32, data);
    assert_int_equal(tally_check(&whole, 1, 1000, "w"), OK);
    assert_int_equal(tally_check(&parts, 1, 1000, "w"), ERR_ARG);
    CkptTally wrong = parts;
    tally_add(keys, &wrong, 0, 1, DTYPE_F32, data);
    assert_int_equal(tally_check(&wrong, 1, 1000, "w"), ERR_ARG);
    tally_add(keys, &parts, 599, 1, DTYPE_F32, data + 2396);
    assert_int_equal(tally_check(&parts, 1, 1000, "w"), OK);
    assert_memory_equal(&parts, &whole, sizeof whole);
    for (int i = 0; i < 2; i++) whole.sum[i] *= 2;
    tally_add(keys, &parts, 0, 1000, DTYPE_F32, data); /* two replicas */
    assert_int_equal(tally_check(&parts, 2, 1000, "w"), OK);
    assert_memory_equal(parts.sum, whole.sum, sizeof whole.sum);
    sum_keys_destroy(keys);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_definition),
        cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_changes_are_seen),
        cmocka_unit_test(test_tallies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
