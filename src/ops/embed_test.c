#include "ops/optest.h"

typedef struct Case {
    int64_t tokens, vocab, width;
    DType table, dtype;
} Case;

/* in: ids, w. An id that is not in the table reads row 0. */
static void reference(const void *user, double *const *in, double *const *out)
{
    const Case *c = user;
    for (int64_t i = 0; i < c->tokens; i++) {
        int64_t id = (int64_t)in[0][i];
        if (id < 0 || id >= c->vocab) id = 0;
        for (int64_t j = 0; j < c->width; j++) out[0][i * c->width + j] = in[1][id * c->width + j];
    }
}

static void check(Case c, int64_t low, int64_t high)
{
    OpTest *t = optest_create(7);
    ValueId ids = optest_integers(t, SHAPE(1, c.tokens), low, high);
    ValueId w = optest_normal(t, c.table, SHAPE(c.vocab, c.width), 1.0), y;
    optest_ok(op_embed(t->graph, ids, w, c.dtype, &y));
    optest_output(t, y);
    optest_check_grad(t, reference, &c, c.dtype == DTYPE_BF16 ? 1e-2 : 1e-6);
    optest_destroy(t);
}

static void test_values_and_gradients(void **state)
{
    (void)state;
    const DType f32 = DTYPE_F32, bf16 = DTYPE_BF16;
    check((Case){1, 1, 1, f32, f32}, 0, 1);
    check((Case){40, 7, 17, f32, f32}, 0, 7); /* every id several times */
    check((Case){40, 7, 17, f32, bf16}, 0, 7);
    check((Case){40, 7, 17, bf16, bf16}, 0, 7);
    check((Case){40, 7, 17, bf16, f32}, 0, 7);
    check((Case){5, 333, 33, f32, f32}, 0, 333); /* most rows without a token */
    check((Case){300, 99, 150, f32, f32}, 0, 99);
    check((Case){300, 3, 150, f32, bf16}, 0, 3);
    check((Case){20, 4, 8, f32, f32}, -3, 9); /* ids outside the table */
    check((Case){300, 99, 152, bf16, bf16}, 0, 99);
    check((Case){70, 20, 152, bf16, f32}, 0, 20);
    check((Case){5000, 70000, 2, f32, f32}, 0, 70000); /* more than a tile of tokens to sort */
    check((Case){5000, 300, 2, f32, bf16}, 0, 300);
}

/* The streaming stores of a large table, and what a GPU clears. */
static void check_cleared(const OpTest *t, ValueId dw, Target target)
{
    OpRun run;
    assert_true(optest_run(&run, t, target, 0));
    const float *at = optest_run_tensor(&run, dw).data;
    for (int64_t i = 0; i < optest_count(t, dw); i++)
        if (at[i] != 0)
            fail_msg("%s: element %lld is not zero", optest_target_name(&target), (long long)i);
    optest_run_end(&run);
}

static void test_large_table_is_cleared(void **state)
{
    (void)state;
    const int64_t vocab = 70001, width = 72;
    OpTest *t = optest_create(7);
    ValueId ids = optest_data(t, DTYPE_I32, SHAPE(1), (double[]){70000});
    ValueId dy = optest_data(t, DTYPE_F32, SHAPE(1, width), NULL), dw;
    optest_ok(op_embed_grad(t->graph, ids, dy, SHAPE(vocab, width), &dw));
    for (Isa isa = ISA_GENERIC; isa < ISA_COUNT; isa++)
        if (optest_isa_available(isa)) check_cleared(t, dw, (Target){.isa = isa, .threads = 2});
    if (optest_gpu_available(t->graph)) check_cleared(t, dw, (Target){.gpu = true, .threads = 1});
    optest_destroy(t);
}

static void test_refusals(void **state)
{
    (void)state;
    OpTest *t = optest_create(1);
    ValueId ids = optest_integers(t, SHAPE(2, 3), 0, 4), y;
    ValueId flat = optest_normal(t, DTYPE_F32, SHAPE(4), 1.0),
            w = optest_normal(t, DTYPE_F32, SHAPE(4, 2), 1.0);
    optest_refused(op_embed(t->graph, ids, flat, DTYPE_F32, &y), ERR_SHAPE,
                   "w must be [vocab embed]");
    optest_refused(op_embed(t->graph, w, w, DTYPE_F32, &y), ERR_ARG, "ids must be i32");
    optest_refused(op_embed(t->graph, ids, w, DTYPE_I32, &y), ERR_ARG, "y cannot be i32");
    optest_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values_and_gradients),
        cmocka_unit_test(test_large_table_is_cleared),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
