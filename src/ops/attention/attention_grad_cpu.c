/* attention_grad: formulas in attention_grad.c, tiles in tile.h; rows as in attention_cpu.c.
 *
 * One piece of work is a kv head of a sequence: keys block by block, for each block all tiles of
 * rows that see it; dk and dv of the block and dq of all rows are summed in f32. With too few such
 * pieces for the threads there are two passes of smaller pieces: dq by ranges of tokens, dk and dv
 * by blocks of keys. Every sum is the same chain of additions in both cases, so the bits do not
 * depend on the choice. With the keys in parts dq goes on from the parts before this one.
 */
#include "ops/attention/attention_internal.h"
#include "ops/attention/tile.h"
#include "ops/share.h"

typedef struct Job {
    Rows q, k, v, o, dout;
    Rows dq, dk, dv; /* data NULL: nobody wants it */
    Rows dq_before;  /* f32, of the parts of the keys before this one; data NULL: there are none */
    Mask mask;
    const float *lse;                                       /* [B H T] */
    int64_t batch, tokens, keys, heads, kv_heads, group, d; /* keys: of a sequence */
    int64_t block;                                          /* keys in a block */
    int64_t piece;                                          /* tokens in a piece of the dq pass */
    int64_t dq_rows; /* rows of dq that are summed at a time */
    bool two_passes;
    bool in_parts; /* the keys are some of the sequence's */
    float scale, softcap;
    int pairs;
} Job;

typedef struct Space {
    float *k_panels, *v_panels, *k_stacked;     /* of a block */
    float *q, *q_stacked, *dout, *dout_stacked; /* of a tile */
    float *p, *dz;        /* [TILE_ROWS][lds]: scores and do v^T, then p and dz, stacked */
    float *dz_words;      /* [TILE_ROWS][ldz] */
    float *dk, *dv;       /* [block][lanes] */
    float *dq;            /* [dq_rows][lanes] */
    float *shift, *delta; /* [TILE_ROWS]: lse * log2 e; sum of do o */
    int64_t words, lda, lanes, lds, ldz;
} Space;

/* Without pairs, words and stacked are the same thing. */
static size_t space_layout(const Job *job, char *base, Space *w)
{
    int pairs = job->pairs;
    int64_t d = job->d, words = pairs ? (d + 1) / 2 : d, block = job->block;
    int64_t panels = (block + PANEL - 1) / PANEL * PANEL * words;
    *w = (Space){
        .words = words, .lda = vectors_up(words), .lanes = vectors_up(d), .lds = block + 16};
    w->ldz = pairs ? block / 2 + 16 : w->lds;
    Part parts[] = {
        {&w->k_panels, panels},
        {&w->v_panels, panels},
        {&w->k_stacked, (pairs ? block / 2 : block) * w->lanes},
        {&w->q, TILE_ROWS * w->lda},
        {&w->dout, TILE_ROWS * w->lda},
        {&w->p, TILE_ROWS * w->lds},
        {&w->dz, TILE_ROWS * w->lds},
        {&w->dk, (block + 2) * w->lanes},
        {&w->dv, (block + 2) * w->lanes},
        {&w->dq, (job->dq_rows + 1) * w->lanes},
        {&w->shift, TILE_ROWS},
        {&w->delta, TILE_ROWS},
        {&w->q_stacked, pairs ? TILE_ROWS / 2 * w->lanes : 0},
        {&w->dout_stacked, pairs ? TILE_ROWS / 2 * w->lanes : 0},
        {&w->dz_words, pairs ? TILE_ROWS * w->ldz : 0},
    };
    size_t bytes = parts_layout(parts, COUNT_OF(parts), base);
    if (!pairs) {
        w->q_stacked = w->q;
        w->dout_stacked = w->dout;
        w->dz_words = w->dz;
    }
    return bytes;
}

/* One pass keeps the threads busy when the heads divide well enough; two passes cost 7 products
 * for 5. */
static void job_cut(Job *job, int threads)
{
    int64_t pieces = job->batch * job->kv_heads, rounds = (pieces + threads - 1) / threads;
    job->group = job->heads / job->kv_heads;
    job->two_passes = 7 * pieces < 5 * rounds * threads;
    job->block = min_i64(job->two_passes ? 128 : 256, (int64_t)round_up((size_t)job->keys, 16));
    job->piece = job->two_passes ? min_i64(128, job->tokens) : job->tokens;
    int64_t rows = job->piece * job->group;
    /* a tile that is seen by no key of a part has its dq all the same */
    job->dq_rows = job->keys <= job->block && !job->in_parts ? min_i64(rows, TILE_ROWS) : rows;
}

/* ---- one tile against one block --------------------------------------------------------- */

PHASE void pack_tile(const Job *job, const Piece *piece, const Space *w, int64_t row, int64_t n)
{
    int64_t token = piece->b * job->tokens + piece->first, head = piece->h * job->group, d = job->d;
    int pairs = job->pairs;
    Source q = source_make(&job->q, token, head, job->group, d);
    Source dout = source_make(&job->dout, token, head, job->group, d);
    Source o = source_make(&job->o, token, head, job->group, d);
    pack_words(&q, row, n, w->q, w->lda, pairs);
    pack_words(&dout, row, n, w->dout, w->lda, pairs);
    if (pairs) {
        pack_stacked(&q, row, n, w->q_stacked, w->lanes, 1);
        pack_stacked(&dout, row, n, w->dout_stacked, w->lanes, 1);
    }
    if (n % 2) {
        memset(w->q + n * w->lda, 0, (size_t)w->lda * sizeof(float));
        memset(w->dout + n * w->lda, 0, (size_t)w->lda * sizeof(float));
    }
    for (int64_t r = 0; r < n; r++) {
        const char *a = source_row(&o, row + r), *b = source_row(&dout, row + r);
        Vf sum = vf_zero();
        for (int64_t j = 0; j < d; j += VL)
            sum = vf_fma(load_words(a, j, d, o.bf16, 0), load_words(b, j, d, o.bf16, 0), sum);
        int64_t t = piece->first + (row + r) / job->group, h = head + (row + r) % job->group;
        w->delta[r] = sum_lanes(sum);
        w->shift[r] = job->lse[(piece->b * job->heads + h) * job->tokens + t] * log2_e;
    }
}

/* p and dz of VL keys from key i on, for row r; zero where it does not see them. */
SIMD void slopes(const Job *job, const Tile *tile, const Space *w, int64_t r, int64_t i, Vf out[2])
{
    out[0] = out[1] = vf_zero();
    if (i >= tile->end[r] || i + VL <= tile->first[r]) return;
    Vf s = vf_load(w->p + r * w->lds + i), factor = vf_set(job->scale), p;
    if (job->softcap > 0) {
        Vf z = cap_tanh(s * vf_set(2 * job->scale / job->softcap), job->softcap);
        Vf part = z * vf_set(1 / job->softcap);
        factor *= vf_set(1.0f) - part * part;
        p = exp2_low(vf_fma(z, vf_set(log2_e), -spread(&w->shift[r])));
    } else if (job->mask.alibi > 0) {
        Vf z = vf_fma(s, factor, tile_alibi(tile, r, i));
        p = exp2_low(vf_fma(z, vf_set(log2_e), -spread(&w->shift[r])));
    } else {
        p = exp2_low(vf_fma(s, vf_set(job->scale * log2_e), -spread(&w->shift[r])));
    }
    out[0] = keep_inside(p, i, tile->first[r], tile->end[r], vf_zero());
    out[1] = out[0] * (vf_load(w->dz + r * w->lds + i) - spread(&w->delta[r])) * factor;
    out[1] = keep_inside(out[1], i, tile->first[r], tile->end[r], vf_zero());
}

#if defined(__AVX512BF16__)
/* Rows r and r + 1 at keys i..i+VL-1: p and dz stacked in place of row r, dz also as words. */
SIMD void store_pair(const Space *w, int64_t r, int64_t i, const Vf low[2], const Vf high[2])
{
    __m512i order;
    uint16_t at[32];
    for (int l = 0; l < 32; l++) at[l] = (uint16_t)(l / 2 + l % 2 * 16);
    memcpy(&order, at, sizeof order);
    __m512i p = (__m512i)_mm512_cvtne2ps_pbh(high[0], low[0]);
    __m512i dz = (__m512i)_mm512_cvtne2ps_pbh(high[1], low[1]);
    _mm512_storeu_si512(w->p + r * w->lds + i, _mm512_permutexvar_epi16(order, p));
    _mm512_storeu_si512(w->dz + r * w->lds + i, _mm512_permutexvar_epi16(order, dz));
    char *words = (char *)(w->dz_words + r * w->ldz + i / 2);
    _mm256_storeu_si256((__m256i *)(void *)words, _mm512_castsi512_si256(dz));
    words += w->ldz * (int64_t)sizeof(float);
    _mm256_storeu_si256((__m256i *)(void *)words, _mm512_extracti64x4_epi64(dz, 1));
}
#endif

/* Rows r and r + 1 (which may be past the last): scores and do v^T become p and dz, over keys
 * first..end-1 (whole vectors). */
SIMD void pair_slopes(const Job *job, const Tile *tile, const Space *w, int64_t r, KeyRange keys)
{
#if defined(__AVX512BF16__)
    if (job->pairs) {
        for (int64_t i = keys.first; i < keys.end; i += VL) {
            Vf low[2], high[2];
            slopes(job, tile, w, r, i, low);
            slopes(job, tile, w, r + 1, i, high);
            store_pair(w, r, i, low, high);
        }
        return;
    }
#endif
    for (int64_t one = r; one < min_i64(r + 2, tile->rows); one++)
        for (int64_t i = keys.first; i < keys.end; i += VL) {
            Vf x[2];
            slopes(job, tile, w, one, i, x);
            vf_store(w->p + one * w->lds + i, x[0]);
            vf_store(w->dz + one * w->lds + i, x[1]);
        }
}

/* Rows of the operands from the first of the piece on; the tile starts at row `row` of n. */
typedef struct Ahead {
    Source q, dout, o, dq;
    int64_t row, n;
} Ahead;

/* All rows of the tile, while those of the next are asked for. */
PHASE void tile_slopes(const Job *job, const Tile *tile, const Space *w, KeyRange keys,
                       const Ahead *ahead)
{
    for (int64_t r = 0; r < tile->rows; r += 2) {
        for (int64_t i = ahead->row + r; i < ahead->row + r + 2; i++) {
            prefetch_row(&ahead->q, i + TILE_ROWS, ahead->n, 0);
            prefetch_row(&ahead->dout, i + TILE_ROWS, ahead->n, 0);
            prefetch_row(&ahead->o, i + TILE_ROWS, ahead->n, 0);
            if (job->dq.data && job->dq_rows <= TILE_ROWS) prefetch_row(&ahead->dq, i, ahead->n, 1);
        }
        pair_slopes(job, tile, w, r, keys);
    }
}

/* c [keys, d] += a^T b over the rows of the tile; a [rows][lds] stacked in place (with pairs in
 * every other row), b stacked [rows / 2][lanes]. Keys go in groups of MR, each with the groups of
 * rows that see it. */
PHASE void keys_from_rows(const Tile *tile, const Space *w, float *c, const float *a,
                          const float *b, KeyRange keys, int pairs)
{
    int64_t per_word = pairs ? 2 : 1, groups = tile_groups(tile);
    for (int64_t lane = 0; lane < w->lanes; lane += PANEL) {
        int64_t vectors = min_i64(NV, (w->lanes - lane) / VL);
        for (int64_t k = keys.first; k < keys.end; k += MR) {
            int64_t g = 0, last = groups;
            while (g < last && (tile->group_end[g] <= k || tile->group_first[g] >= k + MR)) g++;
            while (last > g &&
                   (tile->group_end[last - 1] <= k || tile->group_first[last - 1] >= k + MR))
                last--;
            if (g == last) continue;
            int64_t first = g * MR, end = min_i64(last * MR, tile->rows);
            Product x = {.c = c + k * w->lanes + lane,
                         .a = a + first * w->lds + k,
                         .b = b + first / per_word * w->lanes + lane,
                         .ldc = w->lanes,
                         .a_row = 1,
                         .a_step = w->lds * per_word,
                         .ldb = w->lanes,
                         .steps = (end - first + per_word - 1) / per_word};
            multiply(&x, min_i64(MR, (keys.end - k + 1) & ~(int64_t)1), vectors, pairs);
        }
    }
}

/* What of the gradients a pass makes. */
typedef enum Want { WANT_DQ = 1, WANT_DKV = 2 } Want;

SIMD void tile_backward(const Job *job, const Piece *piece, const Space *w, const Tile *tile,
                        int64_t row, int64_t n_keys, unsigned want, int pairs)
{
    pack_tile(job, piece, w, row, tile->rows);
    RowsTimesKeys s = {.c = w->p,
                       .a = w->q,
                       .b = w->k_panels,
                       .ldc = w->lds,
                       .lda = w->lda,
                       .words = w->words,
                       .keys = n_keys};
    RowsTimesKeys dp = s;
    dp.c = w->dz;
    dp.a = w->dout;
    dp.b = w->v_panels;
    rows_times_keys(tile, &s, pairs);
    rows_times_keys(tile, &dp, pairs);
    KeyRange keys = {INT64_MAX, 0};
    for (int64_t g = 0; g < tile_groups(tile); g++) {
        if (tile->group_end[g] == 0) continue;
        keys.first = min_i64(keys.first, tile->group_first[g] / VL * VL);
        keys.end = max_i64(keys.end, tile->group_end[g]);
    }
    int64_t token = piece->b * job->tokens + piece->first, head = piece->h * job->group;
    Ahead ahead = {source_make(&job->q, token, head, job->group, job->d),
                   source_make(&job->dout, token, head, job->group, job->d),
                   source_make(&job->o, token, head, job->group, job->d),
                   source_make(job->dq.data ? &job->dq : &job->q, token, head, job->group, job->d),
                   row,
                   piece->n * job->group};
    tile_slopes(job, tile, w, (KeyRange){keys.first, vectors_up(keys.end)}, &ahead);
    if (want & WANT_DQ) {
        float *dq = w->dq + (job->dq_rows > TILE_ROWS ? row : 0) * w->lanes;
        KeysTimesValues x = {.c = dq,
                             .a = w->dz_words,
                             .b = w->k_stacked,
                             .ldc = w->lanes,
                             .lda = w->ldz,
                             .lanes = w->lanes,
                             .keys = n_keys};
        keys_times_values(tile, &x, pairs);
    }
    if (want & WANT_DKV) {
        keys_from_rows(tile, w, w->dv, w->p, w->dout_stacked, keys, pairs);
        keys_from_rows(tile, w, w->dk, w->dz, w->q_stacked, keys, pairs);
    }
}

/* ---- pieces ----------------------------------------------------------------------------- */

static void pack_block(const Job *job, const Piece *piece, const Space *w, KeyRange block)
{
    int64_t n = block.end - block.first;
    Source k = source_make(&job->k, piece->b * job->keys, piece->h, 1, job->d);
    Source v = source_make(&job->v, piece->b * job->keys, piece->h, 1, job->d);
    pack_panels(&k, block.first, n, w->k_panels, job->pairs);
    pack_panels(&v, block.first, n, w->v_panels, job->pairs);
    pack_stacked(&k, block.first, n, w->k_stacked, w->lanes, job->pairs);
}

SIMD void add_row(float *to, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i += VL)
        vf_store(to + i, vf_load(to + i) + load_words((const char *)(x), i, n, 0, 0));
}

/* dq of rows row..row+n-1 of the piece from the sums 0..n-1, which become zero */
static void store_dq(const Job *job, const Piece *piece, const Space *w, int64_t row, int64_t n)
{
    int bf16 = job->dq.dtype == DTYPE_BF16;
    if (job->dq.data) {
        for (int64_t r = 0; r < n; r++) {
            int64_t t = piece->b * job->tokens + piece->first + (row + r) / job->group;
            int64_t head = (piece->h * job->group + (row + r) % job->group) * job->d,
                    at = t * job->dq.pitch + head;
            if (job->dq_before.data)
                add_row(w->dq + r * w->lanes, row_f32(&job->dq_before, t) + head, job->d);
            store_row(w->dq + r * w->lanes, job->dq.data + at * (bf16 ? 2 : 4), job->d, 1, bf16);
        }
    }
    memset(w->dq, 0, (size_t)((n + 1) * w->lanes) * sizeof(float));
}

static void store_keys(const Job *job, const Piece *piece, const Rows *to, const float *from,
                       int64_t lanes, KeyRange block)
{
    int bf16 = to->dtype == DTYPE_BF16;
    if (!to->data) return;
    for (int64_t k = block.first; k < block.end; k++) {
        int64_t at = (piece->b * job->keys + k) * to->pitch + piece->h * job->d;
        store_row(from + (k - block.first) * lanes, to->data + at * (bf16 ? 2 : 4), job->d, 1,
                  bf16);
    }
}

/* A token that stands at or before the key `row`, and none before it does not. */
static int64_t token_before(const AttentionSlice *slice, int64_t row)
{
    if (row - slice->second >= slice->split) return row - slice->second;
    return max_i64(0, min_i64(row - slice->first, slice->split));
}

/* All tiles of the piece against one block. */
static void block_backward(const Job *job, const Piece *piece, const Space *w, KeyRange block,
                           unsigned want)
{
    Tile tile;
    bool packed = false,
         dq_at_once = job->dq_rows <= TILE_ROWS && piece->n * job->group > TILE_ROWS;
    int64_t rows = piece->n * job->group;
    /* rows before the block see none of it; tiles always start at multiples of TILE_ROWS */
    int64_t key_row = attention_row(&job->mask.keys, block.first);
    int64_t before = max_i64(0, token_before(&job->mask.slice, key_row) - piece->first);
    int64_t row = before * job->group / TILE_ROWS * TILE_ROWS;
    for (; row < rows; row += TILE_ROWS) {
        if (!tile_make(&job->mask, piece, job->group, row, block, &tile)) continue;
        if (!packed) pack_block(job, piece, w, block);
        packed = true;
        if (job->pairs)
            tile_backward(job, piece, w, &tile, row, block.end - block.first, want, HAS_PAIRS);
        else
            tile_backward(job, piece, w, &tile, row, block.end - block.first, want, 0);
        if (dq_at_once && (want & WANT_DQ)) store_dq(job, piece, w, row, tile.rows);
    }
}

static void piece_backward(const Job *job, const Piece *piece, const Space *w, KeyRange keys,
                           unsigned want)
{
    int64_t rows = piece->n * job->group;
    size_t dq_bytes = (size_t)((job->dq_rows + 1) * w->lanes) * sizeof(float);
    if (want & WANT_DQ) memset(w->dq, 0, dq_bytes);
    for (int64_t k = keys.first; k < keys.end; k += job->block) {
        KeyRange block = {k, min_i64(k + job->block, keys.end)};
        size_t bytes = (size_t)((job->block + 2) * w->lanes) * sizeof(float);
        if (want & WANT_DKV) {
            memset(w->dk, 0, bytes);
            memset(w->dv, 0, bytes);
        }
        block_backward(job, piece, w, block, want);
        if (want & WANT_DKV) {
            store_keys(job, piece, &job->dk, w->dk, w->lanes, block);
            store_keys(job, piece, &job->dv, w->dv, w->lanes, block);
        }
    }
    /* else each tile has stored its own */
    if ((want & WANT_DQ) && rows <= job->dq_rows) store_dq(job, piece, w, 0, rows);
}

/* Piece number i of a pass over all heads of all sequences: `parts` pieces each. */
static void run_piece(const Job *job, const Space *w, int64_t i, int64_t parts, unsigned want)
{
    int64_t part = i % parts, head = i / parts;
    Piece piece = {.b = head / job->kv_heads, .h = head % job->kv_heads, .n = job->tokens};
    KeyRange keys = {0, job->keys};
    if (parts > 1 && want == WANT_DQ) {
        piece.first = (parts - 1 - part) * job->piece; /* those that see most come first */
        piece.n = min_i64(job->piece, job->tokens - piece.first);
        keys = piece_range(&job->mask, &piece);
        keys.first = keys.first / job->block * job->block;
    } else if (parts > 1) {
        keys.first = part * job->block;
        keys.end = min_i64(keys.first + job->block, job->keys);
    }
    piece_backward(job, &piece, w, keys, want);
}

/* part: NULL, all keys are there. */
static Job job_make(const Shape *q, const Shape *k, const AttentionAttr *attr,
                    const AttentionPart *part, int pairs, int threads)
{
    Job job = {.batch = q->dim[0],
               .tokens = q->dim[1],
               .keys = k->dim[1],
               .heads = q->dim[2],
               .d = q->dim[3],
               .kv_heads = k->dim[2],
               .scale = attr->scale,
               .softcap = attr->softcap,
               .pairs = pairs};
    job.mask = (Mask){.tokens = q->dim[1],
                      .chunk = attr->chunk,
                      .slice = attr->slice,
                      .n_keys = k->dim[1],
                      .alibi = attr->alibi,
                      .alibi_heads = attr->alibi_heads ? attr->alibi_heads : q->dim[2],
                      .alibi_first = attr->alibi_first};
    if (part) job.mask.keys = part->keys;
    job.in_parts = part != NULL;
    job_cut(&job, threads);
    return job;
}

static size_t job_workspace(const Graph *graph, const Node *node, const AttentionPart *part,
                            const Target *target)
{
    const Value *q = graph_value(graph, node->in[ATTENTION_Q]),
                *k = graph_value(graph, node->in[ATTENTION_K]);
    Job job = job_make(&q->shape, &k->shape, node->attr, part,
                       pairs_of(q->dtype, k->dtype, k->dtype), target->threads);
    Space space;
    return space_layout(&job, NULL, &space) * (size_t)target->threads;
}

static size_t workspace(const Graph *graph, const Node *node, const Target *target)
{
    return job_workspace(graph, node, NULL, target);
}

static size_t workspace_part(const Graph *graph, const Node *node, const Target *target)
{
    return job_workspace(graph, node, node->attr, target);
}

static Rows rows_or_none(const Tensor *t) { return t->data ? tensor_as_rows(t, 2) : (Rows){0}; }

static Job job_of(const KernelArgs *args, const AttentionPart *part)
{
    const Tensor *in = args->in;
    DType dtype = in[ATTENTION_Q].dtype;
    Job job = job_make(&in[ATTENTION_Q].shape, &in[ATTENTION_K].shape, args->attr, part,
                       pairs_of(dtype, dtype, dtype), args->threads);
    job.q = tensor_as_rows(&in[ATTENTION_Q], 2);
    job.k = tensor_as_rows(&in[ATTENTION_K], 2);
    job.v = tensor_as_rows(&in[ATTENTION_V], 2);
    job.o = tensor_as_rows(&in[ATTENTION_O], 2);
    job.dout = tensor_as_rows(&in[ATTENTION_DO], 2);
    job.dq = rows_or_none(&args->out[0]);
    job.dk = rows_or_none(&args->out[1]);
    job.dv = rows_or_none(&args->out[2]);
    job.mask.pos = in[ATTENTION_POS].data;
    job.lse = in[ATTENTION_LSE].data;
    return job;
}

static void job_run(const Job *job, KernelArgs *args)
{
    Space measure;
    size_t bytes = space_layout(job, NULL, &measure);
    CHECK(bytes * (size_t)args->threads <= args->workspace_bytes);
    int64_t heads = job->batch * job->kv_heads;
    int64_t pieces = job->two_passes ? (job->tokens + job->piece - 1) / job->piece : 1;
    int64_t blocks = job->two_passes ? (job->keys + job->block - 1) / job->block : 1;
    Shares first, second;
    shares_deal(&first, args->threads, heads * pieces);
    shares_deal(&second, args->threads, job->two_passes ? heads * blocks : 0);
#pragma omp parallel num_threads(args->threads)
    {
        Space space;
        space_layout(job, (char *)args->workspace + bytes * (size_t)thread_index(), &space);
        for (int64_t i; (i = shares_take(&first)) >= 0;)
            run_piece(job, &space, i, pieces, job->two_passes ? WANT_DQ : WANT_DQ | WANT_DKV);
        for (int64_t i; (i = shares_take(&second)) >= 0;)
            run_piece(job, &space, i, blocks, WANT_DKV);
    }
}

static Status run(KernelArgs *args)
{
    Job job = job_of(args, NULL);
    job_run(&job, args);
    return OK;
}

static Status run_part(KernelArgs *args)
{
    Job job = job_of(args, args->attr);
    if (args->in[ATTENTION_DQ].data) job.dq_before = tensor_as_rows(&args->in[ATTENTION_DQ], 2);
    job_run(&job, args);
    return OK;
}

const Kernel CPU(attention_grad) = {.run = run, .workspace = workspace};
const Kernel CPU(attention_grad_part) = {.run = run_part, .workspace = workspace_part};
