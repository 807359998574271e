/* The blocked matrix product of gemm.h.
 *
 * Words and panels are those of gemm_pack.h. The tile: ROWS x (2 vectors) sums in registers; for
 * each word two vectors of B and ROWS broadcasts of A. 12 x 32 with AVX-512: 24 multiply-adds for
 * 14 loads, enough to keep the units busy from L2; 6 x 16 with AVX2: 12 for 8, in 15 of the 16
 * registers.
 */
#include "ops/gemm.h"
#include "ops/gemm_pack.h"
#include "ops/share.h"
#include "ops/simd.h"

#if defined(__AVX512F__)
enum { ROWS = 12, WORDS_AT_ONCE = 1, COPIES_BF16 = 0, LONG_WORDS = 256, PACK_B_ROWS = 16 };
#else
/* A tile of half the vectors has half the multiply-adds a word: what counts the words costs a fifth
 * of them, unless it is shared. */
enum { ROWS = 6, WORDS_AT_ONCE = 4, COPIES_BF16 = 1, LONG_WORDS = 384, PACK_B_ROWS = 27 };
#endif
enum {
    COLUMNS = 2 * VL,
    A_LINES = 8 * ROWS, /* packed at a time */
    BLOCK_WORDS =
        256,         /* of k, when C is f32 and can be added to; LONG_WORDS where A is not packed */
    GROUP = 8,       /* of such blocks */
    SUM_WORDS = 512, /* of k, when C is bf16 */
    GROUP_WORDS = 1 << 20,  /* of B packed together */
    SET_STRIDE = 2048,      /* bytes */
    L2_WORDS = 96 * 1024,   /* of packed B */
    FEW_ROWS = 8,           /* dot products instead of packing */
    FEW_LINES = 64,         /* of B at a time then */
    PACKED_PANELS = 16,     /* packed side by side, where all of B is */
    SMALL_PRODUCT = 200000, /* multiply-adds that are not worth a team */
    PACK_A_COLUMNS = 24,    /* of a product that take as long as packing a line of A */
    COPY_A_COLUMNS = 8,     /* likewise bringing it near, where it is or copied */
};

static void pack_a(uint32_t *out, const Window *w) { pack(out, ROWS, w); }
static void pack_b(uint32_t *out, const Window *w) { pack(out, COLUMNS, w); }

/* ---- the tile --------------------------------------------------------------------------- */

typedef struct Tile {
    const char *a;
    int64_t a_line_bytes; /* between lines when A is read in place */
    const uint32_t *b;
    int64_t words;
    char *c;
    int64_t c_pitch, columns; /* elements; columns that exist */
    bool c_bf16, add;
} Tile;

SIMD Vf multiply_add(const int pairs, Vf a, Vf b, Vf c)
{
#if defined(__AVX512BF16__)
    if (pairs) return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b);
#endif
    (void)pairs;
    return vf_fma(a, b, c);
}

SIMD void store_half(const Tile *t, int row, int column, Vf sum)
{
    int64_t lanes = min_i64(t->columns - column, VL), at = row * t->c_pitch + column;
    if (lanes <= 0) return;
    if (t->c_bf16) {
        uint16_t *c = (uint16_t *)(void *)t->c + at;
        if (lanes == VL)
            vf_store_bf16(c, sum);
        else
            vf_store_bf16_n(c, sum, lanes);
        return;
    }
    float *c = (float *)(void *)t->c + at;
    if (lanes == VL)
        vf_store(c, t->add ? vf_load(c) + sum : sum);
    else
        vf_store_n(c, t->add ? vf_load_n(c, lanes) + sum : sum, lanes);
}

/* C is needed when the tile is done: by then it is near. */
SIMD void prefetch_row(const Tile *t, int row)
{
    const char *c = t->c + row * t->c_pitch * (t->c_bf16 ? 2 : 4);
    __builtin_prefetch(c, 1);
    if (!t->c_bf16 && COLUMNS * 4 > CACHE_LINE) __builtin_prefetch(c + CACHE_LINE, 1);
}

/* What the lines of A are reached from: every third one, so that few addresses are kept. */
enum { LINES_EACH = 3, BASES = (ROWS + LINES_EACH - 1) / LINES_EACH };

/* The products of one word, `at` bytes from the bases and at b. */
SIMD void multiply_word(const int rows, const int pairs, const char *const a[BASES], int64_t line,
                        int64_t at, const float *b, Vf sum[ROWS][2])
{
    Vf b0 = vf_load(b), b1 = vf_load(b + VL);
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++) {
        float word;
        memcpy(&word, a[i / LINES_EACH] + i % LINES_EACH * line + at, sizeof word);
        Vf x = vf_set(word);
        sum[i][0] = multiply_add(pairs, x, b0, sum[i][0]);
        sum[i][1] = multiply_add(pairs, x, b1, sum[i][1]);
    }
}

/* rows, packed and pairs are constants where this is used: everything unrolls. */
SIMD void tile(const int rows, const int packed, const int pairs, const Tile *t)
{
    Vf sum[ROWS][2];
    const char *a[BASES];
    const int64_t line = packed ? 4 : t->a_line_bytes, step = packed ? 4 * ROWS : 4;
    const float *b = (const float *)(const void *)t->b;
    int64_t left = t->words;
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++) sum[i][0] = sum[i][1] = vf_zero();
#pragma GCC unroll 4
    for (int i = 0; i < BASES; i++) a[i] = t->a + LINES_EACH * i * line;
    for (int i = 0; i < rows; i++) prefetch_row(t, i);
    for (; left >= WORDS_AT_ONCE; left -= WORDS_AT_ONCE) {
#pragma GCC unroll 8
        for (int u = 0; u < WORDS_AT_ONCE; u++)
            multiply_word(rows, pairs, a, line, u * step, b + u * COLUMNS, sum);
        b += WORDS_AT_ONCE * COLUMNS;
#pragma GCC unroll 4
        for (int i = 0; i < BASES; i++) a[i] += WORDS_AT_ONCE * step;
    }
    for (int64_t u = 0; WORDS_AT_ONCE > 1 && u < left; u++)
        multiply_word(rows, pairs, a, line, u * step, b + u * COLUMNS, sum);
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++) {
        store_half(t, i, 0, sum[i][0]);
        store_half(t, i, VL, sum[i][1]);
    }
}

#define TILE(rows, packed, pairs)                                                                  \
    static void tile_##rows##_##packed##_##pairs(const Tile *t) { tile(rows, packed, pairs, t); }
#define TILES(rows)                                                                                \
    TILE(rows, 0, 0)                                                                               \
    TILE(rows, 1, 0)                                                                               \
    TILE(rows, 0, 1)                                                                               \
    TILE(rows, 1, 1)
#if defined(__AVX512F__)
TILES(12)
TILES(8)
#else
TILES(6)
#endif
TILES(4)
TILES(1)

#define CHOOSE(rows)                                                                               \
    {                                                                                              \
        {tile_##rows##_0_0, tile_##rows##_0_1}, { tile_##rows##_1_0, tile_##rows##_1_1 }           \
    }
/* in falling order: how many rows, and the tile by [packed][pairs] */
static const struct TileKind {
    int rows;
    void (*run[2][2])(const Tile *t);
} tiles[] = {
#if defined(__AVX512F__)
    {12, CHOOSE(12)},
    {8, CHOOSE(8)},
#else
    {6, CHOOSE(6)},
#endif
    {4, CHOOSE(4)},
    {1, CHOOSE(1)},
};

/* ---- the block -------------------------------------------------------------------------- */

/* How the lines of A reach the tiles. */
typedef enum AMode {
    A_IN_PLACE,
    A_COPIED, /* in place they would share a few sets of the first cache (lines 4 KiB apart), or are
                 no words */
    A_PACKED,
} AMode;

/* A block of k in work: B packed, A as its mode says. */
typedef struct Work {
    const GemmBlock *block;
    AMode mode;
    bool pairs;
    uint32_t *a;       /* scratch */
    const uint32_t *b; /* of each panel the words of this block; so far apart: */
    int64_t panel_words;
    int64_t k0, k1, words;
    char *c; /* C or sums aside: line c_line begins here */
    int64_t c_line, c_pitch;
    DType c_dtype;
} Work;

/* Words of A can be read where they are when k is contiguous and no half word is at the end. */
static AMode a_mode(const GemmBlock *block)
{
    const bool bf16 = block->a.dtype == DTYPE_BF16;
    if (block->a.k_stride == 1 && bf16 && COPIES_BF16) return A_COPIED;
    if (block->a.k_stride != 1 || (bf16 && (!PAIRS || block->k % 2))) return A_PACKED;
    return block->a.line_stride * (int64_t)dtype_bytes(block->a.dtype) % SET_STRIDE ? A_IN_PLACE
                                                                                    : A_COPIED;
}

/* How k is cut: equal blocks of `step` words, `group` of them packed together. An f32 C takes up
 * the sum after each block; a bf16 C only once, so its blocks are longer, all in one group, and
 * summed aside. */
typedef struct Blocking {
    int64_t step, group;
    bool sum; /* aside, in f32 */
} Blocking;

static Blocking blocking_of(const GemmBlock *block)
{
    const bool f32 = block->c_dtype == DTYPE_F32;
    int64_t words = ceil_div(block->k, per_word(block->a.dtype));
    const bool packed = a_mode(block) == A_PACKED;
    int64_t blocks = max_i64(1, ceil_div(words, !f32     ? SUM_WORDS
                                                : packed ? BLOCK_WORDS
                                                         : LONG_WORDS));
    Blocking b = {.step = ceil_div(words, blocks), .group = blocks, .sum = !f32 && blocks > 1};
    if (f32) b.group = packed ? 1 : min_i64(GROUP, blocks);
    return b;
}

static const char *a_at(const Work *work, int64_t row)
{
    const GemmOperand *a = &work->block->a;
    return (const char *)a->data + (row * a->line_stride + work->k0) * element_bytes(a);
}

/* of one line, in place */
static int64_t a_bytes(const Work *work)
{
    const DType dtype = work->block->a.dtype;
    return work->words * per_word(dtype) * (int64_t)dtype_bytes(dtype);
}

/* Part j of n of the ROWS lines of A in place that come after `row`, so that each tile finds its
 * lines in the first cache. */
static void prefetch_a(const Work *work, int64_t row, int64_t j, int64_t n)
{
    const int64_t pitch = work->block->a.line_stride * element_bytes(&work->block->a);
    const int64_t lines = ceil_div(a_bytes(work), CACHE_LINE), from = lines * j / n,
                  to = lines * (j + 1) / n;
    const int64_t end = min_i64(row + 2 * ROWS, work->block->m);
    if (row + ROWS >= end) return;
    const char *line = a_at(work, row + ROWS);
    for (int64_t i = row + ROWS; i < end; i++, line += pitch)
        for (int64_t b = from; b < to; b++) __builtin_prefetch(line + b * CACHE_LINE);
}

/* a whole vector at the end of a line has room */
static int64_t copy_pitch(int64_t words) { return 4 * words + CACHE_LINE; }

static void copy_line(float *to, const char *from, int64_t words, bool convert)
{
    int64_t i = 0;
    if (!convert) {
        memcpy(to, from, (size_t)words * 4);
        return;
    }
    for (; i + VL <= words; i += VL) vf_store(to + i, vf_load_as(from, i, 1));
    if (i < words) vf_store(to + i, vf_load_as_n(from, i, words - i, 1));
}

/* Where line `row` begins for the tiles, and how far it is to the next. */
static const char *a_lines(const Work *work, int64_t row, int64_t rows, int64_t first,
                           int64_t *line_bytes)
{
    *line_bytes = work->block->a.line_stride * element_bytes(&work->block->a);
    if (work->mode == A_PACKED) return (const char *)(work->a + (row - first) * work->words);
    if (work->mode == A_IN_PLACE) return a_at(work, row);
    const bool convert = work->block->a.dtype == DTYPE_BF16 && !PAIRS;
    *line_bytes = copy_pitch(work->words);
    for (int64_t i = 0; i < rows; i++)
        copy_line((float *)(void *)((char *)work->a + i * *line_bytes), a_at(work, row + i),
                  work->words, convert);
    return (const char *)work->a;
}

/* `rows` lines of A from `row` on, at most ROWS, against every panel of B */
static void run_row(const Work *work, int64_t row, int64_t rows, int64_t first)
{
    const GemmBlock *block = work->block;
    const int64_t c_bytes = (int64_t)dtype_bytes(work->c_dtype);
    const bool packed = work->mode == A_PACKED;
    Tile t = {.words = work->words,
              .c_pitch = work->c_pitch,
              .c_bf16 = work->c_dtype == DTYPE_BF16,
              .add = block->add || work->k0 > 0};
    const char *a = a_lines(work, row, rows, first, &t.a_line_bytes);
    int kind = 0;
    for (int64_t done = 0; done < rows; done += tiles[kind].rows) {
        while (tiles[kind].rows > rows - done) kind++;
        t.a = a + done * (packed ? 4 : t.a_line_bytes);
        for (int64_t j = 0; j < block->n; j += COLUMNS) {
            t.b = work->b + j / COLUMNS * work->panel_words;
            t.c = work->c + ((row + done - work->c_line) * work->c_pitch + j) * c_bytes;
            t.columns = block->n - j;
            if (!packed && done == 0)
                prefetch_a(work, row, j / COLUMNS, ceil_div(block->n, COLUMNS));
            tiles[kind].run[packed][work->pairs](&t);
        }
    }
}

static void run_lines(const Work *work, int64_t first, int64_t end)
{
    if (work->mode == A_PACKED)
        pack_a(work->a,
               &(Window){&work->block->a, first, end - first, work->k0, work->k1, work->words});
    for (int64_t i = first; i < end; i += ROWS) run_row(work, i, min_i64(end - i, ROWS), first);
}

/* The sums of some lines go where they belong. */
static void store_sums(const Work *work, int64_t first, int64_t end)
{
    const GemmBlock *block = work->block;
    for (int64_t i = first; i < end; i++) {
        const float *from = (const float *)(void *)work->c + (i - first) * work->c_pitch;
        uint16_t *to = (uint16_t *)block->c + i * block->c_pitch;
        int64_t j = 0;
        for (; j + VL <= block->n; j += VL) vf_store_bf16(to + j, vf_load(from + j));
        if (j < block->n) vf_store_bf16_n(to + j, vf_load_n(from + j, block->n - j), block->n - j);
    }
}

/* Where packed panels of all of k, if any, have the words from element k on. */
static int64_t words_before(const GemmBlock *block, int64_t k)
{
    return k / per_word(block->b.dtype) * COLUMNS;
}

static int64_t panel_words(const GemmBlock *block)
{
    return ceil_div(block->k, per_word(block->b.dtype)) * COLUMNS;
}

/* Block i of the group that begins at element k, and where it is packed in the scratch; false past
 * the end. */
static bool enter_block(Work *work, uint32_t **b, const Blocking *blocking, int64_t k, int64_t i)
{
    const GemmBlock *block = work->block;
    const int64_t per = per_word(block->a.dtype), step = blocking->step;
    work->k0 = k + i * step * per;
    if (i >= blocking->group || work->k0 >= block->k) return false;
    work->k1 = min_i64(work->k0 + step * per, block->k);
    work->words = ceil_div(work->k1 - work->k0, per);
    if (block->packed) {
        work->b = block->packed + words_before(block, work->k0);
        work->panel_words = panel_words(block);
        return true;
    }
    *b = (uint32_t *)block->scratch + i * ceil_div(block->n, COLUMNS) * COLUMNS * step;
    work->b = *b;
    work->panel_words = work->words * COLUMNS;
    return true;
}

/* From element k on, a group of blocks: all of B is packed, then some lines of C meet one block
 * after the other, and stay in L2 meanwhile. */
static void run_group(Work *work, const Blocking *blocking, int64_t k)
{
    const GemmBlock *block = work->block;
    uint32_t *b;
    for (int64_t i = 0; !block->packed && enter_block(work, &b, blocking, k, i); i++)
        pack_b(b, &(Window){&block->b, 0, block->n, work->k0, work->k1, work->words});
    for (int64_t line = 0; line < block->m; line += A_LINES) {
        int64_t end = min_i64(line + A_LINES, block->m);
        if (blocking->sum) work->c_line = line;
        for (int64_t i = 0; enter_block(work, &b, blocking, k, i); i++) run_lines(work, line, end);
        if (blocking->sum) store_sums(work, line, end);
    }
}

static void run(const GemmBlock *block)
{
    const int64_t columns = ceil_div(block->n, COLUMNS) * COLUMNS;
    const Blocking blocking = blocking_of(block);
    Work work = {.block = block,
                 .mode = a_mode(block),
                 .pairs = per_word(block->a.dtype) == 2,
                 .a = (uint32_t *)block->scratch + columns * blocking.step * blocking.group,
                 .c = block->c,
                 .c_pitch = block->c_pitch,
                 .c_dtype = block->c_dtype};
    if (blocking.sum) {
        work.c = (char *)(work.a + A_LINES * blocking.step + ROWS * CACHE_LINE / 4);
        work.c_pitch = columns;
        work.c_dtype = DTYPE_F32;
    }
    for (int64_t k = 0; k < block->k;
         k += blocking.group * blocking.step * per_word(block->a.dtype))
        run_group(&work, &blocking, k);
}

/* Enough for any smaller n and k too. Those may be cut into longer blocks; a group of them is then
 * at most a word a block longer than k. */
static size_t block_scratch(const GemmBlock *block)
{
    const int64_t all = ceil_div(block->k, per_word(block->a.dtype)),
                  columns = ceil_div(block->n, COLUMNS) * COLUMNS;
    int64_t step = min_i64(all, SUM_WORDS), group = all + ceil_div(all, SUM_WORDS),
            sums = A_LINES * columns;
    if (block->c_dtype == DTYPE_F32) {
        step = min_i64(all, LONG_WORDS);
        group = block->a.k_stride == 1 ? min_i64(all + GROUP, GROUP * LONG_WORDS) : step;
        sums = 0;
    }
    int64_t words = columns * group + A_LINES * step + ROWS * CACHE_LINE / 4 + sums;
    return ((size_t)words * 4 + 63) / 64 * 64;
}

/* ---- B packed whole --------------------------------------------------------------------- */

static const uint32_t *packed_line(const GemmBlock *product, const uint32_t *packed, int64_t line)
{
    return packed + line / COLUMNS * panel_words(product);
}

static size_t packed_bytes(const GemmBlock *product)
{
    return (size_t)(ceil_div(product->n, COLUMNS) * panel_words(product)) * 4;
}

/* Panels of all of k; a piece of one at a time, a few panels side by side where lines are
 * neighbours, so that memory is read in runs. */
static void pack_whole(const GemmBlock *product, uint32_t *packed, int threads)
{
    const int64_t per = per_word(product->b.dtype), step = SUM_WORDS * per;
    const int64_t lines = PACKED_PANELS * COLUMNS, in_n = ceil_div(product->n, lines);
    const int64_t pieces = in_n * ceil_div(product->k, step);
#pragma omp parallel for num_threads(threads) if (pieces > 1)
    for (int64_t piece = 0; piece < pieces; piece++) {
        const int64_t line = piece % in_n * lines, k = piece / in_n * step;
        const Window w = {&product->b,
                          line,
                          min_i64(lines, product->n - line),
                          k,
                          min_i64(k + step, product->k),
                          panel_words(product) / COLUMNS};
        pack_b(packed + line / COLUMNS * panel_words(product) + words_before(product, k), &w);
    }
}

/* ---- many threads ----------------------------------------------------------------------- */

/* C in blocks of m x n, for threads to take one after the other. */
typedef struct Cut {
    int64_t m, n;
} Cut;

/* The length of equal parts, a multiple of `unit`. */
static int64_t part(int64_t length, int64_t parts, int64_t unit)
{
    return ceil_div(ceil_div(length, parts), unit) * unit;
}

/* What the team takes for blocks of this cut, in multiply-adds of one k: as many blocks one after
 * the other as the busiest thread has, each with its packing. What one more block would cost counts
 * a little, as threads are not done at the same moment; and so does a cut by which threads have
 * parts of the same rows, read and written when the op before and the next had them elsewhere. */
static int64_t cut_cost(const GemmBlock *p, Cut cut, int threads)
{
    const bool packed = a_mode(p) == A_PACKED;
    const int64_t m_parts = ceil_div(p->m, cut.m), blocks = m_parts * ceil_div(p->n, cut.n);
    const int64_t of_one = (cut.m + PACK_B_ROWS) *
                           (cut.n + (packed ? PACK_A_COLUMNS : COPY_A_COLUMNS));
    const int64_t all = ceil_div(blocks, threads) * of_one;
    return all + of_one / 32 + (!packed && m_parts % threads ? all / 16 : 0);
}

/* The cheapest of the cuts whose packed B fills at most a good part of L2. Each thread has a few
 * blocks, or a few for each part of the columns. */
static Cut cut_of(const GemmBlock *p, int threads)
{
    enum { FEW_BLOCKS = 4, MORE_PARTS = 3 };
    const Blocking b = blocking_of(p);
    const int64_t fitting = min_i64(L2_WORDS / b.step, GROUP_WORDS / (b.step * b.group)) / COLUMNS *
                            COLUMNS;
    const int64_t fewest = ceil_div(p->n, max_i64(2 * COLUMNS, min_i64(384, fitting)));
    Cut best = {0};
    int64_t least = INT64_MAX;
    for (int64_t n_parts = fewest; n_parts <= fewest + MORE_PARTS; n_parts++)
        for (int64_t i = 0; i < 2 * FEW_BLOCKS; i++) {
            const int64_t few = (1 + i / 2) * threads, m_parts = i % 2 ? few : few / n_parts;
            const Cut cut = {part(p->m, max_i64(1, m_parts), ROWS), part(p->n, n_parts, COLUMNS)};
            const int64_t cost = cut_cost(p, cut, threads);
            if (cost >= least) continue;
            least = cost;
            best = cut;
        }
    return best;
}

/* Too few rows for packing B to pay. */
static bool is_few(const GemmBlock *p)
{
    return p->m <= FEW_ROWS && p->a.k_stride == 1 && p->b.k_stride == 1;
}

static size_t scratch(const GemmBlock *product, int threads)
{
    if (is_few(product)) return 0;
    GemmBlock block = *product;
    block.n = cut_of(product, threads).n;
    return block_scratch(&block) * (size_t)threads;
}

static void run_part(const GemmBlock *product, Cut cut, int64_t item, size_t scratch_bytes)
{
    GemmBlock block = *product;
    int64_t n_parts = ceil_div(product->n, cut.n);
    int64_t i = item / n_parts * cut.m, j = item % n_parts * cut.n;
    block.m = min_i64(cut.m, product->m - i);
    block.n = min_i64(cut.n, product->n - j);
    block.a.data = operand_line(&product->a, i);
    block.b.data = operand_line(&product->b, j);
    block.c = (char *)product->c +
              (i * product->c_pitch + j) * (int64_t)dtype_bytes(product->c_dtype);
    block.scratch = (char *)product->scratch + (size_t)thread_index() * scratch_bytes;
    if (product->packed) block.packed = packed_line(product, product->packed, j);
    if (is_few(product))
        CPU(gemm_dots)(&block);
    else
        run(&block);
}

static void multiply(const GemmBlock *product, int threads)
{
    Cut cut = is_few(product) ? (Cut){.m = product->m, .n = FEW_LINES} : cut_of(product, threads);
    size_t scratch_bytes = scratch(product, threads) / (size_t)threads;
    int64_t items = ceil_div(product->m, cut.m) * ceil_div(product->n, cut.n);
    bool small = (double)product->m * (double)product->n * (double)product->k < SMALL_PRODUCT;
    Shares shares;
    shares_deal(&shares, threads, items);
#pragma omp parallel num_threads(threads) if (!small && items > 1)
    for (int64_t item; (item = shares_take(&shares)) >= 0;)
        run_part(product, cut, item, scratch_bytes);
}

const Gemm CPU(gemm) = {.rows = ROWS,
                        .columns = COLUMNS,
                        .run = run,
                        .block_scratch = block_scratch,
                        .multiply = multiply,
                        .scratch = scratch,
                        .packed_bytes = packed_bytes,
                        .pack = pack_whole,
                        .packed_line = packed_line};
