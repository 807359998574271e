/* device/sim: a virtual device with a clock, of a cluster that need not be here. It runs programs
 * as the others do, instruction by instruction, and computes nothing: a kernel takes what its op's
 * cost says on the device's sheet, an exchange what the network between the ranks of its group
 * says. It allocates no tensor.
 *
 * The device has one stream for kernels and one for the exchanges along each mesh axis. An exchange
 * that was started runs while kernels do; it has the links that it uses for itself, and makes
 * kernels beside it slower by the share of the device that it takes (Network.compute_taken,
 * memory_taken). What a wait still has to wait for is exposed. */
#ifndef DEVICE_SIM_H
#define DEVICE_SIM_H

#include "cluster/cluster.h"
#include "program/program.h"

/* What another software stack does otherwise than our programs: priced, never run. Zeroed: nothing.
 */
typedef struct SimStack {
    /* Products of bf16 inside layers, experts' too, read 8 bits: the sheet's fp8 curve, and a cast
     * in front of each. Our own programs have their casts and their products of 8 bits as nodes
     * (pass/fp8.c) and need none of this. */
    bool fp8;
    /* Attention as products with scores in memory, softmax and dropout, all keys for every query,
     * as it was before flash attention; again: made again in the backward pass (selective
     * recomputation of that time). */
    bool plain_attention, attention_again;
    double attention; /* of the rate of the sheet's attention curve; 0: all of it */
    double tp_hidden; /* share of exchanges along tp that runs beside the products that they belong
                         to, in pieces */
    /* Sums of gradients and gathering of weights run beside a micro-batch, the last one's backward
     * and the first one's forward pass, or beside those of a rank's other stages; gradients_16: in
     * 16 bits. */
    bool dp_beside, gradients_16;
    /* Of what all-to-alls send between nodes: a row for several experts of a node goes there once.
     * 0: all of it. */
    double rows_sent;
    double
        traffic; /* of what memory limits: times as many bytes, where fewer kernels are fused; 0: 1
                  */
    bool whole_sequences; /* under tp, between products: no sequence parallelism */
    bool messages_wait;   /* a stage computes nothing while it sends to another */
    bool messages_cut; /* a message's parts are sent by the ranks along tp, which all have it, and
                          put together again over NVLink */
    double host_s;     /* that the host needs for what we have one kernel for: frameworks that
                          run a layer line by line in Python; 0: the sheet's */
    bool blocking;     /* the host waits for each kernel before it starts the next */
    double return_s;   /* blocking: that it takes to go on after what we have one kernel for */
    /* A loss that is not fused: logits are made once, and each has so many bytes read and written.
     * 0: as ours. */
    double logit_bytes;
    double products_again; /* share of the layers' forward products that the backward pass makes
                              again; told with the forward pass */
    bool gathers_8;        /* with fp8: what ranks along tp gather has 8 bits */
    bool rings; /* gathers and scatters go around rings: none in log2 steps (NCCL before 2.23) */
    double sharded_times; /* exchanges of sharded weights and their gradients take so many times as
                             long; 0: 1 */
    bool fetch_late; /* weights for the backward pass of a layer are gathered when that of the layer
                        behind it is through, not beside it */
} SimStack;

typedef struct Sim {
    const Cluster *cluster; /* borrowed */
    DeviceSheet
        device; /* as one rank has it: of a processor, the share of as many ranks as a host runs */
    Mesh mesh;  /* sizes: rank r is the cluster's device r, neighbours along tp side by side */
    double derating; /* of the network's bandwidth in training */
    SimStack stack;
} Sim;
/* ERR_REFUSED: the cluster has fewer devices than the mesh has ranks. */
Status sim_init(const Cluster *cluster, const Mesh *mesh, Sim *sim);

/* ---- one run of a program --------------------------------------------------------------- */

typedef enum SimWork { SIM_MATRIX, SIM_ATTENTION, SIM_MEMORY, SIM_WORKS } SimWork;
const char *sim_work_name(SimWork work);

/* Where time went. total_s is the sum of work_s, launch_s and exposed_s. Exchanges along several
 * axes count for the outermost of them. */
typedef struct SimTime {
    double total_s;
    double work_s[SIM_WORKS];    /* kernels: products; attention; what memory limits */
    double launch_s;             /* kernels wait for the host to launch them */
    double exposed_s[MESH_AXES]; /* kernels wait for exchanges */
    double hidden_s[MESH_AXES];  /* exchanges run beside kernels */
    double slowed_s;             /* of work_s: by which exchanges made kernels slower */
    double flop;                 /* of products and attention, what is made again included */
} SimTime;
void sim_time_add(SimTime *sum, const SimTime *x, double times);

enum { SIM_TRACK_KERNELS = 0, SIM_TRACKS = 1 + MESH_AXES }; /* 1 + axis: exchanges */
/* On the kernels' track each instruction is told once, from when the one before it has ended until
 * it has itself: first it may wait, for the host or for an exchange, then its kernels run. An
 * exchange is told once more on its axis's track, where it has a stream. */
typedef struct SimEvent {
    const Program *program;
    const Instr *instr;
    int track;
    double begin_s, end_s; /* since the run began */
    double kernel_s;       /* of it: kernels, at its end; 0 on other tracks */
} SimEvent;
typedef void SimWatch(void *context, const SimEvent *event);

/* The phases first..last once. What comes from other stages is there at once: waiting for it is the
 * host's (its schedule's) affair. watch may be NULL. */
SimTime sim_run(const Sim *sim, const Program *program, Phase first, Phase last, SimWatch *watch,
                void *context);

/* ---- parts ------------------------------------------------------------------------------ */

/* A kernel alone on the device. */
double sim_kernel_s(const Sim *sim, const char *op, const Cost *cost);
/* The cast of a product's first operand from 16 to 8 bits (of fp8, each product casts one; the
 * other is a weight, cast once for all micro-batches, or what the layer's other product has cast).
 */
double sim_cast_s(const Sim *sim, const Cost *cost);
/* The logits of a loss that is not fused, on their way through memory. */
double sim_logits_s(const Sim *sim, const Cost *cost);
/* An exchange among the ranks along these axes, which have the links to themselves. whole_bytes:
 * Cost.whole_bytes. */
double sim_exchange_s(const Sim *sim, CommKind kind, unsigned axes, double whole_bytes);
/* A message to the same rank of another pipeline stage. */
double sim_message_s(const Sim *sim, int from_pp, int to_pp, double bytes);

#endif
