/* Shared by the files of the emulated device. */
#ifndef GPU_EMULATED_INTERNAL_H
#define GPU_EMULATED_INTERNAL_H

#include "gpu/emulated_words.h"

/* Work is a function with a copy of its context. It waits on its stream until somebody waits for
 * the stream: later than any real device, so that who forgot to wait is found out. */
typedef Status EmulatedWork(GpuStream *stream, void *context);
Status emulated_submit(GpuStream *stream, EmulatedWork *work, const void *context, size_t bytes);
/* Called by work that others must do something for first: it is run once more later. */
void emulated_not_yet(GpuStream *stream);

/* Where DROVER_EMULATED_EXCHANGE is set, the emulated GPUs of a process exchange among themselves
 * (emulated_exchange.c). As a real one, such a GPU then goes on whatever its own host does: whoever
 * waits for one of them runs the work of all. Else all of this is nothing. */
bool emulated_exchanges(void);
void emulated_enter(const Gpu *gpu); /* one at a time between enter and leave */
void emulated_leave(const Gpu *gpu);
int emulated_join(Gpu *gpu); /* its number */
void emulated_part(Gpu *gpu);
/* Until `stream` has nothing left, or has passed the event's `time`th record; event NULL: the
 * first. */
Status emulated_wait_together(GpuStream *stream, GpuEvent *event, int64_t time);
/* emulated_device.c, between enter and leave */
void emulated_open(Gpu *gpu, bool open); /* its memory */
bool emulated_go_on(Gpu *gpu);           /* false: nothing can go on */
bool emulated_is_done(const GpuStream *stream, const GpuEvent *event, int64_t time);
Status emulated_look(const GpuStream *stream); /* what the host looks at while it waits */

/* Runs all blocks. ERR_DEVICE where threads wait for each other for ever, or did what no kernel
 * may. */
Status emulated_run_blocks(const EmulatedLaunch *launch);

/* ---- between emulated_block.c and emulated_hopper.c, of the block that runs now -------------- */

typedef struct EmulatedHopper EmulatedHopper; /* barriers, copies and products of one block */
EmulatedHopper *emulated_hopper(void);
int emulated_thread(void); /* its number in the block */
/* The thread goes on when *round has changed. */
void emulated_wait(const unsigned *round);
/* Others that can go on run before the thread does. */
void emulated_yield(void);
/* The launch ends with this sentence; the first one counts. */
void emulated_fault(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Where `bytes` at an address of shared memory are; at its begin, with a fault, where there is no
 * such place. */
const unsigned char *emulated_shared_at(uint32_t address, size_t bytes);

EmulatedHopper *hopper_create(int threads);
bool hopper_in_use(const EmulatedHopper *hopper); /* the block has barriers in shared memory */
void hopper_block_begins(EmulatedHopper *hopper, int threads);
void hopper_block_ends(EmulatedHopper *hopper, int threads);
/* One of the copies under way that somebody waits for arrives; false: there is none. */
bool hopper_copy_arrives(EmulatedHopper *hopper, int order);

#endif
