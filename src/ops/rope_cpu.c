/* rope: x [B T H d] turned by table [B T d]. Both pairings become y = x * c + partner(x) * s, with
 * c and s [d] laid out once per token for all its heads: partner is the other half, or the
 * neighbour. */
#include "ops/kernel.h"
#include "ops/rope_internal.h"
#include "ops/share.h"
#include "ops/simd.h"

/* cosines and signed sines of one token, in the order of the elements; c and s have room for whole
 * vectors */
static void expand(const float *table, int64_t half, RopeAttr attr, float *c, float *s)
{
    float sign = attr.inverse ? -1.0f : 1.0f;
    for (int64_t j = 0; j < half; j++) {
        int64_t first = attr.interleaved ? 2 * j : j,
                second = attr.interleaved ? 2 * j + 1 : j + half;
        c[first] = c[second] = table[j];
        s[first] = -sign * table[half + j];
        s[second] = sign * table[half + j];
    }
}

SIMD Vf neighbours(Vf x)
{
    Vi order;
    for (int i = 0; i < VL; i++) order[i] = i ^ 1;
    return vf_shuffle(x, x, order);
}

/* n <= VL elements at x + i and their partners */
SIMD void turn_interleaved(const char *x, char *y, int64_t i, int64_t n, const float *c,
                           const float *s, int bf16)
{
    Vf v = n == VL ? vf_load_as(x, i, bf16) : vf_load_as_n(x, i, n, bf16);
    v = vf_fma(v, vf_load(c + i), neighbours(v) * vf_load(s + i));
    if (n == VL)
        vf_store_as(y, i, v, bf16);
    else
        vf_store_as_n(y, i, v, n, bf16);
}

SIMD void turn_halves(const char *x, char *y, int64_t i, int64_t n, int64_t half, const float *c,
                      const float *s, int bf16)
{
    Vf a = n == VL ? vf_load_as(x, i, bf16) : vf_load_as_n(x, i, n, bf16);
    Vf b = n == VL ? vf_load_as(x, half + i, bf16) : vf_load_as_n(x, half + i, n, bf16);
    Vf cos = vf_load(c + i), sin = vf_load(s + half + i);
    Vf first = vf_fma(a, cos, -(b * sin)), second = vf_fma(b, cos, a * sin);
    if (n == VL) {
        vf_store_as(y, i, first, bf16);
        vf_store_as(y, half + i, second, bf16);
    } else {
        vf_store_as_n(y, i, first, n, bf16);
        vf_store_as_n(y, half + i, second, n, bf16);
    }
}

SIMD void turn_token(const char *x, char *y, int64_t heads, int64_t d, const float *c,
                     const float *s, bool interleaved, int bf16)
{
    int64_t bytes = d * (bf16 ? 2 : 4), half = d / 2;
    for (int64_t h = 0; h < heads; h++, x += bytes, y += bytes) {
        if (interleaved)
            for (int64_t i = 0; i < d; i += VL)
                turn_interleaved(x, y, i, min_i64(VL, d - i), c, s, bf16);
        else
            for (int64_t i = 0; i < half; i += VL)
                turn_halves(x, y, i, min_i64(VL, half - i), half, c, s, bf16);
    }
}

/* c and s of one thread, each with room for whole vectors at any start */
static int64_t thread_floats(int64_t d) { return 2 * (int64_t)round_up((size_t)d + VL, VL); }

static size_t workspace(const Graph *graph, const Node *node, const Target *target)
{
    int64_t d = graph_value(graph, node->in[0])->shape.dim[3];
    return (size_t)thread_floats(d) * sizeof(float) * (size_t)target->threads;
}

static Status run(KernelArgs *args)
{
    RopeAttr attr = *(const RopeAttr *)args->attr;
    Rows x = tensor_as_rows(&args->in[0], 2), y = tensor_as_rows(&args->out[0], 2);
    int64_t d = args->in[0].shape.dim[3], heads = args->in[0].shape.dim[2];
    const float *table = args->in[1].data;
    int64_t floats = thread_floats(d);
    float *space = args->workspace;
    int threads = x.n * x.width < 16384 ? 1 : args->threads, bf16 = x.dtype == DTYPE_BF16;
    int64_t element = bf16 ? 2 : 4;
#pragma omp parallel num_threads(threads)
    {
        float *c = space + thread_index() * floats, *s = c + floats / 2;
        memset(c, 0, (size_t)floats * sizeof(float));
#pragma omp for schedule(static)
        for (int64_t i = 0; i < x.n; i++) {
            expand(table + i * d, d / 2, attr, c, s);
            const char *from = x.data + i * x.pitch * element;
            char *to = y.data + i * y.pitch * element;
            if (bf16)
                turn_token(from, to, heads, d, c, s, attr.interleaved, 1);
            else
                turn_token(from, to, heads, d, c, s, attr.interleaved, 0);
        }
    }
    return OK;
}

const Kernel CPU(rope) = {.run = run, .workspace = workspace};
