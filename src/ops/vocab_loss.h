/* Between vocab_loss.c and its kernels in linear_cross_entropy_cpu.c. */
#ifndef OPS_VOCAB_LOSS_H
#define OPS_VOCAB_LOSS_H

#include <stdint.h>

typedef struct VocabAttr {
    int64_t first; /* the first word whose row is here */
    int64_t parts; /* canonical: parts of the words here, whose sums are made apart; dx is the tree
                      of theirs, f32. Else 0 */
} VocabAttr;

/* what a part of the vocabulary says of a token, and what the loss says back */
enum { VOCAB_MAX, VOCAB_SUM, VOCAB_TARGET, VOCAB_STATS };
enum { VOCAB_LSE, VOCAB_SCALE, VOCAB_HIT };

#endif
