/* Ring attention as a graph: every rank's hops fit those of the others, nothing is sent that no
 * mask can show, the work is that of one rank in equal shares, and a part that is left out, taken
 * twice or taken for whole is refused. */
#include "pass/ring.h"
#include "ops/collective.h"
#include "ops/ring_sum.h"
#include "pass/pass_internal.h"

#include "base/testing.h"

enum { BATCH = 2, SEQ = 48, HEADS = 4, KV_HEADS = 2, HEAD_DIM = 8 };

static ValueId activation(Graph *g, const char *name, int64_t heads)
{
    return graph_input(g, name, DTYPE_BF16,
                       shape_make(4, (int64_t[]){BATCH, SEQ, heads, HEAD_DIM},
                                  (Axis[]){AXIS_BATCH, AXIS_SEQ, AXIS_HEADS, AXIS_HEAD_DIM}));
}

/* Attention and its gradient, as rank `rank` of n has them. */
static Graph *ring(int n, int rank, int64_t chunk)
{
    Graph *g = graph_create("ring");
    ValueId q = activation(g, "q", HEADS), k = activation(g, "k", KV_HEADS),
            v = activation(g, "v", KV_HEADS), out[3];
    ValueId pos = graph_input(
        g, "pos", DTYPE_I32,
        shape_make(2, (int64_t[]){BATCH, SEQ}, (Axis[]){AXIS_BATCH, AXIS_SEQ}));
    AttentionAttr attr = {.scale = 0.5f, .chunk = chunk};
    ValueId o[2];
    assert_int_equal(graph_add(g, op_find("attention"), &attr, (ValueId[]){q, k, v, pos}, 4, o),
                     OK);
    assert_int_equal(graph_add(g, op_find("attention_grad"), &attr,
                               (ValueId[]){q, k, v, pos, o[0], o[1], activation(g, "do", HEADS)}, 7,
                               out),
                     OK);
    graph_output(g, "o", o[0]);
    for (int i = 0; i < 3; i++) graph_output(g, (const char *[]){"dq", "dk", "dv"}[i], out[i]);
    Layout layout = {.ring = true};
    layout.mesh.size[MESH_CP] = n;
    layout.mesh.coord[MESH_CP] = rank;
    assert_int_equal(pass_context(&g, &layout, NULL), OK);
    assert_int_equal(graph_verify(g, "context"), OK);
    return g;
}

static bool is_pass(const Node *node) { return node_is(node, "ring_pass"); }

static int count(const Graph *g, const char *op)
{
    int n = 0;
    for (int i = 1; i < g->n_nodes; i++) n += node_is(&g->node[i], op);
    return n;
}

/* The hop's attributes of the message with this tag; NULL: there is none. */
static const RingHop *hop_of(const Graph *g, int tag)
{
    for (int i = 1; i < g->n_nodes; i++)
        if (is_pass(&g->node[i]) && ((const CollectiveAttr *)g->node[i].attr)->ring.tag == tag)
            return &((const CollectiveAttr *)g->node[i].attr)->ring;
    return NULL;
}

/* Halves of rank `keys` that some query of rank `queries` may see, whatever documents and chunks
 * there are: by rows. */
static int seen_by_rows(int n, int queries, int keys, int64_t chunk)
{
    int64_t half = SEQ / n / 2;
    int halves = 0;
    for (int64_t q = 0; q < SEQ; q++)
        for (int64_t k = 0; k <= q; k++) {
            int64_t q_block = q / half, k_block = k / half;
            bool first = k_block == keys, second = k_block == 2 * n - 1 - keys;
            if (q_block != queries && q_block != 2 * n - 1 - queries) continue;
            if (chunk > 0 && q - k >= chunk) continue;
            halves |= first ? HALF_FIRST : second ? HALF_SECOND : 0;
        }
    return halves;
}

static const int sizes[] = {2, 3, 4, 8};
static const int64_t chunks[] = {0, 1, 2, 3, 4, 7, 12, 13, 16, 24, 47, 48, 1000};

/* What a rank gives is what the other takes, forward and home, and is what the mask may show. */
static void test_hops_fit(void **state)
{
    (void)state;
    for (int s = 0; s < COUNT_OF(sizes); s++)
        for (int c = 0; c < COUNT_OF(chunks); c++) {
            int n = sizes[s];
            Graph *g[8];
            for (int r = 0; r < n; r++) g[r] = ring(n, r, chunks[c]);
            for (int r = 0; r < n; r++)
                for (int h = 1; h < n; h++) {
                    int other = (r + h) % n, halves = seen_by_rows(n, other, r, chunks[c]);
                    for (int what = 0; what < 4;
                         what++) { /* k and v go forward; dk and dv come home */
                        const RingHop *mine = hop_of(g[r], what * n + h),
                                      *theirs = hop_of(g[other], what * n + h);
                        assert_int_equal(mine ? what < 2 ? mine->give : mine->take : 0, halves);
                        assert_int_equal(theirs ? what < 2 ? theirs->take : theirs->give : 0,
                                         halves);
                    }
                }
            for (int r = 0; r < n; r++) graph_destroy(g[r]);
        }
}

/* Bytes: of the keys and values of a layer a rank of a causal mask sends no more than three
 * quarters of (n-1)/n on average; of chunks of no more than a block what its neighbours need. A
 * chunk of one token needs nobody. */
static void test_bytes(void **state)
{
    (void)state;
    double part = 2.0 * BATCH * SEQ / 4 * KV_HEADS * HEAD_DIM * 2,
           sent[2] = {0}; /* keys and values of a rank, bf16 */
    for (int r = 0; r < 4; r++) {
        Graph *g = ring(4, r, 0);
        double whole = graph_cost(g).wire_bytes;
        sent[0] += whole;
        graph_destroy(g);
        g = ring(4, r, SEQ / 8);
        sent[1] += graph_cost(g).wire_bytes;
        assert_true(graph_cost(g).wire_bytes < whole);
        graph_destroy(g);
        g = ring(4, r, 1);
        assert_int_equal(count(g, "ring_pass") + count(g, "ring_sum"), 0);
        assert_int_equal(count(g, "attention_part"), 1);
        graph_destroy(g);
    }
    /* 12 pairs of ranks, half of them with half a part; keys, values and their gradients twice */
    assert_true(sent[0] == 3 * part * (6 * 0.5 + 6));
    /* seven neighbouring blocks, of which those in the middle lie on one rank */
    assert_true(sent[1] == 3 * part * 6 * 0.5);
}

static double flop_of(const Graph *g, const char *op)
{
    double flop = 0;
    for (int i = 1; i < g->n_nodes; i++)
        if (node_is(&g->node[i], op)) flop += g->node[i].op->cost(g, &g->node[i]).flop;
    return flop;
}

/* No pair of query and key is computed twice, none is left out, and without chunks every rank has
 * as many; and at every hop as many as at every other. */
static void test_work(void **state)
{
    (void)state;
    for (int s = 0; s < COUNT_OF(sizes); s++)
        for (int c = 0; c < COUNT_OF(chunks); c++) {
            Graph *one = ring(1, 0, chunks[c]);
            double flop = 0, grad = 0, share = flop_of(one, "attention") / sizes[s];
            for (int r = 0; r < sizes[s]; r++) {
                Graph *g = ring(sizes[s], r, chunks[c]);
                double mine = flop_of(g, "attention_part"), at_hop = 0;
                if (chunks[c] == 0) assert_true(mine == share);
                for (int i = 1; chunks[c] == 0 && i < g->n_nodes; i++) {
                    const Node *node = &g->node[i];
                    if (!node_is(node, "attention_part") ||
                        !((const AttentionPart *)node->attr)->hop)
                        continue;
                    double now = node->op->cost(g, node).flop;
                    assert_true(at_hop == 0 || now == at_hop);
                    at_hop = now;
                }
                flop += mine;
                grad += flop_of(g, "attention_grad_part");
                graph_destroy(g);
            }
            assert_true(flop == flop_of(one, "attention"));
            assert_true(grad == flop_of(one, "attention_grad"));
            graph_destroy(one);
        }
}

/* Along the other axes everything lies as attention does. */
static void test_other_axes(void **state)
{
    (void)state;
    for (int r = 0; r < 4; r++) {
        Graph *g = ring(4, r, 16);
        ShardPlan heads = {.axis = MESH_TP, .n = 2, .rank = 1, .input_axes = 1u << AXIS_HEADS};
        ShardPlan batch = {.axis = MESH_DP, .n = 2, .rank = 0, .input_axes = 1u << AXIS_BATCH};
        double wire = graph_cost(g).wire_bytes;
        assert_int_equal(pass_shard(&g, &heads), OK);
        assert_int_equal(graph_verify(g, "tp"), OK);
        assert_int_equal(count(g, "all_reduce") + count(g, "all_gather"),
                         4); /* the outputs, which are wanted whole */
        double gathered = 0;
        for (int i = 1; i < g->n_nodes; i++)
            if (node_is(&g->node[i], "all_gather"))
                gathered += g->node[i].op->cost(g, &g->node[i]).wire_bytes;
        assert_true(graph_cost(g).wire_bytes - gathered == wire / 2);
        assert_int_equal(pass_shard(&g, &batch), OK);
        assert_int_equal(graph_verify(g, "dp"), OK);
        graph_destroy(g);
    }
}

/* ---- what is refused -------------------------------------------------------------------- */

static void says(const char *words)
{
    if (!strstr(status_message(), words)) fail_msg("'%s' is not in: %s", words, status_message());
}

static int find(const Graph *g, const char *op, int skip)
{
    for (int i = 1; i < g->n_nodes; i++)
        if (node_is(&g->node[i], op) && !skip--) return i;
    fail_msg("no %s", op);
    return 0;
}

/* A part is left out: the next one reads the sum before it. */
static void test_missing_part(void **state)
{
    (void)state;
    static const char *const ops[] = {"attention_part", "attention_grad_part", "ring_sum"};
    static const int operand[] = {4, 7, 0};
    for (int k = 0; k < 3; k++) {
        Graph *g = ring(4, 1, 0);
        /* the second part and the third, the first sum and the second of dk, which takes turns with
         * dv */
        Node *middle = &g->node[find(g, ops[k], k < 2 ? 1 : 0)],
             *next = &g->node[find(g, ops[k], 2)];
        assert_int_equal(next->in[operand[k]].id, middle->out[0].id);
        next->in[operand[k]] = middle->in[operand[k]];
        assert_int_not_equal(graph_verify(g, "damage"), OK);
        says("growing 1 along cp and must lie growing 2");
        graph_destroy(g);
    }
}

/* The keys of another hop than the mask is for; and what came home of another. */
static void test_wrong_hop(void **state)
{
    (void)state;
    Graph *g = ring(3, 2, 0); /* the last rank takes halves from both others: shapes do not tell */
    Node *part = &g->node[find(g, "attention_part", 2)],
         *other = &g->node[find(g, "attention_part", 1)];
    part->in[1] = other->in[1];
    assert_int_not_equal(graph_verify(g, "damage"), OK);
    says("lies passed 1 along cp and must lie passed 2");
    graph_destroy(g);
    g = ring(3, 0, 0); /* the first rank gives halves to both */
    g->node[find(g, "ring_sum", 2)].in[1] = g->node[find(g, "ring_sum", 0)].in[1];
    assert_int_not_equal(graph_verify(g, "damage"), OK);
    says("lies passed -1 along cp and must lie passed -2");
    graph_destroy(g);
}

/* A sum that lacks summands, or what belongs to another rank, is read as if it were ours. */
static void test_taken_for_whole(void **state)
{
    (void)state;
    ValueId y;
    Graph *g = ring(4, 1, 0);
    ValueId growing = g->node[find(g, "attention_part", 1)].out[0],
            passed = g->node[find(g, "ring_pass", 0)].out[0];
    assert_int_not_equal(op_scale(g, growing, 2, &y), OK);
    says("growing 2 along cp");
    assert_int_not_equal(op_scale(g, passed, 2, &y), OK);
    says("passed 1 along cp");
    graph_destroy(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hops_fit),
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_work),
        cmocka_unit_test(test_other_axes),
        cmocka_unit_test(test_missing_part),
        cmocka_unit_test(test_wrong_hop),
        cmocka_unit_test(test_taken_for_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
