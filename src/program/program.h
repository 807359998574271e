/* program: a graph compiled for one target: instructions in order, a byte offset for every tensor.
 *
 * What it is.   Store (the tensors that live across programs, by name), Program (instructions and
 *               the
 *               memory plan), the plan's report.
 * Depends on.   base, tensor, pipeline, graph, ops, pass
 * Owns.         A Program owns its graph. A Store owns its table; neither owns tensor memory: they
 *               say
 *               where in it everything lies.
 * Invariants.   Two values share bytes only if they are never alive together, or one is a view or
 *               the
 *               in-place successor of the other. Offsets are multiples of TENSOR_ALIGN. The plan
 *               depends
 *               on graph and target only: compiled twice, it is the same to the byte.
 * Use:
 *     Store *store = store_create();
 *     Program *step;
 *     TRY(program_compile(graph, target, store, &step));     (graph is the program's from now on)
 *     printf("%zu + %zu bytes\n", store_bytes(store), step->step_bytes);
 */
#ifndef PROGRAM_PROGRAM_H
#define PROGRAM_PROGRAM_H

#include "graph/graph.h"
#include "pipeline/pipeline.h"

enum { TENSOR_ALIGN = 64 };

/* ---- store ------------------------------------------------------------------------------ */

typedef struct StateEntry {
    const char *name;
    DType dtype;
    Shape shape;
    StateRole role;
    bool decay;
    int master; /* index of the master's entry, -1 none */
    StatePart *part;
    int n_parts;
    size_t offset, bytes;   /* in the state region */
    Place place[MESH_AXES]; /* how it lies on the ranks; shape is this rank's part */
    Shape whole;            /* before it was cut flat */
    int twin;               /* 1 + the pipeline rank that holds it too; 0: none */
} StateEntry;

typedef struct Store {
    Arena arena;
    StateEntry *entry;
    int n_entries, cap;
    NameIndex names; /* entries by name */
    size_t bytes;    /* of the state region so far */
    Mesh mesh;       /* whose states these are */
} Store;

Store *store_create(void);
void store_destroy(Store *store);
int store_find(const Store *store, const char *name); /* entry index or -1 */
/* Adds the states that nodes of the graph read (and their masters); those known already must agree.
 */
Status store_add_graph(Store *store, const Graph *graph);
/* The same once more, with `prefix` in front of all names: for who runs the same on other states.
 */
Status store_add_twin(Store *store, const Graph *graph, const char *prefix);
/* A run of elements that lies in one piece both here and in a published tensor. */
typedef struct StateRun {
    int part;
    int64_t local;  /* element of the entry */
    int64_t global; /* element of the part's whole */
    int64_t n;
} StateRun;
typedef Status (*StateRunFn)(void *context, const StateRun *run);
/* Calls fn for every run of the entry, in the order of local elements. Padding of flat parts is in
 * no run. */
Status store_each_run(const Store *store, int entry, StateRunFn fn, void *context);
/* The same for one part, and of it what lies in elements first .. first+n-1 of the entry. */
Status store_each_part_run(const Store *store, int entry, int part, int64_t first, int64_t n,
                           StateRunFn fn, void *context);
size_t store_role_bytes(const Store *store, StateRole role);
const char *state_role_name(StateRole role);

/* ---- program ---------------------------------------------------------------------------- */

typedef enum Region {
    REGION_NONE,  /* an operand that is left out */
    REGION_STATE, /* the store */
    REGION_STEP,  /* within a run; programs that never run together may share it */
    REGION_IO,    /* inputs of this program */
    REGION_HELD,  /* with slots: kept from one phase to a later one, in the slot of a micro-batch */
} Region;

typedef struct Operand {
    Region region;
    PipelineSpan span; /* REGION_HELD: between which phases */
    size_t offset;
    ValueId value;
    DType dtype;
    Shape shape;
    int64_t stride[MAX_RANK];
} Operand;

typedef struct Instr {
    const OpDef *op;
    const Node *node;
    Operand *in, *out;
    size_t workspace_offset, workspace_bytes; /* in the step region */
    int packed; /* 1 + the place in Program.packed of its packed operand; 0: it reads none */
} Instr;

/* A state that instructions read packed (Packing), and in which order. */
typedef struct Packed {
    const Packing *packing;
    size_t state; /* where the operand begins in the state region */
    size_t bytes;
} Packed;

typedef struct LiveValue {
    const char *what; /* "model.layers.3 attn: linear" */
    size_t bytes;
} LiveValue;

enum { PROGRAM_TOP = 10 };

typedef struct Program {
    Graph *graph;
    Target target;
    Arena arena;
    Instr *instr;
    int n_instr;
    int phase_begin[PHASES + 1]; /* first instruction of each phase; the end */
    Operand *input, *output;     /* in the order of the graph's inputs and outputs */
    const char **input_name, **output_name;
    int n_inputs, n_outputs;
    Packed *packed;
    int n_packed;
    size_t io_bytes, step_bytes; /* step_bytes: the planned peak, workspace included */
    /* Several micro-batches in flight: what a phase makes for a later one lies in slots, as many
     * for
     * each pair of phases
     * as micro-batches are between them at once; what lives in one phase alone lies in the step
     * region. All such
     * programs of a session share both: a slot is that of one program and micro-batch at a time,
     * and as large as the
     * largest of them wants. Inputs have the slots of PIPELINE_FW. */
    bool slotted;
    int n_slots[PIPELINE_SPANS];
    size_t slot_bytes[PIPELINE_SPANS]; /* what this program needs in one */
    size_t live_bytes;                 /* the largest sum of live bytes: what no plan can beat */
    LiveValue top[PROGRAM_TOP];        /* the largest at that moment */
    int n_top;
} Program;

/* Takes the graph, also on failure. Extends the store's layout. */
Status program_compile(Graph *graph, Target target, Store *store, Program **program);
/* With slots: of the phases forward, backward and weights. */
Status program_compile_slots(Graph *graph, Target target, Store *store,
                             const int n_slots[PIPELINE_SPANS], Program **program);
void program_destroy(Program *program);
const Operand *program_input(const Program *program, const char *name); /* NULL: none */
const Operand *program_output(const Program *program, const char *name);
Cost program_cost(const Program *program);
/* Instructions with regions and offsets, one a line; stable and diff-able. */
void program_dump(const Program *program, Str *out);

#endif
