/* drover train RUN.yaml [key=value ...] */
#include "cli/cli.h"

#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "comm/comm.h"
#include "train/train.h"

enum { MAX_THREAD_RANKS = 1024 };

typedef struct TrainOptions {
    bool dry_run;
} TrainOptions;

static const Option options[] = {
    {"dry-run", OPTION_FLAG, NULL, 0, 0, NULL, NULL, offsetof(TrainOptions, dry_run),
     "plan, check and say what the run needs; train nothing"},
};

/* The first signal asks for a checkpoint and an orderly end, the second one ends at once. */
static void on_signal(int number)
{
    trainer_request_stop();
    signal(number, SIG_DFL);
}

static void catch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
}

/* The run file, unless the first operand is a setting already. */
static Status load_config(Operands operands, RunConfig *config)
{
    const char *path = operands.n > 0 && !strchr(operands.at[0], '=') ? operands.at[0] : NULL;
    return run_config_load(path, operands.at + (path != NULL), operands.n - (path != NULL), config);
}

static void say_outcome(const RunConfig *config, const TrainOutcome *o)
{
    printf("%s: %lld steps", config->name, (long long)o->step);
    if (!isnan(o->loss)) printf(", loss %.4f", o->loss);
    if (!isnan(o->val_loss)) printf(", validation loss %.4f, %.4f bits per byte", o->val_loss, o->val_bits_per_byte);
    if (o->tokens_per_s > 0) printf(", %.0f tokens/s", o->tokens_per_s);
    printf("\n");
}

static Status print_plan(const RunConfig *config)
{
    Str text = {0};
    Status status = trainer_plan(config, &text);
    if (status == OK) fputs(text.at, stdout);
    str_deinit(&text);
    return status;
}

/* ---- ranks ---------------------------------------------------------------------------------------- */

/* One rank's run, from its first byte to its last. */
static Status run_rank(const RunConfig *config, Comm *world, int ranks_here, TrainOutcome *outcome)
{
    Trainer *trainer;
    Status status = trainer_create_rank(config, world, ranks_here, &trainer);
    if (status == OK) {
        status = trainer_run(trainer, outcome);
        trainer_destroy(trainer);
    }
    if (status == OK || !world) return status;
    char sentence[1024];
    snprintf(sentence, sizeof sentence, "%s", status_message());
    comm_abort(world); /* nobody waits for this rank */
    return fail(status, "%s", sentence);
}

typedef struct RankThread {
    const RunConfig *config;
    CommWorld *world;
    int rank, n;
    TrainOutcome outcome;
    Status status;
    char message[1024];
    pthread_t thread;
} RankThread;

static void *rank_main(void *context)
{
    RankThread *r = context;
    log_set_thread_quiet(r->rank > 0);
    r->status = run_rank(r->config, comm_of_rank(r->world, r->rank), r->n, &r->outcome);
    if (r->status != OK) snprintf(r->message, sizeof r->message, "%s", status_message());
    return NULL;
}

/* The failure that the others' failures follow from. */
static Status first_failure(const RankThread *ranks, int n)
{
    const RankThread *worst = NULL;
    for (int r = 0; r < n; r++)
        if (ranks[r].status != OK && (!worst || (worst->status == ERR_COMM && ranks[r].status != ERR_COMM))) worst = &ranks[r];
    if (!worst) return OK;
    bool all = worst->status == ERR_REFUSED || worst->status == ERR_ARG; /* a refusal is every rank's */
    return all ? fail(worst->status, "%s", worst->message) : fail(worst->status, "rank %d: %s", worst->rank, worst->message);
}

/* All ranks as threads of this process. */
static Status train_in_threads(const RunConfig *config, int n, TrainOutcome *outcome)
{
    CommWorld *world;
    TRY(comm_world_create_local(n, NULL, &world));
    log_info("%d ranks as threads of this process; mpirun -n %d runs them as processes", n, n);
    RankThread *ranks = xcalloc((size_t)n, sizeof *ranks);
    int started = 0;
    Status status = OK;
    for (; started < n && status == OK; started++) {
        ranks[started] = (RankThread){.config = config, .world = world, .rank = started, .n = n};
        if (pthread_create(&ranks[started].thread, NULL, rank_main, &ranks[started])) {
            status = fail(ERR_MEMORY, "no thread for rank %d of %d", started, n);
            comm_abort(comm_of_rank(world, started--));
        }
    }
    for (int r = 0; r < started; r++) pthread_join(ranks[r].thread, NULL);
    if (status == OK) status = first_failure(ranks, n);
    *outcome = ranks[0].outcome;
    free(ranks);
    comm_world_destroy(world);
    return status;
}

/* Started by mpirun or srun: this process is one rank. */
static Status train_in_world(const RunConfig *config, int here, TrainOutcome *outcome, bool *first)
{
    CommWorld *world;
    int rank;
    TRY(comm_world_create_mpi(NULL, &world));
    comm_world_here(world, &rank);
    *first = rank == 0;
    log_set_thread_quiet(rank > 0);
    Status status = run_rank(config, comm_of_rank(world, rank), here, outcome);
    comm_world_destroy(world);
    return status;
}

/* Ranks that a launcher started: in all, or on this host; 0 without one. */
static int launched(const char *const *names)
{
    for (; *names; names++) {
        const char *value = getenv(*names);
        long n = value ? strtol(value, NULL, 10) : 0;
        if (n > 0 && n < 1 << 24) return (int)n;
    }
    return 0;
}

static Status train(RunConfig *config, const TrainOptions *o)
{
    static const char *const all[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", NULL}, *const local[] = {"OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", NULL};
    TrainOutcome outcome;
    bool first = true;
    if (o->dry_run) return print_plan(config);
    int n = launched(all);
    if (n > 1 && train_ranks(config) == 1) config->parallel.dp = n; /* no layout was asked for: the batch is shared */
    Status status = n > 1 ? train_in_world(config, launched(local), &outcome, &first)
                    : train_ranks(config) > 1 && train_ranks(config) <= MAX_THREAD_RANKS
                        ? train_in_threads(config, (int)train_ranks(config), &outcome)
                        : run_rank(config, NULL, 1, &outcome);
    TRY(status);
    if (first) say_outcome(config, &outcome);
    if (!outcome.interrupted) return OK;
    return fail(ERR_CANCELLED, "stopped after step %lld; the same command goes on from there", (long long)outcome.step);
}

static Status run(const void *chosen, Operands operands)
{
    RunConfig config;
    TRY(load_config(operands, &config));
    catch_signals();
    Status status = train(&config, chosen);
    run_config_deinit(&config);
    return status;
}

const Command command_train = {
    .name = "train",
    .operands = "RUN.yaml [key=value ...]",
    .min_operands = 1,
    .max_operands = ANY_NUMBER,
    .sentence = "pretrain a model, or continue a run",
    .details = "Everything that a run file can say: docs/run-file.md, or `drover help run-file`.\n"
               "A run that was stopped goes on by the same command.\n",
    COMMAND_OPTIONS(TrainOptions, options),
    .run = run,
};
