/* NameIndex against what it stands for: the first of many names, found by a walk. */
#include "base/base.h"

#include "base/testing.h"

#include <stdlib.h>
#include <string.h>

static void as_a_walk_would(void **state)
{
    (void)state;
    enum { N = 3000 };
    Arena arena = {0};
    NameIndex index = {0};
    const char *names[N];
    assert_int_equal(name_index_find(&index, "x0"), -1);
    for (int i = 0; i < N; i++) {
        names[i] = arena_printf(&arena, "x%d", i * 7 % 2000); /* some twice: the first stays */
        name_index_put(&index, names[i], i);
        for (int k = i % 50; k <= i; k += 50) {
            int first = 0;
            while (strcmp(names[first], names[k]) != 0) first++;
            assert_int_equal(name_index_find(&index, names[k]), first);
        }
        assert_int_equal(name_index_find(&index, "x2000"), -1);
        assert_int_equal(name_index_find(&index, ""), -1);
    }
    assert_int_equal(index.n, 2000);
    name_index_put(&index, "", N);
    assert_int_equal(name_index_find(&index, ""), N);
    name_index_deinit(&index);
    assert_int_equal(name_index_find(&index, names[0]), -1);
    arena_deinit(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(as_a_walk_would)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
