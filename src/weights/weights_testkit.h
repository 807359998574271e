/* For the tests of weights/: directories with tensors made here. */
#ifndef WEIGHTS_WEIGHTS_TESTKIT_H
#define WEIGHTS_WEIGHTS_TESTKIT_H

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "weights/weights_internal.h"

#include <cmocka.h> /* after ours: it makes a macro of fail */

#define assert_ok(call)                                                                            \
    do {                                                                                           \
        Status ok_status_ = (call);                                                                \
        if (ok_status_ != OK) fail_msg("%s", status_message());                                    \
    } while (0)

enum { KIT_MAX = 64 };

typedef struct Kit {
    Arena arena;
    char *dir;
    NamedTensor tensor[KIT_MAX];
    int n;
} Kit;

static inline char *kit_scratch(Arena *arena)
{
    char *dir = arena_printf(arena, "/tmp/drover-weights-%d-%.0f", (int)getpid(), clock_s() * 1e9);
    assert_ok(dir_create(dir));
    return dir;
}

static inline void kit_begin(Kit *kit)
{
    *kit = (Kit){0};
    kit->dir = kit_scratch(&kit->arena);
}

static inline void kit_add_bits(Kit *kit, const char *name, DType dtype, int rank,
                                const int64_t *dims, const void *bits)
{
    Shape shape = shape_make(rank, dims, NULL);
    void *data = arena_copy(&kit->arena, bits, (size_t)shape_count(&shape) * dtype_bytes(dtype));
    assert_true(kit->n < KIT_MAX);
    kit->tensor[kit->n++] = (NamedTensor){arena_strdup(&kit->arena, name),
                                          tensor_make(data, dtype, shape)};
}

/* value(i) of element i in row-major order, converted. */
static inline void kit_add(Kit *kit, const char *name, DType dtype, int rank, const int64_t *dims,
                           float (*value)(int64_t))
{
    Shape shape = shape_make(rank, dims, NULL);
    int64_t n = shape_count(&shape);
    float *values = ARENA_ARRAY(&kit->arena, float, n + 1);
    void *data = arena_alloc(&kit->arena, (size_t)n * dtype_bytes(dtype) + 1);
    for (int64_t i = 0; i < n; i++) values[i] = value(i);
    assert_ok(dtype_convert(DTYPE_F32, values, dtype == DTYPE_I32 ? DTYPE_F32 : dtype, data, n));
    kit_add_bits(kit, name, dtype, rank, dims, data);
}

/* Powers of two and their halves again: products with small whole numbers stay exact in bf16. */
static inline float kit_scale(int64_t i) { return (float)(1 + i % 3) * (i % 2 ? 0.25f : 2.0f); }

/* model.safetensors in one file, and config.json where there is one. */
static inline void kit_write(Kit *kit, const char *config)
{
    assert_ok(modeldir_write(kit->dir, kit->tensor, kit->n, 0));
    if (config)
        assert_ok(file_write_atomic(path_join(&kit->arena, kit->dir, "config.json"), config,
                                    strlen(config)));
}

static inline void kit_end(Kit *kit)
{
    assert_ok(dir_remove_tree(kit->dir));
    arena_deinit(&kit->arena);
}

#endif
