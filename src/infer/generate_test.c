/* Generation against the training graph: at every step, however the tokens before it came in, the
 * logits are those of the whole row; also across chunks of attention, and for several slots at
 * once. */
#include "gpu/gpu.h"
#include "infer/infer.h" /* before cmocka, which has a macro called fail */

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define GOLDEN SOURCE_DIR "/tests/golden/"

#define check_ok(call)                                                                             \
    do {                                                                                           \
        if ((call) != OK) fail_msg("%s: %s", #call, status_message());                             \
    } while (0)

enum { TOKENS = 44, MAX_VOCAB = 4096 };

/* Long enough for six chunks of 7. */
static void make_ids(const InferModel *model, int32_t *ids, int n, uint64_t seed)
{
    for (int i = 0; i < n; i++)
        ids[i] = (int32_t)rng_below(seed, (uint64_t)i, (uint64_t)model->config.vocab);
}

static float *whole_row(const InferModel *model, const int32_t *ids, int n)
{
    Infer *infer;
    const float *logits;
    size_t bytes = sizeof(float) * (size_t)n * (size_t)model->config.vocab;
    check_ok(infer_create(model, (InferOptions){.logits_tokens = n, .threads = 1}, &infer));
    check_ok(infer_logits(infer, ids, n, &logits));
    float *copy = malloc(bytes);
    memcpy(copy, logits, bytes);
    infer_destroy(infer);
    return copy;
}

static void check_near(const float *a, const float *b, int64_t n, const char *what, int at)
{
    for (int64_t i = 0; i < n; i++)
        if (!(fabs((double)a[i] - (double)b[i]) <= 1e-4))
            fail_msg("%s, token %d: logit %lld is %g, not %g", what, at, (long long)i, (double)a[i],
                     (double)b[i]);
}

/* A prompt of `first` tokens in pieces of `prefill`, then one token at a time. */
static void check_steps(const InferModel *model, DeviceKind device, const int32_t *ids,
                        const float *expected, int first, int prefill)
{
    Infer *infer;
    char what[96];
    int64_t vocab = model->config.vocab;
    snprintf(what, sizeof what, "prompt of %d in pieces of %d", first, prefill);
    check_ok(infer_create(
        model,
        (InferOptions){
            .batch = 1, .context = TOKENS, .prefill = prefill, .threads = 2, .device = device},
        &infer));
    for (int done = 0; done < TOKENS;) {
        int n = done ? 1 : first;
        const float *logits;
        check_ok(infer_feed(infer, &(SlotTokens){0, ids + done, n}, 1, &logits));
        done += n;
        assert_int_equal(infer_length(infer, 0), done);
        check_near(logits, expected + (done - 1) * vocab, vocab, what, done - 1);
    }
    const float *logits;
    assert_int_equal(infer_feed(infer, &(SlotTokens){0, ids, 1}, 1, &logits), ERR_REFUSED);
    infer_destroy(infer);
}

static void check_model(const char *name)
{
    InferModel model;
    int32_t ids[TOKENS];
    char path[512];
    snprintf(path, sizeof path, GOLDEN "%s", name);
    check_ok(infer_model_open(path, &model));
    make_ids(&model, ids, TOKENS, 5);
    float *expected = whole_row(&model, ids, TOKENS);
    const int prefill[] = {1, 3, 64}, first[] = {1, 2, 10, 33};
    for (int i = 0; i < COUNT_OF(prefill); i++)
        for (int k = 0; k < COUNT_OF(first); k++)
            check_steps(&model, DEVICE_CPU, ids, expected, first[k], prefill[i]);
    if (gpu_count(NULL) > 0) check_steps(&model, DEVICE_CUDA, ids, expected, 33, 16);
    free(expected);
    infer_model_deinit(&model);
}

static void test_dense(void **state)
{
    (void)state;
    check_model("llama3-gqa");
    check_model("llama3-rope-3.1");
}

static void test_chunks(void **state)
{
    (void)state;
    check_model("llama4-chunk7");
    check_model("llama4-chunk8");
    check_model("llama4-temperature");
}

static void test_experts(void **state)
{
    (void)state;
    check_model("llama4-scout");
    check_model("llama4-top2");
}

static void test_capped_scores(void **state)
{
    (void)state;
    check_model("grok1-cap");
    check_model("grok1-mqa-top3");
    check_model("grok1-head-dim");
}

/* Three slots of different lengths, one of which pauses, one of which starts again. */
static void check_slots(const char *name)
{
    InferModel model;
    Infer *infer;
    int32_t ids[3][TOKENS];
    float *expected[3];
    char path[512];
    snprintf(path, sizeof path, GOLDEN "%s", name);
    check_ok(infer_model_open(path, &model));
    int64_t vocab = model.config.vocab;
    for (int s = 0; s < 3; s++) {
        make_ids(&model, ids[s], TOKENS, 20 + (uint64_t)s);
        expected[s] = whole_row(&model, ids[s], TOKENS);
    }
    check_ok(infer_create(
        &model, (InferOptions){.batch = 3, .context = TOKENS, .prefill = 8, .threads = 2}, &infer));
    const int first[3] = {25, 1, 9};
    const float *logits[3];
    SlotTokens feed[3];
    for (int s = 0; s < 3; s++) feed[s] = (SlotTokens){s, ids[s], first[s]};
    check_ok(infer_feed(infer, feed, 3, logits));
    for (int s = 0; s < 3; s++)
        check_near(logits[s], expected[s] + (first[s] - 1) * vocab, vocab, "slots", s);
    for (int step = 0; step < 12;
         step++) { /* slot 1 pauses at even steps; the order does not matter */
        int n = 0;
        for (int s = 2; s >= 0; s--) {
            if (s == 1 && step % 2 == 0) continue;
            feed[n++] = (SlotTokens){s, &ids[s][infer_length(infer, s)], 1};
        }
        check_ok(infer_feed(infer, feed, n, logits));
        for (int i = 0; i < n; i++)
            check_near(logits[i],
                       expected[feed[i].slot] + (infer_length(infer, feed[i].slot) - 1) * vocab,
                       vocab, "slot step", step);
    }
    infer_truncate(infer, 0, 4); /* with chunks it may have to begin with one */
    int held = (int)infer_length(infer, 0);
    assert_true(held == 4 || (held == 0 && !strcmp(name, "llama4-chunk7")));
    check_ok(infer_feed(infer, &(SlotTokens){0, &ids[0][held], 19 - held}, 1, logits));
    check_near(logits[0], expected[0] + 18 * vocab, vocab, "slot again", 18);
    infer_destroy(infer);
    for (int s = 0; s < 3; s++) free(expected[s]);
    infer_model_deinit(&model);
}

static void test_slots_dense(void **state)
{
    (void)state;
    check_slots("llama3-gqa");
}

static void test_slots_chunks(void **state)
{
    (void)state;
    check_slots("llama4-chunk7");
}

static void test_slots_experts(void **state)
{
    (void)state;
    check_slots("grok1-gqa");
}

/* ---- generation ------------------------------------------------------------------------- */

static bool count_to_five(void *context, int32_t id)
{
    (void)id;
    return ++*(int *)context < 5;
}

static void test_generation(void **state)
{
    (void)state;
    InferModel model;
    Infer *infer;
    GenerateStats stats;
    int32_t ids[12];
    int calls = 0;
    check_ok(infer_model_open(GOLDEN "llama3-gqa", &model));
    make_ids(&model, ids, 12, 3);
    model.n_stop = 0;
    check_ok(infer_create(&model, (InferOptions){.batch = 3, .context = 40, .threads = 1}, &infer));
    SamplerOptions warm = {.temperature = 1, .top_p = 1, .seed = 7};
    GenerateRequest r[3] = {{.prompt = ids, .n_prompt = 12, .max_tokens = 100, .sampler = warm},
                            {.prompt = ids, .n_prompt = 5, .max_tokens = 8, .sampler = warm},
                            {.prompt = ids,
                             .n_prompt = 12,
                             .max_tokens = 100,
                             .sampler = warm,
                             .on_token = count_to_five,
                             .context = &calls}};
    check_ok(infer_generate(infer, r, 3, &stats));
    assert_int_equal(r[0].end, GENERATE_CONTEXT);
    assert_int_equal(r[0].tokens.n, 40 - 12 + 1); /* the last one needs no place in the cache */
    assert_int_equal(r[1].end, GENERATE_LENGTH);
    assert_int_equal(r[1].tokens.n, 8);
    assert_int_equal(r[2].end, GENERATE_CANCELLED);
    assert_int_equal(r[2].tokens.n, 5);
    assert_memory_equal(r[2].tokens.at, r[0].tokens.at,
                        5 * sizeof(int32_t)); /* same seed, same tokens */
    assert_int_equal(stats.prompt_tokens, 29);

    /* again, alone, with the third token made now a stop; up to it the tokens are the same */
    GenerateRequest again = {.prompt = ids, .n_prompt = 12, .max_tokens = 100, .sampler = warm};
    model.stop[model.n_stop++] = r[0].tokens.at[3];
    for (int s = 0; s < 3; s++) infer_truncate(infer, s, 0);
    check_ok(infer_generate(infer, &again, 1, &stats));
    assert_int_equal(again.end, GENERATE_STOP);
    assert_true(again.tokens.n <= 3);
    assert_memory_equal(again.tokens.at, r[0].tokens.at, again.tokens.n * sizeof(int32_t));
    for (int i = 0; i < 3; i++) VEC_FREE(&r[i].tokens);
    VEC_FREE(&again.tokens);
    infer_destroy(infer);
    infer_model_deinit(&model);
}

static void test_refusals(void **state)
{
    (void)state;
    InferModel model;
    Infer *infer = NULL;
    check_ok(infer_model_open(GOLDEN "llama3-gqa", &model));
    assert_int_equal(infer_create(&model, (InferOptions){.batch = 1, .context = 1 << 20}, &infer),
                     ERR_REFUSED);
    assert_non_null(strstr(status_message(), "max_position_embeddings"));
    assert_int_equal(
        infer_create(&model, (InferOptions){.batch = 1, .memory_limit_bytes = 1000}, &infer),
        ERR_REFUSED);
    assert_non_null(strstr(status_message(), "1.00 kB"));
    InferPlan small, large;
    check_ok(infer_plan(&model, &(InferOptions){.batch = 1, .context = 80}, &small));
    check_ok(infer_plan(&model, &(InferOptions){.batch = 1, .context = 256}, &large));
    InferOptions tight = {.batch = 1,
                          .context = 256,
                          .memory_limit_bytes = (small.total_bytes + large.total_bytes) / 2};
    assert_int_equal(infer_create(&model, tight, &infer), ERR_REFUSED);
    assert_non_null(strstr(status_message(), "would fit"));
    assert_int_equal(infer_model_open(GOLDEN, &model), ERR_FORMAT);
    assert_int_equal(infer_model_open(GOLDEN "nothing-here", &model), ERR_IO);
    infer_model_deinit(&model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dense),         cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_experts),       cmocka_unit_test(test_capped_scores),
        cmocka_unit_test(test_slots_dense),   cmocka_unit_test(test_slots_chunks),
        cmocka_unit_test(test_slots_experts), cmocka_unit_test(test_generation),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
