/* The memory planner: blocks that are alive together never overlap, and little is wasted. */
#include "program/program_internal.h"
#include "base/testing.h"

static size_t largest_live(const Block *b, int n, int end)
{
    size_t most = 0;
    for (int t = 0; t < end; t++) {
        size_t live = 0;
        for (int i = 0; i < n; i++)
            if (b[i].birth <= t && t <= b[i].death) live += b[i].bytes;
        if (live > most) most = live;
    }
    return most;
}

static void random_blocks(uint64_t key, Block *b, int n, int end)
{
    for (int i = 0; i < n; i++) {
        uint64_t at = 4 * (uint64_t)i;
        b[i].bytes = rng_below(key, at, 5000);
        b[i].birth = (int)rng_below(key, at + 1, (uint64_t)end);
        b[i].death = b[i].birth + (int)rng_below(key, at + 2, (uint64_t)(end - b[i].birth));
    }
}

static void no_overlap_and_little_waste(void **state)
{
    (void)state;
    enum { N = 120, END = 60 };
    double ratio_sum = 0;
    for (uint64_t round = 0; round < 100; round++) {
        Block b[N], again[N];
        random_blocks(rng_key(round, "blocks"), b, N, END);
        memcpy(again, b, sizeof b);
        size_t total = plan_blocks(b, N);
        for (int i = 0; i < N; i++) {
            assert_int_equal(b[i].offset % TENSOR_ALIGN, 0);
            assert_true(b[i].offset + b[i].bytes <= total);
            for (int j = 0; j < i; j++) {
                bool together = b[i].birth <= b[j].death && b[j].birth <= b[i].death;
                bool apart = b[i].offset + b[i].bytes <= b[j].offset ||
                             b[j].offset + b[j].bytes <= b[i].offset;
                assert_true(!together || apart || b[i].bytes == 0 || b[j].bytes == 0);
            }
        }
        size_t live = largest_live(b, N, END);
        assert_true(total >= live);
        ratio_sum += (double)total / (double)live;
        assert_int_equal(plan_blocks(again, N), total); /* a pure function */
        assert_memory_equal(again, b, sizeof b);
    }
    assert_true(ratio_sum / 100 < 1.10);
}

static void stack_like_lives_pack_exactly(void **state)
{
    (void)state;
    /* activations as a training step has them: born in order, dying in reverse */
    Block b[20];
    for (int i = 0; i < 20; i++)
        b[i] = (Block){.bytes = 64u * (unsigned)(i % 5 + 1), .birth = i, .death = 40 - i};
    size_t total = plan_blocks(b, 20);
    assert_int_equal(total, largest_live(b, 20, 41));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_overlap_and_little_waste),
        cmocka_unit_test(stack_like_lives_pack_exactly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
