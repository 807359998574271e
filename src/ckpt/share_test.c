/* Checkpoints that several ranks write: the same bytes whoever writes what; and whatever happens to
 * one of them at any moment of a save, the older checkpoints stay and the next save works. Ranks
 * are stores of one process, each with its writer thread; the test is the caller that tells them of
 * each other. */
#include "ckpt/ckpt_testkit.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

enum { TENSORS = TINY_MODEL + TINY_OPTIMIZER, MAX_CREW = 5 };

/* Which rank an element belongs to. */
typedef enum Cut { CUT_TENSORS, CUT_RANGES, CUT_COLUMNS, CUT_RUNS, CUT_HOLE, CUT_TWICE, CUTS } Cut;

typedef struct Crew Crew;
typedef struct Member {
    Crew *crew;
    int rank;
    CkptStore *store;
    CkptShare share;
    Tensor part[TENSORS];
} Member;

struct Crew {
    int n;
    Cut cut;
    TinyState *state;
    CkptTensor tensor[TENSORS];
    Member member[MAX_CREW];
    char sentence[512]; /* of the failure that ended the last save */
};

static const Tensor *whole(const Crew *c, int i)
{
    return i < TINY_MODEL ? &c->state->model[i].tensor
                          : &c->state->optimizer[i - TINY_MODEL].tensor;
}

static bool owns(const Crew *c, int rank, int tensor, int64_t element)
{
    int64_t count = tensor_count(whole(c, tensor));
    bool marked = tensor == 0 && element == 100;
    switch (c->cut) {
    case CUT_TENSORS: return tensor % c->n == rank;
    case CUT_RANGES: return element * c->n / count == rank;
    case CUT_COLUMNS: return element % 8 * c->n / 8 == rank;
    case CUT_RUNS:
        return (int)rng_below(5, (uint64_t)(element / 3 + tensor), (uint64_t)c->n) == rank;
    case CUT_HOLE: return !marked && element * c->n / count == rank;
    default: return (marked && rank == 0) || element * c->n / count == rank;
    }
}

static Status each_run(const void *context, int tensor, CkptRunFn fn, void *to)
{
    const Member *m = context;
    int64_t count = tensor_count(whole(m->crew, tensor));
    CkptRun run = {.part = tensor};
    for (int64_t i = 0; i <= count; i++) {
        bool mine = i < count && owns(m->crew, m->rank, tensor, i);
        if (mine && run.n == 0) run.first = i;
        run.n += mine;
        if (mine || run.n == 0) continue;
        TRY(fn(to, &run));
        run.at += run.n;
        run.n = 0;
    }
    return OK;
}

static void gather_parts(Member *m)
{
    for (int i = 0; i < TENSORS; i++) {
        const Tensor *all = whole(m->crew, i);
        size_t size = dtype_bytes(all->dtype), n = 0;
        for (int64_t e = 0; e < tensor_count(all); e++)
            if (owns(m->crew, m->rank, i, e))
                memcpy((char *)m->part[i].data + n++ * size,
                       (const char *)all->data + (size_t)e * size, size);
        m->part[i] = tensor_make(m->part[i].data, all->dtype,
                                 shape_make(1, (int64_t[]){(int64_t)n}, NULL));
    }
}

/* ---- a crew ----------------------------------------------------------------------------- */

static void crew_open(Crew *c, const char *root, int n, Cut cut)
{
    *c = (Crew){.n = n, .cut = cut, .state = tiny_create()};
    CkptOptions options = {.keep = 2, .write_bytes = 200};
    for (int i = 0; i < TENSORS; i++) {
        bool optimizer = i >= TINY_MODEL;
        const NamedTensor *t = optimizer ? &c->state->optimizer[i - TINY_MODEL]
                                         : &c->state->model[i];
        c->tensor[i] = (CkptTensor){t->name, t->tensor.dtype, t->tensor.shape, optimizer};
    }
    for (int r = 0; r < n; r++) {
        Member *m = &c->member[r];
        *m = (Member){.crew = c, .rank = r};
        m->share = (CkptShare){.tensors = c->tensor,
                               .n_tensors = TENSORS,
                               .parts = m->part,
                               .n_parts = TENSORS,
                               .each_run = each_run,
                               .context = m,
                               .rank = r,
                               .ranks = n};
        for (int i = 0; i < TENSORS; i++) {
            m->part[i] = *whole(c, i); /* room for all, whatever the cut becomes */
            m->part[i].data = xcalloc(tensor_bytes(whole(c, i)) + 1, 1);
        }
        if (r == 0)
            assert_ok(ckpt_store_open(root, options, &m->store));
        else
            assert_ok(
                ckpt_store_join(root, ckpt_store_key(c->member[0].store), options, &m->store));
        assert_ok(ckpt_reserve(m->store, m->part, TENSORS));
    }
}

static void crew_close(Crew *c)
{
    for (int r = c->n; r-- > 0;) {
        ckpt_store_close(c->member[r].store);
        for (int i = 0; i < TENSORS; i++) free(c->member[r].part[i].data);
    }
    tiny_destroy(c->state);
}

static void crew_begin(Crew *c, int64_t step)
{
    tiny_fill(c->state, step);
    CkptSave save = tiny_save(c->state, step);
    for (int r = 0; r < c->n; r++) {
        gather_parts(&c->member[r]);
        save.share = &c->member[r].share;
        if (r > 0) save.n_files = 0, save.run_json = NULL;
        assert_ok(ckpt_snapshot(c->member[r].store, &save));
    }
    memset(c->state->memory, 0x55, c->state->bytes); /* the snapshot is what counts */
    for (int r = 0; r < c->n; r++) gather_parts(&c->member[r]);
}

/* What the ranks would tell each other; false when the save is over. */
static bool crew_meet(Crew *c)
{
    CkptTally sum[TENSORS] = {0};
    Status failed = OK;
    bool more = false;
    int n = 0;
    for (int r = 0; r < c->n; r++) {
        Status status;
        const char *sentence;
        if (!ckpt_rests(c->member[r].store, 20, &status, &sentence))
            fail_msg("rank %d does not come", r);
        if (status == OK || failed != OK) continue;
        failed = status;
        snprintf(c->sentence, sizeof c->sentence, "%s", sentence);
    }
    for (int r = 0; r < c->n && failed == OK; r++) {
        const CkptTally *tally = ckpt_tallies(c->member[r].store, &n);
        for (int i = 0; i < n; i++) {
            for (int k = 0; k < 2; k++) sum[i].sum[k] += tally[i].sum[k];
            sum[i].n += tally[i].n;
            sum[i].places += tally[i].places;
        }
    }
    for (int r = 0; r < c->n; r++) {
        CkptTally *tally = ckpt_tallies(c->member[r].store, &n);
        if (n && failed == OK) memcpy(tally, sum, sizeof *sum * (size_t)n);
        more = ckpt_go_on(c->member[r].store, failed, c->sentence);
    }
    return more;
}

static Status crew_end(Crew *c)
{
    CkptResult result;
    Status first = OK;
    for (int r = 0; r < c->n; r++) {
        assert_true(ckpt_wait(c->member[r].store, &result));
        if (r == 0) first = result.status;
        assert_true((result.status == OK) == (first == OK));
    }
    return first;
}

static Status crew_save(Crew *c, int64_t step)
{
    c->sentence[0] = 0;
    crew_begin(c, step);
    while (crew_meet(c)) continue;
    return crew_end(c);
}

/* ---- the same bytes --------------------------------------------------------------------- */

static void assert_same_dirs(const char *a, const char *b)
{
    Arena arena = {0};
    DirEntries x, y;
    Bytes p, q;
    assert_ok(dir_list(&arena, a, &x));
    assert_ok(dir_list(&arena, b, &y));
    assert_int_equal(x.n, y.n);
    for (int i = 0; i < x.n; i++) {
        assert_string_equal(x.name[i], y.name[i]);
        assert_ok(file_read(&arena, path_join(&arena, a, x.name[i]), 1 << 20, &p));
        assert_ok(file_read(&arena, path_join(&arena, b, x.name[i]), 1 << 20, &q));
        if (p.n != q.n || memcmp(p.at, q.at, p.n) != 0) fail_msg("%s differs", x.name[i]);
    }
    arena_deinit(&arena);
}

static void test_same_bytes(void **state)
{
    (void)state;
    char *one = scratch_create();
    CkptStore *store;
    TinyState *s = tiny_create();
    assert_ok(ckpt_store_open(one, (CkptOptions){0}, &store));
    assert_ok(tiny_save_step(store, s, 7));
    ckpt_store_close(store);
    tiny_destroy(s);
    for (Cut cut = 0; cut < CUT_HOLE; cut++)
        for (int n = 1; n <= MAX_CREW; n++) {
            Arena arena = {0};
            char *root = scratch_create();
            Crew c;
            crew_open(&c, root, n, cut);
            assert_ok(crew_save(&c, 7));
            assert_same_dirs(ckpt_step_path(&arena, root, 7), ckpt_step_path(&arena, one, 7));
            assert_ok(crew_save(&c, 8));
            assert_int_equal(tiny_load_newest(root), 8);
            crew_close(&c);
            arena_deinit(&arena);
            scratch_destroy(root);
        }
    scratch_destroy(one);
}

/* ---- what is not right is not published ------------------------------------------------- */

static void test_holes(void **state)
{
    (void)state;
    for (Cut cut = CUT_HOLE; cut < CUTS; cut++) {
        char *root = scratch_create();
        Crew c;
        crew_open(&c, root, 3, CUT_RANGES);
        assert_ok(crew_save(&c, 1));
        c.cut = cut;
        assert_int_equal(crew_save(&c, 2), ERR_ARG);
        assert_non_null(strstr(c.sentence, "model.embed_tokens.weight"));
        assert_int_equal(tiny_load_newest(root), 1);
        assert_int_equal(ckpt_count_names(root, "tmp-"), 0);
        c.cut = CUT_RUNS;
        assert_ok(crew_save(&c, 2));
        assert_int_equal(tiny_load_newest(root), 2);
        crew_close(&c);
        scratch_destroy(root);
    }
}

/* A byte of a file of the save that is under way, changed behind its back. */
static void damage(const char *root, const char *file, int64_t from_end)
{
    Arena arena = {0};
    DirEntries entries;
    assert_ok(dir_list(&arena, root, &entries));
    for (int i = 0; i < entries.n; i++) {
        if (strncmp(entries.name[i], ".tmp-", 5) != 0) continue;
        const char *path = path_join(&arena, path_join(&arena, root, entries.name[i]), file);
        uint8_t byte;
        int fd = open(path, O_RDWR);
        off_t at = lseek(fd, (off_t)-from_end, SEEK_END);
        assert_int_equal(pread(fd, &byte, 1, at), 1);
        byte ^= 16;
        assert_int_equal(pwrite(fd, &byte, 1, at), 1);
        close(fd);
    }
    arena_deinit(&arena);
}

/* After the phase of writing, what the disk has made of it. */
static void test_damage_while_saving(void **state)
{
    (void)state;
    static const struct {
        const char *file;
        int64_t from_end;
        const char *says;
    } cases[] = {
        {"model-00001-of-00001.safetensors", 20, "does not read back"},
        {"optimizer-00001-of-00001.safetensors", 1000, "does not read back"},
        {"model-00001-of-00001.safetensors", 1390, "what was just written"}, /* the header */
        {"config.json", 3, "do not match the manifest"}};
    for (int i = 0; i < COUNT_OF(cases); i++) {
        char *root = scratch_create();
        Crew c;
        crew_open(&c, root, 3, CUT_COLUMNS);
        assert_ok(crew_save(&c, 1));
        crew_begin(&c, 2);
        assert_true(crew_meet(&c)); /* laid out */
        Status status;
        const char *sentence;
        for (int r = 0; r < c.n; r++)
            assert_true(ckpt_rests(c.member[r].store, 20, &status, &sentence)); /* written */
        damage(root, cases[i].file, cases[i].from_end);
        while (crew_meet(&c)) continue;
        assert_true(crew_end(&c) != OK);
        if (!strstr(c.sentence, cases[i].says)) fail_msg("%s: %s", cases[i].file, c.sentence);
        assert_int_equal(tiny_load_newest(root), 1);
        assert_int_equal(ckpt_count_names(root, "tmp-"), 0);
        assert_ok(crew_save(&c, 3));
        crew_close(&c);
        scratch_destroy(root);
    }
}

/* ---- a call that fails on one rank; a disk that is full for it -------------------------- */

static const char *const points[] = {"open",  "read",   "write", "fsync", "rename",
                                     "close", "unlink", "mkdir", "map",   "reserve"};

/* False when there are fewer calls. */
static bool fail_at(const char *point, int k)
{
    char *root = scratch_create(), fault[64];
    Crew c;
    crew_open(&c, root, 3, CUT_RUNS);
    assert_ok(crew_save(&c, 1));
    assert_ok(crew_save(&c, 2));
    snprintf(fault, sizeof fault, "%s:%d", point, k);
    assert_ok(fault_set(fault));
    Status status = crew_save(&c, 3);
    int64_t calls = fault_count(point);
    assert_ok(fault_set(NULL));
    bool complete = status == OK || strstr(c.sentence, " is complete");
    if (status != OK) {
        assert_true(strlen(c.sentence) > 10);
        assert_true(ckpt_step_loads(root, 2));
        assert_int_equal(ckpt_count_names(root, ".tmp-"), 0);
    }
    int64_t newest = tiny_load_newest(root);
    bool good = status == OK ? newest == 3 : newest == 2 || (complete && newest == 3);
    if (!good) fail_msg("%s: newest is %lld", fault, (long long)newest);
    if (!strcmp(point, "write") && status != OK)
        assert_non_null(strstr(c.sentence, "No space left"));
    assert_ok(crew_save(&c, 4));
    assert_int_equal(tiny_load_newest(root), 4);
    assert_int_equal(ckpt_count_names(root, "tmp-"), 0);
    crew_close(&c);
    scratch_destroy(root);
    return calls >= k;
}

static void test_fail_at_every_call(void **state)
{
    (void)state;
    int failures = 0;
    log_set_level(LOG_SILENT);
    for (int p = 0; p < COUNT_OF(points); p++)
        for (int k = 1; fail_at(points[p], k); k += k < 30 ? 1 : 17) failures++;
    log_set_level(LOG_INFO);
    assert_true(failures > 100);
}

/* ---- lost ranks ------------------------------------------------------------------------- */

/* The run ends after so many meetings of a save; a rank that is still at it afterwards does no
 * harm. */
static void lose_after(int meetings)
{
    char *root = scratch_create();
    Crew c, next;
    log_set_level(LOG_SILENT);
    crew_open(&c, root, 3, CUT_RUNS);
    assert_ok(crew_save(&c, 1));
    crew_begin(&c, 2);
    for (int i = 0; i < meetings; i++) assert_true(crew_meet(&c));
    ckpt_store_close(c.member[0].store); /* its lock with it */
    c.member[0].store = NULL;
    /* the last phase had begun when three had ended, and comes to its end */
    assert_int_equal(tiny_load_newest(root), meetings < 3 ? 1 : 2);
    crew_open(&next, root, 3, CUT_COLUMNS);
    assert_int_equal(ckpt_count_names(root, "tmp-"), 0);
    if (meetings > 0) /* the others were told to go on before they learnt of it */
        for (int r = 1; r < c.n; r++) ckpt_go_on(c.member[r].store, OK, NULL);
    assert_ok(crew_save(&next, 2));
    assert_int_equal(tiny_load_newest(root), 2);
    crew_close(&c);
    assert_int_equal(tiny_load_newest(root), 2);
    crew_close(&next);
    log_set_level(LOG_INFO);
    scratch_destroy(root);
}

static void test_lost_first_rank(void **state)
{
    (void)state;
    for (int meetings = 0; meetings < 4; meetings++) lose_after(meetings);
}

static int child_save(const char *root, int64_t step)
{
    Crew c;
    log_set_level(LOG_SILENT);
    crew_open(&c, root, 4, CUT_RUNS);
    Status status = crew_save(&c, step);
    crew_close(&c);
    return status == OK ? 0 : 1;
}

/* All ranks die at the k-th call that any of them makes. False when there are fewer. */
static bool kill_at(const char *point, int k)
{
    char *root = scratch_create(), variable[64];
    Crew c;
    int how;
    crew_open(&c, root, 2, CUT_RANGES);
    assert_ok(crew_save(&c, 1));
    assert_ok(crew_save(&c, 2));
    crew_close(&c);
    snprintf(variable, sizeof variable, "FAULT=%s:%d:kill", point, k);
    char *const arguments[] = {(char *)(uintptr_t) "share_test", (char *)(uintptr_t) "--save", root,
                               NULL};
    char *const environment[] = {variable, (char *)(uintptr_t) "OMP_NUM_THREADS=1", NULL};
    pid_t pid;
    assert_int_equal(posix_spawn(&pid, "/proc/self/exe", NULL, NULL, arguments, environment), 0);
    assert_int_equal(waitpid(pid, &how, 0), pid);
    bool killed = WIFSIGNALED(how) && WTERMSIG(how) == SIGKILL;
    if (!killed) assert_true(WIFEXITED(how) && WEXITSTATUS(how) == 0);
    int64_t newest = tiny_load_newest(root);
    if (!(newest == 3 || (killed && newest == 2)))
        fail_msg("killed at %s:%d: newest is %lld", point, k, (long long)newest);
    assert_true(ckpt_step_loads(root, 2));
    crew_open(&c, root, 3, CUT_COLUMNS);
    assert_int_equal(ckpt_count_names(root, "tmp-"), 0);
    assert_ok(crew_save(&c, 4));
    assert_int_equal(tiny_load_newest(root), 4);
    assert_true(ckpt_count_names(root, "step-") >= 2);
    crew_close(&c);
    scratch_destroy(root);
    return killed;
}

static void test_kill_at_every_call(void **state)
{
    (void)state;
    int kills = 0;
    for (int p = 0; p < COUNT_OF(points); p++)
        for (int k = 1; kill_at(points[p], k); k += k < 20 ? 1 : 13) kills++;
    assert_true(kills > 60);
}

/* ---- read by several -------------------------------------------------------------------- */

typedef struct Reading {
    const Member *m;
    const Ckpt *ckpt;
    const SafetensorsEntry *entry;
    char *out;
    CkptTally *tally;
} Reading;

static Status read_run(void *to, const CkptRun *run)
{
    const Reading *r = to;
    size_t size = dtype_bytes(r->entry->dtype);
    return ckpt_read(r->ckpt, r->entry, run->first, run->n, r->entry->dtype,
                     r->out + (size_t)run->first * size, r->tally);
}

/* Every rank reads its share, `times` over: the tally is right, and wrong after any flipped bit. */
static Status read_all(Crew *c, const Ckpt *ckpt, int times)
{
    for (int i = 0; i < TENSORS; i++) {
        CkptTally total = {0};
        const SafetensorsEntry *entry = ckpt_model_find(ckpt, c->tensor[i].name);
        for (int r = 0; r < times * c->n; r++) {
            Member *m = &c->member[r % c->n];
            Reading reading = {m, ckpt, entry, whole(c, i)->data, &total};
            TRY(each_run(m, i, read_run, &reading));
        }
        TRY(ckpt_check_tally(ckpt, entry, &total));
    }
    return OK;
}

static void test_read_by_several(void **state)
{
    (void)state;
    char *root = scratch_create();
    Arena arena = {0};
    Crew c;
    Ckpt *ckpt;
    crew_open(&c, root, 4, CUT_RUNS);
    assert_ok(crew_save(&c, 1));
    const char *path = ckpt_step_path(&arena, root, 1);
    for (Cut cut = 0; cut < CUTS; cut++) {
        c.cut = cut;
        assert_ok(ckpt_open(path, CKPT_VERIFY_FILES, &ckpt));
        for (int times = 1; times <= 3; times++) {
            tiny_fill(c.state, 9);
            Status status = read_all(&c, ckpt, times);
            assert_int_equal(status, cut >= CUT_HOLE ? ERR_ARG : OK);
            if (status == OK) assert_true(tiny_is(c.state, 1));
        }
        ckpt_close(ckpt);
    }
    c.cut = CUT_COLUMNS;
    const char *file = path_join(&arena, path, "model-00001-of-00001.safetensors");
    Bytes good;
    assert_ok(file_read(&arena, file, 1 << 20, &good));
    for (size_t back = 1; back < 1300; back += 37) { /* of the data */
        int fd = open(file, O_WRONLY);
        uint8_t bad = good.at[good.n - back] ^ 1;
        assert_int_equal(pwrite(fd, &bad, 1, (off_t)(good.n - back)), 1);
        assert_ok(ckpt_open(path, CKPT_VERIFY_FILES, &ckpt));
        assert_int_equal(read_all(&c, ckpt, 2), ERR_FORMAT);
        assert_non_null(strstr(status_message(), "is damaged: tensor model."));
        ckpt_close(ckpt);
        assert_int_equal(pwrite(fd, &good.at[good.n - back], 1, (off_t)(good.n - back)), 1);
        close(fd);
    }
    crew_close(&c);
    arena_deinit(&arena);
    scratch_destroy(root);
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "--save")) return child_save(argv[2], 3);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bytes),          cmocka_unit_test(test_holes),
        cmocka_unit_test(test_damage_while_saving), cmocka_unit_test(test_fail_at_every_call),
        cmocka_unit_test(test_lost_first_rank),     cmocka_unit_test(test_kill_at_every_call),
        cmocka_unit_test(test_read_by_several),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
