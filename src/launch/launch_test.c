/* Hosts, layouts, restarts, commands; and the supervisor with a stand-in for mpirun that ends as it
 * is told. */
#include "launch/launch_internal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/testing.h"

static Arena arena;
static char scratch[] = "/tmp/drover-launch-XXXXXX";

static const char *in_scratch(const char *name) { return path_join(&arena, scratch, name); }

static void write_text(const char *path, const char *text)
{
    assert_int_equal(file_write_atomic(path, text, strlen(text)), OK);
}

static RunConfig config_of(const char *const *settings, int n)
{
    RunConfig c;
    assert_int_equal(run_config_load(NULL, settings, n, &c), OK);
    return c;
}

/* ---- hosts ------------------------------------------------------------------------------ */

static void test_hosts(void **state)
{
    (void)state;
    static const char *const bad[] = {"",   "a:0",  "a:x",        "a:1,a:2", "a b",
                                      "-x", "a;rm", "a:99999999", "a,,b",    ":3"};
    LaunchHosts h;
    assert_int_equal(launch_hosts_parse(&arena, "node0:4,node1,n2.x-y:2", &h), OK);
    assert_int_equal(h.n, 3);
    assert_int_equal(launch_hosts_slots(&h), 7);
    Str text = {0};
    h.at[1].gone = true;
    launch_hosts_text(&h, &text);
    assert_string_equal(text.at, "node0:4,n2.x-y:2");
    str_deinit(&text);
    for (int i = 0; i < COUNT_OF(bad); i++)
        assert_int_equal(launch_hosts_parse(&arena, bad[i], &h), ERR_ARG);
    write_text(in_scratch("hosts"), "# all\nnode0 slots=4\n\n  node1\tslots=2 # half\nnode2");
    assert_int_equal(launch_hosts_read(&arena, in_scratch("hosts"), &h), OK);
    assert_int_equal(launch_hosts_slots(&h), 7);
    write_text(in_scratch("hosts"), "node0 slot=4\n");
    assert_int_equal(launch_hosts_read(&arena, in_scratch("hosts"), &h), ERR_ARG);
}

static void test_probe(void **state)
{
    (void)state;
    LaunchHosts h;
    assert_int_equal(launch_hosts_parse(&arena, "up:1,down:1,slow:1", &h), OK);
    double start_s = clock_s();
    assert_int_equal(launch_hosts_probe(&h, "test %h = up || { test %h = slow && sleep 20; }", 0.5),
                     OK);
    assert_true(clock_s() - start_s < 5);
    assert_true(!h.at[0].gone && h.at[1].gone && h.at[2].gone);
    assert_int_equal(launch_hosts_slots(&h), 1);
}

/* ---- layouts ---------------------------------------------------------------------------- */

typedef struct LayoutCase {
    const char *settings[6];
    int n_settings;
    int64_t slots, min_ranks;
    LaunchLayout want[3]; /* dp, fsdp, ranks, micro_batch, n_micro */
    int n;
} LayoutCase;

static const LayoutCase layouts[] = {
    {{"train.batch=16", "parallel.dp=4"}, 2, 4, 1, {{4, 1, 4, 4, 1}}, 1},
    {{"train.batch=16", "parallel.dp=4"}, 2, 3, 1, {{2, 1, 2, 4, 2}}, 1}, /* 3 does not divide the
                                                                             batch */
    {{"train.batch=12", "parallel.dp=3"}, 2, 2, 1, {{2, 1, 2, 3, 2}}, 1}, /* nor 4 the new share of
                                                                             6 */
    {{"train.batch=16", "train.micro_batch=2", "parallel.dp=4", "parallel.tp=2"},
     4,
     5,
     1,
     {{2, 1, 4, 2, 4}},
     1},
    {{"train.batch=8", "parallel.dp=2", "parallel.fsdp=2"},
     3,
     3,
     1,
     {{1, 2, 2, 2, 2}, {2, 1, 2, 2, 2}},
     2},
    {{"train.batch=8", "parallel.fsdp=2", "parallel.ep=2"}, 3, 3, 1, {{1, 1, 2, 2, 2}}, 1},
    {{"train.batch=16", "train.canonical=true", "train.micro_batch=2", "parallel.dp=8"},
     4,
     7,
     1,
     {{4, 1, 4, 2, 2}},
     1}, /* 8 leaves, which stay what they are */
    {{"train.batch=12", "train.canonical=true", "train.micro_batch=3", "parallel.dp=4"},
     4,
     3,
     1,
     {{2, 1, 2, 3, 2}},
     1}, /* a batch of 12 sequences could be shared by 3 ranks, 4 leaves of them cannot */
    {{"train.batch=8", "parallel.dp=4"}, 2, 3, 3, {{0}}, 0},
    {{"train.batch=8", "parallel.dp=2", "parallel.pp=2"}, 3, 1, 1, {{0}}, 0},
};

static void test_layouts(void **state)
{
    (void)state;
    for (int i = 0; i < COUNT_OF(layouts); i++) {
        const LayoutCase *l = &layouts[i];
        RunConfig c = config_of(l->settings, l->n_settings);
        LaunchLayout *list;
        int n;
        Status status = launch_layouts(&arena, &c, l->min_ranks, l->slots, &list, &n);
        assert_int_equal(status, l->n ? OK : ERR_REFUSED);
        if (l->n) assert_true(n >= l->n);
        for (int k = 0; k < l->n; k++) assert_memory_equal(&list[k], &l->want[k], sizeof list[k]);
        run_config_deinit(&c);
    }
}

/* ---- restarts --------------------------------------------------------------------------- */

static void test_policy(void **state)
{
    (void)state;
    LaunchPolicy p = {.max_restarts = 4, .backoff_s = 1};
    double wait_s;
    const char *why;
    static const int over[] = {0, 2, 3, 75};
    for (int i = 0; i < COUNT_OF(over); i++) {
        assert_false(launch_policy_again(&p, &(LaunchEnd){over[i], 5, 6}, &wait_s, &why));
        assert_null(why);
    }
    for (int64_t step = 11; step < 15; step++) { /* different steps, nothing saved */
        assert_true(launch_policy_again(&p, &(LaunchEnd){137, 10, step}, &wait_s, &why));
        assert_true(wait_s == (double)(1 << (step - 11)));
    }
    assert_false(launch_policy_again(&p, &(LaunchEnd){137, 10, 15}, &wait_s, &why));
    assert_non_null(strstr(why, "--max-restarts"));
    /* a new checkpoint: from the beginning */
    assert_true(launch_policy_again(&p, &(LaunchEnd){137, 20, 25}, &wait_s, &why));
    assert_true(wait_s == 1);
    assert_true(launch_policy_again(&p, &(LaunchEnd){1, 20, 25}, &wait_s, &why));
    assert_false(launch_policy_again(&p, &(LaunchEnd){1, 20, 25}, &wait_s, &why));
    assert_non_null(strstr(why, "same step"));
}

/* ---- commands --------------------------------------------------------------------------- */

static const char *words(const LaunchJob *job, const LaunchLayout *layout)
{
    const char **argv;
    Str text = {0};
    assert_int_equal(launch_command(&arena, job, layout, &argv), OK);
    launch_quote(argv, &text);
    const char *copy = arena_strdup(&arena, text.at);
    str_deinit(&text);
    return copy;
}

static void test_commands(void **state)
{
    (void)state;
    static const char *const settings[] = {"train.batch=8", "name=it's", "parallel.dp=4"};
    RunConfig c = config_of((const char *[]){"train.batch=8", "parallel.dp=4"}, 2);
    LaunchJob job = {.config = &c,
                     .program = "/opt/drover",
                     .run_file = "a b.yaml",
                     .settings = settings,
                     .n_settings = 3,
                     .ranks = 4,
                     .starter = LAUNCH_MPIRUN};
    LaunchLayout full = launch_layout_of(&c), half = {2, 1, 2, 2, 2};
    assert_non_null(strstr(words(&job, &full), "--oversubscribe -n 4 /opt/drover train 'a b.yaml' "
                                               "train.batch=8 'name=it'\\''s' parallel.dp=4 "));
    assert_null(strstr(words(&job, &full), "micro_batch"));
    assert_int_equal(launch_hosts_parse(&arena, "n0:2,n1:2", &job.hosts), OK);
    job.hosts.at[0].gone = true;
    assert_non_null(strstr(words(&job, &half), "--host n1:2 -n 2 "));
    assert_non_null(
        strstr(words(&job, &half), "parallel.dp=2 parallel.fsdp=1 train.micro_batch=2"));
    job.starter = LAUNCH_SRUN;
    assert_non_null(strstr(words(&job, &half), "srun --mpi=pmix --kill-on-bad-exit=1"));
    run_config_deinit(&c);
}

static void test_script(void **state)
{
    (void)state;
    RunConfig c = config_of((const char *[]){"name=long", "train.batch=8", "parallel.dp=4"}, 3);
    const char *more = "--partition=p";
    LaunchJob job = {.config = &c,
                     .program = "/opt/drover",
                     .run_file = "r.yaml",
                     .ranks = 4,
                     .min_ranks = 2,
                     .tasks_per_node = 2,
                     .grace_s = 90,
                     .sbatch = &more,
                     .n_sbatch = 1,
                     .policy = {.max_restarts = 7, .backoff_s = 1}};
    static const char *const want[] = {
        "#SBATCH --job-name=long\n",
        "#SBATCH --nodes=1-2\n",
        "#SBATCH --ntasks-per-node=2\n",
        "#SBATCH --requeue\n",
        "#SBATCH --signal=B:USR1@90\n",
        "#SBATCH --partition=p\n",
        "exec /opt/drover launch r.yaml -n 4 --min-ranks=2 --max-restarts=7"};
    Str text = {0};
    assert_int_equal(launch_slurm_script(&arena, &job, "runs/long", &text), OK);
    for (int i = 0; i < COUNT_OF(want); i++) assert_non_null(strstr(text.at, want[i]));
    job.tasks_per_node = 3;
    assert_int_equal(launch_slurm_script(&arena, &job, "runs/long", &text), ERR_REFUSED);
    job.tasks_per_node = 2;
    more = "--x\n#SBATCH --y";
    assert_int_equal(launch_slurm_script(&arena, &job, "runs/long", &text), ERR_ARG);
    str_deinit(&text);
    run_config_deinit(&c);
}

static void test_capture(void **state)
{
    (void)state;
    Str out = {0};
    int code;
    assert_int_equal(
        launch_capture((const char *[]){"sh", "-c", "echo hi; exit 4", NULL}, 5, &code, &out), OK);
    assert_int_equal(code, 4);
    assert_string_equal(out.at, "hi\n");
    double start_s = clock_s();
    assert_int_equal(launch_capture((const char *[]){"sleep", "20", NULL}, 0.2, &code, &out), OK);
    assert_true(code == -1 && clock_s() - start_s < 5);
    str_deinit(&out);
}

/* ---- the supervisor --------------------------------------------------------------------- */

/* Each start of the stand-in adds its words as a line to `starts` and does what the next line of
 * `plan` says. */
static const char stand_in[] = "#!/bin/sh\n"
                               "cd \"$STAND_IN\"\n"
                               "echo \"$FAULT $*\" >>starts\n"
                               "eval \"$(sed -n \"$(wc -l <starts)p\" plan)\"\n";

static const char *fault = "comm:99";

static void prepare(const char *plan)
{
    write_text(in_scratch("mpirun"), stand_in);
    assert_int_equal(chmod(in_scratch("mpirun"), 0700), 0);
    write_text(in_scratch("plan"), plan);
    unlink(in_scratch("starts"));
    unlink(in_scratch("node1.down"));
    setenv("PATH", arena_printf(&arena, "%s:%s", scratch, "/usr/bin:/bin"), 1);
    setenv("STAND_IN", scratch, 1);
    setenv("FAULT", fault, 1);
}

static const char *starts(void)
{
    Bytes text;
    assert_int_equal(file_read(&arena, in_scratch("starts"), 1 << 20, &text), OK);
    return (const char *)text.at;
}

static int n_starts(void)
{
    int n = 0;
    for (const char *p = starts(); *p; p++) n += *p == '\n';
    return n;
}

static int supervise(const char *plan, const LaunchJob *wanted)
{
    LaunchJob job = *wanted;
    int code = -1;
    RunConfig c = config_of((const char *[]){arena_printf(&arena, "dir=%s/run", scratch),
                                             "train.batch=8", "parallel.dp=4"},
                            3);
    prepare(plan);
    job.config = &c;
    job.program = "/opt/drover";
    job.ranks = 4;
    job.min_ranks = 1;
    job.starter = LAUNCH_MPIRUN;
    job.start_s = job.start_s > 0 ? job.start_s : 60;
    job.policy = (LaunchPolicy){.max_restarts = 5, .backoff_s = 0.01};
    log_set_level(LOG_SILENT);
    Status status = launch_supervise(&job, &code);
    log_set_level(LOG_INFO);
    run_config_deinit(&c);
    return status == OK ? code : 1000 + (int)status;
}

static void test_restarts(void **state)
{
    (void)state;
    assert_int_equal(supervise("kill -9 $$\nexit 0\n", &(LaunchJob){0}), 0);
    assert_int_equal(n_starts(), 2);
    assert_int_equal(strncmp(starts(), "comm:99 ", 8), 0); /* the fault is for the first start */
    assert_non_null(strstr(starts(), "\n --quiet"));
    assert_int_equal(supervise("exit 3\n", &(LaunchJob){0}), 3);
    assert_int_equal(n_starts(), 1);
    fault = "comm:98;;comm:97";
    supervise("kill -9 $$\nkill -9 $$\nkill -9 $$\nexit 0\n", &(LaunchJob){0});
    fault = "comm:99";
    assert_int_equal(strncmp(starts(), "comm:98 ", 8), 0); /* to each start its own */
    assert_non_null(strstr(starts(), "\n --quiet"));
    assert_non_null(strstr(starts(), "\ncomm:97 "));
    assert_int_equal(supervise("exit 75\n", &(LaunchJob){0}), 75);
    assert_int_equal(supervise("exit 1\nexit 1\nexit 1\nexit 0\n", &(LaunchJob){0}), 1);
    assert_int_equal(n_starts(), LAUNCH_SAME_STEP);
}

/* Something new is saved before each failure: it goes on beyond both limits. */
static void test_progress(void **state)
{
    (void)state;
    char plan[1024] = "";
    for (int i = 1; i <= 8; i++) {
        size_t n = strlen(plan);
        snprintf(plan + n, sizeof plan - n,
                 "mkdir -p run/ckpt; echo step-%08d >run/ckpt/latest; exit 1\n", i);
    }
    assert_int_equal(supervise(strncat(plan, "exit 0\n", 8), &(LaunchJob){0}), 0);
    assert_int_equal(n_starts(), 9);
    assert_int_equal(dir_remove_tree(in_scratch("run")), OK);
}

static void test_gone_hosts(void **state)
{
    (void)state;
    LaunchJob job = {.pretended = true,
                     .probe = arena_printf(&arena, "test ! -e %s/%%h.down", scratch)};
    assert_int_equal(launch_hosts_parse(&arena, "node0:2,node1:2", &job.hosts), OK);
    assert_int_equal(supervise("touch node1.down; exit 1\nexit 0\n", &job), 0);
    assert_int_equal(n_starts(), 2);
    assert_non_null(strstr(starts(), "-n 4 /opt/drover train parallel.dp=4 parallel.fsdp=1\n"));
    assert_non_null(strstr(
        starts(), "-n 2 /opt/drover train parallel.dp=2 parallel.fsdp=1 train.micro_batch=2\n"));
    /* the smaller layout does not fit the memory, and there is no other one */
    assert_int_equal(supervise("touch node1.down; exit 1\nexit 3\n", &job), 1000 + ERR_REFUSED);
    assert_non_null(strstr(status_message(), "memory"));
}

static void test_gone_from_the_start(void **state)
{
    (void)state;
    LaunchJob job = {.pretended = true, .probe = "test %h = node0"};
    assert_int_equal(launch_hosts_parse(&arena, "node0:2,node1:2", &job.hosts), OK);
    assert_int_equal(supervise("exit 0\n", &job), 1000 + ERR_REFUSED);
    assert_non_null(
        strstr(status_message(), "1 of 2 hosts is gone (node1): 4 ranks do not fit the 2 slots"));
}

/* No rank ever says anything: each start is ended at its deadline. */
static void test_start_deadline(void **state)
{
    (void)state;
    double start_s = clock_s();
    assert_int_equal(
        supervise("exec sleep 60\nexec sleep 60\nexec sleep 60\n", &(LaunchJob){.start_s = 0.3}),
        128 + 15);
    assert_true(clock_s() - start_s < 10);
}

/* Last, since a request to stop stays. */
static void test_stop(void **state)
{
    (void)state;
    launch_request_stop();
    assert_int_equal(supervise("trap 'exit 75' USR1; while :; do sleep 0.02; done\n",
                               &(LaunchJob){.stop_s = 20}),
                     75);
    double start_s = clock_s();
    assert_int_equal(
        supervise("trap '' USR1; while :; do sleep 0.02; done\n", &(LaunchJob){.stop_s = 0.2}), 75);
    assert_true(clock_s() - start_s < 10);
}

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
    return status == OK ? 0 : -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hosts),
        cmocka_unit_test(test_probe),
        cmocka_unit_test(test_layouts),
        cmocka_unit_test(test_policy),
        cmocka_unit_test(test_commands),
        cmocka_unit_test(test_script),
        cmocka_unit_test(test_capture),
        cmocka_unit_test(test_restarts),
        cmocka_unit_test(test_progress),
        cmocka_unit_test(test_gone_hosts),
        cmocka_unit_test(test_gone_from_the_start),
        cmocka_unit_test(test_start_deadline),
        cmocka_unit_test(test_stop),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
