/* Any bytes as a config.json: refused, or a model whose counts are what its fields say, and which
 * comes out of what is written of it as it went in. */
#include <stdlib.h>
#include <string.h>

#include "model/model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const ModelConfig *c)
{
    ModelCounts n = model_counts(c);
    CHECK(c->def && c->vocab > 0 && c->embed > 0 && c->n_layers > 0 && c->head_dim > 0);
    CHECK(c->n_kv_heads > 0 && c->n_heads % c->n_kv_heads == 0);
    CHECK(n.total >= n.active && n.active >= n.matmul / 2);
    CHECK(model_train_flop_per_token(c, 1024) > 0);
}

static void write_and_read(const ModelConfig *c)
{
    ModelConfig again;
    char *text = model_config_text(c, DTYPE_BF16);
    json_t *json = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    CHECK(json);
    CHECK(model_config_from_json(json, &again) == OK);
    CHECK(model_counts(&again).total == model_counts(c).total && again.positions == c->positions);
    CHECK(!memcmp(again.layer, c->layer, sizeof *c->layer * (size_t)c->n_layers));
    model_config_deinit(&again);
    json_decref(json);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    ModelConfig c;
    json_t *json = json_loadb((const char *)data, size, JSON_REJECT_DUPLICATES, NULL);
    if (json && model_config_from_json(json, &c) == OK) {
        check(&c);
        write_and_read(&c);
        model_config_deinit(&c);
    }
    json_decref(json);
    return 0;
}
