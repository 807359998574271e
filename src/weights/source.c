/* Opening a directory, and the list of its weights. */
#include <stdlib.h>
#include <string.h>

#include "weights/weights_internal.h"

enum { MAX_CONFIG_BYTES = 16 << 20 };

/* ---- the list, while it is made --------------------------------------------------------- */

WeightPiece piece_whole(const Stored *stored)
{
    WeightPiece piece = {.from = stored};
    for (int d = 0; d < stored->shape.rank; d++) {
        piece.dim[d] = stored->shape.dim[d];
        piece.stride[d] = stored->stride[d];
    }
    return piece;
}

/* The boxes of a weight are made so that they do not overlap; if they hold as many elements as it
 * has, they fill it. */
static Status check_filled(const Weights *weights, const char *name, const Shape *shape,
                           const PieceVec *pieces)
{
    char text[SHAPE_TEXT];
    int64_t have = 0;
    for (size_t i = 0; i < pieces->n; i++) {
        const WeightPiece *p = &pieces->at[i];
        int64_t count = 1;
        for (int d = 0; d < shape->rank; d++) {
            if (p->at[d] < 0 || p->dim[d] < 0 || p->at[d] > shape->dim[d] - p->dim[d])
                return fail(ERR_FORMAT, "%s: tensor %s does not fit into %s of [%s]",
                            p->from->map->path, p->from->name, name, shape_text(shape, text));
            count *= p->dim[d];
        }
        have += count;
    }
    if (have == shape_count(shape)) return OK;
    return fail(ERR_FORMAT, "%s: the parts of %s hold %lld elements, but [%s] are needed",
                weights->path, name, (long long)have, shape_text(shape, text));
}

/* Of a type that is not known only what the file says of the whole is known. */
static uint64_t piece_bytes(const WeightPiece *p, int rank)
{
    uint64_t count = 1;
    for (int d = 0; d < rank; d++) count *= (uint64_t)p->dim[d];
    uint64_t bytes = p->from->dtype == DTYPE_COUNT ? p->from->bytes
                                                   : count * dtype_bytes(p->from->dtype);
    return bytes + (p->scale ? p->scale->from.bytes : 0);
}

/* Values that a scale multiplied need more digits than fp8 has; bf16 is what such models are
 * computed in. */
static DType natural_type(const WeightPiece *piece)
{
    return piece->scale && piece->from->dtype != DTYPE_COUNT ? DTYPE_BF16 : piece->from->dtype;
}

static const char *describe(Weights *weights, const PieceVec *pieces)
{
    const WeightPiece *p = &pieces->at[0];
    return p->scale ? arena_printf(&weights->arena, "%s, %s", p->from->type_name, p->scale->what)
                    : p->from->type_name;
}

Status weights_add(Weights *weights, const char *name, Shape shape, const PieceVec *pieces)
{
    TRY(check_filled(weights, name, &shape, pieces));
    Weight w = {
        .name = arena_strdup(&weights->arena, name), .shape = shape, .n_pieces = (int)pieces->n};
    w.piece = arena_copy(&weights->arena, pieces->at, pieces->n * sizeof *pieces->at);
    w.dtype = natural_type(&pieces->at[0]);
    w.kind = describe(weights, pieces);
    for (size_t i = 0; i < pieces->n; i++) {
        const WeightPiece *p = &pieces->at[i];
        if (natural_type(p) != w.dtype || p->from->dtype != pieces->at[0].from->dtype)
            return fail(ERR_FORMAT, "%s: the parts of %s are of different types, %s and %s",
                        p->from->map->path, name, pieces->at[0].from->type_name,
                        p->from->type_name);
        w.bytes += piece_bytes(p, shape.rank);
    }
    if (weights->n == weights->cap) {
        weights->cap = weights->cap ? 2 * weights->cap : 64;
        weights->weight = xrealloc(weights->weight, sizeof *weights->weight * (size_t)weights->cap);
    }
    weights->weight[weights->n++] = w;
    weights->bytes += w.bytes;
    return OK;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const Weight *)a)->name, ((const Weight *)b)->name);
}

Status weights_finish(Weights *weights)
{
    if (weights->n == 0)
        return fail(ERR_FORMAT, "%s holds no tensor that a text model could use", weights->path);
    qsort(weights->weight, (size_t)weights->n, sizeof *weights->weight, by_name);
    for (int i = 1; i < weights->n; i++)
        if (!strcmp(weights->weight[i - 1].name, weights->weight[i].name))
            return fail(ERR_FORMAT, "%s: %s is there twice, in two forms", weights->path,
                        weights->weight[i].name);
    return OK;
}

/* ---- opening ---------------------------------------------------------------------------- */

static Weights *create(const char *path)
{
    Weights *weights = xcalloc(1, sizeof *weights);
    weights->path = xstrdup(path);
    weights->prefix = "";
    return weights;
}

static Status finish_open(Weights *weights, Status status, Weights **out)
{
    if (status == OK) status = weights_finish(weights);
    if (status == OK)
        *out = weights;
    else
        weights_close(weights);
    return status;
}

Status weights_open_ckpt(Ckpt *ckpt, Weights **out)
{
    Weights *weights = create(ckpt_path(ckpt));
    weights->ckpt = ckpt;
    return finish_open(weights, hf_list(weights), out);
}

Status weights_open(const char *path, CkptVerify verify, Weights **out)
{
    Arena arena = {0};
    if (!dir_exists(path))
        return fail(ERR_IO,
                    file_exists(path) ? "%s is a file; a model is a directory"
                                      : "there is no directory %s",
                    path);
    bool meta = meta_is(&arena, path);
    arena_deinit(&arena);
    if (meta) {
        Weights *weights = create(path);
        return finish_open(weights, meta_list(weights), out);
    }
    Ckpt *ckpt;
    TRY(ckpt_open(path, verify, &ckpt));
    return weights_open_ckpt(ckpt, out);
}

void weights_close(Weights *weights)
{
    if (!weights) return;
    for (int i = 0; i < weights->n_pth; i++) pth_close(weights->pth[i]);
    free(weights->pth);
    ckpt_close(weights->ckpt);
    json_decref(weights->config);
    free(weights->weight);
    free(weights->path);
    arena_deinit(&weights->arena);
    free(weights);
}

/* ---- the configuration ------------------------------------------------------------------ */

static Status read_config(const char *dir, json_t **config)
{
    Arena arena = {0};
    Bytes text;
    json_error_t error;
    const char *path = path_join(&arena, dir, "config.json");
    Status status = file_read(&arena, path, MAX_CONFIG_BYTES, &text);
    if (status == OK) {
        json_t *json = json_loadb((const char *)text.at, text.n, JSON_REJECT_DUPLICATES, &error);
        if (json)
            *config = json;
        else
            status = fail(ERR_FORMAT, "%s:%d: %s", path, error.line, error.text);
    }
    arena_deinit(&arena);
    return status;
}

Status weights_config(const Weights *weights, json_t **config)
{
    if (!weights->config) return read_config(weights->path, config);
    *config = json_deep_copy(weights->config);
    return OK;
}

/* ---- reading the list ------------------------------------------------------------------- */

const char *weights_path(const Weights *weights) { return weights->path; }
const Ckpt *weights_ckpt(const Weights *weights) { return weights->ckpt; }
const char *weights_prefix(const Weights *weights) { return weights->prefix; }
const char *weights_form(const Weights *weights) { return weights->form; }
int weights_count(const Weights *weights) { return weights->n; }
uint64_t weights_bytes(const Weights *weights) { return weights->bytes; }
int weights_ignored(const Weights *weights) { return weights->n_ignored; }

const Weight *weights_at(const Weights *weights, int i)
{
    CHECK(i >= 0 && i < weights->n);
    return &weights->weight[i];
}

const Weight *weights_find(const Weights *weights, const char *name)
{
    Weight key = {.name = name};
    return weights->n ? bsearch(&key, weights->weight, (size_t)weights->n, sizeof *weights->weight,
                                by_name)
                      : NULL;
}

Status weights_verify(const Weights *weights)
{
    for (int i = 0; i < weights->n_pth; i++) TRY(pth_verify(weights->pth[i]));
    return OK;
}
