/* attention forward on GPUs of compute capability 9.0, for heads of 64 or 128 bf16: as
 * attention_forward_mma.cuh, with the schedule of Shah et al. 2024 (FlashAttention-3). Of three
 * warpgroups one thread has the copy engine bring queries, keys and values, and each of the other
 * two multiplies 64 rows; a block of threads goes from tile to tile, and the next tile's keys come
 * while the last rows of this one are stored. A warpgroup has the scores of one block of keys made
 * while it makes probabilities of the block's before; these go from registers into the product with
 * the values. Included by attention.cu. */
#ifndef OPS_ATTENTION_FORWARD_HOPPER_CUH
#define OPS_ATTENTION_FORWARD_HOPPER_CUH

#include "ops/attention/attention_forward_mma.cuh"
#include "ops/attention/attention_hopper.cuh"

template <int D>
using AttentionForwardHopperShape = AttentionHopperShape<D, 128, D == 64 ? 4 : 2, 1>;

struct AttentionForwardHopper {
    AttentionForward f;
    AttentionHopperTiles tiles;
};

#if HOPPER_CODE

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
    for (int tile = (int)blockIdx.x; tile < h.tiles.tiles; tile += (int)gridDim.x) {
        AttentionPlace place = attention_hopper_place(h.f.of, h.tiles, tile);
        AttentionKeys keys = attention_keys(h.f.of, place, h.tiles.rows, S::KEYS);
        AttentionHopperRows rows = attention_hopper_rows<S>(h.f.of, at, place, keys, warp_row);
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
        if (threadIdx.x < WARP) attention_bring<S>(h.f.of, h.tiles, at);
    } else {
        registers_take<224>();
        attention_multiply<S>(h, at);
    }
#endif
}

template <int D>
static Status attention_forward_hopper(GpuStream *stream, const AttentionForward &f)
{
    using S = AttentionForwardHopperShape<D>;
    Rows none = {};
    AttentionForwardHopper h = {};
    h.f = f;
    TRY(attention_hopper_tiles(stream, f.of, none, S::KEYS, &h.tiles));
    TRY(GPU_ALLOW_SHARED((attention_forward_hopper_kernel<S>), S::SHARED));
    return GPU_LAUNCH(stream, attention_hopper_grid(stream, h.tiles.tiles), S::THREADS, S::SHARED,
                      (attention_forward_hopper_kernel<S>), h);
}

#endif
