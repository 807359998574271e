/* Kernels of linear, linear_dx, linear_dw and linear_dw_accumulate: one product each (gemm.h).
 * Operands are seen as rows: x [n I], dy [n O], w [O I]. */
#include "ops/gemm.h"

/* y = x w^T, a row of y being a row of the product */
static GemmBlock product_y(const Rows *x, const Rows *w, const Rows *y)
{
    return (GemmBlock){.m = x->n,
                       .n = w->n,
                       .k = w->width,
                       .a = {x->data, x->dtype, x->pitch, 1},
                       .b = {w->data, w->dtype, w->pitch, 1},
                       .c = y->data,
                       .c_dtype = y->dtype,
                       .c_pitch = y->pitch};
}

/* dx = dy w */
static GemmBlock product_dx(const Rows *dy, const Rows *w, const Rows *dx)
{
    return (GemmBlock){.m = dy->n,
                       .n = w->width,
                       .k = w->n,
                       .a = {dy->data, dy->dtype, dy->pitch, 1},
                       .b = {w->data, w->dtype, 1, w->pitch},
                       .c = dx->data,
                       .c_dtype = dx->dtype,
                       .c_pitch = dx->pitch};
}

/* dw = dy^T x, summed over rows */
static GemmBlock product_dw(const Rows *dy, const Rows *x, const Rows *dw)
{
    return (GemmBlock){.m = dy->width,
                       .n = x->width,
                       .k = x->n,
                       .a = {dy->data, dy->dtype, 1, dy->pitch},
                       .b = {x->data, x->dtype, 1, x->pitch},
                       .c = dw->data,
                       .c_dtype = dw->dtype,
                       .c_pitch = dw->pitch};
}

typedef GemmBlock (*ProductOf)(const Rows *first, const Rows *second, const Rows *out);

static size_t workspace_of(const Graph *graph, const Node *node, const Target *target,
                           ProductOf product)
{
    Rows first = value_as_rows(graph_value(graph, node->in[0]), 1);
    Rows second = value_as_rows(graph_value(graph, node->in[1]), 1);
    Rows out = value_as_rows(graph_value(graph, node->out[0]), 1);
    GemmBlock block = product(&first, &second, &out);
    return CPU(gemm).scratch(&block, target->threads);
}

static Status run_of(KernelArgs *args, ProductOf product, bool add)
{
    Rows first = tensor_as_rows(&args->in[0], 1), second = tensor_as_rows(&args->in[1], 1);
    Rows out = tensor_as_rows(&args->out[0], 1);
    GemmBlock block = product(&first, &second, &out);
    block.add = add;
    block.scratch = args->workspace;
    block.packed = args->packed;
    CPU(gemm).multiply(&block, args->threads);
    return OK;
}

/* ---- weights that stay packed ------------------------------------------------------------ */

/* Rows of a weight are all that packing asks of a product. */
static const Rows no_rows;

static size_t packed_bytes(const Graph *graph, const Node *node, ProductOf product)
{
    Rows w = value_as_rows(graph_value(graph, node->in[1]), 1);
    GemmBlock block = product(&no_rows, &w, &no_rows);
    return CPU(gemm).packed_bytes(&block);
}

static void pack_of(const KernelArgs *args, void *packed, ProductOf product)
{
    Rows w = tensor_as_rows(&args->in[1], 1);
    GemmBlock block = product(&no_rows, &w, &no_rows);
    CPU(gemm).pack(&block, packed, args->threads);
}

#define PACKING(name, product)                                                                     \
    static size_t packed_bytes_##name(const Graph *graph, const Node *node)                        \
    {                                                                                              \
        return packed_bytes(graph, node, product);                                                 \
    }                                                                                              \
    static void pack_##name(const KernelArgs *args, void *packed)                                  \
    {                                                                                              \
        pack_of(args, packed, product);                                                            \
    }                                                                                              \
    static const Packing packing_##name = {.operand = 1, packed_bytes_##name, pack_##name}

PACKING(linear, product_y);
PACKING(linear_dx, product_dx);

/* ---- kernels ----------------------------------------------------------------------------- */

#define KERNEL(name, product, add, packing_of)                                                     \
    static size_t workspace_##name(const Graph *graph, const Node *node, const Target *target)     \
    {                                                                                              \
        return workspace_of(graph, node, target, product);                                         \
    }                                                                                              \
    static Status run_##name(KernelArgs *args) { return run_of(args, product, add); }              \
    const Kernel CPU(name) = {                                                                     \
        .run = run_##name, .workspace = workspace_##name, .packing = packing_of}

KERNEL(linear, product_y, false, &packing_linear);
KERNEL(linear_dx, product_dx, false, &packing_linear_dx);
KERNEL(linear_dw, product_dw, false, NULL);
KERNEL(linear_dw_accumulate, product_dw, true, NULL);
