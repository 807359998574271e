/* device: where programs run.
 *
 * What it is.   Device (a processor with its memory), Session (a store and some programs, loaded).
 * Depends on.   base, tensor, gpu, pipeline, cluster, graph, ops, pass, program
 * Owns.         A Device counts what it allocates; a Session owns the memory of its regions.
 *               Programs
 *               and the store are borrowed and must outlive it.
 * Invariants.   Nothing is allocated and nothing is looked up between session_create and
 *               session_destroy: a run walks an array of kernels with ready pointers. What a
 *               session
 *               allocates is session_plan's total, to the byte. With several ranks all of them
 *               create their sessions in the same order: those on GPUs agree there on how products
 *               are computed.
 * Use:
 *     Device *device;
 *     TRY(device_create_cpu((CpuOptions){.threads = 2}, &device));
 *     TRY(program_compile(graph, device_target(device), store, &program));
 *     TRY(session_create(device, store, &program, 1, &session));
 *     TRY(session_write(session, 0, "ids", ids, bytes));
 *     TRY(session_run(session, 0, PHASE_FORWARD, PHASE_UPDATE));
 *     TRY(session_read(session, 0, "loss", &loss, sizeof loss));
 */
#ifndef DEVICE_DEVICE_H
#define DEVICE_DEVICE_H

#include "program/program.h"

typedef struct Device Device;
typedef struct Session Session;

typedef struct CpuOptions {
    int threads; /* 0: all cores we may use */
    Isa max_isa; /* not above this level, for tests; ISA_GENERIC (0) means no limit unless
                  limit_isa */
    bool limit_isa;
    Comm *world; /* this rank in the group of all ranks; NULL: there is one rank */
    Mesh mesh;   /* and its place among them */
    bool tune; /* of device_create, where it takes a GPU: CudaOptions.choices in the user's cache */
} CpuOptions;

Status device_create_cpu(CpuOptions options, Device **device);

/* A GPU. Its memory is its own: what the host sees of it are copies, see session_fetch_states and
 * session_fetch_output. ERR_UNSUPPORTED with the remedy where there is none. */
typedef struct CudaOptions {
    int index; /* of the machine's GPUs */
    Comm *world;
    Mesh mesh;
    /* A file in which the fastest algorithm of every product is remembered: sessions try them out
     * as they are created, on their own memory, and all ranks take the same (gpu_product_tune).
     * NULL: the library's first proposal. */
    const char *choices;
} CudaOptions;
Status device_create_cuda(CudaOptions options, Device **device);

/* auto: a GPU where there is one that can be used, else the processor. Ranks on one host take one
 * GPU each, by their number on the host. */
typedef enum DeviceKind { DEVICE_AUTO, DEVICE_CPU, DEVICE_CUDA } DeviceKind;
Status device_create(DeviceKind kind, CpuOptions options, Device **device);
void device_destroy(Device *device);
Target device_target(const Device *device);
Isa cpu_best_isa(void);
/* Tensor memory that this device holds now, and the most it ever held. */
size_t device_allocated_bytes(const Device *device);
size_t device_peak_bytes(const Device *device);
/* What it could allocate now. */
size_t device_available_bytes(const Device *device);
/* Sessions lie in memory of the device's own; the host has what it wants of them once more. */
bool device_has_own_memory(const Device *device);
/* Of products in a type: measured on a processor (some hundredths of a second), by its sheet on a
 * GPU; 0 where nobody knows it. */
Status device_peak_flop_per_s(const Device *device, DType dtype, double *peak);
/* ERR_UNSUPPORTED where it has no products of 8 bits as linear_8 wants them: GPUs other than
 * Hopper. A processor has them, slowly. */
Status device_check_fp8(const Device *device);
/* The preset whose sheet is that of a GPU of this name; NULL: there is none, or it is a processor.
 */
const char *device_preset(const Device *device);
/* NULL: the processor. */
Gpu *device_gpu(const Device *device);
/* "AMD EPYC, 2 threads, avx512bf16": for logs and doctor. */
const char *device_text(const Device *device);

/* The ranks that differ from this one along these mesh axes (bits by MeshAxis) only. */
Status device_group(Device *device, unsigned axes, Comm **group);

/* Bytes that session_create will allocate for these programs over this store. */
typedef struct MemoryPlan {
    size_t state_bytes;  /* the store */
    size_t step_bytes;   /* slots of all programs that have them, and the largest step region: they
                            take turns */
    size_t held_bytes;   /* of step_bytes: the slots */
    size_t io_bytes;     /* all inputs */
    size_t packed_bytes; /* weights as products read them */
    size_t total_bytes;
} MemoryPlan;
MemoryPlan session_plan(const Store *store, Program *const *programs, int n);

Status session_create(Device *device, const Store *store, Program *const *programs, int n,
                      Session **session);
void session_destroy(Session *session);

/* The slots of the micro-batch that later runs, reads and writes of the program mean; 0 at the
 * start. */
void session_use_slots(Session *session, int program, const int slot[PIPELINE_SPANS]);
/* Runs the instructions of the phases first..last of a program. */
Status session_run(Session *session, int program, Phase first, Phase last);
/* Copies between the host and an input or output, whole: bytes must be its size. What is written is
 * there for the next run. */
Status session_write(Session *session, int program, const char *input, const void *data,
                     size_t bytes);
Status session_read(Session *session, int program, const char *output, void *data, size_t bytes);
/* Where the host writes an input in place, until the next run; NULL: there is none. */
void *session_input(Session *session, int program, const char *input);
bool session_has_output(const Session *session, int program, const char *output);
/* Where the host reads what the last run made of an output, until the next run. */
Status session_fetch_output(Session *session, int program, const char *output, const void **data);
/* An entry of the store as the host sees it: on the cpu device its very memory, elsewhere a copy
 * that is as old as the last call of session_fetch_states, and that the device has after
 * session_store_states. */
Tensor session_state(Session *session, int entry);
Status session_fetch_states(Session *session);
Status session_store_states(Session *session);
/* Zeros, for the host and the device. */
Status session_clear_state(Session *session, int entry);
/* One part of an entry: a weight by its published name. */
Tensor session_state_part(Session *session, int entry, int part);
/* Initial weights of every PARAM from (seed, published name), so that a fused, a sharded and a
 * plain start are the same start; then working copies. */
Status session_init_weights(Session *session, uint64_t seed);
/* Remakes every working copy (STATE_COPY) from its master, and stores all states: after loading or
 * initialising. All ranks call it: where they share masters of whole copies, they exchange what
 * they made. */
Status session_refresh_copies(Session *session);

/* Of one of `runs` runs of a program in a row, after one that is not timed. */
typedef struct SessionTime {
    double device_s; /* by the device's clock */
    double host_s;   /* that the host was busy with it */
} SessionTime;
/* one_by_one: a GPU is given instruction after instruction, as where a step cannot be kept as one
 * launch. */
Status session_time(Session *session, int program, int runs, bool one_by_one, SessionTime *time);

/* From now on fn hears of every instruction that was run, and when (clock_s; on a GPU by its own
 * clock, in between nobody waits); NULL: no longer. For traces and bench. */
typedef struct InstrTime {
    const Program *program;
    const Instr *instr;
    int slot;
    double begin_s, end_s;
} InstrTime;
typedef void SessionWatch(void *context, const InstrTime *time);
void session_watch(Session *session, SessionWatch *fn, void *context);

#endif
