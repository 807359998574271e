/* optest: building a case, comparing it with its reference, and the gradient check. */
#include "ops/optest.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

OpTest *optest_create(uint64_t seed)
{
    OpTest *t = xcalloc(1, sizeof *t);
    t->graph = graph_create("test");
    t->seed = seed;
    return t;
}

void optest_destroy(OpTest *t)
{
    for (size_t i = 0; i < t->input.n; i++) free(t->input.at[i].data);
    VEC_FREE(&t->input);
    VEC_FREE(&t->output);
    VEC_FREE(&t->kept);
    arena_deinit(&t->arena);
    graph_destroy(t->graph);
    free(t);
}

void optest_ok(Status status)
{
    if (status != OK) fail_msg("%s: %s", status_name(status), status_message());
}

void optest_refused(Status status, Status expected, const char *words)
{
    if (status != expected)
        fail_msg("expected %s, got %s", status_name(expected), status_name(status));
    if (!strstr(status_message(), words))
        fail_msg("\"%s\" does not say \"%s\"", status_message(), words);
}

/* ---- inputs and outputs ----------------------------------------------------------------- */

static void remember_input(OpTest *t, ValueId v, double *data)
{
    const Value *value = graph_value(t->graph, v);
    int64_t n = shape_count(&value->shape);
    for (int64_t i = 0; i < n; i++) data[i] = optest_round(value->dtype, data[i]);
    OpTestInput input = {.value = v, .data = data, .grad = value->dtype != DTYPE_I32};
    VEC_PUSH(&t->input, input);
}

static ValueId new_input(OpTest *t, DType dtype, Shape shape)
{
    char name[32];
    snprintf(name, sizeof name, "in%zu", t->input.n);
    return graph_input(t->graph, name, dtype, shape);
}

static double *copy_of(const double *values, Shape shape)
{
    size_t n = (size_t)shape_count(&shape);
    double *data = xcalloc(n, sizeof *data);
    if (values && n) memcpy(data, values, n * sizeof *data);
    return data;
}

ValueId optest_data(OpTest *t, DType dtype, Shape shape, const double *values)
{
    ValueId v = new_input(t, dtype, shape);
    remember_input(t, v, copy_of(values, shape));
    return v;
}

ValueId optest_normal(OpTest *t, DType dtype, Shape shape, double deviation)
{
    ValueId v = new_input(t, dtype, shape);
    double *data = copy_of(NULL, shape);
    uint64_t key = rng_key(t->seed, graph_value(t->graph, v)->name);
    for (int64_t i = 0; i < shape_count(&shape); i++)
        data[i] = deviation * rng_normal(key, (uint64_t)i);
    remember_input(t, v, data);
    return v;
}

ValueId optest_integers(OpTest *t, Shape shape, int64_t low, int64_t high)
{
    ValueId v = new_input(t, DTYPE_I32, shape);
    double *data = copy_of(NULL, shape);
    uint64_t key = rng_key(t->seed, graph_value(t->graph, v)->name);
    for (int64_t i = 0; i < shape_count(&shape); i++)
        data[i] = (double)(low + (int64_t)rng_below(key, (uint64_t)i, (uint64_t)(high - low)));
    remember_input(t, v, data);
    return v;
}

ValueId optest_state(OpTest *t, DType dtype, Shape shape, StateRole role, const double *values)
{
    char name[32];
    snprintf(name, sizeof name, "state%zu", t->input.n);
    ValueId v = graph_state(t->graph, name, dtype, shape, role);
    remember_input(t, v, copy_of(values, shape));
    return v;
}

static OpTestInput *find_input(const OpTest *t, ValueId v)
{
    for (size_t i = 0; i < t->input.n; i++)
        if (t->input.at[i].value.id == v.id) return &t->input.at[i];
    CHECK(!"not an input of this test");
    return NULL;
}

double optest_at(const OpTest *t, ValueId v, int64_t i) { return find_input(t, v)->data[i]; }

void optest_no_grad(OpTest *t, ValueId v) { find_input(t, v)->grad = false; }

void optest_pitch(OpTest *t, ValueId id, int trailing, int64_t pitch)
{
    Value *v = graph_value(t->graph, id);
    int first = v->shape.rank - trailing;
    for (int i = first - 1; i >= 0; i--)
        v->stride[i] = i == first - 1 ? pitch : v->stride[i + 1] * v->shape.dim[i + 1];
}

void optest_output(OpTest *t, ValueId v)
{
    DType dtype = graph_value(t->graph, v)->dtype;
    OpTestOutput output = {.value = v, .grad = dtype != DTYPE_I32};
    VEC_PUSH(&t->output, output);
}

void optest_plain_output(OpTest *t, ValueId v)
{
    OpTestOutput output = {.value = v};
    VEC_PUSH(&t->output, output);
}

/* ---- comparing -------------------------------------------------------------------------- */

static const char *compare(OpTest *t, const char *what, const double *got, const double *expected,
                           int64_t n, double tolerance)
{
    double squares = 0;
    int64_t finite = 0;
    for (int64_t i = 0; i < n; i++)
        if (isfinite(expected[i])) squares += expected[i] * expected[i], finite++;
    double scale = (finite ? sqrt(squares / (double)finite) : 0) + 1e-3;
    for (int64_t i = 0; i < n; i++) {
        if (isnan(expected[i]) || got[i] == expected[i]) continue;
        if (fabs(got[i] - expected[i]) <= tolerance * (fabs(expected[i]) + scale)) continue;
        return arena_printf(&t->arena, "%s: element %lld of %lld is %.9g, the reference says %.9g",
                            what, (long long)i, (long long)n, got[i], expected[i]);
    }
    return NULL;
}

/* The outputs as the reference makes them from the given inputs; NaN where it says nothing. */
static double **evaluate(const OpTest *t, OpReference reference, const void *user,
                         double *const *in)
{
    double **out = xcalloc(t->output.n + 1, sizeof *out);
    for (size_t i = 0; i < t->output.n; i++) {
        int64_t n = optest_count(t, t->output.at[i].value);
        out[i] = xcalloc((size_t)n, sizeof **out);
        for (int64_t j = 0; j < n; j++) out[i][j] = NAN;
    }
    reference(user, in, out);
    return out;
}

static void free_outputs(const OpTest *t, double **out)
{
    for (size_t i = 0; i < t->output.n; i++) free(out[i]);
    free(out);
}

static double **input_pointers(const OpTest *t)
{
    double **in = xcalloc(t->input.n + 1, sizeof *in);
    for (size_t i = 0; i < t->input.n; i++) in[i] = t->input.at[i].data;
    return in;
}

/* ---- gradients: a small automatic differentiation through the ops' own rules ------------ */

typedef struct Backward {
    OpTest *t;
    int n_nodes, n_values; /* of the forward graph */
    size_t n_inputs;
    ValueId *grad; /* by forward value */
    bool *reached; /* by forward value: depends on an input whose gradient is checked */
} Backward;

static void mark_reached(Backward *b)
{
    const Graph *g = b->t->graph;
    for (size_t i = 0; i < b->n_inputs; i++)
        b->reached[b->t->input.at[i].value.id] = b->t->input.at[i].grad;
    for (int n = 1; n < b->n_nodes; n++) {
        const Node *node = &g->node[n];
        bool any = false;
        for (int k = 0; k < node->n_in; k++) any = any || b->reached[node->in[k].id];
        for (int k = 0; k < node->n_out; k++)
            if (value_ok(node->out[k]))
                b->reached[node->out[k].id] = any && !(node->op->flags & OP_SOURCE) &&
                                              graph_value(g, node->out[k])->dtype != DTYPE_I32;
    }
}

static Status add_to_grad(Backward *b, ValueId v, ValueId grad)
{
    if (!value_ok(grad)) return OK;
    ValueId *sum = &b->grad[v.id];
    if (!value_ok(*sum)) {
        *sum = grad;
        return OK;
    }
    return op_add(b->t->graph, *sum, grad, sum);
}

static Status node_backward(Backward *b, int n)
{
    Graph *g = b->t->graph;
    Node node = g->node[n]; /* a copy: the array moves as nodes are added */
    ValueId dout[NODE_MAX_OUT] = {{0}}, *din = xcalloc((size_t)node.n_in + 1, sizeof *din);
    bool any = false, *need = xcalloc((size_t)node.n_in + 1, sizeof *need);
    for (int k = 0; k < node.n_out; k++) {
        if (value_ok(node.out[k]) && b->reached[node.out[k].id]) dout[k] = b->grad[node.out[k].id];
        any = any || value_ok(dout[k]);
    }
    Status status = OK;
    if (any && node.op->grad && !(node.op->flags & OP_SOURCE)) {
        for (int k = 0; k < node.n_in; k++) need[k] = b->reached[node.in[k].id];
        GradCtx ctx = {.graph = g, .node = {n}, .dout = dout, .need = need, .din = din};
        status = node.op->grad(&ctx);
        for (int k = 0; k < node.n_in && status == OK; k++)
            if (need[k]) status = add_to_grad(b, node.in[k], din[k]);
    }
    free(din);
    free(need);
    return status;
}

/* The cotangent of output i: normal numbers; NaN where the reference leaves it open, because then
 * no kernel may read it. */
static ValueId make_cotangent(Backward *b, size_t i, const double *reference)
{
    Value like = *graph_value(b->t->graph, b->t->output.at[i].value);
    ValueId c = optest_normal(b->t, like.dtype, like.shape, 1.0);
    OpTestInput *input = find_input(b->t, c);
    input->grad = false;
    for (int64_t j = 0; j < shape_count(&like.shape); j++)
        if (isnan(reference[j])) input->data[j] = NAN;
    return c;
}

static Status build_backward(Backward *b, double *const *reference)
{
    Graph *g = b->t->graph;
    mark_reached(b);
    g->phase = PHASE_BACKWARD;
    for (size_t i = 0; i < b->t->output.n; i++)
        if (b->t->output.at[i].grad)
            TRY(add_to_grad(b, b->t->output.at[i].value, make_cotangent(b, i, reference[i])));
    for (int n = b->n_nodes - 1; n > 0; n--) TRY(node_backward(b, n));
    return OK;
}

/* The loss of gradient checks in double: sum of the outputs times their cotangents. */
typedef struct Loss {
    const OpTest *t;
    OpReference reference;
    const void *user;
    double **in;
    size_t first_cotangent; /* index among the inputs */
} Loss;

static double loss_at(const Loss *l)
{
    double **out = evaluate(l->t, l->reference, l->user, l->in), sum = 0;
    size_t c = l->first_cotangent;
    for (size_t i = 0; i < l->t->output.n; i++) {
        if (!l->t->output.at[i].grad) continue;
        const double *cotangent = l->t->input.at[c++].data;
        for (int64_t j = 0; j < optest_count(l->t, l->t->output.at[i].value); j++)
            if (!isnan(out[i][j]) && !isnan(cotangent[j])) sum += out[i][j] * cotangent[j];
    }
    free_outputs(l->t, out);
    return sum;
}

/* Central difference of the loss along `direction` of input `which`. */
static double slope(const Loss *l, size_t which, const double *direction)
{
    const double h = 1e-5;
    int64_t n = optest_count(l->t, l->t->input.at[which].value);
    double *kept = l->in[which], *moved = xcalloc((size_t)n, sizeof *moved), side[2];
    l->in[which] = moved;
    for (int s = 0; s < 2; s++) {
        for (int64_t i = 0; i < n; i++) moved[i] = kept[i] + (s ? h : -h) * direction[i];
        side[s] = loss_at(l);
    }
    l->in[which] = kept;
    free(moved);
    return (side[1] - side[0]) / (2 * h);
}

/* Small inputs: every element. Large ones: samples, then random directions over all elements. */
enum { ALL_ELEMENTS = 96, SAMPLES = 40, DIRECTIONS = 3 };

static int64_t n_tries(int64_t n) { return n <= ALL_ELEMENTS ? n : SAMPLES + DIRECTIONS; }

/* The direction of a try; all elements at once have length about 1, so that their rounding weighs
 * as that of one element. */
static void make_direction(const OpTest *t, int64_t try, double *direction, int64_t n)
{
    uint64_t key = rng_key(t->seed, "samples");
    memset(direction, 0, sizeof *direction * (size_t)n);
    if (n <= ALL_ELEMENTS)
        direction[try] = 1;
    else if (try < SAMPLES)
        direction[rng_permute(key, (uint64_t)try, (uint64_t)n)] = 1;
    else
        for (int64_t j = 0; j < n; j++)
            direction[j] = rng_normal(key + (uint64_t)try, (uint64_t)j) / sqrt((double)n);
}

/* What the slopes of input `which` are, by finite differences. */
static double *expected_slopes(const Loss *l, size_t which)
{
    int64_t n = optest_count(l->t, l->t->input.at[which].value), tries = n_tries(n);
    double *direction = xcalloc((size_t)n, sizeof *direction),
           *expected = xcalloc((size_t)tries, sizeof *expected);
    for (int64_t i = 0; i < tries; i++) {
        make_direction(l->t, i, direction, n);
        expected[i] = slope(l, which, direction);
    }
    free(direction);
    return expected;
}

/* The slopes that the gradient (NULL: zero everywhere) says there are. */
static const char *check_slopes(OpTest *t, size_t which, const double *grad, const double *expected,
                                double tolerance)
{
    int64_t n = optest_count(t, t->input.at[which].value), tries = n_tries(n);
    double *direction = xcalloc((size_t)n, sizeof *direction),
           *got = xcalloc((size_t)tries, sizeof *got);
    for (int64_t i = 0; i < tries && grad; i++) {
        make_direction(t, i, direction, n);
        for (int64_t j = 0; j < n; j++) got[i] += direction[j] != 0 ? direction[j] * grad[j] : 0;
    }
    char what[64];
    snprintf(what, sizeof what, "gradient of input %zu", which);
    const char *fault = compare(t, what, got, expected, tries, tolerance);
    free(direction);
    free(got);
    return fault;
}

/* ---- the checks ------------------------------------------------------------------------- */

/* What one run must give: the outputs, then the gradients that exist. */
typedef struct Wanted {
    VEC(ValueId) value;
} Wanted;

static const char *same_bits(OpTest *t, const OpRun *run, const Wanted *wanted,
                             double *const *first)
{
    for (size_t i = 0; i < wanted->value.n; i++) {
        double *now = optest_run_values(run, wanted->value.at[i]);
        bool same = !memcmp(now, first[i],
                            sizeof *now * (size_t)optest_count(t, wanted->value.at[i]));
        free(now);
        if (!same)
            return arena_printf(&t->arena,
                                "%s: result %zu has other bits with %d threads%s than with one",
                                optest_target_name(&run->target), i, run->target.threads,
                                run->inplace ? " in place" : "");
    }
    return NULL;
}

/* Further runs on the same target must have the same bits as the first. */
static const char *vary(OpTest *t, Target target, const Wanted *wanted, double *const *first)
{
    static const struct {
        int threads, inplace;
    } variant[] = {{2, 0}, {3, 0}, {7, 0}, {1, 1}, {2, 2}};
    const char *fault = NULL;
    for (int i = 0; i < COUNT_OF(variant) && !fault; i++) {
        OpRun run;
        target.threads = variant[i].threads;
        if (target.gpu && i < 2) continue; /* it has no threads of ours */
        if (optest_run(&run, t, target, variant[i].inplace))
            fault = same_bits(t, &run, wanted, first);
        else
            fault = arena_strdup(&t->arena, run.fault);
        optest_run_end(&run);
    }
    return fault;
}

static bool same_kernels(const Graph *g, Isa a, Isa b)
{
    for (int n = 1; n < g->n_nodes; n++)
        if (g->node[n].op->cpu[a] != g->node[n].op->cpu[b]) return false;
    return true;
}

typedef struct Check {
    OpTest *t;
    Loss loss;
    double **expected; /* of the outputs */
    ValueId *grad;     /* by input, none: no gradient to check */
    double **slopes;   /* by input, what finite differences say */
    size_t n_inputs;
    double tolerance;
} Check;

static const char *compare_all(const Check *c, const Wanted *wanted, double *const *got)
{
    const char *fault = NULL;
    size_t at = 0;
    for (; at < c->t->output.n && !fault; at++) {
        char what[64];
        snprintf(what, sizeof what, "output %zu", at);
        fault = compare(c->t, what, got[at], c->expected[at],
                        optest_count(c->t, wanted->value.at[at]), c->tolerance);
    }
    for (size_t i = 0; i < c->n_inputs && !fault; i++)
        if (value_ok(c->grad[i]))
            fault = check_slopes(c->t, i, got[at++], c->slopes[i], c->tolerance);
    return fault;
}

static const char *check_target(const Check *c, Target target, const Wanted *wanted)
{
    OpRun run;
    const char *fault = NULL;
    double **got = xcalloc(wanted->value.n + 1, sizeof *got);
    if (!optest_run(&run, c->t, target, 0)) fault = arena_strdup(&c->t->arena, run.fault);
    if (!fault) {
        for (size_t i = 0; i < wanted->value.n; i++)
            got[i] = optest_run_values(&run, wanted->value.at[i]);
        fault = compare_all(c, wanted, got);
        if (fault) fault = arena_printf(&c->t->arena, "%s: %s", optest_target_name(&target), fault);
    }
    optest_run_end(&run);
    if (!fault) fault = vary(c->t, target, wanted, got);
    for (size_t i = 0; i < wanted->value.n; i++) free(got[i]);
    free(got);
    return fault;
}

static const char *check_costs(OpTest *t)
{
    for (int n = 1; n < t->graph->n_nodes; n++) {
        const Node *node = &t->graph->node[n];
        if (node->op->flags & OP_VIEW || !node->op->cost) continue;
        Cost c = node->op->cost(t->graph, node);
        if (!(c.flop >= 0 && c.read_bytes >= 0 && c.write_bytes >= 0 &&
              isfinite(c.flop + c.read_bytes + c.write_bytes)))
            return arena_printf(&t->arena, "%s: its cost is no number", node->op->name);
    }
    return NULL;
}

static const char *check_targets(const Check *c)
{
    Wanted wanted = {0};
    const char *fault = check_costs(c->t);
    for (size_t i = 0; i < c->t->output.n; i++) VEC_PUSH(&wanted.value, c->t->output.at[i].value);
    for (size_t i = 0; i < c->n_inputs; i++)
        if (value_ok(c->grad[i])) VEC_PUSH(&wanted.value, c->grad[i]);
    for (size_t i = 0; i < wanted.value.n; i++) VEC_PUSH(&c->t->kept, wanted.value.at[i]);
    for (Isa isa = ISA_GENERIC; isa < ISA_COUNT && !fault; isa++)
        if (optest_isa_available(isa) &&
            (isa == ISA_GENERIC || !same_kernels(c->t->graph, isa, isa - 1)))
            fault = check_target(c, (Target){.isa = isa, .threads = 1}, &wanted);
    if (!fault && optest_gpu_available(c->t->graph))
        fault = check_target(c, (Target){.gpu = true, .threads = 1}, &wanted);
    VEC_FREE(&wanted.value);
    return fault;
}

/* Adds the backward graph and finds each input's gradient. An input that the outputs do not depend
 * on by the rules has none: its slope must then be zero. */
static const char *add_gradients(Check *c)
{
    OpTest *t = c->t;
    Backward b = {.t = t,
                  .n_nodes = t->graph->n_nodes,
                  .n_values = t->graph->n_values,
                  .n_inputs = t->input.n};
    b.grad = xcalloc((size_t)b.n_values, sizeof *b.grad);
    b.reached = xcalloc((size_t)b.n_values, sizeof *b.reached);
    const char *fault = NULL;
    t->has_backward = true;
    if (build_backward(&b, c->expected) != OK) fault = arena_strdup(&t->arena, status_message());
    c->loss.first_cotangent = b.n_inputs;
    free(c->loss.in);
    c->loss.in = input_pointers(t);
    for (size_t i = 0; i < b.n_inputs && !fault; i++) {
        if (!t->input.at[i].grad) continue;
        c->grad[i] = b.grad[t->input.at[i].value.id];
        c->slopes[i] = expected_slopes(&c->loss, i);
        if (!value_ok(c->grad[i])) fault = check_slopes(t, i, NULL, c->slopes[i], c->tolerance);
        if (value_ok(c->grad[i]) &&
            optest_count(t, c->grad[i]) != optest_count(t, t->input.at[i].value))
            fault = arena_printf(&t->arena, "gradient of input %zu has another size", i);
    }
    free(b.grad);
    free(b.reached);
    return fault;
}

const char *optest_fault(OpTest *t, OpReference reference, const void *user, double tolerance,
                         bool grad)
{
    CHECK(!t->has_backward); /* a case is checked once */
    Check c = {.t = t, .tolerance = tolerance, .n_inputs = t->input.n};
    c.loss = (Loss){.t = t, .reference = reference, .user = user, .in = input_pointers(t)};
    c.expected = evaluate(t, reference, user, c.loss.in);
    c.grad = xcalloc(t->input.n + 1, sizeof *c.grad);
    c.slopes = xcalloc(t->input.n + 1, sizeof *c.slopes);
    const char *fault = grad ? add_gradients(&c) : NULL;
    if (!fault && graph_verify(t->graph, "building the test") != OK)
        fault = arena_strdup(&t->arena, status_message());
    if (!fault) fault = check_targets(&c);
    free_outputs(t, c.expected);
    for (size_t i = 0; i < c.n_inputs; i++) free(c.slopes[i]);
    free(c.slopes);
    free(c.grad);
    free(c.loss.in);
    return fault;
}

void optest_check(OpTest *t, OpReference reference, const void *user, double tolerance)
{
    const char *fault = optest_fault(t, reference, user, tolerance, false);
    if (fault) fail_msg("%s", fault);
}

void optest_check_grad(OpTest *t, OpReference reference, const void *user, double tolerance)
{
    const char *fault = optest_fault(t, reference, user, tolerance, true);
    if (fault) fail_msg("%s", fault);
}
