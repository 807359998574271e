/* Everything that a cluster's file can say. */
#include "cluster/cluster_internal.h"

#define AT(field)       offsetof(Cluster, field)
#define IN_TIER(field)  offsetof(Tier, field)
#define IN_CAUSE(field) offsetof(FailureCause, field)
#define IN_OP(field)    offsetof(OpRate, field)
#define INT(name, unit, min, max, value, at, sentence)                                             \
    {                                                                                              \
        name, SETTING_INT, unit, min, max, value, NULL, at, sentence                               \
    }
#define FLOAT(name, unit, min, max, value, at, sentence)                                           \
    {                                                                                              \
        name, SETTING_FLOAT, unit, min, max, value, NULL, at, sentence                             \
    }
#define RANGE(name, unit, min, max, value, at, sentence)                                           \
    {                                                                                              \
        name, SETTING_RANGE, unit, min, max, value, NULL, at, sentence                             \
    }
#define TEXT(name, value, at, sentence)                                                            \
    {                                                                                              \
        name, SETTING_TEXT, "", 0, 0, value, NULL, at, sentence                                    \
    }
#define CHOICE(name, choices, value, at, sentence)                                                 \
    {                                                                                              \
        name, SETTING_CHOICE, "", 0, 0, value, choices, at, sentence                               \
    }

#define MATRIX(word, KIND)                                                                         \
    FLOAT("device." word ".peak_flop_per_s", "FLOP/s", 0, 1e18, "0",                               \
          AT(device.matrix[KIND].peak_flop_per_s),                                                 \
          "dense peak of products in " word "; 0: it has no units for them"),                      \
        FLOAT("device." word ".eta_inf", "of the peak", 0.001, 1, "0.75",                          \
              AT(device.matrix[KIND].eta_inf), "reached by large aligned products"),               \
        FLOAT("device." word ".k_half", "elements", 0, 1e6, "300", AT(device.matrix[KIND].k_half), \
              "inner length of a product at which half of that is reached")

#define HOPS(word, field)                                                                          \
    FLOAT("network." word ".base_s", "s", 0, 1, "0", AT(network.field.base_s),                     \
          "fixed part of a collective by " word "s"),                                              \
        FLOAT("network." word ".link_hop_s", "s", 0, 1, "0", AT(network.field.link_hop_s),         \
              "per hop over NVLink"),                                                              \
        FLOAT("network." word ".network_hop_s", "s", 0, 1, "0", AT(network.field.network_hop_s),   \
              "per hop over the network")

/* Lower bounds above zero keep divisions safe; upper ones catch units mistaken (GB for bytes, us
 * for s). */
const Setting cluster_table[] = {
    TEXT("name", "", AT(name), "of the cluster; empty: the file's own name"),
    TEXT("about", "", AT(about), "one line for lists"),
    INT("nodes", "nodes", 1, 1 << 20, NULL, AT(n_nodes),
        "how many nodes the cluster has, such as nodes: 3072"),

    TEXT("device.name", "", AT(device.name), "of the device"),
    TEXT("device.about", "", AT(device.about), "one line for lists"),
    MATRIX("f32", MATH_F32),
    MATRIX("bf16", MATH_BF16),
    MATRIX("fp8", MATH_FP8),
    INT("device.units", "units", 1, 1 << 20, "1", AT(device.units),
        "SMs that share the tiles of a product"),
    INT("device.tile_m", "rows", 1, 4096, "128", AT(device.tile_m),
        "of the largest output tile of one unit"),
    INT("device.tile_n", "columns", 1, 4096, "256", AT(device.tile_n),
        "of the largest output tile of one unit"),
    INT("device.align", "elements", 1, 4096, "1", AT(device.align),
        "what each side of a product should be a multiple of"),
    FLOAT("device.unaligned", "", 0.01, 1, "1", AT(device.unaligned),
          "factor of the speed where one is not"),
    FLOAT("device.vector_flop_per_s", "FLOP/s", 0, 1e16, "0", AT(device.vector_flop_per_s),
          "f32 outside of matrix units, for rows that these cannot read; 0: not said"),
    FLOAT("device.attention.eta_inf", "of the bf16 peak", 0.001, 2, "0.6",
          AT(device.attention.eta_inf), "that attention tends to, before the two factors below"),
    FLOAT("device.attention.head_half", "elements", 0, 1e4, "0", AT(device.attention.head_half),
          "head_dim at which half of that is reached"),
    FLOAT("device.attention.keys_half", "keys", 0, 1e6, "0", AT(device.attention.keys_half),
          "keys per query at which half of that is reached"),
    FLOAT("device.attention.backward", "", 0.05, 2, "0.8", AT(device.attention.backward),
          "speed backward, of that forward"),
    FLOAT("device.memory.bytes", "bytes", 1e6, 1e15, NULL, AT(device.memory.bytes),
          "memory of one device, such as bytes: 80e9"),
    FLOAT("device.memory.bytes_per_s", "bytes/s", 1e6, 1e15, NULL, AT(device.memory.bytes_per_s),
          "rate of that memory, such as bytes_per_s: 3.35e12"),
    FLOAT("device.memory.eta", "", 0.01, 1, "0.9", AT(device.memory.eta),
          "of that rate, reached with large tensors"),
    FLOAT("device.memory.half_bytes", "bytes", 0, 1e12, "0", AT(device.memory.half_bytes),
          "size at which half of that is reached"),
    FLOAT("device.memory.reserved_bytes", "bytes", 0, 1e14, "0", AT(device.memory.reserved_bytes),
          "contexts, libraries and communication buffers, outside every program"),
    FLOAT("device.launch_s", "s", 0, 1, "0", AT(device.launch_s), "of a kernel, on the device"),
    FLOAT("device.host_launch_s", "s", 0, 1, "0", AT(device.host_launch_s),
          "that the host needs to start a kernel"),
    FLOAT("device.link_bytes_per_s", "bytes/s", 0, 1e14, "0", AT(device.link_bytes_per_s),
          "NVLink of one device, one direction; 0: none"),
    FLOAT("device.link_eta", "", 0.01, 1, "0.8", AT(device.link_eta),
          "of that rate, reached by large messages"),
    FLOAT("device.link_latency_s", "s", 0, 1, "3.3e-6", AT(device.link_latency_s),
          "one way, over NVLink"),
    FLOAT("device.switch_bytes_per_s", "bytes/s", 0, 1e14, "0", AT(device.switch_bytes_per_s),
          "bus bandwidth of all-reduces by NVLink switches; 0: they do not reduce"),
    FLOAT("device.switch_s", "s", 0, 1, "0", AT(device.switch_s), "latency of such an all-reduce"),
    FLOAT("device.idle_w", "W", 0, 1e5, "0", AT(device.idle_w), "of one device without work"),
    FLOAT("device.max_w", "W", 0, 1e5, "0", AT(device.max_w),
          "of one device at most, a cap included"),
    FLOAT("device.tensor_w_share", "of max_w - idle_w", 0, 2, "0.85", AT(device.tensor_w_share),
          "with busy matrix units"),
    FLOAT("device.memory_w_share", "of max_w - idle_w", 0, 2, "0.5", AT(device.memory_w_share),
          "with busy memory"),
    RANGE("device.price_usd", "USD", 0, 1e9, "0", AT(device.price_usd),
          "of one device bought alone"),
    INT("device.cores", "cores", 0, 1 << 16, "0", AT(device.cores),
        "of a processor, whose figures are then those of one core; 0: an accelerator"),
    FLOAT("device.team_eta", "", 0.01, 4, "1", AT(device.team_eta),
          "speed of all cores as one rank, against one rank per core"),
    {"device.ops[].op", SETTING_TEXT, "", 0, 0, NULL, NULL, IN_OP(op), "name of a measured op"},
    {"device.ops[].math", SETTING_CHOICE, "", 0, 0, "any", "any|f32|bf16|fp8", IN_OP(math),
     "the type that it reads, where that matters"},
    {"device.ops[].fixed_s", SETTING_FLOAT, "s", 0, 10, "0", NULL, IN_OP(fixed_s), "of each call"},
    {"device.ops[].flop_per_s", SETTING_FLOAT, "FLOP/s", 0, 1e18, "0", NULL, IN_OP(flop_per_s),
     "0: no such term"},
    {"device.ops[].bytes_per_s", SETTING_FLOAT, "bytes/s", 0, 1e18, "0", NULL, IN_OP(bytes_per_s),
     "0: no such term"},
    {"device.ops[].team_s", SETTING_FLOAT, "s", 0, 10, "0", NULL, IN_OP(team_s),
     "of each call on all cores as one rank"},
    {"device.ops[].team_speed", SETTING_FLOAT, "cores", 0, 1 << 16, "0", NULL, IN_OP(team_speed),
     "of the rest of it, against one core; 0: team_eta says it"},

    INT("node.devices", "devices", 1, 4096, NULL, AT(node.devices), "per node, such as devices: 8"),
    INT("node.link_domain", "devices", 0, 1 << 16, "0", AT(node.link_domain),
        "that NVLink joins; 0: those of a node"),
    INT("node.nics", "NICs", 0, 4096, "0", AT(node.nics),
        "per node, of the network that devices use"),
    FLOAT("node.nic_bytes_per_s", "bytes/s", 0, 2.5e11, "0", AT(node.nic_bytes_per_s),
          "of one NIC, one direction: 400 Gb/s are 50e9"),
    FLOAT("node.pcie_bytes_per_s", "bytes/s", 0, 1e13, "55e9", AT(node.pcie_bytes_per_s),
          "device to host, one direction, per device"),
    FLOAT("node.host_memory_bytes", "bytes", 0, 1e15, "2e12", AT(node.host_memory_bytes),
          "of the host"),
    FLOAT("node.storage_bytes", "bytes", 0, 1e17, "0", AT(node.storage_bytes), "local disks"),
    FLOAT("node.storage_bytes_per_s", "bytes/s", 0, 1e13, "0", AT(node.storage_bytes_per_s),
          "of the local disks, writing"),
    FLOAT("node.overhead_w", "W", 0, 1e6, "0", AT(node.overhead_w),
          "of everything in a node but its devices, at work"),
    RANGE("node.price_usd", "USD", 0, 1e9, "0", AT(node.price_usd),
          "of a whole server, devices and NICs included"),

    CHOICE(
        "network.kind", "rail|tor", "rail", AT(network.kind),
        "rail: devices of the same index share a leaf; tor: all NICs of a node hang on one switch"),
    {"network.tiers[].name", SETTING_TEXT, "", 0, 0, NULL, NULL, IN_TIER(name),
     "of the tier, such as leaf, pod, spine"},
    {"network.tiers[].nodes", SETTING_INT, "nodes", 1, 1 << 20, NULL, NULL, IN_TIER(nodes),
     "under one group of the tier"},
    {"network.tiers[].oversubscription", SETTING_FLOAT, "", 1, 100, "1", NULL,
     IN_TIER(oversubscription), "bandwidth from below over bandwidth into this tier: 7 for 1:7"},
    {"network.tiers[].latency_s", SETTING_FLOAT, "s", 0, 1, "5e-6", NULL, IN_TIER(latency_s),
     "one way between two NICs that meet here"},
    FLOAT("network.eta", "", 0.01, 1, "0.97", AT(network.eta),
          "of the NICs' rate, reached by large messages"),
    RANGE("network.derating", "", 0.01, 1, "1", AT(network.derating),
          "further factor inside a training step"),
    HOPS("ring", ring),
    HOPS("tree", tree),
    FLOAT("network.tree_eta", "", 0.01, 1, "1", AT(network.tree_eta),
          "bandwidth of trees, of that of rings"),
    FLOAT("network.message_s", "s", 0, 1, "0", AT(network.message_s),
          "of each peer of an all-to-all beyond the first"),
    FLOAT("network.compute_taken", "share", 0, 0.9, "0", AT(network.compute_taken),
          "of the units of a device, by a running collective"),
    FLOAT("network.memory_taken", "share", 0, 0.9, "0", AT(network.memory_taken),
          "of its memory's rate"),
    RANGE("network.switch_price_usd", "USD per device", 0, 1e6, "0", AT(network.switch_price_usd),
          "switches"),
    RANGE("network.optics_price_usd", "USD per device", 0, 1e6, "0", AT(network.optics_price_usd),
          "cables and optics"),
    FLOAT("network.device_w", "W per device", 0, 1e4, "0", AT(network.device_w),
          "of switches and optics"),

    FLOAT("site.power_w", "W", 0, 1e11, "0", AT(site.power_w),
          "for computers, at most; 0: no limit"),
    FLOAT("site.ramp_w", "W", 0, 1e11, "0", AT(site.ramp_w),
          "largest step of power that the site takes; 0: any"),
    RANGE("site.pue", "", 1, 3, "1.1", AT(site.pue),
          "power at the meter over power of the computers"),
    RANGE("site.usd_per_kwh", "USD/kWh", 0, 10, "0.078", AT(site.usd_per_kwh), "energy"),
    FLOAT("site.storage_bytes", "bytes", 0, 1e20, "0", AT(site.storage_bytes),
          "of the shared storage; 0: unknown"),
    FLOAT("site.storage_write_bytes_per_s", "bytes/s", 1, 1e15, "1e11",
          AT(site.storage_write_bytes_per_s), "of all nodes together"),
    FLOAT("site.storage_read_bytes_per_s", "bytes/s", 1, 1e15, "1e11",
          AT(site.storage_read_bytes_per_s), "of all nodes together"),
    FLOAT("site.storage_w_share", "", 0, 1, "0", AT(site.storage_w_share),
          "power of storage and other nodes, of that of the servers"),

    {"failures[].name", SETTING_TEXT, "", 0, 0, NULL, NULL, IN_CAUSE(name), "of the cause"},
    {"failures[].unit", SETTING_CHOICE, "", 0, 0, "node", "device|node|nic|group|job",
     IN_CAUSE(unit), "what fails"},
    {"failures[].tier", SETTING_TEXT, "", 0, 0, "", NULL, IN_CAUSE(tier),
     "unit: group: the tier whose groups fail as a whole"},
    {"failures[].per_day", SETTING_RANGE, "events per unit and day", 0, 100, NULL, NULL,
     IN_CAUSE(per_day), "low, central, high"},
    {"failures[].repair_s", SETTING_RANGE, "s", 0, 3.2e7, "0", NULL, IN_CAUSE(repair_s),
     "until what failed is back; 0: a restart is enough"},

    RANGE("recovery.detect_s", "s", 0, 1e5, "60", AT(recovery.detect_s),
          "from the failure to the alarm"),
    RANGE("recovery.spare_s", "s", 0, 1e5, "30", AT(recovery.spare_s),
          "until a warm spare has taken over"),
    RANGE("recovery.allocate_s", "s", 0, 1e6, "600", AT(recovery.allocate_s),
          "until another node is had without a warm spare"),
    RANGE("recovery.process_s", "s", 0, 1e5, "60", AT(recovery.process_s),
          "start of processes, compilation, first step"),
    RANGE("recovery.init_s", "s", 0, 1e5, "1", AT(recovery.init_s),
          "making communicators among 1,000 devices"),
    FLOAT("recovery.init_exponent", "", 0, 3, "1", AT(recovery.init_exponent),
          "growth of that with the number of devices"),
    RANGE("recovery.save_stall_s", "s", 0, 1e5, "0.5", AT(recovery.save_stall_s),
          "that training stands still for a checkpoint"),
    RANGE("recovery.peer_load_s", "s", 0, 1e5, "30", AT(recovery.peer_load_s),
          "states from copies in the memory of other nodes"),
    RANGE("recovery.replica_stall_s", "s", 0, 1e5, "180", AT(recovery.replica_stall_s),
          "that all replicas stand still when one is lost"),
    RANGE("recovery.replica_rejoin_s", "s", 0, 1e6, "420", AT(recovery.replica_rejoin_s),
          "until the lost replica is back"),

    RANGE("prices.facility_usd_per_w", "USD/W", 0, 1000, "11", AT(prices.facility_usd_per_w),
          "building, power and cooling"),
    RANGE("prices.storage_share", "", 0, 1, "0", AT(prices.storage_share),
          "storage and other servers, of the price of the servers"),
    RANGE("prices.lifetime_years", "years", 0.5, 50, "4", AT(prices.lifetime_years),
          "of servers and network"),
    RANGE("prices.facility_years", "years", 0.5, 100, "15", AT(prices.facility_years),
          "of the building"),
    RANGE("prices.operation_share", "per year", 0, 1, "0.03", AT(prices.operation_share),
          "staff, parts and contracts, of the capital"),
    RANGE("prices.rent_usd_per_hour", "USD/h", 0, 1000, "2", AT(prices.rent_usd_per_hour),
          "of one device on the market"),
};
const int cluster_table_n = COUNT_OF(cluster_table);
