/* Numbers in the device's memory that the host must know before it can go on, such as how many rows
 * go to whom. Of gpu/, for the few who need it. */
#ifndef GPU_NUMBERS_H
#define GPU_NUMBERS_H

#include "gpu/gpu.h"

/* fetch copies them behind what is on `side` (the stream or a lane beside it); find gives the copy
 * of what was fetched last from that address, for which it waits the first time only, and which
 * stays until the next one. drop: what `owner` fetched may be found no longer. */
Status gpu_numbers_fetch(GpuStream *stream, GpuStream *side, const void *from, size_t bytes,
                         const void *owner);
Status gpu_numbers_find(GpuStream *stream, const void *from, const void **numbers);
void gpu_numbers_drop(GpuStream *stream, const void *owner);

/* What they are made of. gpu_read without waiting: `host` came from gpu_host_alloc, and is there
 * once the stream is past it. */
Status gpu_read_later(GpuStream *stream, void *host, const void *from, size_t bytes);
/* The host waits for the event, and looks meanwhile as it does when it waits for the stream. */
Status gpu_stream_wait_until(GpuStream *stream, GpuEvent *event);

#endif
