/* Canonical mode: every layout that divides the leaves gives the bits of one rank, in every step's
 * loss and gradient norm and in the final weights and moments. Ranks are threads of this process.
 */
#include "layouts.h"

/* ---- what a job ends with --------------------------------------------------------------- */

typedef struct SavedTensor {
    char name[200];
    float *data;
    int64_t n, written;
} SavedTensor;

typedef struct SavedTensors {
    pthread_mutex_t lock;
    VEC(SavedTensor) at;
} SavedTensors;

typedef struct Keeping {
    SavedTensors *saved;
    const StateEntry *entry;
    const float *data;
} Keeping;

static SavedTensor *tensor_named(SavedTensors *s, const char *name, int64_t n)
{
    for (size_t i = 0; i < s->at.n; i++)
        if (!strcmp(s->at.at[i].name, name)) return &s->at.at[i];
    SavedTensor fresh = {.n = n, .data = xcalloc((size_t)n, sizeof(float))};
    snprintf(fresh.name, sizeof fresh.name, "%s", name);
    VEC_PUSH(&s->at, fresh);
    return &s->at.at[s->at.n - 1];
}

/* A run that several ranks hold is the same on all of them. */
static Status keep_run(void *context, const StateRun *run)
{
    Keeping *k = context;
    const StatePart *part = &k->entry->part[run->part];
    SavedTensor *t = tensor_named(k->saved, part->name, shape_count(&part->whole));
    memcpy(t->data + run->global, k->data + run->local, (size_t)run->n * sizeof(float));
    t->written += run->n;
    return OK;
}

static Status keep_states(Job *job, const StepPrograms *p, Session *session)
{
    SavedTensors *saved = job->context;
    pthread_mutex_lock(&saved->lock);
    Status status = OK;
    for (int i = 0; i < p->n && status == OK; i++)
        status = graph_verify(p->at[i]->graph, "all passes");
    for (int i = 0; i < p->store->n_entries && status == OK; i++) {
        const StateEntry *e = &p->store->entry[i];
        if (e->role != STATE_PARAM && e->role != STATE_ADAM_M && e->role != STATE_ADAM_V &&
            e->role != STATE_BUFFER)
            continue;
        Keeping keeping = {saved, e, session_state(session, i).data};
        status = store_each_run(p->store, i, keep_run, &keeping);
    }
    pthread_mutex_unlock(&saved->lock);
    return status;
}

static void forget(SavedTensors *s)
{
    for (size_t i = 0; i < s->at.n; i++) free(s->at.at[i].data);
    VEC_FREE(&s->at);
}

/* The name of a tensor that differs; NULL: none does. */
static const char *different_tensor(SavedTensors *a, SavedTensors *b)
{
    if (a->at.n != b->at.n) return "their number";
    for (size_t i = 0; i < a->at.n; i++) {
        const SavedTensor *x = &a->at.at[i], *y = tensor_named(b, x->name, x->n);
        if (x->n != y->n || x->written < x->n || y->written < y->n) return x->name;
        if (memcmp(x->data, y->data, (size_t)x->n * sizeof(float)) != 0) return x->name;
    }
    return NULL;
}

/* ---- one layout ------------------------------------------------------------------------- */

static Status run_kept(Job *job, const ModelConfig *model, SavedTensors *saved, char *message)
{
    *saved = (SavedTensors){.lock = PTHREAD_MUTEX_INITIALIZER};
    job->model = model;
    job->at_end = keep_states;
    job->context = saved;
    return run_job(job, message);
}

/* What one rank makes of the model and the words in `common`. */
typedef struct Reference {
    const char *common;
    ModelConfig model;
    Job job;
    SavedTensors saved;
} Reference;

static void make_reference(Reference *r, const char *model_text, const char *common)
{
    char message[600] = "";
    *r = (Reference){.common = common, .job = parse_job(common)};
    make_model_with(model_text, r->job.layers, r->job.keys, &r->model);
    if (run_kept(&r->job, &r->model, &r->saved, message) != OK)
        fail_msg("one rank, %s: %s", common, *message ? message : status_message());
}

static void free_reference(Reference *r)
{
    forget(&r->saved);
    model_config_deinit(&r->model);
}

/* "overlap": the last micro-batch with the update; "zero1", "zero2"; the rest is layouts.h's. */
static Job parse_canonical(const char *common, const char *text)
{
    char words[200], copy[128], *save;
    int zero = 0;
    bool last = false;
    snprintf(words, sizeof words, "%s", common);
    snprintf(copy, sizeof copy, "%s", text);
    for (char *word = strtok_r(copy, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
        if (!strncmp(word, "zero", 4))
            zero = word[4] - '0';
        else if (!strcmp(word, "overlap"))
            last = true;
        else
            snprintf(words + strlen(words), sizeof words - strlen(words), " %s", word);
    }
    Job job = parse_job(words);
    job.options.layout.zero = zero;
    job.options.update_last = last;
    return job;
}

static int check_layout(Reference *one, const char *text)
{
    char message[600] = "";
    SavedTensors saved;
    Job many = parse_canonical(one->common, text);
    Status status = run_kept(&many, &one->model, &saved, message);
    int step = 0;
    if (status != OK) {
        print_message("%s, %s: %s\n", one->common, text, *message ? message : status_message());
        forget(&saved);
        return 1;
    }
    while (step < STEPS && many.loss[step] == one->job.loss[step] &&
           many.norm[step] == one->job.norm[step])
        step++;
    const char *tensor = different_tensor(&one->saved, &saved);
    if (step < STEPS)
        print_message("%s, %s: step %d: loss %.9g, not %.9g; norm %.9g, not %.9g\n", one->common,
                      text, step, many.loss[step], one->job.loss[step], many.norm[step],
                      one->job.norm[step]);
    if (tensor) print_message("%s, %s: in the end %s differs\n", one->common, text, tensor);
    forget(&saved);
    return step < STEPS || tensor;
}

static void check_all(const char *model_text, const char *common, const char *const *list, int n)
{
    Reference one;
    const char *only = getenv("LAYOUT");
    int wrong = 0;
    make_reference(&one, model_text, common);
    for (int i = 0; i < n; i++)
        if (!only || !strcmp(only, list[i])) wrong += check_layout(&one, list[i]);
    free_reference(&one);
    assert_int_equal(wrong, 0);
}

/* ---- the matrix ------------------------------------------------------------------------- */

static const char *const dense[] = {
    "dp2",
    "dp4",
    "dp8",
    "fsdp2",
    "fsdp4",
    "tp2",
    "tp4",
    "dp2 fsdp2",
    "dp2 tp2",
    "fsdp2 tp2",
    "dp2 fsdp2 tp2",
    "dp2 overlap",
    "fsdp2 overlap",
    "dp2 fsdp2 overlap",
    "dp2 zero1",
    "dp2 zero2",
    "dp4 zero2 overlap",
    "dp8 zero1",
    "dp2 tp2 zero2",
    "dp8 tp4",
    "full",
    "selective tp2",
    "fsdp2 full",
    "dp2 selective",
    "cp2",
    "cp2 dp2",
    "cp2 tp2",
    "cp2 fsdp2 full",
    "cp2 dp2 zero2 overlap",
    "cp2 tp2 dp2 overlap",
};
/* The head is the embedding, which two stages then have. */
static const char *const tied_pipelines[] = {
    "pp2",      "pp4",           "pp2 zb-v",      "pp2 dp2",       "pp2 dp4",   "pp2 fsdp2",
    "pp2 tp2",  "pp2 dp2 zero1", "pp2 cp2",       "pp2 dp2 zero2", "pp2 zb-h1", "pp2 dp2 fsdp2 tp2",
    "pp2 full", "pp2 gpipe dp2", "pp2 dualpipev",
};
/* More ranks than key heads, and as many, and fewer. */
static const char *const few_keys[] = {
    "tp2",           "tp4",     "dp2 tp4",       "fsdp2 tp4",       "tp4 full",
    "tp4 selective", "cp2 tp4", "dp2 tp4 zero2", "tp4 dp2 overlap",
};
static const char *const experts[] = {
    "dp2",
    "fsdp2",
    "tp2",
    "tp4",
    "ep2",
    "ep4",
    "ep2 dp2",
    "ep2 fsdp2",
    "ep2 tp2",
    "ep4 dp2",
    "ep4 tp2",
    "dp2 fsdp2 ep2 tp2",
    "ep2 overlap",
    "ep2 dp2 zero1",
    "ep2 dp2 zero2",
    "ep2 full",
    "ep2 tp2 selective",
    "dp2 fsdp2 ep2",
    "fsdp4 ep2",
    "tp2 fold",
    "ep2 tp2 fold",
    "cp2",
    "cp2 ep2",
    "cp2 ep2 tp2 dp2",
    "cp2 selective",
};
static const char *const pipelines[] = {
    "pp2",         "pp4",           "pp2 gpipe",         "pp2 interleaved", "pp2 zb-h1",
    "pp2 zb-v",    "pp2 dualpipev", "pp2 dp2",           "pp2 fsdp2 zb-v",  "pp2 tp2 zb-h1",
    "pp4 dp2 tp2", "pp2 dp4 zero1", "pp2 tp2 full zb-v", "pp2 cp2 zb-h1",   "pp2 cp2 tp2",
};
static const char *const pipelined_experts[] = {"pp2 ep2", "pp2 ep2 tp2 zb-h1", "pp2 ep2 fsdp2 dp2",
                                                "pp2 ep2 zb-v"};
static const char *const some[] = {"dp2", "fsdp2 tp2", "dp2 tp4", "fsdp2 overlap"};
static const char *const some_experts[] = {"dp2 ep2", "fsdp2 tp2", "ep4 tp2", "pp2 ep2", "cp2 tp2"};
static const char *const some_of_grok[] = {"dp2 ep2", "fsdp2 tp2", "ep4 tp2", "ep2 cp2"};

static void test_llama3(void **state)
{
    (void)state;
    check_all(llama3, "chunks4", dense, COUNT_OF(dense));
    check_all(llama3, "chunks4", tied_pipelines, COUNT_OF(tied_pipelines));
}

static void test_few_key_heads(void **state)
{
    (void)state;
    static const char *const with_experts[] = {"tp4", "ep2 tp4", "pp2 tp4 zb-v", "tp2 fold"};
    static const char *const eight[] = {"tp8", "tp4", "dp2 tp8", "fsdp2 tp2"};
    check_all(llama3, "chunks4 keys1", few_keys, COUNT_OF(few_keys));
    check_all(llama3, "chunks4 keys2 bf16", few_keys, COUNT_OF(few_keys));
    check_all(llama3, "chunks8", eight, COUNT_OF(eight));
    check_all(llama3, "chunks8 keys2 bf16", eight, COUNT_OF(eight));
    check_all(llama4, "chunks4 keys2", with_experts, COUNT_OF(with_experts));
}

static void test_llama4(void **state)
{
    (void)state;
    check_all(llama4, "chunks4", experts, COUNT_OF(experts));
    check_all(llama4, "chunks4", pipelines, COUNT_OF(pipelines));
    check_all(llama4, "chunks4", pipelined_experts, COUNT_OF(pipelined_experts));
}

static void test_others(void **state)
{
    (void)state;
    check_all(grok1, "chunks4", some, COUNT_OF(some));
    check_all(grok1, "chunks4 layers4", tied_pipelines, 4);
    check_all(grok1, "chunks2 aux", some_of_grok, COUNT_OF(some_of_grok));
    check_all(llama4, "chunks4 aux", some_experts, COUNT_OF(some_experts));
    check_all(llama4, "chunks4 bf16", some_experts, COUNT_OF(some_experts));
    check_all(llama3, "chunks8 bf16", some, COUNT_OF(some));
    check_all(llama3, "chunks4 bf16", tied_pipelines, 4);
}

/* Biases, LayerNorm, slopes of heads, and matrices of blocks in both orientations. */
static void test_gpt(void **state)
{
    (void)state;
    static const char *const list[] = {"tp2",     "tp4",       "fsdp2 tp2",
                                       "cp2 tp2", "dp2 zero2", "full tp2"};
    check_all(gpt2, "chunks4", list, COUNT_OF(list));
    check_all(mpt, "chunks4", list, COUNT_OF(list));
    check_all(gpt, "chunks4", list, 2);
    check_all(gpt, "chunks4", &pipelines[4], 2);
    check_all(gpt2, "chunks4", tied_pipelines, 4);
    check_all(mpt, "chunks4", tied_pipelines, 4);
}

/* What is sent is what the nodes declare. */
static void test_wire(void **state)
{
    (void)state;
    static const char *const counted[] = {"chunks4 dp2 tp2", "chunks4 fsdp4",
                                          "chunks4 dp2 fsdp2 cp2", "chunks4 pp2 tp2 zb-v",
                                          "chunks8 tp8 dp2"};
    for (int i = 0; i < COUNT_OF(counted); i++) {
        ModelConfig model;
        char message[600] = "";
        Job job = parse_job(counted[i]);
        make_model(llama4, 0, &model);
        job.model = &model;
        job.check_wire = true;
        if (run_job(&job, message) != OK)
            fail_msg("%s: %s", counted[i], *message ? message : status_message());
        model_config_deinit(&model);
    }
}

static void test_refusals(void **state)
{
    (void)state;
    char message[600] = "";
    ModelConfig model;
    make_model(llama3, 0, &model);
    Job job = parse_job("chunks32 dp2");
    job.model = &model;
    assert_int_not_equal(run_job(&job, message), OK);
    assert_non_null(strstr(message, "train.canonical_chunks 32 does not divide"));
    model_config_deinit(&model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama3),  cmocka_unit_test(test_few_key_heads),
        cmocka_unit_test(test_llama4),  cmocka_unit_test(test_others),
        cmocka_unit_test(test_gpt),     cmocka_unit_test(test_wire),
        cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
