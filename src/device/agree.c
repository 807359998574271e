/* Ranks agree on how their GPUs compute products: ranks that compute the same must get the same
 * bits, also on hosts whose users' files say otherwise.
 *
 * Round by round, the lowest rank that has chosen something nobody has told yet tells it; what it
 * says counts for all. Ranks of one stage have the same products, so that there are as many rounds
 * as stages that differ, however many ranks there are. */
#include "device/device_internal.h"
#include "gpu/tune.h"

#include <stdlib.h>
#include <string.h>

/* The lowest rank that has something to say; as many as there are: none. */
static Status find_speaker(Comm *world, bool speaks, int *speaker)
{
    int32_t lowest = speaks ? comm_rank(world) : comm_size(world);
    TRY(comm_run(world, &(CommOp){.kind = COMM_ALL_REDUCE,
                                  .dtype = DTYPE_I32,
                                  .reduce = COMM_MIN,
                                  .send = &lowest,
                                  .recv = &lowest,
                                  .count = 1,
                                  .node = "products"}));
    *speaker = lowest;
    return OK;
}

static Status pass_on(Comm *world, int speaker, void *data, int64_t bytes)
{
    return comm_run(world, &(CommOp){.kind = COMM_BROADCAST,
                                     .dtype = DTYPE_U8,
                                     .send = data,
                                     .recv = data,
                                     .count = bytes,
                                     .peer = speaker,
                                     .node = "products"});
}

static Status hear(Device *device, int speaker, const Str *mine)
{
    bool speaks = comm_rank(device->world) == speaker;
    int64_t bytes = speaks ? (int64_t)mine->n : 0;
    TRY(pass_on(device->world, speaker, &bytes, sizeof bytes));
    char *text = xmalloc((size_t)bytes + 1);
    if (speaks) memcpy(text, mine->at, mine->n);
    Status status = pass_on(device->world, speaker, text, bytes);
    if (status == OK)
        status = gpu_product_hear(device->gpu, (Bytes){(const uint8_t *)text, (size_t)bytes});
    free(text);
    return status;
}

Status device_agree(Device *device)
{
    if (!device->gpu || !device->tunes || !device->world || comm_size(device->world) < 2) return OK;
    Status status = OK;
    int speaker = 0;
    while (status == OK) {
        Str mine = {0};
        status = find_speaker(device->world, gpu_product_tell(device->gpu, &mine), &speaker);
        bool any = speaker < comm_size(device->world);
        if (status == OK && any) status = hear(device, speaker, &mine);
        str_deinit(&mine);
        if (!any) break;
    }
    return status;
}
