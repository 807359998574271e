/* drover validate PATH: published training runs against the planner, a residual each. */
#include "validate/validate.h"

#include "cli/cli.h"

typedef struct ValidateFlags {
    bool json, raw;
    const char *only, *residuals;
} ValidateFlags;

static const Option options[] = {
    {"json", OPTION_FLAG, "", 0, 0, NULL, NULL, offsetof(ValidateFlags, json), "one JSON object"},
    {"raw", OPTION_FLAG, "", 0, 0, NULL, NULL, offsetof(ValidateFlags, raw),
     "without the one factor that is fitted for each framework"},
    {"only", OPTION_TEXT, "ID", 0, 0, NULL, NULL, offsetof(ValidateFlags, only),
     "rows whose id begins so, such as DG405 or TTN-01"},
    {"residuals", OPTION_TEXT, "FILE", 0, 0, NULL, NULL, offsetof(ValidateFlags, residuals),
     "of several files together: the table that drover plan takes its error bars from"},
};

static void show_progress(void *context, const ValidateRow *row)
{
    (void)context;
    if (!row->skip)
        log_debug("%s: %.3f s measured, %.3f s planned", row->row->id, row->row->step_s,
                  row->step_s);
}

/* One table of all files. */
static Status write_residuals(const ValidateFlags *f, Operands operands)
{
    Arena arena = {0};
    Str text = {0}, command = {0};
    ValidateResult *result = ARENA_ARRAY(&arena, ValidateResult, operands.n);
    Status status = OK;
    str_add(&command, "drover validate");
    for (int i = 0; i < operands.n && status == OK; i++) {
        str_printf(&command, " %s", operands.at[i]);
        status = validate_file(
            &arena, operands.at[i],
            &(ValidateOptions){.only = f->only, .raw = f->raw, .progress = show_progress},
            &result[i]);
    }
    str_printf(&command, " --residuals %s", f->residuals);
    if (status == OK) {
        validate_residuals_text(result, operands.n, command.at, &text);
        status = file_write_atomic(f->residuals, text.at, text.n);
    }
    if (status == OK) fputs(text.at, stdout);
    str_deinit(&text);
    str_deinit(&command);
    arena_deinit(&arena);
    return status;
}

static Status run(const void *opaque, Operands operands)
{
    const ValidateFlags *f = opaque;
    if (f->residuals) return write_residuals(f, operands);
    Arena arena = {0};
    Str text = {0};
    ValidateResult result;
    Status status = validate_files(
        &arena, operands.at, operands.n,
        &(ValidateOptions){.only = f->only, .raw = f->raw, .progress = show_progress}, &result);
    if (status == OK) {
        if (f->json)
            validate_json(&result, &text);
        else
            validate_text(&result, &text);
        fwrite(text.at, 1, text.n, stdout);
    }
    str_deinit(&text);
    arena_deinit(&arena);
    return status;
}

const Command command_validate = {
    .name = "validate",
    .operands = "PATH ...",
    .min_operands = 1,
    .max_operands = ANY_NUMBER,
    .sentence = "published training runs against the planner",
    COMMAND_OPTIONS(ValidateFlags, options),
    .run = run,
};
