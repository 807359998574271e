/* Any bytes as a CSV of rows, up to a line of dashes; what follows it as models.csv: refused, or
 * read into rows whose layouts and machines are what they say. */
#include <string.h>

#include "published/published.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char cut[] = "\n----\n";
    Arena arena = {0};
    Csv csv, models = {.path = "models.csv"};
    PublishedRows rows;
    const uint8_t *second = memmem(data, size, cut, sizeof cut - 1);
    size_t n = second ? (size_t)(second - data) : size;
    Status status = csv_parse(&arena, (Bytes){data, n}, "rows.csv", &csv);
    if (second && status == OK)
        status = csv_parse(&arena, (Bytes){second + sizeof cut - 1, size - n - (sizeof cut - 1)},
                           "models.csv", &models);
    if (status == OK && published_parse(&arena, &csv, &models, &rows) == OK)
        for (int i = 0; i < rows.n && i < 8; i++) {
            const PublishedRow *r = &rows.row[i];
            CHECK(r->id && r->grid);
            if (!r->device) continue; /* it could not be read, and says so */
            CHECK(r->seq > 0 && r->batch > 0 && r->devices > 0 && r->model.layers > 0 &&
                  r->layout.tp > 0 && r->step_s >= 0);
            Cluster c;
            if (published_cluster(r, &c) == OK) {
                CHECK(cluster_devices(&c) == r->devices && cluster_check(&c) == OK);
                cluster_deinit(&c);
            }
        }
    arena_deinit(&arena);
    return 0;
}
