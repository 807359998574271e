/* The plain driver of a fuzz target: runs it once on every file of the directories given, in order.
 * So the corpus is a unit test on machines that have no libFuzzer. */
#include "base/base.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int run_directory(const char *path)
{
    Arena arena = {0};
    DirEntries entries;
    Status status = dir_list(&arena, path, &entries);
    for (int i = 0; status == OK && i < entries.n; i++) {
        Bytes input;
        status = file_read(&arena, path_join(&arena, path, entries.name[i]), 1 << 26, &input);
        if (status != OK) break;
        uint8_t *exact = xmalloc(
            input.n); /* no byte behind the last, so that the sanitizer sees a read there */
        if (input.n) memcpy(exact, input.at, input.n);
        LLVMFuzzerTestOneInput(exact, input.n);
        free(exact);
    }
    if (status != OK)
        fprintf(stderr, "%s\n", status_message());
    else
        printf("%s: %d inputs\n", path, entries.n);
    arena_deinit(&arena);
    return status != OK;
}

int main(int argc, char **argv)
{
    int failed = argc < 2;
    if (failed) fprintf(stderr, "usage: %s CORPUS-DIRECTORY...\n", argv[0]);
    for (int i = 1; i < argc; i++) failed |= run_directory(argv[i]);
    return failed;
}
