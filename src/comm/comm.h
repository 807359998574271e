/* comm: ranks that exchange tensors.
 *
 * What it is.   A world of ranks, groups of them, and collectives on a group: started, then waited
 *               for. Ranks
 *               are threads of one process (local) or processes on one or many hosts (MPI), behind
 *               one
 *               header. Another transport is one more CommTransport (comm_internal.h).
 * Depends on.   base, tensor, gpu; MPI where it was found when building.
 * Owns.         The world owns every group and all that the transport needs; a request belongs to
 *               its rank
 *               until it is waited for. Buffers are the caller's and rest until then.
 * Invariants.   A sum over n ranks is one binary tree over the order of ranks: sum(lo, hi) =
 *               sum(lo, mid) +
 *               sum(mid, hi), mid = lo + the largest power of two below hi - lo. So a group of 2^k
 *               ranks is a
 *               balanced tree, each aligned half of it a subtree, and the bits depend neither on
 *               transport nor
 *               on timing nor on size. Sums of bf16 are formed in f32 and rounded once. Collectives
 *               of a
 *               group run in the order in which they were started, which must be the same on all
 *               its ranks, nodes
 *               included; groups do not wait for each other, nor do messages (send, recv) for
 *               collectives. After the
 *               first failure (time-out, mismatch, abort) the world is lost: every call returns
 *               ERR_COMM
 *               with the same sentence, and what remains is to destroy it.
 * Use:
 *     CommWorld *world; Comm *tp; CommRequest *request;
 *     TRY(comm_world_create_local(8, NULL, &world));                    rank r is a thread, which
 *     takes
 *     Comm *all = comm_of_rank(world, r);
 *     TRY(comm_group(all, "tp", (int[]){4, 5, 6, 7}, 4, &tp));          on ranks 4 to 7
 *     TRY(comm_start(tp, &(CommOp){COMM_ALL_REDUCE, DTYPE_F32, .send = x, .recv = x, .count = n,
 *     .node = "mlp.down"}, &request));
 *     TRY(comm_wait(request));                                          in between, compute
 */
#ifndef COMM_COMM_H
#define COMM_COMM_H

#include "base/base.h"
#include "gpu/gpu.h"
#include "tensor/tensor.h"

typedef struct CommWorld CommWorld;
typedef struct Comm Comm; /* a group as one of its ranks sees it; used by that rank's thread only */
typedef struct CommRequest CommRequest; /* a started operation of a rank */

/* ---- operations ------------------------------------------------------------------------- */

typedef enum CommKind {
    COMM_BARRIER,
    COMM_ALL_REDUCE,     /* send[count] of all ranks, reduced, in recv[count] of all */
    COMM_REDUCE_SCATTER, /* send holds a part for each rank, summed; rank r gets part r in recv */
    COMM_ALL_GATHER,     /* send is this rank's part; recv gets all parts in the order of ranks */
    COMM_ALL_TO_ALL,     /* part j of rank i's send becomes part i of rank j's recv */
    COMM_BROADCAST,      /* recv[count] of all ranks is what send[count] of rank `peer` holds */
    COMM_SEND, /* send[count] to rank `peer`, where a COMM_RECV of the same tag takes it */
    COMM_RECV,
    COMM_KINDS
} CommKind;

typedef enum CommReduce { COMM_SUM, COMM_MAX, COMM_MIN } CommReduce;

enum { COMM_TAG_LIMIT = 4096, COMM_GROUP_LIMIT = 1000, COMM_NAME_BYTES = 24, COMM_NODE_BYTES = 48 };

/* One operation on a group, as one rank says it; what a kind does not name above stays zero. Counts
 * and offsets are in elements. Everything in it but the buffers is copied by comm_start.
 *   counts   n parts, the same on all ranks, of REDUCE_SCATTER and ALL_GATHER; NULL: n parts of
 *            `count`
 *   ALL_TO_ALL: send_counts[j] go to rank j, recv_counts[i] come from rank i; NULL counts: `count`
 *   each; NULL
 *               offsets: one part behind the other
 * In place: recv == send in ALL_REDUCE and at the root of BROADCAST; this rank's part inside the
 * other buffer in REDUCE_SCATTER and ALL_GATHER. Otherwise the buffers may not overlap. Reduced are
 * f32, bf16 and i32 (sums of i32 wrap); moved is any type of whole bytes, U8 for plain bytes. */
typedef struct CommOp {
    CommKind kind;
    DType dtype;
    CommReduce reduce; /* of ALL_REDUCE */
    const void *send;
    void *recv;
    int64_t count;
    const int64_t *counts;
    const int64_t *send_counts, *send_offsets, *recv_counts, *recv_offsets;
    int peer;         /* rank in the group: root, or the other end of a message */
    int tag;          /* of a message, such as the micro-batch: 0 to COMM_TAG_LIMIT - 1 */
    const char *node; /* of the graph, for sentences and traces */
} CommOp;

const char *comm_kind_name(CommKind kind); /* "all_reduce" */
/* Payload bytes that rank `rank` of `n` sends for this operation; with counts[n] and send_counts[n]
 * as the rank says them. A rank's own part is never sent. */
int64_t comm_sent_bytes(const CommOp *op, int n, int rank);

/* Starts the operation; the request must be waited for once. Refuses (ERR_ARG) what is wrong on
 * this rank alone and then has started nothing. */
Status comm_start(Comm *comm, const CommOp *op, CommRequest **request);
/* Until the operation is done on this rank (its buffers may be used again), or the world has
 * failed; frees the request either way. In a lost world of MPI what was on its way may still
 * arrive: there the buffers must stay until the process ends. */
Status comm_wait(CommRequest *request);
Status comm_run(Comm *comm, const CommOp *op); /* start and wait */

/* The same where the buffers are a GPU's: put on its stream, behind what is there, for what comes
 * there later. By NCCL where it is, and then nobody waits here: a rank that does not come is found
 * when the host waits for the stream. Else the host carries the data, and waits. Sums by NCCL have
 * an order of its own. */
Status comm_enqueue(Comm *comm, const CommOp *op, GpuStream *stream);
/* n (at most 4) that do not wait for each other: what goes round a ring. */
Status comm_enqueue_all(Comm *comm, const CommOp *op, int n, GpuStream *stream);
/* A COMM_SEND for which nobody waits yet: *request is to be waited for before this rank ends,
 * unless it is NULL (the device sees to it). Its buffer may be used again once the stream is past
 * it. */
Status comm_enqueue_send(Comm *comm, const CommOp *op, GpuStream *stream, CommRequest **request);
/* This rank's host waits for its GPU by waiting for this stream: from now on it looks meanwhile
 * whether others still come. */
void comm_join_gpu(Comm *member, GpuStream *stream);
/* Before this rank closes its GPU: what its groups have there is given up. member: any of them. */
void comm_leave_gpu(Comm *member);

/* ---- worlds and groups ------------------------------------------------------------------ */

typedef struct CommOptions {
    double deadline_s;      /* of an operation, from its start; 0: 600 */
    const char *status_dir; /* MPI: where each host's status file lies and stays, for a supervisor
                               to read (see comm_internal.h); NULL: /dev/shm, removed at once */
    const char *host; /* MPI: this rank's host in sentences; ranks of the same host share memory.
                         NULL: gethostname, or what DROVER_TEST_HOSTS says (below) */
} CommOptions;

/* For tests, DROVER_TEST_HOSTS=node0:2,node1:2 in the environment splits one machine: ranks 0 and 1
 * say they were on node0 and know nothing of node1's memory, ranks 2 and 3 the other way round;
 * further ranks are on the last host. */

/* n ranks as threads of this process; the threads are the caller's. options may be NULL. */
Status comm_world_create_local(int n, const CommOptions *options, CommWorld **world);
/* The processes that mpirun or srun started; once in a process, since MPI starts only once.
 * ERR_UNSUPPORTED in a build without MPI. */
Status comm_world_create_mpi(const CommOptions *options, CommWorld **world);
/* After every rank has finished its calls. A failed MPI world is left without the farewell that
 * would wait for the lost: the process then ends with its own exit code, and mpirun with that code.
 */
void comm_world_destroy(CommWorld *world);

int comm_world_size(const CommWorld *world);
/* The ranks that live in this process: *first, and how many. */
int comm_world_here(const CommWorld *world, int *first);
/* All ranks as a group, named "world", as rank `rank` of this process sees it. */
Comm *comm_of_rank(CommWorld *world, int rank);
/* The group of these ranks of the world, in this order, which includes the caller; all say the same
 * name and ranks, and the name tells apart groups of the same ranks. Made at the first call,
 * without waiting for anybody; lives as long as the world. */
Status comm_group(Comm *member, const char *name, const int *ranks, int n, Comm **group);

const char *comm_name(const Comm *comm);
int comm_size(const Comm *comm);
int comm_rank(const Comm *comm);                   /* of the caller in the group */
int comm_world_rank(const Comm *comm, int rank);   /* of the group's rank `rank` */
const char *comm_host(const Comm *comm, int rank); /* of the group's rank `rank` */
void comm_set_deadline(Comm *comm,
                       double deadline_s); /* of operations started later on this group */

/* What this rank does from now on, such as "forward" of step 17 (at most 15 letters): when others
 * miss it, they say so. Costs a few stores. */
void comm_note(Comm *comm, const char *doing, int64_t step);

/* Tells all ranks that this one cannot go on: their present and later calls return ERR_COMM with
 * this thread's sentence (status_message). The first failure of a world is the one that counts. A
 * refusal (why: ERR_REFUSED, ERR_ARG) is every rank's, and theirs too: a job has one exit code. */
void comm_abort(Comm *comm, Status why);
/* The rank whose failure it is that all ranks return, or that noticed it: the one that should tell
 * the user, so that one line is written. -1: the world is not lost. */
int comm_failed_rank(const Comm *comm);

/* "Open MPI 4.1.4", or NULL in a build without MPI. */
const char *comm_mpi_version(char buf[64]);

/* ---- what happened ---------------------------------------------------------------------- */

typedef struct CommCounts {
    int64_t calls, sent_bytes; /* payload */
    double blocked_s;          /* in comm_wait */
    double late_s;             /* from the starts until the last peer had arrived */
} CommCounts;
typedef struct CommStats {
    CommCounts kind[COMM_KINDS];
    int64_t check_bytes; /* sent beside the payload: heads that tell a mismatch, greetings */
} CommStats;
/* Of this rank on this group since the last reset. */
CommStats comm_stats(const Comm *comm);
void comm_stats_reset(Comm *comm);

/* One finished operation; times by clock_s. `arrived_s` is when the last peer was known to have
 * started. */
typedef struct CommTrace {
    CommKind kind;
    int64_t number; /* of the collective in its group, of a message among those to (from) the peer;
                       from 0 */
    int64_t bytes;  /* sent; received by RECV */
    double start_s, arrived_s, end_s;
    double blocked_s; /* in comm_wait */
    char node[COMM_NODE_BYTES];
} CommTrace;
enum { COMM_TRACES = 64 };
/* The latest finished ones of this rank on this group, oldest first; returns how many, at most
 * COMM_TRACES. */
int comm_traces(const Comm *comm, CommTrace out[COMM_TRACES]);
/* comm_stats summed over all groups that this rank is in; member: any of them. */
CommStats comm_stats_of_rank(const Comm *member);
/* From now on fn hears of every operation of this rank, on any group, when it has been waited for,
 * in the rank's own thread. NULL: no longer. */
typedef void CommDone(void *context, const Comm *group, const CommTrace *trace);
void comm_on_done(Comm *member, CommDone *fn, void *context);

/* ---- from outside ----------------------------------------------------------------------- */

/* What a status file (CommOptions.status_dir) says of the ranks of its host. */
typedef struct CommStatusRank {
    int rank, pid;
    int64_t step;    /* of its last note; 0: none */
    char doing[16];  /* its last note */
    double active_s; /* when it last noted something or entered or left an operation, by clock_s */
} CommStatusRank;
typedef struct CommStatus {
    int n;                /* ranks of the world */
    CommStatusRank *rank; /* those of this host that have said anything, in the arena */
    int n_ranks;
    bool failed;
    char sentence[1024]; /* of the failure */
} CommStatus;
/* Needs nobody's help: the ranks may be stopped or dead. Refuses a file that is no status file, or
 * not yet one. */
Status comm_status_read(Arena *arena, const char *path, CommStatus *status);

#endif
