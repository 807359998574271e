/* attention's gradient on GPUs of compute capability 9.0, for heads of 64 or 128 bf16: the two
 * kernels of attention_backward_mma.cuh by wgmma and the copy engine.
 *
 * dq: tiles of queries and of do stay, blocks of 64 keys go by, as in the forward pass: while a
 * block's scores are made, the last one's dz meets its keys.
 * dk, dv: 128 keys and their values stay, 64 for each warpgroup, tiles of 64 tokens of one head go
 * by. Scores are made transposed, so that probabilities and dz are in registers what the products
 * with do and q need on their left. Sums have one order. Included by attention_grad.cu. */
#ifndef OPS_ATTENTION_BACKWARD_HOPPER_CUH
#define OPS_ATTENTION_BACKWARD_HOPPER_CUH

#include "ops/attention/attention_backward_mma.cuh"
#include "ops/attention/attention_hopper.cuh"

template <int D>
using AttentionQueriesHopperShape = AttentionHopperShape<D, 64, D == 64 ? 4 : 3, 2>;

struct AttentionQueriesHopper {
    AttentionBackward f;
    AttentionHopperTiles tiles;
};

template <int D_> struct AttentionKeysHopperShape {
    static constexpr int D = D_, KEYS = 128, ROWS = TILE_TOKENS, STAGES = D == 64 ? 4 : 3;
    static constexpr int HALVES = 1, COLUMNS = D; /* as attention_store_keys has them */
    static constexpr int WORKERS = 2, THREADS = (1 + WORKERS) * WARPGROUP, PARTS = D / BOX_LINE;
    static constexpr int KEYS_PART = KEYS * BOX_LINE_BYTES, ROWS_PART = ROWS * BOX_LINE_BYTES;
    static constexpr int STAGE = 2 * PARTS * ROWS_PART; /* q, then do */
    static constexpr size_t SHARED = BOX_ALIGN + (size_t)2 * PARTS * KEYS_PART + STAGES * STAGE +
                                     (2 + 2 * STAGES) * sizeof(uint64_t);
};

struct AttentionKeysHopper {
    AttentionBackward f;
    GpuBoxes k, v, q, dout;
    int tiles; /* of keys, of all heads */
};

#if HOPPER_CODE

/* ---- dq ----------------------------------------------------------------------------------- */

/* Begins s = q k^T and dp = do v^T with the ring's stage number `used`. */
template <class S>
__device__ __forceinline__ void
attention_begin_both(const AttentionHopperShared<S> &at, const unsigned char *q, uint32_t used,
                     float (&s)[S::KEYS / 8][4], float (&dp)[S::KEYS / 8][4])
{
    int slot = (int)(used % S::STAGES) * S::PARTS * S::KEYS_PART;
    const unsigned char *k = at.k + slot, *v = at.v + slot, *dout = q + S::PARTS * S::Q_PART;
#pragma unroll
    for (int i = 0; i < S::D / 16; i++)
        Wgmma<S::KEYS>::template shared<false, false>(
            s, wgmma_matrix(q + i / 4 * S::Q_PART + i % 4 * 32),
            wgmma_matrix(k + i / 4 * S::KEYS_PART + i % 4 * 32), i > 0);
#pragma unroll
    for (int i = 0; i < S::D / 16; i++)
        Wgmma<S::KEYS>::template shared<false, false>(
            dp, wgmma_matrix(dout + i / 4 * S::Q_PART + i % 4 * 32),
            wgmma_matrix(v + i / 4 * S::KEYS_PART + i % 4 * 32), i > 0);
    wgmma_commit();
}

/* Begins dq += dz k with that stage's keys. */
template <class S>
__device__ __forceinline__ void
attention_begin_dq(const AttentionHopperShared<S> &at, uint32_t used,
                   const uint32_t (&dz)[S::KEYS / 16][4], float (&dq)[S::D / 8][4])
{
    const unsigned char *k = at.k + used % S::STAGES * (S::PARTS * S::KEYS_PART);
#pragma unroll
    for (int i = 0; i < S::KEYS / 16; i++)
        Wgmma<S::D>::template registers<true>(
            dq, dz[i], wgmma_matrix_by_line(k + i * 16 * BOX_LINE_BYTES, S::KEYS_PART));
    wgmma_commit();
}

/* s becomes dz: keys base.. against the warp's rows, of which a lane has two. */
template <class S>
__device__ __forceinline__ void
attention_dz(const AttentionJob &job, const AttentionHopperRows &rows,
             const AttentionStat (&stat)[2], int base, int split, float (&s)[S::KEYS / 8][4],
             const float (&dp)[S::KEYS / 8][4])
{
    bool masked = rows.all_first > base || rows.all_end < base + S::KEYS;
    float unit = attention_unit(job);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const AttentionRow &of = rows.row[attention_lane_row(h)];
        int lane = base + attention_lane_column(0, 0), first = of.first - lane, end = of.end - lane;
#pragma unroll
        for (int n = 0; n < S::KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                int key = 8 * n + i;
                bool seen = !masked || (key >= first && key < end);
                float &x = s[n][2 * h + i];
                attention_probability(job, of, unit, stat[h].shift, lane + key, split, seen, x);
                x *= fmaf(dp[n][2 * h + i], job.scale, -stat[h].delta);
            }
    }
}

/* Blocks rows.from..rows.to - 1 of the tile, which are the ring's from number `used` on. */
template <class S>
__device__ __forceinline__ void
attention_walk_keys(const AttentionJob &job, const AttentionHopperShared<S> &at,
                    const AttentionHopperRows &rows, const AttentionStat (&stat)[2],
                    const unsigned char *q, int split, uint32_t &used, float (&dq)[1][S::D / 8][4])
{
    float s[1][S::KEYS / 8][4] = {}, dp[1][S::KEYS / 8][4] = {};
    uint32_t dz[1][S::KEYS / 16][4];
    auto wait = [&] {
        mbarrier_wait(at.k_full + used % S::STAGES, used / S::STAGES);
        mbarrier_wait(at.v_full + used % S::STAGES, used / S::STAGES);
    };
    wait();
    wgmma_fence(s[0], dp[0]);
    attention_begin_both<S>(at, q, used, s[0], dp[0]);
    wgmma_wait<0>(s[0], dp[0]);
    attention_let_go(at.v_empty + used % S::STAGES);
    attention_dz<S>(job, rows, stat, rows.from * S::KEYS, split, s[0], dp[0]);
    attention_pack<1, S::KEYS>(dz, s);
    used++;
#pragma unroll 1
    for (int block = rows.from + 1; block < rows.to; block++, used++) {
        wait();
        wgmma_fence(s[0], dp[0], dq[0], dz[0]);
        attention_begin_both<S>(at, q, used, s[0], dp[0]);
        attention_begin_dq<S>(at, used - 1, dz[0], dq[0]);
        wgmma_wait<1>(s[0], dp[0]);
        attention_let_go(at.v_empty + used % S::STAGES);
        attention_dz<S>(job, rows, stat, block * S::KEYS, split, s[0], dp[0]);
        wgmma_wait<0>(dq[0], dz[0]);
        attention_let_go(at.k_empty + (used - 1) % S::STAGES);
        attention_pack<1, S::KEYS>(dz, s);
    }
    wgmma_fence(dq[0], dz[0]);
    attention_begin_dq<S>(at, used - 1, dz[0], dq[0]);
    wgmma_wait<0>(dq[0], dz[0]);
    attention_let_go(at.k_empty + (used - 1) % S::STAGES);
}

template <class S>
__device__ inline void attention_multiply_queries(const AttentionQueriesHopper &h,
                                                  const AttentionHopperShared<S> &at)
{
    const AttentionJob &job = h.f.of;
    int warp_row = ((int)threadIdx.x - WARPGROUP) / WARP * 16;
    const unsigned char *q = at.q + warp_row / 64 * 64 * BOX_LINE_BYTES;
    uint32_t used = 0, done = 0;
    for (int tile = (int)blockIdx.x; tile < h.tiles.tiles; tile += (int)gridDim.x) {
        AttentionPlace place = attention_hopper_place(job, h.tiles, tile);
        AttentionKeys keys = attention_keys(job, place, h.tiles.rows, S::KEYS);
        AttentionHopperRows rows = attention_hopper_rows<S>(job, at, place, keys, warp_row);
        int blocks = same_for_warp(attention_blocks<S>(keys));
        AttentionStat stat[2];
        float dq[1][S::D / 8][4] = {};
        for (int i = 0; i < 2; i++) {
            int64_t is = attention_stat_at(job, place, warp_row + attention_lane_row(i));
            AttentionStat none = {0, 0};
            stat[i] = is < 0 ? none : h.f.stat[is];
        }
        if (blocks) {
            mbarrier_wait(at.q_full, done);
            attention_pass_over<S>(at, rows.from, used);
            if (rows.from < rows.to)
                attention_walk_keys<S>(job, at, rows, stat, q, keys.split, used, dq);
            attention_let_go(at.q_empty);
            attention_pass_over<S>(at, blocks - rows.to, used);
            done++;
        }
        attention_store_queries<S>(h.f, place, warp_row, dq);
    }
}

/* ---- dk and dv ---------------------------------------------------------------------------- */

/* What lies where in shared memory; barriers as in AttentionHopperShared. */
template <class S> struct AttentionKeysShared {
    unsigned char *k, *v, *stage;
    Mbarrier *keys_full, *keys_empty, *full, *empty;

    __device__ explicit AttentionKeysShared(unsigned char *dynamic)
    {
        k = hopper_shared(dynamic);
        v = k + S::PARTS * S::KEYS_PART;
        stage = v + S::PARTS * S::KEYS_PART;
        keys_full = (Mbarrier *)(void *)(stage + S::STAGES * S::STAGE);
        keys_empty = keys_full + 1;
        full = keys_empty + 1;
        empty = full + S::STAGES;
    }

    __device__ void begin(void) const
    {
        constexpr int warps = S::WORKERS * WARPGROUP / WARP;
        mbarrier_begin(keys_full, 1);
        mbarrier_begin(keys_empty, warps);
        for (int i = 0; i < S::STAGES; i++) {
            mbarrier_begin(full + i, 1);
            mbarrier_begin(empty + i, warps);
        }
        mbarriers_begun();
    }
};

/* Keys first..end-1 of sequence b and kv head h. */
struct AttentionKeysTile {
    int b, h, first, end;
};

/* The last keys, which few queries see, come last. */
template <class S>
__device__ inline AttentionKeysTile attention_keys_tile(const AttentionJob &job, int tile)
{
    int pairs = job.batch * job.kv_heads, pair = tile % pairs;
    AttentionKeysTile of = {pair / job.kv_heads, pair % job.kv_heads, tile / pairs * S::KEYS, 0};
    of.end = min(of.first + S::KEYS, job.n_keys);
    return of;
}

template <class S>
__device__ inline void
attention_bring_queries(const AttentionKeysHopper &h, const AttentionKeysShared<S> &at,
                        const AttentionKeysTile &of, const AttentionWalk &walk, uint32_t used)
{
    Mbarrier *full = at.full + used % S::STAGES;
    unsigned char *to = at.stage + used % S::STAGES * S::STAGE;
    int head = of.h * h.f.of.group + walk.head;
    mbarrier_wait(at.empty + used % S::STAGES, used / S::STAGES + 1);
    mbarrier_expect(full, S::STAGE);
#pragma unroll
    for (int part = 0; part < 2 * S::PARTS; part++)
        box_copy(to + part * S::ROWS_PART, part < S::PARTS ? &h.q : &h.dout, full,
                 part % S::PARTS * BOX_LINE, head, walk.tile * S::ROWS, of.b);
}

template <class S>
__device__ inline void attention_bring_for_keys(const AttentionKeysHopper &h,
                                                const AttentionKeysShared<S> &at)
{
    uint32_t used = 0, done = 0;
    for (int tile = (int)blockIdx.x; tile < h.tiles; tile += (int)gridDim.x, done++) {
        AttentionKeysTile of = attention_keys_tile<S>(h.f.of, tile);
        if (threadIdx.x == 0) {
            mbarrier_wait(at.keys_empty, done + 1);
            mbarrier_expect(at.keys_full, 2 * S::PARTS * S::KEYS_PART);
#pragma unroll
            for (int part = 0; part < 2 * S::PARTS; part++)
                box_copy(at.k + part * S::KEYS_PART, part < S::PARTS ? &h.k : &h.v, at.keys_full,
                         part % S::PARTS * BOX_LINE, of.h, of.first, of.b);
        }
        AttentionWalk walk = {attention_tile_that_sees(h.f, of.b, 0, of.first, of.end), 0};
        for (; walk.tile < h.f.tiles; used++) {
            if (threadIdx.x == 0) attention_bring_queries<S>(h, at, of, walk, used);
            walk = attention_walk_next(h.f, of.b, walk, of.first, of.end);
        }
    }
}

/* Begins c [64 keys, queries] = a b^T: a the warpgroup's keys or values, b a stage's q or do. */
template <class S>
__device__ __forceinline__ void attention_begin_dots(float (&c)[S::ROWS / 8][4],
                                                     const unsigned char *a, const unsigned char *b)
{
#pragma unroll
    for (int i = 0; i < S::D / 16; i++)
        Wgmma<S::ROWS>::template shared<false, false>(
            c, wgmma_matrix(a + i / 4 * S::KEYS_PART + i % 4 * 32),
            wgmma_matrix(b + i / 4 * S::ROWS_PART + i % 4 * 32), i > 0);
}

/* Begins c [64 keys, D] += a b: a in registers, b a stage's do or q. */
template <class S>
__device__ __forceinline__ void attention_begin_sums(float (&c)[S::D / 8][4],
                                                     const uint32_t (&a)[S::ROWS / 16][4],
                                                     const unsigned char *b)
{
#pragma unroll
    for (int i = 0; i < S::ROWS / 16; i++)
        Wgmma<S::D>::template registers<true>(
            c, a[i], wgmma_matrix_by_line(b + i * 16 * BOX_LINE_BYTES, S::ROWS_PART));
}

/* s becomes probabilities (in p) and dz (in z), of a tile of queries and the 16 keys from `mine`.
 */
template <class S>
__device__ __forceinline__ void
attention_keys_dz(const AttentionBackward &f, const AttentionKeysTile &of,
                  const AttentionWalk &walk, int mine, float (&s)[S::ROWS / 8][4],
                  const float (&dp)[S::ROWS / 8][4], uint32_t (&p)[S::ROWS / 16][4],
                  uint32_t (&z)[S::ROWS / 16][4])
{
    const AttentionJob &job = f.of;
    const AttentionTile &tile = f.tile[(int64_t)of.b * f.tiles + walk.tile];
    bool masked = tile.all_first > mine || tile.all_end < mine + 16;
    int head = of.h * job.group + walk.head, split = attention_split_key(job);
    float unit = attention_unit(job), slope = attention_head_slope(job, head);
    int first = walk.tile * S::ROWS + attention_lane_column(0, 0);
    const AttentionRange *ranges = f.range + (int64_t)of.b * job.tokens;
    const AttentionStat *stats = f.stat + ((int64_t)of.b * job.heads + head) * job.tokens;
#pragma unroll
    for (int n = 0; n < S::ROWS / 8; n++) {
        float probability[4];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int t = first + 8 * n + i;
            bool there = t < job.tokens;
            AttentionRange range = {0, 0};
            AttentionStat stat = {0, 0};
            if (there) range = ranges[t], stat = stats[t];
            AttentionRow row = attention_query(f, range, slope, t);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int e = 2 * half + i, key = mine + attention_lane_row(half);
                bool seen = !masked || (key >= range.first && key < range.end);
                probability[e] = attention_probability(job, row, unit, stat.shift, key, split, seen,
                                                       s[n][e]);
                s[n][e] *= fmaf(dp[n][e], job.scale, -stat.delta);
            }
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            p[n / 2][n % 2 * 2 + half] = pack_bf16(probability[2 * half],
                                                   probability[2 * half + 1]);
            z[n / 2][n % 2 * 2 + half] = pack_bf16(s[n][2 * half], s[n][2 * half + 1]);
        }
    }
}

/* One stage against the warpgroup's keys, which begin at k and v; `mine`: the warp's first. */
template <class S>
__device__ __forceinline__ void
attention_keys_stage(const AttentionBackward &f, const AttentionKeysTile &of,
                     const AttentionWalk &walk, int mine, const unsigned char *k,
                     const unsigned char *v, const unsigned char *stage,
                     float (&dk)[1][S::D / 8][4], float (&dv)[1][S::D / 8][4])
{
    const unsigned char *dout = stage + S::PARTS * S::ROWS_PART;
    float s[S::ROWS / 8][4] = {}, dp[S::ROWS / 8][4] = {};
    uint32_t p[S::ROWS / 16][4], z[S::ROWS / 16][4];
    wgmma_fence(s, dp);
    attention_begin_dots<S>(s, k, stage);
    attention_begin_dots<S>(dp, v, dout);
    wgmma_commit();
    wgmma_wait<0>(s, dp);
    attention_keys_dz<S>(f, of, walk, mine, s, dp, p, z);
    wgmma_fence(dv[0], p, dk[0], z);
    attention_begin_sums<S>(dv[0], p, dout);
    attention_begin_sums<S>(dk[0], z, stage);
    wgmma_commit();
    wgmma_wait<0>(dv[0], p, dk[0], z);
}

template <class S>
__device__ inline void attention_multiply_keys(const AttentionKeysHopper &h,
                                               const AttentionKeysShared<S> &at)
{
    int warp_row = ((int)threadIdx.x - WARPGROUP) / WARP * 16, group_row = warp_row / 64 * 64;
    const unsigned char *k = at.k + group_row * BOX_LINE_BYTES,
                        *v = at.v + group_row * BOX_LINE_BYTES;
    uint32_t used = 0, done = 0;
    for (int tile = (int)blockIdx.x; tile < h.tiles; tile += (int)gridDim.x, done++) {
        AttentionKeysTile of = attention_keys_tile<S>(h.f.of, tile);
        int mine = of.first + warp_row, group = of.first + group_row;
        float dk[1][S::D / 8][4] = {}, dv[1][S::D / 8][4] = {};
        AttentionWalk walk = {attention_tile_that_sees(h.f, of.b, 0, of.first, of.end), 0};
        mbarrier_wait(at.keys_full, done);
        for (; same_for_warp(walk.tile) < h.f.tiles; used++) {
            const AttentionTile &seen = h.f.tile[(int64_t)of.b * h.f.tiles + walk.tile];
            mbarrier_wait(at.full + used % S::STAGES, used / S::STAGES);
            if (same_for_warp(seen.first < group + 64 && seen.end > group))
                attention_keys_stage<S>(h.f, of, walk, mine, k, v,
                                        at.stage + used % S::STAGES * S::STAGE, dk, dv);
            attention_let_go(at.empty + used % S::STAGES);
            walk = attention_walk_next(h.f, of.b, walk, of.first, of.end);
        }
        attention_let_go(at.keys_empty);
        attention_store_keys<S>(h.f, h.f.dk, of.b, of.h, mine, dk);
        attention_store_keys<S>(h.f, h.f.dv, of.b, of.h, mine, dv);
    }
}

#endif /* HOPPER_CODE */

template <class S>
__global__ void __launch_bounds__(S::THREADS, 1)
    attention_queries_hopper_kernel(const __grid_constant__ AttentionQueriesHopper h)
{
#if HOPPER_CODE
    GPU_DYNAMIC_SHARED(dynamic);
    AttentionHopperShared<S> at(dynamic);
    if (threadIdx.x == 0) at.begin();
    __syncthreads();
    if (threadIdx.x < WARPGROUP) {
        registers_give<56>();
        if (threadIdx.x < WARP) attention_bring<S>(h.f.of, h.tiles, at);
    } else {
        registers_take<224>();
        attention_multiply_queries<S>(h, at);
    }
#endif
}

template <class S>
__global__ void __launch_bounds__(S::THREADS, 1)
    attention_keys_hopper_kernel(const __grid_constant__ AttentionKeysHopper h)
{
#if HOPPER_CODE
    GPU_DYNAMIC_SHARED(dynamic);
    AttentionKeysShared<S> at(dynamic);
    if (threadIdx.x == 0) at.begin();
    __syncthreads();
    if (threadIdx.x < WARPGROUP) {
        registers_give<40>();
        if (threadIdx.x < WARP) attention_bring_for_keys<S>(h, at);
    } else {
        registers_take<232>();
        attention_multiply_keys<S>(h, at);
    }
#endif
}

/* ---- launches ----------------------------------------------------------------------------- */

template <int D>
static Status attention_queries_hopper(GpuStream *stream, const AttentionBackward &f)
{
    using S = AttentionQueriesHopperShape<D>;
    AttentionQueriesHopper h = {};
    h.f = f;
    TRY(attention_hopper_tiles(stream, f.of, f.dout, S::KEYS, &h.tiles));
    TRY(GPU_ALLOW_SHARED((attention_queries_hopper_kernel<S>), S::SHARED));
    return GPU_LAUNCH(stream, attention_hopper_grid(stream, h.tiles.tiles), S::THREADS, S::SHARED,
                      (attention_queries_hopper_kernel<S>), h);
}

template <int D> static Status attention_keys_hopper(GpuStream *stream, const AttentionBackward &f)
{
    using S = AttentionKeysHopperShape<D>;
    const AttentionJob &job = f.of;
    AttentionKeysHopper h = {};
    h.f = f;
    h.tiles = (int)(ceil_div(job.n_keys, S::KEYS) * job.batch * job.kv_heads);
    TRY(attention_boxes(stream, job.k, job, job.n_keys, job.kv_heads, S::KEYS, 1, &h.k));
    TRY(attention_boxes(stream, job.v, job, job.n_keys, job.kv_heads, S::KEYS, 1, &h.v));
    TRY(attention_boxes(stream, job.q, job, job.tokens, job.heads, S::ROWS, 1, &h.q));
    TRY(attention_boxes(stream, f.dout, job, job.tokens, job.heads, S::ROWS, 1, &h.dout));
    TRY(GPU_ALLOW_SHARED((attention_keys_hopper_kernel<S>), S::SHARED));
    return GPU_LAUNCH(stream, attention_hopper_grid(stream, h.tiles), S::THREADS, S::SHARED,
                      (attention_keys_hopper_kernel<S>), h);
}

template <int D>
static Status attention_backward_hopper(GpuStream *stream, const AttentionBackward &f)
{
    if (f.dq.data) TRY(attention_queries_hopper<D>(stream, f));
    return f.dk.data || f.dv.data ? attention_keys_hopper<D>(stream, f) : OK;
}

#endif
