/* Every element of every published tensor lies on exactly one rank of each way in which it is cut.
 */
#include "program/program.h"

#include "base/testing.h"

#include <stdlib.h>

typedef struct Seen {
    const StateEntry *entry;
    int *times[2]; /* per part and global element */
    bool *filled;  /* per local element */
    int64_t n_local;
} Seen;

static Status see(void *context, const StateRun *run)
{
    Seen *s = context;
    assert_true(run->n > 0);
    for (int64_t i = 0; i < run->n; i++) {
        assert_true(run->global + i < shape_count(&s->entry->part[run->part].whole));
        assert_true(run->local + i < s->n_local && !s->filled[run->local + i]);
        s->filled[run->local + i] = true;
        s->times[run->part][run->global + i]++;
    }
    return OK;
}

/* Two parts [6 8] and [4 8], or one of [4 6 8] whose last axis has halves, cut along `dim` by tp
 * and flat by fsdp. */
static void check(bool experts, int dim, int tp, int fsdp)
{
    StatePart part[2] = {{.name = "a"}, {.name = "b"}};
    int64_t dims[2][3] = {{experts ? 4 : 6, experts ? 6 : 8, 8}, {4, 8, 0}};
    int n_parts = experts ? 1 : 2, rank = experts ? 3 : 2;
    int *times[2];
    for (int k = 0; k < n_parts; k++) {
        part[k].whole = shape_make(rank, dims[k], NULL);
        times[k] = calloc((size_t)shape_count(&part[k].whole), sizeof(int));
    }
    if (experts) part[0].halves = 2;
    for (int r = 0; r < tp * fsdp; r++) {
        size_t offset = 0;
        for (int k = 0; k < n_parts; k++) {
            part[k].shape = part[k].whole;
            if (tp > 1) part[k].shape.dim[dim] /= tp;
            part[k].offset_bytes = offset;
            offset += (size_t)shape_count(&part[k].shape) * 4;
        }
        int64_t count = (int64_t)offset / 4,
                each = fsdp > 1 ? ((count + fsdp - 1) / fsdp + 15) / 16 * 16 : count;
        StateEntry e = {.dtype = DTYPE_F32,
                        .part = part,
                        .n_parts = n_parts,
                        .shape = shape_make(1, &each, NULL),
                        .whole = shape_make(rank, dims[0], NULL)};
        if (tp > 1) e.place[MESH_TP] = (Place){PLACE_CUT, (int8_t)dim};
        if (fsdp > 1) e.place[MESH_FSDP] = (Place){PLACE_CUT, PLACE_FLAT};
        Store store = {
            .entry = &e, .n_entries = 1, .mesh = {.size = {[MESH_TP] = tp, [MESH_FSDP] = fsdp}}};
        store.mesh = mesh_at(&store.mesh, r);
        Seen seen = {
            .entry = &e, .times = {times[0], n_parts > 1 ? times[1] : NULL}, .n_local = each};
        seen.filled = calloc((size_t)each, sizeof(bool));
        /* all at once, or in ranges of local elements */
        if (r % 2 == 0) assert_int_equal(store_each_run(&store, 0, see, &seen), OK);
        for (int64_t lo = 0, n = each / 3 + 1; r % 2 && lo < each; lo += n)
            for (int k = 0; k < n_parts; k++)
                assert_int_equal(store_each_part_run(&store, 0, k, lo, n, see, &seen), OK);
        free(seen.filled);
    }
    for (int k = 0; k < n_parts; k++) {
        for (int64_t i = 0; i < shape_count(&part[k].whole); i++) assert_int_equal(times[k][i], 1);
        free(times[k]);
    }
}

static void test_coverage(void **state)
{
    (void)state;
    for (int tp = 1; tp <= 2; tp++)
        for (int fsdp = 1; fsdp <= 5; fsdp++)
            for (int dim = 0; dim < 2; dim++) check(false, dim, tp, fsdp);
    for (int tp = 1; tp <= 2; tp++)
        for (int fsdp = 1; fsdp <= 5; fsdp++)
            for (int dim = 0; dim < 3; dim++) check(true, dim, tp, fsdp);
}

/* The second half of gate|up of rank 1 of 2 is the second half of each block. */
static void test_halves(void **state)
{
    (void)state;
    StatePart part = {.name = "w",
                      .whole = shape_make(2, (int64_t[]){1, 8}, NULL),
                      .shape = shape_make(2, (int64_t[]){1, 4}, NULL),
                      .halves = 2};
    StateEntry e = {.dtype = DTYPE_F32, .part = &part, .n_parts = 1, .shape = part.shape};
    e.place[MESH_TP] = (Place){PLACE_CUT, 1};
    Store store = {
        .entry = &e, .n_entries = 1, .mesh = {.size = {[MESH_TP] = 2}, .coord = {[MESH_TP] = 1}}};
    int times[8] = {0};
    bool filled[4] = {0};
    Seen seen = {.entry = &e, .times = {times}, .filled = filled, .n_local = 4};
    assert_int_equal(store_each_run(&store, 0, see, &seen), OK);
    static const int expected[8] = {0, 0, 1, 1, 0, 0, 1, 1};
    assert_memory_equal(times, expected, sizeof times);
}

/* q, k and v below one another, two rows of two columns each: rank 1 of 2 has the second row of
 * each. */
static void test_blocks_of_rows(void **state)
{
    (void)state;
    StatePart part = {.name = "w",
                      .whole = shape_make(2, (int64_t[]){6, 2}, NULL),
                      .shape = shape_make(2, (int64_t[]){3, 2}, NULL),
                      .halves = 3,
                      .halves_first = true};
    StateEntry e = {.dtype = DTYPE_F32, .part = &part, .n_parts = 1, .shape = part.shape};
    e.place[MESH_TP] = (Place){PLACE_CUT, 0};
    Store store = {
        .entry = &e, .n_entries = 1, .mesh = {.size = {[MESH_TP] = 2}, .coord = {[MESH_TP] = 1}}};
    int times[12] = {0};
    bool filled[6] = {0};
    Seen seen = {.entry = &e, .times = {times}, .filled = filled, .n_local = 6};
    assert_int_equal(store_each_run(&store, 0, see, &seen), OK);
    for (int i = 0; i < 12; i++) assert_int_equal(times[i], i / 2 % 2);
}

/* Experts that two mesh axes share out: tp takes the larger pieces. Rank (ep 1, tp 0) of 2 x 2 has
 * the second quarter. */
static void test_two_axes(void **state)
{
    (void)state;
    StatePart part = {.name = "w",
                      .whole = shape_make(2, (int64_t[]){8, 3}, NULL),
                      .shape = shape_make(2, (int64_t[]){2, 3}, NULL)};
    StateEntry e = {.dtype = DTYPE_F32, .part = &part, .n_parts = 1, .shape = part.shape};
    e.place[MESH_TP] = e.place[MESH_EP] = (Place){PLACE_CUT, 0};
    Store store = {.entry = &e,
                   .n_entries = 1,
                   .mesh = {.size = {[MESH_TP] = 2, [MESH_EP] = 2}, .coord = {[MESH_EP] = 1}}};
    int times[24] = {0};
    bool filled[6] = {0};
    Seen seen = {.entry = &e, .times = {times}, .filled = filled, .n_local = 6};
    assert_int_equal(store_each_run(&store, 0, see, &seen), OK);
    for (int i = 0; i < 24; i++) assert_int_equal(times[i], i >= 6 && i < 12);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_coverage), cmocka_unit_test(test_halves),
        cmocka_unit_test(test_blocks_of_rows), cmocka_unit_test(test_two_axes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
