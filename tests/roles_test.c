/* What a plan builds once for all ranks of a role is what each of them would build for itself: the
 * same instructions, the same work and the same memory, to the byte. (That memory is also what is
 * allocated, layouts.h checks in every job that it runs.) */
#include "layouts.h"

static const Target gpu = {.isa = ISA_GENERIC, .threads = 1, .gpu = true};

/* What takes time and memory in a rank's programs. */
typedef struct Sums {
    int n_instr;
    Cost cost;
    size_t total_bytes;
} Sums;

static Sums sums_of(const StepPrograms *p)
{
    Sums s = {0};
    for (int i = 0; i < p->n; i++) {
        Cost c = program_cost(p->at[i]);
        s.n_instr += p->at[i]->n_instr;
        s.cost.flop += c.flop;
        s.cost.read_bytes += c.read_bytes;
        s.cost.write_bytes += c.write_bytes;
        s.cost.wire_bytes += c.wire_bytes;
    }
    s.total_bytes = session_plan(p->store, p->at, p->n).total_bytes;
    return s;
}

static bool same_work(const Sums *a, const Sums *b)
{
    return a->n_instr == b->n_instr && a->cost.flop == b->cost.flop &&
           a->cost.read_bytes == b->cost.read_bytes && a->cost.write_bytes == b->cost.write_bytes &&
           a->cost.wire_bytes == b->cost.wire_bytes;
}

/* Every rank of the job: also those that differ along other axes than pp. The first of these alone
 * sums norms of what all have, and parts that are cut flat end in padding, so their work may differ
 * by less than a hundredth. */
static int check_rank(const Job *job, const StepRoles *roles, Target target, int rank)
{
    StepPrograms own;
    StepOptions o = job->options;
    o.layout.mesh = mesh_at(&o.layout.mesh, rank);
    assert_int_equal(step_programs_build(job->model, &o, target, &own), OK);
    int pp = o.layout.mesh.coord[MESH_PP];
    Mesh first = o.layout.mesh;
    for (int a = MESH_PP + 1; a < MESH_AXES; a++) first.coord[a] = 0;
    Sums mine = sums_of(&own), like = sums_of(&roles->role[roles->role_of[pp]].programs);
    bool good = mine.total_bytes == roles->memory[pp].total_bytes;
    if (rank == mesh_rank(&first))
        good &= same_work(&mine, &like);
    else
        good &= mine.n_instr == like.n_instr && fabs(mine.cost.flop / like.cost.flop - 1) < 0.01;
    if (!good)
        print_message("rank %d: %d and %d instructions, %.9g and %.9g FLOP, %.9g and %.9g bytes "
                      "sent; %zu bytes, planned %zu\n",
                      rank, mine.n_instr, like.n_instr, mine.cost.flop, like.cost.flop,
                      mine.cost.wire_bytes, like.cost.wire_bytes, mine.total_bytes,
                      roles->memory[pp].total_bytes);
    step_programs_destroy(&own);
    return good ? 0 : 1;
}

static int check(const char *model_text, const char *text, int n_roles, Target target)
{
    ModelConfig model;
    StepRoles roles;
    Job job = parse_job(text);
    make_model(model_text, job.layers, &model);
    job.model = &model;
    job.options.eval_batch = job.options.micro_batch;
    job.options.update_last = true;
    assert_int_equal(make_pipeline(&job), OK);
    if (step_roles_build(&model, &job.options, target, &roles) != OK)
        fail_msg("%s: %s", text, status_message());
    int wrong = n_roles && roles.n != n_roles;
    if (wrong) print_message("%s: %d roles\n", text, roles.n);
    for (int r = 0; r < mesh_ranks(&job.options.layout.mesh); r++)
        wrong += check_rank(&job, &roles, target, r);
    if (wrong) print_message("%s: %d ranks are not as planned\n", text, wrong);
    step_roles_destroy(&roles);
    pipeline_destroy(job.pipeline);
    model_config_deinit(&model);
    return wrong;
}

/* llama3: layers are alike, the tied embedding is on the first and the last rank. llama4: a period
 * of four. */
static void test_roles(void **state)
{
    (void)state;
    static const struct {
        const char *model, *text;
        int n_roles;
    } cases[] = {
        {llama3, "pp8 micro8 layers8", 3},
        {llama3, "pp8 micro8 layers16", 3},
        {llama3, "pp4 micro8 interleaved@3 layers12", 3},
        {llama3, "pp8 micro4 interleaved layers32", 3},
        {llama3, "pp4 micro8 zb-v layers8", 0},
        {llama3, "pp8 micro8 zb-h1 layers8 full", 3},
        {llama3, "pp4 micro8 dualpipev layers16", 0},
        {llama3, "pp5 micro8 layers12", 0},
        {llama3, "pp8 tp2 seq fsdp2 micro4 layers8", 3},
        {llama4, "pp8 micro8 layers32", 3},
        {llama4, "pp8 micro8 interleaved layers32", 0},
        {llama4, "pp8 micro8 aux interleaved@4 layers32", 0},
        {llama4, "pp4 ep2 dp2 micro2 layers16 selective", 3},
        {llama4, "pp4 cp2 tp2 seq micro4 zb-v layers16", 0},
        {grok1, "pp8 micro4 bf16 layers16", 3},
        {llama4, "dp2 fsdp2 tp2 seq micro2", 1},
        {llama3, "tp4", 1},
        {llama3, "micro4", 1},
    };
    int wrong = 0;
    for (int i = 0; i < COUNT_OF(cases); i++) {
        Target cpu = {.isa = cpu_best_isa(), .threads = 1};
        wrong += check(cases[i].model, cases[i].text, cases[i].n_roles, cpu);
        wrong += check(cases[i].model, cases[i].text, cases[i].n_roles, gpu);
    }
    assert_int_equal(wrong, 0);
}

/* A GPU packs no operands: products ask for their library's workspace, whatever their shape; those
 * of experts are kernels of our own. */
static void test_gpu_workspace(void **state)
{
    (void)state;
    ModelConfig model;
    StepPrograms p;
    Job job = parse_job("layers2");
    make_model(llama4, job.layers, &model);
    assert_int_equal(step_programs_build(&model, &job.options, gpu, &p), OK);
    const Program *step = p.at[p.index[PROGRAM_STEP]];
    int n_products = 0;
    for (int i = 0; i < step->n_instr; i++) {
        const Instr *instr = &step->instr[i];
        Cost c = instr->op->cost ? instr->op->cost(step->graph, instr->node) : (Cost){0};
        if (c.kind != COST_MATMUL || strstr(instr->op->name, "cross_entropy")) continue;
        bool grouped = strstr(instr->op->name, "grouped");
        assert_int_equal(instr->workspace_bytes, grouped ? 0 : GPU_PRODUCT_WORKSPACE_BYTES);
        n_products++;
    }
    assert_true(n_products > 10);
    step_programs_destroy(&p);
    model_config_deinit(&model);
}

static void test_refused(void **state)
{
    (void)state;
    ModelConfig model;
    StepRoles roles;
    Job job = parse_job("pp8 micro8");
    make_model(llama3, 4, &model);
    assert_int_equal(make_pipeline(&job), OK);
    assert_int_equal(step_roles_build(&model, &job.options, gpu, &roles), ERR_REFUSED);
    assert_non_null(strstr(status_message(), "8 stages"));
    pipeline_destroy(job.pipeline);
    model_config_deinit(&model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_roles),
                                       cmocka_unit_test(test_gpu_workspace),
                                       cmocka_unit_test(test_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
