/* Files mapped for reading, with a guard: a page behind the end of a file that was cut short after
 * mapping raises SIGBUS; file_map_copy turns that into a sentence.
 *
 * The handler is process-wide and put in place at each mapping (a library may have set its own
 * since). It jumps only when the thread that faulted is inside file_map_copy; any other SIGBUS
 * takes its default course. */
#include "base/base.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static _Thread_local sigjmp_buf *volatile guard;

static void on_bus_error(int signal_number)
{
    if (guard) siglongjmp(*guard, 1);
    signal(signal_number, SIG_DFL); /* the access repeats when we return, and ends the process */
}

static void install_handler(void)
{
    /* SA_NODEFER: the jump leaves the handler for good, so the signal must not stay blocked */
    struct sigaction action = {.sa_handler = on_bus_error, .sa_flags = SA_NODEFER};
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, NULL);
}

Status file_map(const char *path, FileMap *map)
{
    install_handler();
    int fd = -1;
    TRY(file_open_read(path, &fd));
    struct stat st;
    void *at = NULL;
    Status status = OK;
    if (fstat(fd, &st) < 0) {
        status = fail(ERR_IO, "cannot look at %s: %s", path, strerror(errno));
    } else if (!S_ISREG(st.st_mode)) {
        status = fail(ERR_IO, "%s is not a file", path);
    } else if (st.st_size > 0) { /* nothing to map in an empty one */
        at = fault_hit("map") ? (errno = ENOMEM, MAP_FAILED)
                              : mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
        if (at == MAP_FAILED) status = fail(ERR_IO, "cannot map %s: %s", path, strerror(errno));
    }
    close(fd);
    if (status == OK)
        *map = (FileMap){at ? at : (const uint8_t *)"", (size_t)st.st_size, xstrdup(path)};
    return status;
}

void file_unmap(FileMap *map)
{
    if (map->n) munmap((void *)(uintptr_t)map->at, map->n);
    free(map->path);
    *map = (FileMap){0};
}

/* What was copied once is rarely wanted again: its pages stay in the system's cache, but no longer
 * count as memory of this process. A piece smaller than this is not worth a system call. */
static void forget_pages(const FileMap *map, size_t offset, size_t n)
{
    enum { WORTH_IT = 256 << 10, PAGE = 4096 };
    uintptr_t begin = ((uintptr_t)(map->at + offset)) / PAGE * PAGE,
              end = ((uintptr_t)(map->at + offset + n)) / PAGE * PAGE;
    if (n >= WORTH_IT)
        madvise((char *)(uintptr_t)map->at + (begin - (uintptr_t)map->at), end - begin,
                MADV_DONTNEED);
}

Status file_map_copy(const FileMap *map, size_t offset, void *out, size_t n)
{
    if (offset > map->n || n > map->n - offset)
        return fail(ERR_FORMAT, "%s is too short: %zu bytes at %zu are needed, it has %zu",
                    map->path, n, offset, map->n);
    sigjmp_buf here;
    if (sigsetjmp(here, 0)) {
        guard = NULL;
        return fail(ERR_IO, "%s was cut short or became unreadable while it was in use", map->path);
    }
    guard = &here;
    __asm__ volatile("" ::: "memory"); /* the copy stays between the two assignments */
    if (n) memcpy(out, map->at + offset, n);
    __asm__ volatile("" ::: "memory");
    guard = NULL;
    forget_pages(map, offset, n);
    return OK;
}
