/* ckpt: weights and checkpoints on disk.
 *
 * What it is.   safetensors files, Hugging Face model directories, and a run's checkpoints: written
 *               beside, synced, verified, renamed; found again by hash after any crash. Saving goes
 *               on in a thread, from a snapshot.
 * Depends on.   base, tensor, jansson, xxhash
 * Owns.         Opened files own their maps and names. A CkptStore owns the lock of a run's
 *               checkpoint directory, the snapshot buffer and the writer thread. Tensors belong to
 *               the caller throughout.
 * Invariants.   Nothing of a file is used before its header was checked completely. A directory
 *               called step-* was complete, synced and verified when it got that name. `latest`
 *               names a verified checkpoint; it and one more are never removed.
 * Use:
 *     CkptTensors state = {weights, n_weights, moments, n_moments};
 *     TRY(ckpt_store_open("runs/demo/ckpt", (CkptOptions){.keep = 3}, &store));    the lock, first
 *     TRY(ckpt_find("runs/demo/ckpt", &found));            found is NULL in a fresh run
 *     if (found) TRY(ckpt_load(found, &state));
 *     TRY(ckpt_reserve(store, &state));                    the snapshot buffer, once
 *     TRY(ckpt_snapshot(store, &(CkptSave){.step = 1000, .tensors = state, .run_json = "{}"}));
 *     while (ckpt_poll(store, &result)) ...                a later step asks how it went
 */
#ifndef CKPT_CKPT_H
#define CKPT_CKPT_H

#include "tensor/tensor.h"

/* ---- one safetensors file, read -------------------------------------------------------- */

typedef struct Safetensors Safetensors;

/* What the header says of a tensor; lives as long as the file is open. */
typedef struct SafetensorsEntry {
    const char *name;
    const char *type_name;   /* as in the file: "BF16" */
    DType dtype;             /* DTYPE_COUNT: a type of the format that drover has no element for */
    Shape shape;             /* axes are AXIS_ANY: the file does not name them */
    uint64_t offset, bytes;  /* in the file */
    const Safetensors *file; /* that holds it */
} SafetensorsEntry;

enum { SAFETENSORS_MAX_HEADER = 100000000 }; /* the reference reader's cap, in bytes */

/* Maps the file and checks the whole header: sizes, UTF-8, duplicates, types, overflow, that the
 * tensors tile the data without overlap or hole, and that the file ends where the last one does. */
Status safetensors_open(const char *path, Safetensors **out);
void safetensors_close(Safetensors *file);
const char *safetensors_path(const Safetensors *file);
const FileMap *safetensors_map(const Safetensors *file); /* for readers of parts; as long as it is open */
int safetensors_count(const Safetensors *file);
const SafetensorsEntry *safetensors_at(const Safetensors *file, int i); /* in order of offset */
const SafetensorsEntry *safetensors_find(const Safetensors *file, const char *name); /* or NULL */
/* Elements first .. first+n-1 of the tensor, as `to`, into out. A file cut short after it was opened
 * gives ERR_IO. */
Status safetensors_read(const SafetensorsEntry *entry, int64_t first, int64_t n, DType to,
                        void *out);

/* ---- one safetensors file, written ----------------------------------------------------- */

/* A tensor to be written: either `data`, or `fill`, which is asked for the bytes in order, a piece
 * at a time. */
typedef struct SafetensorsItem {
    const char *name;
    DType dtype;
    Shape shape;
    const void *data;
    Status (*fill)(void *context, uint64_t offset, void *out, size_t bytes);
    void *context;
} SafetensorsItem;

/* Hashes taken on the way to the disk (XXH3, 128 bits). */
typedef struct SafetensorsDigest {
    uint64_t bytes;   /* of the file */
    Hash128 file;     /* of all of it */
    Hash128 header;   /* of everything before the data */
    Hash128 *tensors; /* [n], in the order of the items; the caller's array, or NULL */
} SafetensorsDigest;

/* Written and synced; the caller syncs the directory. The order of tensors and the header are those of
 * the reference writer, so the same tensors give the same bytes. digest may be NULL. */
Status safetensors_write(const char *path, const SafetensorsItem *items, int n,
                         SafetensorsDigest *digest);

/* ---- a Hugging Face model directory ---------------------------------------------------- */

/* A caller's tensor and its name in the files. Any strides: files hold it contiguous. */
typedef struct NamedTensor {
    const char *name;
    Tensor tensor;
} NamedTensor;

typedef struct ModelDir ModelDir;

/* model.safetensors, or model.safetensors.index.json with its shards. Refused: a shard name that is
 * not a plain file name, and a tensor that is missing, not listed, or in two files. Other files in
 * the directory do not matter. Reads headers only: milliseconds, whatever the size. */
Status modeldir_open(const char *path, ModelDir **out);
void modeldir_close(ModelDir *dir);
const char *modeldir_path(const ModelDir *dir);
int modeldir_file_count(const ModelDir *dir);
int modeldir_count(const ModelDir *dir); /* tensors */
const SafetensorsEntry *modeldir_at(const ModelDir *dir, int i);              /* by name, sorted */
const SafetensorsEntry *modeldir_find(const ModelDir *dir, const char *name); /* or NULL */
uint64_t modeldir_bytes(const ModelDir *dir);                                 /* of all tensors */
/* Fills every tensor, converting element types, on all cores. A name that the directory lacks or a
 * shape that differs is an error, found before anything is written; what the directory has beyond the
 * list is said in a warning. */
Status modeldir_load(const ModelDir *dir, const NamedTensor *tensors, int n);

/* model-00001-of-0000N.safetensors of at most shard_bytes each (0: 5 GB; a tensor is never cut) and
 * the index, all synced, into the directory `path`, made if it is not there. */
Status modeldir_write(const char *path, const NamedTensor *tensors, int n, uint64_t shard_bytes);

/* ---- a model directory, written from any source of tensors ------------------------------ */

/* A tensor that is read while it is written, a few MB at a time. */
typedef struct ExportTensor {
    const char *name;
    DType dtype; /* that it is stored as */
    Shape shape;
    /* elements first .. first+n-1 as `to`, in order */
    Status (*read)(const void *context, int64_t first, int64_t n, DType to, void *out);
    const void *context;
} ExportTensor;

/* Of a safetensors entry, which outlives it. */
ExportTensor export_entry(const SafetensorsEntry *entry, DType dtype);

/* config.json, tokenizer.json and the like, stored as they are. */
typedef struct CkptFile {
    const char *name; /* a plain file name */
    Bytes bytes;
} CkptFile;

typedef struct Export {
    const ExportTensor *tensors;
    int n;
    const CkptFile *files;
    int n_files;
    const char *const *copies; /* paths of files to be copied under their own names */
    int n_copies;
    uint64_t shard_bytes; /* 0: 5 GB */
    /* Called every few MB; anything but OK stops. May be NULL. */
    Status (*progress)(void *context, const char *tensor, uint64_t done, uint64_t total);
    void *progress_context;
} Export;

/* Written beside as .NAME.part-PID, synced, renamed: `path` appears complete or not at all. A path that
 * exists is refused, and so is a disk without room for all of it. One shard is model.safetensors; more have an
 * index. A number that f16 cannot hold is refused by its tensor's name. */
Status modeldir_export(const char *path, const Export *what);

/* ---- work in parallel ------------------------------------------------------------------ */

/* Threads worth their while for so many bytes to copy or hash. */
int parallel_threads(uint64_t bytes);
/* Calls run(context, i) for i in 0..n-1 on so many threads; the first failure (in order of i) is the
 * result and its sentence this thread's. */
Status parallel_each(int n, int threads, Status (*run)(void *context, int i), void *context);

/* ---- checkpoints, read ----------------------------------------------------------------- */

/* What a training state is made of. Names are unique within each list. */
typedef struct CkptTensors {
    const NamedTensor *model;
    int n_model;
    const NamedTensor *optimizer;
    int n_optimizer;
} CkptTensors;

typedef enum CkptVerify {
    CKPT_VERIFY_SIZES, /* manifest, headers and file sizes: milliseconds */
    CKPT_VERIFY_HASHES /* every byte, at memory speed */
} CkptVerify;

/* An opened checkpoint, or a plain model directory without a manifest (weights only). */
typedef struct Ckpt Ckpt;

/* The newest good checkpoint of a run: the one that `latest` names, else those before it, else any;
 * each damaged one costs a warning that says file, tensor and byte range. *out is NULL when the run
 * has no checkpoint at all; an error when it has some and none is good. */
Status ckpt_find(const char *run_ckpt_dir, Ckpt **out);
/* This directory and no other. */
Status ckpt_open(const char *path, CkptVerify verify, Ckpt **out);
void ckpt_close(Ckpt *ckpt);

const char *ckpt_path(const Ckpt *ckpt);
bool ckpt_has_manifest(const Ckpt *ckpt);
int64_t ckpt_step(const Ckpt *ckpt);         /* -1 without a manifest */
const char *ckpt_run_json(const Ckpt *ckpt); /* what the saver gave, as JSON text; "{}" without */
const ModelDir *ckpt_model(const Ckpt *ckpt);
int ckpt_optimizer_count(const Ckpt *ckpt);
const SafetensorsEntry *ckpt_optimizer_find(const Ckpt *ckpt, const char *name); /* or NULL */
/* A tensor that the model computes with: in the model's files, else among the optimizer's, where expert
 * biases lie; or NULL. */
const SafetensorsEntry *ckpt_model_find(const Ckpt *ckpt, const char *name);
/* Fills the model's tensors, and the optimizer's where the list has any. */
Status ckpt_load(const Ckpt *ckpt, const CkptTensors *tensors);

/* ---- checkpoints, written -------------------------------------------------------------- */

typedef struct CkptStore CkptStore;

typedef struct CkptOptions {
    int keep;             /* checkpoints kept; fewer than 2 means 2 */
    uint64_t shard_bytes; /* 0: 5 GB */
} CkptOptions;

typedef struct CkptSave {
    int64_t step;
    CkptTensors tensors;
    const CkptFile *files;
    int n_files;
    const char *run_json; /* a JSON object: data position, rng, layout, metrics; NULL: {} */
} CkptSave;

typedef struct CkptResult {
    int64_t step;
    Status status;
    char message[512]; /* the sentence, when status is not OK */
    uint64_t bytes;    /* written */
    double snapshot_s; /* that the caller waited for the copy */
    double write_s;    /* until the checkpoint was durable and `latest` moved */
} CkptResult;

/* Takes the directory (made if needed) for this process, refused at once when another has it, and
 * clears away what a crash left. The disk needs room for keep + 1 checkpoints: the oldest goes only
 * when the newest is complete. */
Status ckpt_store_open(const char *run_ckpt_dir, CkptOptions options, CkptStore **out);
void ckpt_store_close(CkptStore *store); /* waits for a save that is under way */

/* Bytes of the snapshot buffer, for the plan; then the buffer itself. Later saves need the same
 * tensors: number, shapes and types. */
size_t ckpt_snapshot_bytes(const CkptTensors *tensors);
Status ckpt_reserve(CkptStore *store, const CkptTensors *tensors);

/* Copies the tensors and hands the rest to the writer; when it returns the caller may change everything
 * it passed. ERR_ARG without a buffer or while a save is under way (ask ckpt_busy; ckpt_wait). */
Status ckpt_snapshot(CkptStore *store, const CkptSave *save);
bool ckpt_busy(CkptStore *store);
double ckpt_busy_s(CkptStore *store); /* how long it has been at it; 0 when idle: for an alarm */
/* True and the result, once for each save; poll: false while it is under way, wait: waits for it. */
bool ckpt_poll(CkptStore *store, CkptResult *result);
bool ckpt_wait(CkptStore *store, CkptResult *result);

/* The same without a copy: returns when it is durable. Waits for a save under way. A failed save
 * leaves nothing behind and the older checkpoints untouched; the next one starts afresh. */
Status ckpt_save(CkptStore *store, const CkptSave *save);

#endif
