/* The names in a run's checkpoint directory, and the small file `latest`. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "ckpt/ckpt_internal.h"

enum { MAX_LATEST_BYTES = 256 };

void step_name(int64_t step, char out[STEP_NAME])
{
    snprintf(out, STEP_NAME, "step-%08" PRId64, step);
}

bool step_parse(const char *name, int64_t *step)
{
    int64_t value;
    char again[STEP_NAME];
    if (strncmp(name, "step-", 5) != 0) return false;
    const char *digits = name + 5 + strspn(name + 5, "0");
    if (!*digits) digits = "0";
    if (!parse_i64(digits, &value) || value < 0) return false;
    step_name(value, again);
    if (strcmp(again, name) != 0) return false;
    *step = value;
    return true;
}

/* The name, and on a second line its hash: a flipped bit must not lead to another step. */
static void print_latest(const char *name, Str *text)
{
    str_printf(text, "%s\n%016" PRIx64 "\n", name, hash_bytes(name, strlen(name)));
}

Status latest_write(const char *root, const char *name)
{
    Arena arena = {0};
    Str text = {0};
    print_latest(name, &text);
    Status status = file_write_atomic(path_join(&arena, root, "latest"), text.at, text.n);
    str_deinit(&text);
    arena_deinit(&arena);
    return status;
}

/* A single line, without the hash, is what a person may write to go back to an older step. */
static Status parse_latest(const char *path, Bytes text, int64_t *step)
{
    const char *all = (const char *)text.at;
    size_t length = strcspn(all, "\n");
    Str expected = {0};
    char name[STEP_NAME] = "";
    bool good = length < sizeof name && memchr(all, 0, text.n) == NULL;
    if (good) {
        memcpy(name, all, length);
        print_latest(name, &expected);
        bool alone = text.n == length || text.n == length + 1;
        good = step_parse(name, step) &&
               (alone || (text.n == expected.n && memcmp(all, expected.at, text.n) == 0));
    }
    str_deinit(&expected);
    return good ? OK : fail(ERR_FORMAT, "%s is damaged", path);
}

Status latest_read(const char *root, int64_t *step)
{
    Arena arena = {0};
    Bytes text;
    const char *path = path_join(&arena, root, "latest");
    Status status = OK;
    int64_t found = -1;
    if (file_exists(path)) {
        status = file_read(&arena, path, MAX_LATEST_BYTES, &text);
        if (status == OK) status = parse_latest(path, text, &found);
    }
    arena_deinit(&arena);
    if (status == OK) *step = found;
    return status;
}

static int newest_first(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x > y ? -1 : x < y;
}

Status steps_list(Arena *arena, const char *root, int64_t **steps, int *n)
{
    DirEntries entries;
    TRY(dir_list(arena, root, &entries));
    int64_t *found = ARENA_ARRAY(arena, int64_t, entries.n);
    int count = 0;
    for (int i = 0; i < entries.n; i++)
        if (step_parse(entries.name[i], &found[count]) &&
            dir_exists(path_join(arena, root, entries.name[i])))
            count++;
    qsort(found, (size_t)count, sizeof *found, newest_first);
    *steps = found;
    *n = count;
    return OK;
}
