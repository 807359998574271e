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

/* A product of heads' rows. Those that do not begin at whole 16 bytes are read by kernels without
 * matrix units, which fill the device as the others do. */
static double heads_product_s(const DeviceSheet *d, const Cost *c, bool aligned)
{
    double s = product_s(d, c);
    if (aligned || !(d->vector_flop_per_s > 0)) return s;
    double eta = cluster_matrix_efficiency(d, MATH_BF16, (int64_t)(c->m * c->count), (int64_t)c->n,
                                           (int64_t)c->k) /
                 d->unaligned;
    return fmax(s, 2 * c->m * c->n * c->k * c->count / (d->vector_flop_per_s * eta));
}

/* Of all keys, as many as a query sees on average twice over, and one less. */
static double whole_attention_s(const DeviceSheet *d, const Cost *c)
{
    double keys = 2 * c->n - 1, scores = c->count * c->m * keys;
    Cost into = *c, out = *c, across = *c; /* scores; of queries; of keys and values */
    into.n = keys;
    out.n = c->k;
    out.k = keys;
    across.m = keys;
    across.n = c->k;
    across.k = c->m;
    bool aligned = (int64_t)c->k % d->align == 0;
    /* Elements of 16 bits, a mask of 8. Forward: softmax reads and writes scores, dropout too, and
     * writes the mask. Backward: dropout reads what comes and the mask and writes, softmax reads
     * two and writes. */
    if (c->kind == COST_ATTENTION)
        return heads_product_s(d, &into, aligned) + heads_product_s(d, &out, aligned) +
               move_s(d, 9 * scores) + 3 * d->launch_s;
    return heads_product_s(d, &into, aligned) + heads_product_s(d, &out, aligned) +
           2 * heads_product_s(d, &across, aligned) + move_s(d, 11 * scores) + 5 * d->launch_s;
}

static double plain_attention_s(const Sim *sim, const Cost *c)
{
    Cost forward = *c;
    forward.kind = COST_ATTENTION;
    bool again = c->kind == COST_ATTENTION_GRAD && sim->stack.attention_again;
    return whole_attention_s(&sim->device, c) +
           (again ? whole_attention_s(&sim->device, &forward) : 0);
}

static double attention_s(const Sim *sim, const Cost *c)
{
    const DeviceSheet *d = &sim->device;
    if (sim->stack.plain_attention) return plain_attention_s(sim, c);
    double eta = cluster_attention_efficiency(d, (int64_t)least_one(c->k), least_one(c->n),
                                              c->kind == COST_ATTENTION_GRAD);
    if (sim->stack.attention > 0) eta *= sim->stack.attention;
    double flop_s = c->flop / (d->matrix[MATH_BF16].peak_flop_per_s * eta);
    return fmax(flop_s, move_s(d, c->read_bytes + c->write_bytes));
}

double sim_cast_s(const Sim *sim, const Cost *c)
{
    return sim->device.launch_s + move_s(&sim->device, 3 * c->count * c->m * c->k);
}

double sim_logits_s(const Sim *sim, const Cost *c)
{
    return sim->device.launch_s + move_s(&sim->device, sim->stack.logit_bytes * c->unwritten);
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
    case COST_ATTENTION_GRAD: return d->launch_s + attention_s(sim, c);
    default:
        return d->launch_s + (sim->stack.traffic > 0 ? sim->stack.traffic : 1) *
                                 move_s(d, c->read_bytes + c->write_bytes);
    }
}
