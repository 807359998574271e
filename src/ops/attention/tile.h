/* Tiles of attention: products of small blocks in registers, packing of operands, 2^x.
 *
 * Everything is counted in words of 32 bits along the axis that a product sums over: one f32, or
 * two neighbouring bf16 (`pairs`, where the processor multiplies pairs: vdpbf16ps). A product is
 *     c [rows, lanes] += sum over steps of a [rows, steps] * b [steps, lanes]
 * with a read word by word at any two strides and b in rows of lanes. So an operand comes in two
 * forms:
 *   words    [rows][words of d]      the left side of a product over d
 *   stacked  [rows / 2][d] of pairs  the right side of a product over rows (f32: the same as words)
 *   panels   [panel][words of d][PANEL rows]  the right side of a product over d: transposed words
 * Every element of c is one chain of additions in the order of the steps, whatever the tiling, so
 * that results do not depend on it. Only *_cpu.c files include this.
 */
#ifndef OPS_ATTENTION_TILE_H
#define OPS_ATTENTION_TILE_H

#include "ops/attention/attention_internal.h"
#include "ops/kernel.h"
#include "ops/simd.h"

/* Registers hold MR x NV vectors of sums, NV of b and one of a. */
#if defined(__AVX512F__)
enum { MR = 6, NV = 4 };
#else
enum { MR = 6, NV = 2 };
#endif
enum { PANEL = NV * VL };

#if defined(__AVX512BF16__)
enum { HAS_PAIRS = 1 };
#else
enum { HAS_PAIRS = 0 };
#endif

/* The phases of a tile stand alone: they show by name in a profile, and have the registers for
 * themselves. */
#define PHASE static __attribute__((noinline))

/* ---- products --------------------------------------------------------------------------- */

typedef struct Product {
    float *c;           /* f32 */
    const float *a, *b; /* words */
    int64_t ldc, a_row, a_step, ldb, steps;
    bool fresh; /* c starts as zero */
} Product;

SIMD Vf spread(const float *p)
{
#if defined(__AVX512F__)
    return _mm512_set1_ps(*p);
#elif defined(__AVX2__)
    return _mm256_broadcast_ss(p);
#else
    return (Vf){*p, *p, *p, *p};
#endif
}

SIMD Vf multiply_add(Vf a, Vf b, Vf c, int pairs)
{
#if defined(__AVX512BF16__)
    if (pairs) return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b);
#endif
    (void)pairs;
    return vf_fma(a, b, c);
}

/* How the words of a lie: in one of both directions side by side, mostly. */
typedef enum Lie { LIE_ANY, LIE_STEPS, LIE_ROWS } Lie;
/* With half the vectors there are half the multiply-adds a step, and what counts the steps and
 * moves the pointers is shared by several; rows are reached from every third one then, so that few
 * addresses are kept. */
#if defined(__AVX512F__)
enum { STEPS_AT_ONCE = 1, ROWS_EACH = MR };
#else
enum { STEPS_AT_ONCE = 4, ROWS_EACH = 3 };
#endif
enum { BASES = MR / ROWS_EACH };

/* One step of mr rows of nv vectors, `at` words from the bases and at b. */
SIMD void multiply_step(const float *const a[BASES], int64_t row, int64_t at, const float *b,
                        int mr, int nv, Vf sum[MR][NV], int pairs)
{
    Vf right[NV];
#pragma GCC unroll 8
    for (int v = 0; v < nv; v++) right[v] = vf_load(b + v * VL);
#pragma GCC unroll 8
    for (int r = 0; r < mr; r++) {
        Vf left = spread(a[r / ROWS_EACH] + r % ROWS_EACH * row + at);
#pragma GCC unroll 8
        for (int v = 0; v < nv; v++) sum[r][v] = multiply_add(left, right[v], sum[r][v], pairs);
    }
}

/* mr rows of nv vectors, and how a lies, are known when this is compiled */
SIMD void multiply_block(const Product *x, int mr, int nv, Lie lie, int pairs)
{
    Vf sum[MR][NV];
    float *c = x->c;
    const float *a[BASES], *b = x->b;
    const int64_t row = lie == LIE_ROWS ? 1 : x->a_row, step = lie == LIE_STEPS ? 1 : x->a_step;
    const int64_t ldb = x->ldb, ldc = x->ldc;
    int64_t s = x->steps;
#pragma GCC unroll 8
    for (int i = 0; i < BASES; i++) a[i] = x->a + i * ROWS_EACH * row;
#pragma GCC unroll 8
    for (int r = 0; r < mr; r++)
#pragma GCC unroll 8
        for (int v = 0; v < nv; v++)
            sum[r][v] = x->fresh ? vf_zero() : vf_load(c + r * ldc + v * VL);
    for (; s >= STEPS_AT_ONCE; s -= STEPS_AT_ONCE) {
#pragma GCC unroll 4
        for (int u = 0; u < STEPS_AT_ONCE; u++, b += ldb) {
            multiply_step(a, row, lie == LIE_STEPS ? u : 0, b, mr, nv, sum, pairs);
#pragma GCC unroll 8
            for (int i = 0; i < BASES && lie != LIE_STEPS; i++) a[i] += step;
        }
#pragma GCC unroll 8
        for (int i = 0; i < BASES && lie == LIE_STEPS; i++) a[i] += STEPS_AT_ONCE;
    }
    for (int64_t u = 0; STEPS_AT_ONCE > 1 && u < s; u++, b += ldb)
        multiply_step(a, row, u * step, b, mr, nv, sum, pairs);
#pragma GCC unroll 8
    for (int r = 0; r < mr; r++)
#pragma GCC unroll 8
        for (int v = 0; v < nv; v++) vf_store(c + r * ldc + v * VL, sum[r][v]);
}

/* Of each size there is a second product: of pairs, or, where vectors have none, one whose a lies
 * along the rows. */
#if defined(__AVX512F__)
#define MULTIPLY(mr, nv)                                                                           \
    static void multiply_##mr##x##nv(const Product *x) { multiply_block(x, mr, nv, LIE_ANY, 0); }  \
    static void multiply_second_##mr##x##nv(const Product *x)                                      \
    {                                                                                              \
        multiply_block(x, mr, nv, LIE_ANY, HAS_PAIRS);                                             \
    }
#else
#define MULTIPLY(mr, nv)                                                                           \
    static void multiply_##mr##x##nv(const Product *x)                                             \
    {                                                                                              \
        multiply_block(x, mr, nv, LIE_STEPS, 0);                                                   \
    }                                                                                              \
    static void multiply_second_##mr##x##nv(const Product *x)                                      \
    {                                                                                              \
        multiply_block(x, mr, nv, LIE_ROWS, 0);                                                    \
    }
#endif
MULTIPLY(2, 1)
MULTIPLY(4, 1)
MULTIPLY(6, 1)
MULTIPLY(2, 2)
MULTIPLY(4, 2)
MULTIPLY(6, 2)
#if defined(__AVX512F__)
MULTIPLY(2, 3)
MULTIPLY(4, 3)
MULTIPLY(6, 3)
MULTIPLY(2, 4)
MULTIPLY(4, 4)
MULTIPLY(6, 4)
#endif
#undef MULTIPLY

/* rows: 2, 4 or 6; vectors: 1..NV */
SIMD void multiply(const Product *x, int64_t rows, int64_t vectors, int pairs)
{
    typedef void Multiply(const Product *);
#if defined(__AVX512F__)
#define ROW(p, mr)                                                                                 \
    {                                                                                              \
        p##_##mr##x1, p##_##mr##x2, p##_##mr##x3, p##_##mr##x4                                     \
    }
    const int second = pairs;
#else
#define ROW(p, mr)                                                                                 \
    {                                                                                              \
        p##_##mr##x1, p##_##mr##x2                                                                 \
    }
    const int second = x->a_step != 1;
    (void)pairs;
#endif
    static Multiply *const table[2][3][NV] = {
        {ROW(multiply, 2), ROW(multiply, 4), ROW(multiply, 6)},
        {ROW(multiply_second, 2), ROW(multiply_second, 4), ROW(multiply_second, 6)}};
#undef ROW
    table[second][rows / 2 - 1][vectors - 1](x);
}

/* ---- packing ---------------------------------------------------------------------------- */

/* Rows of d elements: row i is head i % group of token i / group; tokens lie `pitch` apart, or
 * where a table of pages of 2^shift tokens says (NULL: there is none). */
enum { PREFETCH_ROWS = 16 };
typedef struct Source {
    const char *data;
    int64_t pitch_bytes, group, d;
    const int32_t *table;
    int shift, bf16;
} Source;

SIMD const char *source_row(const Source *s, int64_t i)
{
    int64_t token = s->group == 1 ? i : i / s->group, head = i - token * s->group;
    if (s->table) token = attention_page_row(s->table, s->shift, (int)token);
    return s->data + token * s->pitch_bytes + head * s->d * (s->bf16 ? 2 : 4);
}

/* Asks for row i, if it is before `end`, for a later read or write. Rows lie too far apart for the
 * hardware to foresee them; asked for one by one among the arithmetic they are there when they are
 * needed. */
SIMD void prefetch_row(const Source *s, int64_t i, int64_t end, int write)
{
    if (i >= end) return;
    const char *row = source_row(s, i);
    for (int64_t j = 0; j < s->d * (s->bf16 ? 2 : 4); j += 64) {
        if (write)
            __builtin_prefetch(row + j, 1);
        else
            __builtin_prefetch(row + j, 0);
    }
}

/* VL words of a row from word j on, zeros past its end */
SIMD Vf load_words(const char *row, int64_t j, int64_t d, int bf16, int pairs)
{
    int64_t n = d - (pairs ? 2 * j : j);
    if (n <= 0) return vf_zero();
    if (!pairs) return n >= VL ? vf_load_as(row, j, bf16) : vf_load_as_n(row, j, n, bf16);
    Vf v;
    if (n >= 2 * VL) {
        memcpy(&v, row + 4 * j, sizeof v);
        return v;
    }
    uint16_t t[2 * VL] = {0};
    memcpy(t, row + 4 * j, (size_t)n * 2);
    memcpy(&v, t, sizeof v);
    return v;
}

/* The heads from `head` on of a tensor of tokens, `group` of them a token, from `token` on. */
SIMD Source source_make(const Rows *x, int64_t token, int64_t head, int64_t group, int64_t d)
{
    int bf16 = x->dtype == DTYPE_BF16;
    int64_t bytes = bf16 ? 2 : 4;
    return (Source){.data = x->data + (token * x->pitch + head * d) * bytes,
                    .pitch_bytes = x->pitch * bytes,
                    .group = group,
                    .d = d,
                    .bf16 = bf16};
}

/* from [n], whole vectors, times share, into a row of n elements */
SIMD void store_row(const float *from, char *to, int64_t n, float share, int bf16)
{
    Vf by = spread(&share);
    for (int64_t i = 0; i < n; i += VL) {
        if (n - i >= VL)
            vf_store_as(to, i, vf_load(from + i) * by, bf16);
        else
            vf_store_as_n(to, i, vf_load(from + i) * by, n - i, bf16);
    }
}

/* The same where all VL words are there. */
SIMD Vf load_whole(const char *row, int64_t j, int bf16, int pairs)
{
    if (bf16 && !pairs) return vf_load_bf16((const uint16_t *)(const void *)row + j);
    return vf_load((const float *)(const void *)row + j);
}

/* n rows from row `first` on, as words; ld a multiple of VL */
PHASE void pack_words(const Source *s, int64_t first, int64_t n, float *to, int64_t ld, int pairs)
{
    int64_t whole = (pairs ? s->d / 2 : s->d) / VL * VL;
    for (int64_t i = 0; i < n; i++) {
        const char *row = source_row(s, first + i);
        int64_t j = 0;
        prefetch_row(s, first + i + PREFETCH_ROWS, first + n, 0);
        for (; j < whole; j += VL) vf_store(to + i * ld + j, load_whole(row, j, s->bf16, pairs));
        for (; j < ld; j += VL) vf_store(to + i * ld + j, load_words(row, j, s->d, s->bf16, pairs));
    }
}

/* the words (low[l], high[l]) of bf16 that were made f32 */
SIMD Vf interleave(Vf low, Vf high)
{
    return vf_bits((Vi)(((vi_bits(low) >> 16) & 0xffff) | vi_bits(high)));
}

/* n rows stacked, ld = d rounded up to whole vectors; with pairs an odd last row is paired with
 * zeros */
PHASE void pack_stacked(const Source *s, int64_t first, int64_t n, float *to, int64_t ld, int pairs)
{
    if (!pairs) {
        pack_words(s, first, n, to, ld, 0);
        return;
    }
    int64_t whole = s->d / VL * VL;
    for (int64_t i = 0; i < n; i += 2) {
        const char *low = source_row(s, first + i);
        const char *high = i + 1 < n ? source_row(s, first + i + 1) : NULL;
        prefetch_row(s, first + i + PREFETCH_ROWS, first + n, 0);
        prefetch_row(s, first + i + PREFETCH_ROWS + 1, first + n, 0);
        int64_t j = 0;
        for (; high && j < whole; j += VL)
            vf_store(to + i / 2 * ld + j,
                     interleave(load_whole(low, j, 1, 0), load_whole(high, j, 1, 0)));
        for (; j < ld; j += VL)
            vf_store(to + i / 2 * ld + j,
                     interleave(load_words(low, j, s->d, 1, 0),
                                high ? load_words(high, j, s->d, 1, 0) : vf_zero()));
    }
}

/* VL words from word j on of up to VL rows, transposed, to rows of a panel; n of them are there,
 * the others are zeros. */
SIMD void pack_square(const Source *s, const char *const row[VL], int64_t n, int64_t j, float *to,
                      int pairs)
{
    int64_t words = pairs ? (s->d + 1) / 2 : s->d;
    Vf m[VL];
    if (n == VL && j + VL <= (pairs ? s->d / 2 : s->d)) {
#pragma GCC unroll 16
        for (int r = 0; r < VL; r++) m[r] = load_whole(row[r], j, s->bf16, pairs);
        vf_transpose(m);
#pragma GCC unroll 16
        for (int r = 0; r < VL; r++) vf_store(to + (j + r) * PANEL, m[r]);
        return;
    }
    for (int r = 0; r < VL; r++)
        m[r] = r < n ? load_words(row[r], j, s->d, s->bf16, pairs) : vf_zero();
    vf_transpose(m);
    for (int r = 0; r < VL && j + r < words; r++) vf_store(to + (j + r) * PANEL, m[r]);
}

/* n rows as panels of PANEL rows; rows past n up to the next whole vector are zeros */
PHASE void pack_panels(const Source *s, int64_t first, int64_t n, float *to, int pairs)
{
    int64_t words = pairs ? (s->d + 1) / 2 : s->d;
    for (int64_t i = 0; i < n; i += VL) {
        const char *row[VL];
        int64_t there = min_i64(VL, n - i);
        for (int64_t r = 0; r < there; r++) {
            row[r] = source_row(s, first + i + r);
            prefetch_row(s, first + i + r + PREFETCH_ROWS, first + n, 0);
        }
        for (int64_t j = 0; j < words; j += VL)
            pack_square(s, row, there, j, to + i / PANEL * PANEL * words + i % PANEL, pairs);
    }
}

/* The workspace of a thread: parts in order, each a multiple of 64 bytes. */
typedef struct Part {
    float **part;
    int64_t floats;
} Part;

/* Sets the parts from `base` on (NULL to measure); the bytes they need. */
static inline size_t parts_layout(const Part *parts, int n, char *base)
{
    size_t at = 0;
    for (int i = 0; i < n; i++) {
        *parts[i].part = base ? (float *)(void *)(base + at) : NULL;
        at += round_up((size_t)parts[i].floats * sizeof(float), 64);
    }
    return at;
}

SIMD int64_t vectors_up(int64_t n) { return (n + VL - 1) / VL * VL; }

static inline int pairs_of(DType q, DType k, DType v)
{
    return HAS_PAIRS && q == DTYPE_BF16 && k == DTYPE_BF16 && v == DTYPE_BF16;
}

static const float log2_e = 1.44269504f;

/* ---- vectors ---------------------------------------------------------------------------- */

/* 2^t for t <= 0 and a little above, below -126 as at -126: t = n + r, |r| <= 1/2, and a minimax
 * polynomial of 2^r, off by 7.5e-8 at most. */
SIMD Vf exp2_low(Vf t)
{
    t = vf_max(t, vf_set(-126.0f));
#if defined(__AVX512F__)
    Vf n = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    const Vf magic = vf_set(12582912.0f); /* 1.5 * 2^23 rounds to a whole number */
    Vf shifted = t + magic, n = shifted - magic;
#endif
    Vf r = t - n, p = vf_set(0.00132764720f);
    p = vf_fma(p, r, vf_set(0.00967554133f));
    p = vf_fma(p, r, vf_set(0.0555071327f));
    p = vf_fma(p, r, vf_set(0.240221197f));
    p = vf_fma(p, r, vf_set(0.693146967f));
    p = vf_fma(p, r, vf_set(1.00000007f));
#if defined(__AVX512F__)
    return _mm512_scalef_ps(p, n);
#else
    return vf_bits(vi_bits(p) + ((vi_bits(shifted) - vi_bits(magic)) << 23));
#endif
}

/* softcap * tanh(x), given 2 x */
SIMD Vf cap_tanh(Vf twice, float cap)
{
    Vf one = vf_set(1.0f);
    return vf_set(cap) * (one - vf_set(2.0f) / (vf_exp(twice) + one));
}

/* lanes at columns i..i+VL-1 keep x inside [first, end), else take other */
SIMD Vf keep_inside(Vf x, int64_t i, int64_t first, int64_t end, Vf other)
{
    if (i >= first && i + VL <= end) return x;
    Vi at;
    for (int l = 0; l < VL; l++) at[l] = l;
    at += (int32_t)i;
    Vi in = (at >= (int32_t)first) & (at < (int32_t)end);
    return vf_bits((vi_bits(x) & in) | (vi_bits(other) & ~in));
}

SIMD float sum_lanes(Vf v)
{
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps(v);
#else
    return vf_sum(v);
#endif
}
SIMD float max_lanes(Vf v)
{
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps(v);
#else
    return vf_max_lane(v);
#endif
}

/* ---- rows and their visible keys -------------------------------------------------------- */

/* A tile is up to TILE_ROWS query rows against a block of keys. Its rows come in groups of MR. Key
 * numbers are relative to the block. */
enum { TILE_ROWS = 96, TILE_GROUPS = TILE_ROWS / MR };

typedef struct Tile {
    int64_t rows;                             /* real ones; products see them rounded up to even */
    int32_t first[TILE_ROWS], end[TILE_ROWS]; /* visible keys of each row; empty: 0, 0 */
    int32_t group_first[TILE_GROUPS], group_end[TILE_GROUPS];
    /* ALiBi: key k of the block adds slope * (k + offset): where it stands behind the query, which
     * is as many rows. Keys from `split` on may stand elsewhere. */
    float slope[TILE_ROWS], offset[2][TILE_ROWS], split;
} Tile;

/* Which keys each token sees. */
typedef struct Mask {
    const int32_t *pos; /* [B tokens] */
    int64_t tokens;     /* of a sequence */
    int64_t chunk;
    int64_t cache_rows;   /* positions of all pages of a sequence; 0: keys are the tokens */
    AttentionSlice slice; /* where the tokens stand in the sequence */
    AttentionSlice keys;  /* where the keys do; zeroed: they are the sequence */
    int64_t n_keys;       /* of a sequence */
    float alibi;          /* > 0: rows have slopes */
    int64_t alibi_heads, alibi_first;
} Mask;

static inline KeyRange mask_range(const Mask *mask, int64_t b, int64_t t)
{
    int64_t pos = mask->pos[b * mask->tokens + t];
    if (mask->cache_rows) return attention_cached_range(pos, mask->chunk, mask->cache_rows);
    KeyRange rows = attention_range(attention_row(&mask->slice, t), pos, mask->chunk);
    return (KeyRange){attention_keys_before(&mask->keys, mask->n_keys, rows.first),
                      attention_keys_before(&mask->keys, mask->n_keys, rows.end)};
}

/* tokens first..first+n-1 of sequence b, with all query heads of kv head h: its row r is head
 * r % group of token first + r / group */
typedef struct Piece {
    int64_t b, h, first, n;
} Piece;

/* The keys that any token of the piece sees. Blocks of them begin at multiples of KEY_STEP. */
enum { KEY_STEP = 16 };
static inline KeyRange piece_range(const Mask *mask, const Piece *piece)
{
    KeyRange all = {INT64_MAX, 0};
    for (int64_t t = piece->first; t < piece->first + piece->n; t++) {
        KeyRange r = mask_range(mask, piece->b, t);
        if (r.first >= r.end) continue;
        all.first = min_i64(all.first, r.first);
        all.end = max_i64(all.end, r.end);
    }
    return all;
}

/* rows in products of group g */
SIMD int64_t group_rows(const Tile *tile, int64_t g)
{
    int64_t even = (tile->rows + 1) & ~(int64_t)1;
    return min_i64(MR, even - g * MR);
}
SIMD int64_t tile_groups(const Tile *tile) { return (tile->rows + MR - 1) / MR; }

/* Fills the groups from the rows; false when no row sees a key of the block. */
static inline bool tile_finish(Tile *tile)
{
    bool any = false;
    for (int64_t g = 0; g < tile_groups(tile); g++) {
        int32_t first = INT32_MAX, end = 0;
        for (int64_t r = g * MR; r < min_i64(tile->rows, (g + 1) * MR); r++)
            if (tile->end[r] > tile->first[r]) {
                if (tile->first[r] < first) first = tile->first[r];
                if (tile->end[r] > end) end = tile->end[r];
            }
        tile->group_first[g] = end > 0 ? first : 0;
        tile->group_end[g] = end;
        any |= end > 0;
    }
    return any;
}

/* The row of token t of sequence b, as keys count theirs. */
static inline int64_t mask_query_row(const Mask *mask, int64_t b, int64_t t)
{
    return mask->cache_rows ? mask->pos[b * mask->tokens + t] : attention_row(&mask->slice, t);
}

/* Differences of rows are whole numbers, exact in f32 up to 2^24; their products with slopes are
 * made of these, and not of rows, so that nothing cancels. */
static inline void tile_slopes_make(const Mask *mask, const Piece *piece, int64_t group,
                                    int64_t row, int64_t first_key, Tile *tile)
{
    tile->split = (float)(mask->keys.split - first_key);
    for (int64_t r = 0; r < tile->rows; r++) {
        int64_t head = piece->h * group + (row + r) % group;
        int64_t behind = first_key -
                         mask_query_row(mask, piece->b, piece->first + (row + r) / group);
        tile->slope[r] = attention_slope(mask->alibi, mask->alibi_heads, mask->alibi_first + head);
        tile->offset[0][r] = (float)(behind + mask->keys.first);
        tile->offset[1][r] = (float)(behind + mask->keys.second);
    }
}

/* What key numbers i.. of the block add to the scores of row r. Keys behind the query, which it
 * does not see, add nothing: powers of theirs are made before they are masked. */
SIMD Vf tile_alibi(const Tile *tile, int64_t r, int64_t i)
{
    Vf key;
    for (int l = 0; l < VL; l++) key[l] = (float)l;
    key += vf_set((float)i);
    Vi low = key < vf_set(tile->split);
    Vf offset = vf_bits((vi_bits(vf_set(tile->offset[0][r])) & low) |
                        (vi_bits(vf_set(tile->offset[1][r])) & ~low));
    return vf_set(tile->slope[r]) * vf_min(key + offset, vf_zero());
}

/* Rows row..row+TILE_ROWS-1 of the piece against the keys of a block; false: none is seen. */
static inline bool tile_make(const Mask *mask, const Piece *piece, int64_t group, int64_t row,
                             KeyRange block, Tile *tile)
{
    tile->rows = min_i64(TILE_ROWS, piece->n * group - row);
    for (int64_t r = 0; r < tile->rows; r++) {
        KeyRange range = mask_range(mask, piece->b, piece->first + (row + r) / group);
        int64_t first = max_i64(range.first, block.first), end = min_i64(range.end, block.end);
        tile->first[r] = first < end ? (int32_t)(first - block.first) : 0;
        tile->end[r] = first < end ? (int32_t)(end - block.first) : 0;
    }
    if (tile->rows % 2) tile->first[tile->rows] = tile->end[tile->rows] = 0;
    if (mask->alibi > 0) tile_slopes_make(mask, piece, group, row, block.first, tile);
    return tile_finish(tile);
}

/* Products c [rows, keys] = a b, a in words of d, b in panels, only where a group of rows sees
 * keys. */
typedef struct RowsTimesKeys {
    float *c;
    const float *a, *b;
    int64_t ldc, lda, words, keys;
} RowsTimesKeys;

PHASE void rows_times_keys(const Tile *tile, const RowsTimesKeys *m, int pairs)
{
    for (int64_t k = 0; k < m->keys; k += PANEL) {
        for (int64_t g = 0; g < tile_groups(tile); g++) {
            int64_t first = max_i64(k, tile->group_first[g] / VL * VL);
            int64_t end = min_i64(k + PANEL, tile->group_end[g]);
            if (first >= end) continue;
            Product x = {.c = m->c + g * MR * m->ldc + first,
                         .a = m->a + g * MR * m->lda,
                         .b = m->b + k * m->words + (first - k),
                         .ldc = m->ldc,
                         .a_row = m->lda,
                         .a_step = 1,
                         .ldb = PANEL,
                         .steps = m->words,
                         .fresh = true};
            multiply(&x, group_rows(tile, g), (end - first + VL - 1) / VL, pairs);
        }
    }
}

/* Products c [rows, d] += a b over the keys that each group sees, a [rows][words of keys], b
 * stacked. The steps go in blocks, so that a panel of b stays near for all groups. */
typedef struct KeysTimesValues {
    float *c;
    const float *a, *b;
    int64_t ldc, lda, lanes, keys;
} KeysTimesValues;

enum { STEP_BLOCK = 128 };

PHASE void keys_times_values(const Tile *tile, const KeysTimesValues *m, int pairs)
{
    int64_t per_word = pairs ? 2 : 1, steps = (m->keys + per_word - 1) / per_word;
    for (int64_t lane = 0; lane < m->lanes; lane += PANEL) {
        int64_t vectors = min_i64(NV, (m->lanes - lane) / VL);
        for (int64_t s = 0; s < steps; s += STEP_BLOCK) {
            for (int64_t g = 0; g < tile_groups(tile); g++) {
                int64_t first = max_i64(s, tile->group_first[g] / VL * VL / per_word);
                int64_t end = (tile->group_end[g] + per_word - 1) / per_word;
                if (end > s + STEP_BLOCK) end = s + STEP_BLOCK;
                if (first >= end) continue;
                Product x = {.c = m->c + g * MR * m->ldc + lane,
                             .a = m->a + g * MR * m->lda + first,
                             .b = m->b + first * m->lanes + lane,
                             .ldc = m->ldc,
                             .a_row = m->lda,
                             .a_step = 1,
                             .ldb = m->lanes,
                             .steps = end - first};
                multiply(&x, group_rows(tile, g), vectors, pairs);
            }
        }
    }
}

#endif
