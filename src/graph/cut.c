/* Cutting rules given as text (OpDef.cut): which letter a cut goes through, and what follows from
 * it.
 *
 * Letters are numbers here: 0..25 for a..z, then E and R, then the leading axes by position, then
 * the elements of a state that is cut flat. Every operand that is cut proposes its letter; axes of
 * weights (anything but tokens) win over axes of tokens, because gathering an activation is what
 * sequence parallelism means, while gathering a weight is what tensor parallelism avoids. */
#include "graph/graph.h"
#include "graph/graph_internal.h"

#include <stdlib.h>
#include <string.h>

enum {
    LETTER_E = 26,
    LETTER_R,
    LETTER_LEAD,
    LETTER_FLAT = LETTER_LEAD + MAX_RANK,
    LETTER_NONE = -1
};

/* The axes of one operand or output, as letters. */
typedef struct Term {
    int letter[MAX_RANK];
    bool fixed[MAX_RANK]; /* `!` */
    int rank;
    bool flat;   /* nothing but leading axes: may be cut flat */
    bool linear; /* `~` */
} Term;

/* One word of the text, for an operand of so many axes (-1: an output, whose rank the leading axes
 * of the operands decide); returns where the next word begins. */
static const char *read_term(const char *at, int rank, int n_lead, bool data_axis, Term *term)
{
    *term = (Term){.flat = *at == '*' && (at[1] == ' ' || at[1] == '~' || !at[1])};
    int letters = 0;
    for (const char *p = at; *p && *p != ' '; p++)
        letters += (*p >= 'a' && *p <= 'z') || *p == 'E' || *p == 'R';
    int lead = rank >= 0 ? rank - letters : n_lead;
    for (; *at && *at != ' '; at++) {
        int *n = &term->rank;
        if (*at == '*' || *at == '&') {
            for (int i = 0; i < lead && *n < MAX_RANK; i++) {
                term->fixed[*n] = *at == '&' && !data_axis;
                term->letter[(*n)++] = LETTER_LEAD + i;
            }
        } else if (*at == '!') {
            if (*n) term->fixed[*n - 1] = true;
        } else if (*at == '~') {
            term->linear = true;
        } else if (*at != '-' && *n < MAX_RANK) {
            term->letter[(*n)++] = *at == 'E' ? LETTER_E : *at == 'R' ? LETTER_R : *at - 'a';
        }
    }
    return at;
}

typedef struct Solver {
    CutCtx *ctx;
    const char *text;
    Term *term; /* n_in */
    Term out[NODE_MAX_OUT];
    uint64_t cut; /* letters */
    bool owned;   /* rows lie with the owners of experts */
} Solver;

static void read_rule(Solver *s)
{
    CutCtx *c = s->ctx;
    bool data = mesh_axis_is_data(c->axis);
    const char *at = s->text, *word = at, *outputs = strstr(at, "->");
    CHECK(outputs);
    int n_lead = 0;
    for (int i = 0; i < c->n_in; i++) {
        const char *next = read_term(word, c->in[i] ? c->in[i]->shape.rank : 0, 0, data,
                                     &s->term[i]);
        for (int k = 0; c->in[i] && k < s->term[i].rank; k++)
            if (s->term[i].letter[k] - LETTER_LEAD >= n_lead)
                n_lead = s->term[i].letter[k] - LETTER_LEAD + 1;
        if (next + 1 < outputs) word = next + 1; /* else the last word serves again */
    }
    const char *p = outputs + 2;
    for (int k = 0; k < c->op->n_out && *p; k++) p = read_term(p + 1, -1, n_lead, data, &s->out[k]);
}

/* the letter of axis `dim`; LETTER_NONE where it may not be cut */
static int letter_at(const Term *t, int dim)
{
    if (dim == PLACE_FLAT) return t->flat ? LETTER_FLAT : LETTER_NONE;
    return dim < t->rank && !t->fixed[dim] ? t->letter[dim] : LETTER_NONE;
}

/* Which proposal wins: rows follow from tokens and experts from rows, where an op knows both. */
static int letter_weight(int letter)
{
    if (letter == LETTER_E) return 2;
    if (letter == LETTER_R) return 3;
    return letter >= LETTER_LEAD && letter < LETTER_FLAT ? 4 : 5;
}

static int sequence_dim(const Value *v)
{
    for (int i = 0; i < v->shape.rank; i++)
        if (v->shape.axis[i] == AXIS_SEQ) return i;
    return -1;
}

static void propose(int letter, int weight, int *best, int *best_weight)
{
    if (letter == LETTER_NONE || weight <= *best_weight) return;
    *best = letter;
    *best_weight = weight;
}

/* A letter that one of the operands or hints proposes, LETTER_NONE when nothing is cut. *waits:
 * nothing but a wish to leave a sum cut along the sequence, which a later reader can fulfil as
 * well. */
static int choose_letter(const Solver *s, bool *waits)
{
    const CutCtx *c = s->ctx;
    int best = LETTER_NONE, weight = 0;
    for (int i = 0; i < c->n_in; i++) {
        if (!c->in[i]) continue;
        if (place_is_cut(c->place[i])) {
            int letter = letter_at(&s->term[i], c->place[i].dim);
            propose(letter, letter_weight(letter), &best, &weight);
        }
        if (c->sequence && c->place[i].kind == PLACE_PARTIAL) {
            int dim = sequence_dim(c->in[i]);
            if (dim >= 0) propose(letter_at(&s->term[i], dim), 1, &best, &weight);
        }
    }
    for (int k = 0; c->hint && k < c->op->n_out; k++)
        if (place_is_cut(c->hint[k]))
            propose(letter_at(&s->out[k], c->hint[k].dim), 2, &best, &weight);
    *waits = weight == 1;
    return best;
}

/* All operands in which the op is linear, and there is one, are partial sums. Of a canonical graph
 * such sums do not wait: (a + b) + (c + d) is another number than (a + c) + (b + d). */
static bool passes_partial(const Solver *s)
{
    bool any = false;
    if (s->ctx->graph->canonical && s->ctx->axis == MESH_TP) return false;
    for (int i = 0; i < s->ctx->n_in; i++) {
        if (!s->ctx->in[i] || !s->term[i].linear) continue;
        if (s->ctx->place[i].kind != PLACE_PARTIAL) return false;
        any = true;
    }
    return any;
}

static void close_over_rows(Solver *s)
{
    bool tokens = false;
    for (int l = LETTER_LEAD; l < LETTER_FLAT; l++) tokens |= s->cut >> l & 1;
    if (tokens) s->cut |= 1ull << LETTER_R;
    for (int i = 0; i < s->ctx->n_in; i++) {
        const Place *p = &s->ctx->place[i];
        if (!s->ctx->in[i] || !place_is_cut(*p)) continue;
        s->owned |= p->kind == PLACE_OWNED || letter_at(&s->term[i], p->dim) == LETTER_E;
    }
    if (s->owned) s->cut |= 1ull << LETTER_E | 1ull << LETTER_R;
}

/* An operand's or output's place under the chosen cut; without any of its letters: `otherwise`. */
static Place place_under(const Solver *s, const Term *t, PlaceKind otherwise)
{
    if (t->flat && s->cut >> LETTER_FLAT & 1) return (Place){PLACE_CUT, PLACE_FLAT};
    for (int i = 0; i < t->rank; i++) {
        bool rows = t->letter[i] >= LETTER_R;
        if (!t->fixed[i] && s->cut >> t->letter[i] & 1)
            return (Place){rows && s->owned ? PLACE_OWNED : PLACE_CUT, (int8_t)i};
    }
    return (Place){(int8_t)otherwise, 0};
}

static void solve_uncut(Solver *s, bool partial)
{
    CutCtx *c = s->ctx;
    PlaceKind kind = partial ? PLACE_PARTIAL : PLACE_SAME;
    for (int i = 0; i < c->n_in; i++)
        c->want[i] = (Place){(int8_t)(s->term[i].linear ? kind : PLACE_SAME), 0};
    for (int k = 0; k < c->op->n_out; k++) c->out[k] = (Place){(int8_t)kind, 0};
}

static void solve(Solver *s)
{
    CutCtx *c = s->ctx;
    bool waits;
    read_rule(s);
    int letter = choose_letter(s, &waits);
    bool partial = passes_partial(s);
    waits |= c->graph->canonical; /* sums of summands are summed, not the summands each by itself */
    if (letter == LETTER_NONE || (partial && waits)) {
        solve_uncut(s, partial);
        return;
    }
    s->cut = 1ull << letter;
    close_over_rows(s);
    for (int i = 0; i < c->n_in; i++) c->want[i] = place_under(s, &s->term[i], PLACE_SAME);
    for (int k = 0; k < c->op->n_out; k++) c->out[k] = place_under(s, &s->out[k], PLACE_PARTIAL);
}

void graph_cut_text(CutCtx *ctx, const char *text)
{
    Term few[GRAPH_FEW];
    Solver s = {.ctx = ctx, .text = text, .term = few};
    if (ctx->n_in > GRAPH_FEW) s.term = xcalloc((size_t)ctx->n_in, sizeof *s.term);
    solve(&s);
    if (s.term != few) free(s.term);
}

/* Nothing is cut: every rank does all of it. */
static void take_whole(CutCtx *ctx)
{
    for (int i = 0; i < ctx->n_in; i++) ctx->want[i] = (Place){PLACE_SAME, 0};
    for (int k = 0; k < ctx->op->n_out; k++) ctx->out[k] = (Place){PLACE_SAME, 0};
}

static Status run_rule(CutCtx *ctx)
{
    for (int i = 0; i < ctx->n_in; i++) ctx->want[i] = ctx->place[i];
    memset(ctx->out, 0, sizeof ctx->out);
    if (ctx->op->cut_rule) return ctx->op->cut_rule(ctx);
    if (ctx->op->cut)
        graph_cut_text(ctx, ctx->op->cut);
    else
        take_whole(ctx);
    return OK;
}

/* A sum over parts of a sequence, or rows of experts, whose order depends on the tokens that are
 * there. */
static bool mixes_tokens(const CutCtx *ctx)
{
    for (int k = 0; k < ctx->op->n_out; k++)
        if (ctx->out[k].kind == PLACE_PARTIAL) return true;
    for (int i = 0; i < ctx->n_in; i++) {
        const Place *want = &ctx->want[i];
        if (ctx->in[i] && place_is_cut(*want) && want->dim >= 0 &&
            ctx->in[i]->shape.axis[want->dim] == AXIS_ROWS)
            return true;
    }
    return false;
}

Status graph_cut(CutCtx *ctx)
{
    TRY(run_rule(ctx));
    if (ctx->graph->canonical && ctx->axis == MESH_CP && mixes_tokens(ctx)) take_whole(ctx);
    return OK;
}

/* ---- placements of a node that is there ------------------------------------------------- */

static Status check_operands(const CutCtx *c)
{
    char have[16], want[16];
    for (int i = 0; i < c->n_in; i++) {
        if (!c->in[i] || place_equal(c->place[i], c->want[i])) continue;
        return fail(ERR_ARG,
                    "%s: operand %d%s%s lies %s along %s and must lie %s: a reduction or a "
                    "gathering is missing or doubled",
                    c->op->name, i, c->in[i]->name ? " " : "", c->in[i]->name ? c->in[i]->name : "",
                    place_text(c->place[i], have), mesh_axis_name(c->axis),
                    place_text(c->want[i], want));
    }
    return OK;
}

static Status place_node(CutCtx *c, const Node *node, Place out[NODE_MAX_OUT])
{
    for (int i = 0; i < node->n_in; i++) {
        c->in[i] = value_ok(node->in[i]) ? graph_value(c->graph, node->in[i]) : NULL;
        c->place[i] = c->in[i] ? c->in[i]->place[c->axis] : (Place){PLACE_SAME, 0};
    }
    TRY(graph_cut(c));
    TRY(check_operands(c));
    memcpy(out, c->out, sizeof c->out);
    return OK;
}

Status graph_place_node(const Graph *graph, const Node *node, MeshAxis axis,
                        Place out[NODE_MAX_OUT])
{
    int n = node->n_in;
    const Value *few[GRAPH_FEW];
    Place few_places[2 * GRAPH_FEW];
    CutCtx c = {.graph = graph,
                .op = node->op,
                .attr = node->attr,
                .axis = axis,
                .n = mesh_size(&graph->mesh, axis),
                .rank = graph->mesh.coord[axis],
                .localized = true,
                .n_in = n};
    bool is_few = n <= GRAPH_FEW;
    c.in = is_few ? few : xcalloc((size_t)n, sizeof *c.in);
    c.place = is_few ? few_places : xcalloc(2 * (size_t)n, sizeof *c.place);
    c.want = c.place + n;
    Status status = place_node(&c, node, out);
    if (is_few) return status;
    free(c.in);
    free(c.place);
    return status;
}
