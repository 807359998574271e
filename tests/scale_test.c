/* Models of the true size as sparse files: correct headers over holes that read as zero and take no
 * disk. Opening, indexing, planning and inspecting must not depend on the size, and one rank's part
 * must cost that part only. Llama 3.1 405B in 191 files and Llama 4 Maverick; a part of 1024, or of
 * DROVER_PARTS. */
#include "cli/show.h"
#include "train/train.h"

#include "base/testing.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

/* Ten times what is asked of an idle machine. */
static const double limit_s = 10;

typedef struct Named {
    const char *name;
    Shape shape;
} Named;
typedef VEC(Named) NamedVec;

/* ---- sparse directories ----------------------------------------------------------------- */

/* Every weight of the preset, by the names that its graph asks for. */
static void list_weights(Arena *arena, const ModelConfig *config, NamedVec *list)
{
    Graph *g;
    assert_ok(model_build(
        config,
        (ModelOptions){
            .purpose = MODEL_LOGITS, .batch = 1, .seq = 1, .dtype = DTYPE_BF16, .no_master = true},
        &g));
    Store *store = store_create();
    assert_ok(store_add_graph(store, g));
    for (int i = 0; i < store->n_entries; i++)
        for (int k = 0; k < store->entry[i].n_parts; k++)
            VEC_PUSH(list, ((Named){arena_strdup(arena, store->entry[i].part[k].name),
                                    store->entry[i].part[k].shape}));
    store_destroy(store);
    graph_destroy(g);
}

static uint64_t bytes_of(const Named *w) { return 2 * (uint64_t)shape_count(&w->shape); }

/* A bf16 shard of these tensors: header and hole. False where the disk does not take such files. */
static bool write_shard(const char *path, const Named *weights, size_t n)
{
    Str s = {0};
    uint64_t at = 0;
    str_add_n(&s, "\0\0\0\0\0\0\0\0", 8);
    for (size_t i = 0; i < n; i++) {
        str_printf(&s, "%s\"%s\":{\"dtype\":\"BF16\",\"shape\":[", i ? "," : "{", weights[i].name);
        for (int d = 0; d < weights[i].shape.rank; d++)
            str_printf(&s, "%s%lld", d ? "," : "", (long long)weights[i].shape.dim[d]);
        str_printf(&s, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)at,
                   (unsigned long long)(at + bytes_of(&weights[i])));
        at += bytes_of(&weights[i]);
    }
    str_add(&s, "}");
    for (int i = 0; i < 8; i++) s.at[i] = (char)((uint64_t)(s.n - 8) >> (8 * i));
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    assert_true(fd >= 0);
    bool done = write(fd, s.at, s.n) == (ssize_t)s.n && ftruncate(fd, (off_t)(s.n + at)) == 0;
    close(fd);
    str_deinit(&s);
    return done;
}

/* At most `files` shards of about equal size, and their index. */
static bool write_sparse(Arena *arena, const char *dir, const NamedVec *list, uint64_t files)
{
    uint64_t total = 0, done = 0;
    Str index = {0};
    int shard = 0;
    for (size_t i = 0; i < list->n; i++) total += bytes_of(&list->at[i]);
    str_printf(&index, "{\"metadata\": {\"total_size\": %llu}, \"weight_map\": {",
               (unsigned long long)total);
    for (size_t first = 0, end; first < list->n; first = end) {
        char *name = arena_printf(arena, "model-%05d-of-%05d.safetensors", ++shard, (int)files);
        for (end = first; end < list->n && (end == first || done < total / files * (uint64_t)shard);
             end++) {
            done += bytes_of(&list->at[end]);
            str_printf(&index, "%s\"%s\": \"%s\"", end ? ", " : "", list->at[end].name, name);
        }
        if (!write_shard(path_join(arena, dir, name), &list->at[first], end - first)) {
            str_deinit(&index);
            return false;
        }
    }
    str_add(&index, "}}");
    assert_ok(file_write_atomic(path_join(arena, dir, "model.safetensors.index.json"), index.at,
                                index.n));
    str_deinit(&index);
    return true;
}

/* ---- what is measured ------------------------------------------------------------------- */

static void timed(const char *preset, const char *what, double start)
{
    double took = clock_s() - start;
    print_message("  %-18s %-22s %.3f s\n", preset, what, took);
    if (took > limit_s) fail_msg("%s of %s took %.1f s", what, preset, took);
}

static void plan_training(Arena *arena, const char *dir)
{
    const char *settings[] = {arena_printf(arena, "model.from=%s", dir),
                              "data=[{synthetic: uniform}]",
                              "train.batch=1",
                              "train.seq=128",
                              "train.memory_limit=900000TB",
                              arena_printf(arena, "dir=%s/run", dir),
                              "name=plan",
                              "checkpoint.async=false"};
    RunConfig config;
    Str text = {0};
    assert_ok(run_config_load(NULL, settings, COUNT_OF(settings), &config));
    assert_ok(trainer_plan(&config, &text));
    assert_non_null(strstr(text.at, "weights (f32)"));
    str_deinit(&text);
    run_config_deinit(&config);
}

/* Part 17 of `parts` of every weight, along its first axis that is long enough; one of them by
 * columns. */
static void slice_of(const Weight *w, int64_t parts, WeightSlice *slice)
{
    Shape shape = w->shape;
    int axis = shape.rank == 2 && strstr(w->name, ".layers.1.self_attn.o_proj") ? 1 : 0;
    while (axis + 1 < shape.rank && shape.dim[axis] < parts) axis++;
    *slice = (WeightSlice){.name = w->name};
    if (shape.dim[axis] >= parts) {
        slice->first[axis] = shape.dim[axis] * 17 / parts;
        shape.dim[axis] = shape.dim[axis] * 18 / parts - slice->first[axis];
    }
    void *memory = malloc((size_t)shape_count(&shape) * 2);
    if (!memory) _exit(2);
    slice->tensor = tensor_make(memory, DTYPE_BF16, shape);
}

/* In a process of its own, so that its peak is that of loading. Exit code 0: within the bound. */
static void load_part(const char *dir, int64_t parts)
{
    Weights *weights;
    size_t before = memory_peak_rss_bytes(), bytes = 0;
    double start = clock_s();
    if (weights_open(dir, CKPT_VERIFY_SIZES, &weights) != OK) _exit(3);
    int n = weights_count(weights);
    WeightSlice *slices = xcalloc((size_t)n, sizeof *slices);
    for (int i = 0; i < n; i++) {
        slice_of(weights_at(weights, i), parts, &slices[i]);
        memset(slices[i].tensor.data, 1, tensor_bytes(&slices[i].tensor));
        bytes += tensor_bytes(&slices[i].tensor);
    }
    if (weights_load_slices(weights, slices, n) != OK) _exit(4);
    for (int i = 0; i < n; i++)
        for (size_t k = 0; k < tensor_bytes(&slices[i].tensor); k += 999)
            if (((const char *)slices[i].tensor.data)[k] != 0) _exit(5);
    size_t peak = memory_peak_rss_bytes() - before;
    fprintf(stderr, "  1/%lld: %.1f MB in %.2f s, peak %.1f MB more\n", (long long)parts,
            (double)bytes / 1e6, clock_s() - start, (double)peak / 1e6);
    bool sanitized =
        false; /* keeps what was freed, and a map of all memory: its own memory, not ours */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    sanitized = true;
#endif
    _exit(sanitized || peak <= bytes + (64 << 20) ? 0 : 6);
}

static int64_t parts_wanted(void)
{
    int64_t parts;
    const char *text = getenv("DROVER_PARTS");
    return text && parse_i64(text, &parts) && parts > 0 ? parts : 1024;
}

static void check(const char *preset, uint64_t files)
{
    Arena arena = {0};
    NamedVec list = {0};
    ModelConfig config;
    char dir[] = "/tmp/drover-scale-XXXXXX";
    assert_non_null(mkdtemp(dir));
    assert_ok(model_config_preset(preset, &config));
    list_weights(&arena, &config, &list);
    char *text = model_config_text(&config, DTYPE_BF16);
    assert_ok(file_write_atomic(path_join(&arena, dir, "config.json"), text, strlen(text)));
    free(text);
    model_config_deinit(&config);
    if (!write_sparse(&arena, dir, &list, files)) {
        assert_ok(dir_remove_tree(dir));
        print_message("  no sparse files of this size here (%s)\n", strerror(errno));
        skip();
    }
    double start = clock_s();
    InferModel model;
    InferPlan plan;
    assert_ok(infer_model_open(dir, &model));
    assert_int_equal(weights_count(model.weights), (int)list.n);
    timed(preset, "open", start);
    start = clock_s();
    assert_ok(infer_plan(&model, &(InferOptions){.batch = 1, .context = 128}, &plan));
    assert_true(plan.weight_bytes > 780000000000 && plan.weight_bytes < 820000000000);
    timed(preset, "plan of inference", start);
    infer_model_deinit(&model);
    start = clock_s();
    plan_training(&arena, dir);
    timed(preset, "plan of training", start);
    start = clock_s();
    Str out = {0};
    assert_ok(show_model(dir, false, &out));
    timed(preset, "inspect", start);
    str_deinit(&out);
    pid_t child = fork(); /* and exec: threads do not survive a fork */
    if (child == 0) {
        execl("/proc/self/exe", "scale_test", dir, (char *)NULL);
        _exit(7);
    }
    int result = -1;
    waitpid(child, &result, 0);
    assert_ok(dir_remove_tree(dir));
    assert_true(WIFEXITED(result));
    assert_int_equal(WEXITSTATUS(result), 0);
    VEC_FREE(&list);
    arena_deinit(&arena);
}

static void llama_405b(void **state)
{
    (void)state;
    check("llama3.1-405b", 191);
}

static void llama4_maverick(void **state)
{
    (void)state;
    check("llama4-maverick", 55);
}

int main(int argc, char **argv)
{
    if (argc == 2) load_part(argv[1], parts_wanted());
    const struct CMUnitTest tests[] = {cmocka_unit_test(llama_405b),
                                       cmocka_unit_test(llama4_maverick)};
    log_set_level(LOG_WARN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
