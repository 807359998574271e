/* How long a kernel takes on a device's sheet. Products and attention: the work over what the sheet
 * says the shape reaches, or the time to move the operands, whichever is longer (roofline, Williams
 * 2009); all else moves bytes. */
#include "device/sim.h"

#include <math.h>

static const double expert_tile_rows = 128; /* rows of one expert are padded to whole tiles */

static double least_one(double x) { return x < 1 ? 1 : x; }

static double move_s(const DeviceSheet *d, double bytes)
{
    if (bytes <= 0) return 0;
    return bytes / (d->memory.bytes_per_s * cluster_memory_efficiency(d, bytes));
}

/* Several small products (experts) are one kernel: their tiles fill the units together. */
static double product_s(const DeviceSheet *d, const Cost *c)
{
    MathKind math = cluster_math(c->dtype);
    double m = least_one(c->m), n = least_one(c->n), k = least_one(c->k),
           size = (double)dtype_bytes(c->dtype);
    double tiles = ceil(m / expert_tile_rows) * expert_tile_rows,
           padded = c->count > 1 && !d->cores ? m / tiles : 1;
    double eta = padded * cluster_matrix_efficiency(d, math, (int64_t)(m * c->count / padded),
                                                    (int64_t)n, (int64_t)k);
    double flop_s = 2 * m * n * k * c->count / (d->matrix[math].peak_flop_per_s * eta);
    double bytes_s = move_s(d, c->count * (size * (m * k + k * n) + fmax(2, size) * m * n));
    return fmax(flop_s, bytes_s);
}

static double attention_s(const DeviceSheet *d, const Cost *c)
{
    double eta = cluster_attention_efficiency(d, (int64_t)least_one(c->k), least_one(c->n),
                                              c->kind == COST_ATTENTION_GRAD);
    double flop_s = c->flop / (d->matrix[MATH_BF16].peak_flop_per_s * eta);
    return fmax(flop_s, move_s(d, c->read_bytes + c->write_bytes));
}

double sim_cast_s(const Sim *sim, const Cost *c)
{
    return sim->device.launch_s + move_s(&sim->device, 3 * c->count * c->m * c->k);
}

double sim_kernel_s(const Sim *sim, const char *op, const Cost *c)
{
    const DeviceSheet *d = &sim->device;
    double measured_s = cluster_op_s(d, op, cluster_math(c->dtype), c->flop,
                                     c->read_bytes + c->write_bytes);
    if (measured_s >= 0) return measured_s;
    switch (c->kind) {
    case COST_MATMUL: return d->launch_s + product_s(d, c);
    case COST_ATTENTION:
    case COST_ATTENTION_GRAD: return d->launch_s + attention_s(d, c);
    default: return d->launch_s + move_s(d, c->read_bytes + c->write_bytes);
    }
}
