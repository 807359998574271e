/* launch: a run of many ranks, started and looked after from outside.
 *
 * What it is.   The command that starts ranks (mpirun, or srun in a Slurm job), the job script for
 *               Slurm, the supervisor that starts
 *               the ranks again when they fail, which layout is left when hosts are gone.
 * Depends on.   base, run, comm
 * Owns.         The starter's process and, while it runs, a directory in shared memory where the
 *               ranks of this host leave word.
 *               Texts and lists live in the caller's arena.
 * Invariants.   Nothing is started before everything that can be known is checked. Every wait has a
 *               deadline. What is started is
 *               ended, however the supervisor ends. Checkpoints are the only thing that a start
 *               leaves to the next one.
 * Use:
 *     LaunchJob job = {.config = &config, .program = "/usr/bin/drover", .run_file = "run.yaml",
 *     .ranks = 8, ...};
 *     TRY(launch_hosts_parse(&arena, "node0:4,node1:4", &job.hosts));
 *     TRY(launch_check(&job));
 *     TRY(launch_supervise(&job, &exit_code));
 */
#ifndef LAUNCH_LAUNCH_H
#define LAUNCH_LAUNCH_H

#include "run/run.h"

/* ---- hosts ------------------------------------------------------------------------------ */

typedef struct LaunchHost {
    const char *name;
    int slots; /* ranks that it may have */
    bool gone; /* found by launch_hosts_probe */
} LaunchHost;

typedef struct LaunchHosts {
    LaunchHost *at;
    int n; /* 0: this machine, with as many slots as are wanted */
} LaunchHosts;

/* "node0:4,node1": names and slots, 1 where none are said. */
Status launch_hosts_parse(Arena *arena, const char *text, LaunchHosts *hosts);
/* A host a line, "node0 slots=4"; # begins a comment. The form that mpirun reads. */
Status launch_hosts_read(Arena *arena, const char *path, LaunchHosts *hosts);
/* The same from memory; `path` stands for the file in sentences. */
Status launch_hosts_read_text(Arena *arena, Bytes text, const char *path, LaunchHosts *hosts);
int64_t launch_hosts_slots(const LaunchHosts *hosts); /* of those that are not gone */
/* "node0:4,node1:4" of those that are not gone. */
void launch_hosts_text(const LaunchHosts *hosts, Str *out);
/* Runs the command, with each %h replaced by the host, for every host at once; hosts where it fails
 * or does not end within the deadline are gone. command NULL: ssh, and this machine is not asked.
 */
Status launch_hosts_probe(LaunchHosts *hosts, const char *command, double deadline_s);

/* ---- layouts ---------------------------------------------------------------------------- */

/* The parts of a layout that may shrink; the batch never does. */
typedef struct LaunchLayout {
    int64_t dp, fsdp, ranks;
    /* sequences of a rank at once: never more than before, so that memory lasts */
    int64_t micro_batch;
    int64_t n_micro; /* micro-batches of a step */
} LaunchLayout;

LaunchLayout launch_layout_of(const RunConfig *config); /* that run_layout_check has passed */
/* The layouts that min_ranks to `slots` ranks can have: fewer data-parallel ranks, each with more
 * micro-batches. More ranks come first, then larger fsdp, since that spares memory. The run file's
 * own is the first where it fits. */
Status launch_layouts(Arena *arena, const RunConfig *config, int64_t min_ranks, int64_t slots,
                      LaunchLayout **list, int *n);

/* ---- restarts --------------------------------------------------------------------------- */

/* How a start ended. */
typedef struct LaunchEnd {
    int code;      /* exit code; 128 + signal */
    int64_t saved; /* step of the newest checkpoint, -1: none */
    int64_t step;  /* that the ranks were in, -1: unknown */
} LaunchEnd;

typedef struct LaunchPolicy {
    int64_t max_restarts; /* without a new checkpoint between them */
    double backoff_s;     /* before the first; twice as long before each further one */
    /* so far */
    int64_t restarts, same_step;
    LaunchEnd last;
    bool any;
} LaunchPolicy;

enum { LAUNCH_SAME_STEP = 3, LAUNCH_LONGEST_WAIT_S = 300 };

/* True: start again after wait_s. False: it is over; why is NULL where the exit code says all. */
bool launch_policy_again(LaunchPolicy *policy, const LaunchEnd *end, double *wait_s,
                         const char **why);

/* ---- jobs ------------------------------------------------------------------------------- */

typedef enum LaunchStarter { LAUNCH_AUTO, LAUNCH_MPIRUN, LAUNCH_SRUN } LaunchStarter;

typedef struct LaunchJob {
    const RunConfig *config;
    const char *program;         /* path of drover */
    const char *run_file;        /* or NULL */
    const char *const *settings; /* key=value */
    int n_settings;
    int64_t ranks, min_ranks; /* min_ranks: a start with so few is still good */
    LaunchHosts hosts;
    /* the hosts are names only, for tests (DROVER_TEST_HOSTS): all ranks run here */
    bool pretended;
    bool may_shrink;       /* already at the first start */
    const char *probe;     /* command, or NULL */
    LaunchStarter starter; /* resolved by launch_check */
    LaunchPolicy policy;
    double start_s,
        stop_s; /* deadlines: of the first sign of life, of the end after a request to stop */
    int64_t tasks_per_node;    /* for Slurm */
    double grace_s;            /* for Slurm: from the signal to the limit */
    const char *const *sbatch; /* further options */
    int n_sbatch;
} LaunchJob;

/* All that can be wrong before anything starts: the layout, slots, the starter. */
Status launch_check(LaunchJob *job);

/* The words of the command that starts ranks with this layout; NULL ends them. status_dir may be
 * NULL. */
Status launch_command(Arena *arena, const LaunchJob *job, const LaunchLayout *layout,
                      const char ***argv);
/* Words as a shell would have to read them. */
void launch_quote(const char *const *argv, Str *out);

/* Starts and watches until the run is done, stopped, or cannot go on. exit_code: what the ranks
 * ended with at last; 75 when they were asked to stop before they were done. */
Status launch_supervise(LaunchJob *job, int *exit_code);
/* From signal handlers: the first call asks all ranks for a checkpoint and an orderly end, the
 * second one ends them. */
void launch_request_stop(void);

/* ---- Slurm ------------------------------------------------------------------------------ */

bool launch_in_slurm(void); /* this process runs inside an allocation */
int64_t launch_slurm_slots(void);
/* The script for sbatch: as many nodes as the ranks need, requeued when a node fails, signalled
 * before its time is over. */
Status launch_slurm_script(Arena *arena, const LaunchJob *job, const char *dir, Str *out);
/* Hands the script to sbatch; answer: the line that sbatch said. */
Status launch_slurm_submit(const char *script, Str *answer);
/* The job we are in starts again later. */
Status launch_slurm_requeue(void);

#endif
