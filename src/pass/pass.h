/* pass: graph -> graph. Each pass is one file and one function.
 *
 * What it is.   Autodiff, fusion, recompute, optimizer, pruning. Together they turn the forward
 *               graph
 *               of a model into a training step.
 * Depends on.   base, tensor, pipeline, graph, ops
 * Owns.         Nothing: a pass replaces *graph by a new one, or appends to it.
 * Invariants.   A pass never asks on which device the graph will run. In debug builds the verifier
 *               runs after each (pass_check).
 * Use:
 *     TRY(model_build(&config, options, &g));       ends with pass_fuse_siblings
 *     TRY(pass_autodiff(g, "loss", &grads));
 *     TRY(pass_recompute(&g, RECOMPUTE_SELECTIVE, false, &grads));
 *     TRY(pass_optimizer(g, &grads));
 *     TRY(pass_fuse(&g, false)); TRY(pass_prune(&g));
 */
#ifndef PASS_PASS_H
#define PASS_PASS_H

#include "graph/graph.h"
#include "ops/ops.h"
#include "pipeline/pipeline.h"

/* A trained leaf (a master weight, or its working copy) and the gradient of the loss to it. In a
 * canonical graph a leaf that several nodes read has as many, one behind the other: each is summed
 * over the batch by itself, and the update adds these sums. */
typedef struct ParamGrad {
    ValueId leaf, grad;
} ParamGrad;
typedef struct ParamGrads {
    ParamGrad *at; /* heap */
    int n;
} ParamGrads;
void param_grads_deinit(ParamGrads *grads);

/* Verifies in debug builds; `after` names the pass. */
Status pass_check(const Graph *graph, const char *after);

/* Products of one input with several weights become one product whose result is split; the weights
 * become parts of one state and keep their names. */
Status pass_fuse_siblings(Graph **graph);

/* Appends the gradient of output `loss` (a scalar) to every trained leaf. */
Status pass_autodiff(Graph *graph, const char *loss, ParamGrads *grads);

typedef enum Recompute {
    RECOMPUTE_NONE,      /* keep what the gradients read */
    RECOMPUTE_SELECTIVE, /* make cheap results (norms, activations) again from what is kept
                          anyway */
    RECOMPUTE_FULL,      /* keep each layer's input only */
} Recompute;
/* Runs after autodiff; grads are mapped to the new graph. layers_apart: what one layer makes no
 * other makes again, since it may lie on another stage of a pipeline. */
Status pass_recompute(Graph **graph, Recompute mode, bool layers_apart, ParamGrads *grads);

/* How a job's ranks share the work, as one of them sees it. Zeroed: one rank does all. */
typedef struct Layout {
    Mesh mesh;
    bool sequence;     /* tensor parallel ranks keep norms and residuals cut along the sequence */
    bool fold_experts; /* they have whole experts, shared out, instead of parts of all */
    bool ring; /* context parallel ranks pass keys and values round instead of gathering them */
    int zero;  /* what the ranks of dp share: 0 nothing, 1 the update's states, 2 sums of gradients
                  too (data.c) */
    int expert_room; /* Graph.expert_room; only for plans: no program with less than 0 runs safely
                      */
    bool blocking;   /* collectives are waited for where they stand */
    int chunks;      /* canonical mode: into how many pieces contractions are cut that tp may cut, a
                        power of two; 0: no such    mode */
    size_t bucket_bytes;       /* gradients that are summed together; 0: LAYOUT_BUCKET_BYTES */
    const Pipeline *pipeline;  /* with several ranks along pp: which stages they have, and what they
                                  do when; borrowed */
    const int *stage_of_layer; /* of a short model that stands for a long one: the stage of each of
                                  its layers, rising. A stage that is left out is like one of those
                                  there, and the next one in the list stands for a neighbour. NULL:
                                  layers are shared out evenly. Borrowed */
    const int *stage_like; /* with stage_of_layer: of each stage the one that is built in its place,
                              an earlier one of the same rank with the same layers; itself where it
                              is built itself. NULL: all stages of a rank are built. Borrowed */
} Layout;
enum { LAYOUT_BUCKET_BYTES = 25 << 20 };

/* Canonical mode: which leaf of the batch this rank's micro-batch `micro` of n_micro is
 * (canonical.c). They are a run with a fixed distance. */
int64_t layout_leaf(const Layout *layout, int64_t n_micro, int64_t micro);

/* Sums every gradient into a STATE_GRAD over several runs (micro-batches): the gradients become the
 * states' new versions. */
Status pass_accumulate(Graph *graph, ParamGrads *grads);
/* The same as a balanced binary tree over n_micro micro-batches, a power of two, whose number is an
 * input of the graph. */
#define MICRO_INPUT "micro"
Status pass_accumulate_leaves(Graph *graph, int64_t n_micro, ParamGrads *grads);
/* The update: norm, clipping, AdamW for every parameter, expert bias. In the graph that made the
 * gradients or, behind pass_accumulate, the last summands of them; or in a graph of its own that
 * reads the STATE_GRAD of every parameter of `like`. Outputs grad_norm. */
Status pass_optimizer(Graph *graph, const ParamGrads *grads);
Status pass_optimizer_alone(const Graph *like, const Layout *layout, Graph **update);

/* ---- layouts ---------------------------------------------------------------------------- */

/* Before autodiff: what a layout computes in another way. */
Status pass_tensor_prepare(Graph **graph, const Layout *layout);
Status pass_expert_prepare(Graph **graph, const Layout *layout);
/* Behind autodiff, in canonical mode: contractions that tensor parallelism may cut, in chunks.
 * grads (NULL: none) are mapped to the new graph. */
Status pass_canonical(Graph **graph, const Layout *layout, ParamGrads *grads);
/* After autodiff with summed gradients, before the update is made: the nodes of one stage, as a
 * graph of its own. one_at_a_time: no micro-batch starts before the one before has left the
 * pipeline (evaluation). */
Status pass_pipeline(const Graph *whole, const Layout *layout, int stage, bool one_at_a_time,
                     Graph **out);
/* A graph of nothing but the states of these. */
Graph *pass_pipeline_states(Graph *const *stage, int n);
/* The same of one stage, with `prefix` in front of their names: those of another stage that is like
 * it. */
Graph *pass_pipeline_twin(const Graph *stage, const char *prefix);
/* In the update: the norms of all stages are joined. */
void pass_pipeline_norms(Graph *graph, const Layout *layout);
/* After autodiff and the optimizer: each makes the graph that of this rank along its mesh axis, and
 * does nothing where that has size 1; in this order. like: the step's graph when *graph is its
 * update, else NULL. */
Status pass_context(Graph **graph, const Layout *layout, const Graph *like);
Status pass_tensor(Graph **graph, const Layout *layout, const Graph *like);
Status pass_data(Graph **graph, const Layout *layout, const Graph *like);
Status pass_expert(Graph **graph, const Layout *layout, const Graph *like);
Status pass_fsdp(Graph **graph, const Layout *layout, const Graph *like);
/* All of either kind. */
Status pass_layout_prepare(Graph **graph, const Layout *layout);
Status pass_layout(Graph **graph, const Layout *layout, const Graph *like);

/* Behind the layout: products of layers in 8 bits, with scales for rows, or for blocks of 128 and
 * weights' squares of 128 by 128 (fp8.c). */
typedef enum Fp8 { FP8_NONE, FP8_ROW, FP8_BLOCK } Fp8;
Status pass_fp8(Graph **graph, Fp8 scaling);
/* add + rmsnorm, residual + rmsnorm_grad, cross entropy with its gradient, product + accumulate.
 * phases_apart: of a pipeline, whose forward and backward phases run at different times. */
Status pass_fuse(Graph **graph, bool phases_apart);
/* Behind all other passes: what makes gradients of weights goes to a phase of its own,
 * PHASE_WEIGHTS. */
Status pass_split_backward(Graph **graph);
/* Drops nodes that nobody reads. */
Status pass_prune(Graph **graph);
/* At the very end: collectives become a start and a wait, as far apart as the graph allows
 * (overlap.c). The numbers stay the same bits. */
Status pass_overlap(Graph **graph, const Layout *layout);

#endif
