/* The cpu device: which instruction sets this processor has. */
#include "device/device_internal.h"

#include <stdlib.h>
#include <string.h>

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

Status device_create_cpu(CpuOptions options, Device **out)
{
    Device *device = xcalloc(1, sizeof *device);
    char name[49];
    processor_name(name);
    device->target.isa = cpu_best_isa();
    if (options.limit_isa && options.max_isa < device->target.isa)
        device->target.isa = options.max_isa;
    device_join(device, options.world, options.mesh);
    device->target.threads = options.threads > 0 ? options.threads : cpu_count();
    snprintf(device->text, sizeof device->text, "%s, %d thread%s, %s", name + strspn(name, " "),
             device->target.threads, device->target.threads == 1 ? "" : "s",
             isa_name(device->target.isa));
    *out = device;
    return OK;
}
