/* Mapped files, also when somebody cuts them short. */
#include "base/base.h"

#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <setjmp.h>
#include <cmocka.h>

enum { N = 1 << 16 };
static char path[] = "/tmp/drover-map-XXXXXX";

static void write_file(size_t n)
{
    uint8_t *data = xmalloc(n);
    for (size_t i = 0; i < n; i++) data[i] = (uint8_t)(i * 7);
    assert_int_equal(file_write_atomic(path, data, n), OK);
    free(data);
}

static void copies_within_bounds(void **state)
{
    (void)state;
    write_file(N);
    FileMap map;
    uint8_t out[100];
    assert_int_equal(file_map(path, &map), OK);
    assert_int_equal(map.n, N);
    assert_int_equal(file_map_copy(&map, N - 100, out, 100), OK);
    for (size_t i = 0; i < 100; i++) assert_int_equal(out[i], (uint8_t)((N - 100 + i) * 7));
    assert_int_equal(file_map_copy(&map, N, out, 0), OK);
    static const size_t bad[][2] = {
        {N - 99, 100}, {N + 1, 0}, {SIZE_MAX, 2}, {2, SIZE_MAX}, {N, 1}};
    for (int i = 0; i < COUNT_OF(bad); i++)
        assert_int_equal(file_map_copy(&map, bad[i][0], out, bad[i][1]), ERR_FORMAT);
    assert_non_null(strstr(status_message(), path));
    file_unmap(&map);
    file_unmap(&map); /* twice is fine */
}

static void an_empty_file(void **state)
{
    (void)state;
    write_file(0);
    FileMap map;
    assert_int_equal(file_map(path, &map), OK);
    assert_true(map.n == 0 && map.at != NULL);
    assert_int_equal(file_map_copy(&map, 0, NULL, 0), OK);
    file_unmap(&map);
    assert_int_equal(file_map("/tmp", &map), ERR_IO);
    assert_int_equal(file_map("/dev/null", &map), ERR_IO);
    assert_int_equal(file_map("/nowhere/at/all", &map), ERR_IO);
}

static void a_file_cut_short_later(void **state)
{
    (void)state;
    write_file(N);
    FileMap map;
    uint8_t *out = xmalloc(N);
    assert_int_equal(file_map(path, &map), OK);
    assert_int_equal(truncate(path, 5000), 0);
    for (int again = 0; again < 3; again++) { /* the guard must hold more than once */
        assert_int_equal(file_map_copy(&map, 0, out, N), ERR_IO);
        assert_non_null(strstr(status_message(), "cut short"));
        assert_int_equal(file_map_copy(&map, 100, out, 4000), OK); /* what is left can be read */
        assert_int_equal(out[0], (uint8_t)700);
    }
    file_unmap(&map);
    free(out);
}

/* Outside the guarded copy a bus error still ends the process, with its own signal. */
static void unguarded_reads_die(void **state)
{
    (void)state;
    write_file(N);
    FileMap map;
    assert_int_equal(file_map(path, &map), OK);
    assert_int_equal(truncate(path, 0), 0);
    pid_t child = fork();
    if (child == 0) {
        alarm(5);
        volatile const uint8_t *at = map.at;
        _exit(at[N - 1] & 1);
    }
    int how = 0;
    waitpid(child, &how, 0);
    assert_true(WIFSIGNALED(how));
    assert_int_equal(WTERMSIG(how), SIGBUS);
    file_unmap(&map);
}

static int set_up(void **state)
{
    (void)state;
    int fd = mkstemp(path);
    return fd >= 0 ? close(fd) : -1;
}

static int tear_down(void **state)
{
    (void)state;
    return unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(copies_within_bounds),
        cmocka_unit_test(an_empty_file),
        cmocka_unit_test(a_file_cut_short_later),
        cmocka_unit_test(unguarded_reads_die),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
