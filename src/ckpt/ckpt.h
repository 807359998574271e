/* ckpt: weights and checkpoints on disk.
 *
 * What it is.   safetensors files, Hugging Face model directories, and a run's checkpoints: written
 *               beside by one rank or many, synced, verified, renamed; found again by hash after
 *               any
 *               crash. Saving goes on in a thread, from a snapshot. Copies in memory that outlive a
 *               process.
 * Depends on.   base, tensor, jansson, xxhash
 * Owns.         Opened files own their maps and names. A CkptStore owns the lock of a run's
 *               checkpoint directory (on the first rank), the snapshot buffer and the writer
 *               thread.
 *               Tensors belong to the caller throughout. Nothing here talks to other ranks: the
 *               caller does (ckpt_rests, ckpt_go_on).
 * Invariants.   Nothing of a file is used before its header was checked completely. A directory
 *               called step-* was complete, synced and verified when it got that name. `latest`
 *               names a verified checkpoint; it and one more are never removed.
 * Use:
 *     CkptTensors state = {weights, n_weights, moments, n_moments};
 *     TRY(ckpt_store_open("runs/demo/ckpt", (CkptOptions){.keep = 3}, &store));    the lock, first
 *     TRY(ckpt_find("runs/demo/ckpt", &found));            found is NULL in a fresh run
 *     if (found) TRY(ckpt_load(found, &state));
 *     CkptShare share = ckpt_share_whole(&arena, &state);
 *     TRY(ckpt_reserve(store, share.parts, share.n_parts));   the snapshot buffer, once
 *     TRY(ckpt_snapshot(store, &(CkptSave){.step = 1000, .share = &share, .run_json = "{}"}));
 *     while (ckpt_poll(store, &result)) ...                a later step asks how it went
 */
#ifndef CKPT_CKPT_H
#define CKPT_CKPT_H

#include "tensor/tensor.h"

/* ---- one safetensors file, read --------------------------------------------------------- */

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
const FileMap *
safetensors_map(const Safetensors *file); /* for readers of parts; as long as it is open */
int safetensors_count(const Safetensors *file);
const SafetensorsEntry *safetensors_at(const Safetensors *file, int i); /* in order of offset */
const SafetensorsEntry *safetensors_find(const Safetensors *file, const char *name); /* or NULL */
/* Elements first .. first+n-1 of the tensor, as `to`, into out. A file cut short after it was
 * opened gives ERR_IO. */
Status safetensors_read(const SafetensorsEntry *entry, int64_t first, int64_t n, DType to,
                        void *out);

/* ---- one safetensors file, written ------------------------------------------------------ */

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

/* Written and synced; the caller syncs the directory. The order of tensors and the header are those
 * of the reference writer, so the same tensors give the same bytes. digest may be NULL. */
Status safetensors_write(const char *path, const SafetensorsItem *items, int n,
                         SafetensorsDigest *digest);

/* ---- a Hugging Face model directory ----------------------------------------------------- */

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
int modeldir_count(const ModelDir *dir);                                      /* tensors */
const SafetensorsEntry *modeldir_at(const ModelDir *dir, int i);              /* by name, sorted */
const SafetensorsEntry *modeldir_find(const ModelDir *dir, const char *name); /* or NULL */
uint64_t modeldir_bytes(const ModelDir *dir);                                 /* of all tensors */
/* Fills every tensor, converting element types, on all cores. A name that the directory lacks or a
 * shape that differs is an error, found before anything is written; what the directory has beyond
 * the list is said in a warning. */
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

/* Written beside as .NAME.part-PID, synced, renamed: `path` appears complete or not at all. A path
 * that exists is refused, and so is a disk without room for all of it. One shard is
 * model.safetensors; more have an index. A number that f16 cannot hold is refused by its tensor's
 * name. */
Status modeldir_export(const char *path, const Export *what);

/* ---- work in parallel ------------------------------------------------------------------- */

/* Threads worth their while for so many bytes to copy or hash. */
int parallel_threads(uint64_t bytes);
/* Calls run(context, i) for i in 0..n-1 on so many threads; the first failure (in order of i) is
 * the result and its sentence this thread's. */
Status parallel_each(int n, int threads, Status (*run)(void *context, int i), void *context);

/* ---- checkpoints, read ------------------------------------------------------------------ */

/* What a training state is made of. Names are unique within each list. */
typedef struct CkptTensors {
    const NamedTensor *model;
    int n_model;
    const NamedTensor *optimizer;
    int n_optimizer;
} CkptTensors;

typedef enum CkptVerify {
    CKPT_VERIFY_SIZES,  /* manifest, headers and file sizes: milliseconds */
    CKPT_VERIFY_FILES,  /* every byte but those of tensors, which are summed as they are read */
    CKPT_VERIFY_HASHES, /* every byte, at memory speed */
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
/* A tensor that the model computes with: in the model's files, else among the optimizer's, where
 * expert biases lie; or NULL. */
const SafetensorsEntry *ckpt_model_find(const Ckpt *ckpt, const char *name);
/* Fills the model's tensors, and the optimizer's where the list has any. */
Status ckpt_load(const Ckpt *ckpt, const CkptTensors *tensors);

/* ---- checkpoints, read by many ranks ---------------------------------------------------- */

/* What ranks hold of one tensor. Tallies of several ranks are added number by number (mod 2^64). */
typedef struct CkptTally {
    uint64_t sum[2];    /* of the bytes, each weighted by its place (sum.c) */
    uint64_t n, places; /* elements, and the sum of their indices */
} CkptTally;

/* The steps in the order in which a run tries them; n is 0 when it has none. In arena. */
Status ckpt_candidates(Arena *arena, const char *run_ckpt_dir, int64_t **steps, int *n);
char *ckpt_step_path(Arena *arena, const char *run_ckpt_dir, int64_t step);
/* Elements first .. first+n-1 of a tensor of the checkpoint, as `to`, into out, and into the tally.
 * Ranks whose parts overlap must do so everywhere as often. */
Status ckpt_read(const Ckpt *ckpt, const SafetensorsEntry *entry, int64_t first, int64_t n,
                 DType to, void *out, CkptTally *tally);
/* The tally of all ranks against the manifest: everything was read, and it is what was saved. */
Status ckpt_check_tally(const Ckpt *ckpt, const SafetensorsEntry *entry, const CkptTally *total);
/* Where nobody sums what is read: rank r of n checks every n-th tensor, whole, from the r-th on. */
Status ckpt_verify_share(const Ckpt *ckpt, int rank, int ranks);
/* Checkpoints of before there were sums have hashes of whole tensors only: these must be shared out
 * so. */
bool ckpt_has_sums(const Ckpt *ckpt);

/* ---- checkpoints, written --------------------------------------------------------------- */

/* A tensor of a checkpoint, whole. */
typedef struct CkptTensor {
    const char *name;
    DType dtype;
    Shape shape;
    bool optimizer; /* lies in the optimizer's files, not in the model's */
} CkptTensor;

/* Elements first .. first+n-1 of a tensor are elements at .. at+n-1 of a part. */
typedef struct CkptRun {
    int part;
    int64_t first, n, at;
} CkptRun;
typedef Status (*CkptRunFn)(void *to, const CkptRun *run);

/* What a checkpoint consists of, and what of it one rank writes. Every element of every tensor is
 * some rank's, and no element is two ranks': a save that finds it otherwise fails. What it points
 * to stays as it is while a save is under way, but for the parts' memory after a snapshot. */
typedef struct CkptShare {
    const CkptTensor *tensors; /* the same on all ranks; files have an order of their own */
    int n_tensors;
    const Tensor *parts; /* all that this rank writes; any strides */
    int n_parts;
    /* Calls fn for the runs of the tensor that this rank writes, by rising `first`. */
    Status (*each_run)(const void *context, int tensor, CkptRunFn fn, void *to);
    const void *context;
    int rank, ranks; /* zeroed: a single one */
} CkptShare;
/* Of a single rank that has everything; in arena, the tensors' memory stays the caller's. */
CkptShare ckpt_share_whole(Arena *arena, const CkptTensors *tensors);

typedef struct CkptStore CkptStore;

typedef struct CkptOptions {
    int keep;             /* checkpoints kept; fewer than 2 means 2 */
    uint64_t shard_bytes; /* 0: 5 GB */
    size_t write_bytes;   /* that small runs are put together to; 0: 1 MB */
} CkptOptions;

typedef struct CkptSave {
    int64_t step;
    const CkptShare *share;
    const CkptFile *files; /* the first rank's */
    int n_files;
    const char *run_json; /* the first rank's, a JSON object: data position, metrics; NULL: {} */
} CkptSave;

typedef struct CkptResult {
    int64_t step;
    Status status;
    char message[512]; /* the sentence, when status is not OK */
    uint64_t bytes;    /* written by all ranks; known to the first */
    double snapshot_s; /* that the caller waited for the copy */
    double write_s;    /* until the checkpoint was durable and `latest` moved */
} CkptResult;

/* Takes the directory (made if needed) for this process, refused at once when another has it, and
 * clears away what a crash left. The disk needs room for keep + 1 checkpoints: the oldest goes only
 * when the newest is complete. */
Status ckpt_store_open(const char *run_ckpt_dir, CkptOptions options, CkptStore **out);
/* The other ranks of a run, which know the first one's key. Neither locks nor clears. */
Status ckpt_store_join(const char *run_ckpt_dir, uint64_t key, CkptOptions options,
                       CkptStore **out);
uint64_t ckpt_store_key(const CkptStore *store);
/* Every byte of this step was found right: it counts among those kept without being read again. */
void ckpt_store_know(CkptStore *store, int64_t step);
/* Waits for a save of a single rank that is under way; one of several is left where it stands. */
void ckpt_store_close(CkptStore *store);

/* Bytes of the snapshot buffer, for the plan; then the buffer itself. Later saves need no more. */
size_t ckpt_snapshot_bytes(const Tensor *parts, int n);
Status ckpt_reserve(CkptStore *store, const Tensor *parts, int n);
size_t ckpt_reserved_bytes(const CkptStore *store);

/* Copies the parts and hands the rest to the writer thread. ERR_ARG without a buffer or while a
 * save is under way (ask ckpt_busy; ckpt_wait). */
Status ckpt_snapshot(CkptStore *store, const CkptSave *save);
/* The same without a copy: the parts must rest until the save has ended. */
Status ckpt_start(CkptStore *store, const CkptSave *save);
bool ckpt_busy(CkptStore *store);
double ckpt_busy_s(CkptStore *store); /* how long it has been at it; 0 when idle: for an alarm */
/* True and the result, once for each save; poll: false while it is under way, wait: waits for it.
 */
bool ckpt_poll(CkptStore *store, CkptResult *result);
bool ckpt_wait(CkptStore *store, CkptResult *result);

/* Of a single rank: returns when it is durable. Waits for a save under way. A failed save leaves
 * nothing behind and the older checkpoints untouched; the next one starts afresh. */
Status ckpt_save(CkptStore *store, const CkptSave *save);

/* ---- saves of several ranks ---------------------------------------------------------------
 *
 * All ranks call ckpt_snapshot for the same step, with their shares. A save has phases: files are
 * laid out (first rank), written, read back (all), published (first). At the end of each a rank's
 * writer rests until the caller knows that all have come so far:
 *     if (all ranks: ckpt_rests(store, 0, &status, &sentence))            agreed upon, at a moment
 *     that suits
 *         add up ckpt_tallies(store, &n) of all ranks, if there are any
 *         ckpt_go_on(store, OK or what one of them said, its sentence)    the same on all ranks
 * After the last phase there is a result. A rank that is lost in between leaves a save that is
 * never published. */

/* Whether the writer rests, waiting for that at most wait_s; how its phase ended. The sentence
 * lives until ckpt_go_on. */
bool ckpt_rests(CkptStore *store, double wait_s, Status *status, const char **sentence);
/* After the phase of writing: what this rank has written of each of n tensors, to be replaced by
 * what all have. NULL after other phases. */
CkptTally *ckpt_tallies(CkptStore *store, int *n);
/* Whether another phase follows. */
bool ckpt_go_on(CkptStore *store, Status status, const char *sentence);

/* ---- copies in memory ------------------------------------------------------------------------
 *
 * A rank's share as it was after some step, in a file of a memory file system (/dev/shm): it
 * outlives the process, not the machine. A file has two slots that take turns, so that one is whole
 * at any moment; it is one rank's own, or what a rank of another host keeps for it. It holds the
 * runs of elements beside them, so that any layout can use it, and a hash of every part, so that no
 * bit that has turned over is used. */

typedef struct CkptCopy CkptCopy;

/* Bytes of a file for such a share, its runs counted: for the plan. */
size_t ckpt_copy_bytes(const Tensor *parts, int n_parts, int64_t n_runs);
/* The file of rank `rank` of `ranks` of the run (a number that tells runs apart), kept by rank
 * `keeper`. `start` tells apart the starts of a run: copies of one step belong together only when
 * one start has made them. */
typedef struct CkptCopyName {
    const char *dir;
    uint64_t run, start;
    int rank, ranks, keeper;
} CkptCopyName;
/* One that is there already and has this size goes on to be used: of its slots only that of step
 * `keep` stays
 * (-1: none). */
Status ckpt_copy_create(const CkptCopyName *name, size_t bytes, int64_t keep, CkptCopy **out);
/* Unmapped; the file stays, unless it is to go. */
void ckpt_copy_close(CkptCopy *copy, bool remove);

/* Fills the older slot from the share. What it held is lost from the first byte on, the other slot
 * stays. */
Status ckpt_copy_take(CkptCopy *copy, const CkptShare *share, int64_t step, const char *run_json);
/* The slot that was taken last, as it is sent to a keeper. */
const void *ckpt_copy_slot(const CkptCopy *copy, size_t *bytes);
/* A keeper: the older slot, to be filled with what comes; then it counts as that step's. */
void *ckpt_copy_receive(CkptCopy *copy, size_t *bytes);
void ckpt_copy_received(CkptCopy *copy, int64_t step);

/* A whole slot of a file that was found. */
typedef struct CkptCopyFound {
    const char *path;
    uint64_t start;
    int64_t step;
    int slot, rank, ranks, keeper;
} CkptCopyFound;
/* All of the run in the directory that this user has written; damaged ones are passed over. In
 * arena, by path. */
Status ckpt_copies_find(Arena *arena, const char *dir, uint64_t run, CkptCopyFound **found, int *n);

typedef struct CkptCopyRun {
    int64_t first, n; /* elements of the tensor */
    uint64_t at;      /* byte of the data */
    int32_t tensor, element_bytes;
} CkptCopyRun;

typedef struct CkptCopyView {
    const char *run_json;
    const CkptCopyRun *run; /* [n_runs] by tensor */
    int64_t n_runs;
    const char *data;
    void *map; /* the view's */
    size_t map_bytes;
} CkptCopyView;
/* The copy is of these tensors, every run inside the data and its tensor, every byte what was
 * copied; ERR_FORMAT names copy and tensor. */
Status ckpt_copy_open(const CkptCopyFound *found, const CkptShare *share, CkptCopyView *view);
void ckpt_copy_view_close(CkptCopyView *view);

#endif
