/* The words that start ranks. */
#include "launch/launch_internal.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef VEC(const char *) Words;

static void add(Arena *arena, Words *w, const char *text)
{
    VEC_PUSH(w, arena_strdup(arena, text));
}

static void add_number(Arena *arena, Words *w, const char *before, int64_t n)
{
    VEC_PUSH(w, arena_printf(arena, "%s%lld", before, (long long)n));
}

/* Open MPI binds each rank to a core when nobody says otherwise, and all its threads with it. */
static void add_mpirun(Arena *arena, const LaunchJob *job, int64_t ranks, Words *w)
{
    add(arena, w, "mpirun");
    add(arena, w, "--quiet");
    if (geteuid() == 0) add(arena, w, "--allow-run-as-root");
    add(arena, w, "--bind-to");
    add(arena, w, "none");
    if (job->hosts.n && !job->pretended) {
        Str hosts = {0};
        launch_hosts_text(&job->hosts, &hosts);
        add(arena, w, "--host");
        add(arena, w, hosts.at);
        str_deinit(&hosts);
    } else {
        add(arena, w, "--oversubscribe");
    }
    add(arena, w, "-n");
    add_number(arena, w, "", ranks);
}

/* A rank that dies ends the step: the others would wait for it. */
static void add_srun(Arena *arena, int64_t ranks, Words *w)
{
    static const char *const words[] = {"srun", "--mpi=pmix", "--kill-on-bad-exit=1", "--quiet",
                                        "-n"};
    for (int i = 0; i < COUNT_OF(words); i++) add(arena, w, words[i]);
    add_number(arena, w, "", ranks);
}

static void add_train(Arena *arena, const LaunchJob *job, const LaunchLayout *layout, Words *w)
{
    LaunchLayout full = launch_layout_of(job->config);
    add(arena, w, job->program);
    add(arena, w, "train");
    if (job->run_file) add(arena, w, job->run_file);
    for (int i = 0; i < job->n_settings; i++) add(arena, w, job->settings[i]);
    add_number(arena, w, "parallel.dp=", layout->dp);
    add_number(arena, w, "parallel.fsdp=", layout->fsdp);
    if (layout->ranks != full.ranks)
        add_number(arena, w, "train.micro_batch=", layout->micro_batch);
}

Status launch_command(Arena *arena, const LaunchJob *job, const LaunchLayout *layout,
                      const char ***argv)
{
    Words w = {0};
    if (job->starter == LAUNCH_SRUN)
        add_srun(arena, layout->ranks, &w);
    else
        add_mpirun(arena, job, layout->ranks, &w);
    add_train(arena, job, layout, &w);
    VEC_PUSH(&w, NULL);
    *argv = arena_copy(arena, w.at, w.n * sizeof *w.at);
    VEC_FREE(&w);
    return OK;
}

void launch_quote(const char *const *argv, Str *out)
{
    static const char plain[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-+=:,/@%";
    for (const char *blank = ""; *argv; argv++, blank = " ") {
        str_add(out, blank);
        if (**argv && strspn(*argv, plain) == strlen(*argv)) {
            str_add(out, *argv);
            continue;
        }
        str_add(out, "'");
        for (const char *p = *argv; *p; p++) {
            if (*p == '\'')
                str_add(out, "'\\''");
            else
                str_add_n(out, p, 1);
        }
        str_add(out, "'");
    }
}

/* ---- what can be wrong ------------------------------------------------------------------ */

static Status check_starter(LaunchJob *job)
{
    Arena arena = {0};
    char version[64];
    if (!comm_mpi_version(version))
        return fail(ERR_UNSUPPORTED,
                    "this drover was built without MPI, and ranks of one process need no launcher; "
                    "install libopenmpi-dev and openmpi-bin, then build again");
    if (job->starter == LAUNCH_AUTO) job->starter = launch_in_slurm() ? LAUNCH_SRUN : LAUNCH_MPIRUN;
    bool srun = job->starter == LAUNCH_SRUN;
    bool found = launch_find_program(&arena, srun ? "srun" : "mpirun");
    arena_deinit(&arena);
    if (found) return OK;
    return fail(ERR_UNSUPPORTED,
                srun ? "srun is not in PATH; it comes with Slurm (slurm-client)"
                     : "mpirun is not in PATH; it comes with Open MPI (openmpi-bin)");
}

Status launch_check(LaunchJob *job)
{
    if (run_ranks(job->config) != job->ranks)
        return fail(ERR_REFUSED,
                    "the layout of the run file is for %lld ranks, and %lld are to be started; "
                    "change parallel.* or -n",
                    (long long)run_ranks(job->config), (long long)job->ranks);
    TRY(run_layout_check(job->config, job->ranks));
    TRY(check_starter(job));
    int64_t slots = job->hosts.n ? launch_hosts_slots(&job->hosts)
                    : job->starter == LAUNCH_SRUN && launch_in_slurm() ? launch_slurm_slots()
                                                                       : job->ranks;
    if (slots >= job->ranks || (job->may_shrink && slots >= job->min_ranks)) return OK;
    return fail(ERR_REFUSED,
                "%lld ranks do not fit %lld slots; name more hosts or more slots on them (--hosts "
                "node0:8,node1:8), or start fewer ranks",
                (long long)job->ranks, (long long)slots);
}
