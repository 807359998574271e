/* Schedules: each is what it was published as, in the time it was published with, and the verifier
 * knows wrong ones. */
#include "pipeline/pipeline.h"

#include "base/testing.h"

#include <math.h>
#include <string.h>

static Pipeline *make(const char *name, int ranks, int stages, int micro)
{
    Pipeline *p;
    if (pipeline_create(name, ranks, stages, micro, &p) != OK)
        fail_msg("%s, %d ranks, %d micro-batches: %s", name, ranks, micro, status_message());
    return p;
}

static double total_of(const char *name, int ranks, int stages, int micro)
{
    Pipeline *p = make(name, ranks, stages, micro);
    double total = pipeline_time(p, pipeline_equal_cost()).total;
    pipeline_destroy(p);
    return total;
}

static void near(const char *what, int ranks, int micro, double got, double want)
{
    if (fabs(got - want) > 1e-9 * (1 + fabs(want)))
        fail_msg("%s, %d ranks, %d micro-batches: %.9g, not %.9g", what, ranks, micro, got, want);
}

/* Time beyond that of the work, as the papers give it; F, B and W take 1 (of one of a rank's
 * stages). */
static void bubbles(void **state)
{
    (void)state;
    for (int p = 2; p <= 8; p++) {
        for (int m = p; m <= 6 * p; m++) {
            near("gpipe", p, m, total_of("gpipe", p, 1, m) - 3 * m, 3 * (p - 1));
            near("1f1b", p, m, total_of("1f1b", p, 1, m) - 3 * m, 3 * (p - 1));
            near("zb-h1", p, m, total_of("zb-h1", p, 1, m) - 3 * m, p - 1); /* (p - 1)(F + B - W) */
            for (int v = 2; v <= 4 && m % p == 0; v++)
                near("interleaved", p, m,
                     (total_of("interleaved", p, v, m) - 3 * m * v) / (3 * m * v),
                     (p - 1) / (double)(v * m));
        }
    }
}

/* As shares: what 1f1b waits of its time is (p - 1) / (m + p - 1), and its ranks' work is what is
 * left. */
static void shares(void **state)
{
    (void)state;
    Pipeline *p = make("1f1b", 4, 1, 12);
    PipelineTime t = pipeline_time(p, pipeline_equal_cost());
    near("share", 4, 12, t.bubble, 3.0 / 15.0);
    near("work", 4, 12, t.work, 36);
    t = pipeline_time(p, (PipelineCost){2, 3, 1, 0}); /* (p - 1)(F + B + W) in any costs */
    near("total", 4, 12, t.total, 15 * 6.0);
    pipeline_destroy(p);
}

/* The last rank begins n_ranks - 1 units late and then never waits, from as many micro-batches on
 * as fill the pipeline: a sixth of what 1f1b waits, whose stages are twice as long. */
static void zero_bubble(void **state)
{
    (void)state;
    for (int p = 2; p <= 16; p++) {
        for (int m = 2 * p; m <= 4 * p + 1; m++) {
            Pipeline *z = make("zb-v", p, 2, m);
            near("zb-v", p, m, pipeline_time(z, pipeline_equal_cost()).total - 6 * m, p - 1);
            for (int r = 0; r < p; r++) assert_true(pipeline_slots(z, r, PIPELINE_FW) <= 2 * p);
            pipeline_destroy(z);
        }
    }
}

/* (p - 1)(F&B + B - 3W), where B is a whole backward and F&B a pair that runs together; less when
 * the pair saves time. */
static void dualpipev(void **state)
{
    (void)state;
    for (int p = 2; p <= 8; p++) {
        for (int m = 2 * p; m <= 5 * p; m++) {
            Pipeline *d = make("dualpipev", p, 2, m);
            for (double pair = 2; pair <= 3; pair += 0.5) {
                double work = 6 * m; /* of the first rank */
                for (int i = 0; i < d->rank[0].n; i++)
                    work -= d->rank[0].at[i].paired ? 3 - pair : 0;
                double waits = pipeline_time(d, (PipelineCost){1, 1, 1, pair}).total - work,
                       published = (p - 1) * (pair + 2 - 3);
                if (pair == 3) near("dualpipev", p, m, waits, published);
                assert_true(waits <= published);
            }
            pipeline_destroy(d);
        }
    }
    Pipeline *p;
    assert_int_equal(pipeline_create("dualpipev", 4, 2, 7, &p), ERR_REFUSED);
    assert_non_null(strstr(status_message(), "zb-v"));
}

/* No two that are alive at once have the same slot. */
static void apart(void **state)
{
    (void)state;
    static const char *const names[] = {"1f1b", "interleaved", "zb-h1", "zb-v", "dualpipev"};
    for (int k = 0; k < COUNT_OF(names); k++) {
        Pipeline *p = make(names[k], 3, pipeline_default_stages(names[k]), 9);
        for (int r = 0; r < p->n_ranks; r++) {
            int owner[2][64]; /* of the slots of FB and BW, and of FW: 1 + stage and micro-batch as
                                 one number */
            memset(owner, 0, sizeof owner);
            for (int i = 0; i < p->rank[r].n; i++) {
                const PipelineAction *a = &p->rank[r].at[i];
                int me = 1 + a->stage * p->n_micro + a->micro, b = a->slot[PIPELINE_FB],
                    w = a->slot[PIPELINE_BW], f = a->slot[PIPELINE_FW];
                bool back = a->work == PIPELINE_BACKWARD || a->work == PIPELINE_BOTH;
                assert_int_equal(owner[1][f], a->work == PIPELINE_FORWARD ? 0 : me);
                owner[1][f] = a->work == PIPELINE_WEIGHTS || a->work == PIPELINE_BOTH ? 0 : me;
                if (a->work != PIPELINE_WEIGHTS) assert_int_equal(owner[0][b], back ? me : 0);
                if (a->work == PIPELINE_FORWARD) owner[0][b] = me;
                if (back && p->splits) assert_int_equal(owner[0][w], 0);
                if (back) owner[0][b] = 0;
                if (a->work == PIPELINE_BACKWARD) owner[0][w] = -me;
                if (a->work == PIPELINE_WEIGHTS) assert_int_equal(owner[0][w], -me);
                if (a->work == PIPELINE_WEIGHTS) owner[0][w] = 0;
            }
        }
        pipeline_destroy(p);
    }
}

/* Every schedule for every size exists, which means that the verifier has passed it. What is held
 * at once stays in bounds: what 1f1b's first rank holds; dualpipev one stage's more. */
static void all_sizes(void **state)
{
    (void)state;
    int n;
    const char *const *names = pipeline_names(&n);
    for (int k = 0; k < n; k++) {
        for (int p = 1; p <= 7; p++) {
            for (int m = 1; m <= 17; m++) {
                if (!strcmp(names[k], "dualpipev") && m < 2 * p) continue;
                Pipeline *x = make(names[k], p, pipeline_default_stages(names[k]), m);
                bool bounded = strcmp(names[k], "gpipe") != 0 &&
                               strcmp(names[k], "interleaved") != 0;
                for (int r = 0; r < p; r++) {
                    int own = pipeline_stages_of(x, r, NULL),
                        held = pipeline_slots(x, r, PIPELINE_FW);
                    if (bounded && held > own * p + (own > 1))
                        fail_msg("%s, %d ranks, %d micro-batches: rank %d holds %d", names[k], p, m,
                                 r, held);
                }
                pipeline_destroy(x);
            }
        }
    }
    for (int v = 2; v <= 5; v++)
        for (int p = 1; p <= 6; p++)
            for (int m = 1; m <= 13; m++) pipeline_destroy(make("interleaved", p, v, m));
}

/* 1f1b holds n_ranks - rank micro-batches, and a message never waits for a second one. */
static void counts(void **state)
{
    (void)state;
    Pipeline *p = make("1f1b", 4, 1, 8);
    assert_false(p->splits);
    for (int r = 0; r < 4; r++) assert_int_equal(pipeline_slots(p, r, PIPELINE_FB), 4 - r);
    pipeline_destroy(p);
    p = make("zb-h1", 4, 1, 8);
    assert_true(p->splits);
    for (int r = 0; r < 4;
         r++) { /* 4 - r before B, r behind it, and both of the one that is at B */
        assert_int_equal(pipeline_slots(p, r, PIPELINE_FW), 4);
        assert_int_equal(pipeline_slots(p, r, PIPELINE_FB), 5);
        assert_int_equal(pipeline_slots(p, r, PIPELINE_BW), 5);
    }
    for (int s = 0; s < 3; s++)
        assert_true(pipeline_depth(p, s, PIPELINE_FORWARD, s + 1, PIPELINE_FORWARD) <= 2);
    pipeline_destroy(p);
    p = make("gpipe", 2, 1, 5);
    assert_int_equal(pipeline_slots(p, 0, PIPELINE_FW), 5);
    assert_int_equal(pipeline_inputs(p, 0), 1); /* a rank with one stage keeps none for another */
    pipeline_destroy(p);
    p = make("zb-v", 2, 2, 4);
    assert_int_equal(p->rank_of[0], 0);
    assert_int_equal(p->rank_of[1], 1);
    assert_int_equal(p->rank_of[2], 1);
    assert_int_equal(p->rank_of[3], 0);
    pipeline_destroy(p);
}

/* ---- text ------------------------------------------------------------------------------- */

static Status parse(const char *text, Pipeline **p)
{
    return pipeline_parse((Bytes){(const uint8_t *)text, strlen(text)}, "table", p);
}

static void round_trip(void **state)
{
    (void)state;
    int n;
    const char *const *names = pipeline_names(&n);
    for (int k = 0; k < n; k++) {
        Pipeline *p = make(names[k], 3, pipeline_default_stages(names[k]), 7), *again;
        Str text = {0}, second = {0};
        pipeline_text(p, &text);
        if (parse(text.at, &again) != OK) fail_msg("%s: %s", names[k], status_message());
        pipeline_text(again, &second);
        assert_string_equal(text.at, second.at);
        assert_int_equal(p->splits, again->splits);
        for (int s = 0; s < p->n_ranks; s++)
            for (int span = 0; span < PIPELINE_SPANS; span++)
                assert_int_equal(pipeline_slots(p, s, (PipelineSpan)span),
                                 pipeline_slots(again, s, (PipelineSpan)span));
        str_deinit(&text);
        str_deinit(&second);
        pipeline_destroy(p);
        pipeline_destroy(again);
    }
}

#define HEAD "pipeline x\nmicro-batches 2\nstages 0 1\n"

static void refusals(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
        Status status;
    } wrong[] = {
        {"", "no rank has a line", ERR_FORMAT},
        {"micro-batches 0\n", "no micro-batches", ERR_FORMAT},
        {"stages 0 1\nrank 0: F0.0\n", "come before the ranks", ERR_FORMAT},
        {HEAD "rank 2: F0.0\n", "table:4: the number of a rank", ERR_FORMAT},
        {HEAD "rank 0: F0.0 G0.1\n", "an action such as F0.3", ERR_FORMAT},
        {HEAD "rank 0: F2.0\n", "the number of a stage", ERR_FORMAT},
        {HEAD "rank 0: F0.2\n", "the number of a micro-batch", ERR_FORMAT},
        {HEAD "rank 0: F0.0F0.1\n", "a blank is wanted", ERR_FORMAT},
        {HEAD "rank 0: F0.0&\n", "the other action of a pair", ERR_FORMAT},
        {HEAD "rank 0: F0.0\nrank 0: F0.1\n", "stands here twice", ERR_FORMAT},
        {"micro-batches 1000\nstages 0 1\nrank 0: F0.0 BW0.0\n", "too short", ERR_FORMAT},
        {HEAD "rank 0: F0.0 F0.1 BW0.0 BW0.1\nrank 1: F1.0 BW1.0 F1.1\n", "B1.1 is missing",
         ERR_REFUSED},
        {HEAD "rank 0: F0.0 F0.1 BW0.0 BW0.1 F0.1\nrank 1: F1.0 BW1.0 F1.1 BW1.1\n",
         "F0.1 is done twice", ERR_REFUSED},
        {HEAD "rank 0: F0.0 F0.1 B0.0 BW0.1\nrank 1: F1.0 BW1.0 F1.1 BW1.1\n", "W0.0 is missing",
         ERR_REFUSED},
        {HEAD "rank 0: F0.0 F0.1 BW0.0 BW0.1\nrank 1: F0.0 BW1.0 F1.1 BW1.1\n",
         "stage 0 lies on rank 0", ERR_REFUSED},
        {HEAD "rank 0: F0.0 F0.1 BW0.0 BW0.1\nrank 1: F1.1 BW1.1 F1.0 BW1.0\n", "in the same order",
         ERR_REFUSED},
        {HEAD "rank 0: F0.0 BW0.0 F0.1 BW0.1\nrank 1: F1.0 F1.1 BW1.0 BW1.1\n",
         "wait for each other: rank 0 never comes past BW0.0, the 2nd", ERR_REFUSED},
        {HEAD "rank 0: F0.0 F0.1 W0.0 B0.0 BW0.1\nrank 1: F1.0 BW1.0 F1.1 BW1.1\n",
         "wait for each other: rank 0 never comes past W0.0", ERR_REFUSED},
        {HEAD "rank 0: F0.0&F0.1 BW0.0 BW0.1\nrank 1: F1.0 BW1.0 F1.1 BW1.1\n", "a pair is",
         ERR_REFUSED},
    };
    for (int i = 0; i < COUNT_OF(wrong); i++) {
        Pipeline *p;
        Status status = parse(wrong[i].text, &p);
        if (status != wrong[i].status || !strstr(status_message(), wrong[i].says))
            fail_msg("%d: status %d: %s", i, (int)status, status_message());
    }
    Pipeline *p;
    assert_int_equal(pipeline_create("1f1b", 4, 2, 8, &p), ERR_REFUSED);
    assert_non_null(strstr(status_message(), "interleaved"));
    assert_int_equal(pipeline_create("interleaved", 4, 1, 8, &p), ERR_REFUSED);
    assert_int_equal(pipeline_create("zb-v", 4, 3, 8, &p), ERR_REFUSED);
    assert_int_equal(pipeline_create("1f1b", 4, 1, 0, &p), ERR_REFUSED);
    assert_int_equal(pipeline_create("zbv", 4, 1, 8, &p), ERR_ARG);
}

static void picture(void **state)
{
    (void)state;
    Pipeline *p = make("1f1b", 2, 1, 2);
    Str text = {0};
    pipeline_picture(p, 80, &text);
    assert_string_equal(text.at,
                        "rank 0 F0 F1 .  .  B0 W0 .  B1 W1\nrank 1 .  F0 B0 W0 F1 B1 W1 .  .\n");
    str_clear(&text);
    pipeline_picture(p, 20, &text);
    assert_string_equal(text.at, "rank 0 F0 F1 . ...\nrank 1 .  F0 B0 ...\n");
    str_clear(&text);
    pipeline_svg(p, &text);
    assert_non_null(strstr(text.at, "BW of stage 1, micro-batch 1"));
    str_deinit(&text);
    pipeline_destroy(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(bubbles),     cmocka_unit_test(shares),
                                       cmocka_unit_test(zero_bubble), cmocka_unit_test(dualpipev),
                                       cmocka_unit_test(apart),       cmocka_unit_test(all_sizes),
                                       cmocka_unit_test(counts),      cmocka_unit_test(round_trip),
                                       cmocka_unit_test(refusals),    cmocka_unit_test(picture)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
