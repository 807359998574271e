/* graph: one forward, backward or update step as nodes over values.
 *
 * What it is.   Graph (nodes and values in order), OpDef (all that the system knows of an op), the
 *               builder, the verifier, the text dump.
 * Depends on.   base, tensor, comm
 * Owns.         A Graph owns its nodes, values, attributes and names: they live in its arena and
 *               die
 *               with it. OpDefs are constants of ops/.
 * Invariants.   Straight line: a node reads only values made before it, so a pass is a for-loop.
 *               SSA: a value is made once, by one node, or is an input or a state of the graph.
 *               A value may share the storage of another (`base`): a view, or the new version of a
 *               state that an op updates in place; after that the old version may not be read.
 *               Ids are stable; pointers to nodes and values are not, across anything that adds.
 *               Nothing here, in ops/ or in pass/ knows on which device the graph will run.
 * Use:
 *     Graph *g = graph_create("tiny");
 *     ValueId x = graph_input(g, "x", DTYPE_F32, shape_make(2, (int64_t[]){8, 4}, NULL));
 *     ValueId w = graph_state(g, "w", DTYPE_F32, shape_make(2, (int64_t[]){16, 4}, NULL),
 *     STATE_PARAM);
 *     ValueId y;
 *     TRY(op_linear(g, x, w, &y));            (builders: ops/ops.h)
 *     graph_output(g, "y", y);
 */
#ifndef GRAPH_GRAPH_H
#define GRAPH_GRAPH_H

#include "comm/comm.h"
#include "tensor/tensor.h"

typedef struct Graph Graph;
typedef struct Node Node;
typedef struct OpDef OpDef;

/* 0 is no value, no node. */
typedef struct ValueId {
    int32_t id;
} ValueId;
typedef struct NodeId {
    int32_t id;
} NodeId;
#define NO_VALUE ((ValueId){0})

enum { NODE_MAX_OUT = 12 };

/* ---- layouts ---------------------------------------------------------------------------- */

/* The ranks of a job form a mesh; each of its axes cuts something else. A rank's number is its
 * coordinates in this order, the last running fastest: neighbours are tensor-parallel peers. */
typedef enum MeshAxis {
    MESH_PP,   /* layers */
    MESH_DP,   /* sequences of the batch; weights on every rank */
    MESH_FSDP, /* sequences of the batch; weights cut, gathered where they are used */
    MESH_EP,   /* sequences of the batch; experts cut */
    MESH_CP,   /* positions of a sequence */
    MESH_TP,   /* heads, ffn, vocabulary */
    MESH_AXES
} MeshAxis;
const char *mesh_axis_name(MeshAxis axis);
/* Cuts are made in this order, 0 first: of two axes that cut the same dimension the earlier one
 * cuts it into the larger pieces. */
int mesh_axis_nesting(MeshAxis axis);

/* One rank's place in the mesh. A size of 0 counts as 1: zeroed, it is one rank. */
typedef struct Mesh {
    int size[MESH_AXES], coord[MESH_AXES];
} Mesh;
static inline int mesh_size(const Mesh *mesh, MeshAxis axis)
{
    return mesh->size[axis] > 0 ? mesh->size[axis] : 1;
}
int mesh_ranks(const Mesh *mesh);
int mesh_rank(const Mesh *mesh);          /* from the coordinates */
Mesh mesh_at(const Mesh *mesh, int rank); /* the same mesh, coordinates of another rank */
/* Which of the parts of a batch a rank sees: ep outermost, then dp, then fsdp; and how many there
 * are. */
int mesh_data_ranks(const Mesh *mesh);
int mesh_data_rank(const Mesh *mesh);

/* How a value lies on the ranks along one mesh axis. */
typedef enum PlaceKind {
    PLACE_SAME,    /* every rank holds all of it, the same bits */
    PLACE_CUT,     /* every rank holds its part of axis `dim` */
    PLACE_PARTIAL, /* every rank holds a summand */
    PLACE_OWNED,   /* rows of experts, each with the rank that owns its expert; `dim` is theirs */
    PLACE_PASSED,  /* every rank holds (some of) the part of the rank `dim` places before it; below
                      0: what the rank -dim  places behind it made for its own part */
    PLACE_GROWING, /* every rank's part of a sum of which `dim` summands are there and some are
                    not */
} PlaceKind;
enum {
    PLACE_FLAT = -1
}; /* `dim` of a state cut without regard to its axes: equal runs of its elements */
typedef struct Place {
    int8_t kind, dim;
} Place;
static inline bool place_equal(Place a, Place b) { return a.kind == b.kind && a.dim == b.dim; }
static inline bool place_is_cut(Place a) { return a.kind == PLACE_CUT || a.kind == PLACE_OWNED; }
/* "same", "cut 1", "cut flat", "partial", "passed 2", "growing 1" */
const char *place_text(Place place, char text[16]);

typedef enum ValueKind {
    VALUE_TEMP,  /* lives within one run of the program */
    VALUE_INPUT, /* written by the host before a run: token ids, positions, step numbers */
    VALUE_STATE, /* lives across runs and programs, by name: weights, optimizer, caches */
} ValueKind;

/* What a state is for; the store, checkpoints and the plan's table go by it. */
typedef enum StateRole {
    STATE_NONE,
    STATE_PARAM,     /* a trained weight, the master copy */
    STATE_COPY,      /* a weight in the compute dtype, remade from its master */
    STATE_GRAD,      /* a gradient summed over micro-batches */
    STATE_GRAD_PART, /* the sum of some of them, until that of as many others is there
                        (op_accumulate_leaf); its master is the STATE_GRAD */
    STATE_ADAM_M,    /* first moment */
    STATE_ADAM_V,    /* second moment */
    STATE_BUFFER,    /* trained without a gradient, saved with the model: expert bias */
    STATE_LOAD,      /* tokens per expert, summed over a step; its master is the bias it moves */
    STATE_PIPE,      /* what is on its way to another pipeline stage; not saved */
    STATE_CACHE,     /* keys and values of earlier tokens; not saved */
} StateRole;

/* A named piece of a state: passes may fuse the storage of several weights into one value (q, k and
 * v of a layer), each of which keeps its published name and shape here. Rows of the first axis. */
typedef struct StatePart {
    const char *name;
    Shape shape;          /* of this rank's part of it */
    Shape whole;          /* as published */
    size_t offset_bytes;  /* from the start of the state, before that was cut flat */
    float init_deviation; /* STATE_PARAM: normal(0, deviation); 0: init_value everywhere */
    float init_value;
    int halves; /* > 1: its last axis holds this many equal blocks, each of which is cut (gate and
                   up of experts; q, k and v that are published as one) */
    bool halves_first; /* its first axis does, not its last */
} StatePart;
/* Into how many equal blocks axis `dim` of the part falls. */
static inline int part_blocks(const StatePart *part, int dim)
{
    int axis = part->halves_first ? 0 : part->shape.rank - 1;
    return part->halves > 1 && dim == axis ? part->halves : 1;
}

typedef struct Value {
    const char *name; /* may be NULL for temporaries; dump uses %id */
    DType dtype;
    Shape shape;
    int64_t stride[MAX_RANK]; /* elements */
    ValueKind kind;
    NodeId producer; /* none for inputs and states */
    int out_index;   /* which output of the producer */

    /* storage: own when base is none; else that of base, this many bytes further */
    ValueId base;
    size_t offset_bytes;

    /* states only */
    StateRole role;
    ValueId master; /* STATE_COPY, _GRAD, _ADAM_*: the parameter it belongs to; _LOAD: the bias */
    StatePart *part;
    int n_parts;
    bool decay;  /* STATE_PARAM: weight decay applies */
    Shape whole; /* before it was cut flat: what is gathered */
    int twin;    /* 1 + the pipeline rank that holds it too (a tied embedding); 0: none does */

    Place place[MESH_AXES]; /* shape is that of this rank's part */
} Value;

/* PHASE_WEIGHTS: what pass_split_backward took out of the backward phase; it may run later. */
typedef enum Phase { PHASE_FORWARD, PHASE_BACKWARD, PHASE_WEIGHTS, PHASE_UPDATE, PHASES } Phase;
const char *phase_name(Phase phase);

struct Node {
    const OpDef *op;
    const char *name; /* what the model calls it: "attn", "experts.down"; may be NULL */
    Phase phase;
    int layer; /* -1 outside layers */
    int n_in, n_out;
    ValueId *in;               /* n_in; an optional operand may be NO_VALUE */
    ValueId out[NODE_MAX_OUT]; /* an output nobody wants may be NO_VALUE after pruning */
    const void *attr;          /* op->attr_bytes bytes, private to the op's file */
};

struct Graph {
    const char *name;
    Arena arena;
    Node *node; /* 1..n_nodes-1 are valid: index 0 stays empty so that 0 can mean none */
    int n_nodes, node_cap;
    Value *value; /* 1..n_values-1 */
    int n_values, value_cap;
    NameIndex states; /* values of kind state by name */
    struct GraphOutput {
        const char *name;
        ValueId value;
    } * output; /* what the host reads after a run; kept alive to the end */
    int n_outputs, output_cap;
    Mesh mesh;       /* whose rank's graph this is */
    bool canonical;  /* every sum is made in one order, however the graph is cut: partial sums along
                        MESH_TP are made whole before anything else happens to them, along MESH_CP
                        there are none (what would make them sees whole sequences), and each part of
                        the batch has router losses of its own */
    int expert_room; /* ranks that own experts have room for so many times the rows that come on
                        average; 0: for all that may come */
    /* stamped on every node that is added */
    Phase phase;
    int layer;
    const char *scope;
};

/* ---- what an op knows of itself --------------------------------------------------------- */

/* By which rules the time of a node is told. */
typedef enum CostKind {
    COST_STREAM,    /* memory limits it */
    COST_MATMUL,    /* products: `count` of [m k] times [k n] */
    COST_ATTENTION, /* `count` heads of m queries that see n keys each on average, head_dim k */
    COST_ATTENTION_GRAD,
    COST_EXCHANGE, /* among the ranks along `axes`; a start, where the op has OP_STARTS */
    COST_MESSAGE,  /* to one rank of another pipeline stage */
} CostKind;

/* Work of one node, counted by its op as its kernel does it. The devices turn it into time. */
typedef struct Cost {
    double flop;       /* multiply and add count as two; on matrix units by kind */
    double read_bytes; /* from memory, each operand once */
    double write_bytes;
    double wire_bytes; /* that this rank sends to others */
    CostKind kind;
    double m, n, k, count;
    double again;     /* of count: products that make again what keeping it would have spared */
    double unwritten; /* elements that are made and used up inside, and never are in memory whole */
    DType dtype;      /* of the operands of products and attention */
    unsigned axes;    /* exchanges: bit a set for mesh axis a */
    CommKind exchange;  /* COMM_SEND: along pp of the first and the last stage with each other, else
                           to the next rank of a ring */
    double whole_bytes; /* exchanges: what is reduced, scattered or gathered, in all; all_to_all:
                           what this rank has */
} Cost;

/* Shape rule: reads c->in values and attr, sets out dtype, shape (and for views base, offset,
 * stride). Outputs are created by the builder from what is set here. */
typedef struct InferOut {
    DType dtype;
    Shape shape;
    bool wanted;         /* false: this output is left NO_VALUE; starts true */
    int alias;           /* index of the input whose storage it is, or -1 (the start value) */
    size_t offset_bytes; /* with alias: from the start of that input */
    bool strided;        /* with alias: stride is set; else the strides are contiguous */
    int64_t stride[MAX_RANK];
} InferOut;

typedef struct InferCtx {
    const Graph *graph;
    const OpDef *op;
    const Value **in; /* NULL where the operand is left out */
    int n_in;
    const void *attr;
    InferOut out[NODE_MAX_OUT];
} InferCtx;

/* Gradient rule: emits ordinary nodes into graph. dout[i] is the gradient of output i or NO_VALUE;
 * need[i] says whether the gradient of input i is wanted; the rule sets din[i] to it (NO_VALUE:
 * zero). */
typedef struct GradCtx {
    Graph *graph;
    NodeId node;
    const ValueId *dout;
    const bool *need;
    ValueId *din;
} GradCtx;

/* Cutting rule: for one mesh axis, how the operands lie -> how they must lie (`want`), how the
 * outputs then lie. Most ops state it as a text, OpDef.cut, that names the axes of operands and
 * outputs by letters:
 *
 *     "*i oi -> *o"      linear: x w -> y. * stands for all leading axes, each a letter of its own.
 *
 * A cut goes through one letter: operands with it are cut there, others are the same on all ranks;
 * outputs with it are cut, outputs without it are partial sums. `!` behind a letter: never cut,
 * `-`: a scalar, `~` behind an operand: the op is linear in it, and when all such operands are
 * partial sums and nothing is cut, so are the outputs. `&` is `*` that only an axis of the batch
 * may cut; R, rows of experts, is cut with it; E, experts, may be cut where R is: then rows lie
 * with the owners of experts. The last operand's text serves all further operands. */
typedef struct CutCtx {
    const Graph *graph;
    const OpDef *op;
    const void *attr;
    MeshAxis axis;
    int n, rank; /* of the mesh axis */
    /* attr and shapes are this rank's; else attr is still that of the uncut graph */
    bool localized;
    bool sequence; /* sums of activations may be left cut along AXIS_SEQ */
    int n_in;
    const Value **in;  /* NULL where the operand is left out */
    Place *place;      /* n_in, as they lie */
    const Place *hint; /* op->n_out: how the outputs are wanted; NULL: no matter */
    Place *want;       /* n_in: set to place before */
    bool *drop; /* n_in: of many operands, those that another rank takes; NULL when localized */
    Place out[NODE_MAX_OUT];
} CutCtx;
static inline bool mesh_axis_is_data(MeshAxis axis) { return axis >= MESH_DP && axis <= MESH_CP; }

typedef enum Isa { ISA_GENERIC, ISA_AVX2, ISA_AVX512, ISA_AVX512BF16, ISA_COUNT } Isa;
const char *isa_name(Isa isa);

/* For what machine a program is compiled: decides workspace and kernels, never the graph. */
typedef struct Target {
    Isa isa;
    int threads;
    bool gpu;   /* products pack no operands and have a library's workspace; isa is ISA_GENERIC and
                   says nothing */
    bool packs; /* weights stay packed as long as states do not change (Packing) */
} Target;
/* On GPUs: what cuBLAS asks for on Hopper; tokens whose logits are there at a time. */
enum { GPU_PRODUCT_WORKSPACE_BYTES = 32 << 20, GPU_LOGITS_ROWS = 1024 };

/* The peers of this rank, as a device knows them. axes: bit a set for mesh axis a; the group holds
 * the ranks that differ from this one along these axes only, in the mesh's order. */
typedef struct Ranks {
    Status (*group)(struct Ranks *ranks, unsigned axes, Comm **group);
} Ranks;

/* The operands of one node at run time. The arrays live as long as the program does. */
typedef struct KernelArgs {
    const void *attr;
    Tensor *in; /* data NULL where the operand is left out */
    Tensor *out;
    int n_in, n_out;
    void *workspace; /* 64-byte aligned */
    size_t workspace_bytes;
    void *state;        /* what prepare made */
    const void *packed; /* an operand as Packing.pack made it; NULL: as it is */
    int threads;
    GpuStream *stream; /* cuda: what the kernel puts its work on (gpu/gpu.h) */
    Ranks *ranks;      /* NULL: there are no others */
    const char *node;  /* the node's name, for collectives */
} KernelArgs;

/* How a kernel reads an operand that stays the same from run to run, a weight, in an order of its
 * own. Nodes with the same pack and the same state behind the operand share what it made. */
typedef struct Packing {
    int operand;
    size_t (*bytes)(const Graph *graph, const Node *node); /* 0: this node reads it as it is */
    void (*pack)(const KernelArgs *args, void *packed);    /* 64-byte aligned */
} Packing;

/* How an op is run on the cpu device or the cuda device. run allocates nothing. prepare (may be
 * NULL) is called once when the program is loaded and may make library objects into args->state;
 * release gives them back. */
typedef struct Kernel {
    Status (*run)(KernelArgs *args);
    Status (*prepare)(KernelArgs *args);
    void (*release)(KernelArgs *args);
    size_t (*workspace)(const Graph *graph, const Node *node,
                        const Target *target); /* may be NULL */
    const Packing *packing;                    /* NULL: none */
} Kernel;

enum {
    OP_VIEW = 1,   /* outputs are views of input 0; no kernel, no time */
    OP_CHEAP = 2,  /* element-wise or a row's reduction: selective recompute makes it again */
    OP_SOURCE = 4, /* no gradient flows through: integer outputs, constants, updates */
    OP_EFFECT = 8, /* changes a state: never pruned */
    OP_COLLECTIVE =
        16,         /* speaks with other ranks: every rank of a group runs it, in the same order */
    OP_STARTS = 32, /* its outputs are on their way until the one node that waits for them, in the
                       same phase */
    OP_WAITS = 64,  /* neither is pruned */
    OP_PARTS =
        128, /* with OP_EFFECT: may change a part that was cut from a state and goes back into it */
    OP_JOINS = 256, /* puts its operands side by side: nothing to do when they were made there */
};

struct OpDef {
    const char *name;
    int min_in, max_in; /* operands; max_in -1: any number */
    int n_out;
    size_t attr_bytes;
    unsigned flags;
    unsigned inplace; /* bit i: output 0 may overwrite input i when that dies here */
    unsigned
        strided_in; /* bit i: input i may have any row stride (see kernel.h), else contiguous */
    unsigned strided_out; /* bit i: likewise output i */
    unsigned optional_in; /* bit i: input i may be NO_VALUE */
    Status (*infer)(InferCtx *ctx);
    Status (*grad)(GradCtx *ctx); /* NULL with OP_SOURCE */
    Cost (*cost)(const Graph *graph, const Node *node);
    const char *cut;                 /* cutting rule as text; NULL with a rule of its own: */
    Status (*cut_rule)(CutCtx *ctx); /* both NULL: operands are the same on all ranks */
    Status (*cut_attr)(const CutCtx *ctx,
                       void *attr); /* makes attr that of this rank; NULL: nothing to do */
    void (*attr_text)(const void *attr,
                      Str *out);  /* for dumps; NULL when there is nothing to say */
    const Kernel *cpu[ISA_COUNT]; /* NULL entries: this device lacks the op */
    const Kernel *cuda;           /* NULL: so does the cuda device, or it is not linked */
    size_t (*gpu_workspace)(const Graph *graph, const Node *node); /* NULL: none */
};

/* ---- builder ---------------------------------------------------------------------------- */

Graph *graph_create(const char *name);
void graph_destroy(Graph *graph);

ValueId graph_input(Graph *graph, const char *name, DType dtype, Shape shape);
/* A state starts with one part that is itself. The name is unique in the graph. */
ValueId graph_state(Graph *graph, const char *name, DType dtype, Shape shape, StateRole role);
ValueId graph_find_state(const Graph *graph, const char *name);
ValueId graph_find_input(const Graph *graph, const char *name);
void graph_output(Graph *graph, const char *name, ValueId value);
ValueId graph_find_output(const Graph *graph, const char *name);

/* Adds a node; runs op->infer; a refusal names op, node and shapes. attr (op->attr_bytes) is
 * copied. out receives op->n_out ids. */
Status graph_add(Graph *graph, const OpDef *op, const void *attr, const ValueId *in, int n_in,
                 ValueId *out);

static inline Value *graph_value(const Graph *graph, ValueId v) { return &graph->value[v.id]; }
static inline Node *graph_node(const Graph *graph, NodeId n) { return &graph->node[n.id]; }
static inline bool value_ok(ValueId v) { return v.id != 0; }
/* The value whose storage v lives in, through all bases. */
ValueId graph_root(const Graph *graph, ValueId v);

/* Layer and phase for the nodes that follow; name is copied. */
void graph_set_layer(Graph *graph, int layer);
void graph_set_scope(Graph *graph, const char *name);

/* ---- rewriting (for passes) ------------------------------------------------------------- */

/* A pass that inserts or removes nodes copies the graph: begin makes an empty twin with all inputs,
 * states and (dead) space for values; copy_node appends a node of the old graph with its operands
 * mapped and its outputs made anew; map_set overrides where an old value now is. */
typedef struct Rewrite {
    const Graph *from;
    Graph *to;
    ValueId *map;         /* old value id -> new value */
    const char *scope[2]; /* the node's name that was copied last, and its copy */
} Rewrite;
void rewrite_begin(Rewrite *rewrite, const Graph *from);
/* Without the states for which keep[] is false, of which no node that is copied may read, nor a
 * master of one that is kept. */
void rewrite_begin_of(Rewrite *rewrite, const Graph *from, const bool *keep);
ValueId rewrite_get(const Rewrite *rewrite, ValueId old);
void rewrite_set(Rewrite *rewrite, ValueId old, ValueId fresh);
Status rewrite_copy_node(Rewrite *rewrite, NodeId node);
/* A node's name (or NULL) in the new graph; nodes behind each other with the same share it. */
const char *rewrite_scope(Rewrite *rewrite, const char *name);
/* Copies outputs; frees the map; *graph (== rewrite->from) is replaced by the new one. */
Status rewrite_end(Rewrite *rewrite, Graph **graph);
void rewrite_abort(Rewrite *rewrite);

/* ---- cutting (for passes) --------------------------------------------------------------- */

/* Runs the op's cutting rule: ctx->want and ctx->out. */
Status graph_cut(CutCtx *ctx);
/* The same by a text, for rules that begin with one. */
void graph_cut_text(CutCtx *ctx, const char *text);

/* ---- checking and reading --------------------------------------------------------------- */

/* Order, single assignment, dtypes and shapes as op->infer says, strides where allowed, no read of
 * a state version that was overwritten. `after` names the pass in the sentence. */
Status graph_verify(const Graph *graph, const char *after);
/* One line a node: %12 = linear(%10, model.layers.0.mlp.down_proj.weight) ... ; stable, diff-able.
 */
void graph_dump(const Graph *graph, Str *out);
void graph_dump_dot(const Graph *graph, Str *out);
Cost graph_cost(const Graph *graph); /* sum over nodes */

#endif
