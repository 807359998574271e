/* The tree becomes a RunConfig by the table: unknown keys, short forms, combinations; and back. */
#include "run/run_internal.h"

#include <stdlib.h>
#include <string.h>

typedef struct Loader {
    Arena *arena;
    RunConfig *config;
    const RunNode **given; /* per setting: the node that set it, or NULL */
} Loader;

static const RunNode *given(const Loader *l, const char *name)
{
    return l->given[run_setting_find(name) - run_setting(0)];
}

/* ---- unknown keys ---------------------------------------------------------------------- */

static bool is_section(const char *name)
{
    size_t n = strlen(name);
    for (int i = 0; i < run_setting_count(); i++) {
        const char *other = run_setting(i)->name;
        if (!strncmp(other, name, n) && other[n] == '.') return true;
    }
    return false;
}

/* The right key nearest to `name` under `prefix`; else the setting elsewhere that ends in `name`. */
static const char *suggest(Loader *l, const char *prefix, const char *name)
{
    const char **candidates = ARENA_ARRAY(l->arena, const char *, run_setting_count());
    size_t skip = strlen(prefix);
    int n = 0;
    for (int i = 0; i < run_setting_count(); i++) {
        const char *full = run_setting(i)->name;
        if (strncmp(full, prefix, skip) != 0) continue;
        size_t length = strcspn(full + skip, ".[");
        candidates[n++] = arena_strndup(l->arena, full + skip, length);
    }
    const char *near = name_nearest(name, candidates, n);
    if (near) return arena_printf(l->arena, "%s%s", prefix, near);
    for (int i = 0; i < run_setting_count(); i++) {
        const char *dot = strrchr(run_setting(i)->name, '.');
        if (dot && !strcmp(dot + 1, name)) return run_setting(i)->name;
    }
    return NULL;
}

static Status unknown(Loader *l, const RunNode *node, const char *prefix, const char *name)
{
    const char *near = suggest(l, prefix, name);
    return fail(ERR_ARG, "%s: there is no setting '%s%.80s'%s%s%s", run_node_where(l->arena, node), prefix, name,
                near ? "; did you mean " : "; drover train --help lists them", near ? near : "", near ? "?" : "");
}

/* ---- the tree, section by section ------------------------------------------------------ */

static Status read_setting(Loader *l, const Setting *s, const RunNode *node, void *base)
{
    l->given[s - run_setting(0)] = node;
    return setting_read(l->arena, s, node, base);
}

/* All keys of `map`, whose dotted prefix ("train.") belongs to settings in `base`. */
static Status read_section(Loader *l, const char *prefix, const RunNode *map, void *base)
{
    if (map->kind == NODE_SCALAR && !*map->text && !map->quoted) return OK; /* `train:` with nothing */
    if (map->kind != NODE_MAP)
        return fail(ERR_ARG, "%s: %.*s is a section with keys of its own, such as %s", run_node_where(l->arena, map),
                    (int)strlen(prefix) - 1, prefix, suggest(l, prefix, "") ? suggest(l, prefix, "") : prefix);
    for (int i = 0; i < map->n; i++) {
        const char *name = arena_printf(l->arena, "%s%s", prefix, map->key[i]);
        const Setting *s = run_setting_find(name);
        if (s) TRY(read_setting(l, s, map->item[i], base));
        else if (is_section(name))
            TRY(read_section(l, arena_printf(l->arena, "%s.", name), map->item[i], base));
        else return unknown(l, map->item[i], prefix, map->key[i]);
    }
    return OK;
}

/* `tokenizer: PATH` is {path: PATH}; an override under it finds the scalar under the key "". */
static RunNode *long_form(Loader *l, RunNode *node, const char *key)
{
    if (node->kind == NODE_MAP) {
        for (int i = 0; i < node->n; i++)
            if (!*node->key[i]) node->key[i] = key;
        return node;
    }
    if (node->kind != NODE_SCALAR || (!*node->text && !node->quoted)) return node;
    RunNode *map = run_node_create(l->arena, NODE_MAP, node->place, node->line);
    run_node_append(l->arena, map, key, node);
    return map;
}

/* preset and from are settings; every other key is a field of config.json. */
static Status read_model(Loader *l, RunNode *node)
{
    RunNode *map = long_form(l, node, "preset"), *fields = run_node_create(l->arena, NODE_MAP, node->place, node->line);
    if (map->kind == NODE_LIST)
        return fail(ERR_ARG, "%s: model is a list; a preset's name or a mapping is wanted", run_node_where(l->arena, map));
    for (int i = 0; i < map->n; i++) {
        const char *key = map->key[i];
        const Setting *s = !strcmp(key, "preset") ? run_setting_find("model.preset")
                           : !strcmp(key, "from") ? run_setting_find("model.from")
                                                  : NULL;
        if (s) TRY(read_setting(l, s, map->item[i], l->config));
        else run_node_append(l->arena, fields, key, map->item[i]);
    }
    Str json = {0};
    Status status = run_node_json(l->arena, fields, &json);
    if (status == OK) l->config->model.fields_json = arena_strdup(l->arena, json.at);
    l->config->model.fields = fields;
    str_deinit(&json);
    return status;
}

static Status read_source(Loader *l, RunNode *node, RunSource *source)
{
    for (int i = 0; i < run_setting_count(); i++)
        if (!strncmp(run_setting(i)->name, "data[].", 7)) TRY(setting_default(l->arena, run_setting(i), source));
    const RunNode *map = long_form(l, node, "path");
    TRY(read_section(l, "data[].", map, source));
    const char *where = run_node_where(l->arena, node);
    if (!*source->path && !source->synthetic)
        return fail(ERR_ARG, "%s: this source names no path, such as {path: \"/usr/include/**/*.h\"}", where);
    if (*source->path && source->synthetic)
        return fail(ERR_REFUSED, "%s: a source is either a path or synthetic, not both", where);
    if (!*source->key) return fail(ERR_ARG, "%s: data[].key is empty; the field that holds the text is wanted", where);
    return OK;
}

static Status read_sources(Loader *l, RunNode *node)
{
    if (node->kind == NODE_SCALAR && !*node->text) return OK;
    RunNode *list = node;
    if (node->kind != NODE_LIST) {
        list = run_node_create(l->arena, NODE_LIST, node->place, node->line);
        run_node_append(l->arena, list, NULL, node);
    }
    l->config->sources = ARENA_ARRAY(l->arena, RunSource, list->n + 1);
    for (int i = 0; i < list->n; i++) {
        TRY(read_source(l, list->item[i], &l->config->sources[i]));
        if (l->config->sources[i].synthetic && list->n > 1)
            return fail(ERR_REFUSED, "%s: a synthetic source cannot be mixed with others", run_node_where(l->arena, list->item[i]));
    }
    l->config->n_sources = list->n;
    return OK;
}

static Status read_root(Loader *l, RunNode *root)
{
    RunNode *rest = run_node_create(l->arena, NODE_MAP, root->place, root->line);
    for (int i = 0; i < root->n; i++) {
        RunNode *item = root->item[i];
        if (!strcmp(root->key[i], "model")) TRY(read_model(l, item));
        else if (!strcmp(root->key[i], "data")) TRY(read_sources(l, item));
        else if (!strcmp(root->key[i], "tokenizer")) {
            l->config->tokenizer.train = run_node_find(item, "train") != NULL;
            run_node_append(l->arena, rest, "tokenizer", long_form(l, item, "path"));
        } else run_node_append(l->arena, rest, root->key[i], item);
    }
    return read_section(l, "", rest, l->config);
}

/* ---- combinations ---------------------------------------------------------------------- */

/* "demo.yaml:7" of the setting, or "default". */
static const char *where(const Loader *l, const char *name)
{
    const RunNode *node = given(l, name);
    return node ? run_node_where(l->arena, node) : "default";
}

static Status check_train(const Loader *l)
{
    const RunTrain *t = &l->config->train;
    if (t->micro_batch > t->batch || t->batch % t->micro_batch != 0)
        return fail(ERR_REFUSED, "%s: train.micro_batch %lld does not divide train.batch %lld (%s)",
                    where(l, "train.micro_batch"), (long long)t->micro_batch, (long long)t->batch, where(l, "train.batch"));
    if (t->minutes > 0) return OK; /* the number of steps is not known yet, and a schedule adapts to it */
    if (t->warmup > t->steps)
        return fail(ERR_REFUSED, "%s: train.warmup %lld is more than train.steps %lld (%s)", where(l, "train.warmup"),
                    (long long)t->warmup, (long long)t->steps, where(l, "train.steps"));
    double decay_steps = t->decay * (double)t->steps;
    if (t->schedule == RUN_WSD && (double)t->warmup + decay_steps > (double)t->steps + 1)
        return fail(ERR_REFUSED, "%s: train.warmup %lld and train.decay %g of %lld steps together exceed train.steps",
                    where(l, "train.decay"), (long long)t->warmup, t->decay, (long long)t->steps);
    if (t->micro_batch * t->seq > INT32_MAX)
        return fail(ERR_REFUSED, "%s: train.micro_batch %lld times train.seq %lld is more tokens at once than %d; a smaller train.micro_batch is wanted",
                    where(l, "train.micro_batch"), (long long)t->micro_batch, (long long)t->seq, INT32_MAX);
    if ((double)t->batch * (double)t->seq > 1e15)
        return fail(ERR_REFUSED, "%s: train.batch %lld times train.seq %lld is more than 1e15 tokens", where(l, "train.batch"),
                    (long long)t->batch, (long long)t->seq);
    return OK;
}

static Status check_names(const Loader *l)
{
    const RunConfig *c = l->config;
    if (!path_is_plain_name(c->name) || strlen(c->name) > 128)
        return fail(ERR_ARG, "%s: name '%.80s' is no plain file name of at most 128 letters", where(l, "name"), c->name);
    if (*c->model.preset && *c->model.from)
        return fail(ERR_REFUSED, "%s: model.from (%s) and model.preset (%s) exclude each other", where(l, "model.from"),
                    c->model.from, c->model.preset);
    const RunNode *train = given(l, "tokenizer.train.vocab_size") ? given(l, "tokenizer.train.vocab_size")
                                                               : given(l, "tokenizer.train.limit");
    if (*c->tokenizer.path && train)
        return fail(ERR_REFUSED, "%s: tokenizer.path (%s) and tokenizer.train exclude each other",
                    run_node_where(l->arena, train), c->tokenizer.path);
    return OK;
}

/* Values whose default depends on others. */
static void resolve(Loader *l, const char *place)
{
    RunConfig *c = l->config;
    CHECK(c->name && c->dir); /* their defaults are texts */
    if (!*c->name) {
        const char *base = path_base(place), *dot = strrchr(base, '.');
        size_t n = dot && dot != base ? (size_t)(dot - base) : strlen(base);
        c->name = n ? arena_strndup(l->arena, base, n) : "run";
    }
    if (!*c->dir) c->dir = arena_printf(l->arena, "runs/%s", c->name);
    if (c->train.micro_batch == 0) c->train.micro_batch = c->train.batch;
    if (c->train.warmup < 0 && c->train.minutes == 0) c->train.warmup = min_i64(2000, c->train.steps / 20);
}

static Status load(Arena *arena, Bytes text, const char *name, const char *const *overrides, int n_overrides,
                   RunConfig *config)
{
    Loader l = {arena, config, ARENA_ARRAY(arena, const RunNode *, run_setting_count())};
    config->model.fields_json = "{}";
    for (int i = 0; i < run_setting_count(); i++)
        if (strncmp(run_setting(i)->name, "data[].", 7) != 0) TRY(setting_default(arena, run_setting(i), config));
    const char *place = arena_strdup(arena, name);
    RunNode *root;
    TRY(run_node_parse(arena, text, place, &root));
    for (int i = 0; i < n_overrides; i++) TRY(run_node_override(arena, root, overrides[i]));
    TRY(read_root(&l, root));
    resolve(&l, place);
    TRY(check_names(&l));
    return check_train(&l);
}

Status run_config_parse(Bytes text, const char *name, const char *const *overrides, int n_overrides, RunConfig *config)
{
    RunConfig loaded = {0};
    Arena arena = {0};
    Status status = load(&arena, text, name, overrides, n_overrides, &loaded);
    if (status != OK) {
        arena_deinit(&arena);
        return status;
    }
    loaded.arena = arena;
    *config = loaded;
    return OK;
}

Status run_config_load(const char *path, const char *const *overrides, int n_overrides, RunConfig *config)
{
    Arena arena = {0};
    Bytes text = {(const uint8_t *)"", 0};
    Status status = path ? file_read(&arena, path, MAX_RUN_FILE_BYTES, &text) : OK;
    if (status == OK) status = run_config_parse(text, path ? path : "run", overrides, n_overrides, config);
    arena_deinit(&arena);
    return status;
}

void run_config_deinit(RunConfig *config)
{
    Arena arena = config->arena;
    *config = (RunConfig){0};
    arena_deinit(&arena);
}

/* ---- writing --------------------------------------------------------------------------- */

/* Settings that would contradict others when the file is loaded again stay out. */
static bool is_written(const Setting *s, const RunConfig *c)
{
    if (s->type == SETTING_TEXT && !**(const char *const *)(const void *)((const char *)c + s->offset)) return false;
    bool elsewhere = *c->tokenizer.path || (*c->model.from && !c->tokenizer.train);
    return !(elsewhere && !strncmp(s->name, "tokenizer.train.", 16));
}

/* Opens the sections of `name` that are not those of `before`, and writes its last key. */
static void add_key(const char *name, const char *before, Str *out)
{
    int depth = 0;
    bool shared = true;
    const char *dot;
    for (; (dot = strchr(name, '.')); name = dot + 1, depth++) {
        size_t n = (size_t)(dot - name) + 1;
        shared = shared && !strncmp(name, before, n);
        if (shared) before += n;
        else str_printf(out, "%*s%.*s:\n", 2 * depth, "", (int)n - 1, name);
    }
    str_printf(out, "%*s%s: ", 2 * depth, "", name);
}

static void add_sources(const RunConfig *config, Str *out)
{
    if (config->n_sources) str_add(out, "data:\n");
    for (int i = 0; i < config->n_sources; i++) {
        const char *lead = "  - {";
        for (int k = 0; k < run_setting_count(); k++) {
            const Setting *s = run_setting(k);
            if (strncmp(s->name, "data[].", 7) != 0) continue;
            if (!strcmp(s->name, "data[].path") && config->sources[i].synthetic) continue;
            str_printf(out, "%s%s: ", lead, s->name + 7);
            setting_write(s, &config->sources[i], out);
            lead = ", ";
        }
        str_add(out, "}\n");
    }
}

/* The fields as one line of JSON per key, which is YAML. */
static void add_model(const RunConfig *config, Str *out)
{
    const RunNode *fields = config->model.fields;
    int n = fields ? fields->n : 0;
    if (!n && !*config->model.preset && !*config->model.from) return;
    str_add(out, "model:\n");
    static const char *const names[] = {"model.preset", "model.from"};
    for (int i = 0; i < COUNT_OF(names); i++) {
        const Setting *s = run_setting_find(names[i]);
        if (!is_written(s, config)) continue;
        str_printf(out, "  %s: ", s->name + 6);
        setting_write(s, config, out);
        str_add(out, "\n");
    }
    Arena arena = {0};
    for (int i = 0; i < n; i++) {
        RunNode pair = {.kind = NODE_MAP, .n = 1, .key = &fields->key[i], .item = &fields->item[i]};
        Str line = {0};
        CHECK(run_node_json(&arena, &pair, &line) == OK); /* it went well when the file was read */
        str_add(out, "  ");
        str_add_n(out, line.at + 1, line.n - 2); /* without the braces */
        str_add(out, "\n");
        str_deinit(&line);
    }
    arena_deinit(&arena);
}

void run_config_text(const RunConfig *config, Str *out)
{
    const char *before = "";
    for (int i = 0; i < run_setting_count(); i++) {
        const Setting *s = run_setting(i);
        if (!strcmp(s->name, "model.preset")) add_model(config, out);
        if (!strcmp(s->name, "data[].path")) add_sources(config, out);
        if (!strncmp(s->name, "model.", 6) || !strncmp(s->name, "data[].", 7) || !is_written(s, config)) continue;
        add_key(s->name, before, out);
        setting_write(s, config, out);
        str_add(out, "\n");
        before = s->name;
    }
}

Status run_config_write(const RunConfig *config, const char *path)
{
    Str text = {0};
    run_config_text(config, &text);
    Status status = file_write_atomic(path, text.at, text.n);
    str_deinit(&text);
    return status;
}
