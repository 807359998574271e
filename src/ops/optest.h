/* optest: runs ops as tests need it, and knows what every op owes.
 *
 * What it is.   A small interpreter for graphs: every value in its own poisoned and guarded memory,
 *               each
 *               node run for every instruction set of this machine, several thread counts and in
 *               place where the op allows it, and on the cuda device that is linked: the emulated
 *               one, or a GPU. Compares with a reference in double precision, and
 *               gradients
 *               made by the real gradient rules with finite differences of that reference.
 *               Linked into test programs only.
 * Depends on.   graph, gpu, ops, cmocka
 * Owns.         An OpTest owns its graph and the data of its inputs.
 * Invariants.   A reference reads in[i] and writes out[i] in the order of the calls that made the
 *               inputs
 *               (optest_normal, _integers, _data) and named the outputs (optest_output,
 *               _plain_output),
 *               contiguous, in double. It sees the inputs as rounded to their dtype. An output
 *               element
 *               that it leaves NaN may be anything.
 * Use:
 *     OpTest *t = optest_create(1);
 *     ValueId x = optest_normal(t, DTYPE_F32, SHAPE(3, 17), 1.0), y;
 *     optest_ok(op_scale(t->graph, x, 2.0f, &y));
 *     optest_output(t, y);
 *     optest_check_grad(t, reference_scale, &factor, 1e-6);      (values and gradients)
 *     optest_destroy(t);
 */
#ifndef OPS_OPTEST_H
#define OPS_OPTEST_H

#include "gpu/gpu.h"
#include "ops/ops.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
/* cmocka's fail hides that of base.h */
#undef fail
#undef fail_msg
#define fail_msg(...)                                                                              \
    do {                                                                                           \
        print_error("ERROR: " __VA_ARGS__);                                                        \
        print_error("\n");                                                                         \
        _fail(__FILE__, __LINE__);                                                                 \
    } while (0)

#define SHAPE(...)                                                                                 \
    shape_make((int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)),                          \
               (int64_t[]){__VA_ARGS__}, NULL)
#define SCALAR shape_make(0, NULL, NULL)

typedef struct OpTest OpTest;
typedef void (*OpReference)(const void *user, double *const *in, double *const *out);

typedef struct OpTestInput {
    ValueId value;
    double *data; /* contiguous, as rounded to the dtype */
    bool grad;    /* its gradient is checked */
} OpTestInput;

typedef struct OpTestOutput {
    ValueId value;
    bool grad; /* part of the loss of gradient checks */
} OpTestOutput;

struct OpTest {
    Graph *graph;
    uint64_t seed;
    Arena arena;
    VEC(OpTestInput) input;
    VEC(OpTestOutput) output;
    VEC(ValueId) kept; /* read after the run: nothing may be made in their place */
    bool has_backward;
};

OpTest *optest_create(uint64_t seed);
void optest_destroy(OpTest *t);
/* The test fails with the sentence when status is not OK. */
void optest_ok(Status status);
/* The test fails unless status is `expected` and the sentence contains `words`. */
void optest_refused(Status status, Status expected, const char *words);

/* Inputs: normal(0, deviation); whole numbers low..high-1 (i32); or given values, rounded. */
ValueId optest_normal(OpTest *t, DType dtype, Shape shape, double deviation);
ValueId optest_integers(OpTest *t, Shape shape, int64_t low, int64_t high);
ValueId optest_data(OpTest *t, DType dtype, Shape shape, const double *values);
/* A state with given start values (NULL: zeros); part of the inputs. */
ValueId optest_state(OpTest *t, DType dtype, Shape shape, StateRole role, const double *values);
/* Element i of the input v as the kernels see it. */
double optest_at(const OpTest *t, ValueId v, int64_t i);
/* No gradient is asked for this input. */
void optest_no_grad(OpTest *t, ValueId v);
/* Gives v rows of its last `trailing` axes that are `pitch` elements apart; the gaps are guarded.
 * For inputs, and for outputs of ops with strided_out. */
void optest_pitch(OpTest *t, ValueId v, int trailing, int64_t pitch);

/* What is compared; the loss of gradient checks is the sum of the outputs times random numbers.
 * Plain outputs are compared but are no part of that loss. A state names its content after the run.
 */
void optest_output(OpTest *t, ValueId v);
void optest_plain_output(OpTest *t, ValueId v);

/* The checks. An element passes when it is off by at most tolerance * (|reference| + root mean
 * square of the reference's tensor + 0.001). check: values only. check_grad: values, then gradients
 * of all float inputs (all elements of small ones; samples and random directions of large ones). */
void optest_check(OpTest *t, OpReference reference, const void *user, double tolerance);
void optest_check_grad(OpTest *t, OpReference reference, const void *user, double tolerance);
/* The same without failing: NULL, or a sentence that lives as long as t. */
const char *optest_fault(OpTest *t, OpReference reference, const void *user, double tolerance,
                         bool grad);

/* ---- between the files of optest -------------------------------------------------------- */

/* One run: how, and where its values lie. */
typedef struct OpRun {
    const OpTest *t;
    Target target;
    int inplace;      /* 0: nowhere; 1: over the first operand that allows it; 2: over the last */
    int32_t *storage; /* value id -> value id whose block holds it */
    struct OpRunBlock {
        uint8_t *memory, *data;
        size_t bytes, all_bytes; /* of data; with its guards */
        void *device;            /* on a GPU: its copy of memory */
    } * block;
    char fault[1024]; /* empty: none */
} OpRun;

bool optest_isa_available(Isa isa);
/* Target number i: the instruction sets, then the GPU. false: this machine or this graph lacks it.
 */
enum { OPTEST_TARGETS = ISA_COUNT + 1 };
bool optest_target(const OpTest *t, int i, int threads, Target *target);
const char *optest_target_name(const Target *target);
/* optest_gpu.c: every kernel of the graph is there for the cuda device that this program is linked
 * to, and there is one. */
bool optest_gpu_available(const Graph *graph);
/* Blocks get their copies on the device; before a node its workspace gets `bytes` between guards;
 * after it the host has all back, what was written outside included, but for the workspace's
 * inside.
 */
Status optest_gpu_load(OpRun *run);
Status optest_gpu_begin(size_t bytes, struct OpRunBlock *workspace, GpuStream **stream);
Status optest_gpu_end(OpRun *run, struct OpRunBlock *workspace);
void optest_gpu_free(struct OpRunBlock *block);
char *optest_gpu_data(const struct OpRunBlock *block); /* where its data is there */
/* All nodes for the target; false with run->fault set. optest_run_end frees in any case. */
bool optest_run(OpRun *run, const OpTest *t, Target target, int inplace);
void optest_run_end(OpRun *run);
/* Contiguous copy of a value in double. */
double *optest_run_values(const OpRun *run, ValueId v);
/* The value as a kernel gets it; data NULL for none. */
Tensor optest_run_tensor(const OpRun *run, ValueId v);
int64_t optest_count(const OpTest *t, ValueId v);
double optest_round(DType dtype, double x);

#endif
