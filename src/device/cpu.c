/* The cpu device: which instruction sets this processor has, and its memory. */
#include "device/device_internal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__x86_64__)
#include <cpuid.h>

static bool has_bf16(void)
{
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 5 & 1;
}

Isa cpu_best_isa(void)
{
    __builtin_cpu_init();
    bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("avx512vl");
    if (v4 && has_bf16() && __builtin_cpu_supports("avx512vnni")) return ISA_AVX512BF16;
    return v4 ? ISA_AVX512 : v3 ? ISA_AVX2 : ISA_GENERIC;
}

static void processor_name(char name[49])
{
    unsigned r[12] = {0};
    for (unsigned i = 0; i < 3; i++)
        __get_cpuid(0x80000002u + i, &r[4 * i], &r[4 * i + 1], &r[4 * i + 2], &r[4 * i + 3]);
    memcpy(name, r, 48);
    name[48] = 0;
}
#else
Isa cpu_best_isa(void) { return ISA_GENERIC; }
static void processor_name(char name[49]) { strncpy(name, "unknown processor", 49); }
#endif

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

Status device_create_cpu(CpuOptions options, Device **out)
{
    Device *device = xcalloc(1, sizeof *device);
    char name[49];
    processor_name(name);
    device->target.isa = cpu_best_isa();
    if (options.limit_isa && options.max_isa < device->target.isa)
        device->target.isa = options.max_isa;
    device->ranks.group = find_group;
    device->world = options.world;
    device->mesh = options.mesh;
    device->target.threads = options.threads > 0 ? options.threads : cpu_count();
    snprintf(device->text, sizeof device->text, "%s, %d thread%s, %s", name + strspn(name, " "),
             device->target.threads, device->target.threads == 1 ? "" : "s",
             isa_name(device->target.isa));
    *out = device;
    return OK;
}

void device_destroy(Device *device) { free(device); }
Target device_target(const Device *device) { return device->target; }
size_t device_allocated_bytes(const Device *device) { return device->allocated_bytes; }
size_t device_peak_bytes(const Device *device) { return device->peak_bytes; }
const char *device_text(const Device *device) { return device->text; }

enum { HUGE_PAGE = 2 << 20 };

/* Fresh zero pages; large regions start on a huge page, so that products walk few translations. The
 * length handed out and counted is what was asked for. */
Status device_alloc(Device *device, size_t bytes, const char *what, DeviceMemory *region)
{
    *region = (DeviceMemory){.bytes = bytes};
    if (bytes == 0) return OK;
    size_t slack = bytes >= HUGE_PAGE ? HUGE_PAGE : 0;
    void *p = fault_hit("tensor_alloc") ? MAP_FAILED
                                        : mmap(NULL, bytes + slack, PROT_READ | PROT_WRITE,
                                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return fail(ERR_MEMORY, "no memory for %zu bytes of %s; %zu bytes are available", bytes,
                    what, memory_available_bytes());
    region->map = p;
    region->map_bytes = bytes + slack;
    region->at = slack ? (char *)p + (HUGE_PAGE - (uintptr_t)p % HUGE_PAGE) % HUGE_PAGE : p;
    if (slack) madvise(region->at, bytes, MADV_HUGEPAGE);
    device->allocated_bytes += bytes;
    if (device->allocated_bytes > device->peak_bytes) device->peak_bytes = device->allocated_bytes;
    return OK;
}

void device_free(Device *device, DeviceMemory *region)
{
    if (region->map) munmap(region->map, region->map_bytes);
    if (region->map) device->allocated_bytes -= region->bytes;
    *region = (DeviceMemory){0};
}
