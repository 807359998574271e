/* Shared by the files of ckpt/; nobody outside includes it. */
#ifndef CKPT_CKPT_INTERNAL_H
#define CKPT_CKPT_INTERNAL_H

#include <jansson.h>

#include "ckpt/ckpt.h"

/* ---- safetensors ----------------------------------------------------------------------- */

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
/* A file's bytes that the caller keeps; for the fuzzer. */
Status safetensors_open_memory(Bytes bytes, const char *name, Safetensors **out);

/* The hash of a tensor's bytes, or of everything before the data when entry is NULL. */
Status safetensors_hash(const Safetensors *file, const SafetensorsEntry *entry, Hash128 *hash);

/* ---- hashing a stream ------------------------------------------------------------------ */

typedef struct HashStream HashStream;
HashStream *hash_stream_create(void);
void hash_stream_reset(HashStream *stream);
void hash_stream_add(HashStream *stream, const void *data, size_t n);
Hash128 hash_stream_result(const HashStream *stream);
void hash_stream_destroy(HashStream *stream);

/* ---- JSON ------------------------------------------------------------------------------ */

/* jansson with the strictness we want: duplicate keys refused, at most 64 levels deep, an object. Free
 * with json_decref. `what` names the text in errors. */
Status json_parse_object(const char *text, size_t n, const char *what, json_t **out);

/* ---- strided tensors ------------------------------------------------------------------- */

/* Elements first .. first+n-1, in row-major order, between a strided tensor and packed memory. */
void tensor_gather(const Tensor *tensor, int64_t first, int64_t n, void *packed);
void tensor_scatter(const void *packed, const Tensor *tensor, int64_t first, int64_t n);

/* ---- loading --------------------------------------------------------------------------- */

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

/* ---- writing a set of tensors as shards ------------------------------------------------ */

/* A file that was written, as the manifest lists it. */
typedef struct WrittenFile {
    char *name;
    uint64_t bytes;
    uint64_t tensor_bytes;
    Hash128 hash;
    Hash128 header;            /* of a safetensors file */
    int n_tensors;             /* 0: not a safetensors file */
    const char **tensor_names; /* [n_tensors] */
    Hash128 *tensors;          /* [n_tensors] */
} WrittenFile;

/* A directory that is being filled. Zeroed but for dir; fileset_deinit frees the lists, not the files. */
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

/* ---- manifest -------------------------------------------------------------------------- */

typedef struct ManifestTensor {
    const char *name;
    Hash128 hash;
} ManifestTensor;

typedef struct ManifestFile {
    const char *name;
    uint64_t bytes;
    Hash128 hash;
    Hash128 header;          /* with tensors only */
    ManifestTensor *tensors; /* sorted by name */
    int n_tensors;
} ManifestFile;

typedef struct Manifest {
    int64_t step;
    ManifestFile *files; /* sorted by name */
    int n_files;
    const char *run_json;
} Manifest;

/* The text, in `out`. run_json must be a JSON object. */
Status manifest_print(int64_t step, const FileSet *files, const char *run_json, Str *out);
/* Puts the hash of the text into its first digits. */
void manifest_seal(Str *text);
Status manifest_parse(Arena *arena, const char *path, const char *text, size_t n,
                      Manifest *manifest);
Status manifest_read(Arena *arena, const char *path, Manifest *manifest);
const ManifestFile *manifest_find(const Manifest *manifest, const char *name);

/* ---- names in a run's checkpoint directory --------------------------------------------- */

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

/* ---- saving ---------------------------------------------------------------------------- */

typedef struct Commit {
    const char *root; /* the run's checkpoint directory */
    uint64_t shard_bytes;
    int threads; /* for verification */
} Commit;

/* Writes the checkpoint beside, verifies it, renames it and moves `latest`. */
Status commit_save(const Commit *commit, const CkptSave *save, uint64_t *bytes);
/* Removes what a crash left (temporary names) and puts back what a crash found set aside. What cannot be
 * removed costs a warning. */
void commit_clean(const char *root);

typedef VEC(int64_t) Steps;
/* Removes what is older than the `keep` newest that verify, never what `latest` names. `known` holds
 * steps that were verified already. */
Status commit_retain(const Commit *commit, int keep, Steps *known);

/* ---- the lock -------------------------------------------------------------------------- */

/* Of the directory, for the life of this process or until close(*fd). */
Status lock_take(const char *root, int *fd);

enum { DEFAULT_SHARD_BYTES_GB = 5 };

#endif
