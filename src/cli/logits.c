/* drover logits: what the model says after each of given tokens, as a safetensors file. Rows are
 * computed one after another while the file is written, so that only one is ever held. */
#include "cli/cli.h"

#include <string.h>

typedef struct LogitsOptions {
    const char *ids, *out;
    ModelFlags model;
} LogitsOptions;

static const Option options[] = {
    {"ids", OPTION_TEXT, "FILE", 0, 0, NULL, NULL, offsetof(LogitsOptions, ids),
     "{\"ids\": [[1, 2, 3], ...]}"},
    {"out", OPTION_TEXT, "FILE", 0, 0, NULL, NULL, offsetof(LogitsOptions, out),
     "the safetensors file to write"},
    MODEL_FLAGS(LogitsOptions, model),
};

/* Rows first .. first + n - 1 are one tensor. */
typedef struct RowsTensor {
    Infer *infer;
    const IdRows *rows;
    int first, computed; /* computed: the row that `logits` belongs to, -1 none */
    size_t row_bytes;
    const float *logits;
} RowsTensor;

/* The writer asks in order, so every row is computed once. */
static Status fill(void *context, uint64_t offset, void *out, size_t bytes)
{
    RowsTensor *t = context;
    while (bytes > 0) {
        int row = t->first + (int)(offset / t->row_bytes);
        size_t at = (size_t)(offset % t->row_bytes),
               n = t->row_bytes - at < bytes ? t->row_bytes - at : bytes;
        if (t->computed != row) {
            const IdVec *ids = &t->rows->row[row];
            TRY(infer_logits(t->infer, ids->at, (int64_t)ids->n, &t->logits));
            t->computed = row;
        }
        memcpy(out, (const char *)t->logits + at, n);
        out = (char *)out + n;
        offset += n;
        bytes -= n;
    }
    return OK;
}

static bool equal_lengths(const IdRows *rows)
{
    for (int i = 1; i < rows->n; i++)
        if (rows->row[i].n != rows->row[0].n) return false;
    return true;
}

static SafetensorsItem make_item(Arena *arena, Infer *infer, const IdRows *rows, int first, int n,
                                 int64_t vocab)
{
    RowsTensor *t = ARENA_NEW(arena, RowsTensor);
    int64_t length = (int64_t)rows->row[first].n;
    *t = (RowsTensor){.infer = infer,
                      .rows = rows,
                      .first = first,
                      .computed = -1,
                      .row_bytes = sizeof(float) * (size_t)length * (size_t)vocab};
    Shape shape = n > 1 ? shape_make(3, (int64_t[]){n, length, vocab}, NULL)
                        : shape_make(2, (int64_t[]){length, vocab}, NULL);
    return (SafetensorsItem){.dtype = DTYPE_F32, .shape = shape, .fill = fill, .context = t};
}

static Status write_logits(Arena *arena, Infer *infer, const IdRows *rows, int64_t vocab,
                           const char *path)
{
    SafetensorsItem *items = ARENA_ARRAY(arena, SafetensorsItem, rows->n);
    int n = equal_lengths(rows) ? 1 : rows->n;
    for (int i = 0; i < n; i++) {
        items[i] = make_item(arena, infer, rows, i, n == 1 ? rows->n : 1, vocab);
        items[i].name = n == 1 ? "logits" : arena_printf(arena, "logits.%d", i);
    }
    const char *beside = arena_printf(arena, "%s.part", path);
    Status status = safetensors_write(beside, items, n, NULL);
    if (status == OK) return file_rename(beside, path);
    if (file_exists(beside)) {
        const char *what = arena_strdup(arena, status_message());
        if (file_unlink(beside) != OK) log_warn("%s", status_message());
        return fail(status, "%s", what);
    }
    return status;
}

/* The ranks that do not write the file compute the rows all the same. */
static Status compute_rows(Infer *infer, const IdRows *rows)
{
    const float *logits;
    for (int i = 0; i < rows->n; i++)
        TRY(infer_logits(infer, rows->row[i].at, (int64_t)rows->row[i].n, &logits));
    return OK;
}

static Status run_open(Arena *arena, const LogitsOptions *o, const Rank *rank,
                       const InferModel *model)
{
    IdRows rows;
    TRY(ids_read(arena, o->ids, &rows));
    InferOptions wanted = {0};
    model_flags_apply(&o->model, rank, &wanted);
    for (int i = 0; i < rows.n; i++)
        wanted.logits_tokens = max_i64(wanted.logits_tokens, (int64_t)rows.row[i].n);
    Infer *infer;
    TRY(infer_create(model, wanted, &infer));
    log_debug("%s", infer_device_text(infer));
    Status status = rank->first ? write_logits(arena, infer, &rows, model->config.vocab, o->out)
                                : compute_rows(infer, &rows);
    infer_destroy(infer);
    return status;
}

static Status run_rank(const Rank *rank, const InferModel *model, const void *flags)
{
    Arena arena = {0};
    Status status = run_open(&arena, flags, rank, model);
    arena_deinit(&arena);
    return status;
}

static Status run(const void *opaque, Operands operands)
{
    const LogitsOptions *o = opaque;
    if (!o->ids || !o->out) return fail(ERR_ARG, "logits needs --ids FILE and --out FILE");
    return model_flags_run(&o->model, operands.at[0], run_rank, o);
}

const Command command_logits = {
    .name = "logits",
    .operands = "MODEL",
    .min_operands = 1,
    .max_operands = 1,
    .sentence = "logits after each given token id, as safetensors",
    .details = "The file holds one f32 tensor, logits: [n, vocab] for one row of ids, [rows, n, "
               "vocab] for\n"
               "rows of equal length; for others logits.0, logits.1 and so on.",
    COMMAND_OPTIONS(LogitsOptions, options),
    .run = run,
};
