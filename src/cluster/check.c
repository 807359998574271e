/* What cannot be true of a cluster although each value is in its range, and the nearest that could.
 */
#include "cluster/cluster_internal.h"

#include <math.h>
#include <string.h>

static const char *at(const ClusterPlaces *p, const char *key) { return p->place(p, key, 0); }

/* A rate below this was meant in giga or tera. */
enum { ABSURD_FLOP_PER_S = 100000000 };

static Status check_device(const Cluster *c, const ClusterPlaces *p)
{
    const DeviceSheet *d = &c->device;
    double best = 0;
    for (int i = 0; i < MATH_KINDS; i++) {
        double peak = d->matrix[i].peak_flop_per_s;
        char key[64];
        snprintf(key, sizeof key, "device.%s.peak_flop_per_s", cluster_math_name((MathKind)i));
        if (peak > 0 && peak < ABSURD_FLOP_PER_S)
            return fail(ERR_REFUSED, "%s: %s is %g; FLOP/s are wanted, such as %ge12", at(p, key),
                        key, peak, peak);
        best = fmax(best, peak);
    }
    if (best == 0)
        return fail(ERR_REFUSED,
                    "%s: device.bf16.peak_flop_per_s is missing: the dense peak, such as 989e12; "
                    "or `device: h100`",
                    at(p, "device.bf16.peak_flop_per_s"));
    if (d->memory.reserved_bytes >= d->memory.bytes)
        return fail(ERR_REFUSED,
                    "%s: device.memory.reserved_bytes %g leaves nothing of device.memory.bytes %g",
                    at(p, "device.memory.reserved_bytes"), d->memory.reserved_bytes,
                    d->memory.bytes);
    if (d->idle_w > d->max_w)
        return fail(ERR_REFUSED, "%s: device.idle_w %g is above device.max_w %g (%s); %g would do",
                    at(p, "device.idle_w"), d->idle_w, d->max_w, at(p, "device.max_w"), d->max_w);
    return OK;
}

static Status check_node(const Cluster *c, const ClusterPlaces *p)
{
    const NodeSheet *node = &c->node;
    if (node->link_domain % node->devices != 0 && node->devices % node->link_domain != 0)
        return fail(
            ERR_REFUSED,
            "%s: node.link_domain %lld is no multiple of node.devices %lld (%s); %lld would be",
            at(p, "node.link_domain"), (long long)node->link_domain, (long long)node->devices,
            at(p, "node.devices"),
            (long long)(max_i64(1, (node->link_domain + node->devices / 2) / node->devices) *
                        node->devices));
    if (c->n_nodes > 1 && (node->nics == 0 || node->nic_bytes_per_s < 1e6)) {
        const char *key = node->nics == 0 ? "node.nics" : "node.nic_bytes_per_s";
        return fail(ERR_REFUSED, "%s: %s is %g in a cluster of %lld nodes; %s", at(p, key), key,
                    node->nics == 0 ? 0 : node->nic_bytes_per_s, (long long)c->n_nodes,
                    node->nics == 0 ? "one per device is usual"
                                    : "bytes/s are wanted: 50e9 are 400 Gb/s");
    }
    return OK;
}

static Status check_tier(const Cluster *c, const ClusterPlaces *p, int i)
{
    const Tier *tier = &c->network.tier[i], *below = tier - 1;
    const char *where = p->place(p, "network.tiers", i);
    if (i && (tier->nodes <= below->nodes || tier->nodes % below->nodes != 0))
        return fail(ERR_REFUSED,
                    "%s: tier %s has groups of %lld nodes, no multiple of the %lld of tier %s "
                    "below; %lld would be",
                    where, tier->name, (long long)tier->nodes, (long long)below->nodes, below->name,
                    (long long)(max_i64(2, (tier->nodes + below->nodes / 2) / below->nodes) *
                                below->nodes));
    if (i && tier->latency_s < below->latency_s)
        return fail(
            ERR_REFUSED,
            "%s: tier %s has a latency of %g s, less than the %g s of tier %s below; %g would do",
            where, tier->name, tier->latency_s, below->latency_s, below->name, below->latency_s);
    for (int k = 0; k < i; k++)
        if (!strcmp(c->network.tier[k].name, tier->name))
            return fail(ERR_REFUSED, "%s: two tiers are called %s", where, tier->name);
    return OK;
}

static Status check_network(const Cluster *c, const ClusterPlaces *p)
{
    const Network *network = &c->network;
    const Tier *last = &network->tier[network->n_tiers - 1];
    for (int i = 0; i < network->n_tiers; i++) TRY(check_tier(c, p, i));
    if (last->nodes < c->n_nodes)
        return fail(
            ERR_REFUSED,
            "%s: the last tier, %s, holds %lld of the %lld nodes (%s); nodes: %lld there would do",
            p->place(p, "network.tiers", network->n_tiers - 1), last->name, (long long)last->nodes,
            (long long)c->n_nodes, at(p, "nodes"),
            (long long)((c->n_nodes + last->nodes - 1) / last->nodes * last->nodes));
    return OK;
}

static Status check_causes(const Cluster *c, const ClusterPlaces *p)
{
    for (int i = 0; i < c->n_failures; i++) {
        const FailureCause *cause = &c->failure[i];
        const char *names[MAX_TIERS], *where = p->place(p, "failures", i);
        bool found = false;
        for (int k = 0; k < c->network.n_tiers; k++) {
            names[k] = c->network.tier[k].name;
            found = found || !strcmp(names[k], cause->tier);
        }
        for (int k = 0; k < i; k++)
            if (!strcmp(c->failure[k].name, cause->name))
                return fail(ERR_REFUSED, "%s: two failures are called %s", where, cause->name);
        if (*cause->tier && !found) {
            const char *near = name_nearest(cause->tier, names, c->network.n_tiers);
            return fail(ERR_REFUSED, "%s: failures of %s: there is no tier %s; %s would do", where,
                        cause->name, cause->tier, near ? near : names[0]);
        }
        if (*cause->tier && cause->unit != PER_GROUP)
            return fail(ERR_REFUSED, "%s: failures of %s name tier %s, which is for unit: group",
                        where, cause->name, cause->tier);
    }
    return OK;
}

Status cluster_contradictions(const Cluster *c, const ClusterPlaces *p)
{
    TRY(check_device(c, p));
    TRY(check_node(c, p));
    TRY(check_network(c, p));
    return check_causes(c, p);
}

/* ---- clusters made by hand -------------------------------------------------------------- */

static const char *name_as_place(const ClusterPlaces *places, const char *key, int element)
{
    (void)key;
    (void)element;
    return places->context;
}

static Status check_values(const char *where, const char *prefix, const void *base)
{
    size_t skip = strlen(prefix);
    for (int i = 0; i < cluster_table_n; i++) {
        const Setting *s = &cluster_table[i];
        if (!strncmp(s->name, prefix, skip) && !strstr(s->name + skip, "[]"))
            TRY(setting_check(s, where, base));
    }
    return OK;
}

Status cluster_check(const Cluster *c)
{
    ClusterPlaces places = {name_as_place, c->name};
    TRY(check_values(c->name, "", c));
    if (c->network.n_tiers < 1 || c->network.n_tiers > MAX_TIERS || c->node.link_domain < 1)
        return fail(ERR_ARG,
                    "%s: %d network tiers, a link domain of %lld devices; 1 to %d tiers, at least "
                    "1 device are wanted",
                    c->name, c->network.n_tiers, (long long)c->node.link_domain, MAX_TIERS);
    for (int i = 0; i < c->network.n_tiers; i++)
        TRY(check_values(c->name, "network.tiers[].", &c->network.tier[i]));
    for (int i = 0; i < c->n_failures; i++)
        TRY(check_values(c->name, "failures[].", &c->failure[i]));
    for (int i = 0; i < c->device.n_ops; i++)
        TRY(check_values(c->name, "device.ops[].", &c->device.op[i]));
    return cluster_contradictions(c, &places);
}

/* ---- size ------------------------------------------------------------------------------- */

/* Fewer devices than a node has are a part of it, its NICs in proportion. */
static Status resize_node(Cluster *c, int64_t devices)
{
    NodeSheet *node = &c->node;
    if (node->devices % devices != 0) {
        int64_t near = devices;
        while (node->devices % near != 0) near++;
        return fail(ERR_REFUSED, "%s: %lld devices are no even part of a node of %lld; %lld are",
                    c->name, (long long)devices, (long long)node->devices, (long long)near);
    }
    int64_t parts = node->devices / devices;
    node->nics = (node->nics + parts - 1) / parts;
    node->link_domain = min_i64(node->link_domain, devices);
    node->devices = devices;
    c->n_nodes = 1;
    return OK;
}

Status cluster_resize(Cluster *c, int64_t devices)
{
    int64_t per_node = c->node.devices;
    if (devices < 1)
        return fail(ERR_ARG, "%s: %lld devices; at least 1 is wanted", c->name, (long long)devices);
    if (devices < per_node) return resize_node(c, devices);
    if (devices % per_node != 0)
        return fail(ERR_REFUSED, "%s: %lld devices are no whole number of nodes of %lld; %lld are",
                    c->name, (long long)devices, (long long)per_node,
                    (long long)((devices + per_node / 2) / per_node * per_node));
    if (devices / per_node > 1 << 20)
        return fail(ERR_REFUSED, "%s: %lld devices are more than %d nodes", c->name,
                    (long long)devices, 1 << 20);
    c->n_nodes = devices / per_node;
    Network *network = &c->network;
    Tier *last = &network->tier[network->n_tiers - 1];
    if (last->nodes < c->n_nodes) {
        int64_t unit = network->n_tiers > 1 ? last[-1].nodes : 1;
        last->nodes = (c->n_nodes + unit - 1) / unit * unit;
    }
    return OK;
}
