/* accumulate_leaf: the last micro-batch leaves the sum of all as a balanced binary tree, whatever
 * the states held before. */
#include "ops/kernel.h"
#include "ops/optest.h"

#include <string.h>

enum { N = 5000, MOST = 64 };

static float x[MOST][N];

static float tree(int lo, int hi, int i)
{
    if (hi - lo == 1) return x[lo][i];
    int mid = lo + (hi - lo) / 2;
    return tree(lo, mid, i) + tree(mid, hi, i);
}

static void fill(void)
{
    for (int m = 0; m < MOST; m++)
        for (int i = 0; i < N; i++)
            x[m][i] = (float)((double)rng_u64(3, (uint64_t)(m * N + i)) / 1.8e19 - 0.5) *
                      (float)(1 + i % 7);
    for (int m = 0; m < MOST; m++)
        x[m][0] = -0.0f; /* stays what it is: nothing is added to a zero that was there */
}

static void check(Isa isa, int n_micro, int threads)
{
    static float state[NODE_MAX_OUT][N];
    const Kernel *kernel = op_find("accumulate_leaf")->cpu[isa];
    int parts = op_accumulate_leaf_parts(n_micro);
    memset(state, 0x55, sizeof state);
    for (int32_t m = 0; m < n_micro; m++) {
        Tensor in[ACCUMULATE_FIRST_PART + NODE_MAX_OUT], out[NODE_MAX_OUT] = {{0}};
        in[0] = tensor_make(state[0], DTYPE_F32, SHAPE(N));
        in[1] = tensor_make(x[m], DTYPE_F32, SHAPE(N));
        in[2] = tensor_make(&m, DTYPE_I32, SHAPE(1));
        for (int k = 0; k < parts; k++)
            in[ACCUMULATE_FIRST_PART + k] = tensor_make(state[1 + k], DTYPE_F32, SHAPE(N));
        KernelArgs args = {.in = in,
                           .out = out,
                           .n_in = ACCUMULATE_FIRST_PART + parts,
                           .n_out = NODE_MAX_OUT,
                           .threads = threads};
        optest_ok(kernel->run(&args));
    }
    for (int i = 0; i < N; i++) {
        float wanted = tree(0, n_micro, i);
        assert_memory_equal(&state[0][i], &wanted, sizeof wanted);
    }
}

static void test_tree(void **unused)
{
    (void)unused;
    fill();
    for (int isa = 0; isa < ISA_COUNT; isa++) {
        if (!optest_isa_available((Isa)isa)) continue;
        for (int n = 1; n <= MOST; n *= 2)
            for (int threads = 1; threads < 4; threads += 2) check((Isa)isa, n, threads);
    }
}

static void test_parts(void **unused)
{
    (void)unused;
    static const int parts[][2] = {{1, 0}, {2, 0}, {4, 1}, {8, 2}, {16, 3}, {4096, 11}};
    for (int i = 0; i < COUNT_OF(parts); i++)
        assert_int_equal(op_accumulate_leaf_parts(parts[i][0]), parts[i][1]);
}

static void test_refusals(void **unused)
{
    (void)unused;
    OpTest *t = optest_create(1);
    ValueId s = optest_state(t, DTYPE_F32, SHAPE(4), STATE_GRAD, NULL),
            y = optest_normal(t, DTYPE_F32, SHAPE(4), 1.0);
    ValueId micro = optest_integers(t, SHAPE(1), 0, 1), two = optest_integers(t, SHAPE(2), 0, 1),
            narrow = optest_normal(t, DTYPE_F32, SHAPE(3), 1.0), sum;
    optest_refused(op_accumulate_leaf(t->graph, s, narrow, micro, 0, NULL, &sum), ERR_SHAPE,
                   "x is");
    optest_refused(op_accumulate_leaf(t->graph, s, y, two, 0, NULL, &sum), ERR_SHAPE, "micro is");
    optest_refused(op_accumulate_leaf(t->graph, s, y, micro, 1, &narrow, &sum), ERR_SHAPE,
                   "a part is");
    optest_refused(op_accumulate_leaf(t->graph, s, y, micro, 1, &y, &sum), ERR_ARG,
                   "which is no state");
    optest_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_tree), cmocka_unit_test(test_parts),
                                       cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
