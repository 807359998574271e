/* Between the two halves of training: counting pieces, and finding merges. */
#ifndef TEXT_TRAIN_INTERNAL_H
#define TEXT_TRAIN_INTERNAL_H

#include "text/text_internal.h"

enum {
    MAX_WORD_BYTES = 256, /* longer pieces (data, not language) are counted in slices of this */
    MAX_WORDS = 64 * 1000 * 1000, /* different pieces; beyond, a sample of the text would do */
};

/* A different piece and how often it came. */
typedef struct Word {
    uint64_t low, high; /* its key, see PieceKey */
    uint64_t at;        /* in WordCounts.bytes */
    int64_t count;
    uint32_t n; /* 0 = empty slot */
} Word;

typedef struct WordCounts {
    Word *slots;
    uint64_t mask;
    size_t n;
    Str bytes;
} WordCounts;

typedef struct CountOptions {
    int threads;
    Status (*progress)(void *context, const TrainProgress *progress);
    void *progress_context;
    TrainProgress seen;
} CountOptions;

/* Counts the Llama 4 pieces of all texts. */
Status words_count(CountOptions *options, const TextSource *source, WordCounts *words);
void words_deinit(WordCounts *words);

#endif
