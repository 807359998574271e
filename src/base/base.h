/* base: what every folder stands on.
 *
 * What it is.   Status and error sentences, arenas, strings, log, counter-based random numbers,
 *               clock, files with fault points, names, hashes.
 * Depends on.   Nothing but libc and xxhash.
 * Owns.         The thread's error sentence, the log sink, the fault switches, the handler of
 *               SIGBUS.
 *               No other globals.
 * Invariants.   A function that can fail returns Status and has set the sentence (fail) when it is
 *               not OK; outputs are written only on success. Host memory for small metadata that
 *               cannot be had ends the process; tensors and files never do.
 * Use:
 *     static Status load(const char *path, Arena *arena) {
 *         Bytes text;
 *         TRY(file_read(arena, path, 1 << 20, &text));
 *         if (text.n == 0) return fail(ERR_FORMAT, "%s is empty", path);
 *         return OK;
 *     }
 */
#ifndef BASE_BASE_H
#define BASE_BASE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#if defined(__clang__)
#define MUST_USE_TYPE __attribute__((warn_unused_result))
#else
#define MUST_USE_TYPE
#endif
#define PRINTF_LIKE(fmt, args) __attribute__((format(printf, fmt, args)))
#define COUNT_OF(a)            ((int)(sizeof(a) / sizeof((a)[0])))

/* ---- status ----------------------------------------------------------------------------- */

typedef enum MUST_USE_TYPE Status {
    OK = 0,
    ERR_ARG,         /* a wrong value from the caller or the user */
    ERR_SHAPE,       /* tensors that do not fit together */
    ERR_IO,          /* the operating system said no */
    ERR_FORMAT,      /* a file or message that is not what it should be */
    ERR_MEMORY,      /* tensor memory that cannot be had */
    ERR_DEVICE,      /* a device or its library failed */
    ERR_COMM,        /* a peer is late, gone or disagrees */
    ERR_CANCELLED,   /* the user or the scheduler asked us to stop */
    ERR_UNSUPPORTED, /* a valid wish that this build or machine cannot grant */
    ERR_REFUSED,     /* a check before the run said no: does not fit, does not divide */
} Status;

/* Writes the sentence of the error (what, where, with the facts) and returns `status`. The one who
 * detects an error calls this, once; callers pass the status on. */
Status fail(Status status, const char *format, ...) PRINTF_LIKE(2, 3);
#if defined(__clang_analyzer__) /* it cannot know that what comes back is what went in, and never  \
                                   OK */
#define fail(status, ...) ((void)fail(status, __VA_ARGS__), (status))
#endif
/* Puts "context: " in front of the sentence; for TRY_AS. */
void fail_context(const char *format, ...) PRINTF_LIKE(1, 2);
/* The sentence of this thread's latest failure; never NULL. */
const char *status_message(void);
const char *status_name(Status status);

#define TRY(call)                                                                                  \
    do {                                                                                           \
        Status try_status_ = (call);                                                               \
        if (try_status_ != OK) return try_status_;                                                 \
    } while (0)
#define TRY_AS(call, ...)                                                                          \
    do {                                                                                           \
        Status try_status_ = (call);                                                               \
        if (try_status_ != OK) {                                                                   \
            fail_context(__VA_ARGS__);                                                             \
            return try_status_;                                                                    \
        }                                                                                          \
    } while (0)
/* With cleanup: sets the local `status` and jumps. */
#define TRY_GOTO(call, label)                                                                      \
    do {                                                                                           \
        status = (call);                                                                           \
        if (status != OK) goto label;                                                              \
    } while (0)

/* For our own bugs only; stays on in release. */
#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) check_failed(__FILE__, __LINE__, #condition);                            \
    } while (0)
__attribute__((noreturn)) void check_failed(const char *file, int line, const char *condition);

/* ---- checked sizes ---------------------------------------------------------------------- */

/* Size arithmetic on anything that came from outside goes through these: false on overflow. */
static inline bool size_mul(size_t a, size_t b, size_t *product)
{
    return !__builtin_mul_overflow(a, b, product);
}
static inline bool size_add(size_t a, size_t b, size_t *sum)
{
    return !__builtin_add_overflow(a, b, sum);
}
static inline size_t round_up(size_t n, size_t multiple)
{
    return (n + multiple - 1) / multiple * multiple;
}
static inline int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max_i64(int64_t a, int64_t b) { return a > b ? a : b; }

/* ---- memory ----------------------------------------------------------------------------- */

/* Memory with one lifetime: nothing inside is freed singly. {0} is an empty arena. */
typedef struct Arena {
    struct ArenaBlock *head;
    size_t used_bytes; /* in all blocks, for reports */
} Arena;

void *arena_alloc(Arena *arena, size_t bytes); /* zeroed, 16-byte aligned, never NULL */
char *arena_strdup(Arena *arena, const char *text);
char *arena_strndup(Arena *arena, const char *text, size_t n);
char *arena_printf(Arena *arena, const char *format, ...) PRINTF_LIKE(2, 3);
void *arena_copy(Arena *arena, const void *data, size_t bytes);
void arena_deinit(Arena *arena);
#define ARENA_NEW(arena, T)      ((T *)arena_alloc((arena), sizeof(T)))
#define ARENA_ARRAY(arena, T, n) ((T *)arena_alloc((arena), sizeof(T) * (size_t)(n)))

/* malloc and realloc that end the process with a sentence when small metadata cannot be had. */
void *xmalloc(size_t bytes);
void *xcalloc(size_t n, size_t bytes);
void *xrealloc(void *p, size_t bytes);
char *xstrdup(const char *text);

/* A growing array on the heap: VEC(int) v = {0}; VEC_PUSH(&v, 3); v.at[0]; VEC_FREE(&v). */
#define VEC(T)                                                                                     \
    struct {                                                                                       \
        T *at;                                                                                     \
        size_t n, cap;                                                                             \
    }
#define VEC_PUSH(v, item)                                                                          \
    do {                                                                                           \
        if ((v)->n == (v)->cap) {                                                                  \
            (v)->cap = (v)->cap ? 2 * (v)->cap : 16;                                               \
            (v)->at = xrealloc((v)->at, (v)->cap * sizeof *(v)->at);                               \
        }                                                                                          \
        (v)->at[(v)->n++] = (item);                                                                \
    } while (0)
#define VEC_FREE(v)                                                                                \
    do {                                                                                           \
        free((v)->at);                                                                             \
        (v)->at = NULL;                                                                            \
        (v)->n = (v)->cap = 0;                                                                     \
    } while (0)

/* Bytes that somebody else owns. */
typedef struct Bytes {
    const uint8_t *at;
    size_t n;
} Bytes;

/* A text that grows; always ends in a zero byte once something was added. {0} is empty. */
typedef struct Str {
    char *at;
    size_t n, cap;
} Str;

void str_add(Str *s, const char *text);
void str_add_n(Str *s, const char *text, size_t n);
void str_printf(Str *s, const char *format, ...) PRINTF_LIKE(2, 3);
void str_clear(Str *s);
void str_deinit(Str *s);

/* ---- log -------------------------------------------------------------------------------- */

typedef enum LogLevel { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR, LOG_SILENT } LogLevel;

void log_set_level(LogLevel level); /* LOG_INFO at the start */
void log_set_thread_quiet(
    bool quiet); /* this thread's lines are not written: ranks that do what another reports */
/* One line to stderr, "drover: " in front for warnings and errors. Safe from any thread. */
void log_line(LogLevel level, const char *format, ...) PRINTF_LIKE(2, 3);
#define log_debug(...) log_line(LOG_DEBUG, __VA_ARGS__)
#define log_info(...)  log_line(LOG_INFO, __VA_ARGS__)
#define log_warn(...)  log_line(LOG_WARN, __VA_ARGS__)
#define log_error(...) log_line(LOG_ERROR, __VA_ARGS__)

/* ---- random numbers --------------------------------------------------------------------- */

/* Philox4x32-10 (Salmon et al., SC 2011): a pure function of key and counter, so that any number
 * can be had without those before it. */
typedef struct Philox {
    uint32_t word[4];
} Philox;

Philox rng_philox(uint64_t key, uint64_t counter_high, uint64_t counter_low);
/* A key for a named purpose ("init/model.norm.weight", "order/train"), from the run's seed. */
uint64_t rng_key(uint64_t seed, const char *purpose);
uint64_t rng_u64(uint64_t key, uint64_t index);
double rng_uniform(uint64_t key, uint64_t index);                 /* [0, 1), 53 bits */
uint64_t rng_below(uint64_t key, uint64_t index, uint64_t bound); /* [0, bound), bound > 0 */
double rng_normal(uint64_t key, uint64_t index);                  /* mean 0, deviation 1 */
/* Element i of out is (float)(deviation * rng_normal(key, first + i)). */
void rng_fill_normal(uint64_t key, uint64_t first, double deviation, float *out, size_t n);
/* The index-th element of a pseudo-random permutation of 0..n-1 (a Feistel network, walked until
 * it lands inside): O(1), no table. */
uint64_t rng_permute(uint64_t key, uint64_t index, uint64_t n);

/* ---- clock, machine --------------------------------------------------------------------- */

double clock_s(void);                /* monotonic */
double clock_wall_s(void);           /* since 1970 */
int cpu_count(void);                 /* cores this process may use */
size_t memory_total_bytes(void);     /* of the machine or of our cgroup, the smaller */
size_t memory_available_bytes(void); /* what could be had now without swapping */
size_t memory_peak_rss_bytes(void);  /* of this process so far */

/* ---- faults ----------------------------------------------------------------------------- */

/* FAULT=point:n[+][:kill|:stop][@rank],... in the environment (or fault_set) makes the n-th call of
 * fault_hit for that point return true (n+: that one and all later ones), kills the process there,
 * or stops it as SIGSTOP does; with @rank, calls of that rank only are counted. `drover launch`
 * takes several of these, parted by ;, one a start. Points: open, read, write, reserve, fsync,
 * rename, close, unlink, mkdir, map, tensor_alloc, comm (a collective fails), comm_stall (a rank
 * does not take part in it), comm_skip (it goes on without it), comm_differ (it says another size),
 * write_hang (a write of a range takes a second), train.*: what goes wrong in a step
 * (train/inject.c). */
bool fault_hit(const char *point);
/* This thread is a rank's, or with `process` all threads are that have not said which. */
void fault_set_rank(int rank, bool process);
Status fault_set(const char *spec);     /* replaces the switches; NULL clears; counts restart */
int64_t fault_count(const char *point); /* calls so far of that point, for sweeps */

/* ---- files ------------------------------------------------------------------------------ */

/* Each passes through a fault point and fails with a sentence that names the path. */
Status file_open_read(const char *path, int *fd);
Status file_open_write(const char *path, int *fd); /* one that is there, as it is */
Status file_create(const char *path, int *fd);     /* truncates; mode 0644 */
Status file_reserve(int fd, uint64_t bytes,
                    const char *path); /* makes it so long, with blocks where that can be had */
Status file_write(int fd, const void *data, size_t n, const char *path);
Status file_pwrite(int fd, const void *data, size_t n, uint64_t offset, const char *path);
Status file_pread(int fd, void *data, size_t n, uint64_t offset, const char *path);
Status file_sync(int fd, const char *path); /* an error is never retried on the same file */
Status file_close(int fd, const char *path);
Status file_rename(const char *from, const char *to);
Status file_unlink(const char *path);
Status file_size(const char *path, uint64_t *bytes);
bool file_exists(const char *path);
bool dir_exists(const char *path);
Status dir_create(const char *path); /* parents too; an existing one is fine */
Status dir_sync(const char *path);
Status dir_remove_tree(const char *path);
typedef struct DirEntries {
    char **name; /* sorted by strcmp, without . and .. */
    int n;
} DirEntries;
Status dir_list(Arena *arena, const char *path, DirEntries *entries);
Status dir_free_bytes(const char *path, uint64_t *bytes);

/* The whole file, refused when larger than max_bytes; a zero byte follows the last. */
Status file_read(Arena *arena, const char *path, size_t max_bytes, Bytes *out);
/* Written beside, synced, renamed over, directory synced: after a crash the old or the new text. */
Status file_write_atomic(const char *path, const void *data, size_t n);

/* A file mapped for reading. A file that shrinks later is caught: file_map_copy fails instead of
 * raising SIGBUS. */
typedef struct FileMap {
    const uint8_t *at;
    size_t n;
    char *path;
} FileMap;
Status file_map(const char *path, FileMap *map);
void file_unmap(FileMap *map);
Status file_map_copy(const FileMap *map, size_t offset, void *out, size_t n);

char *path_join(Arena *arena, const char *dir, const char *name);
const char *path_base(const char *path); /* after the last slash */
/* A plain file name: no separator, not empty, not . or .., no control characters. */
bool path_is_plain_name(const char *name);

/* ---- text ------------------------------------------------------------------------------- */

/* The candidate nearest to word (Damerau-Levenshtein, at most a third of the letters wrong), or
 * NULL. */
const char *name_nearest(const char *word, const char *const *candidates, int n);
/* Strict numbers: the whole text, no white space, in range; false otherwise. */
bool parse_i64(const char *text, int64_t *out);
bool parse_f64(const char *text, double *out); /* finite */
bool utf8_valid(const uint8_t *text, size_t n);
/* Brackets of a JSON text, those in strings aside, go more than `levels` deep: a parser that
 * recurses would follow them. */
bool json_is_deeper(const char *text, size_t n, int levels);
/* Decodes one code point at text[0..n), n > 0: its length 1..4, or 0 when malformed. */
int utf8_decode(const uint8_t *text, size_t n, uint32_t *code_point);
int utf8_encode(uint32_t code_point, uint8_t out[4]);
/* "1.23 GB", "456 MB", "789 bytes" (powers of ten); into buf, which is returned. */
char *format_bytes(double bytes, char buf[32]);
/* "1h02m", "3m04s", "5.6s". */
char *format_duration(double seconds, char buf[32]);
/* "1.24B", "17.2M", "3,210". */
char *format_count(double count, char buf[32]);

/* ---- hashes ----------------------------------------------------------------------------- */

uint64_t hash_bytes(const void *data, size_t n); /* XXH3, 64 bits */
typedef struct Hash128 {
    uint64_t low, high;
} Hash128;
Hash128 hash128_bytes(const void *data, size_t n); /* XXH3, 128 bits: integrity of files */
void hash128_hex(Hash128 hash, char out[33]);

/* From names to numbers; names are borrowed. All zero is an empty one. */
typedef struct NameSlot {
    const char *name; /* NULL: free */
    uint64_t hash;
    int value;
} NameSlot;
typedef struct NameIndex {
    NameSlot *slot; /* [cap], a power of two */
    size_t n, cap;
} NameIndex;
void name_index_put(NameIndex *index, const char *name,
                    int value); /* of equal names the first one stays */
int name_index_find(const NameIndex *index, const char *name); /* -1: none */
void name_index_deinit(NameIndex *index);

#endif
