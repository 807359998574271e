/* Instructions that GPUs of compute capability 9.0 alone have (sm_90a): products of warpgroups out
 * of shared memory, boxes of tensors brought there by the copy engine, barriers in shared memory
 * that count both, registers moved from warps that need few to those that need many. Included by
 * .cu files only.
 *
 * A kernel of these is compiled for sm_90a and is empty elsewhere: its body stands between #if
 * HOPPER_CODE and #endif, and who launches it asks hopper_has(stream) first. On the emulated device
 * the same instructions are followed to the letter of the PTX ISA, as late as it allows
 * (emulated_hopper.c).
 *
 * A warpgroup, four warps whose first has a number divisible by 4, multiplies d [64 N] += a [64 16]
 * b [16 N]. Warp w has rows 16 w.. of d, each lane these elements d[n][i] of it, with g = lane / 4
 * and t = lane % 4, as ops/mma.cuh has a warp's c:
 *   d[n][0..1]  row 16 w + g, columns 8n + 2t, 8n + 2t + 1        d[n][2..3]  row 16 w + g + 8
 * b, and a unless it is in registers (then as ops/mma.cuh has a), lies in shared memory, as boxes
 * of lines of 64 bf16 (gpu.h, GpuTiling): contiguous along k or along m or n.
 *
 * Order, for a product whose operands were copied by the engine:
 *   mbarrier_wait(full), wgmma_fence(sums), wgmma(sums, ..)..., wgmma_commit(), more of these,
 *   wgmma_wait<groups that may go on>(sums), mbarrier_arrive(empty).
 * Between the first wgmma and the wait nobody touches the sums, nor operands in registers: they
 * must stay where they are until then.
 */
#ifndef GPU_HOPPER_CUH
#define GPU_HOPPER_CUH

#include "gpu/launch.cuh"

#if defined(GPU_EMULATED) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HOPPER_CODE 1
#else
#define HOPPER_CODE 0
#endif

constexpr int WARPGROUP = 128;
constexpr int BOX_LINE = 64, BOX_LINE_BYTES = 128; /* 64 bf16 */
constexpr int BOX_ALIGN = 8 * BOX_LINE_BYTES;

/* Whether the device of a stream runs what is HOPPER_CODE; GPU_SM90A: this build has code for it.
 */
static inline bool hopper_has(GpuStream *stream)
{
#if defined(GPU_EMULATED) || defined(GPU_SM90A)
    const GpuInfo *info = gpu_info(gpu_stream_device(stream));
    return info->major == 9 && info->minor == 0;
#else
    (void)stream;
    return false;
#endif
}

#ifdef GPU_EMULATED
#define __grid_constant__
__device__ inline uint32_t hopper_address(const void *p) { return emulated_shared_address(p); }
#else
__device__ inline uint32_t hopper_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}
#endif

/* The block's dynamic shared memory from the first multiple of BOX_ALIGN on: BOX_ALIGN bytes more
 * are asked for than are used. */
__device__ inline unsigned char *hopper_shared(unsigned char *shared)
{
    return shared + (BOX_ALIGN - hopper_address(shared) % BOX_ALIGN) % BOX_ALIGN;
}

#if HOPPER_CODE

/* ---- barriers in shared memory ------------------------------------------------------------ */

/* Phases, one after the other: each is over when `arrivals` threads have arrived and the bytes they
 * told it to expect have been copied. A wait names the phase by its number's last bit; one that is
 * over, if the next is not, is not waited for. */
typedef uint64_t Mbarrier;

/* By one thread; then mbarriers_begun() by it, and a barrier of the block. */
__device__ inline void mbarrier_begin(Mbarrier *barrier, int arrivals)
{
#ifdef GPU_EMULATED
    emulated_mbarrier_begin(barrier, (unsigned)arrivals);
#else
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(hopper_address(barrier)),
                 "r"(arrivals)
                 : "memory");
#endif
}
/* What was begun is so for other threads and for the copy engine. */
__device__ inline void mbarriers_begun(void)
{
#ifndef GPU_EMULATED
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
__device__ inline void mbarrier_arrive(Mbarrier *barrier)
{
#ifdef GPU_EMULATED
    emulated_mbarrier_arrive(barrier, 0);
#else
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(hopper_address(barrier))
                 : "memory");
#endif
}
/* Arrives, with so many bytes of copies to come. */
__device__ inline void mbarrier_expect(Mbarrier *barrier, int bytes)
{
#ifdef GPU_EMULATED
    emulated_mbarrier_arrive(barrier, (unsigned)bytes);
#else
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(hopper_address(barrier)),
        "r"(bytes)
        : "memory");
#endif
}
__device__ inline void mbarrier_wait(Mbarrier *barrier, uint32_t phase)
{
#ifdef GPU_EMULATED
    emulated_mbarrier_wait(barrier, phase % 2);
#else
    asm volatile("{\n.reg .pred over;\nagain:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 over, [%0], %1;\n"
                 "@over bra done;\nbra again;\ndone:\n}" ::"r"(hopper_address(barrier)),
                 "r"(phase % 2)
                 : "memory");
#endif
}

/* Barrier number `id` (1..15) of some warps of the block. */
__device__ inline void named_barrier(int id, int threads)
{
#ifdef GPU_EMULATED
    emulated_named_barrier(id, threads);
#else
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#endif
}

/* What this thread wrote to shared memory by ordinary stores can be read by products and by the
 * copy engine, in who meets this thread at a barrier from here on. (Nothing finds it out where this
 * is left out.) */
__device__ inline void shared_stored(void)
{
#ifndef GPU_EMULATED
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

/* ---- boxes -------------------------------------------------------------------------------- */

/* Starts to copy the box whose first element is at these places along the axes, to an address that
 * is a multiple of BOX_ALIGN; `barrier` gets its bytes, those outside of the tensor too. */
__device__ inline void box_copy(void *to, const GpuBoxes *boxes, Mbarrier *barrier, int at0,
                                int at1)
{
#ifdef GPU_EMULATED
    const int at[2] = {at0, at1};
    emulated_box_copy(to, boxes, at, barrier);
#else
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4}], [%2];" ::"r"(hopper_address(to)),
                 "l"(boxes), "r"(hopper_address(barrier)), "r"(at0), "r"(at1)
                 : "memory");
#endif
}
__device__ inline void box_copy(void *to, const GpuBoxes *boxes, Mbarrier *barrier, int at0,
                                int at1, int at2)
{
#ifdef GPU_EMULATED
    const int at[3] = {at0, at1, at2};
    emulated_box_copy(to, boxes, at, barrier);
#else
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(hopper_address(to)),
                 "l"(boxes), "r"(hopper_address(barrier)), "r"(at0), "r"(at1), "r"(at2)
                 : "memory");
#endif
}
__device__ inline void box_copy(void *to, const GpuBoxes *boxes, Mbarrier *barrier, int at0,
                                int at1, int at2, int at3)
{
#ifdef GPU_EMULATED
    const int at[4] = {at0, at1, at2, at3};
    emulated_box_copy(to, boxes, at, barrier);
#else
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(hopper_address(to)),
                 "l"(boxes), "r"(hopper_address(barrier)), "r"(at0), "r"(at1), "r"(at2), "r"(at3)
                 : "memory");
#endif
}

/* ---- registers ---------------------------------------------------------------------------- */

/* Each warp of a warpgroup has N registers a thread from here on, fewer or more than before; a
 * multiple of 8. */
template <int N> __device__ inline void registers_give(void)
{
    static_assert(N >= 24 && N <= 256 && N % 8 == 0, "as setmaxnreg wants it");
#ifndef GPU_EMULATED
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
#endif
}
template <int N> __device__ inline void registers_take(void)
{
    static_assert(N >= 24 && N <= 256 && N % 8 == 0, "as setmaxnreg wants it");
#ifndef GPU_EMULATED
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
#endif
}

/* A number that is the same for all lanes, so that the compiler knows: products behind a branch
 * that it believes some lanes alone may take are made one by one. */
__device__ __forceinline__ int same_for_warp(int x) { return __shfl_sync(FULL_WARP, x, 0); }

/* ---- matrices in shared memory ------------------------------------------------------------ */

/* Operands in boxes of lines of BOX_LINE, which begin at a multiple of BOX_ALIGN. (PTX, "Matrix
 * Descriptor Format" and "Strides", 128-byte swizzle: bits 0..13 the address, 16..29 the leading,
 * 32..45 the stride byte offset, all without their last four bits, 62..63 the swizzle, 1.)
 *
 * wgmma_matrix: a line for each row of a or column of b, its elements along k. For step s of 16
 * along k, s 0..3, `at` is 32 s bytes behind the box's begin. Eight lines follow the eight before:
 * that is the stride; the leading offset means nothing. */
__device__ inline uint64_t wgmma_matrix(const void *at)
{
    uint64_t address = hopper_address(at), stride = 8 * BOX_LINE_BYTES;
    return (address & 0x3ffff) >> 4 | (uint64_t)1 << 16 | (stride >> 4) << 32 | (uint64_t)1 << 62;
}
/* A line for each k, its elements along m or n. Steps of 16 are 16 lines. The stride leads to the
 * next eight lines of k, the leading offset, `across` bytes, to the next 64 of m or n. */
__device__ inline uint64_t wgmma_matrix_by_line(const void *at, int across)
{
    uint64_t address = hopper_address(at), stride = 8 * BOX_LINE_BYTES;
    return (address & 0x3ffff) >> 4 | (uint64_t)(((uint32_t)across & 0x3ffff) >> 4) << 16 |
           (stride >> 4) << 32 | (uint64_t)1 << 62;
}

/* ---- products ----------------------------------------------------------------------------- */

/* So that the compiler moves no access of these registers over this place. */
template <int N> __device__ __forceinline__ void wgmma_hold(float (&d)[N][4])
{
#ifdef GPU_EMULATED
    (void)d;
#else
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) asm volatile("" : "+f"(d[n][i])::"memory");
#endif
}
template <int N> __device__ __forceinline__ void wgmma_hold(uint32_t (&a)[N][4])
{
#ifdef GPU_EMULATED
    (void)a;
#else
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) asm volatile("" : "+r"(a[n][i])::"memory");
#endif
}

/* What was done to these registers is done before the products that follow. */
template <class... D> __device__ __forceinline__ void wgmma_fence(D &...d)
{
    (wgmma_hold(d), ...);
#ifdef GPU_EMULATED
    emulated_wgmma_fence();
#else
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
/* The products since the last call are one group. */
__device__ __forceinline__ void wgmma_commit(void)
{
#ifdef GPU_EMULATED
    emulated_wgmma_commit();
#else
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
/* All groups but the last LEFT are done: of these registers, and of what they read, by this warp.
 */
template <int LEFT, class... D> __device__ __forceinline__ void wgmma_wait(D &...d)
{
#ifdef GPU_EMULATED
    emulated_wgmma_wait(LEFT);
#else
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
#endif
    (wgmma_hold(d), ...);
}

#ifndef GPU_EMULATED
/* Registers of d as asm wants them: of so many columns from 8n on. */
#define WGMMA_D8(d, n)   "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define WGMMA_D32(d, n)  WGMMA_D8(d, n), WGMMA_D8(d, n + 1), WGMMA_D8(d, n + 2), WGMMA_D8(d, n + 3)
#define WGMMA_D64(d, n)  WGMMA_D32(d, n), WGMMA_D32(d, n + 4)
#define WGMMA_D128(d, n) WGMMA_D64(d, n), WGMMA_D64(d, n + 8)
#define WGMMA_D256(d)    WGMMA_D128(d, 0), WGMMA_D128(d, 16)
#define WGMMA_LIST32                                                                               \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "             \
    "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_LIST64                                                                               \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "             \
    "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, "             \
    "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "             \
    "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_LIST128                                                                              \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "             \
    "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, "             \
    "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "             \
    "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, "             \
    "%66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, "             \
    "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, "             \
    "%98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, "                 \
    "%111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, "               \
    "%124, %125, %126, %127"
#endif

template <int N> struct Wgmma;

/* Begins a product of N columns. shared: a in shared memory; BY_M: its lines lie along m
 * (wgmma_matrix_by_line), else along k; BY_N likewise; `add` false: d = a b. registers: a in the
 * lanes' registers, d += a b. */
template <> struct Wgmma<64> {
    template <bool BY_M, bool BY_N>
    __device__ __forceinline__ static void shared(float (&d)[8][4], uint64_t a, uint64_t b,
                                                  bool add)
    {
#ifdef GPU_EMULATED
        EmulatedWgmma product = {d[0], 64, NULL, a, b, BY_M, BY_N, add};
        emulated_wgmma(&product);
#else
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" WGMMA_LIST32
                     "}, %32, %33, p, 1, 1, %35, %36;\n}"
                     : WGMMA_D64(d, 0)
                     : "l"(a), "l"(b), "r"((int)add), "n"((int)BY_M), "n"((int)BY_N));
#endif
    }
    template <bool BY_N>
    __device__ __forceinline__ static void registers(float (&d)[8][4], const uint32_t (&a)[4],
                                                     uint64_t b)
    {
#ifdef GPU_EMULATED
        EmulatedWgmma product = {d[0], 64, a, 0, b, false, BY_N, true};
        emulated_wgmma(&product);
#else
        asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" WGMMA_LIST32
                     "}, {%32, %33, %34, %35}, %36, 1, 1, 1, %37;"
                     : WGMMA_D64(d, 0)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"((int)BY_N));
#endif
    }
};
template <> struct Wgmma<128> {
    template <bool BY_M, bool BY_N>
    __device__ __forceinline__ static void shared(float (&d)[16][4], uint64_t a, uint64_t b,
                                                  bool add)
    {
#ifdef GPU_EMULATED
        EmulatedWgmma product = {d[0], 128, NULL, a, b, BY_M, BY_N, add};
        emulated_wgmma(&product);
#else
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" WGMMA_LIST64
                     "}, %64, %65, p, 1, 1, %67, %68;\n}"
                     : WGMMA_D128(d, 0)
                     : "l"(a), "l"(b), "r"((int)add), "n"((int)BY_M), "n"((int)BY_N));
#endif
    }
    template <bool BY_N>
    __device__ __forceinline__ static void registers(float (&d)[16][4], const uint32_t (&a)[4],
                                                     uint64_t b)
    {
#ifdef GPU_EMULATED
        EmulatedWgmma product = {d[0], 128, a, 0, b, false, BY_N, true};
        emulated_wgmma(&product);
#else
        asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" WGMMA_LIST64
                     "}, {%64, %65, %66, %67}, %68, 1, 1, 1, %69;"
                     : WGMMA_D128(d, 0)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"((int)BY_N));
#endif
    }
};
template <> struct Wgmma<256> {
    template <bool BY_M, bool BY_N>
    __device__ __forceinline__ static void shared(float (&d)[32][4], uint64_t a, uint64_t b,
                                                  bool add)
    {
#ifdef GPU_EMULATED
        EmulatedWgmma product = {d[0], 256, NULL, a, b, BY_M, BY_N, add};
        emulated_wgmma(&product);
#else
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" WGMMA_LIST128
                     "}, %128, %129, p, 1, 1, %131, %132;\n}"
                     : WGMMA_D256(d)
                     : "l"(a), "l"(b), "r"((int)add), "n"((int)BY_M), "n"((int)BY_N));
#endif
    }
};

#endif /* HOPPER_CODE */
#endif
