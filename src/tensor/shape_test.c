/* Axes, shapes, strides, and the view as rows. */
#include "tensor/tensor.h"

#include <string.h>

#include <setjmp.h>
#include <cmocka.h>

static const Axis bse[] = {AXIS_BATCH, AXIS_SEQ, AXIS_EMBED};
#define DIMS(...) ((int64_t[MAX_RANK]){__VA_ARGS__})

static void texts(void **state)
{
    (void)state;
    char b[SHAPE_TEXT];
    Shape s = shape_make(3, DIMS(2, 128, 384), bse), scalar = shape_make(0, NULL, NULL);
    assert_string_equal(shape_text(&s, b), "batch=2 seq=128 embed=384");
    assert_string_equal(shape_text(&scalar, b), "scalar");
    assert_int_equal(shape_count(&scalar), 1);
    int64_t large[MAX_RANK];
    Axis axes[MAX_RANK];
    for (int i = 0; i < MAX_RANK; i++) {
        large[i] = INT64_MAX;
        axes[i] = AXIS_KV_HEADS;
    }
    Shape worst = shape_make(MAX_RANK, large, axes);
    assert_true(strlen(shape_text(&worst, b)) < SHAPE_TEXT - 1);
    for (int i = 0; i < AXIS_COUNT; i++) {
        Axis a = AXIS_COUNT;
        assert_true(axis_from_name(axis_name((Axis)i), &a) && (int)a == i);
    }
    Axis a;
    assert_false(axis_from_name("head", &a));
}

static void counts(void **state)
{
    (void)state;
    Shape a = shape_make(3, DIMS(2, 3, 4), bse), b = shape_make(3, DIMS(2, 3, 4), NULL);
    Shape c = shape_make(2, DIMS(6, 4), NULL), d = shape_make(3, DIMS(2, 4, 3), bse);
    assert_true(shape_equal(&a, &b)); /* names may differ */
    assert_false(shape_equal(&a, &c) || shape_equal(&a, &d));
    assert_int_equal(shape_count(&a), 24);
    Shape zero = shape_make(3, DIMS(INT64_MAX, 0, INT64_MAX), bse);
    assert_int_equal(shape_count(&zero), 0);
    Shape huge = shape_make(2, DIMS(INT64_MAX, 2),
                            bse); /* hostile: stays the largest, never wraps */
    assert_true(shape_count(&huge) == INT64_MAX);
    Tensor t = tensor_make(NULL, DTYPE_F64, huge);
    assert_true(tensor_bytes(&t) == SIZE_MAX);
    t = tensor_make(NULL, DTYPE_BF16, a);
    assert_int_equal(tensor_bytes(&t), 48);
}

static void strides(void **state)
{
    (void)state;
    Shape s = shape_make(3, DIMS(2, 3, 4), bse);
    Tensor t = tensor_make(NULL, DTYPE_F32, s);
    assert_int_equal(t.stride[0], 12);
    assert_int_equal(t.stride[1], 4);
    assert_int_equal(t.stride[2], 1);
    assert_true(stride_is_contiguous(&t.shape, t.stride));
    t.stride[1] = 5;
    assert_false(stride_is_contiguous(&t.shape, t.stride));
    Shape one = shape_make(3, DIMS(2, 1, 4), bse);
    assert_true(stride_is_contiguous(&one, DIMS(4, 999, 1))); /* never stepped over */
    assert_false(stride_is_contiguous(&one, DIMS(8, 4, 1)));
    assert_false(stride_is_contiguous(&one, DIMS(4, 4, 2)));
}

static void expect_rows(Shape s, const int64_t *stride, bool ok, int64_t rows, int64_t columns,
                        int64_t pitch)
{
    Tensor t = tensor_make(NULL, DTYPE_F32, s);
    if (stride) memcpy(t.stride, stride, sizeof(int64_t) * (size_t)s.rank);
    int64_t r = -1, c = -1, p = -1;
    assert_int_equal(tensor_rows(&t, &r, &c, &p), ok);
    if (!ok) rows = columns = pitch = -1;
    assert_int_equal(r, rows);
    assert_int_equal(c, columns);
    assert_int_equal(p, pitch);
}

static void rows(void **state)
{
    (void)state;
    Shape s = shape_make(3, DIMS(2, 3, 4), bse);
    expect_rows(s, NULL, true, 6, 4, 4);
    expect_rows(s, DIMS(30, 10, 1), true, 6, 4, 10); /* a slice of wider rows */
    expect_rows(s, DIMS(31, 10, 1), false, 0, 0, 0); /* a gap between batches */
    expect_rows(s, DIMS(12, 4, 2), false, 0, 0, 0);  /* columns apart */
    expect_rows(s, DIMS(4, 8, 1), false, 0, 0, 0);   /* transposed */
    expect_rows(shape_make(3, DIMS(2, 1, 4), bse), DIMS(50, 7, 1), true, 2, 4, 50);
    expect_rows(shape_make(3, DIMS(1, 3, 4), bse), DIMS(999, 9, 1), true, 3, 4, 9);
    expect_rows(shape_make(1, DIMS(7), bse), NULL, true, 1, 7, 7);
    expect_rows(shape_make(0, NULL, NULL), NULL, true, 1, 1, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(texts),
        cmocka_unit_test(counts),
        cmocka_unit_test(strides),
        cmocka_unit_test(rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
