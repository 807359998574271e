/* drover train RUN.yaml [key=value ...] */
#include "cli/cli.h"

#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "cli/ranks.h"
#include "train/train.h"

typedef struct TrainOptions {
    bool dry_run;
    const char *trace;
    const char *schedule;
} TrainOptions;

static const Option options[] = {
    {"dry-run", OPTION_FLAG, NULL, 0, 0, NULL, NULL, offsetof(TrainOptions, dry_run),
     "plan, check and say what the run needs; train nothing"},
    {"trace", OPTION_TEXT, "FILE", 0, 0, NULL, NULL, offsetof(TrainOptions, trace),
     "some steps of all ranks, for chrome://tracing or Perfetto; short for log.trace=FILE"},
    {"schedule", OPTION_TEXT, "FILE", 0, 0, NULL, NULL, offsetof(TrainOptions, schedule),
     "with --dry-run: write the pipeline's schedule, as a table that parallel.schedule reads, or "
     "as a picture when FILE ends in .svg"},
};

/* The first signal asks for a checkpoint and an orderly end, the second one ends at once; but
 * launchers may send SIGUSR1 more than once. */
static void on_signal(int number)
{
    trainer_request_stop();
    if (number != SIGUSR1) signal(number, SIG_DFL);
}

static void catch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGUSR1, &action, NULL);
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
    if (!isnan(o->val_loss))
        printf(", validation loss %.4f, %.4f bits per byte", o->val_loss, o->val_bits_per_byte);
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

/* The schedule as a file: a table, or a picture by the name's end. */
static Status write_schedule(const RunConfig *config, const char *path)
{
    Pipeline *pipeline;
    Str text = {0};
    size_t n = strlen(path);
    TRY(run_layout_check(config, run_ranks(config)));
    TRY(train_pipeline(config, run_n_micro(config), &pipeline));
    if (!pipeline)
        return fail(ERR_ARG, "--schedule %s: parallel.pp is 1, there is no pipeline", path);
    if (n > 4 && !strcmp(path + n - 4, ".svg"))
        pipeline_svg(pipeline, &text);
    else
        pipeline_text(pipeline, &text);
    Status status = file_write_atomic(path, text.at, text.n);
    str_deinit(&text);
    pipeline_destroy(pipeline);
    return status;
}

static Status dry_run(const RunConfig *config, const TrainOptions *o)
{
    TRY(print_plan(config));
    return o->schedule ? write_schedule(config, o->schedule) : OK;
}

/* ---- ranks ------------------------------------------------------------------------------ */

typedef struct Job {
    const RunConfig *config;
    TrainOutcome outcome; /* of the process's first rank */
    bool first;           /* that is the first of all */
} Job;

static void destroy_trainer(void *trainer) { trainer_destroy(trainer); }

/* One rank's run, from its first byte to its last. */
static Status train_rank(const Rank *rank, void *context)
{
    Job *job = context;
    Trainer *trainer;
    TrainOutcome outcome;
    TRY(trainer_create_rank(job->config, rank->world, rank->here, &trainer));
    *rank->later = (RankLater){destroy_trainer, trainer};
    TRY(trainer_run(trainer, &outcome));
    if (rank->world) comm_note(rank->world, outcome.interrupted ? "stopped" : "done", outcome.step);
    if (rank->leads) {
        job->outcome = outcome;
        job->first = rank->first;
    }
    return OK;
}

static Status train(RunConfig *config, const TrainOptions *o)
{
    Job job = {.config = config};
    if (o->dry_run) return dry_run(config, o);
    if (o->schedule)
        return fail(ERR_ARG,
                    "--schedule goes with --dry-run: it writes the schedule and trains nothing");
    if (o->trace) config->log.trace = o->trace;
    int n = ranks_launched();
    if (n > 1 && run_ranks(config) == 1)
        config->parallel.dp = n; /* no layout was asked for: the batch is shared */
    int64_t wanted = run_ranks(config);
    TRY(ranks_run(n > 1 ? n : (int)min_i64(wanted, INT32_MAX), train_rank, &job));
    if (job.first) say_outcome(config, &job.outcome);
    if (!job.outcome.interrupted) return OK;
    return fail(ERR_CANCELLED, "stopped after step %lld; the same command goes on from there",
                (long long)job.outcome.step);
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
