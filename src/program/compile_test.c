/* What program_compile refuses. */
#include "base/testing.h"
#include "ops/ops.h"
#include "program/program.h"

static Status compile_scale(int64_t rows, int64_t columns)
{
    Graph *g = graph_create("big");
    ValueId y, x = graph_input(g, "x", DTYPE_F32, shape_make(2, (int64_t[]){rows, columns}, NULL));
    assert_int_equal(op_scale(g, x, 2.0f, &y), OK);
    graph_output(g, "y", y);
    Store *store = store_create();
    Program *program = NULL;
    Status status = program_compile(g, (Target){.isa = ISA_GENERIC, .threads = 1}, store, &program);
    program_destroy(program);
    store_destroy(store);
    return status;
}

/* Sizes whose bytes would wrap around 64 bits must not become small plans. */
static void sizes_beyond_any_machine(void **state)
{
    (void)state;
    assert_int_equal(compile_scale(8, 16), OK);
    assert_int_equal(compile_scale((int64_t)1 << 22, (int64_t)1 << 20),
                     OK); /* 2^44 bytes: planned, not allocated */
    assert_int_equal(compile_scale((int64_t)1 << 22, ((int64_t)1 << 20) + 1), ERR_REFUSED);
    assert_int_equal(compile_scale((int64_t)1 << 40, (int64_t)1 << 40), ERR_REFUSED);
    assert_non_null(strstr(status_message(), "x ["));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(sizes_beyond_any_machine)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
