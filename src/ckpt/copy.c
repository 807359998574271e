/* Copies in memory: files of a memory file system, mapped. Nothing here needs to reach a disk, and
 * a process that dies tears nothing that it had written before: a slot is whole when its step
 * stands in the head of the file.
 *
 * What can go wrong in memory and on the way to a keeper are bits. Every part of a slot has a hash,
 * taken when the slot is filled and travelling with it, and nothing of a slot is given out before
 * all of them were found right. */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ckpt/ckpt_internal.h"

enum { PAGE = 4096, ALIGN = 64, SLOTS = 2, JSON_BYTES = PAGE - 128 };
static const char magic[8] = "drvcopy2";

/* The first page of a file. */
typedef struct CopyHead {
    char magic[8];
    uint64_t run, file_bytes, slot_bytes;
    int32_t rank, ranks, keeper, unused;
    uint64_t start[SLOTS];
    _Atomic int64_t step[SLOTS]; /* -1: not whole */
} CopyHead;

/* The first page of a slot. */
typedef struct SlotHead {
    int64_t step, n_parts, n_runs;
    uint64_t start, index_bytes, data_bytes;
    uint64_t tensors; /* a hash of what the runs are runs of */
    int32_t rank, ranks;
    Hash128 index; /* of the parts and runs */
    Hash128 head;  /* of this page, with zeros in this place */
    char unused[PAGE - JSON_BYTES - 96];
    char run_json[JSON_BYTES];
} SlotHead;
_Static_assert(sizeof(SlotHead) == PAGE, "the head of a slot is a page");

/* Behind it the index: the parts, then the runs. */
typedef struct CopyPart {
    uint64_t at, bytes; /* of the data */
    Hash128 hash;
} CopyPart;

struct CkptCopy {
    char *path;
    uint64_t start;
    CopyHead *head;
    char *map;
    size_t map_bytes;
    int last; /* slot taken last */
};

static size_t index_bytes(int64_t n_parts, int64_t n_runs)
{
    return (size_t)n_parts * sizeof(CopyPart) + (size_t)n_runs * sizeof(CkptCopyRun);
}

size_t ckpt_copy_bytes(const Tensor *parts, int n_parts, int64_t n_runs)
{
    size_t index = round_up(index_bytes(n_parts, n_runs), PAGE);
    return PAGE + SLOTS * (PAGE + index + ckpt_snapshot_bytes(parts, n_parts));
}

static Status fail_copy(const char *verb, const char *path)
{
    int error = errno;
    return fail(ERR_MEMORY, "cannot %s the copy in memory %s: %s", verb, path, strerror(error));
}

/* ---- made ------------------------------------------------------------------------------- */

static char *copy_path(const CkptCopyName *n)
{
    Str path = {0};
    str_printf(&path, "%s/drover-copy-%016llx-%d-of-%d-on-%d", n->dir, (unsigned long long)n->run,
               n->rank, n->ranks, n->keeper);
    return path.at;
}

static bool is_same(const CopyHead *head, const CkptCopyName *name, size_t bytes)
{
    return head->run == name->run && head->file_bytes == bytes && head->rank == name->rank &&
           head->ranks == name->ranks && head->keeper == name->keeper;
}

static bool is_head(const CopyHead *head, size_t bytes)
{
    return !memcmp(head->magic, magic, sizeof magic) && head->file_bytes == bytes &&
           head->slot_bytes > PAGE && head->slot_bytes % PAGE == 0 &&
           head->slot_bytes <= (bytes - PAGE) / SLOTS && head->ranks > 0 && head->rank >= 0 &&
           head->rank < head->ranks;
}

/* NULL unless it is a file of this user's with a good head. */
static void *map_file(const char *path, int flags, size_t *bytes)
{
    struct stat st;
    int fd = open(path, flags | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) return NULL;
    bool ours = fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_uid == geteuid() &&
                st.st_size > PAGE;
    *bytes = ours ? (size_t)st.st_size : 0;
    int protection = flags == O_RDWR ? PROT_READ | PROT_WRITE : PROT_READ;
    void *map = ours ? mmap(NULL, *bytes, protection, MAP_SHARED, fd, 0) : MAP_FAILED;
    close(fd);
    if (map == MAP_FAILED) return NULL;
    if (is_head(map, *bytes)) return map;
    munmap(map, *bytes);
    return NULL;
}

/* Pages are had now: later there would be no answer but a signal. */
static Status map_new(const char *path, size_t bytes, char **map)
{
    unlink(path); /* readers of an older one keep it */
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) return fail_copy("make", path);
    int error = fault_hit("tensor_alloc") ? ENOSPC : posix_fallocate(fd, 0, (off_t)bytes);
    *map = error ? MAP_FAILED
                 : mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (error) errno = error;
    close(fd);
    if (*map != MAP_FAILED) return OK;
    Status status = fail_copy("find room for", path);
    unlink(path);
    return status;
}

/* The slot that is kept was the last to be taken. */
static void keep_slot(CkptCopy *copy, int64_t keep)
{
    for (int k = 0; k < SLOTS; k++) {
        if (keep >= 0 && atomic_load(&copy->head->step[k]) == keep)
            copy->last = k;
        else
            atomic_store(&copy->head->step[k], -1);
    }
}

Status ckpt_copy_create(const CkptCopyName *name, size_t bytes, int64_t keep, CkptCopy **out)
{
    char *path = copy_path(name);
    size_t have = 0;
    char *map = map_file(path, O_RDWR, &have);
    if (map && !is_same((CopyHead *)(void *)map, name, bytes)) {
        munmap(map, have);
        map = NULL;
    }
    bool adopted = map != NULL;
    Status status = adopted ? OK : map_new(path, bytes, &map);
    if (status != OK) {
        free(path);
        return status;
    }
    CkptCopy *copy = xcalloc(1, sizeof *copy);
    *copy = (CkptCopy){.path = path,
                       .start = name->start,
                       .head = (CopyHead *)(void *)map,
                       .map = map,
                       .map_bytes = bytes,
                       .last = SLOTS - 1};
    if (adopted) {
        keep_slot(copy, keep);
    } else {
        *copy->head = (CopyHead){.run = name->run,
                                 .file_bytes = bytes,
                                 .slot_bytes = (bytes - PAGE) / SLOTS,
                                 .rank = name->rank,
                                 .ranks = name->ranks,
                                 .keeper = name->keeper,
                                 .step = {-1, -1}};
        memcpy(copy->head->magic, magic, sizeof magic);
    }
    *out = copy;
    return OK;
}

void ckpt_copy_close(CkptCopy *copy, bool remove)
{
    if (!copy) return;
    munmap(copy->map, copy->map_bytes);
    if (remove) unlink(copy->path);
    free(copy->path);
    free(copy);
}

/* ---- filled ----------------------------------------------------------------------------- */

static char *slot_at(const CkptCopy *copy, int slot)
{
    return copy->map + PAGE + (size_t)slot * copy->head->slot_bytes;
}

static char *begin_slot(CkptCopy *copy)
{
    copy->last = (copy->last + 1) % SLOTS;
    atomic_store(&copy->head->step[copy->last], -1);
    copy->head->start[copy->last] = copy->start;
    return slot_at(copy, copy->last);
}

typedef struct Indexing {
    const CkptShare *share;
    const CopyPart *part;
    CkptCopyRun *run;
    int64_t n, cap;
    int tensor;
} Indexing;

static Status index_run(void *to, const CkptRun *run)
{
    Indexing *x = to;
    size_t size = dtype_bytes(x->share->parts[run->part].dtype);
    if (x->n == x->cap)
        return fail(ERR_ARG, "a copy in memory has room for %lld runs only", (long long)x->cap);
    x->run[x->n++] = (CkptCopyRun){.first = run->first,
                                   .n = run->n,
                                   .at = x->part[run->part].at + (uint64_t)run->at * size,
                                   .tensor = x->tensor,
                                   .element_bytes = (int32_t)size};
    return OK;
}

typedef struct Copying {
    const CkptShare *share;
    CopyPart *part;
    char *data;
} Copying;

static Status copy_part(void *context, int i)
{
    const Copying *c = context;
    const Tensor *tensor = &c->share->parts[i];
    CopyPart *part = &c->part[i];
    tensor_gather(tensor, 0, tensor_count(tensor), c->data + part->at);
    part->hash = hash128_bytes(c->data + part->at, part->bytes);
    return OK;
}

static uint64_t hash_tensors(const CkptShare *share)
{
    uint64_t hash = 0;
    for (int i = 0; i < share->n_tensors; i++) {
        const CkptTensor *t = &share->tensors[i];
        hash = rng_key(hash + (uint64_t)t->dtype, t->name) ^
               hash_bytes(t->shape.dim, sizeof *t->shape.dim * (size_t)t->shape.rank);
    }
    return hash;
}

static Hash128 hash_head(const SlotHead *head)
{
    SlotHead without = *head;
    without.head = (Hash128){0};
    return hash128_bytes(&without, sizeof without);
}

/* Where the parts lie: each begins at a multiple of ALIGN. Returns the bytes of all. */
static uint64_t place_parts(const CkptShare *share, CopyPart *part)
{
    uint64_t at = 0;
    for (int i = 0; i < share->n_parts; i++) {
        part[i] = (CopyPart){.at = at, .bytes = tensor_bytes(&share->parts[i])};
        at += round_up(part[i].bytes, ALIGN);
    }
    return at;
}

/* The head says which step of which rank; the rest of it and the slot are filled here. */
static Status fill_slot(const CkptCopy *copy, const CkptShare *share, char *slot,
                        const char *run_json)
{
    SlotHead *head = (SlotHead *)(void *)slot;
    CopyPart *part = (CopyPart *)(void *)(slot + PAGE);
    size_t data_room = ckpt_snapshot_bytes(share->parts, share->n_parts);
    size_t needed = PAGE + data_room + index_bytes(share->n_parts, 0);
    if (needed > copy->head->slot_bytes)
        return fail(ERR_ARG, "a copy in memory has no room for %zu bytes", needed);
    head->n_parts = share->n_parts;
    head->data_bytes = place_parts(share, part);
    head->index_bytes = copy->head->slot_bytes - PAGE - data_room;
    Indexing x = {.share = share, .part = part};
    x.run = (CkptCopyRun *)(void *)(part + share->n_parts);
    x.cap = (int64_t)((head->index_bytes - index_bytes(share->n_parts, 0)) / sizeof *x.run);
    for (x.tensor = 0; x.tensor < share->n_tensors; x.tensor++)
        TRY(share->each_run(share->context, x.tensor, index_run, &x));
    head->n_runs = x.n;
    head->tensors = hash_tensors(share);
    if (snprintf(head->run_json, JSON_BYTES, "%s", run_json) >= JSON_BYTES)
        return fail(ERR_ARG, "the run's state is too long for a copy in memory");
    Copying copying = {share, part, slot + PAGE + head->index_bytes};
    TRY(parallel_each(share->n_parts, parallel_threads(head->data_bytes), copy_part, &copying));
    head->index = hash128_bytes(part, index_bytes(head->n_parts, head->n_runs));
    head->head = hash_head(head);
    return OK;
}

Status ckpt_copy_take(CkptCopy *copy, const CkptShare *share, int64_t step, const char *run_json)
{
    char *slot = begin_slot(copy);
    *(SlotHead *)(void *)slot = (SlotHead){
        .step = step, .start = copy->start, .rank = copy->head->rank, .ranks = copy->head->ranks};
    TRY(fill_slot(copy, share, slot, run_json));
    atomic_store(&copy->head->step[copy->last], step);
    return OK;
}

const void *ckpt_copy_slot(const CkptCopy *copy, size_t *bytes)
{
    *bytes = copy->head->slot_bytes;
    return slot_at(copy, copy->last);
}

void *ckpt_copy_receive(CkptCopy *copy, size_t *bytes)
{
    *bytes = copy->head->slot_bytes;
    return begin_slot(copy);
}

void ckpt_copy_received(CkptCopy *copy, int64_t step)
{
    atomic_store(&copy->head->step[copy->last], step);
}

/* ---- found ------------------------------------------------------------------------------ */

void ckpt_copy_view_close(CkptCopyView *view)
{
    if (view->map) munmap(view->map, view->map_bytes);
    *view = (CkptCopyView){0};
}

Status ckpt_copies_find(Arena *arena, const char *dir, uint64_t run, CkptCopyFound **found, int *n)
{
    DirEntries entries;
    char begin[64];
    snprintf(begin, sizeof begin, "drover-copy-%016llx-", (unsigned long long)run);
    TRY(dir_list(arena, dir, &entries));
    *found = ARENA_ARRAY(arena, CkptCopyFound, SLOTS * entries.n);
    *n = 0;
    for (int i = 0; i < entries.n; i++) {
        size_t bytes;
        const char *path = path_join(arena, dir, entries.name[i]);
        CopyHead *head = strncmp(entries.name[i], begin, strlen(begin))
                             ? NULL
                             : map_file(path, O_RDONLY, &bytes);
        if (!head) continue;
        for (int k = 0; k < SLOTS && head->run == run; k++) {
            int64_t step = atomic_load(&head->step[k]);
            if (step >= 0)
                (*found)[(*n)++] = (CkptCopyFound){path,       head->start[k], step,        k,
                                                   head->rank, head->ranks,    head->keeper};
        }
        munmap(head, bytes);
    }
    return OK;
}

static bool runs_inside(const CkptCopyView *v, const CkptShare *share, uint64_t data_bytes)
{
    for (int64_t i = 0; i < v->n_runs; i++) {
        const CkptCopyRun *r = &v->run[i];
        size_t bytes, end;
        const CkptTensor *t = r->tensor >= 0 && r->tensor < share->n_tensors
                                  ? &share->tensors[r->tensor]
                                  : NULL;
        bool good = t && r->element_bytes == (int32_t)dtype_bytes(t->dtype) && r->n > 0 &&
                    r->first >= 0 && r->n <= shape_count(&t->shape) &&
                    r->first <= shape_count(&t->shape) - r->n &&
                    size_mul((size_t)r->n, (size_t)r->element_bytes, &bytes) &&
                    size_add(bytes, r->at, &end) && end <= data_bytes;
        if (!good) return false;
    }
    return true;
}

/* ---- checked ---------------------------------------------------------------------------- */

/* That the head is of this step, and that all it speaks of lies inside the slot; then sets the
 * view. */
static bool read_head(const CkptCopyFound *f, const CkptShare *share, const CopyHead *file,
                      CkptCopyView *view)
{
    const char *slot = (const char *)file + PAGE + (size_t)f->slot * file->slot_bytes;
    const SlotHead *s = (const SlotHead *)(const void *)slot;
    const CopyPart *part = (const CopyPart *)(const void *)(slot + PAGE);
    size_t room = file->slot_bytes - PAGE;
    Hash128 head = hash_head(s);
    bool good = !memcmp(&head, &s->head, sizeof head) && s->step == f->step &&
                s->start == f->start && s->rank == f->rank && s->ranks == f->ranks &&
                atomic_load(&file->step[f->slot]) == f->step && s->tensors == hash_tensors(share) &&
                s->index_bytes <= room && s->data_bytes <= room - s->index_bytes &&
                memchr(s->run_json, 0, JSON_BYTES);
    int64_t most = (int64_t)(room / sizeof *part);
    good = good && s->n_parts >= 0 && s->n_runs >= 0 && s->n_parts <= most && s->n_runs <= most &&
           index_bytes(s->n_parts, s->n_runs) <= s->index_bytes;
    if (!good) return false;
    view->run_json = s->run_json;
    view->run = (const CkptCopyRun *)(const void *)(part + s->n_parts);
    view->n_runs = s->n_runs;
    view->data = slot + PAGE + s->index_bytes;
    Hash128 index = hash128_bytes(part, index_bytes(s->n_parts, s->n_runs));
    return !memcmp(&index, &s->index, sizeof index) && runs_inside(view, share, s->data_bytes);
}

typedef struct Checking {
    const CkptCopyFound *found;
    const CkptShare *share;
    const CkptCopyView *view;
    const CopyPart *part;
    uint64_t data_bytes;
} Checking;

static const char *tensor_at(const Checking *c, const CopyPart *part)
{
    for (int64_t i = 0; i < c->view->n_runs; i++) {
        const CkptCopyRun *run = &c->view->run[i];
        if (run->at - part->at < part->bytes) return c->share->tensors[run->tensor].name;
    }
    return "no tensor";
}

static Status fail_damaged(const CkptCopyFound *f, const char *what)
{
    return fail(ERR_FORMAT, "the copy in memory of rank %d of %d after step %lld, %s, is %s",
                f->rank, f->ranks, (long long)f->step, f->path, what);
}

static Status check_part(void *context, int i)
{
    const Checking *c = context;
    const CopyPart *part = &c->part[i];
    char what[256];
    bool inside = part->at <= c->data_bytes && part->bytes <= c->data_bytes - part->at;
    Hash128 hash = inside ? hash128_bytes(c->view->data + part->at, part->bytes) : (Hash128){0};
    if (inside && !memcmp(&hash, &part->hash, sizeof hash)) return OK;
    snprintf(what, sizeof what, "damaged: bits of %.160s have changed since it was taken",
             tensor_at(c, part));
    return fail_damaged(c->found, what);
}

static Status check_copy(const CkptCopyFound *found, const CkptShare *share, CkptCopyView *view)
{
    const CopyHead *file = view->map;
    if (!read_head(found, share, file, view))
        return fail_damaged(found, "damaged in its head or index, or a copy of another model");
    const char *slot = (const char *)view->map + PAGE + (size_t)found->slot * file->slot_bytes;
    const SlotHead *s = (const SlotHead *)(const void *)slot;
    Checking checking = {found, share, view, (const CopyPart *)(const void *)(slot + PAGE),
                         s->data_bytes};
    return parallel_each((int)s->n_parts, parallel_threads(s->data_bytes), check_part, &checking);
}

Status ckpt_copy_open(const CkptCopyFound *found, const CkptShare *share, CkptCopyView *view)
{
    size_t map_bytes = 0;
    *view = (CkptCopyView){.map = map_file(found->path, O_RDONLY, &map_bytes)};
    view->map_bytes = map_bytes;
    if (!view->map) return fail_damaged(found, "no copy of this user's");
    Status status = check_copy(found, share, view);
    if (status != OK) ckpt_copy_view_close(view);
    return status;
}
