/* Power lost at any moment of a save: the calls that change the disk are recorded, and what the
 * disk may hold is made from them. Of the calls before the moment, those that a later fsync of the
 * same file or directory covers are there; of the rest any subset is, writes torn at 512 bytes or 4
 * KiB, names in any combination. Every such state must load, as the step before or as the new one,
 * value by value; once the save had reported success, only as the new one. */
#include "ckpt/ckpt_diskkit.h"

enum { MAX_INODES = 512, MAX_ENTRIES = 1024, MAX_FDS = 1024, NAME = 72 };

/* ---- the disk as recorded --------------------------------------------------------------- */

typedef struct Inode {
    bool dir;
    Str content; /* of a file, when the recording began */
} Inode;

/* `name` in directory `dir` is inode `target`; -1: it is not there. */
typedef struct Entry {
    int dir, target;
    char name[NAME];
} Entry;

typedef enum OpKind { OP_DATA, OP_SIZE, OP_SYNC, OP_NAMES } OpKind;

typedef struct Op {
    OpKind kind;
    int inode;
    uint64_t offset; /* of data; or the new size */
    Str data;
    Entry change[2]; /* OP_NAMES: a rename has two, which happen together */
    int n_changes;
} Op;

typedef struct Names {
    Entry at[MAX_ENTRIES];
    int n;
} Names;

static struct Recording {
    const char *root;
    Inode inode[MAX_INODES];
    int n_inodes;
    Names first, now; /* inode 0 is the root */
    int of_fd[MAX_FDS];
    VEC(Op) ops;
} tape;

static int names_find(const Names *names, int dir, const char *name)
{
    for (int i = 0; i < names->n; i++)
        if (names->at[i].dir == dir && !strcmp(names->at[i].name, name)) return names->at[i].target;
    return -1;
}

static void names_set(Names *names, const Entry *entry)
{
    for (int i = 0; i < names->n; i++)
        if (names->at[i].dir == entry->dir && !strcmp(names->at[i].name, entry->name)) {
            names->at[i].target = entry->target;
            return;
        }
    assert_true(names->n < MAX_ENTRIES);
    names->at[names->n++] = *entry;
}

static int inode_add(bool dir)
{
    assert_true(tape.n_inodes < MAX_INODES);
    tape.inode[tape.n_inodes] = (Inode){.dir = dir};
    return tape.n_inodes++;
}

/* The directory that holds the path's last name, and that name. -1: it is not below the root. */
static int resolve(int dir_fd, const char *path, char name[NAME])
{
    int dir = 0;
    size_t n = strlen(tape.root);
    if (dir_fd != AT_FDCWD)
        dir = dir_fd < MAX_FDS ? tape.of_fd[dir_fd] : -1;
    else if (strncmp(path, tape.root, n) != 0 || (path[n] && path[n] != '/'))
        return -1;
    else
        path += n;
    path += *path == '/';
    for (;;) {
        size_t length = strcspn(path, "/");
        assert_true(length < NAME);
        memcpy(name, path, length);
        name[length] = 0;
        if (!path[length] || !path[length + 1] || dir < 0) return dir;
        dir = names_find(&tape.now, dir, name);
        path += length + 1;
    }
}

static Op *op_add(OpKind kind, int inode)
{
    VEC_PUSH(&tape.ops, ((Op){.kind = kind, .inode = inode}));
    return &tape.ops.at[tape.ops.n - 1];
}

static Entry entry_of(int dir, const char *name, int target)
{
    Entry entry = {.dir = dir, .target = target};
    snprintf(entry.name, sizeof entry.name, "%s", name);
    return entry;
}

static void change_name(Op *op, int dir, const char *name, int target)
{
    Entry entry = entry_of(dir, name, target);
    op->change[op->n_changes++] = entry;
    names_set(&tape.now, &entry);
}

static void record_open(const DiskEvent *e, int dir, const char *name)
{
    int inode = *name ? names_find(&tape.now, dir, name) : dir;
    if (inode < 0)
        change_name(op_add(OP_NAMES, -1), dir, name, inode = inode_add(false));
    else if (e->n && e->offset)
        op_add(OP_SIZE, inode)->offset = 0;
    assert_true(e->fd < MAX_FDS);
    tape.of_fd[e->fd] = inode;
}

static void record(const DiskEvent *e)
{
    char name[NAME], to[NAME];
    int inode = e->fd >= 0 && e->fd < MAX_FDS ? tape.of_fd[e->fd] : -1;
    int dir = e->path
                  ? resolve(e->call == DISK_CREATE || e->call == DISK_REMOVE ? e->dir_fd : AT_FDCWD,
                            e->path, name)
                  : -1;
    if (e->path ? dir < 0 : inode < 0) return; /* elsewhere */
    switch (e->call) {
    case DISK_CREATE: record_open(e, dir, name); return;
    case DISK_WRITE: {
        Op *op = op_add(OP_DATA, inode);
        op->offset = e->offset;
        str_add_n(&op->data, e->data, e->n);
        return;
    }
    case DISK_SIZE: op_add(OP_SIZE, inode)->offset = e->offset; return;
    case DISK_SYNC: op_add(OP_SYNC, inode); return;
    case DISK_MKDIR: change_name(op_add(OP_NAMES, -1), dir, name, inode_add(true)); return;
    case DISK_REMOVE: change_name(op_add(OP_NAMES, -1), dir, name, -1); return;
    case DISK_RENAME: {
        Op *op = op_add(OP_NAMES, -1);
        int to_dir = resolve(AT_FDCWD, e->to, to), moved = names_find(&tape.now, dir, name);
        change_name(op, dir, name, -1);
        change_name(op, to_dir, to, moved);
        return;
    }
    }
}

static void forget_fd(int fd)
{
    if (fd >= 0 && fd < MAX_FDS) tape.of_fd[fd] = -1;
}

/* What is there when the recording begins is durable. */
static void scan(const char *path, int inode)
{
    Arena arena = {0};
    DirEntries entries;
    assert_ok(dir_list(&arena, path, &entries));
    for (int i = 0; i < entries.n; i++) {
        const char *child = path_join(&arena, path, entries.name[i]);
        int target = inode_add(dir_exists(child));
        Entry entry = entry_of(inode, entries.name[i], target);
        Bytes content;
        names_set(&tape.first, &entry);
        if (tape.inode[target].dir) {
            scan(child, target);
            continue;
        }
        assert_ok(file_read(&arena, child, 1 << 20, &content));
        str_add_n(&tape.inode[target].content, (const char *)content.at, content.n);
    }
    arena_deinit(&arena);
}

static void tape_begin(const char *root)
{
    tape.root = root;
    inode_add(true);
    scan(root, 0);
    tape.now = tape.first;
    for (int i = 0; i < MAX_FDS; i++) tape.of_fd[i] = -1;
    disk.record = record;
    disk.closed = forget_fd;
}

static void tape_end(void)
{
    disk_reset();
    for (size_t i = 0; i < tape.ops.n; i++) str_deinit(&tape.ops.at[i].data);
    for (int i = 0; i < tape.n_inodes; i++) str_deinit(&tape.inode[i].content);
    VEC_FREE(&tape.ops);
    tape.n_inodes = tape.first.n = 0;
}

/* ---- a disk after the power was lost ---------------------------------------------------- */

typedef enum Loss { LOSE_NOTHING, LOSE_ALL_PENDING, LOSE_SOME, LOSE_KINDS } Loss;

static bool synced_before(int inode, size_t after, size_t moment)
{
    for (size_t i = after + 1; i < moment; i++)
        if (tape.ops.at[i].kind == OP_SYNC && tape.ops.at[i].inode == inode) return true;
    return false;
}

/* An fsync of a file says nothing of its name: that is its directory's. */
static bool is_durable(size_t i, size_t moment)
{
    const Op *op = &tape.ops.at[i];
    if (op->kind != OP_NAMES) return synced_before(op->inode, i, moment);
    bool all = true;
    for (int k = 0; k < op->n_changes; k++)
        all = all && synced_before(op->change[k].dir, i, moment);
    return all;
}

static void resize(Str *s, size_t n)
{
    while (s->n < n) str_add_n(s, "", 1); /* the zero byte at its end */
    s->n = n;
}

/* Blocks of a write that arrived; the file may have its length before it has its bytes. */
static void write_torn(Str *file, const Op *op, uint64_t key)
{
    size_t block = rng_below(key, 0, 2) ? 512 : 4096;
    if (rng_below(key, 1, 2) && file->n < op->offset + op->data.n)
        resize(file, op->offset + op->data.n);
    for (size_t at = 0; at < op->data.n;) {
        size_t place = op->offset + at, n = block - place % block;
        if (n > op->data.n - at) n = op->data.n - at;
        if (rng_below(key, 2 + place / 512, 2)) {
            if (file->n < place + n) resize(file, place + n);
            memcpy(file->at + place, op->data.at + at, n);
        }
        at += n;
    }
}

static void write_whole(Str *file, const Op *op)
{
    if (file->n < op->offset + op->data.n) resize(file, op->offset + op->data.n);
    memcpy(file->at + op->offset, op->data.at, op->data.n);
}

static void apply(Str *files, Names *names, size_t i, size_t moment, Loss loss, uint64_t key)
{
    const Op *op = &tape.ops.at[i];
    bool sure = loss == LOSE_NOTHING || is_durable(i, moment);
    uint64_t own = rng_u64(key, i);
    if (!sure && (loss == LOSE_ALL_PENDING || own % 4 == 0)) return;
    switch (op->kind) {
    case OP_SYNC: return;
    case OP_SIZE: resize(&files[op->inode], op->offset); return;
    case OP_DATA:
        if (sure || own % 4 == 1)
            write_whole(&files[op->inode], op);
        else
            write_torn(&files[op->inode], op, own);
        return;
    case OP_NAMES:
        if (!sure && own % 4 == 1) return;
        for (int k = 0; k < op->n_changes; k++) names_set(names, &op->change[k]);
        return;
    }
}

static void lay_out(const Str *files, const Names *names, int dir, const char *path)
{
    Arena arena = {0};
    assert_ok(dir_create(path));
    for (int i = 0; i < names->n; i++) {
        const Entry *e = &names->at[i];
        if (e->dir != dir || e->target < 0) continue;
        const char *child = path_join(&arena, path, e->name);
        int fd;
        if (tape.inode[e->target].dir) {
            lay_out(files, names, e->target, child);
            continue;
        }
        assert_ok(file_create(child, &fd));
        assert_ok(file_write(fd, files[e->target].at, files[e->target].n, child));
        assert_ok(file_close(fd, child));
    }
    arena_deinit(&arena);
}

/* What may lie under `path` when the power went after the first `moment` calls. */
static void make_disk(size_t moment, Loss loss, uint64_t key, const char *path)
{
    static Str files[MAX_INODES];
    static Names names;
    names = tape.first;
    for (int i = 0; i < tape.n_inodes; i++) {
        str_clear(&files[i]);
        str_add_n(&files[i], tape.inode[i].content.n ? tape.inode[i].content.at : "",
                  tape.inode[i].content.n);
    }
    for (size_t i = 0; i < moment; i++) apply(files, &names, i, moment, loss, key);
    assert_ok(dir_remove_tree(path));
    lay_out(files, &names, 0, path);
    for (int i = 0; i < tape.n_inodes; i++) str_deinit(&files[i]);
}

/* ---- the three saves -------------------------------------------------------------------- */

typedef struct Scenario {
    int64_t steps_before, saved;
    int64_t fallback; /* what may be found besides the newest while a step is being replaced */
    int states;       /* per moment */
} Scenario;

static int64_t found_in(const char *path) { return dir_exists(path) ? tiny_load_newest(path) : -1; }

/* The calls after which the new step may be found, and after which nothing else may. */
static void find_bounds(const Scenario *s, size_t *may, size_t *must)
{
    char step[STEP_NAME];
    step_name(s->saved, step);
    *may = *must = 0;
    for (size_t i = 0; i < tape.ops.n; i++) {
        const Op *op = &tape.ops.at[i];
        if (op->kind == OP_NAMES && op->n_changes == 2 && !strcmp(op->change[1].name, step))
            *may = i + 1;
        if (op->kind == OP_SYNC && op->inode == 0) *must = i + 1;
    }
    assert_true(*may > 0 && *must > *may);
}

static void check_goes_on(const char *path, const Scenario *s, int64_t found)
{
    CkptStore *store;
    TinyState *state = tiny_create();
    assert_ok(ckpt_store_open(path, (CkptOptions){.keep = 2}, &store));
    int64_t now = tiny_load_newest(path);
    assert_true(now >= found && (now == s->steps_before || now == s->saved || now == -1));
    assert_int_equal(ckpt_count_names(path, "tmp-"), 0);
    assert_ok(tiny_save_step(store, state, s->saved + 1));
    assert_int_equal(tiny_load_newest(path), s->saved + 1);
    ckpt_store_close(store);
    tiny_destroy(state);
}

static void check_state(const char *path, const Scenario *s, bool may, bool must, size_t number)
{
    int64_t old = s->steps_before ? s->steps_before : -1, found = found_in(path);
    bool good = must ? found == s->saved
                     : found == old || found == s->fallback || (may && found == s->saved);
    if (!good)
        fail_msg("state %zu of saving step %lld: %lld is found", number, (long long)s->saved,
                 (long long)found);
    int whole = 0;
    for (int64_t step = 1; step <= s->saved; step++) whole += ckpt_step_loads(path, step);
    if (s->saved > 2 && whole < 2)
        fail_msg("state %zu of saving step %lld: %d checkpoints are left", number,
                 (long long)s->saved, whole);
    if (number % 8 == 0) check_goes_on(path, s, found);
}

static size_t run_scenario(const Scenario *s)
{
    char *root = scratch_create(), *copy = scratch_create();
    TinyState *state = tiny_create();
    CkptStore *store;
    size_t may, must, n = 0;
    log_set_level(LOG_SILENT);
    assert_ok(ckpt_store_open(root, (CkptOptions){.keep = 2}, &store));
    for (int64_t step = 1; step <= s->steps_before; step++)
        assert_ok(tiny_save_step(store, state, step));
    tape_begin(root);
    assert_ok(tiny_save_step(store, state, s->saved));
    disk_reset();
    find_bounds(s, &may, &must);
    for (size_t moment = 0; moment <= tape.ops.n; moment++)
        for (int k = 0; k < s->states; k++) {
            Loss loss = k < LOSE_KINDS ? (Loss)k : LOSE_SOME;
            make_disk(moment, loss, rng_key((uint64_t)(moment * 100 + (size_t)k), "power"), copy);
            check_state(copy, s, moment >= may, moment >= must, n++);
        }
    log_set_level(LOG_INFO);
    tape_end();
    ckpt_store_close(store);
    tiny_destroy(state);
    scratch_destroy(copy);
    scratch_destroy(root);
    return n;
}

static void test_power_lost_while_saving(void **state)
{
    (void)state;
    static const Scenario scenarios[] = {
        {.steps_before = 0, .saved = 1, .fallback = -1, .states = 5}, /* the first */
        {.steps_before = 2, .saved = 3, .fallback = 2, .states = 6},  /* and the oldest goes */
        {.steps_before = 2, .saved = 2, .fallback = 1, .states = 5},  /* in place of itself */
    };
    size_t n = 0;
    for (int i = 0; i < COUNT_OF(scenarios); i++) n += run_scenario(&scenarios[i]);
    if (n < 500) fail_msg("only %zu states", n);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_power_lost_while_saving)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
