/* Shared by the files of published/. */
#ifndef PUBLISHED_PUBLISHED_INTERNAL_H
#define PUBLISHED_PUBLISHED_INTERNAL_H

#include "published/published.h"

/* One row of a CSV by the names of its columns. */
typedef struct Record {
    Arena *arena;
    const Csv *csv;
    int row;
} Record;
const char *record_text(const Record *r,
                        const char *column); /* "" where the column is missing or says - */
/* "9,288", "65?", "31.4%": false where it is open ("?") or absent; ERR_FORMAT where it is no
 * number. */
Status record_number(const Record *r, const char *column, double *out);
Status record_count(const Record *r, const char *column,
                    int64_t *out); /* a whole number, 1 to 1e12; 0 where open or absent */
Status record_fail(const Record *r, const char *column, const char *wanted);

/* The model of that key among the rows of models.csv, "X@L": X cut to L layers. ERR_FORMAT names
 * the nearest. */
Status published_model_find(const Csv *models, Arena *arena, const char *key,
                            PublishedModel *model);
/* Positions, activation, biases and head of a model of GPT blocks, by its key; others stay. */
void published_gpt_blocks(PublishedModel *model);

#endif
