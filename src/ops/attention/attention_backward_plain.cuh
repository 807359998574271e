/* attention's gradient without tensor cores: all tiles in shared memory as f32. Included by
 * attention_grad.cu. */
#ifndef OPS_ATTENTION_BACKWARD_PLAIN_CUH
#define OPS_ATTENTION_BACKWARD_PLAIN_CUH

#include "ops/attention/attention_backward.cuh"

/* Of one query: its keys, and what was told of it. */
struct PlainQuery {
    AttentionRow row;
    AttentionStat stat;
};

/* What the two products of a query and a key come to: the probability, and dz. */
__device__ inline void plain_slopes(const AttentionJob &job, const PlainQuery &query, int key,
                                    int split, float score, float dp, float *p, float *dz)
{
    float slope, z = plain_score(job, query.row, score, key, split, &slope);
    bool sees = plain_sees(query.row, key);
    *p = sees ? exp2f(z - query.stat.shift) : 0;
    *dz = sees ? *p * fmaf(dp, job.scale, -query.stat.delta) * slope : 0;
}

/* ---- dq ----------------------------------------------------------------------------------- */

/* n rows and keys to a tile */
__global__ static void __launch_bounds__(PLAIN_THREADS)
    attention_queries_plain_kernel(AttentionBackward f, int n)
{
    GPU_DYNAMIC_SHARED(shared);
    int d = f.of.d, pitch = plain_pitch(d), s_pitch = plain_pitch(n);
    float *q = (float *)shared, *dout = q + n * pitch, *k = dout + n * pitch, *v = k + n * pitch,
          *dq = v + n * pitch, *dz = dq + n * pitch;
    PlainQuery *query = (PlainQuery *)(dz + n * s_pitch);
    AttentionRow *row = (AttentionRow *)(query + n);
    AttentionPlace place = attention_place(f.of, blockIdx.x, n);
    AttentionKeys keys = attention_rows(f.of, place, n, n, row);
    auto at_row = [&](const Rows &rows) {
        return [&, rows](int r) { return attention_row_at(f.of, place, r, rows); };
    };
    plain_load(q, f.of.q, n, d, at_row(f.of.q));
    plain_load(dout, f.dout, n, d, at_row(f.dout));
    plain_zero(dq, n * pitch);
    __syncthreads();
    for (int r = (int)threadIdx.x; r < n; r += PLAIN_THREADS) {
        int64_t at = attention_stat_at(f.of, place, r);
        AttentionStat none = {0, 0};
        query[r].row = row[r];
        query[r].stat = at < 0 ? none : f.stat[at];
    }
    for (int base = 0; base < keys.end; base += n) {
        auto at_key = [&](const Rows &rows) {
            return [&, rows](int i) -> int64_t {
                if (base + i < keys.first || base + i >= keys.end) return -1;
                return attention_key_at<false>(f.of, place, keys.origin, base + i, rows);
            };
        };
        plain_load(k, f.of.k, n, d, at_key(f.of.k));
        plain_load(v, f.of.v, n, d, at_key(f.of.v));
        __syncthreads();
        plain_squares(n, [&](int i, int j, int step) {
            float x[4][4], dp[4][4], p;
            plain_dots(x, q + i * pitch, k + j * pitch, pitch, step, plain_columns(d));
            plain_dots(dp, dout + i * pitch, v + j * pitch, pitch, step, plain_columns(d));
            for (int a = 0; a < 4; a++)
                for (int c = 0; c < 4; c++)
                    plain_slopes(f.of, query[i + a], base + j + c * step, keys.split, x[a][c],
                                 dp[a][c], &p, &dz[(i + a) * s_pitch + j + c * step]);
        });
        __syncthreads();
        plain_add(dq, dz, k, n, d);
        __syncthreads();
    }
    for (int i = (int)threadIdx.x; i < n * d; i += PLAIN_THREADS) {
        int r = i / d, c = i - r * d;
        int64_t at = attention_row_at(f.of, place, r, f.dq);
        if (at < 0) continue;
        float x = dq[r * pitch + c];
        if (f.dq_before.data)
            x += plain_read(f.dq_before, attention_row_at(f.of, place, r, f.dq_before) + c);
        plain_write(f.dq, at + c, x);
    }
}

/* ---- dk and dv ---------------------------------------------------------------------------- */

/* dk or dv of the block's keys from `first` on. */
__device__ inline void plain_store_keys(const AttentionBackward &f, const Rows &to, int b, int h,
                                        int first, const float *from, int n)
{
    int d = f.of.d, pitch = plain_pitch(d);
    if (!to.data) return;
    for (int i = (int)threadIdx.x; i < n * d; i += PLAIN_THREADS) {
        int r = i / d, c = i - r * d;
        if (first + r >= f.of.n_keys) return;
        int64_t at = ((int64_t)b * f.of.n_keys + first + r) * to.pitch + (int64_t)h * d + c;
        plain_write(to, at, from[r * pitch + c]);
    }
}

/* What was told of tokens t..t+n-1 with one head. */
__device__ inline void plain_queries(const AttentionBackward &f, int b, int head, int t, int n,
                                     PlainQuery *query)
{
    float slope = attention_head_slope(f.of, head);
    for (int r = (int)threadIdx.x; r < n; r += PLAIN_THREADS) {
        PlainQuery to = {};
        if (t + r < f.of.tokens) {
            AttentionRange range = f.range[(int64_t)b * f.of.tokens + t + r];
            to.row = attention_query(f, range, slope, t + r);
            to.stat = f.stat[((int64_t)b * f.of.heads + head) * f.of.tokens + t + r];
        }
        query[r] = to;
    }
}

/* n keys and queries to a tile, n of a tile of tokens at a time. */
__global__ static void __launch_bounds__(PLAIN_THREADS)
    attention_keys_plain_kernel(AttentionBackward f, int n)
{
    GPU_DYNAMIC_SHARED(shared);
    int d = f.of.d, pitch = plain_pitch(d), s_pitch = plain_pitch(n), tile = n * pitch;
    float *k = (float *)shared, *v = k + tile, *dk = v + tile, *dv = dk + tile, *q = dv + tile,
          *dout = q + tile, *p = dout + tile, *dz = p + n * s_pitch;
    PlainQuery *query = (PlainQuery *)(dz + n * s_pitch);
    int pairs = f.of.batch * f.of.kv_heads, pair = (int)(blockIdx.x % pairs);
    int b = pair / f.of.kv_heads, h = pair % f.of.kv_heads, split = attention_split_key(f.of);
    int first = (int)(blockIdx.x / pairs) * n, end = min(first + n, f.of.n_keys);
    auto at_key = [&](const Rows &rows) {
        return [&, rows](int r) -> int64_t {
            if (first + r >= end) return -1;
            return ((int64_t)b * f.of.n_keys + first + r) * rows.pitch + (int64_t)h * d;
        };
    };
    plain_load(k, f.of.k, n, d, at_key(f.of.k));
    plain_load(v, f.of.v, n, d, at_key(f.of.v));
    plain_zero(dk, tile);
    plain_zero(dv, tile);
    AttentionWalk walk = {attention_tile_that_sees(f, b, 0, first, end), 0};
    for (; walk.tile < f.tiles; walk = attention_walk_next(f, b, walk, first, end)) {
        int head = h * f.of.group + walk.head;
        int last = min(TILE_TOKENS, f.of.tokens - walk.tile * TILE_TOKENS);
        for (int part = 0; part < last; part += n) {
            int t = walk.tile * TILE_TOKENS + part;
            auto at_token = [&](const Rows &rows) {
                return [&, rows](int r) -> int64_t {
                    if (t + r >= f.of.tokens) return -1;
                    return ((int64_t)b * f.of.tokens + t + r) * rows.pitch + (int64_t)head * d;
                };
            };
            plain_load(q, f.of.q, n, d, at_token(f.of.q));
            plain_load(dout, f.dout, n, d, at_token(f.dout));
            plain_queries(f, b, head, t, n, query);
            __syncthreads();
            plain_squares(n, [&](int i, int j, int step) {
                float x[4][4], dp[4][4];
                plain_dots(x, k + i * pitch, q + j * pitch, pitch, step, plain_columns(d));
                plain_dots(dp, v + i * pitch, dout + j * pitch, pitch, step, plain_columns(d));
                for (int a = 0; a < 4; a++)
                    for (int c = 0; c < 4; c++) {
                        int at = (i + a) * s_pitch + j + c * step;
                        plain_slopes(f.of, query[j + c * step], first + i + a, split, x[a][c],
                                     dp[a][c], &p[at], &dz[at]);
                    }
            });
            __syncthreads();
            plain_add(dv, p, dout, n, d);
            plain_add(dk, dz, q, n, d);
            __syncthreads();
        }
    }
    __syncthreads();
    plain_store_keys(f, f.dk, b, h, first, dk, n);
    plain_store_keys(f, f.dv, b, h, first, dv, n);
}

static Status attention_backward_plain(GpuStream *stream, const AttentionBackward &f)
{
    const AttentionJob &job = f.of;
    size_t most = (size_t)gpu_info(gpu_stream_device(stream))->shared_bytes;
    size_t row_bytes = sizeof(PlainQuery) + sizeof(AttentionRow);
    int64_t rows = (int64_t)job.tokens * job.group;
    int n = plain_tile(rows, job.d, 6, 2, most, row_bytes); /* of the pass that needs more */
    if (!n) return fail(ERR_UNSUPPORTED, "attention_grad: heads of %d elements on a GPU", job.d);
    size_t tile = (size_t)n * plain_pitch(job.d), square = (size_t)n * plain_pitch(n);
    int64_t pairs = (int64_t)job.batch * job.kv_heads;
    int64_t tiles = ceil_div(rows, n), blocks = ceil_div(job.n_keys, n);
    if (f.dq.data && tiles) {
        size_t shared = (5 * tile + square) * sizeof(float) + n * row_bytes;
        TRY(GPU_ALLOW_SHARED((attention_queries_plain_kernel), shared));
        TRY(GPU_LAUNCH(stream, (unsigned)(tiles * pairs), PLAIN_THREADS, shared,
                       (attention_queries_plain_kernel), f, n));
    }
    if ((!f.dk.data && !f.dv.data) || !blocks) return OK;
    size_t shared = (6 * tile + 2 * square) * sizeof(float) + n * row_bytes;
    TRY(GPU_ALLOW_SHARED((attention_keys_plain_kernel), shared));
    return GPU_LAUNCH(stream, (unsigned)(blocks * pairs), PLAIN_THREADS, shared,
                      (attention_keys_plain_kernel), f, n);
}

#endif
