/* attention's gradient on the cuda device: what its kernels share, and the two small ones that go
 * before them. Included by attention_grad.cu.
 *
 * dk and dv of a block of keys are summed by the block of threads that walks all queries that see
 * it; dq of a tile of queries by one that walks their keys. The scores are made twice for that, and
 * every sum has one order. */
#ifndef OPS_ATTENTION_BACKWARD_CUH
#define OPS_ATTENTION_BACKWARD_CUH

#include "ops/attention/attention_mma.cuh"
#include "ops/attention/attention_plain.cuh"

struct AttentionBackward {
    AttentionJob of;
    Rows o, dout;
    Rows dq, dk, dv;       /* data NULL: nobody wants it */
    Rows dq_before;        /* f32, of the parts of the keys before this one; data NULL: none */
    const float *lse;      /* [B H T] */
    AttentionTile *tile;   /* [B tiles] */
    AttentionRange *range; /* [B T] */
    AttentionStat *stat;   /* [B H T] */
    int tiles;             /* of a sequence */
    bool aligned;
};

constexpr int TILE_TOKENS = ATTENTION_TILE_TOKENS, TILE_WARPS = TILE_TOKENS / (int)WARP;

/* ---- what is known of queries ------------------------------------------------------------- */

/* A block of threads a tile of tokens. */
__global__ static void __launch_bounds__(TILE_TOKENS) attention_ranges_kernel(AttentionBackward f)
{
    __shared__ AttentionTile of_warp[TILE_WARPS];
    int b = (int)(blockIdx.x / f.tiles), tile = (int)(blockIdx.x % f.tiles);
    int t = tile * TILE_TOKENS + (int)threadIdx.x;
    AttentionRange range = {0, 0};
    if (t < f.of.tokens) {
        KeyRange r = attention_token_range(f.of, b, t);
        if (r.first < r.end) {
            range.first = (int32_t)r.first;
            range.end = (int32_t)r.end;
        }
        f.range[(int64_t)b * f.of.tokens + t] = range;
    }
    AttentionTile all;
    all.first = warp_min_int(range.first < range.end ? range.first : INT32_MAX);
    all.end = warp_max_int(range.end);
    all.all_first = warp_max_int(range.first);
    all.all_end = warp_min_int(range.end);
    if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = all;
    __syncthreads();
    if (threadIdx.x) return;
    for (int w = 1; w < TILE_WARPS; w++) {
        all.first = min(all.first, of_warp[w].first);
        all.end = max(all.end, of_warp[w].end);
        all.all_first = max(all.all_first, of_warp[w].all_first);
        all.all_end = min(all.all_end, of_warp[w].all_end);
    }
    f.tile[blockIdx.x] = all;
}

constexpr int STAT_THREADS = 256, STAT_WARPS = STAT_THREADS / (int)WARP;

/* A warp a query of a head, heads of a token side by side. */
template <class T, int N>
__global__ void __launch_bounds__(STAT_THREADS) attention_stats_kernel(AttentionBackward f)
{
    int64_t i = (int64_t)blockIdx.x * STAT_WARPS + threadIdx.x / WARP;
    int64_t rows = (int64_t)f.of.batch * f.of.tokens * f.of.heads;
    int lane = (int)threadIdx.x % WARP;
    if (i >= rows) return;
    int64_t token = i / f.of.heads, head = i % f.of.heads;
    const T *o = row_at<const T>(f.o, token) + head * f.of.d,
            *dout = row_at<const T>(f.dout, token) + head * f.of.d;
    float sum = 0;
    for (int c = lane * N; c < f.of.d; c += WARP * N) {
        auto a = load_neighbours<N>(o + c);
        auto b = load_neighbours<N>(dout + c);
#pragma unroll
        for (int k = 0; k < N; k++) sum = fmaf(to_f32(a.at[k]), to_f32(b.at[k]), sum);
    }
    sum = warp_sum(sum);
    int64_t at = (token / f.of.tokens * f.of.heads + head) * f.of.tokens + token % f.of.tokens;
    if (lane) return;
    AttentionStat stat = {f.lse[at] * LOG2_E, sum * f.of.scale};
    f.stat[at] = stat;
}

static Status attention_tell(GpuStream *stream, const AttentionBackward &f)
{
    const AttentionJob &job = f.of;
    int64_t rows = (int64_t)job.batch * job.tokens * job.heads;
    unsigned blocks = (unsigned)ceil_div(rows, STAT_WARPS);
    TRY(GPU_LAUNCH(stream, (unsigned)(job.batch * f.tiles), TILE_TOKENS, 0,
                   (attention_ranges_kernel), f));
    BY_ACTIVATION(f.o.dtype, T, {
        constexpr int N = 8 / (int)sizeof(T);
        if (job.d % N == 0 && rows_align(&f.o, N) && rows_align(&f.dout, N))
            return GPU_LAUNCH(stream, blocks, STAT_THREADS, 0, (attention_stats_kernel<T, N>), f);
        return GPU_LAUNCH(stream, blocks, STAT_THREADS, 0, (attention_stats_kernel<T, 1>), f);
    });
}

/* ---- walking the queries of a block of keys ----------------------------------------------- */

/* A tile of tokens with one head of the group. */
struct AttentionWalk {
    int tile, head; /* tile == tiles: there are no more */
};

/* The first tile from `tile` on in which some token sees a key of first..end-1. The same for all
 * threads of a warp. */
__device__ inline int attention_tile_that_sees(const AttentionBackward &f, int b, int tile,
                                               int first, int end)
{
    for (; tile < f.tiles; tile += WARP) {
        int at = tile + (int)threadIdx.x % WARP;
        bool sees = false;
        if (at < f.tiles) {
            const AttentionTile *of = f.tile + (int64_t)b * f.tiles + at;
            sees = of->first < end && of->end > first;
        }
        unsigned which = __ballot_sync(FULL_WARP, sees);
        if (which) return tile + __ffs((int)which) - 1;
    }
    return f.tiles;
}

__device__ inline AttentionWalk attention_walk_next(const AttentionBackward &f, int b,
                                                    AttentionWalk walk, int first, int end)
{
    if (++walk.head < f.of.group) return walk;
    walk.head = 0;
    walk.tile = attention_tile_that_sees(f, b, walk.tile + 1, first, end);
    return walk;
}

/* What the head's scores are made with for token t. */
__device__ inline AttentionRow attention_query(const AttentionBackward &f, AttentionRange range,
                                               float slope, int t)
{
    AttentionRow row = {range.first, range.end, slope, {0, 0}};
    if (f.of.alibi > 0) {
        int64_t at = attention_row(&f.of.slice, t);
        row.offset[0] = (int)(f.of.keys.first - at);
        row.offset[1] = (int)(f.of.keys.second - at);
    }
    return row;
}

__device__ inline float attention_head_slope(const AttentionJob &job, int head)
{
    if (!(job.alibi > 0)) return 0;
    return LOG2_E * attention_slope(job.alibi, job.alibi_heads, job.alibi_first + head);
}

__device__ inline int attention_split_key(const AttentionJob &job)
{
    return (int)max((int64_t)INT32_MIN, min(job.keys.split, (int64_t)INT32_MAX));
}

#endif
