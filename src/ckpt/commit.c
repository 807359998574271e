/* How a checkpoint gets its name, by one rank or by many.
 *
 *     lay out   first rank   directory .tmp-step-N-..., files of their final size with their
 *               headers, small files
 *     write     all          each its own ranges of the files, each file synced by all who wrote
 *               into it
 *     verify    all          each reads its ranges back
 *     publish   first rank   manifest, fsync the directory, look at all of it but the tensors'
 *               bytes once more,
 *                            rename to step-N, fsync the parent      the checkpoint exists from
 *                            here on
 *                            write `latest` beside, fsync, rename, fsync
 *
 * Each phase begins when all ranks have ended the one before, so nothing has the name before all of
 * it is on the disk, whoever wrote it. A crash leaves temporary names, which nobody reads and
 * commit_clean removes, or a complete step that `latest` does not name yet. Whatever fails on one
 * rank ends the save on all: a file that could not be synced is given up with its whole directory,
 * and the next save writes new files under a name that was never used, so that a rank that is
 * thought dead and writes on cannot touch them. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ckpt/ckpt_internal.h"

static const char temporary[] = ".tmp-",
                  aside[] = ".tmp-old-"; /* the second: a step being replaced */

static Status check_save(const CkptSave *save)
{
    int n_model = 0;
    for (int i = 0; i < save->share->n_tensors; i++) n_model += !save->share->tensors[i].optimizer;
    if (save->step < 0 || n_model == 0)
        return fail(ERR_ARG, "a checkpoint needs a step from 0 on and at least one model tensor");
    for (int i = 0; i < save->n_files; i++) {
        const char *name = save->files[i].name;
        bool ours = !strcmp(name, "manifest.json") || strstr(name, ".safetensors");
        bool twice = false;
        for (int k = 0; k < i; k++) twice = twice || !strcmp(name, save->files[k].name);
        bool text = utf8_valid((const uint8_t *)name, strlen(name));
        if (!path_is_plain_name(name) || !text || name[0] == '.' || ours || twice)
            return fail(ERR_ARG, "a checkpoint cannot hold a file called '%s'%s", name,
                        twice ? " twice" : "");
    }
    return OK;
}

Status commit_begin(Commit *c)
{
    int n = c->save->share->n_tensors;
    TRY(check_save(c->save));
    step_name(c->save->step, c->step);
    c->final = path_join(&c->arena, c->root, c->step);
    c->old = arena_printf(&c->arena, "%s/%s%s", c->root, aside, c->step);
    c->set.dir = path_join(&c->arena, c->root, c->work);
    c->keys = sum_keys_create();
    c->own = ARENA_ARRAY(&c->arena, CkptTally, n);
    c->total = ARENA_ARRAY(&c->arena, CkptTally, n);
    return plan_files(&c->arena, c->save->share, c->set.dir, c->options.shard_bytes, &c->plan);
}

void commit_end(Commit *c)
{
    sum_keys_destroy(c->keys);
    fileset_deinit(&c->set);
    arena_deinit(&c->arena);
}

/* ---- lay out ---------------------------------------------------------------------------- */

/* Known beforehand, so a disk that is too small is not filled first. */
static Status check_space(const Commit *c)
{
    uint64_t need = c->plan.bytes, have;
    char need_text[32], have_text[32];
    for (int i = 0; i < c->save->n_files; i++) need += c->save->files[i].bytes.n;
    TRY(dir_free_bytes(c->root, &have));
    if (need <= have) return OK;
    return fail(
        ERR_IO,
        "%s has %s free, a checkpoint needs %s: free some space there, or keep fewer checkpoints",
        c->root, format_bytes((double)have, have_text), format_bytes((double)need, need_text));
}

/* Synced together with the ranges that are written into it. */
static Status lay_out_file(const PlannedFile *file)
{
    int fd;
    TRY(file_create(file->path, &fd));
    Status status = file_reserve(fd, file->bytes, file->path);
    if (status == OK) status = file_pwrite(fd, file->header, file->header_bytes, 0, file->path);
    if (status == OK) return file_close(fd, file->path);
    close(fd); /* given up: its first error is the one that counts */
    return status;
}

static Status write_index(Commit *c)
{
    FileSet models = {.dir = c->set.dir};
    for (int f = 0; f < c->plan.n_model; f++) {
        const PlannedFile *file = &c->plan.file[f];
        const char **names = ARENA_ARRAY(&c->arena, const char *, file->n);
        for (int i = 0; i < file->n; i++) names[i] = c->save->share->tensors[file->tensor[i]].name;
        WrittenFile written = {.name = arena_strdup(&c->arena, file->name),
                               .tensor_bytes = file->tensor_bytes,
                               .n_tensors = file->n,
                               .tensor_names = names};
        VEC_PUSH(&models, written);
    }
    /* always with an index, even for one shard: loaders that take every *.safetensors of a
     * directory
     * without one would read the optimizer's too */
    Status status = fileset_write_index(&models, 0);
    if (status == OK) {
        WrittenFile index = models.at[models.n - 1];
        index.name = arena_strdup(&c->set.arena, index.name);
        VEC_PUSH(&c->set, index);
    }
    fileset_deinit(&models);
    return status;
}

Status commit_lay_out(Commit *c)
{
    TRY(check_space(c));
    TRY(dir_create(c->set.dir));
    for (int i = 0; i < c->save->n_files; i++)
        TRY(fileset_write_file(&c->set, c->save->files[i].name, c->save->files[i].bytes));
    TRY(write_index(c));
    for (int f = 0; f < c->plan.n; f++) TRY(lay_out_file(&c->plan.file[f]));
    return OK;
}

/* ---- write and verify ------------------------------------------------------------------- */

static Ranges ranges_of(const Commit *c)
{
    return (Ranges){.share = c->save->share,
                    .plan = &c->plan,
                    .keys = c->keys,
                    .write_bytes = c->options.write_bytes,
                    .threads = c->threads};
}

Status commit_write(Commit *c)
{
    Ranges ranges = ranges_of(c);
    TRY(ranges_write(&ranges, c->own));
    memcpy(c->total, c->own, sizeof *c->own * (size_t)c->save->share->n_tensors);
    return OK;
}

Status commit_verify(Commit *c)
{
    Ranges ranges = ranges_of(c);
    return ranges_verify(&ranges, c->own);
}

/* ---- publish ---------------------------------------------------------------------------- */

static Status list_planned(Commit *c, const PlannedFile *planned, ManifestFile *file)
{
    *file = (ManifestFile){.name = planned->name, .bytes = planned->bytes, .n_tensors = planned->n};
    file->header = hash128_bytes(planned->header, planned->header_bytes);
    file->tensors = ARENA_ARRAY(&c->arena, ManifestTensor, planned->n);
    for (int i = 0; i < planned->n; i++) {
        const CkptTensor *tensor = &c->save->share->tensors[planned->tensor[i]];
        const CkptTally *t = &c->total[planned->tensor[i]];
        TRY(tally_check(t, 1, (uint64_t)shape_count(&tensor->shape), tensor->name));
        file->tensors[i] = (ManifestTensor){tensor->name, {t->sum[0], t->sum[1]}};
    }
    return OK;
}

static int by_file_name(const void *a, const void *b)
{
    return strcmp(((const ManifestFile *)a)->name, ((const ManifestFile *)b)->name);
}

static Status write_manifest(Commit *c)
{
    Manifest m = {.step = c->save->step, .run_json = c->save->run_json};
    m.files = ARENA_ARRAY(&c->arena, ManifestFile, c->set.n + (size_t)c->plan.n);
    for (size_t i = 0; i < c->set.n; i++)
        m.files[m.n_files++] = (ManifestFile){
            .name = c->set.at[i].name, .bytes = c->set.at[i].bytes, .hash = c->set.at[i].hash};
    for (int f = 0; f < c->plan.n; f++)
        TRY(list_planned(c, &c->plan.file[f], &m.files[m.n_files++]));
    qsort(m.files, (size_t)m.n_files, sizeof *m.files, by_file_name);
    Str text = {0};
    Status status = manifest_print(&m, &text);
    if (status == OK)
        status = fileset_write_file(&c->set, "manifest.json", (Bytes){(uint8_t *)text.at, text.n});
    str_deinit(&text);
    return status;
}

/* The tensors' bytes were read back by those who wrote them. */
static Status look_at_all(const Commit *c)
{
    Ckpt *ckpt;
    TRY_AS(ckpt_open_verified(c->set.dir, CKPT_VERIFY_FILES, c->threads, &ckpt),
           "what was just written");
    ckpt_close(ckpt);
    return OK;
}

static Status give_name(const Commit *c)
{
    if (dir_exists(c->final)) TRY(file_rename(c->final, c->old)); /* the same step, saved again */
    TRY(file_rename(c->set.dir, c->final));
    Status status = dir_sync(c->root);
    if (status == OK) return OK;
    /* not known to be durable: it loses its name again */
    char sentence[1024];
    snprintf(sentence, sizeof sentence, "%s", status_message());
    if (file_rename(c->final, c->set.dir) != OK) log_warn("%s", status_message());
    return fail(status, "%s", sentence);
}

Status commit_publish(Commit *c)
{
    TRY(write_manifest(c));
    TRY(dir_sync(c->set.dir));
    TRY(look_at_all(c));
    TRY(give_name(c));
    c->published = true;
    c->bytes = c->plan.bytes;
    for (size_t i = 0; i < c->set.n; i++) c->bytes += c->set.at[i].bytes;
    /* from here the checkpoint is good; when `latest` cannot be moved it is still found by its
     name */
    Status status = latest_write(c->root, c->step);
    if (status != OK)
        fail_context("%s is complete, but `latest` could not be moved to it", c->final);
    if (dir_exists(c->old) && dir_remove_tree(c->old) != OK) log_warn("cannot remove %s", c->old);
    return status;
}

/* The failed save's directory goes, what it was to replace comes back. */
void commit_give_up(Commit *c)
{
    char sentence[1024];
    if (c->published) return;
    snprintf(sentence, sizeof sentence, "%s", status_message());
    if (c->old && dir_exists(c->old) && !dir_exists(c->final) &&
        file_rename(c->old, c->final) != OK)
        log_warn("%s", status_message());
    if (c->set.dir && dir_exists(c->set.dir) && dir_remove_tree(c->set.dir) != OK)
        log_warn("%s", status_message());
    (void)fail(ERR_IO, "%s", sentence);
}

/* ---- what a crash left ------------------------------------------------------------------ */

static Status clean_entry(Arena *arena, const char *root, const char *name)
{
    int64_t step;
    const char *path = path_join(arena, root, name);
    if (!strncmp(name, "latest.tmp-", 11)) return file_unlink(path);
    if (strncmp(name, temporary, sizeof temporary - 1) != 0) return OK;
    const char *original = name + sizeof aside - 1;
    if (!strncmp(name, aside, sizeof aside - 1) && step_parse(original, &step)) {
        const char *final = path_join(arena, root, original);
        if (!dir_exists(final)) return file_rename(path, final); /* its replacement never came */
    }
    return dir_remove_tree(path);
}

void commit_clean(const char *root)
{
    Arena arena = {0};
    DirEntries entries = {0};
    if (dir_list(&arena, root, &entries) != OK) log_warn("%s", status_message());
    for (int i = 0; i < entries.n; i++)
        if (clean_entry(&arena, root, entries.name[i]) != OK) log_warn("%s", status_message());
    arena_deinit(&arena);
}

/* ---- retention -------------------------------------------------------------------------- */

/* One rank of many does not read again what all of them wrote: of a step that this run has neither
 * saved nor loaded it looks at all but the tensors' bytes. */
static bool is_verified(const Commit *commit, const char *path, int64_t step, Steps *known)
{
    for (size_t i = 0; i < known->n; i++)
        if (known->at[i] == step) return true;
    Ckpt *ckpt;
    CkptVerify level = commit->save->share->ranks > 1 ? CKPT_VERIFY_FILES : CKPT_VERIFY_HASHES;
    if (ckpt_open_verified(path, level, commit->threads, &ckpt) != OK) return false;
    bool good = ckpt_has_manifest(ckpt);
    ckpt_close(ckpt);
    if (good) VEC_PUSH(known, step);
    return good;
}

/* In one move out of sight, so that no reader finds half a checkpoint; who has it open keeps it. */
static Status remove_step(Arena *arena, const char *root, const char *path, int64_t step,
                          Steps *known)
{
    const char *gone = arena_printf(arena, "%s/%sgone-%s", root, temporary, path_base(path));
    size_t left = 0;
    for (size_t i = 0; i < known->n; i++)
        if (known->at[i] != step) known->at[left++] = known->at[i];
    known->n = left;
    TRY(file_rename(path, gone));
    return dir_remove_tree(gone);
}

Status commit_retain(const Commit *commit, Steps *known)
{
    Arena arena = {0};
    int64_t *steps, latest = -1;
    int n, kept = 0;
    Status status = latest_read(commit->root, &latest);
    if (status == OK) status = steps_list(&arena, commit->root, &steps, &n);
    for (int i = 0; status == OK && i < n; i++) {
        char name[STEP_NAME];
        step_name(steps[i], name);
        const char *path = path_join(&arena, commit->root, name);
        if (kept >= commit->options.keep && steps[i] != latest)
            status = remove_step(&arena, commit->root, path, steps[i], known);
        else if (is_verified(commit, path, steps[i], known))
            kept++;
    }
    arena_deinit(&arena);
    return status;
}
