/* How often to save, and what share of the time is useful then. */
#include "fleet/fleet.h"

#include <math.h>

double fleet_interval_young(double w, double mtbf_s) { return sqrt(2 * w * mtbf_s); }

double fleet_useful_first_order(double interval, double w, double mtbf_s, double u0)
{
    return fmax(0, (1 - (u0 + interval / 2) / mtbf_s) / (1 + w / interval));
}

double fleet_useful(double interval, double w, double mtbf_s, double u0)
{
    return interval / (mtbf_s * exp(u0 / mtbf_s) * expm1((interval + w) / mtbf_s));
}

/* The derivative of log D - log(e^((D+w)/M) - 1) vanishes where, with x = D/M, x = 1 - e^(-(x +
 * w/M)): once in (0, 1). */
double fleet_interval_best(double w, double mtbf_s)
{
    double low = 0, high = 1; /* of x; at 0 the right side is larger, at 1 smaller */
    for (int i = 0; i < 100; i++) {
        double x = (low + high) / 2;
        if (-expm1(-x - w / mtbf_s) > x)
            low = x;
        else
            high = x;
    }
    return high * mtbf_s;
}

double fleet_useful_replicas(int64_t replicas, double mtbf_s, double stall_s, double rejoin_s)
{
    return fmax(0, 1 - stall_s / mtbf_s - rejoin_s / ((double)replicas * mtbf_s));
}

/* Hosts send to storage over one of their NICs at most. */
static double host_bytes_per_s(const Cluster *c, int64_t nodes)
{
    double nic = c->node.nic_bytes_per_s > 0 ? c->node.nic_bytes_per_s : c->node.pcie_bytes_per_s;
    return (double)nodes * fmin(nic, c->node.pcie_bytes_per_s);
}

double fleet_save_s(const Cluster *c, int64_t nodes, double state_bytes)
{
    return state_bytes / fmin(c->site.storage_write_bytes_per_s, host_bytes_per_s(c, nodes));
}

double fleet_load_s(const Cluster *c, int64_t nodes, double state_bytes)
{
    return state_bytes / fmin(c->site.storage_read_bytes_per_s, host_bytes_per_s(c, nodes));
}

double fleet_init_s(const Cluster *c, int64_t devices, Level level)
{
    return range_at(c->recovery.init_s, level) *
           pow((double)devices / 1000, c->recovery.init_exponent);
}
