/* Fault points: calls are counted by name, and the n-th can be made to fail, or to kill or stop the
 * process.
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

static const char *const points[] = {"open",
                                     "read",
                                     "write",
                                     "fsync",
                                     "rename",
                                     "close",
                                     "unlink",
                                     "mkdir",
                                     "map",
                                     "tensor_alloc",
                                     "comm",
                                     "comm_stall",
                                     "comm_skip",
                                     "comm_differ",
                                     "train.nan",
                                     "train.inf",
                                     "train.activation",
                                     "reserve",
                                     "write_hang",
                                     "train.data",
                                     "train.forward",
                                     "train.backward",
                                     "train.update",
                                     "train.validation",
                                     "train.save",
                                     "train.flip",
                                     "train.slow",
                                     "train.crawl"};
enum { POINTS = COUNT_OF(points), MAX_SWITCHES = 16, EVERY_RANK = -1 };

typedef struct Switch {
    int point;
    int64_t n;    /* 1 is the first call */
    bool onwards; /* and all later ones */
    int signal;   /* that the process gets; 0: none */
    int rank;
} Switch;

static _Atomic int64_t count[POINTS];
static Switch switches[MAX_SWITCHES];
static _Atomic int64_t seen[MAX_SWITCHES]; /* calls that a switch has counted */
static int n_switches;
static int process_rank = EVERY_RANK;
static _Thread_local int thread_rank = EVERY_RANK;
static pthread_once_t environment_read = PTHREAD_ONCE_INIT;

static int find_point(const char *name)
{
    for (int i = 0; i < POINTS; i++)
        if (!strcmp(points[i], name)) return i;
    return -1;
}

/* Cuts "@3" off the end; false when what follows is no rank. */
static bool cut_rank(char *text, int *rank)
{
    char *at = strchr(text, '@');
    int64_t value = EVERY_RANK;
    if (at) {
        *at = 0;
        if (!parse_i64(at + 1, &value) || value < 0 || value > 1 << 24) return false;
    }
    *rank = (int)value;
    return true;
}

static Status parse_switch(char *text, Switch *out)
{
    char name[32] = "", number[32] = "", rest[32] = "";
    Switch s = {0};
    bool good_rank = cut_rank(text, &s.rank);
    int fields = sscanf(text, "%31[^:]:%31[^:]:%31s", name, number, rest);
    size_t digits = strlen(number);
    s.point = find_point(name);
    s.onwards = digits > 1 && number[digits - 1] == '+';
    if (s.onwards) number[digits - 1] = 0;
    s.signal = fields < 3              ? 0
               : !strcmp(rest, "kill") ? SIGKILL
               : !strcmp(rest, "stop") ? SIGSTOP
                                       : -1;
    if (s.point < 0) {
        const char *near = name_nearest(name, points, POINTS);
        return fail(ERR_ARG, "FAULT: there is no fault point '%s'%s%s", name,
                    near ? "; did you mean " : "", near ? near : "");
    }
    if (fields < 2 || !parse_i64(number, &s.n) || s.n < 1 || s.signal < 0 || !good_rank)
        return fail(ERR_ARG,
                    "FAULT: '%s' is not point:n with n from 1, and then + or :kill or :stop, and "
                    "then @rank",
                    text);
    *out = s;
    return OK;
}

static Status parse_spec(const char *spec, Switch parsed[MAX_SWITCHES], int *n)
{
    *n = 0;
    while (spec && *spec &&
           *spec != ';') { /* what follows is for later starts (launch/supervise.c) */
        size_t length = strcspn(spec, ",;");
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

/* A switch that is misspelt must not look like a run that survived its fault: it ends the process.
 */
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
    for (int i = 0; i < MAX_SWITCHES; i++) atomic_store(&seen[i], 0);
    return OK;
}

void fault_set_rank(int rank, bool process) { *(process ? &process_rank : &thread_rank) = rank; }

static bool is_hit(int i)
{
    const Switch *s = &switches[i];
    int rank = thread_rank != EVERY_RANK ? thread_rank : process_rank;
    if (s->rank != EVERY_RANK && s->rank != rank) return false;
    int64_t call = atomic_fetch_add(&seen[i], 1) + 1;
    return s->onwards ? call >= s->n : call == s->n;
}

/* Of a rank it is said when, whatever the level of the log: how long others take to notice is
 * counted from here. */
static void send_signal(const Switch *s)
{
    char line[160];
    int rank = thread_rank != EVERY_RANK ? thread_rank : process_rank;
    int n = snprintf(line, sizeof line,
                     "drover: warning: FAULT: %s:%lld of rank %d: signal %d at %.3f\n",
                     points[s->point], (long long)s->n, rank, s->signal, clock_wall_s());
    ssize_t ignored = rank != EVERY_RANK ? write(STDERR_FILENO, line, (size_t)n) : 0;
    (void)ignored;
    kill(getpid(), s->signal);
}

bool fault_hit(const char *point)
{
    pthread_once(&environment_read, read_environment);
    int index = find_point(point);
    CHECK(index >= 0);
    atomic_fetch_add(&count[index], 1);
    bool hit = false;
    for (int i = 0; i < n_switches; i++) {
        if (switches[i].point != index || !is_hit(i)) continue;
        if (switches[i].signal) send_signal(&switches[i]);
        hit |= switches[i].signal !=
               SIGSTOP; /* a process that goes on again goes on as if nothing had been */
    }
    return hit;
}

int64_t fault_count(const char *point)
{
    int index = find_point(point);
    CHECK(index >= 0);
    return atomic_load(&count[index]);
}
