/* Rows as run files, the statistics, and some published rows against the planner. */
#include "base/testing.h"
#include "validate/validate.h"

static const char dir[] = SOURCE_DIR "/data/validation/";

static PublishedRow row_of(Arena *arena, const char *file, const char *id)
{
    PublishedRows rows;
    assert_ok(published_load(arena, arena_printf(arena, "%s%s", dir, file), &rows));
    for (int i = 0; i < rows.n; i++)
        if (!strcmp(rows.row[i].id, id)) return rows.row[i];
    fail_msg("no row %s", id);
    return (PublishedRow){0};
}

static void test_run_files(void **state)
{
    (void)state;
    Arena arena = {0};
    RunConfig c;
    const char *skip;
    PublishedRow r = row_of(&arena, "calibration.csv",
                            "DG70-25"); /* TP4 PP4 CP2 VP5 DP2, 128 sequences */
    assert_ok(validate_config(&arena, &r, r.micro_batch, r.recompute, &skip, &c));
    assert_null(skip);
    assert_true(c.parallel.tp == 4 && c.parallel.pp == 4 && c.parallel.cp == 2 &&
                c.parallel.dp == 2 && c.parallel.zero == 1);
    assert_string_equal(c.parallel.schedule, "interleaved");
    assert_int_equal(c.parallel.virtual_stages, 5);
    assert_true(c.train.batch == 128 && c.train.micro_batch == 1 && c.train.seq == 8192);
    assert_int_equal(run_ranks(&c), 64);
    assert_ok(run_layout_check(&c, 64));
    assert_int_equal(run_n_micro(&c), 64); /* GA64 */
    run_config_deinit(&c);
    r = row_of(&arena, "calibration.csv",
               "DGGK-23"); /* TP4 PP2 CP2 EP8 on 128: experts take all data-parallel ranks */
    assert_ok(validate_config(&arena, &r, r.micro_batch, r.recompute, &skip, &c));
    assert_true(c.parallel.ep == 8 && c.parallel.dp == 1 && c.parallel.zero == 0);
    run_config_deinit(&c);
    r = row_of(&arena, "calibration.csv", "TTN-25"); /* FSDP8 TP8 */
    assert_ok(validate_config(&arena, &r, r.micro_batch, r.recompute, &skip, &c));
    assert_true(c.parallel.fsdp == 8 && c.parallel.tp == 8 && c.parallel.dp == 1 &&
                c.train.recompute == RUN_RECOMPUTE_SELECTIVE);
    run_config_deinit(&c);
    arena_deinit(&arena);
}

/* The first words of the model's part of the run file. */
static void check_gpt(Arena *arena, const char *file, const char *id, const char *words)
{
    PublishedRow r = row_of(arena, file, id);
    RunConfig c;
    const char *skip;
    assert_ok(validate_config(arena, &r, 1, RECOMPUTED_FULL, &skip, &c));
    if (skip) fail_msg("%s: %s", id, skip);
    if (!strstr(c.model.fields_json, words))
        fail_msg("%s: %s, not %s", id, c.model.fields_json, words);
    run_config_deinit(&c);
}

/* GPT blocks as their papers have them, vocabularies padded as Megatron-LM pads them. */
static void test_gpt(void **state)
{
    (void)state;
    Arena arena = {0};
    check_gpt(&arena, "calibration.csv", "NAR-01", "\"learned\"");
    check_gpt(&arena, "calibration.csv", "NAR-01", "\"gelu\"");
    check_gpt(&arena, "calibration.csv", "DG15-33", "\"rope\"");
    check_gpt(&arena, "calibration.csv", "DG15-33", "\"relu2\"");
    check_gpt(&arena, "calibration.csv", "DG15-33", "\"use_bias\": false");
    check_gpt(&arena, "grid_3_1.csv", "MOS-021", "\"alibi\"");
    check_gpt(&arena, "grid_3_2.csv", "BLM-028", "\"alibi\"");
    check_gpt(&arena, "grid_3_4.csv", "VTR-003", "50432"); /* 50,257 up to a multiple of 256 */
    arena_deinit(&arena);
}

static void test_skipped(void **state)
{
    (void)state;
    static const char *const cases[][2] = {{"DSK-03", "latent"}};
    Arena arena = {0};
    for (int i = 0; i < COUNT_OF(cases); i++) {
        PublishedRow r = row_of(&arena, "calibration.csv", cases[i][0]);
        RunConfig c;
        const char *skip = NULL;
        assert_ok(validate_config(&arena, &r, 1, RECOMPUTED_NONE, &skip, &c));
        if (!skip || !strstr(skip, cases[i][1]))
            fail_msg("%s: %s", r.id, skip ? skip : "not skipped");
    }
    arena_deinit(&arena);
}

/* The models of rows with experts have the weights that are published, in all and at work, and as
 * many FLOP a token: windows as chunks see as many keys. */
static void test_expert_models(void **state)
{
    (void)state;
    static const char *const ids[] = {"AUT-02", "MBR-18", "MBR-20", "DGGK-23"};
    Arena arena = {0};
    for (int i = 0; i < COUNT_OF(ids); i++) {
        PublishedRow r = row_of(&arena, "calibration.csv", ids[i]);
        RunConfig c;
        ModelConfig model;
        const char *skip = NULL;
        assert_ok(validate_config(&arena, &r, 1, RECOMPUTED_NONE, &skip, &c));
        assert_null(skip);
        assert_ok(train_expect_model(&c, &model));
        ModelCounts n = model_counts(&model);
        const PublishedModel *m = &r.model;
        double per_layer = (double)(m->expert_ffn * m->hidden * 3 * m->experts),
               expected = m->params > 0 ? m->params
                                        : per_layer * (double)m->layers; /* cut to fewer layers */
        assert_near((double)n.total / expected, 1, m->params > 0 ? 0.005 : 0.06);
        if (m->active_params > 0) assert_near((double)n.active / m->active_params, 1, 0.01);
        double keys = 0, wanted = 0;
        for (int64_t k = 0; k < m->layers; k++) {
            int64_t chunk = model.layer[k].chunk;
            keys += chunk && chunk < r.seq ? (double)(chunk + 1) / 2 : (double)(r.seq + 1) / 2;
            wanted += m->window && k % 2 == 0 ? (double)m->window : (double)(r.seq + 1) / 2;
        }
        assert_near(keys / wanted, 1, 0.01);
        model_config_deinit(&model);
        run_config_deinit(&c);
    }
    arena_deinit(&arena);
}

/* NVIDIA's log of Llama 3.1 8B on eight H100 (data/validation/README.md, MEM-01): 44.27e9 bytes of
 * states, 70.83e9 at the peak. */
static void test_memory(void **state)
{
    (void)state;
    Arena arena = {0};
    ValidateResult v;
    assert_ok(validate_file(&arena, arena_printf(&arena, "%scalibration.csv", dir),
                            &(ValidateOptions){.only = "DG8-21"}, &v));
    assert_true(v.n == 1 && v.row[0].fits);
    assert_near(v.row[0].static_bytes / 44.27e9, 1, 0.03);
    assert_near(v.row[0].peak_bytes / 70.83e9, 1, 0.03); /* the logits with it */
    assert_ok(validate_file(&arena, arena_printf(&arena, "%sgrid_3_2.csv", dir),
                            &(ValidateOptions){.only = "BLM-03"}, &v));
    for (int i = 0; i < v.n;
         i++) { /* by nvidia-smi; BLM-037's reading is doubted, and two have none */
        const ValidateRow *r = &v.row[i];
        assert_true(!strcmp(r->row->id, "BLM-037") ? r->row->peak_bytes == 0 : true);
        if (r->row->peak_bytes > 0)
            assert_near((r->peak_bytes + r->context_bytes) / r->row->peak_bytes, 1, 0.08);
    }
    arena_deinit(&arena);
}

static void test_statistics(void **state)
{
    (void)state;
    double a[] = {1, 2, 3, 4, 5}, b[] = {10, 20, 30, 40, 50}, c[] = {5, 4, 3, 2, 1},
           ties[] = {1, 1, 2, 2, 3}, flat[] = {1, 1, 1, 1, 1};
    assert_near(validate_rank_correlation(a, b, 5), 1, 1e-12);
    assert_near(validate_rank_correlation(a, c, 5), -1, 1e-12);
    assert_near(validate_rank_correlation(a, ties, 5), 0.948683, 1e-5);
    assert_true(isnan(validate_rank_correlation(a, flat, 5)));
    assert_true(isnan(validate_rank_correlation(a, b, 1)));
    double m[] = {4, 1, 3, 2};
    assert_near(validate_median(m, 4), 2.5, 1e-12);
    assert_near(validate_median(m, 3), 2, 1e-12);
    assert_true(validate_median(m, 0) == 0);
}

/* Guards the planner: NeMo's bf16 rows within 15%, InternEvo's in their measured order. */
static void test_rows(void **state)
{
    (void)state;
    Arena arena = {0};
    ValidateResult v;
    assert_ok(validate_file(&arena, arena_printf(&arena, "%scalibration.csv", dir),
                            &(ValidateOptions){.only = "DG"}, &v));
    assert_true(v.n == 30 && v.n_predicted >= 4 && v.n_skipped + v.n_predicted == v.n);
    for (int i = 0; i < v.n; i++)
        if (!v.row[i].skip && v.row[i].row->framework == FRAMEWORK_MEGATRON_CORE &&
            v.row[i].kind == ROW_DENSE && v.row[i].row->precision == PUBLISHED_BF16 &&
            fabs(v.row[i].error) > 0.15)
            fail_msg("%s: %g against %g s", v.row[i].row->id, v.row[i].step_s,
                     v.row[i].row->step_s);
    Str text = {0};
    validate_json(&v, &text);
    assert_non_null(strstr(text.at, "{\"id\": \"DG8-21\", \"kind\": \"dense\", \"framework\": "
                                    "\"Megatron Core\", \"measured_s\": 12.27, \"predicted_s\": "));
    assert_ok(validate_file(&arena, arena_printf(&arena, "%scalibration.csv", dir),
                            &(ValidateOptions){.only = "DSK"}, &v));
    str_clear(&text);
    validate_text(&v, &text);
    assert_non_null(strstr(text.at, "DSK-03     skipped: multi-head latent attention"));
    assert_non_null(strstr(text.at, "median error of dense rows"));
    str_deinit(&text);
    assert_ok(validate_file(&arena, arena_printf(&arena, "%sgrid_3_3_1.csv", dir),
                            &(ValidateOptions){0}, &v));
    assert_int_equal(v.n_grids, 2);
    assert_true(v.grid[0].n == 5 && v.grid[0].correlation > 0.9 && v.grid[1].correlation > 0.9);
    double with = v.row[0].step_s;
    assert_ok(validate_file(&arena, arena_printf(&arena, "%sgrid_3_3_1.csv", dir),
                            &(ValidateOptions){.raw = true, .only = "INF-01"}, &v));
    assert_near(with / v.row[0].step_s, validate_framework_factor(FRAMEWORK_INTERNEVO), 1e-12);
    arena_deinit(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_run_files), cmocka_unit_test(test_gpt),
        cmocka_unit_test(test_skipped),   cmocka_unit_test(test_expert_models),
        cmocka_unit_test(test_memory),    cmocka_unit_test(test_statistics),
        cmocka_unit_test(test_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
