/* Runs from beginning to end on a small text: overfitting, stopping and resuming to the same bits,
 * saves that fail, kills at random moments, plans that are kept to the byte, and what is refused
 * before it starts. */
#include "shop.h"

#include <sys/wait.h>

/* ---- tests ------------------------------------------------------------------------------ */

static void stop_and_resume_gives_the_same_bits(void **state)
{
    (void)state;
    static const char *const precision[] = {"train.precision=f32", "train.precision=bf16"};
    static const char *const balance[] = {"train.balance=aux", "train.balance=bias"};
    for (int i = 0; i < 2; i++) {
        TrainOutcome outcome;
        int64_t step_a, step_b;
        const char *whole[] = {precision[i], balance[i], "train.steps=12",
                               "train.schedule=constant"};
        const char *half[] = {precision[i], balance[i], "train.steps=6", "train.schedule=constant"};
        const char *name_a = i ? "whole-bf16" : "whole-f32",
                   *name_b = i ? "parts-bf16" : "parts-f32";
        const char *warm = "train.warmup=3", *list_a[6], *list_b[6];
        memcpy(list_a, whole, sizeof whole);
        memcpy(list_b, half, sizeof half);
        list_a[4] = list_b[4] = warm;
        list_a[5] = list_b[5] = "train.threads=2";
        assert_ok(train(name_a, list_a, 6, &outcome));
        assert_ok(train(name_b, list_b, 6, &outcome));
        assert_int_equal(outcome.step, 6);
        list_a[5] = "train.threads=1";                 /* nor does the number of threads matter */
        assert_ok(train(name_b, list_a, 6, &outcome)); /* from 6 on */
        assert_int_equal(outcome.step, 12);
        uint64_t a = state_hash(name_a, &step_a), b = state_hash(name_b, &step_b);
        assert_int_equal(step_a, 12);
        assert_int_equal(step_b, 12);
        assert_true(a == b);
    }
}

static void one_batch_is_learnt_by_heart(void **state)
{
    (void)state;
    check_text_is_learnt();
}

static void micro_batches_add_up(void **state)
{
    (void)state;
    check_micro_batches_add_up();
}

static void recompute_changes_no_bit(void **state)
{
    (void)state;
    static const char *const mode[] = {"train.recompute=none", "train.recompute=selective",
                                       "train.recompute=full"};
    uint64_t hash[3];
    int64_t step;
    for (int i = 0; i < 3; i++) {
        const char *more[] = {mode[i], "train.steps=4", "train.precision=bf16"};
        TrainOutcome outcome;
        assert_ok(train(mode[i] + 6, more, 3, &outcome));
        hash[i] = state_hash(mode[i] + 6, &step);
    }
    assert_true(hash[0] == hash[1]);
    assert_true(hash[0] == hash[2]);
}

/* Packed once a step or once a product, whatever runs between two updates. */
static void packed_weights_change_no_bit(void **state)
{
    (void)state;
    static const char *const packs[] = {"train.pack_weights=false", "train.pack_weights=true"};
    static const char *const precision[] = {"train.precision=f32", "train.precision=bf16"};
    static const char *const micro[] = {"train.micro_batch=0", "train.micro_batch=1"};
    Arena arena = {0};
    for (int i = 0; i < 4; i++) {
        uint64_t hash[2];
        int64_t step;
        for (int k = 0; k < 2; k++) {
            const char *more[] = {
                packs[k],        precision[i % 2],    micro[i / 2],
                "train.steps=4", "train.val_every=2", "train.recompute=selective"};
            const char *name = arena_printf(&arena, "packs-%d-%d", i, k);
            TrainOutcome outcome;
            assert_ok(train(name, more, COUNT_OF(more), &outcome));
            hash[k] = state_hash(name, &step);
        }
        assert_true(hash[0] == hash[1]);
    }
    arena_deinit(&arena);
}

static void disk_full_while_saving_costs_one_checkpoint(void **state)
{
    (void)state;
    static const char *const faults[] = {"fsync:1", "fsync:2", "fsync:5", "rename:1"};
    for (int i = 0; i < COUNT_OF(faults); i++) {
        Arena arena = {0};
        const char *more[] = {"train.steps=12", "checkpoint.async=false", "checkpoint.every=5"};
        const char *name = arena_printf(&arena, "full-%d", i);
        RunConfig config;
        Trainer *trainer;
        TrainOutcome outcome;
        int64_t step;
        assert_ok(load(name, more, 3, &config));
        assert_ok(trainer_create(&config, &trainer));
        assert_ok(fault_set(faults[i])); /* the save of step 5 fails, those of 10 and 12 do not */
        assert_ok(trainer_run(trainer, &outcome));
        assert_true(fault_count(i == 3 ? "rename" : "fsync") > 2);
        assert_ok(fault_set(NULL));
        trainer_destroy(trainer);
        run_config_deinit(&config);
        assert_int_equal(outcome.step, 12);
        state_hash(name, &step);
        assert_int_equal(step, 12);
        assert_false(dir_exists(arena_printf(&arena, "%s/runs/%s/ckpt/step-00000005", shop, name)));
        assert_true(dir_exists(arena_printf(&arena, "%s/runs/%s/ckpt/step-00000010", shop, name)));
        arena_deinit(&arena);
    }
}

static void kill_at_random_moments(void **state)
{
    (void)state;
    int64_t step;
    TrainOutcome outcome;
    const char *whole[] = {"train.steps=15", "checkpoint.every=2"};
    assert_ok(train("unhurt", whole, 2, &outcome));
    uint64_t want = state_hash("unhurt", &step);
    for (int round = 0; round < 40; round++) {
        pid_t child = fork();
        if (child == 0) {
            execl("/proc/self/exe", "train_test", "--train", shop, (char *)NULL);
            _exit(9);
        }
        usleep(20000 + (useconds_t)rng_below(7, (uint64_t)round, 150000));
        kill(child, SIGKILL);
        int how;
        waitpid(child, &how, 0);
        if (WIFEXITED(how) && WEXITSTATUS(how) == 0) break; /* it was faster */
        assert_true(WIFSIGNALED(how) && WTERMSIG(how) == SIGKILL);
    }
    assert_ok(train("killed", whole, 2, &outcome));
    assert_true(state_hash("killed", &step) == want);
    assert_int_equal(step, 15);
}

static void the_plan_is_kept_to_the_byte(void **state)
{
    (void)state;
    ModelConfig model;
    assert_ok(model_config_preset("bench-moe", &model));
    for (int i = 0; i < 8; i++) {
        Device *device;
        StepPrograms p;
        Session *session;
        StepOptions o = {.micro_batch = 4,
                         .n_micro = 1 + i % 2,
                         .eval_batch = 2,
                         .seq = 128,
                         .balance = BALANCE_AUX,
                         .aux_loss = 0.01f,
                         .dtype = i / 2 % 2 ? DTYPE_BF16 : DTYPE_F32,
                         .pack_weights = i / 4};
        assert_ok(device_create_cpu((CpuOptions){.threads = 2}, &device));
        assert_ok(step_programs_build(&model, &o, device_target(device), &p));
        size_t planned = session_plan(p.store, p.at, p.n).total_bytes;
        assert_ok(session_create(device, p.store, p.at, p.n, &session));
        assert_int_equal(device_allocated_bytes(device), planned);
        assert_int_equal(device_peak_bytes(device), planned);
        size_t step = session_plan(p.store, p.at, p.n).step_bytes,
               live = 0; /* and little of it is holes */
        for (int k = 0; k < p.n; k++)
            live = p.at[k]->live_bytes > live ? p.at[k]->live_bytes : live;
        if ((double)step > 1.03 * (double)live)
            fail_msg("case %d: %zu bytes planned, %zu alive", i, step, live);
        session_destroy(session);
        assert_int_equal(device_allocated_bytes(device), 0);
        step_programs_destroy(&p);
        device_destroy(device);
    }
    model_config_deinit(&model);
}

static void refuse(const char *name, const char *const *more, int n, Status status,
                   const char *words)
{
    TrainOutcome outcome;
    Status got = train(name, more, n, &outcome);
    if (got != status) fail_msg("%s: status %d, not %d: %s", name, got, status, status_message());
    if (!strstr(status_message(), words)) fail_msg("%s does not say %s", status_message(), words);
}

static void what_cannot_run_is_refused_before_the_first_step(void **state)
{
    (void)state;
    const char *one_byte[] = {"train.memory_limit=1"};
    refuse("one-byte", one_byte, 1, ERR_REFUSED, "no setting makes this model fit");
    Arena arena = {0}; /* what is needed depends on the processor: a little less than that */
    double need_mb = 0;
    assert_int_equal(sscanf(status_message(), "the run needs %lf MB", &need_mb), 1);
    const char *small[] = {arena_printf(&arena, "train.memory_limit=%.0f", 0.9e6 * need_mb)};
    refuse("small", small, 1, ERR_REFUSED, "it fits with:");
    arena_deinit(&arena);
    const char *nothing[] = {"data=/nowhere/at/all/*.c"};
    refuse("nothing", nothing, 1, ERR_IO, "/nowhere/at/all");
    const char *heads[] = {"model.num_key_value_heads=3"};
    refuse("heads", heads, 1, ERR_REFUSED, "num_key_value_heads");
    const char *from[] = {"model.from=/nowhere"};
    refuse("from", from, 1, ERR_IO, "/nowhere");
}

static void damaged_checkpoints_fall_back(void **state)
{
    (void)state;
    TrainOutcome outcome;
    const char *more[] = {"train.steps=10", "checkpoint.every=4"};
    assert_ok(train("damaged", more, 2, &outcome));
    Arena arena = {0};
    const char *path = arena_printf(
        &arena, "%s/runs/damaged/ckpt/step-00000010/model-00001-of-00001.safetensors", shop);
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    fseek(f, -100, SEEK_END);
    int c = fgetc(f);
    fseek(f, -100, SEEK_END);
    fputc(c ^ 4, f);
    fclose(f);
    int64_t step;
    state_hash("damaged", &step);
    assert_int_equal(step, 8);
    assert_ok(train("damaged", more, 2, &outcome)); /* 8 to 10 again */
    state_hash("damaged", &step);
    assert_int_equal(step, 10);
    arena_deinit(&arena);
}

/* The child of kill_at_random_moments: this program again, with the shop's name. */
static int train_in_child(const char *where)
{
    TrainOutcome outcome;
    const char *whole[] = {"train.steps=15", "checkpoint.every=2"};
    log_set_level(LOG_SILENT);
    snprintf(shop, sizeof shop, "%s", where);
    return train("killed", whole, 2, &outcome) == OK ? 0 : 1;
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "--train")) return train_in_child(argv[2]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stop_and_resume_gives_the_same_bits),
        cmocka_unit_test(one_batch_is_learnt_by_heart),
        cmocka_unit_test(micro_batches_add_up),
        cmocka_unit_test(recompute_changes_no_bit),
        cmocka_unit_test(packed_weights_change_no_bit),
        cmocka_unit_test(disk_full_while_saving_costs_one_checkpoint),
        cmocka_unit_test(kill_at_random_moments),
        cmocka_unit_test(damaged_checkpoints_fall_back),
        cmocka_unit_test(the_plan_is_kept_to_the_byte),
        cmocka_unit_test(what_cannot_run_is_refused_before_the_first_step),
    };
    return cmocka_run_group_tests(tests, make_shop, remove_shop);
}
