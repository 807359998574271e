/* Silent corruption: a processor or a memory that is wrong now and then without saying so. What
 * several ranks hold the same they compute from the same numbers in the same order, so that a
 * single bit of difference is a fault. Every so many steps, and before a checkpoint, ranks compare
 * hashes of it; with three or more copies the wrong one is known. */
#include <stdlib.h>

#include "train/trainer_internal.h"

enum {
    COMPARED = 1u << STATE_PARAM | 1u << STATE_COPY | 1u << STATE_ADAM_M | 1u << STATE_ADAM_V |
               1u << STATE_BUFFER
};

unsigned trainer_replica_axes(const Trainer *t, int entry)
{
    const StateEntry *e = &t->programs.store->entry[entry];
    unsigned axes = 0;
    if (!(COMPARED >> e->role & 1)) return 0;
    for (int a = 0; a < MESH_AXES; a++)
        if (a != MESH_PP && mesh_size(&t->layout.mesh, (MeshAxis)a) > 1 &&
            e->place[a].kind == PLACE_SAME)
            axes |= 1u << a;
    return axes; /* stages hold different weights */
}

static void hash_states(Trainer *t, uint64_t *hash)
{
    int n = t->programs.store->n_entries;
#pragma omp parallel for schedule(dynamic) num_threads(device_target(t->device).threads)
    for (int i = 0; i < n; i++) {
        if (!trainer_replica_axes(t, i)) continue;
        Tensor state = session_state(t->session, i);
        hash[i] = hash_bytes(state.data, tensor_bytes(&state));
    }
}

static Status gather(Comm *group, const uint64_t *mine, int64_t n, uint64_t *all)
{
    return comm_run(group, &(CommOp){.kind = COMM_ALL_GATHER,
                                     .dtype = DTYPE_I64,
                                     .send = mine,
                                     .recv = all,
                                     .count = n,
                                     .node = "replicas"});
}

/* The hash that more than half of the ranks have; false when there is none. */
static bool majority(const uint64_t *hash, int n, uint64_t *most)
{
    for (int i = 0; i < n; i++) {
        int same = 0;
        for (int k = 0; k < n; k++) same += hash[k] == hash[i];
        *most = hash[i];
        if (2 * same > n) return true;
    }
    return false;
}

/* The first state that differs, for the sentence. hash[n_entries] are this rank's. */
static Status find_state(Trainer *t, Comm *group, unsigned axes, const uint64_t *hash,
                         const char **name)
{
    const Store *store = t->programs.store;
    int n = comm_size(group), n_entries = store->n_entries, found = -1;
    uint64_t *all = xcalloc((size_t)n * (size_t)n_entries, sizeof *all);
    Status status = gather(group, hash, n_entries, all);
    for (int i = 0; status == OK && found < 0 && i < n_entries; i++)
        for (int r = 1; trainer_replica_axes(t, i) == axes && r < n; r++)
            if (all[(size_t)r * (size_t)n_entries + (size_t)i] != all[i]) found = i;
    free(all);
    *name = found >= 0 ? store->entry[found].name : "a state";
    return status;
}

static Status differ(Trainer *t, Comm *group, const uint64_t *hash, const char *state)
{
    int n = comm_size(group), wrong = 0, named = 0;
    uint64_t most;
    bool known = majority(hash, n, &most);
    Str who = {0};
    for (int r = 0; r < n; r++) wrong += !known || hash[r] != most;
    for (int r = 0; r < n; r++) {
        if (known && hash[r] == most) continue;
        if (++named <= 4)
            str_printf(&who, "%srank %d on %s", named > 1 ? ", " : "", comm_world_rank(group, r),
                       comm_host(group, r));
    }
    if (named > 4) str_printf(&who, " and %d more", named - 4);
    Status status = known ? fail(ERR_DEVICE,
                                 "after step %lld %s hold%s other bits of %s than %d ranks that "
                                 "must hold the same: a silent error of processor or memory "
                                 "there; nothing was saved, the same command goes on from the "
                                 "newest checkpoint; test that host",
                                 (long long)t->step, who.at, wrong > 1 ? "" : "s", state, n - wrong)
                          : fail(ERR_DEVICE,
                                 "after step %lld the copies of %s differ on %s, and none has the "
                                 "majority: a silent error of processor or memory of one; "
                                 "nothing was saved, the same command goes on from the newest "
                                 "checkpoint; test these hosts",
                                 (long long)t->step, state, who.at);
    str_deinit(&who);
    return status;
}

/* All states that lie the same along exactly these axes. */
static Status compare(Trainer *t, unsigned axes, const uint64_t *hash, const uint64_t *mine)
{
    Comm *group;
    const char *state;
    bool same = true;
    TRY(device_group(t->device, axes, &group));
    int n = comm_size(group);
    uint64_t *all = xcalloc((size_t)n, sizeof *all);
    Status status = gather(group, mine, 1, all);
    for (int r = 1; r < n; r++) same &= all[r] == all[0];
    if (status == OK && !same) {
        status = find_state(t, group, axes, hash, &state);
        if (status == OK) status = differ(t, group, all, state);
    }
    free(all);
    return status;
}

Status trainer_check_replicas(Trainer *t)
{
    int n = t->programs.store->n_entries;
    uint64_t together[1u << MESH_AXES] = {0};
    if (!t->world || t->config->train.check_replicas == 0 || t->checked_step == t->step) return OK;
    TRY(session_fetch_states(t->session));
    uint64_t *hash = xcalloc((size_t)n, sizeof *hash);
    hash_states(t, hash);
    for (int i = 0; i < n; i++) {
        unsigned axes = trainer_replica_axes(t, i);
        together[axes] = hash_bytes((uint64_t[]){together[axes], hash[i]}, 2 * sizeof(uint64_t));
    }
    Status status = OK;
    for (unsigned axes = 1; axes < 1u << MESH_AXES && status == OK; axes++)
        if (together[axes]) status = compare(t, axes, hash, &together[axes]);
    free(hash);
    t->checked_step = t->step;
    return status;
}
