/* Presets, files, the one-line form: what is read, what each refusal says, where devices meet. */
#include "base/testing.h"
#include "cluster/cluster_internal.h"

static Cluster load(const char *text)
{
    Cluster c;
    if (cluster_load(text, &c) != OK) fail_msg("%s", status_message());
    return c;
}

static Status parse(const char *text, Cluster *c)
{
    return cluster_parse((Bytes){(const uint8_t *)text, strlen(text)}, "my.yaml", c);
}

/* ---- presets ---------------------------------------------------------------------------- */

static bool given_in_file(const Setting *s, const void *base)
{
    Str now = {0};
    setting_write(s, base, &now);
    Arena arena = {0};
    char value[sizeof(Cluster)] = {0};
    bool same = s->default_text && setting_default(&arena, s, value) == OK;
    Str standard = {0};
    if (same) {
        setting_write(s, value, &standard);
        same = !strcmp(now.at, standard.at);
    }
    str_deinit(&now);
    str_deinit(&standard);
    arena_deinit(&arena);
    return !same;
}

/* Whatever a preset sets otherwise than the table's default says where it comes from. */
static void check_sources(const Cluster *c)
{
    for (int i = 0; i < cluster_table_n; i++) {
        const Setting *s = &cluster_table[i];
        if (strstr(s->name, "[]") || s->type == SETTING_TEXT || s->type == SETTING_CHOICE ||
            !given_in_file(s, c))
            continue;
        bool resolved = !strcmp(s->name, "node.link_domain") || !strcmp(s->name, "nodes");
        if (!resolved && !*cluster_source(c, s->name))
            fail_msg("%s: %s has no source", c->name, s->name);
    }
    for (int i = 0; i < c->n_failures; i++) {
        char key[64];
        snprintf(key, sizeof key, "failures[%d].per_day", i);
        if (!*cluster_source(c, key)) fail_msg("%s: %s has no source", c->name, key);
    }
}

static void test_presets(void **state)
{
    (void)state;
    static const char *const wanted[] = {
        "a100",          "h100",          "h100-96",  "h800",          "h200",
        "b200",          "gb200",         "cpu",      "meta-24k",      "meta-100k",
        "colossus-100k", "colossus-200k", "superpod", "deepseek-h800", "hgx"};
    int n = 0;
    bool found[COUNT_OF(wanted)] = {0};
    for (ClusterPreset p; (p = cluster_list(n)).name; n++) {
        assert_true(p.about_length > 10);
        Cluster c = load(p.name);
        assert_string_equal(c.name, p.name);
        if (cluster_check(&c) != OK) fail_msg("%s", status_message());
        check_sources(&c);
        for (int i = 0; i < COUNT_OF(wanted); i++) found[i] |= !strcmp(p.name, wanted[i]);
        cluster_deinit(&c);
    }
    for (int i = 0; i < COUNT_OF(wanted); i++)
        if (!found[i]) fail_msg("no preset %s", wanted[i]);
}

static void test_meta_24k(void **state)
{
    (void)state;
    Cluster c = load("meta-24k");
    assert_int_equal(cluster_devices(&c), 24576);
    assert_string_equal(c.device.name, "h100");
    assert_true(c.device.matrix[MATH_BF16].peak_flop_per_s == 989e12);
    assert_true(c.device.memory.bytes_per_s == 3.35e12);
    assert_int_equal(c.network.kind, NETWORK_TOR);
    assert_int_equal(c.network.n_tiers, 3);
    assert_true(c.network.tier[2].oversubscription == 7);
    assert_int_equal(c.n_failures, 8);
    assert_true(c.failure[0].per_day.low < c.failure[0].per_day.central);
    assert_non_null(strstr(cluster_source(&c, "network.tiers[2].oversubscription"), "1:7 above"));
    assert_non_null(strstr(cluster_source(&c, "node.overhead_w"), "8.4 kW"));
    cluster_deinit(&c);
}

/* A base lends all it has; `device:` only device and node. */
static void test_layers(void **state)
{
    (void)state;
    Cluster c;
    assert_int_equal(
        parse("base: meta-24k\ndevice: {base: b200, max_w: 900}\nnode: {nics: 16}\n", &c), OK);
    assert_string_equal(c.name, "my");
    assert_int_equal(c.n_nodes, 3072);
    assert_true(c.device.matrix[MATH_BF16].peak_flop_per_s == 2250e12);
    assert_true(c.device.max_w == 900);
    assert_int_equal(c.node.nics, 16);
    assert_true(c.network.tier[2].oversubscription == 7);
    assert_non_null(strstr(cluster_source(&c, "network.kind"), "Llama 3 paper"));
    assert_string_equal(cluster_source(&c, "device.max_w"), "my.yaml:2");
    cluster_deinit(&c);
    assert_int_equal(parse("device: gb200\nnodes: 36\nnetwork: {tiers: [{name: a, nodes: 18}, "
                           "{name: b, nodes: 36}]}\n"
                           "failures: [{name: x, per_day: 1, source: me}]\n",
                           &c),
                     OK);
    assert_int_equal(c.node.link_domain, 72);
    assert_int_equal(c.n_failures, 1);
    assert_string_equal(cluster_source(&c, "failures[0].per_day"), "me");
    assert_string_equal(cluster_source(&c, "failures[1].per_day"), "");
    assert_int_equal(cluster_link(&c, 0, 71).tier, 0);
    assert_int_equal(cluster_link(&c, 0, 72).tier, 2);
    cluster_deinit(&c);
}

static void write_values(const char *prefix, const void *base, Str *out)
{
    for (int i = 0; i < cluster_table_n; i++) {
        const Setting *s = &cluster_table[i];
        if (strncmp(s->name, prefix, strlen(prefix)) != 0 || strstr(s->name + strlen(prefix), "[]"))
            continue;
        str_printf(out, "%s: ", s->name);
        setting_write(s, base, out);
        str_add(out, "\n");
    }
}

/* Values without their sources: what no source was said of has the file's line from then on. */
static void write_all(const Cluster *c, Str *out)
{
    str_clear(out);
    write_values("", c, out);
    for (int i = 0; i < c->network.n_tiers; i++)
        write_values("network.tiers[].", &c->network.tier[i], out);
    for (int i = 0; i < c->n_failures; i++) write_values("failures[].", &c->failure[i], out);
    for (int i = 0; i < c->device.n_ops; i++) write_values("device.ops[].", &c->device.op[i], out);
}

static void test_text_loads_again(void **state)
{
    (void)state;
    Str text = {0}, first = {0}, second = {0};
    for (int i = 0; cluster_list(i).name; i++) {
        Cluster c = load(cluster_list(i).name), again;
        str_clear(&text);
        cluster_text(&c, &text);
        if (cluster_parse((Bytes){(const uint8_t *)text.at, text.n}, "again", &again) != OK)
            fail_msg("%s", status_message());
        write_all(&c, &first);
        write_all(&again, &second);
        assert_string_equal(first.at, second.at);
        assert_string_equal(cluster_source(&c, "site.pue"), cluster_source(&again, "site.pue"));
        assert_string_equal(cluster_source(&c, "failures[2].per_day"),
                            cluster_source(&again, "failures[2].per_day"));
        cluster_deinit(&again);
        cluster_deinit(&c);
    }
    str_deinit(&text);
    str_deinit(&first);
    str_deinit(&second);
}

/* ---- refusals --------------------------------------------------------------------------- */

typedef struct Refusal {
    const char *text;
    Status status;
    const char *says[3];
} Refusal;

static void check_refusal(const Refusal *r, Status status)
{
    if (status == OK) fail_msg("%s: was accepted", r->text);
    if (status != r->status) fail_msg("%s: %s", r->text, status_message());
    for (int i = 0; i < COUNT_OF(r->says) && r->says[i]; i++)
        if (!strstr(status_message(), r->says[i]))
            fail_msg("%s: '%s' lacks '%s'", r->text, status_message(), r->says[i]);
    assert_null(strchr(status_message(), '\n'));
}

static const Refusal file_refusals[] = {
    {"device: h100\n", ERR_ARG, {"my.yaml", "nodes is missing", "nodes: 3072"}},
    {"nodes: 4\n", ERR_ARG, {"device.memory.bytes is missing"}},
    {"nodes: 4\ndevice: h1000\n", ERR_ARG, {"my.yaml:2", "h1000", "did you mean h100"}},
    {"base: meta24k\n", ERR_ARG, {"my.yaml:1", "did you mean meta-24k"}},
    {"base: [a]\n", ERR_ARG, {"my.yaml:1", "name of a preset"}},
    {"base: hgx\nnodez: 4\n", ERR_ARG, {"my.yaml:2", "did you mean nodes"}},
    {"base: hgx\nnode: {nic_bytes_pers: 4}\n",
     ERR_ARG,
     {"my.yaml:2", "did you mean node.nic_bytes_per_s"}},
    {"base: hgx\nnodes: 0\n", ERR_ARG, {"my.yaml:2", "nodes is 0", "1 to 1048576"}},
    {"base: hgx\nnodes: many\n", ERR_ARG, {"my.yaml:2", "whole number"}},
    {"base: hgx\nnode: {nic_bytes_per_s: 400e9}\n", ERR_ARG, {"my.yaml:2", "0 to 250000000000"}},
    {"base: hgx\ndevice: {memory: {bytes: 80}}\n",
     ERR_ARG,
     {"my.yaml:2", "device.memory.bytes is 80"}},
    {"base: hgx\ndevice: {bf16: {peak_flop_per_s: 989}}\n",
     ERR_REFUSED,
     {"my.yaml:2", "such as 989e12"}},
    {"nodes: 1\nnode: {devices: 8}\ndevice: {memory: {bytes: 8e9, bytes_per_s: 1e12}}\n",
     ERR_REFUSED,
     {"device.bf16.peak_flop_per_s is missing"}},
    {"base: hgx\ndevice: {memory: {reserved_bytes: 90e9}}\n",
     ERR_REFUSED,
     {"my.yaml:2", "leaves nothing"}},
    {"base: hgx\ndevice: {idle_w: 800}\n",
     ERR_REFUSED,
     {"my.yaml:2", "above device.max_w 700", "700 would do"}},
    {"base: hgx\nnode: {link_domain: 20}\n",
     ERR_REFUSED,
     {"my.yaml:2", "no multiple of node.devices 8", "24 would be"}},
    {"base: hgx\nnodes: 2\nnode:\n  nics: 0\n",
     ERR_REFUSED,
     {"my.yaml:4", "node.nics is 0", "one per device"}},
    {"base: hgx\nnodes: 2\nnode:\n  nic_bytes_per_s: 0\n",
     ERR_REFUSED,
     {"my.yaml:4", "50e9 are 400 Gb/s"}},
    {"base: hgx\nnodes: 4\nnetwork:\n  tiers:\n    - {name: a, nodes: 2}\n    - {name: b, nodes: "
     "5}\n",
     ERR_REFUSED,
     {"my.yaml:6", "no multiple of the 2", "6 would be"}},
    {"base: hgx\nnodes: 4\nnetwork:\n  tiers:\n    - {name: a, nodes: 2}\n",
     ERR_REFUSED,
     {"my.yaml:5", "holds 2 of the 4 nodes (my.yaml:2)", "nodes: 4 there"}},
    {"base: hgx\nnetwork: {tiers: [{name: a, nodes: 2, latency_s: 5e-6}, {name: b, nodes: 4, "
     "latency_s: 1e-6}]}\n",
     ERR_REFUSED,
     {"tier b has a latency of 1e-06 s, less", "5e-06 would do"}},
    {"base: hgx\nnetwork: {tiers: [{name: a, nodes: 2}, {name: a, nodes: 4}]}\n",
     ERR_REFUSED,
     {"two tiers are called a"}},
    {"base: hgx\nnetwork: {tiers: [{name: a}]}\n",
     ERR_ARG,
     {"my.yaml:2", "network.tiers[].nodes is missing"}},
    {"base: hgx\nnetwork: {tiers: [{name: a, nodes: 4, oversubscription: 0.25}]}\n",
     ERR_ARG,
     {"1 to 100"}},
    {"base: hgx\nnetwork: {tiers: 4}\n", ERR_ARG, {"my.yaml:2", "should be a list of at most 8"}},
    {"base: hgx\nfailures: [{name: a, per_day: 1}, {name: a, per_day: 1}]\n",
     ERR_REFUSED,
     {"two failures are called a"}},
    {"base: meta-24k\nfailures: [{name: a, per_day: 1, unit: group, tier: pods}]\n",
     ERR_REFUSED,
     {"my.yaml:2", "no tier pods", "pod would do"}},
    {"base: meta-24k\nfailures: [{name: a, per_day: 1, tier: pod}]\n",
     ERR_REFUSED,
     {"for unit: group"}},
    {"base: hgx\nsite: {pue: [1.2, 1.1, 1.3]}\n",
     ERR_ARG,
     {"my.yaml:2", "low, central and high rise"}},
    {"base: hgx\nsite: {pue: [1.2, 1.3]}\n", ERR_ARG, {"my.yaml:2", "[low, central, high]"}},
    {"base: hgx\nsite: {pue: {value: 1.2, sauce: x}}\n",
     ERR_ARG,
     {"my.yaml:2", "beside value only source"}},
    {"base: hgx\nsite: {source: [1], pue: 1.2}\n", ERR_ARG, {"my.yaml:2", "a source is a text"}},
    {"base: hgx\nsite: cheap\n", ERR_ARG, {"my.yaml:2", "site is a section"}},
    {"a: &x 1\n", ERR_ARG, {"my.yaml:1", "anchors"}},
    {"- 1\n", ERR_ARG, {"my.yaml:1", "a mapping is wanted"}},
};

static void test_files_refused(void **state)
{
    (void)state;
    for (int i = 0; i < COUNT_OF(file_refusals); i++) {
        Cluster c;
        check_refusal(&file_refusals[i], parse(file_refusals[i].text, &c));
    }
}

/* ---- the one-line form ------------------------------------------------------------------ */

static void test_line(void **state)
{
    (void)state;
    Cluster c = load("16384 h100, 8 per node, 400G, spine 1:4");
    assert_int_equal(cluster_devices(&c), 16384);
    assert_int_equal(c.n_nodes, 2048);
    assert_string_equal(c.name, "16384 h100, 8 per node, 400G, spine 1:4");
    assert_true(c.node.nic_bytes_per_s == 50e9);
    assert_int_equal(c.network.n_tiers, 1);
    assert_true(c.network.tier[0].oversubscription == 4);
    cluster_deinit(&c);
    c = load("96 a100, 16 per node, 4 x 100G, tor, pod of 32 1:1, spine 2:14");
    assert_int_equal(c.n_nodes, 6);
    assert_int_equal(c.node.nics, 4);
    assert_true(c.node.nic_bytes_per_s == 12.5e9);
    assert_int_equal(c.network.kind, NETWORK_TOR);
    assert_int_equal(c.network.tier[0].nodes, 2);
    assert_int_equal(c.network.tier[1].nodes, 6);
    assert_true(c.network.tier[1].oversubscription == 7);
    cluster_deinit(&c);
    c = load("40 h100, pod of 16 1:1"); /* 5 nodes in pods of 2 */
    assert_int_equal(c.network.tier[1].nodes, 6);
    cluster_deinit(&c);
    c = load("4 h100");
    assert_int_equal(cluster_devices(&c), 4);
    assert_int_equal(c.n_nodes, 1);
    cluster_deinit(&c);
}

static void test_lines_refused(void **state)
{
    (void)state;
    static const Refusal refusals[] = {
        {"16384 h10, 8 per node", ERR_ARG, {"no device is called h10", "did you mean h100"}},
        {"0 h100", ERR_ARG, {"how many devices", "16384 h100"}},
        {"16384 h100 80GB", ERR_ARG, {"how many devices"}},
        {"100 h100, 8 per node", ERR_REFUSED, {"no whole number of nodes of 8", "104 are"}},
        {"64 h100, 0 per node", ERR_ARG, {"1 to 4096 per node"}},
        {"64 h100, 400 Gb", ERR_ARG, {"'400 Gb' is no part", "`400G`"}},
        {"64 h100, spine 4:1", ERR_ARG, {"'spine 4:1' is no part"}},
        {"64 h100, pod of 12 1:1", ERR_ARG, {"no whole number of nodes", "16 are"}},
        {"64 h100, 99999G", ERR_ARG, {"node.nic_bytes_per_s"}},
        {"64 h100,", ERR_ARG, {"'' is no part"}},
        {"nosuch", ERR_ARG, {"no preset and no file is called nosuch"}},
        {"meta-24", ERR_ARG, {"did you mean meta-24k"}},
    };
    for (int i = 0; i < COUNT_OF(refusals); i++) {
        Cluster c;
        check_refusal(&refusals[i], cluster_load(refusals[i].text, &c));
    }
}

/* ---- links ------------------------------------------------------------------------------ */

static void test_links(void **state)
{
    (void)state;
    Cluster c = load("meta-24k");
    assert_int_equal(cluster_link(&c, 5, 5).tier, -1);
    Link link = cluster_link(&c, 0, 7);
    assert_int_equal(link.tier, 0);
    assert_true(link.bytes_per_s == 450e9);
    assert_int_equal(cluster_link(&c, 7, 8).tier, 1);
    assert_int_equal(cluster_link(&c, 0, 3071).tier, 2);
    link = cluster_link(&c, 3071, 3072);
    assert_int_equal(link.tier, 3);
    assert_true(link.bytes_per_s == 50e9);
    assert_near(link.share_bytes_per_s, 50e9 / 7, 1e-12);
    assert_true(link.latency_s == 15e-6);
    assert_int_equal(cluster_group_link(&c, 0, 1, 8).tier, 0);
    assert_int_equal(cluster_group_link(&c, 0, 8, 384).tier, 2);
    assert_int_equal(cluster_group_link(&c, 0, 8, 385).tier, 3);
    cluster_deinit(&c);
    /* rails: the same index meets in the leaf, another one above it */
    c = load("superpod");
    assert_int_equal(cluster_link(&c, 0, 8).tier, 1);
    assert_int_equal(cluster_link(&c, 0, 9).tier, 2);
    assert_int_equal(cluster_link(&c, 0, 32 * 8).tier, 2);
    assert_int_equal(cluster_link(&c, 0, 32 * 8 + 1).tier, 2);
    cluster_deinit(&c);
    /* four NICs for eight devices: one pair alone has a NIC, all together half of one each */
    c = load("jean-zay");
    link = cluster_link(&c, 0, 8);
    assert_true(link.bytes_per_s == 12.5e9 && link.share_bytes_per_s == 6.25e9);
    cluster_deinit(&c);
    c = load("64 h100, leaf of 16 1:2, spine 1:3"); /* multiplies along the way */
    assert_near(cluster_link(&c, 0, 8).share_bytes_per_s, 50e9 / 2, 1e-12);
    assert_near(cluster_link(&c, 0, 16).share_bytes_per_s, 50e9 / 6, 1e-12);
    assert_true(cluster_link(&c, 0, 16).bytes_per_s == 50e9);
    cluster_deinit(&c);
    c = load("meta-100k");
    assert_int_equal(cluster_devices(&c), 100320);
    assert_int_equal(cluster_link(&c, 0, 330 * 8).tier, 3);
    assert_near(cluster_link(&c, 0, 330 * 8).share_bytes_per_s, 50e9 / 2.8, 1e-12);
    assert_int_equal(cluster_link(&c, 0, 100319).tier, 4);
    cluster_deinit(&c);
}

static void test_resize(void **state)
{
    (void)state;
    Cluster c = load("meta-24k");
    assert_int_equal(cluster_resize(&c, 8192), OK);
    assert_int_equal(c.n_nodes, 1024);
    assert_int_equal(cluster_resize(&c, 131072), OK);
    assert_int_equal(c.network.tier[2].nodes, 16512); /* pods of 384 */
    assert_int_equal(cluster_check(&c), OK);
    assert_int_equal(cluster_resize(&c, 100), ERR_REFUSED);
    assert_non_null(strstr(status_message(), "104 are"));
    assert_int_equal(cluster_resize(&c, 3), ERR_REFUSED);
    assert_non_null(strstr(status_message(), "4 are"));
    assert_int_equal(cluster_resize(&c, 0), ERR_ARG);
    assert_int_equal(cluster_resize(&c, 2), OK);
    assert_int_equal(cluster_devices(&c), 2);
    assert_int_equal(c.node.nics, 2);
    assert_int_equal(cluster_check(&c), OK);
    c.site.pue.low = 5;
    assert_int_equal(cluster_check(&c), ERR_ARG);
    cluster_deinit(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_presets),       cmocka_unit_test(test_meta_24k),
        cmocka_unit_test(test_layers),        cmocka_unit_test(test_text_loads_again),
        cmocka_unit_test(test_files_refused), cmocka_unit_test(test_line),
        cmocka_unit_test(test_lines_refused), cmocka_unit_test(test_links),
        cmocka_unit_test(test_resize),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
