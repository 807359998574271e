/* calibration.csv and the grids: each kind has columns of its own, known by one that no other kind
 * has. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "published/published_internal.h"

const char *published_framework_name(Framework framework)
{
    static const char *const names[] = {"Megatron",     "Megatron Core", "Megatron-DeepSpeed",
                                        "BigScience",   "DeepSpeed",     "MaxText",
                                        "PyTorch FSDP", "Composer",      "InternEvo"};
    return names[framework];
}

/* "MLG" of "MLG-01", without the digits of "DG405". */
static bool has_prefix(const char *id, const char *prefix)
{
    return !strncmp(id, prefix, strlen(prefix));
}

/* ---- machines --------------------------------------------------------------------------- */

/* By the letters of the id, as clusters.csv lists them; an entry for one device only says so. */
static const struct {
    const char *prefix, *device, *cluster;
} machines[] = {
    {"NAR", "", "selene"},
    {"PTD", "", "selene"},
    {"KOR", "", "selene"},
    {"MTN", "", "selene"},
    {"LL3", "", "meta-24k"},
    {"TTN", "h100-96", "grand-teton"},
    {"MGS", "", "bytedance-a100"},
    {"MSM", "", "bytedance-h800"},
    {"DSK", "h800", "deepseek-h800"},
    {"MOS", "a100", "mosaic-a100"},
    {"MOS", "h100", "mosaic-h100"},
    {"BLM", "", "jean-zay"},
    {"OTH-02", "", "jean-zay"},
    {"INT", "", "shanghai"},
    {"INF", "", "shanghai"},
    {"VTR", "", "vtrain"},
    {"FMS", "a100", "vela-a100"},
    {"FMS", "h100", "vela-h100"},
    {"", "h100", "eos"},
    {"", "a100", "selene"},
};

static Status read_machine(const Record *r, const char *gpu, PublishedRow *row)
{
    static const char *const names[][2] = {
        {"A100", "a100"}, {"H100", "h100"}, {"H100-96GB", "h100-96"}, {"H800", "h800"},
        {"H200", "h200"}, {"B200", "b200"}, {"GB200", "gb200"}};
    size_t plain = strcspn(gpu, "- "); /* "A100-80", "H100 SXM" */
    for (int i = 0; i < COUNT_OF(names); i++)
        if (!strcmp(gpu, names[i][0]) ||
            (!row->device && strlen(names[i][0]) == plain && !strncmp(gpu, names[i][0], plain)))
            row->device = names[i][1];
    if (!row->device)
        return record_fail(r, "GPU", "one of A100, H100, H100-96GB, H800, H200, B200, GB200");
    for (int i = 0; i < COUNT_OF(machines) && !row->cluster; i++)
        if (has_prefix(row->id, machines[i].prefix) &&
            (!*machines[i].device || !strcmp(machines[i].device, row->device)))
            row->cluster = machines[i].cluster;
    if (!row->cluster) row->cluster = row->device; /* its usual node, as many as it takes */
    return OK;
}

static bool has_one_of(const char *id, const char *const *prefixes, int n)
{
    for (int i = 0; i < n; i++)
        if (has_prefix(id, prefixes[i])) return true;
    return false;
}

static Status read_framework(PublishedRow *row)
{
    static const char *const nemo[] = {"DG", "NMO", "LSQ", "MBR", "MLG", "MLL", "MC"},
                             *const bigscience[] = {"BLM", "OTH-02"};
    const char *text = row->note;
    row->framework = FRAMEWORK_MEGATRON;
    if (strstr(text, "MaxText"))
        row->framework = FRAMEWORK_MAXTEXT;
    else if (has_prefix(row->id, "MOS"))
        row->framework = FRAMEWORK_COMPOSER;
    else if (has_prefix(row->id, "TTN") || has_prefix(row->id, "FMS") ||
             has_prefix(row->id, "AUT") || strstr(text, "Automodel"))
        row->framework = FRAMEWORK_FSDP;
    else if (has_prefix(row->id, "INF") || has_prefix(row->id, "INT"))
        row->framework = FRAMEWORK_INTERNEVO;
    else if (has_prefix(row->id, "PTD") && row->layout.zero == 3)
        row->framework = FRAMEWORK_DEEPSPEED;
    else if (has_one_of(row->id, nemo, COUNT_OF(nemo)))
        row->framework = FRAMEWORK_MEGATRON_CORE;
    else if (has_one_of(row->id, bigscience, COUNT_OF(bigscience)))
        row->framework = FRAMEWORK_BIGSCIENCE;
    else if (has_prefix(row->id, "VTR"))
        row->framework = FRAMEWORK_MEGATRON_DEEPSPEED;
    return OK;
}

/* A distributed optimizer is what Megatron and NeMo rows since 2023 use; A100 rows of 2021 and 2022
 * do not. */
static void finish(PublishedRow *row)
{
    if (row->layout.zero == 0 && published_is_megatron(row->framework) &&
        strcmp(row->device, "a100") != 0)
        row->layout.zero = 1;
    if (row->model.mla) row->skip = "multi-head latent attention is not modelled";
    if (!row->layout.tp) row->layout.tp = 1;
    if (!row->layout.pp) row->layout.pp = 1;
    if (!row->layout.cp) row->layout.cp = 1;
    if (!row->layout.ep) row->layout.ep = 1;
    if (!row->layout.expert_tp) row->layout.expert_tp = 1;
    if (!row->layout.virtual_stages) row->layout.virtual_stages = 1;
}

/* What no row can be without. */
static Status check(const Record *r, PublishedRow *row)
{
    if (row->devices < 1 || row->devices > 1 << 24)
        return record_fail(r, "GPUs", "a number of devices");
    if (row->seq < 1 || row->seq > 1 << 28) return record_fail(r, "s", "tokens of a sequence");
    if (row->batch < 1 || row->batch > 1 << 28) return record_fail(r, "GBS", "sequences of a step");
    if (!(row->step_s > 0) && !row->out_of_memory) row->skip = "no time was measured";
    int64_t ranks = row->layout.tp * row->layout.pp * row->layout.cp;
    if (row->devices % ranks != 0 && !row->skip)
        row->skip = "the layout does not divide the devices";
    return OK;
}

/* ---- calibration.csv -------------------------------------------------------------------- */

/* "bf16 compile sel-AC?", "fp16 full-AC, no SP" */
static Status read_precision(const Record *r, const char *column, PublishedRow *row)
{
    const char *text = record_text(r, column);
    if (has_prefix(text, "fp16"))
        row->precision = PUBLISHED_FP16;
    else if (has_prefix(text, "bf16"))
        row->precision = PUBLISHED_BF16;
    else if (has_prefix(text, "fp8"))
        row->precision = PUBLISHED_FP8;
    else
        return record_fail(r, column, "fp16, bf16 or fp8 in front");
    row->recompute = RECOMPUTED_NONE;
    if (strstr(text, "full-AC"))
        row->recompute = RECOMPUTED_FULL;
    else if (strstr(text, "sel-AC") || strstr(text, "selective-AC"))
        row->recompute = RECOMPUTED_SELECTIVE;
    if (strstr(text, "AC?")) row->recompute = RECOMPUTED_OPEN;
    row->compiled = strstr(text, "compile") != NULL;
    row->layout.no_sequence = strstr(text, "no SP") != NULL;
    return OK;
}

/* "82.4 GiB" somewhere in the note */
static double note_bytes(const char *note)
{
    const char *at = strstr(note, " GiB"), *begin = at;
    while (begin && begin > note && strchr("0123456789.", begin[-1])) begin--;
    return begin ? strtod(begin, NULL) * 0x1p30
                 : 0; /* NOLINT(cert-err34-c): 0 where there is none */
}

static Status read_calibration(const Record *r, const Csv *models, PublishedRow *row)
{
    TRY(record_count(r, "GPUs", &row->devices));
    TRY(published_model_find(models, r->arena, record_text(r, "model"), &row->model));
    TRY(record_count(r, "s", &row->seq));
    TRY(record_count(r, "GBS", &row->batch));
    TRY(record_count(r, "MBS", &row->micro_batch));
    TRY(record_number(r, "step s", &row->step_s));
    const char *layout = record_text(r, "layout");
    TRY_AS(published_layout_parse(r->arena, layout, &row->layout), "%s:%d", r->csv->path,
           r->csv->line[r->row]);
    TRY(read_precision(r, "precision, recompute", row));
    /* "one thing must be assumed": where the micro-batch is there, what is made again */
    if (!strcmp(record_text(r, "C"), "P") && row->micro_batch && row->recompute == RECOMPUTED_NONE)
        row->recompute = RECOMPUTED_OPEN;
    /* Megatron's README tells no virtual stages, and its throughput keeps up where the
     * micro-batches of a pipeline are few */
    row->open_stages = has_prefix(row->id, "MC") && row->layout.pp > 1 &&
                       !row->layout.virtual_stages;
    if (has_prefix(row->id, "MGS") && !strstr(layout, "Megatron-LM"))
        row->skip = "MegaScale's parallel blocks with sliding windows are not modelled";
    if (strstr(layout, "MaxText")) row->note = arena_printf(r->arena, "%s; MaxText", row->note);
    row->peak_bytes = note_bytes(row->note);
    return read_machine(r, record_text(r, "GPU"), row);
}

/* ---- grids ------------------------------------------------------------------------------ */

/* MosaicML: sharded over all devices, ZeRO-3 (FULL) or ZeRO-2 (GRAD). */
static Status read_mosaic(const Record *r, const Csv *models, PublishedRow *row)
{
    double tokens_per_s;
    TRY(record_count(r, "GPUs", &row->devices));
    TRY(published_model_find(
        models, r->arena, arena_printf(r->arena, "MPT%s", record_text(r, "model")), &row->model));
    TRY(record_count(r, "s", &row->seq));
    TRY(record_count(r, "GBS", &row->batch));
    TRY(record_count(r, "MBS", &row->micro_batch));
    TRY(record_count(r, "GA", &row->layout.accumulate));
    TRY(record_number(r, "tok/s", &tokens_per_s));
    const char *shard = record_text(r, "shard");
    row->layout.zero = has_prefix(shard, "GRAD") ? 2 : 3;
    row->layout.fsdp = row->devices;
    row->recompute = *record_text(r, "act") == 'y' ? RECOMPUTED_FULL : RECOMPUTED_NONE;
    row->precision = strstr(record_text(r, "precision"), "fp8") ? PUBLISHED_FP8 : PUBLISHED_BF16;
    if (tokens_per_s > 0)
        row->step_s = (double)row->batch * (double)row->seq / (tokens_per_s * (double)row->devices);
    row->grid = "mosaic";
    return read_machine(r, record_text(r, "GPU"), row);
}

static PublishedModel gpt(const char *key, int64_t layers, int64_t hidden, int64_t heads,
                          int64_t vocab)
{
    PublishedModel m = {.key = key,
                        .layers = layers,
                        .hidden = hidden,
                        .heads = heads,
                        .kv_heads = heads,
                        .head_dim = heads ? hidden / heads : 0,
                        .ffn = 4 * hidden,
                        .vocab = vocab};
    published_gpt_blocks(&m);
    return m;
}

static Status check_gpt(const Record *r, const PublishedModel *m)
{
    if (m->layers < 1 || m->layers > 1 << 16) return record_fail(r, "L", "a number of layers");
    if (m->hidden < 1 || m->hidden > 1 << 24) return record_fail(r, "h", "a hidden size");
    if (m->heads < 1 || m->heads > m->hidden) return record_fail(r, "heads", "a number of heads");
    return OK;
}

/* BLOOM's layouts: groups were measured apart and are never compared with each other. */
static Status read_bloom(const Record *r, PublishedRow *row)
{
    int64_t nodes, hidden, layers, heads;
    double gigabytes = 0;
    TRY(record_count(r, "nodes", &nodes));
    TRY(record_count(r, "h", &hidden));
    TRY(record_count(r, "L", &layers));
    TRY(record_count(r, "heads", &heads));
    TRY(record_count(r, "DP", &row->layout.dp));
    TRY(record_count(r, "TP", &row->layout.tp));
    TRY(record_count(r, "PP", &row->layout.pp));
    TRY(record_count(r, "MBS", &row->micro_batch));
    TRY(record_count(r, "GBS", &row->batch));
    TRY(record_number(r, "s/it", &row->step_s));
    row->out_of_memory = has_prefix(record_text(r, "mem GB"), "OOM");
    if (!row->out_of_memory) TRY(record_number(r, "mem GB", &gigabytes));
    /* a reading that its source doubts is none */
    row->peak_bytes = strchr(record_text(r, "mem GB"), '?') ? 0 : gigabytes * 1e9;
    row->with_context = true;
    row->devices = nodes * 8;
    row->seq = 2048;
    row->model = gpt("BLOOM grid", layers, hidden, heads, 250880);
    row->layout.zero = 1;
    row->recompute = RECOMPUTED_FULL;
    const char *group = record_text(r, "grp");
    row->f32_grads = !strcmp(group, "g4");
    row->precision = row->f32_grads ? PUBLISHED_BF16 : PUBLISHED_FP16;
    row->grid = arena_printf(r->arena, "bloom %.8s", group);
    TRY(check_gpt(r, &row->model));
    return read_machine(r, "A100", row);
}

static Status read_internevo(const Record *r, const Csv *models, PublishedRow *row)
{
    double tokens_per_s;
    TRY(record_count(r, "GPUs", &row->devices));
    TRY(record_count(r, "MBS", &row->micro_batch));
    TRY(record_count(r, "GA", &row->layout.accumulate));
    TRY(record_number(r, "tok/s/GPU", &tokens_per_s));
    TRY(published_model_find(models, r->arena, "INT7", &row->model));
    row->seq = 2048;
    if (row->devices <= 1 << 24 && row->micro_batch <= 1 << 16 && row->layout.accumulate <= 1 << 16)
        row->batch = row->devices * row->micro_batch * max_i64(1, row->layout.accumulate);
    row->layout.zero = 1;
    row->precision = PUBLISHED_BF16;
    row->recompute = *record_text(r, "act ckpt") == 'y' ? RECOMPUTED_FULL : RECOMPUTED_NONE;
    if (tokens_per_s > 0)
        row->step_s = (double)row->batch * (double)row->seq / (tokens_per_s * (double)row->devices);
    row->grid = arena_printf(r->arena, "internevo %.1s", record_text(r, "act ckpt"));
    return read_machine(r, "A100", row);
}

static Status read_vtrain(const Record *r, PublishedRow *row)
{
    int64_t hidden, layers, heads;
    double ms;
    TRY(record_count(r, "GPUs", &row->devices));
    TRY(record_count(r, "GBS", &row->batch));
    TRY(record_count(r, "MBS", &row->micro_batch));
    TRY(record_count(r, "h", &hidden));
    TRY(record_count(r, "heads", &heads));
    TRY(record_count(r, "L", &layers));
    TRY(record_count(r, "TP", &row->layout.tp));
    TRY(record_count(r, "DP", &row->layout.dp));
    TRY(record_count(r, "PP", &row->layout.pp));
    TRY(record_number(r, "ms/step", &ms));
    row->step_s = ms / 1e3;
    row->seq = 2048;
    row->model = gpt("vTrain grid", layers, hidden, heads, 50257);
    row->precision = PUBLISHED_FP16;
    row->recompute = RECOMPUTED_FULL;
    row->grid = arena_printf(r->arena, "vtrain %.8sB %lld", record_text(r, "B"),
                             (long long)row->devices);
    TRY(check_gpt(r, &row->model));
    return read_machine(r, "A100", row);
}

/* ---- files ------------------------------------------------------------------------------ */

static Status read_row(const Record *r, const Csv *models, PublishedRow *row)
{
    row->id = record_text(r, "id");
    row->note = record_text(r, "note");
    row->grid = "";
    if (!*row->id) return record_fail(r, "id", "a name");
    if (csv_column(r->csv, "layout") >= 0)
        TRY(read_calibration(r, models, row));
    else if (csv_column(r->csv, "grp") >= 0)
        TRY(read_bloom(r, row));
    else if (csv_column(r->csv, "shard") >= 0)
        TRY(read_mosaic(r, models, row));
    else if (csv_column(r->csv, "act ckpt") >= 0)
        TRY(read_internevo(r, models, row));
    else
        TRY(read_vtrain(r, row));
    TRY(read_framework(row));
    finish(row);
    return check(r, row);
}

Status published_parse(Arena *arena, const Csv *csv, const Csv *models, PublishedRows *rows)
{
    static const char *const kinds[] = {"layout", "grp", "shard", "act ckpt", "ms/step"};
    bool known = false;
    for (int i = 0; i < COUNT_OF(kinds); i++) known = known || csv_column(csv, kinds[i]) >= 0;
    if (!known || csv_column(csv, "id") < 0)
        return fail(ERR_FORMAT,
                    "%s:1: the columns are neither those of calibration.csv nor of a grid: id and "
                    "one of layout, grp, shard, act ckpt, ms/step are wanted",
                    csv->path);
    PublishedRows read = {ARENA_ARRAY(arena, PublishedRow, csv->rows + 1), csv->rows};
    for (int i = 0; i < csv->rows; i++) {
        Record r = {arena, csv, i};
        PublishedRow *row = &read.row[i];
        Status status = read_row(&r, models, row);
        if (status != OK && status != ERR_FORMAT) return status;
        if (status != OK)
            *row = (PublishedRow){.id = row->id,
                                  .note = row->note,
                                  .grid = "",
                                  .skip = arena_strdup(arena, status_message())};
    }
    *rows = read;
    return OK;
}

static Status load_csv(Arena *arena, const char *path, Csv *csv)
{
    Bytes text;
    TRY(file_read(arena, path, CSV_MAX_BYTES, &text));
    return csv_parse(arena, text, arena_strdup(arena, path), csv);
}

Status published_load(Arena *arena, const char *path, PublishedRows *rows)
{
    size_t n = (size_t)(path_base(path) - path);
    const char *beside = arena_printf(arena, "%.*smodels.csv", (int)n, path);
    Csv csv, models = {.path = beside};
    TRY(load_csv(arena, path, &csv));
    if (file_exists(beside)) TRY(load_csv(arena, beside, &models));
    return published_parse(arena, &csv, &models, rows);
}

/* Presets are as large as their published rows; later ones may be larger, which adds whole groups
 * at the top. */
Status published_cluster(const PublishedRow *row, Cluster *cluster)
{
    Cluster c;
    TRY(cluster_load(row->cluster, &c));
    Status status = cluster_resize(&c, row->devices);
    if (status == OK && row->devices < c.node.devices) status = cluster_check(&c);
    if (status == OK)
        *cluster = c;
    else
        cluster_deinit(&c);
    return status;
}
