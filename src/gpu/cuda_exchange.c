/* Exchanges by NCCL. The library is loaded when it is first asked for: without it the host carries
 * data. Groups are made without blocking, so that a rank that does not come can be named. */
#include "gpu/cuda_internal.h"
#include "gpu/report.h"

#include <dlfcn.h>
#include <nccl.h>
#include <stdlib.h>
#include <string.h>

#define LIBRARY "libnccl.so.2"

#define FUNCTIONS(X)                                                                               \
    X(ncclGetUniqueId)                                                                             \
    X(ncclCommInitRankConfig)                                                                      \
    X(ncclCommGetAsyncError)                                                                       \
    X(ncclCommAbort)                                                                               \
    X(ncclAllReduce)                                                                               \
    X(ncclAllGather)                                                                               \
    X(ncclReduceScatter)                                                                           \
    X(ncclReduce)                                                                                  \
    X(ncclBroadcast)                                                                               \
    X(ncclSend)                                                                                    \
    X(ncclRecv)                                                                                    \
    X(ncclGroupStart)                                                                              \
    X(ncclGroupEnd)                                                                                \
    X(ncclGetErrorString)                                                                          \
    X(ncclGetVersion)

typedef struct Library {
    void *file;    /* NULL: it is not here */
    char text[32]; /* its version, in words */
#define X(name) __typeof__(&name) name;
    FUNCTIONS(X)
#undef X
} Library;

struct GpuGroup {
    const Library *library;
    GpuStream *stream;
    ncclComm_t nccl;
};

static bool open_library(Library *l)
{
    l->file = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!l->file) return false;
#define X(name)                                                                                    \
    *(void **)(void *)&l->name = dlsym(l->file, #name);                                            \
    if (!l->name) return false;
    FUNCTIONS(X)
#undef X
    return true;
}

static const Library *library_of(Gpu *gpu)
{
    if (!gpu->nccl) {
        Library *l = xcalloc(1, sizeof *l);
        if (!open_library(l)) {
            if (l->file) dlclose(l->file);
            l->file = NULL;
        }
        gpu->nccl = l;
    }
    return gpu->nccl;
}

void cuda_exchange_close(Gpu *gpu)
{
    Library *l = gpu->nccl;
    if (l && l->file) dlclose(l->file);
    free(l);
    gpu->nccl = NULL;
}

bool gpu_can_exchange(Gpu *gpu) { return library_of(gpu)->file; }

const char *gpu_exchange_library(Gpu *gpu)
{
    int version = 0;
    if (!gpu_can_exchange(gpu))
        return "no " LIBRARY ": several GPUs exchange through the host; install NCCL or set "
               "LD_LIBRARY_PATH";
    Library *l = gpu->nccl;
    if (l->ncclGetVersion(&version) != ncclSuccess) return "NCCL of an unknown version";
    snprintf(l->text, sizeof l->text, "NCCL %d.%d.%d", version / 10000, version / 100 % 100,
             version % 100);
    return l->text;
}

static Status check(const Library *l, ncclResult_t error, const char *what)
{
    if (error == ncclSuccess || error == ncclInProgress) return OK;
    return fail(ERR_COMM, "%s: NCCL: %s", what, l->ncclGetErrorString(error));
}

Status gpu_group_id(Gpu *gpu, uint8_t id[GPU_GROUP_ID_BYTES])
{
    const Library *l = library_of(gpu);
    ncclUniqueId made;
    if (!l->file)
        return fail(ERR_UNSUPPORTED, "%s is not found: install NCCL or set LD_LIBRARY_PATH",
                    LIBRARY);
    TRY(check(l, l->ncclGetUniqueId(&made), "beginning a group"));
    memcpy(id, &made, GPU_GROUP_ID_BYTES);
    return OK;
}

Status gpu_group_create(GpuStream *stream, const uint8_t id[GPU_GROUP_ID_BYTES], int n, int rank,
                        GpuGroup **out)
{
    const Library *l = library_of(stream->gpu);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ncclUniqueId made;
    config.blocking = 0;
    memcpy(&made, id, GPU_GROUP_ID_BYTES);
    TRY(cuda_check(cudaSetDevice(stream->gpu->info.index), "choosing a GPU"));
    GpuGroup *group = xcalloc(1, sizeof *group);
    group->library = l;
    group->stream = stream;
    Status status = check(l, l->ncclCommInitRankConfig(&group->nccl, n, made, rank, &config),
                          "joining a group");
    if (status != OK) {
        free(group);
        return status;
    }
    *out = group;
    return OK;
}

void gpu_group_destroy(GpuGroup *group)
{
    if (!group) return;
    if (group->nccl) (void)group->library->ncclCommAbort(group->nccl);
    free(group);
}

Status gpu_group_look(GpuGroup *group, bool *ready)
{
    ncclResult_t error = ncclSuccess;
    *ready = false;
    TRY(check(group->library, group->library->ncclCommGetAsyncError(group->nccl, &error),
              "looking at a group"));
    *ready = error == ncclSuccess;
    return check(group->library, error, "a peer or the network failed");
}

/* ---- operations --------------------------------------------------------------------------- */

/* Types that are only moved go as bytes. */
static ncclDataType_t type_of(DType dtype, int64_t *count)
{
    switch (dtype) {
    case DTYPE_F32: return ncclFloat32;
    case DTYPE_BF16: return ncclBfloat16;
    case DTYPE_I32: return ncclInt32;
    default: *count *= (int64_t)dtype_bytes(dtype); return ncclUint8;
    }
}

static ncclRedOp_t reduction_of(GpuReduce reduce)
{
    return reduce == GPU_MAX ? ncclMax : reduce == GPU_MIN ? ncclMin : ncclSum;
}

Status gpu_all_reduce(GpuGroup *g, const void *send, void *recv, int64_t count, DType dtype,
                      GpuReduce reduce)
{
    ncclDataType_t type = type_of(dtype, &count);
    return check(g->library,
                 g->library->ncclAllReduce(send, recv, (size_t)count, type, reduction_of(reduce),
                                           g->nccl, g->stream->cuda),
                 "all_reduce");
}

Status gpu_all_gather(GpuGroup *g, const void *send, void *recv, int64_t count, DType dtype)
{
    ncclDataType_t type = type_of(dtype, &count);
    return check(
        g->library,
        g->library->ncclAllGather(send, recv, (size_t)count, type, g->nccl, g->stream->cuda),
        "all_gather");
}

Status gpu_reduce_scatter(GpuGroup *g, const void *send, void *recv, int64_t count, DType dtype)
{
    ncclDataType_t type = type_of(dtype, &count);
    return check(g->library,
                 g->library->ncclReduceScatter(send, recv, (size_t)count, type, ncclSum, g->nccl,
                                               g->stream->cuda),
                 "reduce_scatter");
}

Status gpu_reduce(GpuGroup *g, const void *send, void *recv, int64_t count, DType dtype, int root)
{
    ncclDataType_t type = type_of(dtype, &count);
    return check(g->library,
                 g->library->ncclReduce(send, recv, (size_t)count, type, ncclSum, root, g->nccl,
                                        g->stream->cuda),
                 "reduce");
}

Status gpu_broadcast(GpuGroup *g, const void *send, void *recv, int64_t count, DType dtype,
                     int root)
{
    ncclDataType_t type = type_of(dtype, &count);
    return check(
        g->library,
        g->library->ncclBroadcast(send, recv, (size_t)count, type, root, g->nccl, g->stream->cuda),
        "broadcast");
}

Status gpu_batch_begin(GpuGroup *g)
{
    return check(g->library, g->library->ncclGroupStart(), "sends and receives");
}

Status gpu_batch_end(GpuGroup *g)
{
    return check(g->library, g->library->ncclGroupEnd(), "sends and receives");
}

Status gpu_send(GpuGroup *g, const void *data, int64_t count, DType dtype, int to)
{
    ncclDataType_t type = type_of(dtype, &count);
    return check(g->library,
                 g->library->ncclSend(data, (size_t)count, type, to, g->nccl, g->stream->cuda),
                 "send");
}

Status gpu_recv(GpuGroup *g, void *data, int64_t count, DType dtype, int from)
{
    ncclDataType_t type = type_of(dtype, &count);
    return check(g->library,
                 g->library->ncclRecv(data, (size_t)count, type, from, g->nccl, g->stream->cuda),
                 "recv");
}
