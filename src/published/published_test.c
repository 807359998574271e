/* The rows in data/validation: every one is read, and a few are checked word by word. */
#include "base/testing.h"
#include "published/published_internal.h"

static const char dir[] = SOURCE_DIR "/data/validation/";

static PublishedRows load(Arena *arena, const char *name)
{
    PublishedRows rows;
    assert_ok(published_load(arena, arena_printf(arena, "%s%s", dir, name), &rows));
    return rows;
}

static const PublishedRow *find(const PublishedRows *rows, const char *id)
{
    for (int i = 0; i < rows->n; i++)
        if (!strcmp(rows->row[i].id, id)) return &rows->row[i];
    fail_msg("no row %s", id);
    return NULL;
}

static void test_calibration(void **state)
{
    (void)state;
    Arena arena = {0};
    PublishedRows rows = load(&arena, "calibration.csv");
    assert_int_equal(rows.n, 101);
    const PublishedRow *r = find(&rows, "KOR-04");
    assert_string_equal(r->device, "a100");
    assert_string_equal(r->cluster, "selene");
    assert_int_equal(r->layout.tp, 8);
    assert_int_equal(r->layout.pp, 8);
    assert_int_equal(r->layout.virtual_stages, 3);
    assert_true(r->layout.sequence && r->layout.zero == 0);
    assert_int_equal(r->recompute, RECOMPUTED_SELECTIVE);
    assert_int_equal(r->precision, PUBLISHED_FP16);
    assert_int_equal(r->micro_batch, 1);
    assert_near(r->step_s, 13.75, 1e-12);
    assert_int_equal(r->model.layers, 96);
    assert_true(r->model.tied && !r->model.gated && r->model.bias);
    assert_string_equal(r->model.positions, "learned");
    assert_true(find(&rows, "KOR-03")->layout.no_sequence);
    r = find(&rows, "NAR-01");
    assert_int_equal(r->micro_batch, 0);
    r = find(&rows, "DG15-33");
    assert_true(!r->model.tied && !r->model.bias && !strcmp(r->model.positions, "rope"));
    assert_string_equal(r->model.activation, "relu2");
    assert_true(find(&rows, "MCW-05")->open_stages && !find(&rows, "MCW-01")->open_stages &&
                !find(&rows, "DG405-03")->open_stages);
    r = find(&rows, "MCW-01");
    assert_int_equal(r->recompute, RECOMPUTED_OPEN);
    assert_int_equal(r->layout.zero, 1);
    r = find(&rows, "DG405-02");
    assert_int_equal(r->model.layers, 30);
    assert_int_equal(r->model.hidden, 16384);
    assert_int_equal(r->layout.accumulate, 64);
    r = find(&rows, "DGGK-23");
    assert_int_equal(r->model.experts, 8);
    assert_int_equal(r->model.moe_layers, 16);
    assert_int_equal(r->layout.ep, 8);
    assert_null(r->skip);
    r = find(&rows, "TTN-25");
    assert_int_equal(r->layout.fsdp, 8);
    assert_int_equal(r->framework, FRAMEWORK_FSDP);
    assert_string_equal(r->cluster, "grand-teton");
    assert_near(find(&rows, "TTN-01")->peak_bytes, 82.4 * 0x1p30, 1e-12);
    assert_false(find(&rows, "TTN-01")->compiled);
    assert_true(find(&rows, "TTN-02")->compiled);
    assert_true(find(&rows, "TTN-26")->layout.async_tp);
    assert_int_equal(find(&rows, "DGMT-01")->framework, FRAMEWORK_MAXTEXT);
    assert_int_equal(find(&rows, "PTD-01")->framework, FRAMEWORK_DEEPSPEED);
    assert_non_null(find(&rows, "DSK-03")->skip);
    assert_int_equal(find(&rows, "MBR-18")->model.window, 128);
    assert_string_equal(find(&rows, "FMS-04")->cluster, "vela-h100");
    assert_int_equal(find(&rows, "FMS-04")->layout.fsdp, 96);
    assert_int_equal(find(&rows, "FMS-01")->layout.fsdp, 8); /* HSDP128: nodes are replicas */
    assert_string_equal(find(&rows, "OTH-02")->cluster, "jean-zay");
    assert_int_equal(find(&rows, "OTH-02")->framework, FRAMEWORK_BIGSCIENCE);
    int skipped = 0;
    for (int i = 0; i < rows.n; i++) skipped += rows.row[i].skip != NULL;
    assert_int_equal(skipped, 2);
    arena_deinit(&arena);
}

static void test_grids(void **state)
{
    (void)state;
    Arena arena = {0};
    PublishedRows rows = load(&arena, "grid_3_2.csv");
    const PublishedRow *r = find(&rows, "BLM-075");
    assert_true(r->out_of_memory && r->step_s == 0 && r->skip == NULL);
    r = find(&rows, "BLM-030");
    assert_int_equal(r->devices, 384);
    assert_near(r->peak_bytes, 49e9, 1e-12);
    assert_near(r->step_s, 123.69, 1e-12);
    assert_string_equal(r->grid, "bloom g2");
    assert_string_equal(r->model.positions, "alibi");
    assert_true(r->model.bias && r->model.tied);
    assert_int_equal(r->model.head_dim, 224);
    assert_int_equal(r->layout.zero, 1);
    rows = load(&arena, "grid_3_1.csv");
    r = find(&rows, "MOS-019");
    assert_near(r->step_s, 2048.0 * 2048 / (1039.0 * 64), 1e-12);
    assert_int_equal(r->layout.fsdp, 64);
    assert_int_equal(r->model.hidden, 8192);
    assert_string_equal(r->cluster, "mosaic-h100");
    assert_true(r->model.tied && !r->model.bias && !strcmp(r->model.positions, "alibi"));
    rows = load(&arena, "grid_3_3_1.csv");
    r = find(&rows, "INF-12");
    assert_int_equal(r->batch, 64);
    assert_near(r->step_s, 64.0 * 2048 / 4103 / 8, 1e-12);
    assert_int_equal(r->recompute, RECOMPUTED_NONE);
    rows = load(&arena, "grid_3_4.csv");
    r = find(&rows, "VTR-003");
    assert_int_equal(r->layout.tp, 2);
    assert_int_equal(r->layout.dp, 32);
    assert_near(r->step_s, 3.9752, 1e-12);
    assert_string_equal(r->grid, "vtrain 3.6B 64");
    arena_deinit(&arena);
}

/* Each row's machine can be had, with just its devices, and its layout fits into them. */
static void test_machines(void **state)
{
    (void)state;
    static const char *const files[] = {"calibration.csv", "grid_3_1.csv", "grid_3_2.csv",
                                        "grid_3_3_1.csv", "grid_3_4.csv"};
    Arena arena = {0};
    for (int f = 0; f < COUNT_OF(files); f++) {
        PublishedRows rows = load(&arena, files[f]);
        assert_true(rows.n >= 10);
        for (int i = 0; i < rows.n; i++) {
            const PublishedRow *r = &rows.row[i];
            Cluster c;
            assert_ok(published_cluster(r, &c));
            assert_int_equal(cluster_devices(&c), r->devices);
            assert_string_equal(c.device.name, r->device);
            assert_ok(cluster_check(&c));
            cluster_deinit(&c);
        }
    }
    arena_deinit(&arena);
}

/* ---- refusals --------------------------------------------------------------------------- */

static Status parse(Arena *arena, const char *text, PublishedRows *rows)
{
    static const char model[] =
        "key,layers,hidden,heads,kv,head dim,ffn,gated,vocab,MoE,params B,active B\n"
        "A,4,64,4,4,16,256,n,1000,-,1,1\nB,4,64,4,4,16,-,y,1000,\"8 experts top-9, expert ffn "
        "64\",1,1\n";
    Csv csv, models;
    assert_ok(
        csv_parse(arena, (Bytes){(const uint8_t *)model, sizeof model - 1}, "models.csv", &models));
    TRY(csv_parse(arena, (Bytes){(const uint8_t *)text, strlen(text)}, "rows.csv", &csv));
    return published_parse(arena, &csv, &models, rows);
}

#define HEAD "id,GPU,GPUs,model,s,GBS,MBS,layout,\"precision, recompute\",step s,note\n"

/* What is no such file is refused. */
static void test_files_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"", "is empty"},
        {"a,b\n1,2\n", "rows.csv:1: the columns are neither"},
        {HEAD "x,H100,8,A,64,8\n", "rows.csv:2: 6 fields; the first line names 11"},
        {HEAD "\"x,H100", "rows.csv:2: a quote is never closed"},
        {HEAD "x,\"H100\"8,A,64,8,1,TP1,bf16,1,-,\n", "behind a closing quote"},
    };
    Arena arena = {0};
    for (int i = 0; i < COUNT_OF(cases); i++) {
        PublishedRows rows;
        Status status = parse(&arena, cases[i].text, &rows);
        if (status != ERR_FORMAT) fail_msg("%s: status %s", cases[i].text, status_name(status));
        if (!strstr(status_message(), cases[i].says))
            fail_msg("'%s' lacks '%s'", status_message(), cases[i].says);
    }
    arena_deinit(&arena);
}

/* A row that cannot be read says why, and those beside it are read. */
static void test_bad_rows(void **state)
{
    (void)state;
    static const struct {
        const char *row, *says;
    } cases[] = {
        {"x,H101,8,A,64,8,1,TP1,bf16,1,-", "rows.csv:3: GPU is 'H101'; one of A100"},
        {"x,H100,8,C,64,8,1,TP1,bf16,1,-", "has no model C"},
        {"x,H100,8,A@9,64,8,1,TP1,bf16,1,-", "model A@9 has 4 layers"},
        {"x,H100,8,B,64,8,1,TP1,bf16,1,-", "MoE is '8 experts top-9"},
        {"x,H100,0,A,64,8,1,TP1,bf16,1,-", "GPUs is '0'"},
        {"x,H100,8.5,A,64,8,1,TP1,bf16,1,-", "a whole number"},
        {"x,H100,8,A,?,8,1,TP1,bf16,1,-", "s is '?'; tokens of a sequence"},
        {"x,H100,8,A,64,-,1,TP1,bf16,1,-", "GBS is ''; sequences"},
        {"x,H100,8,A,64,8,1,TP1 XP4,bf16,1,-", "rows.csv:3: 'XP4' in the layout"},
        {"x,H100,8,A,64,8,1,TP0,bf16,1,-", "'TP0' in the layout"},
        {"x,H100,8,A,64,8,1,TP1,int4,1,-", "fp16, bf16 or fp8"},
        {"x,H100,8,A,64,8,1,TP1,bf16,fast,-", "step s is 'fast'; a number"},
        {",H100,8,A,64,8,1,TP1,bf16,1,-", "id is ''; a name"},
        {"x,H100,8,A,64,8,1,TP3,bf16,1,-", "the layout does not divide the devices"},
        {"x,H100,8,A,64,8,?,\"TP8; ZeRO-2\",bf16,-,\"a \"\"b\"\"\"", "no time was measured"},
    };
    static const char good[] = "y,H100 SXM,8,A,64,8,2,TP8 DualPipe,bf16,1,\"a \"\"b\"\"\"\r\n";
    Arena arena = {0};
    for (int i = 0; i < COUNT_OF(cases); i++) {
        PublishedRows rows;
        assert_ok(
            parse(&arena, arena_printf(&arena, HEAD "\r\n%s\n%s", cases[i].row, good), &rows));
        assert_int_equal(rows.n, 2);
        if (!rows.row[0].skip || !strstr(rows.row[0].skip, cases[i].says))
            fail_msg("%s: '%s' lacks '%s'", cases[i].row, rows.row[0].skip ? rows.row[0].skip : "",
                     cases[i].says);
        assert_null(rows.row[1].skip);
        assert_string_equal(rows.row[1].note, "a \"b\"");
        assert_string_equal(rows.row[1].device, "h100");
        assert_int_equal(rows.row[1].layout.tp, 8);
    }
    arena_deinit(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_calibration), cmocka_unit_test(test_grids),
        cmocka_unit_test(test_machines),    cmocka_unit_test(test_files_refused),
        cmocka_unit_test(test_bad_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
