/* cli: the commands of drover, and the one way in which they read their options.
 *
 * What it is.   Command (name, operands, a table of options, what it does), the list of all
 *               commands,
 *               parsing, help, exit codes.
 * Depends on.   base, run, data, text, chat, ckpt, model, cluster, fleet, device, infer, eval,
 *               train, planner, outlook, report, launch
 * Owns.         Nothing beyond the life of the process; the only mutable thing is the flag that an
 *               interrupt sets (cli_interrupted).
 * Invariants.   Results go to stdout, messages to stderr. An error is one line, "drover: WHAT",
 *               written
 *               by cli_main alone. Parsing, help, checks and suggestions come from the same tables.
 * Use:
 *     static const Option options[] = {
 *         {"max-tokens", OPTION_INT, "N", 1, 1 << 30, "256", NULL, offsetof(Mine, max_tokens),
 *         "tokens to make at most"},
 *     };
 *     const Command command_mine = {.name = "mine", .operands = "MODEL", .min_operands = 1,
 *     .max_operands = 1,
 *                                   .sentence = "do it", COMMAND_OPTIONS(Mine, options), .run =
 *                                   run};
 *     (and a line COMMAND(mine) in cli/list.h)
 */
#ifndef CLI_CLI_H
#define CLI_CLI_H

#include "cli/ranks.h"
#include "infer/infer.h"

typedef enum OptionType {
    OPTION_FLAG,   /* bool; no value */
    OPTION_INT,    /* int64_t */
    OPTION_FLOAT,  /* double */
    OPTION_TEXT,   /* const char *; NULL when it is not given and has no default */
    OPTION_CHOICE, /* int, the place among choices */
} OptionType;

typedef struct Option {
    const char *name; /* as typed, without the dashes; of one letter: with one dash */
    OptionType type;
    const char *unit; /* what stands for the value in help: TEXT, FILE, N, SECONDS */
    double min, max;  /* of numbers */
    const char
        *default_text;   /* as it would be typed; NULL: NAN, INT64_MIN, no text, the first choice */
    const char *choices; /* words separated by a bar, or NULL */
    size_t offset;       /* in the command's struct of options */
    const char *sentence;
} Option;

/* What stands on the command line besides options. */
typedef struct Operands {
    const char *const *at;
    int n;
} Operands;

enum { ANY_NUMBER = 1 << 20 };

typedef struct Command {
    const char *name;     /* "generate"; of a group: "tokenizer train" */
    const char *operands; /* for help: "MODEL" */
    int min_operands, max_operands;
    const char *sentence;
    const char *group;   /* of the first command of a group: what the group is about */
    const char *details; /* more for its help, wrapped by hand at 80 columns; or NULL */
    const Option *options;
    int n_options;
    size_t options_bytes;
    Status (*run)(const void *options, Operands operands);
} Command;
#define COMMAND_OPTIONS(T, table)                                                                  \
    .options = (table), .n_options = COUNT_OF(table), .options_bytes = sizeof(T)

/* In the order of the list; NULL past the end. */
const Command *command_at(int index);

/* ---- parsing (parse.c) ------------------------------------------------------------------ */

typedef struct ParsedLine {
    const Command *command; /* NULL: nothing to run */
    void *options;          /* command->options_bytes, in the arena */
    Operands operands;
    bool help, version;
} ParsedLine;

/* argv without the program's name. Wrong usage is ERR_ARG with a sentence that names the nearest.
 */
Status cli_parse(Arena *arena, int argc, const char *const *argv, ParsedLine *line);

/* ---- help (help.c) ---------------------------------------------------------------------- */

void help_all(Str *out);
void help_command(const Command *command, Str *out);
/* The commands of a group ("tokenizer"); false when there is no such group. */
bool help_group(const char *name, Str *out);
const char *drover_version(void);

/* ---- for commands that load a model (model_flags.c) ------------------------------------- */

typedef struct ModelFlags {
    int dtype;  /* auto, f32, bf16 */
    int device; /* DeviceKind */
    int64_t threads, memory;
    int64_t dp, fsdp, ep, tp, pp; /* ranks along each axis of the mesh */
} ModelFlags;
/* clang-format off */
#define MODEL_FLAGS(T, member)                                                                     \
    {"dtype", OPTION_CHOICE, "TYPE", 0, 0, "auto", "auto|f32|bf16", offsetof(T, member.dtype),     \
     "of weights and products; auto: 16 bits where the files have them"},                          \
    {"device", OPTION_CHOICE, "DEVICE", 0, 0, "auto", "auto|cpu|cuda", offsetof(T, member.device), \
     "auto: a GPU where there is one, else the processor"},                                        \
    {"threads", OPTION_INT, "N", 0, 4096, "0", NULL, offsetof(T, member.threads), "0: all cores"}, \
    {"memory", OPTION_INT, "BYTES", 0, 1e18, "0", NULL, offsetof(T, member.memory),                \
     "refuse to take more; 0: what is free"},                                                      \
    {"tp", OPTION_INT, "N", 1, 4096, "1", NULL, offsetof(T, member.tp),                            \
     "ranks that share heads and columns"},                                                        \
    {"ep", OPTION_INT, "N", 1, 4096, "1", NULL, offsetof(T, member.ep),                            \
     "ranks that share experts"},                                                                  \
    {"pp", OPTION_INT, "N", 1, 4096, "1", NULL, offsetof(T, member.pp),                            \
     "ranks that share layers"},                                                                   \
    {"fsdp", OPTION_INT, "N", 1, 4096, "1", NULL, offsetof(T, member.fsdp),                        \
     "ranks that share sequences and hold a part of each weight"},                                 \
    {"dp", OPTION_INT, "N", 1, 4096, "1", NULL, offsetof(T, member.dp),                            \
     "ranks that share sequences"}
/* clang-format on */

/* Opens the model and calls main on each of the ranks that the flags ask for; `options` are the
 * command's. */
typedef Status (*ModelMain)(const Rank *rank, const InferModel *model, const void *options);
Status model_flags_run(const ModelFlags *flags, const char *path, ModelMain main,
                       const void *options);
void model_flags_apply(const ModelFlags *flags, const Rank *rank, InferOptions *options);

/* {"ids": [[1, 2], [3]]}: every row has at least one id, and all are below 2^31. */
typedef struct IdRows {
    IdVec *row; /* in the arena, as are the ids */
    int n;
} IdRows;
Status ids_read(Arena *arena, const char *path, IdRows *rows);

/* ---- for all commands ------------------------------------------------------------------- */

/* Everything but the program itself: returns the exit code of design section 4. */
int cli_main(int argc, const char *const *argv);

/* From now on SIGINT and SIGTERM set a flag; a second one ends the process as it would have. */
void cli_catch_interrupts(void);
bool cli_interrupted(void);
void cli_clear_interrupt(void);

#endif
