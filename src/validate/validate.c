/* Each row's plan, and what all of them come to. */
#include "validate/validate_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LONG_TOKENS = 16384, MAX_OPEN_MICRO = 16, MAX_OPEN_STAGES = 8 };

const char *validate_kind_name(RowKind kind)
{
    static const char *const names[] = {"dense", "experts", "long"};
    return names[kind];
}

/* Of what PyTorch's allocator gives out it keeps so much more that it cannot use, which nvidia-smi
 * counts as taken: 2 to 8% (reference, from memory); fitted to the 30 readings of BLOOM's. */
static const double fragments = 0.09;

/* 1 / (1 + median error of all of the framework's rows with --raw); 1 where the constant is another
 * one (stack.c). */
double validate_framework_factor(Framework framework)
{
    static const double factors[] = {1.112, 1.205, 1.105, 1.232, 1.007, 1.154, 1.212, 1.181, 1.360};
    return factors[framework];
}

/* ---- one row ---------------------------------------------------------------------------- */

static RowKind kind_of(const PublishedRow *r)
{
    return r->seq >= LONG_TOKENS ? ROW_LONG : r->model.experts ? ROW_EXPERTS : ROW_DENSE;
}

/* Bytes that the row's framework holds less than our trainer does, of a rank's states. Megatron's
 * distributed optimizer shares masters and moments over the ranks of cp too, and runs in fp16 and
 * NeMo's on H100 and later keep gradients in 16 bits (a log of one says 4 bytes a weight and 12
 * shared, MEM-01), where ours sums them in f32. */
static double saved_bytes(const PublishedRow *r, const PlanMemory *m)
{
    if (!published_is_megatron(r->framework)) return 0;
    double shared = (double)(m->weights + m->moments), cp = (double)r->layout.cp,
           saved = r->layout.zero == 1 ? shared * (1 - 1 / cp) : 0;
    bool a100 = !strcmp(r->device, "a100");
    if (!r->f32_grads && (!a100 || r->precision == PUBLISHED_FP16))
        saved += (double)m->gradients / 2;
    return saved;
}

/* The loss of Megatron and of torchtitan holds all logits of a micro-batch: in 16 bits, in f32, and
 * their softmax or gradient in f32 (10 bytes); ours 1,024 tokens' at a time. Composer's and
 * InternEvo's are fused as well. */
static double logits_bytes(const PublishedRow *r, int64_t micro)
{
    bool fused = r->framework == FRAMEWORK_COMPOSER || r->framework == FRAMEWORK_INTERNEVO ||
                 r->framework == FRAMEWORK_MAXTEXT;
    double tokens = (double)(micro * r->seq) / (double)r->layout.cp - 1024;
    if (fused || tokens < 0) return 0;
    return 10 * tokens * (double)r->model.vocab / (double)r->layout.tp;
}

/* Attention before flash attention holds scores of one layer at least: softmax, mask and dropout (5
 * bytes each, Korthikanti 2022) and two gradients. */
static double scores_bytes(const PublishedRow *r, const SimStack *stack, int64_t micro)
{
    if (!stack->plain_attention) return 0;
    return 9 * (double)(micro * r->model.heads) / (double)r->layout.tp * (double)r->seq *
           (double)r->seq;
}

/* DeepSpeed's ZeRO-1 makes f32 gradients of its share of the weights, and has two buckets of 5e8
 * elements of 16 bits (reduce_bucket_size, allgather_bucket_size). */
static double deepspeed_bytes(const PublishedRow *r, const PlanMemory *m)
{
    if (r->framework != FRAMEWORK_BIGSCIENCE || r->layout.zero != 1) return 0;
    double own = r->f32_grads ? 0 : (double)m->weights; /* the share's masters, as large */
    return own + 2 * 5e8 * 2;
}

static double layer_weights(const PublishedModel *m)
{
    double attention = (double)(m->hidden * m->head_dim * 2 * (m->heads + m->kv_heads));
    return attention + (double)(m->hidden * m->ffn * (m->gated ? 3 : 2));
}

/* What a rank holds within a step, with the loss's logits and a layer's scores. Where gradients
 * have 16 bits from the start, half of what ours are in f32 before they are summed is not there: of
 * sharded weights those of the three layers that may be on their way (pass/overlap); at the ends of
 * a pipeline the vocabulary's, made when a layer's scores are gone. A stage between them tells what
 * a layer takes. */
static double step_bytes(const PublishedRow *r, const SimStack *stack, const Plan *plan, int rank,
                         int64_t micro)
{
    double step = (double)plan->memory[rank].step, tp = (double)r->layout.tp,
           vocabulary = 4 * (double)(r->model.vocab * r->model.hidden) / tp,
           scores = scores_bytes(r, stack, micro);
    bool last = rank + 1 == plan->n_stages;
    double loss = last ? logits_bytes(r, micro) : 0;
    if (!stack->gradients_16) return step + fmax(loss, scores);
    if (r->layout.zero == 3 || r->layout.fsdp > 1)
        return step - fmin(step / 2, 3 * 2 * layer_weights(&r->model) / tp) + fmax(loss, scores);
    if (plan->n_stages < 3 || (rank > 0 && !last)) return step + fmax(loss, scores);
    double between = (double)plan->memory[1].step + scores;
    return fmax(between, step - fmin(step, vocabulary) / 2 + loss);
}

/* What a rank of the row's framework holds. */
static double rank_bytes(const PublishedRow *r, const SimStack *stack, const Plan *plan, int rank,
                         int64_t micro)
{
    const PlanMemory *m = &plan->memory[rank];
    return (double)(m->total - m->step) - saved_bytes(r, m) + deepspeed_bytes(r, m) +
           step_bytes(r, stack, plan, rank, micro);
}

/* Of what was tried the fastest that fits. Where nothing does, what is wrong is our account of the
 * row's memory, and it says nothing of what was made again for lack of it: then the fastest. */
static void keep_better(ValidateRow *out, const SimStack *stack, const Plan *plan, int64_t micro,
                        PublishedRecompute recompute, int64_t virtual_stages)
{
    double peak = 0;
    int largest = 0;
    for (int rank = 0; rank < plan->n_stages; rank++) {
        double bytes = rank_bytes(out->row, stack, plan, rank, micro);
        if (bytes > peak) largest = rank;
        peak = fmax(peak, bytes);
    }
    const PlanMemory *m = &plan->memory[largest];
    bool fits = peak <= (double)plan->limit_bytes;
    bool first = out->peak_bytes == 0, faster = first || plan->time.step_s < out->step_s,
         better = fits ? !out->fits || faster : !out->fits && faster;
    if (!better) return;
    out->fits = fits;
    out->step_s = plan->time.step_s;
    out->static_bytes = (double)(m->weights + m->copies + m->moments + m->gradients) -
                        saved_bytes(out->row, m);
    out->peak_bytes = peak;
    out->limit_bytes = (double)plan->limit_bytes;
    out->micro_batch = micro;
    out->recompute = recompute;
    out->virtual_stages = virtual_stages;
}

/* A layout that our trainer refuses is skipped with its sentence. */
static Status try_one(Arena *arena, const PublishedRow *r, const Cluster *cluster, int64_t micro,
                      PublishedRecompute recompute, ValidateRow *out)
{
    RunConfig config;
    Plan plan;
    const char *skip = NULL;
    SimStack stack = validate_stack(r, recompute);
    Status status = validate_config(arena, r, micro, recompute, &skip, &config);
    if (status == OK && skip) {
        out->skip = skip;
        return OK;
    }
    if (status == OK) {
        status = plan_make(&config, cluster,
                           &(PlanOptions){.jitter = -1, .balanced = true, .stack = stack}, &plan);
        if (status == OK) {
            keep_better(out, &stack, &plan, micro, recompute, r->layout.virtual_stages);
            plan_deinit(&plan);
        }
        run_config_deinit(&config);
    }
    if (status == ERR_ARG || status == ERR_REFUSED || status == ERR_UNSUPPORTED) {
        if (out->peak_bytes == 0) out->skip = arena_strdup(arena, status_message());
        return OK;
    }
    return status;
}

/* With each number of stages on a rank that divides the layers, where it is open. */
static Status try_stages(Arena *arena, const PublishedRow *r, const Cluster *cluster, int64_t micro,
                         PublishedRecompute recompute, ValidateRow *out)
{
    int64_t on_rank = r->model.layers / r->layout.pp;
    for (int64_t v = 1; v <= (r->open_stages ? min_i64(on_rank, MAX_OPEN_STAGES) : 1); v++) {
        PublishedRow row = *r;
        if (r->open_stages) row.layout.virtual_stages = v;
        if (on_rank % v == 0) TRY(try_one(arena, &row, cluster, micro, recompute, out));
    }
    return OK;
}

static Status try_all(Arena *arena, const PublishedRow *r, const Cluster *cluster, ValidateRow *out)
{
    bool open_micro = r->micro_batch == 0, open_recompute = r->recompute == RECOMPUTED_OPEN;
    int64_t data = r->devices / (r->layout.tp * r->layout.pp * r->layout.cp),
            most = max_i64(1, r->batch / data);
    for (int k = open_recompute ? RECOMPUTED_NONE : (int)r->recompute;
         k <= (open_recompute ? RECOMPUTED_FULL : (int)r->recompute); k++) {
        if (!open_micro)
            TRY(try_stages(arena, r, cluster, r->micro_batch, (PublishedRecompute)k, out));
        for (int64_t micro = 1; open_micro && micro <= min_i64(most, MAX_OPEN_MICRO); micro *= 2)
            if (most % micro == 0)
                TRY(try_stages(arena, r, cluster, micro, (PublishedRecompute)k, out));
    }
    if (out->peak_bytes > 0) out->skip = NULL;
    out->chose_micro = open_micro;
    out->chose_recompute = open_recompute;
    return OK;
}

static Status validate_row(Arena *arena, const PublishedRow *r, bool raw, ValidateRow *out)
{
    Cluster cluster;
    *out = (ValidateRow){.row = r, .kind = kind_of(r), .skip = r->skip};
    if (out->skip) return OK;
    Status status = published_cluster(r, &cluster);
    if (status == ERR_ARG || status == ERR_REFUSED) {
        out->skip = arena_strdup(arena, status_message());
        return OK;
    }
    TRY_AS(status, "%s", r->id);
    status = try_all(arena, r, &cluster, out);
    if (r->with_context)
        out->context_bytes = cluster.device.memory.reserved_bytes + fragments * out->peak_bytes;
    cluster_deinit(&cluster);
    TRY_AS(status, "%s", r->id);
    if (!raw) out->step_s *= validate_framework_factor(r->framework);
    if (!out->skip && r->step_s > 0) out->error = out->step_s / r->step_s - 1;
    return OK;
}

/* ---- summaries -------------------------------------------------------------------------- */

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double validate_median(double *values, int n)
{
    if (n == 0) return 0;
    qsort(values, (size_t)n, sizeof *values, ascending);
    return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

/* Ranks from 1; equal values share their mean. */
static void ranks_of(const double *values, int n, double *rank)
{
    for (int i = 0; i < n; i++) {
        int below = 0, equal = 0;
        for (int k = 0; k < n; k++) {
            below += values[k] < values[i];
            equal += values[k] == values[i];
        }
        rank[i] = below + (equal + 1) / 2.0;
    }
}

double validate_rank_correlation(const double *a, const double *b, int n)
{
    double *x = xcalloc((size_t)n + 1, sizeof *x), *y = xcalloc((size_t)n + 1, sizeof *y),
           mean = (n + 1) / 2.0, xy = 0, xx = 0, yy = 0;
    ranks_of(a, n, x);
    ranks_of(b, n, y);
    for (int i = 0; i < n; i++) {
        xy += (x[i] - mean) * (y[i] - mean);
        xx += (x[i] - mean) * (x[i] - mean);
        yy += (y[i] - mean) * (y[i] - mean);
    }
    free(x);
    free(y);
    return n > 1 && xx > 0 && yy > 0 ? xy / sqrt(xx * yy) : (double)NAN;
}

/* What does not fit has a time all the same. */
static bool has_error(const ValidateRow *r) { return !r->skip && r->row->step_s > 0; }

typedef bool Belongs(const ValidateRow *row, int which);
static bool is_kind(const ValidateRow *r, int kind) { return (int)r->kind == kind; }
static bool is_framework(const ValidateRow *r, int framework)
{
    return (int)r->row->framework == framework;
}

static ValidateGroup group_of(const ValidateResult *result, Belongs *belongs, int which)
{
    ValidateGroup g = {0};
    double *size = xcalloc((size_t)result->n + 1, sizeof *size),
           *error = xcalloc((size_t)result->n + 1, sizeof *error);
    for (int i = 0; i < result->n; i++) {
        const ValidateRow *r = &result->row[i];
        if (!has_error(r) || !belongs(r, which)) continue;
        error[g.n] = r->error;
        size[g.n++] = fabs(r->error);
        g.worst = fmax(g.worst, fabs(r->error));
    }
    g.median = validate_median(size, g.n);
    g.bias = validate_median(error, g.n);
    free(size);
    free(error);
    return g;
}

/* The grid to which row `first` belongs. */
static ValidateGrid grid_of(const ValidateResult *result, int first)
{
    ValidateGrid g = {.name = result->row[first].row->grid};
    double *measured = xcalloc((size_t)result->n, sizeof *measured),
           *predicted = xcalloc((size_t)result->n, sizeof *predicted);
    for (int i = first; i < result->n; i++) {
        const ValidateRow *r = &result->row[i];
        if (!has_error(r) || strcmp(r->row->grid, g.name) != 0) continue;
        /* batches differ inside a grid: time of a sequence */
        measured[g.n] = r->row->step_s / (double)r->row->batch;
        predicted[g.n++] = r->step_s / (double)r->row->batch;
    }
    g.correlation = validate_rank_correlation(measured, predicted, g.n);
    free(measured);
    free(predicted);
    return g;
}

static void summarise(Arena *arena, ValidateResult *result)
{
    result->grid = ARENA_ARRAY(arena, ValidateGrid, result->n + 1);
    for (int k = 0; k < ROW_KINDS; k++) result->kind[k] = group_of(result, is_kind, k);
    for (int k = 0; k < FRAMEWORKS; k++) result->framework[k] = group_of(result, is_framework, k);
    for (int i = 0; i < result->n; i++) {
        const ValidateRow *r = &result->row[i];
        bool known = !*r->row->grid || !has_error(r);
        result->n_skipped += r->skip != NULL;
        result->n_predicted += has_error(r);
        result->n_wrong_fits += !r->skip && r->fits && r->row->out_of_memory;
        result->n_wrong_refusals += !r->skip && !r->fits && !r->row->out_of_memory;
        for (int g = 0; g < result->n_grids && !known; g++)
            known = !strcmp(result->grid[g].name, r->row->grid);
        if (known) continue;
        ValidateGrid grid = grid_of(result, i);
        if (grid.n >= 3) result->grid[result->n_grids++] = grid;
    }
    validate_find_bars(result);
}

static Status add_rows(Arena *arena, const PublishedRows *rows, const ValidateOptions *options,
                       ValidateResult *out)
{
    for (int i = 0; i < rows->n; i++) {
        const PublishedRow *row = &rows->row[i];
        if (options->only && strncmp(row->id, options->only, strlen(options->only)) != 0) continue;
        TRY(validate_row(arena, row, options->raw, &out->row[out->n]));
        if (options->progress) options->progress(options->context, &out->row[out->n]);
        out->n++;
    }
    return OK;
}

Status validate_files(Arena *arena, const char *const *path, int n, const ValidateOptions *options,
                      ValidateResult *result)
{
    double begin = clock_s();
    PublishedRows *rows = ARENA_ARRAY(arena, PublishedRows, n);
    int n_rows = 0;
    for (int i = 0; i < n; i++) {
        TRY(published_load(arena, path[i], &rows[i]));
        n_rows += rows[i].n;
    }
    ValidateResult r = {.row = ARENA_ARRAY(arena, ValidateRow, n_rows + 1)};
    for (int i = 0; i < n; i++) TRY(add_rows(arena, &rows[i], options, &r));
    summarise(arena, &r);
    r.seconds = clock_s() - begin;
    *result = r;
    return OK;
}

Status validate_file(Arena *arena, const char *path, const ValidateOptions *options,
                     ValidateResult *result)
{
    return validate_files(arena, &path, 1, options, result);
}
