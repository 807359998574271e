/* Nodes of optest on the cuda device: tensors with guards and poison in its memory. */
#include "ops/optest.h"

#include <stdlib.h>

static Gpu *gpu; /* opened once, for all tests of the program */
static GpuStream *stream;
static void *space; /* the workspace of the last node, kept: products all ask for as much */
static size_t space_bytes;
enum { POISON = 0xff }; /* as in optest_run.c */

static Status open_gpu(void)
{
    if (stream) return OK;
    TRY(gpu_open(0, &gpu));
    return gpu_stream_create(gpu, &stream);
}

bool optest_gpu_available(const Graph *g)
{
    for (int n = 1; n < g->n_nodes; n++)
        if (!(g->node[n].op->flags & OP_VIEW) && !g->node[n].op->cuda) return false;
    return gpu_count(NULL) > 0;
}

static Status upload(struct OpRunBlock *block)
{
    if (!block->all_bytes) return OK;
    TRY(gpu_alloc(gpu, block->all_bytes, "a test", &block->device));
    return gpu_write(stream, block->device, block->memory, block->all_bytes);
}

static Status download(const struct OpRunBlock *block)
{
    if (!block->device) return OK;
    return gpu_read(stream, block->memory, block->device, block->all_bytes);
}

Status optest_gpu_load(OpRun *run)
{
    TRY(open_gpu());
    for (int i = 1; i < run->t->graph->n_values; i++)
        if (run->block[i].memory) TRY(upload(&run->block[i]));
    return OK;
}

/* Only guards of the workspace have copies on the host, one behind the other. */
static size_t front_bytes(const struct OpRunBlock *workspace)
{
    return (size_t)(workspace->data - workspace->memory);
}

Status optest_gpu_begin(size_t bytes, struct OpRunBlock *workspace, GpuStream **out)
{
    *out = stream;
    bytes += workspace->all_bytes;
    if (space_bytes != bytes) {
        gpu_free(gpu, space);
        space = NULL;
        space_bytes = 0;
        TRY(gpu_alloc(gpu, bytes, "a test", &space));
        space_bytes = bytes;
    }
    workspace->device = space;
    return gpu_fill(stream, space, POISON, bytes);
}

Status optest_gpu_end(OpRun *run, struct OpRunBlock *workspace)
{
    size_t front = front_bytes(workspace), back = workspace->all_bytes - front;
    TRY(gpu_stream_wait(stream));
    for (int i = 1; i < run->t->graph->n_values; i++)
        if (run->block[i].memory) TRY(download(&run->block[i]));
    TRY(gpu_read(stream, workspace->memory, space, front));
    return gpu_read(stream, workspace->data, (char *)space + space_bytes - back, back);
}

void optest_gpu_free(struct OpRunBlock *block)
{
    if (block->device && block->device != space) gpu_free(gpu, block->device);
    block->device = NULL;
}

char *optest_gpu_data(const struct OpRunBlock *block)
{
    return (char *)block->device + (block->data - block->memory);
}
