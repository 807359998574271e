/* accumulate_leaf: gradients of 2^k micro-batches summed as one balanced binary tree, the way a
 * binary counter counts.
 *
 * There is a state for each level but the topmost: level l holds the sum of 2^l micro-batches that
 * waits for the next 2^l. Micro-batch m has x as the sum of one; as long as bit l of m is set, from
 * l = 0 up, what waits at level l is added in front of it, and the sum goes to the level behind the
 * last such bit. The last micro-batch finds all levels waiting and leaves the sum of all in the
 * uppermost state, which is operand 0. So k states serve 2^k micro-batches, and one serves one or
 * two. A sum over ranks is the same kind of tree (comm/comm.h): micro-batches and ranks together
 * make one tree, the same wherever the line between them is drawn. */
#include "ops/kernel.h"
#include "ops/rules.h"

#include <string.h>

CPU_DECLARE(accumulate_leaf);
CUDA_DECLARE(accumulate_leaf);

enum { IN_STATE, IN_X, IN_MICRO };

int op_accumulate_leaf_parts(int64_t n_micro)
{
    int levels = 0;
    while ((int64_t)1 << levels < n_micro) levels++;
    return levels > 1 ? levels - 1 : 0;
}

extern const OpDef op_def_accumulate, op_def_accumulate_leaf;

bool op_adds_to_state(const Node *node)
{
    return node->op == &op_def_accumulate || node->op == &op_def_accumulate_leaf;
}

static Status infer(InferCtx *ctx)
{
    const Value *state = ctx->in[IN_STATE];
    TRY(need_dtype(state, DTYPE_F32, "state"));
    TRY(need_activation(ctx->in[IN_X], "x"));
    TRY(need_shape(ctx->in[IN_X], &state->shape, "x"));
    TRY(need_vector(ctx->in[IN_MICRO], 1, DTYPE_I32, "micro"));
    for (int k = 0; k < NODE_MAX_OUT; k++) {
        int from = k ? ACCUMULATE_FIRST_PART + k - 1 : IN_STATE;
        ctx->out[k].wanted = from < ctx->n_in;
        if (from >= ctx->n_in) continue;
        TRY(need_like(ctx->in[from], state, "a part"));
        ctx->out[k] = infer_like(state);
        ctx->out[k].alias = from;
    }
    return OK;
}

/* Everything lies as the sum does. */
static Status cut_like_state(CutCtx *ctx)
{
    for (int i = 0; i < ctx->n_in; i++) ctx->want[i] = ctx->place[IN_STATE];
    ctx->want[IN_MICRO] = (Place){PLACE_SAME, 0};
    for (int k = 0; k < NODE_MAX_OUT; k++) ctx->out[k] = ctx->place[IN_STATE];
    return OK;
}

/* There is one addition less than there are micro-batches. */
static Cost cost(const Graph *g, const Node *node)
{
    return (Cost){.flop = value_count(g, node->in[IN_X]),
                  .read_bytes = value_bytes(g, node->in[IN_X]) + value_bytes(g, node->in[IN_STATE]),
                  .write_bytes = value_bytes(g, node->in[IN_STATE])};
}

const OpDef op_def_accumulate_leaf = {
    .name = "accumulate_leaf",
    .min_in = ACCUMULATE_FIRST_PART,
    .max_in = ACCUMULATE_FIRST_PART + NODE_MAX_OUT - 1,
    .n_out = NODE_MAX_OUT,
    .flags = OP_SOURCE | OP_EFFECT,
    .strided_in = 1 << IN_X,
    .infer = infer,
    .cut_rule = cut_like_state,
    .cost = cost,
    .cpu = CPU_KERNELS(accumulate_leaf),
    .cuda = &cuda_accumulate_leaf,
};

Status op_accumulate_leaf(Graph *g, ValueId state, ValueId x, ValueId micro, int n_parts,
                          const ValueId *part, ValueId *sum)
{
    ValueId in[ACCUMULATE_FIRST_PART + NODE_MAX_OUT] = {state, x, micro}, out[NODE_MAX_OUT];
    if (n_parts >= NODE_MAX_OUT)
        return fail(ERR_REFUSED, "a tree over more than %d micro-batches", 1 << NODE_MAX_OUT);
    for (int k = 0; k < n_parts; k++) in[ACCUMULATE_FIRST_PART + k] = part[k];
    TRY(graph_add(g, &op_def_accumulate_leaf, NULL, in, ACCUMULATE_FIRST_PART + n_parts, out));
    *sum = out[0];
    return OK;
}
