/* attention forward, over the sequence itself, a part of its keys or caches: o = softmax(scale q
 * k^T + mask) v.
 *
 * The rows of a piece of work are all query heads of one kv head for a range of tokens: row r is
 * head r % group of token r / group, so that the heads share the packed keys and values. Keys go by
 * in blocks; each row keeps its maximum, sum and output so far (online softmax, Milakov and
 * Gimelshein 2018). Scores of one tile of rows against one block of keys is all that ever exists of
 * the score matrix. With the keys in parts a row begins where the part before left it: output o and
 * log-sum-exp l are the state of maximum l and sum 1.
 */
#include "ops/attention/attention_internal.h"
#include "ops/attention/tile.h"
#include "ops/share.h"

typedef struct Job {
    Rows q, k, v, o; /* tokens */
    Rows before;     /* o after the parts of the keys before this one, f32; data NULL: this is the
                      first */
    Mask mask;
    float *lse;                                             /* [B H T] or NULL */
    const float *lse_before;                                /* with before */
    int64_t batch, tokens, keys, heads, kv_heads, group, d; /* keys: of a sequence */
    int64_t piece, n_pieces; /* tokens in one piece of work, pieces in a sequence */
    int64_t block;           /* keys in a block */
    const int32_t *table;    /* [batch table_pages] pages of 2^shift keys; NULL: no cache */
    int64_t table_pages, pool_pages;
    int shift;
    int64_t state_rows; /* rows whose outputs are kept at a time */
    float scale, softcap;
    int pairs;
} Job;

/* What one thread works in; all parts a multiple of 64 bytes. */
typedef struct Space {
    float *keys;      /* panels */
    float *values;    /* stacked */
    float *q;         /* words of a tile */
    float *s;         /* [TILE_ROWS][lds] scores, then probabilities as words */
    float *o;         /* [state_rows][lanes] */
    float *max, *sum; /* [state_rows] */
    int64_t words, lda, lanes, lds;
} Space;

/* Lays the parts out from `base` on (NULL to measure); returns the bytes. */
static size_t space_layout(const Job *job, char *base, Space *space)
{
    int64_t d = job->d, words = job->pairs ? (d + 1) / 2 : d;
    *space = (Space){
        .words = words, .lda = vectors_up(words), .lanes = vectors_up(d), .lds = job->block + 16};
    int64_t rows = min_i64(TILE_ROWS, job->piece * job->group + 1);
    Part parts[] = {
        {&space->keys, (job->block + PANEL - 1) / PANEL * PANEL * words},
        {&space->values, (job->pairs ? job->block / 2 : job->block) * space->lanes},
        {&space->q, rows * space->lda},
        {&space->s, rows * space->lds},
        {&space->o, (job->state_rows + 1) * space->lanes},
        {&space->max, job->state_rows},
        {&space->sum, job->state_rows},
    };
    return parts_layout(parts, COUNT_OF(parts), base);
}

/* Pieces as large as leaves several for each thread. Blocks of keys end at multiples of their size,
 * whatever the piece and the pages, so that neither these nor the number of threads change a bit.
 */
static void job_cut(Job *job, int64_t max_keys, int threads)
{
    int64_t most = job->mask.cache_rows ? 256 : 512;
    bool one_block = !job->mask.cache_rows && max_keys <= most;
    job->group = job->heads / job->kv_heads;
    job->block = min_i64(most, (int64_t)round_up((size_t)max_keys, 16));
    job->piece = min_i64(job->tokens, one_block ? 512 : 256);
    while (job->piece > 64 &&
           job->batch * job->kv_heads * (job->tokens + job->piece - 1) / job->piece < 8 * threads)
        job->piece = (job->piece + 1) / 2;
    job->n_pieces = (job->tokens + job->piece - 1) / job->piece;
    int64_t rows = job->piece * job->group;
    job->state_rows = one_block ? min_i64(rows, TILE_ROWS) : rows;
}

/* ---- softmax of one row ----------------------------------------------------------------- */

/* What scores are multiplied with where they stay as the product gave them; where they are capped
 * or have slopes that is done by then. */
SIMD float score_unit(const Job *job)
{
    return job->softcap > 0 || job->mask.alibi > 0 ? 1 : job->scale;
}

/* scores [first, end) of row r to scale * score + slope * (key's row - query's row) */
SIMD void slope_row(const Job *job, const Tile *tile, int64_t r, float *s)
{
    Vf scale = vf_set(job->scale);
    for (int64_t i = tile->first[r] / VL * VL; i < tile->end[r]; i += VL)
        vf_store(s + i, vf_fma(vf_load(s + i), scale, tile_alibi(tile, r, i)));
}

/* scores [first, end) to softcap * tanh(scale * score / softcap) */
SIMD void cap_row(float *s, int64_t first, int64_t end, float scale, float cap)
{
    Vf twice = vf_set(2 * scale / cap);
    for (int64_t i = first / VL * VL; i < end; i += VL)
        vf_store(s + i, cap_tanh(vf_load(s + i) * twice, cap));
}

SIMD float row_max(const float *s, int64_t first, int64_t end)
{
    Vf low = vf_set(-INFINITY), m[2] = {low, low};
    int n = 0;
    for (int64_t i = first / VL * VL; i < end; i += VL, n ^= 1)
        m[n] = vf_max(m[n], keep_inside(vf_load(s + i), i, first, end, low));
    return max_lanes(vf_max(m[0], m[1]));
}

/* In place: words of p = 2^(unit * s - shift) over vectors from..to, zero outside [first, end); the
 * sum of p. Words lie at or before the score they are made of. */
SIMD float row_exp(float *s, KeyRange row, KeyRange store, float unit, float shift, int pairs)
{
    Vf u = vf_set(unit), minus = vf_set(-shift), zero = vf_zero(), sum = zero;
    uint16_t *half = (uint16_t *)(void *)s;
    for (int64_t i = store.first; i < store.end; i += VL) {
        Vf p = zero;
        if (i < row.end && i + VL > row.first) {
            p = exp2_low(vf_fma(vf_load(s + i), u, minus));
            p = keep_inside(p, i, row.first, row.end, zero);
            sum += p;
        }
        if (pairs)
            vf_store_bf16(half + i, p);
        else
            vf_store(s + i, p);
    }
    return sum_lanes(sum);
}

/* Row r of the tile: its scores become probabilities, its state moves on to the new maximum. */
SIMD void softmax_row(const Job *job, const Tile *tile, const Space *w, int64_t r, int64_t state)
{
    int64_t g = r / MR;
    float *s = w->s + r * w->lds, unit = score_unit(job);
    KeyRange row = {tile->first[r], tile->end[r]};
    KeyRange store = {tile->group_first[g] / VL * VL, vectors_up(tile->group_end[g])};
    if (row.first >= row.end) {
        row_exp(s, row, store, 0, 0, job->pairs);
        return;
    }
    if (job->softcap > 0) cap_row(s, row.first, row.end, job->scale, job->softcap);
    if (job->mask.alibi > 0) slope_row(job, tile, r, s);
    float old = w->max[state], top = row_max(s, row.first, row.end);
    if (top < old) top = old;
    unit *= log2_e;
    float sum = row_exp(s, row, store, unit, top * unit, job->pairs);
    if (top > old && w->sum[state] > 0) {
        float fade = exp2f((old - top) * unit);
        float *o = w->o + state * w->lanes;
        for (int64_t i = 0; i < w->lanes; i += VL) vf_store(o + i, vf_load(o + i) * vf_set(fade));
        w->sum[state] *= fade;
    }
    w->max[state] = top;
    w->sum[state] += sum;
}

/* ---- one piece of work ------------------------------------------------------------------ */

/* All rows of the tile; q: the queries, o: the outputs, both from the first row of the piece on,
 * where the tile starts at row `row` of n. */
typedef struct Ahead {
    Source q, o;
    int64_t row, n;
} Ahead;

PHASE void softmax(const Job *job, const Tile *tile, const Space *w, int64_t state,
                   const Ahead *ahead)
{
    for (int64_t r = 0; r < tile->rows; r++) {
        prefetch_row(&ahead->q, ahead->row + tile->rows + r, ahead->n, 0);
        prefetch_row(&ahead->o, ahead->row + r, ahead->n, 1);
        softmax_row(job, tile, w, r, state + r);
    }
}

SIMD void tile_forward(const Job *job, const Piece *piece, const Space *w, const Tile *tile,
                       int64_t row, int64_t keys)
{
    int64_t token = piece->b * job->tokens + piece->first, head = piece->h * job->group;
    int64_t state = job->state_rows > TILE_ROWS ? row : 0;
    Source q = source_make(&job->q, token, head, job->group, job->d);
    Ahead ahead = {q, source_make(&job->o, token, head, job->group, job->d), row,
                   piece->n * job->group};
    pack_words(&q, row, tile->rows, w->q, w->lda, job->pairs);
    if (tile->rows % 2) memset(w->q + tile->rows * w->lda, 0, (size_t)w->lda * sizeof(float));
    RowsTimesKeys scores = {.c = w->s,
                            .a = w->q,
                            .b = w->keys,
                            .ldc = w->lds,
                            .lda = w->lda,
                            .words = w->words,
                            .keys = keys};
    rows_times_keys(tile, &scores, job->pairs);
    softmax(job, tile, w, state, &ahead);
    KeysTimesValues out = {.c = w->o + state * w->lanes,
                           .a = w->s,
                           .b = w->values,
                           .ldc = w->lanes,
                           .lda = w->lds,
                           .lanes = w->lanes,
                           .keys = keys};
    keys_times_values(tile, &out, job->pairs);
}

SIMD int64_t row_token(const Job *job, const Piece *piece, int64_t row)
{
    return piece->first + row / job->group;
}
SIMD int64_t row_head(const Job *job, const Piece *piece, int64_t row)
{
    return piece->h * job->group + row % job->group;
}
SIMD int64_t row_lse(const Job *job, const Piece *piece, int64_t row)
{
    return (piece->b * job->heads + row_head(job, piece, row)) * job->tokens +
           row_token(job, piece, row);
}

/* The states 0..n-1 of rows row..row+n-1: nothing is seen yet, or what the parts before have come
 * to. */
static void state_begin(const Job *job, const Piece *piece, const Space *w, int64_t row, int64_t n)
{
    float unit = score_unit(job);
    memset(w->o, 0, (size_t)((n + 1) * w->lanes) * sizeof(float));
    for (int64_t r = 0; r < n; r++) {
        float lse = job->before.data ? job->lse_before[row_lse(job, piece, row + r)] : -INFINITY;
        w->max[r] = lse / unit;
        w->sum[r] = lse == -INFINITY ? 0.0f : 1.0f;
        if (lse == -INFINITY) continue;
        const char *o = (const char *)(row_f32(&job->before, piece->b * job->tokens +
                                                                 row_token(job, piece, row + r)) +
                                       row_head(job, piece, row + r) * job->d);
        for (int64_t j = 0; j < job->d; j += VL)
            vf_store(w->o + r * w->lanes + j, load_words(o, j, job->d, 0, 0));
    }
}

/* o and lse of rows row..row+n-1, from the states 0..n-1 */
static void state_store(const Job *job, const Piece *piece, const Space *w, int64_t row, int64_t n)
{
    int bf16 = job->o.dtype == DTYPE_BF16;
    float unit = score_unit(job);
    for (int64_t r = 0; r < n; r++) {
        int64_t t = row_token(job, piece, row + r), head = row_head(job, piece, row + r);
        char *o = job->o.data +
                  ((piece->b * job->tokens + t) * job->o.pitch + head * job->d) * (bf16 ? 2 : 4);
        float share = w->sum[r] > 0 ? 1 / w->sum[r] : 0;
        store_row(w->o + r * w->lanes, o, job->d, share, bf16);
        if (job->lse)
            job->lse[row_lse(job, piece, row + r)] = w->sum[r] > 0
                                                         ? w->max[r] * unit + logf(w->sum[r])
                                                         : -INFINITY;
    }
}

/* Values of rows 0..n-1 become zeros: nobody sees them, but their probabilities of zero times what
 * may lie in a page that nobody wrote to would be no zero. */
static void clear_values(const Job *job, const Space *w, int64_t n)
{
    int64_t whole = job->pairs ? n / 2 : n;
    memset(w->values, 0, (size_t)(whole * w->lanes) * sizeof(float));
    if (!job->pairs || n % 2 == 0) return;
    uint32_t *half = (uint32_t *)(void *)(w->values + whole * w->lanes);
    for (int64_t i = 0; i < w->lanes; i++) half[i] &= 0xffff0000u;
}

/* Keys and values first..first+n-1, for all tiles. */
static void pack_block(const Job *job, const Piece *piece, const Space *w, int64_t first, int64_t n)
{
    int64_t token = job->table ? 0 : piece->b * job->keys;
    Source keys = source_make(&job->k, token, piece->h, 1, job->d);
    Source values = source_make(&job->v, token, piece->h, 1, job->d);
    if (job->table) {
        keys.table = values.table = job->table + piece->b * job->table_pages;
        keys.shift = values.shift = job->shift;
    }
    pack_panels(&keys, first, n, w->keys, job->pairs);
    pack_stacked(&values, first, n, w->values, w->lanes, job->pairs);
}

/* One block of keys at most: no state outlives its tile. */
static void piece_of_one_block(const Job *job, const Piece *piece, const Space *w, KeyRange all)
{
    int64_t rows = piece->n * job->group;
    if (all.first < all.end) pack_block(job, piece, w, all.first, all.end - all.first);
    for (int64_t row = 0; row < rows; row += TILE_ROWS) {
        Tile tile;
        int64_t n = min_i64(TILE_ROWS, rows - row);
        state_begin(job, piece, w, row, n);
        if (all.first < all.end && tile_make(&job->mask, piece, job->group, row, all, &tile))
            tile_forward(job, piece, w, &tile, row, all.end - all.first);
        state_store(job, piece, w, row, n);
    }
}

static void piece_forward(const Job *job, const Piece *piece, const Space *w)
{
    int64_t rows = piece->n * job->group;
    KeyRange seen = piece_range(&job->mask, piece), all = seen;
    all.first = all.first / KEY_STEP * KEY_STEP;
    if (job->state_rows < rows) {
        piece_of_one_block(job, piece, w, all);
        return;
    }
    state_begin(job, piece, w, 0, rows);
    for (int64_t k = all.first, end; k < all.end; k = end) {
        end = min_i64((k / job->block + 1) * job->block, all.end);
        KeyRange block = {k, end};
        Tile tile;
        pack_block(job, piece, w, k, end - k);
        if (job->table && k < seen.first) clear_values(job, w, seen.first - k);
        for (int64_t row = 0; row < rows; row += TILE_ROWS)
            if (tile_make(&job->mask, piece, job->group, row, block, &tile))
                tile_forward(job, piece, w, &tile, row, end - k);
    }
    state_store(job, piece, w, 0, rows);
}

/* ---- the kernels ------------------------------------------------------------------------ */

static void job_run(const Job *job, KernelArgs *args)
{
    Space measure;
    size_t bytes = space_layout(job, NULL, &measure);
    int64_t per_sequence = job->kv_heads * job->n_pieces, n = job->batch * per_sequence;
    int threads = n < 2 ? 1 : args->threads;
    CHECK(bytes * (size_t)args->threads <= args->workspace_bytes);
    Shares shares;
    shares_deal(&shares, threads, n);
#pragma omp parallel num_threads(threads)
    {
        Space space;
        space_layout(job, (char *)args->workspace + bytes * (size_t)thread_index(), &space);
        for (int64_t i; (i = shares_take(&shares)) >= 0;) {
            /* later tokens see more keys: the longest pieces first */
            int64_t p = job->n_pieces - 1 - i % job->n_pieces, bh = i / job->n_pieces;
            Piece piece = {
                .b = bh / job->kv_heads, .h = bh % job->kv_heads, .first = p * job->piece};
            piece.n = min_i64(job->piece, job->tokens - piece.first);
            piece_forward(job, &piece, &space);
        }
    }
}

/* Shapes: q [B n H d], k and v [B S K d]; or with a table [B W] pools [P S K d]. */
static Job job_make(const Shape *q, const Shape *k, const Shape *table, const AttentionAttr *attr,
                    int pairs, int threads)
{
    int64_t keys = table ? table->dim[1] * k->dim[1] : k->dim[1];
    Job job = {.batch = q->dim[0],
               .tokens = q->dim[1],
               .keys = keys,
               .heads = q->dim[2],
               .d = q->dim[3],
               .kv_heads = k->dim[2],
               .scale = attr->scale,
               .softcap = attr->softcap,
               .pairs = pairs};
    job.mask = (Mask){.tokens = q->dim[1],
                      .chunk = attr->chunk,
                      .cache_rows = table ? keys : 0,
                      .slice = attr->slice,
                      .n_keys = keys,
                      .alibi = attr->alibi,
                      .alibi_heads = attr->alibi_heads ? attr->alibi_heads : q->dim[2],
                      .alibi_first = attr->alibi_first};
    job_cut(&job, keys, threads);
    return job;
}

static size_t job_workspace(const Graph *graph, const Node *node, const Target *target, bool cached)
{
    const Value *q = graph_value(graph, node->in[0]), *k = graph_value(graph, node->in[1]);
    const Value *v = graph_value(graph, node->in[2]);
    const Shape *table = cached ? &graph_value(graph, node->in[ATTENTION_TABLE])->shape : NULL;
    Job job = job_make(&q->shape, &k->shape, table, node->attr,
                       pairs_of(q->dtype, k->dtype, v->dtype), target->threads);
    Space space;
    return space_layout(&job, NULL, &space) * (size_t)target->threads;
}

static Job job_of(const KernelArgs *args, bool cached)
{
    const Tensor *in = args->in;
    const Tensor *table = cached ? &in[ATTENTION_TABLE] : NULL;
    Job job = job_make(&in[0].shape, &in[1].shape, table ? &table->shape : NULL, args->attr,
                       pairs_of(in[0].dtype, in[1].dtype, in[2].dtype), args->threads);
    if (table) {
        job.table = table->data;
        job.table_pages = table->shape.dim[1];
        job.pool_pages = in[ATTENTION_K].shape.dim[0];
        job.shift = attention_page_shift(&in[ATTENTION_K].shape);
    }
    job.q = tensor_as_rows(&in[0], 2);
    job.k = tensor_as_rows(&in[1], 2);
    job.v = tensor_as_rows(&in[2], 2);
    job.mask.pos = in[3].data;
    job.o = tensor_as_rows(&args->out[0], 2);
    job.lse = cached ? NULL : args->out[1].data;
    return job;
}

static Status run_part(KernelArgs *args)
{
    Job job = job_of(args, false);
    job.mask.keys = ((const AttentionPart *)args->attr)->keys;
    if (args->in[ATTENTION_O].data) job.before = tensor_as_rows(&args->in[ATTENTION_O], 2);
    job.lse_before = args->in[ATTENTION_LSE].data;
    job_run(&job, args);
    return OK;
}

/* What is read of a table is checked: a wrong entry would be read from anywhere. */
static void check_table(const Job *job)
{
    Piece all = {.n = job->tokens};
    for (; all.b < job->batch; all.b++) {
        KeyRange keys = piece_range(&job->mask, &all);
        const int32_t *page = job->table + all.b * job->table_pages;
        if (keys.first >= keys.end) continue;
        for (int64_t i = keys.first >> job->shift; i <= (keys.end - 1) >> job->shift; i++)
            CHECK(page[i] >= 0 && page[i] < job->pool_pages);
    }
}

static Status run(KernelArgs *args)
{
    Job job = job_of(args, false);
    job_run(&job, args);
    return OK;
}

static Status run_cached(KernelArgs *args)
{
    Job job = job_of(args, true);
    check_table(&job);
    job_run(&job, args);
    return OK;
}

static size_t workspace(const Graph *graph, const Node *node, const Target *target)
{
    return job_workspace(graph, node, target, false);
}
static size_t workspace_cached(const Graph *graph, const Node *node, const Target *target)
{
    return job_workspace(graph, node, target, true);
}

const Kernel CPU(attention) = {.run = run, .workspace = workspace};
const Kernel CPU(attention_part) = {.run = run_part, .workspace = workspace};
const Kernel CPU(attention_cached) = {.run = run_cached, .workspace = workspace_cached};
