/* The streams beside a stream, by events. */
#include "gpu/gpu.h"

#include <stdlib.h>

/* Something that was put on the side and not yet joined; or a free event. */
typedef struct Promise {
    const void *key; /* NULL: free */
    GpuEvent *done;
} Promise;

struct GpuSide {
    GpuStream *lane[GPU_LANES]; /* made when first asked for */
    GpuEvent *here;             /* of the main stream, where a lane begins */
    VEC(Promise) promise;
};

static Status side_of(GpuStream *stream, GpuSide **out)
{
    GpuSide **place = gpu_stream_side(stream);
    if (!*place) {
        Gpu *gpu = gpu_stream_device(stream);
        *place = xcalloc(1, sizeof **place);
        TRY(gpu_event_create(gpu, &(*place)->here));
    }
    *out = *place;
    return OK;
}

void gpu_side_destroy(GpuSide *side)
{
    if (!side) return;
    for (size_t i = 0; i < side->promise.n; i++) gpu_event_destroy(side->promise.at[i].done);
    VEC_FREE(&side->promise);
    gpu_event_destroy(side->here);
    for (int i = 0; i < GPU_LANES; i++) gpu_stream_destroy(side->lane[i]);
    free(side);
}

static Status lane_of(GpuStream *stream, GpuSide *side, int lane, GpuStream **out)
{
    if (lane < 0 || lane >= GPU_LANES) return fail(ERR_ARG, "there is no lane %d", lane);
    if (!side->lane[lane]) TRY(gpu_stream_create(gpu_stream_device(stream), &side->lane[lane]));
    *out = side->lane[lane];
    return OK;
}

Status gpu_side_begin(GpuStream *stream, int lane, GpuStream **out)
{
    GpuSide *side;
    TRY(side_of(stream, &side));
    TRY(lane_of(stream, side, lane, out));
    TRY(gpu_event_record(side->here, stream));
    return gpu_stream_wait_event(*out, side->here);
}

static Promise *find(GpuSide *side, const void *key)
{
    for (size_t i = 0; i < side->promise.n; i++)
        if (side->promise.at[i].key == key) return &side->promise.at[i];
    return NULL;
}

Status gpu_side_end(GpuStream *stream, int lane, const void *key)
{
    GpuSide *side;
    GpuStream *from = NULL;
    TRY(side_of(stream, &side));
    TRY(lane_of(stream, side, lane, &from));
    if (!key || find(side, key)) return fail(ERR_ARG, "something is on its way under this key");
    Promise *p = find(side, NULL);
    if (!p) {
        Promise fresh = {0};
        TRY(gpu_event_create(gpu_stream_device(stream), &fresh.done));
        VEC_PUSH(&side->promise, fresh);
        p = &side->promise.at[side->promise.n - 1];
    }
    p->key = key;
    return gpu_event_record(p->done, from);
}

Status gpu_side_join(GpuStream *stream, const void *key)
{
    GpuSide *side;
    TRY(side_of(stream, &side));
    Promise *p = key ? find(side, key) : NULL;
    if (!p) return OK;
    p->key = NULL;
    return gpu_stream_wait_event(stream, p->done);
}
