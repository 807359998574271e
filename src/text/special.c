/* Names of special tokens: what tiktoken files leave out. */
#include "text/text_internal.h"

/* `n` tokens from place `first` on; a %d in the name counts from `from`. */
typedef struct SpecialRun {
    int first, n;
    const char *name;
    int from;
} SpecialRun;

static const SpecialRun llama3[] = {
    {0, 1, "begin_of_text", 0},
    {1, 1, "end_of_text", 0},
    {2, 2, "reserved_special_token_%d", 0},
    {4, 1, "finetune_right_pad_id", 0},
    {5, 1, "step_id", 0},
    {6, 1, "start_header_id", 0},
    {7, 1, "end_header_id", 0},
    {8, 1, "eom_id", 0},
    {9, 1, "eot_id", 0},
    {10, 1, "python_tag", 0},
    {11, 1, "image", 0},
    {12, 244, "reserved_special_token_%d", 2},
};

static const SpecialRun llama4[] = {
    {0, 1, "begin_of_text", 0},
    {1, 1, "end_of_text", 0},
    {2, 1, "fim_prefix", 0},
    {3, 1, "fim_middle", 0},
    {4, 1, "fim_suffix", 0},
    {5, 1, "header_start", 0},
    {6, 1, "header_end", 0},
    {7, 1, "eom", 0},
    {8, 1, "eot", 0},
    {9, 1, "step", 0},
    {10, 6, "text_post_train_reserved_special_token_%d", 0},
    {16, 1, "python_start", 0},
    {17, 1, "python_end", 0},
    {18, 1, "finetune_right_pad", 0},
    {19, 61, "text_post_train_reserved_special_token_%d", 8},
    {80, 1, "image_start", 0},
    {81, 1, "image_end", 0},
    {82, 2, "vision_reserved_special_token_%d", 0},
    {84, 1, "tile_x_separator", 0},
    {85, 1, "tile_y_separator", 0},
    {86, 4, "vision_reserved_special_token_%d", 2},
    {90, 1, "image", 0},
    {91, 1, "vision_reserved_special_token_%d", 6},
    {92, 1, "patch", 0},
    {93, 1041, "vision_reserved_special_token_%d", 7},
    {1134, 8, "reasoning_reserved_special_token_%d", 0},
    {1142, 1, "reasoning_thinking_start", 0},
    {1143, 1, "reasoning_thinking_end", 0},
    {1144, 904, "reserved_special_token_%d", 0},
};

/* What a model trained from nothing needs of Llama 4's, chats and images included. */
static const SpecialRun trained[] = {
    {0, 1, "begin_of_text", 0},
    {1, 1, "end_of_text", 0},
    {2, 1, "fim_prefix", 0},
    {3, 1, "fim_middle", 0},
    {4, 1, "fim_suffix", 0},
    {5, 1, "header_start", 0},
    {6, 1, "header_end", 0},
    {7, 1, "eom", 0},
    {8, 1, "eot", 0},
    {9, 1, "python_start", 0},
    {10, 1, "python_end", 0},
    {11, 1, "finetune_right_pad", 0},
    {12, 1, "image_start", 0},
    {13, 1, "image_end", 0},
    {14, 1, "tile_x_separator", 0},
    {15, 1, "tile_y_separator", 0},
    {16, 1, "image", 0},
    {17, 1, "patch", 0},
    {18, INT32_MAX - 18, "reserved_special_token_%d", 0},
};

char *special_name(Arena *arena, SpecialSet set, int i)
{
    const SpecialRun *run = set == SPECIALS_LLAMA3   ? llama3
                            : set == SPECIALS_LLAMA4 ? llama4
                                                     : trained;
    while (i >= run->first + run->n) run++;
    if (!strstr(run->name, "%d")) return arena_printf(arena, "<|%s|>", run->name);
    size_t stem = strlen(run->name) - strlen("%d");
    return arena_printf(arena, "<|%.*s%d|>", (int)stem, run->name, run->from + i - run->first);
}
