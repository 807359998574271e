/* attention on the cuda device: what its kernels are given, and what a block of threads knows of
 * its queries. Included by .cu files only.
 *
 * As on the processor the rows of a block are all query heads of one kv head for some tokens: row r
 * is head r % group of token r / group, so that the heads share keys and values. Keys go by in
 * blocks; scores of the rows against one block are all that exists of the score matrix. Scores are
 * kept times log2 e, for 2^x.
 */
#ifndef OPS_ATTENTION_CUH
#define OPS_ATTENTION_CUH

#include "ops/mma.cuh"

extern "C" {
#include "ops/attention/attention_gpu.h"
#include "ops/attention/attention_internal.h"
}

enum { ATTENTION_CHUNK = 8 }; /* bf16 in 16 bytes */
constexpr float LOG2_E = 1.44269504f, LN_2 = 0.693147181f;

struct AttentionJob {
    Rows q, k, v;       /* tokens */
    const int32_t *pos; /* [batch tokens] */
    AttentionSlice slice, keys;
    int64_t chunk, cache_rows; /* cache_rows 0: keys are those of the sequence; else there are pages
                                  for so many positions, */
    const int32_t *table;      /* table_pages to a sequence, of 2^page_shift positions */
    int table_pages, page_shift;
    int batch, tokens, n_keys, heads, kv_heads, group, d;
    float scale, softcap, alibi;
    int64_t alibi_heads, alibi_first;
};

/* Of the operands q, k, v and positions that all ops begin with. */
static inline AttentionJob attention_job(const KernelArgs *args, bool cached)
{
    const AttentionAttr *attr = (const AttentionAttr *)args->attr;
    const Tensor *in = args->in;
    const int64_t *q = in[ATTENTION_Q].shape.dim, *k = in[ATTENTION_K].shape.dim;
    AttentionJob job = {};
    job.q = tensor_as_rows(&in[ATTENTION_Q], 2);
    job.k = tensor_as_rows(&in[ATTENTION_K], 2);
    job.v = tensor_as_rows(&in[ATTENTION_V], 2);
    job.pos = (const int32_t *)in[ATTENTION_POS].data;
    job.slice = attr->slice;
    job.chunk = attr->chunk;
    if (cached) {
        job.table = (const int32_t *)in[ATTENTION_TABLE].data;
        job.table_pages = (int)in[ATTENTION_TABLE].shape.dim[1];
        job.page_shift = attention_page_shift(&in[ATTENTION_K].shape);
        job.cache_rows = k[1] * job.table_pages;
    }
    job.batch = (int)q[0];
    job.tokens = (int)q[1];
    job.n_keys = (int)k[1];
    job.heads = (int)q[2];
    job.kv_heads = (int)k[2];
    job.group = job.heads / job.kv_heads;
    job.d = (int)q[3];
    job.scale = attr->scale;
    job.softcap = attr->softcap;
    job.alibi = attr->alibi;
    job.alibi_heads = attr->alibi_heads ? attr->alibi_heads : q[2];
    job.alibi_first = attr->alibi_first;
    return job;
}

/* Rows may be copied 16 bytes at a time. */
static inline bool attention_aligned(const Rows *rows, int d)
{
    return d % ATTENTION_CHUNK == 0 && rows_align(rows, ATTENTION_CHUNK);
}

/* ---- rows and their keys ------------------------------------------------------------------ */

__device__ inline KeyRange attention_token_range(const AttentionJob &job, int b, int t)
{
    int64_t pos = job.pos[(int64_t)b * job.tokens + t];
    if (job.cache_rows) return attention_cached_range(pos, job.chunk, job.cache_rows);
    KeyRange rows = attention_range(attention_row(&job.slice, t), pos, job.chunk), keys;
    keys.first = attention_keys_before(&job.keys, job.n_keys, rows.first);
    keys.end = attention_keys_before(&job.keys, job.n_keys, rows.end);
    return keys;
}

/* The row of a token, as keys count theirs. */
__device__ inline int64_t attention_query_row(const AttentionJob &job, int b, int t)
{
    return job.cache_rows ? job.pos[(int64_t)b * job.tokens + t] : attention_row(&job.slice, t);
}

/* Which rows of which sequence and kv head a block of threads has. */
struct AttentionPlace {
    int b, h, row, rows; /* the first of its rows, and how many there are of this kv head */
};

/* Blocks are numbered with the last rows first: they see the most keys. */
__device__ inline AttentionPlace attention_place(const AttentionJob &job, int64_t i, int tile)
{
    AttentionPlace place;
    place.rows = job.tokens * job.group;
    int tiles = (place.rows + tile - 1) / tile;
    int64_t pairs = (int64_t)job.batch * job.kv_heads, pair = i % pairs;
    place.row = (tiles - 1 - (int)(i / pairs)) * tile;
    place.b = (int)(pair / job.kv_heads);
    place.h = (int)(pair % job.kv_heads);
    return place;
}

/* Row r of a block: where its elements begin, as a number of them from those of the tensor; below
 * 0: there is no such row. */
__device__ inline int64_t attention_row_at(const AttentionJob &job, const AttentionPlace &place,
                                           int r, const Rows &rows)
{
    int row = place.row + r, token = row / job.group, head = row - token * job.group;
    if (row >= place.rows) return -1;
    return ((int64_t)place.b * job.tokens + token) * rows.pitch +
           (int64_t)(place.h * job.group + head) * job.d;
}

/* The same in [B H T]. */
__device__ inline int64_t attention_stat_at(const AttentionJob &job, const AttentionPlace &place,
                                            int r)
{
    int row = place.row + r, token = row / job.group, head = row - token * job.group;
    if (row >= place.rows) return -1;
    return ((int64_t)place.b * job.heads + place.h * job.group + head) * job.tokens + token;
}

/* What a row's scores are made with. Key numbers are counted from the block's origin. */
struct AttentionRow {
    int first, end; /* keys that it sees; 0, 0: none */
    /* ALiBi: key k adds slope * min(k + offset, 0), offset[1] from key `split` on: where it stands
     * behind the query is counted in whole rows, so that nothing cancels */
    float slope;
    int offset[2];
};

/* The keys that some row of a block sees, from a multiple of `step` on. */
struct AttentionKeys {
    int64_t origin;
    int first, end; /* from the origin */
    int split;      /* from here on keys have offset[1] */
};

__device__ inline int warp_min_int(int x)
{
    for (int at = WARP / 2; at; at /= 2) x = min(x, __shfl_xor_sync(FULL_WARP, x, at));
    return x;
}
__device__ inline int warp_max_int(int x)
{
    for (int at = WARP / 2; at; at /= 2) x = max(x, __shfl_xor_sync(FULL_WARP, x, at));
    return x;
}

/* Each lane's least or greatest of the block's tokens, over a warp. */
__device__ inline int64_t warp_least(int64_t x)
{
    for (int at = WARP / 2; at; at /= 2) x = min(x, __shfl_xor_sync(FULL_WARP, x, at));
    return x;
}
__device__ inline int64_t warp_greatest(int64_t x)
{
    for (int at = WARP / 2; at; at /= 2) x = max(x, __shfl_xor_sync(FULL_WARP, x, at));
    return x;
}

/* The keys of a block of n rows. By a whole warp, each for itself. */
__device__ inline AttentionKeys attention_keys(const AttentionJob &job, const AttentionPlace &place,
                                               int n, int step)
{
    int token = place.row / job.group,
        tokens = (min(place.row + n, place.rows) - 1) / job.group - token + 1;
    KeyRange all = {INT64_MAX, 0};
    for (int i = (int)threadIdx.x % WARP; i < tokens; i += WARP) {
        KeyRange r = attention_token_range(job, place.b, token + i);
        if (r.first >= r.end) continue;
        all.first = min(all.first, r.first);
        all.end = max(all.end, r.end);
    }
    all.first = warp_least(all.first);
    all.end = warp_greatest(all.end);
    AttentionKeys keys = {};
    if (all.first < all.end) {
        keys.origin = all.first / step * step;
        keys.first = (int)(all.first - keys.origin);
        keys.end = (int)(all.end - keys.origin);
    }
    keys.split = (int)max((int64_t)INT32_MIN,
                          min(job.keys.split - keys.origin, (int64_t)INT32_MAX));
    return keys;
}

__device__ inline AttentionRow attention_row_of(const AttentionJob &job,
                                                const AttentionPlace &place,
                                                const AttentionKeys &keys, int i)
{
    AttentionRow to = {};
    int r = place.row + i, t = r / job.group;
    if (r >= place.rows) return to;
    KeyRange range = attention_token_range(job, place.b, t);
    if (range.first < range.end) {
        to.first = (int)(range.first - keys.origin);
        to.end = (int)(range.end - keys.origin);
    }
    if (job.alibi > 0) {
        int head = place.h * job.group + (r - t * job.group);
        int64_t behind = keys.origin - attention_query_row(job, place.b, t);
        to.slope = LOG2_E * attention_slope(job.alibi, job.alibi_heads, job.alibi_first + head);
        to.offset[0] = (int)(behind + job.keys.first);
        to.offset[1] = (int)(behind + job.keys.second);
    }
    return to;
}

/* Fills `row` (shared memory, n of them). Every warp finds the block's keys for itself. A barrier
 * must follow before rows are read. */
__device__ inline AttentionKeys attention_rows(const AttentionJob &job, const AttentionPlace &place,
                                               int n, int step, AttentionRow *row)
{
    AttentionKeys keys = attention_keys(job, place, n, step);
    for (int i = (int)threadIdx.x; i < n; i += (int)blockDim.x)
        row[i] = attention_row_of(job, place, keys, i);
    return keys;
}

/* Where key `key` from the origin lies: among those of the sequence, or in the pages. */
template <bool PAGED>
__device__ inline int64_t attention_key_at(const AttentionJob &job, const AttentionPlace &place,
                                           int64_t origin, int key, const Rows &rows)
{
    int64_t row = (int64_t)place.b * job.n_keys + origin + key;
    if (PAGED)
        row = attention_page_row(job.table + place.b * job.table_pages, job.page_shift,
                                 (int)origin + key);
    return row * rows.pitch + (int64_t)place.h * job.d;
}

/* ---- scores ------------------------------------------------------------------------------- */

/* 2^x to about 2 in 2^23; of numbers below the normal ones, 0. */
__device__ inline float exp2_fast(float x)
{
#ifdef GPU_EMULATED
    return exp2f(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

/* A score times log2 e is unit * shaped: of plain scores the unit has the factors, and they are
 * left as products gave them. */
__device__ inline float attention_unit(const AttentionJob &job)
{
    return job.softcap > 0 || job.alibi > 0 ? 1.0f : job.scale * LOG2_E;
}

/* softcap * tanh(scale * s / softcap) log2 e */
__device__ inline float attention_cap(const AttentionJob &job, float s)
{
    float twice = exp2_fast(s * (2 * LOG2_E * job.scale / job.softcap));
    return job.softcap * LOG2_E * (1 - __fdividef(2, twice + 1));
}
/* The slope of that, over scale, from its result. */
__device__ inline float attention_cap_slope(const AttentionJob &job, float capped)
{
    float part = capped * (LN_2 / job.softcap);
    return 1 - part * part;
}

__device__ inline float attention_lean(const AttentionRow &row, int key, int split)
{
    return row.slope * (float)min(key + (key < split ? row.offset[0] : row.offset[1]), 0);
}

#endif
