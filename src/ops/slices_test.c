/* An element that an element-wise kernel makes is the same bits wherever it stands: in a vector or
 * in the rest of a row, in contiguous rows or in those of a wider tensor. What tensor parallelism
 * or ZeRO cuts then does not matter. */
#include "ops/optest.h"

#include <stdlib.h>

enum { ROWS = 60, WIDTH = 48, MOST_IN = 3, MOST_OUT = 2 };

typedef struct Case {
    const char *name;
    Status (*make)(Graph *g, const ValueId *x, ValueId *y);
    int n_in, n_out;
} Case;

static Status swiglu(Graph *g, const ValueId *x, ValueId *y) { return op_swiglu(g, x[0], x[1], y); }
static Status geglu(Graph *g, const ValueId *x, ValueId *y) { return op_geglu(g, x[0], x[1], y); }
static Status swiglu_grad(Graph *g, const ValueId *x, ValueId *y)
{
    return op_swiglu_grad(g, x[0], x[1], x[2], &y[0], &y[1]);
}
static Status geglu_grad(Graph *g, const ValueId *x, ValueId *y)
{
    return op_geglu_grad(g, x[0], x[1], x[2], &y[0], &y[1]);
}
static Status softcap(Graph *g, const ValueId *x, ValueId *y) { return op_softcap(g, x[0], 3, y); }
static Status softcap_grad(Graph *g, const ValueId *x, ValueId *y)
{
    return op_softcap_grad(g, x[0], x[1], 3, y);
}
static Status scale(Graph *g, const ValueId *x, ValueId *y) { return op_scale(g, x[0], 1.7f, y); }

static const Case cases[] = {{"swiglu", swiglu, 2, 1},
                             {"geglu", geglu, 2, 1},
                             {"swiglu_grad", swiglu_grad, 3, 2},
                             {"geglu_grad", geglu_grad, 3, 2},
                             {"softcap", softcap, 1, 1},
                             {"softcap_grad", softcap_grad, 2, 1},
                             {"scale", scale, 1, 1}};

/* Columns first .. first + width - 1, in rows `pitch` elements apart (0: contiguous). */
static ValueId columns(OpTest *t, ValueId x, int64_t first, int64_t width, int64_t pitch)
{
    double *data = ARENA_ARRAY(&t->arena, double, ROWS *width);
    for (int64_t r = 0; r < ROWS; r++)
        for (int64_t i = 0; i < width; i++)
            data[r * width + i] = optest_at(t, x, r * WIDTH + first + i);
    ValueId y = optest_data(t, graph_value(t->graph, x)->dtype, SHAPE(ROWS, width), data);
    if (pitch) optest_pitch(t, y, 1, pitch);
    return y;
}

static void compare(const OpTest *t, const Case *c, const ValueId *whole, const ValueId *part,
                    int64_t width, Isa isa)
{
    OpRun run;
    if (!optest_run(&run, t, (Target){.isa = isa, .threads = 1}, 0)) fail_msg("%s", run.fault);
    for (int k = 0; k < c->n_out; k++) {
        double *all = optest_run_values(&run, whole[k]);
        for (int64_t p = 0; p < WIDTH / width; p++) {
            double *mine = optest_run_values(&run, part[p * MOST_OUT + k]);
            for (int64_t i = 0; i < ROWS * width; i++)
                if (mine[i] != all[i / width * WIDTH + p * width + i % width])
                    fail_msg("%s, %s, slices of %lld: output %d, element %lld is %.9g, not %.9g",
                             c->name, isa_name(isa), (long long)width, k, (long long)i, mine[i],
                             all[i / width * WIDTH + p * width + i % width]);
            free(mine);
        }
        free(all);
    }
    optest_run_end(&run);
}

static void check(const Case *c, DType dtype, int64_t width, int64_t pitch)
{
    OpTest *t = optest_create((uint64_t)width);
    ValueId x[MOST_IN], y[MOST_OUT], part[WIDTH * MOST_OUT];
    for (int k = 0; k < c->n_in; k++) x[k] = optest_normal(t, dtype, SHAPE(ROWS, WIDTH), 2.0);
    optest_ok(c->make(t->graph, x, y));
    for (int64_t p = 0; p < WIDTH / width; p++) {
        ValueId of[MOST_IN];
        for (int k = 0; k < c->n_in; k++)
            of[k] = columns(t, x[k], p * width, width, k < 2 ? pitch : 0);
        optest_ok(c->make(t->graph, of, part + p * MOST_OUT));
    }
    for (int isa = 0; isa < ISA_COUNT; isa++)
        if (optest_isa_available((Isa)isa)) compare(t, c, y, part, width, (Isa)isa);
    optest_destroy(t);
}

static void test_slices(void **state)
{
    (void)state;
    static const int64_t widths[] = {24, 12, 4, 3};
    for (int i = 0; i < COUNT_OF(cases); i++)
        for (int k = 0; k < COUNT_OF(widths); k++)
            for (int bf16 = 0; bf16 < 2; bf16++) {
                check(&cases[i], bf16 ? DTYPE_BF16 : DTYPE_F32, widths[k], 0);
                check(&cases[i], bf16 ? DTYPE_BF16 : DTYPE_F32, widths[k], 2 * widths[k] + 1);
            }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_slices)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
