/* Shards opened: the tokens of one split of one source as one long line. */
#include "data/data_internal.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_INDEX_BYTES = 64 << 20, MAX_SHARDS = 1 << 20 };

/* ---- one long line ---------------------------------------------------------------------- */

/* The shard that holds `at` by the starts of all of them; at < starts[n]. */
static int find_shard(const int64_t *starts, int n, int64_t at)
{
    int low = 0, high = n - 1;
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (starts[middle] <= at)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

Status data_corpus_read(const Corpus *c, int64_t first, int64_t n, int32_t vocab_size, int32_t *out)
{
    CHECK(first >= 0 && n >= 0 && first + n <= c->n_tokens);
    while (n > 0) {
        int s = find_shard(c->first_token, c->n_shards, first);
        int64_t part = min_i64(n, c->first_token[s + 1] - first);
        TRY(data_shard_read(&c->shard[s], first - c->first_token[s], part, vocab_size, out));
        first += part;
        out += part;
        n -= part;
    }
    return OK;
}

Status data_corpus_ended(const Corpus *c, int64_t token, int64_t *n_ended)
{
    if (token >= c->n_tokens) {
        *n_ended = c->n_docs;
        return OK;
    }
    int s = find_shard(c->first_token, c->n_shards, token);
    int64_t inside;
    TRY(data_shard_ended(&c->shard[s], token - c->first_token[s], &inside));
    *n_ended = c->first_doc[s] + inside;
    return OK;
}

Status data_corpus_doc(const Corpus *c, int64_t i, int64_t *begin, int64_t *end)
{
    CHECK(i >= 0 && i < c->n_docs);
    int s = find_shard(c->first_doc, c->n_shards, i);
    TRY(data_shard_offset(&c->shard[s], i - c->first_doc[s], begin));
    TRY(data_shard_offset(&c->shard[s], i - c->first_doc[s] + 1, end));
    *begin += c->first_token[s];
    *end += c->first_token[s];
    return OK;
}

/* ---- opening ---------------------------------------------------------------------------- */

static Status open_shard(Arena *arena, const char *dir, const json_t *entry, SourceData *source)
{
    const char *file = json_string_value(json_object_get(entry, "file"));
    const char *hash = json_string_value(json_object_get(entry, "hash"));
    const json_t *tokens = json_object_get(entry, "tokens"),
                 *holdout = json_object_get(entry, "holdout");
    if (!file || !hash || !json_is_integer(tokens) || !json_is_boolean(holdout) ||
        !path_is_plain_name(file))
        return fail(ERR_FORMAT, "%s/index.json: an entry of shards is not what it should be", dir);
    Corpus *c = &source->split[json_is_true(holdout) ? DATA_HOLDOUT : DATA_TRAIN];
    Shard *shard = &c->shard[c->n_shards];
    TRY(data_shard_open(path_join(arena, dir, file), shard));
    c->n_shards++; /* from here on it is closed with the others */
    char found[17];
    snprintf(found, sizeof found, "%016llx", (unsigned long long)shard->info.hash);
    if (shard->info.n_tokens != json_integer_value(tokens) || strcmp(found, hash) != 0)
        return fail(ERR_FORMAT, "%s/%s is not the shard that the index lists", dir, file);
    c->first_token[c->n_shards] = c->n_tokens += shard->info.n_tokens;
    c->first_doc[c->n_shards] = c->n_docs += shard->info.n_docs;
    c->text_bytes += shard->info.text_bytes;
    return OK;
}

static Status read_index(Arena *arena, const char *dir, const json_t *root, SourceData *source)
{
    const json_t *shards = json_object_get(root, "shards");
    if (json_integer_value(json_object_get(root, "version")) != 1 || !json_is_array(shards) ||
        json_array_size(shards) > MAX_SHARDS)
        return fail(ERR_FORMAT, "%s/index.json is no index of shards", dir);
    source->stats.n_files = json_integer_value(json_object_get(root, "files"));
    source->stats.n_skipped_files = json_integer_value(json_object_get(root, "skipped_files"));
    source->stats.n_bad_records = json_integer_value(json_object_get(root, "bad_records"));
    size_t n = json_array_size(shards);
    for (int i = 0; i < 2; i++) {
        source->split[i].shard = ARENA_ARRAY(arena, Shard, n + 1);
        source->split[i].first_token = ARENA_ARRAY(arena, int64_t, n + 1);
        source->split[i].first_doc = ARENA_ARRAY(arena, int64_t, n + 1);
    }
    for (size_t i = 0; i < n; i++) TRY(open_shard(arena, dir, json_array_get(shards, i), source));
    if (!source->split[DATA_TRAIN].n_tokens)
        return fail(ERR_FORMAT, "%s/index.json lists nothing to train on", dir);
    return OK;
}

Status data_source_open(Arena *arena, const char *dir, SourceData *source)
{
    Arena text_arena = {0};
    Bytes text;
    Status status = file_read(&text_arena, path_join(&text_arena, dir, "index.json"),
                              MAX_INDEX_BYTES, &text);
    if (status == OK) {
        json_error_t error;
        json_t *root = json_loadb((const char *)text.at, text.n, JSON_REJECT_DUPLICATES, &error);
        status = root ? read_index(arena, dir, root, source)
                      : fail(ERR_FORMAT, "%s/index.json: line %d: %s", dir, error.line, error.text);
        json_decref(root);
    }
    arena_deinit(&text_arena);
    if (status != OK) data_source_close(source);
    return status;
}

void data_source_close(SourceData *source)
{
    for (int i = 0; i < 2; i++) {
        for (int k = 0; k < source->split[i].n_shards; k++)
            data_shard_close(&source->split[i].shard[k]);
        source->split[i] = (Corpus){0};
    }
}

/* ---- all sources ------------------------------------------------------------------------ */

static Status check_options(const DataOptions *o)
{
    if (o->n_sources < 1)
        return fail(ERR_ARG,
                    "data: the run names no data; for instance data: [{path: /usr/include}]");
    for (int i = 0; i < o->n_sources; i++) {
        if (!(o->sources[i].weight > 0) || !(o->sources[i].weight < 1e300))
            return fail(ERR_ARG, "data: the weight of source %d is %g; above 0 is wanted", i,
                        o->sources[i].weight);
        if (o->sources[i].path && !o->tokenizer)
            return fail(ERR_ARG, "data: %s needs a tokenizer", o->sources[i].path);
    }
    if (!(o->holdout >= 0 && o->holdout <= 0.5))
        return fail(ERR_ARG, "data: holdout is %g; 0 to 0.5 is wanted", o->holdout);
    if (!(o->bad_share >= 0 && o->bad_share <= 1))
        return fail(ERR_ARG, "data: bad_share is %g; 0 to 1 is wanted", o->bad_share);
    if (o->line_limit && o->line_limit < 16)
        return fail(ERR_ARG, "data: line_limit is %zu; at least 16 is wanted", o->line_limit);
    return OK;
}

static Status open_source(const DataOptions *o, const DataSource *source, Data *data,
                          SourceData *out)
{
    SourceFiles files;
    TRY(data_files_find(&data->arena, source->path, &files));
    out->path = arena_strdup(&data->arena, source->path);
    uint64_t key = data_source_key(o, source, &files);
    const char *dir = arena_printf(&data->arena, "%s/%016llx", o->cache_dir,
                                   (unsigned long long)key);
    if (dir_exists(dir)) {
        if (data_source_open(&data->arena, dir, out) == OK) return OK;
        log_warn("%s; the shards of %s are built again", status_message(), source->path);
        TRY(dir_remove_tree(dir));
    }
    TRY(dir_create(o->cache_dir));
    TRY(data_source_build(o, source, &files, dir));
    TRY(dir_sync(o->cache_dir));
    return data_source_open(&data->arena, dir, out);
}

Status data_open(const DataOptions *o, Data **out)
{
    TRY(check_options(o));
    Data *data = xcalloc(1, sizeof *data);
    data->tokenizer = o->tokenizer;
    data->shuffle = o->shuffle;
    data->vocab_size = o->tokenizer ? tokenizer_vocab_size(o->tokenizer) : o->vocab_size;
    data->source = ARENA_ARRAY(&data->arena, SourceData, o->n_sources);
    Status status = OK;
    for (int i = 0; i < o->n_sources && status == OK; i++) {
        SourceData *source = &data->source[i];
        source->weight = o->sources[i].weight;
        if (o->sources[i].path)
            status = open_source(o, &o->sources[i], data, source);
        else if (o->vocab_size)
            data->vocab_size = o->vocab_size;
        data->n_sources++;
    }
    if (status == OK && data->vocab_size < 1)
        status = fail(ERR_ARG, "data: random ids need a vocabulary size");
    if (status == OK)
        *out = data;
    else
        data_close(data);
    return status;
}

void data_close(Data *data)
{
    if (!data) return;
    for (int i = 0; i < data->n_sources; i++) data_source_close(&data->source[i]);
    arena_deinit(&data->arena);
    free(data);
}

DataStats data_stats(const Data *data, DataSplit split)
{
    DataStats sum = {0};
    for (int i = 0; i < data->n_sources; i++) {
        const SourceData *s = &data->source[i];
        sum.n_files += s->stats.n_files;
        sum.n_skipped_files += s->stats.n_skipped_files;
        sum.n_bad_records += s->stats.n_bad_records;
        sum.n_documents += s->split[split].n_docs;
        sum.n_tokens += s->split[split].n_tokens;
        sum.text_bytes += s->split[split].text_bytes;
    }
    return sum;
}

Status data_verify(const Data *data)
{
    for (int i = 0; i < data->n_sources; i++)
        for (int split = 0; split < 2; split++)
            for (int k = 0; k < data->source[i].split[split].n_shards; k++)
                TRY(data_shard_verify(&data->source[i].split[split].shard[k]));
    return OK;
}
