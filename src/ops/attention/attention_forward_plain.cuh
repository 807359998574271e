/* attention forward without tensor cores: queries, keys, values, scores and outputs of a tile lie
 * in shared memory as f32. Included by attention.cu. */
#ifndef OPS_ATTENTION_FORWARD_PLAIN_CUH
#define OPS_ATTENTION_FORWARD_PLAIN_CUH

#include "ops/attention/attention_forward.cuh"
#include "ops/attention/attention_plain.cuh"

/* Of a row: its keys, its maximum times log2 e, its sum, and what its output is multiplied with
 * when the maximum grows. */
struct PlainState {
    AttentionRow row;
    float top, sum, fade;
};

/* The block's rows, by turns of the warps: scores become probabilities. */
__device__ inline void plain_softmax(PlainState *state, float *s, int n)
{
    int lane = (int)threadIdx.x % WARP, pitch = plain_pitch(n);
    for (int r = (int)threadIdx.x / WARP; r < n; r += PLAIN_THREADS / WARP) {
        float *x = s + r * pitch, top = -INFINITY, sum = 0;
        for (int i = lane; i < n; i += WARP) top = fmaxf(top, x[i]);
        float old = state[r].top;
        top = fmaxf(old, warp_max(top));
        float shift = top == -INFINITY ? 0 : top;
        for (int i = lane; i < n; i += WARP) {
            x[i] = exp2f(x[i] - shift);
            sum += x[i];
        }
        sum = warp_sum(sum);
        __syncwarp();
        if (lane == 0) {
            state[r].fade = exp2f(old - shift);
            state[r].top = top;
            state[r].sum = fmaf(state[r].sum, state[r].fade, sum);
        }
    }
}

__device__ inline void plain_fade(const PlainState *state, float *o, int n, int d)
{
    int columns = plain_columns(d), pitch = plain_pitch(d);
    for (int i = (int)threadIdx.x; i < n * columns; i += PLAIN_THREADS)
        o[i / columns * pitch + i % columns] *= state[i / columns].fade;
}

__device__ inline void plain_begin(const AttentionForward &f, const AttentionPlace &place,
                                   PlainState *state, float *o, int n)
{
    for (int r = (int)threadIdx.x; r < n; r += PLAIN_THREADS) {
        state[r].top = attention_begin_top(f, attention_stat_at(f.of, place, r));
        state[r].sum = state[r].top == -INFINITY ? 0.0f : 1.0f;
    }
    plain_load(o, f.before, n, f.of.d, [&](int r) -> int64_t {
        bool begun = attention_begin_top(f, attention_stat_at(f.of, place, r)) != -INFINITY;
        return begun ? attention_row_at(f.of, place, r, f.before) : -1;
    });
}

__device__ inline void plain_store(const AttentionForward &f, const AttentionPlace &place,
                                   int split, const PlainState *state, const float *o, int n)
{
    int d = f.of.d, pitch = plain_pitch(d);
    for (int i = (int)threadIdx.x; i < n * d; i += PLAIN_THREADS) {
        int r = i / d, c = i - r * d;
        int64_t stat = attention_stat_at(f.of, place, r);
        if (stat < 0) continue;
        float sum = state[r].sum, x = sum == 0 ? 0 : o[r * pitch + c] / sum;
        if (f.splits > 1) {
            int64_t at = attention_split_row(f, place, split, r);
            f.split_o[at * d + c] = x;
            if (c == 0) {
                f.split_state[2 * at] = state[r].top;
                f.split_state[2 * at + 1] = sum;
            }
        } else {
            plain_write(f.o, attention_row_at(f.of, place, r, f.o) + c, x);
            if (f.lse && c == 0) f.lse[stat] = attention_lse(state[r].top, sum);
        }
    }
}

/* n rows and keys to a tile */
__global__ static void __launch_bounds__(PLAIN_THREADS)
    attention_forward_plain_kernel(AttentionForward f, int n)
{
    GPU_DYNAMIC_SHARED(shared);
    int d = f.of.d, pitch = plain_pitch(d), s_pitch = plain_pitch(n);
    float *q = (float *)shared, *k = q + n * pitch, *v = k + n * pitch, *o = v + n * pitch;
    float *s = o + n * pitch;
    PlainState *state = (PlainState *)(s + n * s_pitch);
    AttentionRow *row = (AttentionRow *)(state + n);
    int split = (int)(blockIdx.x % f.splits);
    AttentionPlace place = attention_place(f.of, blockIdx.x / f.splits, n);
    AttentionKeys keys = attention_rows(f.of, place, n, n, row);
    AttentionShare share = attention_share(keys, n, split, f.splits);
    plain_load(q, f.of.q, n, d, [&](int r) { return attention_row_at(f.of, place, r, f.of.q); });
    plain_begin(f, place, state, o, n);
    for (int block = share.from; block < share.to; block++) {
        int base = block * n;
        auto at = [&](const Rows &rows) {
            return [&, rows](int i) -> int64_t {
                if (base + i < keys.first || base + i >= keys.end) return -1;
                return f.of.cache_rows
                           ? attention_key_at<true>(f.of, place, keys.origin, base + i, rows)
                           : attention_key_at<false>(f.of, place, keys.origin, base + i, rows);
            };
        };
        plain_load(k, f.of.k, n, d, at(f.of.k));
        plain_load(v, f.of.v, n, d, at(f.of.v));
        __syncthreads();
        plain_squares(n, [&](int i, int j, int step) {
            float x[4][4], slope;
            plain_dots(x, q + i * pitch, k + j * pitch, pitch, step, plain_columns(d));
            for (int a = 0; a < 4; a++)
                for (int b = 0; b < 4; b++) {
                    int key = base + j + b * step;
                    float z = plain_score(f.of, row[i + a], x[a][b], key, keys.split, &slope);
                    s[(i + a) * s_pitch + j + b * step] = plain_sees(row[i + a], key) ? z
                                                                                      : -INFINITY;
                }
        });
        __syncthreads();
        plain_softmax(state, s, n);
        __syncthreads();
        plain_fade(state, o, n, d);
        __syncthreads();
        plain_add(o, s, v, n, d);
        __syncthreads();
    }
    __syncthreads();
    plain_store(f, place, split, state, o, n);
}

static Status attention_forward_plain(GpuStream *stream, const AttentionForward &f)
{
    size_t row_bytes = sizeof(PlainState) + sizeof(AttentionRow);
    size_t most = (size_t)gpu_info(gpu_stream_device(stream))->shared_bytes;
    int64_t rows = (int64_t)f.of.tokens * f.of.group;
    int n = plain_tile(rows, f.of.d, 4, 1, most, row_bytes);
    if (!n) return fail(ERR_UNSUPPORTED, "attention: heads of %d elements on a GPU", f.of.d);
    size_t shared = ((size_t)4 * n * plain_pitch(f.of.d) + (size_t)n * plain_pitch(n)) *
                        sizeof(float) +
                    n * row_bytes;
    int64_t blocks = ceil_div(rows, n) * f.of.batch * f.of.kv_heads * f.splits;
    TRY(GPU_ALLOW_SHARED((attention_forward_plain_kernel), shared));
    return GPU_LAUNCH(stream, (unsigned)blocks, PLAIN_THREADS, shared,
                      (attention_forward_plain_kernel), f, n);
}

#endif
