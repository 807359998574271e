/* Counting the pieces of a body of text, on all cores.
 *
 * Small texts are gathered into batches, large ones are cut where a piece surely begins (a letter
 * behind a newline), so that what is counted depends on the texts alone: neither on the number of
 * threads nor on which of them took what.
 */
#include "text/train_internal.h"

#include <stdlib.h>
#ifdef _OPENMP
#include <omp.h>
#endif

enum { CHUNK_BYTES = 1 << 20, BATCH_BYTES = 16 << 20, CUT_SEARCH_BYTES = 64 << 10 };

typedef VEC(Bytes) Chunks;

typedef struct Counter {
    CountOptions *options;
    uint8_t *classes;
    WordCounts *per_thread; /* [options->threads] */
} Counter;

/* ---- the table -------------------------------------------------------------------------- */

static Word *word_slot(const WordCounts *w, const uint8_t *piece, PieceKey key)
{
    for (uint64_t i = piece_key_hash(key);; i++) {
        Word *slot = &w->slots[i & w->mask];
        if (slot->n == 0) return slot;
        if (slot->low != key.low || slot->high != key.high || slot->n != key.n) continue;
        if (key.n <= 16 || memcmp(w->bytes.at + slot->at, piece, key.n) == 0) return slot;
    }
}

static void words_grow(WordCounts *w)
{
    uint64_t size = w->slots ? 2 * (w->mask + 1) : 1 << 12;
    WordCounts larger = {xcalloc(size, sizeof(Word)), size - 1, w->n, w->bytes};
    for (uint64_t i = 0; w->slots && i <= w->mask; i++) {
        const Word *word = &w->slots[i];
        if (word->n == 0) continue;
        PieceKey key = {word->low, word->high, word->n};
        *word_slot(&larger, (const uint8_t *)w->bytes.at + word->at, key) = *word;
    }
    free(w->slots);
    *w = larger;
}

static inline void words_add(WordCounts *w, const uint8_t *piece, PieceKey key, int64_t count)
{
    if (!w->slots || 2 * w->n > w->mask) words_grow(w);
    Word *slot = word_slot(w, piece, key);
    if (slot->n == 0) {
        *slot = (Word){key.low, key.high, w->bytes.n, 0, key.n};
        str_add_n(&w->bytes, (const char *)piece, key.n);
        w->n++;
    }
    slot->count += count;
}

void words_deinit(WordCounts *w)
{
    free(w->slots);
    str_deinit(&w->bytes);
    *w = (WordCounts){0};
}

/* ---- counting --------------------------------------------------------------------------- */

static void add_piece(WordCounts *w, const uint8_t *piece, size_t n, size_t room)
{
    while (n > 0) {
        size_t part = n < MAX_WORD_BYTES ? n : MAX_WORD_BYTES;
        words_add(w, piece, piece_key(piece, part, room), 1);
        piece += part;
        n -= part;
        room -= part;
    }
}

static void count_chunk(const Counter *c, Bytes text, WordCounts *w)
{
    while (text.n > 0) {
        Bytes valid = {text.at, utf8_valid_run(text.at, text.n)};
        for (size_t pos = 0, end; pos < valid.n; pos = end) {
            end = split_llama4(c->classes, valid, pos);
            add_piece(w, valid.at + pos, end - pos, text.n - pos);
        }
        size_t bad = utf8_invalid_run(text.at + valid.n, text.n - valid.n);
        add_piece(w, text.at + valid.n, bad, text.n - valid.n);
        text = (Bytes){text.at + valid.n + bad, text.n - valid.n - bad};
    }
}

static bool is_letter(uint8_t b) { return (b | 0x20) >= 'a' && (b | 0x20) <= 'z'; }

/* Cuts a text into chunks of about a megabyte: before a letter that follows a newline, or where
 * none is near, before some character. */
static void cut_text(Bytes text, Chunks *chunks)
{
    while (text.n > CHUNK_BYTES) {
        size_t cut = CHUNK_BYTES, limit = cut + CUT_SEARCH_BYTES;
        if (limit > text.n) limit = text.n;
        while (cut < limit && !(text.at[cut - 1] == '\n' && is_letter(text.at[cut]))) cut++;
        while (cut < text.n && (text.at[cut] & 0xc0) == 0x80) cut++;
        VEC_PUSH(chunks, ((Bytes){text.at, cut}));
        text = (Bytes){text.at + cut, text.n - cut};
    }
    if (text.n > 0) VEC_PUSH(chunks, text);
}

static Status count_chunks(Counter *c, Chunks *chunks)
{
    int64_t n = (int64_t)chunks->n;
#pragma omp parallel for schedule(dynamic) num_threads(c->options->threads)
    for (int64_t i = 0; i < n; i++) {
#ifdef _OPENMP
        int thread = omp_get_thread_num();
#else
        int thread = 0;
#endif
        count_chunk(c, chunks->at[i], &c->per_thread[thread]);
    }
    size_t n_words = 0;
    for (size_t i = 0; i < chunks->n; i++) c->options->seen.read_bytes += chunks->at[i].n;
    for (int i = 0; i < c->options->threads; i++) n_words += c->per_thread[i].n;
    chunks->n = 0;
    if (n_words > MAX_WORDS)
        return fail(
            ERR_REFUSED,
            "more than %d different pieces in %llu bytes of text: train the tokenizer on a sample",
            MAX_WORDS, (unsigned long long)c->options->seen.read_bytes);
    if (c->options->progress)
        TRY(c->options->progress(c->options->progress_context, &c->options->seen));
    return OK;
}

/* Small texts wait in `batch` until they are worth a parallel round. Each keeps its end. */
static Status count_texts(Counter *c, const TextSource *source, Str *batch, Chunks *chunks)
{
    VEC(size_t) ends = {0};
    Status status = OK;
    for (bool more = true; more && status == OK;) {
        Bytes text = {0};
        status = source->next(source->context, &text);
        if (status != OK) break;
        more = text.at != NULL;
        if (more && text.n <= CHUNK_BYTES) {
            str_add_n(batch, (const char *)text.at, text.n);
            VEC_PUSH(&ends, batch->n);
        } else if (more) {
            cut_text(text, chunks);
            status = count_chunks(c, chunks);
        }
        if (status != OK || (more && batch->n < BATCH_BYTES)) continue;
        for (size_t i = 0, start = 0; i < ends.n; start = ends.at[i++])
            VEC_PUSH(chunks, ((Bytes){(const uint8_t *)batch->at + start, ends.at[i] - start}));
        status = count_chunks(c, chunks);
        str_clear(batch);
        ends.n = 0;
    }
    VEC_FREE(&ends);
    return status;
}

Status words_count(CountOptions *options, const TextSource *source, WordCounts *words)
{
    Counter c = {options, xmalloc(CODE_POINTS),
                 xcalloc((size_t)options->threads, sizeof(WordCounts))};
    Str batch = {0};
    Chunks chunks = {0};
    unicode_expand(c.classes);
    Status status = count_texts(&c, source, &batch, &chunks);
    *words = c.per_thread[0];
    for (int i = 1; i < options->threads; i++) {
        WordCounts *other = &c.per_thread[i];
        for (uint64_t k = 0; other->slots && status == OK && k <= other->mask; k++) {
            const Word *word = &other->slots[k];
            PieceKey key = {word->low, word->high, word->n};
            if (word->n)
                words_add(words, (const uint8_t *)other->bytes.at + word->at, key, word->count);
        }
        words_deinit(other);
    }
    if (status != OK) words_deinit(words);
    free(c.classes);
    free(c.per_thread);
    str_deinit(&batch);
    VEC_FREE(&chunks);
    return status;
}
