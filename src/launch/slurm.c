/* Slurm: the job's script, and what is asked of it. In the job the supervisor is the batch process
 * itself, so that signals reach it, and srun starts the ranks. */
#include "launch/launch_internal.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const double answer_s = 60; /* within which Slurm's commands must answer */

static int64_t number_of(const char *variable)
{
    int64_t n = 0;
    const char *text = getenv(variable);
    return text && parse_i64(text, &n) && n > 0 ? n : 0;
}

bool launch_in_slurm(void) { return getenv("SLURM_JOB_ID") && !getenv("PMIX_RANK"); }

int64_t launch_slurm_slots(void)
{
    int64_t nodes = number_of("SLURM_JOB_NUM_NODES"), per_node = number_of("SLURM_NTASKS_PER_NODE");
    return nodes && per_node ? nodes * per_node : number_of("SLURM_NTASKS");
}

/* ---- the script ------------------------------------------------------------------------- */

/* The words that the job itself runs: this program, now inside the job. */
static void add_command(Arena *arena, const LaunchJob *job, Str *out)
{
    VEC(const char *) w = {0};
    VEC_PUSH(&w, job->program);
    VEC_PUSH(&w, "launch");
    if (job->run_file) VEC_PUSH(&w, job->run_file);
    for (int i = 0; i < job->n_settings; i++) VEC_PUSH(&w, job->settings[i]);
    VEC_PUSH(&w, "-n");
    VEC_PUSH(&w, arena_printf(arena, "%lld", (long long)job->ranks));
    VEC_PUSH(&w, arena_printf(arena, "--min-ranks=%lld", (long long)job->min_ranks));
    VEC_PUSH(&w, arena_printf(arena, "--max-restarts=%lld", (long long)job->policy.max_restarts));
    VEC_PUSH(&w, arena_printf(arena, "--backoff=%g", job->policy.backoff_s));
    VEC_PUSH(&w, NULL);
    launch_quote(w.at, out);
    VEC_FREE(&w);
}

static Status add_directory(Str *out)
{
    char path[4096];
    if (!getcwd(path, sizeof path))
        return fail(ERR_IO, "the working directory has no name; start from another one");
    launch_quote((const char *[]){path, NULL}, out);
    return OK;
}

Status launch_slurm_script(Arena *arena, const LaunchJob *job, const char *dir, Str *out)
{
    int64_t per_node = job->tasks_per_node > 0 ? job->tasks_per_node : job->ranks;
    int64_t nodes = (job->ranks + per_node - 1) / per_node,
            least = (job->min_ranks + per_node - 1) / per_node;
    TRY(run_layout_check(job->config, job->ranks));
    if (nodes * per_node != job->ranks)
        return fail(ERR_REFUSED,
                    "%lld ranks are no multiple of --tasks-per-node %lld; the last node would be "
                    "part empty",
                    (long long)job->ranks, (long long)per_node);
    if (strpbrk(dir, "\n\r")) return fail(ERR_ARG, "a line break in the run's directory");
    str_printf(out, "#!/bin/bash\n#SBATCH --job-name=%s\n", job->config->name);
    if (least < nodes)
        str_printf(out, "#SBATCH --nodes=%lld-%lld\n", (long long)least, (long long)nodes);
    else
        str_printf(out, "#SBATCH --nodes=%lld\n", (long long)nodes);
    str_printf(out,
               "#SBATCH --ntasks-per-node=%lld\n#SBATCH --requeue\n#SBATCH --open-mode=append\n",
               (long long)per_node);
    str_printf(out, "#SBATCH --output=%s/launch/slurm-%%j.log\n#SBATCH --signal=B:USR1@%.0f\n", dir,
               job->grace_s);
    for (int i = 0; i < job->n_sbatch; i++) {
        if (strpbrk(job->sbatch[i], "\n\r")) return fail(ERR_ARG, "--sbatch: a line break");
        str_printf(out, "#SBATCH %s\n", job->sbatch[i]);
    }
    str_add(out, "cd ");
    TRY(add_directory(out));
    str_add(out, " || exit 1\nexec ");
    add_command(arena, job, out);
    str_add(out, "\n");
    return OK;
}

/* ---- commands --------------------------------------------------------------------------- */

static Status ask(const char *const *argv, Str *answer)
{
    Arena arena = {0};
    int code = 1;
    bool found = launch_find_program(&arena, argv[0]);
    arena_deinit(&arena);
    if (!found)
        return fail(ERR_UNSUPPORTED, "%s is not in PATH; it comes with Slurm (slurm-client)",
                    argv[0]);
    TRY(launch_capture(argv, answer_s, &code, answer));
    if (code == 0) return OK;
    if (code < 0) return fail(ERR_IO, "%s did not answer within %.0f s", argv[0], answer_s);
    return fail(ERR_IO, "%s failed (exit %d); what it says stands above", argv[0], code);
}

Status launch_slurm_submit(const char *script, Str *answer)
{
    return ask((const char *[]){"sbatch", script, NULL}, answer);
}

Status launch_slurm_requeue(void)
{
    const char *job = getenv("SLURM_JOB_ID");
    Str answer = {0};
    if (!job) return fail(ERR_ARG, "not in a Slurm job");
    Status status = ask((const char *[]){"scontrol", "requeue", job, NULL}, &answer);
    str_deinit(&answer);
    return status;
}
