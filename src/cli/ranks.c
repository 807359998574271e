#include "cli/ranks.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* A launcher ends all processes when the first one ends. */
static void wait_moment(void)
{
    enum { MOMENT_S = 2 };
    nanosleep(&(struct timespec){.tv_sec = MOMENT_S}, NULL);
}

/* The one whose failure it is, or that noticed it, tells of it. */
static void say_failure(Comm *world, Status status, const char *sentence)
{
    int rank = comm_rank(world);
    log_set_thread_quiet(comm_failed_rank(world) != rank);
    if (status == ERR_COMM || status == ERR_REFUSED ||
        status == ERR_ARG) /* of the world, or every rank's */
        log_error("%s", sentence);
    else
        log_error("rank %d on %s: %s", rank, comm_host(world, rank), sentence);
    log_set_thread_quiet(true);
}

/* main, and the others told where it fails: nobody then waits for this rank. */
static Status run_rank(Rank rank, bool process, RankMain main, void *context)
{
    RankLater later = {0};
    char sentence[2048] = "";
    rank.later = &later;
    Status status = main(&rank, context);
    if (status != OK) snprintf(sentence, sizeof sentence, "%s", status_message());
    if (status != OK && rank.world) comm_abort(rank.world, status);
    if (status != OK && rank.world && process) say_failure(rank.world, status, sentence);
    if (later.fn) later.fn(later.context);
    bool silent = rank.world && comm_failed_rank(rank.world) != comm_rank(rank.world);
    if (status != OK && process && silent) wait_moment(); /* for the one that speaks */
    return status == OK ? OK : fail(status, "%s", sentence);
}

/* ---- threads ---------------------------------------------------------------------------- */

enum { MAX_THREADS = 1024 };

typedef struct RankThread {
    Rank rank;
    RankMain main;
    void *context;
    Status status;
    char message[1024];
    pthread_t thread;
} RankThread;

static void *thread_main(void *opaque)
{
    RankThread *r = opaque;
    log_set_thread_quiet(!r->rank.first);
    fault_set_rank(comm_rank(r->rank.world), false);
    r->status = run_rank(r->rank, false, r->main, r->context);
    if (r->status != OK) snprintf(r->message, sizeof r->message, "%s", status_message());
    return NULL;
}

static Status first_failure(const RankThread *ranks, int n)
{
    int told = comm_failed_rank(ranks[0].rank.world);
    const RankThread *worst = told >= 0 && ranks[told].status != OK ? &ranks[told] : NULL;
    for (int r = 0; r < n && !worst; r++)
        if (ranks[r].status != OK) worst = &ranks[r];
    if (!worst) return OK;
    bool all = worst->status == ERR_REFUSED ||
               worst->status == ERR_ARG; /* a refusal is every rank's */
    return all ? fail(worst->status, "%s", worst->message)
               : fail(worst->status, "rank %d: %s", comm_rank(worst->rank.world), worst->message);
}

static Status run_threads(int n, RankMain main, void *context)
{
    CommWorld *world;
    if (n > MAX_THREADS)
        return fail(ERR_REFUSED,
                    "a layout for %d ranks, but one process can run %d as threads; mpirun -n %d "
                    "runs them as processes",
                    n, MAX_THREADS, n);
    TRY(comm_world_create_local(n, NULL, &world));
    log_info("%d ranks as threads of this process; mpirun -n %d runs them as processes", n, n);
    RankThread *ranks = xcalloc((size_t)n, sizeof *ranks);
    int started = 0;
    Status status = OK;
    for (; started < n && status == OK; started++) {
        ranks[started] = (RankThread){
            .rank = {comm_of_rank(world, started), n, started == 0, started == 0, NULL},
            .main = main,
            .context = context};
        if (pthread_create(&ranks[started].thread, NULL, thread_main, &ranks[started])) {
            status = fail(ERR_MEMORY, "no thread for rank %d of %d", started, n);
            comm_abort(comm_of_rank(world, started--), status);
        }
    }
    for (int r = 0; r < started; r++) pthread_join(ranks[r].thread, NULL);
    if (status == OK) status = first_failure(ranks, n);
    free(ranks);
    comm_world_destroy(world);
    return status;
}

/* ---- processes -------------------------------------------------------------------------- */

static bool met; /* this process has met the others */

static int number_in(const char *const *names)
{
    for (; *names; names++) {
        const char *value = getenv(*names);
        long n = value ? strtol(value, NULL, 10) : 0;
        if (n > 0 && n < 1 << 24) return (int)n;
    }
    return 0;
}

/* srun's variable means something else in other places of a job: there, ranks have no PMIX_RANK. */
int ranks_launched(void)
{
    int n = number_in((const char *const[]){"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", NULL});
    if (n == 0 && getenv("PMIX_RANK"))
        n = number_in((const char *const[]){"SLURM_STEP_NUM_TASKS", NULL});
    return n;
}

/* The launcher ends the others as soon as the first rank ends with a failure; one that is still
 * here after a moment has a failure of its own. */
void ranks_wait_turn(void)
{
    int number = number_in(
        (const char *const[]){"OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", NULL});
    if (met || ranks_launched() < 2 || number == 0) return;
    wait_moment();
}

/* A supervisor reads in its directory, on the host where it runs; Slurm's name of a host is the one
 * that people know. */
static CommOptions comm_options(void)
{
    const char *dir = getenv("DROVER_STATUS_DIR");
    return (CommOptions){.status_dir = dir && dir_exists(dir) ? dir : NULL,
                         .host = getenv("PMIX_RANK") ? getenv("SLURMD_NODENAME") : NULL};
}

static Status run_process(int n, RankMain main, void *context)
{
    CommWorld *world;
    int number;
    CommOptions options = comm_options();
    TRY(comm_world_create_mpi(&options, &world));
    met = true;
    comm_world_here(world, &number);
    log_set_thread_quiet(number > 0);
    fault_set_rank(number, true);
    int here = number_in((const char *const[]){"OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS",
                                               "SLURM_STEP_TASKS_PER_NODE", NULL});
    Rank rank = {comm_of_rank(world, number), here, number == 0, true, NULL};
    Status status = comm_world_size(world) == n
                        ? run_rank(rank, true, main, context)
                        : fail(ERR_REFUSED, "the layout is for %d ranks, but %d were started", n,
                               comm_world_size(world));
    comm_world_destroy(world);
    return status;
}

/* ---- either ----------------------------------------------------------------------------- */

Status ranks_run(int n, RankMain main, void *context)
{
    if (ranks_launched() > 1) return run_process(n, main, context);
    if (n > 1) return run_threads(n, main, context);
    return run_rank((Rank){NULL, 1, true, true, NULL}, true, main, context);
}

/* ---- what one rank reads ---------------------------------------------------------------- */

static Status group_that_waits(const Rank *rank, Comm **group)
{
    enum { FOR_EVER_S = 1000000000 };
    int n = comm_size(rank->world), *all = xcalloc((size_t)n, sizeof *all);
    for (int r = 0; r < n; r++) all[r] = r;
    Status status = comm_group(rank->world, "input", all, n, group);
    free(all);
    if (status == OK) comm_set_deadline(*group, FOR_EVER_S);
    return status;
}

static Status broadcast(Comm *group, void *data, int64_t bytes)
{
    return comm_run(group, &(CommOp){.kind = COMM_BROADCAST,
                                     .dtype = DTYPE_U8,
                                     .send = data,
                                     .recv = data,
                                     .count = bytes,
                                     .node = "input"});
}

Status ranks_share_line(const Rank *rank, char **line, size_t *cap, int64_t *n)
{
    Comm *group;
    if (!rank->world) return OK;
    TRY(group_that_waits(rank, &group));
    TRY(broadcast(group, n, sizeof *n));
    if (*n < 0) return OK;
    if (*cap < (size_t)*n + 1) *line = xrealloc(*line, *cap = (size_t)*n + 1);
    if (*n > 0) TRY(broadcast(group, *line, *n));
    (*line)[*n] = 0;
    return OK;
}
