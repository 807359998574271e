/* fleet: what a cluster does over weeks: how it fails, what of its time is useful, what power it
 * takes, what it costs.
 *
 * What it is.   Rates of failure by cause, checkpoint intervals, spares, goodput as a distribution
 *               over simulated
 *               months; power of a step's phases and its swings; capital, running cost, time and
 *               money for tokens.
 * Depends on.   base, setting, cluster
 * Owns.         Nothing: results are values, or lists in the caller's arena.
 * Invariants.   Pure functions of their arguments (and a seed). A job is given by its figures: who
 *               runs it, and how
 *               a step is made up, is known elsewhere.
 * Use:
 *     GoodputJob job = {.cluster = &c, .nodes = 12500, .replicas = 12, .state_bytes = 28e12,
 *     .months = 200};
 *     Goodput g;
 *     TRY(fleet_goodput(&job, RECOVER_REPLICAS, &arena, &g));
 *     log_info("%.1f%% useful (%.1f to %.1f)", 100 * g.mean, 100 * g.p5, 100 * g.p95);
 */
#ifndef FLEET_FLEET_H
#define FLEET_FLEET_H

#include "cluster/cluster.h"

/* ---- failures --------------------------------------------------------------------------- */

/* Events per second of one cause in a job on so many nodes: groups of a tier count when partly
 * used. */
double fleet_cause_rate(const Cluster *cluster, const FailureCause *cause, int64_t nodes,
                        Level level);
double fleet_failure_rate(const Cluster *cluster, int64_t nodes,
                          Level level); /* of all causes, per second */
/* Nodes that one event takes out of the job until they are repaired; 0 where a restart is enough.
 */
double fleet_cause_nodes(const Cluster *cluster, const FailureCause *cause, int64_t nodes);
/* Spares with which failed nodes are replaced at once with probability `quantile`, in steady state:
 * failures during a repair are Poisson. Causes that take whole groups are left out: spares of that
 * size nobody keeps. */
int64_t fleet_spares(const Cluster *cluster, int64_t nodes, double quantile, Level level);
#define FLEET_SPARES 0.99 /* the quantile that a job is given, unless it says otherwise */
/* Least k with P(N <= k) >= quantile, N Poisson of this mean. */
int64_t fleet_poisson_quantile(double mean, double quantile);

/* ---- checkpoints ------------------------------------------------------------------------ */

/* w: seconds that training stands still per checkpoint; mtbf_s: between failures; u0: from failure
 * to the first new step; interval: useful seconds between checkpoints. */
double fleet_interval_young(double w, double mtbf_s); /* Young 1974, Daly 2006: sqrt(2 w M) */
/* Useful share to first order, (1 - (u0 + D/2)/M) / (1 + w/D); for u0 + D/2 far below M. At least
 * 0. */
double fleet_useful_first_order(double interval, double w, double mtbf_s, double u0);
/* Daly's exact form for exponential failures, also during recovery: D / (M e^(u0/M) (e^((D+w)/M) -
 * 1)). */
double fleet_useful(double interval, double w, double mtbf_s, double u0);
double fleet_interval_best(double w,
                           double mtbf_s); /* makes fleet_useful largest; u0 does not matter */
/* Elastic replicas: 1 - stall/M - rejoin/(R M). At least 0. */
double fleet_useful_replicas(int64_t replicas, double mtbf_s, double stall_s, double rejoin_s);
/* Seconds in which a checkpoint of all ranks reaches the shared storage: the slower of storage and
 * of hosts. */
double fleet_save_s(const Cluster *cluster, int64_t nodes, double state_bytes);
double fleet_load_s(const Cluster *cluster, int64_t nodes, double state_bytes);
/* Making communicators among so many devices. */
double fleet_init_s(const Cluster *cluster, int64_t devices, Level level);

/* ---- goodput ---------------------------------------------------------------------------- */

typedef enum RecoveryScheme {
    RECOVER_RESTART,  /* the whole job, from storage, once another node is had */
    RECOVER_SPARES,   /* the same with warm spares */
    RECOVER_MEMORY,   /* warm spares, and copies in the memory of other nodes */
    RECOVER_REPLICAS, /* the other replicas go on */
    RECOVERY_SCHEMES
} RecoveryScheme;
const char *fleet_scheme_name(RecoveryScheme scheme);

typedef enum GoodputLoss {
    LOST_SAVING,    /* training stands still for checkpoints */
    LOST_WORK,      /* done and lost */
    LOST_DETECTION, /* until the alarm */
    LOST_WAITING,   /* for a node */
    LOST_RESTART,   /* processes, communicators, loading; the stall of replicas */
    LOST_REPLICAS,  /* fewer replicas at work */
    GOODPUT_LOSSES
} GoodputLoss;
const char *fleet_loss_name(GoodputLoss loss);

typedef struct GoodputJob {
    const Cluster *cluster;
    int64_t nodes;      /* that compute */
    int64_t spares;     /* warm, beside them; negative: fleet_spares at FLEET_SPARES */
    int64_t replicas;   /* data-parallel, each able to go on without the others; 0: 1 */
    double state_bytes; /* of a checkpoint, all ranks */
    double interval_s;  /* between checkpoints; 0: the best that the storage can take */
    double step_s;      /* what is lost at least; 0 */
    int months;         /* of 30 days; 0: 100 */
    bool fixed; /* central rates and times; else each month draws rates, each event its times
                   (triangular) */
    uint64_t seed;
} GoodputJob;

typedef struct Goodput {
    double mean, p5, p50, p95;   /* useful share of the time, over months */
    double lost[GOODPUT_LOSSES]; /* mean shares; with `mean` they sum to 1 */
    double interval_s;
    double failures_per_day; /* mean */
    int64_t spares;
    double *month; /* [n_months] shares, rising; in the arena */
    int n_months;
} Goodput;

/* Simulates months of failures, event by event. ERR_REFUSED where the job has more nodes than the
 * cluster, or copies in memory do not fit into the hosts. */
Status fleet_goodput(const GoodputJob *job, RecoveryScheme scheme, Arena *arena, Goodput *out);

/* ---- power ------------------------------------------------------------------------------ */

/* A part of a step in which devices do about the same: how busy matrix units and memory are, 0
 * to 1. */
typedef struct PowerPhase {
    const char *name;
    double share; /* of the step */
    double tensor, memory;
} PowerPhase;

double fleet_device_w(const DeviceSheet *device, double tensor, double memory);

typedef struct Power {
    double device_w; /* mean of one device */
    double it_w;     /* mean of all nodes, network and storage */
    double peak_w,
        least_w;         /* of computers, in the phases of a step that ask most and least for it */
    double idle_w;       /* of computers while the job stands still */
    double step_swing_w; /* peak - least: every step, all nodes together */
    double failure_swing_w; /* mean - idle */
    Range meter_w;          /* mean, with the site's PUE */
    Range energy_kwh_per_day;
    bool over_limit; /* peak above site.power_w */
    bool over_ramp;  /* the larger swing above site.ramp_w */
} Power;
/* Phases whose shares sum to at most 1; the rest of the step waits. `nodes` compute, `spares` idle.
 */
Power fleet_power(const Cluster *cluster, int64_t nodes, int64_t spares, const PowerPhase *phase,
                  int n_phases);

/* ---- money ------------------------------------------------------------------------------ */

typedef enum CapitalPart {
    CAPITAL_SERVERS,
    CAPITAL_SWITCHES,
    CAPITAL_OPTICS,
    CAPITAL_STORAGE,
    CAPITAL_FACILITY,
    CAPITAL_PARTS
} CapitalPart;
const char *fleet_capital_name(CapitalPart part);

typedef struct Capital {
    Range part_usd[CAPITAL_PARTS];
    Range total_usd;
    double it_w; /* that the facility is built for: every device at its limit */
} Capital;
Capital fleet_capital(const Cluster *cluster, int64_t nodes);

typedef struct RunningCost {
    Range
        capital_usd_per_hour; /* servers, network, storage over their life; facility over its own */
    Range energy_usd_per_hour;
    Range operation_usd_per_hour;
    Range total_usd_per_hour;
    Range device_usd_per_hour; /* total, one device */
    Range rent_usd_per_hour;   /* the same devices on the market */
} RunningCost;
RunningCost fleet_running_cost(const Cluster *cluster, int64_t nodes, const Power *power);

/* Low: with low prices and a long life. `tokens_per_s` are useful ones: step rate times goodput. */
Range fleet_usd_per_tokens(const RunningCost *cost, double tokens, double tokens_per_s);

/* ---- time ------------------------------------------------------------------------------- */

typedef struct TokenBudget {
    double tokens;           /* to train on */
    double batch_tokens;     /* of a step */
    double max_batch_tokens; /* beyond it larger batches learn no more per step; 0: no limit */
    double step_s, goodput;
    int64_t devices;
} TokenBudget;

typedef struct TokenTime {
    int64_t steps;
    double seconds, days;
    double tokens_per_device; /* in a step */
    bool starved; /* fewer than FLEET_MIN_TOKENS of them: matrix products become too thin */
} TokenTime;
/* Rows per step and device below which utilisation collapses (cluster.md 2.19: 1-2 K). */
enum { FLEET_MIN_TOKENS = 1024 };

/* ERR_REFUSED where the batch exceeds its limit or the budget, with the nearest that works. */
Status fleet_token_time(const TokenBudget *budget, TokenTime *out);
/* How many devices a batch of at most so many tokens keeps busy; more of them gain nothing. */
int64_t fleet_useful_devices(double max_batch_tokens);

/* ---- all of it for one job -------------------------------------------------------------- */

/* What a plan of a step knows. */
typedef struct FleetJob {
    const Cluster *cluster;
    int64_t devices;    /* that compute: whole nodes */
    int64_t replicas;   /* data-parallel */
    int64_t idle;       /* nodes that are there anyway: spares, and paid for */
    double state_bytes; /* of a checkpoint, all ranks: 12 to 14 bytes per weight */
    double step_s, batch_tokens;
    double max_batch_tokens; /* 0: no limit */
    double tokens;           /* to train on; 0: nothing is said of times */
    const PowerPhase *phase; /* of a step */
    int n_phases;
    int months; /* simulated; 0: 100 */
    uint64_t seed;
} FleetJob;

typedef struct FleetReport {
    FleetJob job;
    int64_t nodes, spares;
    double mtbf_s;
    Goodput goodput[RECOVERY_SCHEMES];
    bool possible[RECOVERY_SCHEMES]; /* copies in memory may not fit */
    RecoveryScheme
        scheme; /* the better one of those that drover does today: warm spares, copies in memory */
    Power power;
    Capital capital;
    RunningCost cost;
    double useful_tokens_per_s;
    Range usd_per_trillion_tokens;
    bool has_time;
    TokenTime time;
    Range run_usd; /* of all tokens */
    double run_kwh;
} FleetReport;

/* ERR_REFUSED as fleet_goodput and fleet_token_time do, and where devices are no whole nodes of the
 * cluster. */
Status fleet_report_make(const FleetJob *job, Arena *arena, FleetReport *report);
void fleet_report_text(const FleetReport *report, Str *out); /* for people */
/* Members of one JSON object, without its braces: goodput, power_w, capex_usd and what they are
 * made of. */
void fleet_report_json(const FleetReport *report, Str *out);

#endif
