/* Commands that several ranks run: as threads of this process, or as the processes that mpirun or
 * srun started. */
#ifndef CLI_RANKS_H
#define CLI_RANKS_H

#include "comm/comm.h"

/* What is left to be done when the others have been told of a failure: clearing away may take long.
 */
typedef struct RankLater {
    void (*fn)(void *context); /* NULL: nothing */
    void *context;
} RankLater;

typedef struct Rank {
    Comm *world;      /* this rank among all; NULL: it is alone */
    int here;         /* ranks in this process or on this host */
    bool first;       /* of all: it prints */
    bool leads;       /* the first of this process */
    RankLater *later; /* set by the rank's main */
} Rank;

typedef Status (*RankMain)(const Rank *rank, void *context);

/* Ranks that a launcher started, 0 without one. */
int ranks_launched(void);
/* main(rank, context) on each of n ranks; the context is shared by those of a process. Under a
 * launcher the processes it started are the ranks, and must be n. When one fails the others are
 * told; the failure that theirs follow from is the result. Of processes one writes the line of it,
 * at once; the others are silent. */
Status ranks_run(int n, RankMain main, void *context);
/* Before the line of a failure is written: where it came before the ranks had met, as with a wrong
 * run file, all have the same, and the first one says it. */
void ranks_wait_turn(void);

/* A line that the first rank has read, on every rank: n bytes and a zero in *line, which is grown
 * as getline does; n < 0: there is no more. Waits for as long as it takes somebody to type. */
Status ranks_share_line(const Rank *rank, char **line, size_t *cap, int64_t *n);

#endif
