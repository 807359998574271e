/* Products on the emulated device: plain loops, sums in double precision. */
#include "gpu/emulated_internal.h"

#include <stdlib.h>

struct GpuProductPlan {
    GpuStream *stream;
    GpuProduct product;
};

typedef struct Job {
    GpuProduct product;
    const void *a, *b;
    void *c;
} Job;

static double element(const void *p, DType dtype, int64_t i)
{
    return dtype == DTYPE_BF16 ? (double)bf16_to_f32(((const uint16_t *)p)[i])
                               : (double)((const float *)p)[i];
}

static Status product_work(GpuStream *stream, void *context)
{
    (void)stream;
    const Job *job = context;
    const GpuProduct *p = &job->product;
    int64_t a_row = p->a_transposed ? 1 : p->a_pitch, a_step = p->a_transposed ? p->a_pitch : 1;
    int64_t b_step = p->b_transposed ? 1 : p->b_pitch, b_column = p->b_transposed ? p->b_pitch : 1;
    for (int64_t i = 0; i < p->m; i++)
        for (int64_t j = 0; j < p->n; j++) {
            int64_t at = i * p->c_pitch + j;
            double sum = p->accumulate ? element(job->c, p->c_dtype, at) : 0;
            for (int64_t k = 0; k < p->k; k++)
                sum += element(job->a, p->dtype, i * a_row + k * a_step) *
                       element(job->b, p->dtype, k * b_step + j * b_column);
            if (p->c_dtype == DTYPE_BF16)
                ((uint16_t *)job->c)[at] = bf16_from_f32((float)sum);
            else
                ((float *)job->c)[at] = (float)sum;
        }
    return OK;
}

Status gpu_product_plan(GpuStream *stream, const GpuProduct *product, GpuProductPlan **plan)
{
    *plan = xmalloc(sizeof **plan);
    **plan = (GpuProductPlan){.stream = stream, .product = *product};
    return OK;
}

void gpu_product_plan_destroy(GpuProductPlan *plan) { free(plan); }

Status gpu_product_run(GpuProductPlan *plan, const void *a, const void *b, void *c, void *workspace)
{
    (void)workspace;
    size_t alignment = plan->product.alignment ? plan->product.alignment : 256;
    if (((uintptr_t)a | (uintptr_t)b | (uintptr_t)c) % alignment)
        return fail(ERR_ARG, "operands of a product are not aligned to %zu bytes, as planned",
                    alignment);
    Job job = {.product = plan->product, .a = a, .b = b, .c = c};
    return emulated_submit(plan->stream, product_work, &job, sizeof job);
}
