/* Running a program on a clock. */
#include "device/sim.h"

#include <math.h>
#include <stdlib.h>

Status sim_init(const Cluster *cluster, const Mesh *mesh, Sim *sim)
{
    int64_t ranks = mesh_ranks(mesh), devices = cluster_devices(cluster);
    *sim = (Sim){.cluster = cluster,
                 .device = cluster->device,
                 .mesh = *mesh,
                 .derating = cluster->network.derating.central};
    if (cluster->device.cores) { /* ranks share the host's cores */
        sim->device = cluster_share(&cluster->device,
                                    (ranks + cluster->n_nodes - 1) / cluster->n_nodes);
        return OK;
    }
    if (ranks > devices)
        return fail(ERR_REFUSED, "the layout has %lld ranks, and cluster %s has %lld devices",
                    (long long)ranks, cluster->name, (long long)devices);
    return OK;
}

const char *sim_work_name(SimWork work)
{
    static const char *const names[] = {"matrix", "attention", "memory"};
    return names[work];
}

void sim_time_add(SimTime *sum, const SimTime *x, double times)
{
    sum->total_s += times * x->total_s;
    for (int w = 0; w < SIM_WORKS; w++) sum->work_s[w] += times * x->work_s[w];
    sum->launch_s += times * x->launch_s;
    for (int a = 0; a < MESH_AXES; a++) {
        sum->exposed_s[a] += times * x->exposed_s[a];
        sum->hidden_s[a] += times * x->hidden_s[a];
    }
    sum->slowed_s += times * x->slowed_s;
    sum->flop += times * x->flop;
}

/* ---- streams ---------------------------------------------------------------------------- */

enum { NVLINK, NETWORK, LINKS };

typedef struct Flight {
    double begin_s, end_s;
} Flight;

typedef struct Run {
    const Sim *sim;
    const Program *program;
    double now, host; /* of the kernels' stream; when the host has launched the last kernel */
    double kernel_s;  /* of the instruction that runs */
    double stream[MESH_AXES]; /* until when exchanges along an axis are on their way */
    double link[LINKS];       /* until when it is taken */
    Flight *flight;           /* per node that starts an exchange */
    bool updates;             /* the phase of the update, which all stacks have few kernels for */
    SimTime time;
    SimWatch *watch;
    void *context;
} Run;

static void tell(const Run *r, const Instr *instr, int track, double begin_s, double end_s)
{
    double kernel_s = track == SIM_TRACK_KERNELS ? r->kernel_s : 0;
    if (r->watch)
        r->watch(r->context, &(SimEvent){r->program, instr, track, begin_s, end_s, kernel_s});
}

static int axis_of(unsigned axes)
{
    for (int a = 0; a < MESH_AXES; a++)
        if (axes >> a & 1) return a;
    return MESH_PP;
}

/* ---- exchanges -------------------------------------------------------------------------- */

/* Sums over replicas of the batch are those of gradients; gatherings along tp those of what
 * products read. */
static double sent_bytes(const Sim *sim, const Cost *c)
{
    unsigned replicas = 1u << MESH_DP | 1u << MESH_FSDP;
    bool sum = c->exchange == COMM_ALL_REDUCE || c->exchange == COMM_REDUCE_SCATTER,
         half = sim->stack.gradients_16 && sum && c->axes & replicas,
         cast = sim->stack.gathers_8 && c->exchange == COMM_ALL_GATHER && c->axes == 1u << MESH_TP;
    return c->whole_bytes * (half || cast ? 0.5 : 1);
}

/* Kernels, those of exchanges too, begin when the host has started them. */
static void launch(Run *r)
{
    double host_s = r->updates ? 0 : r->sim->stack.host_s;
    r->host += host_s > 0 ? host_s : r->sim->device.host_launch_s;
    if (r->host <= r->now) return;
    r->time.launch_s += r->host - r->now;
    r->now = r->host;
}

/* A host that waits for what it has started. */
static void return_to_host(Run *r)
{
    if (r->sim->stack.blocking) r->host = r->now + (r->updates ? 0 : r->sim->stack.return_s);
}

/* It takes its turn on the links that it goes over. */
static Flight take_off(Run *r, const Cost *c)
{
    const Cluster *cluster = r->sim->cluster;
    int axis = axis_of(c->axes);
    int64_t reach = 1;
    for (int a = axis; a < MESH_AXES; a++) reach *= mesh_size(&r->sim->mesh, (MeshAxis)a);
    int link = reach > cluster->node.link_domain && cluster->node.link_domain > 0 ? NETWORK
                                                                                  : NVLINK;
    double begin = fmax(r->now, fmax(r->stream[axis], r->link[link]));
    double seconds = sim_exchange_s(r->sim, c->exchange, c->axes, sent_bytes(r->sim, c)),
           times = c->axes & 1u << MESH_FSDP ? r->sim->stack.sharded_times : 0,
           end = begin + seconds * (times > 0 ? times : 1);
    r->stream[axis] = r->link[link] = end;
    return (Flight){begin, end};
}

static void land(Run *r, const Flight *f, int axis)
{
    double exposed = fmax(0, f->end_s - r->now);
    if (axis == MESH_TP) exposed *= 1 - r->sim->stack.tp_hidden;
    r->time.exposed_s[axis] += exposed;
    r->time.hidden_s[axis] += fmax(0, f->end_s - f->begin_s - exposed);
    r->now += exposed;
}

/* On a processor whose ranks are threads nobody works for a flight but the one who waits for it. */
static bool nobody_flies(const Run *r) { return r->sim->device.cores > 0; }

/* What a rank does itself for an exchange: packing what lies apart, adding up. A processor's sheet
 * has it measured; of a GPU it is in the library's bandwidth. */
static double own_share_s(const Run *r, const Instr *instr, const Cost *c)
{
    if (!nobody_flies(r)) return 0;
    return cluster_op_s(&r->sim->device, instr->op->name, cluster_math(c->dtype), 0,
                        c->read_bytes + c->write_bytes);
}

static void compute(Run *r, SimWork work, double seconds);

static void exchange(Run *r, const Instr *instr, const Cost *c)
{
    const Node *node = instr->node;
    bool starts = node->op->flags & OP_STARTS;
    int axis = axis_of(c->axes);
    long at = node - r->program->graph->node;
    double own_s = own_share_s(r, instr, c);
    if (own_s > 0) compute(r, SIM_MEMORY, own_s);
    if (starts && nobody_flies(r)) {
        r->flight[at].end_s = sim_exchange_s(r->sim, c->exchange, c->axes,
                                             c->whole_bytes); /* how long, when it is waited for */
        return;
    }
    launch(r);
    Flight f = take_off(r, c);
    tell(r, instr, 1 + axis, f.begin_s, f.end_s);
    if (starts)
        r->flight[at] = f;
    else
        land(r, &f, axis);
    return_to_host(r);
}

/* ---- kernels ---------------------------------------------------------------------------- */

static SimWork work_of(const Cost *c)
{
    if (c->kind == COST_MATMUL) return SIM_MATRIX;
    return c->kind == COST_ATTENTION || c->kind == COST_ATTENTION_GRAD ? SIM_ATTENTION : SIM_MEMORY;
}

/* When work of so many seconds ends that begins now, slowed while exchanges run. */
static double slowed_end(const Run *r, SimWork work, double seconds)
{
    const Network *net = &r->sim->cluster->network;
    double taken = work == SIM_MEMORY ? net->memory_taken : net->compute_taken,
           busy = fmax(r->link[NVLINK], r->link[NETWORK]);
    if (taken <= 0 || busy <= r->now) return r->now + seconds;
    double done = (busy - r->now) * (1 - taken);
    return done >= seconds ? r->now + seconds / (1 - taken) : busy + seconds - done;
}

static void compute(Run *r, SimWork work, double seconds)
{
    launch(r);
    double end = slowed_end(r, work, seconds);
    r->kernel_s += end - r->now;
    r->time.work_s[work] += end - r->now;
    r->time.slowed_s += end - r->now - seconds;
    r->now = end;
    return_to_host(r);
}

/* Heads and routers stay as they are. */
static bool reads_8_bits(const Run *r, const Instr *instr, const Cost *c)
{
    return r->sim->stack.fp8 && c->kind == COST_MATMUL && c->dtype == DTYPE_BF16 &&
           instr->node->layer >= 0;
}

/* What a forward pass's product reads is written with 8 bits by the kernel that makes it, where
 * that is a norm or an activation. */
static bool is_made_with_8_bits(const Run *r, const Node *node)
{
    const Graph *g = r->program->graph;
    const unsigned passes = OP_VIEW | OP_STARTS | OP_WAITS | OP_COLLECTIVE;
    const Node *by = &g->node[graph_value(g, node->in[0])->producer.id];
    while (by->op && by->op->flags & passes && by->n_in > 0)
        by = &g->node[graph_value(g, by->in[0])->producer.id];
    return node->phase == PHASE_FORWARD && by->op && by->op->flags & OP_CHEAP;
}

/* A loss that keeps its logits makes them once. */
static void keep_logits(Run *r, Cost *c)
{
    if (!(r->sim->stack.logit_bytes > 0) || !(c->unwritten > 0)) return;
    compute(r, SIM_MEMORY, sim_logits_s(r->sim, c));
    c->flop *= 1 - c->again / c->count;
    c->count -= c->again;
}

/* How often a stack that makes products of layers again has this one made. */
static double times_made(const Run *r, const Node *node, SimWork work)
{
    bool forward = work == SIM_MATRIX && node->layer >= 0 && node->phase == PHASE_FORWARD;
    return forward ? 1 + r->sim->stack.products_again : 1;
}

static void kernel(Run *r, const Instr *instr, const Cost *c)
{
    SimWork work = work_of(c);
    Cost priced = *c;
    if (reads_8_bits(r, instr, c)) {
        if (!is_made_with_8_bits(r, instr->node)) compute(r, SIM_MEMORY, sim_cast_s(r->sim, c));
        priced.dtype = DTYPE_F8_E4M3;
    }
    keep_logits(r, &priced);
    double times = times_made(r, instr->node, work);
    compute(r, work, times * sim_kernel_s(r->sim, instr->op->name, &priced));
    if (work != SIM_MEMORY) r->time.flop += times * priced.flop;
}

/* ---- instructions ----------------------------------------------------------------------- */

/* It is on its way where it is waited for: nothing but the sums of gradients runs beside it. */
static bool is_fetched_late(const Run *r, const Instr *instr, const Cost *c)
{
    return r->sim->stack.fetch_late && c->exchange == COMM_ALL_GATHER &&
           c->axes == 1u << MESH_FSDP && instr->node->phase == PHASE_BACKWARD;
}

static void wait(Run *r, const Instr *instr)
{
    const Graph *g = r->program->graph;
    int start = graph_value(g, instr->node->in[0])->producer.id;
    Cost c = g->node[start].op->cost(g, &g->node[start]);
    Flight f = r->flight[start];
    if (nobody_flies(r))
        f = (Flight){r->now, r->now + f.end_s};
    else if (is_fetched_late(r, instr, &c))
        f = (Flight){r->now, r->now + f.end_s - f.begin_s};
    land(r, &f, axis_of(c.axes));
}

static void instruction(Run *r, const Instr *instr)
{
    const OpDef *op = instr->op;
    if (op->flags & OP_WAITS) wait(r, instr); /* and unpacks, below */
    if (!op->cost) return;
    Cost c = op->cost(r->program->graph, instr->node);
    if (c.kind == COST_EXCHANGE)
        exchange(r, instr, &c);
    else if (c.kind == COST_MESSAGE && c.wire_bytes <= 0)
        return; /* it was received while others ran */
    else if (c.flop > 0 || c.read_bytes + c.write_bytes > 0)
        kernel(r, instr, &c);
}

static void run_and_tell(Run *r, const Instr *instr)
{
    double begin_s = r->now;
    r->kernel_s = 0;
    instruction(r, instr);
    tell(r, instr, SIM_TRACK_KERNELS, begin_s, r->now);
}

SimTime sim_run(const Sim *sim, const Program *program, Phase first, Phase last, SimWatch *watch,
                void *context)
{
    Run r = {.sim = sim,
             .program = program,
             .watch = watch,
             .context = context,
             .updates = first == PHASE_UPDATE};
    r.flight = xcalloc((size_t)program->graph->n_nodes, sizeof *r.flight);
    for (int i = program->phase_begin[first]; i < program->phase_begin[last + 1]; i++)
        run_and_tell(&r, &program->instr[i]);
    free(r.flight);
    r.time.total_s = r.now;
    return r.time;
}
