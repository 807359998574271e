/* A calibration as a cluster's file. */
#include "calibrate/calibrate_internal.h"

#include <math.h>
#include <string.h>

const char *calibrate_math_word(enum OpMath math)
{
    return math == OP_ANY ? "any" : cluster_math_name((MathKind)((int)math - 1));
}

static void add_matrix(const Calibration *c, MathKind math, Str *out)
{
    const MatrixCurve *m = &c->matrix[math];
    if (!(m->peak_flop_per_s > 0)) return;
    str_printf(out, "  %s: {peak_flop_per_s: %.6g, eta_inf: %.4g, k_half: %.4g}\n",
               cluster_math_name(math), m->peak_flop_per_s, m->eta_inf, m->k_half);
}

/* Of attention's ops the speed at large sizes, as a share of the peak that the curve refers to. */
static double attention_share(const Calibration *c, const char *op)
{
    double best = 0, peak = c->peak_flop_per_s[MATH_BF16];
    for (int i = 0; i < c->n_fits; i++)
        if (!strcmp(c->fit[i].rate.op, op)) best = fmax(best, c->fit[i].rate.flop_per_s / peak);
    return best;
}

static void add_attention(const Calibration *c, Str *out)
{
    double forward = attention_share(c, "attention"),
           backward = attention_share(c, "attention_grad");
    if (forward > 0)
        str_printf(out,
                   "  attention: {eta_inf: %.4g, head_half: 0, keys_half: 0, backward: %.4g}\n",
                   fmin(2, fmax(0.001, forward)),
                   backward > 0 ? fmin(2, fmax(0.05, backward / forward)) : 1);
}

static void add_ops(const Calibration *c, Str *out)
{
    str_add(out, "  ops:\n");
    for (int i = 0; i < c->n_fits; i++) {
        const OpFit *f = &c->fit[i];
        str_printf(out,
                   "    - {op: %s, math: %s, fixed_s: %.4g, flop_per_s: %.4g, bytes_per_s: %.4g, "
                   "team_s: %.4g, team_speed: %.4g}\n",
                   f->rate.op, calibrate_math_word(f->rate.math), f->rate.fixed_s,
                   f->rate.flop_per_s, f->rate.bytes_per_s, f->rate.team_s, f->rate.team_speed);
    }
}

static void add_network(const Calibration *c, Str *out)
{
    str_printf(out, "network:\n  source: \"%s: all-reduce among %d ranks, %s\"\n", c->machine,
               c->exchange_ranks, c->transport);
    for (int i = 0; i < 2; i++)
        str_printf(out, "  %s: {base_s: %.4g, link_hop_s: %.4g, network_hop_s: %.4g}\n",
                   i ? "tree" : "ring", c->exchange_base_s, c->exchange_hop_s, c->exchange_hop_s);
    str_add(
        out,
        "  tree_eta: 1\n  message_s: 0\n  derating: 1\n  compute_taken: 0\n  memory_taken: 0\n");
    str_add(out, "  switch_price_usd: 0\n  optics_price_usd: 0\n  device_w: 0\n");
}

void calibrate_sheet(const Calibration *c, Str *out)
{
    str_printf(out, "about: this machine, %d cores\n", c->cores);
    str_add(out, "nodes: 1\ndevice:\n  name: cpu\n");
    str_printf(out, "  about: one of %d cores while all are busy\n  source: \"%s\"\n", c->cores,
               c->machine);
    for (int i = 0; i < MATH_KINDS; i++) add_matrix(c, (MathKind)i, out);
    str_add(out, "  units: 1\n  tile_m: 1\n  tile_n: 1\n");
    add_attention(c, out);
    str_printf(out, "  memory: {bytes: %.0f, bytes_per_s: %.6g, eta: %.4g}\n", c->memory_bytes,
               c->read_bytes_per_s, fmin(1, fmax(0.01, c->copy_bytes_per_s / c->read_bytes_per_s)));
    str_printf(out, "  cores: %d\n  team_eta: %.4g\n", c->cores, fmin(4, fmax(0.01, c->team_eta)));
    if (c->exchange_ranks)
        str_printf(out, "  link_bytes_per_s: %.6g\n  link_eta: 1\n", c->exchange_bytes_per_s);
    add_ops(c, out);
    str_printf(out, "node: {source: \"%s\", devices: %d, host_memory_bytes: %.0f}\n", c->machine,
               c->cores, c->memory_bytes);
    if (c->exchange_ranks) add_network(c, out);
}
