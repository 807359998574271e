/* The emulated device: memory that the host cannot touch, streams of work that waits until somebody
 * waits for it. */
#include "gpu/emulated_internal.h"
#include "gpu/no_exchange.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

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
    int open; /* how many runs of work have its memory open */
    size_t used;
};

typedef struct Item {
    EmulatedWork *work;
    void *context;
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
    unsigned launches;
    GpuLook *look;
    void *look_context;
    Status status; /* of what was run; an error stays, as on a device */
    char error[512];
};

struct GpuEvent {
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
    *out = gpu;
    return OK;
}

void gpu_close(Gpu *gpu)
{
    if (!gpu) return;
    VEC_FREE(&gpu->memory);
    VEC_FREE(&gpu->stream);
    free(gpu);
}

const GpuInfo *gpu_info(const Gpu *gpu) { return &gpu->info; }

size_t gpu_free_bytes(Gpu *gpu) { return gpu->info.memory_bytes - gpu->used; }

const char *gpu_libraries(Gpu *gpu)
{
    (void)gpu;
    return "no libraries: products are plain loops";
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
    open_memory(gpu);
    if (gpu->open) protect(&memory, true);
    memset(memory.at, 0xff, bytes); /* what a device's memory holds is anything */
    VEC_PUSH(&gpu->memory, memory);
    close_memory(gpu);
    gpu->used += bytes;
    *out = memory.at;
    return OK;
}

static void forget(Gpu *gpu, void *at, bool host)
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

/* As CUDA does: memory is not given back under work that is on its way. Errors stay with the
 * streams. */
static void wait_for_all(Gpu *gpu)
{
    for (size_t i = 0; i < gpu->stream.n; i++) {
        Status ignored = gpu_stream_wait(gpu->stream.at[i]);
        (void)ignored;
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
    VEC_PUSH(&gpu->memory, ((Memory){.at = *out, .bytes = bytes, .host = true}));
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
    VEC_PUSH(&gpu->stream, *stream);
    return OK;
}

static void items_free(Item *item, size_t n)
{
    for (size_t i = 0; i < n; i++) free(item[i].context);
}

void gpu_stream_destroy(GpuStream *stream)
{
    if (!stream) return;
    gpu_side_destroy(stream->side);
    Gpu *gpu = stream->gpu;
    for (size_t i = 0; i < gpu->stream.n; i++)
        if (gpu->stream.at[i] == stream) gpu->stream.at[i--] = gpu->stream.at[--gpu->stream.n];
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

Status emulated_submit(GpuStream *stream, EmulatedWork *work, const void *context, size_t bytes)
{
    Item item = {.work = work, .context = xmalloc(bytes + 1)};
    memcpy(item.context, context, bytes);
    if (stream->capture)
        VEC_PUSH(&stream->capture->item, item);
    else
        VEC_PUSH(&stream->item, item);
    return OK;
}

/* Takes the next item off and runs it: another one that waits for this stream may come in between.
 */
static void run_next(GpuStream *stream)
{
    Item item = stream->item.at[stream->next++];
    if (stream->status == OK) {
        stream->status = item.work(stream, item.context);
        if (stream->status != OK)
            snprintf(stream->error, sizeof stream->error, "%s", status_message());
    }
    free(item.context);
}

static Status state_of(const GpuStream *stream)
{
    return stream->status == OK ? OK : fail(stream->status, "%s", stream->error);
}

Status gpu_stream_wait(GpuStream *stream)
{
    if (stream->capture)
        return fail(ERR_DEVICE, "a stream was waited for while its work is captured");
    if (stream->look) TRY(stream->look(stream->look_context));
    open_memory(stream->gpu);
    while (stream->next < stream->item.n) run_next(stream);
    close_memory(stream->gpu);
    stream->next = stream->item.n = 0;
    return state_of(stream);
}

/* ---- copies ------------------------------------------------------------------------------- */

typedef struct CopyRows {
    char *to;
    const char *from;
    size_t to_pitch, from_pitch, bytes, rows;
} CopyRows;

static Status copy_rows_work(GpuStream *stream, void *context)
{
    (void)stream;
    const CopyRows *c = context;
    for (size_t i = 0; i < c->rows; i++)
        memcpy(c->to + i * c->to_pitch, c->from + i * c->from_pitch, c->bytes);
    return OK;
}

Status gpu_copy_rows(GpuStream *stream, void *to, size_t to_pitch, const void *from,
                     size_t from_pitch, size_t bytes, size_t rows)
{
    CopyRows copy = {to, from, to_pitch, from_pitch, bytes, rows};
    return bytes && rows ? emulated_submit(stream, copy_rows_work, &copy, sizeof copy) : OK;
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

Status gpu_read(GpuStream *stream, void *host, const void *from, size_t bytes)
{
    TRY(gpu_copy(stream, host, from, bytes));
    return gpu_stream_wait(stream);
}

/* ---- events ------------------------------------------------------------------------------- */

static Status event_work(GpuStream *stream, void *context)
{
    (void)stream;
    GpuEvent *event = *(GpuEvent **)context;
    event->at_s = clock_s();
    event->passed++;
    return OK;
}

/* The event's stream goes on to it. One that waits for what comes behind itself waits for ever. */
static Status reach(GpuEvent *event, int64_t time)
{
    while (event->passed < time) {
        if (event->stream->next >= event->stream->item.n)
            return fail(ERR_DEVICE, "a stream waits for an event that does not come");
        run_next(event->stream);
        TRY(state_of(event->stream));
    }
    return OK;
}

typedef struct WaitFor {
    GpuEvent *event;
    int64_t time; /* its last record when the wait was put on the stream */
} WaitFor;

static Status wait_work(GpuStream *stream, void *context)
{
    (void)stream;
    const WaitFor *wait = context;
    return reach(wait->event, wait->time);
}

Status gpu_event_create(Gpu *gpu, GpuEvent **event)
{
    (void)gpu;
    *event = xcalloc(1, sizeof **event);
    return OK;
}
void gpu_event_destroy(GpuEvent *event) { free(event); }

Status gpu_event_record(GpuEvent *event, GpuStream *stream)
{
    event->stream = stream;
    event->recorded++;
    return emulated_submit(stream, event_work, &event, sizeof(GpuEvent *));
}

Status gpu_event_look(GpuEvent *event, bool *done)
{
    *done = event->passed == event->recorded;
    return OK;
}

Status gpu_event_wait(GpuEvent *event)
{
    if (!event->stream) return OK;
    open_memory(event->stream->gpu);
    Status status = reach(event, event->recorded);
    close_memory(event->stream->gpu);
    return status;
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

static Status graph_work(GpuStream *stream, void *context)
{
    const GpuGraph *graph = *(GpuGraph **)context;
    for (size_t i = 0; i < graph->item.n; i++)
        TRY(graph->item.at[i].work(stream, graph->item.at[i].context));
    return OK;
}

Status gpu_graph_launch(GpuGraph *graph, GpuStream *stream)
{
    return emulated_submit(stream, graph_work, &graph, sizeof(GpuGraph *));
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

Status emulated_launch(GpuStream *stream, const char *kernel, const unsigned grid[3],
                       const unsigned block[3], size_t shared_bytes, void (*body)(void *),
                       const void *context, size_t context_bytes)
{
    EmulatedLaunch *launch = xmalloc(sizeof *launch + context_bytes);
    *launch = (EmulatedLaunch){.kernel = kernel, .shared_bytes = shared_bytes, .body = body};
    memcpy(launch->grid, grid, sizeof launch->grid);
    memcpy(launch->block, block, sizeof launch->block);
    memcpy(launch + 1, context, context_bytes);
    Status status = emulated_submit(stream, launch_work, launch, sizeof *launch + context_bytes);
    free(launch);
    return status;
}
