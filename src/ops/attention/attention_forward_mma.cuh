/* attention forward by tensor cores (Dao 2023): a warp has 16 M rows, whose outputs, maxima and
 * sums stay in registers while the keys go by. The next block of keys and values is under way while
 * one is worked on, STEP keys at a time. Included by attention.cu. */
#ifndef OPS_ATTENTION_FORWARD_MMA_CUH
#define OPS_ATTENTION_FORWARD_MMA_CUH

#include "ops/attention/attention_forward.cuh"

/* PAGED_: keys and values lie in pages. */
template <int D_, int M_, int WARPS_, int KEYS_, bool PAGED_> struct AttentionForwardShape {
    static constexpr bool PAGED = PAGED_;
    static constexpr int D = D_, M = M_, WARPS = WARPS_, THREADS = WARPS * WARP;
    static constexpr int ROWS = 16 * M * WARPS, KEYS = KEYS_, STEP = 32, PITCH = ATTENTION_PITCH<D>;
    static constexpr int STAGE = 2 * KEYS * PITCH; /* keys, then values */
    static constexpr size_t SHARED = (size_t)(ROWS * PITCH + 2 * STAGE) * sizeof(bf16) +
                                     ROWS * sizeof(AttentionRow);
};

/* What a lane keeps of its rows: row h of 16 m + 8 h. */
template <class S> struct AttentionState {
    float o[S::M][S::D / 8][4], top[S::M][2], sum[S::M][2]; /* sum: of this lane's columns */
};

template <class S>
__device__ __forceinline__ void attention_state_begin(const AttentionForward &f,
                                                      const AttentionPlace &place, int warp_row,
                                                      AttentionState<S> &state)
{
#pragma unroll
    for (int m = 0; m < S::M; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int r = warp_row + m * 16 + attention_lane_row(h);
            float top = attention_begin_top(f, attention_stat_at(f.of, place, r));
            bool begun = top != -INFINITY;
            int64_t at = begun ? attention_row_at(f.of, place, r, f.before) : 0;
            state.top[m][h] = top;
            state.sum[m][h] = begun && threadIdx.x % 4 == 0 ? 1.0f : 0.0f;
#pragma unroll
            for (int n = 0; n < S::D / 8; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    int c = attention_lane_column(n, i);
                    state.o[m][n][2 * h + i] = begun && c < f.of.d
                                                   ? ((const float *)(void *)f.before.data)[at + c]
                                                   : 0;
                }
        }
}

/* Caps or slopes, then the mask: keys base.. of the block's rows `row`. */
template <class S>
__device__ __forceinline__ void attention_shape(const AttentionJob &job, const AttentionRow *row,
                                                int base, int split, bool masked,
                                                float (&s)[S::M][S::STEP / 8][4])
{
#pragma unroll
    for (int m = 0; m < S::M; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const AttentionRow &of = row[m * 16 + attention_lane_row(h)];
            int lane = base + attention_lane_column(0, 0); /* this one's first key */
            int first = of.first - lane, end = of.end - lane;
#pragma unroll
            for (int n = 0; n < S::STEP / 8; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    int key = 8 * n + i; /* from there */
                    float &x = s[m][n][2 * h + i];
                    if (job.softcap > 0)
                        x = attention_cap(job, x);
                    else if (job.alibi > 0)
                        x = fmaf(x, job.scale * LOG2_E, attention_lean(of, lane + key, split));
                    if (masked && (key < first || key >= end)) x = -INFINITY;
                }
        }
}

/* Scores become probabilities, the maxima and sums move on; fade: what the outputs so far are to be
 * multiplied with. */
template <class S>
__device__ __forceinline__ void attention_softmax(float unit, AttentionState<S> &state,
                                                  float (&s)[S::M][S::STEP / 8][4],
                                                  float (&fade)[S::M][2])
{
#pragma unroll
    for (int m = 0; m < S::M; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float top = -INFINITY;
#pragma unroll
            for (int n = 0; n < S::STEP / 8; n++)
                top = fmaxf(top, fmaxf(s[m][n][2 * h], s[m][n][2 * h + 1]));
            top = fmaxf(top, __shfl_xor_sync(FULL_WARP, top, 1));
            top = fmaxf(top, __shfl_xor_sync(FULL_WARP, top, 2));
            top = fmaxf(state.top[m][h], top * unit);
            float shift = top == -INFINITY ? 0 : top; /* nothing is seen so far */
            float sum = 0;
            fade[m][h] = exp2_fast(state.top[m][h] - shift);
            state.top[m][h] = top;
#pragma unroll
            for (int n = 0; n < S::STEP / 8; n++)
#pragma unroll
                for (int i = 2 * h; i < 2 * h + 2; i++) {
                    s[m][n][i] = exp2_fast(fmaf(s[m][n][i], unit, -shift));
                    sum += s[m][n][i];
                }
            state.sum[m][h] = fmaf(state.sum[m][h], fade[m][h], sum);
        }
}

template <class S>
__device__ __forceinline__ void attention_fade(AttentionState<S> &state,
                                               const float (&fade)[S::M][2])
{
#pragma unroll
    for (int m = 0; m < S::M; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            if (__all_sync(FULL_WARP, fade[m][h] == 1)) continue; /* mostly so, after some keys */
#pragma unroll
            for (int n = 0; n < S::D / 8; n++) {
                state.o[m][n][2 * h] *= fade[m][h];
                state.o[m][n][2 * h + 1] *= fade[m][h];
            }
        }
}

template <class S>
__device__ __forceinline__ void attention_state_store(const AttentionForward &f,
                                                      const AttentionPlace &place, int split,
                                                      int warp_row, AttentionState<S> &state)
{
    Rows o = f.o;
    if (f.splits > 1) {
        o.data = (char *)f.split_o;
        o.dtype = DTYPE_F32;
    }
#pragma unroll
    for (int m = 0; m < S::M; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float sum = state.sum[m][h], top = state.top[m][h];
            sum += __shfl_xor_sync(FULL_WARP, sum, 1);
            sum += __shfl_xor_sync(FULL_WARP, sum, 2);
            int r = warp_row + m * 16 + attention_lane_row(h);
            int64_t stat = attention_stat_at(f.of, place, r), at;
            if (stat < 0) continue;
            float share = sum == 0 ? 0 : 1 / sum;
            if (f.splits > 1) {
                at = attention_split_row(f, place, split, r);
                if (threadIdx.x % 4 == 0) {
                    f.split_state[2 * at] = top;
                    f.split_state[2 * at + 1] = sum;
                }
                at *= f.of.d;
            } else {
                at = attention_row_at(f.of, place, r, f.o);
                if (f.lse && threadIdx.x % 4 == 0) f.lse[stat] = attention_lse(top, sum);
            }
#pragma unroll
            for (int n = 0; n < S::D / 8; n++)
                attention_store_two(o, at, attention_lane_column(n, 0), f.of.d,
                                    state.o[m][n][2 * h] * share, state.o[m][n][2 * h + 1] * share);
        }
}

template <class S>
__global__ void __launch_bounds__(S::THREADS) attention_forward_mma_kernel(AttentionForward f)
{
    GPU_DYNAMIC_SHARED(shared);
    bf16 *q = (bf16 *)shared, *stage = q + S::ROWS * S::PITCH;
    AttentionRow *row = (AttentionRow *)(stage + 2 * S::STAGE);
    int split = (int)(blockIdx.x % f.splits), warp_row = (int)threadIdx.x / WARP * 16 * S::M;
    AttentionPlace place = attention_place(f.of, blockIdx.x / f.splits, S::ROWS);
    AttentionKeys keys = attention_rows(f.of, place, S::ROWS, S::KEYS, row);
    AttentionShare share = attention_share(keys, S::KEYS, split, f.splits);
    AttentionState<S> state;
    if (share.from < share.to) {
        attention_load<S::D, S::ROWS, S::THREADS>(
            q, f.of.d, f.aligned, f.of.q.data, [&](int i) -> const bf16 * {
                int64_t at = attention_row_at(f.of, place, i, f.of.q);
                return at < 0 ? NULL : (const bf16 *)(void *)f.of.q.data + at;
            });
        attention_load_stage<S>(f.of, f.aligned, place, keys, share.from, stage);
        copy_async_commit();
    }
    attention_state_begin<S>(f, place, warp_row, state);
    __syncthreads();
    AttentionSight sight = attention_sight(row + warp_row, 16 * S::M);
    float unit = attention_unit(f.of);
    bool shaped = f.of.softcap > 0 || f.of.alibi > 0;
    for (int block = share.from; block < share.to; block++) {
        const bf16 *k = stage + (block - share.from) % 2 * S::STAGE, *v = k + S::KEYS * S::PITCH;
        if (block + 1 < share.to)
            attention_load_stage<S>(f.of, f.aligned, place, keys, block + 1,
                                    stage + (block + 1 - share.from) % 2 * S::STAGE);
        copy_async_commit();
        copy_async_wait<1>();
        __syncthreads(); /* this block is there */
#pragma unroll 1
        for (int step = 0; step < S::KEYS; step += S::STEP) {
            int base = block * S::KEYS + step;
            if (sight.first >= base + S::STEP || sight.end <= base) continue;
            float s[S::M][S::STEP / 8][4], fade[S::M][2];
            uint32_t p[S::M][S::STEP / 16][4];
            attention_dots<S::D, S::M, S::STEP>(s, q + warp_row * S::PITCH, k + step * S::PITCH);
            bool masked = sight.all_first > base || sight.all_end < base + S::STEP;
            if (masked || shaped)
                attention_shape<S>(f.of, row + warp_row, base, keys.split, masked, s);
            attention_softmax<S>(unit, state, s, fade);
            attention_fade<S>(state, fade);
            attention_pack<S::M, S::STEP>(p, s);
            attention_add<S::PITCH, S::M, S::STEP, S::D>(state.o, p, v + step * S::PITCH);
        }
        __syncthreads(); /* and used: the one after the next may take its place */
    }
    copy_async_wait<0>();
    attention_state_store<S>(f, place, split, warp_row, state);
}

template <class S> static Status attention_forward_mma(GpuStream *stream, const AttentionForward &f)
{
    int64_t tiles = ceil_div((int64_t)f.of.tokens * f.of.group, S::ROWS);
    int64_t blocks = tiles * f.of.batch * f.of.kv_heads * f.splits;
    TRY(GPU_ALLOW_SHARED((attention_forward_mma_kernel<S>), S::SHARED));
    return GPU_LAUNCH(stream, (unsigned)blocks, S::THREADS, S::SHARED,
                      (attention_forward_mma_kernel<S>), f);
}

#endif
