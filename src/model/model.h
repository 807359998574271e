/* model: families of models, their configurations, and the forward graph of each.
 *
 * What it is.   ModelConfig (a Hugging Face config.json, checked), presets, and model_build: the
 *               forward
 *               pass as a graph, for a loss, for logits, or for decoding with a cache.
 * Depends on.   base, tensor, graph, ops, pass, program; jansson
 * Owns.         A ModelConfig owns its JSON; the list of families and presets is read-only.
 * Invariants.   A family's file describes layers and names weights as published; it knows nothing
 *               of
 *               devices, gradients or layouts. Unknown keys of a config.json are kept and written
 *               back.
 * Use:
 *     ModelConfig config;
 *     TRY(model_config_preset("llama4-nano", &config));
 *     Graph *g;
 *     TRY(model_build(&config, (ModelOptions){.purpose = MODEL_LOSS, .batch = 4, .seq = 256,
 *                                             .dtype = DTYPE_BF16}, &g));
 *     ... pass_autodiff, ...
 */
#ifndef MODEL_MODEL_H
#define MODEL_MODEL_H

#include <jansson.h>

#include "graph/graph.h"
#include "ops/ops.h"

typedef struct ModelDef ModelDef;

/* What a layer is; filled by the family from config.json. */
typedef struct LayerConfig {
    bool moe;  /* experts instead of the dense feed-forward */
    bool rope; /* rotary positions; else none (Llama 4's NoPE) */
    /* attention stays within chunks of this many positions; 0: all of the document */
    int64_t chunk;
} LayerConfig;

typedef enum PositionKind {
    POSITIONS_ROTARY,
    POSITIONS_LEARNED, /* a vector for each, added to the token's */
    POSITIONS_ALIBI,   /* slopes of attention's scores */
} PositionKind;

typedef struct ModelConfig {
    const ModelDef *def;
    json_t *json; /* as read, with everything that we do not know */
    int64_t vocab, embed, n_layers, n_heads, n_kv_heads, head_dim;
    int64_t ffn_dense;  /* width of dense feed-forwards */
    int64_t ffn_expert; /* width of each expert and of the shared one */
    int64_t n_experts, n_experts_per_token;
    bool shared_expert;   /* one more expert, that every token meets; our key drover_shared_expert:
                             false leaves it out of Llama 4, which transformers cannot */
    int norms_per_layer;  /* of hidden_size weights each */
    bool layer_norm;      /* LayerNorm; else RMSNorm */
    bool norm_bias, bias; /* of norms; of products */
    bool gated;           /* feed-forwards have three matrices; else two and `activation` */
    ActivationKind activation;
    PositionKind positions;
    double alibi; /* AttentionAttr's */
    int64_t max_positions;
    double rope_theta, norm_eps, init_deviation;
    RopeScaling rope_scaling;
    bool tied; /* the head is the embedding */
    bool qk_norm;
    bool temperature_tuning;
    double temperature_scale, temperature_floor;
    double attention_scale;                         /* of q . k */
    double attention_softcap;                       /* of the scaled scores; 0: none */
    double router_softcap;                          /* of the router's logits; 0: none */
    double embedding_multiplier, output_multiplier; /* of the embedding's rows; of the logits */
    bool expert_bias;         /* routers choose with a bias that training moves (our key
                               drover_expert_bias) */
    LayerConfig *layer;       /* n_layers, heap */
    int64_t bos, eos[8], pad; /* -1: none */
    int n_eos;
    const char *weight_prefix; /* of names in checkpoints: "", or "language_model." beside a part
                                  for images */
} ModelConfig;

/* From parsed JSON (borrowed; deep-copied), a config.json, or a preset. Refusals name the key:
 * ERR_FORMAT for a value of the wrong type or range, ERR_REFUSED for values that cannot go
 * together, ERR_UNSUPPORTED. */
Status model_config_from_json(const json_t *json, ModelConfig *config);
Status model_config_load(const char *path, ModelConfig *config);
Status model_config_preset(const char *name, ModelConfig *config);
void model_config_deinit(ModelConfig *config);
/* The field of a config.json with this name, else the known one nearest to it, else NULL. */
const char *model_config_key(const char *name);
/* The config.json to write: as read, with what has changed, the type that the weights are stored
 * as, and in full where it left something to the reader: what one program assumes another may not;
 * without what says that weights are quantised. Caller frees it. */
char *model_config_text(const ModelConfig *config, DType stored);
/* The generation_config.json to write: special ids, and the sampling that Llama models are
 * published with (temperature 0.6, top_p 0.9). Caller frees it. */
char *model_generation_text(const ModelConfig *config);
/* The part of a config.json that describes the language model: its text_config, or all of it. */
const json_t *model_config_text_part(const json_t *json);
/* After a tokenizer is known: vocabulary and special ids. */
Status model_config_set_vocab(ModelConfig *config, int64_t vocab, int64_t bos, int64_t eos,
                              int64_t pad);

typedef struct ModelPreset {
    const char *name;
    const char *about; /* one sentence */
    const char *json;
    bool estimate; /* dimensions are our estimate, not published */
} ModelPreset;
const ModelPreset *model_preset(int index); /* NULL past the end */

typedef struct ModelCounts {
    int64_t total;  /* all weights */
    int64_t active; /* those a token meets: all but the experts it does not choose */
    int64_t matmul; /* active weights that are multiplied: no embedding (unless tied: the head), no
                       norms */
} ModelCounts;
ModelCounts model_counts(const ModelConfig *config);
/* Model FLOPs of training on one token at this sequence length: 6 per multiplied weight, and causal
 * attention at 6 x layers x heads x head_dim x visible keys (chunks counted). */
double model_train_flop_per_token(const ModelConfig *config, int64_t seq);

typedef enum ModelPurpose {
    MODEL_LOSS,    /* inputs ids targets pos [B T] i32, weights [B T] f32; outputs loss, nll */
    MODEL_LOGITS,  /* inputs ids pos; output logits [B T V] f32 */
    MODEL_DECODE,  /* inputs ids pos [B T] (pos < 0: nothing there); states kv caches; output
                    logits */
    MODEL_PREFILL, /* as DECODE without the head: only fills the caches; no output but `done` */
} ModelPurpose;

typedef enum ModelBalance { BALANCE_NONE, BALANCE_AUX, BALANCE_BIAS } ModelBalance;

enum { MODEL_MAX_POOLS = 4, MODEL_PAGE_TOKENS = 16 };

typedef struct ModelOptions {
    ModelPurpose purpose;
    int64_t batch, seq;
    int64_t cache;       /* positions of a sequence whose keys and values are kept */
    int64_t page_tokens; /* positions of a page (op_cache_append); 0: MODEL_PAGE_TOKENS */
    /* pages of the layers of each of model_cache_chunks; 0: as many as all positions of all
     * sequences take */
    int64_t pool_pages[MODEL_MAX_POOLS];
    DType dtype;    /* of activations and products: f32 or bf16 */
    bool no_master; /* weights in dtype only, no f32 masters: inference */
    int64_t share; /* ranks that share the heads: where there are fewer key heads, each is repeated;
                      0: one */
    bool library_attention; /* AttentionAttr.library */
    bool training;          /* counts expert loads, adds the router's losses to the loss */
    ModelBalance balance;
    float aux_loss, router_z_loss, z_loss; /* coefficients */
} ModelOptions;

/* How ranks share a model. */
typedef struct ModelCut {
    int64_t tp, ep;
    bool fold_experts;  /* whole ones over both */
    const char *before; /* how these settings are written: "parallel." or "--" */
} ModelCut;
/* That tp ranks can share its heads, feed-forward columns and vocabulary, and ep ranks its experts;
 * refused with what would do. Several ranks may have the same key head (ModelOptions.share). */
Status model_check_divides(const ModelConfig *config, const ModelCut *cut);

/* The chunks of its layers, each once: layers of the same one share a table of pages, as they read
 * the same positions. The number of them. */
int model_cache_chunks(const ModelConfig *config, int64_t chunk[MODEL_MAX_POOLS]);
/* Inputs of the programs that decode, for the layers of a chunk: "pages" [batch W] i32, W pages for
 * `cache` positions, and "copy" [batch] (op_cache_append); with chunks "pages.8192", "copy.8192".
 */
const char *model_cache_input(Arena *arena, const char *which, int64_t chunk);

/* The forward graph, siblings fused. Every weight is a state by its published name. */
Status model_build(const ModelConfig *config, ModelOptions options, Graph **graph);

#endif
