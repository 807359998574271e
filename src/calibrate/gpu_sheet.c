/* A GPU's calibration as a cluster's file: one node of this machine. What is not measured here
 * (power, prices, NVLink's rates where there is one GPU) is that of the preset, where there is one.
 */
#include "calibrate/calibrate_internal.h"

#include <math.h>
#include <string.h>

static double share(double x) { return fmin(1, fmax(0.001, x)); }

static void add_matrix(const GpuCalibration *c, MathKind math, Str *out)
{
    const MatrixCurve *m = &c->sheet.matrix[math];
    if (!(c->best_flop_per_s[math] > 0)) return;
    str_printf(out, "  %s: {", cluster_math_name(math));
    if (!c->preset || c->best_flop_per_s[math] >= m->peak_flop_per_s)
        str_printf(out, "peak_flop_per_s: %.6g, ", m->peak_flop_per_s);
    str_printf(out, "eta_inf: %.4g, k_half: %.4g}\n", share(m->eta_inf), m->k_half);
}

/* Ops whose curves tell their times are left out: a law over flop and bytes knows no shapes. */
static bool has_curve(const char *op)
{
    static const char *const ops[] = {
        "linear",   "linear_dx",           "linear_dw", "linear_dw_accumulate",
        "linear_8", "linear_8_accumulate", "attention", "attention_grad"};
    for (int i = 0; i < COUNT_OF(ops); i++)
        if (!strcmp(op, ops[i])) return true;
    return false;
}

static void add_ops(const GpuCalibration *c, Str *out)
{
    bool any = false;
    for (int i = 0; i < c->n_fits; i++) {
        const OpRate *r = &c->fit[i].rate;
        if (has_curve(r->op)) continue;
        if (!any) str_add(out, "  ops:\n");
        any = true;
        str_printf(out,
                   "    - {op: %s, math: %s, fixed_s: %.4g, flop_per_s: %.4g, bytes_per_s: %.4g}\n",
                   r->op, calibrate_math_word(r->math), r->fixed_s, r->flop_per_s, r->bytes_per_s);
    }
}

static void add_device(const GpuCalibration *c, Str *out)
{
    const DeviceSheet *d = &c->sheet;
    str_printf(out, "device:\n  name: %s\n  about: \"%s\"\n  source: \"%s\"\n",
               c->preset ? c->preset : "gpu", c->info.name, c->machine);
    for (int i = 0; i < MATH_KINDS; i++) add_matrix(c, (MathKind)i, out);
    str_printf(out, "  units: %lld\n  tile_m: %lld\n  tile_n: %lld\n  align: %lld\n",
               (long long)d->units, (long long)d->tile_m, (long long)d->tile_n,
               (long long)d->align);
    str_printf(out, "  unaligned: %.4g\n", d->unaligned);
    str_printf(out,
               "  attention: {eta_inf: %.4g, head_half: %.4g, keys_half: %.4g, backward: %.4g}\n",
               d->attention.eta_inf, d->attention.head_half, d->attention.keys_half,
               d->attention.backward);
    str_printf(out, "  memory: {bytes: %.0f, ", (double)c->info.memory_bytes);
    if (!c->preset) str_printf(out, "bytes_per_s: %.6g, ", d->memory.bytes_per_s);
    str_printf(out, "eta: %.4g, half_bytes: %.6g}\n", d->memory.eta, d->memory.half_bytes);
    str_printf(out, "  launch_s: %.4g\n  host_launch_s: %.4g\n", d->launch_s, d->host_launch_s);
    if (c->exchange_bytes_per_s > 0)
        str_printf(out, "  link_bytes_per_s: %.6g\n  link_eta: 1\n", c->exchange_bytes_per_s);
    add_ops(c, out);
}

static void add_network(const GpuCalibration *c, Str *out)
{
    str_printf(out, "network:\n  source: \"%s: all-reduce among %d ranks\"\n", c->machine,
               c->exchange_ranks);
    for (int i = 0; i < 2; i++)
        str_printf(out, "  %s: {base_s: %.4g, link_hop_s: %.4g}\n", i ? "tree" : "ring",
                   c->exchange_base_s, c->exchange_hop_s);
}

void calibrate_gpu_sheet(const GpuCalibration *c, Str *out)
{
    str_printf(out, "about: this machine, %d x %s\n", c->gpus, c->info.name);
    if (c->preset) str_printf(out, "base: %s\n", c->preset);
    str_add(out, "nodes: 1\n");
    add_device(c, out);
    str_printf(out,
               "node: {source: \"%s\", devices: %d, link_domain: %d, pcie_bytes_per_s: %.6g, "
               "host_memory_bytes: %.0f}\n",
               c->machine, c->gpus, c->gpus,
               fmin(c->copy.write_bytes_per_s, c->copy.read_bytes_per_s), c->host_memory_bytes);
    if (c->exchange_ranks) add_network(c, out);
}
