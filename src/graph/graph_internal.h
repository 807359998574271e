/* Shared by the files of graph/. */
#ifndef GRAPH_GRAPH_INTERNAL_H
#define GRAPH_GRAPH_INTERNAL_H

#include "graph/graph.h"

enum { GRAPH_FEW = 12 }; /* operands for which no memory is asked: nodes are added by the million */

ValueId graph_new_value(Graph *graph); /* zeroed; pointers into graph->value move */
Node *graph_new_node(Graph *graph);    /* zeroed; pointers into graph->node move */
/* Runs the shape rule; on refusal the sentence names op, place and operands. ctx->in is gone after.
 */
Status graph_infer(const Graph *graph, const OpDef *op, const void *attr, const ValueId *in,
                   int n_in, InferCtx *ctx);

/* What the cutting rule says of a node's outputs along a mesh axis; refuses operands that lie
 * otherwise than it reads them. */
Status graph_place_node(const Graph *graph, const Node *node, MeshAxis axis,
                        Place out[NODE_MAX_OUT]);

#endif
