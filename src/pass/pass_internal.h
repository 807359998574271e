/* Shared by the passes. */
#ifndef PASS_PASS_INTERNAL_H
#define PASS_PASS_INTERNAL_H

#include "pass/pass.h"

/* Reads of each value by nodes and outputs: n_values entries on the heap. */
int *pass_count_uses(const Graph *graph);
static inline bool node_is(const Node *node, const char *op)
{
    return node->op == op_find(op);
}

#endif
