/* Graphs in cuDNN's backend API: a graph of operations over tensors is described by descriptors,
 * the heuristics name engines for it, and the first that is content with the workspace is taken.
 * Internal to the cudnn_* files. */
#ifndef GPU_CUDNN_GRAPH_H
#define GPU_CUDNN_GRAPH_H

#include "gpu/cudnn.h"

#if __has_include(<cudnn.h>) && __has_include(<cuda_runtime_api.h>)
#define HAS_CUDNN 1

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wstrict-prototypes" /* theirs */
#pragma GCC diagnostic ignored "-Wpedantic"
#include <cudnn.h>
#pragma GCC diagnostic pop

#define CUDNN_FUNCTIONS(X)                                                                         \
    X(cudnnGetVersion)                                                                             \
    X(cudnnGetErrorString)                                                                         \
    X(cudnnGetLastErrorString)                                                                     \
    X(cudnnCreate)                                                                                 \
    X(cudnnDestroy)                                                                                \
    X(cudnnSetStream)                                                                              \
    X(cudnnBackendCreateDescriptor)                                                                \
    X(cudnnBackendDestroyDescriptor)                                                               \
    X(cudnnBackendSetAttribute)                                                                    \
    X(cudnnBackendGetAttribute)                                                                    \
    X(cudnnBackendFinalize)                                                                        \
    X(cudnnBackendExecute)

struct Cudnn {
    void *file;
    char text[32];
    cudnnHandle_t handle;                /* of the device that is here; else NULL, and */
    cudnnBackendDescriptor_t properties; /* of one that is not */
#define X(name) __typeof__(&name) name;
    CUDNN_FUNCTIONS(X)
#undef X
};

/* A graph while it is described. Once something failed, `status` keeps it, and nothing more is
 * done. Descriptors live as long as the graph does. */
typedef struct CudnnGraph {
    Cudnn *library;
    Status status; /* with its sentence */
    VEC(cudnnBackendDescriptor_t) all, operation;
    int64_t inner;                   /* number of the last tensor between operations */
    cudnnBackendDescriptor_t engine; /* an engine's configuration */
    cudnnBackendDescriptor_t plan;   /* NULL for a device that is not here */
    size_t bytes;                    /* of workspace that it wants */
} CudnnGraph;

typedef cudnnBackendDescriptor_t CudnnTensor;
enum { CUDNN_INNER = 100 }; /* tensors that runs give have numbers up to here */

typedef struct CudnnShape {
    cudnnDataType_t type;
    int64_t dim[4], stride[4];
} CudnnShape;

/* number 0: between operations, in no memory. */
CudnnTensor cudnn_tensor(CudnnGraph *g, int64_t number, const CudnnShape *shape);
/* A float that runs give by its address in the host's memory. */
CudnnTensor cudnn_scalar(CudnnGraph *g, int64_t number);
/* c [.. m n] = a [.. m k] b [.. k n], sums in f32. */
void cudnn_product(CudnnGraph *g, CudnnTensor a, CudnnTensor b, CudnnTensor c);
/* Along the axes on which y has length 1. */
void cudnn_reduction(CudnnGraph *g, cudnnReduceTensorOp_t how, CudnnTensor x, CudnnTensor y);
/* y = x, seen in another order of axes: y's strides say which. */
void cudnn_reshape(CudnnGraph *g, CudnnTensor x, CudnnTensor y);
/* y = how(x), how(x, b), or with `choice` b where that is false. */
typedef struct CudnnPointwise {
    cudnnPointwiseMode_t how;
    cudnnDataType_t in; /* what it computes in */
    int64_t axis;       /* of CUDNN_POINTWISE_GEN_INDEX */
    CudnnTensor x, b, choice, y;
} CudnnPointwise;
void cudnn_pointwise(CudnnGraph *g, const CudnnPointwise *operation);

/* The graph is whole: finds its engine. `what` names it in sentences. ERR_UNSUPPORTED: none is
 * content with most_bytes. */
Status cudnn_graph_finish(CudnnGraph *g, const char *what, size_t most_bytes);
void cudnn_graph_deinit(CudnnGraph *g);
/* pointer[number] of every tensor with a number below n; NULL: the graph has no such tensor. */
Status cudnn_graph_run(const CudnnGraph *g, void *stream, void *const *pointer, int n,
                       void *workspace);

#endif
#endif
