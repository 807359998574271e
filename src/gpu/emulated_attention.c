/* Attention on the emulated device: plain loops, sums in double precision. As choosy as the
 * library, and it spoils all of the workspace that it asked for. */
#include "gpu/attention.h"
#include "gpu/emulated_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct GpuAttentionPlan {
    GpuStream *stream;
    GpuAttention of;
};

typedef struct Job {
    GpuAttention of;
    GpuAttentionOperands x;
    void *workspace;
} Job;

/* One query of one head. */
typedef struct Query {
    const Job *job;
    int64_t b, h, t, first;
    double *p; /* [tokens] probabilities */
    double lse;
} Query;

static double at(const void *data, int64_t i)
{
    return (double)bf16_to_f32(((const uint16_t *)data)[i]);
}

static void put(void *data, int64_t i, double x)
{
    ((uint16_t *)data)[i] = bf16_from_f32((float)x);
}

static int64_t row(const Query *q, int64_t pitch)
{
    const GpuAttention *a = &q->job->of;
    return (q->b * a->tokens + q->t) * pitch + q->h * a->d;
}

static int64_t key_row(const Query *q, int64_t key, int64_t pitch)
{
    const GpuAttention *a = &q->job->of;
    return (q->b * a->tokens + key) * pitch + q->h / (a->heads / a->kv_heads) * a->d;
}

static double dot(const void *x, int64_t i, const void *y, int64_t j, int64_t n)
{
    double sum = 0;
    for (int64_t c = 0; c < n; c++) sum += at(x, i + c) * at(y, j + c);
    return sum;
}

static void find_probabilities(Query *q)
{
    const GpuAttention *a = &q->job->of;
    const GpuAttentionOperands *x = &q->job->x;
    double top = -INFINITY, sum = 0;
    q->first = x->first[q->b * a->tokens + q->t];
    for (int64_t j = q->first; j <= q->t; j++) {
        q->p[j] = (double)a->scale *
                  dot(x->q, row(q, a->q_pitch), x->k, key_row(q, j, a->k_pitch), a->d);
        top = fmax(top, q->p[j]);
    }
    for (int64_t j = q->first; j <= q->t; j++) sum += exp(q->p[j] - top);
    q->lse = top + log(sum);
    for (int64_t j = q->first; j <= q->t; j++) q->p[j] = exp(q->p[j] - q->lse);
}

static int64_t statistic(const Query *q)
{
    const GpuAttention *a = &q->job->of;
    return (q->b * a->heads + q->h) * a->tokens + q->t;
}

static void attend(Query *q)
{
    const GpuAttention *a = &q->job->of;
    const GpuAttentionOperands *x = &q->job->x;
    for (int64_t c = 0; c < a->d; c++) {
        double sum = 0;
        for (int64_t j = q->first; j <= q->t; j++)
            sum += q->p[j] * at(x->v, key_row(q, j, a->v_pitch) + c);
        put(x->o, row(q, a->o_pitch) + c, sum);
    }
    if (a->statistics) x->lse[statistic(q)] = (float)q->lse;
}

/* dk and dv in double, [batch kv_heads tokens d] twice, until all queries have added to them. */
static void go_back(Query *q, double *dk, double *dv)
{
    const GpuAttention *a = &q->job->of;
    const GpuAttentionOperands *x = &q->job->x;
    int64_t d = a->d, dout = row(q, a->dout_pitch);
    double delta = dot(x->dout, dout, x->o, row(q, a->o_pitch), d);
    double *dq = xcalloc((size_t)d, sizeof *dq);
    for (int64_t j = q->first; j <= q->t; j++) {
        /* the probability as the statistics have it, which came from elsewhere */
        double p = q->p[j] * exp(q->lse - (double)x->lse[statistic(q)]);
        double dz = p * (double)a->scale *
                    (dot(x->dout, dout, x->v, key_row(q, j, a->v_pitch), d) - delta);
        int64_t key = key_row(q, j, a->kv_heads * d);
        for (int64_t c = 0; c < d; c++) {
            dq[c] += dz * at(x->k, key_row(q, j, a->k_pitch) + c);
            dk[key + c] += dz * at(x->q, row(q, a->q_pitch) + c);
            dv[key + c] += p * at(x->dout, dout + c);
        }
    }
    for (int64_t c = 0; c < d; c++) put(x->dq, row(q, a->dq_pitch) + c, dq[c]);
    free(dq);
}

static void store_keys(const GpuAttention *a, const double *from, void *to, int64_t pitch)
{
    int64_t width = a->kv_heads * a->d;
    for (int64_t i = 0; i < a->batch * a->tokens; i++)
        for (int64_t c = 0; c < width; c++) put(to, i * pitch + c, from[i * width + c]);
}

static Status attention_work(GpuStream *stream, void *context)
{
    (void)stream;
    const Job *job = context;
    const GpuAttention *a = &job->of;
    size_t keys = (size_t)(a->batch * a->tokens * a->kv_heads * a->d);
    double *p = xcalloc((size_t)a->tokens, sizeof *p),
           *sums = xcalloc(a->gradient ? 2 * keys : 1, sizeof *sums);
    memset(job->workspace, 0xff, gpu_attention_bytes(a));
    for (int64_t b = 0; b < a->batch; b++)
        for (int64_t h = 0; h < a->heads; h++)
            for (int64_t t = 0; t < a->tokens; t++) {
                Query q = {.job = job, .b = b, .h = h, .t = t, .p = p};
                find_probabilities(&q);
                if (a->gradient)
                    go_back(&q, sums, sums + keys);
                else
                    attend(&q);
            }
    if (a->gradient) {
        store_keys(a, sums, job->x.dk, a->dk_pitch);
        store_keys(a, sums + keys, job->x.dv, a->dv_pitch);
    }
    free(p);
    free(sums);
    return OK;
}

Status gpu_attention_can(Gpu *gpu)
{
    (void)gpu;
    return OK;
}

const char *gpu_attention_library(Gpu *gpu)
{
    (void)gpu;
    return "no library: attention by it is plain loops";
}

Status gpu_attention_plan(GpuStream *stream, const GpuAttention *a, GpuAttentionPlan **plan)
{
    const int64_t pitch[] = {a->q_pitch,
                             a->k_pitch,
                             a->v_pitch,
                             a->o_pitch,
                             a->gradient ? a->dout_pitch : 0,
                             a->gradient ? a->dq_pitch : 0,
                             a->gradient ? a->dk_pitch : 0,
                             a->gradient ? a->dv_pitch : 0};
    if (a->workspace_bytes < gpu_attention_bytes(a))
        return fail(ERR_UNSUPPORTED, "attention wants %zu bytes of workspace, %zu are planned",
                    gpu_attention_bytes(a), a->workspace_bytes);
    for (int i = 0; i < COUNT_OF(pitch); i++)
        if (pitch[i] % 8)
            return fail(ERR_UNSUPPORTED,
                        "rows of attention are %lld elements apart, no multiple of "
                        "8",
                        (long long)pitch[i]);
    *plan = xmalloc(sizeof **plan);
    **plan = (GpuAttentionPlan){.stream = stream, .of = *a};
    return OK;
}

void gpu_attention_plan_destroy(GpuAttentionPlan *plan) { free(plan); }

Status gpu_attention_run(GpuAttentionPlan *plan, const GpuAttentionOperands *x, void *workspace)
{
    uintptr_t all = (uintptr_t)x->q | (uintptr_t)x->k | (uintptr_t)x->v | (uintptr_t)x->first |
                    (uintptr_t)x->o | (uintptr_t)workspace;
    if (plan->of.gradient)
        all |= (uintptr_t)x->dout | (uintptr_t)x->dq | (uintptr_t)x->dk | (uintptr_t)x->dv;
    if (all % 16) return fail(ERR_ARG, "operands of attention are not aligned to 16 bytes");
    Job job = {.of = plan->of, .x = *x, .workspace = workspace};
    return emulated_submit(plan->stream, attention_work, &job, sizeof job);
}
