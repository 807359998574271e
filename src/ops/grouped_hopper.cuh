/* Experts' products of bf16 on GPUs of compute capability 9.0: as many blocks of threads as there
 * are multiprocessors, which go from tile to tile of all experts. Of three warpgroups one thread
 * has the copy engine fill a ring of stages, DEEP of the contraction each, and each of the other
 * two multiplies 64 of the tile's 128 rows with its 128 or 256 columns; the next tile's operands
 * come while this one's sums are stored.
 *
 * What a tile has outside of the operands is zeros. What it has of the next expert's rows is not
 * stored, or, where rows are what is summed over (dw), not multiplied: segments are multiples of
 * EXPERT_ROW_ALIGN rows, as deep as one instruction. Included by grouped_linear.cu. */
#ifndef OPS_GROUPED_HOPPER_CUH
#define OPS_GROUPED_HOPPER_CUH

#include "gpu/hopper.cuh"
#include "ops/grouped_tiles.cuh"

constexpr int DEEP = 64, HOPPER_WORKERS = 2, HOPPER_THREADS = (1 + HOPPER_WORKERS) * WARPGROUP;
static_assert(EXPERT_ROW_ALIGN % 16 == 0, "products take 16 of a contraction at a time");

/* A stage: a's tile, then b's, in boxes of 64 elements a line. */
template <int WIDE> struct HopperShape {
    static constexpr int STAGES = WIDE == 256 ? 4 : 6;
    static constexpr int A_BYTES = TILE * DEEP * 2, B_BYTES = WIDE * DEEP * 2;
    static constexpr int BOX = DEEP * BOX_LINE_BYTES; /* of an operand that lies by k */
    static constexpr size_t SHARED = BOX_ALIGN + (size_t)STAGES * (A_BYTES + B_BYTES) +
                                     2 * STAGES * sizeof(uint64_t);
};

struct GroupedHopper {
    Grouped g;
    GpuBoxes a, b;
};

#if HOPPER_CODE

namespace
{

template <int WIDE> struct HopperRing {
    unsigned char *stage;
    Mbarrier *full, *empty;
    uint32_t used; /* stages so far */

    __device__ explicit HopperRing(unsigned char *dynamic)
    {
        using S = HopperShape<WIDE>;
        stage = hopper_shared(dynamic);
        full = (Mbarrier *)(void *)(stage + S::STAGES * (S::A_BYTES + S::B_BYTES));
        empty = full + S::STAGES;
        used = 0;
    }
    __device__ void begin(void) const
    {
        for (int i = 0; i < HopperShape<WIDE>::STAGES; i++) {
            mbarrier_begin(full + i, 1);
            mbarrier_begin(empty + i, HOPPER_WORKERS * (WARPGROUP / (int)WARP));
        }
        mbarriers_begun();
    }
    __device__ int slot(uint32_t of) const { return (int)(of % HopperShape<WIDE>::STAGES); }
    __device__ uint32_t round(void) const { return used / HopperShape<WIDE>::STAGES; }
    __device__ unsigned char *at(void) const
    {
        return stage + slot(used) * (HopperShape<WIDE>::A_BYTES + HopperShape<WIDE>::B_BYTES);
    }
};

} // namespace

/* By a whole warp: the tile, and false if there are no more. */
template <int WIDE>
__device__ static bool next_tile(const Grouped &g, int64_t number, Tile *tile, TileOf *of)
{
    int64_t product = find_product(g, number, WIDE);
    if (product < 0) return false;
    *tile = tile_at(g, product, number, WIDE);
    *of = tile_of(g, *tile);
    return true;
}

/* ---- the warp that brings ----------------------------------------------------------------- */

template <bool A_BY_K, bool B_BY_K, int WIDE>
__device__ static void bring_stage(const GroupedHopper &h, const HopperRing<WIDE> &ring,
                                   const Tile &tile, const TileOf &of, int k)
{
    using S = HopperShape<WIDE>;
    Mbarrier *full = ring.full + ring.slot(ring.used);
    unsigned char *a = ring.at(), *b = a + S::A_BYTES;
    bool dw = h.g.m != 0;
    int i = (int)tile.i, j = (int)tile.j, row = (int)of.row, expert = dw ? 0 : (int)of.expert;
    int b_row = dw ? row : 0;
    mbarrier_wait(ring.empty + ring.slot(ring.used), ring.round() + 1);
    mbarrier_expect(full, S::A_BYTES + S::B_BYTES);
    if (A_BY_K)
        for (int part = 0; part < TILE / BOX_LINE; part++)
            box_copy(a + part * S::BOX, &h.a, full, i + part * BOX_LINE, row + k, 0);
    else
        box_copy(a, &h.a, full, k, row + i, 0);
    if (B_BY_K)
        for (int part = 0; part < WIDE / BOX_LINE; part++)
            box_copy(b + part * S::BOX, &h.b, full, j + part * BOX_LINE, b_row + k, expert);
    else
        box_copy(b, &h.b, full, k, j, expert);
}

template <bool A_BY_K, bool B_BY_K, int WIDE>
__device__ static void bring_tiles(const GroupedHopper &h, HopperRing<WIDE> &ring)
{
    Tile tile;
    TileOf of;
    for (int64_t number = blockIdx.x; next_tile<WIDE>(h.g, number, &tile, &of);
         number += gridDim.x) {
        int deep = (int)of.k;
        if (threadIdx.x) continue;
        for (int k = 0; k < deep; k += DEEP, ring.used++)
            bring_stage<A_BY_K, B_BY_K, WIDE>(h, ring, tile, of, k);
    }
}

/* ---- the warps that multiply -------------------------------------------------------------- */

/* Begins sums += a b for 16 of a stage's contraction, the s-th. */
template <bool A_BY_K, bool B_BY_K, int WIDE>
__device__ __forceinline__ void begin_step(float (&sums)[WIDE / 8][4], const unsigned char *a,
                                           const unsigned char *b, int s)
{
    int by_k = s * 16 * BOX_LINE_BYTES, along_k = s * 32;
    Wgmma<WIDE>::template shared<A_BY_K, B_BY_K>(
        sums, A_BY_K ? wgmma_matrix_by_line(a + by_k, 0) : wgmma_matrix(a + along_k),
        B_BY_K ? wgmma_matrix_by_line(b + by_k, HopperShape<WIDE>::BOX) : wgmma_matrix(b + along_k),
        true);
}

/* The same for the first STEPS of them, 4 being all; fewer are left at the end of a contraction. */
template <bool A_BY_K, bool B_BY_K, int WIDE, int STEPS>
__device__ __forceinline__ void begin_steps(float (&sums)[WIDE / 8][4],
                                            const HopperRing<WIDE> &ring, int group)
{
    const unsigned char *a = ring.at() + group * 64 * BOX_LINE_BYTES,
                        *b = ring.at() + HopperShape<WIDE>::A_BYTES;
    wgmma_fence(sums);
#pragma unroll
    for (int s = 0; s < STEPS; s++) begin_step<A_BY_K, B_BY_K, WIDE>(sums, a, b, s);
    wgmma_commit();
}

template <class C, int WIDE>
__device__ __forceinline__ void store_tile(const Result<C> &to, const float (&sums)[WIDE / 8][4])
{
    int lane = (int)threadIdx.x % WARP, first = ((int)threadIdx.x - WARPGROUP) / WARP * 16;
#pragma unroll
    for (int n = 0; n < WIDE / 8; n++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = first + lane / 4 + 8 * half, column = 8 * n + lane % 4 * 2;
            const float v[2] = {sums[n][2 * half], sums[n][2 * half + 1]};
            if (row < to.m && column < to.n)
                put<C, 2>(to.c + row * to.pitch + column, v, to.accumulate);
        }
}

template <class C, bool A_BY_K, bool B_BY_K, int WIDE>
__device__ static void multiply_tiles(const GroupedHopper &h, HopperRing<WIDE> &ring)
{
    int group = (int)threadIdx.x / WARPGROUP - 1;
    bool first_lane = threadIdx.x % WARP == 0;
    Tile tile;
    TileOf of;
    for (int64_t number = blockIdx.x; next_tile<WIDE>(h.g, number, &tile, &of);
         number += gridDim.x) {
        int deep = same_for_warp((int)of.k);
        float sums[WIDE / 8][4] = {};
        for (int k = 0; k < deep; k += DEEP, ring.used++) {
            mbarrier_wait(ring.full + ring.slot(ring.used), ring.round());
            int steps = (deep - k + 15) / 16;
            if (steps >= 4)
                begin_steps<A_BY_K, B_BY_K, WIDE, 4>(sums, ring, group);
            else if (steps == 3)
                begin_steps<A_BY_K, B_BY_K, WIDE, 3>(sums, ring, group);
            else if (steps == 2)
                begin_steps<A_BY_K, B_BY_K, WIDE, 2>(sums, ring, group);
            else
                begin_steps<A_BY_K, B_BY_K, WIDE, 1>(sums, ring, group);
            wgmma_wait<1>(); /* the stage before is done with */
            if (k && first_lane) mbarrier_arrive(ring.empty + ring.slot(ring.used - 1));
        }
        wgmma_wait<0>(sums);
        if (deep && first_lane) mbarrier_arrive(ring.empty + ring.slot(ring.used - 1));
        store_tile<C, WIDE>(result_at<C>(h.g, tile, of, WIDE), sums);
    }
}

#endif /* HOPPER_CODE */

template <class C, bool A_BY_K, bool B_BY_K, int WIDE>
__global__ static void __launch_bounds__(HOPPER_THREADS, 1)
    grouped_hopper_kernel(const __grid_constant__ GroupedHopper h)
{
#if HOPPER_CODE
    GPU_DYNAMIC_SHARED(dynamic);
    HopperRing<WIDE> ring(dynamic);
    if (threadIdx.x == 0) ring.begin();
    __syncthreads();
    if (threadIdx.x < WARPGROUP) {
        registers_give<56>();
        if (threadIdx.x < WARP) bring_tiles<A_BY_K, B_BY_K, WIDE>(h, ring);
    } else {
        registers_take<224>();
        multiply_tiles<C, A_BY_K, B_BY_K, WIDE>(h, ring);
    }
#endif
}

/* ---- launches ----------------------------------------------------------------------------- */

/* [layers height width] bf16 in boxes of `lines` lines of 64 */
static Status grouped_boxes(GpuStream *stream, const void *data, const int64_t size[3],
                            int64_t pitch, int64_t layer, int lines, GpuBoxes *boxes)
{
    GpuTiling tiling = {};
    tiling.data = data;
    tiling.axes = 3;
    for (int a = 0; a < 3; a++) tiling.size[a] = size[a];
    tiling.pitch_bytes[1] = pitch * (int64_t)sizeof(bf16);
    tiling.pitch_bytes[2] = layer * (int64_t)sizeof(bf16);
    tiling.box[0] = BOX_LINE;
    tiling.box[1] = lines;
    tiling.box[2] = 1;
    return gpu_boxes_make(stream, &tiling, boxes);
}

template <class C, bool A_BY_K, bool B_BY_K, int WIDE>
static Status launch_wide(GpuStream *stream, const Grouped *g)
{
    using S = HopperShape<WIDE>;
    GroupedHopper h = {*g};
    const int64_t a[3] = {A_BY_K ? g->m : g->k, g->rows, 1};
    int64_t k = g->m ? g->rows : g->k, experts = g->m ? 1 : g->products / g->sources;
    const int64_t b[3] = {B_BY_K ? g->n : k, B_BY_K ? k : g->n, experts};
    int64_t tiles = most_tiles_down(g) * ceil_div(g->n, WIDE);
    if (!tiles) return OK;
    TRY(grouped_boxes(stream, g->a.data, a, g->a.pitch, g->rows * g->a.pitch, A_BY_K ? DEEP : TILE,
                      &h.a));
    TRY(grouped_boxes(stream, g->b.data, b, g->b.pitch, g->m ? g->rows * g->b.pitch : g->matrix,
                      B_BY_K ? DEEP : WIDE, &h.b));
    unsigned grid = (unsigned)min(tiles,
                                  (int64_t)gpu_info(gpu_stream_device(stream))->multiprocessors);
    TRY(GPU_ALLOW_SHARED((grouped_hopper_kernel<C, A_BY_K, B_BY_K, WIDE>), S::SHARED));
    return GPU_LAUNCH(stream, grid, HOPPER_THREADS, S::SHARED,
                      (grouped_hopper_kernel<C, A_BY_K, B_BY_K, WIDE>), h);
}

/* Whether these kernels are for it: boxes need lines of multiples of 16 bytes, and pairs of results
 * are stored at once. */
static bool hopper_takes(GpuStream *stream, const Grouped *g)
{
    return hopper_has(stream) && rows_align(&g->a, 8) && rows_align(&g->b, 8) &&
           rows_align(&g->c, 2) && g->rows && g->n && (g->m || g->k) && g->matrix % 8 == 0;
}

/* 256 columns a tile, unless more than a half of the last one would lie idle. */
template <class C, bool A_BY_K, bool B_BY_K>
static Status launch_hopper(GpuStream *stream, const Grouped *g)
{
    int64_t rest = g->n % 256;
    return rest && rest <= 128 ? launch_wide<C, A_BY_K, B_BY_K, 128>(stream, g)
                               : launch_wide<C, A_BY_K, B_BY_K, 256>(stream, g);
}

#endif
