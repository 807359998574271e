/* comm_bench: all_reduce of f32, and how much of one hides behind a computation.
 *
 *     build/comm_bench [ranks]                    ranks as threads, beside a plain copy of the same
 *                                                 bytes
 *     mpirun -n 2 build/comm_bench mpi            processes, beside MPI_Allreduce
 *
 * A line: bytes of one rank's buffer, median and best time, bus bandwidth (bytes x 2 (n-1)/n over
 * the median), which is what a rank sends and receives. Ours and the peer run in turns, so that
 * neighbours on the machine disturb both alike.
 */
#include "comm/comm.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#if __has_include(<mpi.h>)
#include <mpi.h>
#define HAS_MPI 1
#else
#define HAS_MPI 0
#endif

enum { MAX_ROUNDS = 200, MIN_BYTES = 4, MAX_BYTES = 64 << 20 };

typedef struct Times {
    double at[MAX_ROUNDS];
    int n;
} Times;

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(Times *t)
{
    qsort(t->at, (size_t)t->n, sizeof t->at[0], ascending);
    return t->at[t->n / 2];
}

static void must(Status status)
{
    if (status == OK) return;
    fprintf(stderr, "comm_bench: %s\n", status_message());
    exit(1);
}

static void reduce(Comm *c, const void *in, void *out, int64_t n)
{
    must(comm_run(c, &(CommOp){COMM_ALL_REDUCE, DTYPE_F32, .send = in, .recv = out, .count = n,
                               .node = "bench"}));
}

static void meet(Comm *c) { must(comm_run(c, &(CommOp){.kind = COMM_BARRIER})); }

static int rounds_of(size_t bytes)
{
    return bytes <= 64 << 10 ? MAX_ROUNDS : bytes <= 1 << 20 ? 60 : 15;
}

/* The slowest rank's time of what lies between, the same on all. */
static double slowest(Comm *c, double took_s)
{
    float t = (float)took_s;
    must(comm_run(
        c, &(CommOp){COMM_ALL_REDUCE, DTYPE_F32, COMM_MAX, .send = &t, .recv = &t, .count = 1}));
    return (double)t;
}

typedef void Peer(const void *in, void *out, size_t bytes);

static void copy_bytes(const void *in, void *out, size_t bytes) { memcpy(out, in, bytes); }

#if HAS_MPI
static void mpi_reduce(const void *in, void *out, size_t bytes)
{
    MPI_Allreduce(in, out, (int)(bytes / 4), MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
}
#endif

static void measure_sizes(Comm *c, Peer *peer, const char *name)
{
    int n = comm_size(c);
    float *in = malloc(MAX_BYTES), *out = malloc(MAX_BYTES);
    if (!in || !out) exit(1);
    for (size_t i = 0; i < MAX_BYTES / 4; i++) in[i] = out[i] = (float)(comm_rank(c) + 1);
    if (comm_rank(c) == 0)
        printf("all_reduce f32, %d ranks     ours: median us  best us  bus GB/s    %s: median us  "
               "best us  bus GB/s\n",
               n, name);
    for (size_t bytes = MIN_BYTES; bytes <= MAX_BYTES; bytes *= bytes < 1 << 20 ? 16 : 4) {
        Times ours = {.n = rounds_of(bytes)}, theirs = {.n = ours.n};
        for (int i = -2; i < ours.n; i++) {
            meet(c);
            double start_s = clock_s();
            reduce(c, in, out, (int64_t)(bytes / 4));
            double a = slowest(c, clock_s() - start_s);
            meet(c);
            start_s = clock_s();
            peer(in, out, bytes);
            double b = slowest(c, clock_s() - start_s);
            if (i >= 0) ours.at[i] = a, theirs.at[i] = b;
        }
        double a = median(&ours), b = median(&theirs), wire = (double)bytes * 2 * (n - 1) / n;
        if (comm_rank(c) == 0)
            printf("%12zu bytes %26.1f %8.1f %9.3f %19.1f %8.1f %9.3f   %.2f x\n", bytes, a * 1e6,
                   ours.at[0] * 1e6, wire / a * 1e-9, b * 1e6, theirs.at[0] * 1e6, wire / b * 1e-9,
                   b / a);
    }
    free(in);
    free(out);
}

/* Arithmetic in registers; volatile keeps it from being done while compiling. */
static void compute(int64_t steps)
{
    volatile double start = 1, sink = 0;
    double x = start;
    for (int64_t i = 0; i < steps; i++) x = x * 0.9999 + 1e-4;
    sink = sink + x;
}

static void measure_overlap(Comm *c)
{
    enum { BYTES = 16 << 20, ROUNDS = 11 };
    float *x = calloc(1, BYTES);
    Times alone = {.n = ROUNDS}, only = {.n = ROUNDS}, both = {.n = ROUNDS};
    int64_t steps = 20000000;
    if (!x) exit(1);
    for (int i = -1; i < ROUNDS; i++) {
        CommRequest *request;
        meet(c);
        double start_s = clock_s();
        reduce(c, x, x, BYTES / 4);
        double a = slowest(c, clock_s() - start_s);
        meet(c);
        start_s = clock_s();
        compute(steps);
        double b = slowest(c, clock_s() - start_s);
        meet(c);
        start_s = clock_s();
        must(comm_start(
            c, &(CommOp){COMM_ALL_REDUCE, DTYPE_F32, .send = x, .recv = x, .count = BYTES / 4},
            &request));
        compute(steps);
        must(comm_wait(request));
        double d = slowest(c, clock_s() - start_s);
        if (i >= 0) alone.at[i] = a, only.at[i] = b, both.at[i] = d;
    }
    double a = median(&alone), b = median(&only), d = median(&both);
    if (comm_rank(c) == 0)
        printf("overlap: all_reduce of 16 MiB %.1f ms (best %.1f), a computation %.1f ms (%.1f), "
               "both at once %.1f ms (%.1f)\n",
               a * 1e3, alone.at[0] * 1e3, b * 1e3, only.at[0] * 1e3, d * 1e3, both.at[0] * 1e3);
    free(x);
}

static void *run_rank(void *context)
{
    measure_sizes(context, copy_bytes, "plain copy");
    measure_overlap(context);
    return NULL;
}

static void run_local(int n)
{
    CommWorld *world;
    pthread_t thread[64];
    must(comm_world_create_local(n, NULL, &world));
    for (int r = 0; r < n; r++)
        if (pthread_create(&thread[r], NULL, run_rank, comm_of_rank(world, r)) != 0) exit(1);
    for (int r = 0; r < n; r++) pthread_join(thread[r], NULL);
    comm_world_destroy(world);
}

int main(int argc, char **argv)
{
    if (argc < 2 || strcmp(argv[1], "mpi") != 0) {
        int64_t n = 2;
        if (argc > 1 && (!parse_i64(argv[1], &n) || n < 1 || n > 64)) {
            fprintf(stderr, "usage: comm_bench [ranks from 1 to 64 | mpi]\n");
            return 2;
        }
        run_local((int)n);
        return 0;
    }
    CommWorld *world;
    int first;
    must(comm_world_create_mpi(NULL, &world));
    (void)comm_world_here(world, &first);
#if HAS_MPI
    measure_sizes(comm_of_rank(world, first), mpi_reduce, "MPI_Allreduce");
#endif
    measure_overlap(comm_of_rank(world, first));
    comm_world_destroy(world);
    return 0;
}
