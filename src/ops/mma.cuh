/* Tensor cores by warp: products of small bf16 blocks, their operands out of shared memory, copies
 * into shared memory that go on while the threads work. Included by .cu files only.
 *
 * A warp multiplies c [16 8] += a [16 16] b [16 8]; each lane has some elements in its registers.
 * With g = lane / 4 and t = lane % 4 (PTX, "Matrix fragments for mma.m16n8k16"):
 *   c[0..1]  row g,     columns 2t, 2t+1        c[2..3]  row g + 8
 *   a[0]     row g,     columns 2t, 2t+1        a[1]     row g + 8
 *   a[2]     row g,     columns 2t+8, 2t+9      a[3]     row g + 8
 *   b[0]     rows 2t, 2t+1, column g            b[1]     rows 2t+8, 2t+9
 * So sums c of two neighbouring products, rounded to bf16, are the a of a next one (pack_bf16).
 *
 * On the emulated device the same layouts are followed lane by lane, and a copy arrives when it is
 * waited for, so that who forgets to wait reads NaN. A kernel waits for all its copies.
 */
#ifndef OPS_MMA_CUH
#define OPS_MMA_CUH

#include "ops/kernel.cuh"

#ifdef GPU_EMULATED
#include "gpu/emulated_mma.h"
#endif

/* c += a b */
__device__ inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
#ifdef GPU_EMULATED
    emulated_mma(c, a, b0, b1);
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

/* Two values as neighbours in a register, `low` first. */
__device__ inline uint32_t pack_bf16(float low, float high)
{
#ifdef GPU_EMULATED
    return (uint32_t)from_f32<bf16>(low).bits | (uint32_t)from_f32<bf16>(high).bits << 16;
#else
    uint32_t both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
#endif
}

#ifndef GPU_EMULATED
__device__ inline uint32_t shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}
#endif

/* Four 8 x 8 blocks of bf16 out of shared memory: lane i tells where row i % 8 of block i / 8
 * starts (aligned to 16 bytes), and gets of each block row lane / 4, columns 2 (lane % 4) and one
 * more. */
__device__ inline void load_blocks(uint32_t (&to)[4], const bf16 *row)
{
#ifdef GPU_EMULATED
    emulated_load_blocks(to, row, false);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row)));
#endif
}

/* The same of the blocks transposed: rows 2 (lane % 4) and one more, column lane / 4. */
__device__ inline void load_blocks_transposed(uint32_t (&to)[4], const bf16 *row)
{
#ifdef GPU_EMULATED
    emulated_load_blocks(to, row, true);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row)));
#endif
}

/* Operands of products from shared memory, `pitch` elements from row to row (an odd number of 16
 * bytes: 8 rows lie in different banks then). A whole a [16 16] that begins at p: */
__device__ inline void load_a(uint32_t (&a)[4], const bf16 *p, int pitch)
{
    int lane = (int)threadIdx.x % WARP;
    load_blocks(a, p + lane % 16 * pitch + lane / 16 * 8);
}
/* The same where memory has its columns. */
__device__ inline void load_a_columns(uint32_t (&a)[4], const bf16 *p, int pitch)
{
    int lane = (int)threadIdx.x % WARP;
    load_blocks_transposed(a, p + (lane % 8 + lane / 16 * 8) * pitch + lane / 8 % 2 * 8);
}
/* b [16 16], two products' worth (b[0..1] and b[2..3]), where memory has it transposed: a row for
 * each of its 16 columns. */
__device__ inline void load_b_columns(uint32_t (&b)[4], const bf16 *p, int pitch)
{
    int lane = (int)threadIdx.x % WARP;
    load_blocks(b, p + (lane % 8 + lane / 16 * 8) * pitch + lane / 8 % 2 * 8);
}
/* The same where memory has its rows. */
__device__ inline void load_b_rows(uint32_t (&b)[4], const bf16 *p, int pitch)
{
    int lane = (int)threadIdx.x % WARP;
    load_blocks_transposed(b, p + lane % 16 * pitch + lane / 16 * 8);
}

/* Starts to copy BYTES (4, 8 or 16, both sides aligned to them) to shared memory; zeros where
 * `there` is false: `from` is not read then, but must be an address of the device. */
template <int BYTES> __device__ inline void copy_async(void *to, const void *from, bool there)
{
#ifdef GPU_EMULATED
    emulated_copy(to, from, BYTES, there);
#else
    int bytes = there ? BYTES : 0;
    if (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                     "l"(from), "r"(bytes)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)),
                     "l"(from), "n"(BYTES), "r"(bytes)
                     : "memory");
#endif
}
/* The copies this thread started since the last call are one group. */
__device__ inline void copy_async_commit(void)
{
#ifdef GPU_EMULATED
    emulated_copy_commit();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
/* All groups of this thread but the last LEFT have arrived; for other threads' a barrier follows.
 */
template <int LEFT> __device__ inline void copy_async_wait(void)
{
#ifdef GPU_EMULATED
    emulated_copy_wait(LEFT);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
#endif
}

#endif
