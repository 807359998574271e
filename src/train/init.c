/* Initial weights: a pure function of the seed and each weight's published name, so that a fused, a
 * sharded and a plain start are the same start. */
#include "train/train.h"

#include <string.h>

static void init_part(Tensor w, const StatePart *part, uint64_t seed)
{
    int64_t n = tensor_count(&w);
    float *data = w.data;
    if (part->init_deviation == 0) {
        for (int64_t i = 0; i < n; i++) data[i] = part->init_value;
        return;
    }
    Arena arena = {0};
    uint64_t key = rng_key(seed, arena_printf(&arena, "init/%s", part->name));
    arena_deinit(&arena);
    rng_fill_normal(key, 0, (double)part->init_deviation, data, (size_t)n);
}

Status step_init_weights(Session *session, const Store *store, uint64_t seed)
{
    for (int i = 0; i < store->n_entries; i++) {
        const StateEntry *e = &store->entry[i];
        if (e->role != STATE_PARAM) continue;
        if (e->dtype != DTYPE_F32) return fail(ERR_ARG, "%s: only f32 weights are initialised", e->name);
        for (int k = 0; k < e->n_parts; k++) init_part(session_state_part(session, i, k), &e->part[k], seed);
    }
    return session_refresh_copies(session);
}
