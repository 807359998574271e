/* optest: how long the nodes of a graph take, for the bench tables. */
#include "ops/optest.h"

#include <stdlib.h>
#include <string.h>

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

typedef struct Prepared {
    const CpuKernel *kernel;
    KernelArgs args;
    Tensor *in, out[NODE_MAX_OUT];
} Prepared;

static void prepare(Prepared *p, const OpRun *run, const Node *node)
{
    p->kernel = node->op->cpu[run->target.isa];
    p->in = xcalloc((size_t)node->n_in + 1, sizeof *p->in);
    for (int i = 0; i < node->n_in; i++) p->in[i] = optest_run_tensor(run, node->in[i]);
    for (int i = 0; i < node->n_out; i++) p->out[i] = optest_run_tensor(run, node->out[i]);
    p->args = (KernelArgs){.attr = node->attr, .in = p->in, .out = p->out, .n_in = node->n_in, .n_out = node->n_out};
    p->args.threads = run->target.threads;
    if (p->kernel->workspace) p->args.workspace_bytes = p->kernel->workspace(run->t->graph, node, &run->target);
    CHECK(posix_memalign(&p->args.workspace, 64, p->args.workspace_bytes + 64) == 0);
    if (p->kernel->prepare) optest_ok(p->kernel->prepare(&p->args));
}

static void release(Prepared *p)
{
    if (p->kernel->release) p->kernel->release(&p->args);
    free(p->args.workspace);
    free(p->in);
}

double optest_time_s(OpTest *t, int threads, int runs)
{
    Isa isa = ISA_AVX512BF16;
    while (isa > ISA_GENERIC && !optest_isa_available(isa)) isa--;
    OpRun run;
    if (!optest_run(&run, t, (Target){.isa = isa, .threads = threads}, 0)) fail_msg("%s", run.fault);
    const Graph *g = t->graph;
    Prepared *p = xcalloc((size_t)g->n_nodes, sizeof *p);
    int n = 0;
    for (int i = 1; i < g->n_nodes; i++)
        if (!(g->node[i].op->flags & OP_VIEW)) prepare(&p[n++], &run, &g->node[i]);
    double *took = xcalloc((size_t)runs + 1, sizeof *took);
    for (int r = 0; r < runs; r++) {
        double start = clock_s();
        for (int i = 0; i < n; i++) optest_ok(p[i].kernel->run(&p[i].args));
        took[r] = clock_s() - start;
    }
    qsort(took, (size_t)runs, sizeof *took, by_size);
    double median = took[runs / 2];
    for (int i = 0; i < n; i++) release(&p[i]);
    free(p);
    free(took);
    optest_run_end(&run);
    return median;
}
