/* Shared by session.c, session_host.c and session_clock.c. */
#ifndef DEVICE_SESSION_INTERNAL_H
#define DEVICE_SESSION_INTERNAL_H

#include "device/device_internal.h"

/* A state as some kernels read it: made by the first of them that runs since it changed. */
typedef struct PackedState {
    const Packed *as;
    char *at;
    bool fresh;
} PackedState;

typedef struct Step {
    const Kernel *kernel;
    KernelArgs args;
    const Instr *instr;
    PackedState *packed; /* NULL: it reads none */
} Step;

/* A range of phases as the GPU keeps it: launched as one. */
typedef struct Captured {
    Phase first, last;
    GpuGraph *graph;
} Captured;

enum { MAX_CAPTURED = PHASES };

typedef struct Loaded {
    const Program *program;
    DeviceMemory io;
    Captured captured[MAX_CAPTURED];
    int n_captured;
    char *fetched; /* all outputs, where the host cannot read the device's */
    Step *step;
    int n_prepared;           /* steps whose prepare succeeded, for release */
    int slot[PIPELINE_SPANS]; /* of the micro-batch in flight that is meant */
    Tensor *tensor;           /* all operands */
} Loaded;

/* The slots of all programs that have them, in the step region from its start. */
typedef struct SlotPlan {
    int n[PIPELINE_SPANS];
    size_t at[PIPELINE_SPANS], bytes[PIPELINE_SPANS]; /* of one slot */
    size_t end;
    size_t io_bytes; /* inputs of one slot */
} SlotPlan;

struct Session {
    Device *device;
    const Store *store;
    DeviceMemory state, step, slot_io, packed_memory;
    PackedState *packed; /* those of all programs, each once */
    int n_packed;
    SlotPlan slots;
    Loaded *loaded;
    int n_loaded;
    SessionWatch *watch; /* NULL: nobody listens */
    void *watch_context;
    bool one_by_one;        /* instructions are launched as they are, not as a captured graph */
    VEC(GpuEvent *) moment; /* of a GPU's stream: before each instruction, and after all */
    GpuEvent *inputs_read;  /* the device has taken the inputs: the host may write the next */
};

/* The states have changed, or may have. */
void session_unpack(Session *s);
/* session.c, for session_clock.c */
Status session_run_step(Step *step);
/* Runs the instructions, and tells the watch when each was run. */
Status session_run_watched(Session *s, Loaded *l, int begin, int end);
void session_forget_moments(Session *s);

/* The inputs of the program, in the slot that is meant. */
DeviceMemory session_io(const Session *s, const Loaded *l);
/* Where the device has an operand now. */
Tensor session_resolve(const Session *s, const Loaded *l, const Operand *o);
/* Where output n begins among those that the host gets copies of. */
size_t session_outputs_end(const Program *program, int n);

static inline size_t operand_bytes(const Operand *o)
{
    return (size_t)shape_count(&o->shape) * dtype_bytes(o->dtype);
}

#endif
