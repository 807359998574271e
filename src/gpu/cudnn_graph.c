/* cuDNN found at run time, and graphs made of its descriptors. */
#include "gpu/cudnn_graph.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#define LIBRARY "libcudnn.so.9"

#ifdef HAS_CUDNN

/* Before 9.16 lengths that are no multiple of 128 need a padding mask to be right, and 9.10.0 and
 * 9.10.1 compute attention wrongly: known from its own frontend, which works around both. */
enum { LEAST_VERSION = 91600, MOST_ENGINES = 16 };

static Status load(Cudnn *c)
{
    c->file = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!c->file)
        return fail(ERR_UNSUPPORTED,
                    "%s is not found (%s): install cuDNN 9 for CUDA %d or set LD_LIBRARY_PATH",
                    LIBRARY, dlerror(), CUDART_VERSION / 1000);
#define X(name)                                                                                    \
    *(void **)(void *)&c->name = dlsym(c->file, #name);                                            \
    if (!c->name) return fail(ERR_UNSUPPORTED, "%s has no %s: it is too old", LIBRARY, #name);
    CUDNN_FUNCTIONS(X)
#undef X
    size_t version = c->cudnnGetVersion();
    snprintf(c->text, sizeof c->text, "cuDNN %zu.%zu.%zu", version / 10000, version / 100 % 100,
             version % 100);
    if (version < LEAST_VERSION)
        return fail(ERR_UNSUPPORTED, "%s is too old for attention: 9.16 is needed", c->text);
    return OK;
}

Status cudnn_open(Cudnn **out)
{
    Cudnn *c = xcalloc(1, sizeof *c);
    Status status = load(c);
    if (status != OK) {
        cudnn_close(c);
        return status;
    }
    *out = c;
    return OK;
}

void cudnn_close(Cudnn *c)
{
    if (!c) return;
    if (c->properties) (void)c->cudnnBackendDestroyDescriptor(c->properties);
    if (c->handle) (void)c->cudnnDestroy(c->handle);
    if (c->file) dlclose(c->file);
    free(c);
}

const char *cudnn_text(const Cudnn *c) { return c->text; }

/* With what the library says of it, where that is more than the error's name. */
static Status check(const Cudnn *c, cudnnStatus_t error, const char *what)
{
    char more[256] = "";
    if (error == CUDNN_STATUS_SUCCESS) return OK;
    c->cudnnGetLastErrorString(more, sizeof more);
    Status kind = error >= CUDNN_STATUS_NOT_SUPPORTED && error < CUDNN_STATUS_INTERNAL_ERROR
                      ? ERR_UNSUPPORTED
                      : ERR_DEVICE;
    return fail(kind, "%s: %s: %s%s%s", what, c->text, c->cudnnGetErrorString(error),
                *more ? ": " : "", more);
}

Status cudnn_begin(Cudnn *c) { return check(c, c->cudnnCreate(&c->handle), "starting cuDNN"); }

Status cudnn_begin_absent(Cudnn *c, const char *text)
{
    static const char what[] = "describing a device";
    TRY(check(c,
              c->cudnnBackendCreateDescriptor(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, &c->properties),
              what));
    TRY(check(c,
              c->cudnnBackendSetAttribute(c->properties, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION,
                                          CUDNN_TYPE_CHAR, (int64_t)strlen(text) + 1, text),
              what));
    return check(c, c->cudnnBackendFinalize(c->properties), what);
}

/* ---- descriptors -------------------------------------------------------------------------- */

static void keep(CudnnGraph *g, cudnnStatus_t error, const char *what)
{
    if (g->status == OK) g->status = check(g->library, error, what);
}

static cudnnBackendDescriptor_t make(CudnnGraph *g, cudnnBackendDescriptorType_t kind)
{
    cudnnBackendDescriptor_t made = NULL;
    if (g->status != OK) return NULL;
    keep(g, g->library->cudnnBackendCreateDescriptor(kind, &made), "making a descriptor");
    if (g->status == OK) VEC_PUSH(&g->all, made);
    return made;
}

static void set_many(CudnnGraph *g, cudnnBackendDescriptor_t of, cudnnBackendAttributeName_t name,
                     cudnnBackendAttributeType_t type, int64_t n, const void *values)
{
    if (g->status == OK)
        keep(g, g->library->cudnnBackendSetAttribute(of, name, type, n, values),
             "describing attention");
}

static void set_type(CudnnGraph *g, cudnnBackendDescriptor_t of, cudnnBackendAttributeName_t name,
                     cudnnDataType_t type)
{
    set_many(g, of, name, CUDNN_TYPE_DATA_TYPE, 1, &type);
}

/* Nothing where `other` is NULL: an operand that is left out. */
static void set_part(CudnnGraph *g, cudnnBackendDescriptor_t of, cudnnBackendAttributeName_t name,
                     cudnnBackendDescriptor_t other)
{
    if (other) set_many(g, of, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &other);
}

static void finalize(CudnnGraph *g, cudnnBackendDescriptor_t of, const char *what)
{
    if (g->status == OK) keep(g, g->library->cudnnBackendFinalize(of), what);
}

static void finish_operation(CudnnGraph *g, cudnnBackendDescriptor_t operation)
{
    finalize(g, operation, "describing an operation of attention");
    if (g->status == OK) VEC_PUSH(&g->operation, operation);
}

static CudnnTensor tensor_of(CudnnGraph *g, int64_t number, const CudnnShape *s, bool by_value)
{
    CudnnTensor t = make(g, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    bool inner = !number;
    int64_t alignment = 16, id = inner ? CUDNN_INNER + ++g->inner : number;
    set_type(g, t, CUDNN_ATTR_TENSOR_DATA_TYPE, s->type);
    set_many(g, t, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, s->dim);
    set_many(g, t, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, s->stride);
    set_many(g, t, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &id);
    set_many(g, t, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
    set_many(g, t, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &inner);
    set_many(g, t, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &by_value);
    finalize(g, t, "describing a tensor of attention");
    return t;
}

CudnnTensor cudnn_tensor(CudnnGraph *g, int64_t number, const CudnnShape *shape)
{
    return tensor_of(g, number, shape, false);
}

CudnnTensor cudnn_scalar(CudnnGraph *g, int64_t number)
{
    CudnnShape one = {CUDNN_DATA_FLOAT, {1, 1, 1, 1}, {1, 1, 1, 1}};
    return tensor_of(g, number, &one, true);
}

void cudnn_product(CudnnGraph *g, CudnnTensor a, CudnnTensor b, CudnnTensor c)
{
    cudnnBackendDescriptor_t how = make(g, CUDNN_BACKEND_MATMUL_DESCRIPTOR);
    set_type(g, how, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_DATA_FLOAT);
    finalize(g, how, "describing a product of attention");
    cudnnBackendDescriptor_t o = make(g, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
    set_part(g, o, CUDNN_ATTR_OPERATION_MATMUL_DESC, how);
    set_part(g, o, CUDNN_ATTR_OPERATION_MATMUL_ADESC, a);
    set_part(g, o, CUDNN_ATTR_OPERATION_MATMUL_BDESC, b);
    set_part(g, o, CUDNN_ATTR_OPERATION_MATMUL_CDESC, c);
    finish_operation(g, o);
}

void cudnn_reduction(CudnnGraph *g, cudnnReduceTensorOp_t kind, CudnnTensor x, CudnnTensor y)
{
    cudnnBackendDescriptor_t how = make(g, CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
    set_many(g, how, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &kind);
    set_type(g, how, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_DATA_FLOAT);
    finalize(g, how, "describing a reduction of attention");
    cudnnBackendDescriptor_t o = make(g, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
    set_part(g, o, CUDNN_ATTR_OPERATION_REDUCTION_DESC, how);
    set_part(g, o, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x);
    set_part(g, o, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y);
    finish_operation(g, o);
}

void cudnn_reshape(CudnnGraph *g, CudnnTensor x, CudnnTensor y)
{
    cudnnBackendDescriptor_t o = make(g, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
    set_part(g, o, CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x);
    set_part(g, o, CUDNN_ATTR_OPERATION_RESHAPE_YDESC, y);
    finish_operation(g, o);
}

void cudnn_pointwise(CudnnGraph *g, const CudnnPointwise *p)
{
    cudnnBackendDescriptor_t how = make(g, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    set_many(g, how, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &p->how);
    set_type(g, how, CUDNN_ATTR_POINTWISE_MATH_PREC, p->in);
    if (p->how == CUDNN_POINTWISE_GEN_INDEX)
        set_many(g, how, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, &p->axis);
    finalize(g, how, "describing a pointwise operation of attention");
    cudnnBackendDescriptor_t o = make(g, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    set_part(g, o, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how);
    set_part(g, o, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, p->x);
    set_part(g, o, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, p->b);
    set_part(g, o, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, p->choice);
    set_part(g, o, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, p->y);
    finish_operation(g, o);
}

/* ---- engines ------------------------------------------------------------------------------ */

/* Of the engines that the heuristics name, best first, the first that is content. The library was
 * asked for its workspace, so nothing is compiled for those that are not. */
static void choose(CudnnGraph *g, cudnnBackendDescriptor_t whole, const char *what, size_t most)
{
    const Cudnn *c = g->library;
    cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
    cudnnBackendDescriptor_t ask = make(g, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR),
                             found[MOST_ENGINES];
    set_part(g, ask, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, whole);
    set_many(g, ask, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    set_part(g, ask, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, c->properties);
    finalize(g, ask, what);
    for (int i = 0; i < MOST_ENGINES; i++) found[i] = make(g, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    int64_t n = 0, least = INT64_MAX;
    if (g->status != OK) return;
    keep(g,
         c->cudnnBackendGetAttribute(ask, CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                     CUDNN_TYPE_BACKEND_DESCRIPTOR, MOST_ENGINES, &n, found),
         what);
    for (int64_t i = 0; i < n && g->status == OK; i++) {
        int64_t bytes = 0, one;
        keep(g,
             c->cudnnBackendGetAttribute(found[i], CUDNN_ATTR_ENGINECFG_WORKSPACE_SIZE,
                                         CUDNN_TYPE_INT64, 1, &one, &bytes),
             what);
        least = min_i64(least, bytes);
        if (g->status != OK || bytes < 0 || (size_t)bytes > most) continue;
        g->engine = found[i];
        g->bytes = (size_t)bytes;
        return;
    }
    if (g->status == OK && !n)
        g->status = fail(ERR_UNSUPPORTED, "%s: %s has no engine for it on this device", what,
                         c->text);
    if (g->status == OK)
        g->status = fail(ERR_UNSUPPORTED, "%s: %s wants %lld bytes of workspace, %zu are planned",
                         what, c->text, (long long)least, most);
}

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations" /* handles, in favour of properties */

/* Compiles, so that runs do nothing but launch. */
static void compile(CudnnGraph *g, const char *what)
{
    g->plan = make(g, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    set_many(g, g->plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1,
             &g->library->handle);
    set_part(g, g->plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, g->engine);
    finalize(g, g->plan, what);
}

Status cudnn_graph_finish(CudnnGraph *g, const char *what, size_t most_bytes)
{
    cudnnBackendDescriptor_t whole = make(g, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    if (g->library->handle)
        set_many(g, whole, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1,
                 &g->library->handle);
    set_many(g, whole, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
             (int64_t)g->operation.n, g->operation.at);
    finalize(g, whole, what);
    choose(g, whole, what, most_bytes);
    if (g->status == OK && g->library->handle) compile(g, what);
    return g->status;
}

#pragma GCC diagnostic pop

void cudnn_graph_deinit(CudnnGraph *g)
{
    for (size_t i = g->all.n; i > 0; i--)
        (void)g->library->cudnnBackendDestroyDescriptor(g->all.at[i - 1]);
    VEC_FREE(&g->all);
    VEC_FREE(&g->operation);
}

/* A pack of pointers is the host's and lives for one launch: operands may lie elsewhere the next
 * time. */
Status cudnn_graph_run(const CudnnGraph *graph, void *stream, void *const *pointer, int n,
                       void *workspace)
{
    const Cudnn *c = graph->library;
    static const char what[] = "computing attention";
    CudnnGraph g = {.library = graph->library};
    void *given[CUDNN_INNER];
    int64_t number[CUDNN_INNER], count = 0;
    CHECK(n <= CUDNN_INNER && c->handle);
    for (int i = 1; i < n; i++)
        if (pointer[i]) {
            given[count] = pointer[i];
            number[count++] = i;
        }
    cudnnBackendDescriptor_t pack = make(&g, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
    set_many(&g, pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, count, number);
    set_many(&g, pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, count, given);
    set_many(&g, pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
    finalize(&g, pack, what);
    if (g.status == OK) keep(&g, c->cudnnSetStream(c->handle, stream), what);
    if (g.status == OK) keep(&g, c->cudnnBackendExecute(c->handle, graph->plan, pack), what);
    Status status = g.status;
    cudnn_graph_deinit(&g);
    return status;
}

#else

static Status absent(void)
{
    return fail(ERR_UNSUPPORTED,
                "this drover was built without cuDNN's headers: install cuDNN 9 and build again");
}

#pragma GCC diagnostic ignored "-Wunused-parameter"
Status cudnn_open(Cudnn **out) { return absent(); }
/* Nobody has one. */
void cudnn_close(Cudnn *c) {}
const char *cudnn_text(const Cudnn *c) { return ""; }
Status cudnn_begin(Cudnn *c) { return absent(); }
Status cudnn_begin_absent(Cudnn *c, const char *text) { return absent(); }
Status cudnn_attention_plan(Cudnn *c, const GpuAttention *a, CudnnPlan **out) { return absent(); }
void cudnn_plan_destroy(CudnnPlan *plan) {}
size_t cudnn_plan_bytes(const CudnnPlan *plan) { return 0; }
Status cudnn_attention_run(CudnnPlan *plan, void *stream, const GpuAttentionOperands *operands,
                           void *workspace)
{
    return absent();
}

#endif
