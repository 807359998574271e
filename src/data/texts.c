/* Documents as texts for training a tokenizer: a share of each file, none of it held out. */
#include "data/data_internal.h"

#include <stdlib.h>
#include <string.h>

struct DataTexts {
    Arena arena;
    DataOptions options;
    SourceFiles *files; /* of each source */
    uint64_t total_bytes;
    double share; /* of the documents */
    int source;
    size_t file; /* the next to open */
    Reader *reader;
    TextHolder holder;
    uint64_t n_records; /* so far: the index of the next one's random number */
};

Status data_texts_open(const DataOptions *options, uint64_t limit_bytes, DataTexts **out)
{
    DataTexts *t = xcalloc(1, sizeof *t);
    t->options = *options;
    t->files = ARENA_ARRAY(&t->arena, SourceFiles, options->n_sources + 1);
    Status status = OK;
    uint64_t total = 0;
    for (int i = 0; i < options->n_sources && status == OK; i++) {
        if (!options->sources[i].path) continue;
        status = data_files_find(&t->arena, options->sources[i].path, &t->files[i]);
        total += t->files[i].total_bytes;
    }
    if (status == OK && !total)
        status = fail(ERR_FORMAT, "data: there is no text to train a tokenizer on");
    if (status != OK) {
        data_texts_close(t);
        return status;
    }
    t->share = limit_bytes >= total ? 1 : (double)limit_bytes / (double)total;
    t->total_bytes = limit_bytes < total ? limit_bytes : total;
    *out = t;
    return OK;
}

/* Opens the next file; *more is false after the last. */
static Status open_next(DataTexts *t, bool *more)
{
    *more = false;
    while (t->source < t->options.n_sources && t->file == t->files[t->source].n) {
        t->source++;
        t->file = 0;
    }
    if (t->source == t->options.n_sources) return OK;
    size_t limit = t->options.line_limit ? t->options.line_limit : (size_t)64 << 20;
    TRY(data_reader_open(&t->files[t->source].at[t->file++], limit, &t->reader));
    *more = true;
    return OK;
}

/* Whether a record's text is one to hand out. Bad ones are counted when the shards are built. */
static bool take(DataTexts *t, const Record *record, Bytes *text)
{
    char why[MAX_WHY];
    const char *key = t->options.sources[t->source].key;
    uint64_t index = t->n_records++;
    if (record->bad || rng_uniform(rng_key(0, "data/texts"), index) >= t->share) return false;
    if (!data_record_text(record, key ? key : "text", &t->holder, text, why)) return false;
    if (text->n && (record->json || data_is_text(*text)) &&
        data_holdout_place(hash_bytes(text->at, text->n)) >= t->options.holdout)
        return true;
    data_text_release(&t->holder);
    return false;
}

Status data_texts_next(void *texts, Bytes *text)
{
    DataTexts *t = texts;
    data_text_release(&t->holder);
    for (;;) {
        if (!t->reader) {
            bool more;
            TRY(open_next(t, &more));
            if (!more) {
                *text = (Bytes){0};
                return OK;
            }
        }
        Record record;
        TRY(data_reader_next(t->reader, &record));
        if (record.bytes.at || record.bad) {
            if (take(t, &record, text)) return OK;
        } else {
            data_reader_close(t->reader);
            t->reader = NULL;
        }
    }
}

uint64_t data_texts_total_bytes(const DataTexts *t) { return t->total_bytes; }

void data_texts_close(DataTexts *t)
{
    if (!t) return;
    data_text_release(&t->holder);
    data_reader_close(t->reader);
    arena_deinit(&t->arena);
    free(t);
}
