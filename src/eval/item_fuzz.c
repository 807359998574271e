/* Any bytes as a line of each task: an item whose parts lie in the arena, or a reason in words. The
 * first byte is the task. */
#include "eval/eval_internal.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) return 0;
    Arena arena = {0};
    EvalItem item;
    Str text = {0};
    char why[EVAL_WHY] = "";
    EvalTask task = (EvalTask)(data[0] % 3);
    if (eval_item_parse(&arena, task, (Bytes){data + 1, size - 1}, &item, why)) {
        match_normalise(item.prompt, &text);
        for (int i = 0; i < item.n_list; i++) match_normalise(item.list[i], &text);
        CHECK(match_stop(item.prompt, item.stop, item.n_stop) <= item.prompt.n);
        CHECK(task != EVAL_CHOICE || (item.answer >= 0 && item.answer < item.n_list));
    } else {
        CHECK(why[0] && strlen(why) < EVAL_WHY);
    }
    str_deinit(&text);
    arena_deinit(&arena);
    return 0;
}
