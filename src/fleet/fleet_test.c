/* Against worked numbers: published fleets, closed forms, and sums done by hand. */
#include "base/testing.h"
#include "fleet/fleet.h"

static Cluster load(const char *text)
{
    Cluster c;
    assert_ok(cluster_load(text, &c));
    return c;
}

/* ---- failures --------------------------------------------------------------------------- */

/* Llama 3: one unexpected interruption in 3.1 h on 16,384 GPUs, 3.8 per 1,000 node-days; its
 * fabric's crashes come on top. Meta's 100K: 18 minutes. */
static void test_time_between_failures(void **state)
{
    (void)state;
    Cluster c = load("meta-24k");
    double per_day = fleet_failure_rate(&c, 2048, LEVEL_CENTRAL) * 86400;
    assert_near(per_day, 2048 * 3.79e-3 + 6 * 0.05, 0.01);
    assert_near(1 / fleet_failure_rate(&c, 2048, LEVEL_CENTRAL), 3.1 * 3600, 0.05);
    assert_near(fleet_failure_rate(&c, 1000, LEVEL_LOW) * 86400, 2.3, 0.25);
    assert_near(fleet_failure_rate(&c, 1000, LEVEL_HIGH) * 86400, 6.5, 0.25);
    cluster_deinit(&c);
    c = load("meta-100k");
    assert_near(1 / fleet_failure_rate(&c, 12500, LEVEL_CENTRAL), 18 * 60, 0.1);
    assert_near(1 / fleet_failure_rate(&c, 4096, LEVEL_CENTRAL), 2.5 * 3600,
                0.7); /* zones make it less */
    cluster_deinit(&c);
}

/* A group counts once however little of it is used. */
static void test_groups(void **state)
{
    (void)state;
    Cluster c = load("meta-24k");
    FailureCause pod = {"pod", PER_GROUP, "pod", {1, 1, 1}, {0, 0, 0}};
    assert_near(fleet_cause_rate(&c, &pod, 1, LEVEL_CENTRAL) * 86400, 1, 1e-12);
    assert_near(fleet_cause_rate(&c, &pod, 385, LEVEL_CENTRAL) * 86400, 2, 1e-12);
    assert_true(fleet_cause_nodes(&c, &pod, 3072) == 0);
    pod.repair_s = (Range){60, 60, 60};
    assert_true(fleet_cause_nodes(&c, &pod, 3072) == 384);
    assert_true(fleet_cause_nodes(&c, &pod, 100) == 100);
    pod.tier = ""; /* the largest below the last */
    assert_near(fleet_cause_rate(&c, &pod, 3072, LEVEL_CENTRAL) * 86400, 8, 1e-12);
    cluster_deinit(&c);
}

/* 12,500 nodes at 2.3 per 1,000 and day: a day of repair means 29 away, 42 in the 99th percentile;
 * three days 109. */
static void test_spares(void **state)
{
    (void)state;
    assert_int_equal(fleet_poisson_quantile(28.75, 0.99), 42);
    assert_int_equal(fleet_poisson_quantile(86.25, 0.99), 109);
    assert_int_equal(fleet_poisson_quantile(240, 0.99), 277);
    assert_int_equal(fleet_poisson_quantile(0, 0.99), 0);
    assert_int_equal(fleet_poisson_quantile(0.01, 0.99), 0);
    assert_int_equal(fleet_poisson_quantile(2, 0.5), 2);
    assert_near((double)fleet_poisson_quantile(1e6, 0.5), 1e6, 1e-5);
    Cluster c = load("h100");
    c.n_nodes = 12500;
    FailureCause one = {"node", PER_NODE, "", {2.3e-3, 2.3e-3, 2.3e-3}, {86400, 86400, 86400}};
    c.failure = &one;
    c.n_failures = 1;
    assert_int_equal(fleet_spares(&c, 12500, 0.99, LEVEL_CENTRAL), 42);
    FailureCause both[2] = {one, {"pod", PER_GROUP, "", {1, 1, 1}, {86400, 86400, 86400}}};
    c.network.tier[c.network.n_tiers++] = (Tier){"all", 12500, 1, 1e-5};
    c.network.tier[0].nodes = 500;
    c.failure = both;
    c.n_failures = 2;
    assert_int_equal(fleet_spares(&c, 12500, 0.99, LEVEL_CENTRAL),
                     42); /* whole groups are not spared for */
    cluster_deinit(&c);
}

/* ---- checkpoints ------------------------------------------------------------------------ */

/* The table of cluster.md 2.13, to the per cent it prints: mean time between failures, then for
 * each stall w the useful share with 60, 180 and 600 s from failure to restart. */
static void test_table_of_useful_shares(void **state)
{
    (void)state;
    static const double mtbf[] = {3.1 * 3600, 50 * 60, 18 * 60}, w[] = {0.5, 5, 30},
                        u0[] = {60, 180, 600};
    static const double table[3][3][3] = {
        {{98.5, 97.5, 93.7}, {96.5, 95.5, 91.8}, {92.4, 91.4, 87.7}},
        {{96, 92, 78}, {92, 89, 75}, {85, 81, 68}},
        {{92, 81, 42}, {86, 75, 38}, {74, 64, 29}}};
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < 3; k++)
            for (int j = 0; j < 3; j++) {
                double useful = 100 * fleet_useful_first_order(fleet_interval_young(w[k], mtbf[i]),
                                                               w[k], mtbf[i], u0[j]);
                if (fabs(useful - table[i][k][j]) > 0.75)
                    fail_msg("M %g w %g u0 %g: %g against %g", mtbf[i], w[k], u0[j], useful,
                             table[i][k][j]);
            }
}

static void test_best_interval(void **state)
{
    (void)state;
    assert_near(fleet_interval_young(0.5, 18 * 60), sqrt(1080), 1e-12);
    for (double w = 0.5; w < 500; w *= 5) {
        double best = fleet_interval_best(w, 1080), useful = fleet_useful(best, w, 1080, 60);
        assert_true(useful >= fleet_useful(best * 1.01, w, 1080, 60));
        assert_true(useful >= fleet_useful(best * 0.99, w, 1080, 60));
    }
    /* both forms agree while everything is short against the time between failures */
    assert_near(fleet_interval_best(0.5, 1e6), fleet_interval_young(0.5, 1e6), 0.01);
    assert_near(fleet_useful(1000, 0.5, 1e6, 60), fleet_useful_first_order(1000, 0.5, 1e6, 60),
                1e-3);
}

/* Meta at 100K: 44% with restarts of 10 min, 80% with replicas: 3 min stall, 7 min at 11/12 speed.
 */
static void test_replicas_closed_form(void **state)
{
    (void)state;
    assert_near(fleet_useful_replicas(12, 18 * 60, 180, 420), 0.80, 0.005);
    assert_near(fleet_useful_first_order(fleet_interval_young(0.5, 1080), 0.5, 1080, 600), 0.44,
                0.05);
    assert_near(fleet_useful_first_order(fleet_interval_young(0.5, 1080), 0.5, 1080, 60), 0.92,
                0.01);
}

/* NCCL's start by Meta: 14.5, 56, 265 s among 8K, 32K, 96K. 405B: 5 to 6 TB to 2 TB/s. */
static void test_times(void **state)
{
    (void)state;
    Cluster c = load("meta-24k");
    assert_near(fleet_init_s(&c, 8192, LEVEL_CENTRAL), 14.5, 0.05);
    assert_near(fleet_init_s(&c, 32768, LEVEL_CENTRAL), 56, 0.35);
    assert_near(fleet_init_s(&c, 98304, LEVEL_CENTRAL), 265, 0.05);
    assert_near(fleet_save_s(&c, 2048, 5.7e12), 2.85, 1e-9);
    assert_near(fleet_save_s(&c, 8, 4e12), 10, 1e-9); /* eight hosts send 400 GB/s */
    cluster_deinit(&c);
}

/* ---- goodput ---------------------------------------------------------------------------- */

/* One cause, fixed times: what the closed forms are about. */
static Cluster plain(double mtbf_s, double detect_s, FailureCause *cause)
{
    Cluster c = load("h100");
    c.n_nodes = 1000;
    *cause = (FailureCause){.name = "node", .unit = PER_JOB, .tier = ""};
    cause->per_day = (Range){86400 / mtbf_s, 86400 / mtbf_s, 86400 / mtbf_s};
    c.failure = cause;
    c.n_failures = 1;
    c.recovery = (Recovery){.detect_s = {detect_s, detect_s, detect_s}, .save_stall_s = {5, 5, 5}};
    c.site.storage_write_bytes_per_s = c.site.storage_read_bytes_per_s = 1e15;
    return c;
}

static Goodput simulate(const GoodputJob *job, RecoveryScheme scheme, Arena *arena)
{
    Goodput g;
    assert_ok(fleet_goodput(job, scheme, arena, &g));
    double sum = g.mean;
    for (int i = 0; i < GOODPUT_LOSSES; i++) sum += g.lost[i];
    assert_near(sum, 1, 1e-6);
    assert_true(g.p5 <= g.p50 && g.p50 <= g.p95);
    return g;
}

static void test_simulation_meets_closed_form(void **state)
{
    (void)state;
    static const double mtbf[] = {1080, 3000, 11160}, u0[] = {60, 600};
    Arena arena = {0};
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < 2; k++) {
            FailureCause cause;
            Cluster c = plain(mtbf[i], u0[k], &cause);
            GoodputJob job = {.cluster = &c,
                              .nodes = 1000,
                              .state_bytes = 1e9,
                              .months = 40,
                              .fixed = true,
                              .seed = 7};
            Goodput g = simulate(&job, RECOVER_RESTART, &arena);
            assert_near(g.interval_s, fleet_interval_best(5, mtbf[i]), 1e-9);
            assert_near(g.failures_per_day, 86400 / mtbf[i], 0.03);
            assert_near(g.mean, fleet_useful(g.interval_s, 5, mtbf[i], u0[k]), 0.01);
            cluster_deinit(&c);
        }
    arena_deinit(&arena);
}

/* A stall that any failure begins anew: e^(-stall/M) of the time is left, less what replicas are
 * away. */
static void test_simulated_replicas(void **state)
{
    (void)state;
    Arena arena = {0};
    FailureCause cause;
    Cluster c = plain(1080, 10, &cause);
    cause.unit = PER_NODE;
    cause.per_day = (Range){0.08, 0.08, 0.08}; /* 1,000 nodes: every 18 min */
    c.recovery.replica_stall_s = (Range){180, 180, 180};
    c.recovery.replica_rejoin_s = (Range){420, 420, 420};
    c.recovery.save_stall_s = (Range){0};
    GoodputJob job = {.cluster = &c,
                      .nodes = 1000,
                      .replicas = 12,
                      .state_bytes = 1e9,
                      .months = 40,
                      .fixed = true,
                      .seed = 7};
    Goodput g = simulate(&job, RECOVER_REPLICAS, &arena);
    assert_near(g.mean, exp(-180.0 / 1080) * (1 - 420.0 / 1080 / 12), 0.02);
    assert_near(g.mean, fleet_useful_replicas(12, 1080, 180, 420), 0.04); /* to first order */
    assert_true(g.lost[LOST_REPLICAS] > 0.02 && g.lost[LOST_WORK] == 0);
    job.step_s = 20;
    assert_near(simulate(&job, RECOVER_REPLICAS, &arena).lost[LOST_WORK], 20.0 / 1080, 0.2);
    job.replicas = 1;
    assert_true(simulate(&job, RECOVER_REPLICAS, &arena).mean < 0.65);
    cluster_deinit(&c);
    arena_deinit(&arena);
}

/* The same seed gives the same bits; months differ; schemes stand in their order at 100K. */
static void test_schemes_at_100k(void **state)
{
    (void)state;
    Arena arena = {0};
    Cluster c = load("meta-100k");
    c.site.storage_read_bytes_per_s =
        1e11; /* at Meta's 2 TB/s copies in memory gain nothing on loading */
    GoodputJob job = {.cluster = &c,
                      .nodes = 12288,
                      .spares = -1,
                      .replicas = 12,
                      .state_bytes = 28e12,
                      .step_s = 20,
                      .months = 30};
    Goodput restart = simulate(&job, RECOVER_RESTART, &arena),
            spares = simulate(&job, RECOVER_SPARES, &arena);
    Goodput memory = simulate(&job, RECOVER_MEMORY, &arena),
            replicas = simulate(&job, RECOVER_REPLICAS, &arena);
    Goodput again = simulate(&job, RECOVER_REPLICAS, &arena);
    assert_memory_equal(replicas.month, again.month, sizeof(double) * 30);
    assert_true(restart.mean < spares.mean && spares.mean <= memory.mean &&
                memory.mean < replicas.mean);
    assert_true(replicas.mean > 0.6 && replicas.mean < 0.9);
    assert_true(restart.p5 < restart.p95);
    assert_int_equal(restart.spares, 0);
    assert_int_equal(spares.spares, fleet_spares(&c, 12288, 0.99, LEVEL_CENTRAL));
    assert_true(spares.lost[LOST_WAITING] < restart.lost[LOST_WAITING]);
    job.seed = 1;
    Goodput other = simulate(&job, RECOVER_REPLICAS, &arena);
    assert_true(other.mean != replicas.mean);
    assert_near(other.mean, replicas.mean, 0.03);
    cluster_deinit(&c);
    arena_deinit(&arena);
}

/* Without spares every failed node is waited for; with enough hardly ever. */
static void test_spares_run_out(void **state)
{
    (void)state;
    Arena arena = {0};
    FailureCause cause;
    Cluster c = plain(3600, 10, &cause);
    cause = (FailureCause){
        "node", PER_NODE, "", {0.024, 0.024, 0.024}, {86400, 86400, 86400}}; /* 24 away */
    c.recovery.spare_s = (Range){1, 1, 1};
    c.recovery.allocate_s = (Range){1e6, 1e6, 1e6};
    GoodputJob job = {
        .cluster = &c, .nodes = 1000, .state_bytes = 1e9, .months = 5, .fixed = true, .spares = 40};
    Goodput enough = simulate(&job, RECOVER_SPARES, &arena);
    assert_true(enough.lost[LOST_WAITING] < 0.002);
    job.spares = 10;
    Goodput few = simulate(&job, RECOVER_SPARES, &arena);
    assert_true(few.lost[LOST_WAITING] > 0.3);
    cluster_deinit(&c);
    arena_deinit(&arena);
}

static void test_goodput_refused(void **state)
{
    (void)state;
    Arena arena = {0};
    Cluster c = load("hgx");
    Goodput g;
    GoodputJob job = {.cluster = &c, .nodes = 2, .state_bytes = 1e9};
    assert_int_equal(fleet_goodput(&job, RECOVER_RESTART, &arena, &g), ERR_REFUSED);
    assert_non_null(strstr(status_message(), "the cluster has 1"));
    job = (GoodputJob){.cluster = &c, .nodes = 1, .state_bytes = 1e12};
    assert_int_equal(fleet_goodput(&job, RECOVER_MEMORY, &arena, &g), ERR_REFUSED);
    assert_non_null(strstr(status_message(), "enough from 2 nodes on"));
    cluster_deinit(&c);
    arena_deinit(&arena);
}

/* ---- power ------------------------------------------------------------------------------ */

/* A node of 8 H100 draws 7.75 kW in typical training, at most 8.4; 100,000 devices 104 to 140 MW.
 */
static void test_power(void **state)
{
    (void)state;
    Cluster c = load("colossus-100k");
    assert_near(fleet_device_w(&c.device, 1, 1), 700, 1e-12);
    assert_near(fleet_device_w(&c.device, 0, 0), 70, 1e-12);
    assert_near(fleet_device_w(&c.device, 0, 1), 400, 0.01);
    assert_near(8 * fleet_device_w(&c.device, 1, 1) + c.node.overhead_w, 8400, 0.02);
    static const PowerPhase step[] = {
        {"products", 0.8, 1, 0.3}, {"memory", 0.12, 0, 0.9}, {"exchange", 0.08, 0, 0.3}};
    Power p = fleet_power(&c, 12500, 0, step, 3);
    assert_near(8 * p.device_w + c.node.overhead_w, 7750, 0.05);
    assert_true(p.it_w > 95e6 && p.it_w < 140e6);
    assert_near(p.meter_w.central / p.it_w, 1.10, 1e-9);
    assert_near(p.energy_kwh_per_day.central, p.meter_w.central * 24 / 1000, 1e-9);
    assert_near(
        p.step_swing_w,
        1e5 * 1.04 * (fleet_device_w(&c.device, 1, 0.3) - fleet_device_w(&c.device, 0, 0.3)), 1e-6);
    assert_true(!p.over_limit && p.over_ramp); /* tens of MW are why batteries were added */
    assert_true(p.failure_swing_w > 30e6 && p.failure_swing_w < 70e6);
    Power spare = fleet_power(&c, 12400, 100, step, 3);
    assert_true(spare.it_w < p.it_w && spare.it_w > 0.99 * p.it_w);
    c.site.power_w = 50e6;
    assert_true(fleet_power(&c, 12500, 0, step, 3).over_limit);
    Power waiting = fleet_power(&c, 12500, 0, step, 1); /* the rest of the step waits */
    assert_near(waiting.device_w, 0.8 * fleet_device_w(&c.device, 1, 0.3) + 0.2 * 70, 1e-9);
    assert_near(waiting.least_w, waiting.idle_w, 1e-12);
    cluster_deinit(&c);
}

/* ---- money ------------------------------------------------------------------------------ */

/* 100,000 H100: $51.6k each with network and facility on the 2024 sheet; about $1.40 an hour to
 * build and amortise. */
static void test_money(void **state)
{
    (void)state;
    Cluster c = load("colossus-100k");
    Capital capital = fleet_capital(&c, 12500);
    double sum = 0;
    for (int i = 0; i < CAPITAL_PARTS; i++) {
        Range r = capital.part_usd[i];
        assert_true(r.low <= r.central && r.central <= r.high && r.low > 0);
        sum += r.central;
    }
    assert_near(sum, capital.total_usd.central, 1e-12);
    assert_near(capital.part_usd[CAPITAL_SERVERS].central, 3.125e9, 1e-9);
    assert_near(capital.part_usd[CAPITAL_SWITCHES].central +
                    capital.part_usd[CAPITAL_OPTICS].central,
                0.66e9, 1e-9);
    assert_true(capital.total_usd.low < 5.16e9 && capital.total_usd.high > 5.4e9);
    static const PowerPhase step[] = {{"products", 1, 0.9, 0.3}};
    Power power = fleet_power(&c, 12500, 0, step, 1);
    RunningCost cost = fleet_running_cost(&c, 12500, &power);
    assert_near(cost.device_usd_per_hour.central, 1.5, 0.1);
    Range machines = {capital.total_usd.low - capital.part_usd[CAPITAL_FACILITY].low, 0,
                      capital.total_usd.high - capital.part_usd[CAPITAL_FACILITY].high};
    assert_near(cost.capital_usd_per_hour.low,
                (machines.low / 5 + capital.part_usd[CAPITAL_FACILITY].low / 20) / 8760, 1e-9);
    assert_near(cost.capital_usd_per_hour.high,
                (machines.high / 4 + capital.part_usd[CAPITAL_FACILITY].high / 15) / 8760, 1e-9);
    assert_true(cost.device_usd_per_hour.low < 1.4 && cost.device_usd_per_hour.high > 1.6);
    assert_near(cost.energy_usd_per_hour.central, power.meter_w.central / 1000 * 0.078, 1e-9);
    assert_near(cost.rent_usd_per_hour.central, 2e5, 1e-12);
    cluster_deinit(&c);
}

/* DeepSeek-V3: 2.788 million hours at $2 are $5.6M for 14.8T tokens; one per cent at 100K and
 * $1.6/h $14M a year. */
static void test_cost_of_tokens(void **state)
{
    (void)state;
    RunningCost cost = {.total_usd_per_hour = {2048 * 1.5, 2048 * 2, 2048 * 2.5}};
    double tokens_per_s = 14.8e12 / (2.788e6 / 2048 * 3600);
    assert_near(fleet_usd_per_tokens(&cost, 14.8e12, tokens_per_s).central, 5.576e6, 1e-9);
    assert_near(fleet_usd_per_tokens(&cost, 1e12, tokens_per_s).low, 5.576e6 / 14.8 * 0.75, 1e-9);
    assert_near(0.01 * 1e5 * 1.6 * 8760, 14e6, 0.01);
}

/* ---- time ------------------------------------------------------------------------------- */

/* Maverick on 100,000 GPUs at 3,700 tokens/s each: 22T in 16.5 h, were it not for 335 tokens per
 * device and step. Behemoth: 225 tokens/s on 32,768 GPUs, 30T in 47 days. */
static void test_token_time(void **state)
{
    (void)state;
    TokenTime t;
    TokenBudget maverick = {.tokens = 22e12,
                            .batch_tokens = 33554432,
                            .step_s = 33554432 / 370e6,
                            .goodput = 1,
                            .devices = 100000};
    assert_ok(fleet_token_time(&maverick, &t));
    assert_near(t.seconds / 3600, 16.5, 0.01);
    assert_near(t.tokens_per_device, 335.5, 1e-3);
    assert_true(t.starved);
    TokenBudget behemoth = {.tokens = 30e12,
                            .batch_tokens = 67108864,
                            .max_batch_tokens = 1e8,
                            .goodput = 1,
                            .devices = 32768};
    behemoth.step_s = behemoth.batch_tokens / (225.0 * 32768);
    assert_ok(fleet_token_time(&behemoth, &t));
    assert_near(t.days, 47, 0.01);
    assert_true(!t.starved && t.steps == 447035);
    behemoth.goodput = 0.8;
    assert_ok(fleet_token_time(&behemoth, &t));
    assert_near(t.days, 47 / 0.8, 0.01);
    behemoth.max_batch_tokens = 32e6;
    assert_int_equal(fleet_token_time(&behemoth, &t), ERR_REFUSED);
    assert_non_null(strstr(status_message(), "above the limit of 32.0M"));
    assert_non_null(strstr(status_message(), "at most 31250 devices"));
    behemoth.max_batch_tokens = 0;
    behemoth.tokens = 1e6;
    assert_int_equal(fleet_token_time(&behemoth, &t), ERR_REFUSED);
    assert_non_null(strstr(status_message(), "less than one batch"));
    behemoth.goodput = 0;
    assert_int_equal(fleet_token_time(&behemoth, &t), ERR_ARG);
    assert_int_equal(fleet_useful_devices(32 << 20), 32768);
}

/* ---- all of it -------------------------------------------------------------------------- */

/* Behemoth on 32,768 H100 at 225 tokens/s each: Meta's 30T tokens. Figures agree with the parts
 * they are made of. */
static void test_report(void **state)
{
    (void)state;
    static const PowerPhase step[] = {
        {"products", 0.8, 1, 0.3}, {"memory", 0.1, 0, 0.9}, {"exchange", 0.1, 0, 0.3}};
    Arena arena = {0};
    Cluster c = load("meta-100k");
    FleetJob job = {.cluster = &c,
                    .devices = 32768,
                    .replicas = 16,
                    .state_bytes = 2e12 * 14,
                    .batch_tokens = 67108864,
                    .step_s = 67108864 / (225.0 * 32768),
                    .max_batch_tokens = 1e8,
                    .tokens = 30e12,
                    .phase = step,
                    .n_phases = 3,
                    .months = 20};
    FleetReport r;
    assert_ok(fleet_report_make(&job, &arena, &r));
    assert_int_equal(r.nodes, 4096);
    double goodput = r.goodput[r.scheme].mean;
    assert_true(goodput > 0.7 && goodput < 1 && goodput >= r.goodput[RECOVER_SPARES].mean);
    assert_true(r.scheme == RECOVER_SPARES || r.scheme == RECOVER_MEMORY);
    assert_near(r.time.days, 47.0 / goodput, 0.01);
    assert_near(r.run_usd.central, r.usd_per_trillion_tokens.central * 30, 1e-9);
    assert_near(r.run_usd.central, r.cost.total_usd_per_hour.central * r.time.days * 24, 1e-3);
    assert_near(r.run_kwh, r.power.meter_w.central / 1e3 * 24 * r.time.days, 1e-9);
    assert_near(r.useful_tokens_per_s, 225.0 * 32768 * goodput, 1e-9);
    assert_near(r.capital.part_usd[CAPITAL_SERVERS].central, (4096.0 + (double)r.spares) * 250e3,
                1e-9);
    /* nodes that are there anyway are spares and paid for; fewer than are wanted change nothing */
    FleetReport idle;
    job.idle = r.spares + 500;
    assert_ok(fleet_report_make(&job, &arena, &idle));
    assert_int_equal(idle.spares, r.spares + 500);
    assert_near(idle.capital.part_usd[CAPITAL_SERVERS].central,
                (4096.0 + 500 + (double)r.spares) * 250e3, 1e-9);
    assert_true(idle.goodput[RECOVER_SPARES].mean >= r.goodput[RECOVER_SPARES].mean);
    job.idle = 1;
    assert_ok(fleet_report_make(&job, &arena, &idle));
    assert_int_equal(idle.spares, r.spares);
    Str text = {0};
    fleet_report_text(&r, &text);
    static const char *const said[] = {
        "failures: one in",           "zone",  "* ", "replicas", "MW at the meter", "together",
        "30.0T tokens: 447035 steps", "energy"};
    for (int i = 0; i < COUNT_OF(said); i++)
        if (!strstr(text.at, said[i])) fail_msg("no '%s' in %s", said[i], text.at);
    str_clear(&text);
    fleet_report_json(&r, &text);
    static const char *const members[] = {
        "\"goodput\": ", "\"power_w\": ", "\"capex_usd\": ",
        "\"days\": ",    "\"zone\": ",    "\"memory\": {\"mean\""};
    for (int i = 0; i < COUNT_OF(members); i++)
        if (!strstr(text.at, members[i])) fail_msg("no %s in %s", members[i], text.at);
    assert_null(strstr(text.at, ": inf"));
    assert_null(strstr(text.at, ": nan"));
    assert_null(strstr(text.at, ": -nan"));
    str_deinit(&text);
    job.devices = 100;
    assert_int_equal(fleet_report_make(&job, &arena, &r), ERR_REFUSED);
    job.devices = 32768;
    job.max_batch_tokens = 1e6;
    assert_int_equal(fleet_report_make(&job, &arena, &r), ERR_REFUSED);
    job.tokens = 0;
    assert_ok(fleet_report_make(&job, &arena, &r));
    assert_false(r.has_time);
    cluster_deinit(&c);
    arena_deinit(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_time_between_failures),
        cmocka_unit_test(test_groups),
        cmocka_unit_test(test_spares),
        cmocka_unit_test(test_table_of_useful_shares),
        cmocka_unit_test(test_best_interval),
        cmocka_unit_test(test_replicas_closed_form),
        cmocka_unit_test(test_times),
        cmocka_unit_test(test_simulation_meets_closed_form),
        cmocka_unit_test(test_simulated_replicas),
        cmocka_unit_test(test_schemes_at_100k),
        cmocka_unit_test(test_spares_run_out),
        cmocka_unit_test(test_goodput_refused),
        cmocka_unit_test(test_power),
        cmocka_unit_test(test_money),
        cmocka_unit_test(test_cost_of_tokens),
        cmocka_unit_test(test_token_time),
        cmocka_unit_test(test_report),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
