#include "ops/grad_norm.h"
#include "ops/elementwise.h"
#include "ops/exact_sum.h"

/* Squares are summed in double; eight sums hide the latency. */
typedef double Vd __attribute__((vector_size(VL * 4)));
enum { HALF = VL / 2 };

SIMD Vd widen(Vf v, int half)
{
#if defined(__AVX512F__)
    return half ? _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1))
                : _mm512_cvtps_pd(_mm512_castps512_ps256(v));
#elif defined(__AVX2__)
    return half ? _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1))
                : _mm256_cvtps_pd(_mm256_castps256_ps128(v));
#else
    Vd d;
    for (int i = 0; i < HALF; i++) d[i] = (double)v[half * HALF + i];
    return d;
#endif
}

SIMD double block_squares(const void *x, int64_t first, int64_t n, int bf16)
{
    Vd sum[8] = {{0}};
    int64_t i = 0;
    for (; i + 4 * VL <= n; i += 4 * VL)
        for (int k = 0; k < 4; k++) {
            Vf v = vf_load_as(x, first + i + k * VL, bf16);
            Vd low = widen(v, 0), high = widen(v, 1);
            sum[2 * k] += low * low;
            sum[2 * k + 1] += high * high;
        }
    for (; i < n; i += VL) {
        Vf v = load_part(x, first + i, n - i, bf16);
        Vd low = widen(v, 0), high = widen(v, 1);
        sum[0] += low * low;
        sum[1] += high * high;
    }
    for (int k = 4; k > 0; k /= 2)
        for (int j = 0; j < k; j++) sum[j] += sum[j + k];
    double total = 0;
    for (int j = 0; j < HALF; j++) total += sum[0][j];
    return total;
}

/* Integers: it does not matter which thread adds what, and when. */
static void run_exact(KernelArgs *args)
{
    ExactSum total = {0};
#pragma omp parallel num_threads(args->threads)
    {
        ExactSum mine = {0};
        for (int k = 0; k < args->n_in; k++) {
            const Tensor *x = &args->in[k];
            int64_t n = tensor_count(x);
#pragma omp for schedule(static) nowait
            for (int64_t b = 0; b < norm_blocks(n); b++) {
                int64_t first = b * NORM_BLOCK, count = min_i64(NORM_BLOCK, n - first);
                if (x->dtype == DTYPE_BF16)
                    exact_add_squares_bf16(&mine, (const uint16_t *)x->data + first, count);
                else
                    exact_add_squares(&mine, (const float *)x->data + first, count);
            }
        }
#pragma omp critical(exact_norm)
        exact_add(&total, &mine);
    }
    exact_write(&total, args->out[0].data);
}

static Status run_rounded(KernelArgs *args)
{
    double *partial = args->workspace, total = 0;
#pragma omp parallel num_threads(args->threads)
    {
        double *at = partial;
        for (int k = 0; k < args->n_in; k++) {
            const Tensor *x = &args->in[k];
            int64_t n = tensor_count(x), blocks = norm_blocks(n);
            bool bf16 = x->dtype == DTYPE_BF16;
#pragma omp for schedule(static) nowait
            for (int64_t b = 0; b < blocks; b++) {
                int64_t first = b * NORM_BLOCK, count = min_i64(NORM_BLOCK, n - first);
                at[b] = bf16 ? block_squares(x->data, first, count, 1)
                             : block_squares(x->data, first, count, 0);
            }
            at += blocks;
        }
    }
    int64_t blocks = 0;
    for (int k = 0; k < args->n_in; k++) blocks += norm_blocks(tensor_count(&args->in[k]));
    for (int64_t b = 0; b < blocks; b++) total += partial[b];
    *(float *)args->out[0].data = (float)sqrt(total);
    return OK;
}

static Status run(KernelArgs *args)
{
    if (!((const GradNormAttr *)args->attr)->exact) return run_rounded(args);
    run_exact(args);
    return OK;
}

static size_t workspace(const Graph *graph, const Node *node, const Target *target)
{
    (void)target;
    int64_t blocks = 0;
    for (int k = 0; k < node->n_in; k++)
        blocks += norm_blocks(shape_count(&graph_value(graph, node->in[k])->shape));
    return (size_t)blocks * sizeof(double);
}

const Kernel CPU(grad_norm) = {.run = run, .workspace = workspace};
