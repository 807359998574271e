/* Inside comm/: ranks as threads. One lock for the world, held for moments; the work on buffers is
 * done without it. */
#ifndef COMM_LOCAL_H
#define COMM_LOCAL_H

#include "comm/comm_internal.h"

#include <pthread.h>

/* An operation of a group, from the first rank that starts it to the last that has waited. Its work
 * is cut in pieces, which any waiting rank takes: a rank that computes holds up nobody, and which
 * rank does a piece does not change its bits. */
typedef struct LocalOp {
    CommRequest *
        *post; /* [need] of the ranks that have started; of a message the sender, the receiver */
    int64_t number; /* of a collective */
    int need, arrived, left;
    bool message, bad, done; /* bad: the ranks disagree, nobody touches it */
    int64_t chunk, pieces, taken, finished;
    int working; /* ranks at a piece now: they read and write buffers of all */
    double arrived_s, done_s;
    struct LocalOp *next;
} LocalOp;

typedef struct LocalGroup {
    const Comm *first; /* whose name and ranks tell what it is */
    int members;
    LocalOp *ops; /* unfinished, oldest first; owned */
    pthread_cond_t changed;
    struct LocalGroup *next;
} LocalGroup;

/* local_work.c */
void local_op_plan(LocalOp *op);           /* when all have arrived: chunk and pieces */
int64_t local_op_bytes(const LocalOp *op); /* read and written in all */
void local_op_work(const LocalOp *op, int64_t piece);

#endif
