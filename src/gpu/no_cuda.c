/* A build without CUDA: there is no device, and nobody gets further than asking for one. */
#include "gpu/attention.h"
#include "gpu/choices.h"
#include "gpu/no_exchange.h"
#include "gpu/numbers.h"
#include "gpu/report.h"

static const char sentence[] = "this drover was built without CUDA: install the CUDA toolkit "
                               "(nvcc on the PATH) and build again";

int gpu_count(const char **why)
{
    if (why) *why = sentence;
    return 0;
}

bool gpu_is_emulated(void) { return false; }

Status gpu_open(int index, Gpu **gpu)
{
    (void)index;
    *gpu = NULL;
    return fail(ERR_UNSUPPORTED, "%s", sentence);
}

void gpu_close(Gpu *gpu) { CHECK(!gpu); }

/* Everything below takes what gpu_open never gave. */
static Status absent(void) { return fail(ERR_UNSUPPORTED, "%s", sentence); }
const GpuInfo *gpu_info(const Gpu *gpu) { return (const GpuInfo *)(const void *)gpu; }

const char *gpu_libraries(Gpu *gpu) { return gpu ? "" : sentence; }
const char *gpu_exchange_library(Gpu *gpu) { return gpu ? "" : sentence; }
GpuChoices *gpu_choices(Gpu *gpu) { return (GpuChoices *)(void *)gpu; }
const char *gpu_attention_library(Gpu *gpu) { return gpu ? "" : sentence; }

size_t gpu_free_bytes(Gpu *gpu) { return gpu ? 1 : 0; }

#define ABSENT(name, ...)                                                                          \
    Status name(__VA_ARGS__) { return absent(); }
#define NOTHING(name, ...)                                                                         \
    void name(__VA_ARGS__) {}

#pragma GCC diagnostic ignored "-Wunused-parameter"
ABSENT(gpu_alloc, Gpu *gpu, size_t bytes, const char *what, void **memory)
NOTHING(gpu_free, Gpu *gpu, void *memory)
ABSENT(gpu_host_alloc, Gpu *gpu, size_t bytes, void **memory)
NOTHING(gpu_host_free, Gpu *gpu, void *memory)
ABSENT(gpu_stream_create, Gpu *gpu, GpuStream **stream)
NOTHING(gpu_stream_destroy, GpuStream *stream)
Gpu *gpu_stream_device(const GpuStream *stream) { return NULL; }
ABSENT(gpu_stream_wait, GpuStream *stream)
ABSENT(gpu_write, GpuStream *stream, void *to, const void *host, size_t bytes)
ABSENT(gpu_read, GpuStream *stream, void *host, const void *from, size_t bytes)
ABSENT(gpu_read_later, GpuStream *stream, void *host, const void *from, size_t bytes)
ABSENT(gpu_copy, GpuStream *stream, void *to, const void *from, size_t bytes)
ABSENT(gpu_copy_rows, GpuStream *stream, const GpuRows *rows)
NOTHING(gpu_stream_on_wait, GpuStream *stream, GpuLook *look, void *context)
ABSENT(gpu_fill, GpuStream *stream, void *to, int byte, size_t bytes)
ABSENT(gpu_event_create, Gpu *gpu, GpuEvent **event)
NOTHING(gpu_event_destroy, GpuEvent *event)
ABSENT(gpu_event_record, GpuEvent *event, GpuStream *stream)
ABSENT(gpu_event_look, GpuEvent *event, bool *done)
ABSENT(gpu_event_wait, GpuEvent *event)
ABSENT(gpu_stream_wait_until, GpuStream *stream, GpuEvent *event)
ABSENT(gpu_stream_wait_event, GpuStream *stream, GpuEvent *event)
ABSENT(gpu_event_ms, GpuEvent *from, GpuEvent *to, double *ms)
GpuSide **gpu_stream_side(GpuStream *stream) { return NULL; }
ABSENT(gpu_capture_begin, GpuStream *stream)
ABSENT(gpu_capture_end, GpuStream *stream, GpuGraph **graph)
ABSENT(gpu_graph_launch, GpuGraph *graph, GpuStream *stream)
NOTHING(gpu_graph_destroy, GpuGraph *graph)
ABSENT(gpu_product_plan, GpuStream *stream, const GpuProduct *product, GpuProductPlan **plan)
NOTHING(gpu_product_plan_destroy, GpuProductPlan *plan)
ABSENT(gpu_product_run, GpuProductPlan *plan, const void *a, const void *b, void *c,
       void *workspace)
ABSENT(gpu_product_run_scaled, GpuProductPlan *plan, const void *const operand[2],
       const float *const scale[2], void *c, void *workspace)
ABSENT(gpu_boxes_make, GpuStream *stream, const GpuTiling *tiling, GpuBoxes *boxes)
ABSENT(gpu_product_try, GpuStream *stream, const GpuProduct *product, const GpuProductTrial *trial,
       GpuProductPlan **plan)
ABSENT(gpu_peer, int from, int to, GpuPeer *peer)
ABSENT(gpu_attention_can, Gpu *gpu)
ABSENT(gpu_attention_plan, GpuStream *stream, const GpuAttention *attention,
       GpuAttentionPlan **plan)
NOTHING(gpu_attention_plan_destroy, GpuAttentionPlan *plan)
ABSENT(gpu_attention_run, GpuAttentionPlan *plan, const GpuAttentionOperands *operands,
       void *workspace)
