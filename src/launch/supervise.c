/* The supervisor: starts the ranks, watches, and starts them again.
 *
 * The starter (mpirun, srun) is its only child; ranks of this host leave word in a status
 * directory, so that the supervisor knows how far they are even when they are dead. All waiting is
 * in one loop with a clock. */
#include "launch/launch_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { EXIT_REFUSED = 3, EXIT_INTERRUPTED = 75 };
static const double look_every_s = 0.25, probe_s = 10, end_s = 30, term_s = 5;

static volatile sig_atomic_t stop_requests; /* set by signal handlers */
void launch_request_stop(void) { stop_requests = stop_requests + 1; }

typedef struct Start {
    const LaunchJob *job;
    char dir[64]; /* of status files; "": none */
    pid_t pid;
    double begun_s, looked_s, asked_s, failed_s; /* 0: not yet */
    bool alive;                                  /* some rank has left word */
} Start;

static void sleep_s(double seconds)
{
    nanosleep(&(struct timespec){.tv_nsec = (long)(seconds * 1e9)}, NULL);
}

/* ---- the child -------------------------------------------------------------------------- */

/* In the child: of a FAULT with several parts the `number`-th start (0: the first) gets its own;
 * one
 * without is for the first FAULT_STARTS starts (1), so that what it breaks breaks once. */
static void choose_fault(int number)
{
    const char *fault = getenv("FAULT"), *starts = getenv("FAULT_STARTS");
    int64_t n = 1;
    if (!fault) return;
    if (!strchr(fault, ';')) {
        if (starts && !parse_i64(starts, &n)) n = 1;
        if (number >= n) unsetenv("FAULT");
        return;
    }
    for (int i = 0; i < number && fault; i++) {
        fault = strchr(fault, ';');
        fault += fault != NULL;
    }
    if (!fault) {
        unsetenv("FAULT");
        return;
    }
    char *part = strndup(fault, strcspn(fault, ";"));
    setenv("FAULT", part ? part : "", 1);
    free(part);
}

static _Noreturn void become_starter(const Start *s, const char *const *argv, int number)
{
    Str hosts = {0};
    choose_fault(number);
    if (s->dir[0]) setenv("DROVER_STATUS_DIR", s->dir, 1);
    launch_hosts_text(&s->job->hosts, &hosts);
    if (s->job->pretended && hosts.n) setenv("DROVER_TEST_HOSTS", hosts.at, 1);
    prctl(PR_SET_PDEATHSIG, SIGTERM); /* should the supervisor be killed, the ranks end too */
    setpgid(0, 0);
    int null = open("/dev/null", O_RDONLY);
    if (null >= 0) dup2(null, STDIN_FILENO);
    execvp(argv[0], (char *const *)(uintptr_t)argv);
    _exit(127);
}

static Status begin(Start *s, const LaunchLayout *layout, int number)
{
    Arena arena = {0};
    const char **argv;
    snprintf(s->dir, sizeof s->dir, "/dev/shm/drover-launch.XXXXXX");
    if (!mkdtemp(s->dir)) s->dir[0] = 0;
    Status status = launch_command(&arena, s->job, layout, &argv);
    if (status == OK) {
        s->begun_s = clock_s();
        s->pid = fork();
        if (s->pid == 0) become_starter(s, argv, number);
        if (s->pid < 0) status = fail(ERR_IO, "no process for %s: %s", argv[0], strerror(errno));
    }
    arena_deinit(&arena);
    return status;
}

static bool reap(Start *s, double seconds, int *code)
{
    double until_s = clock_s() + seconds;
    int status;
    for (;;) {
        pid_t ended = waitpid(s->pid, &status, WNOHANG);
        if (ended == s->pid) *code = launch_exit_code(status);
        if (ended < 0) *code = 1;
        if (ended) return true;
        if (clock_s() >= until_s) return false;
        sleep_s(0.01);
    }
}

/* In order first, then by force, ranks that outlive their starter too. */
static void end_child(Start *s, const char *why, int *code)
{
    log_warn("%s: ending the ranks", why);
    kill(s->pid, SIGTERM);
    if (!reap(s, term_s, code)) {
        kill(-s->pid, SIGKILL);
        while (!reap(s, term_s, code)) continue;
    }
    *code = 128 + SIGTERM;
}

/* ---- watching --------------------------------------------------------------------------- */

/* True when the child has been ended because nothing else was left to do. */
static bool heed_stop(Start *s, int *code)
{
    if (!stop_requests) return false;
    double now_s = clock_s();
    if (s->asked_s == 0) {
        log_info("stop requested: the ranks finish their step, save and end");
        kill(s->pid, SIGUSR1); /* the starter passes it on */
        s->asked_s = now_s;
    }
    if (stop_requests < 2 && now_s - s->asked_s < s->job->stop_s) return false;
    end_child(s, stop_requests > 1 ? "asked twice" : "the ranks did not end in time", code);
    return true;
}

static const char *what_hangs(Start *s, const LaunchSeen *seen)
{
    double now_s = clock_s(), silence_s = 2 * s->job->config->parallel.deadline + 2 * end_s;
    s->alive |= seen->n > 0;
    if (seen->failed && s->failed_s == 0) s->failed_s = now_s;
    if (!s->alive && s->dir[0] && s->job->ranks > 1 && now_s - s->begun_s > s->job->start_s)
        return "no rank has started within the deadline";
    if (s->failed_s > 0 && now_s - s->failed_s > end_s)
        return "the ranks have failed, but not ended";
    if (s->alive && !seen->in_setup && now_s - seen->active_s > silence_s)
        return "no rank has done anything for long";
    return NULL;
}

static bool heed_ranks(Start *s, int *code)
{
    LaunchSeen seen;
    if (!s->dir[0] || clock_s() - s->looked_s < look_every_s) return false;
    s->looked_s = clock_s();
    launch_look(s->dir, &seen);
    const char *why = what_hangs(s, &seen);
    launch_seen_deinit(&seen);
    if (why) end_child(s, why, code);
    return why != NULL;
}

/* What the starter's exit code means. srun gives the largest of all ranks' codes, and it ends ranks
 * that end a moment after the first one: where all have said how they ended, that counts. */
static void judge_end(const Start *s, int code, LaunchEnd *end)
{
    LaunchSeen seen = {.step = -1};
    if (s->dir[0]) launch_look(s->dir, &seen);
    end->step = seen.step;
    end->code = seen.all_stopped ? EXIT_INTERRUPTED : seen.all_done ? 0 : code;
    end->saved = launch_newest_checkpoint(s->job->config->dir);
    launch_seen_deinit(&seen);
}

static Status run_once(const LaunchJob *job, const LaunchLayout *layout, int number, LaunchEnd *end)
{
    Start s = {.job = job};
    int code = 1;
    TRY(begin(&s, layout, number));
    while (!reap(&s, 0.02, &code) && !heed_stop(&s, &code) && !heed_ranks(&s, &code)) continue;
    judge_end(&s, code, end);
    kill(-s.pid, SIGKILL); /* what the starter has left of its own */
    if (s.dir[0] && end->code != 0) launch_kill_ranks(s.dir);
    return s.dir[0] ? dir_remove_tree(s.dir) : OK;
}

/* ---- layouts ---------------------------------------------------------------------------- */

static void say_gone(const LaunchHosts *hosts, Str *out)
{
    int gone = 0;
    for (int i = 0; i < hosts->n; i++) gone += hosts->at[i].gone;
    if (!gone) return;
    str_printf(out, "%d of %d hosts %s gone (", gone, hosts->n, gone == 1 ? "is" : "are");
    int named = 0;
    for (int i = 0; i < hosts->n && named < 8; i++)
        if (hosts->at[i].gone) str_printf(out, "%s%s", named++ ? ", " : "", hosts->at[i].name);
    str_add(out, gone > named ? ", ...): " : "): ");
}

static void say_layout(const LaunchJob *job, const LaunchLayout *now)
{
    LaunchLayout full = launch_layout_of(job->config);
    Str text = {0};
    say_gone(&job->hosts, &text);
    str_printf(&text, "%lld of %lld ranks go on", (long long)now->ranks, (long long)full.ranks);
    if (now->dp != full.dp)
        str_printf(&text, ", dp %lld -> %lld", (long long)full.dp, (long long)now->dp);
    if (now->fsdp != full.fsdp)
        str_printf(&text, ", fsdp %lld -> %lld", (long long)full.fsdp, (long long)now->fsdp);
    str_printf(&text, ", %lld micro-batch%s of %lld instead of %lld of %lld; the batch stays %lld",
               (long long)now->n_micro, now->n_micro == 1 ? "" : "es", (long long)now->micro_batch,
               (long long)full.n_micro, (long long)full.micro_batch,
               (long long)job->config->train.batch);
    log_warn("%s", text.at);
    str_deinit(&text);
}

static Status refuse_gone(const LaunchJob *job, int64_t slots)
{
    Str text = {0};
    say_gone(&job->hosts, &text);
    Status status = fail(ERR_REFUSED,
                         "%s%lld ranks do not fit the %lld slots that are left; start with fewer "
                         "hosts, or allow less with --min-ranks",
                         text.n ? text.at : "", (long long)job->ranks, (long long)slots);
    str_deinit(&text);
    return status;
}

/* The layout for what is there now. `refused` layouts of those possible did not fit the memory. */
static Status choose(LaunchJob *job, bool may_shrink, int refused, LaunchLayout *layout)
{
    Arena arena = {0};
    LaunchLayout *list;
    int n;
    int64_t slots = job->ranks;
    if (job->hosts.n) {
        TRY(launch_hosts_probe(&job->hosts, job->probe, probe_s));
        slots = launch_hosts_slots(&job->hosts);
    } else if (job->starter == LAUNCH_SRUN) {
        slots = launch_slurm_slots();
    }
    if (slots < job->ranks && !may_shrink) return refuse_gone(job, slots);
    Status status = launch_layouts(&arena, job->config, job->min_ranks, slots, &list, &n);
    if (status == OK && refused >= n)
        status = fail(ERR_REFUSED,
                      "no layout for the %lld slots that are left fits the memory of a rank",
                      (long long)slots);
    if (status == OK) *layout = list[refused];
    arena_deinit(&arena);
    TRY(status);
    if (layout->ranks != job->ranks) say_layout(job, layout);
    return OK;
}

/* ---- again and again -------------------------------------------------------------------- */

static void describe(int code, char text[64])
{
    if (code > 128 && code < 128 + 65)
        snprintf(text, 64, "exit %d, signal %d (%s)", code, code - 128, strsignal(code - 128));
    else
        snprintf(text, 64, "exit %d", code);
}

static void say_again(const LaunchPolicy *p, const LaunchEnd *end, double wait_s)
{
    char code[64];
    Str text = {0};
    describe(end->code, code);
    str_printf(&text, "the ranks failed (%s)", code);
    if (end->step > 0) str_printf(&text, " in step %lld", (long long)end->step);
    str_printf(&text, "; start again (%lld of %lld) in %.1f s ", (long long)p->restarts,
               (long long)p->max_restarts, wait_s);
    if (end->saved >= 0)
        str_printf(&text, "from the checkpoint of step %lld", (long long)end->saved);
    else
        str_add(&text, "from the beginning");
    log_warn("%s", text.at);
    str_deinit(&text);
}

static void wait_unless_stopped(double seconds)
{
    double until_s = clock_s() + seconds;
    while (!stop_requests && clock_s() < until_s) sleep_s(0.02);
}

/* It is over, but not well: what the supervisor adds to what the ranks have said. */
static void say_end(const LaunchEnd *end, const char *why)
{
    char code[64];
    describe(end->code, code);
    if (!why) return;
    if (end->step > 0)
        log_warn("the ranks failed (%s) in step %lld, and are not started again: %s", code,
                 (long long)end->step, why);
    else
        log_warn("the ranks failed (%s), and are not started again: %s", code, why);
}

Status launch_supervise(LaunchJob *job, int *exit_code)
{
    LaunchEnd end = {.code = 1};
    LaunchLayout layout;
    double wait_s;
    const char *why;
    for (int number = 0, refused = 0;; number++) {
        TRY(choose(job, number > 0 || job->may_shrink, refused, &layout));
        TRY(run_once(job, &layout, number, &end));
        if (end.code == EXIT_REFUSED && layout.ranks != job->ranks) {
            refused++; /* a smaller layout may need more memory than the first one */
            continue;
        }
        refused = 0;
        if (stop_requests && end.code != 0)
            end.code = EXIT_INTERRUPTED; /* whatever ended the ranks, a later start goes on */
        if (!launch_policy_again(&job->policy, &end, &wait_s, &why)) break;
        say_again(&job->policy, &end, wait_s);
        wait_unless_stopped(wait_s);
        if (stop_requests) end.code = EXIT_INTERRUPTED;
        if (stop_requests) break;
    }
    say_end(&end, why);
    *exit_code = end.code;
    return OK;
}
