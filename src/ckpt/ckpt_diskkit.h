/* For tests of ckpt/: the calls that change a disk, taken over in this program. They are counted;
 * from a chosen one on they fail, as if the process had died there and the code that still runs
 * were not there; at a chosen one a hook is called; and they can be recorded, for power_test.c.
 *
 * Include it in one file of a program only: it defines open, write, rename, ... in front of the C
 * library's. */
#ifndef CKPT_CKPT_DISKKIT_H
#define CKPT_CKPT_DISKKIT_H

#include "ckpt/ckpt_testkit.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

typedef enum DiskCall {
    DISK_CREATE,
    DISK_WRITE,
    DISK_SIZE,
    DISK_SYNC,
    DISK_RENAME,
    DISK_MKDIR,
    DISK_REMOVE
} DiskCall;

/* What a recorder is told after a call went well; paths as they were given, fd -1 where there is
 * none. */
typedef struct DiskEvent {
    DiskCall call;
    int fd, dir_fd;
    const char *path, *to;
    const void *data;
    size_t n;
    uint64_t offset;
} DiskEvent;

typedef struct Disk {
    int64_t calls;
    int64_t die_at;  /* this call and all after it fail; 0: none */
    int64_t fail_at; /* this call alone fails */
    int error;       /* of fail_at */
    int64_t hook_at;
    void (*hook)(void);
    void (*record)(const DiskEvent *event);
    void (*closed)(int fd);
} Disk;

static Disk disk;

static inline void disk_reset(void) { disk = (Disk){0}; }

/* Counts the call; false: it is to fail, with errno set. */
static inline bool disk_allows(void)
{
    int64_t call = ++disk.calls;
    if (disk.hook && call == disk.hook_at) {
        Disk kept = disk;
        disk = (Disk){0}; /* what the hook does is not counted */
        kept.hook();
        disk = kept;
    }
    bool dead = disk.die_at && call >= disk.die_at, fails = disk.fail_at && call == disk.fail_at;
    if (fails) errno = disk.error;
    if (dead) errno = EIO;
    return !dead && !fails;
}

static inline void disk_tell(DiskEvent event)
{
    if (disk.record) disk.record(&event);
}

static inline int disk_open(int dir_fd, const char *path, int flags, unsigned mode)
{
    bool changes = flags & (O_CREAT | O_TRUNC);
    if (changes && !disk_allows()) return -1;
    int fd = (int)syscall(SYS_openat, dir_fd, path, flags, mode);
    if (fd >= 0 && (changes || disk.record))
        disk_tell((DiskEvent){.call = DISK_CREATE,
                              .fd = fd,
                              .dir_fd = dir_fd,
                              .path = path,
                              .n = changes,
                              .offset = (flags & O_TRUNC) != 0});
    return fd;
}

static inline unsigned disk_mode(int flags, va_list args)
{
    return flags & O_CREAT ? va_arg(args, unsigned) : 0;
}

int open(const char *path, int flags, ...)
{
    va_list args;
    va_start(args, flags);
    unsigned mode = disk_mode(flags, args);
    va_end(args);
    return disk_open(AT_FDCWD, path, flags, mode);
}

int openat(int dir_fd, const char *path, int flags, ...)
{
    va_list args;
    va_start(args, flags);
    unsigned mode = disk_mode(flags, args);
    va_end(args);
    return disk_open(dir_fd, path, flags, mode);
}

ssize_t write(int fd, const void *data, size_t n)
{
    if (fd <= STDERR_FILENO) return syscall(SYS_write, fd, data, n); /* the test's own report */
    if (!disk_allows()) {                                            /* half of it arrives */
        ssize_t ignored = syscall(SYS_write, fd, data, disk.calls == disk.die_at ? n / 2 : 0);
        (void)ignored;
        errno = disk.error ? disk.error : EIO;
        return -1;
    }
    uint64_t offset = (uint64_t)lseek(fd, 0, SEEK_CUR);
    ssize_t done = syscall(SYS_write, fd, data, n);
    if (done > 0)
        disk_tell((DiskEvent){
            .call = DISK_WRITE, .fd = fd, .data = data, .n = (size_t)done, .offset = offset});
    return done;
}

ssize_t pwrite(int fd, const void *data, size_t n, off_t offset)
{
    if (!disk_allows()) return -1;
    ssize_t done = syscall(SYS_pwrite64, fd, data, n, offset);
    if (done > 0)
        disk_tell((DiskEvent){.call = DISK_WRITE,
                              .fd = fd,
                              .data = data,
                              .n = (size_t)done,
                              .offset = (uint64_t)offset});
    return done;
}

int ftruncate(int fd, off_t length)
{
    if (!disk_allows()) return -1;
    int result = (int)syscall(SYS_ftruncate, fd, length);
    if (result == 0)
        disk_tell((DiskEvent){.call = DISK_SIZE, .fd = fd, .offset = (uint64_t)length});
    return result;
}

int fsync(int fd)
{
    if (!disk_allows()) return -1;
    int result = (int)syscall(SYS_fsync, fd);
    if (result == 0) disk_tell((DiskEvent){.call = DISK_SYNC, .fd = fd});
    return result;
}

int rename(const char *from, const char *to)
{
    if (!disk_allows()) return -1;
    int result = (int)syscall(SYS_rename, from, to);
    if (result == 0) disk_tell((DiskEvent){.call = DISK_RENAME, .fd = -1, .path = from, .to = to});
    return result;
}

int mkdir(const char *path, mode_t mode)
{
    struct stat st;
    if (stat(path, &st) == 0) { /* changes nothing: not counted */
        errno = EEXIST;
        return -1;
    }
    if (!disk_allows()) return -1;
    int result = (int)syscall(SYS_mkdir, path, mode);
    if (result == 0) disk_tell((DiskEvent){.call = DISK_MKDIR, .fd = -1, .path = path});
    return result;
}

int unlinkat(int dir_fd, const char *path, int flags)
{
    struct stat st;
    if (!(flags & AT_REMOVEDIR) && fstatat(dir_fd, path, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
        S_ISDIR(st.st_mode)) {
        errno = EISDIR; /* only a question: not counted */
        return -1;
    }
    if (!disk_allows()) return -1;
    int result = (int)syscall(SYS_unlinkat, dir_fd, path, flags);
    if (result == 0)
        disk_tell((DiskEvent){.call = DISK_REMOVE, .fd = -1, .dir_fd = dir_fd, .path = path});
    return result;
}

int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int close(int fd)
{
    if (disk.closed) disk.closed(fd);
    return (int)syscall(SYS_close, fd);
}

#endif
