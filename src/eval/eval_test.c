/* Windows, answers and figures against plain definitions; whole evaluations of a small random model
 * against sums over its logits. */
#include "eval/eval_internal.h"

#include "base/testing.h"

#include <math.h>
#include <unistd.h>

/* ---- windows ---------------------------------------------------------------------------- */

static void windows_score_every_token_once(void **state)
{
    (void)state;
    for (int64_t n = 0; n < 40; n++)
        for (int64_t context = 2; context < 12; context++)
            for (int64_t stride = 1; stride < context; stride++) {
                WindowVec w = {0};
                int scored[40] = {0};
                window_list(n, context, stride, &w);
                for (size_t k = 0; k < w.n; k++) {
                    assert_true(w.at[k].end - w.at[k].begin <= context &&
                                w.at[k].scored < w.at[k].end);
                    for (int64_t i = w.at[k].scored; i < w.at[k].end; i++) {
                        scored[i]++;
                        /* near the text's beginning all of it is seen, later at least context -
                         * stride tokens */
                        assert_true(i - w.at[k].begin >= min_i64(i, context - stride));
                    }
                }
                for (int64_t i = 0; i < n; i++)
                    if (scored[i] != (i > 0))
                        fail_msg("token %d of %d scored %d times", (int)i, (int)n, scored[i]);
                VEC_FREE(&w);
            }
}

/* ---- answers ---------------------------------------------------------------------------- */

static Bytes bytes(const char *text) { return (Bytes){(const uint8_t *)text, strlen(text)}; }

static void answers_are_compared_as_usual(void **state)
{
    (void)state;
    static const char *const same[][2] = {{"The  Answer, is: 42!", "answer is 42"},
                                          {"\tAn apple\n", "apple"},
                                          {"", "the"},
                                          {"a.b.c.", "ABC"},
                                          {"Caf\xc3\xa9", "caf\xc3\xa9"}};
    for (int i = 0; i < COUNT_OF(same); i++) {
        Str a = {0}, b = {0};
        str_add(&a, "");
        str_add(&b, "");
        match_normalise(bytes(same[i][0]), &a);
        match_normalise(bytes(same[i][1]), &b);
        assert_string_equal(a.at, b.at);
        str_deinit(&a);
        str_deinit(&b);
    }
    assert_true(match_equal(bytes(" 42\n"), bytes("42")) &&
                !match_equal(bytes("42."), bytes("42")));
    Bytes stops[] = {bytes("\n\n"), bytes("Q:"), bytes("")};
    assert_int_equal(match_stop(bytes("one Q: two\n\n"), stops, 3), 4);
    assert_int_equal(match_stop(bytes("one"), stops, 3), 3);
    assert_int_equal(match_stop(bytes(""), stops, 3), 0);
}

/* ---- figures ---------------------------------------------------------------------------- */

static void errors_follow_their_formulas(void **state)
{
    (void)state;
    Mean m = {0};
    Ratio r = {0};
    static const double a[] = {3, 5, 10, 2}, b[] = {1, 2, 4, 1};
    assert_true((mean_add(&m, 1), isnan(mean_error(&m))));
    m = (Mean){0};
    for (int i = 0; i < 4; i++) {
        mean_add(&m, i == 2);
        ratio_add(&r, a[i], b[i]);
    }
    assert_true(fabs(mean_value(&m) - 0.25) < 1e-12 &&
                fabs(mean_error(&m) - sqrt(0.25 * 0.75 / 3)) < 1e-12);
    double squares = 0, q = 20.0 / 8;
    for (int i = 0; i < 4; i++) squares += (a[i] - q * b[i]) * (a[i] - q * b[i]);
    assert_true(fabs(ratio_value(&r) - q) < 1e-12);
    assert_true(fabs(ratio_error(&r) - sqrt(squares * 4 / 3) / 8) < 1e-12);
}

/* ---- lines ------------------------------------------------------------------------------ */

static void bad_lines_say_what_is_wrong(void **state)
{
    (void)state;
    static const struct {
        EvalTask task;
        const char *line, *why;
    } bad[] = {
        {EVAL_PERPLEXITY, "{\"text\": 3}", "text is no text"},
        {EVAL_PERPLEXITY, "{\"x\": 3}", "no field text"},
        {EVAL_PERPLEXITY, "{\"text\": \"\"}", "empty"},
        {EVAL_PERPLEXITY, "{\"text\": \"a\", \"text\": \"b\"}", "not JSON"},
        {EVAL_PERPLEXITY, "[1]", "object"},
        {EVAL_CHOICE, "{\"choices\": [\"a\", \"b\"], \"answer\": 0}", "question"},
        {EVAL_CHOICE, "{\"question\": \"q\", \"choices\": [\"a\"], \"answer\": 0}", "choices"},
        {EVAL_CHOICE, "{\"question\": \"q\", \"choices\": [\"a\", \"\"], \"answer\": 0}", "empty"},
        {EVAL_CHOICE, "{\"question\": \"q\", \"choices\": [\"a\", \"b\"], \"answer\": 2}",
         "answer"},
        {EVAL_CHOICE, "{\"question\": \"q\", \"choices\": [\"a\", \"b\"], \"answer\": \"a\"}",
         "answer"},
        {EVAL_EXACT, "{\"prompt\": \"p\"}", "answer"},
        {EVAL_EXACT, "{\"prompt\": \"p\", \"answer\": []}", "answer"},
        {EVAL_EXACT, "{\"prompt\": \"p\", \"answer\": \"a\", \"stop\": 3}", "stop"},
    };
    for (int i = 0; i < COUNT_OF(bad); i++) {
        Arena arena = {0};
        EvalItem item;
        char why[EVAL_WHY];
        if (eval_item_parse(&arena, bad[i].task, bytes(bad[i].line), &item, why))
            fail_msg("accepted: %s", bad[i].line);
        if (!strstr(why, bad[i].why))
            fail_msg("%s: '%s' does not say %s", bad[i].line, why, bad[i].why);
        arena_deinit(&arena);
    }
}

/* ---- whole evaluations ------------------------------------------------------------------ */

static char shop[64];
static InferModel model;

typedef struct OneText {
    Bytes text;
    bool given;
} OneText;

static Status give(void *context, Bytes *text)
{
    OneText *one = context;
    *text = (Bytes){0};
    if (!one->given) *text = one->text;
    one->given = true;
    return OK;
}

static const char sample[] =
    "The quick brown fox jumps over the lazy dog, and the dog, which is lazy, sleeps on. "
    "A fox is quick; the dogs are not. Is a dog a fox? No: the fox is the quicker one of them.\n";

/* Weights at random, large enough that one token is much likelier than another. */
static int make_model(void **state)
{
    (void)state;
    log_set_level(LOG_SILENT);
    snprintf(shop, sizeof shop, "/tmp/drover-eval-XXXXXX");
    if (!mkdtemp(shop)) return -1;
    json_t *json = json_loads("{\"model_type\": \"llama4_text\", \"vocab_size\": 320, "
                              "\"hidden_size\": 32, \"num_hidden_layers\": 2, "
                              "\"num_attention_heads\": 2, \"num_key_value_heads\": 1, "
                              "\"head_dim\": 16, \"intermediate_size\": 24, "
                              "\"intermediate_size_mlp\": 40, \"num_local_experts\": 3, "
                              "\"interleave_moe_layer_step\": 2, "
                              "\"max_position_embeddings\": 128, \"attention_chunk_size\": 24, "
                              "\"no_rope_layer_interval\": 2, "
                              "\"initializer_range\": 0.4}",
                              0, NULL);
    OneText one = {.text = bytes(sample)};
    TokenizerTrainOptions how = {.vocab_size = 320, .threads = 1};
    bool good = model_config_from_json(json, &model.config) == OK &&
                tokenizer_train(&how, &(TextSource){give, &one}, &model.tokenizer) == OK;
    json_decref(json);
    model.path = xstrdup("a small model");
    model.seed = 3;
    return good ? 0 : -1;
}

static int drop_model(void **state)
{
    (void)state;
    infer_model_deinit(&model);
    return dir_remove_tree(shop) == OK ? 0 : -1;
}

static const char *write_lines(Arena *arena, const char *name, const char *lines)
{
    const char *path = path_join(arena, shop, name);
    assert_ok(file_write_atomic(path, lines, strlen(lines)));
    return path;
}

static void encode(const char *text, bool bos, IdVec *ids)
{
    Encoder *encoder;
    if (bos) VEC_PUSH(ids, tokenizer_bos(model.tokenizer));
    assert_ok(encoder_create(model.tokenizer, &encoder));
    assert_ok(encoder_encode(encoder, text, strlen(text), ENCODE_TEXT, ids));
    encoder_destroy(encoder);
}

/* -ln p of token i after those before it, from the logits of the whole row: what the figures are
 * made of. */
static double nll_of(Infer *infer, const int32_t *ids, int64_t n, int64_t first)
{
    const float *logits;
    int64_t vocab = model.config.vocab;
    double sum = 0;
    assert_ok(infer_logits(infer, ids, n, &logits));
    for (int64_t i = first; i < n; i++) {
        const float *row = logits + (i - 1) * vocab;
        double total = 0;
        for (int64_t v = 0; v < vocab; v++) total += exp((double)row[v]);
        sum += log(total) - (double)row[ids[i]];
    }
    return sum;
}

static Infer *open_logits(void)
{
    Infer *infer;
    assert_ok(infer_create(&model, (InferOptions){.logits_tokens = 128, .threads = 1}, &infer));
    return infer;
}

static double figure(const EvalResult *r, const char *name)
{
    for (int i = 0; i < r->n_figures; i++)
        if (!strcmp(r->figure[i].name, name)) return r->figure[i].value;
    fail_msg("no figure %s", name);
    return 0;
}

static void check_near(double got, double want, const char *what)
{
    if (!(fabs(got - want) <= 1e-4 * fmax(1, fabs(want))))
        fail_msg("%s is %.8g, not %.8g", what, got, want);
}

static EvalOptions with(EvalTask task, const char *data)
{
    return (EvalOptions){.task = task, .data = data, .bos = true, .infer = {.threads = 1}};
}

static const char *const texts[] = {
    "The fox sleeps.", "a",
    "Is the dog quick, or lazy? The dog is a dog, which is quick; the fox is lazy."};

static const char *write_texts(Arena *arena)
{
    Str lines = {0};
    for (int i = 0; i < COUNT_OF(texts); i++) str_printf(&lines, "{\"text\": \"%s\"}\n", texts[i]);
    const char *path = write_lines(arena, "texts.jsonl", lines.at);
    str_deinit(&lines);
    return path;
}

static void perplexity_is_that_of_the_logits(void **state)
{
    (void)state;
    Arena arena = {0};
    EvalResult r, small;
    Infer *infer = open_logits();
    double sum = 0;
    size_t tokens = 0, size = 0;
    for (int i = 0; i < COUNT_OF(texts); i++) {
        IdVec ids = {0};
        encode(texts[i], true, &ids);
        sum += nll_of(infer, ids.at, (int64_t)ids.n, 1);
        tokens += ids.n - 1;
        size += strlen(texts[i]);
        VEC_FREE(&ids);
    }
    EvalOptions o = with(EVAL_PERPLEXITY, write_texts(&arena));
    assert_ok(eval_run(&model, &o, &r));
    assert_int_equal(r.n_items, COUNT_OF(texts));
    assert_int_equal(r.n_tokens, tokens);
    assert_int_equal(r.n_bytes, size);
    check_near(figure(&r, "loss"), sum / (double)tokens, "loss");
    check_near(figure(&r, "perplexity"), exp(sum / (double)tokens), "perplexity");
    check_near(figure(&r, "bits_per_byte"), sum / log(2) / (double)size, "bits per byte");
    assert_true(r.figure[0].error > 0);
    o.batch = 1; /* other rows, same figures */
    assert_ok(eval_run(&model, &o, &small));
    check_near(figure(&small, "loss"), figure(&r, "loss"), "loss in rows of one");
    infer_destroy(infer);
    arena_deinit(&arena);
}

static void long_texts_go_in_windows(void **state)
{
    (void)state;
    Arena arena = {0};
    EvalResult r;
    Infer *infer = open_logits();
    double sum = 0;
    size_t tokens = 0;
    enum { CONTEXT = 12, STRIDE = 5 };
    for (int i = 0; i < COUNT_OF(texts); i++) {
        IdVec ids = {0};
        encode(texts[i], true, &ids);
        int64_t n = (int64_t)ids.n, scored = 1;
        for (int64_t begin = 0; scored < n; begin += STRIDE) {
            int64_t end = min_i64(begin + CONTEXT, n);
            sum += nll_of(infer, ids.at + begin, end - begin, scored - begin);
            scored = end;
        }
        tokens += ids.n - 1;
        VEC_FREE(&ids);
    }
    EvalOptions o = with(EVAL_PERPLEXITY, write_texts(&arena));
    o.context = CONTEXT;
    o.stride = STRIDE;
    assert_ok(eval_run(&model, &o, &r));
    assert_int_equal(r.n_tokens, tokens);
    check_near(figure(&r, "loss"), sum / (double)tokens, "loss in windows");
    o.stride = CONTEXT; /* the first token of a window would have nothing before it */
    assert_int_equal(eval_run(&model, &o, &r), ERR_ARG);
    infer_destroy(infer);
    arena_deinit(&arena);
}

static const char *const contexts[] = {"The fox is", "Which is lazy? "};
static const char *const choices[2][3] = {{"quick", "a very lazy dog", "not"},
                                          {"the dog", "the fox which is quick", "No"}};

static void choice_is_by_sums_of_likelihoods(void **state)
{
    (void)state;
    Arena arena = {0};
    EvalResult r;
    Infer *infer = open_logits();
    double right = 0, right_norm = 0;
    Str lines = {0};
    for (int q = 0; q < 2; q++) {
        int best = 0, best_norm = 0;
        double sum[3], norm[3];
        for (int c = 0; c < 3; c++) {
            IdVec ids = {0}, before = {0};
            bool space = q == 1; /* ends in one, which is then the answer's */
            const char *all = arena_printf(&arena, space ? "%s%s" : "%s %s", contexts[q],
                                           choices[q][c]);
            encode(all, true, &ids);
            encode(arena_strndup(&arena, contexts[q], strlen(contexts[q]) - space), true, &before);
            sum[c] = -nll_of(infer, ids.at, (int64_t)ids.n, (int64_t)before.n);
            norm[c] = sum[c] / (double)strlen(choices[q][c]);
            if (sum[c] > sum[best]) best = c;
            if (norm[c] > norm[best_norm]) best_norm = c;
            VEC_FREE(&ids);
            VEC_FREE(&before);
        }
        int answer = q == 0
                         ? best
                         : (best_norm + 1) % 3; /* one that is right by sum, one wrong by length */
        right += best == answer;
        right_norm += best_norm == answer;
        str_printf(&lines,
                   "{\"context\": \"%s\", \"choices\": [\"%s\", \"%s\", \"%s\"], \"answer\": %d}\n",
                   contexts[q], choices[q][0], choices[q][1], choices[q][2], answer);
        const char *out = path_join(&arena, shop, "out.jsonl");
        EvalOptions one = with(EVAL_CHOICE, write_lines(&arena, "one.jsonl", lines.at));
        one.out = out;
        assert_ok(eval_run(&model, &one, &r));
        json_t *json = NULL;
        Bytes text;
        assert_ok(file_read(&arena, out, 1 << 20, &text));
        for (const char *line = (const char *)text.at; *line; line = strchr(line, '\n') + 1) {
            json_decref(json);
            json = json_loads(line, JSON_DISABLE_EOF_CHECK, NULL); /* the last one counts */
        }
        for (int c = 0; c < 3; c++)
            check_near(
                json_real_value(json_array_get(json_object_get(json, "loglikelihoods"), (size_t)c)),
                sum[c], "sum");
        assert_int_equal(json_integer_value(json_object_get(json, "chosen")), best);
        assert_int_equal(json_integer_value(json_object_get(json, "chosen_norm")), best_norm);
        json_decref(json);
    }
    check_near(figure(&r, "acc"), right / 2, "acc");
    check_near(figure(&r, "acc_norm"), right_norm / 2, "acc_norm");
    str_deinit(&lines);
    infer_destroy(infer);
    arena_deinit(&arena);
}

/* The likeliest token again and again, by whole rows. */
static void greedy(Infer *infer, const char *prompt, int n, Str *out)
{
    IdVec ids = {0};
    encode(prompt, true, &ids);
    size_t first = ids.n;
    Decoder decoder = {.tokenizer = model.tokenizer, .skip_special = true};
    for (int i = 0; i < n; i++) {
        const float *logits;
        int32_t best = 0;
        assert_ok(infer_logits(infer, ids.at, (int64_t)ids.n, &logits));
        const float *row = logits + (int64_t)(ids.n - 1) * model.config.vocab;
        for (int32_t v = 1; v < model.config.vocab; v++)
            if (row[v] > row[best]) best = v;
        VEC_PUSH(&ids, best);
    }
    for (size_t i = first; i < ids.n; i++) assert_ok(decoder_push(&decoder, ids.at[i], out));
    decoder_finish(&decoder, out);
    VEC_FREE(&ids);
}

static void add_exact(Str *lines, const char *prompt, const char *answer, const char *stop)
{
    json_t *json = json_pack("{s:s, s:[s, s]}", "prompt", prompt, "answers", "no such text",
                             answer);
    if (stop) json_object_set_new(json, "stop", json_string(stop));
    char *text = json_dumps(json, JSON_COMPACT);
    str_printf(lines, "%s\n", text);
    free(text);
    json_decref(json);
}

static void exact_is_what_greedy_decoding_writes(void **state)
{
    (void)state;
    Arena arena = {0};
    EvalResult r;
    Infer *infer = open_logits();
    Str text = {0}, lines = {0};
    greedy(infer, "The fox", 9, &text);
    assert_true(text.n >= 4);
    add_exact(&lines, "The fox", text.at, NULL);          /* right */
    add_exact(&lines, "The fox", "something else", NULL); /* wrong */
    size_t cut = text.n / 2;
    while ((text.at[cut] & 0xc0) == 0x80) cut++; /* at the beginning of a character */
    size_t end = cut + 1;
    while ((text.at[end] & 0xc0) == 0x80) end++;
    const char *stop = arena_strndup(&arena, text.at + cut, end - cut);
    size_t first = match_stop(bytes(text.at), (Bytes[]){bytes(stop)}, 1);
    add_exact(&lines, "The fox", arena_strndup(&arena, text.at, first),
              stop); /* right up to the stop */
    EvalOptions o = with(EVAL_EXACT, write_lines(&arena, "exact.jsonl", lines.at));
    o.max_tokens = 9;
    o.batch = 2;
    assert_ok(eval_run(&model, &o, &r));
    check_near(figure(&r, "exact_match"), 2.0 / 3, "exact_match");
    check_near(figure(&r, "exact_match_strict"), 2.0 / 3, "exact_match_strict");
    str_deinit(&text);
    str_deinit(&lines);
    infer_destroy(infer);
    arena_deinit(&arena);
}

static void bad_lines_have_a_budget(void **state)
{
    (void)state;
    Arena arena = {0};
    EvalResult r;
    EvalOptions o = with(EVAL_PERPLEXITY,
                         write_lines(&arena, "bad.jsonl",
                                     "{\"text\": \"a fox\"}\n\nnot json\n{\"text\": \"a dog\"}\n"));
    o.bad_share = 0.3;
    assert_int_equal(eval_run(&model, &o, &r), ERR_REFUSED);
    assert_non_null(strstr(status_message(), "1 of 3"));
    o.bad_share = 0.34;
    assert_ok(eval_run(&model, &o, &r));
    assert_int_equal(r.n_bad, 1);
    assert_int_equal(r.n_items, 2);
    o.limit = 1; /* the bad line is not reached */
    o.bad_share = 0;
    assert_ok(eval_run(&model, &o, &r));
    assert_int_equal(r.n_items, 1);
    o.limit = 0;
    o.data = write_lines(&arena, "none.jsonl", "\n");
    assert_int_equal(eval_run(&model, &o, &r), ERR_FORMAT);
    arena_deinit(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(windows_score_every_token_once),
        cmocka_unit_test(answers_are_compared_as_usual),
        cmocka_unit_test(errors_follow_their_formulas),
        cmocka_unit_test(bad_lines_say_what_is_wrong),
        cmocka_unit_test(perplexity_is_that_of_the_logits),
        cmocka_unit_test(long_texts_go_in_windows),
        cmocka_unit_test(choice_is_by_sums_of_likelihoods),
        cmocka_unit_test(exact_is_what_greedy_decoding_writes),
        cmocka_unit_test(bad_lines_have_a_budget),
    };
    return cmocka_run_group_tests(tests, make_model, drop_model);
}
