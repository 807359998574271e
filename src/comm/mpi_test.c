/* Ranks as processes: the bodies of the local test on this world. Run by mpirun
 * (cmake/module.cmake).
 *
 *     mpirun -n 4 build/comm_mpi_test            everything that must go well
 *     mpirun -n 3 build/comm_mpi_test SCENARIO [hosts | DIRECTORY]
 *                                                a world that is lost, see tests/comm_mpi_test.sh;
 *                                                with hosts each rank says it
 *                                                were on a host of its own, in DIRECTORY lies the
 *                                                status file; SYNC_DIR is an
 *                                                empty directory */
#include "comm/comm_testkit.h"
#include "comm/mpi_transport.h"

#include <signal.h>
#include <unistd.h>

typedef struct Case {
    const char *name;
    CommBody *body;
    int seeds;
} Case;

static const Case cases[] = {
    {"random", body_random, 6},     {"subtrees", body_subtrees, 1}, {"orders", body_orders, 1},
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
    TRY(comm_run(world, &(CommOp){COMM_ALL_REDUCE, DTYPE_F32, .send = x, .recv = x, .count = N,
                                  .node = "large"}));
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
            fprintf(stderr, "rank %d: %s, seed %d: %s\n", comm_rank(world), c->name, seed,
                    status_message());
            comm_abort(world, ERR_COMM);
            return 1;
        }
        arena_deinit(&arena);
    }
    if (comm_rank(world) == 0) fprintf(stderr, "%s ok\n", c->name);
    return 0;
}

/* ---- lost worlds ------------------------------------------------------------------------ */

/* Ranks here are processes of one machine, whatever hosts they say they are on: they leave word of
 * what they have done as files in SYNC_DIR, so that nothing depends on how fast any of them is. */
static const char *word_path(char path[256], const char *word)
{
    snprintf(path, 256, "%s/%s", getenv("SYNC_DIR"), word);
    return path;
}

static void say_word(const char *word, const char *text)
{
    char path[256];
    if (file_write_atomic(word_path(path, word), text, strlen(text)) != OK) abort();
}

static void a_moment(void) { nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL); }

static void await_word(const char *word)
{
    char path[256];
    while (!file_exists(word_path(path, word))) a_moment();
}

/* Until the neighbour of its host, which this rank is, has been told that rank 2 is in step 3. */
static void await_beat(Comm *world)
{
    MpiWorld *w = world->world->state;
    for (bool heard = false; !heard; a_moment()) {
        pthread_mutex_lock(&w->lock);
        mpi_control_poll(w);
        for (size_t i = 0; i < w->beats.n; i++)
            heard |= w->beats.at[i].rank == 2 && w->beats.at[i].seen.row.step == 3;
        pthread_mutex_unlock(&w->lock);
    }
    say_word("heard", "");
}

static Status stop_here(Comm *world)
{
    char pid[32];
    if (((MpiWorld *)world->world->state)->hosts.n > 1) await_word("heard");
    snprintf(pid, sizeof pid, "%d", (int)getpid());
    say_word("pid", pid);
    return raise(SIGSTOP) ? fail(ERR_IO, "not stopped") : OK;
}

/* Until rank 2 is stopped. */
static void await_stop(Comm *world)
{
    Arena arena = {0};
    Bytes text;
    char path[256];
    const MpiWorld *w = world->world->state;
    if (w->hosts.n > 1 && comm_rank(world) == 0) await_beat(world);
    await_word("pid");
    if (file_read(&arena, word_path(path, "pid"), 64, &text) != OK) abort();
    const char *stat = arena_printf(&arena, "/proc/%.*s/stat", (int)text.n, (const char *)text.at);
    for (bool stopped = false; !stopped; a_moment()) {
        FILE *file = fopen(stat, "re");
        char line[256] = "";
        if (!file || !fgets(line, sizeof line, file)) abort();
        fclose(file);
        stopped = strstr(line, ") T ") != NULL;
    }
    arena_deinit(&arena);
}

static Status sum_in(Comm *tp, const char *node)
{
    float x[4] = {0};
    return comm_run(
        tp, &(CommOp){COMM_ALL_REDUCE, DTYPE_F32, .send = x, .recv = x, .count = 4, .node = node});
}

/* Rank 0 waits for 1, which waits for 2, and that for nobody. Rank 1 has much more patience: so
 * only rank 0's deadline passes. */
static Status wait_in_chain(Comm *world)
{
    enum { PATIENCE_S = 60 };
    Comm *pair;
    CommRequest *request;
    float x[4] = {0};
    int me = comm_rank(world);
    if (me == 2) return stop_here(world);
    await_stop(world);
    if (me == 0) await_word("waiting");
    TRY(comm_group(world, me == 0 ? "low" : "high", (int[]){me, me + 1}, 2, &pair));
    if (me == 0) return sum_in(pair, "second");
    comm_set_deadline(pair, PATIENCE_S);
    TRY(comm_start(
        pair,
        &(CommOp){COMM_ALL_REDUCE, DTYPE_F32, .send = x, .recv = x, .count = 4, .node = "second"},
        &request));
    say_word("waiting", "");
    return comm_wait(request);
}

/* Waits for the later of two that have been started, which has no turn before the earlier one. */
static Status wait_behind(Comm *tp)
{
    float x[4] = {0}, y[4] = {0};
    CommRequest *second, *third;
    CommOp op = {COMM_ALL_REDUCE, DTYPE_F32, .send = x, .recv = x, .count = 4, .node = "second"};
    TRY(comm_start(tp, &op, &second));
    op.send = op.recv = y;
    op.node = "third";
    TRY(comm_start(tp, &op, &third));
    TRY(comm_wait(third));
    return comm_wait(second);
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
    if (!strcmp(scenario, "chain")) return wait_in_chain(world);
    bool behind = !strcmp(scenario, "behind"), stop = behind || !strcmp(scenario, "stop");
    if (stop && last) return stop_here(world);
    if (stop) await_stop(world);
    if (behind) return wait_behind(tp);
    if (last && !strcmp(scenario, "late"))
        while (comm_failed_rank(world) < 0)
            a_moment(); /* it computes for longer than the others wait */
    if (last && !strcmp(scenario, "abort")) return fail(ERR_SHAPE, "the roof is on fire");
    if (last && !strcmp(scenario, "mismatch"))
        return comm_run(tp, &(CommOp){COMM_ALL_GATHER, DTYPE_F32, .send = x, .recv = x + 4,
                                      .count = 4, .node = "other"});
    return sum_in(tp, "second");
}

static Status lose_measured(Comm *world, const char *scenario)
{
    StallMeter meter;
    stall_begin(&meter);
    Status status = lose(world, scenario);
    fprintf(stderr, "stalled %.2f\n", stall_end(&meter));
    return status;
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
    if (scenario && lose_measured(all, scenario) != OK) {
        fprintf(stderr, "rank %d: %s\n", first, status_message());
        comm_abort(all, ERR_COMM);
        code = 42;
    }
    for (int i = 0; !scenario && !code && i < COUNT_OF(cases); i++) code = run_case(all, &cases[i]);
    if (!scenario && !code) code = run_case(all, &(Case){"large", body_large, 1});
    comm_world_destroy(world);
    return code;
}
