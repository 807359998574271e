/* outlook: what somebody who decides asks: what a plan comes to over weeks, which of two is better
 * and why, what would fit, what cluster, model or size it takes.
 *
 * What it is.   Outlook: a plan with what the fleet makes of it (goodput, power, money, days).
 *               Comparisons, remedies for what does not fit, the same layout on more and fewer
 *               devices, and the inverse questions.
 * Depends on.   base, run, cluster, fleet, planner
 * Owns.         An Outlook owns its plan and what the fleet says; cluster and run file are
 *               borrowed.
 * Invariants.   Every figure comes from a plan or from the fleet; nothing is estimated here. What
 *               is refused says the nearest that works, which was planned.
 * Use:
 *     Outlook o;
 *     TRY(outlook_make(&config, &cluster, &(PlanOptions){.jitter = -1}, 15e12, &o));
 *     outlook_text(&o, &out);
 *     outlook_deinit(&o);
 */
#ifndef OUTLOOK_OUTLOOK_H
#define OUTLOOK_OUTLOOK_H

#include "fleet/fleet.h"
#include "planner/planner.h"

/* ---- one plan over weeks ---------------------------------------------------------------- */

typedef struct Outlook {
    const Cluster *cluster;
    Plan plan;
    double tokens;  /* to train on; 0: nothing is said of times */
    bool has_fleet; /* of whole nodes of accelerators, where the layout fits */
    FleetReport fleet;
    Arena arena;
} Outlook;

/* A layout that does not fit is OK, and the plan not `fits`. ERR_REFUSED as plan_make; and where
 * the budget is less than one batch. */
Status outlook_make(const RunConfig *config, const Cluster *cluster, const PlanOptions *options,
                    double tokens, Outlook *out);
void outlook_deinit(Outlook *outlook);
void outlook_text(const Outlook *outlook, Str *out);
void outlook_json(const Outlook *outlook, Str *out); /* members of one object, without braces */

/* Days for the tokens, failures included where they are known; 0 without a budget. */
double outlook_days(const Outlook *outlook);

/* ---- steps as a distribution ------------------------------------------------------------ */

#define SLOW_SHARE 0.005 /* of machines, MegaScale's (outlook/jitter.c) */
#define SLOW_BY    0.1   /* longer kernels */

typedef struct Jitter {
    double p5_s, p50_s, p95_s; /* of steps, every rank as fast as the others on average */
    double slow_step_s;        /* a step beside one slow machine or more */
    double slow_nodes;         /* expected number of them */
    double any_slow;           /* probability that there is one, unless it is looked for */
} Jitter;
void outlook_jitter(const Outlook *outlook, Jitter *out);
void outlook_jitter_text(const Outlook *outlook, Str *out);
void outlook_jitter_json(const Outlook *outlook, Str *out); /* a member, with a comma before it */
/* The largest of n standard normal numbers is below this with probability q. */
double outlook_slowest_of(double n, double q);

/* ---- what would do instead -------------------------------------------------------------- */

/* ERR_REFUSED with a line: what of the plan does not fit, and the nearest settings that do. */
Status outlook_refuse(const Outlook *outlook);
/* The sentence of a layout that was refused with this status, and the nearest that is not. */
Status outlook_refuse_layout(const RunConfig *config, const Cluster *cluster, Status status);
/* The settings of batch and layout that differ, as on the command line. */
void outlook_changes(const RunConfig *before, const RunConfig *after, Str *out);

/* ---- more and fewer devices ------------------------------------------------------------- */

typedef struct ScalePoint {
    int64_t devices;
    bool fits;
    double step_s, tokens_per_s, mfu;
    double days, goodput; /* 0: without a budget; without what the fleet says */
    Range usd_per_trillion_tokens;
} ScalePoint;

enum { SCALE_POINTS = 16 };
typedef struct Scaling {
    ScalePoint point[SCALE_POINTS]; /* by devices */
    int n, here;                    /* which is the plan itself */
} Scaling;
/* The plan's layout and batch with up to 32 times fewer and 8 times more replicas, where they
 * divide. */
void outlook_scale(const Outlook *outlook, Scaling *out);

/* ---- comparisons ------------------------------------------------------------------------ */

typedef struct Contender {
    const char *label; /* borrowed */
    Outlook outlook;
} Contender;
enum { MAX_CONTENDERS = 8, COMPARE_ROWS = 16 + STEP_PARTS };

typedef struct CompareRow {
    const char *name;
    double value[MAX_CONTENDERS];
} CompareRow;
/* Figures, and from *first_part on the parts of a step; rows that are 0 for all are left out. */
int outlook_compare_rows(const Contender *contender, int n, CompareRow row[COMPARE_ROWS],
                         int *first_part);
const char *outlook_part_unit(const Contender *contender, int n); /* of these parts */
/* Which does most for a device's time: of those that fit, if any does. */
int outlook_better(const Contender *contender, int n);
/* One line: the better one against the next, by how much, and the largest differences of the
 * breakdown. At least two contenders. */
void outlook_why(const Contender *contender, int n, Str *out);
void outlook_compare_text(const Contender *contender, int n, Str *out);
void outlook_compare_json(const Contender *contender, int n, Str *out); /* members, no braces */

/* ---- the other way round ---------------------------------------------------------------- */

/* Sizes are tried one after the other, each with a search over layouts; what was tried is logged.
 */
typedef struct Question {
    const RunConfig *config; /* borrowed, as is the cluster */
    const Cluster *cluster;  /* of the kind */
    int64_t max_batch;       /* sequences in a step at most */
    double tokens, days;
    double max_usd;         /* that the run may cost; 0: any */
    int simulate, threads;  /* of each search */
    ProfileStore *profiles; /* of earlier searches for this run file; NULL: none */
} Question;

typedef struct Answer {
    Cluster cluster; /* the question's with another number of devices; borrows its texts */
    int64_t devices, max_batch;
    Outlook outlook;
} Answer;
void outlook_answer_destroy(Answer *answer);

/* The fewest devices (numbers of nodes with small factors) that train the tokens in the days.
 * ERR_REFUSED where more of them do not help, with what comes nearest. */
typedef struct SmallestAnswer {
    Answer *answer;        /* the caller's to destroy */
    int64_t devices_below; /* the next smaller size that was tried; 0: none */
    double days_below;     /* that it takes; INFINITY: it does not hold the model */
} SmallestAnswer;
Status outlook_smallest(const Question *question, SmallestAnswer *out);

/* The sentence of a search that was refused with this status since nothing fits, and how many
 * devices would do. */
Status outlook_refuse_search(const Question *question, Status status);

/* What the limit of the batch costs where it leaves a device fewer than FLEET_MIN_TOKENS a step. */
typedef struct BatchLimit {
    double tokens, tokens_per_device;
    int64_t times;   /* with a limit so many times as large all devices have enough */
    int64_t devices; /* so many have enough with this one */
    double rate, rate_larger, rate_fewer; /* tokens/s of the plan and of both; 0: nothing fits */
} BatchLimit;
/* Two searches; false, and none, where devices have enough. */
bool outlook_batch_limit(const Question *question, const Plan *plan, BatchLimit *out);
void outlook_batch_limit_text(const BatchLimit *limit, Str *out);
void outlook_batch_limit_json(const BatchLimit *limit,
                              Str *out); /* a member, with a comma before */

/* From what a run file was loaded, so that it can be loaded with other sizes. */
typedef struct ConfigSource {
    const char *path; /* NULL: none */
    const char *const *settings;
    int n;
} ConfigSource;

/* The largest model (width, heads, feed-forwards and layers grow alike by eighths of a doubling)
 * that the cluster trains in question.days on so many tokens for each active weight (20: Hoffmann
 * 2022). ERR_REFUSED where even the smallest does not. */
typedef struct LargestAnswer {
    RunConfig *config;
    Answer *answer;
    double tokens;
} LargestAnswer;
Status outlook_largest(Arena *arena, const Question *question, const ConfigSource *source,
                       double tokens_per_weight, LargestAnswer *out);
void outlook_largest_deinit(LargestAnswer *answer);

/* The cluster as it is; twice of it with the same limit of the batch; and with twice the limit. */
enum { AS_IT_IS, DOUBLED, DOUBLED_BATCH, DOUBLINGS };
typedef struct Doubling {
    Answer *of[DOUBLINGS];
} Doubling;
Status outlook_doubling(const Question *question, Doubling *out);
void outlook_doubling_deinit(Doubling *doubling);
/* Useful tokens per second over those of the cluster as it is. */
double outlook_speedup(const Doubling *doubling, int which);
/* The same if replicas went on without one that is lost, which drover does not do today. */
double outlook_elastic_speedup(const Doubling *doubling, int which);

#endif
