/* CUDA devices, memory, streams, events, captured graphs. The runtime is linked into the program
 * and looks for the driver by itself: without one the program starts and says so when asked. */
#include "gpu/cuda_internal.h"
#include "gpu/numbers.h"
#include "gpu/report.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { LEAST_MAJOR = 8 }; /* bf16 matrix units */

/* Errors that leave the device unusable for this process. */
static bool is_lost(cudaError_t error)
{
    return error == cudaErrorIllegalAddress || error == cudaErrorLaunchFailure ||
           error == cudaErrorECCUncorrectable || error == cudaErrorHardwareStackError ||
           error == cudaErrorIllegalInstruction || error == cudaErrorMisalignedAddress ||
           error == cudaErrorDevicesUnavailable || error == cudaErrorLaunchTimeout ||
           error == cudaErrorAssert || error == cudaErrorContained;
}

Status cuda_check(cudaError_t error, const char *what)
{
    if (error == cudaSuccess) return OK;
    (void)cudaGetLastError(); /* told here, and not once more */
    return fail(error == cudaErrorMemoryAllocation ? ERR_MEMORY : ERR_DEVICE, "%s: %s (%s)%s", what,
                cudaGetErrorString(error), cudaGetErrorName(error),
                is_lost(error) ? "; the GPU is lost to this process, start it again" : "");
}

cudaStream_t gpu_stream_cuda(GpuStream *stream) { return stream->cuda; }

Status gpu_launched(const char *kernel)
{
    cudaError_t error = cudaGetLastError();
    if (error == cudaSuccess) return OK;
    return fail(ERR_DEVICE, "kernel %s: %s (%s)", kernel, cudaGetErrorString(error),
                cudaGetErrorName(error));
}

Status gpu_allowed(cudaError_t error, const char *kernel)
{
    if (error == cudaSuccess) return OK;
    (void)cudaGetLastError();
    return fail(ERR_DEVICE, "kernel %s: its shared memory is refused: %s", kernel,
                cudaGetErrorString(error));
}

/* ---- devices ------------------------------------------------------------------------------ */

static const char *absence(cudaError_t error)
{
    switch (error) {
    case cudaErrorInsufficientDriver:
        return "the NVIDIA driver is missing or older than CUDA 13 needs (580): install a newer "
               "one";
    case cudaErrorNoDevice:
        return "there is no NVIDIA GPU here that the driver can see (nvidia-smi -L lists them)";
    default: return cudaGetErrorString(error);
    }
}

int gpu_count(const char **why)
{
    int n = 0;
    cudaError_t error = cudaGetDeviceCount(&n);
    if (why) *why = NULL;
    if (error == cudaSuccess && n) return n;
    (void)cudaGetLastError();
    if (why) *why = absence(error == cudaSuccess ? cudaErrorNoDevice : error);
    return 0;
}

static Status read_info(int index, GpuInfo *info)
{
    struct cudaDeviceProp p;
    TRY(cuda_check(cudaGetDeviceProperties(&p, index), "reading a GPU's properties"));
    *info = (GpuInfo){.index = index,
                      .major = p.major,
                      .minor = p.minor,
                      .multiprocessors = p.multiProcessorCount,
                      .shared_bytes = (int)p.sharedMemPerBlockOptin,
                      .ecc = p.ECCEnabled,
                      .l2_bytes = (size_t)p.l2CacheSize};
    snprintf(info->name, sizeof info->name, "%s", p.name);
    int khz = 0;
    if (cudaDeviceGetAttribute(&khz, cudaDevAttrClockRate, index) == cudaSuccess)
        info->clock_mhz = khz / 1000;
    if (cudaDeviceGetAttribute(&khz, cudaDevAttrMemoryClockRate, index) == cudaSuccess)
        info->memory_clock_mhz = khz / 1000;
    TRY(cuda_check(cudaDriverGetVersion(&info->driver), "reading the driver's version"));
    TRY(cuda_check(cudaRuntimeGetVersion(&info->runtime), "reading CUDA's version"));
    return cuda_check(cudaMemGetInfo(&info->free_bytes, &info->memory_bytes),
                      "reading a GPU's memory");
}

bool gpu_is_emulated(void) { return false; }

Status gpu_open(int index, Gpu **out)
{
    const char *why;
    int n = gpu_count(&why);
    *out = NULL;
    if (!n) return fail(ERR_UNSUPPORTED, "%s", why);
    if (index < 0 || index >= n)
        return fail(ERR_UNSUPPORTED, "there is no GPU %d; this machine has %d", index, n);
    TRY(cuda_check(cudaSetDevice(index), "opening a GPU"));
    Gpu *gpu = xcalloc(1, sizeof *gpu);
    Status status = read_info(index, &gpu->info);
    if (status == OK && gpu->info.major < LEAST_MAJOR)
        status = fail(ERR_UNSUPPORTED,
                      "GPU %d, %s, has compute capability %d.%d; drover needs 8.0 and is made for "
                      "9.0",
                      index, gpu->info.name, gpu->info.major, gpu->info.minor);
    if (status != OK) {
        free(gpu);
        return status;
    }
    *out = gpu;
    return OK;
}

void gpu_close(Gpu *gpu)
{
    if (!gpu) return;
    cuda_products_close(gpu);
    cuda_exchange_close(gpu);
    gpu_choices_deinit(&gpu->choices);
    cuda_attention_close(gpu);
    free(gpu);
}

const GpuInfo *gpu_info(const Gpu *gpu) { return &gpu->info; }

GpuChoices *gpu_choices(Gpu *gpu) { return &gpu->choices; }

Status gpu_peer(int from, int to, GpuPeer *peer)
{
    int direct = 0, atomics = 0;
    TRY(cuda_check(cudaDeviceCanAccessPeer(&direct, from, to), "asking how GPUs are joined"));
    if (direct)
        TRY(cuda_check(
            cudaDeviceGetP2PAttribute(&atomics, cudaDevP2PAttrNativeAtomicSupported, from, to),
            "asking how GPUs are joined"));
    *peer = (GpuPeer){.direct = direct, .atomics = atomics};
    return OK;
}

/* A thread's calls go to the device that it chose last: each rank is a thread of its own. */
static Status use(const Gpu *gpu)
{
    return cuda_check(cudaSetDevice(gpu->info.index), "choosing a GPU");
}

/* ---- memory ------------------------------------------------------------------------------- */

Status gpu_alloc(Gpu *gpu, size_t bytes, const char *what, void **memory)
{
    *memory = NULL;
    if (!bytes) return OK;
    TRY(use(gpu));
    cudaError_t error = fault_hit("tensor_alloc") ? cudaErrorMemoryAllocation
                                                  : cudaMalloc(memory, bytes);
    if (error != cudaErrorMemoryAllocation) return cuda_check(error, what);
    (void)cudaGetLastError();
    size_t free_bytes = 0, all = 0;
    TRY(cuda_check(cudaMemGetInfo(&free_bytes, &all), "reading a GPU's memory"));
    return fail(ERR_MEMORY, "no GPU memory for %zu bytes of %s; %zu of %zu bytes are free", bytes,
                what, free_bytes, all);
}

size_t gpu_free_bytes(Gpu *gpu)
{
    size_t free_bytes = 0, all = 0;
    if (use(gpu) == OK && cudaMemGetInfo(&free_bytes, &all) == cudaSuccess) return free_bytes;
    (void)cudaGetLastError();
    return 0;
}

void gpu_free(Gpu *gpu, void *memory)
{
    (void)gpu;
    if (memory && cudaFree(memory) != cudaSuccess) (void)cudaGetLastError();
}

Status gpu_host_alloc(Gpu *gpu, size_t bytes, void **memory)
{
    TRY(use(gpu));
    return cuda_check(cudaMallocHost(memory, bytes ? bytes : 1), "pinned memory of the host");
}

void gpu_host_free(Gpu *gpu, void *memory)
{
    (void)gpu;
    if (memory && cudaFreeHost(memory) != cudaSuccess) (void)cudaGetLastError();
}

/* ---- streams ------------------------------------------------------------------------------ */

Status gpu_stream_create(Gpu *gpu, GpuStream **out)
{
    TRY(use(gpu));
    GpuStream *stream = xcalloc(1, sizeof *stream);
    stream->gpu = gpu;
    Status status = cuda_check(cudaStreamCreateWithFlags(&stream->cuda, cudaStreamNonBlocking),
                               "making a stream");
    if (status != OK) {
        free(stream);
        return status;
    }
    *out = stream;
    return OK;
}

void gpu_stream_destroy(GpuStream *stream)
{
    if (!stream) return;
    gpu_side_destroy(stream->side);
    if (cudaStreamDestroy(stream->cuda) != cudaSuccess) (void)cudaGetLastError();
    free(stream);
}

GpuSide **gpu_stream_side(GpuStream *stream) { return &stream->side; }

Gpu *gpu_stream_device(const GpuStream *stream) { return stream->gpu; }

void gpu_stream_on_wait(GpuStream *stream, GpuLook *look, void *context)
{
    stream->look = look;
    stream->look_context = context;
}

Status gpu_write(GpuStream *stream, void *to, const void *host, size_t bytes)
{
    if (!bytes) return OK;
    return cuda_check(cudaMemcpyAsync(to, host, bytes, cudaMemcpyHostToDevice, stream->cuda),
                      "copying to the GPU");
}

Status gpu_read_later(GpuStream *stream, void *host, const void *from, size_t bytes)
{
    if (!bytes) return OK;
    return cuda_check(cudaMemcpyAsync(host, from, bytes, cudaMemcpyDeviceToHost, stream->cuda),
                      "copying from the GPU");
}

Status gpu_read(GpuStream *stream, void *host, const void *from, size_t bytes)
{
    TRY(gpu_read_later(stream, host, from, bytes));
    return gpu_stream_wait(stream);
}

Status gpu_copy(GpuStream *stream, void *to, const void *from, size_t bytes)
{
    if (!bytes) return OK;
    return cuda_check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream->cuda),
                      "copying on the GPU");
}

Status gpu_copy_rows(GpuStream *stream, const GpuRows *r)
{
    if (!r->bytes || !r->rows) return OK;
    return cuda_check(cudaMemcpy2DAsync(r->to, r->to_pitch, r->from, r->from_pitch, r->bytes,
                                        r->rows, cudaMemcpyDeviceToDevice, stream->cuda),
                      "copying on the GPU");
}

Status gpu_fill(GpuStream *stream, void *to, int byte, size_t bytes)
{
    if (!bytes) return OK;
    return cuda_check(cudaMemsetAsync(to, byte, bytes, stream->cuda), "filling GPU memory");
}

/* ---- events ------------------------------------------------------------------------------- */

struct GpuEvent {
    cudaEvent_t cuda;
};

Status gpu_event_create(Gpu *gpu, GpuEvent **out)
{
    TRY(use(gpu));
    GpuEvent *event = xcalloc(1, sizeof *event);
    Status status = cuda_check(cudaEventCreate(&event->cuda), "making an event");
    if (status != OK) {
        free(event);
        return status;
    }
    *out = event;
    return OK;
}

void gpu_event_destroy(GpuEvent *event)
{
    if (!event) return;
    if (cudaEventDestroy(event->cuda) != cudaSuccess) (void)cudaGetLastError();
    free(event);
}

Status gpu_event_record(GpuEvent *event, GpuStream *stream)
{
    return cuda_check(cudaEventRecord(event->cuda, stream->cuda), "recording an event");
}

Status gpu_event_look(GpuEvent *event, bool *done)
{
    cudaError_t error = cudaEventQuery(event->cuda);
    *done = error == cudaSuccess;
    return error == cudaErrorNotReady ? OK : cuda_check(error, "looking at an event");
}

Status gpu_event_wait(GpuEvent *event)
{
    return cuda_check(cudaEventSynchronize(event->cuda), "waiting for the GPU");
}

/* Until the event, or NULL: all that is on the stream. Spins for a while, since most waits are
 * short, then sleeps between looks. */
static Status wait_and_look(GpuStream *stream, GpuEvent *event)
{
    static const double spin_s = 200e-6;
    double begin_s = clock_s(), looked_s = begin_s;
    for (;;) {
        cudaError_t error = event ? cudaEventQuery(event->cuda) : cudaStreamQuery(stream->cuda);
        if (error == cudaSuccess) return OK;
        if (error != cudaErrorNotReady) return cuda_check(error, "waiting for the GPU");
        double now_s = clock_s();
        if (now_s - begin_s < spin_s) continue;
        nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
        if (now_s - looked_s < 5e-3) continue;
        looked_s = now_s;
        TRY(stream->look(stream->look_context));
    }
}

Status gpu_stream_wait(GpuStream *stream)
{
    if (stream->look) return wait_and_look(stream, NULL);
    return cuda_check(cudaStreamSynchronize(stream->cuda), "waiting for the GPU");
}

Status gpu_stream_wait_until(GpuStream *stream, GpuEvent *event)
{
    return stream->look ? wait_and_look(stream, event) : gpu_event_wait(event);
}

Status gpu_stream_wait_event(GpuStream *stream, GpuEvent *event)
{
    return cuda_check(cudaStreamWaitEvent(stream->cuda, event->cuda, 0), "waiting for an event");
}

Status gpu_event_ms(GpuEvent *from, GpuEvent *to, double *ms)
{
    float time = 0;
    TRY(cuda_check(cudaEventElapsedTime(&time, from->cuda, to->cuda), "timing the GPU"));
    *ms = (double)time;
    return OK;
}

/* ---- captured graphs ---------------------------------------------------------------------- */

struct GpuGraph {
    cudaGraphExec_t cuda;
};

Status gpu_capture_begin(GpuStream *stream)
{
    return cuda_check(cudaStreamBeginCapture(stream->cuda, cudaStreamCaptureModeThreadLocal),
                      "capturing a step");
}

Status gpu_capture_end(GpuStream *stream, GpuGraph **out)
{
    cudaGraph_t captured = NULL;
    TRY(cuda_check(cudaStreamEndCapture(stream->cuda, &captured), "capturing a step"));
    GpuGraph *graph = xcalloc(1, sizeof *graph);
    Status status = cuda_check(cudaGraphInstantiate(&graph->cuda, captured, 0),
                               "making a graph of a step");
    if (cudaGraphDestroy(captured) != cudaSuccess) (void)cudaGetLastError();
    if (status != OK) {
        free(graph);
        return status;
    }
    *out = graph;
    return OK;
}

Status gpu_graph_launch(GpuGraph *graph, GpuStream *stream)
{
    return cuda_check(cudaGraphLaunch(graph->cuda, stream->cuda), "launching a step");
}

void gpu_graph_destroy(GpuGraph *graph)
{
    if (!graph) return;
    if (cudaGraphExecDestroy(graph->cuda) != cudaSuccess) (void)cudaGetLastError();
    free(graph);
}
