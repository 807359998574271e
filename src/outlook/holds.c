/* How many devices hold a model that fewer do not. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/model.h"
#include "outlook/outlook_internal.h"

enum { TRIES = 4 };
/* f32 weight and Adam's moments: no layout shares more than all of these. */
static const double least_bytes = 12;

static double least_devices(const Question *q)
{
    ModelConfig model;
    const MemoryCurve *m = &q->cluster->device.memory;
    double room = q->config->train.memory_limit ? (double)q->config->train.memory_limit
                                                : m->bytes - m->reserved_bytes;
    if (!(room > 0) || train_expect_model(q->config, &model) != OK) return (double)INFINITY;
    double weights = (double)model_counts(&model).total;
    model_config_deinit(&model);
    return least_bytes * weights / room;
}

Status outlook_refuse_search(const Question *q, Status status)
{
    char *sentence = xstrdup(status_message());
    int64_t devices = 2 * cluster_devices(q->cluster);
    double least = least_devices(q);
    Answer *a = NULL;
    if (isfinite(least) && strstr(sentence, "fits into") && !q->cluster->device.cores) {
        while ((double)devices < least) devices *= 2;
        for (int i = 0; i < TRIES && !a; i++, devices *= 2)
            if (outlook_find(q, q->config, devices, q->max_batch, 0, &a) != OK) a = NULL;
    }
    if (a) {
        Str layout = {0};
        plan_layout_words(&a->outlook.plan, &layout);
        status = fail(status, "%s; %lld devices would do, with %s", sentence, (long long)a->devices,
                      layout.at);
        str_deinit(&layout);
    } else
        status = fail(status, "%s", sentence);
    outlook_answer_destroy(a);
    free(sentence);
    return status;
}
