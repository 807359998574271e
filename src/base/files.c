/* Files and directories: each call passes a fault point, retries what a signal interrupted, and
 * fails with a sentence that names the path. */
#include "base/base.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* The kernel moves at most 2^31 - 4096 bytes a call. */
enum { MAX_IO_BYTES = 1 << 30 };

static bool injected(const char *point, int error)
{
    if (!fault_hit(point)) return false;
    errno = error;
    return true;
}

static Status fail_errno(const char *verb, const char *path)
{
    int error = errno;
    const char *remedy = error == ENOSPC   ? "; free some space there and run again"
                         : error == EDQUOT ? "; your quota there is used up"
                         : error == EMFILE ? "; raise the limit on open files (ulimit -n)"
                                           : "";
    return fail(ERR_IO, "cannot %s %s: %s%s", verb, path, strerror(error), remedy);
}

static Status open_file(const char *path, int flags, const char *verb, int *fd)
{
    if (injected("open", EIO)) return fail_errno(verb, path);
    int opened;
    do opened = open(path, flags | O_CLOEXEC, 0644);
    while (opened < 0 && errno == EINTR);
    if (opened < 0) return fail_errno(verb, path);
    *fd = opened;
    return OK;
}

Status file_open_read(const char *path, int *fd) { return open_file(path, O_RDONLY, "open", fd); }

Status file_open_write(const char *path, int *fd) { return open_file(path, O_WRONLY, "open", fd); }

Status file_create(const char *path, int *fd)
{
    return open_file(path, O_WRONLY | O_CREAT | O_TRUNC, "create", fd);
}

/* Where the file system can set blocks aside, a disk that is too small is found here and not by
 * some later write; where it cannot, the size is all there is. */
Status file_reserve(int fd, uint64_t bytes, const char *path)
{
    if (injected("reserve", ENOSPC) || ftruncate(fd, (off_t)bytes) < 0)
        return fail_errno("reserve room for", path);
    if (bytes == 0) return OK;
    int result;
    do result = fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)bytes);
    while (result < 0 && errno == EINTR);
    if (result == 0 || errno == EOPNOTSUPP || errno == ENOSYS) return OK;
    return fail_errno("reserve room for", path);
}

/* At the file's position when offset is negative. */
static Status write_at(int fd, const void *data, size_t n, off_t offset, const char *path)
{
    const uint8_t *at = data;
    bool torn = injected("write", ENOSPC); /* half arrives, as when a disk fills up */
    if (torn) n /= 2;
    for (size_t done = 0; done < n;) {
        size_t want = n - done < MAX_IO_BYTES ? n - done : MAX_IO_BYTES;
        ssize_t written = offset < 0 ? write(fd, at + done, want)
                                     : pwrite(fd, at + done, want, offset + (off_t)done);
        if (written < 0 && errno == EINTR) continue;
        if (written == 0) errno = ENOSPC;
        if (written <= 0) return fail_errno("write", path);
        done += (size_t)written;
    }
    if (!torn) return OK;
    errno = ENOSPC;
    return fail_errno("write", path);
}

Status file_write(int fd, const void *data, size_t n, const char *path)
{
    return write_at(fd, data, n, -1, path);
}

Status file_pwrite(int fd, const void *data, size_t n, uint64_t offset, const char *path)
{
    if (fault_hit("write_hang")) sleep(1); /* storage that does not answer */
    return write_at(fd, data, n, (off_t)offset, path);
}

Status file_pread(int fd, void *data, size_t n, uint64_t offset, const char *path)
{
    if (injected("read", EIO)) return fail_errno("read", path);
    uint8_t *at = data;
    for (size_t done = 0; done < n;) {
        size_t want = n - done < MAX_IO_BYTES ? n - done : MAX_IO_BYTES;
        ssize_t got = pread(fd, at + done, want, (off_t)(offset + done));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return fail_errno("read", path);
        if (got == 0)
            return fail(ERR_FORMAT,
                        "%s is too short: it ends at byte %llu, but %zu bytes at %llu are needed",
                        path, (unsigned long long)(offset + done), n, (unsigned long long)offset);
        done += (size_t)got;
    }
    return OK;
}

/* After a failed fsync the kernel may have dropped the dirty pages, so a second one that succeeds
 * would prove nothing: the caller gives the file up and writes a new one. */
Status file_sync(int fd, const char *path)
{
    if (injected("fsync", EIO) || fsync(fd) < 0) return fail_errno("sync", path);
    return OK;
}

Status file_close(int fd, const char *path)
{
    bool fault = fault_hit("close");
    int result = close(fd); /* on EINTR the descriptor is gone all the same */
    if (fault) errno = EIO;
    if (fault || (result < 0 && errno != EINTR)) return fail_errno("close", path);
    return OK;
}

Status file_rename(const char *from, const char *to)
{
    if (injected("rename", EIO) || rename(from, to) < 0) {
        int error = errno;
        return fail(ERR_IO, "cannot rename %s to %s: %s", from, to, strerror(error));
    }
    return OK;
}

Status file_unlink(const char *path)
{
    if (injected("unlink", EIO) || unlink(path) < 0) return fail_errno("remove", path);
    return OK;
}

Status file_size(const char *path, uint64_t *bytes)
{
    struct stat st;
    if (stat(path, &st) < 0) return fail_errno("look at", path);
    if (!S_ISREG(st.st_mode)) return fail(ERR_IO, "%s is not a file", path);
    *bytes = (uint64_t)st.st_size;
    return OK;
}

bool file_exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISREG(st.st_mode);
}

Status dir_free_bytes(const char *path, uint64_t *bytes)
{
    struct statvfs fs;
    if (statvfs(path, &fs) < 0) return fail_errno("look at", path);
    *bytes = (uint64_t)fs.f_bavail * (uint64_t)fs.f_frsize;
    return OK;
}

/* ---- whole files ------------------------------------------------------------------------ */

/* Reads to the end, from whatever `fd` is: a pipe has no size beforehand, a file may grow. */
static Status read_to_end(Arena *arena, int fd, size_t expected, const char *path, size_t max_bytes,
                          Bytes *out)
{
    size_t cap = expected + 2, n = 0; /* one byte to see the end, one for the zero */
    uint8_t *at = arena_alloc(arena, cap);
    for (;;) {
        ssize_t got = read(fd, at + n, cap - 1 - n < MAX_IO_BYTES ? cap - 1 - n : MAX_IO_BYTES);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return fail_errno("read", path);
        n += (size_t)got;
        if (n > max_bytes) return fail(ERR_FORMAT, "%s is larger than %zu bytes", path, max_bytes);
        if (got == 0) break;
        if (n == cap - 1) {
            uint8_t *larger = arena_alloc(arena, 2 * cap);
            memcpy(larger, at, n);
            at = larger;
            cap *= 2;
        }
    }
    memset(at + n, 0, cap - n);
    *out = (Bytes){at, n};
    return OK;
}

Status file_read(Arena *arena, const char *path, size_t max_bytes, Bytes *out)
{
    int fd = -1;
    TRY(file_open_read(path, &fd));
    struct stat st;
    Status status = OK;
    if (injected("read", EIO) || fstat(fd, &st) < 0) {
        status = fail_errno("read", path);
        goto close_file;
    }
    bool known = S_ISREG(st.st_mode) && st.st_size > 0;
    if (known && (uint64_t)st.st_size > max_bytes) {
        status = fail(ERR_FORMAT, "%s has %lld bytes; at most %zu are accepted", path,
                      (long long)st.st_size, max_bytes);
        goto close_file;
    }
    status = read_to_end(arena, fd, known ? (size_t)st.st_size : 4096, path, max_bytes, out);
close_file:
    close(fd); /* only read from: nothing to lose */
    return status;
}

static Status write_beside(const char *temporary, const void *data, size_t n)
{
    int fd = -1;
    TRY(file_create(temporary, &fd));
    Status status = file_write(fd, data, n, temporary);
    if (status == OK) status = file_sync(fd, temporary);
    if (status != OK) {
        close(fd);
        return status;
    }
    return file_close(fd, temporary);
}

Status file_write_atomic(const char *path, const void *data, size_t n)
{
    Arena arena = {0};
    /* own name per thread, so that two writers of one path do not tear each other's text */
    char *temporary = arena_printf(&arena, "%s.tmp-%d", path, (int)gettid());
    const char *slash = strrchr(path, '/');
    const char *dir = !slash          ? "."
                      : slash == path ? "/"
                                      : arena_strndup(&arena, path, (size_t)(slash - path));
    Status status = write_beside(temporary, data, n);
    if (status == OK) status = file_rename(temporary, path);
    if (status != OK)
        unlink(temporary); /* best effort; the sentence of the failure stays */
    else
        status = dir_sync(dir);
    arena_deinit(&arena);
    return status;
}

/* ---- paths ------------------------------------------------------------------------------ */

char *path_join(Arena *arena, const char *dir, const char *name)
{
    size_t n = strlen(dir);
    return arena_printf(arena, "%s%s%s", dir, n && dir[n - 1] != '/' ? "/" : "", name);
}

const char *path_base(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

bool path_is_plain_name(const char *name)
{
    if (!*name || !strcmp(name, ".") || !strcmp(name, "..")) return false;
    for (const char *c = name; *c; c++)
        if (*c == '/' || *c == '\\' || (unsigned char)*c < 0x20 || *c == 0x7f) return false;
    return true;
}
