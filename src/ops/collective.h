/* What the collective ops, their kernels and the passes that place them share. Internal to ops/ and
 * pass/. */
#ifndef OPS_COLLECTIVE_H
#define OPS_COLLECTIVE_H

#include "ops/ops.h"

/* One hop of a block round the ring of a mesh axis (ring_pass.c). A rank's part lies zigzag in two
 * halves. */
enum { HALF_FIRST = 1, HALF_SECOND = 2, HALF_BOTH = HALF_FIRST | HALF_SECOND };
static inline int halves_count(int halves) { return (halves & 1) + (halves >> 1); }
typedef struct RingHop {
    int hop; /* given to the rank so many places behind this one, taken from the one so many before;
                < 0: the other way */
    int give, take; /* which halves of a part, bits HALF_*; 0: nothing */
    bool home; /* x is what this rank made for those halves of the rank that gets them; else this
                  rank's part */
    int tag;   /* tells apart what goes between the same ranks at the same time */
} RingHop;

typedef struct CollectiveAttr {
    MeshAxis axis;
    int n, rank; /* of the mesh axis */
    int dim;     /* that is cut, or PLACE_FLAT; all_reduce: unused */
    bool zigzag; /* dim is cut into 2n blocks; rank r holds blocks r and 2n - 1 - r (balanced causal
                    attention) */
    bool in_place; /* all_reduce_start: the sum takes the place of x */
    Shape whole;   /* of the gathered value */
    RingHop ring;  /* ring_pass only */
} CollectiveAttr;

/* Elements of a flat part: equal for all ranks, the last ones padded. */
static inline int64_t collective_flat_part(int64_t count, int n)
{
    return ((count + n - 1) / n + 15) / 16 * 16;
}
/* Elements of the whole that rank r's flat part really holds. */
static inline int64_t collective_flat_count(int64_t count, int n, int r)
{
    int64_t part = collective_flat_part(count, n), left = count - part * r;
    return left < 0 ? 0 : left < part ? left : part;
}

/* Elements of rank r's part in what is exchanged. */
static inline int64_t collective_part_count(const CollectiveAttr *attr, int r)
{
    int64_t count = shape_count(&attr->whole);
    return attr->dim == PLACE_FLAT ? collective_flat_count(count, attr->n, r) : count / attr->n;
}

/* The parts lie one behind the other in the whole: nothing has to be packed. */
static inline bool collective_parts_lie_apart(const CollectiveAttr *attr)
{
    int64_t outer = 1;
    if (attr->dim == PLACE_FLAT) return true;
    for (int i = 0; i < attr->dim; i++) outer *= attr->whole.dim[i];
    return outer == 1 && !attr->zigzag;
}

/* The whole as [outer][dim][inner], in bytes of one (outer, dim) row: inner. */
typedef struct CollectiveStrips {
    int64_t outer, dim;
    size_t inner_bytes;
} CollectiveStrips;
static inline CollectiveStrips collective_strips(const CollectiveAttr *attr, DType dtype)
{
    CollectiveStrips s = {
        .outer = 1, .dim = attr->whole.dim[attr->dim], .inner_bytes = dtype_bytes(dtype)};
    for (int i = 0; i < attr->dim; i++) s.outer *= attr->whole.dim[i];
    for (int i = attr->dim + 1; i < attr->whole.rank; i++)
        s.inner_bytes *= (size_t)attr->whole.dim[i];
    return s;
}

/* Shape of these halves of a rank's part. */
static inline Shape ring_shape(const CollectiveAttr *attr, int halves)
{
    Shape shape = attr->whole;
    shape.dim[attr->dim] = shape.dim[attr->dim] / attr->n / 2 * halves_count(halves);
    return shape;
}
/* Half a part of several sequences has to be packed before it is sent. */
static inline bool ring_packs(const CollectiveAttr *attr)
{
    int64_t outer = 1;
    for (int i = 0; i < attr->dim; i++) outer *= attr->whole.dim[i];
    return outer > 1 && !attr->ring.home && attr->ring.give && attr->ring.give != HALF_BOTH;
}
/* x [.. part ..], or the halves that go home; of this rank's part where nothing is given. y: the
 * halves that are taken, NO_VALUE without any. after: what has to be there before the hop begins,
 * or NO_VALUE. */
Status op_ring_pass(Graph *g, MeshAxis axis, ValueId x, ValueId after, const RingHop *hop,
                    ValueId *y);

/* A started collective (collective_start.c): its outputs, and the first operands of wait. */
enum { START_Y, START_TOKEN, START_SCRATCH, N_START_OUT };
typedef struct WaitAttr {
    CollectiveAttr of; /* what is waited for */
    bool unpack;       /* the parts are in the scratch, to be put in their places */
} WaitAttr;

/* What lies between a start and its wait. */
typedef struct OnItsWay {
    ValueId y, token, scratch, x;
    CollectiveAttr attr;
    bool unpack;
} OnItsWay;
/* Begins what a node of `op` with these attributes (a CollectiveAttr) and operands would do. */
Status op_start(Graph *g, const OpDef *op, const void *attr, const ValueId *in, OnItsWay *way);
Status op_wait(Graph *g, const OnItsWay *way, ValueId *y);

/* For ops that are collectives in a file of their own. */
CollectiveAttr collective_attr(const Graph *g, MeshAxis axis, int dim, const Shape *whole);
Status collective_cut_other_axis(CutCtx *ctx);
Status collective_cut_attr(const CutCtx *ctx, void *attr);
void collective_attr_text(const void *attr, Str *out);

/* collective_gpu.c */
/* The group along these axes, told that it exchanges on the lane where all but messages of
 * pipelines do. */
Status collective_gpu_group(const KernelArgs *args, unsigned axes, Comm **group);
Status collective_gpu_expect(const KernelArgs *args, int lane, Comm *group);
/* This rank of `all` and `peer`, the lower one first: who exchanges with one alone joins its GPU
 * with no others'. */
Status collective_gpu_pair(Comm *all, int peer, const char *name, Comm **pair);
/* An operation on buffers of args->stream's device, for what comes there behind it: put beside the
 * stream, which waits for its end. */
Status collective_gpu_run(const KernelArgs *args, Comm *comm, const CommOp *op);
size_t collective_gpu_workspace(const Graph *graph, const Node *node);
size_t ring_gpu_workspace(const Graph *graph, const Node *node);

extern const OpDef op_def_all_reduce, op_def_all_gather, op_def_reduce_scatter,
    op_def_all_gather_into, op_def_ring_pass;

#endif
