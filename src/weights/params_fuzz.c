/* Fuzz target: params.json. What is accepted gives positive widths. */
#include "weights/weights_internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    json_t *params = json_loadb((const char *)data, size, JSON_REJECT_DUPLICATES, NULL), *config;
    if (!params) return 0;
    MetaShape shape;
    Status status = params_shape(params, "fuzz", &shape);
    if (params_config(params, "fuzz", 128256, false, &config) == OK) {
        CHECK(status == OK && shape.embed % shape.n_heads == 0);
        CHECK(json_integer_value(json_object_get(config, "intermediate_size")) >= 0);
        json_decref(config);
    }
    json_decref(params);
    return 0;
}
