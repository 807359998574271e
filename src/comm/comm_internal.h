/* Inside comm/: what a transport is given and what it must do, and what all of them share. */
#ifndef COMM_COMM_INTERNAL_H
#define COMM_COMM_INTERNAL_H

#include "comm/comm.h"

#include <stdatomic.h>

/* ---- the board: what every rank does, readable while it is stopped or dead -------------- */

typedef enum CommPhase {
    COMM_PHASE_NONE,
    COMM_PHASE_STARTED,
    COMM_PHASE_WAITING,
    COMM_PHASE_DONE
} CommPhase;

enum { COMM_DOING_BYTES = 16, COMM_WAITS = 8 };

/* What must agree among the ranks, and what is said when it does not. Sent as it is between
 * processes. */
typedef struct CommHead {
    int32_t kind, dtype, reduce, root;
    int64_t number,
        count;      /* count: in all, except of ALL_TO_ALL: what goes to the reader of this head */
    uint64_t parts; /* a hash of the counts, where all ranks say all of them */
    char node[COMM_NODE_BYTES];
} CommHead;

/* The last thing a rank did. Times are of the host's monotonic clock, which its processes share. */
typedef struct CommRow {
    int32_t pid, phase;
    CommHead head;  /* of the operation */
    double time_s;  /* of the operation: since then it is in this phase */
    double waits_s; /* while it waits: when what follows was so last; 0: not said yet */
    int32_t waits_for[COMM_WAITS]; /* the first of the world's ranks that have not arrived there */
    int32_t n_waits, arrived;      /* how many in all; they have, but their data is missing */
    int64_t step;                  /* of the note */
    double note_s;
    char group[COMM_NAME_BYTES], doing[COMM_DOING_BYTES];
} CommRow;
enum { COMM_ROW_WORDS = (int)(sizeof(CommRow) / 8), COMM_SENTENCE_BYTES = 1024 };

/* What is known of a rank here, wherever it runs. */
typedef struct CommSeen {
    CommRow row;
    int32_t known; /* 0: nothing */
    int32_t state; /* of its process, the letter of /proc/PID/stat ('T' stopped), 'X' when it is
                      gone; 0: cannot be seen */
    double age_s;  /* since the operation */
    double waits_age_s; /* since it said whom it waits for */
    double silent_s;    /* since its host was last heard of; 0: it was just asked */
} CommSeen;

/* A row as it lies in memory: whoever sees the same even version before and after has a whole one.
 * Words are atomic, so that neither threads nor processes race. */
typedef struct CommSlot {
    _Atomic uint64_t version; /* odd while the owner writes */
    _Atomic uint64_t word[COMM_ROW_WORDS];
} CommSlot;

/* One for a local world; one file in the host's shared memory under MPI, which a supervisor may map
 * too: it is COMM_BOARD_MAGIC, four numbers, the failure, then a slot for each rank of the world,
 * of which the ranks of this host write theirs. */
#define COMM_BOARD_MAGIC "drvcomm4"
typedef struct CommBoard {
    char magic[8];
    uint32_t n, slot_bytes, header_bytes;
    _Atomic uint32_t failed; /* 0; 1 while the sentence is written; 2 */
    int32_t failed_rank, failed_status;
    char sentence[COMM_SENTENCE_BYTES];
    CommSlot slot[];
} CommBoard;

size_t comm_board_bytes(int n);
void comm_board_init(CommBoard *board, int n);
void comm_board_write(CommBoard *board, int rank, const CommRow *row);
bool comm_board_read(const CommBoard *board, int rank,
                     CommRow *row); /* false: nothing written yet, or never whole */
/* The first failure stays; false when there was one already. */
bool comm_board_fail(CommBoard *board, int rank, Status status, const char *sentence);
static inline bool comm_board_failed(const CommBoard *board)
{
    return atomic_load_explicit(&board->failed, memory_order_acquire) == 2;
}

/* ---- worlds, groups, requests ----------------------------------------------------------- */

typedef struct CommTransport CommTransport;

struct CommWorld {
    const CommTransport *transport;
    int n, first, here;
    double deadline_s;
    Comm *
        *all; /* [here] the group of all ranks; each heads the list of that rank's groups; owned */
    char (*host)[64]; /* [n] */
    CommRow *row;     /* [here] of this process's ranks, as they stand on the board; owned */
    CommBoard *board; /* the transport's */
    void *state;      /* the transport's */
};

struct Comm {
    CommWorld *world;
    char name[COMM_NAME_BYTES];
    int n, rank, self; /* self: rank in the world */
    int *ranks;        /* [n] in the world; owned */
    uint64_t key;      /* of name and ranks: the same on all members */
    double deadline_s;
    int64_t started;          /* collectives */
    int64_t *sent, *received; /* [n] messages started, by peer; owned */
    CommStats stats;
    CommTrace trace[COMM_TRACES];
    int64_t n_traces;
    CommRequest *open;     /* not yet waited for; owned */
    bool carried;          /* the host carries what GPUs exchange: some of the ranks share one */
    struct GpuGroup *gpu;  /* by which GPUs exchange; NULL: not yet asked for */
    GpuStream *gpu_stream; /* on which it does; NULL: not yet known */
    CommRequest *enqueued, *enqueued_end; /* of the group of all ranks, for all groups of the rank:
                                             on their way on its GPU, in order */
    void *state;                          /* the transport's */
    Comm *next;                           /* group of the same rank */
    CommDone
        *on_done; /* of the group of all ranks, for all groups of the rank; NULL: nobody listens */
    void *on_done_context;
};

/* How an operation cuts its buffers: parts of REDUCE_SCATTER, ALL_GATHER as said, of ALL_REDUCE and
 * BROADCAST n even ones, which ranks work on; in ALL_TO_ALL send and recv are cut differently, else
 * recv is NULL. */
typedef struct CommParts {
    int64_t *count, *at;           /* [n] */
    int64_t *recv_count, *recv_at; /* [n] */
} CommParts;

struct CommRequest {
    Comm *comm;
    CommOp op; /* its arrays are those of `parts` or NULL; node points to `node` */
    CommParts parts;
    CommHead head;
    int64_t number;
    int64_t sent_bytes, check_bytes;
    double start_s, arrived_s, end_s;
    double until_s; /* waited for at most */
    double say_s;   /* when the rank is to say next whom it waits for */
    /* failure.c, once it is late: what hung at the last look, when that ended, and when it must be
     * said at the latest */
    uint64_t late_key;
    double late_s, speak_s;
    bool skipped; /* by a fault: nothing was started */
    char node[COMM_NODE_BYTES];
    CommRequest *prev, *next; /* in comm->open */
    void *state;              /* the transport's */
    char *carried;            /* the host's copy of what it sends; owned */
    struct GpuEvent *done;    /* comm_enqueue: when it is, on the device */
    CommRequest *later;       /* enqueued after it by this rank */
};

/* What a transport does. It sets arrived_s and end_s of a request; failures of the world go to the
 * board. */
struct CommTransport {
    const char *name;
    void (*open)(Comm *group);  /* a new group of one of this process's ranks; waits for nobody */
    void (*close)(Comm *group); /* at the end of the world */
    Status (*start)(CommRequest *request);
    /* Until done, failed, or until_s has passed: then the transport calls comm_fail_late; and each
     * time that say_s has passed comm_board_say_waits. After it the buffers are the caller's
     * again. */
    Status (*wait)(CommRequest *request);
    /* What is known of these ranks of the world, within a fraction of a second. */
    void (*look)(CommWorld *world, const int *ranks, int n, CommSeen *seen);
    /* Takes in what other ranks say, until the board has a failure or the time has passed. */
    void (*listen)(CommWorld *world, double seconds);
    /* Puts a failure of rank `rank` on all boards, unless they have one. Rank `chair` decides
     * between
     * failures
     * that come at the same time. */
    void (*report)(CommWorld *world, int rank, int chair, Status status, const char *sentence);
    void (*destroy)(CommWorld *world);
};

/* What comm_start and comm_wait do before and after the transport (world.c). *request NULL: a fault
 * has left it out. */
Status comm_request_begin(Comm *comm, const CommOp *op, CommRequest **request);
void comm_request_end(CommRequest *request, double blocked_s); /* done: counted, and freed */
void comm_request_free(CommRequest *request);
Comm *comm_of_all(const Comm *comm); /* the group of all ranks, as this rank sees it */
void comm_device_close(Comm *comm);  /* device.c: of the group, and at the group of all */

/* The part of an operation that needs no transport (op.c). */
/* Elements that it reads and writes on this rank. */
typedef struct CommExtent {
    int64_t send, recv;
} CommExtent;
Status comm_op_measure(const Comm *comm, const CommOp *op, CommExtent *extent);
Status comm_op_check(const Comm *comm, const CommOp *op);
void comm_op_cut(const CommOp *op, int n,
                 CommParts *parts); /* allocates one block at parts->count */
CommHead comm_op_head(const CommRequest *request);
CommHead comm_head_to(const CommRequest *request, int peer);       /* as `peer` must read it */
CommHead comm_head_expected(const CommRequest *request, int peer); /* as it must come from `peer` */
bool comm_heads_agree(const CommHead *a, const CommHead *b);
bool comm_kind_is_message(CommKind kind);
size_t comm_text_op(char *buf, size_t n,
                    const CommHead *head); /* "all_reduce of 100 f32 (mlp.down)" */

/* Failures of the world (failure.c): each puts its sentence on the board, if it is the first, and
 * spreads it. */
Status comm_failure(const CommWorld *world); /* the status and sentence of what is on the board */
Status comm_fail_mismatch(const CommRequest *mine, int peer, const CommHead *theirs);
/* missing[n]: ranks of the group that have not arrived, or (arrived) not sent their data. OK: not
 * yet, since the ranks must be looked at once more; the request's until_s is a later one, and its
 * rank goes on waiting. */
Status comm_fail_late(CommRequest *request, const bool *missing, bool arrived, double waited_s);
Status comm_fail_world(Comm *comm, const char *sentence);

/* Who hangs (waits.c): behind a rank that is late stands one that waits for nobody, or a ring. */
enum { COMM_LOOKED_AT = 16 }; /* of the ranks that one rank waits for */
typedef struct CommHang {
    int waiter;     /* rank of the world: waits for these; the caller or one that it waits for */
    CommSeen waits; /* of the waiter, unless it is the caller */
    int rank[COMM_LOOKED_AT]; /* in the world, those that hang first */
    CommSeen seen[COMM_LOOKED_AT];
    int n, n_all; /* of these; of those for which it waits */
    int culprits; /* that hang */
    bool ring; /* none hangs alone: the first waits for the second, and the last for the waiter */
    uint64_t key; /* of these and of the waits that lead here, as they were seen; 0: not found */
    double age_s; /* of the oldest word on whom one of them waits for */
} CommHang;
/* Follows the waits from the caller, who misses missing[n] of its group. Should what is found not
 * have the key `want` (0: any), the ranks that the caller itself waits for are told instead. */
void comm_find_hang(const Comm *comm, const bool *missing, uint64_t want, CommHang *hang);
bool comm_is_silent(const CommSeen *seen); /* what its host said last is no longer so */

/* in[n][count], reduced by the tree of comm.h into each of out[n_out][count]; out may be one of in.
 * dtype is f32, bf16 or i32. */
typedef struct CommTree {
    DType dtype;
    CommReduce reduce;
    const void *const *in;
    void *const *out;
    int n, n_out;
} CommTree;
void comm_tree_reduce(const CommTree *tree, int64_t count);
/* The forms by instruction set, for tests; NULL where this processor lacks it. */
typedef void CommTreeForm(const CommTree *tree, int64_t count);
typedef enum CommTreeLevel {
    COMM_TREE_GENERIC,
    COMM_TREE_AVX2,
    COMM_TREE_AVX512,
    COMM_TREE_LEVELS
} CommTreeLevel;
CommTreeForm *comm_tree_form(CommTreeLevel level);

/* For the transports' create functions (world.c). */
CommWorld *comm_world_new(const CommTransport *transport, int n, const CommOptions *options);
/* The host of a rank that DROVER_TEST_HOSTS pretends; false without it. */
bool comm_test_host(int rank, char host[64]);
CommSeen comm_board_look(const CommBoard *board, int rank,
                         bool own_processes); /* own_processes: that are seen in /proc */
void comm_world_add_ranks(CommWorld *world, int first, int here); /* opens the groups of all */
void comm_board_say(const CommRequest *request, CommPhase phase);
/* While a rank waits: for whom, with missing and arrived as in comm_fail_late. */
void comm_board_say_waits(CommRequest *request, const bool *missing, bool arrived);
/* While its GPU does, whose host may have said what comes later. */
void comm_board_say_gpu_waits(CommRequest *request, const bool *missing, bool arrived);

#endif
