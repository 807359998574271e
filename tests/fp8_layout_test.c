/* Steps in 8 bits under layouts, beside one rank: the same numbers are rounded in the same way
 * where ranks have whole blocks of 128, so that what is left is the order of sums, as in bf16. And
 * the gradient of a whole model beside that of bf16. */
#include "layouts.h"

/* Every part that two ranks of tp have is a multiple of 128. */
static const char *const wide = "{\"model_type\": \"llama\", \"vocab_size\": 128, "
                                "\"hidden_size\": 256, \"num_hidden_layers\": 2, "
                                "\"num_attention_heads\": 8, \"num_key_value_heads\": 8, "
                                "\"head_dim\": 32, \"intermediate_size\": 256, "
                                "\"tie_word_embeddings\": true}";

static bool is_e5m2(const Graph *g, ValueId v) { return graph_value(g, v)->dtype == DTYPE_F8_E5M2; }

/* Values with values forward; a weight's gradient (f32) is that of a gradient with a value. */
static Status verify_products(const Graph *g)
{
    for (int i = 1; i < g->n_nodes; i++) {
        const Node *node = &g->node[i];
        if (strncmp(node->op->name, "linear_8", 8) != 0) continue;
        int gradients = is_e5m2(g, node->in[0]) + is_e5m2(g, node->in[2]);
        bool dw = graph_value(g, node->out[0])->dtype == DTYPE_F32;
        if ((node->phase == PHASE_FORWARD && gradients) || (dw && gradients != 1))
            return fail(ERR_ARG, "node %d has %d operands of e5m2", i, gradients);
    }
    return OK;
}

/* In every program of a rank; and everything lies where the cutting rules say. */
static Status verify(Job *job, const StepPrograms *p, Session *session)
{
    (void)job;
    (void)session;
    for (int i = 0; i < p->n; i++) {
        TRY(graph_verify(p->at[i]->graph, "all passes"));
        TRY(verify_products(p->at[i]->graph));
    }
    return OK;
}

/* Loss and norm of the first step of both; 0 when they are as near as `most`. */
static int beside(const char *model_text, const char *one_text, const char *many_text, double most)
{
    ModelConfig model;
    char message[600] = "";
    Job one = parse_job(one_text), many = parse_job(many_text);
    make_model_with(model_text, many.layers, 0, &model);
    one.model = many.model = &model;
    one.steps = many.steps = 2;
    one.at_end = many.at_end = verify;
    Status status = run_job(&one, message);
    if (status == OK) status = run_job(&many, message);
    double loss = fabs(many.loss[0] / one.loss[0] - 1), norm = fabs(many.norm[0] / one.norm[0] - 1),
           next = fabs(many.loss[1] / one.loss[1] - 1);
    bool good = status == OK && loss <= most && norm <= 4 * most && next <= 4 * most;
    if (!good || getenv("LAYOUT_VERBOSE"))
        print_message("%s beside %s: loss %.2e, then %.2e, norm %.2e %s\n", many_text, one_text,
                      loss, next, norm, message);
    model_config_deinit(&model);
    return good ? 0 : 1;
}

static void test_same_numbers(void **state)
{
    (void)state;
    static const struct {
        const char *layout;
        double most; /* f32 sums in another order; or sums of bf16 summands */
    } cases[] = {{"fp8 selective", 0}, {"fp8 full", 0},     {"fp8 micro2", 1e-6},
                 {"fp8 dp2", 1e-6},    {"fp8 fsdp2", 1e-6}, {"fp8 tp2 seq", 1e-3}};
    int wrong = 0;
    for (int i = 0; i < COUNT_OF(cases); i++)
        wrong += beside(wide, "fp8", cases[i].layout, cases[i].most);
    assert_int_equal(wrong, 0);
}

/* Parts of blocks have scales of their own: the numbers differ by their rounding. All kinds of
 * layers, schedules and scalings run. */
static void test_other_blocks(void **state)
{
    (void)state;
    static const char *const layouts[] = {"fp8 pp2 micro4", "fp8 pp2 micro4 zb-h1", "fp8 cp2",
                                          "fp8 dp2 tp2 seq micro2"};
    int wrong = 0;
    for (int i = 0; i < COUNT_OF(layouts); i++) wrong += beside(llama3, "fp8", layouts[i], 5e-3);
    wrong += beside(llama3, "fp8-row", "fp8-row tp2 seq", 5e-3);
    wrong += beside(llama4, "fp8", "fp8 ep2 tp2", 5e-3);
    wrong += beside(gpt2, "fp8", "fp8 fsdp2", 5e-3);
    assert_int_equal(wrong, 0);
}

/* ---- gradients -------------------------------------------------------------------------- */

typedef struct Grads {
    StepPrograms programs;
    Device *device;
    Session *session;
} Grads;

static void make_grads(const ModelConfig *model, Fp8 fp8, Grads *out)
{
    Job job = parse_job("bf16");
    StepOptions o = job.options;
    o.fp8 = fp8;
    assert_ok(device_create_cpu((CpuOptions){.threads = 1}, &out->device));
    assert_ok(step_grads_build(model, &o, device_target(out->device), &out->programs));
    assert_ok(session_create(out->device, out->programs.store, out->programs.at, out->programs.n,
                             &out->session));
    assert_ok(session_init_weights(out->session, 3));
    assert_ok(feed(out->session, 0, &o, 0, 0));
    assert_ok(session_run(out->session, 0, PHASE_FORWARD, PHASE_BACKWARD));
}

static void drop_grads(Grads *g)
{
    session_destroy(g->session);
    step_programs_destroy(&g->programs);
    device_destroy(g->device);
}

/* |a - b| / |b| over all elements of an output. */
static double distance(Grads *a, Grads *b, const char *name, int64_t n)
{
    const void *x, *y;
    double difference = 0, square = 0;
    assert_ok(session_fetch_output(a->session, 0, name, &x));
    assert_ok(session_fetch_output(b->session, 0, name, &y));
    for (int64_t i = 0; i < n; i++) {
        double u = (double)((const float *)x)[i], v = (double)((const float *)y)[i];
        difference += (u - v) * (u - v);
        square += v * v;
    }
    return sqrt(difference / square);
}

/* A number of e4m3 is off by 2.5% of itself (root mean square: 2^-4 / sqrt(3) of a mantissa
 * of 1.44), one of e5m2 by 5%, so that a product of both is off by 5.6%. The gradient of the first
 * weights is made of eight products, one behind the other, whose errors have nothing to do with one
 * another: sqrt(8) times as much. */
static void test_gradients(void **state)
{
    (void)state;
    ModelConfig model;
    make_model(wide, 2, &model);
    Grads plain, eight[2];
    make_grads(&model, FP8_NONE, &plain);
    make_grads(&model, FP8_ROW, &eight[0]);
    make_grads(&model, FP8_BLOCK, &eight[1]);
    const Graph *g = plain.programs.at[0]->graph;
    int n = 0;
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < g->n_outputs; i++) {
            const Value *v = graph_value(g, g->output[i].value);
            if (!strchr(g->output[i].name, '.')) continue; /* losses */
            double d = distance(&eight[k], &plain, g->output[i].name, shape_count(&v->shape));
            if (getenv("LAYOUT_VERBOSE")) print_message("%s: %.4f\n", g->output[i].name, d);
            assert_true(d < 0.16);
            n += d > 0.01;
        }
    assert_true(n > 10); /* it is 8 bits that were used */
    drop_grads(&plain);
    for (int k = 0; k < 2; k++) drop_grads(&eight[k]);
    model_config_deinit(&model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_same_numbers),
                                       cmocka_unit_test(test_other_blocks),
                                       cmocka_unit_test(test_gradients)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
