/* A model directory from any source of tensors: pieces of a few MB are read, converted, written.
 * What is not finished never has the name that was asked for. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ckpt/ckpt_internal.h"

enum { COPY_BYTES = 1 << 20 };

static Status read_entry(const void *entry, int64_t first, int64_t n, DType to, void *out)
{
    return safetensors_read(entry, first, n, to, out);
}

ExportTensor export_entry(const SafetensorsEntry *entry, DType dtype)
{
    return (ExportTensor){.name = entry->name,
                          .dtype = dtype,
                          .shape = entry->shape,
                          .read = read_entry,
                          .context = entry};
}

/* ---- tensors ---------------------------------------------------------------------------- */

typedef struct Progress {
    const Export *what;
    uint64_t done, total;
} Progress;

typedef struct Source {
    const ExportTensor *tensor;
    Progress *progress;
} Source;

enum { F16_EXPONENT = 0x7c00 };

/* An f16 that is not finite must have been none before: 65,520 and more do not fit. */
static Status check_f16(const ExportTensor *t, int64_t first, int64_t n, const uint16_t *written)
{
    int64_t i = 0;
    while (i < n && (written[i] & F16_EXPONENT) != F16_EXPONENT) i++;
    if (i == n) return OK;
    float *values = xmalloc((size_t)n * sizeof *values);
    Status status = t->read(t->context, first, n, DTYPE_F32, values);
    for (; i < n && status == OK; i++)
        if ((written[i] & F16_EXPONENT) == F16_EXPONENT && isfinite(values[i]))
            status = fail(ERR_REFUSED, "%s[%lld] is %g, which f16 cannot hold; bf16 can", t->name,
                          (long long)(first + i), (double)values[i]);
    free(values);
    return status;
}

static Status fill(void *context, uint64_t offset, void *out, size_t bytes)
{
    const Source *s = context;
    const ExportTensor *t = s->tensor;
    int64_t size = (int64_t)dtype_bytes(t->dtype), first = (int64_t)offset / size,
            n = (int64_t)bytes / size;
    TRY(t->read(t->context, first, n, t->dtype, out));
    if (t->dtype == DTYPE_F16) TRY(check_f16(t, first, n, out));
    Progress *p = s->progress;
    p->done += bytes;
    return p->what->progress
               ? p->what->progress(p->what->progress_context, t->name, p->done, p->total)
               : OK;
}

static Status write_tensors(FileSet *set, const Export *what, Progress *progress)
{
    SafetensorsItem *items = xcalloc((size_t)what->n + 1, sizeof *items);
    Source *sources = xcalloc((size_t)what->n + 1, sizeof *sources);
    for (int i = 0; i < what->n; i++) {
        const ExportTensor *t = &what->tensors[i];
        sources[i] = (Source){t, progress};
        items[i] = (SafetensorsItem){.name = t->name,
                                     .dtype = t->dtype,
                                     .shape = t->shape,
                                     .fill = fill,
                                     .context = &sources[i]};
    }
    uint64_t shard = what->shard_bytes ? what->shard_bytes
                                       : (uint64_t)DEFAULT_SHARD_BYTES_GB * 1000000000;
    size_t first = set->n;
    Status status;
    if (shard_count(items, what->n, shard) == 1) {
        status = fileset_write_shard(set, "model.safetensors", items, what->n);
    } else {
        status = fileset_write_items(set, "model", items, what->n, shard);
        if (status == OK) status = fileset_write_index(set, first);
    }
    free(items);
    free(sources);
    return status;
}

/* ---- other files ------------------------------------------------------------------------ */

static Status copy_bytes(int from, int to, const char *path, const char *target)
{
    uint64_t size;
    TRY(file_size(path, &size));
    void *piece = xmalloc(COPY_BYTES);
    Status status = OK;
    for (uint64_t at = 0; at < size && status == OK; at += COPY_BYTES) {
        size_t n = size - at < COPY_BYTES ? (size_t)(size - at) : COPY_BYTES;
        status = file_pread(from, piece, n, at, path);
        if (status == OK) status = file_write(to, piece, n, target);
    }
    free(piece);
    return status == OK ? file_sync(to, target) : status;
}

static Status copy_file(const char *path, const char *dir)
{
    Arena arena = {0};
    const char *target = path_join(&arena, dir, path_base(path));
    int from = -1, to = -1;
    Status status = file_open_read(path, &from);
    if (status == OK) status = file_create(target, &to);
    if (status == OK) status = copy_bytes(from, to, path, target);
    if (from >= 0) close(from);
    if (to >= 0 && status == OK)
        status = file_close(to, target);
    else if (to >= 0)
        close(to);
    arena_deinit(&arena);
    return status;
}

static Status write_all(const char *dir, const Export *what, uint64_t tensor_bytes)
{
    FileSet set = {.dir = dir};
    Progress progress = {.what = what, .total = tensor_bytes};
    Status status = OK;
    for (int i = 0; i < what->n_files && status == OK; i++)
        status = fileset_write_file(&set, what->files[i].name, what->files[i].bytes);
    for (int i = 0; i < what->n_copies && status == OK; i++)
        status = copy_file(what->copies[i], dir);
    if (status == OK) status = write_tensors(&set, what, &progress);
    if (status == OK) status = dir_sync(dir);
    fileset_deinit(&set);
    return status;
}

/* ---- entry ------------------------------------------------------------------------------ */

typedef struct Target {
    char *path; /* without a slash at its end */
    const char *parent, *name, *work;
} Target;

static Status find_target(Arena *arena, const char *path, Target *t)
{
    t->path = arena_strdup(arena, path);
    for (size_t n = strlen(t->path); n > 1 && t->path[n - 1] == '/'; n--) t->path[n - 1] = 0;
    t->name = path_base(t->path);
    if (!path_is_plain_name(t->name))
        return fail(ERR_ARG, "'%s' is no name for a new directory", path);
    size_t before = (size_t)(t->name - t->path);
    t->parent = before == 0 ? "." : before == 1 ? "/" : arena_strndup(arena, t->path, before - 1);
    t->work = arena_printf(arena, "%s/.%s.part-%d", t->parent, t->name, (int)getpid());
    if (dir_exists(t->path) || file_exists(t->path))
        return fail(
            ERR_REFUSED,
            "%s exists already, and nothing is written over; choose another name, or remove it",
            t->path);
    return dir_create(t->parent);
}

/* What a killed conversion left is named, not removed: another process may be at work on it. */
static Status mention_leftovers(Arena *arena, const Target *t)
{
    DirEntries entries;
    const char *begin = arena_printf(arena, ".%s.part-", t->name);
    TRY(dir_list(arena, t->parent, &entries));
    for (int i = 0; i < entries.n; i++)
        if (!strncmp(entries.name[i], begin, strlen(begin)))
            log_warn("%s/%s is unfinished; if no conversion is under way, remove it", t->parent,
                     entries.name[i]);
    return OK;
}

static Status check_room(const Target *t, const Export *what, uint64_t tensor_bytes)
{
    uint64_t need = tensor_bytes, have, size;
    char need_text[32], have_text[32];
    for (int i = 0; i < what->n_files; i++) need += what->files[i].bytes.n;
    for (int i = 0; i < what->n_copies; i++) {
        TRY(file_size(what->copies[i], &size));
        need += size;
    }
    TRY(dir_free_bytes(t->parent, &have));
    if (need <= have) return OK;
    return fail(ERR_REFUSED, "%s has %s free, but %s needs %s", t->parent,
                format_bytes((double)have, have_text), t->path,
                format_bytes((double)need, need_text));
}

static Status export_to(Arena *arena, const Target *t, const Export *what)
{
    uint64_t bytes = 0;
    for (int i = 0; i < what->n; i++)
        bytes += (uint64_t)shape_count(&what->tensors[i].shape) *
                 dtype_bytes(what->tensors[i].dtype);
    TRY(mention_leftovers(arena, t));
    TRY(check_room(t, what, bytes));
    TRY(dir_create(t->work));
    Status status = write_all(t->work, what, bytes);
    if (status == OK) status = file_rename(t->work, t->path);
    if (status == OK) return dir_sync(t->parent);
    const char *sentence = arena_strdup(arena, status_message());
    if (dir_remove_tree(t->work) != OK) log_warn("%s", status_message());
    return fail(status, "%s", sentence);
}

Status modeldir_export(const char *path, const Export *what)
{
    Arena arena = {0};
    Target target = {0};
    if (what->n <= 0) return fail(ERR_ARG, "%s: a model needs at least one tensor", path);
    Status status = find_target(&arena, path, &target);
    if (status == OK) status = export_to(&arena, &target, what);
    arena_deinit(&arena);
    return status;
}
