/* Shared by the passes. */
#ifndef PASS_PASS_INTERNAL_H
#define PASS_PASS_INTERNAL_H

#include <string.h>

#include "pass/pass.h"

/* Reads of each value by nodes and outputs: n_values entries on the heap. */
int *pass_count_uses(const Graph *graph);
/* The nodes that read each value, in their order: at[begin[v]] .. at[begin[v + 1] - 1]. */
typedef struct Readers {
    int *begin, *at;
} Readers;
Readers pass_find_readers(const Graph *graph);
void readers_deinit(Readers *readers);

static inline bool node_is(const Node *node, const char *op)
{
    /* asked of every node by every pass: most differ in the first letter */
    return node->op && node->op->name[0] == op[0] && !strcmp(node->op->name, op);
}

/* In the update: of the weight that grad is of, another pipeline rank may have a summand of the
 * gradient too; then *sum, what there is of it here, is made whole. */
Status pass_pipeline_join(Graph *graph, ValueId grad, ValueId *sum);
/* Is it this rank that counts the gradient in the norm? */
bool pass_pipeline_counts(const Graph *graph, ValueId grad);

#endif
