/* For the tests of ckpt/: a scratch directory and a small training state whose every value follows
 * from (seed, name, index), so that a loaded one can be told to be whole and of which step. */
#ifndef CKPT_CKPT_TESTKIT_H
#define CKPT_CKPT_TESTKIT_H

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ckpt/ckpt_internal.h"

#include <cmocka.h> /* after ours: it makes a macro of fail */

#define assert_ok(call)                                                                            \
    do {                                                                                           \
        Status ok_status_ = (call);                                                                \
        if (ok_status_ != OK) fail_msg("%s", status_message());                                    \
    } while (0)

/* In memory where there is such a file system: thousands of saves sync there in no time. */
static inline char *scratch_create(void)
{
    const char *base = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    char path[96];
    snprintf(path, sizeof path, "%s/drover-ckpt-%d-%.0f", base, (int)getpid(), clock_s() * 1e9);
    assert_false(dir_exists(path));
    assert_ok(dir_create(path));
    return xstrdup(path);
}

static inline void scratch_destroy(char *path)
{
    (void)fault_set(NULL);
    assert_ok(dir_remove_tree(path));
    free(path);
}

enum { TINY_MODEL = 4, TINY_OPTIMIZER = 5 };

typedef struct TinyState {
    NamedTensor model[TINY_MODEL], optimizer[TINY_OPTIMIZER];
    CkptTensors tensors;
    CkptShare share; /* as of the last tiny_save */
    Arena arena;
    char *memory;
    size_t bytes;
} TinyState;

static inline void tiny_add(TinyState *s, NamedTensor *out, const char *name, DType dtype, int rank,
                            const int64_t *dims)
{
    Axis axes[MAX_RANK] = {AXIS_ANY, AXIS_ANY, AXIS_ANY, AXIS_ANY, AXIS_ANY};
    Shape shape = shape_make(rank, dims, axes);
    out->name = name;
    out->tensor = tensor_make(s->memory + s->bytes, dtype, shape);
    s->bytes += round_up(tensor_bytes(&out->tensor), 64);
}

static inline TinyState *tiny_create(void)
{
    TinyState *s = xcalloc(1, sizeof *s);
    s->memory = xcalloc(1, 1 << 16);
    tiny_add(s, &s->model[0], "model.embed_tokens.weight", DTYPE_F32, 2, (int64_t[]){37, 8});
    tiny_add(s, &s->model[1], "model.layers.0.mlp.up_proj.weight", DTYPE_BF16, 2,
             (int64_t[]){9, 8});
    tiny_add(s, &s->model[2], "model.norm.weight", DTYPE_F32, 1, (int64_t[]){8});
    tiny_add(s, &s->model[3], "model.empty", DTYPE_F32, 1, (int64_t[]){0});
    tiny_add(s, &s->optimizer[0], "m.model.embed_tokens.weight", DTYPE_F32, 2, (int64_t[]){37, 8});
    tiny_add(s, &s->optimizer[1], "v.model.embed_tokens.weight", DTYPE_F32, 2, (int64_t[]){37, 8});
    tiny_add(s, &s->optimizer[2], "m.model.norm.weight", DTYPE_F32, 1, (int64_t[]){8});
    tiny_add(s, &s->optimizer[3], "v.model.norm.weight", DTYPE_F32, 1, (int64_t[]){8});
    tiny_add(s, &s->optimizer[4], "step", DTYPE_I64, 0, NULL);
    s->tensors = (CkptTensors){s->model, TINY_MODEL, s->optimizer, TINY_OPTIMIZER};
    return s;
}

static inline void tiny_destroy(TinyState *s)
{
    arena_deinit(&s->arena);
    free(s->memory);
    free(s);
}

static inline void tiny_fill(TinyState *s, int64_t step)
{
    uint64_t key = rng_key((uint64_t)step, "tiny");
    for (size_t i = 0; i < s->bytes; i += 8) { /* tensors begin at multiples of 64 */
        uint64_t word = rng_u64(key, i);
        memcpy(s->memory + i, &word, 8);
    }
    /* what lies between the tensors is not stored */
    for (int i = 0; i < TINY_MODEL + TINY_OPTIMIZER; i++) {
        const Tensor *t = i < TINY_MODEL ? &s->model[i].tensor
                                         : &s->optimizer[i - TINY_MODEL].tensor;
        size_t bytes = tensor_bytes(t);
        memset((char *)t->data + bytes, 0, round_up(bytes, 64) - bytes);
    }
}

static inline bool tiny_is(const TinyState *s, int64_t step)
{
    TinyState *want = tiny_create();
    tiny_fill(want, step);
    bool same = memcmp(want->memory, s->memory, s->bytes) == 0;
    tiny_destroy(want);
    return same;
}

/* config.json and run state as a trainer would give them. */
static inline CkptSave tiny_save(TinyState *s, int64_t step)
{
    static const CkptFile files[] = {
        {"config.json", {(const uint8_t *)"{\"model_type\": \"llama\"}\n", 24}},
        {"tokenizer.json", {(const uint8_t *)"{}\n", 3}}};
    s->share = ckpt_share_whole(&s->arena, &s->tensors);
    return (CkptSave){.step = step,
                      .share = &s->share,
                      .files = files,
                      .n_files = COUNT_OF(files),
                      .run_json = "{\"data\":{\"position\":12345},\"lr\":0.1}"};
}

static inline Status tiny_reserve(CkptStore *store, TinyState *s)
{
    s->share = ckpt_share_whole(&s->arena, &s->tensors);
    return ckpt_reserve(store, s->share.parts, s->share.n_parts);
}

static inline Status tiny_save_step(CkptStore *store, TinyState *s, int64_t step)
{
    tiny_fill(s, step);
    CkptSave save = tiny_save(s, step);
    return ckpt_save(store, &save);
}

/* The step of the newest good checkpoint, loaded and compared value by value; -1 when there is
 * none, -2 when the directory cannot be used. */
static inline int64_t tiny_load_newest(const char *root)
{
    Ckpt *found;
    log_set_level(LOG_SILENT);
    Status status = ckpt_find(root, &found);
    log_set_level(LOG_INFO);
    if (status != OK) return -2;
    if (!found) return -1;
    TinyState *s = tiny_create();
    assert_ok(ckpt_load(found, &s->tensors));
    int64_t step = ckpt_step(found);
    assert_true(tiny_is(s, step));
    ckpt_close(found);
    tiny_destroy(s);
    return step;
}

/* Names in the directory that hold `part`. */
static inline int ckpt_count_names(const char *root, const char *part)
{
    Arena arena = {0};
    DirEntries entries;
    int n = 0;
    assert_ok(dir_list(&arena, root, &entries));
    for (int i = 0; i < entries.n; i++) n += strstr(entries.name[i], part) != NULL;
    arena_deinit(&arena);
    return n;
}

/* Whether this step is there, whole, with the values it was saved with. */
static inline bool ckpt_step_loads(const char *root, int64_t step)
{
    Arena arena = {0};
    char name[STEP_NAME];
    step_name(step, name);
    Ckpt *ckpt;
    TinyState *s = tiny_create();
    bool good = ckpt_open(path_join(&arena, root, name), CKPT_VERIFY_HASHES, &ckpt) == OK;
    if (good) {
        good = ckpt_load(ckpt, &s->tensors) == OK && tiny_is(s, step);
        ckpt_close(ckpt);
    }
    tiny_destroy(s);
    arena_deinit(&arena);
    return good;
}

#endif
