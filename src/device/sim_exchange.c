/* How long an exchange takes between the ranks of a group, from where they lie in the network.
 *
 * A domain is what lies below a tier: the NVLink domain below the leaves, a leaf's nodes below the
 * pods, and so on. With g of the group's n ranks in each domain, what a ring sends out of a domain
 * is one rank's traffic for g ranks: each device of the domain belongs to such a group, all groups
 * work at once, and share what the tier gives. So a tier takes traffic / (g x bandwidth per
 * device), the links inside a domain traffic / bandwidth, and the slowest of them sets the pace
 * (rings over several rails; Thakur 2005 for the counts). Latencies are NCCL's model: a ring's
 * steps one after the other, a tree's depth up and down.
 *
 * The library takes the algorithm and protocol that are fastest for the size, and so does this. */
#include "device/sim.h"

#include <math.h>

/* Steps and shares of NCCL's protocols over its slowest and widest one, Simple: LL128 and LL
 * (tuning constants of NCCL 2.2x: base, hop on NVLink, hop on the network, share of the bandwidth).
 */
typedef struct Protocol {
    double base, link_hop, network_hop, share;
} Protocol;
static const Protocol protocols[] = {
    {1, 1, 1, 1}, {1.67, 0.56, 0.29, 0.92}, {0.79, 0.18, 0.19, 0.5}};

static const double logarithmic_share =
    0.75; /* of the bandwidth: gathers and scatters in log2 steps (NCCL's PAT) */

/* A group as the network sees it. */
typedef struct Spread {
    int64_t n;                     /* ranks */
    int64_t inside[MAX_TIERS + 1]; /* of them in the domain below network.tier[k]; the last: n */
} Spread;

/* Ranks share a host's processors evenly, and may be more than these have cores. */
static int64_t domain_ranks(const Sim *sim, int tier)
{
    const Cluster *c = sim->cluster;
    int64_t on_host = sim->device.cores ? (mesh_ranks(&sim->mesh) + c->n_nodes - 1) / c->n_nodes
                                        : c->node.devices;
    if (tier > 0) return c->network.tier[tier - 1].nodes * on_host;
    return sim->device.cores ? on_host : c->node.link_domain;
}

/* Ranks are numbered by coordinates, the last axis running fastest. */
static int64_t axis_stride(const Mesh *mesh, int axis)
{
    int64_t stride = 1;
    for (int a = axis + 1; a < MESH_AXES; a++) stride *= mesh_size(mesh, (MeshAxis)a);
    return stride;
}

static int64_t ranks_within(const Mesh *mesh, unsigned axes, int64_t devices)
{
    int64_t n = 1;
    for (int a = 0; a < MESH_AXES; a++) {
        if (!(axes >> a & 1)) continue;
        int64_t most = devices / axis_stride(mesh, a), size = mesh_size(mesh, (MeshAxis)a);
        n *= most < 1 ? 1 : most < size ? most : size;
    }
    return n;
}

static Spread spread_of(const Sim *sim, unsigned axes)
{
    const Cluster *c = sim->cluster;
    Spread s = {.n = ranks_within(&sim->mesh, axes, INT64_MAX)};
    for (int k = 0; k < c->network.n_tiers; k++)
        s.inside[k] = ranks_within(&sim->mesh, axes, domain_ranks(sim, k));
    s.inside[c->network.n_tiers] = s.n;
    return s;
}

/* What a device gets of tier k when all send across it at once. */
static double tier_rate(const Sim *sim, int tier)
{
    const Cluster *c = sim->cluster;
    double rate = c->node.nic_bytes_per_s * (double)c->node.nics / (double)c->node.devices *
                  c->network.eta * sim->derating;
    for (int k = 0; k <= tier; k++) rate /= c->network.tier[k].oversubscription;
    return rate;
}

/* Between ranks of one domain: over NVLink, else over PCIe; of one processor through its memory,
 * read and written. */
static double near_rate(const Sim *sim)
{
    const DeviceSheet *d = &sim->device;
    if (d->link_bytes_per_s > 0) return d->link_bytes_per_s * d->link_eta;
    return d->cores ? d->memory.bytes_per_s * d->memory.eta / 2
                    : sim->cluster->node.pcie_bytes_per_s;
}

/* ---- bandwidth -------------------------------------------------------------------------- */

/* `sent`: by each rank to its neighbour in a ring. */
static double ring_traffic_s(const Sim *sim, const Spread *s, double sent)
{
    double most = s->inside[0] > 1 ? sent / near_rate(sim) : 0;
    for (int k = 0; k < sim->cluster->network.n_tiers; k++)
        if (s->inside[k] < s->n)
            most = fmax(most, sent / ((double)s->inside[k] * tier_rate(sim, k)));
    return most;
}

/* Each rank has an equal part for each of the others: more leaves a domain the smaller it is. */
static double pairs_traffic_s(const Sim *sim, const Spread *s, double own)
{
    double part = own / (double)s->n, most = (double)(s->inside[0] - 1) * part / near_rate(sim);
    double sent = sim->stack.rows_sent > 0 ? sim->stack.rows_sent * part : part;
    for (int k = 0; k < sim->cluster->network.n_tiers; k++)
        if (s->inside[k] < s->n)
            most = fmax(most, (double)(s->n - s->inside[k]) * sent / tier_rate(sim, k));
    return most;
}

/* ---- latency ---------------------------------------------------------------------------- */

/* Further away than the leaves. */
static double farther_s(const Network *net, int tier)
{
    return net->tier[tier].latency_s - net->tier[0].latency_s;
}

/* Once around: of all hops those that leave a domain go over its tier. */
static double around_s(const Sim *sim, const Spread *s, const HopCosts *hop, const Protocol *p)
{
    const Network *net = &sim->cluster->network;
    double sum = 0, outer = (double)s->n; /* hops not told yet */
    for (int k = 0; k <= net->n_tiers; k++) {
        double leave = k < net->n_tiers && s->inside[k] < s->n ? (double)s->n / (double)s->inside[k]
                                                               : 0,
               here = outer - leave;
        sum += here * (k == 0 ? hop->link_hop_s * p->link_hop
                              : hop->network_hop_s * p->network_hop + farther_s(net, k - 1));
        outer = leave;
    }
    return sum * (double)(s->n - 1) / (double)s->n;
}

/* From the root to the leaves. */
static double depth_s(const Sim *sim, const Spread *s, const HopCosts *hop, const Protocol *p)
{
    const Network *net = &sim->cluster->network;
    double sum = (double)(s->inside[0] - 1) * hop->link_hop_s * p->link_hop;
    for (int k = 0; k < net->n_tiers; k++) {
        double levels = log2((double)s->inside[k + 1] / (double)s->inside[k]);
        sum += levels * (hop->network_hop_s * p->network_hop + farther_s(net, k));
    }
    return sum;
}

/* ---- algorithms ------------------------------------------------------------------------- */

/* passes: 2 for a reduction whose result all get, else 1. */
static double best_algorithm_s(const Sim *sim, const Spread *s, int passes, double whole_bytes)
{
    const Network *net = &sim->cluster->network;
    double traffic_s = ring_traffic_s(sim, s,
                                      passes * whole_bytes * (double)(s->n - 1) / (double)s->n),
           best = INFINITY;
    int n_protocols = sim->device.cores ? 1 : COUNT_OF(protocols);
    for (int i = 0; i < n_protocols; i++) {
        const Protocol *p = &protocols[i];
        double ring_s = net->ring.base_s * p->base + passes * around_s(sim, s, &net->ring, p) +
                        traffic_s / p->share;
        double tree_s = net->tree.base_s * p->base + passes * depth_s(sim, s, &net->tree, p) +
                        traffic_s / p->share / (passes == 2 ? net->tree_eta : logarithmic_share);
        best = fmin(best, passes == 1 && sim->stack.rings ? ring_s : fmin(ring_s, tree_s));
    }
    const DeviceSheet *d = &sim->device;
    if (passes == 2 && d->switch_bytes_per_s > 0 && s->inside[0] == s->n)
        best = fmin(best, d->switch_s + 2 * whole_bytes * (double)(s->n - 1) / (double)s->n /
                                            d->switch_bytes_per_s);
    return best;
}

static double all_to_all_s(const Sim *sim, const Spread *s, double own)
{
    const Network *net = &sim->cluster->network;
    return net->ring.base_s + net->message_s * (double)(s->n - 1) + pairs_traffic_s(sim, s, own);
}

double sim_exchange_s(const Sim *sim, CommKind kind, unsigned axes, double whole_bytes)
{
    Spread s = spread_of(sim, axes);
    if (s.n < 2) return 0;
    switch (kind) {
    case COMM_ALL_REDUCE: return best_algorithm_s(sim, &s, 2, whole_bytes);
    case COMM_ALL_TO_ALL: return all_to_all_s(sim, &s, whole_bytes);
    case COMM_SEND:
        if (axes == 1u << MESH_PP)
            return sim_message_s(sim, 0, mesh_size(&sim->mesh, MESH_PP) - 1,
                                 whole_bytes); /* its ends */
        /* each to its neighbour: one of the hops of a gathering */
        return best_algorithm_s(sim, &s, 1, whole_bytes * (double)s.n) / (double)(s.n - 1);
    default: return best_algorithm_s(sim, &s, 1, whole_bytes);
    }
}

double sim_message_s(const Sim *sim, int from_pp, int to_pp, double bytes)
{
    const Cluster *c = sim->cluster;
    int64_t stride = axis_stride(&sim->mesh, MESH_PP);
    if (sim->device.cores) return bytes / near_rate(sim);
    Link link = cluster_link(c, from_pp * stride, to_pp * stride);
    if (link.tier < 0) return 0;
    double rate = link.tier == 0 ? near_rate(sim) : tier_rate(sim, link.tier - 1);
    return c->network.ring.base_s + link.latency_s + bytes / rate;
}
