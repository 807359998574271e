/* Any bytes as a run file, with its first line as an override too: refused or loaded, and what
 * loads is written and read back. */
#include "run/run.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    RunConfig config;
    Arena arena = {0};
    const char *override = arena_strndup(&arena, size ? (const char *)data : "",
                                         strnlen((const char *)data, size));
    for (int n = 0; n < 2; n++) {
        if (run_config_parse((Bytes){data, size}, "fuzz", &override, n, &config) != OK) continue;
        Str text = {0};
        run_config_text(&config, &text);
        RunConfig again;
        Status status = run_config_parse((Bytes){(const uint8_t *)text.at, text.n}, "again", NULL,
                                         0, &again);
        if (status == OK)
            run_config_deinit(&again);
        else
            CHECK(text.n > 1 << 20 || strstr(status_message(), "more than 16384"));
        str_deinit(&text);
        run_config_deinit(&config);
    }
    arena_deinit(&arena);
    return 0;
}
