/* How a checkpoint gets its name.
 *
 *     write every file into .tmp-step-N-..., fsync each, fsync that directory
 *     verify it: read back against the manifest, every byte
 *     rename to step-N, fsync the parent          the checkpoint exists from here on
 *     write `latest` beside, fsync, rename, fsync
 *
 * A crash leaves temporary names, which nobody reads and commit_clean removes, or a complete step that
 * `latest` does not name yet. Whatever fails ends the save: a file that could not be synced is given
 * up with its whole directory, and the next save writes new files. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ckpt/ckpt_internal.h"

static const char temporary[] = ".tmp-",
                  aside[] = ".tmp-old-"; /* the second: a step being replaced */

typedef struct Paths {
    char step[STEP_NAME];
    const char *work, *final, *old;
} Paths;

/* A name that no earlier attempt used: after a failed fsync old files are not written again. */
static Paths make_paths(Arena *arena, const char *root, int64_t step)
{
    Paths p;
    step_name(step, p.step);
    p.final = path_join(arena, root, p.step);
    p.old = arena_printf(arena, "%s/%s%s", root, aside, p.step);
    int attempt = 0;
    do
        p.work = arena_printf(arena, "%s/%s%s-%d-%d", root, temporary, p.step, (int)getpid(),
                              attempt++);
    while (dir_exists(p.work) && attempt < 1000);
    return p;
}

static Status check_save(const CkptSave *save)
{
    if (save->step < 0 || save->tensors.n_model <= 0)
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

/* Known beforehand, so a disk that is too small is not filled first. */
static Status check_space(const char *root, const CkptSave *save)
{
    uint64_t need = 0, have;
    char need_text[32], have_text[32];
    const CkptTensors *t = &save->tensors;
    for (int i = 0; i < t->n_model; i++) need += tensor_bytes(&t->model[i].tensor);
    for (int i = 0; i < t->n_optimizer; i++) need += tensor_bytes(&t->optimizer[i].tensor);
    for (int i = 0; i < save->n_files; i++) need += save->files[i].bytes.n;
    TRY(dir_free_bytes(root, &have));
    if (need <= have) return OK;
    return fail(
        ERR_IO,
        "%s has %s free, a checkpoint needs %s: free some space there, or keep fewer checkpoints",
        root, format_bytes((double)have, have_text), format_bytes((double)need, need_text));
}

static Status write_manifest(FileSet *set, const CkptSave *save)
{
    Str text = {0};
    Status status = manifest_print(save->step, set, save->run_json, &text);
    if (status == OK)
        status = fileset_write_file(set, "manifest.json", (Bytes){(uint8_t *)text.at, text.n});
    str_deinit(&text);
    return status;
}

static Status write_all(FileSet *set, const CkptSave *save, uint64_t shard_bytes)
{
    const CkptTensors *t = &save->tensors;
    for (int i = 0; i < save->n_files; i++)
        TRY(fileset_write_file(set, save->files[i].name, save->files[i].bytes));
    size_t first = set->n;
    TRY(fileset_write_shards(set, "model", t->model, t->n_model, shard_bytes));
    /* always with an index, even for one shard: loaders that take every *.safetensors of a directory
     * without one would read the optimizer's too */
    TRY(fileset_write_index(set, first));
    TRY(fileset_write_shards(set, "optimizer", t->optimizer, t->n_optimizer, shard_bytes));
    return write_manifest(set, save);
}

static Status verify_written(const char *dir, int threads)
{
    Ckpt *ckpt;
    TRY_AS(ckpt_open_verified(dir, CKPT_VERIFY_HASHES, threads, &ckpt), "what was just written");
    ckpt_close(ckpt);
    return OK;
}

/* After a failure: the failed save's directory goes, what it was to replace comes back. The sentence of
 * the failure stays. */
static void give_up(const Paths *p)
{
    char sentence[1024];
    snprintf(sentence, sizeof sentence, "%s", status_message());
    if (dir_exists(p->old) && !dir_exists(p->final) && file_rename(p->old, p->final) != OK)
        log_warn("%s", status_message());
    if (dir_exists(p->work) && dir_remove_tree(p->work) != OK) log_warn("%s", status_message());
    (void)fail(ERR_IO, "%s", sentence);
}

static Status publish(const char *root, const Paths *p)
{
    if (dir_exists(p->final)) TRY(file_rename(p->final, p->old)); /* the same step, saved again */
    TRY(file_rename(p->work, p->final));
    Status status = dir_sync(root);
    if (status == OK) return OK;
    /* not known to be durable: it loses its name again */
    char sentence[1024];
    snprintf(sentence, sizeof sentence, "%s", status_message());
    if (file_rename(p->final, p->work) != OK) log_warn("%s", status_message());
    return fail(status, "%s", sentence);
}

Status commit_save(const Commit *commit, const CkptSave *save, uint64_t *bytes)
{
    Arena arena = {0};
    FileSet set = {0};
    Status status;
    TRY(check_save(save));
    TRY(check_space(commit->root, save));
    Paths p = make_paths(&arena, commit->root, save->step);
    set.dir = p.work;
    TRY_GOTO(dir_create(p.work), remove_work);
    TRY_GOTO(write_all(&set, save, commit->shard_bytes), remove_work);
    TRY_GOTO(dir_sync(p.work), remove_work);
    TRY_GOTO(verify_written(p.work, commit->threads), remove_work);
    TRY_GOTO(publish(commit->root, &p), remove_work);
    *bytes = 0;
    for (size_t i = 0; i < set.n; i++) *bytes += set.at[i].bytes;
    /* from here the checkpoint is good; when `latest` cannot be moved it is still found by its name */
    status = latest_write(commit->root, p.step);
    if (status != OK)
        fail_context("%s is complete, but `latest` could not be moved to it", p.final);
    if (dir_exists(p.old) && dir_remove_tree(p.old) != OK) log_warn("cannot remove %s", p.old);
    goto done;
remove_work:
    give_up(&p);
done:
    fileset_deinit(&set);
    arena_deinit(&arena);
    return status;
}

/* ---- what a crash left ----------------------------------------------------------------- */

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

/* ---- retention ------------------------------------------------------------------------- */

static bool is_verified(const char *path, int64_t step, Steps *known, int threads)
{
    for (size_t i = 0; i < known->n; i++)
        if (known->at[i] == step) return true;
    Ckpt *ckpt;
    if (ckpt_open_verified(path, CKPT_VERIFY_HASHES, threads, &ckpt) != OK) return false;
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

Status commit_retain(const Commit *commit, int keep, Steps *known)
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
        if (kept >= keep && steps[i] != latest)
            status = remove_step(&arena, commit->root, path, steps[i], known);
        else if (is_verified(path, steps[i], known, commit->threads))
            kept++;
    }
    arena_deinit(&arena);
    return status;
}
