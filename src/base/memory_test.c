/* Arenas, strings, vectors, error sentences, hashes, what the machine says. */
#include "base/base.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include <setjmp.h>
#include <cmocka.h>
#undef fail /* cmocka has a macro of that name */

static void arenas(void **state)
{
    (void)state;
    Arena arena = {0};
    uint8_t *pieces[300];
    for (int i = 0; i < 300; i++) { /* small ones, and some larger than a block */
        size_t n = i % 50 == 49 ? 200000 : (size_t)i * 7;
        pieces[i] = arena_alloc(&arena, n);
        assert_int_equal((uintptr_t)pieces[i] % 16, 0);
        for (size_t j = 0; j < n; j++) assert_int_equal(pieces[i][j], 0);
        memset(pieces[i], i, n);
    }
    for (int i = 0; i < 300; i++) { /* nobody wrote into another's */
        size_t n = i % 50 == 49 ? 200000 : (size_t)i * 7;
        for (size_t j = 0; j < n; j++) assert_int_equal(pieces[i][j], (uint8_t)i);
    }
    assert_string_equal(arena_printf(&arena, "%s-%d", "x", 12), "x-12");
    assert_string_equal(arena_strndup(&arena, "abcdef", 3), "abc");
    assert_true(arena.used_bytes > 6 * 200000);
    arena_deinit(&arena);
    assert_null(arena.head);
    arena_deinit(&arena);
}

static void strings(void **state)
{
    (void)state;
    Str s = {0};
    for (int i = 0; i < 1000; i++) str_printf(&s, "%d,", i);
    assert_int_equal(s.n, 10 * 2 + 90 * 3 + 900 * 4);
    assert_int_equal(strlen(s.at), s.n);
    str_clear(&s);
    assert_string_equal(s.at, "");
    str_add_n(&s, "a\0b", 3);
    assert_int_equal(s.n, 3);
    str_deinit(&s);
    VEC(int) v = {0};
    for (int i = 0; i < 100; i++) VEC_PUSH(&v, i * i);
    assert_int_equal(v.n, 100);
    assert_int_equal(v.at[99], 9801);
    VEC_FREE(&v);
}

static Status inner(void) { return fail(ERR_SHAPE, "a is [%d], b is [%d]", 2, 3); }
static Status outer(void)
{
    TRY_AS(inner(), "layer %d", 7);
    return OK;
}

static void sentences(void **state)
{
    (void)state;
    assert_int_equal(outer(), ERR_SHAPE);
    assert_string_equal(status_message(), "layer 7: a is [2], b is [3]");
    assert_int_equal(fail(ERR_IO, "again: %s", status_message()),
                     ERR_IO); /* from the buffer itself */
    assert_string_equal(status_message(), "again: layer 7: a is [2], b is [3]");
    char endless[5000];
    memset(endless, 'x', sizeof endless);
    endless[4999] = 0;
    assert_int_equal(fail(ERR_IO, "%s", endless), ERR_IO);
    fail_context("%s", endless);
    assert_true(strlen(status_message()) < 2048);
    for (int s = OK; s <= ERR_REFUSED; s++)
        assert_string_not_equal(status_name((Status)s), "unknown status");
}

static void checked_sizes(void **state)
{
    (void)state;
    size_t x = 5;
    assert_false(size_mul(SIZE_MAX, 2, &x));
    assert_false(size_add(SIZE_MAX, 1, &x));
    assert_true(size_mul(3, 4, &x) && x == 12);
    assert_int_equal(round_up(65, 64), 128);
    assert_int_equal(round_up(0, 64), 0);
}

/* Figures of the published xxHash library for the empty text and for one of each length class. */
static void hashes(void **state)
{
    (void)state;
    char hex[33];
    assert_true(hash_bytes("", 0) == 0x2d06800538d394c2);
    hash128_hex(hash128_bytes("", 0), hex);
    assert_string_equal(hex, "99aa06d3014798d86001c324468d497f");
    uint8_t data[1000];
    for (int i = 0; i < 1000; i++) data[i] = (uint8_t)i;
    Hash128 h = hash128_bytes(data, 1000);
    for (int i = 0; i < 1000; i += 37) { /* any flipped bit shows */
        data[i] ^= 4;
        Hash128 other = hash128_bytes(data, 1000);
        assert_true(other.low != h.low || other.high != h.high);
        data[i] ^= 4;
    }
}

static void machine(void **state)
{
    (void)state;
    int cores = cpu_count();
    assert_in_range(cores, 1, 1 << 20);
    cpu_set_t all, one;
    CPU_ZERO(&one);
    assert_int_equal(sched_getaffinity(0, sizeof all, &all), 0);
    for (int i = 0; i < CPU_SETSIZE && !CPU_COUNT(&one); i++)
        if (CPU_ISSET(i, &all)) CPU_SET(i, &one);
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    assert_int_equal(cpu_count(), 1);
    assert_int_equal(sched_setaffinity(0, sizeof all, &all), 0);
    assert_int_equal(cpu_count(), cores);

    assert_true(memory_total_bytes() > 1 << 26);
    assert_true(memory_available_bytes() > 0 && memory_available_bytes() <= memory_total_bytes());
    size_t before = memory_peak_rss_bytes();
    enum { GROW = 64 << 20 };
    char *touched = xmalloc(GROW);
    memset(touched, 1, GROW);
    assert_true(touched[GROW / 2] == 1 && memory_peak_rss_bytes() >= before + GROW / 2);
    free(touched);
    double a = clock_s(), b = clock_s();
    assert_true(b >= a && clock_wall_s() > 1.7e9);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(arenas),        cmocka_unit_test(strings), cmocka_unit_test(sentences),
        cmocka_unit_test(checked_sizes), cmocka_unit_test(hashes),  cmocka_unit_test(machine),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
