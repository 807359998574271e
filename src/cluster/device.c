/* Curves of a device's sheet: how near to its peaks it comes. */
#include "cluster/cluster.h"

#include <math.h>
#include <string.h>

MathKind cluster_math(DType dtype)
{
    switch (dtype) {
    case DTYPE_BF16:
    case DTYPE_F16: return MATH_BF16;
    case DTYPE_F8_E4M3:
    case DTYPE_F8_E5M2: return MATH_FP8;
    default: return MATH_F32;
    }
}

const char *cluster_math_name(MathKind math)
{
    static const char *const names[] = {"f32", "bf16", "fp8"};
    return names[math];
}

static double ceil_div(double a, double b) { return ceil(a / b); }

/* Share of useful elements in the waves of tiles that the units compute. */
static double tile_fill(double m, double n, double tile_m, double tile_n, double units)
{
    double waves = ceil_div(ceil_div(m, tile_m) * ceil_div(n, tile_n), units);
    return m * n / (waves * units * tile_m * tile_n);
}

double cluster_matrix_efficiency(const DeviceSheet *d, MathKind math, int64_t m, int64_t n,
                                 int64_t k)
{
    const MatrixCurve *curve = &d->matrix[math];
    double units = (double)d->units, tile_m = (double)d->tile_m, tile_n = (double)d->tile_n;
    double rows = (double)m, columns = (double)n, inner = (double)k;
    double half_m = fmax(1, tile_m / 2), half_n = fmax(1, tile_n / 2);
    double fill = tile_fill(rows, columns, tile_m, tile_n, units);
    fill = fmax(fill, tile_fill(rows, columns, tile_m, half_n, units));
    fill = fmax(fill, tile_fill(rows, columns, half_m, half_n, units));
    bool aligned = m % d->align == 0 && n % d->align == 0 && k % d->align == 0;
    return curve->eta_inf * fill * inner / (inner + curve->k_half) * (aligned ? 1 : d->unaligned);
}

double cluster_attention_efficiency(const DeviceSheet *d, int64_t head_dim, double keys,
                                    bool backward)
{
    const AttentionCurve *a = &d->attention;
    double head = (double)head_dim;
    return a->eta_inf * head / (head + a->head_half) * keys / (keys + a->keys_half) *
           (backward ? a->backward : 1);
}

double cluster_memory_efficiency(const DeviceSheet *d, double bytes)
{
    return d->memory.eta * bytes / (bytes + d->memory.half_bytes);
}

double cluster_matrix_flop_per_s(const DeviceSheet *d, MathKind math, double element_bytes,
                                 int64_t m, int64_t n, int64_t k)
{
    double flop = 2.0 * (double)m * (double)n * (double)k;
    /* operands in their own type, the result in 16 bits at least */
    double bytes = ((double)m * (double)k + (double)k * (double)n) * element_bytes +
                   (double)m * (double)n * fmax(2, element_bytes);
    double compute_s = flop / (d->matrix[math].peak_flop_per_s *
                               cluster_matrix_efficiency(d, math, m, n, k));
    double memory_s = bytes / (d->memory.bytes_per_s * cluster_memory_efficiency(d, bytes));
    return flop / (d->launch_s + fmax(compute_s, memory_s));
}

/* That of the type itself, else one for any type. */
static const OpRate *find_rate(const DeviceSheet *d, const char *op, MathKind math)
{
    const OpRate *any = NULL;
    for (int i = 0; i < d->n_ops; i++) {
        if (strcmp(d->op[i].op, op) != 0) continue;
        if ((int)d->op[i].math == 1 + (int)math) return &d->op[i];
        if (d->op[i].math == OP_ANY) any = &d->op[i];
    }
    return any;
}

/* Of fewer threads than all cores: each adds as much as the next. */
static double team_speed(const DeviceSheet *d, const OpRate *rate)
{
    double share = d->cores > 1 ? (d->threads - 1) / (double)(d->cores - 1) : 1;
    return 1 + (rate->team_speed - 1) * share;
}

double cluster_op_s(const DeviceSheet *d, const char *op, MathKind math, double flop, double bytes)
{
    const OpRate *rate = find_rate(d, op, math);
    if (!rate) return -1;
    double s = (rate->flop_per_s > 0 ? flop / rate->flop_per_s : 0) +
               (rate->bytes_per_s > 0 ? bytes / rate->bytes_per_s : 0);
    if (d->threads > 1 && rate->team_speed > 0) return rate->team_s + s / team_speed(d, rate);
    return rate->fixed_s + s / (d->op_speed > 0 ? d->op_speed : 1);
}

DeviceSheet cluster_share(const DeviceSheet *device, int64_t ranks)
{
    DeviceSheet d = *device;
    if (d.cores == 0 || ranks < 1) return d;
    double threads = floor((double)d.cores / (double)ranks), speed;
    if (threads < 1)
        speed = (double)d.cores / (double)ranks;
    else {
        /* what a team of t threads loses grows with t, up to that of all cores */
        double loss = d.cores > 1 ? (1 - d.team_eta) * (threads - 1) / (double)(d.cores - 1) : 0;
        speed = threads * (1 - loss);
    }
    for (int i = 0; i < MATH_KINDS; i++) d.matrix[i].peak_flop_per_s *= speed;
    d.memory.bytes_per_s *= speed;
    d.memory.bytes /= (double)ranks;
    d.op_speed = speed;
    d.threads = fmax(1, threads);
    return d;
}
