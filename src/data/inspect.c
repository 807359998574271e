/* What is in the shards, for people; and the held-out text, for compressors. */
#include "data/data_internal.h"

#include <stdlib.h>
#include <string.h>

enum { BLOCK_TOKENS = 1 << 16, COMMONEST = 16, SAMPLES = 5, SAMPLE_TOKENS = 64 };

static Status count_tokens(const Corpus *c, int32_t vocab_size, int64_t *count)
{
    int32_t *block = xmalloc(BLOCK_TOKENS * sizeof *block);
    Status status = OK;
    for (int64_t at = 0; at < c->n_tokens && status == OK; at += BLOCK_TOKENS) {
        int64_t n = min_i64(BLOCK_TOKENS, c->n_tokens - at);
        status = data_corpus_read(c, at, n, vocab_size, block);
        for (int64_t i = 0; i < n && status == OK; i++) count[block[i]]++;
    }
    free(block);
    return status;
}

/* A token or sample on one line. */
static void add_visible(const char *text, size_t n, Str *out)
{
    for (size_t i = 0; i < n;) {
        uint32_t c;
        const uint8_t *at = (const uint8_t *)text + i;
        int length = utf8_decode(at, n - i, &c);
        if (length && c == '\n')
            str_add(out, "\\n");
        else if (length == 0 || c < 0x20 || c == 0x7f)
            str_printf(out, "\\x%02x", *at);
        else
            str_add_n(out, text + i, (size_t)length);
        i += length ? (size_t)length : 1;
    }
}

static Status add_token(const Data *data, int32_t id, Str *out)
{
    Str text = {0};
    Status status = tokenizer_decode(data->tokenizer, &id, 1, &text);
    if (status == OK && text.n) add_visible(text.at, text.n, out);
    str_deinit(&text);
    return status;
}

/* The commonest tokens, and how many ids never occur. */
static Status add_histogram(const Data *data, int64_t *count, int64_t total, Str *out)
{
    int64_t unused = 0;
    for (int32_t id = 0; id < data->vocab_size; id++) unused += count[id] == 0;
    str_printf(out, "ids that never occur: %lld of %d\ncommonest tokens:\n", (long long)unused,
               data->vocab_size);
    for (int k = 0; k < COMMONEST; k++) {
        int32_t best = 0;
        for (int32_t id = 1; id < data->vocab_size; id++)
            if (count[id] > count[best]) best = id;
        if (!count[best]) break;
        str_printf(out, "  %6.2f%%  %7d  \"", 100.0 * (double)count[best] / (double)total, best);
        TRY(add_token(data, best, out));
        str_add(out, "\"\n");
        count[best] = 0;
    }
    return OK;
}

static Status add_samples(const Data *data, Str *out)
{
    int32_t ids[SAMPLE_TOKENS];
    str_add(out, "samples:\n");
    for (int k = 0; k < SAMPLES; k++) {
        const Corpus *c = &data->source[k % data->n_sources].split[DATA_TRAIN];
        int64_t begin, end;
        if (!c->n_docs) continue;
        TRY(data_corpus_doc(
            c, (int64_t)rng_permute(1, (uint64_t)k % (uint64_t)c->n_docs, (uint64_t)c->n_docs),
            &begin, &end));
        int64_t n = min_i64(end - begin, SAMPLE_TOKENS);
        Str text = {0};
        Status status = data_corpus_read(c, begin, n, data->vocab_size, ids);
        if (status == OK) status = tokenizer_decode(data->tokenizer, ids, (size_t)n, &text);
        str_add(out, "  ");
        if (status == OK && text.n) add_visible(text.at, text.n, out);
        str_add(out, "\n");
        str_deinit(&text);
        if (status != OK) return status;
    }
    return OK;
}

static void add_counts(const Data *data, Str *out)
{
    static const char *const names[] = {"training", "held out"};
    DataStats train = data_stats(data, DATA_TRAIN);
    str_printf(out, "sources: %d, files: %lld, texts left out: %lld, bad records: %lld\n",
               data->n_sources, (long long)train.n_files, (long long)train.n_skipped_files,
               (long long)train.n_bad_records);
    for (int split = 0; split < 2; split++) {
        DataStats s = data_stats(data, (DataSplit)split);
        str_printf(out, "%s: %lld documents, %lld tokens, %llu bytes", names[split],
                   (long long)s.n_documents, (long long)s.n_tokens,
                   (unsigned long long)s.text_bytes);
        if (s.n_tokens)
            str_printf(out, ", %.2f bytes per token", (double)s.text_bytes / (double)s.n_tokens);
        str_add(out, "\n");
    }
}

Status data_inspect(const Data *data, Str *out)
{
    add_counts(data, out);
    if (!data->tokenizer) return OK;
    int64_t *count = xcalloc((size_t)data->vocab_size, sizeof *count), total = 0;
    Status status = OK;
    for (int i = 0; i < data->n_sources && status == OK; i++) {
        status = count_tokens(&data->source[i].split[DATA_TRAIN], data->vocab_size, count);
        total += data->source[i].split[DATA_TRAIN].n_tokens;
    }
    if (status == OK && total) status = add_histogram(data, count, total, out);
    free(count);
    return status == OK ? add_samples(data, out) : status;
}

/* A document's text is what its tokens decode to, without the special ones that were put around it.
 */
static Status add_document(const Data *data, const Corpus *c, int64_t begin, int64_t end, Str *out)
{
    int32_t *block = xmalloc(BLOCK_TOKENS * sizeof *block);
    Decoder decoder = {.tokenizer = data->tokenizer, .skip_special = true};
    Status status = OK;
    for (int64_t at = begin; at < end && status == OK; at += BLOCK_TOKENS) {
        int64_t n = min_i64(BLOCK_TOKENS, end - at);
        status = data_corpus_read(c, at, n, data->vocab_size, block);
        for (int64_t i = 0; i < n && status == OK; i++)
            status = decoder_push(&decoder, block[i], out);
    }
    decoder_finish(&decoder, out);
    free(block);
    return status;
}

Status data_holdout_text(const Data *data, size_t max_bytes, Str *out)
{
    size_t before = out->n;
    for (int i = 0; i < data->n_sources; i++) {
        const Corpus *c = &data->source[i].split[DATA_HOLDOUT];
        for (int64_t d = 0; d < c->n_docs && out->n - before < max_bytes; d++) {
            int64_t begin, end;
            TRY(data_corpus_doc(c, d, &begin, &end));
            TRY(add_document(data, c, begin, end, out));
        }
    }
    return OK;
}
