/* What a job draws from the grid, and how it swings: phases of a step alternate in all nodes at
 * once. */
#include "fleet/fleet.h"

#include <math.h>

/* P = idle + (max - idle)(a u_tensor + b u_memory), capped at max. */
double fleet_device_w(const DeviceSheet *d, double tensor, double memory)
{
    double busy = fmin(1, d->tensor_w_share * tensor + d->memory_w_share * memory);
    return d->idle_w + (d->max_w - d->idle_w) * busy;
}

/* Of computers, network and storage, with devices at `device_w` in the nodes that compute. */
static double it_w(const Cluster *c, double nodes, double spares, double device_w)
{
    double devices = (double)c->node.devices;
    double servers = nodes * (devices * device_w + c->node.overhead_w) +
                     spares * (devices * c->device.idle_w + c->node.overhead_w);
    return servers * (1 + c->site.storage_w_share) +
           (nodes + spares) * devices * c->network.device_w;
}

static Range range_scale(Range r, double factor)
{
    return (Range){r.low * factor, r.central * factor, r.high * factor};
}

Power fleet_power(const Cluster *c, int64_t nodes, int64_t spares, const PowerPhase *phase,
                  int n_phases)
{
    double shares = 0, mean = 0, most = 0, least = (double)INFINITY, n = (double)nodes,
           extra = (double)spares;
    for (int i = 0; i < n_phases; i++) {
        double w = fleet_device_w(&c->device, phase[i].tensor, phase[i].memory);
        shares += phase[i].share;
        mean += phase[i].share * w;
        if (phase[i].share <= 0) continue;
        most = fmax(most, w);
        least = fmin(least, w);
    }
    if (shares < 1 - 1e-9) {
        mean += (1 - shares) * c->device.idle_w;
        most = fmax(most, c->device.idle_w);
        least = fmin(least, c->device.idle_w);
    }
    Power p = {.device_w = mean,
               .it_w = it_w(c, n, extra, mean),
               .peak_w = it_w(c, n, extra, most),
               .least_w = it_w(c, n, extra, least),
               .idle_w = it_w(c, n, extra, c->device.idle_w)};
    p.step_swing_w = p.peak_w - p.least_w;
    p.failure_swing_w = p.it_w - p.idle_w;
    p.meter_w = range_scale(c->site.pue, p.it_w);
    p.energy_kwh_per_day = range_scale(p.meter_w, 24e-3);
    p.over_limit = c->site.power_w > 0 && p.peak_w > c->site.power_w;
    p.over_ramp = c->site.ramp_w > 0 && fmax(p.step_swing_w, p.failure_swing_w) > c->site.ramp_w;
    return p;
}
