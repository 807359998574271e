/* What the ranks of this host have left word of, readable while they are stopped or dead. */
#include "launch/launch_internal.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void add_status(const CommStatus *s, LaunchSeen *seen)
{
    seen->failed |= s->failed;
    for (int i = 0; i < s->n_ranks; i++) {
        const CommStatusRank *r = &s->rank[i];
        seen->n++;
        seen->step = max_i64(seen->step, r->step);
        if (r->active_s > seen->active_s) seen->active_s = r->active_s;
        seen->in_setup |= !r->doing[0] || !strcmp(r->doing, "set-up");
        seen->all_stopped &= !strcmp(r->doing, "stopped");
        seen->all_done &= !strcmp(r->doing, "done");
        VEC_PUSH(&seen->pid, r->pid);
    }
}

/* A file for each host that ranks say they are on; pretended hosts have several here. */
void launch_look(const char *status_dir, LaunchSeen *seen)
{
    Arena arena = {0};
    DirEntries entries = {0};
    *seen = (LaunchSeen){.step = -1, .all_stopped = true, .all_done = true};
    if (dir_list(&arena, status_dir, &entries) == OK)
        for (int i = 0; i < entries.n; i++) {
            CommStatus status;
            if (comm_status_read(&arena, path_join(&arena, status_dir, entries.name[i]), &status) ==
                OK)
                add_status(&status, seen);
        }
    if (seen->n == 0) seen->all_stopped = seen->all_done = false;
    arena_deinit(&arena);
}

void launch_seen_deinit(LaunchSeen *seen) { VEC_FREE(&seen->pid); }

/* The number may be another process's by now. */
static bool is_this_program(pid_t pid)
{
    char path[64], theirs[4096], ours[4096];
    snprintf(path, sizeof path, "/proc/%d/exe", (int)pid);
    ssize_t n = readlink(path, theirs, sizeof theirs),
            m = readlink("/proc/self/exe", ours, sizeof ours);
    return n > 0 && n == m && !memcmp(theirs, ours, (size_t)n);
}

void launch_kill_ranks(const char *status_dir)
{
    LaunchSeen seen;
    launch_look(status_dir, &seen);
    for (size_t i = 0; i < seen.pid.n; i++)
        if (is_this_program(seen.pid.at[i])) kill(seen.pid.at[i], SIGKILL);
    launch_seen_deinit(&seen);
}

int64_t launch_newest_checkpoint(const char *run_dir)
{
    Arena arena = {0};
    Bytes text;
    long long step = -1;
    const char *path = path_join(&arena, run_dir, "ckpt/latest");
    if (file_exists(path) && file_read(&arena, path, 4096, &text) == OK &&
        sscanf((const char *)text.at, "step-%lld", &step) != 1)
        step = -1;
    arena_deinit(&arena);
    return step;
}
