/* Which tokens a batch holds: a pure function of seed and step, however it is cut and whoever waits
 * for it. */
#include "data/data_testkit.h"

#include <math.h>

static void test_any_split_and_order_gives_the_same_rows(void **state)
{
    Data *data = open_path(*state, "texts");
    DataLoader *whole = loader_for(
        data, (DataPlan){.seed = 5, .batch = 12, .micro_batch = 12, .seq = 33});
    DataLoader *parts = loader_for(data,
                                   (DataPlan){.seed = 5, .batch = 12, .micro_batch = 3, .seq = 33});
    DataLoader *other = loader_for(
        data, (DataPlan){.seed = 6, .batch = 12, .micro_batch = 12, .seq = 33});
    Rows a = rows_create(12, 33), b = rows_create(12, 33);
    int differ = 0;
    for (int64_t k = 0; k < 40; k++) {
        int64_t step = (int64_t)rng_permute(3, (uint64_t)k, 40);
        fill_step(parts, step, 3, &a);
        fill_step(whole, step, 12, &b);
        assert_same_rows(&a, &b);
        fill_step(other, step, 12, &b);
        differ += memcmp(a.batch.ids, b.batch.ids, 12 * 33 * 4) != 0;
    }
    assert_true(differ > 35);
    int64_t huge = (int64_t)1 << 40;
    fill_step(parts, huge, 3, &a); /* far away costs the same */
    DataBatch all = rows_from(&a, 0);
    assert_int_equal(data_fill(whole, INT64_MAX / 3, 0, &all), ERR_ARG);
    assert_int_equal(data_fill(whole, -1, 0, &all), ERR_ARG);
    assert_int_equal(data_fill(whole, 0, 1, &all), ERR_ARG);
    rows_destroy(&a);
    rows_destroy(&b);
    data_loader_destroy(whole);
    data_loader_destroy(parts);
    data_loader_destroy(other);
    data_close(data);
}

/* Cutting an epoch's rows at their borders and joining inputs gives each token as often as the
 * corpus has it; targets are the next inputs; positions restart where documents do. */
static void check_epoch(const Data *data, int64_t seq, int64_t epoch)
{
    const Corpus *c = &data->source[0].split[DATA_TRAIN];
    int64_t slots = (c->n_tokens + seq - 1) / seq, n_inputs = 0, n_targets = 0;
    DataLoader *loader = loader_for(
        data, (DataPlan){.seed = 1, .batch = 1, .micro_batch = 1, .seq = seq});
    int32_t bos = tokenizer_bos(data->tokenizer), eos = tokenizer_eos(data->tokenizer);
    int64_t *seen = xcalloc((size_t)data->vocab_size, 8),
            *expected = xcalloc((size_t)data->vocab_size, 8);
    int32_t *all = xcalloc((size_t)c->n_tokens, 4);
    assert_int_equal(data_corpus_read(c, 0, c->n_tokens, data->vocab_size, all), OK);
    for (int64_t i = 0; i < c->n_tokens; i++) expected[all[i]]++;
    Rows r = rows_create(1, seq);
    for (int64_t s = 0; s < slots; s++) {
        fill_step(loader, epoch * slots + s, 1, &r);
        int64_t valid = 0, counted;
        for (int64_t t = 0; t < seq; t++) {
            int32_t id = r.batch.ids[t], target = r.batch.targets[t], pos = r.batch.pos[t];
            bool padding = target < 0 && id == 0; /* token 0 never ends a document here */
            if (!padding) seen[id]++, n_inputs++;
            valid += target >= 0;
            if (id == bos) assert_int_equal(pos, 0);
            if (id == eos) assert_int_equal(target, -1);
            if (target >= 0 && t + 1 < seq) assert_int_equal(r.batch.ids[t + 1], target);
            if (target < 0 && !padding) assert_int_equal(id, eos);
            assert_true(t ? pos == 0 || pos == r.batch.pos[t - 1] + 1 : pos == 0);
            if (t && pos == 0 && id) assert_int_equal(id, bos);
            assert_true(r.batch.weights[t] >= 0 && (r.batch.weights[t] > 0) == (target >= 0));
        }
        assert_int_equal(data_step_targets(loader, epoch * slots + s, &counted), OK);
        assert_int_equal(counted, valid);
        for (int64_t t = 0; t < seq; t++)
            if (r.batch.targets[t] >= 0) assert_true(r.batch.weights[t] == 1.0f / (float)valid);
        n_targets += valid;
    }
    assert_int_equal(n_inputs, c->n_tokens);
    assert_int_equal(n_targets, c->n_tokens - c->n_docs);
    assert_memory_equal(seen, expected, (size_t)data->vocab_size * 8);
    rows_destroy(&r);
    free(seen);
    free(expected);
    free(all);
    data_loader_destroy(loader);
}

static void test_every_token_once_an_epoch(void **state)
{
    Data *data = open_path(*state, "texts");
    static const int64_t lengths[] = {1, 7, 64, 301, 100000};
    for (int i = 0; i < COUNT_OF(lengths); i++)
        for (int64_t epoch = 0; epoch < 2; epoch++) check_epoch(data, lengths[i], epoch);
    data_close(data);
}

static void test_weights_add_up_over_the_step(void **state)
{
    Data *data = open_path(*state, "texts");
    DataLoader *loader = loader_for(data, (DataPlan){.batch = 8, .micro_batch = 2, .seq = 50});
    Rows r = rows_create(8, 50);
    for (int64_t step = 0; step < 20; step++) {
        double sum = 0;
        fill_step(loader, step, 2, &r);
        for (int i = 0; i < 400; i++) sum += (double)r.batch.weights[i];
        assert_true(fabs(sum - 1) < 1e-5);
    }
    rows_destroy(&r);
    data_loader_destroy(loader);
    data_close(data);
}

static void test_holdout(void **state)
{
    Bench *b = *state;
    Data *data = open_path(b, "texts");
    DataStats train = data_stats(data, DATA_TRAIN), held = data_stats(data, DATA_HOLDOUT);
    assert_int_equal(train.n_documents + held.n_documents, 150);
    assert_in_range(held.n_documents, 5, 30);
    Str text = {0};
    assert_int_equal(data_holdout_text(data, SIZE_MAX, &text), OK);
    assert_int_equal(text.n, held.text_bytes);
    int found = 0;
    for (int d = 0; d < 150; d++) found += strstr(text.at, document(b, d)) != NULL;
    assert_int_equal(found, held.n_documents); /* whole documents; the words of each are its own */

    /* every target once, whatever the batch, and the bytes are those of the text */
    DataLoader *loader = loader_for(
        data,
        (DataPlan){.split = DATA_HOLDOUT, .seed = 9, .batch = 4, .micro_batch = 2, .seq = 40});
    uint64_t bytes;
    assert_int_equal(data_target_bytes(loader, data_loader_steps(loader), &bytes), OK);
    assert_int_equal(bytes, held.text_bytes);
    int64_t n, sum = 0;
    for (int64_t step = 0; step < data_loader_steps(loader); step++) {
        assert_int_equal(data_step_targets(loader, step, &n), OK);
        sum += n;
    }
    assert_int_equal(sum, held.n_tokens - held.n_documents);
    assert_int_equal(data_step_targets(loader, data_loader_steps(loader), &n), OK);
    assert_int_equal(n, 0);
    data_loader_destroy(loader);
    str_deinit(&text);

    /* one document: its end is held out; two: one of them */
    write_text(
        b, "one/a.txt",
        "long enough to be cut in two; long enough to be cut in two; long enough to be cut in two; "
        "long enough to be cut in two; long enough to be cut in two; long enough to be cut in two");
    data_close(data);
    data = open_path(b, "one");
    assert_int_equal(data_stats(data, DATA_HOLDOUT).n_documents, 1);
    assert_int_equal(data_stats(data, DATA_TRAIN).n_documents, 1);
    data_close(data);
    write_text(b, "one/b.txt", "another");
    data = open_path(b, "one");
    assert_int_equal(data_stats(data, DATA_HOLDOUT).n_documents, 1);
    assert_int_equal(data_stats(data, DATA_TRAIN).n_documents, 1);
    data_close(data);
}

static void test_mixing(void **state)
{
    Bench *b = *state;
    write_text(b, "mix/a.txt", "aaaaaaaa");
    write_text(b, "mix/b.txt", "bbbbbbbb");
    write_text(b, "mix/c.txt", "cccccccc");
    DataSource sources[] = {{.path = at(b, "mix/a.txt"), .weight = 3},
                            {.path = at(b, "mix/b.txt"), .weight = 1},
                            {.path = at(b, "mix/c.txt"), .weight = 2.5}};
    Data *data = open_data(b, sources, 3);
    DataLoader *loader = loader_for(data, (DataPlan){.batch = 1, .micro_batch = 1, .seq = 64});
    Rows r = rows_create(1, 64);
    double n[3] = {0};
    for (int64_t step = 0; step < 2000; step++) {
        fill_step(loader, step, 1, &r);
        Str text = {0};
        int t = 0; /* the rows are longer than the texts: padding in front */
        while (r.batch.targets[t] < 0) t++;
        assert_int_equal(tokenizer_decode(b->tokenizer, &r.batch.targets[t], 1, &text), OK);
        n[text.at[0] - 'a']++;
        str_deinit(&text);
        for (int i = 0; i < 3; i++) /* exact at every moment, not only at the end */
            assert_true(fabs(n[i] - sources[i].weight / 6.5 * (double)(step + 1)) < 2.01);
    }
    rows_destroy(&r);
    data_loader_destroy(loader);
    data_close(data);
}

static void test_random_ids(void **state)
{
    Bench *b = *state;
    DataSource source = {.weight = 1};
    DataOptions options = options_for(b, &source, 1);
    options.tokenizer = NULL;
    options.vocab_size = 1000;
    Data *data;
    assert_int_equal(data_open(&options, &data), OK);
    DataLoader *loader = loader_for(data, (DataPlan){.batch = 4, .micro_batch = 4, .seq = 256});
    assert_true(data_loader_steps(loader) == INT64_MAX);
    Rows r = rows_create(4, 256), again = rows_create(4, 256);
    fill_step(loader, 7, 4, &r);
    fill_step(loader, 8, 4, &again);
    assert_memory_not_equal(r.batch.ids, again.batch.ids, 4096);
    fill_step(loader, 7, 4, &again);
    assert_same_rows(&r, &again);
    int high = 0;
    for (int i = 0; i < 1024; i++) {
        assert_in_range(r.batch.ids[i], 0, 999);
        assert_true(r.batch.weights[i] == 1.0f / 1024);
        high += r.batch.ids[i] >= 500;
    }
    assert_in_range(high, 400, 624);
    rows_destroy(&r);
    rows_destroy(&again);
    data_loader_destroy(loader);
    data_close(data);
}

static void test_prefetch(void **state)
{
    Data *data = open_path(*state, "texts");
    DataPlan plan = {.seed = 2, .batch = 6, .micro_batch = 2, .seq = 20};
    DataLoader *ahead = loader_for(data, plan), *direct = loader_for(data, plan);
    DataPrefetch *prefetch;
    size_t bytes;
    assert_int_equal(data_prefetch_bytes(&plan, 3, &bytes), OK);
    assert_int_equal(bytes, 3 * 4 * 192); /* 160 bytes on lines of 64 */
    assert_int_equal(data_prefetch_bytes(&plan, 1, &bytes), ERR_ARG);
    assert_int_equal(data_prefetch_create(ahead, 5, 3, &prefetch), OK);
    Rows r = rows_create(2, 20);
    static const int64_t jumps[] = {5, 6, 7, 100, 101, 3, 4, 4, 5};
    for (int i = 0; i < COUNT_OF(jumps); i++)
        for (int64_t m = 0; m < 3; m++) {
            const DataBatch *batch;
            assert_int_equal(data_prefetch_next(prefetch, jumps[i], m, &batch), OK);
            assert_int_equal(data_fill(direct, jumps[i], m, &r.batch), OK);
            Rows got = {*batch, 2, 20};
            assert_same_rows(&r, &got);
        }
    assert_true(data_prefetch_wait_s(prefetch) >= 0);
    const DataBatch *batch;
    assert_int_equal(data_prefetch_next(prefetch, 0, 3, &batch), ERR_ARG);
    /* an error is handed to the one who asks, again each time, and does not stop the thread */
    for (int i = 0; i < 3; i++)
        assert_int_equal(data_prefetch_next(prefetch, INT64_MAX / 2, 0, &batch), ERR_ARG);
    assert_non_null(strstr(status_message(), "out of range"));
    assert_int_equal(data_prefetch_next(prefetch, 5, 0, &batch), OK);
    data_prefetch_destroy(prefetch);
    assert_int_equal(fault_set("tensor_alloc:1"), OK);
    assert_int_equal(data_prefetch_create(ahead, 0, 3, &prefetch), ERR_MEMORY);
    assert_int_equal(fault_set(NULL), OK);
    rows_destroy(&r);
    data_loader_destroy(ahead);
    data_loader_destroy(direct);
    data_close(data);
}

/* A rank's share: every parts-th micro-batch, or those that a stride says. */
static void test_prefetch_of_a_part(void **state)
{
    Data *data = open_path(*state, "texts");
    static const int64_t stride[] = {0, 1};
    for (int i = 0; i < COUNT_OF(stride); i++) {
        DataPlan plan = {.seed = 2,
                         .batch = 8,
                         .micro_batch = 1,
                         .seq = 20,
                         .part = stride[i] ? 4 : 1,
                         .parts = 4,
                         .stride = stride[i]};
        DataLoader *ahead = loader_for(data, plan), *direct = loader_for(data, plan);
        DataPrefetch *prefetch;
        Rows r = rows_create(1, 20);
        assert_int_equal(data_prefetch_create(ahead, 0, 2, &prefetch), OK);
        for (int64_t step = 0; step < 3; step++)
            for (int64_t m = 0; m < 2; m++) { /* of 8, shared by 4 */
                const DataBatch *batch;
                assert_int_equal(data_prefetch_next(prefetch, step, m, &batch), OK);
                assert_int_equal(data_fill(direct, step, stride[i] ? 4 + m : 1 + 4 * m, &r.batch),
                                 OK);
                Rows got = {*batch, 1, 20};
                assert_same_rows(&r, &got);
            }
        data_prefetch_destroy(prefetch);
        rows_destroy(&r);
        data_loader_destroy(ahead);
        data_loader_destroy(direct);
    }
    data_close(data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_split_and_order_gives_the_same_rows),
        cmocka_unit_test(test_every_token_once_an_epoch),
        cmocka_unit_test(test_weights_add_up_over_the_step),
        cmocka_unit_test(test_holdout),
        cmocka_unit_test(test_mixing),
        cmocka_unit_test(test_random_ids),
        cmocka_unit_test(test_prefetch),
        cmocka_unit_test(test_prefetch_of_a_part),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
