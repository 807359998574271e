/* data, inside: files of a source, documents of a file, shards, streams of shards. */
#ifndef DATA_DATA_INTERNAL_H
#define DATA_DATA_INTERNAL_H

#include "data/data.h"

/* ---- files.c: what a path or glob names ------------------------------------------------- */

typedef enum Packing { PACKING_NONE, PACKING_GZIP, PACKING_ZSTD } Packing;

typedef struct SourceFile {
    const char *path;
    bool json; /* a document per line, else the whole file */
    Packing packing;
    uint64_t bytes, mtime_ns;
} SourceFile;

typedef struct SourceFiles {
    SourceFile *at; /* sorted by path, each once */
    size_t n;
    uint64_t total_bytes;
} SourceFiles;

/* ERR_IO with a sentence that names the pattern when nothing matches. */
Status data_files_find(Arena *arena, const char *pattern, SourceFiles *files);

/* ---- stream.c: the bytes of a file, unpacked -------------------------------------------- */

typedef struct ByteStream ByteStream;
Status data_stream_open(const SourceFile *file, ByteStream **out);
/* *n is 0 at the end. A damaged or truncated file is ERR_FORMAT. */
Status data_stream_read(ByteStream *stream, void *out, size_t cap, size_t *n);
uint64_t data_stream_done_bytes(const ByteStream *stream); /* of the file as it lies on disk */
void data_stream_close(ByteStream *stream);

/* ---- reader.c: the documents of a file -------------------------------------------------- */

enum { MAX_WHY = 160 };

/* A record as it lies in the file: a JSON line still to be parsed, or a text. */
typedef struct Record {
    Bytes bytes; /* at == NULL: there are no more; valid until the next call */
    bool json, bad;
    int64_t line; /* of JSON lines, from 1 */
    char why[MAX_WHY];
} Record;

typedef struct Reader Reader;
Status data_reader_open(const SourceFile *file, size_t line_limit, Reader **out);
Status data_reader_next(Reader *reader, Record *record);
uint64_t data_reader_done_bytes(const Reader *reader);
void data_reader_close(Reader *reader);

/* The text of a record. `text` points into the record, or into `holder`, which the caller releases.
 */
typedef struct TextHolder {
    void *json;
} TextHolder;
bool data_record_text(const Record *record, const char *key, TextHolder *holder, Bytes *text,
                      char why[MAX_WHY]);
void data_text_release(TextHolder *holder);
/* UTF-8 without zero bytes. */
bool data_is_text(Bytes bytes);
/* Where a document falls in [0, 1), by its text: below the share it is held out. */
double data_holdout_place(uint64_t text_hash);

/* ---- shard.c: token ids on disk --------------------------------------------------------- */

typedef struct ShardInfo {
    int64_t n_docs, n_tokens;
    uint64_t text_bytes, hash;
    int width; /* bytes per id: 2 or 4 */
} ShardInfo;

typedef struct Shard {
    FileMap map;
    ShardInfo info;
} Shard;

/* A document among the ids of a shard to be. */
typedef struct ShardDoc {
    uint64_t begin, n;
    uint64_t text_bytes;
    double place; /* of data_holdout_place */
} ShardDoc;

/* Writes the documents in the order given; durable when it returns. */
typedef struct ShardText {
    const int32_t *ids;
    const ShardDoc *docs;
    int64_t n_docs;
} ShardText;
Status data_shard_write(const char *path, const ShardText *text, int width, ShardInfo *info);
Status data_shard_open(const char *path, Shard *shard);
void data_shard_close(Shard *shard);
Status data_shard_verify(const Shard *shard);
/* Ids [first, first + n); all of them below vocab_size, or ERR_FORMAT. */
Status data_shard_read(const Shard *shard, int64_t first, int64_t n, int32_t vocab_size,
                       int32_t *out);
/* Where document i begins; i == n_docs gives n_tokens. */
Status data_shard_offset(const Shard *shard, int64_t i, int64_t *offset);
/* Documents that end at or before `token`. */
Status data_shard_ended(const Shard *shard, int64_t token, int64_t *n_ended);

/* ---- build.c: a source becomes shards --------------------------------------------------- */

/* The cache's directory for this source; built when it is not there. */
Status data_source_build(const DataOptions *options, const DataSource *source,
                         const SourceFiles *files, const char *dir);
/* Names the shards of (files, tokenizer, options). */
uint64_t data_source_key(const DataOptions *options, const DataSource *source,
                         const SourceFiles *files);

/* ---- corpus.c: shards, opened ----------------------------------------------------------- */

/* The tokens of one split of one source as one long line. */
typedef struct Corpus {
    Shard *shard;
    int64_t *first_token, *first_doc; /* of each shard; [n_shards + 1] */
    int n_shards;
    int64_t n_tokens, n_docs;
    uint64_t text_bytes;
} Corpus;

typedef struct SourceData {
    Corpus split[2];
    double weight;
    const char *path; /* NULL: random ids */
    DataStats stats;
} SourceData;

struct Data {
    Arena arena;
    SourceData *source;
    int n_sources;
    int32_t vocab_size;
    const Tokenizer *tokenizer;
    bool shuffle;
};

/* Reads dir/index.json and opens what it lists. */
Status data_source_open(Arena *arena, const char *dir, SourceData *source);
void data_source_close(SourceData *source);
Status data_corpus_read(const Corpus *corpus, int64_t first, int64_t n, int32_t vocab_size,
                        int32_t *out);
Status data_corpus_ended(const Corpus *corpus, int64_t token, int64_t *n_ended);
/* Begin and end of document i, in tokens of the corpus. */
Status data_corpus_doc(const Corpus *corpus, int64_t i, int64_t *begin, int64_t *end);

const DataPlan *data_loader_plan(const DataLoader *loader);

#endif
