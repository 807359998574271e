/* Any bytes as a schedule: refused, or a table that is written and read back the same. */
#include "pipeline/pipeline.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    Pipeline *p, *again;
    if (pipeline_parse((Bytes){data, size}, "fuzz", &p) != OK) return 0;
    Str text = {0}, second = {0};
    pipeline_text(p, &text);
    CHECK(pipeline_parse((Bytes){(const uint8_t *)text.at, text.n}, "again", &again) == OK);
    pipeline_text(again, &second);
    CHECK(!strcmp(text.at, second.at));
    PipelineTime time = pipeline_time(p, pipeline_equal_cost());
    CHECK(time.bubble >= 0 && time.bubble < 1 && time.total >= time.work);
    for (int s = 0; s + 1 < p->n_stages; s++)
        CHECK(pipeline_depth(p, s, PIPELINE_FORWARD, s + 1, PIPELINE_FORWARD) <= p->n_micro);
    str_clear(&second);
    pipeline_picture(p, 80, &second);
    pipeline_svg(p, &second);
    pipeline_destroy(again);
    pipeline_destroy(p);
    str_deinit(&text);
    str_deinit(&second);
    return 0;
}
