/* generation_config.json: how a model is sampled, and which tokens end its text. */
#include "model/model.h"

char *model_generation_text(const ModelConfig *config)
{
    json_t *json = json_object(), *eos = json_array();
    if (config->bos >= 0) json_object_set_new(json, "bos_token_id", json_integer(config->bos));
    for (int i = 0; i < config->n_eos; i++)
        json_array_append_new(eos, json_integer(config->eos[i]));
    if (config->n_eos > 0) json_object_set(json, "eos_token_id", eos);
    json_decref(eos);
    if (config->pad >= 0) json_object_set_new(json, "pad_token_id", json_integer(config->pad));
    json_object_set_new(json, "do_sample", json_true());
    json_object_set_new(json, "temperature", json_real(0.6));
    json_object_set_new(json, "top_p", json_real(0.9));
    char *text = json_dumps(json, JSON_INDENT(2) | JSON_REAL_PRECISION(6));
    json_decref(json);
    return text;
}
