/* Shared by the files of weights/; nobody outside includes it. */
#ifndef WEIGHTS_WEIGHTS_INTERNAL_H
#define WEIGHTS_WEIGHTS_INTERNAL_H

#include "weights/weights.h"

/* ---- where values come from ------------------------------------------------------------- */

/* A tensor as some file holds it. */
typedef struct Stored {
    const char *name; /* there */
    const FileMap *map;
    bool mapped; /* from a file, not memory that stands for one */
    DType dtype;
    const char *type_name;
    Shape shape;
    int64_t stride[MAX_RANK]; /* elements */
    uint64_t offset, bytes;   /* of its first element in the file; of its elements */
} Stored;

/* A number for every block of a stored tensor, which its values are multiplied with. Element (i0,
 * i1, ..) of the piece has the scale at sum of i_d / block_d x stride_d. */
typedef struct Scale {
    Stored from;
    int64_t block[MAX_RANK], stride[MAX_RANK];
    const char *what; /* "a scale per row" */
} Scale;

/* The box `at`, `dim` of a weight, and where its elements lie: (i0, i1, ..) of the box at element
 * first + sum of i_d x stride_d from where `from` begins. Swapped strides make a transposed read.
 */
typedef struct WeightPiece {
    int64_t at[MAX_RANK], dim[MAX_RANK];
    int64_t stride[MAX_RANK];
    int64_t first;
    const Stored *from;
    const Scale *scale; /* NULL: the values are as they are */
} WeightPiece;

/* ---- the list, while it is made (source.c) ---------------------------------------------- */

typedef VEC(WeightPiece) PieceVec;

struct Weights {
    Arena arena; /* of names, stored tensors, scales, pieces */
    char *path;
    const char *prefix, *form;
    const char *missing; /* what the names in the files lack in front: "", "transformer." */
    Weight *weight;      /* sorted by name */
    int n, cap;
    uint64_t bytes;
    int n_ignored;
    Ckpt *ckpt; /* of a Hugging Face directory */
    Pth **pth;  /* of Meta's */
    int n_pth;
    json_t *config;
};

/* Adds a weight of these pieces, which must fill its shape. Kind, type and bytes follow from them.
 */
Status weights_add(Weights *weights, const char *name, Shape shape, const PieceVec *pieces);
/* The pieces of a stored tensor as it is. */
WeightPiece piece_whole(const Stored *stored);
/* Sorts; refuses a name that is there twice. */
Status weights_finish(Weights *weights);

/* ---- forms of directories --------------------------------------------------------------- */

Status hf_list(Weights *weights);             /* of weights->ckpt */
bool meta_is(Arena *arena, const char *path); /* params.json and a first consolidated.*.pth */
Status meta_list(Weights *weights);           /* of weights->path */

/* ---- Hugging Face: names, scales (hf_names.c, scale.c) ---------------------------------- */

typedef enum NameKind {
    NAME_PLAIN,
    NAME_IGNORED,
    NAME_SCALE,  /* of the tensor `base` */
    NAME_EXPERT, /* one expert's matrix, part of the weight `base` */
} NameKind;

typedef enum ExpertPart { EXPERT_GATE, EXPERT_UP, EXPERT_DOWN } ExpertPart;

typedef struct NameParts {
    NameKind kind;
    const char *base;
    int expert;
    ExpertPart part;
} NameParts;

/* What the name of a tensor says; prefix (""; "language_model.") goes off. Texts are of the arena.
 */
NameParts hf_name_parts(Arena *arena, const char *name, const char *prefix);

/* How the scale's shape covers that of the stored tensor [out, in], or [experts, in, out]. block:
 * the sides of blocks where there are any (rows, columns). */
Status scale_fit(const Stored *of, const Stored *scale, const int64_t block[2], Scale *out);

/* ---- Meta's layout: names, params.json -------------------------------------------------- */

typedef enum MetaRule {
    META_SAME,    /* in every file the same */
    META_ROWS,    /* [out, in], cut along out */
    META_COLUMNS, /* cut along in */
    META_QUERY,   /* rows, heads interleaved where the family rotates halves */
    META_KEY,
    META_QKV,         /* q, k and v below each other in each file */
    META_GATE_UP,     /* gate and up below each other in each file */
    META_EXPERT_GATE, /* [experts x in, out / files]: the first half of gate_up_proj */
    META_EXPERT_UP,   /* the second half */
    META_EXPERT_DOWN, /* [experts x in / files, out] */
    META_ROUTER,      /* [in, experts], the same in every file */
    META_IGNORED,
    META_UNKNOWN,
} MetaRule;

/* The rule for a name, and the name that the weight has with us (of the arena); for QKV and GATE_UP
 * up to the dot before q_proj, gate_proj. */
MetaRule meta_rule(Arena *arena, const char *name, bool llama4, const char **hf_name);

typedef struct MetaShape {
    bool llama4;
    int64_t embed, n_layers, n_heads, n_kv_heads, head_dim, n_experts;
} MetaShape;

/* What params.json says; vocab and tied come from the tensors. */
Status params_shape(const json_t *params, const char *path, MetaShape *shape);
Status params_config(const json_t *params, const char *path, int64_t vocab, bool tied,
                     json_t **config);

/* ---- containers ------------------------------------------------------------------------- */

typedef struct ZipEntry {
    const char *name;
    uint64_t offset, bytes; /* of the data, in the file */
    uint32_t crc;
} ZipEntry;

typedef struct Zip {
    ZipEntry *entry; /* sorted by name */
    int n;
} Zip;

/* The central directory, checked against the file: stored entries only, inside it, not overlapping.
 */
Status zip_read(Arena *arena, const FileMap *map, Zip *zip);
const ZipEntry *zip_find(const Zip *zip, const char *name);

typedef struct PickleTensor {
    const char *name;
    const char *key; /* of its storage */
    const char *type_name;
    DType dtype;
    uint64_t storage_count; /* elements of the storage */
    uint64_t storage_size;  /* bytes of one of them */
    uint64_t element_bytes; /* of the tensor's own elements */
    uint64_t first;
    Shape shape;
    int64_t stride[MAX_RANK];
} PickleTensor;

typedef struct Pickle {
    PickleTensor *tensor;
    int n;
} Pickle;

enum { PICKLE_MAX_BYTES = 8 << 20 };

/* A dictionary of tensors. `what` names the text in errors. */
Status pickle_read(Arena *arena, const char *what, Bytes text, Pickle *pickle);
const FileMap *pth_map(const Pth *file);
/* On a file's bytes that the caller keeps; for the fuzzer. */
Status pth_open_memory(Bytes bytes, const char *name, Pth **out);

#endif
