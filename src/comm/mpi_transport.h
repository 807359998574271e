/* Inside comm/: ranks as processes, over MPI. Only files named mpi_* see this, and only where MPI was found. */
#ifndef COMM_MPI_TRANSPORT_H
#define COMM_MPI_TRANSPORT_H

#include "comm/comm_internal.h"

#include <mpi.h>
#include <pthread.h>

/* All traffic goes over one communicator. Tags: an index that the receiver has chosen for the group, so that it
 * is unique for it without asking anybody; a lane; and the user's tag in messages. The largest is below 2^23,
 * which every transport below MPI has. Between two ranks, what has one tag arrives in the order sent. */
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
    CommHead *head;          /* [2 n] received, then sent */
    MpiLane lane[LANES];     /* lane 0 also carries the heads */
    int64_t segment;         /* elements of each part at a time */
    int64_t n_segments;
    int lanes; /* a message has one, since all its traffic has one tag */
    struct MpiOp *next;
} MpiOp;

typedef struct MpiControl { /* greetings and the end of the world */
    int32_t what, index;
    uint64_t key;
    int32_t rank, status;
    char sentence[COMM_SENTENCE_BYTES];
} MpiControl;
enum { CONTROL_GREETING = 1, CONTROL_FAILURE = 2 };
#define GREETING_BYTES offsetof(MpiControl, rank)

typedef struct MpiSend { /* a control message on its way */
    MpiControl message;
    MPI_Request request;
    struct MpiSend *next;
} MpiSend;

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
    MpiGreeting *greetings;
    size_t board_bytes;
} MpiWorld;

/* mpi_control.c */
void mpi_control_open(MpiWorld *w);
void mpi_control_close(MpiWorld *w);
void mpi_control_poll(MpiWorld *w);
void mpi_control_spread(CommWorld *world);
void mpi_group_open(Comm *group);
void mpi_group_close(Comm *group);

/* mpi_op.c */
MpiOp *mpi_op_create(CommRequest *request);
void mpi_op_free(MpiOp *op);
bool mpi_op_move(MpiOp *op); /* true when something happened; sets MPI_PHASE_DONE at the end */
void mpi_op_missing(const MpiOp *op, bool *missing);
/* A failure of MPI itself ends the world. False when code is one. */
bool mpi_good(Comm *comm, int code, const char *what);

#endif
