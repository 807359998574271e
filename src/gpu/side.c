/* What lies beside a stream: other streams, joined by events, and numbers that the host has of the
 * device's. */
#include "gpu/numbers.h"

#include <stdlib.h>

/* Something that was put on the side and not yet joined; or a free event. */
typedef struct Promise {
    const void *key; /* NULL: free */
    GpuEvent *done;
} Promise;

/* A copy in the host's memory, which is kept when it is dropped: giving it back might wait for the
 * device. */
typedef struct Numbers {
    const void *from, *owner; /* from NULL: free */
    void *copy;               /* pinned; room for `room` bytes */
    size_t room;
    GpuEvent *done; /* the copying */
    bool there;     /* it was waited for */
} Numbers;

struct GpuSide {
    GpuStream *lane[GPU_LANES]; /* made when first asked for */
    GpuEvent *here;             /* of the main stream, where a lane begins */
    VEC(Promise) promise;
    VEC(Numbers) numbers;
    Gpu *gpu;
};

static Status side_of(GpuStream *stream, GpuSide **out)
{
    GpuSide **place = gpu_stream_side(stream);
    if (!*place) {
        Gpu *gpu = gpu_stream_device(stream);
        *place = xcalloc(1, sizeof **place);
        (*place)->gpu = gpu;
        TRY(gpu_event_create(gpu, &(*place)->here));
    }
    *out = *place;
    return OK;
}

void gpu_side_destroy(GpuSide *side)
{
    if (!side) return;
    for (size_t i = 0; i < side->numbers.n; i++) {
        gpu_event_destroy(side->numbers.at[i].done);
        gpu_host_free(side->gpu, side->numbers.at[i].copy);
    }
    VEC_FREE(&side->numbers);
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

/* ---- numbers for the host ----------------------------------------------------------------- */

static Numbers *find_numbers(GpuSide *side, const void *from)
{
    for (size_t i = 0; i < side->numbers.n; i++)
        if (side->numbers.at[i].from == from) return &side->numbers.at[i];
    return NULL;
}

/* Those of this address, free or new ones, with enough room. */
static Status make_numbers(GpuSide *side, const void *from, size_t bytes, Numbers **out)
{
    Numbers *n = find_numbers(side, from), fresh = {0};
    if (!n) n = find_numbers(side, NULL);
    if (!n) {
        TRY(gpu_event_create(side->gpu, &fresh.done));
        VEC_PUSH(&side->numbers, fresh);
        n = &side->numbers.at[side->numbers.n - 1];
    }
    if (n->room < bytes) {
        TRY(gpu_event_wait(n->done)); /* what goes there now */
        gpu_host_free(side->gpu, n->copy);
        n->copy = NULL;
        n->room = 0;
        TRY(gpu_host_alloc(side->gpu, bytes, &n->copy));
        n->room = bytes;
    }
    *out = n;
    return OK;
}

Status gpu_numbers_fetch(GpuStream *stream, GpuStream *from_stream, const void *from, size_t bytes,
                         const void *owner)
{
    GpuSide *side;
    Numbers *n = NULL;
    TRY(side_of(stream, &side));
    TRY(make_numbers(side, from, bytes, &n));
    n->from = from;
    n->owner = owner;
    n->there = false;
    TRY(gpu_read_later(from_stream, n->copy, from, bytes));
    return gpu_event_record(n->done, from_stream);
}

Status gpu_numbers_find(GpuStream *stream, const void *from, const void **numbers)
{
    GpuSide *side;
    TRY(side_of(stream, &side));
    Numbers *n = from ? find_numbers(side, from) : NULL;
    if (!n) return fail(ERR_ARG, "the host was not told these numbers of the device");
    if (!n->there) TRY(gpu_stream_wait_until(stream, n->done));
    n->there = true;
    *numbers = n->copy;
    return OK;
}

void gpu_numbers_drop(GpuStream *stream, const void *owner)
{
    GpuSide *side = *gpu_stream_side(stream);
    for (size_t i = 0; side && i < side->numbers.n; i++)
        if (side->numbers.at[i].owner == owner) side->numbers.at[i].from = NULL;
}
