/* CUDA's words for the emulated device: each thread of a block is a fiber of its own stack, run in
 * turn until it waits for the others. Included by kernel.cuh in place of CUDA's headers.
 *
 * What it proves: indices, masks, sums, barriers that are left out where threads run in another
 * order (launches go through several orders), accesses outside (with the address sanitizer), shared
 * memory that is read before it is written (it starts as NaN). What it cannot: speed, and races
 * that need true simultaneity.
 */
#ifndef GPU_EMULATED_H
#define GPU_EMULATED_H

#include <algorithm>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <tuple>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
/* Blocks run one after the other on each thread of the host. */
#define __shared__ static thread_local
#define __restrict__

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct uint4 {
    unsigned x, y, z, w;
};

extern "C" {
#include "gpu/emulated_words.h"
}

#define EMULATED_WORD(name, field)                                                                 \
    struct name##_ {                                                                               \
        struct Read {                                                                              \
            int at;                                                                                \
            operator unsigned() const { return emulated_place.field[at]; }                         \
        };                                                                                         \
        Read x{0}, y{1}, z{2};                                                                     \
    };                                                                                             \
    static const name##_ name
EMULATED_WORD(threadIdx, thread);
EMULATED_WORD(blockIdx, block);
EMULATED_WORD(blockDim, block_dim);
EMULATED_WORD(gridDim, grid_dim);

static inline void __syncthreads(void) { emulated_barrier(); }
static inline void __syncwarp(unsigned = 0xffffffff) { emulated_warp_barrier(); }

template <class T> static inline uint64_t emulated_bits(T x)
{
    static_assert(sizeof(T) <= 8, "lanes exchange up to 64 bits");
    uint64_t bits = 0;
    memcpy(&bits, &x, sizeof x);
    return bits;
}
template <class T> static inline T emulated_value(uint64_t bits)
{
    T x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
static inline int emulated_lane(void)
{
    const EmulatedPlace *p = &emulated_place;
    return (
        int)(((p->thread[2] * p->block_dim[1] + p->thread[1]) * p->block_dim[0] + p->thread[0]) %
             32);
}
template <class T> static inline T __shfl_sync(unsigned, T x, int from, int width = 32)
{
    int lane = emulated_lane(), first = lane / width * width;
    return emulated_value<T>(emulated_exchange(emulated_bits(x), first + from % width));
}
template <class T> static inline T __shfl_xor_sync(unsigned, T x, int mask, int width = 32)
{
    int lane = emulated_lane(), from = lane ^ mask;
    if (from / width != lane / width) from = lane;
    return emulated_value<T>(emulated_exchange(emulated_bits(x), from));
}
template <class T> static inline T __shfl_up_sync(unsigned, T x, unsigned by, int width = 32)
{
    int lane = emulated_lane(), from = lane - (int)by;
    if (from < lane / width * width) from = lane;
    return emulated_value<T>(emulated_exchange(emulated_bits(x), from));
}
template <class T> static inline T __shfl_down_sync(unsigned, T x, unsigned by, int width = 32)
{
    int lane = emulated_lane(), from = lane + (int)by;
    if (from / width != lane / width) from = lane;
    return emulated_value<T>(emulated_exchange(emulated_bits(x), from));
}
static inline unsigned __ballot_sync(unsigned, int predicate)
{
    uint64_t all[32];
    unsigned bits = 0;
    emulated_gather(predicate != 0, all);
    for (int i = 0; i < 32; i++) bits |= (unsigned)all[i] << i;
    return bits;
}
/* The lanes that give the same as this one. */
template <class T> static inline unsigned __match_any_sync(unsigned mask, T x)
{
    uint64_t all[32];
    unsigned there = __ballot_sync(mask, 1), same = 0;
    emulated_gather(emulated_bits(x), all);
    for (int i = 0; i < 32; i++) same |= (unsigned)(all[i] == emulated_bits(x)) << i;
    return same & there;
}
static inline int __any_sync(unsigned mask, int p) { return __ballot_sync(mask, p) != 0; }
static inline int __all_sync(unsigned mask, int p) { return __ballot_sync(mask, !p) == 0; }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }

static inline float __uint_as_float(uint32_t x) { return emulated_value<float>(x); }
static inline uint32_t __float_as_uint(float x) { return (uint32_t)emulated_bits(x); }
#define __expf expf /* the C library's headers declare these names */
#define __logf logf
#define __sinf sinf
#define __cosf cosf
static inline float __fdividef(float x, float y) { return x / y; }
static inline float rsqrtf(float x) { return 1 / sqrtf(x); }
static inline float __fmul_rn(float x, float y) { return x * y; }
static inline float __fadd_rn(float x, float y) { return x + y; }
/* On integers only; blocks may run on several threads of the host. */
static inline int atomicAdd(int *at, int x) { return __atomic_fetch_add(at, x, __ATOMIC_RELAXED); }
template <class T> static inline T __ldg(const T *p) { return *p; }
using std::max;
using std::min;

/* Arguments are taken when the kernel is launched, not when it runs. */
template <class... P, class... A>
static inline Status emulated_launch_of(GpuStream *stream, const char *name, dim3 grid, dim3 block,
                                        size_t shared, void (*kernel)(P...), A... arguments)
{
    auto body = [kernel, held = std::tuple<std::decay_t<P>...>(arguments...)] {
        std::apply(kernel, held);
    };
    using Body = decltype(body);
    const EmulatedLaunch launch = {name,
                                   {grid.x, grid.y, grid.z},
                                   {block.x, block.y, block.z},
                                   shared,
                                   [](void *context) { (*(Body *)context)(); },
                                   &body,
                                   0};
    return emulated_launch(stream, &launch, sizeof body);
}
#define GPU_LAUNCH(stream, grid, block, shared, kernel, ...)                                       \
    emulated_launch_of(stream, #kernel, grid, block, shared, kernel, __VA_ARGS__)
#define GPU_ALLOW_SHARED(kernel, bytes) ((void)(bytes), OK)
#define GPU_DYNAMIC_SHARED(name)        unsigned char *name = emulated_dynamic_shared()

#endif
