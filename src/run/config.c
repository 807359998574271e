/* The tree becomes a RunConfig by the table: unknown keys, short forms, combinations; and back. */
#include "run/run.h"

#include <stdlib.h>
#include <string.h>

typedef struct Loader {
    Arena *arena;
    RunConfig *config;
    SettingReader reader;
} Loader;

static const SettingNode *given(const Loader *l, const char *name)
{
    return l->reader.given[run_setting_find(name) - run_setting(0)];
}

/* ---- the tree, section by section ------------------------------------------------------- */

/* `tokenizer: PATH` is {path: PATH}; an override under it finds the scalar under the key "". */
static SettingNode *long_form(Loader *l, SettingNode *node, const char *key)
{
    if (node->kind == NODE_MAP) {
        for (int i = 0; i < node->n; i++)
            if (!*node->key[i]) node->key[i] = key;
        return node;
    }
    if (node->kind != NODE_SCALAR || (!*node->text && !node->quoted)) return node;
    SettingNode *map = setting_node_create(l->arena, NODE_MAP, node->place, node->line);
    setting_node_append(l->arena, map, key, node);
    return map;
}

static Status read_setting(Loader *l, const Setting *s, const SettingNode *node)
{
    l->reader.given[s - run_setting(0)] = node;
    return setting_read(l->arena, s, node, l->config);
}

/* preset and from are settings; every other key is a field of config.json. */
static Status read_model(Loader *l, SettingNode *node)
{
    SettingNode *map = long_form(l, node, "preset"),
                *fields = setting_node_create(l->arena, NODE_MAP, node->place, node->line);
    if (map->kind == NODE_LIST)
        return fail(ERR_ARG, "%s: model is a list; a preset's name or a mapping is wanted",
                    setting_node_where(l->arena, map));
    for (int i = 0; i < map->n; i++) {
        const char *key = map->key[i];
        const Setting *s = !strcmp(key, "preset") ? run_setting_find("model.preset")
                           : !strcmp(key, "from") ? run_setting_find("model.from")
                                                  : NULL;
        if (s)
            TRY(read_setting(l, s, map->item[i]));
        else
            setting_node_append(l->arena, fields, key, map->item[i]);
    }
    Str json = {0};
    Status status = setting_node_json(l->arena, fields, &json);
    if (status == OK) l->config->model.fields_json = arena_strdup(l->arena, json.at);
    l->config->model.fields = fields;
    str_deinit(&json);
    return status;
}

static Status read_source(Loader *l, SettingNode *node, RunSource *source)
{
    TRY(setting_read_defaults(&l->reader, "data[].", source));
    const SettingNode *map = long_form(l, node, "path");
    TRY(setting_read_map(&l->reader, "data[].", map, source));
    const char *where = setting_node_where(l->arena, node);
    if (!*source->path && !source->synthetic)
        return fail(ERR_ARG,
                    "%s: this source names no path, such as {path: \"/usr/include/**/*.h\"}",
                    where);
    if (*source->path && source->synthetic)
        return fail(ERR_REFUSED, "%s: a source is either a path or synthetic, not both", where);
    if (!*source->key)
        return fail(ERR_ARG, "%s: data[].key is empty; the field that holds the text is wanted",
                    where);
    return OK;
}

static Status read_sources(Loader *l, SettingNode *node)
{
    if (node->kind == NODE_SCALAR && !*node->text) return OK;
    SettingNode *list = node;
    if (node->kind != NODE_LIST) {
        list = setting_node_create(l->arena, NODE_LIST, node->place, node->line);
        setting_node_append(l->arena, list, NULL, node);
    }
    l->config->sources = ARENA_ARRAY(l->arena, RunSource, list->n + 1);
    for (int i = 0; i < list->n; i++) {
        TRY(read_source(l, list->item[i], &l->config->sources[i]));
        if (l->config->sources[i].synthetic && list->n > 1)
            return fail(ERR_REFUSED, "%s: a synthetic source cannot be mixed with others",
                        setting_node_where(l->arena, list->item[i]));
    }
    l->config->n_sources = list->n;
    return OK;
}

static Status read_root(Loader *l, SettingNode *root)
{
    SettingNode *rest = setting_node_create(l->arena, NODE_MAP, root->place, root->line);
    for (int i = 0; i < root->n; i++) {
        SettingNode *item = root->item[i];
        if (!strcmp(root->key[i], "model"))
            TRY(read_model(l, item));
        else if (!strcmp(root->key[i], "data"))
            TRY(read_sources(l, item));
        else if (!strcmp(root->key[i], "tokenizer")) {
            l->config->tokenizer.train = setting_node_find(item, "train") != NULL;
            setting_node_append(l->arena, rest, "tokenizer", long_form(l, item, "path"));
        } else
            setting_node_append(l->arena, rest, root->key[i], item);
    }
    return setting_read_map(&l->reader, "", rest, l->config);
}

/* ---- combinations ----------------------------------------------------------------------- */

/* "demo.yaml:7" of the setting, or "default". */
static const char *where(const Loader *l, const char *name)
{
    const SettingNode *node = given(l, name);
    return node ? setting_node_where(l->arena, node) : "default";
}

static Status check_train(const Loader *l)
{
    const RunTrain *t = &l->config->train;
    if (t->micro_batch > t->batch || t->batch % t->micro_batch != 0)
        return fail(ERR_REFUSED, "%s: train.micro_batch %lld does not divide train.batch %lld (%s)",
                    where(l, "train.micro_batch"), (long long)t->micro_batch, (long long)t->batch,
                    where(l, "train.batch"));
    if (t->minutes > 0)
        return OK; /* the number of steps is not known yet, and a schedule adapts to it */
    if (t->warmup > t->steps)
        return fail(ERR_REFUSED, "%s: train.warmup %lld is more than train.steps %lld (%s)",
                    where(l, "train.warmup"), (long long)t->warmup, (long long)t->steps,
                    where(l, "train.steps"));
    double decay_steps = t->decay * (double)t->steps;
    if (t->schedule == RUN_WSD && (double)t->warmup + decay_steps > (double)t->steps + 1)
        return fail(
            ERR_REFUSED,
            "%s: train.warmup %lld and train.decay %g of %lld steps together exceed train.steps",
            where(l, "train.decay"), (long long)t->warmup, t->decay, (long long)t->steps);
    if (t->micro_batch * t->seq > INT32_MAX)
        return fail(ERR_REFUSED,
                    "%s: train.micro_batch %lld times train.seq %lld is more tokens at once than "
                    "%d; a smaller train.micro_batch is wanted",
                    where(l, "train.micro_batch"), (long long)t->micro_batch, (long long)t->seq,
                    INT32_MAX);
    if ((double)t->batch * (double)t->seq > 1e15)
        return fail(ERR_REFUSED,
                    "%s: train.batch %lld times train.seq %lld is more than 1e15 tokens",
                    where(l, "train.batch"), (long long)t->batch, (long long)t->seq);
    return OK;
}

static Status check_names(const Loader *l)
{
    const RunConfig *c = l->config;
    if (!path_is_plain_name(c->name) || strlen(c->name) > 128)
        return fail(ERR_ARG, "%s: name '%.80s' is no plain file name of at most 128 letters",
                    where(l, "name"), c->name);
    if (*c->model.preset && *c->model.from)
        return fail(ERR_REFUSED, "%s: model.from (%s) and model.preset (%s) exclude each other",
                    where(l, "model.from"), c->model.from, c->model.preset);
    const SettingNode *train = given(l, "tokenizer.train.vocab_size")
                                   ? given(l, "tokenizer.train.vocab_size")
                                   : given(l, "tokenizer.train.limit");
    if (*c->tokenizer.path && train)
        return fail(ERR_REFUSED, "%s: tokenizer.path (%s) and tokenizer.train exclude each other",
                    setting_node_where(l->arena, train), c->tokenizer.path);
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
    if (c->train.micro_batch == 0) c->train.micro_batch = c->train.canonical ? 1 : c->train.batch;
    if (c->train.warmup < 0 && c->train.minutes == 0)
        c->train.warmup = min_i64(2000, c->train.steps / 20);
}

static Status load(Arena *arena, Bytes text, const char *name, const char *const *overrides,
                   int n_overrides, RunConfig *config)
{
    const SettingNode **nodes = ARENA_ARRAY(arena, const SettingNode *, run_setting_count());
    Loader l = {
        arena,
        config,
        {arena, run_setting(0), run_setting_count(), "drover train --help lists them", nodes}};
    config->model.fields_json = "{}";
    TRY(setting_read_defaults(&l.reader, "", config));
    const char *place = arena_strdup(arena, name);
    SettingNode *root;
    TRY(setting_node_parse(arena, text, place, &root));
    for (int i = 0; i < n_overrides; i++) TRY(setting_node_override(arena, root, overrides[i]));
    TRY(read_root(&l, root));
    resolve(&l, place);
    TRY(check_names(&l));
    return check_train(&l);
}

Status run_config_parse(Bytes text, const char *name, const char *const *overrides, int n_overrides,
                        RunConfig *config)
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

Status run_config_load(const char *path, const char *const *overrides, int n_overrides,
                       RunConfig *config)
{
    Arena arena = {0};
    Bytes text = {(const uint8_t *)"", 0};
    Status status = path ? file_read(&arena, path, MAX_SETTING_FILE_BYTES, &text) : OK;
    if (status == OK)
        status = run_config_parse(text, path ? path : "run", overrides, n_overrides, config);
    arena_deinit(&arena);
    return status;
}

void run_config_deinit(RunConfig *config)
{
    Arena arena = config->arena;
    *config = (RunConfig){0};
    arena_deinit(&arena);
}

/* ---- writing ---------------------------------------------------------------------------- */

/* Settings that would contradict others when the file is loaded again stay out. */
static bool is_written(const Setting *s, const RunConfig *c)
{
    if (s->type == SETTING_TEXT &&
        !**(const char *const *)(const void *)((const char *)c + s->offset))
        return false;
    bool elsewhere = *c->tokenizer.path || (*c->model.from && !c->tokenizer.train);
    return !(elsewhere && !strncmp(s->name, "tokenizer.train.", 16));
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
    const SettingNode *fields = config->model.fields;
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
        SettingNode pair = {
            .kind = NODE_MAP, .n = 1, .key = &fields->key[i], .item = &fields->item[i]};
        Str line = {0};
        CHECK(setting_node_json(&arena, &pair, &line) ==
              OK); /* it went well when the file was read */
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
        if (!strncmp(s->name, "model.", 6) || !strncmp(s->name, "data[].", 7) ||
            !is_written(s, config))
            continue;
        setting_write_key(s->name, before, out);
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
