/* Any bytes as a cluster's file, and as a cluster's line: refused, or loaded into what passes every
 * check; and what loads is written and read back. */
#include "cluster/cluster.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(Cluster *c)
{
    CHECK(cluster_check(c) == OK);
    int64_t devices = cluster_devices(c), last = devices - 1;
    Link link = cluster_link(c, 0, last);
    CHECK(link.tier >= -1 && link.tier <= c->network.n_tiers &&
          link.bytes_per_s >= link.share_bytes_per_s);
    CHECK(cluster_group_link(c, 0, 1, devices).tier <= c->network.n_tiers);
    for (int i = 0; i < MATH_KINDS; i++) {
        double share = cluster_matrix_efficiency(&c->device, (MathKind)i, 100, 100, 100);
        CHECK(share >= 0 && share <= 1);
    }
    Str text = {0};
    cluster_text(c, &text);
    Cluster again;
    Status status = cluster_parse((Bytes){(const uint8_t *)text.at, text.n}, "again", &again);
    if (status == OK)
        cluster_deinit(&again);
    else
        CHECK(text.n > 1 << 20 || strstr(status_message(), "more than 16384"));
    str_deinit(&text);
    cluster_deinit(c);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    Cluster c;
    char line[256];
    size_t n = size < sizeof line - 1 ? size : sizeof line - 1;
    if (cluster_parse((Bytes){data, size}, "fuzz", &c) == OK) check(&c);
    memcpy(line, data, n);
    line[n] = 0;
    if (line[0] >= '0' && line[0] <= '9' && cluster_load(line, &c) == OK) check(&c);
    return 0;
}
