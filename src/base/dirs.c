/* Directories. */
#include "base/base.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static Status fail_dir(const char *verb, const char *path)
{
    int error = errno;
    return fail(ERR_IO, "cannot %s directory %s: %s", verb, path, strerror(error));
}

bool dir_exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* Parents first. Another process may make the same directory meanwhile: that is fine. */
static bool make_with_parents(char *path)
{
    for (char *c = path + 1; *c; c++) {
        if (*c != '/') continue;
        *c = 0;
        bool ok = mkdir(path, 0755) == 0 || errno == EEXIST;
        *c = '/';
        if (!ok) return false;
    }
    return mkdir(path, 0755) == 0 || (errno == EEXIST && dir_exists(path));
}

Status dir_create(const char *path)
{
    if (!*path) return fail(ERR_ARG, "cannot create a directory with an empty name");
    if (fault_hit("mkdir")) {
        errno = EIO;
        return fail_dir("create", path);
    }
    char *copy = xstrdup(path);
    Status status = make_with_parents(copy) ? OK : fail_dir("create", path);
    free(copy);
    return status;
}

Status dir_sync(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return fail_dir("open", path);
    bool fault = fault_hit("fsync");
    bool ok = !fault && fsync(fd) == 0;
    if (fault) errno = EIO;
    Status status = ok ? OK : fail_dir("sync", path);
    close(fd);
    return status;
}

/* ---- listing ---------------------------------------------------------------------------- */

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static bool is_dots(const char *name) { return !strcmp(name, ".") || !strcmp(name, ".."); }

Status dir_list(Arena *arena, const char *path, DirEntries *entries)
{
    DIR *dir = fault_hit("open") ? (errno = EIO, NULL) : opendir(path);
    if (!dir) return fail_dir("read", path);
    VEC(char *) names = {0};
    struct dirent *entry;
    while (errno = 0, (entry = readdir(dir)) != NULL)
        if (!is_dots(entry->d_name)) VEC_PUSH(&names, arena_strdup(arena, entry->d_name));
    Status status = errno ? fail_dir("read", path) : OK;
    closedir(dir);
    if (status == OK) {
        if (names.n) qsort(names.at, names.n, sizeof *names.at, by_name);
        entries->name = arena_copy(arena, names.at, names.n * sizeof *names.at);
        entries->n = (int)names.n;
    }
    VEC_FREE(&names);
    return status;
}

/* ---- removing --------------------------------------------------------------------------- */

/* Empties the directory `fd`, which it closes. Symbolic links are removed, never followed. */
static bool empty_dir(int fd, int depth) /* NOLINT(misc-no-recursion): depth is bounded */
{
    DIR *dir = depth < 64 ? fdopendir(fd) : NULL;
    if (!dir) {
        if (depth >= 64) errno = ELOOP;
        close(fd);
        return false;
    }
    bool ok = true;
    struct dirent *entry;
    while (ok && (errno = 0, entry = readdir(dir)) != NULL) {
        if (is_dots(entry->d_name)) continue;
        if (unlinkat(fd, entry->d_name, 0) == 0) continue;
        if (errno != EISDIR && errno != EPERM) {
            ok = false;
            break;
        }
        int child = openat(fd, entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        ok = child >= 0 && empty_dir(child, depth + 1) &&
             unlinkat(fd, entry->d_name, AT_REMOVEDIR) == 0;
    }
    ok = ok && errno == 0;
    int error = errno;
    closedir(dir);
    errno = error;
    return ok;
}

/* One that is not there is fine: what was asked for holds. */
Status dir_remove_tree(const char *path)
{
    if (fault_hit("unlink")) {
        errno = EIO;
        return fail_dir("remove", path);
    }
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT) return OK;
    if (fd < 0 || !empty_dir(fd, 0) || rmdir(path) < 0) return fail_dir("remove", path);
    return OK;
}
