/* manifest.json: what a checkpoint consists of, by size and hash.
 *
 * The text is one line of JSON that begins with its own hash, taken with the 32 digits set to zero,
 * so that a flipped bit anywhere in it is seen. Then: format, version, step, files (size and hash,
 * for safetensors files the hash of the header and the sum of each tensor's bytes), and the saver's
 * own object. Version 1 had a hash of each tensor in place of its sum, which one rank had to read
 * as a whole; it is still read. */
#include <stdlib.h>
#include <string.h>

#include "ckpt/ckpt_internal.h"

enum { DIGITS = 32, MAX_MANIFEST_BYTES = 64 << 20 };

static const char head[] = "{\"xxh3_128\":\""; /* 32 digits follow */
static const char format_name[] = "drover checkpoint";

/* ---- writing ---------------------------------------------------------------------------- */

static json_t *hash_json(Hash128 hash)
{
    char hex[DIGITS + 1];
    hash128_hex(hash, hex);
    return json_string(hex);
}

static json_t *file_json(const ManifestFile *file)
{
    json_t *entry = json_object();
    json_object_set_new(entry, "bytes", json_integer((json_int_t)file->bytes));
    if (!file->tensors) {
        json_object_set_new(entry, "xxh3_128", hash_json(file->hash));
        return entry;
    }
    json_object_set_new(entry, "header", hash_json(file->header));
    json_t *sums = json_object();
    for (int i = 0; i < file->n_tensors; i++)
        json_object_set_new(sums, file->tensors[i].name, hash_json(file->tensors[i].hash));
    json_object_set_new(entry, "sums", sums);
    return entry;
}

void manifest_seal(Str *text)
{
    char hex[DIGITS + 1];
    hash128_hex(hash128_bytes(text->at, text->n), hex);
    memcpy(text->at + sizeof head - 1, hex, DIGITS);
}

Status manifest_print(const Manifest *manifest, Str *out)
{
    json_t *run;
    const char *run_json = manifest->run_json ? manifest->run_json : "{}";
    TRY(json_parse_object(run_json, strlen(run_json), "the run's part of the manifest", &run));
    char zeros[DIGITS + 1];
    memset(zeros, '0', DIGITS);
    zeros[DIGITS] = 0;
    json_t *list = json_object();
    for (int i = 0; i < manifest->n_files; i++)
        json_object_set_new(list, manifest->files[i].name, file_json(&manifest->files[i]));
    /* jansson keeps the order of insertion, so the hash comes first */
    json_t *root = json_pack("{s:s, s:s, s:i, s:I, s:o, s:o}", "xxh3_128", zeros, "format",
                             format_name, "version", MANIFEST_SUMS, "step",
                             (json_int_t)manifest->step, "files", list, "run", run);
    CHECK(root != NULL);
    char *text = json_dumps(root, JSON_COMPACT | JSON_REAL_PRECISION(17));
    json_decref(root);
    CHECK(text && !strncmp(text, head, sizeof head - 1));
    str_clear(out);
    str_add(out, text);
    str_add(out, "\n");
    free(text);
    manifest_seal(out);
    return OK;
}

/* ---- reading ---------------------------------------------------------------------------- */

static Status check_seal(const char *path, const char *text, size_t n)
{
    size_t at = sizeof head - 1;
    if (n < at + DIGITS || memcmp(text, head, at) != 0)
        return fail(ERR_FORMAT, "%s does not begin like a manifest", path);
    Str copy = {0};
    str_add_n(&copy, text, n);
    memset(copy.at + at, '0', DIGITS);
    manifest_seal(&copy);
    bool same = memcmp(copy.at + at, text + at, DIGITS) == 0;
    str_deinit(&copy);
    return same ? OK
                : fail(ERR_FORMAT, "%s is damaged: its content does not match its own hash", path);
}

static bool read_hash(const json_t *value, Hash128 *hash)
{
    const char *hex = json_string_value(value);
    if (!hex || strlen(hex) != DIGITS) return false;
    uint64_t word[2] = {0, 0};
    for (int i = 0; i < DIGITS; i++) {
        const char *digits = "0123456789abcdef", *digit = strchr(digits, hex[i]);
        if (!digit) return false;
        word[i / 16] = word[i / 16] << 4 | (uint64_t)(digit - digits);
    }
    *hash = (Hash128){.high = word[0], .low = word[1]};
    return true;
}

static int by_tensor(const void *a, const void *b)
{
    return strcmp(((const ManifestTensor *)a)->name, ((const ManifestTensor *)b)->name);
}

static int by_file(const void *a, const void *b)
{
    return strcmp(((const ManifestFile *)a)->name, ((const ManifestFile *)b)->name);
}

static Status read_tensors(Arena *arena, const char *path, json_t *tensors, ManifestFile *file)
{
    const char *name;
    json_t *value;
    file->tensors = ARENA_ARRAY(arena, ManifestTensor, json_object_size(tensors));
    json_object_foreach(tensors, name, value)
    {
        ManifestTensor *tensor = &file->tensors[file->n_tensors++];
        tensor->name = arena_strdup(arena, name);
        if (!read_hash(value, &tensor->hash))
            return fail(ERR_FORMAT, "%s: the hash of tensor %s is none", path, name);
    }
    qsort(file->tensors, (size_t)file->n_tensors, sizeof *file->tensors, by_tensor);
    return OK;
}

/* The tensors' hashes: under which name depends on the version. */
static json_t *entry_tensors(json_t *entry, int version)
{
    return json_object_get(entry, version == MANIFEST_HASHES ? "tensors" : "sums");
}

static Status read_file_entry(Arena *arena, const char *path, json_t *entry, int version,
                              ManifestFile *file)
{
    json_t *bytes = json_object_get(entry, "bytes"), *tensors = entry_tensors(entry, version);
    bool good = path_is_plain_name(file->name) && json_is_integer(bytes) &&
                json_integer_value(bytes) >= 0;
    if (good && (!tensors || version == MANIFEST_HASHES))
        good = read_hash(json_object_get(entry, "xxh3_128"), &file->hash);
    if (good && tensors)
        good = json_is_object(tensors) &&
               read_hash(json_object_get(entry, "header"), &file->header);
    if (!good) return fail(ERR_FORMAT, "%s: the entry of file '%s' is not right", path, file->name);
    file->bytes = (uint64_t)json_integer_value(bytes);
    return tensors ? read_tensors(arena, path, tensors, file) : OK;
}

static Status read_root(Arena *arena, const char *path, const json_t *root, Manifest *manifest)
{
    const char *format = json_string_value(json_object_get(root, "format"));
    json_t *version = json_object_get(root, "version"), *step = json_object_get(root, "step");
    json_t *files = json_object_get(root, "files"), *run = json_object_get(root, "run");
    if (!format || strcmp(format, format_name) != 0)
        return fail(ERR_FORMAT, "%s is not the manifest of a drover checkpoint", path);
    json_int_t number = json_is_integer(version) ? json_integer_value(version) : 0;
    if (number < MANIFEST_HASHES || number > MANIFEST_SUMS)
        return fail(ERR_UNSUPPORTED,
                    "%s has a version that this drover does not read (it reads %d to %d)", path,
                    MANIFEST_HASHES, MANIFEST_SUMS);
    manifest->version = (int)number;
    if (!json_is_integer(step) || json_integer_value(step) < 0 || !json_is_object(files) ||
        !json_is_object(run))
        return fail(ERR_FORMAT, "%s lacks step, files or run", path);
    manifest->step = json_integer_value(step);
    manifest->files = ARENA_ARRAY(arena, ManifestFile, json_object_size(files));
    manifest->n_files = 0;
    const char *name;
    json_t *entry;
    json_object_foreach(files, name, entry)
    {
        ManifestFile *file = &manifest->files[manifest->n_files++];
        file->name = arena_strdup(arena, name);
        TRY(read_file_entry(arena, path, entry, manifest->version, file));
    }
    qsort(manifest->files, (size_t)manifest->n_files, sizeof *manifest->files, by_file);
    char *text = json_dumps(run, JSON_COMPACT | JSON_REAL_PRECISION(17));
    CHECK(text != NULL);
    manifest->run_json = arena_strdup(arena, text);
    free(text);
    return OK;
}

Status manifest_parse(Arena *arena, const char *path, const char *text, size_t n,
                      Manifest *manifest)
{
    TRY(check_seal(path, text, n));
    json_t *root;
    TRY(json_parse_object(text, n, path, &root));
    Status status = read_root(arena, path, root, manifest);
    json_decref(root);
    return status;
}

Status manifest_read(Arena *arena, const char *path, Manifest *manifest)
{
    Bytes text;
    uint64_t bytes;
    TRY(file_size(path, &bytes)); /* says no to pipes before open could wait for them */
    TRY(file_read(arena, path, MAX_MANIFEST_BYTES, &text));
    return manifest_parse(arena, path, (const char *)text.at, text.n, manifest);
}

const ManifestFile *manifest_find(const Manifest *manifest, const char *name)
{
    ManifestFile key = {.name = name};
    return bsearch(&key, manifest->files, (size_t)manifest->n_files, sizeof key, by_file);
}

const ManifestTensor *manifest_tensor(const ManifestFile *file, const char *name)
{
    ManifestTensor key = {.name = name};
    if (file->n_tensors == 0) return NULL;
    return bsearch(&key, file->tensors, (size_t)file->n_tensors, sizeof key, by_tensor);
}
