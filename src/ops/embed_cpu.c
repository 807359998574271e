#include "ops/embed.h"
#include "ops/elementwise.h"

SIMD void step_copy(int64_t i, int64_t m, void *y, const void *x, int from_bf16, int to_bf16)
{
    store_part(y, i, m, load_part(x, i, m, from_bf16), to_bf16);
}

static void copy_row(void *y, bool to_bf16, const void *x, bool from_bf16, int64_t n)
{
    if (from_bf16 == to_bf16)
        memcpy(y, x, (size_t)n * (to_bf16 ? 2 : 4));
    else if (to_bf16)
        EACH_VECTOR(n, step_copy, y, x, 0, 1);
    else
        EACH_VECTOR(n, step_copy, y, x, 1, 0);
}

/* The row of this rank's table, -1 for another rank's. Of a whole table a row that is not there is
 * the host's fault; row 0 keeps us inside. */
static int64_t row_of(int32_t id, int64_t first, unsigned cut_axes, int64_t rows)
{
    int64_t row = id - first;
    if (row >= 0 && row < rows) return row;
    return cut_axes ? -1 : 0;
}

static Status run(KernelArgs *args)
{
    const int32_t *ids = args->in[0].data;
    const EmbedAttr *attr = args->attr;
    Rows w = tensor_as_rows(&args->in[1], 1), y = tensor_as_rows(&args->out[0], 1);
    bool from_bf16 = w.dtype == DTYPE_BF16, to_bf16 = y.dtype == DTYPE_BF16;
#pragma omp parallel for num_threads(args->threads) if (y.n * y.width >= WALK_PARALLEL)            \
    schedule(static)
    for (int64_t i = 0; i < y.n; i++) {
        int64_t id = row_of(ids[i], attr->first, attr->cut_axes, w.n);
        void *to = to_bf16 ? (void *)row_bf16(&y, i) : (void *)row_f32(&y, i);
        if (id < 0)
            memset(to, 0, (size_t)w.width * (to_bf16 ? 2 : 4));
        else
            copy_row(to, to_bf16, from_bf16 ? (void *)row_bf16(&w, id) : (void *)row_f32(&w, id),
                     from_bf16, w.width);
    }
    return OK;
}

const Kernel CPU(embed) = {.run = run};

/* ---- gradient --------------------------------------------------------------------------- */

SIMD void step_first(int64_t i, int64_t m, float *sum, const void *x, int bf16)
{
    store_part(sum, i, m, load_part(x, i, m, bf16), 0);
}
SIMD void step_more(int64_t i, int64_t m, float *sum, const void *x, int bf16)
{
    store_part(sum, i, m, load_part(sum, i, m, 0) + load_part(x, i, m, bf16), 0);
}

/* sum = x or sum += x */
static void add_row(float *sum, const Rows *dy, int64_t token, bool first)
{
    if (dy->dtype == DTYPE_BF16) {
        const void *x = row_bf16(dy, token);
        if (first)
            EACH_VECTOR(dy->width, step_first, sum, x, 1);
        else
            EACH_VECTOR(dy->width, step_more, sum, x, 1);
    } else {
        const void *x = row_f32(dy, token);
        if (first)
            EACH_VECTOR(dy->width, step_first, sum, x, 0);
        else
            EACH_VECTOR(dy->width, step_more, sum, x, 0);
    }
}

/* After it, the tokens with id v are order[end[v - 1] .. end[v] - 1] (end[-1] = 0), in token order.
 */
static void sort_by_id(const int32_t *ids, int64_t n, const EmbedGradAttr *attr, int32_t *end,
                       int32_t *order)
{
    int64_t vocab = attr->table.dim[0];
    memset(end, 0, (size_t)vocab * sizeof *end);
    for (int64_t i = 0; i < n; i++) {
        int64_t row = row_of(ids[i], attr->first, attr->cut_axes, vocab);
        if (row >= 0) end[row]++;
    }
    int32_t sum = 0;
    for (int64_t v = 0; v < vocab; v++) { /* counts become starts */
        int32_t count = end[v];
        end[v] = sum;
        sum += count;
    }
    for (int64_t i = 0; i < n; i++) {
        int64_t row = row_of(ids[i], attr->first, attr->cut_axes, vocab);
        if (row >= 0) order[end[row]++] = (int32_t)i;
    }
}

/* Zeros past the caches when the table is larger than they are: nothing is read that way. */
static void clear_row(float *row, int64_t n, bool stream)
{
    int64_t i = 0;
#if defined(__AVX512F__)
    if (stream && (uintptr_t)row % 64 == 0)
        for (; i + VL <= n; i += VL) _mm512_stream_ps(row + i, vf_zero());
#elif defined(__AVX2__)
    if (stream && (uintptr_t)row % 32 == 0)
        for (; i + VL <= n; i += VL) _mm256_stream_ps(row + i, vf_zero());
#else
    (void)stream;
#endif
    memset(row + i, 0, (size_t)(n - i) * sizeof *row);
}

enum { STREAM_BYTES = 16 << 20, ROWS_AT_ONCE = 32 };

static Status run_grad(KernelArgs *args)
{
    const int32_t *ids = args->in[0].data;
    Rows dy = tensor_as_rows(&args->in[1], 1);
    int64_t vocab = args->out[0].shape.dim[0], width = args->out[0].shape.dim[1];
    int32_t *end = args->workspace, *order = end + vocab;
    float *dw = args->out[0].data;
    sort_by_id(ids, dy.n, args->attr, end, order);
    bool stream = vocab * width * 4 >= STREAM_BYTES;
    int64_t groups = (vocab + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
#pragma omp parallel num_threads(args->threads) if ((vocab + dy.n) * width >= WALK_PARALLEL)
    {
#pragma omp for schedule(dynamic)
        for (int64_t g = 0; g < groups; g++)
            for (int64_t v = g * ROWS_AT_ONCE; v < min_i64((g + 1) * ROWS_AT_ONCE, vocab); v++) {
                int32_t first = v ? end[v - 1] : 0;
                if (first == end[v]) clear_row(dw + v * width, width, stream);
                for (int32_t i = first; i < end[v]; i++)
                    add_row(dw + v * width, &dy, order[i], i == first);
            }
#if defined(__x86_64__)
        _mm_sfence(); /* streamed zeros are seen by whoever waits at the end of the region */
#endif
    }
    return OK;
}

static size_t grad_workspace(const Graph *graph, const Node *node, const Target *target)
{
    (void)target;
    const EmbedGradAttr *attr = node->attr;
    return (size_t)(attr->table.dim[0] + shape_count(&graph_value(graph, node->in[0])->shape)) *
           sizeof(int32_t);
}

const Kernel CPU(embed_grad) = {.run = run_grad, .workspace = grad_workspace};
