/* What a family's file sees. */
#ifndef MODEL_MODEL_INTERNAL_H
#define MODEL_MODEL_INTERNAL_H

#include "model/model.h"

/* State of one model_build. */
/* Pages of the keys and values of all layers with this chunk. */
typedef struct CachePool {
    int64_t chunk, pages;
} CachePool;

typedef struct ModelBuilder {
    Graph *g;
    const ModelConfig *config;
    ModelOptions o;
    ValueId ids, pos, targets, weights;
    ValueId rope_table;  /* one for all layers */
    ValueId router_loss; /* sum so far, or NO_VALUE */
    int layer;
    /* of the programs that decode, in the order of model_cache_chunks */
    CachePool pool[MODEL_MAX_POOLS];
    CachePages pages[MODEL_MAX_POOLS]; /* table and copy */
} ModelBuilder;

/* How checkpoints of the family call what all families have. */
typedef struct ModelNames {
    const char *layer;     /* in front of a layer's number */
    const char *embedding; /* of tokens */
    const char *positions; /* embedding of positions; NULL: the family has none */
    const char *norm;      /* the last one */
} ModelNames;
extern const ModelNames model_names_llama; /* what most do */

/* How GPT blocks are published (gpt.c). */
typedef struct GptForm {
    const char *attention_norm, *attention;
    const char
        *qkv; /* one matrix for q, k and v, below one another; NULL: ATTENTION.q_proj and so on */
    const char *attention_out, *mlp_norm, *up, *down;
} GptForm;

struct ModelDef {
    const char *model_type;
    const char *architecture;       /* for config.json; NULL: nobody else knows the family */
    const char *const *activations; /* what hidden_act may be, up to NULL */
    const char *norm_suffix;        /* norms are called NAME.norm_suffix */
    const ModelNames *names;
    const char *const (*keys)[2]; /* fields of config.json that have another name than Llama's, and
                                     that name, NULL: the family lacks it; up to NULL */
    bool in_out;                  /* matrices of products are stored as [in, out] */
    const GptForm *gpt;           /* of GPT blocks */
    int64_t ffn_ratio; /* of a feed-forward's width to the model's, where config.json does not say
                          the width; 0: it must */
    Status (*read)(ModelConfig *config,
                   const json_t *json); /* the family's own fields and layers */
    void (*write)(const ModelConfig *config,
                  json_t *json); /* the family's fields that json leaves open; or NULL */
    Status (*layer)(ModelBuilder *b, ValueId h, ValueId *out);
    bool rope_interleaved;
    double norm_eps,
        rope_theta; /* of a config.json that does not say: as transformers' class has it */
    int64_t max_positions;
};

/* ---- reading JSON (config.c) ------------------------------------------------------------ */

/* json[key] into *out; absent or null: *out stays. Refuses other types and values outside, naming
 * key. */
Status config_int(const json_t *json, const char *key, int64_t min, int64_t max, int64_t *out);
Status config_number(const json_t *json, const char *key, double min, double max, double *out);
Status config_bool(const json_t *json, const char *key,
                   bool *out); /* numbers count as truth values */
/* A list of n integers in [0, max], or absent (*found false). */
Status config_int_list(const json_t *json, const char *key, int64_t n, int64_t max, int64_t *out,
                       bool *found);

/* Sets json[key] where it is absent or null; takes the value. */
void config_complete(json_t *json, const char *key, json_t *value);

/* What the family's config.json calls a field that Llama's calls `usual`; NULL: it has none. */
const char *config_key(const ModelConfig *config, const char *usual);

/* ---- building (build.c) ----------------------------------------------------------------- */

typedef struct WeightInit {
    float deviation; /* of a normal distribution; 0: value everywhere */
    float value;
    int halves;        /* 2: the last axis holds two blocks that a layout cuts each by itself */
    bool halves_first; /* the first axis does */
} WeightInit;

/* A matrix [out, in] in the compute dtype; its master is f32. The name gets the layer's prefix when
 * b->layer >= 0: model.layers.{i}.NAME, or as the family has it. */
ValueId model_weight(ModelBuilder *b, const char *name, Shape shape, WeightInit init);
/* A vector or a matrix that stays f32 whatever the compute dtype: norms, routers. */
ValueId model_weight_f32(ModelBuilder *b, const char *name, Shape shape, WeightInit init,
                         bool decay);
WeightInit model_init(const ModelBuilder *b); /* normal(0, initializer_range) */
WeightInit model_init_residual(
    const ModelBuilder *b); /* the same over sqrt(2 layers): writes into the residual */
/* y = x w^T with the weight NAME.weight [out, in], or x w with one of [in, out] where the family
 * stores it so; plus NAME.bias, if products have one. init.halves: of out. */
Status model_linear(ModelBuilder *b, const char *name, ValueId x, int64_t out, Axis axis,
                    WeightInit init, ValueId *y);
/* The norm NAME.weight, or whatever the family's suffix is, and NAME.bias where norms have one. */
Status model_norm(ModelBuilder *b, const char *name, ValueId x, ValueId *y);
/* y = down(silu(gate x) * (up x)), weights PREFIX.gate_proj and so on. */
Status model_swiglu(ModelBuilder *b, const char *prefix, ValueId x, int64_t width, ValueId *y);
/* q, k, v products, positions as `step` wants, attention (cached when decoding), output product;
 * weights PREFIX.q_proj and so on. */
typedef Status (*QkStep)(ModelBuilder *b, ValueId *q, ValueId *k);
Status model_attention(ModelBuilder *b, const char *prefix, ValueId x, QkStep step, ValueId *y);
Status model_rotate(ModelBuilder *b, ValueId *q,
                    ValueId *k); /* a QkStep: rotary positions, nothing else */
/* Its parts. A product of x, seen as heads; what is seen as `heads` of them already; attention with
 * the output product NAME. */
Status model_project(ModelBuilder *b, const char *name, ValueId x, int64_t heads, Axis axis,
                     ValueId *y);
Status model_as_heads(ModelBuilder *b, ValueId x, int64_t heads, Axis axis, ValueId *y);
Status model_attend(ModelBuilder *b, const ValueId qkv[3], const char *name, ValueId *y);
/* Of the programs that decode (cache.c): the tables, and attention through the layer's pages. */
void model_cache_inputs(ModelBuilder *b);
Status model_attend_cached(ModelBuilder *b, const ValueId qkv[3], AttentionAttr attr, ValueId *o);

/* ---- GPT blocks (gpt.c) ----------------------------------------------------------------- */

Status model_gpt_layer(ModelBuilder *b, ValueId h, ValueId *out);
/* What the families of GPT blocks have in common, before they say what is different. */
void model_gpt_begin(ModelConfig *config);
/* Sets `activation` by hidden_act or what the family calls it. */
Status model_gpt_activation(ModelConfig *config, const json_t *json);
/* That heads share the width out. */
Status model_gpt_check_heads(const ModelConfig *config);

/* ---- experts (experts.c) ---------------------------------------------------------------- */

/* Where the tokens of a layer go: operands of expert_gather, grouped_linear and expert_combine. */
typedef struct Dispatch {
    ValueId score, offsets, source, place;
} Dispatch;
/* The router NAME.weight [E D] over x [B T D], in f32; its choices and scores, its losses, and the
 * bias that balances without one. */
Status model_route(ModelBuilder *b, const char *name, RouterScore kind, ValueId x, Dispatch *d);

/* Matrices [out in] that are published one by one, PREFIX.{e}.NAME, held as one state [E, n_names *
 * out, in] for products over all experts: of each expert the names in order, each a part. */
typedef struct ExpertMatrices {
    const char *prefix;
    const char *name[2];
    int n_names;
    int64_t out, in;
    Axis out_axis, in_axis;
    WeightInit init;
} ExpertMatrices;
ValueId model_expert_matrices(ModelBuilder *b, const ExpertMatrices *m);

#endif
