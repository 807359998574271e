/* The command line, read by the tables. */
#include "cli/cli.h"

#include <math.h>
#include <string.h>

enum { MAX_CANDIDATES = 256 };

/* ---- which command ---------------------------------------------------------------------- */

static bool is_group(const char *word)
{
    size_t n = strlen(word);
    const Command *c;
    for (int i = 0; (c = command_at(i)); i++)
        if (!strncmp(c->name, word, n) && c->name[n] == ' ') return true;
    return false;
}

static Status unknown(const char *kind, const char *word, const char *const *candidates, int n,
                      const char *hint)
{
    const char *near = name_nearest(word, candidates, n);
    if (near) return fail(ERR_ARG, "there is no %s '%s'; did you mean '%s'?", kind, word, near);
    return fail(ERR_ARG, "there is no %s '%s'; see %s", kind, word, hint);
}

/* First words of all commands, a group once. */
static Status unknown_command(Arena *arena, const char *word)
{
    const char *names[MAX_CANDIDATES];
    int n = 0;
    const Command *c;
    for (int i = 0; (c = command_at(i)) && n < MAX_CANDIDATES; i++)
        names[n++] = arena_strndup(arena, c->name, strcspn(c->name, " "));
    return unknown("command", word, names, n, "drover help");
}

static Status unknown_in_group(Arena *arena, const char *group, const char *word)
{
    const char *names[MAX_CANDIDATES];
    int n = 0;
    size_t length = strlen(group);
    Str all = {0};
    const Command *c;
    for (int i = 0; (c = command_at(i)) && n < MAX_CANDIDATES; i++) {
        if (strncmp(c->name, group, length) || c->name[length] != ' ') continue;
        names[n++] = c->name + length + 1;
        str_printf(&all, "%s%s", all.n ? ", " : "", c->name + length + 1);
    }
    const char *list = arena_strdup(arena, all.at);
    str_deinit(&all);
    if (!word) return fail(ERR_ARG, "%s needs one of: %s", group, list);
    const char *near = name_nearest(word, names, n);
    if (near) return fail(ERR_ARG, "%s has no '%s'; did you mean '%s'?", group, word, near);
    return fail(ERR_ARG, "%s has no '%s', only: %s", group, word, list);
}

static Status find_command(Arena *arena, int argc, const char *const *argv, const Command **command,
                           int *used)
{
    bool group = is_group(argv[0]);
    const Command *c;
    for (int i = 0; (c = command_at(i)); i++) {
        *command = c;
        *used = 1 + group;
        if (!group && !strcmp(c->name, argv[0])) return OK;
        size_t n = strlen(argv[0]);
        if (group && argc > 1 && !strncmp(c->name, argv[0], n) && c->name[n] == ' ' &&
            !strcmp(c->name + n + 1, argv[1]))
            return OK;
    }
    return group ? unknown_in_group(arena, argv[0], argc > 1 ? argv[1] : NULL)
                 : unknown_command(arena, argv[0]);
}

/* ---- options ---------------------------------------------------------------------------- */

static const Option *find_option(const Command *c, const char *name, size_t n)
{
    for (int i = 0; i < c->n_options; i++)
        if (strlen(c->options[i].name) == n && !strncmp(c->options[i].name, name, n))
            return &c->options[i];
    return NULL;
}

static Status unknown_option(Arena *arena, const Command *c, const char *name, size_t n)
{
    const char *names[MAX_CANDIDATES];
    int count = 0;
    for (int i = 0; i < c->n_options && count < MAX_CANDIDATES - 1; i++)
        names[count++] = c->options[i].name;
    names[count++] = "help";
    const char *word = arena_strndup(arena, name, n), *near = name_nearest(word, names, count);
    if (near)
        return fail(ERR_ARG, "%s has no option --%s; did you mean --%s?", c->name, word, near);
    return fail(ERR_ARG, "%s has no option --%s; see drover %s --help", c->name, word, c->name);
}

static Status read_choice(const Option *o, const char *text, int *out)
{
    int index = 0;
    for (const char *at = o->choices; *at; index++) {
        size_t n = strcspn(at, "|");
        if (strlen(text) == n && !strncmp(at, text, n)) {
            *out = index;
            return OK;
        }
        at += n + (at[n] == '|');
    }
    return fail(ERR_ARG, "--%s is '%s', but it can only be %s", o->name, text, o->choices);
}

static Status out_of_range(const Option *o, const char *text)
{
    return fail(ERR_ARG, "--%s is %s, but it must lie between %.10g and %.10g", o->name, text,
                o->min, o->max);
}

static Status read_value(const Option *o, const char *text, void *options)
{
    char *at = (char *)options + o->offset;
    int64_t i;
    double f;
    switch (o->type) {
    case OPTION_FLAG: *(bool *)at = true; return OK;
    case OPTION_TEXT: *(const char **)at = text; return OK;
    case OPTION_CHOICE: return read_choice(o, text, (int *)(void *)at);
    case OPTION_INT:
        if (!parse_i64(text, &i))
            return fail(ERR_ARG, "--%s is '%s', which is not a whole number", o->name, text);
        if ((double)i < o->min || (double)i > o->max) return out_of_range(o, text);
        *(int64_t *)(void *)at = i;
        return OK;
    case OPTION_FLOAT:
        if (!parse_f64(text, &f))
            return fail(ERR_ARG, "--%s is '%s', which is not a number", o->name, text);
        if (f < o->min || f > o->max) return out_of_range(o, text);
        *(double *)(void *)at = f;
        return OK;
    }
    return OK;
}

static Status set_default(const Option *o, void *options)
{
    void *at = (char *)options + o->offset;
    if (o->default_text) return read_value(o, o->default_text, options);
    if (o->type == OPTION_INT) *(int64_t *)at = INT64_MIN;
    if (o->type == OPTION_FLOAT) *(double *)at = (double)NAN;
    return OK;
}

typedef struct Cursor {
    int argc, at;
    const char *const *argv;
} Cursor;

/* -n: an option whose name is one letter, typed with one dash. */
static bool is_letter_option(const Command *c, const char *word)
{
    return word[0] == '-' && word[1] && (!word[2] || word[2] == '=') && find_option(c, word + 1, 1);
}

/* --name, --name value, --name=value; the cursor stands on it and is moved behind it. */
static Status read_option(Arena *arena, Cursor *cursor, ParsedLine *line)
{
    const Command *c = line->command;
    const char *word = cursor->argv[cursor->at++], *equals = strchr(word, '=');
    word += word[1] == '-' ? 2 : 1;
    size_t n = equals ? (size_t)(equals - word) : strlen(word);
    const Option *o = find_option(c, word, n);
    if (!o) return unknown_option(arena, c, word, n);
    if (o->type == OPTION_FLAG) {
        if (equals) return fail(ERR_ARG, "--%s takes no value", o->name);
        return read_value(o, NULL, line->options);
    }
    if (equals) return read_value(o, equals + 1, line->options);
    if (cursor->at == cursor->argc)
        return fail(ERR_ARG, "--%s needs a value (%s)", o->name, o->unit);
    return read_value(o, cursor->argv[cursor->at++], line->options);
}

static Status check_operands(const Command *c, int n)
{
    if (n < c->min_operands)
        return fail(ERR_ARG, "%s needs %s; see drover %s --help", c->name, c->operands, c->name);
    if (n > c->max_operands)
        return fail(ERR_ARG, "%s takes %s%s, but %d words were given; see drover %s --help",
                    c->name, c->max_operands ? "only " : "no operands",
                    c->max_operands ? c->operands : "", n, c->name);
    return OK;
}

static Status read_words(Arena *arena, Cursor *cursor, ParsedLine *line)
{
    const char **operand = ARENA_ARRAY(arena, const char *, cursor->argc + 1);
    int n = 0;
    bool only_operands = false;
    while (cursor->at < cursor->argc) {
        const char *word = cursor->argv[cursor->at];
        bool dash = !only_operands && word[0] == '-' && word[1];
        if (dash && (!strcmp(word, "--help") || !strcmp(word, "-h"))) {
            line->help = true;
            return OK;
        }
        if (dash && !strcmp(word, "--")) {
            only_operands = true;
            cursor->at++;
        } else if (dash && (word[1] == '-' || is_letter_option(line->command, word))) {
            TRY(read_option(arena, cursor, line));
        } else if (dash) {
            return fail(ERR_ARG, "%s has no option %s; options begin with two dashes",
                        line->command->name, word);
        } else {
            operand[n++] = word;
            cursor->at++;
        }
    }
    line->operands = (Operands){operand, n};
    return check_operands(line->command, n);
}

Status cli_parse(Arena *arena, int argc, const char *const *argv, ParsedLine *line)
{
    *line = (ParsedLine){0};
    if (argc == 0 || !strcmp(argv[0], "--help") || !strcmp(argv[0], "-h")) {
        line->help = true;
        return OK;
    }
    if (!strcmp(argv[0], "--version")) {
        line->version = true;
        return OK;
    }
    if (is_group(argv[0]) && argc > 1 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))) {
        const char **group = ARENA_ARRAY(arena, const char *, 1);
        group[0] = argv[0];
        line->operands = (Operands){group, 1};
        line->help = true;
        return OK;
    }
    int used = 0;
    TRY(find_command(arena, argc, argv, &line->command, &used));
    line->options = arena_alloc(arena, line->command->options_bytes + 1);
    for (int i = 0; i < line->command->n_options; i++)
        TRY(set_default(&line->command->options[i], line->options));
    return read_words(arena, &(Cursor){argc, used, argv}, line);
}
