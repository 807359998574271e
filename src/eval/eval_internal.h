/* Shared by the files of eval/. */
#ifndef EVAL_EVAL_INTERNAL_H
#define EVAL_EVAL_INTERNAL_H

#include <jansson.h>

#include "eval/eval.h"

/* ---- item.c: a line of the file --------------------------------------------------------- */

enum { EVAL_MAX_LIST = 256, EVAL_WHY = 160 };

/* Texts live in the arena that they were parsed into. */
typedef struct EvalItem {
    int64_t line;
    Bytes prompt; /* the text itself, the context of the choices, or the prompt */
    Bytes *list;  /* choices, or answers */
    int n_list;
    Bytes *stop;
    int n_stop;
    int answer; /* index among the choices */
} EvalItem;

/* False, with the reason, for a line that is not an item of this task. */
bool eval_item_parse(Arena *arena, EvalTask task, Bytes json, EvalItem *item, char why[EVAL_WHY]);

/* ---- figures.c: means and their errors -------------------------------------------------- */

/* Mean of values: sums over items. */
typedef struct Mean {
    int64_t n;
    double sum, squares;
} Mean;
void mean_add(Mean *mean, double value);
double mean_value(const Mean *mean);
double mean_error(const Mean *mean); /* deviation of the sample over sqrt(n) */

/* sum of a over sum of b, where an item brings both: tokens of one document are no independent
 * draws, documents are. */
typedef struct Ratio {
    int64_t n;
    double a, b, aa, ab, bb;
} Ratio;
void ratio_add(Ratio *ratio, double a, double b);
double ratio_value(const Ratio *ratio);
double ratio_error(const Ratio *ratio);

/* ---- match.c: answers ------------------------------------------------------------------- */

/* Lower case (ASCII), without punctuation and the words a, an, the; single spaces. Appended. */
void match_normalise(Bytes text, Str *out);
bool match_equal(Bytes a, Bytes b); /* without the white space around them */
/* Where the first of the stops begins in text, or text.n. */
size_t match_stop(Bytes text, const Bytes *stop, int n);

/* ---- perplexity.c: windows -------------------------------------------------------------- */

/* Tokens [begin, end) are seen, [scored, end) count. */
typedef struct Window {
    int64_t begin, end, scored;
} Window;
/* The windows that cover n tokens, appended; each of at most `context`, moved on by `stride`, which
 * is less. The first token of all has nothing before it and is never scored. */
typedef struct WindowVec {
    Window *at;
    size_t n, cap;
} WindowVec;
void window_list(int64_t n, int64_t context, int64_t stride, WindowVec *out);

/* ---- choice.c: where an answer begins --------------------------------------------------- */

/* Ids of begin-of-text, context and choice as one text; *begin: where the choice's tokens begin. */
Status choice_encode(Encoder *encoder, int32_t prefix, const EvalItem *item, int choice, IdVec *ids,
                     int64_t *begin);

/* ---- tasks ------------------------------------------------------------------------------ */

typedef struct EvalJob {
    const InferModel *model;
    const EvalOptions *options;
    Encoder *encoder;
    int32_t bos; /* in front of texts; -1: none */
    Infer *infer;
    Str out; /* lines for options->out that are not written yet */
    EvalResult *result;
    Mean mean[2];
    Mean mean_token;
    Ratio per_token, per_byte;
} EvalJob;

/* One file per task. measure: tokens of an item, to know what to load the model for. plan: that,
 * from the longest. run: some items. finish: the figures. */
typedef struct EvalTaskDef {
    const char *name;
    Status (*measure)(EvalJob *job, const EvalItem *item, int64_t *tokens);
    void (*plan)(EvalJob *job, int64_t longest, InferOptions *infer);
    Status (*run)(EvalJob *job, const EvalItem *items, int n);
    void (*finish)(EvalJob *job);
} EvalTaskDef;
extern const EvalTaskDef eval_perplexity, eval_choice, eval_exact;

enum { EVAL_GRID_TOKENS = 4096 }; /* run at once: enough to keep the products busy */
/* Rows of `width` tokens that make a grid of about EVAL_GRID_TOKENS. */
int64_t eval_rows(const EvalJob *job, int64_t width);
void eval_add_figure(EvalJob *job, const char *name, double value, double error);
void eval_add_line(EvalJob *job, json_t *line); /* takes it */

#endif
