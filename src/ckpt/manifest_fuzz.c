/* Fuzz target: manifest.json. The input stands behind the seal, which is made right, so that the
 * parser is reached; once more as it is, with the seal that it brings. */
#include <string.h>

#include "ckpt/ckpt_internal.h"

static void parse(const char *text, size_t n)
{
    Arena arena = {0};
    Manifest manifest;
    if (manifest_parse(&arena, "fuzz", text, n, &manifest) == OK) {
        CHECK(manifest.step >= 0 && manifest.run_json[0] == '{');
        for (int i = 0; i < manifest.n_files; i++) {
            CHECK(path_is_plain_name(manifest.files[i].name));
            CHECK(manifest_find(&manifest, manifest.files[i].name) == &manifest.files[i]);
        }
    }
    arena_deinit(&arena);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char head[] = "{\"xxh3_128\":\"00000000000000000000000000000000\",";
    Str sealed = {0};
    str_add(&sealed, head);
    str_add_n(&sealed, (const char *)data, size);
    manifest_seal(&sealed);
    parse(sealed.at, sealed.n);
    str_deinit(&sealed);
    parse((const char *)data, size);
    return 0;
}
