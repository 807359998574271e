/* The tensors of a Hugging Face directory as weights: prefixes taken off, scales put to their
 * tensors, experts that are stored one by one joined. Joined experts are [out, in] in the file and
 * [in, out] in the weight: their strides are swapped, so that the read transposes. */
#include <stdlib.h>
#include <string.h>

#include "weights/weights_internal.h"

static const char text_prefix[] = "language_model.";

typedef struct Item {
    NameParts parts;
    const char *own; /* the name without prefix */
    const Stored *stored;
    bool used; /* a scale that found its tensor */
} Item;

typedef VEC(Item) ItemVec;

typedef struct Scan {
    Weights *weights;
    ItemVec tensors; /* by base, part, expert */
    ItemVec scales;  /* by base */
    int64_t block[2];
    bool quantised; /* by config.json: fp8 numbers without a scale mean nothing then */
} Scan;

/* ---- what is there ---------------------------------------------------------------------- */

static const Stored *make_stored(Arena *arena, const SafetensorsEntry *entry)
{
    Stored *stored = ARENA_NEW(arena, Stored);
    *stored = (Stored){.name = entry->name,
                       .map = safetensors_map(entry->file),
                       .mapped = true,
                       .dtype = entry->dtype,
                       .type_name = entry->type_name,
                       .shape = entry->shape,
                       .offset = entry->offset,
                       .bytes = entry->bytes};
    stride_contiguous(&stored->shape, stored->stride);
    return stored;
}

static const char *find_prefix(const ModelDir *dir)
{
    for (int i = 0; i < modeldir_count(dir); i++)
        if (!strncmp(modeldir_at(dir, i)->name, text_prefix, strlen(text_prefix)))
            return text_prefix;
    return "";
}

static int by_base(const void *a, const void *b)
{
    const Item *x = a, *y = b;
    int order = strcmp(x->parts.base, y->parts.base);
    if (order) return order;
    if (x->parts.kind != y->parts.kind) return x->parts.kind < y->parts.kind ? -1 : 1;
    if (x->parts.part != y->parts.part) return x->parts.part < y->parts.part ? -1 : 1;
    return (x->parts.expert > y->parts.expert) - (x->parts.expert < y->parts.expert);
}

static int by_own_name(const void *a, const void *b)
{
    return strcmp(((const Item *)a)->own, ((const Item *)b)->own);
}

/* A name that ends like a scale's is a tensor like any other when there is nothing it could scale.
 */
static void demote_scales(Scan *scan, ItemVec *all)
{
    Item *at = all->n ? all->at : NULL;
    for (size_t i = 0; i < all->n; i++) {
        Item key = {.own = at[i].parts.base};
        bool scales = at[i].parts.kind == NAME_SCALE &&
                      bsearch(&key, at, all->n, sizeof *at, by_own_name);
        if (at[i].parts.kind == NAME_SCALE && !scales)
            at[i].parts = (NameParts){.kind = NAME_PLAIN, .base = at[i].own};
    }
    for (size_t i = 0; i < all->n; i++) {
        if (at[i].parts.kind == NAME_SCALE)
            VEC_PUSH(&scan->scales, at[i]);
        else
            VEC_PUSH(&scan->tensors, at[i]);
    }
}

/* GPT-2 was published as the model without its head, which is tied: all names lack this. */
static const char *find_missing(const ModelDir *dir)
{
    return modeldir_find(dir, "wte.weight") ? "transformer." : "";
}

static void push_tensor(Weights *w, const SafetensorsEntry *entry, ItemVec *all)
{
    bool lacks = *w->missing && strncmp(entry->name, "lm_head.", strlen("lm_head.")) != 0;
    const char *name = lacks ? arena_printf(&w->arena, "%s%s", w->missing, entry->name)
                             : entry->name;
    NameParts parts = hf_name_parts(&w->arena, name, w->prefix);
    const char *own = name + (!strncmp(name, w->prefix, strlen(w->prefix)) ? strlen(w->prefix) : 0);
    if (parts.kind == NAME_IGNORED)
        w->n_ignored++;
    else
        VEC_PUSH(all,
                 ((Item){.parts = parts, .own = own, .stored = make_stored(&w->arena, entry)}));
}

/* A checkpoint of ours keeps the biases of experts beside the moments: they are no part of the
 * published model. Each stands beside its router, whatever the family calls that. */
static void push_bias(Weights *w, const char *name, ItemVec *all)
{
    static const char end[] = ".weight";
    size_t n = strlen(name), m = strlen(end);
    if (n < m || strcmp(name + n - m, end) != 0) return;
    if (!strncmp(name, w->prefix, strlen(w->prefix))) name += strlen(w->prefix);
    const char *bias = arena_printf(&w->arena, "%.*sexpert_bias",
                                    (int)(strlen(name) - strlen("weight")), name);
    const SafetensorsEntry *entry = ckpt_optimizer_find(w->ckpt, bias);
    if (entry) push_tensor(w, entry, all);
}

static void collect(Scan *scan, const ModelDir *dir)
{
    ItemVec all = {0};
    Weights *w = scan->weights;
    w->prefix = find_prefix(dir);
    w->missing = find_missing(dir);
    for (int i = 0; i < modeldir_count(dir); i++) {
        push_tensor(w, modeldir_at(dir, i), &all);
        push_bias(w, modeldir_at(dir, i)->name, &all);
    }
    if (all.n) qsort(all.at, all.n, sizeof *all.at, by_own_name);
    demote_scales(scan, &all);
    if (scan->tensors.n)
        qsort(scan->tensors.at, scan->tensors.n, sizeof *scan->tensors.at, by_base);
    if (scan->scales.n) qsort(scan->scales.at, scan->scales.n, sizeof *scan->scales.at, by_base);
    VEC_FREE(&all);
}

/* ---- scales ----------------------------------------------------------------------------- */

static Item *find_scale(Scan *scan, const char *name)
{
    size_t low = 0, high = scan->scales.n;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(name, scan->scales.at[middle].parts.base);
        if (order == 0) return &scan->scales.at[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

static Status put_scale(Scan *scan, const Item *item, WeightPiece *piece)
{
    Item *found = find_scale(scan, item->own);
    DType dtype = item->stored->dtype;
    bool small = dtype == DTYPE_F8_E4M3 || dtype == DTYPE_F8_E5M2 || dtype == DTYPE_I8 ||
                 dtype == DTYPE_U8;
    if (!found && small && scan->quantised)
        return fail(ERR_FORMAT,
                    "%s: tensor %s is %s by quantization_config, but %s_scale is not there",
                    item->stored->map->path, item->stored->name, item->stored->type_name,
                    item->stored->name);
    if (!found) return OK;
    Scale *scale = ARENA_NEW(&scan->weights->arena, Scale);
    TRY(scale_fit(item->stored, found->stored, scan->block, scale));
    found->used = true;
    piece->scale = scale;
    return OK;
}

static Status check_scales(const Scan *scan)
{
    for (size_t i = 0; i < scan->scales.n; i++)
        if (!scan->scales.at[i].used)
            return fail(ERR_FORMAT, "%s: tensor %s is a second scale of %s",
                        scan->scales.at[i].stored->map->path, scan->scales.at[i].stored->name,
                        scan->scales.at[i].parts.base);
    return OK;
}

static void read_block(const json_t *list, int64_t block[2])
{
    for (size_t d = 0; d < 2 && json_array_size(list) == 2; d++) {
        json_int_t side = json_integer_value(json_array_get(list, d));
        if (side > 0 && side <= 1 << 20) block[d] = side;
    }
}

static void read_quantisation(Scan *scan, const json_t *config)
{
    json_t *q = json_object_get(config, "quantization_config");
    const char *name;
    json_t *group;
    if (!q) q = json_object_get(config, "compression_config");
    if (!json_is_object(q)) return;
    scan->quantised = true;
    read_block(json_object_get(q, "weight_block_size"), scan->block);
    json_object_foreach(json_object_get(q, "config_groups"), name, group)
    {
        read_block(json_object_get(json_object_get(group, "weights"), "block_structure"),
                   scan->block);
    }
}

/* The configuration says the sides of blocks; a directory without one has only safetensors to tell
 * by. */
static Status read_blocks(Scan *scan)
{
    Arena arena = {0};
    json_t *config;
    bool there = file_exists(path_join(&arena, scan->weights->path, "config.json"));
    arena_deinit(&arena);
    scan->block[0] = scan->block[1] = 128;
    if (!there) return OK;
    TRY(weights_config(scan->weights, &config));
    read_quantisation(scan, config);
    read_quantisation(scan, json_object_get(config, "text_config"));
    json_decref(config);
    return OK;
}

/* ---- experts, one by one ---------------------------------------------------------------- */

static WeightPiece expert_piece(const Item *item, int64_t first_column)
{
    const Stored *s = item->stored;
    WeightPiece piece = {.from = s};
    piece.at[0] = item->parts.expert;
    piece.at[2] = first_column;
    piece.dim[0] = 1;
    piece.dim[1] = s->shape.dim[1];
    piece.dim[2] = s->shape.dim[0];
    piece.stride[1] = 1;
    piece.stride[2] = s->shape.dim[1];
    return piece;
}

/* The same, for the axes [out, in] of the stored scale. */
static void turn_scale(Scale *scale)
{
    scale->block[2] = scale->block[0];
    scale->stride[2] = scale->stride[0];
    scale->block[0] = 1;
    scale->stride[0] = 0;
}

static Status add_expert(Scan *scan, const Item *item, int64_t first_column, PieceVec *pieces)
{
    WeightPiece piece = expert_piece(item, first_column);
    TRY(put_scale(scan, item, &piece));
    if (piece.scale) {
        Scale *turned = arena_copy(&scan->weights->arena, piece.scale, sizeof *turned);
        turn_scale(turned);
        piece.scale = turned;
    }
    VEC_PUSH(pieces, piece);
    return OK;
}

/* items[0..n): gate and up of every expert, or down of every expert, in order. */
static Status check_experts(const Item *items, size_t n, size_t halves)
{
    char want[SHAPE_TEXT], have[SHAPE_TEXT];
    size_t experts = n / halves;
    for (size_t i = 0; i < n; i++) {
        const Stored *s = items[i].stored;
        ExpertPart part = halves == 1 ? EXPERT_DOWN : i < experts ? EXPERT_GATE : EXPERT_UP;
        if (n % halves || items[i].parts.expert != (int)(i % experts) ||
            items[i].parts.part != part)
            return fail(ERR_FORMAT, "%s: the experts of %s are not complete: look at %s",
                        s->map->path, items[i].parts.base, s->name);
        if (s->shape.rank != 2 || shape_count(&s->shape) == 0 ||
            !shape_equal(&s->shape, &items[0].stored->shape))
            return fail(ERR_SHAPE, "%s: tensor %s is [%s], no matrix as %s of [%s]", s->map->path,
                        s->name, shape_text(&s->shape, have), items[0].stored->name,
                        shape_text(&items[0].stored->shape, want));
    }
    return OK;
}

static Status join_experts(Scan *scan, const Item *items, size_t n)
{
    size_t halves = items[0].parts.part == EXPERT_DOWN ? 1 : 2;
    PieceVec pieces = {0};
    TRY(check_experts(items, n, halves));
    int64_t in = items[0].stored->shape.dim[1], out = items[0].stored->shape.dim[0];
    Status status = OK;
    for (size_t i = 0; i < n && status == OK; i++)
        status = add_expert(scan, &items[i], items[i].parts.part == EXPERT_UP ? out : 0, &pieces);
    int64_t dims[3] = {(int64_t)(n / halves), in, (int64_t)halves * out};
    if (status == OK)
        status = weights_add(scan->weights, items[0].parts.base, shape_make(3, dims, NULL),
                             &pieces);
    VEC_FREE(&pieces);
    return status;
}

/* ---- all of them ------------------------------------------------------------------------ */

static Status add_plain(Scan *scan, const Item *item)
{
    PieceVec pieces = {0};
    WeightPiece piece = piece_whole(item->stored);
    TRY(put_scale(scan, item, &piece));
    VEC_PUSH(&pieces, piece);
    Status status = weights_add(scan->weights, item->own, item->stored->shape, &pieces);
    VEC_FREE(&pieces);
    return status;
}

static Status add_all(Scan *scan)
{
    size_t end;
    for (size_t i = 0; i < scan->tensors.n; i = end) {
        const Item *item = &scan->tensors.at[i];
        for (end = i + 1; end < scan->tensors.n && item->parts.kind == NAME_EXPERT; end++)
            if (scan->tensors.at[end].parts.kind != NAME_EXPERT ||
                strcmp(scan->tensors.at[end].parts.base, item->parts.base) != 0)
                break;
        if (item->parts.kind == NAME_EXPERT)
            TRY(join_experts(scan, item, end - i));
        else
            TRY(add_plain(scan, item));
    }
    return check_scales(scan);
}

Status hf_list(Weights *weights)
{
    Scan scan = {.weights = weights};
    weights->form = "safetensors";
    Status status = read_blocks(&scan);
    if (status == OK) {
        collect(&scan, ckpt_model(weights->ckpt));
        status = add_all(&scan);
    }
    VEC_FREE(&scan.tensors);
    VEC_FREE(&scan.scales);
    return status;
}
