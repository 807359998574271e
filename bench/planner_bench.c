/* planner_bench [THREADS [SIMULATE]] : what the planner takes. One layout of a model of Behemoth's
 * size on 131,072 GPUs, 16 pipeline stages, interleaved, from the texts of run file and cluster to
 * the figures, on one core; and a search over all layouts of it on meta-100k's 100,320 GPUs. The
 * last column is the largest memory of this process so far. */
#include <stdio.h>
#include <stdlib.h>

#include "planner/planner.h"

enum { ROUNDS = 9 };

static const char *const settings[] = {"model.preset=llama4-behemoth",
                                       "name=behemoth",
                                       "data=[{synthetic: uniform}]",
                                       "train.seq=8192",
                                       "train.batch=4096",
                                       "train.micro_batch=1",
                                       "train.recompute=selective",
                                       "parallel={dp: 16, tp: 8, cp: 4, ep: 16, pp: 16, zero: 1, "
                                       "schedule: interleaved, virtual_stages: 5}"};
static const char *const machine = "131072 h100, 8 per node, 400G, spine 1:3";

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static Status one_layout(void)
{
    double seconds[ROUNDS];
    Plan plan;
    for (int i = 0; i < ROUNDS; i++) {
        RunConfig config;
        Cluster cluster;
        double begin = clock_s();
        TRY(run_config_load(NULL, settings, COUNT_OF(settings), &config));
        TRY(cluster_load(machine, &cluster));
        TRY(plan_make(&config, &cluster, &(PlanOptions){.jitter = -1}, &plan));
        seconds[i] = clock_s() - begin;
        plan_deinit(&plan);
        cluster_deinit(&cluster);
        run_config_deinit(&config);
    }
    qsort(seconds, ROUNDS, sizeof *seconds, ascending);
    printf("one layout of %lld GPUs: median %.1f ms, best %.1f ms, %.0f MB\n",
           (long long)plan.ranks, 1e3 * seconds[ROUNDS / 2], 1e3 * seconds[0],
           (double)memory_peak_rss_bytes() * 1e-6);
    return OK;
}

static Status search(int threads, int simulate)
{
    RunConfig config;
    Cluster cluster;
    SearchResult found;
    enum { MAX_BATCH = 16 << 20, SEQ = 8192 };
    TRY(run_config_load(NULL, settings, 4, &config));
    TRY(cluster_load("meta-100k", &cluster));
    SearchOptions options = {.devices = cluster_devices(&cluster),
                             .max_batch = MAX_BATCH / SEQ,
                             .simulate = simulate,
                             .threads = threads};
    TRY(plan_search(&config, &cluster, &options, &found));
    printf("search of %lld GPUs: %lld layouts, %lld seem to fit, %d planned: %.1f s, %.0f MB\n",
           (long long)options.devices, (long long)found.n_layouts, (long long)found.n_estimated,
           found.n_simulated, found.seconds, (double)memory_peak_rss_bytes() * 1e-6);
    search_result_deinit(&found);
    cluster_deinit(&cluster);
    run_config_deinit(&config);
    return OK;
}

int main(int argc, char **argv)
{
    enum { SIMULATE = 48 };
    int threads = argc > 1 ? (int)strtol(argv[1], NULL, 10) : 0,
        simulate = argc > 2 ? (int)strtol(argv[2], NULL, 10) : SIMULATE;
    Status status = one_layout();
    if (status == OK) status = search(threads, simulate);
    if (status != OK) fprintf(stderr, "planner_bench: %s\n", status_message());
    return status == OK ? 0 : 1;
}
