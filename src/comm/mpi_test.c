/* Ranks as processes: the bodies of the local test on this world. Run by mpirun (cmake/module.cmake).
 *
 *     mpirun -n 4 build/comm_mpi_test            everything that must go well
 *     mpirun -n 3 build/comm_mpi_test SCENARIO [hosts | DIRECTORY]
 *                                                a world that is lost, see tests/comm_mpi_test.sh; with hosts each rank says it
 *                                                were on a host of its own, in DIRECTORY lies the status file */
#include "comm/comm_testkit.h"

#include <signal.h>
#include <time.h>
#include <unistd.h>

typedef struct Case {
    const char *name;
    CommBody *body;
    int seeds;
} Case;

static const Case cases[] = {
    {"random", body_random, 6}, {"subtrees", body_subtrees, 1}, {"orders", body_orders, 1},
    {"messages", body_messages, 1}, {"counts", body_counts, 1},
};

/* Many more segments than lanes, and bits that must be those of threads. */
static Status body_large(Comm *world, int64_t argument, Arena *arena)
{
    enum { N = 3000001 };
    int n = comm_size(world), me = comm_rank(world);
    float *x = ARENA_ARRAY(arena, float, N), values[256];
    (void)argument;
    for (int64_t i = 0; i < N; i++) x[i] = input_value(11, me, i % 5000);
    TRY(comm_run(world, &(CommOp){COMM_ALL_REDUCE, DTYPE_F32, .send = x, .recv = x, .count = N, .node = "large"}));
    for (int64_t i = 0; i < N; i++) {
        for (int r = 0; i < 5000 && r < n; r++) values[r] = input_value(11, r, i);
        float want = i < 5000 ? tree_value(COMM_SUM, values, n) : x[i % 5000];
        EXPECT(!memcmp(&x[i], &want, 4), "element %lld of a large sum", (long long)i);
    }
    return OK;
}

static int run_case(Comm *world, const Case *c)
{
    for (int seed = 1; seed <= c->seeds; seed++) {
        Arena arena = {0};
        Status status = c->body(world, seed, &arena);
        if (status != OK) {
            fprintf(stderr, "rank %d: %s, seed %d: %s\n", comm_rank(world), c->name, seed, status_message());
            comm_abort(world);
            return 1;
        }
        arena_deinit(&arena);
    }
    if (comm_rank(world) == 0) fprintf(stderr, "%s ok\n", c->name);
    return 0;
}

/* ---- lost worlds ------------------------------------------------------------------------------ */

static Status sum_in(Comm *tp, const char *node)
{
    float x[4] = {0};
    return comm_run(tp, &(CommOp){COMM_ALL_REDUCE, DTYPE_F32, .send = x, .recv = x, .count = 4, .node = node});
}

/* Ranks 0 and 1 wait for 1 and 2, rank 2 for nobody. */
static Status wait_in_chain(Comm *world)
{
    Comm *pair;
    int me = comm_rank(world);
    if (me == 2) return raise(SIGSTOP) ? fail(ERR_IO, "not stopped") : OK;
    if (me == 1) nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL); /* rank 0's deadline passes first */
    TRY(comm_group(world, me == 0 ? "low" : "high", (int[]){me, me + 1}, 2, &pair));
    return sum_in(pair, "second");
}

/* The last rank goes wrong after the first collective of tp; the others say what they hear. */
static Status lose(Comm *world, const char *scenario)
{
    Comm *tp;
    float x[64] = {0};
    int n = comm_size(world), last = comm_rank(world) == n - 1, ranks[64];
    for (int i = 0; i < n; i++) ranks[i] = i;
    TRY(comm_group(world, "tp", ranks, n, &tp));
    TRY(sum_in(tp, "first"));
    comm_note(world, "forward", 3);
    if (last && !strcmp(scenario, "stop")) { /* not before its host has told another one how it is */
        nanosleep(&(struct timespec){.tv_nsec = 700000000}, NULL);
        raise(SIGSTOP);
    }
    if (!strcmp(scenario, "chain")) return wait_in_chain(world);
    if (last && !strcmp(scenario, "late")) nanosleep(&(struct timespec){.tv_sec = 4}, NULL);
    if (last && !strcmp(scenario, "abort")) return fail(ERR_SHAPE, "the roof is on fire");
    if (last && !strcmp(scenario, "mismatch"))
        return comm_run(tp, &(CommOp){COMM_ALL_GATHER, DTYPE_F32, .send = x, .recv = x + 4, .count = 4, .node = "other"});
    return sum_in(tp, "second");
}

int main(int argc, char **argv)
{
    const char *scenario = argc > 1 ? argv[1] : NULL;
    CommOptions options = {.deadline_s = scenario ? 1 : 60};
    const char *rank = getenv("OMPI_COMM_WORLD_RANK");
    char host[32];
    if (argc > 2 && argv[2][0] == '/')
        options.status_dir = argv[2];
    else if (argc > 2 && rank) {
        snprintf(host, sizeof host, "node%s", rank);
        options.host = host;
    }
    CommWorld *world;
    int first, code = 0;
    if (comm_world_create_mpi(&options, &world) != OK) {
        fprintf(stderr, "%s\n", status_message());
        return 1;
    }
    (void)comm_world_here(world, &first);
    Comm *all = comm_of_rank(world, first);
    if (scenario && lose(all, scenario) != OK) {
        fprintf(stderr, "rank %d: %s\n", first, status_message());
        comm_abort(all);
        code = 42;
    }
    for (int i = 0; !scenario && !code && i < COUNT_OF(cases); i++) code = run_case(all, &cases[i]);
    if (!scenario && !code) code = run_case(all, &(Case){"large", body_large, 1});
    comm_world_destroy(world);
    return code;
}
