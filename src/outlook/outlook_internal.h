/* Shared by the files of outlook/. */
#ifndef OUTLOOK_OUTLOOK_INTERNAL_H
#define OUTLOOK_OUTLOOK_INTERNAL_H

#include "outlook/outlook.h"

/* The best layout of so many devices of the question's cluster. ERR_REFUSED where none fits. */
Status outlook_find(const Question *question, const RunConfig *config, int64_t devices,
                    int64_t max_batch, double tokens, Answer **out);

/* What a first guess goes by: of the run's model, and of a device. */
Status outlook_flop_per_token(const RunConfig *config, double *flop, double *active_weights);
double outlook_guess_flop_per_s(const Cluster *cluster);

/* Rungs of which all above a good one are good. To be the first member of what `good` reads. */
typedef struct Ladder Ladder;
struct Ladder {
    int n;
    bool (*good)(Ladder *ladder, int at);
    bool hopeless; /* set by `good`: further up it does not get better */
};
/* The least good rung, found from `guess` in growing strides and then by halves; -1: none. */
int outlook_climb(Ladder *ladder, int guess);

#endif
