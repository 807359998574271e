/* Shared by the files of ckpt/; nobody outside includes it. */
#ifndef CKPT_CKPT_INTERNAL_H
#define CKPT_CKPT_INTERNAL_H

#include <jansson.h>
#include <pthread.h>

#include "ckpt/ckpt.h"

/* ---- safetensors ------------------------------------------------------------------------ */

struct Safetensors {
    FileMap map;
    bool in_memory;      /* map.at is the caller's */
    char *text;          /* a copy of the header; strings are decoded in place, names point here */
    size_t header_bytes; /* the length field and the JSON: where the data begin */
    SafetensorsEntry *entries; /* [n], in order of offset */
    int *by_name;              /* [n], indices of entries, sorted by name */
    int n;
};

/* The type that the format calls `name`: false when it does not know it. *dtype is DTYPE_COUNT when
 * only the size is known here. */
bool safetensors_type(const char *name, DType *dtype, int *bits);

/* Parses file->text[0..n) and fills entries, by_name and n. file->map.n is the size of the file. */
Status safetensors_parse_header(Safetensors *file, size_t n);
/* The header of a file of these items: order[n] becomes their order in the file. `path` is for
 * sentences. */
Status safetensors_header(const SafetensorsItem *items, int n, const char *path, int *order,
                          Str *header);
uint64_t safetensors_item_bytes(const SafetensorsItem *item);
/* A file's bytes that the caller keeps; for the fuzzer. */
Status safetensors_open_memory(Bytes bytes, const char *name, Safetensors **out);

/* The hash of a tensor's bytes, or of everything before the data when entry is NULL. */
Status safetensors_hash(const Safetensors *file, const SafetensorsEntry *entry, Hash128 *hash);

/* ---- hashing a stream ------------------------------------------------------------------- */

typedef struct HashStream HashStream;
HashStream *hash_stream_create(void);
void hash_stream_reset(HashStream *stream);
void hash_stream_add(HashStream *stream, const void *data, size_t n);
Hash128 hash_stream_result(const HashStream *stream);
void hash_stream_destroy(HashStream *stream);

/* ---- the sum of a tensor's bytes (sum.c) ------------------------------------------------ */

typedef struct SumKeys SumKeys;
SumKeys *sum_keys_create(void);
void sum_keys_destroy(SumKeys *keys);
/* Adds to `sum` what bytes offset .. offset+n-1 of a tensor contribute to its sum. */
void sum_add(const SumKeys *keys, uint64_t offset, const void *data, size_t n, uint64_t sum[2]);
/* The same for elements, which are counted too. */
void tally_add(const SumKeys *keys, CkptTally *tally, int64_t first, int64_t n, DType dtype,
               const void *data);
/* Whether each of `count` elements was counted `times` times. */
Status tally_check(const CkptTally *tally, uint64_t times, uint64_t count, const char *name);
/* Of a tensor in a file. */
Status safetensors_sum(const Safetensors *file, const SafetensorsEntry *entry, const SumKeys *keys,
                       Hash128 *sum);

/* ---- JSON ------------------------------------------------------------------------------- */

/* jansson with the strictness we want: duplicate keys refused, at most 64 levels deep, an object.
 * Free with json_decref. `what` names the text in errors. */
Status json_parse_object(const char *text, size_t n, const char *what, json_t **out);

/* ---- strided tensors -------------------------------------------------------------------- */

/* Elements first .. first+n-1, in row-major order, between a strided tensor and packed memory. */
void tensor_gather(const Tensor *tensor, int64_t first, int64_t n, void *packed);
void tensor_scatter(const void *packed, const Tensor *tensor, int64_t first, int64_t n);

/* ---- loading ---------------------------------------------------------------------------- */

/* Where tensors are looked up by name. */
typedef struct TensorSource {
    const SafetensorsEntry *(*find)(const void *from, const char *name);
    const void *from;
    const char *where; /* for sentences */
    int count;         /* tensors that it has */
} TensorSource;

/* Names and shapes against the source; nothing is written. */
Status tensors_match(TensorSource source, const NamedTensor *tensors, int n);
Status tensors_load(TensorSource source, const NamedTensor *tensors, int n);

/* ---- writing a set of tensors as shards ------------------------------------------------- */

/* A file that was written. */
typedef struct WrittenFile {
    char *name;
    uint64_t bytes;
    uint64_t tensor_bytes;
    Hash128 hash;              /* of one that is no safetensors file */
    int n_tensors;             /* 0: not a safetensors file */
    const char **tensor_names; /* [n_tensors] */
} WrittenFile;

/* A directory that is being filled. Zeroed but for dir; fileset_deinit frees the lists, not the
 * files. */
typedef struct FileSet {
    const char *dir;
    Arena arena; /* of names and hashes */
    WrittenFile *at;
    size_t n, cap;
} FileSet;

void fileset_deinit(FileSet *set);
/* stem "model" gives model-00001-of-00002.safetensors ... */
Status fileset_write_shards(FileSet *set, const char *stem, const NamedTensor *tensors, int n,
                            uint64_t shard_bytes);
Status fileset_write_items(FileSet *set, const char *stem, const SafetensorsItem *items, int n,
                           uint64_t shard_bytes);
int shard_count(const SafetensorsItem *items, int n, uint64_t shard_bytes);
/* The end of the shard that begins at `first`: as many as fit, at least one. */
int shard_end(const SafetensorsItem *items, int n, int first, uint64_t shard_bytes);
/* All in one file. */
Status fileset_write_shard(FileSet *set, const char *name, const SafetensorsItem *items, int n);
/* model.safetensors.index.json for the safetensors files of the set from `first` on. */
Status fileset_write_index(FileSet *set, size_t first);
/* Any other file. */
Status fileset_write_file(FileSet *set, const char *name, Bytes bytes);

/* ---- the model directory's parser, open to the fuzzer ----------------------------------- */

typedef struct IndexEntry {
    const char *tensor, *shard;
} IndexEntry;

typedef struct ModelIndex {
    IndexEntry *entries; /* sorted by tensor */
    int n;
    int64_t total_bytes; /* -1: not said */
} ModelIndex;

Status model_index_parse(Arena *arena, const char *path, const char *text, size_t n,
                         ModelIndex *index);

/* ---- manifest --------------------------------------------------------------------------- */

typedef struct ManifestTensor {
    const char *name;
    Hash128 hash; /* version 1: XXH3 of its bytes; from 2 on: their sum (sum.c) */
} ManifestTensor;

typedef struct ManifestFile {
    const char *name;
    uint64_t bytes;
    Hash128 hash;            /* of a file without tensors, and in version 1 of any */
    Hash128 header;          /* with tensors only */
    ManifestTensor *tensors; /* sorted by name; NULL: not a safetensors file */
    int n_tensors;
} ManifestFile;

enum { MANIFEST_HASHES = 1, MANIFEST_SUMS = 2 };

typedef struct Manifest {
    int version;
    int64_t step;
    ManifestFile *files; /* sorted by name */
    int n_files;
    const char *run_json; /* NULL, when it is written: {} */
} Manifest;

/* The text, in `out`, of version MANIFEST_SUMS. run_json must be a JSON object. */
Status manifest_print(const Manifest *manifest, Str *out);
/* Puts the hash of the text into its first digits. */
void manifest_seal(Str *text);
Status manifest_parse(Arena *arena, const char *path, const char *text, size_t n,
                      Manifest *manifest);
Status manifest_read(Arena *arena, const char *path, Manifest *manifest);
const ManifestFile *manifest_find(const Manifest *manifest, const char *name);
const ManifestTensor *manifest_tensor(const ManifestFile *file, const char *name);

/* ---- names in a run's checkpoint directory ---------------------------------------------- */

enum { STEP_NAME = 32 };
void step_name(int64_t step, char out[STEP_NAME]); /* "step-00001000" */
bool step_parse(const char *name, int64_t *step);  /* exactly what step_name writes */
Status latest_write(const char *root, const char *name);
/* The step that `latest` names; ERR_FORMAT when it is damaged; *step = -1 when there is none. */
Status latest_read(const char *root, int64_t *step);
/* The steps that lie in root, newest first. */
Status steps_list(Arena *arena, const char *root, int64_t **steps, int *n);

/* The directory against its manifest; opens everything it needs to load. */
Status ckpt_open_verified(const char *path, CkptVerify verify, int threads, Ckpt **out);
/* The steps of a run that may be loaded, the one to try first in front; none: n is 0. */
Status candidates_list(Arena *arena, const char *root, int64_t latest, int64_t **steps, int *n);

/* ---- the files of a checkpoint, before they are written (plan.c) ------------------------ */

typedef struct PlannedFile {
    const char *name, *path;
    const char *header;
    size_t header_bytes;
    uint64_t bytes, tensor_bytes;
    int *tensor;  /* [n] indices of the share's tensors, in the order of the file */
    uint64_t *at; /* [n] where each begins in the file */
    int n;
} PlannedFile;

typedef struct FilePlan {
    PlannedFile *file;
    int n, n_model; /* the model's come first */
    uint64_t bytes; /* of all */
} FilePlan;

/* A function of the tensors alone: whatever order they come in and however they are cut. dir: where
 * the files will lie. */
Status plan_files(Arena *arena, const CkptShare *share, const char *dir, uint64_t shard_bytes,
                  FilePlan *plan);

/* ---- a rank's ranges of the files (ranges.c) -------------------------------------------- */

typedef struct Ranges {
    const CkptShare *share;
    const FilePlan *plan;
    const SumKeys *keys;
    size_t write_bytes; /* of one write at most, for what is put together from small runs */
    int threads;
} Ranges;

/* Writes them and syncs every file that this rank has written into; tally[n_tensors] is filled. */
Status ranges_write(const Ranges *ranges, CkptTally *tally);
/* Reads them back: the same tallies must come out. */
Status ranges_verify(const Ranges *ranges, const CkptTally *tally);

/* ---- saving ----------------------------------------------------------------------------- */

/* A save on its way, as one rank sees it. */
typedef struct Commit {
    const char *root; /* the run's checkpoint directory */
    CkptOptions options;
    int threads;
    const CkptSave *save;
    const char *work; /* name of the directory that is filled */
    /* from here on commit.c's */
    Arena arena;
    FileSet set; /* files without tensors; the first rank's */
    FilePlan plan;
    SumKeys *keys;
    CkptTally *own;   /* [n_tensors] */
    CkptTally *total; /* the same of all ranks, once they have told */
    uint64_t bytes;   /* written by all, once it is published */
    bool published;
    const char *final, *old;
    char step[STEP_NAME];
} Commit;

/* The phases of a save. Each begins when all ranks have ended the one before. */
Status commit_begin(Commit *commit); /* every rank: what is written where; writes nothing yet */
Status commit_lay_out(
    Commit *commit); /* the first rank: the directory, files of their final size, headers */
Status commit_write(Commit *commit);   /* every rank: its ranges, synced */
Status commit_verify(Commit *commit);  /* every rank: reads them back */
Status commit_publish(Commit *commit); /* the first rank: manifest, the name, `latest` */
/* The first rank, after a failure: nothing of the save stays. The sentence of the failure does. */
void commit_give_up(Commit *commit);
void commit_end(Commit *commit); /* frees */

/* Removes what a crash left (temporary names) and puts back what a crash found set aside. What
 * cannot be removed costs a warning. */
void commit_clean(const char *root);

typedef VEC(int64_t) Steps;
/* Removes what is older than the `keep` newest that verify, never what `latest` names. `known`
 * holds steps that were verified already. */
Status commit_retain(const Commit *commit, Steps *known);

typedef enum SavePhase {
    SAVE_LAY_OUT,
    SAVE_WRITE,
    SAVE_VERIFY,
    SAVE_PUBLISH,
    SAVE_PHASES
} SavePhase;
enum { SAVE_SENTENCE = 512 };

struct CkptStore {
    char *root;
    int lock_fd; /* -1: the first rank's */
    uint64_t key;
    int64_t n_saves; /* begun */
    CkptOptions options;
    Steps known; /* verified steps; used by whoever saves, one at a time */

    void *buffer;
    size_t buffer_bytes;

    /* the save that is under way: a copy of what the caller passed */
    Arena arena;
    CkptSave save;
    CkptShare share;
    Commit commit;
    double snapshot_s;
    int threads; /* that the writer may use */
    pthread_t thread;
    bool started; /* the thread has to be joined */

    pthread_mutex_t mutex; /* guards what follows */
    pthread_cond_t changed;
    bool busy;
    double busy_since_s;
    VEC(CkptResult) results; /* not yet asked for */
    /* between the phases of a save of several ranks */
    SavePhase phase;
    bool resting, go, closing;
    Status rest_status, go_status;
    char rest_sentence[SAVE_SENTENCE], go_sentence[SAVE_SENTENCE];
};

/* Thread function of a save, from store->save; and the same on the caller's thread (writer.c). */
void *writer_run(void *store);
Status writer_save(CkptStore *store, int threads);

/* ---- the lock --------------------------------------------------------------------------- */

/* Of the directory, for the life of this process or until close(*fd). */
Status lock_take(const char *root, int *fd);

enum { DEFAULT_SHARD_BYTES_GB = 5 };

#endif
