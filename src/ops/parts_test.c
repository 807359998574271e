/* What is copied for collectives: a rank's part of a whole (cut), tensors in one buffer (bucket).
 */
#include "ops/bucket.h"
#include "ops/collective.h"
#include "ops/optest.h"

/* [outer][dim][inner], of which rank `rank` of n has its part */
typedef struct Case {
    int64_t outer, dim, inner;
    int n, rank;
    bool zigzag;
} Case;

static void reference_cut(const void *user, double *const *in, double *const *out)
{
    const Case *c = user;
    int64_t blocks = c->zigzag ? 2 : 1, length = c->dim / c->n / blocks, at = 0;
    for (int64_t o = 0; o < c->outer; o++)
        for (int64_t b = 0; b < blocks; b++) {
            int64_t first = (b ? 2 * c->n - 1 - c->rank : c->rank) * length;
            for (int64_t i = 0; i < length * c->inner; i++)
                out[0][at++] = in[0][(o * c->dim + first) * c->inner + i];
        }
}

static void check_cut(Case c, DType dtype)
{
    OpTest *t = optest_create((uint64_t)(c.dim * 10 + c.rank));
    MeshAxis axis = c.zigzag ? MESH_CP : MESH_TP;
    t->graph->mesh.size[axis] = c.n;
    t->graph->mesh.coord[axis] = c.rank;
    Shape shape = shape_make(3, (int64_t[]){c.outer, c.dim, c.inner},
                             (Axis[]){AXIS_BATCH, AXIS_SEQ, AXIS_EMBED});
    ValueId x = optest_normal(t, dtype, shape, 1.0), y;
    optest_ok(op_cut(t->graph, axis, x, 1, &y));
    optest_plain_output(t, y);
    optest_check(t, reference_cut, &c, 0);
    optest_destroy(t);
}

static void test_cut(void **state)
{
    (void)state;
    for (int i = 0; i < 12; i++) {
        DType dtype = i % 2 ? DTYPE_BF16 : DTYPE_F32;
        check_cut((Case){3, 12, 5, 3, i % 3, false}, dtype);
        check_cut((Case){2, 16, 8, 4, i % 4, true}, dtype);
        check_cut((Case){1, 16, 1, 2, i % 2, true}, dtype);
    }
}

/* in: 41 elements; out: part `user` of two, 32 long and padded with zeros */
static void reference_flat(const void *user, double *const *in, double *const *out)
{
    int64_t first = *(const int *)user * 32;
    for (int64_t i = 0; i < 32; i++) out[0][i] = first + i < 41 ? in[0][first + i] : 0;
}

static void test_cut_flat(void **state)
{
    (void)state;
    for (int rank = 0; rank < 2; rank++) {
        OpTest *t = optest_create(5);
        t->graph->mesh.size[MESH_FSDP] = 2;
        t->graph->mesh.coord[MESH_FSDP] = rank;
        ValueId x = optest_normal(t, DTYPE_F32, SHAPE(41), 1.0), y;
        optest_ok(op_cut(t->graph, MESH_FSDP, x, PLACE_FLAT, &y));
        optest_plain_output(t, y);
        optest_check(t, reference_flat, &rank, 0);
        optest_destroy(t);
    }
}

static void reference_bucket(const void *user, double *const *in, double *const *out)
{
    const int64_t *n = user;
    for (int64_t k = 0, at = 0; k < 3; k++)
        for (int64_t i = 0; i < n[k]; i++) out[0][at++] = in[k][i];
}

static void test_bucket(void **state)
{
    (void)state;
    static const int64_t n[3] = {7, 40, 3};
    OpTest *t = optest_create(6);
    ValueId x[3], y;
    for (int k = 0; k < 3; k++) x[k] = optest_normal(t, DTYPE_F32, SHAPE(n[k]), 1.0);
    optest_ok(op_bucket(t->graph, 3, x, &y));
    optest_plain_output(t, y);
    optest_check(t, reference_bucket, n, 0);
    optest_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_cut), cmocka_unit_test(test_cut_flat),
                                       cmocka_unit_test(test_bucket)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
