/* Any bytes as a trace: refused, or read into instructions that ended after they began. */
#include <math.h>
#include <string.h>

#include "planner/trace_read.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    json_t *root;
    TraceNodes nodes;
    if (trace_read((Bytes){data, size}, "fuzz", &root, &nodes) != OK) return 0;
    CHECK(nodes.n > 0);
    for (size_t i = 0; i < nodes.n; i++) {
        const TraceNode *n = &nodes.at[i];
        CHECK(n->process >= 0 && n->instr >= 0 && n->stage >= -1 && n->layer >= -1);
        CHECK(isfinite(n->begin_s) && n->end_s >= n->begin_s);
        CHECK(n->program && n->phase && n->name && strlen(n->name) <= size);
    }
    VEC_FREE(&nodes);
    json_decref(root);
    return 0;
}
