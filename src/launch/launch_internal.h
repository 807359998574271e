/* Inside launch/: child processes, and what ranks leave word of. */
#ifndef LAUNCH_LAUNCH_INTERNAL_H
#define LAUNCH_LAUNCH_INTERNAL_H

#include "comm/comm.h"
#include "launch/launch.h"

#include <sys/types.h>

/* The program in PATH, or NULL; in the arena. */
char *launch_find_program(Arena *arena, const char *name);
/* Runs it and takes what it writes to stdout, at most for so long. *code: as in LaunchEnd, -1 when
 * it was ended. */
Status launch_capture(const char *const *argv, double deadline_s, int *code, Str *out);
/* Exit code of a process by the status of waitpid. */
int launch_exit_code(int wait_status);

/* What the ranks of this host have left word of in a status directory. */
typedef struct LaunchSeen {
    int n;           /* ranks that have said anything */
    int64_t step;    /* the highest that any is in; -1: none */
    double active_s; /* when any last did something, by clock_s */
    bool in_setup;   /* some rank makes tokenizer or shards, which takes what it takes */
    bool failed;
    bool all_stopped, all_done; /* of those seen */
    VEC(pid_t) pid;
} LaunchSeen;
void launch_look(const char *status_dir, LaunchSeen *seen);
void launch_seen_deinit(LaunchSeen *seen);
/* Ends those of them that still run and are of this program. */
void launch_kill_ranks(const char *status_dir);
/* Step of the checkpoint that ckpt/latest of a run's directory names, -1: none. */
int64_t launch_newest_checkpoint(const char *run_dir);

#endif
