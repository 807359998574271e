/* attention forward on GPUs of compute capability 9.0, for heads of 64 or 128 bf16: as
 * attention_forward_mma.cuh, with the schedule of Shah et al. 2024 (FlashAttention-3). Of three
 * warpgroups one thread has the copy engine bring queries, keys and values, and each of the other
 * two multiplies 64 rows; a block of threads goes from tile to tile, and the next tile's keys come
 * while the last rows of this one are stored. A warpgroup has the scores of one block of keys made
 * while it makes probabilities of the block's before; these go from registers into the product with
 * the values. Included by attention.cu.
 *
 * A tile is whole tokens, as many as 128 rows hold, with all query heads of a kv head: so it is a
 * box of q, whatever the number of heads. Rows that it lacks to 128 are never brought; what is
 * computed for them is stored nowhere. Keys outside of the sequence are zeros; those that belong to
 * it and are not seen get probability 0. */
#ifndef OPS_ATTENTION_FORWARD_HOPPER_CUH
#define OPS_ATTENTION_FORWARD_HOPPER_CUH

#include "gpu/hopper.cuh"
#include "ops/attention/attention_forward_mma.cuh"

enum { ATTENTION_LEAST_ROWS = 64 }; /* of a kv head: with fewer a tile is mostly empty */

template <int D_> struct AttentionHopperShape {
    static constexpr int D = D_, M = 1, ROWS = 128, KEYS = 128, STEP = KEYS;
    static constexpr int STAGES = D == 64 ? 4 : 2, WORKERS = 2, THREADS = (1 + WORKERS) * WARPGROUP;
    static constexpr int PARTS = D / BOX_LINE; /* a row's elements are lines of so many boxes */
    static constexpr int Q_PART = ROWS * BOX_LINE_BYTES, KEYS_PART = KEYS * BOX_LINE_BYTES;
    static constexpr int BARRIERS = 2 + 4 * STAGES;
    static constexpr size_t SHARED = BOX_ALIGN + (size_t)PARTS * (Q_PART + 2 * STAGES * KEYS_PART) +
                                     ROWS * sizeof(AttentionRow) + BARRIERS * sizeof(uint64_t);
};

struct AttentionForwardHopper {
    AttentionForward f;
    GpuBoxes q, k, v;
    int rows; /* of a tile */
    int tiles;
};

#if HOPPER_CODE

/* What lies where in shared memory. Barriers of the ring of stages: `full` when the engine has
 * brought it, `empty` when each warp that multiplies has let go of it. */
template <class S> struct AttentionHopperShared {
    unsigned char *q, *k, *v;
    AttentionRow *row;
    Mbarrier *q_full, *q_empty, *k_full, *k_empty, *v_full, *v_empty;

    __device__ explicit AttentionHopperShared(unsigned char *dynamic)
    {
        q = hopper_shared(dynamic);
        k = q + S::PARTS * S::Q_PART;
        v = k + S::STAGES * S::PARTS * S::KEYS_PART;
        row = (AttentionRow *)(void *)(v + S::STAGES * S::PARTS * S::KEYS_PART);
        q_full = (Mbarrier *)(void *)(row + S::ROWS);
        q_empty = q_full + 1;
        k_full = q_empty + 1;
        k_empty = k_full + S::STAGES;
        v_full = k_empty + S::STAGES;
        v_empty = v_full + S::STAGES;
    }

    __device__ void begin(void) const
    {
        constexpr int warps = S::WORKERS * WARPGROUP / WARP;
        mbarrier_begin(q_full, 1);
        mbarrier_begin(q_empty, warps);
        for (int i = 0; i < S::STAGES; i++) {
            mbarrier_begin(k_full + i, 1);
            mbarrier_begin(v_full + i, 1);
            mbarrier_begin(k_empty + i, warps);
            mbarrier_begin(v_empty + i, warps);
        }
        mbarriers_begun();
    }
};

__device__ inline AttentionPlace attention_hopper_place(const AttentionForwardHopper &h, int tile)
{
    AttentionPlace place = attention_place(h.f.of, tile, h.rows);
    place.rows = min(place.rows, place.row + h.rows);
    return place;
}

template <class S> __device__ inline int attention_blocks(const AttentionKeys &keys)
{
    return (keys.end + S::KEYS - 1) / S::KEYS;
}

/* ---- the warp that brings ----------------------------------------------------------------- */

template <class S>
__device__ inline void attention_bring_keys(const AttentionHopperShared<S> &at,
                                            const GpuBoxes *boxes, bool values,
                                            const AttentionPlace &place, int64_t key, uint32_t used)
{
    int slot = (int)(used % S::STAGES);
    Mbarrier *full = (values ? at.v_full : at.k_full) + slot,
             *empty = (values ? at.v_empty : at.k_empty) + slot;
    unsigned char *to = (values ? at.v : at.k) + slot * S::PARTS * S::KEYS_PART;
    mbarrier_wait(empty, used / S::STAGES + 1);
    mbarrier_expect(full, S::PARTS * S::KEYS_PART);
#pragma unroll
    for (int part = 0; part < S::PARTS; part++)
        box_copy(to + part * S::KEYS_PART, boxes, full, part * BOX_LINE, place.h, (int)key,
                 place.b);
}

/* By one warp, of which one lane gives orders. */
template <class S>
__device__ inline void attention_bring(const AttentionForwardHopper &h,
                                       const AttentionHopperShared<S> &at)
{
    uint32_t used = 0, tiles = 0;
    for (int tile = (int)blockIdx.x; tile < h.tiles; tile += (int)gridDim.x) {
        AttentionPlace place = attention_hopper_place(h, tile);
        AttentionKeys keys = attention_keys(h.f.of, place, h.rows, S::KEYS);
        int blocks = attention_blocks<S>(keys);
        if (!blocks) continue;
        if (threadIdx.x == 0) {
            mbarrier_wait(at.q_empty, tiles + 1);
            mbarrier_expect(at.q_full, S::PARTS * h.rows * BOX_LINE_BYTES);
#pragma unroll
            for (int part = 0; part < S::PARTS; part++)
                box_copy(at.q + part * S::Q_PART, &h.q, at.q_full, part * BOX_LINE,
                         place.h * h.f.of.group, place.row / h.f.of.group, place.b);
            for (int block = 0; block < blocks; block++, used++) {
                int64_t key = keys.origin + (int64_t)block * S::KEYS;
                attention_bring_keys<S>(at, &h.k, false, place, key, used);
                attention_bring_keys<S>(at, &h.v, true, place, key, used);
            }
        }
        tiles++;
    }
}

/* ---- the warps that multiply -------------------------------------------------------------- */

/* Of one tile, what a warp knows of its 16 rows and of the 64 of its warpgroup. */
struct AttentionHopperRows {
    const AttentionRow *row; /* the warp's */
    int all_first, all_end;  /* keys that all of them see */
    int from, to;            /* blocks of keys of which some row of the warpgroup sees some */
};

template <class S>
__device__ inline AttentionHopperRows
attention_hopper_rows(const AttentionForwardHopper &h, const AttentionHopperShared<S> &at,
                      const AttentionPlace &place, const AttentionKeys &keys, int warp_row)
{
    int lane = (int)threadIdx.x % WARP, group_row = warp_row / 64 * 64;
    AttentionRow *own = at.row + warp_row;
    int first = INT32_MAX, end = 0, all_first = 0, all_end = INT32_MAX;
    __syncwarp(); /* nobody reads those of the tile before */
    for (int i = lane; i < 64; i += WARP) {
        AttentionRow row = attention_row_of(h.f.of, place, keys, group_row + i);
        if (row.first < row.end) first = min(first, row.first);
        end = max(end, row.end);
        if ((group_row + i) / 16 != warp_row / 16) continue;
        own[i % 16] = row;
        all_first = row.first;
        all_end = row.end;
    }
    __syncwarp();
    AttentionHopperRows rows = {own, same_for_warp(warp_max_int(all_first)),
                                same_for_warp(warp_min_int(all_end)), 0, 0};
    first = same_for_warp(warp_min_int(first));
    end = same_for_warp(warp_max_int(end));
    if (first < end) {
        rows.from = first / S::KEYS;
        rows.to = (end + S::KEYS - 1) / S::KEYS;
    }
    return rows;
}

__device__ __forceinline__ void attention_let_go(Mbarrier *empty)
{
    if (threadIdx.x % WARP == 0) mbarrier_arrive(empty);
}

/* Begins s = q k^T, with the keys of the ring's stage number `used`. */
template <class S>
__device__ __forceinline__ void attention_begin_scores(const AttentionHopperShared<S> &at,
                                                       const unsigned char *q, uint32_t used,
                                                       float (&s)[S::KEYS / 8][4])
{
    const unsigned char *k = at.k + used % S::STAGES * (S::PARTS * S::KEYS_PART);
#pragma unroll
    for (int i = 0; i < S::D / 16; i++)
        Wgmma<S::KEYS>::template shared<false, false>(
            s, wgmma_matrix(q + i / 4 * S::Q_PART + i % 4 * 32),
            wgmma_matrix(k + i / 4 * S::KEYS_PART + i % 4 * 32), i > 0);
    wgmma_commit();
}

/* Begins o += p v, with the values of that stage. */
template <class S>
__device__ __forceinline__ void
attention_begin_outputs(const AttentionHopperShared<S> &at, uint32_t used,
                        const uint32_t (&p)[S::KEYS / 16][4], float (&o)[S::D / 8][4])
{
    const unsigned char *v = at.v + used % S::STAGES * (S::PARTS * S::KEYS_PART);
#pragma unroll
    for (int i = 0; i < S::KEYS / 16; i++)
        Wgmma<S::D>::template registers<true>(
            o, p[i], wgmma_matrix_by_line(v + i * 16 * BOX_LINE_BYTES, S::KEYS_PART));
    wgmma_commit();
}

/* Blocks that no row of this warpgroup sees, but of the other. */
template <class S>
__device__ inline void attention_pass_over(const AttentionHopperShared<S> &at, int blocks,
                                           uint32_t &used)
{
    for (; blocks > 0; blocks--, used++) {
        mbarrier_wait(at.k_full + used % S::STAGES, used / S::STAGES);
        attention_let_go(at.k_empty + used % S::STAGES);
        mbarrier_wait(at.v_full + used % S::STAGES, used / S::STAGES);
        attention_let_go(at.v_empty + used % S::STAGES);
    }
}

/* Blocks rows.from..rows.to - 1 of the tile, which are the ring's from number `used` on. */
template <class S>
__device__ __forceinline__ void
attention_walk(const AttentionForwardHopper &h, const AttentionHopperShared<S> &at,
               const AttentionHopperRows &rows, const unsigned char *q, int split, uint32_t &used,
               AttentionState<S> &state)
{
    const AttentionJob &job = h.f.of;
    float unit = attention_unit(job), fade[1][2], s[1][S::KEYS / 8][4] = {};
    bool shaped = job.softcap > 0 || job.alibi > 0;
    uint32_t p[1][S::KEYS / 16][4];
    auto probabilities = [&](int block) {
        int base = block * S::KEYS;
        bool masked = rows.all_first > base || rows.all_end < base + S::KEYS;
        if (masked || shaped) attention_shape<S>(job, rows.row, base, split, masked, s);
        attention_softmax<S>(unit, state, s, fade);
    };
    auto wait_keys = [&] { mbarrier_wait(at.k_full + used % S::STAGES, used / S::STAGES); };
    auto wait_values = [&](uint32_t of) {
        mbarrier_wait(at.v_full + of % S::STAGES, of / S::STAGES);
    };
    wait_keys();
    wgmma_fence(s[0]);
    attention_begin_scores<S>(at, q, used, s[0]);
    wgmma_wait<0>(s[0]);
    attention_let_go(at.k_empty + used % S::STAGES);
    probabilities(rows.from);
    attention_fade<S>(state, fade);
    attention_pack<1, S::KEYS>(p, s);
    used++;
#pragma unroll 1
    for (int block = rows.from + 1; block < rows.to; block++, used++) {
        wait_keys();
        wgmma_fence(s[0]);
        attention_begin_scores<S>(at, q, used, s[0]);
        wait_values(used - 1);
        wgmma_fence(state.o[0], p[0]);
        attention_begin_outputs<S>(at, used - 1, p[0], state.o[0]);
        wgmma_wait<1>(s[0]);
        attention_let_go(at.k_empty + used % S::STAGES);
        probabilities(block);
        wgmma_wait<0>(state.o[0], p[0]);
        attention_let_go(at.v_empty + (used - 1) % S::STAGES);
        attention_fade<S>(state, fade);
        attention_pack<1, S::KEYS>(p, s);
    }
    wait_values(used - 1);
    wgmma_fence(state.o[0], p[0]);
    attention_begin_outputs<S>(at, used - 1, p[0], state.o[0]);
    wgmma_wait<0>(state.o[0], p[0]);
    attention_let_go(at.v_empty + (used - 1) % S::STAGES);
}

template <class S>
__device__ inline void attention_multiply(const AttentionForwardHopper &h,
                                          const AttentionHopperShared<S> &at)
{
    int warp_row = ((int)threadIdx.x - WARPGROUP) / WARP * 16;
    const unsigned char *q = at.q + warp_row / 64 * 64 * BOX_LINE_BYTES;
    uint32_t used = 0, tiles = 0;
    for (int tile = (int)blockIdx.x; tile < h.tiles; tile += (int)gridDim.x) {
        AttentionPlace place = attention_hopper_place(h, tile);
        AttentionKeys keys = attention_keys(h.f.of, place, h.rows, S::KEYS);
        AttentionHopperRows rows = attention_hopper_rows<S>(h, at, place, keys, warp_row);
        int blocks = same_for_warp(attention_blocks<S>(keys));
        AttentionState<S> state;
        attention_state_begin<S>(h.f, place, warp_row, state);
        if (blocks) {
            mbarrier_wait(at.q_full, tiles);
            attention_pass_over<S>(at, rows.from, used);
            if (rows.from < rows.to) attention_walk<S>(h, at, rows, q, keys.split, used, state);
            attention_let_go(at.q_empty);
            attention_pass_over<S>(at, blocks - rows.to, used);
            tiles++;
        }
        attention_state_store<S>(h.f, place, 0, warp_row, state);
    }
}

#endif /* HOPPER_CODE */

template <class S>
__global__ void __launch_bounds__(S::THREADS, 1)
    attention_forward_hopper_kernel(const __grid_constant__ AttentionForwardHopper h)
{
#if HOPPER_CODE
    GPU_DYNAMIC_SHARED(dynamic);
    AttentionHopperShared<S> at(dynamic);
    if (threadIdx.x == 0) at.begin();
    __syncthreads();
    if (threadIdx.x < WARPGROUP) {
        registers_give<56>();
        if (threadIdx.x < WARP) attention_bring<S>(h, at);
    } else {
        registers_take<224>();
        attention_multiply<S>(h, at);
    }
#endif
}

/* ---- launch ------------------------------------------------------------------------------- */

/* Boxes of `tokens` tokens by `heads` heads of [batch n all d]. */
static inline Status attention_boxes(GpuStream *stream, const Rows &rows, const AttentionJob &job,
                                     int n, int all, int tokens, int heads, GpuBoxes *boxes)
{
    GpuTiling tiling = {};
    tiling.data = rows.data;
    tiling.axes = 4;
    const int64_t size[4] = {job.d, all, n, job.batch};
    const int box[4] = {BOX_LINE, heads, tokens, 1};
    for (int a = 0; a < 4; a++) {
        tiling.size[a] = size[a];
        tiling.box[a] = box[a];
    }
    tiling.pitch_bytes[1] = (int64_t)job.d * (int64_t)sizeof(bf16);
    tiling.pitch_bytes[2] = rows.pitch * (int64_t)sizeof(bf16);
    tiling.pitch_bytes[3] = n * tiling.pitch_bytes[2];
    return gpu_boxes_make(stream, &tiling, boxes);
}

/* Whether this kernel is for it. Caches are not: behind their last key there may be anything, and
 * what is no number stays none when it is multiplied with 0. */
static inline bool attention_hopper_takes(GpuStream *stream, const AttentionForward &f)
{
    const AttentionJob &job = f.of;
    return hopper_has(stream) && f.aligned && (job.d == 64 || job.d == 128) && !job.cache_rows &&
           f.splits == 1 && job.group <= 128 && job.n_keys &&
           (int64_t)job.tokens * job.group >= ATTENTION_LEAST_ROWS;
}

template <class S>
static Status attention_forward_hopper(GpuStream *stream, const AttentionForward &f)
{
    const AttentionJob &job = f.of;
    int tokens = S::ROWS / job.group;
    AttentionForwardHopper h = {};
    h.f = f;
    h.rows = tokens * job.group;
    int64_t tiles = ceil_div(job.tokens, tokens) * job.batch * job.kv_heads;
    h.tiles = (int)tiles;
    TRY(attention_boxes(stream, job.q, job, job.tokens, job.heads, tokens, job.group, &h.q));
    TRY(attention_boxes(stream, job.k, job, job.n_keys, job.kv_heads, S::KEYS, 1, &h.k));
    TRY(attention_boxes(stream, job.v, job, job.n_keys, job.kv_heads, S::KEYS, 1, &h.v));
    int64_t blocks = min(tiles, (int64_t)gpu_info(gpu_stream_device(stream))->multiprocessors);
    TRY(GPU_ALLOW_SHARED((attention_forward_hopper_kernel<S>), S::SHARED));
    return GPU_LAUNCH(stream, (unsigned)blocks, S::THREADS, S::SHARED,
                      (attention_forward_hopper_kernel<S>), h);
}

#endif
