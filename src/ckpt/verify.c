/* An opened checkpoint: its manifest against what lies in the directory.
 *
 * The tensors of a safetensors file tile it and its header has a hash of its own, so checking those
 * covers every byte once, in parallel, and says which tensor a damaged byte belongs to. */
#include <stdlib.h>
#include <string.h>

#include "ckpt/ckpt_internal.h"

enum { MAX_PLAIN_FILE = 1 << 30 };

struct Ckpt {
    Arena arena; /* of the manifest and of paths */
    char *path;
    bool has_manifest;
    Manifest manifest;
    SumKeys *keys; /* from version 2 on */
    ModelDir *model;
    Safetensors **optimizer;
    int n_optimizer;
};

/* One thing to hash: a tensor, a header (entry NULL), or a whole file (file NULL). */
typedef struct Check {
    const char *path;
    Safetensors *file;
    const SafetensorsEntry *entry;
    Hash128 want;
} Check;

typedef struct Verify {
    const Ckpt *ckpt;
    bool files;      /* plain files and headers are checked */
    int tensors, of; /* and every of-th tensor from this one on; 0: none */
    int n_tensors;   /* seen */
    VEC(Check) checks;
    VEC(Safetensors *) opened;
} Verify;

static bool same_hash(Hash128 a, Hash128 b) { return a.low == b.low && a.high == b.high; }

static Status check_plain(const Check *check)
{
    Arena arena = {0};
    Bytes bytes;
    Status status = file_read(&arena, check->path, MAX_PLAIN_FILE, &bytes);
    if (status == OK && !same_hash(hash128_bytes(bytes.at, bytes.n), check->want))
        status = fail(ERR_FORMAT, "%s is damaged: its %zu bytes do not match the manifest",
                      check->path, bytes.n);
    arena_deinit(&arena);
    return status;
}

static Status damaged_tensor(const SafetensorsEntry *entry)
{
    unsigned long long from = entry->offset, to = from + entry->bytes;
    return fail(ERR_FORMAT,
                "%s is damaged: tensor %s, bytes %llu to %llu, does not match the manifest",
                safetensors_path(entry->file), entry->name, from, to);
}

static Status run_check(void *context, int i)
{
    const Verify *v = context;
    const Check *check = &v->checks.at[i];
    if (!check->file) return check_plain(check);
    Hash128 have;
    if (check->entry && v->ckpt->keys)
        TRY(safetensors_sum(check->file, check->entry, v->ckpt->keys, &have));
    else
        TRY(safetensors_hash(check->file, check->entry, &have));
    if (same_hash(have, check->want)) return OK;
    if (check->entry) return damaged_tensor(check->entry);
    return fail(ERR_FORMAT,
                "%s is damaged: its header, bytes 0 to %zu, does not match the manifest",
                check->path, check->file->header_bytes);
}

/* ---- what must be there ----------------------------------------------------------------- */

static Status list_tensors(Verify *v, const char *path, const ManifestFile *file)
{
    Safetensors *opened;
    TRY(safetensors_open(path, &opened));
    VEC_PUSH(&v->opened, opened);
    if (v->files) VEC_PUSH(&v->checks, ((Check){path, opened, NULL, file->header}));
    if (opened->n != file->n_tensors)
        return fail(ERR_FORMAT, "%s holds %d tensors, the manifest has %d", path, opened->n,
                    file->n_tensors);
    for (int i = 0; i < file->n_tensors; i++) {
        const SafetensorsEntry *entry = safetensors_find(opened, file->tensors[i].name);
        if (!entry) return fail(ERR_FORMAT, "%s has no tensor %s", path, file->tensors[i].name);
        if (v->of && v->n_tensors++ % v->of == v->tensors)
            VEC_PUSH(&v->checks, ((Check){path, opened, entry, file->tensors[i].hash}));
    }
    return OK;
}

static Status list_file(Verify *v, Arena *arena, const ManifestFile *file)
{
    const char *path = path_join(arena, v->ckpt->path, file->name);
    uint64_t bytes;
    TRY(file_size(path, &bytes));
    if (bytes != file->bytes)
        return fail(ERR_FORMAT, "%s has %llu bytes, the manifest says %llu", path,
                    (unsigned long long)bytes, (unsigned long long)file->bytes);
    if (file->tensors) return list_tensors(v, path, file);
    if (v->files) VEC_PUSH(&v->checks, ((Check){path, NULL, NULL, file->hash}));
    return OK;
}

/* A shard too many may come from another run: loaders that take all of a directory would read it.
 */
static Status check_extra(const Ckpt *ckpt, Arena *arena)
{
    DirEntries entries;
    TRY(dir_list(arena, ckpt->path, &entries));
    for (int i = 0; i < entries.n; i++)
        if (strstr(entries.name[i], ".safetensors") &&
            !manifest_find(&ckpt->manifest, entries.name[i]))
            return fail(ERR_FORMAT, "%s/%s is not in the manifest", ckpt->path, entries.name[i]);
    return OK;
}

/* v->ckpt, files, tensors and of say what. */
static Status verify(Verify *v, int threads)
{
    const Ckpt *ckpt = v->ckpt;
    Arena arena = {0};
    Status status = check_extra(ckpt, &arena);
    for (int i = 0; i < ckpt->manifest.n_files && status == OK; i++)
        status = list_file(v, &arena, &ckpt->manifest.files[i]);
    uint64_t bytes = 0;
    for (int i = 0; i < ckpt->manifest.n_files; i++) bytes += ckpt->manifest.files[i].bytes;
    if (threads > parallel_threads(bytes)) threads = parallel_threads(bytes);
    if (status == OK) status = parallel_each((int)v->checks.n, threads, run_check, v);
    for (size_t i = 0; i < v->opened.n; i++) safetensors_close(v->opened.at[i]);
    VEC_FREE(&v->opened);
    VEC_FREE(&v->checks);
    arena_deinit(&arena);
    return status;
}

/* ---- opening ---------------------------------------------------------------------------- */

static bool is_optimizer(const ManifestFile *file)
{
    return file->tensors && strncmp(file->name, "optimizer-", 10) == 0;
}

static Status open_optimizer(Ckpt *ckpt)
{
    ckpt->optimizer = xcalloc((size_t)ckpt->manifest.n_files, sizeof *ckpt->optimizer);
    for (int i = 0; i < ckpt->manifest.n_files; i++) {
        const ManifestFile *file = &ckpt->manifest.files[i];
        if (!is_optimizer(file)) continue;
        TRY(safetensors_open(path_join(&ckpt->arena, ckpt->path, file->name),
                             &ckpt->optimizer[ckpt->n_optimizer]));
        ckpt->n_optimizer++;
    }
    return OK;
}

/* A whole checkpoint moved under another step's name is not that step. */
static Status check_step(const Ckpt *ckpt)
{
    int64_t step;
    if (step_parse(path_base(ckpt->path), &step) && step != ckpt->manifest.step)
        return fail(ERR_FORMAT, "%s holds step %lld by its manifest", ckpt->path,
                    (long long)ckpt->manifest.step);
    return OK;
}

static Status open_parts(Ckpt *ckpt, CkptVerify level, int threads)
{
    const char *manifest = path_join(&ckpt->arena, ckpt->path, "manifest.json");
    ckpt->has_manifest = file_exists(manifest);
    if (ckpt->has_manifest) {
        TRY(manifest_read(&ckpt->arena, manifest, &ckpt->manifest));
        TRY(check_step(ckpt));
        if (ckpt->manifest.version >= MANIFEST_SUMS) ckpt->keys = sum_keys_create();
        Verify v = {
            .ckpt = ckpt, .files = level != CKPT_VERIFY_SIZES, .of = level == CKPT_VERIFY_HASHES};
        TRY(verify(&v, threads));
        TRY(open_optimizer(ckpt));
    }
    return modeldir_open(ckpt->path, &ckpt->model);
}

Status ckpt_open_verified(const char *path, CkptVerify level, int threads, Ckpt **out)
{
    Ckpt *ckpt = xcalloc(1, sizeof *ckpt);
    ckpt->path = xstrdup(path);
    for (size_t n = strlen(path); n > 1 && ckpt->path[n - 1] == '/'; n--) ckpt->path[n - 1] = 0;
    Status status = open_parts(ckpt, level, threads);
    if (status == OK)
        *out = ckpt;
    else
        ckpt_close(ckpt);
    return status;
}

Status ckpt_open(const char *path, CkptVerify level, Ckpt **out)
{
    return ckpt_open_verified(path, level, cpu_count(), out);
}

void ckpt_close(Ckpt *ckpt)
{
    if (!ckpt) return;
    for (int i = 0; i < ckpt->n_optimizer; i++) safetensors_close(ckpt->optimizer[i]);
    free(ckpt->optimizer);
    modeldir_close(ckpt->model);
    sum_keys_destroy(ckpt->keys);
    free(ckpt->path);
    arena_deinit(&ckpt->arena);
    free(ckpt);
}

const char *ckpt_path(const Ckpt *ckpt) { return ckpt->path; }
bool ckpt_has_manifest(const Ckpt *ckpt) { return ckpt->has_manifest; }
int64_t ckpt_step(const Ckpt *ckpt) { return ckpt->has_manifest ? ckpt->manifest.step : -1; }
const char *ckpt_run_json(const Ckpt *ckpt)
{
    return ckpt->has_manifest ? ckpt->manifest.run_json : "{}";
}
const ModelDir *ckpt_model(const Ckpt *ckpt) { return ckpt->model; }

int ckpt_optimizer_count(const Ckpt *ckpt)
{
    int n = 0;
    for (int i = 0; i < ckpt->n_optimizer; i++) n += ckpt->optimizer[i]->n;
    return n;
}

const SafetensorsEntry *ckpt_optimizer_find(const Ckpt *ckpt, const char *name)
{
    const SafetensorsEntry *entry = NULL;
    for (int i = 0; i < ckpt->n_optimizer && !entry; i++)
        entry = safetensors_find(ckpt->optimizer[i], name);
    return entry;
}

static const SafetensorsEntry *find_optimizer(const void *ckpt, const char *name)
{
    return ckpt_optimizer_find(ckpt, name);
}

/* A model file that transformers is to read without a word holds nothing of ours: expert biases lie
 * with the optimizer's state. */
const SafetensorsEntry *ckpt_model_find(const Ckpt *ckpt, const char *name)
{
    const SafetensorsEntry *entry = modeldir_find(ckpt->model, name);
    return entry ? entry : ckpt_optimizer_find(ckpt, name);
}

static const SafetensorsEntry *find_model(const void *ckpt, const char *name)
{
    return ckpt_model_find(ckpt, name);
}

Status ckpt_load(const Ckpt *ckpt, const CkptTensors *tensors)
{
    if (tensors->n_optimizer > 0 && ckpt->n_optimizer == 0)
        return fail(ERR_FORMAT, "%s holds weights only, no optimizer state", ckpt->path);
    int borrowed = 0; /* of the model's tensors, those that lie with the optimizer's */
    for (int i = 0; i < tensors->n_model; i++)
        borrowed += !modeldir_find(ckpt->model, tensors->model[i].name) &&
                    ckpt_optimizer_find(ckpt, tensors->model[i].name);
    TensorSource model = {find_model, ckpt, ckpt->path, modeldir_count(ckpt->model) + borrowed};
    if (tensors->n_optimizer == 0) return tensors_load(model, tensors->model, tensors->n_model);
    TensorSource optimizer = {find_optimizer, ckpt, ckpt->path,
                              ckpt_optimizer_count(ckpt) - borrowed};
    /* both lists are matched before the first element is written */
    TRY(tensors_match(optimizer, tensors->optimizer, tensors->n_optimizer));
    TRY(tensors_load(model, tensors->model, tensors->n_model));
    return tensors_load(optimizer, tensors->optimizer, tensors->n_optimizer);
}

/* ---- reading by many ranks -------------------------------------------------------------- */

/* In pieces that stay in the cache between copying, summing and converting. */
/* NOLINTNEXTLINE(readability-function-size): a range, its two types, and where it goes */
static Status read_piece(const Ckpt *ckpt, const SafetensorsEntry *e, int64_t first, int64_t n,
                         DType to, void *raw, void *out, CkptTally *tally)
{
    TRY(safetensors_read(e, first, n, e->dtype, raw));
    if (ckpt->keys) tally_add(ckpt->keys, tally, first, n, e->dtype, raw);
    return raw == out ? OK : dtype_convert(e->dtype, raw, to, out, n);
}

/* NOLINTNEXTLINE(readability-function-size): the same */
Status ckpt_read(const Ckpt *ckpt, const SafetensorsEntry *e, int64_t first, int64_t n, DType to,
                 void *out, CkptTally *tally)
{
    enum { PIECE = 1 << 16 };
    bool same = e->dtype == to;
    void *raw = same || e->dtype == DTYPE_COUNT
                    ? NULL
                    : xmalloc((size_t)min_i64(n, PIECE) * dtype_bytes(e->dtype) + 1);
    Status status = OK;
    for (int64_t done = 0; done < n && status == OK; done += PIECE) {
        char *at = (char *)out + (size_t)done * dtype_bytes(to);
        status = read_piece(ckpt, e, first + done, min_i64(n - done, PIECE), to, same ? at : raw,
                            at, tally);
    }
    free(raw);
    return status;
}

Status ckpt_check_tally(const Ckpt *ckpt, const SafetensorsEntry *e, const CkptTally *total)
{
    if (!ckpt->keys) return OK; /* then ckpt_verify_share has looked at every byte */
    uint64_t count = (uint64_t)shape_count(&e->shape), times = count ? total->n / count : 0;
    TRY(tally_check(total, times, count, e->name));
    const ManifestFile *file = manifest_find(&ckpt->manifest, path_base(safetensors_path(e->file)));
    const ManifestTensor *tensor = file ? manifest_tensor(file, e->name) : NULL;
    if (!tensor)
        return fail(ERR_FORMAT, "%s: the manifest does not name tensor %s", ckpt_path(ckpt),
                    e->name);
    bool good = tensor->hash.low * times == total->sum[0] &&
                tensor->hash.high * times == total->sum[1];
    return good ? OK : damaged_tensor(e);
}

bool ckpt_has_sums(const Ckpt *ckpt) { return ckpt->keys != NULL; }

Status ckpt_verify_share(const Ckpt *ckpt, int rank, int ranks)
{
    if (!ckpt->has_manifest) return OK;
    Verify v = {.ckpt = ckpt, .tensors = rank, .of = ranks};
    return verify(&v, cpu_count());
}
