/* A thousand random schedules of what may happen to a run's checkpoints: saves that go well, that
 * fail at one call, that die at any call; starts that clean up, and die while they do; readers
 * before, between and after, who keep what they opened. A model knows which step may be found;
 * after every event the disk is asked. */
#include "ckpt/ckpt_diskkit.h"

enum { SCHEDULES = 1000, HELD = 2 };

/* What the model knows. Steps only grow, but one may be saved again. */
typedef struct World {
    char *root;
    CkptStore *store; /* NULL: no run is going */
    TinyState *state, *read;
    int keep;
    int64_t newest;   /* must be found; -1: none yet */
    int n_steps;      /* different steps known to be committed, at most 2 are of interest */
    int64_t next;     /* not saved before */
    Ckpt *held[HELD]; /* a reader's */
    const char *event;
    uint64_t schedule;
} World;

/* Seen by the hook in the middle of a save. */
static struct Between {
    World *world;
    int64_t saving;
    bool looked;
} between;

static void broken(const World *w, const char *what, int64_t got)
{
    fail_msg("schedule %llu, %s: %s (%lld; newest is %lld)", (unsigned long long)w->schedule,
             w->event, what, (long long)got, (long long)w->newest);
}

/* ---- invariants ------------------------------------------------------------------------- */

/* Never fewer than two good ones, once there were two; `latest` is absent or names one of them.
 * w->newest was just loaded. Returns how many steps there are, good or not. */
static int check_steps(const World *w)
{
    Arena arena = {0};
    int64_t *steps, latest;
    int n, good = 0;
    if (latest_read(w->root, &latest) != OK) broken(w, "latest cannot be read", -1);
    bool found = latest < 0;
    assert_ok(steps_list(&arena, w->root, &steps, &n));
    for (int i = 0; i < n; i++) {
        bool loads = steps[i] == w->newest || ckpt_step_loads(w->root, steps[i]);
        good += loads;
        found = found || (loads && steps[i] == latest);
    }
    if (!found) broken(w, "latest names what is not good", latest);
    if (good < (w->n_steps < 2 ? w->n_steps : 2)) broken(w, "too few good checkpoints", good);
    arena_deinit(&arena);
    return n;
}

/* The newest is w->newest, or `other` where the event left that open; what was found is then what
 * must be. */
static int check(World *w, int64_t other)
{
    int64_t found = tiny_load_newest(w->root);
    if (found != w->newest && found != other) broken(w, "something else is found", found);
    if (found != w->newest && found >= 0) w->n_steps++;
    w->newest = found;
    return check_steps(w);
}

/* ---- events ----------------------------------------------------------------------------- */

static void stop(World *w)
{
    ckpt_store_close(w->store);
    w->store = NULL;
    disk_reset();
}

static void start(World *w)
{
    if (w->store) return;
    assert_ok(ckpt_store_open(w->root, (CkptOptions){.keep = w->keep}, &w->store));
    if (ckpt_count_names(w->root, "tmp-") != 0) broken(w, "the start left temporary names", 0);
}

static Status save(World *w, int64_t step)
{
    if (step >= w->next) w->next = step + 1;
    return tiny_save_step(w->store, w->state, step);
}

static void save_well(World *w, int64_t step)
{
    start(w);
    assert_ok(save(w, step));
    if (step != w->newest) w->n_steps++;
    w->newest = step;
    if (check(w, -1) > w->keep) broken(w, "more are kept than were asked for", w->keep);
}

/* From call k on nothing reaches the disk; then a new process starts. */
static void save_and_die(World *w, int64_t step, int64_t k)
{
    int64_t before = w->newest;
    start(w);
    disk.die_at = k;
    Status status = save(w, step);
    bool died = disk.calls >= k;
    stop(w);
    if (!died && status != OK) broken(w, "it failed before it died", k);
    if (!died ||
        step ==
            before) { /* while a step is put in place of itself the one before it may be found */
        int64_t found = tiny_load_newest(w->root);
        if (found != step && !(died && step == before))
            broken(w, "a save that went well is not found", found);
        start(w);
        if (step != before) w->n_steps++;
        w->newest = step;
        check(w, -1);
        return;
    }
    check(w, step);
    start(w);
    check(w, -1);
}

static void save_and_fail(World *w, int64_t step, int64_t k)
{
    start(w);
    disk.fail_at = k;
    disk.error = k % 2 ? ENOSPC : EIO;
    Status status = save(w, step);
    disk_reset();
    if (status == OK) {
        if (step != w->newest) w->n_steps++;
        w->newest = step;
    } else if (strlen(status_message()) < 10)
        broken(w, "no sentence", status);
    check(w, status == OK ? -1 : step);
}

static void start_and_die(World *w, int64_t step, int64_t save_k, int64_t k)
{
    if (step != w->newest) { /* leaves something to clear away */
        start(w);
        disk.die_at = save_k;
        Status ignored = save(w, step);
        (void)ignored;
        stop(w);
        check(w, step);
    }
    if (w->store) stop(w);
    disk.die_at = k;
    if (ckpt_store_open(w->root, (CkptOptions){.keep = w->keep}, &w->store) == OK) stop(w);
    disk_reset();
    w->store = NULL;
    check(w, -1);
    start(w);
    check(w, -1);
}

static void look_between(void)
{
    World *w = between.world;
    int64_t found = tiny_load_newest(w->root);
    bool replaced = between.saving ==
                    w->newest; /* by itself: then the one before it may be found */
    if (found != w->newest && found != between.saving && !replaced)
        broken(w, "found in the middle of a save", found);
    between.looked = true;
}

static void save_while_read(World *w, int64_t step, int64_t k)
{
    start(w);
    between = (struct Between){w, step, false};
    disk.hook = look_between;
    disk.hook_at = k;
    Status status = save(w, step);
    disk_reset();
    if (status != OK) broken(w, status_message(), status);
    if (step != w->newest) w->n_steps++;
    w->newest = step;
    check(w, -1);
}

/* A reader opens the newest and keeps it; one that was kept is read now, whatever became of its
 * directory. */
static void read_held(World *w, int slot)
{
    if (!w->held[slot]) {
        assert_ok(ckpt_find(w->root, &w->held[slot]));
        return;
    }
    int64_t step = ckpt_step(w->held[slot]);
    assert_ok(ckpt_load(w->held[slot], &w->read->tensors));
    if (!tiny_is(w->read, step)) broken(w, "what a reader kept has changed", step);
    ckpt_close(w->held[slot]);
    w->held[slot] = NULL;
}

/* ---- schedules -------------------------------------------------------------------------- */

enum { SAVE, DIE, FAIL, START_DIE, BETWEEN, READ, RESTART, KINDS };

static void one_event(World *w, uint64_t key, int *seen)
{
    static const char *const names[] = {"a save",
                                        "a save that dies",
                                        "a save that fails",
                                        "a start that dies",
                                        "a save while one reads",
                                        "a reader",
                                        "a restart"};
    static const int weighed[] = {SAVE,    DIE,     DIE,  FAIL, START_DIE,
                                  BETWEEN, BETWEEN, READ, READ, RESTART};
    int kind = weighed[rng_below(key, 0, COUNT_OF(weighed))];
    int64_t step = w->next + (int64_t)rng_below(key, 1, 3), k = 1 + (int64_t)rng_below(key, 2, 70);
    if (w->newest >= 0 && rng_below(key, 3, 5) == 0) step = w->newest; /* the same once more */
    w->event = names[kind];
    seen[kind]++;
    switch (kind) {
    case SAVE: save_well(w, step); return;
    case DIE: save_and_die(w, step, k); return;
    case FAIL: save_and_fail(w, step, k); return;
    case START_DIE: start_and_die(w, step, k, 1 + (int64_t)rng_below(key, 4, 12)); return;
    case BETWEEN: save_while_read(w, step, k); return;
    case READ: read_held(w, (int)rng_below(key, 5, HELD)); return;
    case RESTART:
        if (w->store) stop(w);
        start(w);
        check(w, -1);
        return;
    }
}

static void test_schedules(void **state)
{
    (void)state;
    int seen[KINDS] = {0};
    TinyState *to_save = tiny_create(), *to_read = tiny_create();
    log_set_level(LOG_SILENT);
    for (uint64_t schedule = 0; schedule < SCHEDULES; schedule++) {
        uint64_t key = rng_key(schedule, "schedule");
        World w = {.root = scratch_create(),
                   .state = to_save,
                   .read = to_read,
                   .keep = 2 + (int)rng_below(key, 0, 2),
                   .newest = -1,
                   .next = 1,
                   .schedule = schedule};
        uint64_t events = 2 + rng_below(key, 1, 3);
        for (uint64_t i = 0; i < events; i++) one_event(&w, rng_u64(key, 2 + i), seen);
        for (int i = 0; i < HELD; i++)
            if (w.held[i]) read_held(&w, i);
        if (w.store) stop(&w);
        scratch_destroy(w.root);
    }
    log_set_level(LOG_INFO);
    for (int i = 0; i < KINDS; i++) assert_true(seen[i] > SCHEDULES / 5);
    tiny_destroy(to_save);
    tiny_destroy(to_read);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_schedules)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
