/* Fault points: calls are counted by name, and the n-th can be made to fail or to kill the process.
 *
 * Counting is always on: it costs a few comparisons next to a system call. Switches are set before
 * threads start (or between them, in tests); counters are atomic. */
#include "base/base.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const points[] = {"open",      "read",       "write",     "fsync",     "rename",
                                     "close",     "unlink",     "mkdir",     "map",       "tensor_alloc",
                                     "comm",      "comm_stall", "train.nan", "train.inf", "train.activation",
                                     "reserve",   "write_hang"};
enum { POINTS = COUNT_OF(points), MAX_SWITCHES = 16 };

typedef struct Switch {
    int point;
    int64_t n; /* 1 is the first call */
    bool kill;
} Switch;

static _Atomic int64_t count[POINTS];
static Switch switches[MAX_SWITCHES];
static int n_switches;
static pthread_once_t environment_read = PTHREAD_ONCE_INIT;

static int find_point(const char *name)
{
    for (int i = 0; i < POINTS; i++)
        if (!strcmp(points[i], name)) return i;
    return -1;
}

static Status parse_switch(const char *text, Switch *out)
{
    char name[32] = "", number[32] = "", rest[32] = "";
    int fields = sscanf(text, "%31[^:]:%31[^:]:%31s", name, number, rest);
    Switch s = {find_point(name), 0, fields == 3};
    if (s.point < 0) {
        const char *near = name_nearest(name, points, POINTS);
        return fail(ERR_ARG, "FAULT: there is no fault point '%s'%s%s", name,
                    near ? "; did you mean " : "", near ? near : "");
    }
    if (fields < 2 || !parse_i64(number, &s.n) || s.n < 1 ||
        (fields == 3 && strcmp(rest, "kill") != 0))
        return fail(ERR_ARG, "FAULT: '%s' is not point:n or point:n:kill with n from 1", text);
    *out = s;
    return OK;
}

static Status parse_spec(const char *spec, Switch parsed[MAX_SWITCHES], int *n)
{
    *n = 0;
    while (spec && *spec) {
        size_t length = strcspn(spec, ",");
        char text[96];
        if (length >= sizeof text || *n == MAX_SWITCHES)
            return fail(ERR_ARG, "FAULT: more than %d switches, or one too long", MAX_SWITCHES);
        memcpy(text, spec, length);
        text[length] = 0;
        TRY(parse_switch(text, &parsed[*n]));
        ++*n;
        spec += length + (spec[length] == ',');
    }
    return OK;
}

/* A switch that is misspelt must not look like a run that survived its fault: it ends the process. */
static void read_environment(void)
{
    if (parse_spec(getenv("FAULT"), switches, &n_switches) == OK) return;
    log_error("%s", status_message());
    exit(2);
}

Status fault_set(const char *spec)
{
    pthread_once(&environment_read, read_environment);
    Switch parsed[MAX_SWITCHES];
    int n;
    TRY(parse_spec(spec, parsed, &n));
    memcpy(switches, parsed, sizeof(Switch) * (size_t)n);
    n_switches = n;
    for (int i = 0; i < POINTS; i++) atomic_store(&count[i], 0);
    return OK;
}

bool fault_hit(const char *point)
{
    pthread_once(&environment_read, read_environment);
    int index = find_point(point);
    CHECK(index >= 0);
    int64_t call = atomic_fetch_add(&count[index], 1) + 1;
    for (int i = 0; i < n_switches; i++) {
        if (switches[i].point != index || switches[i].n != call) continue;
        if (switches[i].kill) kill(getpid(), SIGKILL);
        return true;
    }
    return false;
}

int64_t fault_count(const char *point)
{
    int index = find_point(point);
    CHECK(index >= 0);
    return atomic_load(&count[index]);
}
