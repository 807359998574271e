/* Help, from the tables. */
#include "cli/cli.h"

#include <string.h>

#ifndef DROVER_VERSION
#define DROVER_VERSION "unknown"
#endif

const char *drover_version(void) { return DROVER_VERSION; }

enum { WIDTH = 80, MAX_SHOWN_NAME = 24 };

/* Adds text wrapped at WIDTH, `column` characters of the first line being there already. */
static void wrap(Str *out, int column, int indent, const char *text)
{
    bool first = true;
    for (text += strspn(text, " "); *text; text += strspn(text, " "), first = false) {
        int n = (int)strcspn(text, " ");
        bool fits = column + n + !first <= WIDTH;
        if (!fits)
            str_printf(out, "\n%*s", indent, "");
        else if (!first)
            str_add(out, " ");
        column = fits ? column + n + !first : indent + n;
        str_add_n(out, text, (size_t)n);
        text += n;
    }
    str_add(out, "\n");
}

static void add_row(Str *out, const char *left, int width, const char *sentence)
{
    int indent = width + 4;
    str_printf(out, "  %-*s", width, left);
    if ((int)strlen(left) > width)
        str_printf(out, "\n%*s", indent, "");
    else
        str_add(out, "  ");
    wrap(out, indent, indent, sentence);
}

/* ---- all commands ----------------------------------------------------------------------- */

/* A group is one line: "tokenizer ..."; its own help has the rest. */
static int add_group(Str *left, int index)
{
    const Command *c = command_at(index);
    size_t n = strcspn(c->name, " ");
    str_printf(left, "%.*s", (int)n, c->name);
    if (!c->name[n]) {
        if (*c->operands) str_printf(left, " %s", c->operands);
        return index + 1;
    }
    const char *group = c->name;
    str_add(left, " ...");
    while ((c = command_at(index)) && !strncmp(c->name, group, n + 1)) index++;
    return index;
}

void help_all(Str *out)
{
    str_printf(out, "drover %s: trains and serves Llama-class language models.\n\n",
               drover_version());
    for (int i = 0; command_at(i);) {
        const Command *first = command_at(i);
        Str left = {0};
        i = add_group(&left, i);
        add_row(out, left.at, MAX_SHOWN_NAME, first->group ? first->group : first->sentence);
        str_deinit(&left);
    }
    str_add(out, "\nMODEL is a Hugging Face model directory, a checkpoint, or a run's directory.\n"
                 "drover COMMAND --help tells more.  Exit codes: 0 done, 1 failed, 2 wrong\n"
                 "usage, 3 refused by a check, 75 interrupted (the same command resumes).\n");
}

bool help_group(const char *name, Str *out)
{
    size_t n = strlen(name);
    bool found = false;
    const Command *c;
    for (int i = 0; (c = command_at(i)); i++) {
        if (strncmp(c->name, name, n) || c->name[n] != ' ') continue;
        Str left = {0};
        str_printf(&left, "drover %s %s", c->name, c->operands);
        add_row(out, left.at, 36, c->sentence);
        str_deinit(&left);
        found = true;
    }
    return found;
}

/* ---- one command ------------------------------------------------------------------------ */

static void add_range(const Option *o, Str *out)
{
    bool number = o->type == OPTION_INT || o->type == OPTION_FLOAT;
    if (o->type == OPTION_CHOICE) str_printf(out, " (%s)", o->choices);
    if (number && o->max < 1e9) str_printf(out, " (%.10g to %.10g)", o->min, o->max);
    if (o->default_text) str_printf(out, " [%s]", o->default_text);
}

void help_command(const Command *c, Str *out)
{
    str_printf(out, "usage: drover %s%s%s%s\n", c->name, *c->operands ? " " : "", c->operands,
               c->n_options ? " [options]" : "");
    wrap(out, 0, 0, c->sentence);
    if (c->details) str_printf(out, "\n%s\n", c->details);
    if (c->n_options) str_add(out, "\noptions:\n");
    int width = 0;
    for (int i = 0; i < c->n_options; i++) {
        const Option *o = &c->options[i];
        int n = (int)(strlen(o->name) + (o->type == OPTION_FLAG ? 0 : strlen(o->unit) + 1)) + 2;
        width = n > width && n <= MAX_SHOWN_NAME ? n : width;
    }
    for (int i = 0; i < c->n_options; i++) {
        const Option *o = &c->options[i];
        Str left = {0}, right = {0};
        str_printf(&left, "%s%s%s%s", o->name[1] ? "--" : "-", o->name,
                   o->type == OPTION_FLAG ? "" : " ", o->type == OPTION_FLAG ? "" : o->unit);
        str_add(&right, o->sentence);
        add_range(o, &right);
        add_row(out, left.at, width, right.at);
        str_deinit(&left);
        str_deinit(&right);
    }
}

/* ---- the command help ------------------------------------------------------------------- */

static Status run(const void *options, Operands operands)
{
    (void)options;
    Str text = {0};
    Status status = OK;
    if (operands.n == 0) {
        help_all(&text);
    } else if (operands.n > 1 || !help_group(operands.at[0], &text)) {
        Arena arena = {0};
        ParsedLine line;
        const char *words[3] = {operands.at[0], operands.n > 1 ? operands.at[1] : "--help",
                                "--help"};
        status = cli_parse(&arena, operands.n + 1, words, &line);
        if (status == OK) help_command(line.command, &text);
        arena_deinit(&arena);
    }
    if (status == OK) fputs(text.at, stdout);
    str_deinit(&text);
    return status;
}

const Command command_help = {
    .name = "help",
    .operands = "[COMMAND]",
    .max_operands = 2,
    .sentence = "this list, or all about one command",
    .run = run,
};
