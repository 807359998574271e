/* Which algorithms compute products, for who plans them and for who has several ranks. How they are
 * tried out and kept: gpu/choices.h. */
#ifndef GPU_TUNE_H
#define GPU_TUNE_H

#include "gpu/gpu.h"

/* The operands' own memory and the workspace, for trying algorithms out: what they hold is read, c
 * and the workspace are written, so nothing may be there yet that matters. */
typedef struct GpuProductTrial {
    const void *a, *b;
    void *c, *workspace;
} GpuProductTrial;

/* As gpu_product_plan, with memory for a trial; NULL: nothing is tried. */
Status gpu_product_try(GpuStream *stream, const GpuProduct *product, const GpuProductTrial *trial,
                       GpuProductPlan **plan);

/* From now on algorithms of products are tried out where there is memory for a trial, and the
 * fastest of each shape is kept in this file and taken from it: the first run of a shape on a
 * machine chooses for all later ones. Without a file (NULL, as at the start) the library's first
 * proposal counts. None is taken whose sums have an order that is not the same each time. */
void gpu_product_tune(Gpu *gpu, const char *path);
/* drover/products in $XDG_CACHE_HOME, else in ~/.cache; NULL: there is no home. */
char *gpu_product_file(Arena *arena);

/* Among ranks: what this one chose since it told or heard last (false: nothing), and what another
 * one chose, which then counts here too, for plans that exist as well. */
bool gpu_product_tell(Gpu *gpu, Str *out);
Status gpu_product_hear(Gpu *gpu, Bytes text);

#endif
