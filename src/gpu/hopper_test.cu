/* Kernels for hopper_test.c: each instruction of hopper.cuh by itself, and what no kernel may do.
 */
#include "gpu/hopper.cuh"

constexpr int DEPTH = 64, ROWS = 64; /* of the products here: k, and rows of a */

extern "C" {
bool test_hopper_has(GpuStream *stream);
Status test_product(GpuStream *stream, const void *a, const void *b, float *d, int n, bool by_m,
                    bool by_n, bool registers);
Status test_swizzle(GpuStream *stream, const void *a, const void *b, float *d, int line_bytes,
                    bool by_n);
Status test_box(GpuStream *stream, const void *from, const int size[4], const int at[4], void *to);
Status test_fault(GpuStream *stream, const void *from, float *to, int which);
}

namespace
{

struct ProductBoxes {
    GpuBoxes a, b;
};

/* `lines` lines of 64 bf16 in a tensor of such lines. */
Status boxes_of(GpuStream *stream, const void *data, int64_t width, int64_t height, int lines,
                GpuBoxes *boxes)
{
    GpuTiling tiling = {};
    tiling.data = data;
    tiling.axes = 2;
    tiling.size[0] = width;
    tiling.size[1] = height;
    tiling.pitch_bytes[1] = width * 2;
    tiling.box[0] = BOX_LINE;
    tiling.box[1] = lines;
    return gpu_boxes_make(stream, &tiling, boxes);
}

/* d [64 N] += a [64 64] b [64 N], by one warpgroup, in two groups of two steps. BY_M: a lies as
 * [k m]; BY_N: b as [k n], else as [n k]. */
template <int N, bool BY_M, bool BY_N, bool REGISTERS>
__global__ void __launch_bounds__(WARPGROUP)
    product_kernel(const __grid_constant__ ProductBoxes boxes, const bf16 *a_rows, float *d)
{
#if HOPPER_CODE
    GPU_DYNAMIC_SHARED(dynamic);
    unsigned char *a = hopper_shared(dynamic), *b = a + ROWS * BOX_LINE_BYTES;
    Mbarrier *full = (Mbarrier *)(void *)(b + N * BOX_LINE_BYTES);
    int warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP;
    float sums[N / 8][4];
    uint32_t left[4][4];
    if (threadIdx.x == 0) {
        mbarrier_begin(full, 1);
        mbarriers_begun();
        mbarrier_expect(full, (ROWS + N) * BOX_LINE_BYTES);
        box_copy(a, &boxes.a, full, 0, 0);
        for (int j = 0; j < (BY_N ? N / BOX_LINE : 1); j++)
            box_copy(b + j * DEPTH * BOX_LINE_BYTES, &boxes.b, full, j * BOX_LINE, 0);
    }
    __syncthreads();
    auto at = [&](int n, int i) {
        return (16 * warp + lane / 4 + i / 2 * 8) * N + 8 * n + lane % 4 * 2 + i % 2;
    };
    for (int n = 0; n < N / 8; n++)
        for (int i = 0; i < 4; i++) sums[n][i] = d[at(n, i)];
    for (int s = 0; s < 4; s++)
        for (int w = 0; w < 4; w++) {
            const bf16 *two = a_rows + (16 * warp + lane / 4 + w % 2 * 8) * DEPTH + 16 * s +
                              lane % 4 * 2 + w / 2 * 8;
            left[s][w] = (uint32_t)two[0].bits | (uint32_t)two[1].bits << 16;
        }
    mbarrier_wait(full, 0);
    wgmma_fence(sums, left);
#pragma unroll
    for (int s = 0; s < 4; s++) {
        uint64_t right = BY_N ? wgmma_matrix_by_line(b + s * 16 * BOX_LINE_BYTES,
                                                     DEPTH * BOX_LINE_BYTES)
                              : wgmma_matrix(b + s * 32);
        if constexpr (REGISTERS)
            Wgmma<N>::template registers<BY_N>(sums, left[s], right);
        else
            Wgmma<N>::template shared<BY_M, BY_N>(
                sums,
                BY_M ? wgmma_matrix_by_line(a + s * 16 * BOX_LINE_BYTES, 0)
                     : wgmma_matrix(a + s * 32),
                right, true);
        if (s % 2) wgmma_commit();
    }
    wgmma_wait<0>(sums);
    for (int n = 0; n < N / 8; n++)
        for (int i = 0; i < 4; i++) d[at(n, i)] = sums[n][i];
#endif
}

template <int N, bool BY_M, bool BY_N, bool REGISTERS>
Status launch_product(GpuStream *stream, const void *a, const void *b, float *d)
{
    size_t shared = BOX_ALIGN + (ROWS + N) * BOX_LINE_BYTES + sizeof(uint64_t);
    ProductBoxes boxes = {};
    TRY(boxes_of(stream, a, DEPTH, ROWS, ROWS, &boxes.a));
    TRY(BY_N ? boxes_of(stream, b, N, DEPTH, DEPTH, &boxes.b)
             : boxes_of(stream, b, DEPTH, N, N, &boxes.b));
    TRY(GPU_ALLOW_SHARED((product_kernel<N, BY_M, BY_N, REGISTERS>), shared));
    return GPU_LAUNCH(stream, 1, WARPGROUP, shared, (product_kernel<N, BY_M, BY_N, REGISTERS>),
                      boxes, (const bf16 *)a, d);
}

template <int N>
Status product_of(GpuStream *stream, const void *a, const void *b, float *d, bool by_m, bool by_n,
                  bool registers)
{
    if constexpr (N < 256) {
        if (registers)
            return by_n ? launch_product<N, false, true, true>(stream, a, b, d)
                        : launch_product<N, false, false, true>(stream, a, b, d);
    }
    if (by_m)
        return by_n ? launch_product<N, true, true, false>(stream, a, b, d)
                    : launch_product<N, true, false, false>(stream, a, b, d);
    return by_n ? launch_product<N, false, true, false>(stream, a, b, d)
                : launch_product<N, false, false, false>(stream, a, b, d);
}

/* A descriptor as the PTX ISA has it; mode 1: lines of 128 bytes, 2: of 64, 3: of 32, 0: of 16. */
__device__ uint64_t raw_matrix(const void *at, uint64_t leading, uint64_t stride, uint64_t mode)
{
    return (uint64_t)hopper_address(at) >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | mode << 62;
}

/* d [64 64] = a [64 16] b [16 64] with b in lines of LINE bytes, which threads put where the PTX
 * ISA's figures of the layouts have them. */
template <int LINE, bool BY_N>
__global__ void __launch_bounds__(WARPGROUP)
    swizzle_kernel(const __grid_constant__ ProductBoxes boxes, const bf16 *b, float *d)
{
#if HOPPER_CODE
    constexpr int N = 64, K = 16, PIECES = LINE / 16;
    GPU_DYNAMIC_SHARED(dynamic);
    unsigned char *a = hopper_shared(dynamic), *right = a + ROWS * BOX_LINE_BYTES;
    Mbarrier *full = (Mbarrier *)(void *)(right + N * BOX_LINE_BYTES);
    int warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP;
    if (threadIdx.x == 0) {
        mbarrier_begin(full, 1);
        mbarriers_begun();
        mbarrier_expect(full, ROWS * BOX_LINE_BYTES);
        box_copy(a, &boxes.a, full, 0, 0);
    }
    for (int i = (int)threadIdx.x; i < N * K; i += WARPGROUP) {
        int n = i / K, k = i % K;
        /* of the axis along lines and of the other one: which piece of 16 bytes, which line */
        int piece = (BY_N ? n : k) / 8, line = BY_N ? k : n, at;
        if (PIECES == 1) /* blocks of 8 lines of 16 bytes; those along lines follow each other */
            at = (line / 8 * (BY_N ? N / 8 : K / 8) + piece) * 128 + line % 8 * 16;
        else
            at = (piece / PIECES * (BY_N ? K : N) + line) * LINE +
                 ((piece % PIECES) ^ (line % 8 * PIECES / 8)) * 16;
        *(bf16 *)(void *)(right + at + (BY_N ? n : k) % 8 * 2) = b[n * K + k];
    }
    shared_stored();
    __syncthreads();
    float sums[N / 8][4] = {};
    mbarrier_wait(full, 0);
    wgmma_fence(sums);
    uint64_t mode = LINE == 128 ? 1 : LINE == 64 ? 2 : LINE == 32 ? 3 : 0;
    uint64_t leading = 16, stride = 8 * LINE;
    if (PIECES == 1 && BY_N) leading = N / 8 * 128, stride = 128;
    if (PIECES == 1 && !BY_N) leading = 128, stride = K / 8 * 128;
    if (PIECES > 1 && BY_N) leading = K * LINE;
    Wgmma<N>::shared<false, BY_N>(sums, wgmma_matrix(a), raw_matrix(right, leading, stride, mode),
                                  false);
    wgmma_commit();
    wgmma_wait<0>(sums);
    for (int n = 0; n < N / 8; n++)
        for (int i = 0; i < 4; i++)
            d[(16 * warp + lane / 4 + i / 2 * 8) * N + 8 * n + lane % 4 * 2 + i % 2] = sums[n][i];
#endif
}

template <int LINE, bool BY_N>
Status launch_swizzle(GpuStream *stream, const void *a, const void *b, float *d)
{
    size_t shared = BOX_ALIGN + 2 * ROWS * BOX_LINE_BYTES + sizeof(uint64_t);
    ProductBoxes boxes = {};
    TRY(boxes_of(stream, a, DEPTH, ROWS, ROWS, &boxes.a));
    return GPU_LAUNCH(stream, 1, WARPGROUP, shared, (swizzle_kernel<LINE, BY_N>), boxes,
                      (const bf16 *)b, d);
}

constexpr int BOX_X = 64, BOX_Y = 3, BOX_Z = 2, BOX_W = 4, BOX_ALL = BOX_Y * BOX_Z * BOX_W * 128;

/* The bytes of a box as they lie in shared memory. */
__global__ void box_kernel(const __grid_constant__ GpuBoxes boxes, int x, int y, int z, int w,
                           unsigned char *to)
{
#if HOPPER_CODE
    GPU_DYNAMIC_SHARED(dynamic);
    unsigned char *at = hopper_shared(dynamic);
    Mbarrier *full = (Mbarrier *)(void *)(at + BOX_ALL);
    if (threadIdx.x == 0) {
        mbarrier_begin(full, 1);
        mbarriers_begun();
        mbarrier_expect(full, BOX_ALL);
        box_copy(at, &boxes, full, x, y, z, w);
    }
    __syncthreads();
    mbarrier_wait(full, 0);
    for (int i = (int)threadIdx.x; i < BOX_ALL; i += WARP) to[i] = at[i];
#endif
}

#ifdef GPU_EMULATED /* nobody may do this to a device */

/* What goes wrong; hopper_test.c has the same list. */
enum {
    NOTHING,
    NO_WAIT_FOR_COPY,
    NO_WAIT_FOR_PRODUCT,
    BUFFER_TOO_EARLY,
    NO_FENCE,
    SUMS_TOUCHED,
    OTHER_WARP,
    TOO_FEW_BYTES,
    TOO_MANY_BYTES,
    COPY_LEFT,
    PRODUCT_LEFT,
};

/* to [64 64] = a a^T, or what comes of it. */
__global__ void __launch_bounds__(WARPGROUP)
    fault_kernel(const __grid_constant__ GpuBoxes boxes, float *to, int which)
{
    GPU_DYNAMIC_SHARED(dynamic);
    unsigned char *a = hopper_shared(dynamic);
    Mbarrier *full = (Mbarrier *)(void *)(a + ROWS * BOX_LINE_BYTES);
    int warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP;
    float sums[8][4] = {};
    auto bring = [&](int bytes) {
        mbarrier_expect(full, bytes);
        box_copy(a, &boxes, full, 0, 0);
    };
    if (threadIdx.x == 0) {
        mbarrier_begin(full, 1);
        mbarriers_begun();
        bring(ROWS * BOX_LINE_BYTES + (which == TOO_FEW_BYTES) - (which == TOO_MANY_BYTES));
    }
    __syncthreads();
    if (which != NO_WAIT_FOR_COPY) mbarrier_wait(full, 0);
    if (which != NO_FENCE) wgmma_fence(sums);
    for (int s = 0; s < 4; s++) {
        const unsigned char *b = a + (which == OTHER_WARP && warp == 2 ? 0 : s * 32);
        Wgmma<64>::shared<false, false>(sums, wgmma_matrix(a + s * 32), wgmma_matrix(b), true);
    }
    wgmma_commit();
    if (which == BUFFER_TOO_EARLY && threadIdx.x == 0) bring(ROWS * BOX_LINE_BYTES);
    if (which == SUMS_TOUCHED) sums[3][1] = 1;
    if (which != NO_WAIT_FOR_PRODUCT && which != PRODUCT_LEFT) wgmma_wait<0>(sums);
    for (int n = 0; n < 8; n++)
        for (int i = 0; i < 4; i++)
            to[(16 * warp + lane / 4 + i / 2 * 8) * 64 + 8 * n + lane % 4 * 2 + i % 2] = sums[n][i];
    if (which == NO_WAIT_FOR_PRODUCT) wgmma_wait<0>(sums);
    if (which == NO_WAIT_FOR_COPY) mbarrier_wait(full, 0);
    if (which == BUFFER_TOO_EARLY) mbarrier_wait(full, 1);
    if (which == COPY_LEFT && threadIdx.x == 0) bring(ROWS * BOX_LINE_BYTES);
}

#endif

} // namespace

bool test_hopper_has(GpuStream *stream) { return hopper_has(stream); }

Status test_product(GpuStream *stream, const void *a, const void *b, float *d, int n, bool by_m,
                    bool by_n, bool registers)
{
    if (n == 64) return product_of<64>(stream, a, b, d, by_m, by_n, registers);
    if (n == 128) return product_of<128>(stream, a, b, d, by_m, by_n, registers);
    return product_of<256>(stream, a, b, d, by_m, by_n, registers);
}

Status test_swizzle(GpuStream *stream, const void *a, const void *b, float *d, int line_bytes,
                    bool by_n)
{
    switch (line_bytes) {
    case 16:
        return by_n ? launch_swizzle<16, true>(stream, a, b, d)
                    : launch_swizzle<16, false>(stream, a, b, d);
    case 32:
        return by_n ? launch_swizzle<32, true>(stream, a, b, d)
                    : launch_swizzle<32, false>(stream, a, b, d);
    case 64:
        return by_n ? launch_swizzle<64, true>(stream, a, b, d)
                    : launch_swizzle<64, false>(stream, a, b, d);
    default:
        return by_n ? launch_swizzle<128, true>(stream, a, b, d)
                    : launch_swizzle<128, false>(stream, a, b, d);
    }
}

Status test_box(GpuStream *stream, const void *from, const int size[4], const int at[4], void *to)
{
    GpuTiling tiling = {};
    GpuBoxes boxes;
    const int box[4] = {BOX_X, BOX_Y, BOX_Z, BOX_W};
    tiling.data = from;
    tiling.axes = 4;
    for (int a = 0; a < 4; a++) {
        tiling.size[a] = size[a];
        tiling.box[a] = box[a];
        if (a)
            tiling.pitch_bytes[a] = a == 1 ? size[0] * 2 : tiling.pitch_bytes[a - 1] * size[a - 1];
    }
    TRY(gpu_boxes_make(stream, &tiling, &boxes));
    return GPU_LAUNCH(stream, 1, WARP, BOX_ALIGN + BOX_ALL + sizeof(uint64_t), (box_kernel), boxes,
                      at[0], at[1], at[2], at[3], (unsigned char *)to);
}

Status test_fault(GpuStream *stream, const void *from, float *to, int which)
{
#ifdef GPU_EMULATED
    GpuBoxes boxes;
    TRY(boxes_of(stream, from, DEPTH, ROWS, ROWS, &boxes));
    return GPU_LAUNCH(stream, 1, WARPGROUP, BOX_ALIGN + ROWS * BOX_LINE_BYTES + sizeof(uint64_t),
                      (fault_kernel), boxes, to, which);
#else
    (void)stream, (void)from, (void)to, (void)which;
    return OK;
#endif
}
