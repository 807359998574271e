/* What devices have in common: the ranks they belong to, and memory, of the host's or a GPU's. */
#include "device/device_internal.h"
#include "gpu/tune.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* The ranks that differ from this one along `axes` only. */
static Status find_group(Ranks *ranks, unsigned axes, Comm **group)
{
    Device *d = (Device *)ranks;
    if (!d->world)
        return fail(ERR_ARG, "the program is for %d ranks, but this device was made without peers",
                    mesh_ranks(&d->mesh));
    if (d->group[axes]) {
        *group = d->group[axes];
        return OK;
    }
    Str name = {0};
    int n = 0, all = mesh_ranks(&d->mesh), *member = xcalloc((size_t)all, sizeof *member);
    for (int a = 0; a < MESH_AXES; a++)
        if (axes >> a & 1)
            str_printf(&name, "%s%s", name.n ? "+" : "", mesh_axis_name((MeshAxis)a));
    for (int r = 0; r < all; r++) {
        Mesh other = mesh_at(&d->mesh, r);
        bool same = true;
        for (int a = 0; a < MESH_AXES; a++)
            same &= (axes >> a & 1) || other.coord[a] == d->mesh.coord[a];
        if (same) member[n++] = r;
    }
    Status status = comm_group(d->world, name.at, member, n, &d->group[axes]);
    if (status == OK) *group = d->group[axes];
    str_deinit(&name);
    free(member);
    return status;
}

Status device_group(Device *device, unsigned axes, Comm **group)
{
    return find_group(&device->ranks, axes, group);
}

void device_join(Device *device, Comm *world, Mesh mesh)
{
    device->ranks.group = find_group;
    device->world = world;
    device->mesh = mesh;
}

void device_destroy(Device *device)
{
    if (!device) return;
    if (device->gpu && device->world) comm_leave_gpu(device->world);
    gpu_stream_destroy(device->stream);
    gpu_close(device->gpu);
    free(device);
}

Target device_target(const Device *device) { return device->target; }
size_t device_allocated_bytes(const Device *device) { return device->allocated_bytes; }
size_t device_peak_bytes(const Device *device) { return device->peak_bytes; }
bool device_has_own_memory(const Device *device) { return device->gpu; }

size_t device_available_bytes(const Device *device)
{
    return device->gpu ? gpu_free_bytes(device->gpu) : memory_available_bytes();
}

Status device_check_fp8(const Device *device)
{
    return device->gpu ? gpu_check_8_bits(device->gpu) : OK;
}

Gpu *device_gpu(const Device *device) { return device->gpu; }

const char *device_text(const Device *device) { return device->text; }

/* Which of the host's GPUs is this process's: launchers number the ranks of a host. */
static int number_on_host(void)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID",
                                        "MPI_LOCALRANKID"};
    for (int i = 0; i < COUNT_OF(names); i++) {
        const char *text = getenv(names[i]);
        if (text && *text) return (int)strtol(text, NULL, 10);
    }
    return 0;
}

Status device_create(DeviceKind kind, CpuOptions options, Device **device)
{
    int n = kind == DEVICE_CPU ? 0 : gpu_count(NULL);
    if (kind == DEVICE_CPU || (kind == DEVICE_AUTO && (!n || gpu_is_emulated())))
        return device_create_cpu(options, device);
    Arena arena = {0};
    CudaOptions cuda = {.world = options.world, .mesh = options.mesh};
    if (n) cuda.index = number_on_host() % n;
    if (options.tune) cuda.choices = gpu_product_file(&arena);
    Status status = device_create_cuda(cuda, device);
    arena_deinit(&arena);
    return status;
}

/* ---- memory ------------------------------------------------------------------------------- */

enum { HUGE_PAGE = 2 << 20 };

/* Fresh zero pages; large regions start on a huge page, so that products walk few translations. */
static Status map_pages(size_t bytes, const char *what, DeviceMemory *region)
{
    size_t slack = bytes >= HUGE_PAGE ? HUGE_PAGE : 0;
    void *p = fault_hit("tensor_alloc") ? MAP_FAILED
                                        : mmap(NULL, bytes + slack, PROT_READ | PROT_WRITE,
                                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return fail(ERR_MEMORY, "no memory for %zu bytes of %s; %zu bytes are available", bytes,
                    what, memory_available_bytes());
    region->map = p;
    region->map_bytes = bytes + slack;
    region->host = slack ? (char *)p + (HUGE_PAGE - (uintptr_t)p % HUGE_PAGE) % HUGE_PAGE : p;
    if (slack) madvise(region->host, bytes, MADV_HUGEPAGE);
    return OK;
}

static void device_release(Device *device, DeviceMemory *region)
{
    if (device->gpu) gpu_free(device->gpu, region->at);
    if (region->map)
        munmap(region->map, region->map_bytes);
    else if (device->gpu)
        gpu_host_free(device->gpu, region->host);
    *region = (DeviceMemory){0};
}

static Status alloc_on_gpu(Device *device, const char *what, HostCopy copy, DeviceMemory *region)
{
    void *at, *host = NULL;
    TRY(gpu_alloc(device->gpu, region->bytes, what, &at));
    region->at = at;
    TRY(gpu_fill(device->stream, at, 0, region->bytes));
    if (copy == HOST_LAZY) return map_pages(region->bytes, what, region);
    if (copy == HOST_PINNED) TRY(gpu_host_alloc(device->gpu, region->bytes, &host));
    region->host = host;
    if (host) memset(host, 0, region->bytes);
    return OK;
}

/* The length handed out and counted is what was asked for. */
Status device_alloc(Device *device, size_t bytes, const char *what, HostCopy copy,
                    DeviceMemory *region)
{
    *region = (DeviceMemory){.bytes = bytes};
    if (bytes == 0) return OK;
    Status status = device->gpu ? alloc_on_gpu(device, what, copy, region)
                                : map_pages(bytes, what, region);
    if (status != OK) {
        device_release(device, region);
        return status;
    }
    if (!device->gpu) region->at = region->host;
    device->allocated_bytes += bytes;
    if (device->allocated_bytes > device->peak_bytes) device->peak_bytes = device->allocated_bytes;
    return OK;
}

void device_free(Device *device, DeviceMemory *region)
{
    if (region->at) device->allocated_bytes -= region->bytes;
    device_release(device, region);
}
