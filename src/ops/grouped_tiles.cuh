/* Which tile of which expert's product: for the kernels of experts' products. Included by .cu files
 * only. */
#ifndef OPS_GROUPED_TILES_CUH
#define OPS_GROUPED_TILES_CUH

#include "ops/kernel.cuh"

extern "C" {
#include "ops/grouped_linear.h"
}

/* Rows of a tile, and columns where nothing else is said; tiles of rows that meet the same columns
 * one after the other (tile_at). */
constexpr int TILE = 128, TILES_TOGETHER = 16;

/* c_p [m n] = a_p b_p, or += where it accumulates, for products p. With m = 0 these are of segments
 * of rows: a_p and c_p are those rows, b_p is the matrix of segment p's expert. Else it is dw:
 * product p is of expert p, a_p lies as [k m], a_p and b_p are the rows of one of its segments. */
typedef struct Grouped {
    Rows a, b, c;   /* of matrices: the first expert's */
    int64_t matrix; /* elements from one expert's matrix to the next */
    const int32_t *offsets;
    int64_t products, rows; /* rows: of the buffer */
    int sources, source;    /* segments of each expert; the one of dw */
    int64_t m, n, k;        /* k of dw is 0: the segment's rows */
    bool accumulate;
} Grouped;

/* ---- which tile --------------------------------------------------------------------------- */

__host__ __device__ static inline int64_t tiles_of(int64_t length)
{
    return (length + TILE - 1) / TILE;
}

__device__ static int64_t segment_start(const Grouped &g, int64_t segment)
{
    return max((int64_t)0, min((int64_t)g.offsets[segment], g.rows));
}
__device__ static int64_t segment_rows(const Grouped &g, int64_t segment)
{
    return max((int64_t)0, segment_start(g, segment + 1) - segment_start(g, segment));
}
__device__ static int64_t product_m(const Grouped &g, int64_t product)
{
    return g.m ? g.m : segment_rows(g, product);
}

typedef struct Tile {
    int64_t product; /* -1: none */
    int64_t i, j;    /* where it begins */
} Tile;

/* Number `index` of a product's tiles, `wide` columns each. Some tiles of rows meet all columns
 * before the next ones do: then what blocks read at the same time, of rows and of the weight, stays
 * in the cache. */
__device__ static Tile tile_at(const Grouped &g, int64_t product, int64_t index, int wide)
{
    int64_t across = (g.n + wide - 1) / wide, together = TILES_TOGETHER * across;
    int64_t first = index / together * TILES_TOGETHER, rest = index % together;
    int64_t height = min(tiles_of(product_m(g, product)) - first, (int64_t)TILES_TOGETHER);
    Tile tile = {product, (first + rest % height) * TILE, rest / height * wide};
    return tile;
}

/* By one warp: the product that tile `index` belongs to, and its number there. */
__device__ static int64_t find_product(const Grouped &g, int64_t &index, int wide)
{
    int lane = (int)threadIdx.x % WARP;
    int64_t across = (g.n + wide - 1) / wide;
    for (int64_t first = 0; first < g.products; first += WARP) {
        int64_t p = first + lane, tiles = p < g.products ? tiles_of(product_m(g, p)) * across : 0;
        int64_t end = tiles; /* of the products from `first` to this one */
        for (int by = 1; by < (int)WARP; by *= 2) {
            int64_t before = __shfl_up_sync(FULL_WARP, end, by);
            if (lane >= by) end += before;
        }
        unsigned behind = __ballot_sync(FULL_WARP, index < end);
        if (behind) {
            int found = __ffs((int)behind) - 1;
            index -= __shfl_sync(FULL_WARP, end - tiles, found);
            return first + found;
        }
        index -= __shfl_sync(FULL_WARP, end, WARP - 1);
    }
    return -1;
}

/* What of a product a tile is, all but the result: segment and expert, its first row, how much is
 * summed and how many rows the result has. */
struct TileOf {
    int64_t expert, row, k, m;
};

__device__ static TileOf tile_of(const Grouped &g, const Tile &tile)
{
    bool dw = g.m != 0;
    int64_t segment = dw ? tile.product * g.sources + g.source : tile.product;
    TileOf of = {segment / g.sources, segment_start(g, segment), g.k, product_m(g, tile.product)};
    if (dw) of.k = segment_rows(g, segment);
    return of;
}

/* ---- results ------------------------------------------------------------------------------ */

template <class C, int N> __device__ static void put(C *c, const float (&v)[N], bool accumulate)
{
    Neighbours<C, N> to;
    if (accumulate) to = load_neighbours<N>((const C *)c);
    for (int k = 0; k < N; k++) to.at[k] = from_f32<C>(accumulate ? to_f32(to.at[k]) + v[k] : v[k]);
    store_neighbours(c, to);
}

/* Where a tile of the result goes, and how much of it there is. */
template <class C> struct Result {
    C *c;
    int64_t pitch;
    int m, n;
    bool accumulate;
};

template <class C>
__device__ static Result<C> result_at(const Grouped &g, const Tile &tile, const TileOf &of,
                                      int wide)
{
    int64_t to = (g.m ? of.expert * g.matrix : of.row * g.c.pitch) + tile.i * g.c.pitch + tile.j;
    Result<C> result = {(C *)(void *)g.c.data + to, g.c.pitch,
                        (int)min(of.m - tile.i, (int64_t)TILE),
                        (int)min(g.n - tile.j, (int64_t)wide), g.accumulate};
    return result;
}

/* As many tiles of rows as there can be. */
static int64_t most_tiles_down(const Grouped *g)
{
    return g->m ? g->products * tiles_of(g->m) : g->rows / TILE + g->products;
}

#endif
