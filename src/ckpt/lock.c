/* One job per checkpoint directory: a lock of the kernel on a small file, which ends with the
 * process however it ends, and a text in it that says whose it is. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "ckpt/ckpt_internal.h"

enum { OWNER_TEXT = 256 };

static Status fail_lock(const char *verb, const char *path, int fd)
{
    int error = errno;
    if (fd >= 0) close(fd);
    return fail(ERR_IO, "cannot %s %s: %s", verb, path, strerror(error));
}

static Status name_owner(int fd, const char *root)
{
    char owner[OWNER_TEXT];
    ssize_t n = pread(fd, owner, sizeof owner - 1, 0);
    owner[n > 0 ? n : 0] = 0;
    owner[strcspn(owner, "\n")] = 0;
    return fail(ERR_REFUSED,
                "%s is in use by %s; stop that job first, or give this run another name", root,
                owner[0] ? owner : "another process");
}

Status lock_take(const char *root, int *out)
{
    Arena arena = {0};
    char host[64] = "an unnamed host", owner[OWNER_TEXT];
    const char *path = path_join(&arena, root, "lock");
    Status status = OK;
    /* not truncated on opening: until the lock is ours the text is somebody else's */
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0) {
        status = fail_lock("open", path, fd);
    } else if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
        bool taken = errno == EWOULDBLOCK;
        status = taken ? name_owner(fd, root) : fail_lock("lock", path, fd);
        if (taken) close(fd);
    } else {
        gethostname(host, sizeof host - 1);
        int n = snprintf(owner, sizeof owner, "process %d on %s\n", (int)getpid(), host);
        /* only a help for readers: a full disk must not stop the run here */
        if (ftruncate(fd, 0) < 0 || pwrite(fd, owner, (size_t)n, 0) != n)
            log_warn("cannot write %s", path);
        *out = fd;
    }
    arena_deinit(&arena);
    return status;
}
