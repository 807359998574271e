/* Communication under computation, and states shared over dp (ZeRO 1 and 2): the numbers are those
 * of ranks that exchange one after the other, bit for bit; what is on its way leaves time to hide
 * in; memory and bytes are as planned. */
#include "layouts.h"

/* "dp2 zero1 bucket4096 blocking": what layouts.h knows, and how the ranks exchange. */
static StepOptions parse_more(const char *text)
{
    char known[128] = "", copy[128], *save;
    Layout more = {0};
    snprintf(copy, sizeof copy, "%s", text);
    for (char *word = strtok_r(copy, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
        if (!strncmp(word, "zero", 4))
            more.zero = (int)strtol(word + 4, NULL, 10);
        else if (!strncmp(word, "bucket", 6))
            more.bucket_bytes = strtoul(word + 6, NULL, 10);
        else if (!strcmp(word, "blocking"))
            more.blocking = true;
        else
            snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", *known ? " " : "",
                     word);
    }
    StepOptions o = parse_job(known).options;
    o.layout.zero = more.zero;
    o.layout.bucket_bytes = more.bucket_bytes;
    o.layout.blocking = more.blocking;
    return o;
}

static void run(const ModelConfig *model, const StepOptions *o, bool check_wire, Job *job)
{
    char message[600] = "";
    *job = (Job){.model = model, .options = *o, .check_wire = check_wire};
    if (run_job(job, message) != OK) fail_msg("%s", *message ? message : status_message());
}

/* ---- the same bits ---------------------------------------------------------------------- */

static void check_bits(const char *model_text, const char *text)
{
    static const size_t bucket[] = {0, 3000}; /* all gradients in one, and many */
    ModelConfig model;
    Job blocking, job;
    StepOptions o = parse_more(text);
    make_model(model_text, 0, &model);
    o.layout.blocking = true;
    run(&model, &o, false, &blocking);
    o.layout.blocking = false;
    for (int k = 0; k < COUNT_OF(bucket); k++) {
        o.layout.bucket_bytes = bucket[k];
        run(&model, &o, false, &job);
        if (memcmp(job.loss, blocking.loss, sizeof job.loss) ||
            memcmp(job.norm, blocking.norm, sizeof job.norm))
            fail_msg("%s, buckets of %zu bytes: other losses or norms than without overlap", text,
                     bucket[k]);
    }
    model_config_deinit(&model);
}

static void test_bits(void **state)
{
    (void)state;
    static const char *const layouts[] = {"dp2",
                                          "dp4 micro2",
                                          "fsdp2 selective",
                                          "fsdp4 micro2",
                                          "tp2 seq",
                                          "ep2",
                                          "cp2 tp2",
                                          "dp2 cp2 ep2",
                                          "dp2 fsdp2 tp2 seq",
                                          "pp2 dp2 micro4",
                                          "pp2 fsdp2 micro4 full",
                                          "dp2 zero1",
                                          "dp2 zero2 micro2",
                                          "dp2 ep2 zero1 aux",
                                          "cp2 ring",
                                          "cp4 ring full",
                                          "cp4 ring dp2",
                                          "cp2 ring tp2 seq",
                                          "pp2 cp4 ring micro4"};
    for (int i = 0; i < COUNT_OF(layouts); i++) check_bits(llama4, layouts[i]);
    check_bits(llama3, "cp4 ring bf16");
    check_bits(llama3, "dp2 tp2 seq");
    check_bits(llama3, "dp2 bf16 zero1");
    check_bits(grok1, "fsdp2 ep2");
}

/* ---- the last micro-batch with the update ----------------------------------------------- */

typedef struct LastRank {
    const Job *job;
    int rank;
    Status status;
    float norm[STEPS];
} LastRank;

/* As layouts.h runs them, but that the last micro-batch is the update program's. */
static Status run_last_steps(LastRank *r, const StepOptions *o, const StepPrograms *p,
                             Session *session)
{
    static const char *const inputs[] = {"ids", "targets", "pos", "weights"};
    int step = p->index[PROGRAM_STEP], last = p->index[p->last];
    size_t bytes = (size_t)(o->micro_batch * SEQ / mesh_size(&o->layout.mesh, MESH_CP)) * 4;
    for (int s = 0; s < STEPS; s++) {
        float hyper[HYPER_COUNT] = {
            [HYPER_LR] = 0.003f,       [HYPER_BETA1] = 0.9f, [HYPER_BETA2] = 0.95f,
            [HYPER_EPS] = 1e-4f,       [HYPER_DECAY] = 0.1f, [HYPER_CLIP] = 1,
            [HYPER_BIAS_RATE] = 0.001f};
        hyper[HYPER_BIAS1] = 1 - powf(0.9f, (float)s + 1),
        hyper[HYPER_BIAS2] = 1 - powf(0.95f, (float)s + 1);
        for (int64_t m = 0; m < o->n_micro; m++) {
            int program = m + 1 < o->n_micro ? step : last;
            TRY(feed(session, step, o, s, m)); /* into the step's inputs */
            for (int i = 0; program != step && i < COUNT_OF(inputs); i++)
                TRY(session_write(session, program, inputs[i],
                                  session_input(session, step, inputs[i]), bytes));
            TRY(session_run(session, program, PHASE_FORWARD, PHASE_BACKWARD));
        }
        TRY(session_read(session, last, "grad_norm", &r->norm[s], sizeof r->norm[s]));
        TRY(session_write(session, last, "hyper", hyper, sizeof hyper));
        TRY(session_run(session, last, PHASE_UPDATE, PHASE_UPDATE));
    }
    return OK;
}

static void *run_last_rank(void *at)
{
    LastRank *r = at;
    StepOptions o = r->job->options;
    Device *device;
    StepPrograms p;
    Session *session;
    o.layout.mesh = mesh_at(&o.layout.mesh, r->rank);
    r->status = device_create_cpu((CpuOptions){.threads = 1,
                                               .world = comm_of_rank(r->job->world, r->rank),
                                               .mesh = o.layout.mesh},
                                  &device);
    if (r->status == OK)
        r->status = step_programs_build(r->job->model, &o, device_target(device), &p);
    if (r->status == OK) {
        r->status = session_create(device, p.store, p.at, p.n, &session);
        if (r->status == OK) r->status = session_init_weights(session, 3);
        if (r->status == OK) r->status = run_last_steps(r, &o, &p, session);
        if (r->status == OK) session_destroy(session);
        step_programs_destroy(&p);
        device_destroy(device);
    }
    if (r->status != OK) comm_abort(comm_of_rank(r->job->world, r->rank), ERR_COMM);
    return NULL;
}

static void check_last(const char *text)
{
    ModelConfig model;
    Job apart, last;
    LastRank rank[4];
    pthread_t thread[4];
    make_model(llama4, 0, &model);
    StepOptions o = parse_more(text);
    int n = mesh_ranks(&o.layout.mesh);
    run(&model, &o, false, &apart);
    o.update_last = true;
    last = (Job){.model = &model, .options = o};
    assert_int_equal(comm_world_create_local(n, &(CommOptions){.deadline_s = 60}, &last.world), OK);
    for (int r = 0; r < n; r++) rank[r] = (LastRank){.job = &last, .rank = r};
    for (int r = 0; r < n; r++)
        assert_int_equal(pthread_create(&thread[r], NULL, run_last_rank, &rank[r]), 0);
    for (int r = 0; r < n; r++) pthread_join(thread[r], NULL);
    for (int r = 0; r < n; r++) assert_int_equal(rank[r].status, OK);
    comm_world_destroy(last.world);
    for (int s = 0; s < STEPS; s++)
        if ((double)rank[0].norm[s] != apart.norm[s])
            fail_msg("%s: step %d: norm %.9g and %.9g", text, s, (double)rank[0].norm[s],
                     apart.norm[s]);
    model_config_deinit(&model);
}

static void test_last(void **state)
{
    (void)state;
    static const char *const layouts[] = {
        "dp2 micro2",         "fsdp2 micro2", "dp2 zero1 micro2", "dp2 zero2 micro4",
        "dp2 tp2 seq micro2", "ep2 micro2",   "dp2 cp2 micro2"};
    for (int i = 0; i < COUNT_OF(layouts); i++) check_last(layouts[i]);
}

/* ---- what the order leaves room for ----------------------------------------------------- */

/* The graph of the step as rank 0 has it, of so many layers (0: the model's). The caller destroys
 * the programs. */
static const Graph *deep_graph(const char *text, const char *model_text, int layers,
                               StepPrograms *programs)
{
    ModelConfig model;
    StepOptions o = parse_more(text);
    make_model(model_text, layers, &model);
    assert_int_equal(
        step_programs_build(&model, &o, (Target){.isa = ISA_GENERIC, .threads = 1}, programs), OK);
    model_config_deinit(&model);
    return programs->at[programs->index[PROGRAM_STEP]]->graph;
}

static const Graph *step_graph(const char *text, const char *model_text, StepPrograms *programs)
{
    return deep_graph(text, model_text, 0, programs);
}

static bool is_op(const Node *node, const char *name) { return !strcmp(node->op->name, name); }

static int count_op(const Graph *g, const char *name)
{
    int n = 0;
    for (int i = 1; i < g->n_nodes; i++) n += is_op(&g->node[i], name);
    return n;
}

/* Products between a start and its wait. */
static int products_beside(const Graph *g, int start)
{
    int n = 0;
    for (int i = start + 1; i < g->n_nodes; i++) {
        const Node *node = &g->node[i];
        if (is_op(node, "wait") && graph_value(g, node->in[0])->producer.id == start) return n;
        n += !strncmp(node->op->name, "linear", 6) ||
             !strncmp(node->op->name, "grouped_linear", 14);
    }
    fail_msg("a start without a wait");
    return 0;
}

/* Every gathering but those in front of a phase's first layer has a layer's products to hide under,
 * and is waited for no earlier than the layer before. */
static void test_prefetch(void **state)
{
    (void)state;
    StepPrograms p;
    const Graph *g = step_graph("fsdp2", llama3, &p);
    assert_int_equal(graph_verify(g, "overlap"), OK);
    int hidden[2] = {0}, exposed[2] = {0};
    for (int i = 1; i < g->n_nodes; i++) {
        bool backward = g->node[i].phase == PHASE_BACKWARD;
        if (is_op(&g->node[i], "all_gather_start"))
            *(products_beside(g, i) > 0 ? &hidden[backward] : &exposed[backward]) += 1;
        if (is_op(&g->node[i], "all_gather")) exposed[backward]++;
    }
    /* forward: the embedding and the first layer's four have nothing in front of them */
    assert_true(exposed[0] <= 8 && hidden[0] >= 15);
    assert_true(hidden[1] >= 3 * exposed[1]);
    step_programs_destroy(&p);
}

/* A backward pass goes from layer to layer: none is begun while another that is two away is not
 * through, whatever its nodes wait for. So no more than a few layers' gathered rows and gradients
 * are held, and a deep model needs hardly more than without overlap. */
static void test_layers_in_order(void **state)
{
    (void)state;
    enum { LAYERS = 12 };
    static const char *const text[] = {"tp2 seq", "tp2 seq selective", "fsdp2 tp2 seq selective",
                                       "fsdp2 tp2 seq full", "tp2 cp2 seq selective"};
    for (int k = 0; k < COUNT_OF(text); k++) {
        StepPrograms p[2];
        const Graph *g = deep_graph(text[k], llama3, LAYERS, &p[0]);
        int lowest = LAYERS;
        for (int i = 1; i < g->n_nodes; i++) {
            const Node *node = &g->node[i];
            bool takes_time = !strncmp(node->op->name, "linear", 6) ||
                              !strncmp(node->op->name, "attention", 9);
            if (node->phase != PHASE_BACKWARD || node->layer < 0 || !takes_time) continue;
            if (node->layer > lowest + 2)
                fail_msg("%s: layer %d's %s behind layer %d", text[k], node->layer, node->op->name,
                         lowest);
            lowest = node->layer < lowest ? node->layer : lowest;
        }
        char blocking[64];
        snprintf(blocking, sizeof blocking, "%s blocking", text[k]);
        deep_graph(blocking, llama3, LAYERS, &p[1]);
        double bytes = (double)p[0].at[p[0].index[PROGRAM_STEP]]->step_bytes,
               least = (double)p[1].at[p[1].index[PROGRAM_STEP]]->step_bytes;
        if (bytes > 1.3 * least)
            fail_msg("%s: %.0f bytes, %.0f without overlap", text[k], bytes, least);
        for (int i = 0; i < 2; i++) step_programs_destroy(&p[i]);
    }
}

/* Gradients of a layer are summed while the next one's are made; a small bucket makes many sums of
 * them, a large one few. */
static void test_buckets(void **state)
{
    (void)state;
    static const char *const text[] = {"dp2 bucket1", "dp2 bucket20000", "dp2 bucket100000000"};
    int starts[3], members[3];
    for (int k = 0; k < 3; k++) {
        StepPrograms p;
        const Graph *g = step_graph(text[k], llama3, &p);
        assert_int_equal(graph_verify(g, "overlap"), OK);
        starts[k] = count_op(g, "all_reduce_start");
        members[k] = 0;
        for (int i = 1; i < g->n_nodes; i++) {
            if (is_op(&g->node[i], "bucket")) members[k] += g->node[i].n_in;
            bool first = is_op(&g->node[i], "all_reduce_start") && k < 2;
            if (first && g->node[i].layer > 0) assert_true(products_beside(g, i) > 0);
        }
        step_programs_destroy(&p);
    }
    assert_int_equal(members[0], 0);
    assert_true(starts[0] > 20 && starts[1] > 2 && starts[1] < starts[0] / 2 && starts[2] == 1);
    assert_true(members[1] > starts[0] / 2 && members[2] >= starts[0]);
}

/* Buckets are written by who makes the gradients: nothing is copied, and sums take no second place.
 */
static void test_buckets_cost_no_memory(void **state)
{
    (void)state;
    StepPrograms p[2];
    const Graph *g = step_graph("dp2 bucket20000", llama3, &p[0]);
    const Program *step = p[0].at[p[0].index[PROGRAM_STEP]];
    int copied = 0, buckets = count_op(g, "bucket");
    for (int i = 0; i < step->n_instr; i++) copied += is_op(step->instr[i].node, "bucket");
    step_graph("dp2 blocking", llama3, &p[1]);
    size_t blocking = p[1].at[p[1].index[PROGRAM_STEP]]->step_bytes;
    assert_true(buckets > 2 && copied <= 1);
    assert_true((double)step->step_bytes < 1.15 * (double)blocking);
    step_programs_destroy(&p[0]);
    step_programs_destroy(&p[1]);
}

/* ---- rings ------------------------------------------------------------------------------ */

static bool is_part(const Node *node)
{
    return is_op(node, "attention_part") || is_op(node, "attention_grad_part");
}

static int wait_of(const Graph *g, int start)
{
    for (int i = start + 1; i < g->n_nodes; i++)
        if (is_op(&g->node[i], "wait") && graph_value(g, g->node[i].in[1])->producer.id == start)
            return i;
    fail_msg("a start without a wait");
    return 0;
}

/* Every hop has a part of attention to hide under; only the last gradients that go home in a layer
 * find nothing but the rest of it. One block is on its way and one is computed with, never more:
 * keys and values that go forward, gradients that come home. */
static void test_rings_hide(void **state)
{
    (void)state;
    static const char *const text[] = {"cp2 ring", "cp4 ring", "cp8 ring full",
                                       "cp4 ring dp2 bf16"};
    for (int k = 0; k < COUNT_OF(text); k++) {
        StepPrograms p;
        const Graph *g = step_graph(text[k], llama3, &p);
        assert_int_equal(graph_verify(g, "overlap"), OK);
        int n = count_op(g, "ring_pass"),
            bare = n; /* what is not started early hides under nothing */
        for (int i = 1; i < g->n_nodes; i++) {
            if (!is_op(&g->node[i], "ring_pass_start")) continue;
            int wait = wait_of(g, i), parts = 0, beside = 0;
            bool home = graph_value(g, g->node[i].out[0])->place[MESH_CP].dim < 0;
            for (int j = i + 1; j < wait; j++) {
                parts += is_part(&g->node[j]);
                bool other = is_op(&g->node[j], "ring_pass_start");
                beside += other &&
                          (graph_value(g, g->node[j].out[0])->place[MESH_CP].dim < 0) == home;
            }
            n++;
            bare += home && parts == 0;
            if (!home) assert_true(parts == 1);
            assert_true(
                beside <=
                (home ? 3 : 1)); /* the values beside the keys; at home the hop before too */
        }
        int hops = mesh_size(&g->mesh, MESH_CP) - 1, layers = 4;
        assert_true(bare <= 2 * layers);
        assert_int_equal(n, layers * hops * (strstr(text[k], "full") ? 8 : 6));
        step_programs_destroy(&p);
    }
}

/* No rank ever has the keys of a sequence together, nor anything else of all its tokens, and so it
 * takes less memory the more ranks there are; gathered keys and values stay from forward to
 * backward in every layer. */
static void test_rings_share_memory(void **state)
{
    (void)state;
    size_t bytes[2][2];
    for (int k = 0; k < 4; k++) {
        static const char *const text[] = {"cp2", "cp8", "cp2 ring", "cp8 ring"};
        ModelConfig model;
        StepPrograms p;
        StepOptions o = parse_more(text[k]);
        o.seq = 1024;
        make_model(llama3, 0, &model); /* a router's logits are gathered, whatever attention does */
        assert_int_equal(
            step_programs_build(&model, &o, (Target){.isa = ISA_GENERIC, .threads = 1}, &p), OK);
        const Program *step = p.at[p.index[PROGRAM_STEP]];
        int64_t longest = 0;
        for (int i = 1; i < step->graph->n_values; i++) {
            const Shape *shape = &step->graph->value[i].shape;
            for (int d = 0; d < shape->rank; d++)
                if (shape->axis[d] == AXIS_SEQ) longest = max_i64(longest, shape->dim[d]);
        }
        assert_int_equal(longest, k < 2 ? o.seq : o.seq / mesh_size(&step->graph->mesh, MESH_CP));
        bytes[k / 2][k % 2] = step->step_bytes;
        step_programs_destroy(&p);
        model_config_deinit(&model);
    }
    if (getenv("LAYOUT_VERBOSE"))
        print_message("gather %zu %zu, ring %zu %zu\n", bytes[0][0], bytes[0][1], bytes[1][0],
                      bytes[1][1]);
    assert_true(bytes[1][0] < bytes[0][0] && bytes[1][1] < bytes[0][1]);
    assert_true((double)bytes[1][1] < 0.3 * (double)bytes[1][0]);
}

/* Whatever the layout: nothing is read before it is there, nothing is overwritten while it is on
 * its way. */
static void test_every_order_is_legal(void **state)
{
    (void)state;
    static const char *const layouts[] = {"dp2",
                                          "dp2 micro2",
                                          "tp2",
                                          "tp2 seq",
                                          "tp2 seq full",
                                          "cp2 aux",
                                          "ep2",
                                          "ep2 tp2 seq micro2",
                                          "fsdp2",
                                          "fsdp2 micro2",
                                          "fsdp2 selective",
                                          "fsdp2 full",
                                          "pp2 micro4",
                                          "pp2 dp2 micro2",
                                          "pp2 fsdp2 tp2 seq micro4 full",
                                          "dp2 fsdp2",
                                          "dp2 fsdp2 micro2",
                                          "dp2 cp2 ep2",
                                          "dp2 fsdp2 ep2 cp2 tp2 seq",
                                          "dp2 zero1",
                                          "dp2 zero2 micro2",
                                          "dp2 cp2 ep2 tp2 seq zero1",
                                          "pp2 dp2 ep2 micro2 zero2",
                                          "dp2 zero1 bf16",
                                          "fsdp2 tp2 seq bf16 selective",
                                          "dp2 cp2 micro2 bf16",
                                          "cp4 ring",
                                          "cp8 ring full",
                                          "cp4 ring dp2 micro2 bf16",
                                          "cp2 ring tp2 seq ep2 fsdp2",
                                          "pp2 cp4 ring micro4",
                                          "pp2 cp2 ring fsdp2 micro4 selective"};
    static const char *const schedules[6] = {"1f1b",  "zb-h1",       "zb-v",
                                             "gpipe", "interleaved", "zb-v"};
    for (int i = 0; i < COUNT_OF(layouts); i++)
        for (int k = 0; k < 6; k++) {
            ModelConfig model;
            StepPrograms p;
            StepOptions o = parse_more(layouts[i]);
            o.layout.bucket_bytes = k % 3 ? k % 3 * 3000 : 0;
            o.update_last = k > 2;
            o.eval_batch = o.micro_batch;
            make_model(k % 2 ? grok1 : llama4, k % 2 ? 4 : 0, &model);
            o.layout.mesh = mesh_at(&o.layout.mesh, k % mesh_ranks(&o.layout.mesh));
            Job job = {.options = o}; /* for its pipeline */
            snprintf(job.schedule, sizeof job.schedule, "%s", schedules[k]);
            assert_int_equal(make_pipeline(&job), OK);
            o.layout.pipeline = job.pipeline;
            if (step_programs_build(&model, &o, (Target){.isa = ISA_GENERIC, .threads = 1}, &p) !=
                OK)
                fail_msg("%s: %s", layouts[i], status_message());
            for (int n = 0; n < p.n; n++)
                if (graph_verify(p.at[n]->graph, layouts[i]) != OK)
                    fail_msg("%s", status_message());
            step_programs_destroy(&p);
            pipeline_destroy(job.pipeline);
            model_config_deinit(&model);
        }
}

/* Weights cut over fsdp, replicas over dp: replicas sum the parts that a rank has left of its
 * gradients, never the whole. */
static void test_replicas_sum_parts(void **state)
{
    (void)state;
    static const char *const text[] = {"dp2 fsdp2", "dp2 fsdp2 micro2"};
    for (int k = 0; k < 2; k++) {
        ModelConfig model;
        StepPrograms p;
        StepOptions o = parse_more(text[k]);
        int64_t summed = 0, weights = 0;
        make_model(llama3, 0, &model);
        assert_int_equal(
            step_programs_build(&model, &o, (Target){.isa = ISA_GENERIC, .threads = 1}, &p), OK);
        for (int n = 0; n < p.n; n++) {
            const Graph *g = p.at[n]->graph;
            for (int i = 1; i < g->n_nodes; i++) {
                if (strncmp(g->node[i].op->name, "all_reduce", 10) != 0) continue;
                int64_t count = shape_count(&graph_value(g, g->node[i].in[0])->shape);
                summed += count > 1 ? count : 0; /* losses are no gradients */
            }
            if (n == p.index[PROGRAM_UPDATE])
                assert_int_equal(count_op(g, "all_gather") + count_op(g, "all_gather_start"), 0);
        }
        for (int i = 0; i < p.store->n_entries; i++)
            if (p.store->entry[i].role == STATE_PARAM)
                weights += shape_count(&p.store->entry[i].shape);
        assert_int_equal(summed, weights);
        step_programs_destroy(&p);
        model_config_deinit(&model);
    }
}

/* What is on its way is nobody's: a reader before the wait is refused, and so is a start without
 * one. */
static void test_verifier(void **state)
{
    (void)state;
    for (int broken = 0; broken < 2; broken++) {
        StepPrograms p;
        Graph *g = (Graph *)(uintptr_t)step_graph("dp2 bucket1", llama3, &p);
        int start = 1, wait = 1;
        while (!is_op(&g->node[start], "all_reduce_start")) start++;
        while (!is_op(&g->node[wait], "wait") ||
               graph_value(g, g->node[wait].in[0])->producer.id != start)
            wait++;
        for (int i = wait + 1; broken == 0 && i < g->n_nodes; i++)
            for (int k = 0; k < g->node[i].n_in; k++)
                if (g->node[i].in[k].id == g->node[wait].out[0].id)
                    g->node[i].in[k] = g->node[start].out[0];
        if (broken == 1) {
            int other = wait + 1;
            while (!is_op(&g->node[other], "wait")) other++;
            memcpy(g->node[wait].in, g->node[other].in, 4 * sizeof(ValueId));
        }
        assert_int_not_equal(graph_verify(g, "damage"), OK);
        step_programs_destroy(&p);
    }
}

/* ---- ZeRO ------------------------------------------------------------------------------- */

static void check_zero(const char *model_text, const char *text)
{
    ModelConfig model;
    Job one, many;
    StepOptions o = parse_more(text), alone = o;
    bool counted = o.dtype == DTYPE_F32 && mesh_size(&o.layout.mesh, MESH_PP) == 1 &&
                   mesh_size(&o.layout.mesh, MESH_EP) == 1;
    make_model(model_text, 0, &model);
    alone.micro_batch *= mesh_data_ranks(&o.layout.mesh);
    alone.layout = (Layout){0};
    run(&model, &alone, false, &one);
    run(&model, &o, counted, &many);
    double difference = compare(&many, &one);
    if (!(difference < (o.dtype == DTYPE_F32 ? 1e-5 : 5e-3)))
        fail_msg("%s: difference %.2e", text, difference);
    model_config_deinit(&model);
}

static void test_zero(void **state)
{
    (void)state;
    static const char *const layouts[] = {"dp2 zero1",
                                          "dp4 zero2",
                                          "dp2 zero1 micro2",
                                          "dp4 zero2 micro2 blocking",
                                          "dp2 tp2 seq zero2 micro2",
                                          "dp2 cp2 zero1",
                                          "dp2 ep2 zero1",
                                          "dp2 ep2 tp2 seq zero2 micro2",
                                          "pp2 dp2 micro2 zero1",
                                          "pp2 dp2 tp2 micro2 zero2",
                                          "dp2 zero1 bf16",
                                          "dp4 zero2 micro2 bf16"};
    for (int i = 0; i < COUNT_OF(layouts); i++) check_zero(llama4, layouts[i]);
    check_zero(llama3, "dp4 zero1");            /* a tied head */
    check_zero(llama3, "pp2 dp2 micro2 zero1"); /* on two ranks */
    check_zero(llama3, "pp2 dp2 micro4 zero2");
    check_zero(grok1, "dp2 zero2 micro2");
}

typedef struct Held {
    size_t role[STATE_CACHE + 1];
    size_t copied; /* masters of working copies */
} Held;

static Held bytes_held(const char *text)
{
    ModelConfig model;
    StepPrograms p;
    StepOptions o = parse_more(text);
    Held held = {0};
    assert_int_equal(model_config_preset("bench-small", &model), OK);
    o.seq = 64;
    assert_int_equal(
        step_programs_build(&model, &o, (Target){.isa = ISA_GENERIC, .threads = 1}, &p), OK);
    for (int r = 0; r <= STATE_CACHE; r++) held.role[r] = store_role_bytes(p.store, (StateRole)r);
    for (int i = 0; i < p.store->n_entries; i++)
        if (p.store->entry[i].role == STATE_COPY)
            held.copied += p.store->entry[p.store->entry[i].master].bytes;
    step_programs_destroy(&p);
    model_config_deinit(&model);
    return held;
}

static void check_share(size_t bytes, size_t whole, int n, const char *what)
{
    if (!(whole > 0 && fabs((double)bytes * n / (double)whole - 1) < 0.02))
        fail_msg("%s: %zu bytes of %zu are not 1/%d", what, bytes, whole, n);
}

/* ZeRO 1 leaves a rank of 8 an eighth of the moments and of the masters of working copies, ZeRO 2
 * of the sums too; what products read stays whole. */
static void test_shares_of_memory(void **state)
{
    (void)state;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        Held whole = bytes_held(bf16 ? "dp8 bf16" : "dp8"),
             one = bytes_held(bf16 ? "dp8 bf16 zero1" : "dp8 zero1");
        check_share(one.role[STATE_ADAM_M], whole.role[STATE_ADAM_M], 8, "m");
        check_share(one.role[STATE_ADAM_V], whole.role[STATE_ADAM_V], 8, "v");
        if (bf16) check_share(one.copied, whole.copied, 8, "masters");
        assert_int_equal(one.role[STATE_PARAM] - one.copied,
                         whole.role[STATE_PARAM] - whole.copied);
        assert_int_equal(one.role[STATE_COPY], whole.role[STATE_COPY]);
    }
    Held whole = bytes_held("dp4 micro2"), one = bytes_held("dp4 micro2 zero1"),
         two = bytes_held("dp4 micro2 zero2");
    assert_int_equal(one.role[STATE_GRAD], whole.role[STATE_GRAD]);
    check_share(two.role[STATE_GRAD], whole.role[STATE_GRAD], 4, "sums");
    check_share(two.role[STATE_ADAM_M], whole.role[STATE_ADAM_M], 4, "m");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prefetch),
        cmocka_unit_test(test_layers_in_order),
        cmocka_unit_test(test_buckets),
        cmocka_unit_test(test_buckets_cost_no_memory),
        cmocka_unit_test(test_verifier),
        cmocka_unit_test(test_shares_of_memory),
        cmocka_unit_test(test_zero),
        cmocka_unit_test(test_bits),
        cmocka_unit_test(test_last),
        cmocka_unit_test(test_every_order_is_legal),
        cmocka_unit_test(test_replicas_sum_parts),
        cmocka_unit_test(test_rings_hide),
        cmocka_unit_test(test_rings_share_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
