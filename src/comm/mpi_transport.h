/* Inside comm/: ranks as processes, over MPI. Only files named mpi_* see this, and only where MPI
 * was found. */
#ifndef COMM_MPI_TRANSPORT_H
#define COMM_MPI_TRANSPORT_H

#include "comm/comm_internal.h"

#include <mpi.h>
#include <pthread.h>

/* All traffic goes over one communicator. Tags: an index that the receiver has chosen for the
 * group, so that it is unique for it without asking anybody; a lane; and the user's tag in
 * messages. The largest is below 2^23, which every transport below MPI has. Between two ranks, what
 * has one tag arrives in the order sent. */
enum { LANES = 2, TAG_CONTROL = LANES * (COMM_GROUP_LIMIT + 4), TAG_MESSAGES = 8192 };
_Static_assert(TAG_CONTROL < TAG_MESSAGES, "tags do not overlap");
_Static_assert(TAG_MESSAGES + (COMM_GROUP_LIMIT + 2) * COMM_TAG_LIMIT < 1 << 23, "tags fit");

typedef struct MpiGroup {
    const Comm *comm;
    int index;       /* by which peers address us */
    int *peer_index; /* [n] by which we address them; -1: their greeting has not come; owned */
    uint64_t pass;   /* over the operations, in which one of its collectives had its turn */
    struct MpiGroup *next;
} MpiGroup;

/* A segment on its way: first to the owners of its parts, then from them to all. */
typedef struct MpiLane {
    int64_t segment;      /* -1: none left */
    int stage;            /* 0: nothing posted; 1: to owners; 2: from owners */
    MPI_Request *request; /* [2 n] receives by peer, then sends by peer */
    int *done;            /* [2 n] room for MPI_Testsome */
    char *scratch;        /* [n] stretches of a segment, of a reduction */
} MpiLane;

typedef enum MpiPhase { MPI_PHASE_GREET, MPI_PHASE_HEADS, MPI_PHASE_DATA, MPI_PHASE_DONE } MpiPhase;

typedef struct MpiOp {
    CommRequest *request;
    MpiPhase phase;
    CommHead *head;      /* [2 n] received, then sent */
    MpiLane lane[LANES]; /* lane 0 also carries the heads */
    int64_t segment;     /* elements of each part at a time */
    int64_t n_segments;
    int lanes; /* a message has one, since all its traffic has one tag */
    struct MpiOp *next;
} MpiOp;

typedef enum MpiControlKind {
    CONTROL_GREETING = 1, /* of a group: key, index */
    CONTROL_FAILURE,      /* the world is lost: rank, sentence */
    CONTROL_REPORT,       /* the same, to the chair, who decides */
    CONTROL_QUESTION,     /* what is known of a rank? */
    CONTROL_ANSWER,       /* rank, seen */
    CONTROL_BEAT,         /* unasked, to the next host: rank, seen */
} MpiControlKind;

typedef struct MpiControl { /* small messages beside the operations */
    int32_t what, index;
    uint64_t key;
    int32_t rank, status; /* of a failure */
    union {
        char sentence[COMM_SENTENCE_BYTES];
        CommSeen seen;
    };
} MpiControl;
#define GREETING_BYTES offsetof(MpiControl, rank)
#define SEEN_BYTES     (offsetof(MpiControl, seen) + sizeof(CommSeen))

typedef struct MpiSend { /* a control message on its way */
    MpiControl message;
    MPI_Request request;
    struct MpiSend *next;
} MpiSend;

typedef struct MpiBeat { /* what another host last said of one of its ranks */
    int rank;
    double heard_s;
    CommSeen seen;
} MpiBeat;

/* Which ranks share a host. The first rank of each speaks for it. */
typedef struct MpiHosts {
    int n;
    int *of;    /* [ranks of the world] */
    int *first; /* [n] */
    int here;
} MpiHosts;

typedef struct MpiQuestion { /* that this rank has asked; on its stack */
    const int *ranks;
    CommSeen *seen;
    int n, open; /* answers that may still come */
} MpiQuestion;

typedef struct MpiGreeting { /* from a peer whose group is not known here yet */
    uint64_t key;
    int rank, index;
    struct MpiGreeting *next;
} MpiGreeting;

typedef struct MpiWorld {
    CommWorld *world;
    MPI_Comm all;
    pthread_mutex_t lock; /* recursive; whoever calls MPI holds it */
    pthread_t helper;
    pthread_cond_t work; /* for the helper: there are operations and nobody waits for them */
    bool has_helper, stop;
    int waiting;       /* ranks' threads in comm_wait, which move things themselves */
    MpiOp *ops, *last; /* unfinished, in the order of their starts */
    uint64_t pass;
    MpiGroup *groups;
    int n_groups;
    MpiControl incoming;
    MPI_Request incoming_request;
    MpiSend *sends;
    MpiHosts hosts;
    VEC(MpiBeat) beats;
    double last_beat_s;
    MpiQuestion *question; /* NULL: none */
    MpiGreeting *greetings;
    size_t board_bytes;
} MpiWorld;

/* mpi_control.c */
void mpi_control_open(MpiWorld *w);
void mpi_control_close(MpiWorld *w);
void mpi_control_send(MpiWorld *w, const MpiControl *message, size_t bytes, int rank);
/* Under the lock, by whoever looks after the operations: takes messages in, and from time to time
 * tells the next host how the ranks of this one are. */
void mpi_control_poll(MpiWorld *w);
void mpi_group_open(Comm *group);
void mpi_group_close(Comm *group);

/* mpi_lost.c: the transport's look, listen and report, and the messages that belong to them */
void mpi_lost_open(MpiWorld *w);
void mpi_lost_close(MpiWorld *w);
void mpi_lost_take(MpiWorld *w, const MpiControl *message, int from);
void mpi_lost_beat(MpiWorld *w);
void mpi_lost_look(CommWorld *world, const int *ranks, int n, CommSeen *seen);
void mpi_lost_listen(CommWorld *world, double seconds);
void mpi_lost_report(CommWorld *world, int rank, int chair, Status status, const char *sentence);

/* mpi_op.c */
MpiOp *mpi_op_create(CommRequest *request);
void mpi_op_free(MpiOp *op);
bool mpi_op_move(MpiOp *op); /* true when something happened; sets MPI_PHASE_DONE at the end */
void mpi_op_missing(const MpiOp *op, bool *missing);
/* A failure of MPI itself ends the world. False when code is one. */
bool mpi_good(Comm *comm, int code, const char *what);

#endif
