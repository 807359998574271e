/* Ring attention in place of one attention node, or of its gradient (ring.c). Internal to pass/. */
#ifndef PASS_RING_H
#define PASS_RING_H

#include "pass/shard.h"

enum { RING_MOST_RANKS = 127 }; /* a Place counts hops */

bool ring_takes(const ShardPlan *plan, const Node *node);
/* How operand i of the node must lie. */
Place ring_operand(int i);
/* The node over its operands as this rank has them; out: what its outputs become. */
Status ring_attention(Graph *g, const ShardPlan *plan, const Node *node, const ValueId *in,
                      ValueId *out);

#endif
