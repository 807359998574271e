/* The most that a device's products can reach: what shares of the peak are counted of. */
#include "cluster/cluster.h"
#include "device/device_internal.h"
#include "ops/probe.h"

#include <string.h>

/* The preset whose sheet is that of the GPU that calls itself so; longer names stand before those
 * that they contain. */
static const char *preset_of(const char *name)
{
    static const struct {
        const char *word, *preset;
    } known[] = {{"GB200", "gb200"}, {"B200", "b200"}, {"H200", "h200"},
                 {"H800", "h800"},   {"H100", "h100"}, {"A100", "a100"}};
    for (int i = 0; i < COUNT_OF(known); i++)
        if (strstr(name, known[i].word)) return known[i].preset;
    return NULL;
}

const char *device_preset(const Device *device)
{
    return device->gpu ? preset_of(gpu_info(device->gpu)->name) : NULL;
}

static Status peak_of_sheet(const char *name, DType dtype, double *peak)
{
    const char *preset = preset_of(name);
    Cluster cluster;
    *peak = 0;
    if (!preset) return OK;
    TRY(cluster_load(preset, &cluster));
    *peak = cluster.device.matrix[cluster_math(dtype)].peak_flop_per_s;
    cluster_deinit(&cluster);
    return OK;
}

Status device_peak_flop_per_s(const Device *device, DType dtype, double *peak)
{
    const double probe_s = 0.03;
    if (device->gpu) return peak_of_sheet(gpu_info(device->gpu)->name, dtype, peak);
    *peak = probe_peak_flop_per_s(device->target.isa, dtype, device->target.threads, probe_s);
    return OK;
}
