/* drover launch RUN.yaml [key=value ...] -n RANKS */
#include "cli/cli.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "launch/launch.h"

typedef struct LaunchOptions {
    int64_t n, max_restarts, min_ranks, tasks_per_node;
    double backoff, start_deadline, stop_deadline, grace;
    const char *hosts, *hostfile, *probe, *sbatch;
    int starter;
    bool slurm, dry_run;
} LaunchOptions;

#define AT(field) offsetof(LaunchOptions, field)
static const Option options[] = {
    {"n", OPTION_INT, "RANKS", 0, 1 << 24, "0", NULL, AT(n),
     "ranks; 0: as many as the layout of the run file is for"},
    {"hosts", OPTION_TEXT, "LIST", 0, 0, NULL, NULL, AT(hosts),
     "node0:8,node1:8: where mpirun starts them, and how many on each; without it, here"},
    {"hostfile", OPTION_TEXT, "FILE", 0, 0, NULL, NULL, AT(hostfile),
     "the same as lines: node0 slots=8"},
    {"max-restarts", OPTION_INT, "N", 0, 1e9, "10", NULL, AT(max_restarts),
     "starts after failures, with no new checkpoint between them"},
    {"min-ranks", OPTION_INT, "N", 0, 1 << 24, "0", NULL, AT(min_ranks),
     "when hosts are gone, go on with so few; 0: any number that a layout fits; with --slurm, all"},
    {"backoff", OPTION_FLOAT, "SECONDS", 0, 3600, "1", NULL, AT(backoff),
     "before the first start after a failure; each further one waits twice as long"},
    {"probe", OPTION_TEXT, "COMMAND", 0, 0, NULL, NULL, AT(probe),
     "succeeds when host %h is there; without it, ssh"},
    {"starter", OPTION_CHOICE, "NAME", 0, 0, "auto", "auto|mpirun|srun", AT(starter),
     "what starts the ranks; auto: srun inside a Slurm job, else mpirun"},
    {"start-deadline", OPTION_FLOAT, "SECONDS", 1, 1e6, "300", NULL, AT(start_deadline),
     "until the first rank must have started"},
    {"stop-deadline", OPTION_FLOAT, "SECONDS", 1, 1e6, "600", NULL, AT(stop_deadline),
     "for the last checkpoint after a signal; then the ranks are ended"},
    {"slurm", OPTION_FLAG, NULL, 0, 0, NULL, NULL, AT(slurm),
     "hand it to sbatch as a job that is requeued when it is stopped or loses a node"},
    {"tasks-per-node", OPTION_INT, "N", 0, 1 << 20, "0", NULL, AT(tasks_per_node),
     "ranks on a node, with --slurm; 0: all on one"},
    {"grace", OPTION_FLOAT, "SECONDS", 0, 1e6, "300", NULL, AT(grace),
     "before its time limit the job is told to save, with --slurm"},
    {"sbatch", OPTION_TEXT, "OPTIONS", 0, 0, NULL, NULL, AT(sbatch),
     "more for sbatch: \"--time=2:00:00 --partition=long\""},
    {"dry-run", OPTION_FLAG, NULL, 0, 0, NULL, NULL, AT(dry_run),
     "check, and print the command or the script; start nothing"},
};

/* ---- signals ---------------------------------------------------------------------------- */

/* The first signal stops the ranks in order, the second one of the same kind ends them; SIGUSR1,
 * which Slurm sends before a limit, may come more than once. */
static void on_signal(int number)
{
    static volatile sig_atomic_t asked, seen_interrupt, seen_terminate;
    volatile sig_atomic_t *seen = number == SIGINT ? &seen_interrupt : &seen_terminate;
    bool again = number != SIGUSR1 && *seen;
    if (number != SIGUSR1) *seen = 1;
    if (!asked || again) launch_request_stop();
    asked = 1;
}

static void catch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal};
    const int numbers[] = {SIGINT, SIGTERM, SIGUSR1};
    sigemptyset(&action.sa_mask);
    for (int i = 0; i < COUNT_OF(numbers); i++) sigaction(numbers[i], &action, NULL);
    signal(SIGPIPE, SIG_IGN);
}

/* ---- the job ---------------------------------------------------------------------------- */

static Status own_path(Arena *arena, const char **path)
{
    char text[4096];
    ssize_t n = readlink("/proc/self/exe", text, sizeof text - 1);
    if (n <= 0) return fail(ERR_IO, "the path of this program is not known (/proc/self/exe)");
    *path = arena_strndup(arena, text, (size_t)n);
    return OK;
}

static Status read_hosts(Arena *arena, const LaunchOptions *o, LaunchJob *job)
{
    const char *pretended = getenv("DROVER_TEST_HOSTS");
    if (o->hosts && o->hostfile) return fail(ERR_ARG, "--hosts and --hostfile exclude each other");
    if ((o->hosts || o->hostfile) && (o->slurm || launch_in_slurm()))
        return fail(ERR_ARG, "Slurm chooses the hosts: --hosts and --hostfile are for mpirun");
    if (o->hosts) TRY(launch_hosts_parse(arena, o->hosts, &job->hosts));
    if (o->hostfile) TRY(launch_hosts_read(arena, o->hostfile, &job->hosts));
    job->pretended = pretended && *pretended;
    return OK;
}

static Status make_job(Arena *arena, const LaunchOptions *o, Operands operands, RunConfig *config,
                       LaunchJob *job)
{
    bool has_file = operands.n > 0 && !strchr(operands.at[0], '=');
    const char *restarts = getenv("SLURM_RESTART_COUNT");
    *job = (LaunchJob){.config = config,
                       .run_file = has_file ? operands.at[0] : NULL,
                       .settings = operands.at + has_file,
                       .n_settings = operands.n - has_file,
                       .probe = o->probe,
                       .starter = (LaunchStarter)o->starter,
                       .policy = {.max_restarts = o->max_restarts, .backoff_s = o->backoff},
                       .start_s = o->start_deadline,
                       .stop_s = o->stop_deadline,
                       .tasks_per_node = o->tasks_per_node,
                       .grace_s = o->grace};
    TRY(own_path(arena, &job->program));
    TRY(read_hosts(arena, o, job));
    job->ranks = o->n > 0 ? o->n : run_ranks(config);
    if (run_ranks(config) == 1)
        config->parallel.dp = job->ranks; /* no layout was asked for: the batch is shared */
    job->min_ranks = o->min_ranks > 0 ? o->min_ranks : o->slurm ? job->ranks : 1;
    if (job->min_ranks > job->ranks)
        return fail(ERR_ARG, "--min-ranks %lld is more than the %lld ranks",
                    (long long)job->min_ranks, (long long)job->ranks);
    job->may_shrink = o->min_ranks > 0 && (launch_in_slurm() || o->min_ranks < job->ranks);
    if (restarts && strcmp(restarts, "0") != 0)
        job->may_shrink = true; /* nodes may have gone since the first start */
    job->sbatch = &o->sbatch;
    job->n_sbatch = o->sbatch != NULL;
    return OK;
}

/* ---- start ------------------------------------------------------------------------------ */

static Status submit(Arena *arena, const LaunchJob *job, bool dry_run)
{
    Str script = {0}, answer = {0};
    const char *dir = path_join(arena, job->config->dir, "launch"),
               *path = path_join(arena, dir, "job.sh");
    Status status = launch_slurm_script(arena, job, job->config->dir, &script);
    if (status == OK && dry_run) fputs(script.at, stdout);
    if (status == OK && !dry_run) {
        TRY_GOTO(dir_create(dir), out); /* Slurm does not make the directory of the log */
        TRY_GOTO(file_write_atomic(path, script.at, script.n), out);
        TRY_GOTO(launch_slurm_submit(path, &answer), out);
        fputs(answer.n ? answer.at : "", stdout);
    }
out:
    str_deinit(&script);
    str_deinit(&answer);
    return status;
}

static Status print_command(Arena *arena, const LaunchJob *job)
{
    LaunchLayout full = launch_layout_of(job->config);
    const char **argv;
    Str text = {0};
    TRY(launch_command(arena, job, &full, &argv));
    launch_quote(argv, &text);
    printf("%s\n", text.at);
    str_deinit(&text);
    return OK;
}

/* The ranks have said what went wrong; their exit code is passed on. */
static Status pass_on(const LaunchJob *job, int code)
{
    switch (code) {
    case 0: return OK;
    case 2: return fail(ERR_ARG, "the ranks refused the run file");
    case 3: return fail(ERR_REFUSED, "the ranks refused the run");
    case 75:
        if (launch_in_slurm()) {
            TRY(launch_slurm_requeue());
            log_info("the job is requeued, and goes on from its checkpoint");
        }
        return fail(ERR_CANCELLED,
                    "%s was stopped; the same command goes on from its newest checkpoint",
                    job->config->name);
    default:
        return fail(ERR_COMM, "%s failed; the same command goes on from its newest checkpoint",
                    job->config->name);
    }
}

static Status launch(Arena *arena, const LaunchOptions *o, Operands operands, RunConfig *config)
{
    LaunchJob job;
    int code;
    TRY(make_job(arena, o, operands, config, &job));
    if (o->slurm) return submit(arena, &job, o->dry_run);
    TRY(launch_check(&job));
    if (o->dry_run) return print_command(arena, &job);
    catch_signals();
    TRY(launch_supervise(&job, &code));
    return pass_on(&job, code);
}

static Status run(const void *chosen, Operands operands)
{
    RunConfig config;
    Arena arena = {0};
    bool has_file = operands.n > 0 && !strchr(operands.at[0], '=');
    TRY(run_config_load(has_file ? operands.at[0] : NULL, operands.at + has_file,
                        operands.n - has_file, &config));
    Status status = launch(&arena, chosen, operands, &config);
    run_config_deinit(&config);
    arena_deinit(&arena);
    return status;
}

const Command command_launch = {
    .name = "launch",
    .operands = "RUN.yaml [key=value ...]",
    .min_operands = 1,
    .max_operands = ANY_NUMBER,
    .sentence = "start many ranks, and again when they fail",
    .details = "Ranks are started by mpirun, or as a Slurm job (--slurm). After a failure they\n"
               "go on from the newest checkpoint, with fewer ranks where hosts are gone.\n"
               "docs/launch.md tells all of it.\n",
    COMMAND_OPTIONS(LaunchOptions, options),
    .run = run,
};
