/* The largest model of a shape that a cluster trains in so many days, each weight with as many
 * tokens. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/model.h"
#include "outlook/outlook_internal.h"

enum { RUNGS = 97, MIDDLE = 48, STEPS = 8, MAX_CHANGES = 8, HEADS = 8, ROUND_FFN = 256 };

/* ---- a shape in another size ------------------------------------------------------------ */

/* To a multiple of `unit`, at least one. */
static int64_t scaled(int64_t n, double factor, int64_t unit)
{
    return max_i64(1, llround((double)n * factor / (double)unit)) * unit;
}

/* Layers stay what a pipeline shares out well, and whole periods of different layers. */
static int64_t layers_unit(int64_t layers)
{
    int64_t unit = 1;
    while (unit < 8 && layers % (2 * unit) == 0) unit *= 2;
    return unit;
}

/* What families call the same: Llama and Grok, GPT-2, MPT. */
static const char *const widths[] = {"hidden_size", "n_embd", "d_model"};
static const char *const heads_keys[] = {"num_attention_heads", "n_head", "n_heads"};
static const char *const layers_keys[] = {"num_hidden_layers", "n_layer", "n_layers"};
static const char *const ffn_keys[] = {"intermediate_size", "intermediate_size_mlp", "n_inner"};
static const char *const kv_keys[] = {"num_key_value_heads", "", ""};
enum { KEYS = 3 };

typedef struct Changes {
    Arena *arena;
    const json_t *json;
    const char **setting;
    int n;
} Changes;

/* Those of the keys that the model's config has as numbers. */
static void change(Changes *c, const char *const keys[KEYS], int64_t value)
{
    for (int i = 0; i < KEYS; i++)
        if (json_is_integer(json_object_get(c->json, keys[i])))
            c->setting[c->n++] = arena_printf(c->arena, "model.%s=%lld", keys[i], (long long)value);
}

static bool has_width(const json_t *json)
{
    for (int i = 0; i < KEYS; i++)
        if (json_is_integer(json_object_get(json, widths[i]))) return true;
    return false;
}

/* Width, heads, feed-forwards and layers grow alike; head_dim, key heads, experts and vocabulary
 * stay. */
static int scale_model(Arena *arena, const ModelConfig *m, double factor, const char **settings)
{
    Changes c = {arena, model_config_text_part(m->json), settings, 0};
    int64_t unit = m->n_heads % HEADS == 0 ? HEADS : 1;
    if (m->n_kv_heads < m->n_heads && m->n_kv_heads > unit) unit = m->n_kv_heads;
    int64_t heads = scaled(m->n_heads, factor, unit);
    double width = (double)heads / (double)m->n_heads; /* as heads come out */
    change(&c, heads_keys, heads);
    change(&c, widths, llround((double)m->embed * width));
    change(&c, layers_keys, scaled(m->n_layers, factor, layers_unit(m->n_layers)));
    if (m->n_kv_heads == m->n_heads) change(&c, kv_keys, heads);
    for (int i = 0; i < KEYS; i++) {
        const char *const key[KEYS] = {ffn_keys[i], "", ""};
        int64_t now = json_integer_value(json_object_get(c.json, ffn_keys[i]));
        if (now > 0) change(&c, key, scaled(now, width, ROUND_FFN));
    }
    return c.n;
}

/* ---- all sizes -------------------------------------------------------------------------- */

typedef struct Largest {
    Ladder ladder; /* the largest model is the lowest rung */
    const Question *q;
    const ConfigSource *source;
    const ModelConfig *model;
    double per_weight;
    Arena *arena;
    Status status; /* of what is no refusal */
    LargestAnswer best;
    int best_at;
} Largest;

static double factor_of(int at) { return pow(2, (double)(MIDDLE - at) / STEPS); }

static Status load(const Largest *l, double factor, RunConfig *config)
{
    const ConfigSource *s = l->source;
    const char **settings = ARENA_ARRAY(l->arena, const char *, s->n + MAX_CHANGES);
    memcpy(settings, s->settings, (size_t)s->n * sizeof *settings);
    int n = scale_model(l->arena, l->model, factor, settings + s->n);
    return run_config_load(s->path, settings, s->n + n, config);
}

/* In *out what the size takes; ERR_REFUSED where it does not fit. */
static Status try_size(Largest *l, double factor, LargestAnswer *out)
{
    double flop, active;
    RunConfig *config = ARENA_NEW(l->arena, RunConfig);
    TRY(load(l, factor, config));
    Status status = outlook_flop_per_token(config, &flop, &active);
    *out = (LargestAnswer){.config = config, .tokens = l->per_weight * active};
    if (status == OK)
        status = outlook_find(l->q, config, cluster_devices(l->q->cluster), l->q->max_batch,
                              out->tokens, &out->answer);
    if (status != OK) run_config_deinit(config);
    return status;
}

void outlook_largest_deinit(LargestAnswer *a)
{
    outlook_answer_destroy(a->answer);
    if (a->config) run_config_deinit(a->config);
    *a = (LargestAnswer){0};
}

static bool small_enough(Ladder *ladder, int at)
{
    Largest *l = (Largest *)(void *)ladder;
    LargestAnswer a = {0};
    Status status = try_size(l, factor_of(at), &a);
    if (status != OK) {
        log_info("%.3g times the width: %s", factor_of(at), status_message());
        if (status != ERR_REFUSED && l->status == OK) l->status = status;
        return l->status != OK; /* ends the climb */
    }
    double days = outlook_days(&a.answer->outlook);
    char weights[32];
    log_info("%s weights: %.4g days", format_count(a.answer->outlook.plan.weights, weights), days);
    const FleetReport *f = &a.answer->outlook.fleet;
    bool priced = a.answer->outlook.has_fleet && f->has_time && l->q->max_usd > 0;
    bool good = days <= l->q->days && (!priced || f->run_usd.central <= l->q->max_usd),
         keep = good && (l->best_at < 0 || at < l->best_at);
    if (keep) {
        LargestAnswer drop = l->best;
        l->best = a;
        l->best_at = at;
        a = drop;
    }
    outlook_largest_deinit(&a);
    return good;
}

/* With C FLOP, 6 of them for each active weight and token: C = 6 w (t w). */
static int guess(const Largest *l)
{
    double flop, active, devices = (double)cluster_devices(l->q->cluster),
                         c = devices * outlook_guess_flop_per_s(l->q->cluster) * l->q->days * 86400;
    if (outlook_flop_per_token(l->q->config, &flop, &active) != OK) return MIDDLE;
    double wanted = sqrt(c / (6 * l->per_weight)), factor = cbrt(wanted / active);
    return MIDDLE - (int)lround(STEPS * log2(factor));
}

Status outlook_largest(Arena *arena, const Question *q, const ConfigSource *source,
                       double tokens_per_weight, LargestAnswer *out)
{
    ModelConfig model;
    TRY(train_expect_model(q->config, &model));
    Largest l = {.ladder = {.n = RUNGS, .good = small_enough},
                 .q = q,
                 .source = source,
                 .model = &model,
                 .per_weight = tokens_per_weight,
                 .arena = arena,
                 .best_at = -1};
    Status status = OK;
    if (!has_width(model_config_text_part(model.json)))
        status = fail(ERR_UNSUPPORTED, "--largest scales models by their hidden_size, n_embd or "
                                       "d_model; this one's config.json has none of them");
    if (status == OK) {
        int at = outlook_climb(&l.ladder, guess(&l));
        status = l.status;
        if (status == OK && at < 0)
            status = fail(ERR_REFUSED,
                          "no model of this shape, down to a %.0f-th of its width, trains on %lld "
                          "devices in %.4g days with %.4g tokens a weight%s; take more --days",
                          1 / factor_of(RUNGS - 1), (long long)cluster_devices(q->cluster), q->days,
                          tokens_per_weight, q->max_usd > 0 ? " for that money" : "");
    }
    if (status == OK)
        *out = l.best;
    else
        outlook_largest_deinit(&l.best);
    model_config_deinit(&model);
    return status;
}
