/* weights: the weights of a model by their published names, whatever files hold them.
 *
 * What it is.   Weights: an opened model directory, seen as named tensors of which any box can be
 *               read in
 *               any element type. Hugging Face directories (plain, fp8 with scales, experts one by
 *               one),
 *               checkpoints of ours, and Meta's own layout (params.json and consolidated.NN.pth).
 * Depends on.   base, tensor, ckpt; jansson, zlib
 * Owns.         A Weights owns its opened files and all names. Tensors that are filled belong to
 *               the caller.
 * Invariants.   Opening reads headers only: milliseconds, whatever the size. Reading touches the
 *               bytes that the
 *               box needs and no others. Names and shapes are those of a plain Hugging Face text
 *               model: no prefix,
 *               experts fused as [experts, in, out]. Nothing of a file is used before its headers
 *               were checked.
 *               What is not understood is refused by its name.
 * Use:
 *     Weights *weights;
 *     TRY(weights_open("Llama-3.1-8B", CKPT_VERIFY_SIZES, &weights));
 *     const Weight *w = weights_find(weights, "model.layers.0.self_attn.o_proj.weight");
 *     [4096, 4096]
 *     Tensor part = tensor_make(memory, DTYPE_BF16, shape_make(2, (int64_t[]){4096, 512}, NULL));
 *     TRY(weights_read(w, (int64_t[]){0, 1024}, &part));                             columns 1024
 *     to 1535
 */
#ifndef WEIGHTS_WEIGHTS_H
#define WEIGHTS_WEIGHTS_H

#include <jansson.h>

#include "ckpt/ckpt.h"

/* ---- a directory ------------------------------------------------------------------------ */

typedef struct Weights Weights;

/* A directory with config.json and safetensors files, or with params.json and consolidated.NN.pth.
 * A checkpoint of ours is verified as asked; foreign files have no hashes (but see weights_verify).
 */
Status weights_open(const char *path, CkptVerify verify, Weights **out);
/* Of an opened checkpoint or model directory; takes it over, also when it fails. */
Status weights_open_ckpt(Ckpt *ckpt, Weights **out);
void weights_close(Weights *weights);

const char *weights_path(const Weights *weights);
const Ckpt *weights_ckpt(const Weights *weights); /* NULL: not a Hugging Face directory */
/* "language_model." where the files hold a model with a part for images, else "". Names here come
 * without it. */
const char *weights_prefix(const Weights *weights);
/* "safetensors", "Meta's layout in 8 files", for people. */
const char *weights_form(const Weights *weights);
/* The configuration, as config.json has it or as params.json means it. The caller gives the object
 * back. */
Status weights_config(const Weights *weights, json_t **config);
/* Hashes of the files where they carry any that were not checked at opening: the checksums in .pth
 * files. Reads everything, on all cores. */
Status weights_verify(const Weights *weights);

/* ---- its tensors ------------------------------------------------------------------------ */

typedef struct Weight {
    const char *name;
    Shape shape; /* axes are AXIS_ANY */
    DType dtype; /* in which its values fit without loss: that of the file, bf16 for scaled ones;
                    DTYPE_COUNT: of a type that drover cannot read */
    const char *kind;                /* what the files hold: "BF16", "F8_E4M3, a scale per row" */
    uint64_t bytes;                  /* that it takes there, scales included */
    const struct WeightPiece *piece; /* where it comes from; private */
    int n_pieces;
} Weight;

int weights_count(const Weights *weights);
const Weight *weights_at(const Weights *weights, int i);              /* by name, sorted */
const Weight *weights_find(const Weights *weights, const char *name); /* or NULL */
uint64_t weights_bytes(const Weights *weights);                       /* of all, as stored */
/* Tensors of the files that are of no use here, by name: positions that we compute, scales of
 * activations, the part for images. */
int weights_ignored(const Weights *weights);

/* Fills `out`, the box of its shape that begins at `first` (an index for each axis; NULL: the
 * origin). Any strides. */
Status weights_read(const Weight *weight, const int64_t *first, const Tensor *out);
/* The same for elements first .. first+n-1 in row-major order, packed. */
Status weights_read_range(const Weight *weight, int64_t first, int64_t n, DType to, void *out);

/* ---- many of them ----------------------------------------------------------------------- */

/* A box of a weight: the whole when first is all zero and the tensor has its shape. */
typedef struct WeightSlice {
    const char *name;
    int64_t first[MAX_RANK];
    Tensor tensor;
} WeightSlice;

/* Whether the directory is a model with these tensors: none missing, of another shape, of a type
 * that cannot be read, or left over. tensor.data is not looked at. A head that is left over is
 * fine: the model ties it to the embedding. */
Status weights_match(const Weights *weights, const NamedTensor *tensors, int n);
/* Matched, verified, then all read and converted on all cores. */
Status weights_load(const Weights *weights, const NamedTensor *tensors, int n);
/* The boxes of one rank: only what they need is read. Boxes outside their weight are refused before
 * any is read; other tensors of the directory do not matter. */
Status weights_load_slices(const Weights *weights, const WeightSlice *slices, int n);

/* ---- a file of torch.save --------------------------------------------------------------- */

/* Read without executing anything: a zip container of stored entries and the few pickle
 * instructions that a dictionary of tensors needs. Whatever else a file asks for is refused by its
 * name. */
typedef struct Pth Pth;

typedef struct PthTensor {
    const char *name;
    DType dtype;
    const char *type_name; /* as safetensors would call it: "BF16" */
    Shape shape;
    int64_t stride[MAX_RANK]; /* elements */
    const char *entry;        /* of the container, that holds it: "consolidated/data/17" */
    uint64_t offset;          /* of its first element, in the file */
    uint64_t bytes;           /* of its elements */
} PthTensor;

Status pth_open(const char *path, Pth **out);
void pth_close(Pth *file);
int pth_count(const Pth *file);
const PthTensor *pth_at(const Pth *file, int i);              /* by name, sorted */
const PthTensor *pth_find(const Pth *file, const char *name); /* or NULL */
/* The checksum of every entry. */
Status pth_verify(const Pth *file);

#endif
