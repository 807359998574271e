/* Any bytes as a list of hosts and as a file of them: refused, or a list that written out reads the
 * same. */
#include "launch/launch.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(Arena *arena, const LaunchHosts *hosts)
{
    LaunchHosts again;
    Str text = {0};
    launch_hosts_text(hosts, &text);
    CHECK(launch_hosts_parse(arena, text.at, &again) == OK && again.n == hosts->n);
    for (int i = 0; i < again.n; i++) {
        CHECK(!strcmp(again.at[i].name, hosts->at[i].name));
        CHECK(again.at[i].slots == hosts->at[i].slots);
    }
    str_deinit(&text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    Arena arena = {0};
    LaunchHosts hosts;
    const char *line = arena_strndup(&arena, size ? (const char *)data : "", size);
    if (launch_hosts_parse(&arena, line, &hosts) == OK) check(&arena, &hosts);
    if (launch_hosts_read_text(&arena, (Bytes){data, size}, "fuzz", &hosts) == OK)
        check(&arena, &hosts);
    arena_deinit(&arena);
    return 0;
}
