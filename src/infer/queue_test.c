/* Pages at work: logits and tokens are the same bits for pages of any size, alone or among others,
 * with prompts computed or shared, and with as few pages as will do; layers that attend in chunks
 * hold a chunk and no more. */
#include "gpu/gpu.h"
#include "infer/infer_internal.h" /* before cmocka, which has a macro called fail */

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#define GOLDEN SOURCE_DIR "/tests/golden/"

#define check_ok(call)                                                                             \
    do {                                                                                           \
        if ((call) != OK) fail_msg("%s: %s", #call, status_message());                             \
    } while (0)

enum { TOKENS = 100, MAX_PROMPT = 60 };
static const char *const models[] = {"llama3-gqa", "llama4-chunk7", "llama4-scout", "grok1-cap"};

static InferModel open_model(const char *name)
{
    InferModel model;
    char path[512];
    snprintf(path, sizeof path, GOLDEN "%s", name);
    check_ok(infer_model_open(path, &model));
    model.n_stop = 0;
    return model;
}

static Infer *open_infer(const InferModel *model, InferOptions o)
{
    Infer *infer;
    if (!o.context) o.context = TOKENS;
    o.threads = 1;
    check_ok(infer_create(model, o, &infer));
    return infer;
}

/* Any ids, with what they begin with in common. */
static void make_ids(const InferModel *model, int32_t *ids, int n, uint64_t begin, uint64_t rest)
{
    for (int i = 0; i < n; i++)
        ids[i] = (int32_t)rng_below(i < 40 ? begin : rest, (uint64_t)i,
                                    (uint64_t)model->config.vocab);
}

/* ---- slots ------------------------------------------------------------------------------ */

/* Logits after a prompt of 37 and each of some tokens more, of slot `slot`. */
static float *go(const InferModel *model, Infer *infer, int slot, const int32_t *ids)
{
    int64_t vocab = model->config.vocab, from = infer_length(infer, slot);
    float *all = xcalloc((size_t)(TOKENS * vocab), sizeof *all);
    const float *logits;
    for (int64_t n = max_i64(37 - from, 1); from < 50; from += n, n = 1) {
        check_ok(infer_feed(infer, &(SlotTokens){slot, ids + from, n}, 1, &logits));
        memcpy(all + (from + n) * vocab, logits, sizeof *all * (size_t)vocab);
    }
    return all;
}

static void check_same(const InferModel *model, const float *a, const float *b, int64_t first)
{
    int64_t vocab = model->config.vocab;
    assert_memory_equal(a + first * vocab, b + first * vocab,
                        sizeof *a * (size_t)((51 - first) * vocab));
}

static void check_sizes(const char *name, DeviceKind device)
{
    static const int64_t page[] = {16, 32, 256};
    InferModel model = open_model(name);
    int32_t ids[TOKENS];
    float *first = NULL;
    make_ids(&model, ids, TOKENS, 1, 2);
    for (int i = 0; i < COUNT_OF(page); i++) {
        Infer *infer = open_infer(
            &model, (InferOptions){.batch = 2, .page_tokens = page[i], .device = device});
        float *logits = go(&model, infer, i % 2, ids);
        if (first) check_same(&model, first, logits, 37);
        if (first) free(logits);
        if (!first) first = logits;
        infer_destroy(infer);
    }
    free(first);
    infer_model_deinit(&model);
}

static void test_sizes(void **state)
{
    (void)state;
    for (int i = 0; i < COUNT_OF(models); i++) check_sizes(models[i], DEVICE_CPU);
    if (gpu_count(NULL) > 0) check_sizes("llama4-chunk7", DEVICE_CUDA);
}

/* The second goes on from what the first has, in the middle of a page; then the first from less
 * than it had, while they share. Each is what it would be alone. */
static void check_share(const char *name)
{
    InferModel model = open_model(name);
    int32_t a[TOKENS], b[TOKENS];
    make_ids(&model, a, TOKENS, 1, 2);
    make_ids(&model, b, TOKENS, 1, 3);
    Infer *infer = open_infer(&model, (InferOptions){.batch = 2, .prefill = 16});
    float *alone_a = go(&model, infer, 0, a), *alone_b = go(&model, infer, 1, b);
    infer_truncate(infer, 0, 0);
    infer_truncate(infer, 1, 0);
    const float *logits[2];
    check_ok(infer_feed(infer, &(SlotTokens){0, a, 37}, 1, logits));
    int64_t held = infer_share(infer, 1, 0, 36);
    assert_int_equal(held, 36);
    assert_int_equal(infer_length(infer, 1), 36);
    float *shared = go(&model, infer, 1, b);
    check_same(&model, alone_b, shared, 37);
    free(shared);
    held = infer_share(infer, 1, 0, 36);
    infer_truncate(infer, 0, 34);
    held = infer_length(infer, 0);
    SlotTokens both[2] = {{1, b + 36, 1}, {0, a + held, 37 - held}};
    check_ok(infer_feed(infer, both, 2, logits));
    shared = go(&model, infer, 0, a);
    check_same(&model, alone_a, shared, 38);
    free(shared);
    shared = go(&model, infer, 1, b);
    check_same(&model, alone_b, shared, 38);
    free(shared);
    free(alone_a);
    free(alone_b);
    for (int s = 0; s < 2; s++) infer_truncate(infer, s, 0);
    for (int i = 0; i < infer->n_kinds; i++)
        assert_int_equal(page_pool_free(infer->kind[i].pool[0]), infer->kind[i].pages);
    infer_destroy(infer);
    infer_model_deinit(&model);
}

static void test_share(void **state)
{
    (void)state;
    for (int i = 0; i < COUNT_OF(models); i++) check_share(models[i]);
}

/* ---- many requests ---------------------------------------------------------------------- */

enum { REQUESTS = 9 };
static const int prompts[REQUESTS] = {45, 1, 60, 60, 45, 45, 3, 50, 17};
static const int wanted[REQUESTS] = {12, 20, 5, 40, 1, 30, 0, 9, 25};

static void make_requests(const InferModel *model, int32_t ids[REQUESTS][MAX_PROMPT],
                          GenerateRequest *r)
{
    for (int i = 0; i < REQUESTS; i++) {
        make_ids(model, ids[i], MAX_PROMPT, 1, i == 5 ? 4 : 4 + (uint64_t)i);
        r[i] = (GenerateRequest){
            .prompt = ids[i],
            .n_prompt = prompts[i],
            .max_tokens = wanted[i],
            .sampler = {.temperature = 1, .top_p = 1, .seed = 5 + (uint64_t)i % 4}};
    }
}

static void check_queue(const char *name, DeviceKind device, InferOptions o)
{
    InferModel model = open_model(name);
    int32_t ids[REQUESTS][MAX_PROMPT];
    GenerateRequest all[REQUESTS], one[REQUESTS];
    GenerateStats stats;
    o.device = device;
    /* on a GPU products of other shapes may be summed in another order */
    Infer *alone = open_infer(&model, (InferOptions){.batch = device == DEVICE_CUDA ? o.batch : 1,
                                                     .prefill = o.prefill,
                                                     .device = device});
    Infer *infer = open_infer(&model, o);
    make_requests(&model, ids, all);
    make_requests(&model, ids, one);
    check_ok(infer_generate_all(infer, all, REQUESTS, &stats));
    assert_true(o.batch < 2 || stats.shared_tokens > 0);
    for (int i = 0; i < REQUESTS; i++) {
        check_ok(infer_generate_all(alone, &one[i], 1, &stats));
        assert_int_equal(stats.shared_tokens, 0);
        assert_int_equal(all[i].tokens.n, wanted[i]);
        assert_int_equal(one[i].tokens.n, wanted[i]);
        assert_int_equal(all[i].end, one[i].end);
        assert_memory_equal(all[i].tokens.at, one[i].tokens.at,
                            sizeof(int32_t) * (size_t)wanted[i]);
        VEC_FREE(&all[i].tokens);
        VEC_FREE(&one[i].tokens);
    }
    for (int i = 0; i < infer->n_kinds; i++)
        assert_int_equal(page_pool_free(infer->kind[i].pool[0]), infer->kind[i].pages);
    infer_destroy(alone);
    infer_destroy(infer);
    infer_model_deinit(&model);
}

static void test_queue(void **state)
{
    (void)state;
    for (int i = 0; i < COUNT_OF(models); i++) {
        check_queue(models[i], DEVICE_CPU, (InferOptions){.batch = 3, .prefill = 16});
        check_queue(models[i], DEVICE_CPU,
                    (InferOptions){.batch = 5, .prefill = 16, .cache_tokens = 160});
    }
    if (gpu_count(NULL) > 0)
        check_queue("llama4-chunk7", DEVICE_CUDA,
                    (InferOptions){.batch = 3, .prefill = 16, .cache_tokens = 160});
}

static bool count(void *context, int32_t id)
{
    (void)id;
    *(int *)context += 1;
    return true;
}

/* Before anything is made for anybody. */
static void test_refusals(void **state)
{
    (void)state;
    InferModel model = open_model("llama3-gqa");
    int32_t ids[TOKENS + 1];
    int calls = 0;
    GenerateStats stats;
    Infer *infer = open_infer(&model, (InferOptions){.batch = 2, .cache_tokens = 64});
    make_ids(&model, ids, TOKENS + 1, 1, 2);
    GenerateRequest r[2] = {
        {.prompt = ids, .n_prompt = 10, .max_tokens = 5, .on_token = count, .context = &calls},
        {.prompt = ids, .n_prompt = 50, .max_tokens = 16, .sampler = {.top_p = 1}}};
    r[0].sampler.top_p = 1;
    assert_int_equal(infer_generate_all(infer, r, 2, &stats), ERR_REFUSED);
    assert_non_null(strstr(status_message(), "request 2: a prompt of 50 tokens and up to 16 more "
                                             "want 5 pages of 16 positions"));
    assert_non_null(strstr(status_message(), "fewer tokens to make or more cache tokens"));
    r[1].max_tokens = 15;
    check_ok(infer_generate_all(infer, r, 2, &stats));
    assert_int_equal(calls, 5);
    for (int i = 0; i < 2; i++) VEC_FREE(&r[i].tokens);
    r[1].n_prompt = TOKENS + 1;
    assert_int_equal(infer_generate_all(infer, r, 2, &stats), ERR_REFUSED);
    assert_non_null(strstr(status_message(), "do not fit in a context"));
    assert_int_equal(infer_generate(infer, r, 2, &stats), ERR_REFUSED); /* slots side by side too */
    r[1].n_prompt = 50;
    assert_int_equal(infer_generate(infer, r, 2, &stats), ERR_REFUSED);
    assert_non_null(strstr(status_message(), "5 more pages of 16 positions are wanted"));
    assert_int_equal(calls, 5);
    infer_destroy(infer);
    Infer *none;
    assert_int_equal(infer_create(&model, (InferOptions){.batch = 1, .page_tokens = 24}, &none),
                     ERR_ARG);
    assert_non_null(strstr(status_message(), "a power of two"));
    infer_model_deinit(&model);
}

/* ---- chunks ----------------------------------------------------------------------------- */

/* Two layers, the first in chunks of 8: 240 positions of the second are 15 pages; of the first the
 * chunk of a token and a piece of 16 more want 2. */
static void test_chunk_memory(void **state)
{
    (void)state;
    InferModel model = open_model("llama4-chunk8");
    const ModelConfig *c = &model.config;
    InferPlan plan;
    GenerateStats stats;
    int32_t ids[TOKENS];
    InferOptions o = {.batch = 1, .context = 240, .prefill = 16, .threads = 1};
    int64_t page_bytes = 2 * 16 * c->n_kv_heads * c->head_dim * (int64_t)sizeof(float);
    check_ok(infer_plan(&model, &o, &plan));
    assert_int_equal(plan.cache_bytes, (15 + 3) * page_bytes);
    Infer *infer = open_infer(&model, o);
    make_ids(&model, ids, TOKENS, 1, 2);
    GenerateRequest r = {
        .prompt = ids, .n_prompt = TOKENS, .max_tokens = 141, .sampler = {.top_p = 1}};
    check_ok(infer_generate(infer, &r, 1, &stats));
    assert_int_equal(infer_length(infer, 0), 240);
    for (int i = 0; i < infer->n_kinds; i++) {
        int64_t most = page_pool_most(infer->kind[i].pool[0]);
        assert_true(infer->kind[i].chunk ? most <= 3 : most == 15);
    }
    VEC_FREE(&r.tokens);
    infer_destroy(infer);
    infer_model_deinit(&model);
}

/* Where all layers attend in chunks no text runs out of pages on its way, however few were asked
 * for. */
static void test_all_in_chunks(void **state)
{
    (void)state;
    InferModel model = open_model("llama4-chunk8");
    GenerateStats stats;
    int32_t ids[2][TOKENS];
    GenerateRequest r[2];
    model.config.layer[1].chunk = 8;
    for (int i = 0; i < 2; i++) {
        make_ids(&model, ids[i], TOKENS, 1 + (uint64_t)i, 3);
        r[i] = (GenerateRequest){
            .prompt = ids[i], .n_prompt = 90, .max_tokens = 100, .sampler = {.top_p = 1}};
    }
    Infer *infer = open_infer(
        &model, (InferOptions){.batch = 2, .context = 240, .prefill = 16, .cache_tokens = 16});
    check_ok(infer_generate(infer, r, 2, &stats));
    for (int i = 0; i < 2; i++) {
        assert_int_equal(infer_length(infer, i), 189);
        VEC_FREE(&r[i].tokens);
    }
    infer_destroy(infer);
    infer_model_deinit(&model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes),        cmocka_unit_test(test_share),
        cmocka_unit_test(test_queue),        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_chunk_memory), cmocka_unit_test(test_all_in_chunks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
