/* What kernels on the emulated device call: C below, C++ (emulated.h) above. */
#ifndef GPU_EMULATED_WORDS_H
#define GPU_EMULATED_WORDS_H

#include "gpu/gpu.h"

enum { EMULATED_WARP = 32 };

typedef struct EmulatedPlace {
    unsigned thread[3], block[3], block_dim[3], grid_dim[3];
} EmulatedPlace;
extern __thread EmulatedPlace emulated_place; /* of the thread that runs now */

void emulated_barrier(void);
void emulated_warp_barrier(void);
/* All lanes give 64 bits; each gets those of the lane it names (its own where there is none). */
uint64_t emulated_exchange(uint64_t mine, int from);
/* All lanes give 64 bits; `all` gets those of the whole warp, zero for lanes that are not there. */
void emulated_gather(uint64_t mine, uint64_t all[EMULATED_WARP]);
unsigned char *emulated_dynamic_shared(void);

/* What gpu/hopper.cuh is on the emulated device: emulated_hopper.c. */
uint32_t emulated_shared_address(const void *p);
void emulated_named_barrier(int id, int threads);
void emulated_mbarrier_begin(void *barrier, unsigned arrivals);
void emulated_mbarrier_arrive(void *barrier, unsigned expected_bytes);
void emulated_mbarrier_wait(void *barrier, unsigned parity);
void emulated_box_copy(void *to, const GpuBoxes *boxes, const int *at, void *barrier);

/* d [64 n] = a [64 16] b [16 n], or += */
typedef struct EmulatedWgmma {
    float *d; /* this thread's n / 2 elements */
    int n;
    const uint32_t *a; /* this thread's 4 words; NULL: in shared memory */
    uint64_t a_matrix, b_matrix;
    bool a_by_m, b_by_n, add;
} EmulatedWgmma;
void emulated_wgmma(const EmulatedWgmma *product);
void emulated_wgmma_fence(void);
void emulated_wgmma_commit(void);
void emulated_wgmma_wait(int left);

/* body(context) will be run by every thread of every block, when the stream gets there; the context
 * is copied. */
typedef struct EmulatedLaunch {
    const char *kernel;
    unsigned grid[3], block[3];
    size_t shared_bytes;
    void (*body)(void *context);
    void *context;
    int order; /* in which the threads of a block have their turns: 0 up, 1 down, 2 mixed; the
                  stream's to choose */
} EmulatedLaunch;
Status emulated_launch(GpuStream *stream, const EmulatedLaunch *launch, size_t context_bytes);

#endif
