/* A source becomes shards: read in order, tokenised in parallel, written in a shuffled order.
 *
 * Records are gathered into batches of a few MiB; the threads tokenise a batch, then its documents
 * are appended in the order of the files, so that the result does not depend on the threads.
 * Documents are shuffled among those of their shard, which bounds memory; sequences are shuffled
 * over all of them later. Everything is written to a directory beside the final one, which is
 * renamed when it is complete. */
#include "data/data_internal.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#ifdef _OPENMP
#include <omp.h>
#endif

enum {
    CACHE_VERSION = 1,
    BATCH_BYTES = 8 << 20,
    BATCH_RECORDS = 1 << 14,
    SHARD_TOKENS = 1 << 24,
    LOGGED_RECORDS = 3,
    SURE_RECORDS = 100000, /* before so many the share of bad ones is judged only at the end */
    MIN_TAIL_TOKENS = 32,
};

/* A record on its way to being a document. */
typedef struct Item {
    Record record; /* bytes.at is an offset into the batch until all are in */
    size_t offset;
    const SourceFile *file;
    IdVec ids;
    uint64_t hash;
    size_t text_bytes;
    bool skipped; /* a text that is none */
} Item;

typedef struct Docs {
    IdVec ids;
    VEC(ShardDoc) doc;
    VEC(ShardInfo) shard;
    int64_t n_total;
} Docs;

typedef struct Builder {
    const DataOptions *options;
    const DataSource *source;
    const SourceFiles *files;
    const char *key, *dir;
    uint64_t order_key;
    int threads, width;
    Encoder **encoder; /* one per thread */
    Str text;          /* bytes of the batch */
    VEC(Item) item;
    Docs split[2];
    DataStats stats;
    int64_t n_records;
    uint64_t done_bytes; /* of files that were read to the end */
    char first_bad[MAX_WHY + 256];
} Builder;

/* ---- one record ------------------------------------------------------------------------- */

/* Runs on any thread; touches only the item. */
static void tokenise(const Builder *b, Encoder *encoder, Item *item)
{
    if (item->record.bad) return;
    TextHolder holder;
    Bytes text;
    item->record.bytes.at = (const uint8_t *)b->text.at + item->offset;
    if (!data_record_text(&item->record, b->key, &holder, &text, item->record.why)) {
        item->record.bad = true;
        return;
    }
    item->skipped = !item->record.json && !data_is_text(text);
    item->text_bytes = text.n;
    if (!item->skipped && text.n) {
        const DataOptions *o = b->options;
        int32_t bos = tokenizer_bos(o->tokenizer), eos = tokenizer_eos(o->tokenizer);
        item->hash = hash_bytes(text.at, text.n);
        if (o->bos && bos >= 0) VEC_PUSH(&item->ids, bos);
        if (encoder_encode(encoder, text.at, text.n, ENCODE_TEXT, &item->ids) != OK) {
            item->record.bad = true;
            snprintf(item->record.why, MAX_WHY, "%s", status_message());
        }
        if (o->eos && eos >= 0) VEC_PUSH(&item->ids, eos);
    }
    data_text_release(&holder);
}

static int thread_number(void)
{
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

/* ---- budget of bad records -------------------------------------------------------------- */

static Status check_budget(const Builder *b, bool at_end)
{
    double bad = (double)b->stats.n_bad_records, share = b->options->bad_share;
    double of = (double)(at_end || b->n_records > SURE_RECORDS ? b->n_records : SURE_RECORDS);
    if (bad <= share * of) return OK;
    return fail(ERR_FORMAT,
                "data: %s: %lld of %lld records are damaged, more than dataset.bad_share = %g "
                "allows; the first: %s",
                b->source->path, (long long)b->stats.n_bad_records, (long long)b->n_records, share,
                b->first_bad);
}

static void count_bad(Builder *b, const Item *item)
{
    char line[32] = "";
    if (item->record.line) snprintf(line, sizeof line, " line %lld", (long long)item->record.line);
    if (b->stats.n_bad_records++ == 0)
        snprintf(b->first_bad, sizeof b->first_bad, "%.200s%s: %s", item->file->path, line,
                 item->record.why);
    if (b->stats.n_bad_records <= LOGGED_RECORDS)
        log_warn("data: skipped %s%s: %s", item->file->path, line, item->record.why);
}

/* ---- shards ----------------------------------------------------------------------------- */

static const char *const split_names[2] = {"train", "holdout"};

static Status flush_shard(Builder *b, DataSplit split)
{
    Docs *docs = &b->split[split];
    int64_t n = (int64_t)docs->doc.n;
    if (!n) return OK;
    Arena arena = {0};
    ShardDoc *ordered = xmalloc((size_t)n * sizeof *ordered);
    uint64_t key = rng_u64(b->order_key, docs->shard.n * 2 + split);
    for (int64_t i = 0; i < n; i++)
        ordered[i] = docs->doc.at[b->options->shuffle ? rng_permute(key, (uint64_t)i, (uint64_t)n)
                                                      : (uint64_t)i];
    char *path = arena_printf(&arena, "%s/%s-%05zu.tokens", b->dir, split_names[split],
                              docs->shard.n);
    ShardText text = {docs->ids.at, ordered, n};
    ShardInfo info = {0};
    Status status = data_shard_write(path, &text, b->width, &info);
    if (status == OK) VEC_PUSH(&docs->shard, info);
    docs->ids.n = docs->doc.n = 0;
    free(ordered);
    arena_deinit(&arena);
    return status;
}

static Status append(Builder *b, Item *item)
{
    double place = data_holdout_place(item->hash);
    DataSplit split = place < b->options->holdout ? DATA_HOLDOUT : DATA_TRAIN;
    Docs *docs = &b->split[split];
    ShardDoc doc = {docs->ids.n, item->ids.n, item->text_bytes, place};
    for (size_t i = 0; i < item->ids.n; i++) VEC_PUSH(&docs->ids, item->ids.at[i]);
    VEC_PUSH(&docs->doc, doc);
    docs->n_total++;
    b->stats.n_documents++;
    b->stats.n_tokens += (int64_t)item->ids.n;
    b->stats.text_bytes += item->text_bytes;
    return docs->ids.n >= SHARD_TOKENS ? flush_shard(b, split) : OK;
}

/* Moves the document that lies lowest (or highest) from one split to the other, while it is in
 * memory. */
static void move_document(Builder *b, DataSplit from, bool lowest)
{
    Docs *source = &b->split[from], *target = &b->split[!from];
    if (!source->doc.n) return;
    size_t best = 0;
    for (size_t i = 1; i < source->doc.n; i++) {
        double place = source->doc.at[i].place, other = source->doc.at[best].place;
        if (lowest ? place < other : place > other) best = i;
    }
    ShardDoc doc = source->doc.at[best];
    memmove(&source->doc.at[best], &source->doc.at[best + 1],
            (source->doc.n - best - 1) * sizeof doc);
    source->doc.n--;
    source->n_total--;
    uint64_t begin = doc.begin;
    doc.begin = target->ids.n;
    for (uint64_t i = 0; i < doc.n; i++) VEC_PUSH(&target->ids, source->ids.at[begin + i]);
    VEC_PUSH(&target->doc, doc);
    target->n_total++;
}

/* The only document there is: its end is held out. */
static void split_document(Builder *b)
{
    ShardDoc *doc = &b->split[DATA_TRAIN].doc.at[0];
    uint64_t tail = (uint64_t)((double)doc->n * b->options->holdout);
    if (tail < MIN_TAIL_TOKENS) tail = MIN_TAIL_TOKENS;
    if (doc->n < 4 * tail) return;
    ShardDoc end = {0, tail, (uint64_t)((double)doc->text_bytes * (double)tail / (double)doc->n),
                    doc->place};
    doc->n -= tail;
    doc->text_bytes -= end.text_bytes;
    Docs *held = &b->split[DATA_HOLDOUT];
    for (uint64_t i = 0; i < tail; i++)
        VEC_PUSH(&held->ids, b->split[DATA_TRAIN].ids.at[doc->begin + doc->n + i]);
    VEC_PUSH(&held->doc, end);
    held->n_total++;
}

/* Both splits have something, where that is possible. */
static void balance(Builder *b)
{
    Docs *train = &b->split[DATA_TRAIN], *held = &b->split[DATA_HOLDOUT];
    if (!train->n_total) move_document(b, DATA_HOLDOUT, false);
    if (held->n_total || b->options->holdout <= 0) return;
    if (train->n_total > 1)
        move_document(b, DATA_TRAIN, true);
    else if (train->n_total == 1 && train->doc.n == 1)
        split_document(b);
}

/* ---- batches ---------------------------------------------------------------------------- */

static Status report(const Builder *b, uint64_t done_bytes)
{
    const DataOptions *o = b->options;
    if (!o->progress) return OK;
    DataProgress p = {b->source->path, done_bytes, b->files->total_bytes, b->stats.n_documents,
                      b->stats.n_tokens};
    return o->progress(o->progress_context, &p);
}

static Status finish_batch(Builder *b, uint64_t done_bytes)
{
#pragma omp parallel for schedule(dynamic) num_threads(b->threads)
    for (size_t i = 0; i < b->item.n; i++) tokenise(b, b->encoder[thread_number()], &b->item.at[i]);
    Status status = OK;
    for (size_t i = 0; i < b->item.n; i++) {
        Item *item = &b->item.at[i];
        b->n_records++;
        if (item->record.bad)
            count_bad(b, item);
        else if (item->skipped)
            b->stats.n_skipped_files++;
        else if (item->ids.n && item->text_bytes && status == OK)
            status = append(b, item);
        VEC_FREE(&item->ids);
    }
    b->item.n = 0;
    b->text.n = 0;
    if (status == OK) status = check_budget(b, false);
    return status == OK ? report(b, done_bytes) : status;
}

static Status read_records(Builder *b, Reader *reader, const SourceFile *file)
{
    for (;;) {
        Record record;
        TRY(data_reader_next(reader, &record));
        if (!record.bytes.at && !record.bad) return OK;
        Item item = {.record = record, .offset = b->text.n, .file = file};
        if (record.bytes.n && !record.bad)
            str_add_n(&b->text, (const char *)record.bytes.at, record.bytes.n);
        VEC_PUSH(&b->item, item);
        if (b->text.n >= BATCH_BYTES || b->item.n >= BATCH_RECORDS)
            TRY(finish_batch(b, b->done_bytes + data_reader_done_bytes(reader)));
    }
}

static Status read_files(Builder *b)
{
    size_t limit = b->options->line_limit ? b->options->line_limit : (size_t)64 << 20;
    for (size_t i = 0; i < b->files->n; i++) {
        const SourceFile *file = &b->files->at[i];
        Reader *reader;
        TRY(data_reader_open(file, limit, &reader));
        Status status = read_records(b, reader, file);
        data_reader_close(reader);
        if (status != OK) return status;
        b->done_bytes += file->bytes;
        b->stats.n_files++;
    }
    return finish_batch(b, b->done_bytes);
}

/* ---- index ------------------------------------------------------------------------------ */

static Status write_index(const Builder *b)
{
    json_t *root = json_object(), *shards = json_array();
    for (int split = 0; split < 2; split++)
        for (size_t i = 0; i < b->split[split].shard.n; i++) {
            const ShardInfo *info = &b->split[split].shard.at[i];
            char name[32], hash[17];
            snprintf(name, sizeof name, "%s-%05zu.tokens", split_names[split], i);
            snprintf(hash, sizeof hash, "%016llx", (unsigned long long)info->hash);
            json_array_append_new(shards,
                                  json_pack("{s:s, s:b, s:I, s:s}", "file", name, "holdout", split,
                                            "tokens", (json_int_t)info->n_tokens, "hash", hash));
        }
    const DataStats *s = &b->stats;
    json_object_set_new(root, "version", json_integer(CACHE_VERSION));
    json_object_set_new(root, "source",
                        json_string(b->source->path)); /* a path that is not UTF-8 stays out */
    json_object_set_new(root, "files", json_integer(s->n_files));
    json_object_set_new(root, "skipped_files", json_integer(s->n_skipped_files));
    json_object_set_new(root, "bad_records", json_integer(s->n_bad_records));
    json_object_set_new(root, "shards", shards);
    char *text = json_dumps(root, JSON_INDENT(1));
    json_decref(root);
    if (!text) return fail(ERR_MEMORY, "data: no memory for the index of %s", b->dir);
    Arena arena = {0};
    Status status = file_write_atomic(path_join(&arena, b->dir, "index.json"), text, strlen(text));
    arena_deinit(&arena);
    free(text);
    return status;
}

static Status finish(Builder *b)
{
    TRY(check_budget(b, true));
    const DataStats *s = &b->stats;
    if (!s->n_documents)
        return fail(ERR_FORMAT,
                    "data: no text in what %s names: %lld files, %lld of them binary or not UTF-8",
                    b->source->path, (long long)s->n_files, (long long)s->n_skipped_files);
    if (s->n_skipped_files)
        log_warn("data: %s: %lld texts are binary or not UTF-8 and were left out", b->source->path,
                 (long long)s->n_skipped_files);
    balance(b);
    TRY(flush_shard(b, DATA_TRAIN));
    TRY(flush_shard(b, DATA_HOLDOUT));
    return write_index(b);
}

/* ---- all of it -------------------------------------------------------------------------- */

uint64_t data_source_key(const DataOptions *o, const DataSource *source, const SourceFiles *files)
{
    Str text = {0};
    str_printf(&text, "%d %016llx %d %d %d %.17g %.17g %zu %s\n", CACHE_VERSION,
               (unsigned long long)tokenizer_hash(o->tokenizer), o->bos, o->eos, o->shuffle,
               o->holdout, o->bad_share, o->line_limit, source->key ? source->key : "text");
    for (size_t i = 0; i < files->n; i++)
        str_printf(&text, "%s %llu %llu\n", files->at[i].path,
                   (unsigned long long)files->at[i].bytes,
                   (unsigned long long)files->at[i].mtime_ns);
    uint64_t key = hash_bytes(text.at, text.n);
    str_deinit(&text);
    return key;
}

static Status build(Builder *b)
{
    TRY(dir_create(b->dir));
    b->encoder = xcalloc((size_t)b->threads, sizeof *b->encoder);
    for (int i = 0; i < b->threads; i++) TRY(encoder_create(b->options->tokenizer, &b->encoder[i]));
    TRY(read_files(b));
    TRY(finish(b));
    return dir_sync(b->dir);
}

static void release(Builder *b)
{
    for (int i = 0; b->encoder && i < b->threads; i++) encoder_destroy(b->encoder[i]);
    free(b->encoder);
    for (size_t i = 0; i < b->item.n; i++) VEC_FREE(&b->item.at[i].ids);
    VEC_FREE(&b->item);
    str_deinit(&b->text);
    for (int i = 0; i < 2; i++) {
        VEC_FREE(&b->split[i].ids);
        VEC_FREE(&b->split[i].doc);
        VEC_FREE(&b->split[i].shard);
    }
}

Status data_source_build(const DataOptions *options, const DataSource *source,
                         const SourceFiles *files, const char *dir)
{
    Arena arena = {0};
    char *beside = arena_printf(&arena, "%s.tmp-%d", dir, (int)getpid());
    Builder b = {.options = options, .source = source, .files = files, .dir = beside};
    b.key = source->key ? source->key : "text";
    b.threads = options->threads > 0 ? options->threads : cpu_count();
    b.width = tokenizer_vocab_size(options->tokenizer) <= 1 << 16 ? 2 : 4;
    b.order_key = rng_key(0, "data/documents");
    Status status = build(&b);
    release(&b);
    /* another process may have built the same meanwhile: theirs is as good as ours */
    if (status == OK && !dir_exists(dir)) status = file_rename(beside, dir);
    if (status != OK || dir_exists(beside)) {
        char *sentence = arena_strdup(&arena, status_message());
        Status removed = dir_exists(beside) ? dir_remove_tree(beside) : OK;
        if (removed != OK) log_warn("%s", status_message());
        if (status != OK) status = fail(status, "%s", sentence);
    }
    arena_deinit(&arena);
    return status;
}
