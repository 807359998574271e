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

/* body(context) will be run by every thread of every block, when the stream gets there; the context
 * is copied. */
Status emulated_launch(GpuStream *stream, const char *kernel, const unsigned grid[3],
                       const unsigned block[3], size_t shared_bytes, void (*body)(void *),
                       const void *context, size_t context_bytes);

#endif
