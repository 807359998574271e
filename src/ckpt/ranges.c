/* A rank's ranges of the files: written, synced and read back.
 *
 * A file is gone through once, from its front to its end. Where a tensor is cut along an inner axis
 * a rank has a short run in every row; runs that touch each other, small tensors among them, are
 * put together and go out in one write, long ones straight from the snapshot. No byte of another
 * rank's is read or written, so ranks need no order among themselves. */
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ckpt/ckpt_internal.h"

enum { WRITE_BYTES = 1 << 20, READ_BYTES = 1 << 18 };

/* One file in work. */
typedef struct Work {
    const Ranges *ranges;
    const PlannedFile *file;
    int fd; /* -1: this rank has had nothing to do with it */
    int tensor;
    uint64_t at; /* where the tensor begins in the file */
    CkptTally tally;
    uint8_t *pending; /* writes that touch each other, [write_bytes]; NULL until needed */
    uint64_t pending_at;
    size_t pending_n;
    uint8_t *scratch; /* for parts that are strided, and for reading */
} Work;

typedef struct Job {
    const Ranges *ranges;
    CkptTally *tally; /* of each tensor */
    bool verify;
    atomic_bool failed; /* then no further file is begun */
} Job;

static size_t write_bytes(const Ranges *r) { return r->write_bytes ? r->write_bytes : WRITE_BYTES; }

/* ---- writing ---------------------------------------------------------------------------- */

static Status flush(Work *w)
{
    size_t n = w->pending_n;
    w->pending_n = 0;
    return n ? file_pwrite(w->fd, w->pending, n, w->pending_at, w->file->path) : OK;
}

static Status put(Work *w, uint64_t offset, const void *data, size_t n)
{
    size_t cap = write_bytes(w->ranges);
    bool follows = w->pending_n && w->pending_at + w->pending_n == offset;
    if (!follows || w->pending_n + n > cap) TRY(flush(w));
    if (n >= cap) return file_pwrite(w->fd, data, n, offset, w->file->path);
    if (!w->pending) w->pending = xmalloc(cap);
    if (!w->pending_n) w->pending_at = offset;
    memcpy(w->pending + w->pending_n, data, n);
    w->pending_n += n;
    return OK;
}

static Status open_for_writing(Work *w)
{
    return w->fd >= 0 ? OK : file_open_write(w->file->path, &w->fd);
}

static Status write_elements(Work *w, int64_t first, int64_t n, const void *data)
{
    DType dtype = w->ranges->share->tensors[w->tensor].dtype;
    size_t size = dtype_bytes(dtype);
    tally_add(w->ranges->keys, &w->tally, first, n, dtype, data);
    return put(w, w->at + (uint64_t)first * size, data, (size_t)n * size);
}

/* What is strided in memory is packed a piece at a time. */
static Status write_run(void *to, const CkptRun *run)
{
    Work *w = to;
    const Tensor *part = &w->ranges->share->parts[run->part];
    size_t size = dtype_bytes(part->dtype);
    CHECK(part->dtype == w->ranges->share->tensors[w->tensor].dtype);
    TRY(open_for_writing(w));
    if (stride_is_contiguous(&part->shape, part->stride))
        return write_elements(w, run->first, run->n,
                              (const char *)part->data + (size_t)run->at * size);
    if (!w->scratch) w->scratch = xmalloc(READ_BYTES);
    int64_t at_once = READ_BYTES / (int64_t)size;
    for (int64_t done = 0; done < run->n; done += at_once) {
        int64_t n = min_i64(at_once, run->n - done);
        tensor_gather(part, run->at + done, n, w->scratch);
        TRY(write_elements(w, run->first + done, n, w->scratch));
    }
    return OK;
}

/* ---- reading back ----------------------------------------------------------------------- */

/* From the storage, where ranks of other hosts may have written into the same pages: this host's
 * cache would only say what this host has written. A request to forget it that is not heard does no
 * harm. */
static Status open_for_reading(Work *w)
{
    TRY(file_open_read(w->file->path, &w->fd));
    if (w->ranges->share->ranks > 1) posix_fadvise(w->fd, 0, 0, POSIX_FADV_DONTNEED);
    return OK;
}

static Status read_run(void *to, const CkptRun *run)
{
    Work *w = to;
    DType dtype = w->ranges->share->tensors[w->tensor].dtype;
    size_t size = dtype_bytes(dtype);
    if (w->fd < 0) TRY(open_for_reading(w));
    if (!w->scratch) w->scratch = xmalloc(READ_BYTES);
    int64_t at_once = READ_BYTES / (int64_t)size;
    for (int64_t done = 0; done < run->n; done += at_once) {
        int64_t n = min_i64(at_once, run->n - done), first = run->first + done;
        uint64_t offset = w->at + (uint64_t)first * size;
        TRY(file_pread(w->fd, w->scratch, (size_t)n * size, offset, w->file->path));
        tally_add(w->ranges->keys, &w->tally, first, n, dtype, w->scratch);
    }
    return OK;
}

static Status check_same(const Work *w, const CkptTally *want)
{
    if (memcmp(&w->tally, want, sizeof *want) == 0) return OK;
    return fail(ERR_IO,
                "what was just written: tensor %s of %s does not read back as it was written",
                w->ranges->share->tensors[w->tensor].name, w->file->path);
}

/* ---- files ------------------------------------------------------------------------------ */

static Status each_tensor(Work *w, const Job *job)
{
    const CkptShare *share = w->ranges->share;
    for (int i = 0; i < w->file->n; i++) {
        w->tensor = w->file->tensor[i];
        w->at = w->file->at[i];
        w->tally = (CkptTally){0};
        TRY_AS(share->each_run(share->context, w->tensor, job->verify ? read_run : write_run, w),
               "tensor %s", share->tensors[w->tensor].name);
        if (job->verify)
            TRY(check_same(w, &job->tally[w->tensor]));
        else
            job->tally[w->tensor] = w->tally;
    }
    return OK;
}

/* The first rank has laid the file out, so it syncs it even where it has no range of it. */
static Status write_file(Work *w, const Job *job)
{
    if (w->ranges->share->rank == 0) TRY(open_for_writing(w));
    TRY(each_tensor(w, job));
    TRY(flush(w));
    if (w->fd < 0) return OK;
    TRY(file_sync(w->fd, w->file->path));
    int fd = w->fd;
    w->fd = -1;
    return file_close(fd, w->file->path);
}

static Status run_file(void *context, int i)
{
    Job *job = context;
    if (atomic_load(&job->failed)) return OK;
    Work w = {.ranges = job->ranges, .file = &job->ranges->plan->file[i], .fd = -1};
    Status status = job->verify ? each_tensor(&w, job) : write_file(&w, job);
    if (w.fd >= 0)
        close(w.fd); /* only read from, or given up: the first error is the one that counts */
    free(w.pending);
    free(w.scratch);
    if (status != OK) atomic_store(&job->failed, true);
    return status;
}

static Status run_job(const Ranges *ranges, Job *job)
{
    int threads = parallel_threads(ranges->plan->bytes);
    if (threads > ranges->threads) threads = ranges->threads;
    return parallel_each(ranges->plan->n, threads, run_file, job);
}

Status ranges_write(const Ranges *ranges, CkptTally *tally)
{
    return run_job(ranges, &(Job){.ranges = ranges, .tally = tally});
}

Status ranges_verify(const Ranges *ranges, const CkptTally *tally)
{
    CkptTally *same = (CkptTally *)(uintptr_t)tally; /* only compared with */
    return run_job(ranges, &(Job){.ranges = ranges, .tally = same, .verify = true});
}
