/* Where two devices meet, and what that way carries. */
#include "cluster/cluster.h"

#include <math.h>

/* The lowest tier one of whose groups holds both nodes, counted from 1. */
static int meeting_tier(const Network *network, int64_t a, int64_t b)
{
    for (int i = 0; i < network->n_tiers; i++)
        if (a / network->tier[i].nodes == b / network->tier[i].nodes) return i + 1;
    return network->n_tiers;
}

static Link network_link(const Cluster *c, int tier)
{
    const NodeSheet *node = &c->node;
    double per_device = node->nic_bytes_per_s * (double)node->nics / (double)node->devices,
           over = 1;
    for (int i = 0; i < tier; i++) over *= c->network.tier[i].oversubscription;
    double alone = fmax(node->nic_bytes_per_s, per_device);
    return (Link){tier, alone, per_device / over, c->network.tier[tier - 1].latency_s};
}

/* Without NVLink the devices of a host speak over PCIe; the ranks of a processor through its
 * memory. */
static Link domain_link(const Cluster *c)
{
    const DeviceSheet *d = &c->device;
    double bytes_per_s = d->link_bytes_per_s > 0 ? d->link_bytes_per_s : c->node.pcie_bytes_per_s;
    return (Link){0, bytes_per_s, bytes_per_s, d->link_latency_s};
}

static Link link_of_nodes(const Cluster *c, int64_t a, int64_t b, bool same_index)
{
    int tier = meeting_tier(&c->network, a, b);
    if (c->network.kind == NETWORK_RAIL && !same_index && tier < c->network.n_tiers) tier++;
    return network_link(c, tier);
}

Link cluster_link(const Cluster *c, int64_t a, int64_t b)
{
    int64_t devices = c->node.devices;
    CHECK(a >= 0 && b >= 0 && a < cluster_devices(c) && b < cluster_devices(c));
    if (a == b) return (Link){-1, c->device.memory.bytes_per_s, c->device.memory.bytes_per_s, 0};
    if (a / c->node.link_domain == b / c->node.link_domain || a / devices == b / devices)
        return domain_link(c);
    return link_of_nodes(c, a / devices, b / devices, a % devices == b % devices);
}

/* Groups of every tier are runs of nodes, so first and last meet where all do. Collectives between
 * nodes stay on their rails: indices do not matter. */
Link cluster_group_link(const Cluster *c, int64_t first, int64_t stride, int64_t size)
{
    int64_t last = first + stride * (size - 1), devices = c->node.devices;
    CHECK(first >= 0 && stride >= 1 && size >= 1 && last < cluster_devices(c));
    if (first / c->node.link_domain == last / c->node.link_domain ||
        first / devices == last / devices)
        return cluster_link(c, first, last);
    return link_of_nodes(c, first / devices, last / devices, true);
}
