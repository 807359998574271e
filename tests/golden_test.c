/* The golden models: logits, loss and every weight's gradient, against what transformers and xAI's
 * code computed in f32 (tests/golden/README.md), without and with recompute, and on every
 * instruction set of this machine. */
#include "ckpt/ckpt.h"
#include "gpu/gpu.h"
#include "train/train.h"

#include "base/testing.h"

#include <math.h>

#include <jansson.h>

enum { ROWS = 2 };

typedef struct Case {
    Arena arena;
    const char *dir;
    ModelConfig config;
    ModelDir *weights;
    Safetensors *expected;
    int32_t *ids, *pos, *targets;
    float *loss_weights;
    int64_t seq;
} Case;

static void read_ids(Case *c)
{
    json_t *json = json_load_file(path_join(&c->arena, c->dir, "ids.json"), 0, NULL);
    const json_t *rows = json_object_get(json, "ids");
    assert_int_equal(json_array_size(rows), ROWS);
    c->seq = (int64_t)json_array_size(json_array_get(rows, 0));
    size_t n = (size_t)(ROWS * c->seq);
    c->ids = ARENA_ARRAY(&c->arena, int32_t, n);
    c->pos = ARENA_ARRAY(&c->arena, int32_t, n);
    c->targets = ARENA_ARRAY(&c->arena, int32_t, n);
    c->loss_weights = ARENA_ARRAY(&c->arena, float, n);
    for (size_t i = 0; i < n; i++) {
        size_t row = i / (size_t)c->seq, t = i % (size_t)c->seq;
        const json_t *ids = json_array_get(rows, row);
        bool last = (int64_t)t + 1 == c->seq;
        c->ids[i] = (int32_t)json_integer_value(json_array_get(ids, t));
        c->pos[i] = (int32_t)t;
        c->targets[i] = last ? -1 : (int32_t)json_integer_value(json_array_get(ids, t + 1));
        c->loss_weights[i] = last ? 0 : 1.0f / (float)(ROWS * (c->seq - 1));
    }
    json_decref(json);
}

static Case open_case(const char *name)
{
    Case c = {0};
    c.dir = arena_printf(&c.arena, "%s/tests/golden/%s", SOURCE_DIR, name);
    assert_ok(model_config_load(path_join(&c.arena, c.dir, "config.json"), &c.config));
    assert_ok(modeldir_open(c.dir, &c.weights));
    assert_ok(safetensors_open(path_join(&c.arena, c.dir, "expected.safetensors"), &c.expected));
    read_ids(&c);
    return c;
}

static void close_case(Case *c)
{
    model_config_deinit(&c->config);
    modeldir_close(c->weights);
    safetensors_close(c->expected);
    arena_deinit(&c->arena);
}

static float *expected(Case *c, const char *name, int64_t *n)
{
    const SafetensorsEntry *e = safetensors_find(c->expected, name);
    if (!e) fail_msg("%s has no %s", c->dir, name);
    *n = shape_count(&e->shape);
    float *data = ARENA_ARRAY(&c->arena, float, *n);
    assert_ok(safetensors_read(e, 0, *n, DTYPE_F32, data));
    return data;
}

static void load_weights(Case *c, Session *session, const Store *store)
{
    VEC(NamedTensor) list = {0};
    for (int i = 0; i < store->n_entries; i++)
        for (int k = 0; store->entry[i].role == STATE_PARAM && k < store->entry[i].n_parts; k++)
            VEC_PUSH(&list, ((NamedTensor){store->entry[i].part[k].name,
                                           session_state_part(session, i, k)}));
    assert_int_equal(list.n, modeldir_count(c->weights)); /* every weight has its place */
    assert_ok(modeldir_load(c->weights, list.at, (int)list.n));
    assert_ok(session_store_states(session));
    VEC_FREE(&list);
}

static void write_inputs(Case *c, Session *s, bool loss)
{
    size_t n = (size_t)(ROWS * c->seq);
    assert_ok(session_write(s, 0, "ids", c->ids, 4 * n));
    assert_ok(session_write(s, 0, "pos", c->pos, 4 * n));
    if (!loss) return;
    assert_ok(session_write(s, 0, "targets", c->targets, 4 * n));
    assert_ok(session_write(s, 0, "weights", c->loss_weights, 4 * n));
}

static double worst(const float *a, const float *b, int64_t n)
{
    double most = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        if (!(d <= most)) most = d; /* NaN counts */
    }
    return most;
}

static double norm(const float *a, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)a[i] * (double)a[i];
    return sqrt(sum);
}

static double distance(const float *a, const float *b, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
    return sqrt(sum);
}

static void check_logits(Case *c, Device *device)
{
    Graph *g;
    Program *program;
    Session *session;
    Store *store = store_create();
    ModelOptions o = {.purpose = MODEL_LOGITS, .batch = ROWS, .seq = c->seq, .dtype = DTYPE_F32};
    assert_ok(model_build(&c->config, o, &g));
    assert_ok(graph_verify(g, "model_build"));
    assert_ok(program_compile(g, device_target(device), store, &program));
    assert_ok(session_create(device, store, &program, 1, &session));
    load_weights(c, session, store);
    write_inputs(c, session, false);
    assert_ok(session_run(session, 0, PHASE_FORWARD, PHASE_FORWARD));
    int64_t n;
    const float *want = expected(c, "logits", &n);
    const void *got;
    assert_ok(session_fetch_output(session, 0, "logits", &got));
    double d = worst(got, want, n);
    if (!(d < 1e-4)) fail_msg("%s: logits differ by %g", c->dir, d);
    session_destroy(session);
    program_destroy(program);
    store_destroy(store);
}

static void check_gradient(Case *c, const StateEntry *e, int part, const char *data)
{
    int64_t n;
    const float *got = (const float *)(const void *)(data + e->part[part].offset_bytes);
    const float *want = expected(c, arena_printf(&c->arena, "grad.%s", e->part[part].name), &n);
    assert_int_equal(n, shape_count(&e->part[part].shape));
    double relative = distance(got, want, n) / (norm(want, n) + 1e-8);
    if (!(relative < 1e-3))
        fail_msg("%s: gradient of %s differs by %g relative", c->dir, e->part[part].name, relative);
}

/* The head's products are made once: the loss comes out of the node that makes its gradient. */
static void check_loss_is_fused(const Graph *g)
{
    int n = 0;
    for (int i = 1; i < g->n_nodes; i++) {
        assert_string_not_equal(g->node[i].op->name, "linear_cross_entropy");
        n += !strcmp(g->node[i].op->name, "linear_cross_entropy_grad");
    }
    assert_int_equal(n, 1);
}

static void check_gradients(Case *c, Device *device, Recompute recompute)
{
    StepPrograms p;
    Session *session;
    StepOptions o = {.micro_batch = ROWS,
                     .n_micro = 1,
                     .seq = c->seq,
                     .dtype = DTYPE_F32,
                     .recompute = recompute};
    assert_ok(step_grads_build(&c->config, &o, device_target(device), &p));
    assert_ok(graph_verify(p.at[0]->graph, "all passes"));
    check_loss_is_fused(p.at[0]->graph);
    assert_ok(session_create(device, p.store, p.at, p.n, &session));
    load_weights(c, session, p.store);
    write_inputs(c, session, true);
    assert_ok(session_run(session, 0, PHASE_FORWARD, PHASE_BACKWARD));
    int64_t n;
    float loss;
    const float *want = expected(c, "loss", &n);
    assert_ok(session_read(session, 0, "loss", &loss, sizeof loss));
    if (!(fabsf(loss - *want) < 1e-5f * fabsf(*want)))
        fail_msg("%s: loss is %.8g, not %.8g", c->dir, (double)loss, (double)*want);
    for (int i = 0; i < p.store->n_entries; i++) {
        const StateEntry *e = &p.store->entry[i];
        const void *grad = NULL;
        if (e->role == STATE_PARAM) assert_ok(session_fetch_output(session, 0, e->name, &grad));
        for (int k = 0; grad && k < e->n_parts; k++) check_gradient(c, e, k, grad);
    }
    session_destroy(session);
    step_programs_destroy(&p);
}

static void check_on_gpu(const char *name)
{
    Case c = open_case(name);
    Device *device;
    assert_ok(device_create_cuda((CudaOptions){0}, &device));
    check_logits(&c, device);
    check_gradients(&c, device, RECOMPUTE_NONE);
    check_gradients(&c, device, RECOMPUTE_SELECTIVE);
    device_destroy(device);
    close_case(&c);
}

static void check_case(const char *name)
{
    for (int isa = ISA_GENERIC; isa <= (int)cpu_best_isa(); isa++) {
        Case c = open_case(name);
        Device *device;
        assert_ok(device_create_cpu(
            (CpuOptions){.limit_isa = true, .max_isa = (Isa)isa, .threads = 2}, &device));
        check_logits(&c, device);
        check_gradients(&c, device, RECOMPUTE_NONE);
        if (isa == (int)cpu_best_isa()) {
            check_gradients(&c, device, RECOMPUTE_SELECTIVE);
            check_gradients(&c, device, RECOMPUTE_FULL);
        }
        device_destroy(device);
        close_case(&c);
    }
    if (gpu_count(NULL) > 0) check_on_gpu(name);
}

static void all_cases(const char *family, int least)
{
    Arena arena = {0};
    DirEntries entries;
    int n = 0;
    assert_ok(dir_list(&arena, SOURCE_DIR "/tests/golden", &entries));
    for (int i = 0; i < entries.n; i++) {
        if (strncmp(entries.name[i], family, strlen(family))) continue;
        check_case(entries.name[i]);
        n++;
    }
    assert_true(n >= least);
    arena_deinit(&arena);
}

static void llama3(void **state)
{
    (void)state;
    all_cases("llama3-", 10);
}

static void llama4(void **state)
{
    (void)state;
    all_cases("llama4-", 19);
}

static void grok1(void **state)
{
    (void)state;
    all_cases("grok1-", 7);
}

static void gpt2(void **state)
{
    (void)state;
    all_cases("gpt2-", 4);
}

static void mpt(void **state)
{
    (void)state;
    all_cases("mpt-", 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(llama3), cmocka_unit_test(llama4),
                                       cmocka_unit_test(grok1), cmocka_unit_test(gpt2),
                                       cmocka_unit_test(mpt)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
