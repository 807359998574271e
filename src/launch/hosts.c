/* Hosts by name, and which of them are still there. */
#include "launch/launch_internal.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAX_HOSTS = 1 << 20, MAX_SLOTS = 1 << 16, MAX_FILE_BYTES = 64 << 20 };

/* ---- lists ------------------------------------------------------------------------------ */

typedef VEC(LaunchHost) HostList;

/* Names go into commands: letters, digits, dots, dashes, underscores. */
static bool is_host_name(const char *name)
{
    static const char letters[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    return *name && *name != '-' && strspn(name, letters) == strlen(name) && strlen(name) < 64;
}

static Status add_host(HostList *list, const char *name, const char *slots, const char *where)
{
    int64_t n = 1;
    if (!is_host_name(name)) return fail(ERR_ARG, "%s: '%.80s' is no name of a host", where, name);
    if (slots && (!parse_i64(slots, &n) || n < 1 || n > MAX_SLOTS))
        return fail(ERR_ARG, "%s: '%.20s' slots of host %s; a number from 1 to %d is wanted", where,
                    slots, name, MAX_SLOTS);
    for (size_t i = 0; i < list->n; i++)
        if (!strcmp(list->at[i].name, name))
            return fail(ERR_ARG, "%s: host %s is named twice; give it slots instead: %s:2", where,
                        name, name);
    if (list->n >= MAX_HOSTS) return fail(ERR_ARG, "%s: more than %d hosts", where, MAX_HOSTS);
    VEC_PUSH(list, ((LaunchHost){.name = name, .slots = (int)n}));
    return OK;
}

static Status take(Arena *arena, HostList *list, Status status, const char *where,
                   LaunchHosts *hosts)
{
    if (status == OK && list->n == 0) status = fail(ERR_ARG, "%s: no host is named", where);
    if (status == OK)
        *hosts = (LaunchHosts){arena_copy(arena, list->at, list->n * sizeof *list->at),
                               (int)list->n};
    VEC_FREE(list);
    return status;
}

Status launch_hosts_parse(Arena *arena, const char *text, LaunchHosts *hosts)
{
    HostList list = {0};
    Status status = OK;
    while (*text && status == OK) {
        size_t n = strcspn(text, ",");
        char *name = arena_strndup(arena, text, n), *colon = strchr(name, ':');
        if (colon) *colon = 0;
        status = add_host(&list, name, colon ? colon + 1 : NULL, "--hosts");
        text += n + (text[n] == ',');
    }
    return take(arena, &list, status, "--hosts", hosts);
}

static Status add_line(Arena *arena, HostList *list, const char *line, size_t n, const char *path)
{
    const char *slots = NULL, *blank = " \t\r";
    char *text = arena_strndup(arena, line, n), *name = text + strspn(text, blank);
    text[strcspn(text, "#")] = 0;
    char *rest = name + strcspn(name, blank);
    if (*name == 0) return OK;
    if (*rest) *rest++ = 0;
    for (rest += strspn(rest, blank); *rest; rest += strspn(rest, blank)) {
        char *word = rest;
        rest += strcspn(rest, blank);
        if (*rest) *rest++ = 0;
        if (strncmp(word, "slots=", 6) != 0)
            return fail(ERR_ARG, "%s: '%.40s' behind host %s; only slots=N is read", path, word,
                        name);
        slots = word + 6;
    }
    return add_host(list, name, slots, path);
}

Status launch_hosts_read_text(Arena *arena, Bytes text, const char *path, LaunchHosts *hosts)
{
    HostList list = {0};
    Status status = OK;
    const char *line = (const char *)text.at, *end = line + text.n;
    while (line < end && status == OK) {
        const char *stop = memchr(line, '\n', (size_t)(end - line));
        size_t n = stop ? (size_t)(stop - line) : (size_t)(end - line);
        status = add_line(arena, &list, line, n, path);
        line += n + (stop != NULL);
    }
    return take(arena, &list, status, path, hosts);
}

Status launch_hosts_read(Arena *arena, const char *path, LaunchHosts *hosts)
{
    Bytes text;
    TRY(file_read(arena, path, MAX_FILE_BYTES, &text));
    return launch_hosts_read_text(arena, text, path, hosts);
}

int64_t launch_hosts_slots(const LaunchHosts *hosts)
{
    int64_t slots = 0;
    for (int i = 0; i < hosts->n; i++) slots += hosts->at[i].gone ? 0 : hosts->at[i].slots;
    return slots;
}

void launch_hosts_text(const LaunchHosts *hosts, Str *out)
{
    const char *comma = "";
    for (int i = 0; i < hosts->n; i++) {
        if (hosts->at[i].gone) continue;
        str_printf(out, "%s%s:%d", comma, hosts->at[i].name, hosts->at[i].slots);
        comma = ",";
    }
}

/* ---- probes ----------------------------------------------------------------------------- */

enum { AT_ONCE = 64 };
static const char by_ssh[] = "ssh -o BatchMode=yes -o ConnectTimeout=5 %h true";

static bool is_this_machine(const char *name)
{
    char own[64] = "";
    if (gethostname(own, sizeof own - 1) != 0) own[0] = 0;
    size_t n = strcspn(own, ".");
    return !strcmp(name, "localhost") || !strcmp(name, own) ||
           (strlen(name) == n && !strncmp(name, own, n));
}

static pid_t start_probe(const char *command, const char *host)
{
    Str text = {0};
    for (const char *at; (at = strstr(command, "%h")); command = at + 2) {
        str_add_n(&text, command, (size_t)(at - command));
        str_add(&text, host);
    }
    str_add(&text, command);
    pid_t pid = fork();
    if (pid == 0) {
        setpgid(0, 0);
        execl("/bin/sh", "sh", "-c", text.at, (char *)NULL);
        _exit(127);
    }
    str_deinit(&text);
    return pid;
}

typedef struct Probe {
    LaunchHost *host;
    pid_t pid; /* 0: not running */
    double until_s;
} Probe;

/* True when the probe is over, and has said whether the host is gone. */
static bool probe_ended(Probe *p)
{
    int status;
    bool late = clock_s() > p->until_s;
    if (late) kill(-p->pid, SIGKILL);
    pid_t ended = waitpid(p->pid, &status, late ? 0 : WNOHANG);
    if (ended == 0) return false;
    p->host->gone = late || ended < 0 || launch_exit_code(status) != 0;
    p->pid = 0;
    return true;
}

Status launch_hosts_probe(LaunchHosts *hosts, const char *command, double deadline_s)
{
    Probe probe[AT_ONCE] = {0};
    int next = 0, running = 0;
    while (next < hosts->n || running) {
        for (int k = 0; k < AT_ONCE; k++) {
            if (probe[k].pid && probe_ended(&probe[k])) running--;
            while (!probe[k].pid && next < hosts->n) {
                LaunchHost *h = &hosts->at[next++];
                h->gone = false;
                if (!command && is_this_machine(h->name)) continue;
                probe[k] = (Probe){h, start_probe(command ? command : by_ssh, h->name),
                                   clock_s() + deadline_s};
                if (probe[k].pid < 0)
                    return fail(ERR_IO, "no process to look whether %s is there", h->name);
                running++;
            }
        }
        if (running) nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    }
    return OK;
}
