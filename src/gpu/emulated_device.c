/* The emulated device: memory that the host cannot touch, streams of work that waits until somebody
 * waits for it. */
#include "gpu/choices.h"
#include "gpu/emulated_internal.h"
#include "gpu/numbers.h"
#include "gpu/report.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { MEMORY_ALIGN = 256, PAGE = 4096, LARGE = 4 << 20 };

typedef struct Memory {
    void *at;
    size_t bytes, map_bytes;
    bool host;
} Memory;

struct Gpu {
    GpuInfo info;
    VEC(Memory) memory;
    VEC(GpuStream *) stream;
    VEC(GpuEvent *) event; /* given up while work may still pass them */
    bool exchanges;
    int open; /* how many runs of work have its memory open */
    size_t used;
    double worked_s; /* the device's clock: processor time of all that was run on it, so that who
                        measures with it does not measure what else the machine does */
    GpuChoices choices;
};

typedef struct Item {
    EmulatedWork *work;
    void *context;
    bool borrowed; /* a captured graph's */
} Item;

struct GpuGraph {
    VEC(Item) item;
};

struct GpuStream {
    Gpu *gpu;
    VEC(Item) item;
    size_t next; /* of the items, that was not begun yet */
    GpuSide *side;
    GpuGraph *capture;
    bool not_yet; /* what runs now must be run again */
    unsigned launches;
    GpuLook *look;
    void *look_context;
    Status status; /* of what was run; an error stays, as on a device */
    char error[512];
};

struct GpuEvent {
    Gpu *gpu;
    GpuStream *stream;        /* it was recorded on; NULL: never */
    int64_t recorded, passed; /* how often */
    double at_s;
};

int gpu_count(const char **why)
{
    if (why) *why = NULL;
    return 1;
}

bool gpu_is_emulated(void) { return true; }

Status gpu_open(int index, Gpu **out)
{
    if (index) return fail(ERR_UNSUPPORTED, "there is no emulated GPU %d", index);
    Gpu *gpu = xcalloc(1, sizeof *gpu);
    gpu->info = (GpuInfo){.name = "emulated GPU",
                          .major = 9,
                          .multiprocessors = 4,
                          .shared_bytes = 227 << 10,
                          .driver = 13000,
                          .runtime = 13000,
                          .clock_mhz = 1,
                          .memory_clock_mhz = 1,
                          .memory_bytes = (size_t)4 << 30,
                          .free_bytes = (size_t)4 << 30,
                          .l2_bytes = 1 << 20};
    gpu->exchanges = emulated_exchanges();
    if (gpu->exchanges) gpu->info.index = emulated_join(gpu);
    *out = gpu;
    return OK;
}

void gpu_close(Gpu *gpu)
{
    if (!gpu) return;
    if (gpu->exchanges) emulated_part(gpu);
    for (size_t i = 0; i < gpu->event.n; i++) free(gpu->event.at[i]);
    VEC_FREE(&gpu->event);
    VEC_FREE(&gpu->memory);
    VEC_FREE(&gpu->stream);
    gpu_choices_deinit(&gpu->choices);
    free(gpu);
}

const GpuInfo *gpu_info(const Gpu *gpu) { return &gpu->info; }

GpuChoices *gpu_choices(Gpu *gpu) { return &gpu->choices; }

Status gpu_peer(int from, int to, GpuPeer *peer)
{
    if (from || to) return fail(ERR_UNSUPPORTED, "there is one emulated GPU");
    *peer = (GpuPeer){.direct = true, .atomics = true};
    return OK;
}

size_t gpu_free_bytes(Gpu *gpu) { return gpu->info.memory_bytes - gpu->used; }

const char *gpu_libraries(Gpu *gpu)
{
    (void)gpu;
    return "no libraries: products are plain loops";
}

const char *gpu_exchange_library(Gpu *gpu)
{
    (void)gpu;
    return "no NCCL: emulated GPUs exchange as threads do";
}

/* ---- memory ------------------------------------------------------------------------------- */

/* With the address sanitizer memory comes from its own allocator, which sees accesses outside;
 * else the host may touch it only while work runs. */
#if defined(__SANITIZE_ADDRESS__)
static void *map_memory(Memory *memory)
{
    return aligned_alloc(MEMORY_ALIGN, round_up(memory->bytes, MEMORY_ALIGN));
}
static void unmap_memory(const Memory *memory) { free(memory->at); }
static void protect(const Memory *memory, bool open)
{
    (void)memory;
    (void)open;
}
#else
static void *map_memory(Memory *memory)
{
    memory->map_bytes = round_up(memory->bytes, PAGE);
    void *at = mmap(NULL, memory->map_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                    -1, 0);
    if (at == MAP_FAILED) return NULL;
    /* large pages, where there are some, are opened and closed in a fraction of the time */
    if (memory->map_bytes >= LARGE) (void)madvise(at, memory->map_bytes, MADV_HUGEPAGE);
    return at;
}
static void unmap_memory(const Memory *memory) { munmap(memory->at, memory->map_bytes); }
static void protect(const Memory *memory, bool open)
{
    CHECK(!mprotect(memory->at, memory->map_bytes, open ? PROT_READ | PROT_WRITE : PROT_NONE));
}
#endif

static void open_memory(Gpu *gpu)
{
    if (gpu->open++) return;
    for (size_t i = 0; i < gpu->memory.n; i++)
        if (!gpu->memory.at[i].host) protect(&gpu->memory.at[i], true);
}

static void close_memory(Gpu *gpu)
{
    if (--gpu->open) return;
    for (size_t i = 0; i < gpu->memory.n; i++)
        if (!gpu->memory.at[i].host) protect(&gpu->memory.at[i], false);
}

Status gpu_alloc(Gpu *gpu, size_t bytes, const char *what, void **out)
{
    *out = NULL;
    if (!bytes) return OK;
    Memory memory = {.bytes = bytes};
    if (!fault_hit("tensor_alloc") && gpu->used + bytes <= gpu->info.memory_bytes)
        memory.at = map_memory(&memory);
    if (!memory.at)
        return fail(ERR_MEMORY, "no GPU memory for %zu bytes of %s; %zu bytes are free", bytes,
                    what, gpu->info.memory_bytes - gpu->used);
    emulated_enter(gpu);
    open_memory(gpu);
    if (gpu->open) protect(&memory, true);
    memset(memory.at, 0xff, bytes); /* what a device's memory holds is anything */
    VEC_PUSH(&gpu->memory, memory);
    close_memory(gpu);
    emulated_leave(gpu);
    gpu->used += bytes;
    *out = memory.at;
    return OK;
}

static void forget_one(Gpu *gpu, void *at, bool host)
{
    for (size_t i = 0; i < gpu->memory.n; i++) {
        Memory *memory = &gpu->memory.at[i];
        if (memory->at != at || memory->host != host) continue;
        if (host)
            free(at);
        else
            unmap_memory(memory);
        if (!host) gpu->used -= memory->bytes;
        *memory = gpu->memory.at[--gpu->memory.n];
        return;
    }
    CHECK(!at);
}

/* That of streams whose wait was ended by what the host looked at: others would go on with it. */
static void give_up_work(Gpu *gpu)
{
    for (size_t i = 0; i < gpu->stream.n; i++) {
        GpuStream *stream = gpu->stream.at[i];
        if (stream->next == stream->item.n || stream->status != OK) continue;
        stream->status = ERR_DEVICE;
        snprintf(stream->error, sizeof stream->error, "memory was given back under work");
    }
}

static void forget(Gpu *gpu, void *at, bool host)
{
    emulated_enter(gpu);
    if (gpu->exchanges && at) give_up_work(gpu);
    forget_one(gpu, at, host);
    emulated_leave(gpu);
}

/* As CUDA does: memory is not given back under work that is on its way. Errors stay with the
 * streams, and what was told last stays told. */
static void wait_for_all(Gpu *gpu)
{
    char told[1024];
    snprintf(told, sizeof told, "%s", status_message());
    for (size_t i = 0; i < gpu->stream.n; i++) {
        Status ignored = gpu_stream_wait(gpu->stream.at[i]);
        if (ignored != OK) ignored = fail(ignored, "%s", told);
    }
}

void gpu_free(Gpu *gpu, void *memory)
{
    if (memory) wait_for_all(gpu);
    forget(gpu, memory, false);
}

void gpu_host_free(Gpu *gpu, void *memory)
{
    if (memory) wait_for_all(gpu);
    forget(gpu, memory, true);
}

Status gpu_host_alloc(Gpu *gpu, size_t bytes, void **out)
{
    *out = xmalloc(bytes + 1);
    emulated_enter(gpu);
    VEC_PUSH(&gpu->memory, ((Memory){.at = *out, .bytes = bytes, .host = true}));
    emulated_leave(gpu);
    return OK;
}

static bool is_pinned(const Gpu *gpu, const void *at, size_t bytes)
{
    for (size_t i = 0; i < gpu->memory.n; i++) {
        const Memory *m = &gpu->memory.at[i];
        const char *p = at, *begin = m->at;
        if (m->host && p >= begin && p + bytes <= begin + m->bytes) return true;
    }
    return false;
}

/* ---- streams ------------------------------------------------------------------------------ */

Status gpu_stream_create(Gpu *gpu, GpuStream **stream)
{
    *stream = xcalloc(1, sizeof **stream);
    (*stream)->gpu = gpu;
    emulated_enter(gpu);
    VEC_PUSH(&gpu->stream, *stream);
    emulated_leave(gpu);
    return OK;
}

static void items_free(Item *item, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!item[i].borrowed) free(item[i].context);
}

void gpu_stream_destroy(GpuStream *stream)
{
    if (!stream) return;
    gpu_side_destroy(stream->side);
    Gpu *gpu = stream->gpu;
    emulated_enter(gpu);
    for (size_t i = 0; i < gpu->stream.n; i++)
        if (gpu->stream.at[i] == stream) gpu->stream.at[i--] = gpu->stream.at[--gpu->stream.n];
    emulated_leave(gpu);
    items_free(stream->item.at + stream->next, stream->item.n - stream->next);
    VEC_FREE(&stream->item);
    free(stream);
}

void gpu_stream_on_wait(GpuStream *stream, GpuLook *look, void *context)
{
    stream->look = look;
    stream->look_context = context;
}

GpuSide **gpu_stream_side(GpuStream *stream) { return &stream->side; }

Gpu *gpu_stream_device(const GpuStream *stream) { return stream->gpu; }

static void push(GpuStream *stream, Item item)
{
    emulated_enter(stream->gpu);
    if (stream->capture)
        VEC_PUSH(&stream->capture->item, item);
    else
        VEC_PUSH(&stream->item, item);
    emulated_leave(stream->gpu);
}

Status emulated_submit(GpuStream *stream, EmulatedWork *work, const void *context, size_t bytes)
{
    Item item = {.work = work, .context = xmalloc(bytes + 1)};
    memcpy(item.context, context, bytes);
    push(stream, item);
    return OK;
}

void emulated_not_yet(GpuStream *stream) { stream->not_yet = true; }

static double thread_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Takes the next item off and runs it: another one that waits for this stream may come in between.
 * false: it is not to be done yet. */
static bool run_next(GpuStream *stream)
{
    Item item = stream->item.at[stream->next++];
    stream->not_yet = false;
    if (stream->status == OK) {
        /* work that runs in between is this thread's too */
        const double before_s = stream->gpu->worked_s, begin_s = thread_s();
        stream->status = item.work(stream, item.context);
        stream->gpu->worked_s = before_s + thread_s() - begin_s;
        if (stream->status != OK)
            snprintf(stream->error, sizeof stream->error, "%s", status_message());
    }
    if (stream->not_yet && stream->status == OK) {
        stream->next--;
        return false;
    }
    if (!item.borrowed) free(item.context);
    return true;
}

static Status state_of(const GpuStream *stream)
{
    return stream->status == OK ? OK : fail(stream->status, "%s", stream->error);
}

Status gpu_stream_wait(GpuStream *stream)
{
    if (stream->capture)
        return fail(ERR_DEVICE, "a stream was waited for while its work is captured");
    TRY(emulated_look(stream));
    if (stream->gpu->exchanges) {
        TRY(emulated_wait_together(stream, NULL, 0));
        return state_of(stream);
    }
    open_memory(stream->gpu);
    while (stream->next < stream->item.n) run_next(stream);
    close_memory(stream->gpu);
    stream->next = stream->item.n = 0;
    return state_of(stream);
}

/* ---- GPUs that exchange ------------------------------------------------------------------- */

bool gpu_can_exchange(Gpu *gpu) { return gpu->exchanges; }

void emulated_open(Gpu *gpu, bool open)
{
    if (open)
        open_memory(gpu);
    else
        close_memory(gpu);
}

Status emulated_look(const GpuStream *stream)
{
    return stream->look ? stream->look(stream->look_context) : OK;
}

bool emulated_go_on(Gpu *gpu)
{
    bool any = false;
    for (size_t i = 0; i < gpu->stream.n; i++) {
        GpuStream *stream = gpu->stream.at[i];
        while (stream->next < stream->item.n && run_next(stream)) any = true;
        if (stream->next == stream->item.n) stream->next = stream->item.n = 0;
    }
    return any;
}

bool emulated_is_done(const GpuStream *stream, const GpuEvent *event, int64_t time)
{
    return event ? event->passed >= time : stream->next == stream->item.n;
}

/* ---- copies ------------------------------------------------------------------------------- */

static Status copy_rows_work(GpuStream *stream, void *context)
{
    (void)stream;
    const GpuRows *r = context;
    for (size_t i = 0; i < r->rows; i++)
        memcpy((char *)r->to + i * r->to_pitch, (const char *)r->from + i * r->from_pitch,
               r->bytes);
    return OK;
}

Status gpu_copy_rows(GpuStream *stream, const GpuRows *rows)
{
    if (!rows->bytes || !rows->rows) return OK;
    return emulated_submit(stream, copy_rows_work, rows, sizeof *rows);
}

typedef struct Copy {
    void *to;
    const void *from; /* NULL: what follows this struct */
    size_t bytes;
    int byte;
} Copy;

static Status copy_work(GpuStream *stream, void *context)
{
    (void)stream;
    const Copy *copy = context;
    if (copy->bytes)
        memmove(copy->to, copy->from ? copy->from : (const void *)(copy + 1), copy->bytes);
    return OK;
}

static Status fill_work(GpuStream *stream, void *context)
{
    (void)stream;
    const Copy *copy = context;
    if (copy->bytes) memset(copy->to, copy->byte, copy->bytes);
    return OK;
}

Status gpu_copy(GpuStream *stream, void *to, const void *from, size_t bytes)
{
    return emulated_submit(stream, copy_work, &(Copy){.to = to, .from = from, .bytes = bytes},
                           sizeof(Copy));
}

Status gpu_fill(GpuStream *stream, void *to, int byte, size_t bytes)
{
    return emulated_submit(stream, fill_work, &(Copy){.to = to, .byte = byte, .bytes = bytes},
                           sizeof(Copy));
}

Status gpu_write(GpuStream *stream, void *to, const void *host, size_t bytes)
{
    if (is_pinned(stream->gpu, host, bytes)) return gpu_copy(stream, to, host, bytes);
    Copy *copy = xmalloc(sizeof *copy + bytes);
    *copy = (Copy){.to = to, .bytes = bytes};
    if (bytes) memcpy(copy + 1, host, bytes);
    Status status = emulated_submit(stream, copy_work, copy, sizeof *copy + bytes);
    free(copy);
    return status;
}

Status gpu_read_later(GpuStream *stream, void *host, const void *from, size_t bytes)
{
    CHECK(is_pinned(stream->gpu, host, bytes));
    return gpu_copy(stream, host, from, bytes);
}

Status gpu_read(GpuStream *stream, void *host, const void *from, size_t bytes)
{
    TRY(gpu_copy(stream, host, from, bytes));
    return gpu_stream_wait(stream);
}

/* ---- events ------------------------------------------------------------------------------- */

static Status event_work(GpuStream *stream, void *context)
{
    GpuEvent *event = *(GpuEvent **)context;
    event->at_s = stream->gpu->worked_s;
    event->passed++;
    return OK;
}

/* The event's stream goes on to it. One that waits for what comes behind itself waits for ever. */
static Status reach(GpuEvent *event, int64_t time)
{
    while (event->passed < time) {
        TRY(state_of(event->stream));
        if (event->stream->next >= event->stream->item.n)
            return fail(ERR_DEVICE, "a stream waits for an event that does not come");
        run_next(event->stream);
    }
    return OK;
}

typedef struct WaitFor {
    GpuEvent *event;
    int64_t time; /* its last record when the wait was put on the stream */
} WaitFor;

static Status wait_work(GpuStream *stream, void *context)
{
    const WaitFor *wait = context;
    if (!stream->gpu->exchanges) return reach(wait->event, wait->time);
    if (wait->event->passed < wait->time) {
        TRY(state_of(wait->event->stream));
        emulated_not_yet(stream);
    }
    return OK;
}

Status gpu_event_create(Gpu *gpu, GpuEvent **event)
{
    *event = xcalloc(1, sizeof **event);
    (*event)->gpu = gpu;
    return OK;
}

void gpu_event_destroy(GpuEvent *event)
{
    if (event && event->gpu->exchanges)
        VEC_PUSH(&event->gpu->event, event);
    else
        free(event);
}

Status gpu_event_record(GpuEvent *event, GpuStream *stream)
{
    event->stream = stream;
    event->recorded++;
    return emulated_submit(stream, event_work, &event, sizeof(GpuEvent *));
}

Status gpu_event_look(GpuEvent *event, bool *done)
{
    emulated_enter(event->gpu);
    *done = event->passed == event->recorded;
    emulated_leave(event->gpu);
    return OK;
}

Status gpu_event_wait(GpuEvent *event)
{
    if (!event->stream) return OK;
    if (event->gpu->exchanges) return emulated_wait_together(event->stream, event, event->recorded);
    open_memory(event->stream->gpu);
    Status status = reach(event, event->recorded);
    close_memory(event->stream->gpu);
    return status;
}

Status gpu_stream_wait_until(GpuStream *stream, GpuEvent *event)
{
    TRY(emulated_look(stream));
    if (event->gpu->exchanges) return emulated_wait_together(stream, event, event->recorded);
    return gpu_event_wait(event);
}

Status gpu_stream_wait_event(GpuStream *stream, GpuEvent *event)
{
    WaitFor wait = {event, event->recorded};
    return emulated_submit(stream, wait_work, &wait, sizeof wait);
}

Status gpu_event_ms(GpuEvent *from, GpuEvent *to, double *ms)
{
    *ms = (to->at_s - from->at_s) * 1e3;
    return OK;
}

/* ---- captured graphs ---------------------------------------------------------------------- */

Status gpu_capture_begin(GpuStream *stream)
{
    if (stream->capture) return fail(ERR_DEVICE, "the stream's work is captured already");
    stream->capture = xcalloc(1, sizeof *stream->capture);
    return OK;
}

Status gpu_capture_end(GpuStream *stream, GpuGraph **graph)
{
    if (!stream->capture) return fail(ERR_DEVICE, "the stream's work was not captured");
    *graph = stream->capture;
    stream->capture = NULL;
    return OK;
}

Status gpu_graph_launch(GpuGraph *graph, GpuStream *stream)
{
    for (size_t i = 0; i < graph->item.n; i++) {
        Item item = graph->item.at[i];
        item.borrowed = true;
        push(stream, item);
    }
    return OK;
}

void gpu_graph_destroy(GpuGraph *graph)
{
    if (!graph) return;
    items_free(graph->item.at, graph->item.n);
    VEC_FREE(&graph->item);
    free(graph);
}

/* ---- launches ----------------------------------------------------------------------------- */

static Status launch_work(GpuStream *stream, void *context)
{
    EmulatedLaunch *launch = context;
    launch->context = launch + 1;
    launch->order = (int)(stream->launches++ % 3);
    return emulated_run_blocks(launch);
}

Status emulated_launch(GpuStream *stream, const EmulatedLaunch *launch, size_t context_bytes)
{
    EmulatedLaunch *copy = xmalloc(sizeof *copy + context_bytes);
    *copy = *launch;
    memcpy(copy + 1, launch->context, context_bytes);
    Status status = emulated_submit(stream, launch_work, copy, sizeof *copy + context_bytes);
    free(copy);
    return status;
}
