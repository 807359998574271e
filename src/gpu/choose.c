/* Algorithms of a product tried out on the device, and the fastest remembered in the user's file.
 */
#include "gpu/choices.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

enum { MOST_FILE_BYTES = 64 << 20, BATCHES = 3, MOST_RUNS = 20 };
static const double batch_ms = 0.5; /* of runs that are timed together, at least */
static const double hopeless = 2;   /* times the best so far: no more than one run */
static const double lock_wait_s = 120;

void gpu_product_tune(Gpu *gpu, const char *path)
{
    GpuChoices *c = gpu_choices(gpu);
    free(c->path);
    c->path = path ? xstrdup(path) : NULL;
}

/* A relative XDG_CACHE_HOME is to be ignored, says its standard. */
char *gpu_product_file(Arena *arena)
{
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (cache && cache[0] == '/') return arena_printf(arena, "%s/drover/products", cache);
    if (home && home[0] == '/') return arena_printf(arena, "%s/.cache/drover/products", home);
    return NULL;
}

void gpu_choices_deinit(GpuChoices *c)
{
    free(c->path);
    choice_table_deinit(&c->used);
    *c = (GpuChoices){0};
}

void gpu_product_key(Gpu *gpu, const GpuProduct *p, char key[CHOICE_KEY_BYTES])
{
    static const char *const scaled[] = {"", " by rows", " by blocks", " by squares"};
    const GpuInfo *i = gpu_info(gpu);
    bool of_8_bits = p->a_scaling != GPU_SCALE_NONE;
    snprintf(key, CHOICE_KEY_BYTES,
             "%s, %d multiprocessors, driver %d, %s: [%lld %lld] %s%s%s by [%lld %lld] %s%s%s to "
             "%s, pitches %lld %lld %lld, alignment %zu, workspace %zu%s",
             i->name, i->multiprocessors, i->driver, gpu_libraries(gpu), (long long)p->m,
             (long long)p->k, dtype_name(p->dtype), scaled[p->a_scaling],
             p->a_transposed ? " transposed" : "", (long long)p->k, (long long)p->n,
             dtype_name(of_8_bits ? p->b_dtype : p->dtype), scaled[p->b_scaling],
             p->b_transposed ? " transposed" : "", dtype_name(p->c_dtype), (long long)p->a_pitch,
             (long long)p->b_pitch, (long long)p->c_pitch, p->alignment, p->workspace_bytes,
             p->accumulate ? ", accumulating" : "");
}

/* ---- the file ----------------------------------------------------------------------------- */

/* -1: not locked. Who dies holding it gives it back. One that nobody gives back in time, or a file
 * system without locks: the choice is made all the same, and another process may make another. */
static int lock_file(const char *path)
{
    Arena arena = {0};
    char *name = arena_printf(&arena, "%s.lock", path);
    char *slash = strrchr(name, '/');
    if (slash && slash != name) {
        *slash = 0;
        if (dir_create(name) != OK) log_debug("%s", status_message());
        *slash = '/';
    }
    int fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    arena_deinit(&arena);
    if (fd < 0) return -1;
    double begin_s = clock_s();
    while (flock(fd, LOCK_EX | LOCK_NB) < 0) {
        if ((errno != EWOULDBLOCK && errno != EINTR) || clock_s() - begin_s > lock_wait_s) {
            close(fd);
            return -1;
        }
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
    return fd;
}

static void unlock_file(int fd)
{
    if (fd >= 0) close(fd);
}

static Status read_file(const char *path, ChoiceTable *table)
{
    Arena arena = {0};
    Bytes text = {0};
    Status status = file_exists(path) ? file_read(&arena, path, MOST_FILE_BYTES, &text) : OK;
    if (status == OK && choice_table_read(table, text) > 0)
        log_debug("%s: some lines are no choices, and left out", path);
    arena_deinit(&arena);
    return status;
}

static void say_lost(GpuChoices *c)
{
    if (!c->said_lost)
        log_warn("which algorithms compute products is not kept, and another run may take others: "
                 "%s; set XDG_CACHE_HOME, or train.tune=off",
                 status_message());
    c->said_lost = true;
}

/* What was in it stays, but for what was damaged. */
static void write_file(GpuChoices *c, const ChoiceTable *table)
{
    Str text = {0};
    choice_table_write(table, &text);
    if (file_write_atomic(c->path, text.at, text.n) != OK) say_lost(c);
    str_deinit(&text);
}

/* ---- trying ------------------------------------------------------------------------------- */

typedef struct Trial {
    GpuStream *stream;
    const Candidates *candidates;
    GpuEvent *from, *to;
} Trial;

/* Milliseconds of one of `runs` in a row. */
static Status time_runs(const Trial *t, const Algorithm *algorithm, int runs, double *ms)
{
    TRY(gpu_event_record(t->from, t->stream));
    for (int i = 0; i < runs; i++) TRY(t->candidates->run(t->candidates->context, algorithm));
    TRY(gpu_event_record(t->to, t->stream));
    TRY(gpu_stream_wait(t->stream));
    TRY(gpu_event_ms(t->from, t->to, ms));
    *ms /= runs;
    return OK;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The median of some batches, of so many runs that the clock's grain does not matter. The first run
 * loads the kernel and counts for nothing. */
static Status time_algorithm(const Trial *t, const Algorithm *algorithm, double best_ms, double *ms)
{
    double batch[BATCHES];
    TRY(time_runs(t, algorithm, 1, ms));
    TRY(time_runs(t, algorithm, 1, ms));
    if (*ms > hopeless * best_ms) return OK;
    double wanted = *ms > 0 ? batch_ms / *ms : MOST_RUNS;
    int runs = wanted < 1 ? 1 : wanted > MOST_RUNS ? MOST_RUNS : (int)wanted;
    for (int i = 0; i < BATCHES; i++) TRY(time_runs(t, algorithm, runs, &batch[i]));
    qsort(batch, BATCHES, sizeof *batch, ascending);
    *ms = batch[BATCHES / 2];
    return OK;
}

/* One that the library refuses when it is run is none; a device that is lost is an error. */
static Status find_fastest(const Trial *t, int *best, double *best_ms)
{
    Status refused = OK;
    *best = -1;
    *best_ms = 1e30;
    for (int i = 0; i < t->candidates->n; i++) {
        double ms;
        refused = time_algorithm(t, &t->candidates->algorithm[i], *best_ms, &ms);
        if (refused != OK && gpu_stream_wait(t->stream) != OK) return refused;
        if (refused != OK || ms >= *best_ms) continue;
        *best = i;
        *best_ms = ms;
    }
    return *best >= 0 ? OK : refused;
}

static Status try_out(GpuStream *stream, const Candidates *candidates, int *best, double *ms)
{
    Gpu *gpu = gpu_stream_device(stream);
    Trial t = {.stream = stream, .candidates = candidates};
    Status status = gpu_event_create(gpu, &t.from);
    if (status == OK) status = gpu_event_create(gpu, &t.to);
    if (status == OK) status = find_fastest(&t, best, ms);
    gpu_event_destroy(t.from);
    gpu_event_destroy(t.to);
    return status;
}

/* ---- both --------------------------------------------------------------------------------- */

Status gpu_choose(GpuStream *stream, const char *key, const Candidates *candidates, Choice **out)
{
    GpuChoices *c = gpu_choices(gpu_stream_device(stream));
    *out = choice_find(&c->used, key);
    if (*out) return OK;
    int lock = lock_file(c->path), best = 0;
    ChoiceTable file = {0};
    Status status = OK;
    bool readable = read_file(c->path, &file) == OK; /* else it is left alone */
    if (!readable) say_lost(c);
    Choice *known = choice_find(&file, key);
    double ms = 0;
    if (known && candidates->may(candidates->context, &known->algorithm)) {
        *out = choice_add(&c->used, key, &known->algorithm, known->us);
    } else {
        if (!c->said_trying)
            log_info("products: the fastest algorithms are tried out, and kept in %s", c->path);
        c->said_trying = true;
        status = try_out(stream, candidates, &best, &ms);
        if (status == OK) {
            const Algorithm *fastest = &candidates->algorithm[best];
            *out = choice_add(&c->used, key, fastest, ms * 1e3);
            known = choice_add(&file, key, fastest, ms * 1e3);
            known->algorithm = *fastest; /* also where the file had one that cannot compute it */
            known->us = ms * 1e3;
            if (readable) write_file(c, &file);
        }
    }
    choice_table_deinit(&file);
    unlock_file(lock);
    return status;
}

/* ---- among ranks -------------------------------------------------------------------------- */

bool gpu_product_tell(Gpu *gpu, Str *out)
{
    GpuChoices *c = gpu_choices(gpu);
    ChoiceTable fresh = {0};
    for (size_t i = 0; i < c->used.choice.n; i++) {
        const Choice *choice = c->used.choice.at[i];
        if (!choice->agreed) choice_add(&fresh, choice->key, &choice->algorithm, choice->us);
    }
    bool any = fresh.choice.n;
    if (any) choice_table_write(&fresh, out);
    choice_table_deinit(&fresh);
    return any;
}

Status gpu_product_hear(Gpu *gpu, Bytes text)
{
    GpuChoices *c = gpu_choices(gpu);
    ChoiceTable heard = {0};
    int bad = choice_table_read(&heard, text);
    for (size_t i = 0; i < heard.choice.n; i++) {
        const Choice *other = heard.choice.at[i];
        Choice *mine = choice_add(&c->used, other->key, &other->algorithm, other->us);
        if (!mine->agreed) mine->algorithm = other->algorithm;
        mine->agreed = true;
    }
    choice_table_deinit(&heard);
    return bad ? fail(ERR_COMM, "another rank's choices for products are no choices") : OK;
}
