/* What a family's file sees. */
#ifndef MODEL_MODEL_INTERNAL_H
#define MODEL_MODEL_INTERNAL_H

#include "model/model.h"

/* State of one model_build. */
typedef struct ModelBuilder {
    Graph *g;
    const ModelConfig *config;
    ModelOptions o;
    ValueId ids, pos, targets, weights;
    ValueId rope_table;  /* one for all layers */
    ValueId router_loss; /* sum so far, or NO_VALUE */
    int layer;
} ModelBuilder;

struct ModelDef {
    const char *model_type;
    const char *architecture;       /* for config.json */
    const char *const *activations; /* what hidden_act may be, up to NULL */
    const char *norm_suffix;        /* norms are called NAME.norm_suffix */
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

/* ---- building (build.c) ----------------------------------------------------------------- */

typedef struct WeightInit {
    float deviation; /* of a normal distribution; 0: value everywhere */
    float value;
    int halves; /* 2: the last axis holds two blocks that a layout cuts each by itself */
} WeightInit;

/* A matrix [out, in] in the compute dtype; its master is f32. The name gets the layer's prefix when
 * b->layer >= 0: model.layers.{i}.NAME. */
ValueId model_weight(ModelBuilder *b, const char *name, Shape shape, WeightInit init);
/* A vector or a matrix that stays f32 whatever the compute dtype: norms, routers. */
ValueId model_weight_f32(ModelBuilder *b, const char *name, Shape shape, WeightInit init,
                         bool decay);
WeightInit model_init(const ModelBuilder *b); /* normal(0, initializer_range) */
WeightInit model_init_residual(
    const ModelBuilder *b); /* the same over sqrt(2 layers): writes into the residual */
/* y = x w^T with the weight NAME.weight [out, in]. */
Status model_linear(ModelBuilder *b, const char *name, ValueId x, int64_t out, Axis axis,
                    WeightInit init, ValueId *y);
/* The norm NAME.weight, or whatever the family's suffix is. */
Status model_rmsnorm(ModelBuilder *b, const char *name, ValueId x, ValueId *y);
/* y = down(silu(gate x) * (up x)), weights PREFIX.gate_proj and so on. */
Status model_swiglu(ModelBuilder *b, const char *prefix, ValueId x, int64_t width, ValueId *y);
/* q, k, v products, positions as `step` wants, attention (cached when decoding), output product;
 * weights PREFIX.q_proj and so on. */
typedef Status (*QkStep)(ModelBuilder *b, ValueId *q, ValueId *k);
Status model_attention(ModelBuilder *b, const char *prefix, ValueId x, QkStep step, ValueId *y);
Status model_rotate(ModelBuilder *b, ValueId *q,
                    ValueId *k); /* a QkStep: rotary positions, nothing else */

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
