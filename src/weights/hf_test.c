/* Hugging Face directories in their several forms: every value against arithmetic done here, every
 * box, every refusal. */
#include "weights/weights_testkit.h"

/* ---- fp8 with scales -------------------------------------------------------------------- */

enum { OUT = 5, IN = 6, EXPERTS = 2 };

static float stored_value(int64_t i) { return (float)(i % 13) - 6; } /* exact in every type */

/* A directory with one fp8 tensor and its scales. */
static void open_scaled(Kit *kit, const char *name, int rank, const int64_t *dims,
                        const char *scale, int scale_rank, const int64_t *scale_dims,
                        const char *config, Weights **weights)
{
    kit_begin(kit);
    kit_add(kit, name, DTYPE_F8_E4M3, rank, dims, stored_value);
    kit_add(kit, scale, DTYPE_F32, scale_rank, scale_dims, kit_scale);
    kit_write(kit, config);
    assert_ok(weights_open(kit->dir, CKPT_VERIFY_SIZES, weights));
}

static void check_all(const Weights *weights, const char *name,
                      float (*want)(int64_t row, int64_t column), int64_t columns)
{
    const Weight *w = weights_find(weights, name);
    assert_non_null(w);
    int64_t n = shape_count(&w->shape);
    float *values = xcalloc((size_t)n, sizeof *values);
    assert_ok(weights_read_range(w, 0, n, DTYPE_F32, values));
    for (int64_t i = 0; i < n; i++)
        if (values[i] != want(i / columns, i % columns))
            fail_msg("%s[%lld]: %g, not %g", name, (long long)i, (double)values[i],
                     (double)want(i / columns, i % columns));
    free(values);
}

static float by_tensor(int64_t r, int64_t c) { return stored_value(r * IN + c) * kit_scale(0); }
static float by_row(int64_t r, int64_t c) { return stored_value(r * IN + c) * kit_scale(r); }
/* blocks of 2 x 4: 3 x 2 of them, cut off at the edges */
static float by_block(int64_t r, int64_t c)
{
    return stored_value(r * IN + c) * kit_scale(r / 2 * 2 + c / 4);
}

static void test_scales(void **state)
{
    (void)state;
    static const char blocks[] = "{\"quantization_config\": {\"weight_block_size\": [2, 4]}}";
    const int64_t dims[] = {OUT, IN};
    const struct {
        const char *scale;
        int rank;
        int64_t dims[2];
        const char *config;
        float (*want)(int64_t, int64_t);
        const char *kind;
    } cases[] = {{"a.weight_scale", 0, {0}, NULL, by_tensor, "F8_E4M3, a scale"},
                 {"a.weight_scale", 1, {1}, NULL, by_tensor, "F8_E4M3, a scale"},
                 {"a.weight_scale", 1, {OUT}, NULL, by_row, "F8_E4M3, a scale per row"},
                 {"a.weight_scale", 2, {OUT, 1}, NULL, by_row, "F8_E4M3, a scale per row"},
                 {"a.weight_scale_inv", 2, {3, 2}, blocks, by_block, "F8_E4M3, a scale per block"},
                 {"a.weight_scale_inv", 2, {1, 1}, NULL, by_tensor, "F8_E4M3, a scale"}};
    for (int i = 0; i < COUNT_OF(cases); i++) {
        Kit kit;
        Weights *weights;
        open_scaled(&kit, "a.weight", 2, dims, cases[i].scale, cases[i].rank, cases[i].dims,
                    cases[i].config, &weights);
        assert_int_equal(weights_count(weights), 1);
        assert_string_equal(weights_at(weights, 0)->kind, cases[i].kind);
        assert_int_equal(weights_at(weights, 0)->dtype, DTYPE_BF16);
        check_all(weights, "a.weight", cases[i].want, IN);
        weights_close(weights);
        kit_end(&kit);
    }
}

static float fused_rows(int64_t r, int64_t c)
{
    return stored_value(r * OUT + c) * kit_scale(r / IN * OUT + c);
}

/* As Meta's fp8 release has them in transformers: [experts, 1, out] for gate_up_proj, [experts,
 * out, 1] for down_proj. */
static void test_fused_experts(void **state)
{
    (void)state;
    const int64_t dims[] = {EXPERTS, IN, OUT},
                  scales[2][3] = {{EXPERTS, 1, OUT}, {EXPERTS, OUT, 1}};
    for (int i = 0; i < 2; i++) {
        Kit kit;
        Weights *weights;
        open_scaled(&kit, "experts.down_proj", 3, dims, "experts.down_proj_scale", 3, scales[i],
                    NULL, &weights);
        check_all(weights, "experts.down_proj", fused_rows, OUT);
        weights_close(weights);
        kit_end(&kit);
    }
}

/* ---- experts one by one ----------------------------------------------------------------- */

#define PREFIX "language_model.model.layers.3.feed_forward.experts."
#define FUSED  "model.layers.3.feed_forward.experts."

/* Value of (expert, part, row, column) of the unfused matrices, rows being outputs. */
static float expert_value(int64_t e, int64_t part, int64_t r, int64_t c)
{
    return (float)((e * 7 + part * 5 + r * 3 + c) % 15 - 7);
}
static int64_t filling_expert, filling_part, filling_columns;
static float fill_expert(int64_t i)
{
    return expert_value(filling_expert, filling_part, i / filling_columns, i % filling_columns);
}
static float expert_scale(int64_t e, int64_t part, int64_t row)
{
    return kit_scale(e * 3 + part + row);
}
static float fill_expert_scale(int64_t i) { return expert_scale(filling_expert, filling_part, i); }

enum { D = 6, F = 70 }; /* more than a tile of runs */

static void add_experts(Kit *kit, int experts, int skipped, bool scales)
{
    static const char *const parts[] = {"gate_proj", "up_proj", "down_proj"};
    char name[128];
    for (filling_expert = 0; filling_expert < experts; filling_expert++)
        for (filling_part = 0; filling_part < 3; filling_part++) {
            int64_t rows = filling_part == 2 ? D : F;
            filling_columns = filling_part == 2 ? F : D;
            if (filling_expert * 3 + filling_part == skipped) continue;
            snprintf(name, sizeof name, PREFIX "%d.%s.weight", (int)filling_expert,
                     parts[filling_part]);
            kit_add(kit, name, scales ? DTYPE_F8_E4M3 : DTYPE_BF16, 2,
                    (int64_t[]){rows, filling_columns}, fill_expert);
            strncat(name, "_scale", sizeof name - strlen(name) - 1);
            if (scales) kit_add(kit, name, DTYPE_F32, 2, (int64_t[]){rows, 1}, fill_expert_scale);
        }
}

/* What the fused weights must hold at (e, in, column). */
static float fused_want(bool down, bool scales, int64_t e, int64_t in, int64_t column)
{
    int64_t part = down ? 2 : column < F ? 0 : 1, row = down ? column : column % F;
    return expert_value(e, part, row, in) * (scales ? expert_scale(e, part, row) : 1);
}

/* A box of every size at every place would be too many: a few thousand at random. */
static void check_boxes(const Weight *w, bool down, bool scales)
{
    float values[2048];
    uint64_t key = rng_key(1, w->name);
    for (uint64_t round = 0; round < 1000; round++) {
        int64_t first[MAX_RANK] = {0}, dim[3], count = 1;
        for (int d = 0; d < 3; d++) {
            first[d] = (int64_t)rng_below(key, round * 8 + (uint64_t)d, (uint64_t)w->shape.dim[d]);
            dim[d] = 1 + (int64_t)rng_below(key, round * 8 + 4 + (uint64_t)d,
                                            (uint64_t)(w->shape.dim[d] - first[d]));
            count *= dim[d];
        }
        if (count > COUNT_OF(values)) continue;
        Tensor box = tensor_make(values, DTYPE_F32, shape_make(3, dim, NULL));
        assert_ok(weights_read(w, first, &box));
        for (int64_t i = 0; i < count; i++) {
            int64_t e = first[0] + i / (dim[1] * dim[2]), in = first[1] + i / dim[2] % dim[1],
                    c = first[2] + i % dim[2];
            if (values[i] != fused_want(down, scales, e, in, c))
                fail_msg("%s [%lld, %lld, %lld]: %g", w->name, (long long)e, (long long)in,
                         (long long)c, (double)values[i]);
        }
    }
}

static void test_unfused_experts(void **state)
{
    (void)state;
    for (int scales = 0; scales < 2; scales++) {
        Kit kit;
        Weights *weights;
        kit_begin(&kit);
        add_experts(&kit, 3, -1, scales);
        kit_add(&kit, "vision_model.class_embedding", DTYPE_F32, 1, (int64_t[]){3}, kit_scale);
        kit_write(&kit, NULL);
        assert_ok(weights_open(kit.dir, CKPT_VERIFY_SIZES, &weights));
        assert_int_equal(weights_count(weights), 2);
        assert_int_equal(weights_ignored(weights), 1);
        assert_string_equal(weights_prefix(weights), "language_model.");
        const Weight *both = weights_find(weights, FUSED "gate_up_proj"),
                     *down = weights_find(weights, FUSED "down_proj");
        assert_true(both && both->shape.dim[0] == 3 && both->shape.dim[1] == D &&
                    both->shape.dim[2] == 2 * F);
        assert_true(down && down->shape.dim[0] == 3 && down->shape.dim[1] == F &&
                    down->shape.dim[2] == D);
        check_boxes(both, false, scales);
        check_boxes(down, true, scales);
        /* and whole, on all cores, into bf16 as training in place would have it */
        static uint16_t wide[3 * D * 2 * F], narrow[3 * F * D];
        NamedTensor list[] = {{FUSED "gate_up_proj", tensor_make(wide, DTYPE_BF16, both->shape)},
                              {FUSED "down_proj", tensor_make(narrow, DTYPE_BF16, down->shape)}};
        assert_ok(weights_load(weights, list, 2));
        for (int64_t i = 0; i < COUNT_OF(wide); i++)
            assert_true(wide[i] == bf16_from_f32(fused_want(false, scales, i / (D * 2 * F),
                                                            i / (2 * F) % D, i % (2 * F))));
        weights_close(weights);
        kit_end(&kit);
    }
}

/* ---- ranges, strides -------------------------------------------------------------------- */

static void test_ranges(void **state)
{
    (void)state;
    Kit kit;
    Weights *weights;
    kit_begin(&kit);
    add_experts(&kit, 2, -1, true);
    kit_write(&kit, NULL);
    assert_ok(weights_open(kit.dir, CKPT_VERIFY_SIZES, &weights));
    const Weight *w = weights_find(weights, FUSED "gate_up_proj");
    int64_t n = shape_count(&w->shape);
    float *whole = xcalloc((size_t)n, sizeof *whole), *part = xcalloc((size_t)n, sizeof *part);
    assert_ok(weights_read_range(w, 0, n, DTYPE_F32, whole));
    for (int64_t first = 0; first < n; first += 37)
        for (int64_t count = 0; first + count <= n; count = count * 5 + 1) {
            assert_ok(weights_read_range(w, first, count, DTYPE_F32, part));
            assert_memory_equal(part, whole + first, (size_t)count * sizeof *part);
        }
    assert_int_equal(weights_read_range(w, n - 1, 2, DTYPE_F32, part), ERR_ARG);
    assert_int_equal(weights_read_range(w, -1, 1, DTYPE_F32, part), ERR_ARG);
    /* columns of one expert into every third place of memory, turned back */
    float spread[3 * D * F];
    Tensor box = tensor_make(spread, DTYPE_F32, shape_make(3, (int64_t[]){1, D, F}, NULL));
    box.stride[1] = 3;
    box.stride[2] = 3 * D;
    assert_ok(weights_read(w, (int64_t[]){1, 0, F}, &box));
    for (int64_t r = 0; r < D; r++)
        for (int64_t c = 0; c < F; c++)
            assert_true(spread[3 * (c * D + r)] == whole[(D + r) * 2 * F + F + c]);
    Tensor outside = tensor_make(spread, DTYPE_F32, shape_make(3, (int64_t[]){1, D, F}, NULL));
    assert_int_equal(weights_read(w, (int64_t[]){2, 0, 0}, &outside), ERR_SHAPE);
    assert_int_equal(weights_read(w, (int64_t[]){0, 0, F + 1}, &outside), ERR_SHAPE);
    assert_int_equal(weights_read(w, (int64_t[]){0, -1, 0}, &outside), ERR_SHAPE);
    free(whole);
    free(part);
    weights_close(weights);
    kit_end(&kit);
}

/* Every type as it is: no bit changes on the way. */
static void test_bits_stay(void **state)
{
    (void)state;
    static const DType types[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16, DTYPE_F8_E5M2};
    for (int t = 0; t < COUNT_OF(types); t++) {
        Kit kit;
        Weights *weights;
        uint8_t bits[4 * 96], back[4 * 96];
        size_t bytes = 96 * dtype_bytes(types[t]);
        for (size_t i = 0; i < sizeof bits; i++)
            bits[i] = (uint8_t)rng_u64(7, i); /* not-a-numbers too */
        kit_begin(&kit);
        kit_add_bits(&kit, "model.norm.weight", types[t], 2, (int64_t[]){8, 12}, bits);
        kit_write(&kit, NULL);
        assert_ok(weights_open(kit.dir, CKPT_VERIFY_SIZES, &weights));
        assert_int_equal(weights_at(weights, 0)->dtype, types[t]);
        assert_ok(weights_read_range(weights_at(weights, 0), 0, 96, types[t], back));
        assert_memory_equal(bits, back, bytes);
        weights_close(weights);
        kit_end(&kit);
    }
}

/* ---- refusals --------------------------------------------------------------------------- */

static void refuse(Kit *kit, const char *config, const char *sentence)
{
    Weights *weights;
    kit_write(kit, config);
    assert_int_not_equal(weights_open(kit->dir, CKPT_VERIFY_SIZES, &weights), OK);
    if (!strstr(status_message(), sentence))
        fail_msg("'%s' lacks '%s'", status_message(), sentence);
    kit_end(kit);
}

static void test_refusals(void **state)
{
    (void)state;
    Kit kit;
    const int64_t dims[] = {OUT, IN}, wrong[] = {OUT + 1, 1};
    kit_begin(&kit);
    kit_add(&kit, "a.weight", DTYPE_F8_E4M3, 2, dims, stored_value);
    kit_add(&kit, "a.weight_scale", DTYPE_F32, 2, wrong, kit_scale);
    refuse(&kit, NULL,
           "the scales a.weight_scale are [any=6 any=1], which does not cover a.weight");
    kit_begin(&kit);
    kit_add(&kit, "a.weight", DTYPE_BF16, 2, dims, stored_value);
    kit_add(&kit, "a.weight_scale", DTYPE_F32, 1, (int64_t[]){1}, kit_scale);
    refuse(&kit, NULL, "tensor a.weight of type BF16 has scales");
    kit_begin(&kit);
    kit_add(&kit, "a.weight", DTYPE_F8_E4M3, 2, dims, stored_value);
    kit_add(&kit, "a.weight_scale", DTYPE_F32, 1, (int64_t[]){1}, kit_scale);
    kit_add(&kit, "a.weight_scale_inv", DTYPE_F32, 1, (int64_t[]){1}, kit_scale);
    refuse(&kit, NULL, "is a second scale of a.weight");
    kit_begin(&kit);
    kit_add(&kit, "a.weight", DTYPE_F8_E4M3, 2, dims, stored_value);
    refuse(&kit, "{\"quantization_config\": {}}", "a.weight_scale is not there");
    for (int skipped = 0; skipped < 5;
         skipped++) { /* without the last one down_proj is whole, of another shape */
        kit_begin(&kit);
        add_experts(&kit, 2, skipped, false);
        refuse(&kit, NULL, "are not complete");
    }
}

/* Names that a model does not ask for are named, before what it misses is. */
static void test_match(void **state)
{
    (void)state;
    Kit kit;
    Weights *weights;
    float room[OUT * IN];
    kit_begin(&kit);
    kit_add(&kit, "a.weight", DTYPE_BF16, 2, (int64_t[]){OUT, IN}, stored_value);
    kit_add(&kit, "lm_head.weight", DTYPE_BF16, 1, (int64_t[]){1}, stored_value);
    kit_add(&kit, "model.layers.0.self_attn.rotary_emb.inv_freq", DTYPE_F32, 1, (int64_t[]){4},
            kit_scale);
    kit_add(&kit, "b.input_scale", DTYPE_F32, 1, (int64_t[]){1}, kit_scale);
    kit_add(&kit, "b.weight_packed", DTYPE_I32, 1, (int64_t[]){4}, kit_scale);
    kit_write(&kit, NULL);
    assert_ok(weights_open(kit.dir, CKPT_VERIFY_SIZES, &weights));
    assert_int_equal(weights_ignored(weights), 2);
    Shape shape = shape_make(2, (int64_t[]){OUT, IN}, NULL);
    NamedTensor list[] = {
        {"a.weight", tensor_make(room, DTYPE_F32, shape)},
        {"b.weight", tensor_make(room, DTYPE_F32, shape)},
        {"b.weight_packed", tensor_make(room, DTYPE_F32, shape_make(1, (int64_t[]){4}, NULL))}};
    assert_int_equal(weights_match(weights, list, 2), ERR_FORMAT);
    assert_non_null(
        strstr(status_message(), "tensor b.weight_packed (I32) has no place in the model"));
    list[1] = list[2];
    assert_ok(weights_match(weights, list, 2));
    list[0].tensor.shape = shape_make(2, (int64_t[]){IN, OUT}, NULL);
    assert_int_equal(weights_match(weights, list, 2), ERR_SHAPE);
    list[0].name = "c";
    list[0].tensor.shape = shape;
    assert_int_equal(weights_match(weights, list, 2), ERR_FORMAT);
    WeightSlice slice = {
        "a.weight", {1, 2}, tensor_make(room, DTYPE_F32, shape_make(2, (int64_t[]){3, 4}, NULL))};
    assert_ok(weights_load_slices(weights, &slice, 1));
    for (int i = 0; i < 12; i++) assert_true(room[i] == stored_value((1 + i / 4) * IN + 2 + i % 4));
    slice.first[1] = 3;
    assert_int_equal(weights_load_slices(weights, &slice, 1), ERR_SHAPE);
    weights_close(weights);
    kit_end(&kit);
}

/* GPT-2's own release: no "transformer.", and causal masks among the weights. */
static void test_gpt2_release(void **state)
{
    (void)state;
    Kit kit;
    Weights *weights;
    kit_begin(&kit);
    kit_add(&kit, "wte.weight", DTYPE_F32, 2, (int64_t[]){OUT, IN}, stored_value);
    kit_add(&kit, "h.0.attn.bias", DTYPE_F32, 4, (int64_t[]){1, 1, 4, 4}, stored_value);
    kit_add(&kit, "h.0.attn.masked_bias", DTYPE_F32, 0, NULL, stored_value);
    kit_add(&kit, "h.0.attn.c_attn.bias", DTYPE_F32, 1, (int64_t[]){3 * IN}, stored_value);
    kit_add(&kit, "lm_head.weight", DTYPE_F32, 2, (int64_t[]){OUT, IN}, stored_value);
    kit_write(&kit, NULL);
    assert_ok(weights_open(kit.dir, CKPT_VERIFY_SIZES, &weights));
    assert_int_equal(weights_count(weights), 3);
    assert_int_equal(weights_ignored(weights), 2);
    assert_non_null(weights_find(weights, "transformer.wte.weight"));
    assert_non_null(weights_find(weights, "transformer.h.0.attn.c_attn.bias"));
    assert_non_null(weights_find(weights, "lm_head.weight"));
    weights_close(weights);
    kit_end(&kit);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scales),          cmocka_unit_test(test_fused_experts),
        cmocka_unit_test(test_unfused_experts), cmocka_unit_test(test_ranges),
        cmocka_unit_test(test_bits_stay),       cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_match),           cmocka_unit_test(test_gpt2_release),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
