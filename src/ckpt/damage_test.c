/* Damage: bits flipped, pages zeroed, files cut, lost, swapped and mixed up, and what a disk may
 * hold after power was lost in the middle of a save. All of it is found, named, and answered by the
 * checkpoint before. */
#include "ckpt/ckpt_testkit.h"

#include <fcntl.h>

static const char *const files[] = {"config.json",
                                    "tokenizer.json",
                                    "model-00001-of-00001.safetensors",
                                    "model.safetensors.index.json",
                                    "optimizer-00001-of-00001.safetensors",
                                    "manifest.json"};

typedef struct Bed {
    Arena arena;
    char *root;
    Bytes old_content[COUNT_OF(files)], content[COUNT_OF(files)]; /* of steps 1 and 2 */
} Bed;

static const char *bed_path(Bed *bed, int64_t step, const char *file)
{
    char name[STEP_NAME];
    step_name(step, name);
    return arena_printf(&bed->arena, "%s/%s/%s", bed->root, name, file);
}

static void put(const char *path, const void *data, size_t n)
{
    int fd;
    assert_ok(file_create(path, &fd));
    assert_ok(file_write(fd, data, n, path));
    assert_ok(file_close(fd, path));
}

static Bed *bed_create(void)
{
    Bed *bed = xcalloc(1, sizeof *bed);
    CkptStore *store;
    TinyState *s = tiny_create();
    bed->root = scratch_create();
    assert_ok(ckpt_store_open(bed->root, (CkptOptions){.keep = 3}, &store));
    assert_ok(tiny_save_step(store, s, 1));
    assert_ok(tiny_save_step(store, s, 2));
    ckpt_store_close(store);
    tiny_destroy(s);
    for (int f = 0; f < COUNT_OF(files); f++) {
        assert_ok(
            file_read(&bed->arena, bed_path(bed, 1, files[f]), 1 << 20, &bed->old_content[f]));
        assert_ok(file_read(&bed->arena, bed_path(bed, 2, files[f]), 1 << 20, &bed->content[f]));
    }
    log_set_level(LOG_SILENT);
    return bed;
}

static void bed_destroy(Bed *bed)
{
    log_set_level(LOG_INFO);
    scratch_destroy(bed->root);
    arena_deinit(&bed->arena);
    free(bed);
}

static Status open_step(Bed *bed, int64_t step)
{
    char name[STEP_NAME], path[256];
    Ckpt *ckpt = NULL;
    step_name(step, name);
    snprintf(path, sizeof path, "%s/%s", bed->root, name);
    Status status = ckpt_open(path, CKPT_VERIFY_HASHES, &ckpt);
    ckpt_close(ckpt);
    return status;
}

/* Refused, by a sentence that has the file's name; a run falls back to step 1. */
static void assert_found(Bed *bed, const char *what, const char *file)
{
    if (open_step(bed, 2) == OK) fail_msg("%s %s was not found", what, file);
    if (!strstr(status_message(), file)) fail_msg("%s %s: %s", what, file, status_message());
    assert_int_equal(tiny_load_newest(bed->root), 1);
}

static void restore(Bed *bed)
{
    for (int f = 0; f < COUNT_OF(files); f++)
        put(bed_path(bed, 2, files[f]), bed->content[f].at, bed->content[f].n);
    assert_int_equal(open_step(bed, 2), OK);
}

/* The sentence of a damaged tensor holds the range of bytes that the flipped one is in. */
static bool names_place(uint64_t offset)
{
    unsigned long long from, to;
    const char *tensor = strstr(status_message(), "is damaged: tensor");
    if (!tensor) return false;
    const char *bytes = strstr(tensor, "bytes ");
    assert_non_null(bytes);
    assert_int_equal(sscanf(bytes, "bytes %llu to %llu", &from, &to), 2);
    assert_true(offset >= from && offset < to);
    return true;
}

static void test_flip_a_bit(void **state)
{
    (void)state;
    enum { FLIPS = 4000 };
    Bed *bed = bed_create();
    uint64_t key = rng_key(2, "flip");
    int in_tensors = 0;
    for (uint64_t i = 0; i < FLIPS; i++) {
        int f = (int)rng_below(key, 4 * i, COUNT_OF(files));
        uint64_t at = rng_below(key, 4 * i + 1, bed->content[f].n);
        uint8_t good = bed->content[f].at[at],
                bad = good ^ (uint8_t)(1u << rng_below(key, 4 * i + 2, 8));
        int fd = open(bed_path(bed, 2, files[f]), O_WRONLY);
        assert_int_equal(pwrite(fd, &bad, 1, (off_t)at), 1);
        if (open_step(bed, 2) == OK)
            fail_msg("a flipped bit in byte %llu of %s was not found", (unsigned long long)at,
                     files[f]);
        assert_non_null(strstr(status_message(), files[f]));
        in_tensors += names_place(at);
        if (i % 50 == 0) assert_int_equal(tiny_load_newest(bed->root), 1);
        assert_int_equal(pwrite(fd, &good, 1, (off_t)at), 1);
        close(fd);
    }
    assert_true(in_tensors > 100);
    assert_int_equal(open_step(bed, 2), OK);
    bed_destroy(bed);
}

/* Every bit of `latest`: whatever it says then, a good checkpoint is found. */
static void test_flip_in_latest(void **state)
{
    (void)state;
    Bed *bed = bed_create();
    const char *path = arena_printf(&bed->arena, "%s/latest", bed->root);
    Bytes good;
    assert_ok(file_read(&bed->arena, path, 1000, &good));
    char copy[64];
    for (size_t bit = 0; bit < 8 * good.n; bit++) {
        int64_t step;
        memcpy(copy, good.at, good.n);
        copy[bit / 8] = (char)(copy[bit / 8] ^ (1 << bit % 8));
        put(path, copy, good.n);
        assert_int_equal(latest_read(bed->root, &step), ERR_FORMAT);
        assert_int_equal(tiny_load_newest(bed->root), 2);
    }
    put(path, "step-00000001\n", 14); /* what a person may write */
    assert_int_equal(tiny_load_newest(bed->root), 1);
    put(path, "step-00000007\n", 14);
    assert_int_equal(tiny_load_newest(bed->root), 2);
    put(path, "", 0);
    assert_int_equal(tiny_load_newest(bed->root), 2);
    put(path, "../../etc\n", 10);
    assert_int_equal(tiny_load_newest(bed->root), 2);
    bed_destroy(bed);
}

static void test_blocks(void **state)
{
    (void)state;
    Bed *bed = bed_create();
    for (int f = 2; f < 5; f += 2) { /* the safetensors files */
        size_t n = bed->content[f].n;
        uint8_t *copy = xmalloc(n);
        const char *path = bed_path(bed, 2, files[f]);
        for (size_t at = 0; at + 512 <= n; at += 512) { /* a block that was never written */
            memcpy(copy, bed->content[f].at, n);
            memset(copy + at, 0, 512);
            put(path, copy, n);
            assert_found(bed, "a zeroed block in", files[f]);
        }
        for (size_t at = 64; at + 640 <= n; at += 256) { /* two that changed places */
            memcpy(copy, bed->content[f].at, n);
            memcpy(copy + at, bed->content[f].at + at + 512, 64);
            memcpy(copy + at + 512, bed->content[f].at + at, 64);
            put(path, copy, n);
            assert_found(bed, "swapped pieces in", files[f]);
        }
        free(copy);
        restore(bed);
    }
    bed_destroy(bed);
}

static void test_files(void **state)
{
    (void)state;
    Bed *bed = bed_create();
    for (int f = 0; f < COUNT_OF(files); f++) {
        const char *path = bed_path(bed, 2, files[f]);
        size_t n = bed->content[f].n;
        const size_t cuts[] = {1, n / 2, n - 1, n};
        for (int c = 0; c < COUNT_OF(cuts); c++) {
            put(path, bed->content[f].at, n - cuts[c]);
            assert_found(bed, "a cut in", files[f]);
        }
        uint8_t *longer = xcalloc(1, n + 1);
        memcpy(longer, bed->content[f].at, n);
        put(path, longer, n + 1);
        assert_found(bed, "a byte behind", files[f]);
        free(longer);
        assert_ok(file_unlink(path));
        /* without its manifest a directory is a plain model: usable by name, not to go on from */
        if (strcmp(files[f], "manifest.json") != 0) assert_found(bed, "the loss of", files[f]);
        assert_int_equal(tiny_load_newest(bed->root), 1);
        bool same = bed->old_content[f].n == n &&
                    !memcmp(bed->old_content[f].at, bed->content[f].at, n);
        put(path, bed->old_content[f].at, bed->old_content[f].n);
        if (!same) assert_true(open_step(bed, 2) != OK); /* from another step */
        restore(bed);
    }
    put(bed_path(bed, 2, "model-00002-of-00002.safetensors"), bed->content[2].at,
        bed->content[2].n);
    assert_found(bed, "an extra", "model-00002-of-00002.safetensors");
    assert_ok(file_unlink(bed_path(bed, 2, "model-00002-of-00002.safetensors")));
    put(bed_path(bed, 2, files[2]), bed->content[4].at, bed->content[4].n);
    assert_found(bed, "the optimizer in place of", files[2]);
    restore(bed);
    put(bed_path(bed, 2, "config.json"), "x", 1); /* sizes are checked even without hashing */
    Ckpt *quick = NULL;
    assert_int_equal(ckpt_open(bed_path(bed, 2, ""), CKPT_VERIFY_SIZES, &quick), ERR_FORMAT);
    restore(bed);
    put(bed_path(bed, 2, "notes.txt"), "mine", 4); /* does not matter */
    assert_int_equal(open_step(bed, 2), OK);
    /* a whole checkpoint under another step's name */
    assert_ok(file_rename(bed_path(bed, 2, ""),
                          arena_printf(&bed->arena, "%s/step-00000003", bed->root)));
    assert_int_equal(open_step(bed, 3), ERR_FORMAT);
    assert_int_equal(tiny_load_newest(bed->root), 1);
    bed_destroy(bed);
}

static void test_all_damaged(void **state)
{
    (void)state;
    Bed *bed = bed_create();
    Ckpt *found = NULL;
    put(bed_path(bed, 1, "config.json"), "", 0);
    put(bed_path(bed, 2, "config.json"), "", 0);
    assert_int_equal(ckpt_find(bed->root, &found), ERR_FORMAT);
    assert_non_null(strstr(status_message(), "none of its 2 checkpoints is good"));
    assert_null(found);
    bed_destroy(bed);
}

/* ---- power lost in the middle of a save ------------------------------------------------- */

/* What may lie where a file of the new checkpoint was being written: nothing, a beginning cut at a
 * block, a whole length with blocks that never arrived, or all of it. True when it is all there. */
static bool write_torn(Bed *bed, const char *dir, int f, uint64_t key)
{
    size_t n = bed->content[f].n, block = rng_below(key, 0, 2) ? 512 : 4096;
    uint64_t how = rng_below(key, 1, 6);
    const char *path = path_join(&bed->arena, dir, files[f]);
    if (how == 0) return false;
    if (how > 2) {
        put(path, bed->content[f].at, n);
        return true;
    }
    uint8_t *copy = xmalloc(n);
    memcpy(copy, bed->content[f].at, n);
    size_t blocks = n / block + 1, kept = rng_below(key, 2, blocks) * block;
    bool whole = true;
    for (size_t at = 0; how == 2 && at < n; at += block) {
        if (rng_below(key, 3 + at, 2)) continue;
        memset(copy + at, 0, n - at < block ? n - at : block);
        whole = false;
    }
    put(path, copy, how == 1 ? kept : n);
    free(copy);
    return how == 2 && whole;
}

/* Any subset of the operations of saving step 2 reached the disk, in any order, whatever our
 * barriers would have allowed: the root loads, as step 1 or as a whole step 2. */
static void test_power_lost(void **state)
{
    (void)state;
    enum { STATES = 600 };
    static const char *const latest[] = {"step-00000001\n", "step-00000002\n", "", "step-0000",
                                         NULL};
    Bed *bed = bed_create();
    const char *final = bed_path(bed, 2, ""),
               *link = arena_printf(&bed->arena, "%s/latest", bed->root);
    const char *work = arena_printf(&bed->arena, "%s/.tmp-step-00000002-1-0", bed->root);
    int seen[3] = {0};
    for (uint64_t i = 0; i < STATES; i++) {
        uint64_t key = rng_key(i, "power");
        bool renamed = rng_below(key, 0, 4) > 0, whole = true;
        assert_ok(dir_remove_tree(final));
        assert_ok(dir_remove_tree(work));
        assert_ok(dir_create(renamed ? final : work));
        bool all = rng_below(key, 1, 3) == 0;
        for (int f = 0; f < COUNT_OF(files); f++) {
            if (all)
                put(path_join(&bed->arena, renamed ? final : work, files[f]), bed->content[f].at,
                    bed->content[f].n);
            else
                whole = write_torn(bed, renamed ? final : work, f,
                                   rng_u64(key, (uint64_t)f + 10)) &&
                        whole;
        }
        const char *text = latest[rng_below(key, 2, COUNT_OF(latest))];
        if (text)
            put(link, text, strlen(text));
        else
            unlink(link);
        int64_t newest = tiny_load_newest(bed->root); /* compares every value */
        if (newest != 1 && !(newest == 2 && whole && renamed))
            fail_msg("state %llu: %lld", (unsigned long long)i, (long long)newest);
        seen[newest]++;
    }
    assert_true(seen[1] > 100 && seen[2] > 30);
    bed_destroy(bed);
}

/* ---- manifests of before there were sums ------------------------------------------------ */

static void add_hash(Str *text, const char *key, Hash128 hash)
{
    char hex[33];
    hash128_hex(hash, hex);
    str_printf(text, "\"%s\":\"%s\"", key, hex);
}

static void add_tensors(Str *text, const char *path)
{
    Safetensors *file;
    Hash128 hash;
    assert_ok(safetensors_open(path, &file));
    assert_ok(safetensors_hash(file, NULL, &hash));
    str_add(text, ",");
    add_hash(text, "header", hash);
    str_add(text, ",\"tensors\":{");
    for (int i = 0; i < safetensors_count(file); i++) {
        assert_ok(safetensors_hash(file, safetensors_at(file, i), &hash));
        if (i) str_add(text, ",");
        add_hash(text, safetensors_at(file, i)->name, hash);
    }
    str_add(text, "}");
    safetensors_close(file);
}

/* The manifest of step 2 as version 1 had it. */
static void write_version_1(Bed *bed)
{
    Str text = {0};
    str_add(&text, "{\"xxh3_128\":\"00000000000000000000000000000000\",\"format\":\"drover "
                   "checkpoint\",\"version\":1,\"step\":2,\"files\":{");
    for (int f = 0; f + 1 < COUNT_OF(files); f++) {
        str_printf(&text, "%s\"%s\":{\"bytes\":%zu,", f ? "," : "", files[f], bed->content[f].n);
        add_hash(&text, "xxh3_128", hash128_bytes(bed->content[f].at, bed->content[f].n));
        if (strstr(files[f], ".safetensors") && !strstr(files[f], ".json"))
            add_tensors(&text, bed_path(bed, 2, files[f]));
        str_add(&text, "}");
    }
    str_add(&text, "},\"run\":{}}\n");
    manifest_seal(&text);
    put(bed_path(bed, 2, "manifest.json"), text.at, text.n);
    str_deinit(&text);
}

/* Which of three ranks that share the tensors out finds something wrong; -1: none. */
static int found_by(Bed *bed)
{
    char name[STEP_NAME];
    Ckpt *ckpt;
    int rank = -1;
    step_name(2, name);
    assert_ok(ckpt_open(path_join(&bed->arena, bed->root, name), CKPT_VERIFY_FILES, &ckpt));
    assert_false(ckpt_has_sums(ckpt));
    for (int r = 0; r < 3; r++)
        if (ckpt_verify_share(ckpt, r, 3) != OK) rank = rank < 0 ? r : 99;
    ckpt_close(ckpt);
    return rank;
}

static void test_version_1(void **state)
{
    (void)state;
    Bed *bed = bed_create();
    write_version_1(bed);
    assert_ok(open_step(bed, 2));
    assert_int_equal(tiny_load_newest(bed->root), 2);
    assert_int_equal(found_by(bed), -1);
    for (int f = 2; f < 5; f += 2)
        for (size_t back = 1; back < 1200; back += 61) {
            uint8_t *copy = xmalloc(bed->content[f].n);
            memcpy(copy, bed->content[f].at, bed->content[f].n);
            copy[bed->content[f].n - back] ^= 2;
            put(bed_path(bed, 2, files[f]), copy, bed->content[f].n);
            assert_found(bed, "a flipped bit in", files[f]);
            int rank = found_by(bed);
            assert_true(rank >= 0 && rank < 3); /* by one of them */
            put(bed_path(bed, 2, files[f]), bed->content[f].at, bed->content[f].n);
            free(copy);
        }
    bed_destroy(bed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_flip_a_bit),  cmocka_unit_test(test_flip_in_latest),
        cmocka_unit_test(test_blocks),      cmocka_unit_test(test_files),
        cmocka_unit_test(test_all_damaged), cmocka_unit_test(test_power_lost),
        cmocka_unit_test(test_version_1),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
