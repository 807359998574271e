/* Files and directories, and every fault in an atomic write. */
#include "base/base.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <setjmp.h>
#include <cmocka.h>

static char scratch[] = "/tmp/drover-files-XXXXXX";
static Arena arena;

static int set_up(void **state)
{
    (void)state;
    return mkdtemp(scratch) ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    Status status = dir_remove_tree(scratch);
    arena_deinit(&arena);
    return status == OK && !dir_exists(scratch) ? 0 : -1;
}

static const char *in_scratch(const char *name) { return path_join(&arena, scratch, name); }

static void expect_content(const char *path, const char *text)
{
    Bytes read;
    assert_int_equal(file_read(&arena, path, 1 << 20, &read), OK);
    assert_int_equal(read.n, strlen(text));
    assert_memory_equal(read.at, text, read.n + 1); /* with the zero byte */
}

static void whole_files(void **state)
{
    (void)state;
    const char *path = in_scratch("text");
    assert_int_equal(file_write_atomic(path, "hello", 5), OK);
    expect_content(path, "hello");
    assert_int_equal(file_write_atomic(path, "", 0), OK);
    expect_content(path, "");
    uint64_t size;
    assert_int_equal(file_size(path, &size), OK);
    assert_int_equal(size, 0);
    assert_true(file_exists(path) && !dir_exists(path) && !file_exists(scratch) &&
                dir_exists(scratch));

    assert_int_equal(file_write_atomic(path, "123456", 6), OK);
    Bytes read;
    assert_int_equal(file_read(&arena, path, 6, &read), OK);
    assert_int_equal(file_read(&arena, path, 5, &read), ERR_FORMAT);
    assert_non_null(strstr(status_message(), path));
    assert_int_equal(file_read(&arena, in_scratch("absent"), 5, &read), ERR_IO);
    assert_non_null(strstr(status_message(), "No such file"));
    assert_int_equal(file_read(&arena, scratch, 5, &read), ERR_IO);
    assert_int_equal(file_unlink(path), OK);
    assert_int_equal(file_unlink(path), ERR_IO);
}

/* A pipe has no size; the limit still holds. */
static void a_pipe(void **state)
{
    (void)state;
    const char *path = in_scratch("pipe");
    assert_int_equal(mkfifo(path, 0600), 0);
    for (size_t max = 100000; max >= 99999; max--) {
        pid_t child = fork();
        if (child == 0) {
            int fd = open(path, O_WRONLY);
            char *much = xcalloc(100000, 1);
            memset(much, 'x', 100000);
            Status status = file_write(fd, much, 100000, path);
            _exit(status != OK);
        }
        Bytes read;
        Status status = file_read(&arena, path, max, &read);
        assert_int_equal(status, max == 100000 ? OK : ERR_FORMAT);
        if (status == OK) assert_int_equal(read.n, 100000);
        waitpid(child, NULL, 0);
    }
    unlink(path);
}

static void positioned_reads(void **state)
{
    (void)state;
    const char *path = in_scratch("pread");
    assert_int_equal(file_write_atomic(path, "0123456789", 10), OK);
    int fd = -1;
    char b[16];
    assert_int_equal(file_open_read(path, &fd), OK);
    assert_int_equal(file_pread(fd, b, 4, 3, path), OK);
    assert_memory_equal(b, "3456", 4);
    assert_int_equal(file_pread(fd, b, 4, 7, path), ERR_FORMAT);
    assert_non_null(strstr(status_message(), "ends at byte 10"));
    assert_int_equal(file_pread(fd, b, 0, 999, path), OK);
    assert_int_equal(file_close(fd, path), OK);
}

static void directories(void **state)
{
    (void)state;
    const char *deep = in_scratch("a/b//c/");
    assert_int_equal(dir_create(deep), OK);
    assert_int_equal(dir_create(deep), OK);
    assert_int_equal(dir_sync(deep), OK);
    static const char *const names[] = {"zeta", "alpha", "Beta", ".hidden"};
    for (int i = 0; i < COUNT_OF(names); i++)
        assert_int_equal(file_write_atomic(path_join(&arena, deep, names[i]), "x", 1), OK);
    DirEntries entries;
    assert_int_equal(dir_list(&arena, deep, &entries), OK);
    assert_int_equal(entries.n, 4);
    assert_string_equal(entries.name[0], ".hidden");
    assert_string_equal(entries.name[1], "Beta");
    assert_string_equal(entries.name[3], "zeta");
    assert_int_equal(dir_create(in_scratch("a/b/c/zeta")), ERR_IO); /* a file stands there */
    assert_int_equal(dir_list(&arena, in_scratch("nowhere"), &entries), ERR_IO);
    uint64_t free_bytes = 0;
    assert_int_equal(dir_free_bytes(deep, &free_bytes), OK);
    assert_true(free_bytes > 0);

    /* a link out of the tree is removed, what it leads to is not */
    assert_int_equal(file_write_atomic(in_scratch("outside"), "x", 1), OK);
    assert_int_equal(dir_create(in_scratch("outdir/kept")), OK);
    assert_int_equal(symlink(in_scratch("outside"), in_scratch("a/link")), 0);
    assert_int_equal(symlink(in_scratch("outdir"), in_scratch("a/dirlink")), 0);
    assert_int_equal(dir_remove_tree(in_scratch("a")), OK);
    assert_int_equal(dir_remove_tree(in_scratch("a")), OK);
    assert_false(dir_exists(in_scratch("a")));
    assert_true(file_exists(in_scratch("outside")));
    assert_true(dir_exists(in_scratch("outdir/kept")));
}

static void paths(void **state)
{
    (void)state;
    assert_string_equal(path_join(&arena, "a", "b"), "a/b");
    assert_string_equal(path_join(&arena, "a/", "b"), "a/b");
    assert_string_equal(path_join(&arena, "", "b"), "b");
    assert_string_equal(path_base("/x/y.c"), "y.c");
    assert_string_equal(path_base("y.c"), "y.c");
    static const char *const bad[] = {"", ".", "..", "a/b", "/", "a\\b", "a\nb", "\x7f"};
    for (int i = 0; i < COUNT_OF(bad); i++) assert_false(path_is_plain_name(bad[i]));
    assert_true(path_is_plain_name("model-00001.safetensors") && path_is_plain_name("..x"));
}

/* ---- faults ----------------------------------------------------------------------------- */

static const char *const write_points[] = {"open", "write", "fsync", "rename", "close"};

static int temporaries(void)
{
    DirEntries entries;
    assert_int_equal(dir_list(&arena, scratch, &entries), OK);
    int n = 0;
    for (int i = 0; i < entries.n; i++) n += strstr(entries.name[i], ".tmp-") != NULL;
    return n;
}

/* The n-th call of each point fails, n growing until nothing is left to fail. Whatever failed, the
 * file holds the old text or the new one, and nothing is left beside it. */
static void every_failure_of_an_atomic_write(void **state)
{
    (void)state;
    const char *path = in_scratch("atomic");
    int failures = 0;
    for (int p = 0; p < COUNT_OF(write_points); p++) {
        for (int n = 1;; n++) {
            assert_int_equal(fault_set(NULL), OK);
            assert_int_equal(file_write_atomic(path, "old text", 8), OK);
            assert_int_equal(fault_set(arena_printf(&arena, "%s:%d", write_points[p], n)), OK);
            Status status = file_write_atomic(path, "new", 3);
            bool fired = fault_count(write_points[p]) >= n;
            assert_int_equal(fault_set(NULL), OK);
            assert_int_equal(status, fired ? ERR_IO : OK);
            assert_int_equal(temporaries(), 0);
            if (!fired) {
                expect_content(path, "new");
                break;
            }
            failures++;
            assert_non_null(strstr(status_message(), scratch));
            bool after_rename = p == 2 && n == 2; /* the directory's fsync: the new name stands */
            expect_content(path, after_rename ? "new" : "old text");
        }
    }
    assert_int_equal(failures, 6);
}

/* The same with kill -9 at each point, in a child. */
static void every_death_in_an_atomic_write(void **state)
{
    (void)state;
    const char *path = in_scratch("killed");
    int deaths = 0;
    for (int p = 0; p < COUNT_OF(write_points); p++) {
        for (int n = 1, died = 1; died; n++) {
            assert_int_equal(file_write_atomic(path, "old text", 8), OK);
            pid_t child = fork();
            if (child == 0) {
                Status status = fault_set(arena_printf(&arena, "%s:%d:kill", write_points[p], n));
                if (status == OK) status = file_write_atomic(path, "new", 3);
                _exit(status != OK);
            }
            int how = 0;
            waitpid(child, &how, 0);
            died = WIFSIGNALED(how) && WTERMSIG(how) == SIGKILL;
            assert_true(died || (WIFEXITED(how) && WEXITSTATUS(how) == 0));
            bool after_rename = !died || (p == 2 && n == 2);
            expect_content(path, after_rename ? "new" : "old text");
            deaths += died;
        }
    }
    assert_int_equal(deaths, 6);
}

static void faults_of_the_rest(void **state)
{
    (void)state;
    const char *path = in_scratch("rest");
    assert_int_equal(file_write_atomic(path, "text", 4), OK);
    Bytes read;
    DirEntries entries;
    FileMap map;
    assert_int_equal(fault_set("read:1,open:2,open:3,map:1,mkdir:1,unlink:1,unlink:2"), OK);
    assert_int_equal(file_read(&arena, path, 10, &read), ERR_IO);
    assert_int_equal(file_read(&arena, path, 10, &read), ERR_IO);
    assert_int_equal(dir_list(&arena, scratch, &entries), ERR_IO);
    assert_int_equal(file_map(path, &map), ERR_IO);
    assert_int_equal(dir_create(in_scratch("never")), ERR_IO);
    assert_int_equal(dir_remove_tree(scratch), ERR_IO);
    assert_int_equal(file_unlink(path), ERR_IO);
    assert_int_equal(fault_set(NULL), OK);
    assert_true(file_exists(path) && !dir_exists(in_scratch("never")));
}

static void misspelt_faults(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "wirte:3",  "write",       "write:",         "write:0", "write:-1",
        "write:x",  "write:1:die", "write:1:kill:2", ":1",      "write:1,,open:2",
        "write:1@", "write:1@x",   "write:1@-1",     "write:+", "write:1+:halt"};
    assert_int_equal(fault_set("write:1"), OK);
    for (int i = 0; i < COUNT_OF(bad); i++) assert_int_equal(fault_set(bad[i]), ERR_ARG);
    assert_true(fault_hit("write")); /* a refused text leaves the switches as they were */
    assert_int_equal(fault_set(bad[0]), ERR_ARG);
    assert_non_null(strstr(status_message(), "did you mean write"));
    assert_int_equal(fault_set(NULL), OK);
    assert_false(fault_hit("write"));
}

/* With a rank behind it, a switch counts the calls of that rank only. */
static void faults_of_a_rank(void **state)
{
    (void)state;
    assert_int_equal(fault_set("comm:2@3,write:2+"), OK);
    for (int i = 1; i < 5; i++) {
        fault_set_rank(1, false);
        assert_false(fault_hit("comm"));
        fault_set_rank(3, false);
        assert_int_equal(fault_hit("comm"), i == 2);
        assert_int_equal(fault_hit("write"), i >= 2);
    }
    assert_int_equal(fault_count("comm"), 8);
    fault_set_rank(-1, false);
    fault_set_rank(3, true);
    assert_int_equal(fault_set("comm:1@3"), OK);
    assert_true(fault_hit("comm"));
    fault_set_rank(-1, true);
    assert_int_equal(fault_set(NULL), OK);
}

/* A real limit instead of an injected one: no file may pass 4 KiB. */
static void a_full_disk(void **state)
{
    (void)state;
    const char *path = in_scratch("full");
    assert_int_equal(file_write_atomic(path, "old text", 8), OK);
    pid_t child = fork();
    if (child == 0) {
        signal(SIGXFSZ, SIG_IGN);
        struct rlimit limit = {4096, 4096};
        char much[10000] = {0};
        if (setrlimit(RLIMIT_FSIZE, &limit) != 0) _exit(9);
        _exit((int)file_write_atomic(path, much, sizeof much));
    }
    int how = 0;
    waitpid(child, &how, 0);
    assert_true(WIFEXITED(how));
    assert_int_equal(WEXITSTATUS(how), ERR_IO);
    expect_content(path, "old text");
    assert_int_equal(temporaries(), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whole_files),
        cmocka_unit_test(a_pipe),
        cmocka_unit_test(positioned_reads),
        cmocka_unit_test(directories),
        cmocka_unit_test(paths),
        cmocka_unit_test(every_failure_of_an_atomic_write),
        cmocka_unit_test(faults_of_the_rest),
        cmocka_unit_test(misspelt_faults),
        cmocka_unit_test(faults_of_a_rank),
        cmocka_unit_test(a_full_disk),
        cmocka_unit_test(every_death_in_an_atomic_write), /* last: leaves the dead writers' files */
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
