/* Shared by the passes. */
#ifndef PASS_PASS_INTERNAL_H
#define PASS_PASS_INTERNAL_H

#include "pass/pass.h"

/* Reads of each value by nodes and outputs: n_values entries on the heap. */
int *pass_count_uses(const Graph *graph);
static inline bool node_is(const Node *node, const char *op) { return node->op == op_find(op); }

/* In the update: a gradient of which another pipeline rank has a summand too is made whole. */
Status pass_pipeline_join(Graph *graph, ValueId grad, ValueId *joined);
/* Is it this rank that counts the gradient in the norm? */
bool pass_pipeline_counts(const Graph *graph, ValueId grad);

#endif
