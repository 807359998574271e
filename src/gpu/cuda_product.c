/* Products by cuBLASLt. The library is loaded when the first product is planned: the program starts
 * where it is not. Of the algorithms that it proposes for a shape, that fit the workspace, the
 * first is taken, or the fastest (choices.h). Sums of parts of k are formed apart and added in a
 * separate step, in f32: never in the order in which parts are ready.
 *
 * cuBLASLt's matrices are column-major: a row-major c = a b is theirs as c' = b' a', so b comes
 * first.
 */
#include "gpu/cuda_internal.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wstrict-prototypes" /* theirs */
#include <cublasLt.h>
#pragma GCC diagnostic pop
#include <assert.h>
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#define LIBRARY "libcublasLt.so.13"

#define FUNCTIONS(X)                                                                               \
    X(cublasLtCreate)                                                                              \
    X(cublasLtDestroy)                                                                             \
    X(cublasLtGetVersion)                                                                          \
    X(cublasLtMatmul)                                                                              \
    X(cublasLtMatmulDescCreate)                                                                    \
    X(cublasLtMatmulDescDestroy)                                                                   \
    X(cublasLtMatmulDescSetAttribute)                                                              \
    X(cublasLtMatrixLayoutCreate)                                                                  \
    X(cublasLtMatrixLayoutDestroy)                                                                 \
    X(cublasLtMatmulPreferenceCreate)                                                              \
    X(cublasLtMatmulPreferenceDestroy)                                                             \
    X(cublasLtMatmulPreferenceSetAttribute)                                                        \
    X(cublasLtMatmulAlgoGetHeuristic)                                                              \
    X(cublasLtMatmulAlgoCheck)                                                                     \
    X(cublasLtGetStatusString)

typedef struct Library {
    void *file;
    cublasLtHandle_t handle;
    char text[64]; /* its version, in words */
#define X(name) __typeof__(&name) name;
    FUNCTIONS(X)
#undef X
} Library;

struct GpuProductPlan {
    GpuStream *stream;
    Library *library;
    GpuProduct product;
    GpuProductTrial trial; /* while it is planned */
    cublasLtMatmulDesc_t work;
    cublasLtMatrixLayout_t a, b, c;
    Algorithm proposed;
    const Algorithm *algorithm; /* proposed, or of a choice */
};

static_assert(sizeof(cublasLtMatmulAlgo_t) == ALGORITHM_BYTES, "an algorithm is kept whole");

static Status open_library(Library *l)
{
    l->file = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!l->file)
        return fail(ERR_UNSUPPORTED,
                    "products on a GPU need %s, which is not found (%s): install CUDA's cuBLAS or "
                    "set LD_LIBRARY_PATH",
                    LIBRARY, dlerror());
#define X(name)                                                                                    \
    *(void **)(void *)&l->name = dlsym(l->file, #name);                                            \
    if (!l->name) return fail(ERR_UNSUPPORTED, "%s has no %s: it is too old", LIBRARY, #name);
    FUNCTIONS(X)
#undef X
    size_t version = l->cublasLtGetVersion();
    snprintf(l->text, sizeof l->text, "cuBLASLt %zu.%zu.%zu", version / 10000, version / 100 % 100,
             version % 100);
    cublasStatus_t error = l->cublasLtCreate(&l->handle);
    if (error != CUBLAS_STATUS_SUCCESS)
        return fail(ERR_DEVICE, "starting cuBLASLt: %s", l->cublasLtGetStatusString(error));
    return OK;
}

static void close_library(Library *l)
{
    if (l->handle) (void)l->cublasLtDestroy(l->handle);
    if (l->file) dlclose(l->file);
    free(l);
}

static Status library_of(Gpu *gpu, Library **out)
{
    if (!gpu->products) {
        Library *l = xcalloc(1, sizeof *l);
        Status status = open_library(l);
        if (status != OK) {
            close_library(l);
            return status;
        }
        gpu->products = l;
    }
    *out = gpu->products;
    return OK;
}

const char *gpu_libraries(Gpu *gpu)
{
    Library *l;
    return library_of(gpu, &l) == OK ? l->text : status_message();
}

void cuda_products_close(Gpu *gpu)
{
    if (gpu->products) close_library(gpu->products);
    gpu->products = NULL;
}

static Status check(const GpuProductPlan *plan, cublasStatus_t error, const char *what)
{
    if (error == CUBLAS_STATUS_SUCCESS) return OK;
    const GpuProduct *p = &plan->product;
    return fail(ERR_DEVICE, "%s a product of [%lld %lld] with [%lld %lld] in %s: cuBLASLt: %s",
                what, (long long)p->m, (long long)p->k, (long long)p->k, (long long)p->n,
                dtype_name(p->dtype), plan->library->cublasLtGetStatusString(error));
}

static cudaDataType_t cuda_type(DType dtype)
{
    switch (dtype) {
    case DTYPE_BF16: return CUDA_R_16BF;
    case DTYPE_F8_E4M3: return CUDA_R_8F_E4M3;
    case DTYPE_F8_E5M2: return CUDA_R_8F_E5M2;
    default: return CUDA_R_32F;
    }
}

static bool is_scaled(const GpuProduct *p) { return p->a_scaling != GPU_SCALE_NONE; }

/* A row-major [rows columns] is their column-major [columns rows]. */
static Status layout(GpuProductPlan *plan, cublasLtMatrixLayout_t *out, DType dtype, int64_t rows,
                     int64_t columns, int64_t pitch)
{
    return check(plan,
                 plan->library->cublasLtMatrixLayoutCreate(out, cuda_type(dtype), (uint64_t)columns,
                                                           (uint64_t)rows, pitch),
                 "describing");
}

static Status set(GpuProductPlan *plan, cublasLtMatmulDescAttributes_t attribute, const void *value,
                  size_t bytes)
{
    return check(plan,
                 plan->library->cublasLtMatmulDescSetAttribute(plan->work, attribute, value, bytes),
                 "describing");
}

static int32_t scale_mode(GpuScaling scaling)
{
    switch (scaling) {
    case GPU_SCALE_ROW: return CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
    case GPU_SCALE_BLOCK: return CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F;
    case GPU_SCALE_SQUARE: return CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F;
    default: return CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F;
    }
}

/* Theirs come in the other order. Sums of 8 bits leave the tensor cores' short registers for f32
 * ones every so often: fast accumulation stays off. */
static Status set_scales(GpuProductPlan *plan, const float *a, const float *b)
{
    TRY(set(plan, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &b, sizeof b));
    return set(plan, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &a, sizeof a);
}

static Status describe_scales(GpuProductPlan *plan)
{
    const GpuProduct *p = &plan->product;
    int32_t first = scale_mode(p->b_scaling), second = scale_mode(p->a_scaling);
    int8_t fast = 0;
    TRY(set(plan, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &first, sizeof first));
    TRY(set(plan, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &second, sizeof second));
    TRY(set(plan, CUBLASLT_MATMUL_DESC_FAST_ACCUM, &fast, sizeof fast));
    return set_scales(plan, p->scale[0], p->scale[1]);
}

static Status describe(GpuProductPlan *plan)
{
    const GpuProduct *p = &plan->product;
    const Library *l = plan->library;
    cublasOperation_t first = p->b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N,
                      second = p->a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    TRY(check(plan, l->cublasLtMatmulDescCreate(&plan->work, CUBLAS_COMPUTE_32F, CUDA_R_32F),
              "describing"));
    TRY(set(plan, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first));
    TRY(set(plan, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second));
    if (is_scaled(p)) TRY(describe_scales(plan));
    TRY(layout(plan, &plan->a, p->dtype, p->a_transposed ? p->k : p->m,
               p->a_transposed ? p->m : p->k, p->a_pitch));
    TRY(layout(plan, &plan->b, is_scaled(p) ? p->b_dtype : p->dtype, p->b_transposed ? p->n : p->k,
               p->b_transposed ? p->k : p->n, p->b_pitch));
    return layout(plan, &plan->c, p->c_dtype, p->m, p->n, p->c_pitch);
}

/* What algorithms may count on; without being told the library takes 256 bytes for granted. */
static cublasStatus_t wish_alignment(const GpuProductPlan *plan, cublasLtMatmulPreference_t wish)
{
    static const cublasLtMatmulPreferenceAttributes_t of[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    uint32_t bytes = plan->product.alignment ? (uint32_t)plan->product.alignment : 256;
    cublasStatus_t error = CUBLAS_STATUS_SUCCESS;
    for (int i = 0; i < COUNT_OF(of) && error == CUBLAS_STATUS_SUCCESS; i++)
        error = plan->library->cublasLtMatmulPreferenceSetAttribute(wish, of[i], &bytes,
                                                                    sizeof bytes);
    return error;
}

/* What is asked of algorithms. */
static cublasStatus_t wish_for(const GpuProductPlan *plan, cublasLtMatmulPreference_t wish)
{
    const Library *l = plan->library;
    size_t bytes = plan->product.workspace_bytes;
    uint32_t sums = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE; /* or none: one after the other */
    cublasStatus_t error = l->cublasLtMatmulPreferenceSetAttribute(
        wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof bytes);
    if (error == CUBLAS_STATUS_SUCCESS)
        error = l->cublasLtMatmulPreferenceSetAttribute(
            wish, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &sums, sizeof sums);
    return error == CUBLAS_STATUS_SUCCESS ? wish_alignment(plan, wish) : error;
}

enum { MOST_PROPOSALS = 16 };

/* At most `most`, the library's best guess first. */
static Status propose(GpuProductPlan *plan, int most, Algorithm *out, int *n)
{
    const Library *l = plan->library;
    cublasLtMatmulPreference_t wish = NULL;
    cublasLtMatmulHeuristicResult_t found[MOST_PROPOSALS];
    int n_found = 0;
    TRY(check(plan, l->cublasLtMatmulPreferenceCreate(&wish), "choosing how to compute"));
    cublasStatus_t error = wish_for(plan, wish);
    if (error == CUBLAS_STATUS_SUCCESS)
        error = l->cublasLtMatmulAlgoGetHeuristic(l->handle, plan->work, plan->b, plan->a, plan->c,
                                                  plan->c, wish, most, found, &n_found);
    (void)l->cublasLtMatmulPreferenceDestroy(wish);
    *n = 0;
    for (int i = 0; i < n_found && error == CUBLAS_STATUS_SUCCESS; i++)
        if (found[i].state == CUBLAS_STATUS_SUCCESS)
            memcpy(&out[(*n)++], &found[i].algo, sizeof *out);
    if (error == CUBLAS_STATUS_SUCCESS && !*n) error = CUBLAS_STATUS_NOT_SUPPORTED;
    return check(plan, error, "choosing how to compute");
}

/* On the stream; no error of the device is known yet. */
static cublasStatus_t multiply(const GpuProductPlan *plan, const Algorithm *algorithm,
                               const void *a, const void *b, void *c, void *workspace)
{
    const GpuProduct *p = &plan->product;
    cublasLtMatmulAlgo_t algo;
    float one = 1, keep = p->accumulate ? 1 : 0;
    memcpy(&algo, algorithm, sizeof algo);
    return plan->library->cublasLtMatmul(plan->library->handle, plan->work, &one, b, plan->b, a,
                                         plan->a, &keep, c, plan->c, c, plan->c, &algo, workspace,
                                         p->workspace_bytes, plan->stream->cuda);
}

static Status run_trial(void *context, const Algorithm *algorithm)
{
    const GpuProductPlan *plan = context;
    const GpuProductTrial *t = &plan->trial;
    return check(plan, multiply(plan, algorithm, t->a, t->b, t->c, t->workspace), "trying");
}

/* Bytes of a file: the library says whether they are an algorithm for this product. */
static bool may(void *context, const Algorithm *algorithm)
{
    const GpuProductPlan *plan = context;
    const Library *l = plan->library;
    cublasLtMatmulAlgo_t algo;
    cublasLtMatmulHeuristicResult_t result = {.state = CUBLAS_STATUS_NOT_INITIALIZED};
    memcpy(&algo, algorithm, sizeof algo);
    return l->cublasLtMatmulAlgoCheck(l->handle, plan->work, plan->b, plan->a, plan->c, plan->c,
                                      &algo, &result) == CUBLAS_STATUS_SUCCESS &&
           result.workspaceSize <= plan->product.workspace_bytes;
}

static Status choose(GpuProductPlan *plan)
{
    Gpu *gpu = plan->stream->gpu;
    Algorithm proposed[MOST_PROPOSALS];
    Candidates candidates = {.algorithm = proposed, .run = run_trial, .may = may, .context = plan};
    Choice *choice;
    char key[CHOICE_KEY_BYTES];
    bool tries = gpu->choices.path && plan->trial.c;
    TRY(propose(plan, tries ? MOST_PROPOSALS : 1, proposed, &candidates.n));
    plan->proposed = proposed[0];
    plan->algorithm = &plan->proposed;
    if (!tries) return OK;
    gpu_product_key(gpu, &plan->product, key);
    TRY(gpu_choose(plan->stream, key, &candidates, &choice));
    plan->algorithm = &choice->algorithm;
    return OK;
}

Status gpu_product_try(GpuStream *stream, const GpuProduct *product, const GpuProductTrial *trial,
                       GpuProductPlan **out)
{
    Library *library;
    TRY(gpu_product_check(product));
    if (is_scaled(product)) TRY(gpu_check_8_bits(stream->gpu));
    TRY(library_of(stream->gpu, &library));
    GpuProductPlan *plan = xcalloc(1, sizeof *plan);
    plan->stream = stream;
    plan->library = library;
    plan->product = *product;
    if (trial) plan->trial = *trial;
    bool empty = !product->m || !product->n; /* nothing will be done */
    Status status = empty ? OK : describe(plan);
    if (status == OK && !empty && product->k) status = choose(plan);
    if (status != OK) {
        gpu_product_plan_destroy(plan);
        return status;
    }
    *out = plan;
    return OK;
}

Status gpu_product_plan(GpuStream *stream, const GpuProduct *product, GpuProductPlan **plan)
{
    return gpu_product_try(stream, product, NULL, plan);
}

void gpu_product_plan_destroy(GpuProductPlan *plan)
{
    if (!plan) return;
    const Library *l = plan->library;
    if (plan->a) (void)l->cublasLtMatrixLayoutDestroy(plan->a);
    if (plan->b) (void)l->cublasLtMatrixLayoutDestroy(plan->b);
    if (plan->c) (void)l->cublasLtMatrixLayoutDestroy(plan->c);
    if (plan->work) (void)l->cublasLtMatmulDescDestroy(plan->work);
    free(plan);
}

Status gpu_product_run(GpuProductPlan *plan, const void *a, const void *b, void *c, void *workspace)
{
    const GpuProduct *p = &plan->product;
    if (!p->m || !p->n || (!p->k && p->accumulate)) return OK;
    if (!p->k) /* rows of nothing: contiguous or not, zero */
        return cuda_check(cudaMemset2DAsync(c, (size_t)p->c_pitch * dtype_bytes(p->c_dtype), 0,
                                            (size_t)p->n * dtype_bytes(p->c_dtype), (size_t)p->m,
                                            plan->stream->cuda),
                          "clearing a product");
    return check(plan, multiply(plan, plan->algorithm, a, b, c, workspace), "computing");
}

Status gpu_product_run_scaled(GpuProductPlan *plan, const void *const operand[2],
                              const float *const scale[2], void *c, void *workspace)
{
    if (plan->work) TRY(set_scales(plan, scale[0], scale[1]));
    return gpu_product_run(plan, operand[0], operand[1], c, workspace);
}
