/* Tiles of SCALING_WIDTH rows and columns as f32, one after the other: a strip of them along the
 * rows makes the rows' numbers, a strip down the columns the columns'. A thread has whole strips.
 */
#include "ops/kernel.h"
#include "ops/quantise.h"
#include "ops/simd.h"
#include "tensor/small_float.h"

enum { W = SCALING_WIDTH };

typedef struct Tile {
    int64_t h, w;                  /* of it; zeros beyond */
    _Alignas(64) float at[W][W];   /* line by line of the result: transposed for columns */
    _Alignas(64) float most[W];    /* |x| of each line */
    _Alignas(64) float inverse[W]; /* 1 / scale */
} Tile;

/* One of the two results. */
typedef struct Side {
    uint8_t *q;
    float *scale;
    int64_t n, width; /* lines; numbers in each */
    DType dtype;
    ScalingUnit scaling;
    bool transposed; /* line i is column i of x */
} Side;

/* Lines first.., numbers from.. of each. */
static void load(const Rows *x, const Side *s, int64_t first, int64_t from, Tile *t)
{
    const uint16_t *data = (const uint16_t *)(const void *)x->data;
    t->h = min_i64(W, s->n - first);
    t->w = min_i64(W, s->width - from);
    if (t->h < W || t->w < W) memset(t->at, 0, sizeof t->at);
    if (s->transposed) {
        for (int64_t k = 0; k < t->w; k++)
            for (int64_t i = 0; i < t->h; i++)
                t->at[i][k] = bf16_to_f32(data[(from + k) * x->pitch + first + i]);
        return;
    }
    for (int64_t i = 0; i < t->h; i++)
        for (int64_t k = 0; k < t->w; k++)
            t->at[i][k] = bf16_to_f32(data[(first + i) * x->pitch + from + k]);
}

/* NaN counts for nothing, as in fmaxf. */
static float larger(float a, float b) { return b > a ? b : a; }

static void measure(Tile *t)
{
    for (int i = 0; i < W; i++) {
        Vf most = vf_zero();
        for (int k = 0; k < W; k += VL) {
            Vf v = vf_bits(vi_bits(vf_load(&t->at[i][k])) & 0x7fffffff);
            most = vf_bits((vi_bits(v) & (v > most)) | (vi_bits(most) & ~(v > most)));
        }
        t->most[i] = vf_max_lane(most);
    }
}

static float scale_of(const Side *s, float most)
{
    float scale = most / f8_largest(s->dtype);
    return scale < FLT_MIN ? FLT_MIN : scale;
}

/* The scales of a tile's lines, told by their maxima. */
static void set_scales(const Side *s, int64_t first, int64_t block, Tile *t)
{
    float most = 0;
    for (int64_t i = 0; i < t->h; i++) most = larger(most, t->most[i]);
    for (int64_t i = 0; i < t->h; i++) {
        float scale = scale_of(s, s->scaling == SCALING_SQUARE ? most : t->most[i]);
        t->inverse[i] = 1 / scale;
        if (s->scaling == SCALING_SQUARE)
            s->scale[first / W * scaling_square_pitch(s->width) + block] = scale;
        else
            s->scale[block * s->n + first + i] = scale;
    }
}

SIMD void encode(SmallFloat format, const float *x, float inverse, uint8_t *q)
{
    for (int k = 0; k < W; k++) q[k] = f8_from_f32_saturated(format, x[k] * inverse);
}

static void store(const Side *s, int64_t first, int64_t from, const Tile *t)
{
    for (int64_t i = 0; i < t->h; i++) {
        uint8_t line[W];
        if (s->dtype == DTYPE_F8_E5M2)
            encode(e5m2_format, t->at[i], t->inverse[i], line);
        else
            encode(e4m3_format, t->at[i], t->inverse[i], line);
        memcpy(s->q + (first + i) * s->width + from, line, (size_t)t->w);
    }
}

/* Scales over whole lines ask for a walk of their own. */
static void measure_lines(const Rows *x, const Side *s, int64_t first, Tile *t)
{
    float most[W] = {0};
    for (int64_t from = 0; from < s->width; from += W) {
        load(x, s, first, from, t);
        measure(t);
        for (int i = 0; i < W; i++) most[i] = larger(most[i], t->most[i]);
    }
    memcpy(t->most, most, sizeof most);
    set_scales(s, first, 0, t);
}

static void strip(const Rows *x, const Side *s, int64_t first)
{
    Tile t;
    if (s->scaling == SCALING_ROW) measure_lines(x, s, first, &t);
    for (int64_t from = 0; from < s->width; from += W) {
        load(x, s, first, from, &t);
        if (s->scaling != SCALING_ROW) {
            measure(&t);
            set_scales(s, first, from / W, &t);
        }
        store(s, first, from, &t);
    }
    if (s->scaling == SCALING_SQUARE)
        for (int64_t b = scaling_blocks(s->width); b < scaling_square_pitch(s->width); b++)
            s->scale[first / W * scaling_square_pitch(s->width) + b] = 0;
}

static void run_side(KernelArgs *args, const Rows *x, int first, bool transposed)
{
    const QuantiseAttr *a = args->attr;
    Side s = {.q = args->out[first].data,
              .scale = args->out[first + 1].data,
              .n = transposed ? x->width : x->n,
              .width = transposed ? x->n : x->width,
              .dtype = a->dtype,
              .scaling = a->scaling,
              .transposed = transposed};
    if (!s.n || !s.width) return;
#pragma omp parallel for num_threads(args->threads) if (s.n > W) schedule(static)
    for (int64_t i = 0; i < s.n; i += W) strip(x, &s, i);
}

static Status run(KernelArgs *args)
{
    const QuantiseAttr *a = args->attr;
    Rows x = tensor_as_rows(&args->in[0], 1);
    if (a->rows) run_side(args, &x, ROWS_Q, false);
    if (a->columns) run_side(args, &x, COLUMNS_Q, true);
    return OK;
}

const Kernel CPU(quantise) = {.run = run};
