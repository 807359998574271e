/* How many weights a model has and what training on a token costs (models.md section 6). */
#include "model/model_internal.h"

ModelCounts model_counts(const ModelConfig *c)
{
    int64_t q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim, d = c->embed;
    int64_t embedding = c->vocab * d, norm = c->norm_bias ? 2 * d : d;
    int64_t positions = c->positions == POSITIONS_LEARNED ? c->max_positions * d : 0;
    ModelCounts n = {.total = embedding * (c->tied ? 1 : 2) + positions + norm,
                     .matmul = embedding};
    n.active = n.total;
    for (int64_t i = 0; i < c->n_layers; i++) {
        int64_t attention = 2 * d * q + 2 * d * kv, norms = c->norms_per_layer * norm,
                ffn = (c->gated ? 3 : 2) * d * c->ffn_dense, idle = 0;
        int64_t biases = c->bias ? q + 2 * kv + d + c->ffn_dense + d : 0; /* of GPT blocks */
        if (c->layer[i].moe) {
            int64_t expert = 3 * d * c->ffn_expert;
            ffn = d * c->n_experts + expert * (c->shared_expert + c->n_experts_per_token);
            idle = expert * (c->n_experts - c->n_experts_per_token);
        }
        n.matmul += attention + ffn;
        n.active += attention + norms + biases + ffn;
        n.total += attention + norms + biases + ffn + idle;
    }
    return n;
}

double model_train_flop_per_token(const ModelConfig *c, int64_t seq)
{
    double flop = 6.0 * (double)model_counts(c).matmul;
    for (int64_t i = 0; i < c->n_layers; i++) {
        int64_t span = c->layer[i].chunk > 0 && c->layer[i].chunk < seq ? c->layer[i].chunk : seq;
        flop += 6.0 * (double)(c->n_heads * c->head_dim) * (double)span;
    }
    return flop;
}
