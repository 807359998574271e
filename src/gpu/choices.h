/* Which algorithm computes a product of a given shape: tried out once, and remembered in a file.
 *
 * The same run must get the same bits again, and ranks that compute the same must agree. So a
 * choice that was made once stays: it is read from the file, and who finds none tries while it
 * holds the file's lock, so that others on this host (or all that share the directory) read what it
 * found. Of what ranks without a common directory chose, the lowest rank's counts (device/agree.c).
 *
 * The file is text: a line that says what it is, then a line for each choice,
 *     checksum algorithm microseconds key
 * where the key is the product in words, with device and libraries. A line that is damaged counts
 * for nothing, and is gone when the file is written next; a file that is something else likewise.
 */
#ifndef GPU_CHOICES_H
#define GPU_CHOICES_H

#include "gpu/tune.h"

enum { ALGORITHM_BYTES = 64, CHOICE_KEY_BYTES = 512 };

/* As the library writes it: it means something to the same version of it only. */
typedef struct Algorithm {
    uint8_t byte[ALGORITHM_BYTES];
} Algorithm;

typedef struct Choice {
    const char *key;
    Algorithm algorithm;
    double us;   /* that it took when it was tried */
    bool agreed; /* all ranks know it */
} Choice;

/* Choices by key. Each stays where it is until the end: plans point to it. */
typedef struct ChoiceTable {
    Arena arena;
    VEC(Choice *) choice;
    NameIndex index;
} ChoiceTable;

Choice *choice_find(const ChoiceTable *table, const char *key); /* NULL: there is none */
/* Of equal keys the first one stays; it is what comes back. */
Choice *choice_add(ChoiceTable *table, const char *key, const Algorithm *algorithm, double us);
void choice_table_deinit(ChoiceTable *table);
/* Adds what the lines say. Returns how many were no choices; all of them where the first line is
 * another file's. */
int choice_table_read(ChoiceTable *table, Bytes text);
/* As a file, in the order of keys, so that equal tables are equal files. */
void choice_table_write(const ChoiceTable *table, Str *out);

/* What a Gpu keeps of its products. */
typedef struct GpuChoices {
    char *path;       /* of the file; NULL: nothing is tried, the library's first proposal counts */
    ChoiceTable used; /* by products that were planned */
    bool said_trying, said_lost; /* the user knows that it takes time, and that nothing is kept */
} GpuChoices;
GpuChoices *gpu_choices(Gpu *gpu);
void gpu_choices_deinit(GpuChoices *choices);

/* The product in words, on this device with these libraries. Whatever an algorithm depends on is in
 * it: a new field of GpuProduct belongs here too. */
void gpu_product_key(Gpu *gpu, const GpuProduct *product, char key[CHOICE_KEY_BYTES]);

/* What there is to choose from. */
typedef struct Candidates {
    const Algorithm *algorithm; /* [n], best guess first */
    int n;
    /* Puts the product on the stream, once. */
    Status (*run)(void *context, const Algorithm *algorithm);
    /* Whether what a file said can compute it. */
    bool (*may)(void *context, const Algorithm *algorithm);
    void *context;
} Candidates;
/* The remembered choice, else the fastest of those that run. */
Status gpu_choose(GpuStream *stream, const char *key, const Candidates *candidates, Choice **out);

#endif
