/* gpu: a CUDA device behind one header, so that whoever uses it is plain C and links where there is
 * no CUDA.
 *
 * What it is.   Gpu (a device with what it is and has), GpuStream (work in order on it, and the
 *               libraries' handles that belong to it), memory, events, captured graphs, products.
 *               Three implementations are linked by turns: CUDA; none, which refuses to open one;
 *               and for tests an emulated device, on which the same .cu files run thread by thread
 *               on the processor, memory of its own included (emulated.h).
 * Depends on.   base, tensor
 * Owns.         A Gpu owns its streams' handles; memory belongs to who allocated it.
 * Invariants.   Pointers of gpu_alloc mean something to kernels and to the functions here alone.
 *               What is put on a stream runs in order; nothing but gpu_stream_wait, gpu_read and
 *               gpu_event_wait waits for it. An error of the device, which comes late, is told by
 *               the next call that waits.
 * Use:
 *     Gpu *gpu;
 *     GpuStream *stream;
 *     TRY(gpu_open(0, &gpu));
 *     TRY(gpu_stream_create(gpu, &stream));
 *     TRY(gpu_alloc(gpu, bytes, "weights", &memory));
 *     TRY(gpu_write(stream, memory, host, bytes));          (kernels are launched: ops/kernel.cuh)
 *     TRY(gpu_read(stream, host, memory, bytes));
 */
#ifndef GPU_GPU_H
#define GPU_GPU_H

#include "tensor/tensor.h"

typedef struct Gpu Gpu;
typedef struct GpuStream GpuStream;
typedef struct GpuEvent GpuEvent;
typedef struct GpuGraph GpuGraph;

typedef struct GpuInfo {
    char name[96];
    int index;
    int major, minor; /* compute capability: 9.0 is Hopper */
    int multiprocessors;
    int shared_bytes;    /* that one block may have at most */
    int driver, runtime; /* CUDA versions as 1000 major + 10 minor */
    int clock_mhz, memory_clock_mhz;
    bool ecc;
    size_t memory_bytes, free_bytes, l2_bytes;
} GpuInfo;

/* Devices that can be used. 0 with `why` (may be NULL) set to a sentence with the remedy: no build
 * with CUDA, no driver, too old a driver, no device. */
int gpu_count(const char **why);
/* Whether this program is linked to the emulated device. */
bool gpu_is_emulated(void);
/* ERR_UNSUPPORTED: there is none, or it is older than compute capability 8.0. */
Status gpu_open(int index, Gpu **gpu);
void gpu_close(Gpu *gpu);                /* NULL: nothing */
const GpuInfo *gpu_info(const Gpu *gpu); /* as of when it was opened */
size_t gpu_free_bytes(Gpu *gpu);         /* now; 0 when it cannot be asked */
/* "cuBLASLt 13.0.1", or what is missing and where to get it: for reports. */
const char *gpu_libraries(Gpu *gpu);

/* Memory of the device, aligned to 256 bytes. ERR_MEMORY with bytes asked and free. */
Status gpu_alloc(Gpu *gpu, size_t bytes, const char *what, void **memory);
void gpu_free(Gpu *gpu, void *memory);
/* Memory of the host that copies need not stage. */
Status gpu_host_alloc(Gpu *gpu, size_t bytes, void **memory);
void gpu_host_free(Gpu *gpu, void *memory);

Status gpu_stream_create(Gpu *gpu, GpuStream **stream);
void gpu_stream_destroy(GpuStream *stream);
Gpu *gpu_stream_device(const GpuStream *stream);
Status gpu_stream_wait(GpuStream *stream);

/* To and from the host, behind what is on the stream. write may return before the copy where `host`
 * came from gpu_host_alloc: it must not change until the stream was waited for. read waits. */
Status gpu_write(GpuStream *stream, void *to, const void *host, size_t bytes);
Status gpu_read(GpuStream *stream, void *host, const void *from, size_t bytes);
Status gpu_copy(GpuStream *stream, void *to, const void *from, size_t bytes);
/* Rows of `bytes` each, so far apart. */
typedef struct GpuRows {
    void *to;
    size_t to_pitch;
    const void *from;
    size_t from_pitch;
    size_t bytes, rows;
} GpuRows;
Status gpu_copy_rows(GpuStream *stream, const GpuRows *rows);
Status gpu_fill(GpuStream *stream, void *to, int byte, size_t bytes);

/* A moment of a stream. */
Status gpu_event_create(Gpu *gpu, GpuEvent **event);
void gpu_event_destroy(GpuEvent *event);
Status gpu_event_record(GpuEvent *event, GpuStream *stream);
Status gpu_event_look(GpuEvent *event, bool *done);               /* nobody waits */
Status gpu_event_wait(GpuEvent *event);                           /* the host waits */
Status gpu_stream_wait_event(GpuStream *stream, GpuEvent *event); /* the stream waits */
Status gpu_event_ms(GpuEvent *from, GpuEvent *to, double *ms);    /* both waited for */

/* Streams beside this one, for what goes on while it computes; lanes do not wait for each other.
 * begin gives one, behind all that is on this stream by now; end remembers under `key` the moment
 * when what was put on that lane is done; join makes this stream wait for that moment, once, and
 * does nothing for a key that nobody remembers. */
enum { GPU_LANES = 16 };
Status gpu_side_begin(GpuStream *stream, int lane, GpuStream **side);
Status gpu_side_end(GpuStream *stream, int lane, const void *key);
Status gpu_side_join(GpuStream *stream, const void *key);
/* gpu/side.c keeps what it needs there, and frees it at the stream's end. */
typedef struct GpuSide GpuSide;
GpuSide **gpu_stream_side(GpuStream *stream);
void gpu_side_destroy(GpuSide *side);

/* What is put on the stream between begin and end is not run but kept; a launch runs all of it. */
Status gpu_capture_begin(GpuStream *stream);
Status gpu_capture_end(GpuStream *stream, GpuGraph **graph);
Status gpu_graph_launch(GpuGraph *graph, GpuStream *stream);
void gpu_graph_destroy(GpuGraph *graph);

/* ---- exchanges among GPUs ----------------------------------------------------------------- */

/* Ranks that exchange on their GPUs' streams (NCCL). All of them say the same operations in the
 * same order; each is behind what is on the stream, and nobody waits for it but what is put there
 * later. Where there is no such library the host must carry data (gpu_can_exchange). */
typedef struct GpuGroup GpuGroup;
enum { GPU_GROUP_ID_BYTES = 128 };

bool gpu_can_exchange(Gpu *gpu);
/* Made by one of the ranks, told to all by other means. */
Status gpu_group_id(Gpu *gpu, uint8_t id[GPU_GROUP_ID_BYTES]);
/* Begins; ready once gpu_group_look says so: whoever waits for it can say who is missing. */
Status gpu_group_create(GpuStream *stream, const uint8_t id[GPU_GROUP_ID_BYTES], int n, int rank,
                        GpuGroup **group);
void gpu_group_destroy(GpuGroup *group); /* also while others hang: nothing is waited for */
/* OK with *ready false: not yet. ERR_COMM: a peer is gone, or the network. */
Status gpu_group_look(GpuGroup *group, bool *ready);

typedef enum GpuReduce { GPU_SUM, GPU_MAX, GPU_MIN } GpuReduce;
Status gpu_all_reduce(GpuGroup *group, const void *send, void *recv, int64_t count, DType dtype,
                      GpuReduce reduce);
/* Parts of equal size, in the order of ranks. */
Status gpu_all_gather(GpuGroup *group, const void *send, void *recv, int64_t count, DType dtype);
Status gpu_reduce_scatter(GpuGroup *group, const void *send, void *recv, int64_t count,
                          DType dtype);
Status gpu_reduce(GpuGroup *group, const void *send, void *recv, int64_t count, DType dtype,
                  int root); /* the sum, in root's recv */
Status gpu_broadcast(GpuGroup *group, const void *send, void *recv, int64_t count, DType dtype,
                     int root);
/* Between batch_begin and batch_end they are one operation, in which none waits for another. */
Status gpu_batch_begin(GpuGroup *group);
Status gpu_batch_end(GpuGroup *group);
Status gpu_send(GpuGroup *group, const void *data, int64_t count, DType dtype, int to);
Status gpu_recv(GpuGroup *group, void *data, int64_t count, DType dtype, int from);

/* While the host waits for this stream, `look` is asked every few milliseconds whether it still
 * should: another status than OK ends the wait with it. NULL: nobody is asked. */
typedef Status GpuLook(void *context);
void gpu_stream_on_wait(GpuStream *stream, GpuLook *look, void *context);

/* ---- products ----------------------------------------------------------------------------- */

/* What the numbers of an operand of 8 bits are to be multiplied with: f32, along the sum one for
 * each row, for each 128, or for each 128 of 128 rows. How the scales lie: ops/quantise.h. */
typedef enum GpuScaling {
    GPU_SCALE_NONE,
    GPU_SCALE_ROW,
    GPU_SCALE_BLOCK,
    GPU_SCALE_SQUARE
} GpuScaling;

/* c [m n] = a [m k] b [k n], row-major, sums in f32; with accumulate, c += a b. Operands of one
 * type (f32 or bf16), c of either. Transposed operands lie as [k m] and [n k].
 *
 * Of 8 bits (f8_e4m3, f8_e5m2, not both e5m2) a lies as [m k] and b as [n k], both scaled: by rows,
 * or by blocks and perhaps one of them by squares. */
typedef struct GpuProduct {
    int64_t m, n, k;
    DType dtype, c_dtype;
    bool a_transposed, b_transposed, accumulate;
    int64_t a_pitch, b_pitch, c_pitch; /* elements from row to row, as they lie */
    size_t alignment; /* bytes that the operands' addresses are multiples of, a power of two; 0: as
                         gpu_alloc aligns */
    size_t workspace_bytes; /* of the buffer that runs get */
    /* of 8 bits only */
    DType b_dtype; /* dtype is a's */
    GpuScaling a_scaling, b_scaling;
    const float *scale[2]; /* as a first run will have them: algorithms are chosen with them */
} GpuProduct;

/* Whether this device multiplies numbers of 8 bits that are scaled by rows and blocks: compute
 * capability 9.0, as cuBLASLt has it. ERR_UNSUPPORTED with the remedy where it does not. */
Status gpu_check_8_bits(const Gpu *gpu);
/* That a product of 8 bits is one that such devices have: its types, its scales, and that its sizes
 * and rows are whole 16 bytes. OK for others. */
enum { GPU_ALIGN_8_BITS = 16 };
Status gpu_product_check(const GpuProduct *product);

typedef struct GpuProductPlan GpuProductPlan; /* an algorithm chosen for a shape; of one stream */

Status gpu_product_plan(GpuStream *stream, const GpuProduct *product, GpuProductPlan **plan);
void gpu_product_plan_destroy(GpuProductPlan *plan);
Status gpu_product_run(GpuProductPlan *plan, const void *a, const void *b, void *c,
                       void *workspace);
/* Of 8 bits, with the scales of a and of b, which begin at whole 16 bytes. */
Status gpu_product_run_scaled(GpuProductPlan *plan, const void *const operand[2],
                              const float *const scale[2], void *c, void *workspace);

/* ---- boxes of tensors --------------------------------------------------------------------- */

/* A tensor of bf16 as the copy engine of GPUs of compute capability 9.0 and later sees it: one
 * instruction brings a box of it to shared memory (gpu/hopper.cuh). Axis 0 is the one whose
 * elements are neighbours. In shared memory a line of the box follows the other without gaps, a
 * line being its box[0] elements; the 16-byte pieces of each line are permuted by the line's
 * number, so that eight lines lie in different banks: of 128 bytes piece c of line r lies at c ^ r
 * % 8, of 64 at c ^ r / 2 % 4, of 32 at c ^ r / 4 % 2. What a box has outside of the tensor is
 * zeros. */
enum { GPU_BOX_AXES = 4 };
typedef struct GpuTiling {
    const void *data; /* aligned to 16 bytes */
    int axes;
    int64_t size[GPU_BOX_AXES]; /* each at least 1 */
    int64_t
        pitch_bytes[GPU_BOX_AXES]; /* from one to the next along axes 1 and up: multiples of 16 */
    int box[GPU_BOX_AXES];         /* up to 256; box[0]: elements of 32, 64 or 128 bytes */
} GpuTiling;

/* What kernels are given of it, by value (const __grid_constant__), in one argument or a part of
 * one. */
typedef struct GpuBoxes {
    uint64_t opaque[16];
#ifdef GPU_EMULATED
} GpuBoxes;
#else
} __attribute__((aligned(64))) GpuBoxes;
#endif

/* ERR_UNSUPPORTED: this driver or GPU has no such engine. */
Status gpu_boxes_make(GpuStream *stream, const GpuTiling *tiling, GpuBoxes *boxes);

#endif
