/* Other programs: found, run, waited for no longer than allowed. */
#include "launch/launch_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

char *launch_find_program(Arena *arena, const char *name)
{
    const char *path = getenv("PATH");
    while (path && *path) {
        size_t n = strcspn(path, ":");
        char *at = arena_printf(arena, "%.*s/%s", (int)n, path, name);
        if (n && access(at, X_OK) == 0 && !dir_exists(at)) return at;
        path += n + (path[n] == ':');
    }
    return NULL;
}

int launch_exit_code(int status)
{
    return WIFEXITED(status)     ? WEXITSTATUS(status)
           : WIFSIGNALED(status) ? 128 + WTERMSIG(status)
                                 : 1;
}

/* Reads until the pipe is closed or the time is over; false then. */
static bool read_all(int fd, double until_s, Str *out)
{
    char text[4096];
    for (;;) {
        double left_s = until_s - clock_s();
        struct pollfd wait = {.fd = fd, .events = POLLIN};
        if (left_s <= 0) return false;
        if (poll(&wait, 1, (int)(left_s * 1000) + 1) <= 0) continue;
        ssize_t n = read(fd, text, sizeof text);
        if (n <= 0) return true;
        str_add_n(out, text, (size_t)n);
    }
}

Status launch_capture(const char *const *argv, double deadline_s, int *code, Str *out)
{
    int ends[2], status = 0;
    if (pipe2(ends, O_CLOEXEC) != 0)
        return fail(ERR_IO, "no pipe to %s: %s", argv[0], strerror(errno));
    pid_t pid = fork();
    if (pid == 0) {
        dup2(ends[1], STDOUT_FILENO);
        setpgid(0, 0);
        execvp(argv[0], (char *const *)(uintptr_t)argv);
        _exit(127);
    }
    close(ends[1]);
    if (pid < 0) {
        close(ends[0]);
        return fail(ERR_IO, "no process for %s: %s", argv[0], strerror(errno));
    }
    bool in_time = read_all(ends[0], clock_s() + deadline_s, out);
    close(ends[0]);
    if (!in_time) kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
    *code = in_time ? launch_exit_code(status) : -1;
    return OK;
}
