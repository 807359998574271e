/* Who hangs, found by following the waits.
 *
 * A rank that waits says from time to time for whom (comm_board_say_waits), on its board, which
 * other hosts are told of. From the rank whose deadline has passed these words lead from one that
 * waits to the next, through whatever groups, and end at a rank that waits for nobody: it computes,
 * is stopped, is dead, or its program went another way. Or they come back: then a ring of ranks
 * waits for each other. The search goes deep first, since any end will do: it takes as many looks
 * as there are waits in a row, not as there are ranks. */
#include "comm/comm_internal.h"

#include <string.h>

enum { MAX_NODES = 64 };
static const double search_s = 0.3; /* a look at a rank that does not answer takes 0.2 s */
static const double silent_s = 0.9; /* a host is to be heard twice a second */

typedef struct Node {
    int rank, parent;
    CommSeen seen;
    int edge[COMM_LOOKED_AT]; /* ranks of the world that it waits for */
    int n_edges, n_all;
} Node;

typedef struct Search {
    const Comm *comm;
    Node node[MAX_NODES]; /* the first is the caller */
    int n;
    double until_s;
} Search;

bool comm_is_silent(const CommSeen *seen) { return seen->silent_s >= silent_s; }

/* ---- the graph -------------------------------------------------------------------------- */

/* Waits, and can say for whom. */
static bool waits(const CommSeen *s)
{
    return s->known && s->state != 'T' && s->state != 'X' && s->state != 'Z' &&
           !comm_is_silent(s) && s->row.phase == COMM_PHASE_WAITING;
}

static int find(const Search *s, int rank)
{
    for (int i = 0; i < s->n; i++)
        if (s->node[i].rank == rank) return i;
    return -1;
}

static void add_edge(Node *node, int rank)
{
    if (node->n_edges < COMM_LOOKED_AT) node->edge[node->n_edges++] = rank;
}

static void add_node(Search *s, int rank, int parent, const CommSeen *seen)
{
    Node *node = &s->node[s->n++];
    *node = (Node){.rank = rank, .parent = parent, .seen = *seen};
    if (!waits(seen)) return;
    for (int i = 0; i < seen->row.n_waits && i < COMM_WAITS; i++) {
        int to = seen->row.waits_for[i];
        if (to >= 0 && to < s->comm->world->n) add_edge(node, to);
    }
    node->n_all = seen->row.n_waits;
}

/* Looks at those for which a node waits. True when one of them waits for nobody. */
static bool expand(Search *s, int at)
{
    int rank[COMM_LOOKED_AT], n = 0;
    CommSeen seen[COMM_LOOKED_AT];
    bool ends = false;
    for (int i = 0; i < s->node[at].n_edges; i++) {
        int to = s->node[at].edge[i];
        if (find(s, to) < 0 && s->n + n < MAX_NODES) rank[n++] = to;
    }
    if (!n) return false;
    s->comm->world->transport->look(s->comm->world, rank, n, seen);
    for (int i = 0; i < n; i++) {
        ends |= !waits(&seen[i]);
        add_node(s, rank[i], at, &seen[i]);
    }
    return ends;
}

/* ---- the search ------------------------------------------------------------------------- */

enum { RING = -1, UNKNOWN = -2 };

/* The node that waits for one that hangs; or for one that waits but has not said for whom, where
 * nothing else is found. */
static int find_waiter(Search *s)
{
    int stack[MAX_NODES], top = 0, mute = RING;
    if (!s->node[0].n_edges) return UNKNOWN;
    stack[top++] = 0;
    while (top > 0) {
        int at = stack[--top], first = s->n;
        if (clock_s() > s->until_s) return UNKNOWN;
        if (expand(s, at)) return at;
        for (int i = s->n - 1; i >= first; i--) {
            if (!s->node[i].n_edges)
                mute = at;
            else
                stack[top++] = i;
        }
    }
    return s->n < MAX_NODES ? mute : UNKNOWN;
}

/* ---- what was found --------------------------------------------------------------------- */

static void add_key(CommHang *h, const Node *node, bool moment)
{
    char text[64];
    int64_t ns = moment ? (int64_t)(node->seen.row.time_s * 1e9) : 0;
    snprintf(text, sizeof text, "%d at %lld", node->rank, (long long)ns);
    h->key = rng_key(h->key, text) | 1;
}

/* The waits on the way from the caller to a node: each as it began, and how old the word of it is.
 */
static void add_path(const Search *s, CommHang *h, int at)
{
    for (; at > 0; at = s->node[at].parent) {
        const Node *node = &s->node[at];
        add_key(h, node, true);
        if (node->seen.waits_age_s > h->age_s) h->age_s = node->seen.waits_age_s;
    }
}

static void add_rank(CommHang *h, const Node *node)
{
    if (h->n == COMM_LOOKED_AT) return;
    h->rank[h->n] = node->rank;
    h->seen[h->n++] = node->seen;
}

static void set_waiter(const Search *s, CommHang *h, int at)
{
    h->waiter = s->node[at].rank;
    h->waits = s->node[at].seen;
    h->n_all = s->node[at].n_all;
}

/* All for which a node waits, those that hang first. */
static void tell_ends(const Search *s, int at, CommHang *h)
{
    const Node *waiter = &s->node[at];
    set_waiter(s, h, at);
    for (int waiting = 0; waiting < 2; waiting++)
        for (int i = 0; i < waiter->n_edges; i++) {
            int to = find(s, waiter->edge[i]);
            if (to < 0 || waits(&s->node[to].seen) != (bool)waiting) continue;
            add_rank(h, &s->node[to]);
            if (!waiting) add_key(h, &s->node[to], false);
            h->culprits += !waiting;
        }
    add_path(s, h, at);
}

/* The ranks of a ring, from the one by which the caller comes into it. */
static void tell_ring(const Search *s, CommHang *h)
{
    bool been[MAX_NODES] = {false};
    int at = 0;
    for (; !been[at]; at = find(s, s->node[at].edge[0])) been[at] = true;
    set_waiter(s, h, at);
    h->ring = true;
    h->n_all = 0;
    for (int i = find(s, s->node[at].edge[0]); i != at; i = find(s, s->node[i].edge[0])) {
        add_rank(h, &s->node[i]);
        h->n_all++;
        add_path(s, h, i);
    }
    add_path(s, h, at);
}

void comm_find_hang(const Comm *c, const bool *missing, uint64_t want, CommHang *hang)
{
    Search s = {.comm = c, .until_s = clock_s() + search_s, .n = 1};
    s.node[0] = (Node){.rank = c->self};
    for (int r = 0; r < c->n; r++) {
        if (!missing[r]) continue;
        add_edge(&s.node[0], c->ranks[r]);
        s.node[0].n_all++;
    }
    *hang = (CommHang){0};
    int at = find_waiter(&s);
    if (at == RING)
        tell_ring(&s, hang);
    else if (at != UNKNOWN)
        tell_ends(&s, at, hang);
    if (at != UNKNOWN && (!want || hang->key == want)) return;
    CommHang direct = {0};
    tell_ends(&s, 0, &direct);
    direct.key = hang->key;
    direct.age_s = hang->age_s;
    *hang = direct;
}
