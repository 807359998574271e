/* ops: what a step is made of, one op per file.
 *
 * What it is.   The op table and the builders: a function per op that adds its node to a graph.
 *               Each
 *               op's file holds its shape rule, gradient rule, cost and kernels (kernel.h).
 * Depends on.   base, tensor, graph, gpu
 * Owns.         The read-only table of ops.
 * Invariants.   Nothing outside this folder switches over ops. Activations are f32 or bf16;
 *               statistics,
 *               softmax, router, loss, optimizer are f32. Integer tensors are i32.
 * Use:
 *     ValueId h, y;
 *     TRY(op_rmsnorm(g, x, w, 1e-5f, &h));
 *     TRY(op_linear(g, h, wo, &y));
 *     TRY(op_add(g, x, y, &x));
 *
 * Letters in the comments: B batch, T seq, D embed, H heads, K kv heads, d head_dim, F ffn, V
 * vocab, E experts, k choices per token, R rows of expert buffers. x[...] is a tensor, "..." any
 * leading axes.
 */
#ifndef OPS_OPS_H
#define OPS_OPS_H

#include "graph/graph.h"

const OpDef *op_find(const char *name);
const OpDef *op_at(int index); /* NULL past the end */

/* ---- views: no time, no memory ---------------------------------------------------------- */

/* The same elements under another shape of equal count. */
Status op_reshape(Graph *g, ValueId x, Shape shape, ValueId *y);
/* x [..., sum width] into n views of its last axis; widths in elements. axis_names (may be NULL)
 * names the last axis of each part. Its gradient is concat. n <= NODE_MAX_OUT. */
Status op_split(Graph *g, ValueId x, int n, const int64_t *width, const Axis *axis_names,
                ValueId *y);
/* Joins along the last axis; where it can, the memory plan lets the producers write straight into
 * the parts of y, and nothing is left to do. */
Status op_concat(Graph *g, int n, const ValueId *x, ValueId *y);

/* ---- element-wise ----------------------------------------------------------------------- */

Status op_add(Graph *g, ValueId a, ValueId b, ValueId *y); /* same shape and dtype */
/* y = x + b: x [..., N], b [N] f32, one number for each column. */
Status op_add_bias(Graph *g, ValueId x, ValueId b, ValueId *y);
Status op_scale(Graph *g, ValueId x, float factor, ValueId *y); /* y = factor x */
Status op_cast(Graph *g, ValueId x, DType dtype, ValueId *y);
Status op_fill(Graph *g, DType dtype, Shape shape, float value, ValueId *y);
/* y = silu(gate) * up; silu(x) = x / (1 + e^-x). All [..., F], gate and up may be strided. */
Status op_swiglu(Graph *g, ValueId gate, ValueId up, ValueId *y);
/* y = gelu(gate) * up; gelu(x) = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))). Operands as
 * op_swiglu's. */
Status op_geglu(Graph *g, ValueId gate, ValueId up, ValueId *y);
/* The same of rows of experts [R F], as many as their offsets say; those behind are left as they
 * are. */
Status op_swiglu_rows(Graph *g, ValueId gate, ValueId up, ValueId offsets, ValueId *y);
Status op_geglu_rows(Graph *g, ValueId gate, ValueId up, ValueId offsets, ValueId *y);
/* y = f(x) without a gate: x/2 erfc(-x / sqrt 2), op_geglu's gelu, or max(x, 0)^2. */
typedef enum ActivationKind {
    ACTIVATION_GELU,
    ACTIVATION_GELU_TANH,
    ACTIVATION_RELU2
} ActivationKind;
Status op_activation(Graph *g, ValueId x, ActivationKind kind, ValueId *y);
/* y = cap tanh(x / cap), cap > 0. */
Status op_softcap(Graph *g, ValueId x, float cap, ValueId *y);

/* ---- norms ------------------------------------------------------------------------------ */

/* y = w * x / sqrt(mean(x^2) + eps) over the last axis; statistics f32; w [D] f32. */
Status op_rmsnorm(Graph *g, ValueId x, ValueId w, float eps, ValueId *y);
/* h = a + b; y = w * h / sqrt(mean(h^2) + eps): the residual sum and the norm after it in one walk.
 * Made by pass/fuse from add and rmsnorm. */
Status op_add_rmsnorm(Graph *g, ValueId a, ValueId b, ValueId w, float eps, ValueId *h, ValueId *y);
/* y = w * (x - mean(x)) / sqrt(var(x) + eps) + b over the last axis; statistics f32; w [D] f32, b
 * [D] f32 or NO_VALUE. */
Status op_layernorm(Graph *g, ValueId x, ValueId w, ValueId b, float eps, ValueId *y);
/* h = a + b; y = layernorm(h, w, bias). in: a, b, w, bias or NO_VALUE. As op_add_rmsnorm. */
Status op_add_layernorm(Graph *g, const ValueId in[4], float eps, ValueId *h, ValueId *y);
/* y = x / sqrt(mean(x^2) + eps) over the last axis of x [B T H d], no weight (Llama 4's QK norm).
 */
Status op_l2norm(Graph *g, ValueId x, float eps, ValueId *y);

/* ---- positions -------------------------------------------------------------------------- */

/* models.md 1.3. Frequencies are formed in f32; the angle is f32(position) * f32(frequency). */
typedef struct RopeScaling {
    float factor; /* 0 or 1: unscaled */
    float low_freq_factor, high_freq_factor;
    float original_max_position;
} RopeScaling;
/* pos [B T] i32 -> table [B T d] f32: d/2 cosines, then d/2 sines. One node serves all layers. */
Status op_rope_table(Graph *g, ValueId pos, int64_t head_dim, double theta, RopeScaling scaling,
                     ValueId *table);
/* Rotates x [B T H d]. interleaved: pairs (2j, 2j+1), Llama 4; else (j, j + d/2), Llama 3 in HF
 * form. */
Status op_rope(Graph *g, ValueId x, ValueId table, bool interleaved, ValueId *y);
/* y = x * (1 + scale * ln(1 + floor((p + 1) / floor_scale))), x [B T H d], p = pos [B T]: Llama 4's
 * query temperature on layers without rope. */
Status op_query_temperature(Graph *g, ValueId x, ValueId pos, float scale, float floor_scale,
                            ValueId *y);

/* ---- embedding, products, loss ---------------------------------------------------------- */

/* y[b,t,:] = w[ids[b,t], :], w [V D] f32 or bf16, y of dtype. ids outside 0..V-1 read row 0 and are
 * the host's fault: the data layer checks them. */
Status op_embed(Graph *g, ValueId ids, ValueId w, DType dtype, ValueId *y);
/* y[..., o] = sum_i x[..., i] w[o, i]; x and y may be strided; w [O I]. y has x's dtype, or
 * out_dtype with op_linear_as. The output's last axis takes the name of w's first. */
Status op_linear(Graph *g, ValueId x, ValueId w, ValueId *y);
Status op_linear_as(Graph *g, ValueId x, ValueId w, DType out_dtype, ValueId *y);
/* Products with expert e's matrix for the rows of expert e. x [R I], w [E I O] (x . W, as packed
 * experts are published) or [E O I] (x . W^T, as single matrices are), offsets [E+1] i32 as made by
 * op_expert_sort: rows offsets[e]..offsets[e+1]-1, each count a multiple of EXPERT_ROW_ALIGN.
 * y [R O]; rows past offsets[E] are left as they are. */
enum { EXPERT_ROW_ALIGN = 16 };
typedef enum ExpertLayout { EXPERTS_IN_OUT, EXPERTS_OUT_IN } ExpertLayout;
Status op_grouped_linear(Graph *g, ValueId x, ValueId w, ValueId offsets, ExpertLayout layout,
                         ValueId *y);
/* Cross entropy of x . w^T against targets without ever holding all logits.
 * x [B T D], w [V D], targets [B T] i32 (negative: no loss there), weights [B T] f32.
 * loss (scalar f32) = sum weights * nll; nll [B T] f32 = log sum exp(logits) - logits[target], 0
 * where the target is negative. z_loss > 0 adds z_loss * weights * (log sum exp)^2 to the loss.
 * Together with its gradient it is one node (pass/fuse) that computes each block of logits once. */
Status op_linear_cross_entropy(Graph *g, ValueId x, ValueId w, ValueId targets, ValueId weights,
                               float z_loss, ValueId *loss, ValueId *nll);

float op_cross_entropy_z_loss(const Node *node); /* of op_linear_cross_entropy's node */
/* The same in two steps, for a vocabulary that is cut (vocab_loss.c): stats [1 B T 3] of the words
 * of w here, gathered to [parts B T 3], then the loss. parts: into as many parts as canonical mode
 * says; 0: as many as there are ranks. */
Status op_vocab_stats(Graph *g, ValueId x, ValueId w, ValueId targets, int parts, ValueId *stats);
Status op_vocab_loss(Graph *g, ValueId stats, ValueId targets, ValueId weights, float z_loss,
                     ValueId *loss, ValueId *nll);

/* ---- attention -------------------------------------------------------------------------- */

/* One description of every mask: query t (row index) sees keys lo(t)..t of its row, where
 *   chunk == 0:  lo(t) = t - pos[t]               (its document so far)
 *   chunk  > 0:  lo(t) = t - pos[t] % chunk       (its chunk of its document so far)
 * pos [B T] i32 is the position inside the document; documents are packed one behind the other. */
typedef struct AttentionSlice { /* of queries, when a rank has some of a sequence's: token t is
                                 row */
    int64_t split;              /* t + first for t < split, */
    int64_t first, second;      /* t + second from there on; zeroed: row t */
} AttentionSlice;
typedef struct AttentionAttr {
    float scale;   /* of q . k */
    float softcap; /* > 0: z = softcap * tanh(z / softcap) (Grok) */
    /* > 0: ALiBi (Press, Smith and Lewis 2021): the score of a query in row i and a key in row j of
     * its sequence gets slope * (j - i), in scores as the softmax sees them. Of n heads, a power of
     * two, head h has the slope 2^(-alibi (h + 1) / n); of another number those of the next power
     * of two in the order 2nd, 4th, ..., then 1st, 3rd, ... Theirs is alibi = 8. */
    float alibi;
    int32_t alibi_heads; /* n; 0: all heads that q has */
    int64_t alibi_first; /* number of q's first head among them: ranks have heads of their own */
    int64_t chunk;
    int64_t context; /* op_attention_cached: positions that a sequence can have; 0: as many as its
                        pages have */
    AttentionSlice slice; /* set by pass/context */
    bool library;         /* on GPUs the vendor's library is wanted, where it has this attention */
} AttentionAttr;
/* What came of AttentionAttr.library at a node of attention or of its gradient. */
typedef struct AttentionLibrary {
    bool asked, gradient;
    const char *refusal; /* why our own kernel computes it, a part of a sentence; NULL: it does not
                          */
} AttentionLibrary;
AttentionLibrary op_attention_library(const Graph *graph, const Node *node);
/* y [B T K copies d]: each head of x [B T K d] so often behind itself. Ranks that share heads (tp)
 * make those copies that are theirs; x may be strided by token. */
Status op_repeat_heads(Graph *g, ValueId x, int64_t copies, ValueId *y);
/* q [B T H d], k and v [B T K d], H a multiple of K, query head h reads kv head h / (H / K); all
 * may be strided by token. o [B T H d]. Also makes lse [B H T] f32 (log-sum-exp per query) for the
 * gradient. */
Status op_attention(Graph *g, ValueId q, ValueId k, ValueId v, ValueId pos, AttentionAttr attr,
                    ValueId *o);
/* The same, and its gradient, with the keys in parts: what ring attention does with the block that
 * it holds (attention_part.c; put in by pass/ring). `of.slice` says where the queries stand in the
 * sequence, `keys` where the keys. */
typedef struct AttentionPart {
    AttentionAttr of;
    AttentionSlice keys;
    MeshAxis axis;   /* of the ring */
    int hop;         /* the keys are of the rank so many places before this one; 0: its own */
    int part, parts; /* this is number `part`, from 0, of `parts` that the queries see */
    int sums; /* gradient: summands that dk and dv will have; they stay f32 while there are more
                 than this one */
} AttentionPart;
/* q [B T H d], k, v [B S K d], pos [B T], then o [B T H d] and lse [B H T] of the parts before,
 * f32, or NO_VALUE twice. o is f32 until the last part. */
Status op_attention_part(Graph *g, const ValueId in[6], const AttentionPart *part, ValueId out[2]);
/* q k v pos, o lse of all parts, do, and dq of the parts before (f32) or NO_VALUE -> dq dk dv. */
Status op_attention_grad_part(Graph *g, const ValueId in[8], const AttentionPart *part,
                              ValueId out[3]);
/* Keys and values of earlier tokens lie in pools of pages [P S K d], S positions to a page, a power
 * of two from 16 on: position j of sequence b in row j % S of page table[b][j / S]. table [B W]
 * i32, written by the host; entries of positions that nobody sees may be anything.
 *
 * Writes k and v [B n K d] of the new tokens into the pages, at positions pos[b,i]; gives the new
 * versions of the pools. Tokens with pos < 0 are not written. copy [B] i32: before anything is
 * written, the rows before sequence b's first new token (of its page) are copied there from page
 * copy[b], which others go on reading; < 0: they are there. */
typedef struct CachePages {
    ValueId k, v; /* pools */
    ValueId table, copy;
} CachePages;
Status op_cache_append(Graph *g, ValueId k, ValueId v, ValueId pos, CachePages pages,
                       ValueId *k_new, ValueId *v_new);
/* Attention of new tokens q [B n H d] over pages: the query at position p = pos[b,i] sees positions
 * lo..p, lo = 0, or p - p % chunk with chunks. pos < 0: the output row is zero. Inference only: no
 * gradient. */
Status op_attention_cached(Graph *g, ValueId q, ValueId k_pool, ValueId v_pool, ValueId pos,
                           ValueId table, AttentionAttr attr, ValueId *o);

/* ---- mixture of experts ----------------------------------------------------------------- */

/* Which experts a token goes to, and with what score. logits [B T E] f32, bias [E] f32 or NO_VALUE
 * (added for the choice only), k choices: choice [B T k] i32 in order of falling logit (+ bias),
 * lowest expert first among equals; score [B T k] f32 = sigmoid(logits[choice]) (models.md 2.3), or
 * their softmax over all experts, not renormalised over the chosen (5.2). */
typedef enum RouterScore { ROUTER_SIGMOID, ROUTER_SOFTMAX } RouterScore;
Status op_route(Graph *g, ValueId logits, ValueId bias, int k, RouterScore kind, ValueId *choice,
                ValueId *score);
/* The order of (token, choice) pairs by expert, stable in token order. choice [B T k] ->
 * offsets [E+1] i32 (each expert's start, counts rounded up to EXPERT_ROW_ALIGN);
 * source [R] i32: row -> token * k + slot, or -1 for a padding row, also for all rows past the end;
 * place [B T k] i32: (token, slot) -> row; load [E] f32: true counts.
 * R = B T k + E * EXPERT_ROW_ALIGN, a bound that dropless dispatch never exceeds. */
Status op_expert_sort(Graph *g, ValueId choice, int64_t n_experts, ValueId *offsets,
                      ValueId *source, ValueId *place, ValueId *load);
/* rows[r,:] = score[source r] * x[token of source r, :], zero for padding rows and rows past the
 * end. x [B T D] -> [R D]; score [B T k] f32, or NO_VALUE for ones. place is for the gradient: each
 * token sums its rows in slot order. */
Status op_expert_gather(Graph *g, ValueId x, ValueId score, ValueId source, ValueId place,
                        ValueId *rows);
/* y[t,:] = base[t,:] + sum over slots of rows[place[t,slot], :] in slot order; base [B T D] (the
 * shared expert's output) may be NO_VALUE. With weight [B T k] (Grok: scores scale the output) else
 * NO_VALUE. */
Status op_expert_combine(Graph *g, ValueId rows, ValueId source, ValueId place, ValueId weight,
                         ValueId base, Shape token_shape, ValueId *y);
/* Between tokens' ranks and experts' ranks (expert_exchange.c). offsets as expert_sort makes them;
 * table is for the other two; owned: offsets of the rows that dispatch brings together, for
 * op_grouped_linear. columns: ranks that hold the same rows carry parts of their columns
 * (expert_columns.c), which unite and divide stand around the products for. */
Status op_expert_plan(Graph *g, ValueId offsets, ValueId *table, ValueId *owned);
Status op_expert_dispatch(Graph *g, ValueId rows, ValueId table, bool columns, ValueId *of_experts);
Status op_expert_collect(Graph *g, ValueId of_experts, ValueId table, bool columns, ValueId *rows);
bool op_expert_sends_columns(const Node *node); /* a dispatch that wants parts of columns */
Status op_expert_unite(Graph *g, ValueId part, ValueId owned, ValueId *rows);
Status op_expert_divide(Graph *g, ValueId rows, ValueId owned, ValueId *part);
/* Where experts are shared out over ranks that hold the same rows (expert_fold.c): owned says where
 * this rank's lie. */
Status op_expert_share(Graph *g, ValueId offsets, ValueId *owned);
Status op_expert_pick(Graph *g, ValueId rows, ValueId offsets, ValueId *own);
Status op_expert_put(Graph *g, ValueId own, ValueId offsets, ValueId *rows);
/* Losses that keep the router healthy, scalar f32. With p = scores normalised over experts
 * (sigmoid: s/sum s; softmax: itself), f_e = share of (token, slot) pairs that chose e, P_e = mean
 * p_e over tokens:
 *   aux * E * sum_e f_e P_e   (Shazeer 2017, Fedus 2021)   +   z * mean(log sum exp(logits)^2)
 *                             (Zoph 2022)
 * Only tokens with weights != 0 count. */
Status op_router_loss(Graph *g, ValueId logits, ValueId choice, ValueId weights, float aux, float z,
                      RouterScore kind, ValueId *loss);

/* ---- update ----------------------------------------------------------------------------- */

/* hyper: f32 vector that the host writes before each step */
typedef enum Hyper {
    HYPER_LR,
    HYPER_BIAS1, /* 1 - beta1^step */
    HYPER_BIAS2, /* 1 - beta2^step */
    HYPER_BETA1,
    HYPER_BETA2,
    HYPER_EPS,
    HYPER_DECAY,
    HYPER_CLIP,      /* largest gradient norm, 0: none */
    HYPER_BIAS_RATE, /* step of the expert bias */
    HYPER_COUNT
} Hyper;
/* norm (scalar f32): sqrt of the sum of squares of all elements of the n gradients, summed in
 * double in a fixed order: two nodes, between which the norms of several ranks are gathered. */
Status op_grad_norm(Graph *g, int n, const ValueId *grads, ValueId *norm);
/* factor = clip > 0 and norm > clip ? clip / norm : 1 */
Status op_clip_factor(Graph *g, ValueId norm, ValueId hyper, ValueId *factor);
/* AdamW (Loshchilov and Hutter 2019), in place on the states:
 *   g = grad * factor;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
 *   w = w - lr * (m / bias1 / (sqrt(v / bias2) + eps) + (decay ? decay_rate * w : 0))
 * copy: the bf16 (or f32) working copy that is remade, or NO_VALUE. zero_grad: grad is a state and
 * is set to zero after it was read. */
typedef struct AdamWAttr {
    bool decay, zero_grad;
} AdamWAttr;
Status op_adamw(Graph *g, ValueId w, ValueId m, ValueId v, ValueId grad, ValueId copy,
                ValueId factor, ValueId hyper, AdamWAttr attr);
/* bias += delta - mean(delta), delta = rate * sign(mean(load) - load): balancing without a loss.
 * load is a STATE_LOAD that the step summed into with op_accumulate. */
Status op_expert_bias_update(Graph *g, ValueId bias, ValueId load, ValueId hyper);
/* state += x, in place; f32. Sums gradients over micro-batches; fused into the product that makes
 * x. */
Status op_accumulate(Graph *g, ValueId state, ValueId x, ValueId *sum);
/* The same as one balanced binary tree over 2^k micro-batches, whatever k: that of number `micro`
 * ([1] i32, 0 first) adds x. state holds the sum behind the last of them; part holds, from level 0
 * up, the sums of 1, 2, 4, ... micro-batches that still wait for as many more.
 * op_accumulate_leaf_parts says how many are needed. What they held before does not matter. */
int op_accumulate_leaf_parts(int64_t n_micro);
Status op_accumulate_leaf(Graph *g, ValueId state, ValueId x, ValueId micro, int n_parts,
                          const ValueId *part, ValueId *sum);
/* Is it a node that adds operand 1 to the state that is operand 0, or (leaf) to one of those from
 * operand 3 on? */
bool op_adds_to_state(const Node *node);
enum { ACCUMULATE_FIRST_PART = 3 };
/* a + b, f32, neither of them a partial sum: sums over the whole batch, of which each is summed by
 * itself. */
Status op_add_whole(Graph *g, ValueId a, ValueId b, ValueId *y);
/* state = 0, in place. */
Status op_clear(Graph *g, ValueId state);
/* state = x, in place. */
Status op_assign(Graph *g, ValueId state, ValueId x);

/* ---- in an order that no layout changes: put in by pass/canonical ----------------------- */

/* A contraction that tensor parallelism may cut, in chunks that are summed as a balanced binary
 * tree (chunks.h). */
enum { CHUNK_SEGMENTS = 5 };
typedef struct Chunks {
    int n;          /* a power of two */
    int n_segments; /* weights behind one another along the contraction; each chunk has its part of
                       every one */
    int64_t width[CHUNK_SEGMENTS];
} Chunks;
/* As op_linear and op_linear_dx, but f32. */
Status op_chunked_linear(Graph *g, ValueId x, ValueId w, const Chunks *chunks, ValueId *y);
Status op_chunked_linear_dx(Graph *g, ValueId dy, ValueId w, const Chunks *chunks, ValueId *dx);
/* rows against axis `axis` (1 or 2) of the experts' weight, as op_grouped_linear and its dx, but
 * f32. */
Status op_chunked_grouped_linear(Graph *g, ValueId rows, ValueId w, ValueId offsets, int axis,
                                 const Chunks *chunks, ValueId *y);
/* The axis of the weight that a grouped_linear or grouped_linear_dx contracts; 0: the node is
 * neither. */
int op_grouped_contraction(const Node *node);

/* ---- numbers of 8 bits: put in by pass/fp8 ---------------------------------------------- */

/* What shares a scale (f32): a row; SCALING_WIDTH neighbours in a row; a square of as many rows and
 * columns. Scales of `rows` rows of `width` numbers lie as products on GPUs want them (cuBLAS,
 * "Narrow precision data types"):
 *
 *     SCALING_ROW     [1 rows]
 *     SCALING_BLOCK   [ceil(width/128) rows]
 *     SCALING_SQUARE  [ceil(rows/128) ceil(width/128), up to a multiple of 4: zeros] */
typedef enum ScalingUnit { SCALING_ROW, SCALING_BLOCK, SCALING_SQUARE } ScalingUnit;
const char *scaling_name(ScalingUnit scaling);
enum { SCALING_WIDTH = 128 };
/* The number is scale * q, q of dtype f8_e4m3 or f8_e5m2. */
typedef struct Scaled {
    ValueId q, scale;
    ScalingUnit scaling;
} Scaled;
/* scale = max |x| / largest number of dtype, over what shares it, and no less than 2^-126 (zeros
 * stay zeros); q = x (1 / scale), to nearest even, never beyond the largest. NaN and infinity
 * become NaN. x [..., C] bf16. rows: q as x, rows of C; columns: q [C, rows of x], the transpose
 * with scales of its own. Either may be NULL. */
Status op_quantise(Graph *g, ValueId x, DType dtype, ScalingUnit scaling, Scaled *rows,
                   Scaled *columns);
/* y[..., n] = sum_k a[..., k] b[n, k], in f32 or bf16. Sizes are multiples of LINEAR_8_ALIGN, at
 * most one of a and b is e5m2, and both are scaled by rows, or by blocks and b perhaps by squares:
 * what tensor cores and cuBLASLt have. */
enum { LINEAR_8_ALIGN = 16 };
Status op_linear_8(Graph *g, const Scaled *a, const Scaled *b, DType dtype, ValueId *y);
/* sum = state + that, in place on the f32 state. */
Status op_linear_8_accumulate(Graph *g, const Scaled *a, const Scaled *b, ValueId state,
                              ValueId *sum);
/* Of a linear_8's node: the same product, added to a state. */
Status op_linear_8_into(Graph *g, const Node *node, const ValueId in[4], ValueId state,
                        ValueId *sum);

/* ---- collectives: put in by pass/shard -------------------------------------------------- */

/* Along one mesh axis: partial -> same; cut -> same; partial -> cut along dim; same -> cut along
 * dim, which may be PLACE_FLAT (collective.c). */
Status op_all_reduce(Graph *g, MeshAxis axis, ValueId x, ValueId *y);
Status op_all_gather(Graph *g, MeshAxis axis, ValueId x, ValueId *y);
Status op_reduce_scatter(Graph *g, MeshAxis axis, ValueId x, int dim, ValueId *y);
Status op_cut(Graph *g, MeshAxis axis, ValueId x, int dim, ValueId *y);
/* The flat parts x of all ranks into a state that all of them hold; its new version. */
Status op_all_gather_into(Graph *g, MeshAxis axis, ValueId state, ValueId x, ValueId *fresh);
/* The op that only starts what `op` does; NULL where there is none (op_start and op_wait:
 * collective.h). */
const OpDef *op_start_form(const OpDef *op);

/* One end of a message between pipeline stages; put in by pass/pipeline. */
typedef struct PipeEnd {
    int peer;            /* rank along pp */
    bool here;           /* it is this one: the value is handed over */
    int channel, depth;  /* messages that may be under way at once */
    const char *buffers; /* how their states' names begin */
    bool sequence;       /* tensor parallel ranks have parts of the sequence */
} PipeEnd;
/* Of a canonical graph a scalar (router losses) is each rank's own summand along the axes that cut
 * the batch. */
bool op_pipe_carries_summand(const Graph *g, const Shape *shape, MeshAxis axis);
Status op_send(Graph *g, ValueId x, PipeEnd end);
Status op_recv(Graph *g, DType dtype, Shape shape, PipeEnd end, ValueId *x);
/* y = x here + x of the pipeline rank `peer`, which does the same: the gradient of a weight that
 * both hold. f32. */
Status op_join_stages(Graph *g, ValueId x, int peer, ValueId *y);

/* ---- gradients: used by gradient rules and passes --------------------------------------- */

Status op_swiglu_grad(Graph *g, ValueId gate, ValueId up, ValueId dy, ValueId *dgate, ValueId *dup);
Status op_geglu_grad(Graph *g, ValueId gate, ValueId up, ValueId dy, ValueId *dgate, ValueId *dup);
Status op_activation_grad(Graph *g, ValueId x, ValueId dy, ActivationKind kind, ValueId *dx);
Status op_bias_grad(Graph *g, ValueId dy, ValueId *db); /* db [N] f32: dy [..., N] over its rows */
Status op_softcap_grad(Graph *g, ValueId y, ValueId dy, float cap, ValueId *dx); /* y: the output */
/* dx and dw (f32) of op_rmsnorm; with residual (same shape, else NO_VALUE) dx has it added. */
Status op_rmsnorm_grad(Graph *g, ValueId dy, ValueId x, ValueId w, ValueId residual, float eps,
                       ValueId *dx, ValueId *dw);
/* The same of op_layernorm. in: dy, x, w, residual or NO_VALUE; out: dx, dw, and db where bias says
 * so. */
Status op_layernorm_grad(Graph *g, const ValueId in[4], float eps, bool bias, ValueId out[3]);
/* dw f32 of the table's shape: each row the sum of dy over the tokens with its id, zero without
 * any. */
Status op_embed_grad(Graph *g, ValueId ids, ValueId dy, Shape table, ValueId *dw);
/* dx = dy w, dy's dtype: w [O I]. In a forward pass it is the product with a weight that is
 * published as [in out] (GPT-2's), and has a gradient like any other. */
Status op_linear_dx(Graph *g, ValueId dy, ValueId w, ValueId *dx);
Status op_linear_dw(Graph *g, ValueId dy, ValueId x, ValueId *dw); /* dw [O I] f32 = dy^T x */
/* sum = state + dy^T x, in place on the f32 state. */
Status op_linear_dw_accumulate(Graph *g, ValueId dy, ValueId x, ValueId state, ValueId *sum);
Status op_grouped_linear_dx(Graph *g, ValueId dy, ValueId w, ValueId offsets, ExpertLayout layout,
                            ValueId *dx);
/* dw f32 of the weight's shape, which its operands do not tell. */
typedef struct ExpertWeight {
    Shape shape;
    ExpertLayout layout;
} ExpertWeight;
Status op_grouped_linear_dw(Graph *g, ValueId dy, ValueId x, ValueId offsets, ExpertWeight like,
                            ValueId *dw);
/* loss, nll, dx, dw (f32) in one; dloss scalar f32. Replaces op_linear_cross_entropy when trained.
 */
Status op_linear_cross_entropy_grad(Graph *g, ValueId x, ValueId w, ValueId targets,
                                    ValueId weights, ValueId dloss, float z_loss, ValueId *loss,
                                    ValueId *nll, ValueId *dx, ValueId *dw);

Status op_route_grad(Graph *g, ValueId logits, ValueId choice, ValueId score, ValueId dscore,
                     RouterScore kind, ValueId *dlogits);
/* dx[t] = sum over slots of score drows[place]; dscore[t, slot] = dot(x[t], drows[place]). Without
 * a score (NO_VALUE) the factor is one. expert_combine's gradient is made of this and
 * op_expert_gather. */
Status op_expert_gather_grad(Graph *g, ValueId x, ValueId score, ValueId place, ValueId drows,
                             ValueId *dx, ValueId *dscore);
Status op_router_loss_grad(Graph *g, ValueId logits, ValueId choice, ValueId weights, ValueId dloss,
                           float aux, float z, RouterScore kind, ValueId *dlogits);

#endif
