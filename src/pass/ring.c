/* Ring attention (Liu, Zaharia and Abbeel 2023) over the ranks of an axis that cuts sequences
 * zigzag: a rank has blocks r and 2n-1-r of 2n. Nowhere is a sequence's keys and values together.
 *
 *   forward    the rank's own keys first; meanwhile those of the rank before it are on their way,
 *              and so on round the ring.
 *              attention_part goes on from what the parts before have come to.
 *   backward   keys and values go round once more. What attention_grad_part makes for a part that
 *              is not its own goes
 *              straight home, while the next part is computed, and is summed there in f32.
 *
 * At hop h a rank computes with keys of the rank h places before it, and every rank does as much as
 * every other: of an earlier rank all queries see the first block and none the second, of a later
 * one the later queries see both. So of an earlier rank only half is sent. With chunks the mask
 * shows still less: halves that no query can see are not sent, and hops that nobody needs are not
 * made. How documents lie is not known here: a chunk may begin anywhere.
 *
 * A hop begins when the one before it has arrived, so that one block is on its way and one is
 * computed with. */
#include "pass/ring.h"
#include "ops/collective.h"
#include "ops/ring_sum.h"
#include "pass/pass_internal.h"

#include <stdlib.h>
#include <string.h>

/* Operands of attention and attention_grad. */
enum { Q, K, V, POS, O, LSE, DO };
/* What is sent between the same two ranks: told apart by its tag. */
enum { SENT_K, SENT_V, SENT_DK, SENT_DV };

typedef struct Hop {
    int hop;
    int give, take; /* halves of keys: of ours to the rank behind, of theirs to us */
    ValueId k, v;   /* that were taken */
} Hop;

typedef struct Ring {
    Graph *g;
    const ShardPlan *plan;
    AttentionAttr attr; /* its slice is of this rank's queries */
    int64_t half;       /* tokens in a block */
    const ValueId *in;
    ValueId k, v; /* ours, in one run to be sent */
    Hop *hop;     /* the first is none: our own keys */
    int n_hops;
    int parts; /* that our queries see */
    int sums;  /* summands of the gradient of our keys */
} Ring;

bool ring_takes(const ShardPlan *plan, const Node *node)
{
    return plan->ring && (node_is(node, "attention") || node_is(node, "attention_grad"));
}

Place ring_operand(int i) { return (Place){PLACE_CUT, i == LSE ? 2 : 1}; }

/* ---- who sees what ---------------------------------------------------------------------- */

static int64_t block_of(const Ring *r, int rank, int half)
{
    return half ? 2 * (int64_t)r->plan->n - 1 - rank : rank;
}

/* May a query of block q see a key of block k, wherever documents and chunks begin? */
static bool sees(const Ring *r, int64_t q, int64_t k)
{
    if (k > q) return false;
    return r->attr.chunk <= 0 || q == k || (q - k - 1) * r->half + 1 < r->attr.chunk;
}

/* The halves of rank `keys` that the queries of another may see. */
static int halves_seen(const Ring *r, int queries, int keys)
{
    int halves = 0;
    for (int a = 0; a < 2; a++)
        for (int b = 0; b < 2; b++)
            if (sees(r, block_of(r, queries, a), block_of(r, keys, b)))
                halves |= b ? HALF_SECOND : HALF_FIRST;
    return halves;
}

static int rank_at(const Ring *r, int offset)
{
    return (r->plan->rank + offset + r->plan->n) % r->plan->n;
}

static AttentionSlice slice_of(const Ring *r, int rank, int halves)
{
    int64_t first = block_of(r, rank, 0) * r->half, second = block_of(r, rank, 1) * r->half;
    if (halves == HALF_FIRST)
        return (AttentionSlice){.split = r->half, .first = first, .second = first};
    if (halves == HALF_SECOND) return (AttentionSlice){.second = second};
    return (AttentionSlice){.split = r->half, .first = first, .second = second - r->half};
}

static void plan_hops(Ring *r)
{
    r->hop = xcalloc((size_t)r->plan->n, sizeof *r->hop);
    r->n_hops = r->parts = r->sums = 1;
    for (int h = 1; h < r->plan->n; h++) {
        Hop hop = {.hop = h,
                   .give = halves_seen(r, rank_at(r, h), r->plan->rank),
                   .take = halves_seen(r, r->plan->rank, rank_at(r, -h))};
        r->parts += hop.take != 0;
        r->sums += hop.give != 0;
        if (hop.give | hop.take) r->hop[r->n_hops++] = hop;
    }
}

/* ---- hops ------------------------------------------------------------------------------- */

static Status pass_one(const Ring *r, ValueId x, ValueId after, const Hop *h, int what, ValueId *y)
{
    bool home = what >= SENT_DK;
    RingHop hop;
    memset(&hop, 0, sizeof hop); /* padding too: attributes are compared by their bytes */
    hop.hop = home ? -h->hop : h->hop;
    hop.give = home ? h->take : h->give;
    hop.take = home ? h->give : h->take;
    hop.home = home;
    hop.tag = what * r->plan->n + h->hop;
    return op_ring_pass(r->g, r->plan->axis, x, after, &hop, y);
}

/* When the keys of hop i have arrived: sends the next ones on their way, up to those that this rank
 * computes with next. */
static Status begin_hops(Ring *r, int i)
{
    const Hop *here = &r->hop[i];
    bool taken = false;
    for (int j = i + 1; j < r->n_hops && !taken; j++) {
        Hop *h = &r->hop[j];
        TRY(pass_one(r, r->k, here->k, h, SENT_K, &h->k));
        TRY(pass_one(r, r->v, here->v, h, SENT_V, &h->v));
        taken = h->take != 0;
    }
    return OK;
}

static AttentionPart part_of(const Ring *r, int i, int part)
{
    const Hop *h = &r->hop[i];
    AttentionPart p;
    memset(&p, 0, sizeof p);
    memcpy(&p.of, &r->attr, sizeof p.of);
    p.keys = slice_of(r, rank_at(r, -h->hop), i ? h->take : HALF_BOTH);
    p.axis = r->plan->axis;
    p.hop = h->hop;
    p.part = part;
    p.parts = r->parts;
    p.sums = i ? 1 : r->sums;
    return p;
}

/* ---- forward and backward --------------------------------------------------------------- */

static Status forward(Ring *r, ValueId out[2])
{
    ValueId so_far[2] = {NO_VALUE, NO_VALUE};
    for (int i = 0, part = 0; i < r->n_hops; i++) {
        const Hop *h = &r->hop[i];
        if (i && !h->take) continue;
        TRY(begin_hops(r, i));
        AttentionPart p = part_of(r, i, part++);
        ValueId in[] = {r->in[Q],   i ? h->k : r->in[K], i ? h->v : r->in[V],
                        r->in[POS], so_far[0],           so_far[1]};
        TRY(op_attention_part(r->g, in, &p, so_far));
    }
    memcpy(out, so_far, sizeof so_far);
    return OK;
}

typedef struct Home {
    ValueId dk, dv; /* what came home of the hop */
} Home;

/* Adds what came home of hop i. */
static Status add_home(const Ring *r, int i, const Home *home, int *summands, ValueId sum[2])
{
    const Hop *h = &r->hop[i];
    RingSumAttr attr;
    if (!i || !h->give) return OK;
    memset(&attr, 0, sizeof attr);
    attr.axis = r->plan->axis;
    attr.hop = h->hop;
    attr.halves = h->give;
    attr.part = (*summands)++;
    attr.parts = r->sums;
    TRY(op_ring_sum(r->g, sum[0], home->dk, &attr, &sum[0]));
    return op_ring_sum(r->g, sum[1], home->dv, &attr, &sum[1]);
}

/* The gradients of hop i's keys, d: dq so far, dk, dv; those of dk and dv go home. */
static Status backward_part(const Ring *r, int i, int part, ValueId d[3])
{
    const Hop *h = &r->hop[i];
    AttentionPart p = part_of(r, i, part);
    ValueId in[] = {r->in[Q], i ? h->k : r->in[K], i ? h->v : r->in[V], r->in[POS],
                    r->in[O], r->in[LSE],          r->in[DO],           d[0]};
    return op_attention_grad_part(r->g, in, &p, d);
}

static Status go_home(const Ring *r, int i, const ValueId d[3], Home *home)
{
    const Hop *h = &r->hop[i];
    /* where nothing is given, our keys say how what is taken lies */
    TRY(pass_one(r, h->take ? d[1] : r->k, NO_VALUE, h, SENT_DK, &home->dk));
    return pass_one(r, h->take ? d[2] : r->v, NO_VALUE, h, SENT_DV, &home->dv);
}

static Status backward(Ring *r, ValueId out[3])
{
    ValueId d[3] = {NO_VALUE, NO_VALUE, NO_VALUE}, sum[2] = {NO_VALUE, NO_VALUE};
    Home home[2] = {{NO_VALUE, NO_VALUE},
                    {NO_VALUE, NO_VALUE}}; /* of this hop and the one before */
    int summands = 1, part = 0;
    for (int i = 0; i < r->n_hops; i++) {
        if (!i || r->hop[i].take) {
            TRY(begin_hops(r, i));
            TRY(backward_part(r, i, part++, d));
        }
        if (i)
            TRY(go_home(r, i, d, &home[i % 2]));
        else
            memcpy(sum, d + 1, sizeof sum);
        if (i > 1) TRY(add_home(r, i - 1, &home[(i - 1) % 2], &summands, sum));
    }
    TRY(add_home(r, r->n_hops - 1, &home[(r->n_hops - 1) % 2], &summands, sum));
    out[0] = d[0];
    out[1] = sum[0];
    out[2] = sum[1];
    return OK;
}

Status ring_attention(Graph *g, const ShardPlan *plan, const Node *node, const ValueId *in,
                      ValueId *out)
{
    Ring r = {.g = g,
              .plan = plan,
              .in = in,
              .half = graph_value(g, in[Q])->shape.dim[1] / 2,
              .k = in[K],
              .v = in[V]};
    memcpy(&r.attr, node->attr, sizeof r.attr);
    if (r.attr.slice.split)
        return fail(ERR_UNSUPPORTED, "a sequence cannot be cut along two mesh axes");
    if (plan->n > RING_MOST_RANKS)
        return fail(ERR_UNSUPPORTED, "a ring of %d ranks; at most %d are possible", plan->n,
                    RING_MOST_RANKS);
    r.attr.slice = slice_of(&r, plan->rank, HALF_BOTH);
    plan_hops(&r);
    Status status = OK;
    if (r.n_hops > 1) {
        status = shard_contiguous(g, in[K], &r.k);
        if (status == OK) status = shard_contiguous(g, in[V], &r.v);
    }
    if (status == OK) status = node_is(node, "attention") ? forward(&r, out) : backward(&r, out);
    free(r.hop);
    return status;
}
