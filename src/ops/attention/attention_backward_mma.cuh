/* attention's gradient by tensor cores (Dao 2023). Included by attention_grad.cu.
 *
 * dk, dv: a block of threads has KEYS keys, whose gradients stay in registers: 16 keys a warp, of
 * heads too wide for that half of the columns. Tiles of tokens of one head go by, the next under
 * way while one is worked on. Products are made transposed, [keys, queries], so that probabilities
 * and dz are in registers what the next products need on their left.
 * dq: a block has rows as in the forward pass; keys and values go by.
 */
#ifndef OPS_ATTENTION_BACKWARD_MMA_CUH
#define OPS_ATTENTION_BACKWARD_MMA_CUH

#include "ops/attention/attention_backward.cuh"

/* Scores of one lane's element become the probability, and that times the slope of a cap. */
__device__ __forceinline__ float attention_probability(const AttentionJob &job,
                                                       const AttentionRow &row, float unit,
                                                       float shift, int key, int split, bool seen,
                                                       float &s)
{
    float slope = 1, p;
    if (job.softcap > 0) {
        float z = attention_cap(job, s);
        slope = attention_cap_slope(job, z);
        p = exp2_fast(z - shift);
    } else if (job.alibi > 0) {
        p = exp2_fast(fmaf(s, job.scale * LOG2_E, attention_lean(row, key, split)) - shift);
    } else {
        p = exp2_fast(fmaf(s, unit, -shift));
    }
    p = seen ? p : 0;
    s = seen ? p * slope : 0;
    return p;
}

/* ---- dk and dv ---------------------------------------------------------------------------- */

template <int D_, int WARPS_, int HALVES_> struct AttentionKeysShape {
    static constexpr int D = D_, WARPS = WARPS_, HALVES = HALVES_, THREADS = WARPS * WARP;
    static constexpr int KEYS = 16 * WARPS / HALVES, ROWS = TILE_TOKENS, COLUMNS = D / HALVES;
    static constexpr int STEP = 32; /* queries at a time */
    static constexpr int PITCH = ATTENTION_PITCH<D>, STAGE = 2 * ROWS * PITCH; /* q, then do */
    static constexpr size_t SHARED = (size_t)(2 * KEYS * PITCH + 2 * STAGE) * sizeof(bf16) +
                                     2 * ROWS * (sizeof(AttentionRange) + sizeof(AttentionStat));
};

/* Queries of one head: [2][ROWS] each, by stages. */
struct AttentionTold {
    AttentionRange *range;
    AttentionStat *stat;
};

template <class S>
__device__ __forceinline__ void attention_load_queries(const AttentionBackward &f, int b, int head,
                                                       int tile, int at, bf16 *stages,
                                                       const AttentionTold &told)
{
    int first = tile * S::ROWS, there = f.of.tokens - first;
    for (int i = 0; i < 2; i++) {
        const Rows &rows = i ? f.dout : f.of.q;
        attention_load<S::D, S::ROWS, S::THREADS>(
            stages + at * S::STAGE + i * S::ROWS * S::PITCH, f.of.d, f.aligned, rows.data,
            [&](int r) -> const bf16 * {
                if (r >= there) return NULL;
                return (const bf16 *)(void *)rows.data +
                       ((int64_t)b * f.of.tokens + first + r) * rows.pitch + (int64_t)head * f.of.d;
            });
    }
    for (int r = (int)threadIdx.x; r < S::ROWS; r += S::THREADS) {
        const AttentionRange *range = f.range + (int64_t)b * f.of.tokens + first + r;
        const AttentionStat *stat = f.stat + ((int64_t)b * f.of.heads + head) * f.of.tokens +
                                    first + r;
        bool is = r < there;
        copy_async<8>(told.range + at * S::ROWS + r, is ? range : f.range, is);
        copy_async<8>(told.stat + at * S::ROWS + r, is ? stat : f.stat, is);
    }
}

/* Queries `column`.. of a stage against the warp's 16 keys, which begin with key `first`. */
template <class S>
__device__ __forceinline__ void
attention_keys_step(const AttentionBackward &f, const AttentionTold &told, int t, int column,
                    float slope, int first, bool masked, const bf16 *k, const bf16 *v,
                    const bf16 *q, const bf16 *dout, float (&dk)[1][S::COLUMNS / 8][4],
                    float (&dv)[1][S::COLUMNS / 8][4])
{
    constexpr int STEP = S::STEP;
    float s[1][STEP / 8][4], dp[1][STEP / 8][4], unit = attention_unit(f.of);
    uint32_t p[1][STEP / 16][4];
    int half = (int)threadIdx.x / WARP % S::HALVES * S::COLUMNS;
    int split = attention_split_key(f.of);
    attention_dots<S::D, 1, STEP>(s, k, q);
    float probability[1][STEP / 8][4];
#pragma unroll
    for (int n = 0; n < STEP / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int r = column + attention_lane_column(n, i), key = first + attention_lane_row(i / 2);
            AttentionRange range = told.range[r];
            AttentionRow row = attention_query(f, range, slope, t + r);
            bool seen = !masked || (key >= range.first && key < range.end);
            probability[0][n][i] = attention_probability(f.of, row, unit, told.stat[r].shift, key,
                                                         split, seen, s[0][n][i]);
        }
    attention_pack<1, STEP>(p, probability);
    attention_add<S::PITCH, 1, STEP, S::COLUMNS>(dv, p, dout + half);
    attention_dots<S::D, 1, STEP>(dp, v, dout);
#pragma unroll
    for (int n = 0; n < STEP / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            s[0][n][i] *= fmaf(dp[0][n][i], f.of.scale,
                               -told.stat[column + attention_lane_column(n, i)].delta);
    attention_pack<1, STEP>(p, s);
    attention_add<S::PITCH, 1, STEP, S::COLUMNS>(dk, p, q + half);
}

/* The warp's rows of dk or dv. */
template <class S>
__device__ __forceinline__ void attention_store_keys(const AttentionBackward &f, const Rows &to,
                                                     int b, int h, int first,
                                                     const float (&c)[1][S::COLUMNS / 8][4])
{
    int half = (int)threadIdx.x / WARP % S::HALVES * S::COLUMNS;
    if (!to.data) return;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int key = first + attention_lane_row(i);
        if (key >= f.of.n_keys) continue;
        int64_t at = ((int64_t)b * f.of.n_keys + key) * to.pitch + (int64_t)h * f.of.d;
#pragma unroll
        for (int n = 0; n < S::COLUMNS / 8; n++)
            attention_store_two(to, at, half + attention_lane_column(n, 0), f.of.d, c[0][n][2 * i],
                                c[0][n][2 * i + 1]);
    }
}

template <class S>
__global__ void __launch_bounds__(S::THREADS) attention_keys_mma_kernel(AttentionBackward f)
{
    GPU_DYNAMIC_SHARED(shared);
    bf16 *k = (bf16 *)shared, *v = k + S::KEYS * S::PITCH, *stages = v + S::KEYS * S::PITCH;
    AttentionTold told;
    told.range = (AttentionRange *)(stages + 2 * S::STAGE);
    told.stat = (AttentionStat *)(told.range + 2 * S::ROWS);
    int pairs = f.of.batch * f.of.kv_heads, pair = (int)(blockIdx.x % pairs);
    int b = pair / f.of.kv_heads, h = pair % f.of.kv_heads;
    int first = (int)(blockIdx.x / pairs) * S::KEYS, end = min(first + S::KEYS, f.of.n_keys);
    int warp_row = (int)threadIdx.x / WARP / S::HALVES * 16, mine = first + warp_row;
    float dk[1][S::COLUMNS / 8][4] = {}, dv[1][S::COLUMNS / 8][4] = {};
    AttentionWalk walk = {attention_tile_that_sees(f, b, 0, first, end), 0}, next;
    for (int i = 0; i < 2; i++) {
        const Rows &rows = i ? f.of.v : f.of.k;
        attention_load<S::D, S::KEYS, S::THREADS>(
            i ? v : k, f.of.d, f.aligned, rows.data, [&](int r) -> const bf16 * {
                if (first + r >= f.of.n_keys) return NULL;
                return (const bf16 *)(void *)rows.data +
                       ((int64_t)b * f.of.n_keys + first + r) * rows.pitch + (int64_t)h * f.of.d;
            });
    }
    if (walk.tile < f.tiles)
        attention_load_queries<S>(f, b, h * f.of.group, walk.tile, 0, stages, told);
    copy_async_commit();
    for (int stage = 0; walk.tile < f.tiles; stage ^= 1, walk = next) {
        next = attention_walk_next(f, b, walk, first, end);
        if (next.tile < f.tiles)
            attention_load_queries<S>(f, b, h * f.of.group + next.head, next.tile, stage ^ 1,
                                      stages, told);
        copy_async_commit();
        copy_async_wait<1>();
        __syncthreads(); /* this stage is there */
        const AttentionTile &tile = f.tile[(int64_t)b * f.tiles + walk.tile];
        AttentionTold here = {told.range + stage * S::ROWS, told.stat + stage * S::ROWS};
        const bf16 *q = stages + stage * S::STAGE, *dout = q + S::ROWS * S::PITCH;
        bool masked = tile.all_first > mine || tile.all_end < mine + 16;
        float slope = attention_head_slope(f.of, h * f.of.group + walk.head);
#pragma unroll 1
        for (int i = 0; i < S::ROWS && tile.first < mine + 16 && tile.end > mine; i += S::STEP)
            attention_keys_step<S>(f, here, walk.tile * S::ROWS, i, slope, mine, masked,
                                   k + warp_row * S::PITCH, v + warp_row * S::PITCH,
                                   q + i * S::PITCH, dout + i * S::PITCH, dk, dv);
        __syncthreads(); /* and used */
    }
    copy_async_wait<0>();
    attention_store_keys<S>(f, f.dk, b, h, mine, dk);
    attention_store_keys<S>(f, f.dv, b, h, mine, dv);
}

template <class S> static Status attention_keys_mma(GpuStream *stream, const AttentionBackward &f)
{
    int64_t blocks = ceil_div(f.of.n_keys, S::KEYS) * f.of.batch * f.of.kv_heads;
    TRY(GPU_ALLOW_SHARED((attention_keys_mma_kernel<S>), S::SHARED));
    return GPU_LAUNCH(stream, (unsigned)blocks, S::THREADS, S::SHARED,
                      (attention_keys_mma_kernel<S>), f);
}

/* ---- dq ----------------------------------------------------------------------------------- */

template <int D_, int M_, int WARPS_, int KEYS_> struct AttentionQueriesShape {
    static constexpr bool PAGED = false;
    static constexpr int D = D_, M = M_, WARPS = WARPS_, THREADS = WARPS * WARP;
    static constexpr int ROWS = 16 * M * WARPS, KEYS = KEYS_, PITCH = ATTENTION_PITCH<D>;
    static constexpr int STEP = 32, STAGE = 2 * KEYS * PITCH; /* keys, then values */
    static constexpr size_t SHARED = (size_t)(2 * ROWS * PITCH + 2 * STAGE) * sizeof(bf16) +
                                     ROWS * (sizeof(AttentionRow) + sizeof(AttentionStat));
};

/* STEP keys from `base` on against the warp's rows. */
template <class S>
__device__ __forceinline__ void
attention_queries_step(const AttentionJob &job, const AttentionRow *row, const AttentionStat *stat,
                       int base, int split, bool masked, const bf16 *q, const bf16 *dout,
                       const bf16 *k, const bf16 *v, float (&dq)[S::M][S::D / 8][4])
{
    float s[S::M][S::STEP / 8][4], dp[S::M][S::STEP / 8][4], unit = attention_unit(job);
    uint32_t dz[S::M][S::STEP / 16][4];
    attention_dots<S::D, S::M, S::STEP>(s, q, k);
    attention_dots<S::D, S::M, S::STEP>(dp, dout, v);
#pragma unroll
    for (int m = 0; m < S::M; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int r = m * 16 + attention_lane_row(h);
            const AttentionRow &of = row[r];
            AttentionStat known = stat[r];
            int first = of.first, end = of.end;
#pragma unroll
            for (int n = 0; n < S::STEP / 8; n++)
#pragma unroll
                for (int i = 2 * h; i < 2 * h + 2; i++) {
                    int key = base + attention_lane_column(n, i);
                    bool seen = !masked || (key >= first && key < end);
                    attention_probability(job, of, unit, known.shift, key, split, seen, s[m][n][i]);
                    s[m][n][i] *= fmaf(dp[m][n][i], job.scale, -known.delta);
                }
        }
    attention_pack<S::M, S::STEP>(dz, s);
    attention_add<S::PITCH, S::M, S::STEP, S::D>(dq, dz, k);
}

/* dq of a warp's rows, with what the parts before have come to. */
template <class S>
__device__ __forceinline__ void attention_store_queries(const AttentionBackward &f,
                                                        const AttentionPlace &place, int warp_row,
                                                        const float (&dq)[S::M][S::D / 8][4])
{
    const AttentionJob &job = f.of;
#pragma unroll
    for (int m = 0; m < S::M; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int r = warp_row + m * 16 + attention_lane_row(h);
            int64_t at = attention_row_at(job, place, r, f.dq);
            if (at < 0) continue;
            const float *before = NULL;
            if (f.dq_before.data)
                before = (const float *)(void *)f.dq_before.data +
                         attention_row_at(job, place, r, f.dq_before);
#pragma unroll
            for (int n = 0; n < S::D / 8; n++) {
                int c = attention_lane_column(n, 0);
                float x = dq[m][n][2 * h], y = dq[m][n][2 * h + 1];
                if (before && c < job.d) x += before[c];
                if (before && c + 1 < job.d) y += before[c + 1];
                attention_store_two(f.dq, at, c, job.d, x, y);
            }
        }
}

template <class S>
__global__ void __launch_bounds__(S::THREADS) attention_queries_mma_kernel(AttentionBackward f)
{
    GPU_DYNAMIC_SHARED(shared);
    bf16 *q = (bf16 *)shared, *dout = q + S::ROWS * S::PITCH, *stages = dout + S::ROWS * S::PITCH;
    AttentionRow *row = (AttentionRow *)(stages + 2 * S::STAGE);
    AttentionStat *stat = (AttentionStat *)(row + S::ROWS);
    int warp_row = (int)threadIdx.x / WARP * 16 * S::M;
    AttentionPlace place = attention_place(f.of, blockIdx.x, S::ROWS);
    AttentionKeys keys = attention_rows(f.of, place, S::ROWS, S::KEYS, row);
    int blocks = (keys.end + S::KEYS - 1) / S::KEYS;
    float dq[S::M][S::D / 8][4] = {};
    for (int i = (int)threadIdx.x; i < S::ROWS; i += S::THREADS) {
        int64_t at = attention_stat_at(f.of, place, i);
        AttentionStat none = {0, 0};
        stat[i] = at < 0 ? none : f.stat[at];
    }
    for (int i = 0; i < 2 && blocks; i++) {
        const Rows &rows = i ? f.dout : f.of.q;
        attention_load<S::D, S::ROWS, S::THREADS>(
            i ? dout : q, f.of.d, f.aligned, rows.data, [&](int r) -> const bf16 * {
                int64_t at = attention_row_at(f.of, place, r, rows);
                return at < 0 ? NULL : (const bf16 *)(void *)rows.data + at;
            });
    }
    if (blocks) attention_load_stage<S>(f.of, f.aligned, place, keys, 0, stages);
    copy_async_commit();
    __syncthreads();
    AttentionSight sight = attention_sight(row + warp_row, 16 * S::M);
    for (int block = 0; block < blocks; block++) {
        const bf16 *k = stages + block % 2 * S::STAGE, *v = k + S::KEYS * S::PITCH;
        if (block + 1 < blocks)
            attention_load_stage<S>(f.of, f.aligned, place, keys, block + 1,
                                    stages + (block + 1) % 2 * S::STAGE);
        copy_async_commit();
        copy_async_wait<1>();
        __syncthreads(); /* this block is there */
#pragma unroll 1
        for (int step = 0; step < S::KEYS; step += S::STEP) {
            int base = block * S::KEYS + step;
            if (sight.first >= base + S::STEP || sight.end <= base) continue;
            bool masked = sight.all_first > base || sight.all_end < base + S::STEP;
            attention_queries_step<S>(f.of, row + warp_row, stat + warp_row, base, keys.split,
                                      masked, q + warp_row * S::PITCH, dout + warp_row * S::PITCH,
                                      k + step * S::PITCH, v + step * S::PITCH, dq);
        }
        __syncthreads(); /* and used */
    }
    copy_async_wait<0>();
    attention_store_queries<S>(f, place, warp_row, dq);
}

template <class S>
static Status attention_queries_mma(GpuStream *stream, const AttentionBackward &f)
{
    int64_t tiles = ceil_div((int64_t)f.of.tokens * f.of.group, S::ROWS);
    int64_t blocks = tiles * f.of.batch * f.of.kv_heads;
    TRY(GPU_ALLOW_SHARED((attention_queries_mma_kernel<S>), S::SHARED));
    return GPU_LAUNCH(stream, (unsigned)blocks, S::THREADS, S::SHARED,
                      (attention_queries_mma_kernel<S>), f);
}

#endif
