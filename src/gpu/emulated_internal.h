/* Shared by the files of the emulated device. */
#ifndef GPU_EMULATED_INTERNAL_H
#define GPU_EMULATED_INTERNAL_H

#include "gpu/emulated_words.h"

/* Work is a function with a copy of its context. It waits on its stream until somebody waits for
 * the stream: later than any real device, so that who forgot to wait is found out. */
typedef Status EmulatedWork(GpuStream *stream, void *context);
Status emulated_submit(GpuStream *stream, EmulatedWork *work, const void *context, size_t bytes);

typedef struct EmulatedLaunch {
    const char *kernel;
    unsigned grid[3], block[3];
    size_t shared_bytes;
    void (*body)(void *context);
    void *context;
    int order; /* in which the threads of a block have their turns: 0 up, 1 down, 2 mixed */
} EmulatedLaunch;
/* Runs all blocks. ERR_DEVICE where threads wait for each other for ever. */
Status emulated_run_blocks(const EmulatedLaunch *launch);

#endif
