/* The forward graph: embedding, the family's layers, norm, head. And the pieces families share. */
#include "model/model_internal.h"

#include <math.h>
#include <string.h>

#include "pass/pass.h"

const ModelNames model_names_llama = {
    .layer = "model.layers", .embedding = "model.embed_tokens", .norm = "model.norm"};

/* ---- weights ---------------------------------------------------------------------------- */

static const char *full_name(ModelBuilder *b, const char *name)
{
    if (b->layer < 0) return arena_printf(&b->g->arena, "%s", name);
    return arena_printf(&b->g->arena, "%s.%d.%s", b->config->def->names->layer, b->layer, name);
}

static ValueId make_state(ModelBuilder *b, const char *name, DType dtype, Shape shape,
                          StateRole role, WeightInit init)
{
    ValueId w = graph_state(b->g, name, dtype, shape, role);
    Value *v = graph_value(b->g, w);
    v->part[0].init_deviation = init.deviation;
    v->part[0].init_value = init.value;
    v->part[0].halves = init.halves;
    v->part[0].halves_first = init.halves_first;
    return w;
}

ValueId model_weight_f32(ModelBuilder *b, const char *name, Shape shape, WeightInit init,
                         bool decay)
{
    const char *full = full_name(b, name);
    ValueId w = graph_find_state(b->g, full);
    if (value_ok(w)) return w;
    w = make_state(b, full, DTYPE_F32, shape, STATE_PARAM, init);
    graph_value(b->g, w)->decay = decay;
    return w;
}

ValueId model_weight(ModelBuilder *b, const char *name, Shape shape, WeightInit init)
{
    const char *full = full_name(b, name);
    if (b->o.dtype == DTYPE_F32) return model_weight_f32(b, name, shape, init, true);
    if (b->o.no_master) {
        ValueId found = graph_find_state(b->g, full);
        return value_ok(found) ? found : make_state(b, full, b->o.dtype, shape, STATE_PARAM, init);
    }
    const char *copy = arena_printf(&b->g->arena, "%s.%s", full, dtype_name(b->o.dtype));
    ValueId w = graph_find_state(b->g, copy);
    if (value_ok(w)) return w;
    ValueId master = model_weight_f32(b, name, shape, init, true);
    w = graph_state(b->g, copy, b->o.dtype, shape, STATE_COPY);
    graph_value(b->g, w)->master = master;
    graph_value(b->g, w)->part[0].halves = init.halves;
    graph_value(b->g, w)->part[0].halves_first = init.halves_first;
    return w;
}

WeightInit model_init(const ModelBuilder *b)
{
    return (WeightInit){.deviation = (float)b->config->init_deviation};
}

WeightInit model_init_residual(const ModelBuilder *b)
{
    double deviation = b->config->init_deviation / sqrt(2.0 * (double)b->config->n_layers);
    return (WeightInit){.deviation = (float)deviation};
}

/* ---- pieces ----------------------------------------------------------------------------- */

/* NOLINTNEXTLINE(readability-function-size): what a product is made of */
Status model_linear(ModelBuilder *b, const char *name, ValueId x, int64_t out, Axis axis,
                    WeightInit init, ValueId *y)
{
    const Shape *s = &graph_value(b->g, x)->shape;
    bool in_out = b->config->def->in_out;
    int64_t dim[2] = {out, s->dim[s->rank - 1]};
    Axis axes[2] = {axis, s->axis[s->rank - 1]};
    init.halves_first = !in_out;
    Shape shape = in_out ? shape_make(2, (int64_t[]){dim[1], dim[0]}, (Axis[]){axes[1], axes[0]})
                         : shape_make(2, dim, axes);
    ValueId w = model_weight(b, arena_printf(&b->g->arena, "%s.weight", name), shape, init);
    TRY(in_out ? op_linear_dx(b->g, x, w, y) : op_linear(b->g, x, w, y));
    if (!b->config->bias) return OK;
    ValueId bias = model_weight_f32(b, arena_printf(&b->g->arena, "%s.bias", name),
                                    shape_make(1, &out, &axis), (WeightInit){.halves = init.halves},
                                    false);
    return op_add_bias(b->g, *y, bias, y);
}

Status model_norm(ModelBuilder *b, const char *name, ValueId x, ValueId *y)
{
    Shape shape = shape_make(1, (int64_t[]){b->config->embed}, (Axis[]){AXIS_EMBED});
    const ModelConfig *c = b->config;
    float eps = (float)c->norm_eps;
    ValueId bias = NO_VALUE;
    ValueId w = model_weight_f32(b, arena_printf(&b->g->arena, "%s.%s", name, c->def->norm_suffix),
                                 shape, (WeightInit){.value = 1}, false);
    if (!c->layer_norm) return op_rmsnorm(b->g, x, w, eps, y);
    if (c->norm_bias)
        bias = model_weight_f32(b, arena_printf(&b->g->arena, "%s.bias", name), shape,
                                (WeightInit){0}, false);
    return op_layernorm(b->g, x, w, bias, eps, y);
}

Status model_swiglu(ModelBuilder *b, const char *prefix, ValueId x, int64_t width, ValueId *y)
{
    Arena *arena = &b->g->arena;
    ValueId gate, up, act;
    graph_set_scope(b->g, prefix);
    TRY(model_linear(b, arena_printf(arena, "%s.gate_proj", prefix), x, width, AXIS_FFN,
                     model_init(b), &gate));
    TRY(model_linear(b, arena_printf(arena, "%s.up_proj", prefix), x, width, AXIS_FFN,
                     model_init(b), &up));
    TRY(op_swiglu(b->g, gate, up, &act));
    return model_linear(b, arena_printf(arena, "%s.down_proj", prefix), act, b->config->embed,
                        AXIS_EMBED, model_init_residual(b), y);
}

Status model_rotate(ModelBuilder *b, ValueId *q, ValueId *k)
{
    bool interleaved = b->config->def->rope_interleaved;
    TRY(op_rope(b->g, *q, b->rope_table, interleaved, q));
    return op_rope(b->g, *k, b->rope_table, interleaved, k);
}

static Shape token_shape(const ModelBuilder *b, int64_t width, Axis axis)
{
    return shape_make(3, (int64_t[]){b->o.batch, b->o.seq, width},
                      (Axis[]){AXIS_BATCH, AXIS_SEQ, axis});
}

static Shape heads_shape(const ModelBuilder *b, int64_t heads, Axis axis)
{
    return shape_make(4, (int64_t[]){b->o.batch, b->o.seq, heads, b->config->head_dim},
                      (Axis[]){AXIS_BATCH, AXIS_SEQ, axis, AXIS_HEAD_DIM});
}

static bool cached(const ModelBuilder *b)
{
    return b->o.purpose == MODEL_DECODE || b->o.purpose == MODEL_PREFILL;
}

/* So that as many ranks as share the heads have a key head each. */
static int64_t key_copies(const ModelBuilder *b)
{
    int64_t heads = b->config->n_kv_heads, share = b->o.share;
    return share > heads && share % heads == 0 ? share / heads : 1;
}

/* Key heads that are repeated are not cut: all ranks make all of them. */
static Axis key_axis(const ModelBuilder *b) { return key_copies(b) > 1 ? AXIS_ANY : AXIS_KV_HEADS; }

static Status attend(ModelBuilder *b, ValueId q, ValueId k, ValueId v, ValueId *o)
{
    const ModelConfig *c = b->config;
    AttentionAttr attr = {.scale = (float)c->attention_scale,
                          .softcap = (float)c->attention_softcap,
                          .alibi = c->positions == POSITIONS_ALIBI ? (float)c->alibi : 0,
                          .chunk = c->layer[b->layer].chunk,
                          .library = b->o.library_attention};
    if (key_copies(b) > 1) {
        TRY(op_repeat_heads(b->g, k, key_copies(b), &k));
        TRY(op_repeat_heads(b->g, v, key_copies(b), &v));
    }
    if (cached(b)) return model_attend_cached(b, (ValueId[]){q, k, v}, attr, o);
    return op_attention(b->g, q, k, v, b->pos, attr, o);
}

Status model_as_heads(ModelBuilder *b, ValueId x, int64_t heads, Axis axis, ValueId *y)
{
    return op_reshape(b->g, x, heads_shape(b, heads, axis), y);
}

Status model_project(ModelBuilder *b, const char *name, ValueId x, int64_t heads, Axis axis,
                     ValueId *y)
{
    TRY(model_linear(b, name, x, heads * b->config->head_dim, axis, model_init(b), y));
    return model_as_heads(b, *y, heads, axis, y);
}

Status model_attend(ModelBuilder *b, const ValueId qkv[3], const char *name, ValueId *y)
{
    const ModelConfig *c = b->config;
    ValueId o;
    TRY(attend(b, qkv[0], qkv[1], qkv[2], &o));
    TRY(op_reshape(b->g, o, token_shape(b, c->n_heads * c->head_dim, AXIS_HEADS), &o));
    return model_linear(b, name, o, c->embed, AXIS_EMBED, model_init_residual(b), y);
}

Status model_attention(ModelBuilder *b, const char *prefix, ValueId x, QkStep step, ValueId *y)
{
    const ModelConfig *c = b->config;
    Arena *arena = &b->g->arena;
    static const char *const names[] = {"q_proj", "k_proj", "v_proj"};
    ValueId qkv[3];
    graph_set_scope(b->g, prefix);
    for (int i = 0; i < 3; i++)
        TRY(model_project(b, arena_printf(arena, "%s.%s", prefix, names[i]), x,
                          i ? c->n_kv_heads : c->n_heads, i ? key_axis(b) : AXIS_HEADS, &qkv[i]));
    if (step) TRY(step(b, &qkv[0], &qkv[1]));
    return model_attend(b, qkv, arena_printf(arena, "%s.o_proj", prefix), y);
}

/* ---- the whole -------------------------------------------------------------------------- */

static ValueId embedding(ModelBuilder *b)
{
    const ModelConfig *c = b->config;
    const char *name = arena_printf(&b->g->arena, "%s.weight", c->def->names->embedding);
    Shape shape = shape_make(2, (int64_t[]){c->vocab, c->embed}, (Axis[]){AXIS_VOCAB, AXIS_EMBED});
    /* untied, the look-up reads the master: it needs no working copy; tied, the head's copy serves
     * both */
    if (c->tied || b->o.no_master) return model_weight(b, name, shape, model_init(b));
    return model_weight_f32(b, name, shape, model_init(b), true);
}

/* h += the vector of each token's position in its document. Nothing multiplies with them, so they
 * need no working copy. */
static Status add_positions(ModelBuilder *b, ValueId *h)
{
    const ModelConfig *c = b->config;
    const char *name = arena_printf(&b->g->arena, "%s.weight", c->def->names->positions);
    Shape shape = shape_make(2, (int64_t[]){c->max_positions, c->embed},
                             (Axis[]){AXIS_ANY, AXIS_EMBED});
    ValueId w = b->o.no_master ? model_weight(b, name, shape, model_init(b))
                               : model_weight_f32(b, name, shape, model_init(b), true),
            p;
    TRY(op_embed(b->g, b->pos, w, b->o.dtype, &p));
    return op_add(b->g, *h, p, h);
}

static ValueId head(ModelBuilder *b)
{
    const ModelConfig *c = b->config;
    if (c->tied) return embedding(b);
    Shape shape = shape_make(2, (int64_t[]){c->vocab, c->embed}, (Axis[]){AXIS_VOCAB, AXIS_EMBED});
    return model_weight(b, "lm_head.weight", shape, model_init(b));
}

static void make_inputs(ModelBuilder *b)
{
    Shape tokens = shape_make(2, (int64_t[]){b->o.batch, b->o.seq}, (Axis[]){AXIS_BATCH, AXIS_SEQ});
    b->ids = graph_input(b->g, "ids", DTYPE_I32, tokens);
    b->pos = graph_input(b->g, "pos", DTYPE_I32, tokens);
    if (cached(b)) model_cache_inputs(b);
    if (b->o.purpose != MODEL_LOSS) return;
    b->targets = graph_input(b->g, "targets", DTYPE_I32, tokens);
    b->weights = graph_input(b->g, "weights", DTYPE_F32, tokens);
}

static Status make_loss(ModelBuilder *b, ValueId h)
{
    ValueId loss, nll;
    graph_set_scope(b->g, "loss");
    TRY(op_linear_cross_entropy(b->g, h, head(b), b->targets, b->weights, b->o.z_loss, &loss,
                                &nll));
    graph_output(b->g, "cross_entropy", loss);
    if (value_ok(b->router_loss)) TRY(op_add(b->g, loss, b->router_loss, &loss));
    graph_output(b->g, "loss", loss);
    graph_output(b->g, "nll", nll);
    return OK;
}

static Status make_logits(ModelBuilder *b, ValueId h)
{
    ValueId logits;
    graph_set_scope(b->g, "lm_head");
    TRY(op_linear_as(b->g, h, head(b), DTYPE_F32, &logits));
    graph_output(b->g, "logits", logits);
    return OK;
}

static Status make_layers(ModelBuilder *b, ValueId *h)
{
    const ModelConfig *c = b->config;
    for (b->layer = 0; b->layer < c->n_layers; b->layer++) {
        graph_set_layer(b->g, b->layer);
        TRY(c->def->layer(b, *h, h));
    }
    b->layer = -1;
    graph_set_layer(b->g, -1);
    return OK;
}

static Status build(ModelBuilder *b)
{
    const ModelConfig *c = b->config;
    ValueId h;
    make_inputs(b);
    graph_set_scope(b->g, "embed");
    TRY(op_embed(b->g, b->ids, embedding(b), b->o.dtype, &h));
    if (c->embedding_multiplier != 1) TRY(op_scale(b->g, h, (float)c->embedding_multiplier, &h));
    if (c->positions == POSITIONS_LEARNED) TRY(add_positions(b, &h));
    if (c->positions == POSITIONS_ROTARY)
        TRY(op_rope_table(b->g, b->pos, c->head_dim, c->rope_theta, c->rope_scaling,
                          &b->rope_table));
    TRY(make_layers(b, &h));
    if (b->o.purpose == MODEL_PREFILL) {
        graph_output(b->g, "done", h);
        return OK;
    }
    graph_set_scope(b->g, "norm");
    TRY(model_norm(b, c->def->names->norm, h, &h));
    /* before the head, not behind it: the loss never holds all logits, and so both see the same
     * ones */
    if (c->output_multiplier != 1) TRY(op_scale(b->g, h, (float)c->output_multiplier, &h));
    return b->o.purpose == MODEL_LOSS ? make_loss(b, h) : make_logits(b, h);
}

/* Positions that a graph like this may see. */
static int64_t most_positions(const ModelOptions *o)
{
    bool cache = o->purpose == MODEL_DECODE || o->purpose == MODEL_PREFILL;
    return cache ? o->cache : o->seq;
}

Status model_build(const ModelConfig *config, ModelOptions options, Graph **graph)
{
    static const char *const names[] = {"loss", "logits", "decode", "prefill"};
    if (options.batch < 1 || options.seq < 1)
        return fail(ERR_ARG, "a batch of %lld sequences of %lld tokens", (long long)options.batch,
                    (long long)options.seq);
    int64_t most = most_positions(&options);
    if (config->positions == POSITIONS_LEARNED && most > config->max_positions)
        return fail(ERR_REFUSED,
                    "the model has learned %lld positions, but sequences of %lld are wanted; "
                    "shorter ones fit, or a model with more",
                    (long long)config->max_positions, (long long)most);
    ModelBuilder b = {
        .g = graph_create(names[options.purpose]), .config = config, .o = options, .layer = -1};
    Status status = build(&b);
    graph_set_scope(b.g, NULL);
    if (status == OK) status = pass_prune(&b.g);
    if (status == OK) status = pass_fuse_siblings(&b.g);
    if (status != OK) {
        graph_destroy(b.g);
        return status;
    }
    *graph = b.g;
    return OK;
}
