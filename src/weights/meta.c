/* Meta's own layout: params.json, and consolidated.00.pth, .01.pth ... each with a part of every
 * matrix, as the ranks of tensor parallelism held them. The parts are put together here by
 * description only: a weight is a list of boxes, each with the strides under which its elements lie
 * in its file.
 *
 * Llama 3 rotates pairs of halves in Hugging Face's form and neighbours in Meta's, so that rows of
 * q and k change places: row half x d/2 + j of a head is Meta's row 2 j + half. As a box that is
 * every second row. Llama 4 is the same in both. */
#include <stdlib.h>
#include <string.h>

#include "weights/weights_internal.h"

enum { MAX_FILES = 1024, MAX_PARAMS_BYTES = 1 << 20, SAMPLED_ROWS = 16 };

/* One of Meta's tensors: a part in every file. */
typedef struct Item {
    const char *name, *ours;
    MetaRule rule;
    const Stored *part; /* [n_pth] */
} Item;

typedef struct Scan {
    Weights *weights;
    MetaShape shape;
    const char *params; /* the path, for sentences */
    VEC(Item) items;
    int n; /* files */
} Scan;

/* ---- files ------------------------------------------------------------------------------ */

static bool is_part(const char *name)
{
    size_t n = strlen(name);
    return n > 17 && !strncmp(name, "consolidated.", 13) && !strcmp(name + n - 4, ".pth");
}

bool meta_is(Arena *arena, const char *path)
{
    DirEntries entries;
    if (file_exists(path_join(arena, path, "model.safetensors")) ||
        file_exists(path_join(arena, path, "model.safetensors.index.json")) ||
        !file_exists(path_join(arena, path, "params.json")) ||
        dir_list(arena, path, &entries) != OK)
        return false;
    for (int i = 0; i < entries.n; i++)
        if (is_part(entries.name[i])) return true;
    return false;
}

/* consolidated.00.pth to the last, none missing and none beside them. */
static Status open_files(Weights *w)
{
    DirEntries entries;
    int found = 0;
    TRY(dir_list(&w->arena, w->path, &entries));
    for (int i = 0; i < entries.n; i++) found += is_part(entries.name[i]);
    if (found > MAX_FILES)
        return fail(ERR_FORMAT, "%s has %d files consolidated.*.pth, at most %d are accepted",
                    w->path, found, MAX_FILES);
    w->pth = xcalloc((size_t)found, sizeof *w->pth);
    for (int i = 0; i < found; i++) {
        const char *name = arena_printf(&w->arena, "consolidated.%02d.pth", i);
        const char *path = path_join(&w->arena, w->path, name);
        if (!file_exists(path))
            return fail(ERR_FORMAT, "%s has %d files consolidated.*.pth, but %s is not among them",
                        w->path, found, name);
        TRY(pth_open(path, &w->pth[i]));
        w->n_pth++;
    }
    w->form = arena_printf(&w->arena, "Meta's layout, %d file%s", found, found == 1 ? "" : "s");
    return OK;
}

static Status read_params(Weights *w, const char *path, json_t **params)
{
    Bytes text;
    json_error_t error;
    TRY(file_read(&w->arena, path, MAX_PARAMS_BYTES, &text));
    *params = json_loadb((const char *)text.at, text.n, JSON_REJECT_DUPLICATES, &error);
    return *params ? OK : fail(ERR_FORMAT, "%s:%d: %s", path, error.line, error.text);
}

/* ---- the tensors that make one weight --------------------------------------------------- */

static Stored stored_part(const Pth *file, const PthTensor *t)
{
    Stored s = {.name = t->name,
                .map = pth_map(file),
                .mapped = true,
                .dtype = t->dtype,
                .type_name = t->type_name,
                .shape = t->shape,
                .offset = t->offset,
                .bytes = t->bytes};
    memcpy(s.stride, t->stride, sizeof s.stride);
    return s;
}

static Status collect_parts(Scan *scan, Item *item)
{
    const Weights *w = scan->weights;
    char have[SHAPE_TEXT], want[SHAPE_TEXT];
    Stored *parts = ARENA_ARRAY(&scan->weights->arena, Stored, scan->n);
    for (int i = 0; i < scan->n; i++) {
        const PthTensor *t = pth_find(w->pth[i], item->name);
        const char *path = pth_map(w->pth[i])->path;
        if (!t)
            return fail(ERR_FORMAT, "%s has no tensor %s, but %s has", path, item->name,
                        pth_map(w->pth[0])->path);
        parts[i] = stored_part(w->pth[i], t);
        if (!shape_equal(&parts[i].shape, &parts[0].shape) || parts[i].dtype != parts[0].dtype)
            return fail(ERR_FORMAT, "%s: tensor %s is %s [%s], but %s [%s] in %s", path, item->name,
                        parts[i].type_name, shape_text(&parts[i].shape, have), parts[0].type_name,
                        shape_text(&parts[0].shape, want), pth_map(w->pth[0])->path);
    }
    item->part = parts;
    return OK;
}

static Status collect(Scan *scan)
{
    Weights *w = scan->weights;
    for (int f = 1; f < scan->n; f++)
        if (pth_count(w->pth[f]) != pth_count(w->pth[0]))
            return fail(ERR_FORMAT, "%s holds %d tensors, but %s holds %d",
                        pth_map(w->pth[f])->path, pth_count(w->pth[f]), pth_map(w->pth[0])->path,
                        pth_count(w->pth[0]));
    for (int i = 0; i < pth_count(w->pth[0]); i++) {
        Item item = {.name = pth_at(w->pth[0], i)->name};
        item.rule = meta_rule(&w->arena, item.name, scan->shape.llama4, &item.ours);
        if (item.rule == META_UNKNOWN)
            return fail(ERR_UNSUPPORTED, "%s: tensor %s is not known in Meta's layout of %s",
                        pth_map(w->pth[0])->path, item.name,
                        scan->shape.llama4 ? "Llama 4" : "Llama 3");
        if (item.rule == META_IGNORED) {
            w->n_ignored++;
            continue;
        }
        TRY(collect_parts(scan, &item));
        VEC_PUSH(&scan->items, item);
    }
    return OK;
}

/* ---- boxes ------------------------------------------------------------------------------ */

static Status fail_shape(const Scan *scan, const Item *item, const char *why)
{
    char text[SHAPE_TEXT];
    return fail(ERR_SHAPE, "%s: tensor %s of [%s], in %d files, does not fit %s: %s",
                item->part[0].map->path, item->name, shape_text(&item->part[0].shape, text),
                scan->n, scan->params, why);
}

static Status need_rank(const Scan *scan, const Item *item, int rank)
{
    if (item->part[0].shape.rank == rank && shape_count(&item->part[0].shape) > 0) return OK;
    return fail_shape(scan, item, rank == 1 ? "a vector is needed" : "a matrix is needed");
}

/* `rows` rows of the matrix from first_row on, every step-th, to rows `at` and following of the
 * weight. */
static void push_rows(PieceVec *pieces, const Stored *s, int64_t first_row, int64_t step,
                      int64_t rows, int64_t at)
{
    WeightPiece p = {.from = s, .first = first_row * s->stride[0]};
    p.at[0] = at;
    p.dim[0] = rows;
    p.dim[1] = s->shape.dim[1];
    p.stride[0] = step * s->stride[0];
    p.stride[1] = s->stride[1];
    VEC_PUSH(pieces, p);
}

/* Rows first .. first+rows-1 of every file, below each other: a weight of its own. */
static Status add_rows(Scan *scan, const Item *item, const char *name, int64_t first, int64_t rows)
{
    PieceVec pieces = {0};
    for (int f = 0; f < scan->n; f++) push_rows(&pieces, &item->part[f], first, 1, rows, f * rows);
    Shape shape = shape_make(2, (int64_t[]){rows * scan->n, item->part[0].shape.dim[1]}, NULL);
    Status status = weights_add(scan->weights, name, shape, &pieces);
    VEC_FREE(&pieces);
    return status;
}

static Status add_columns(Scan *scan, const Item *item)
{
    PieceVec pieces = {0};
    int64_t columns = item->part[0].shape.dim[1];
    for (int f = 0; f < scan->n; f++) {
        WeightPiece p = piece_whole(&item->part[f]);
        p.at[1] = f * columns;
        VEC_PUSH(&pieces, p);
    }
    Shape shape = shape_make(2, (int64_t[]){item->part[0].shape.dim[0], columns * scan->n}, NULL);
    Status status = weights_add(scan->weights, item->ours, shape, &pieces);
    VEC_FREE(&pieces);
    return status;
}

static Status add_same(Scan *scan, const Item *item)
{
    PieceVec pieces = {0};
    VEC_PUSH(&pieces, piece_whole(&item->part[0]));
    Status status = weights_add(scan->weights, item->ours, item->part[0].shape, &pieces);
    VEC_FREE(&pieces);
    return status;
}

/* Rows of q or k: `heads` heads over all files; halves of a head are every second row of Meta's. */
static Status add_heads(Scan *scan, const Item *item, int64_t heads)
{
    const MetaShape *m = &scan->shape;
    int64_t rows = item->part[0].shape.dim[0], half = m->head_dim / 2;
    if (rows * scan->n != heads * m->head_dim || item->part[0].shape.dim[1] != m->embed ||
        rows % m->head_dim)
        return fail_shape(scan, item, "dim, n_heads and n_kv_heads say otherwise");
    if (m->llama4) return add_rows(scan, item, item->ours, 0, rows);
    PieceVec pieces = {0};
    for (int f = 0; f < scan->n; f++)
        for (int64_t row = 0; row < rows; row += half) {
            int64_t head = row / m->head_dim * m->head_dim, second = row - head >= half;
            push_rows(&pieces, &item->part[f], head + second, 2, half, f * rows + row);
        }
    Status status = weights_add(scan->weights, item->ours,
                                shape_make(2, (int64_t[]){rows * scan->n, m->embed}, NULL),
                                &pieces);
    VEC_FREE(&pieces);
    return status;
}

static Status add_qkv(Scan *scan, const Item *item)
{
    const MetaShape *m = &scan->shape;
    int64_t q = m->n_heads * m->head_dim / scan->n, kv = m->n_kv_heads * m->head_dim / scan->n;
    if (item->part[0].shape.dim[0] != q + 2 * kv || m->n_heads % scan->n || m->n_kv_heads % scan->n)
        return fail_shape(scan, item, "dim, n_heads and n_kv_heads say otherwise");
    Arena *arena = &scan->weights->arena;
    TRY(add_rows(scan, item, arena_printf(arena, "%sq_proj.weight", item->ours), 0, q));
    TRY(add_rows(scan, item, arena_printf(arena, "%sk_proj.weight", item->ours), q, kv));
    return add_rows(scan, item, arena_printf(arena, "%sv_proj.weight", item->ours), q + kv, kv);
}

static Status add_gate_up(Scan *scan, const Item *item)
{
    int64_t rows = item->part[0].shape.dim[0] / 2;
    Arena *arena = &scan->weights->arena;
    if (item->part[0].shape.dim[0] % 2) return fail_shape(scan, item, "its rows are two halves");
    TRY(add_rows(scan, item, arena_printf(arena, "%sgate_proj.weight", item->ours), 0, rows));
    return add_rows(scan, item, arena_printf(arena, "%sup_proj.weight", item->ours), rows, rows);
}

static Status add_router(Scan *scan, const Item *item)
{
    const Stored *s = &item->part[0];
    PieceVec pieces = {0};
    WeightPiece p = {.from = s};
    for (int d = 0; d < 2; d++) {
        p.dim[d] = s->shape.dim[1 - d];
        p.stride[d] = s->stride[1 - d];
    }
    VEC_PUSH(&pieces, p);
    Status status = weights_add(scan->weights, item->ours, shape_make(2, p.dim, NULL), &pieces);
    VEC_FREE(&pieces);
    return status;
}

/* ---- experts ---------------------------------------------------------------------------- */

/* A part [experts x rows, columns] as the box [experts, rows, columns] that begins at row, column.
 */
static Status push_experts(const Scan *scan, const Item *item, int file, int64_t row,
                           int64_t column, PieceVec *pieces)
{
    const Stored *s = &item->part[file];
    int64_t experts = scan->shape.n_experts;
    if (experts < 1 || s->shape.dim[0] % experts)
        return fail_shape(scan, item, "moe_args.num_experts says otherwise");
    WeightPiece p = {.from = s};
    p.at[1] = row;
    p.at[2] = column;
    p.dim[0] = experts;
    p.dim[1] = s->shape.dim[0] / experts;
    p.dim[2] = s->shape.dim[1];
    p.stride[0] = p.dim[1] * s->stride[0];
    p.stride[1] = s->stride[0];
    p.stride[2] = s->stride[1];
    VEC_PUSH(pieces, p);
    return OK;
}

static Status add_down(Scan *scan, const Item *item)
{
    PieceVec pieces = {0};
    int64_t experts = max_i64(1, scan->shape.n_experts),
            rows = item->part[0].shape.dim[0] / experts;
    Status status = OK;
    for (int f = 0; f < scan->n && status == OK; f++)
        status = push_experts(scan, item, f, f * rows, 0, &pieces);
    int64_t dims[3] = {experts, rows * scan->n, item->part[0].shape.dim[1]};
    if (status == OK)
        status = weights_add(scan->weights, item->ours, shape_make(3, dims, NULL), &pieces);
    VEC_FREE(&pieces);
    return status;
}

/* Gate and up beside each other, each put together from all files. */
static Status add_gate_and_up(Scan *scan, const Item *gate, const Item *up)
{
    PieceVec pieces = {0};
    const Shape *s = &gate->part[0].shape;
    int64_t experts = max_i64(1, scan->shape.n_experts), columns = s->dim[1];
    Status status = shape_equal(s, &up->part[0].shape)
                        ? OK
                        : fail_shape(scan, up, "gate and up are of one shape");
    for (int f = 0; f < scan->n && status == OK; f++) {
        status = push_experts(scan, gate, f, 0, f * columns, &pieces);
        if (status == OK) status = push_experts(scan, up, f, 0, (f + scan->n) * columns, &pieces);
    }
    int64_t dims[3] = {experts, s->dim[0] / experts, 2 * columns * scan->n};
    if (status == OK)
        status = weights_add(scan->weights, gate->ours, shape_make(3, dims, NULL), &pieces);
    VEC_FREE(&pieces);
    return status;
}

static const Item *find_twin(const Scan *scan, const Item *item, MetaRule rule)
{
    for (size_t i = 0; i < scan->items.n;
         i++) /* names of a layer are near each other, and layers are few */
        if (scan->items.at[i].rule == rule && !strcmp(scan->items.at[i].ours, item->ours))
            return &scan->items.at[i];
    return NULL;
}

/* ---- all of them ------------------------------------------------------------------------ */

/* Llama 2 cut the embedding along its columns. */
static bool is_cut_by_columns(const Scan *scan, const Item *item)
{
    int64_t columns = item->part[0].shape.dim[1], embed = scan->shape.embed;
    return !strcmp(item->name, "tok_embeddings.weight") && columns != embed &&
           columns * scan->n == embed;
}

static Status add_item(Scan *scan, const Item *item)
{
    TRY(need_rank(scan, item, item->rule == META_SAME ? 1 : 2));
    const Item *twin = NULL;
    switch (item->rule) {
    case META_SAME: return add_same(scan, item);
    case META_ROWS:
        if (is_cut_by_columns(scan, item)) return add_columns(scan, item);
        return add_rows(scan, item, item->ours, 0, item->part[0].shape.dim[0]);
    case META_COLUMNS: return add_columns(scan, item);
    case META_QUERY: return add_heads(scan, item, scan->shape.n_heads);
    case META_KEY: return add_heads(scan, item, scan->shape.n_kv_heads);
    case META_QKV: return add_qkv(scan, item);
    case META_GATE_UP: return add_gate_up(scan, item);
    case META_ROUTER: return add_router(scan, item);
    case META_EXPERT_DOWN: return add_down(scan, item);
    case META_EXPERT_GATE:
        twin = find_twin(scan, item, META_EXPERT_UP);
        if (!twin)
            return fail(ERR_FORMAT, "%s has no tensor for the other half of %s",
                        item->part[0].map->path, item->name);
        TRY(need_rank(scan, twin, 2));
        return add_gate_and_up(scan, item, twin);
    case META_EXPERT_UP:
        if (find_twin(scan, item, META_EXPERT_GATE)) return OK; /* comes with it */
        return fail(ERR_FORMAT, "%s has no tensor for the other half of %s",
                    item->part[0].map->path, item->name);
    case META_IGNORED:
    case META_UNKNOWN: break;
    }
    CHECK(!"a rule without pieces");
    return OK;
}

/* ---- what params.json does not say ------------------------------------------------------ */

static bool same_rows(const Weight *a, const Weight *b, bool *equal)
{
    size_t bytes = (size_t)a->shape.dim[1] * dtype_bytes(a->dtype);
    char *x = xmalloc(2 * bytes), *y = x + bytes;
    bool read = true, something = false;
    *equal = true;
    for (int64_t k = 0; k < SAMPLED_ROWS && read && *equal; k++) {
        int64_t row = a->shape.dim[0] * k / SAMPLED_ROWS, n = a->shape.dim[1];
        read = weights_read_range(a, row * n, n, a->dtype, x) == OK &&
               weights_read_range(b, row * n, n, a->dtype, y) == OK;
        if (!read) break;
        *equal = memcmp(x, y, bytes) == 0;
        for (size_t i = 0; i < bytes && !something; i++) something = x[i] != 0;
    }
    *equal = *equal && something;
    free(x);
    return read;
}

/* Small models tie the head to the embedding; their files may hold it all the same. Rows from all
 * over the matrix that are equal bit by bit cannot be chance, unless they are all zero. */
static Status is_tied(const Scan *scan, bool *tied)
{
    const Weight *embed = NULL, *head = NULL;
    for (int i = 0; i < scan->weights->n; i++) {
        const Weight *w = &scan->weights->weight[i];
        if (!strcmp(w->name, "model.embed_tokens.weight")) embed = w;
        if (!strcmp(w->name, "lm_head.weight")) head = w;
    }
    if (!embed)
        return fail(ERR_FORMAT, "%s has no tensor tok_embeddings.weight", scan->weights->path);
    *tied = !head;
    if (!head || !shape_equal(&embed->shape, &head->shape) || embed->dtype != head->dtype ||
        head->dtype == DTYPE_COUNT)
        return OK;
    if (embed->piece[0].from->map == head->piece[0].from->map &&
        embed->piece[0].from->offset == head->piece[0].from->offset) {
        *tied = true; /* one storage under two names */
        return OK;
    }
    return same_rows(embed, head, tied) ? OK : ERR_IO;
}

static Status list_all(Scan *scan, const json_t *params)
{
    bool tied = false;
    TRY(params_shape(params, scan->params, &scan->shape));
    TRY(collect(scan));
    for (size_t i = 0; i < scan->items.n; i++) TRY(add_item(scan, &scan->items.at[i]));
    TRY(is_tied(scan, &tied));
    for (int i = 0; i < scan->weights->n; i++)
        if (!strcmp(scan->weights->weight[i].name, "model.embed_tokens.weight"))
            return params_config(params, scan->params, scan->weights->weight[i].shape.dim[0], tied,
                                 &scan->weights->config);
    return OK; /* is_tied has found it */
}

Status meta_list(Weights *weights)
{
    json_t *params;
    Scan scan = {.weights = weights,
                 .params = path_join(&weights->arena, weights->path, "params.json")};
    TRY(read_params(weights, scan.params, &params));
    Status status = open_files(weights);
    scan.n = weights->n_pth;
    if (status == OK) status = list_all(&scan, params);
    json_decref(params);
    VEC_FREE(&scan.items);
    return status;
}
