/* A model on several ranks, threads of this process: logits, likelihoods and texts are those of one
 * rank, every rank has the same of them, and what is allocated is what was planned. */
#include "infer/infer_internal.h" /* before cmocka, which has a macro called fail */

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { ROW = 12, SCORED = 5, LONGEST = 16, TEXTS = 3, MADE = 10, MAX_RANKS = 8 };

/* What one rank answered. */
typedef struct Answers {
    float *logits; /* [ROW, vocab] */
    float nll[SCORED][LONGEST];
    int32_t made[TEXTS][MADE];
    GenerateEnd end[TEXTS];
    int64_t n_made[TEXTS];
    bool memory_as_planned;
} Answers;

typedef struct RankRun {
    const InferModel *model;
    Mesh mesh;
    Comm *world;
    int here, stop_after; /* tokens of text 1 after which its listener stops it; 0: never */
    Answers answers;
    Status status;
    char message[512];
    pthread_t thread;
} RankRun;

static void make_ids(const InferModel *model, int32_t *ids, int n, uint64_t seed)
{
    for (int i = 0; i < n; i++)
        ids[i] = (int32_t)rng_below(seed, (uint64_t)i, (uint64_t)model->config.vocab);
}

static Status ask_logits(Infer *infer, Answers *a)
{
    int32_t ids[ROW];
    const float *logits;
    size_t bytes = sizeof *logits * ROW * (size_t)infer->model->config.vocab;
    make_ids(infer->model, ids, ROW, 1);
    TRY(infer_logits(infer, ids, ROW, &logits));
    a->logits = xcalloc(1, bytes);
    memcpy(a->logits, logits, bytes);
    return OK;
}

static Status ask_score(Infer *infer, Answers *a)
{
    int32_t ids[SCORED][LONGEST];
    ScoreSequence sequences[SCORED];
    for (int i = 0; i < SCORED; i++) {
        make_ids(infer->model, ids[i], LONGEST, 10 + (uint64_t)i);
        sequences[i] = (ScoreSequence){ids[i], i == 3 ? 5 : LONGEST - i, a->nll[i]};
    }
    return infer_score(infer, sequences, SCORED);
}

typedef struct Listener {
    int heard, stop_after;
} Listener;

static bool on_token(void *context, int32_t id)
{
    Listener *l = context;
    (void)id;
    return ++l->heard != l->stop_after;
}

static Status ask_texts(Infer *infer, int stop_after, Answers *a)
{
    int32_t ids[TEXTS][LONGEST];
    GenerateRequest r[TEXTS];
    GenerateStats stats;
    Listener listener = {0, stop_after};
    for (int i = 0; i < TEXTS; i++) {
        make_ids(infer->model, ids[i], LONGEST, 30 + (uint64_t)i);
        r[i] = (GenerateRequest){
            .prompt = ids[i],
            .n_prompt = 3 + 5 * i,
            .max_tokens = MADE,
            .sampler = {.temperature = i == 2 ? 0.8 : 0, .top_p = 1, .seed = 4}};
    }
    r[1].on_token = on_token;
    r[1].context = &listener;
    Status status = infer_generate(infer, r, TEXTS, &stats);
    for (int i = 0; i < TEXTS; i++) {
        a->end[i] = r[i].end;
        a->n_made[i] = (int64_t)r[i].tokens.n;
        if (r[i].tokens.n) memcpy(a->made[i], r[i].tokens.at, r[i].tokens.n * sizeof(int32_t));
        VEC_FREE(&r[i].tokens);
    }
    return status;
}

static Status ask(RankRun *run)
{
    Infer *infer;
    InferOptions options = {.dtype_set = true,
                            .dtype = DTYPE_F32,
                            .threads = 1,
                            .logits_tokens = ROW,
                            .score_tokens = LONGEST,
                            .score_rows = 3,
                            .batch = TEXTS,
                            .context = 40,
                            .prefill = 4,
                            .world = run->world,
                            .layout = {.mesh = run->mesh},
                            .ranks_here = run->here};
    TRY(infer_create(run->model, options, &infer));
    run->answers.memory_as_planned = device_allocated_bytes(infer->device) +
                                         infer->exchange_bytes ==
                                     infer_planned(infer).total_bytes;
    Status status = ask_logits(infer, &run->answers);
    if (status == OK) status = ask_score(infer, &run->answers);
    if (status == OK) status = ask_texts(infer, run->stop_after, &run->answers);
    infer_destroy(infer);
    return status;
}

static void *rank_main(void *context)
{
    RankRun *run = context;
    run->status = ask(run);
    if (run->status == OK) return NULL;
    snprintf(run->message, sizeof run->message, "%s", status_message());
    comm_abort(run->world, ERR_COMM);
    return NULL;
}

/* The layout's ranks as threads; their answers in runs. */
static int run_all(const InferModel *model, Mesh mesh, int n, int stop_after, RankRun *runs)
{
    CommWorld *world;
    assert_int_equal(comm_world_create_local(n, NULL, &world), OK);
    for (int r = 0; r < n; r++) {
        runs[r] = (RankRun){.model = model,
                            .mesh = mesh,
                            .world = comm_of_rank(world, r),
                            .here = n,
                            .stop_after = stop_after};
        assert_int_equal(pthread_create(&runs[r].thread, NULL, rank_main, &runs[r]), 0);
    }
    for (int r = 0; r < n; r++) pthread_join(runs[r].thread, NULL);
    comm_world_destroy(world);
    return n;
}

static void free_all(RankRun *runs, int n)
{
    for (int r = 0; r < n; r++) free(runs[r].answers.logits);
}

static void check_near(const char *layout, const char *what, const float *a, const float *b,
                       int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (!(fabs((double)a[i] - (double)b[i]) <= 1e-5 * (1 + fabs((double)b[i]))))
            fail_msg("%s: %s %lld is %g, not %g", layout, what, (long long)i, (double)a[i],
                     (double)b[i]);
}

static void check_same_texts(const char *layout, const Answers *a, const Answers *b)
{
    for (int i = 0; i < TEXTS; i++) {
        assert_int_equal(a->end[i], b->end[i]);
        assert_int_equal(a->n_made[i], b->n_made[i]);
        if (memcmp(a->made[i], b->made[i], (size_t)b->n_made[i] * sizeof(int32_t)))
            fail_msg("%s: text %d is another", layout, i);
    }
}

static void check_layout(const InferModel *model, const char *layout, Mesh mesh, int stop_after,
                         const Answers *one)
{
    RankRun runs[MAX_RANKS];
    int n = run_all(model, mesh, mesh_ranks(&mesh), stop_after, runs);
    int64_t vocab = model->config.vocab;
    for (int r = 0; r < n; r++) {
        const Answers *a = &runs[r].answers, *first = &runs[0].answers;
        if (runs[r].status != OK) fail_msg("%s, rank %d: %s", layout, r, runs[r].message);
        if (!a->memory_as_planned)
            fail_msg("%s, rank %d: what is allocated is not what was planned", layout, r);
        check_near(layout, "logit", a->logits, one->logits, ROW * vocab);
        for (int i = 0; i < SCORED; i++) check_near(layout, "nll", a->nll[i], one->nll[i], LONGEST);
        check_same_texts(layout, a, one);
        assert_memory_equal(a->logits, first->logits, sizeof(float) * ROW * (size_t)vocab);
        assert_memory_equal(a->nll, first->nll, sizeof a->nll);
    }
    free_all(runs, n);
}

static const struct {
    const char *name;
    Mesh mesh;
    bool experts; /* only models with experts */
} layouts[] = {
    {"tp 2", {.size = {[MESH_TP] = 2}}, false},
    {"fsdp 2", {.size = {[MESH_FSDP] = 2}}, false},
    {"dp 3", {.size = {[MESH_DP] = 3}}, false},
    {"pp 2", {.size = {[MESH_PP] = 2}}, false},
    {"ep 2", {.size = {[MESH_EP] = 2}}, true},
    {"pp 2, tp 2", {.size = {[MESH_PP] = 2, [MESH_TP] = 2}}, false},
    {"fsdp 2, tp 2", {.size = {[MESH_FSDP] = 2, [MESH_TP] = 2}}, false},
    {"pp 2, ep 2, tp 2", {.size = {[MESH_PP] = 2, [MESH_EP] = 2, [MESH_TP] = 2}}, true},
    {"dp 2, fsdp 2, ep 2", {.size = {[MESH_DP] = 2, [MESH_FSDP] = 2, [MESH_EP] = 2}}, true},
};

#define COMMON                                                                                     \
    "\"vocab_size\": 96, \"hidden_size\": 32, \"num_hidden_layers\": 4, \"num_attention_heads\": " \
    "4, "                                                                                          \
    "\"num_key_value_heads\": 2, \"head_dim\": 8, \"max_position_embeddings\": 64, "               \
    "\"initializer_range\": 0.3, "

static InferModel random_model(const char *config)
{
    InferModel model = {.path = xstrdup("random"), .seed = 3};
    json_t *json = json_loads(config, 0, NULL);
    if (model_config_from_json(json, &model.config) != OK) fail_msg("%s", status_message());
    json_decref(json);
    return model;
}

static InferModel random_llama4(void)
{
    return random_model(
        "{\"model_type\": \"llama4_text\", " COMMON
        "\"intermediate_size\": 24, \"intermediate_size_mlp\": 48, "
        "\"num_local_experts\": 4, \"num_experts_per_tok\": 1, \"interleave_moe_layer_step\": 2, "
        "\"no_rope_layer_interval\": 4, \"attention_chunk_size\": 8, \"tie_word_embeddings\": "
        "false}");
}

static void check_model(InferModel model)
{
    for (int stop_after = 0; stop_after <= 4; stop_after += 4) {
        RankRun one = {.model = &model, .here = 1, .stop_after = stop_after};
        if (ask(&one) != OK) fail_msg("%s", status_message());
        assert_int_equal(one.answers.end[1], stop_after ? GENERATE_CANCELLED : GENERATE_LENGTH);
        for (int i = 0; i < COUNT_OF(layouts); i++) {
            bool can = !layouts[i].experts || model.config.n_experts > 0;
            if (can && (stop_after == 0 || i % 3 == 0))
                check_layout(&model, layouts[i].name, layouts[i].mesh, stop_after, &one.answers);
        }
        free(one.answers.logits);
    }
    infer_model_deinit(&model);
}

static void test_llama3(void **state)
{
    (void)state;
    check_model(random_model("{\"model_type\": \"llama\", " COMMON
                             "\"intermediate_size\": 48, \"tie_word_embeddings\": false}"));
}

static void test_llama4(void **state)
{
    (void)state;
    check_model(random_llama4());
}

static void test_grok1(void **state)
{
    (void)state;
    check_model(
        random_model("{\"model_type\": \"grok-1\", " COMMON
                     "\"intermediate_size\": 24, \"num_experts\": 4, \"num_experts_per_tok\": 2, "
                     "\"max_attn_value\": 30.0, \"attn_output_multiplier\": 0.35, "
                     "\"embedding_multiplier_scale\": 5.65, "
                     "\"output_multiplier_scale\": 0.577, \"tie_word_embeddings\": true}"));
}

static void check_refused(const InferModel *model, Mesh mesh, int n, const char *says)
{
    RankRun runs[MAX_RANKS];
    run_all(model, mesh, n, 0, runs);
    for (int r = 0; r < n; r++) {
        if (runs[r].status == ERR_COMM) continue; /* it was told first */
        assert_int_equal(runs[r].status, ERR_REFUSED);
        if (!strstr(runs[r].message, says))
            fail_msg("the sentence lacks '%s': %s", says, runs[r].message);
    }
    free_all(runs, n);
}

static void test_refusals(void **state)
{
    (void)state;
    InferModel model = random_llama4();
    check_refused(&model, (Mesh){.size = {[MESH_CP] = 2}}, 2, "tensor parallelism");
    check_refused(&model, (Mesh){.size = {[MESH_TP] = 2}}, 3, "for 2 ranks, but 3");
    check_refused(&model, (Mesh){.size = {[MESH_TP] = 3}}, 3,
                  "--tp 3 does not divide the model's 4 query heads; --tp 2 would");
    check_refused(&model, (Mesh){.size = {[MESH_EP] = 3}}, 3,
                  "--ep 3 does not divide the model's 4 experts");
    check_refused(&model, (Mesh){.size = {[MESH_PP] = 8}}, 8, "layers");
    infer_model_deinit(&model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama3),
        cmocka_unit_test(test_llama4),
        cmocka_unit_test(test_grok1),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
