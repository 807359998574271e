/* Any bytes as a file of JSON lines or text, plain, gzip or zstd (the first byte chooses): records
 * come out or are refused, each within the limit. */
#include "data/data_internal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { LINE_LIMIT = 256 };

static void read_all(const SourceFile *file)
{
    Reader *reader;
    if (data_reader_open(file, LINE_LIMIT, &reader) != OK) return;
    uint64_t plain_bytes = 0;
    for (Record record;;) {
        if (data_reader_next(reader, &record) != OK) break;
        if (!record.bytes.at && !record.bad) break;
        if (record.bad) {
            CHECK(record.why[0]);
            continue;
        }
        CHECK(record.bytes.n <= LINE_LIMIT);
        plain_bytes += record.bytes.n;
        TextHolder holder;
        Bytes text;
        char why[MAX_WHY] = "";
        if (data_record_text(&record, "text", &holder, &text, why)) {
            CHECK(!record.json || utf8_valid(text.at, text.n));
            data_text_release(&holder);
        } else
            CHECK(why[0]);
    }
    if (file->packing == PACKING_NONE && !file->json) CHECK(plain_bytes == file->bytes);
    data_reader_close(reader);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size) return 0;
    log_set_level(LOG_SILENT);
    int fd = memfd_create("fuzz", 0);
    CHECK(fd >= 0 && write(fd, data + 1, size - 1) == (ssize_t)(size - 1));
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    SourceFile file = {.path = path,
                       .json = data[0] & 4,
                       .packing = (Packing)((data[0] & 3) % 3),
                       .bytes = size - 1};
    read_all(&file);
    close(fd);
    return 0;
}
