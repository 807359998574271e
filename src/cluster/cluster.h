/* cluster: what computers are made of, in figures: descriptions only, nothing runs here.
 *
 * What it is.   Device sheets (peaks, efficiency curves, memory, power), nodes, network tiers,
 *               site, failure rates,
 *               times of repair and recovery, prices; presets and files of them, a one-line form,
 *               checks.
 * Depends on.   base, tensor, setting
 * Owns.         A Cluster owns the arena in which its texts and lists live.
 * Invariants.   A cluster that was loaded is complete, inside its ranges and free of
 *               contradictions. SI units:
 *               bytes, seconds, FLOP (multiply and add are two), watts, US dollars; rates per
 *               direction. Decimal
 *               gigabytes. Every value that a preset sets has words that say where it comes from.
 * Use:
 *     Cluster c;
 *     TRY(cluster_load("meta-24k", &c));               (or a file, or "1024 h100, 8 per node, 400G,
 *                                                      spine 1:4")
 *     Link link = cluster_link(&c, 0, 4096);
 *     printf("%g GB/s, %s\n", link.bytes_per_s / 1e9, cluster_source(&c, "node.nic_bytes_per_s"));
 *     cluster_deinit(&c);
 */
#ifndef CLUSTER_CLUSTER_H
#define CLUSTER_CLUSTER_H

#include "base/base.h"
#include "tensor/tensor.h"

/* A figure that is not known well. low <= central <= high by value, whatever is good or bad about
 * it. */
typedef struct Range {
    double low, central, high;
} Range;
typedef enum Level { LEVEL_LOW, LEVEL_CENTRAL, LEVEL_HIGH } Level;
static inline double range_at(Range range, Level level)
{
    return level == LEVEL_LOW ? range.low : level == LEVEL_HIGH ? range.high : range.central;
}

/* ---- a device --------------------------------------------------------------------------- */

/* Units that multiply matrices, by what they read. MATH_F32 is TF32 where a device has that. */
typedef enum MathKind { MATH_F32, MATH_BF16, MATH_FP8, MATH_KINDS } MathKind;
MathKind cluster_math(DType dtype); /* f16 counts as bf16 */
const char *cluster_math_name(MathKind math);

/* Efficiency of a product [m k] [k n]: eta_inf * fill * k / (k + k_half), where fill is the share
 * of useful elements in whole waves of output tiles: m n / (waves units tile_m tile_n), the best of
 * the tile sizes below. */
typedef struct MatrixCurve {
    double peak_flop_per_s; /* dense, as the vendor says; 0: no such units */
    double eta_inf;         /* of the peak, for large aligned shapes */
    double k_half;          /* elements of k at which half of that is reached */
} MatrixCurve;

/* Flash attention, of the peak of MATH_BF16: eta_inf * head_dim / (head_dim + head_half) * keys /
 * (keys + keys_half), where keys is how many keys a query sees on average (half the sequence when
 * causal). FLOP are those of the work that the mask leaves. Backward: times `backward`. */
typedef struct AttentionCurve {
    double eta_inf, head_half, keys_half, backward;
} AttentionCurve;

/* What reads and writes memory only: bytes_per_s * eta * bytes / (bytes + half_bytes). */
typedef struct MemoryCurve {
    double bytes;       /* of the device's own memory */
    double bytes_per_s; /* as the vendor says */
    double eta;         /* of it, for large tensors */
    double half_bytes;
    double reserved_bytes; /* contexts, libraries and communication buffers outside every program */
} MemoryCurve;

/* A measured op of a device whose sheet was made by `drover doctor --calibrate`:
 * seconds = fixed_s + flop / flop_per_s + bytes / bytes_per_s on one core; a rate of 0 leaves its
 * term out. On all cores as a team the last two are team_speed times as fast and the first is
 * team_s, of which some is spent on bringing the team together: a small kernel gains little. */
typedef struct OpRate {
    const char *op; /* as in ops/list.h */
    enum OpMath {
        OP_ANY,
        OP_F32,
        OP_BF16,
        OP_FP8
    } math; /* what it reads, where that matters: 1 + MathKind */
    double fixed_s, flop_per_s, bytes_per_s;
    double team_s, team_speed; /* team_speed 0: not measured; then DeviceSheet.team_eta */
} OpRate;

typedef struct DeviceSheet {
    const char *name, *about;
    MatrixCurve matrix[MATH_KINDS];
    int64_t units; /* SMs, or cores of a processor: what tiles of a product are shared among */
    int64_t tile_m, tile_n; /* the largest output tile of one unit; halves of it are tried too */
    int64_t align;    /* elements; a matrix side that is no multiple of it costs `unaligned` */
    double unaligned; /* factor of the efficiency, 0..1 */
    double vector_flop_per_s; /* f32 outside of matrix units: products of rows that these cannot
                                 read; 0: not said */
    AttentionCurve attention;
    MemoryCurve memory;
    double launch_s;           /* of a kernel, on the device's side */
    double host_launch_s;      /* that the host needs to start one; bounds small kernels */
    double link_bytes_per_s;   /* NVLink, one direction; 0: none */
    double link_eta;           /* of it, for large messages */
    double link_latency_s;     /* one way */
    double switch_bytes_per_s; /* NVLink switches that reduce (NVLS): bus bandwidth of an
                                  all-reduce; 0: none */
    double switch_s;           /* its latency */
    double idle_w, max_w;      /* max_w: sustained at most, a cap included */
    double tensor_w_share;     /* of max_w - idle_w, with busy matrix units, */
    double memory_w_share;     /* and with busy memory; the sum may exceed 1, max_w caps it */
    Range price_usd;           /* bought alone */
    /* of a processor; 0 cores: an accelerator. Figures above are then those of one core while all
     * are busy. */
    int64_t cores;
    double team_eta; /* speed of all cores as one rank, against that many ranks of one core each */
    OpRate *op;      /* [n_ops]; empty for accelerators */
    int n_ops;
    double op_speed; /* cluster_share: of one rank, in cores; else 1 */
    double threads;  /* cluster_share: of one rank; else 0 */
} DeviceSheet;

/* Each 0..1, of the peak (of bf16 for attention) and of the memory's bytes_per_s. Sizes at least 1.
 */
double cluster_matrix_efficiency(const DeviceSheet *device, MathKind math, int64_t m, int64_t n,
                                 int64_t k);
double cluster_attention_efficiency(const DeviceSheet *device, int64_t head_dim, double keys,
                                    bool backward);
double cluster_memory_efficiency(const DeviceSheet *device, double bytes);
/* Seconds of a measured op that reads this type; negative: the sheet has no measurement of it. */
double cluster_op_s(const DeviceSheet *device, const char *op, MathKind math, double flop,
                    double bytes);
/* A processor as one of `ranks` ranks sees it that share its cores evenly: cores / ranks threads
 * each, or a part of one core. Accelerators stay as they are. Texts and lists stay those of
 * `device`. */
DeviceSheet cluster_share(const DeviceSheet *device, int64_t ranks);

/* ---- a node ----------------------------------------------------------------------------- */

typedef struct NodeSheet {
    int64_t devices;         /* per host */
    int64_t link_domain;     /* devices that NVLink joins: `devices`, or a multiple of it (72) */
    int64_t nics;            /* per host */
    double nic_bytes_per_s;  /* of one, one direction */
    double pcie_bytes_per_s; /* device to host, one direction, per device */
    double host_memory_bytes;
    double storage_bytes, storage_bytes_per_s; /* local disks, writing */
    double overhead_w;                         /* everything but the devices, at work */
    Range price_usd;                           /* the whole server, devices and NICs included */
} NodeSheet;

/* ---- network ---------------------------------------------------------------------------- */

typedef enum NetworkKind {
    NETWORK_RAIL, /* devices of the same index share a leaf: other indices meet one tier further
                   up */
    NETWORK_TOR,  /* all NICs of a node hang on the same top-of-rack switch */
} NetworkKind;

/* Tiers from the leaves up. Two nodes meet in the lowest tier one of whose groups holds both. */
typedef struct Tier {
    const char *name; /* leaf, pod, spine, zone, building, ... */
    int64_t nodes;    /* of one group; a multiple of the tier below; the last tier holds all */
    double oversubscription; /* >= 1: bandwidth from below over bandwidth into this tier; multiplies
                                along the way */
    double latency_s;        /* one way, between two NICs that meet here */
} Tier;
enum { MAX_TIERS = 8 };

/* seconds = base_s + hops over NVLink * link_hop_s + hops over the network * network_hop_s (NCCL's
 * tuning model) */
typedef struct HopCosts {
    double base_s, link_hop_s, network_hop_s;
} HopCosts;

typedef struct Network {
    NetworkKind kind;
    Tier tier[MAX_TIERS];
    int n_tiers;
    double eta; /* of the NICs' rate, for large messages in an isolated collective */
    Range
        derating; /* further factor inside a training step: collisions, other groups, stragglers */
    HopCosts ring, tree; /* ring: 2 (n - 1) steps of an all-reduce, half of it else; tree: 2 log2 */
    double tree_eta;     /* of the ring's bandwidth */
    double message_s;    /* each peer of an all-to-all beyond the first */
    double compute_taken;   /* share of a device's units that a running collective takes, */
    double memory_taken;    /* and of its memory's rate */
    Range switch_price_usd; /* per device: switches, */
    Range optics_price_usd; /* and cables with optics */
    double device_w;        /* of switches and optics, per device */
} Network;

typedef struct Link {
    int tier;           /* -1: the same device; 0: the NVLink domain (or memory of one host); 1..:
                           network.tier[tier - 1] */
    double bytes_per_s; /* one direction, for one pair that has the way to itself, before eta and
                           derating */
    /* what is left to each device when all send across that tier at once */
    double share_bytes_per_s;
    double latency_s;
} Link;

/* ---- site ------------------------------------------------------------------------------- */

typedef struct Site {
    double power_w; /* of computers, at most; 0: no limit */
    double ramp_w;  /* largest step of power that the site takes; 0: any */
    Range pue;      /* power at the meter over power of the computers */
    Range usd_per_kwh;
    double storage_bytes; /* of the shared storage; 0: unknown */
    double storage_write_bytes_per_s,
        storage_read_bytes_per_s; /* of checkpoints, all nodes together */
    double storage_w_share;       /* storage and other nodes: share of the power of the computers */
} Site;

/* ---- failures --------------------------------------------------------------------------- */

typedef enum FailureUnit { PER_DEVICE, PER_NODE, PER_NIC, PER_GROUP, PER_JOB } FailureUnit;

/* One cause that ends a synchronous step. Poisson, independent between units. */
typedef struct FailureCause {
    const char *name; /* gpu, memory, nic, link, host, software, maintenance, zone, ... */
    FailureUnit unit;
    const char *tier; /* PER_GROUP: all nodes under one group of this tier are lost together */
    Range per_day;    /* events per unit */
    Range repair_s;   /* until what failed is back; 0: a restart is enough and no spare is needed */
} FailureCause;

/* What happens between a failure and the next useful step. Seconds. */
typedef struct Recovery {
    Range detect_s;
    Range spare_s;          /* a warm spare takes over */
    Range allocate_s;       /* another node is had without one */
    Range process_s;        /* start of processes and first step, apart from: */
    Range init_s;           /* making communicators among 1,000 devices; */
    double init_exponent;   /* among n: init_s * (n / 1000) ^ exponent */
    Range save_stall_s;     /* that training stands still for a checkpoint */
    Range peer_load_s;      /* states from copies in memory of other nodes */
    Range replica_stall_s;  /* elastic replicas: all stand still when one is lost, */
    Range replica_rejoin_s; /* and this passes until it is back; the others go on */
} Recovery;

/* ---- money ------------------------------------------------------------------------------ */

typedef struct Prices {
    Range facility_usd_per_w; /* building, power and cooling, per watt of computers */
    Range storage_share;      /* storage and other servers: share of the price of the servers */
    Range lifetime_years;     /* straight-line, of servers and network */
    Range facility_years;
    Range operation_share;   /* staff, spare parts, contracts: share of the capital per year */
    Range rent_usd_per_hour; /* of one device on the market, to compare with */
} Prices;

/* ---- all together ----------------------------------------------------------------------- */

typedef struct ClusterSource {
    const char *key, *words; /* "node.nic_bytes_per_s", or a section: "node" */
} ClusterSource;

typedef struct Cluster {
    const char *name, *about;
    DeviceSheet device;
    NodeSheet node;
    int64_t n_nodes;
    Network network;
    Site site;
    FailureCause *failure;
    int n_failures;
    Recovery recovery;
    Prices prices;
    ClusterSource *source;
    int n_sources;
    Arena arena;
} Cluster;

static inline int64_t cluster_devices(const Cluster *cluster)
{
    return cluster->n_nodes * cluster->node.devices;
}

/* `text` is a preset's name, a file, or one line such as "16384 h100, 8 per node, 400G, spine 1:4".
 * Unknown names and keys name the nearest, with file and line. ERR_ARG, or ERR_REFUSED where values
 * contradict each other. */
Status cluster_load(const char *text, Cluster *cluster);
Status cluster_parse(Bytes text, const char *name, Cluster *cluster); /* a file from memory */
void cluster_deinit(Cluster *cluster);
/* The same cluster with another number of devices: whole nodes; tiers above the need are cut off,
 * the last one grows. ERR_REFUSED names the nearest number that works. */
Status cluster_resize(Cluster *cluster, int64_t devices);
/* That a cluster made or changed by hand is inside its ranges and free of contradictions. */
Status cluster_check(const Cluster *cluster);
/* As a file that loads to the same cluster. */
void cluster_text(const Cluster *cluster, Str *out);
/* Where a value comes from, in words: of the key, else of the nearest section around it; "" when
 * nobody said. */
const char *cluster_source(const Cluster *cluster, const char *key);

/* ---- fitting ---------------------------------------------------------------------------- */

typedef struct MatrixPoint {
    int64_t m, n, k;
    double flop_per_s; /* measured */
} MatrixPoint;
/* eta_inf and k_half of the curve that comes nearest to the points (least squares of logarithms);
 * memory traffic of element_bytes bounds it as it does the device. Returns the root mean square of
 * log(predicted / measured). */
double cluster_fit_matrix(const DeviceSheet *device, MathKind math, double element_bytes,
                          const MatrixPoint *point, int n, MatrixCurve *curve);
/* The rate that the sheet predicts for a product alone, launch included. */
double cluster_matrix_flop_per_s(const DeviceSheet *device, MathKind math, double element_bytes,
                                 int64_t m, int64_t n, int64_t k);
typedef struct AttentionPoint {
    int64_t head_dim;
    double keys, flop_per_s;
} AttentionPoint;
double cluster_fit_attention(const DeviceSheet *device, const AttentionPoint *point, int n,
                             AttentionCurve *curve);

/* Devices are numbered node by node. Both must be inside the cluster. */
Link cluster_link(const Cluster *cluster, int64_t a, int64_t b);
/* The tier in which a group of `size` devices meets, of which each next is `stride` devices further
 * (tensor parallel: stride 1; data parallel: ranks of a replica), and its link. */
Link cluster_group_link(const Cluster *cluster, int64_t first, int64_t stride, int64_t size);

typedef struct ClusterPreset {
    const char *name, *about;
    int about_length; /* letters of `about`, which goes on */
    bool is_device;   /* a device's sheet; as a cluster it is one node of it */
} ClusterPreset;
ClusterPreset cluster_list(int i); /* .name NULL past the last */

#endif
