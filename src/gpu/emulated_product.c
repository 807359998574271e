/* Products on the emulated device: plain loops, sums in double precision. */
#include "gpu/choices.h"
#include "gpu/emulated_internal.h"
#include "tensor/small_float.h"

#include <stdlib.h>
#include <string.h>

struct GpuProductPlan {
    GpuStream *stream;
    GpuProduct product;
    GpuProductTrial trial; /* while it is planned */
    Algorithm plain;
    const Algorithm *algorithm; /* plain, or of a choice */
};

typedef struct Job {
    GpuProduct product;
    int parts;
    const void *a, *b;
    const float *a_scale, *b_scale; /* of 8 bits */
    void *c;
} Job;

static double element(const void *p, DType dtype, int64_t i)
{
    switch (dtype) {
    case DTYPE_BF16: return (double)bf16_to_f32(((const uint16_t *)p)[i]);
    case DTYPE_F8_E4M3: return (double)f8_to_f32(e4m3_format, ((const uint8_t *)p)[i]);
    case DTYPE_F8_E5M2: return (double)f8_to_f32(e5m2_format, ((const uint8_t *)p)[i]);
    default: return (double)((const float *)p)[i];
    }
}

enum { BLOCK = 128 };

/* Of the numbers around k in a row of n. */
static double scale_at(const float *scale, GpuScaling scaling, const int64_t rows, int64_t row,
                       int64_t n, int64_t k)
{
    const int64_t pitch = ((n + BLOCK - 1) / BLOCK + 3) / 4 * 4;
    switch (scaling) {
    case GPU_SCALE_ROW: return (double)scale[row];
    case GPU_SCALE_BLOCK: return (double)scale[k / BLOCK * rows + row];
    case GPU_SCALE_SQUARE: return (double)scale[row / BLOCK * pitch + k / BLOCK];
    default: return 1;
    }
}

/* Block by block of the sum, each with its scales. */
static double scaled_sum(const Job *job, int64_t i, int64_t j)
{
    const GpuProduct *p = &job->product;
    double sum = 0;
    for (int64_t from = 0; from < p->k; from += BLOCK) {
        double block = 0;
        for (int64_t k = from; k < p->k && k < from + BLOCK; k++)
            block += element(job->a, p->dtype, i * p->a_pitch + k) *
                     element(job->b, p->b_dtype, j * p->b_pitch + k);
        sum += block * scale_at(job->a_scale, p->a_scaling, p->m, i, p->k, from) *
               scale_at(job->b_scale, p->b_scaling, p->n, j, p->k, from);
    }
    return sum;
}

/* Algorithms differ in how many parts of k are summed apart, each rounded to f32: other bits, as on
 * a device, so that ranks or runs that chose differently are found out. */
static double plain_sum(const Job *job, int64_t i, int64_t j)
{
    const GpuProduct *p = &job->product;
    int64_t a_row = p->a_transposed ? 1 : p->a_pitch, a_step = p->a_transposed ? p->a_pitch : 1;
    int64_t b_step = p->b_transposed ? 1 : p->b_pitch, b_column = p->b_transposed ? p->b_pitch : 1;
    double all = 0;
    for (int part = 0; part < job->parts; part++) {
        double sum = 0;
        for (int64_t k = p->k * part / job->parts; k < p->k * (part + 1) / job->parts; k++)
            sum += element(job->a, p->dtype, i * a_row + k * a_step) *
                   element(job->b, p->dtype, k * b_step + j * b_column);
        all = job->parts == 1 ? sum : (double)((float)all + (float)sum);
    }
    return all;
}

static Status product_work(GpuStream *stream, void *context)
{
    (void)stream;
    const Job *job = context;
    const GpuProduct *p = &job->product;
    for (int64_t i = 0; i < p->m; i++)
        for (int64_t j = 0; j < p->n; j++) {
            int64_t at = i * p->c_pitch + j;
            double sum = p->accumulate ? element(job->c, p->c_dtype, at) : 0;
            sum += job->a_scale ? scaled_sum(job, i, j) : plain_sum(job, i, j);
            if (p->c_dtype == DTYPE_BF16)
                ((uint16_t *)job->c)[at] = bf16_from_f32((float)sum);
            else
                ((float *)job->c)[at] = (float)sum;
        }
    return OK;
}

static const Algorithm algorithms[] = {{{1}}, {{2}}, {{3}}};

static Status submit(const GpuProductPlan *plan, const Algorithm *algorithm, const Job *operands)
{
    Job job = *operands;
    job.product = plan->product;
    job.parts = algorithm->byte[0];
    return emulated_submit(plan->stream, product_work, &job, sizeof job);
}

static Status run_trial(void *context, const Algorithm *algorithm)
{
    const GpuProductPlan *plan = context;
    const GpuProductTrial *t = &plan->trial;
    const float *const *scale = plan->product.scale;
    return submit(
        plan, algorithm,
        &(Job){.a = t->a, .b = t->b, .a_scale = scale[0], .b_scale = scale[1], .c = t->c});
}

static bool may(void *context, const Algorithm *algorithm)
{
    (void)context;
    for (int i = 0; i < COUNT_OF(algorithms); i++)
        if (!memcmp(&algorithms[i], algorithm, sizeof *algorithm)) return true;
    return false;
}

static Status choose(GpuProductPlan *plan)
{
    Gpu *gpu = gpu_stream_device(plan->stream);
    Choice *choice;
    char key[CHOICE_KEY_BYTES];
    if (!gpu_choices(gpu)->path || !plan->trial.c) return OK;
    gpu_product_key(gpu, &plan->product, key);
    Candidates candidates = {algorithms, COUNT_OF(algorithms), run_trial, may, plan};
    TRY(gpu_choose(plan->stream, key, &candidates, &choice));
    plan->algorithm = &choice->algorithm;
    return OK;
}

Status gpu_product_try(GpuStream *stream, const GpuProduct *product, const GpuProductTrial *trial,
                       GpuProductPlan **out)
{
    TRY(gpu_product_check(product));
    GpuProductPlan *plan = xmalloc(sizeof *plan);
    *plan = (GpuProductPlan){.stream = stream, .product = *product, .plain = algorithms[0]};
    plan->algorithm = &plan->plain;
    if (trial) plan->trial = *trial;
    Status status = product->m && product->n && product->k ? choose(plan) : OK;
    if (status != OK) {
        free(plan);
        return status;
    }
    *out = plan;
    return OK;
}

Status gpu_product_plan(GpuStream *stream, const GpuProduct *product, GpuProductPlan **plan)
{
    return gpu_product_try(stream, product, NULL, plan);
}

void gpu_product_plan_destroy(GpuProductPlan *plan) { free(plan); }

static Status run(GpuProductPlan *plan, const Job *job)
{
    size_t alignment = plan->product.alignment ? plan->product.alignment : 256;
    if (((uintptr_t)job->a | (uintptr_t)job->b | (uintptr_t)job->c) % alignment)
        return fail(ERR_ARG, "operands of a product are not aligned to %zu bytes, as planned",
                    alignment);
    if (((uintptr_t)job->a_scale | (uintptr_t)job->b_scale) % GPU_ALIGN_8_BITS)
        return fail(ERR_ARG, "scales do not begin at whole %d bytes", GPU_ALIGN_8_BITS);
    return submit(plan, plan->algorithm, job);
}

Status gpu_product_run(GpuProductPlan *plan, const void *a, const void *b, void *c, void *workspace)
{
    (void)workspace;
    return run(plan, &(Job){.a = a, .b = b, .c = c});
}

Status gpu_product_run_scaled(GpuProductPlan *plan, const void *const operand[2],
                              const float *const scale[2], void *c, void *workspace)
{
    (void)workspace;
    return run(
        plan,
        &(Job){.a = operand[0], .b = operand[1], .a_scale = scale[0], .b_scale = scale[1], .c = c});
}
