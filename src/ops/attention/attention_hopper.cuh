/* What attention's kernels for GPUs of compute capability 9.0 share: tiles of queries that
 * warpgroups multiply with blocks of keys, which one warp has the copy engine bring to a ring of
 * stages.
 *
 * A tile is whole tokens, as many as 128 rows hold, with all query heads of a kv head: so it is a
 * box of q, whatever the number of heads. Rows that it lacks to 128 are never brought; what is
 * computed for them is stored nowhere. Keys outside of the sequence are zeros; those that belong to
 * it and are not seen get probability 0. Included by .cu files only. */
#ifndef OPS_ATTENTION_HOPPER_CUH
#define OPS_ATTENTION_HOPPER_CUH

#include "gpu/hopper.cuh"
#include "ops/attention/attention_mma.cuh"

enum { ATTENTION_LEAST_ROWS = 64 }; /* of a kv head: with fewer a tile is mostly empty */

/* KEYS to a block; TILES of queries that stay while keys go by: q, or q and do. */
template <int D_, int KEYS_, int STAGES_, int TILES_> struct AttentionHopperShape {
    static constexpr int D = D_, M = 1, ROWS = 128, KEYS = KEYS_, STEP = KEYS;
    static constexpr int STAGES = STAGES_, TILES = TILES_;
    static constexpr int WORKERS = 2, THREADS = (1 + WORKERS) * WARPGROUP;
    static constexpr int PARTS = D / BOX_LINE; /* a row's elements are lines of so many boxes */
    static constexpr int Q_PART = ROWS * BOX_LINE_BYTES, KEYS_PART = KEYS * BOX_LINE_BYTES;
    static constexpr int BARRIERS = 2 + 4 * STAGES;
    static constexpr size_t SHARED = BOX_ALIGN +
                                     (size_t)PARTS * (TILES * Q_PART + 2 * STAGES * KEYS_PART) +
                                     ROWS * sizeof(AttentionRow) + BARRIERS * sizeof(uint64_t);
};

struct AttentionHopperTiles {
    GpuBoxes q[2], k, v; /* q, do */
    int rows;            /* of a tile */
    int tiles;
};

#if HOPPER_CODE

/* What lies where in shared memory; of q first the tile, then that of do. Barriers of the ring of
 * stages: `full` when the engine has brought it, `empty` when each warp that multiplies has let go
 * of it. */
template <class S> struct AttentionHopperShared {
    unsigned char *q, *k, *v;
    AttentionRow *row;
    Mbarrier *q_full, *q_empty, *k_full, *k_empty, *v_full, *v_empty;

    __device__ explicit AttentionHopperShared(unsigned char *dynamic)
    {
        q = hopper_shared(dynamic);
        k = q + S::TILES * S::PARTS * S::Q_PART;
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

__device__ inline AttentionPlace attention_hopper_place(const AttentionJob &job,
                                                        const AttentionHopperTiles &tiles, int tile)
{
    AttentionPlace place = attention_place(job, tile, tiles.rows);
    place.rows = min(place.rows, place.row + tiles.rows);
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
__device__ inline void attention_bring(const AttentionJob &job, const AttentionHopperTiles &tiles,
                                       const AttentionHopperShared<S> &at)
{
    uint32_t used = 0, done = 0;
    for (int tile = (int)blockIdx.x; tile < tiles.tiles; tile += (int)gridDim.x) {
        AttentionPlace place = attention_hopper_place(job, tiles, tile);
        AttentionKeys keys = attention_keys(job, place, tiles.rows, S::KEYS);
        int blocks = attention_blocks<S>(keys);
        if (!blocks) continue;
        if (threadIdx.x == 0) {
            mbarrier_wait(at.q_empty, done + 1);
            mbarrier_expect(at.q_full, S::TILES * S::PARTS * tiles.rows * BOX_LINE_BYTES);
#pragma unroll
            for (int part = 0; part < S::TILES * S::PARTS; part++)
                box_copy(at.q + part * S::Q_PART, &tiles.q[part / S::PARTS], at.q_full,
                         part % S::PARTS * BOX_LINE, place.h * job.group, place.row / job.group,
                         place.b);
            for (int block = 0; block < blocks; block++, used++) {
                int64_t key = keys.origin + (int64_t)block * S::KEYS;
                attention_bring_keys<S>(at, &tiles.k, false, place, key, used);
                attention_bring_keys<S>(at, &tiles.v, true, place, key, used);
            }
        }
        done++;
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
attention_hopper_rows(const AttentionJob &job, const AttentionHopperShared<S> &at,
                      const AttentionPlace &place, const AttentionKeys &keys, int warp_row)
{
    int lane = (int)threadIdx.x % WARP, group_row = warp_row / 64 * 64;
    AttentionRow *own = at.row + warp_row;
    int first = INT32_MAX, end = 0, all_first = 0, all_end = INT32_MAX;
    __syncwarp(); /* nobody reads those of the tile before */
    for (int i = lane; i < 64; i += WARP) {
        AttentionRow row = attention_row_of(job, place, keys, group_row + i);
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

#endif /* HOPPER_CODE */

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

/* Tiles of q, and of `dout` where its data is not NULL; keys and values in blocks of `keys`. */
static inline Status attention_hopper_tiles(GpuStream *stream, const AttentionJob &job,
                                            const Rows &dout, int keys, AttentionHopperTiles *to)
{
    int tokens = 128 / job.group;
    to->rows = tokens * job.group;
    to->tiles = (int)(ceil_div(job.tokens, tokens) * job.batch * job.kv_heads);
    TRY(attention_boxes(stream, job.q, job, job.tokens, job.heads, tokens, job.group, &to->q[0]));
    if (dout.data)
        TRY(attention_boxes(stream, dout, job, job.tokens, job.heads, tokens, job.group,
                            &to->q[1]));
    TRY(attention_boxes(stream, job.k, job, job.n_keys, job.kv_heads, keys, 1, &to->k));
    return attention_boxes(stream, job.v, job, job.n_keys, job.kv_heads, keys, 1, &to->v);
}

/* Whether these kernels are for it, if operands are aligned. Caches are not: behind their last key
 * there may be anything, and what is no number stays none when it is multiplied with 0. */
static inline bool attention_hopper_takes(GpuStream *stream, const AttentionJob &job)
{
    return hopper_has(stream) && (job.d == 64 || job.d == 128) && !job.cache_rows &&
           job.group <= 128 && job.n_keys &&
           (int64_t)job.tokens * job.group >= ATTENTION_LEAST_ROWS;
}

static inline unsigned attention_hopper_grid(GpuStream *stream, int tiles)
{
    return (unsigned)min(tiles, gpu_info(gpu_stream_device(stream))->multiprocessors);
}

#endif
