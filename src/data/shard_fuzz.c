/* Any bytes as a shard, with a header hash that fits: opened and read everywhere, or refused. */
#include "data/data_internal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { HEADER_BYTES = 64, VOCAB_SIZE = 1000 };

static void read_all(const Shard *shard)
{
    int64_t n = shard->info.n_tokens, end = 0, ended = 0;
    int32_t *ids = xmalloc((size_t)n * sizeof *ids + 1);
    if (data_shard_read(shard, 0, n, VOCAB_SIZE, ids) == OK)
        for (int64_t i = 0; i < n; i++) CHECK(ids[i] >= 0 && ids[i] < VOCAB_SIZE);
    for (int64_t i = 1; i <= shard->info.n_docs; i++) {
        CHECK(data_shard_offset(shard, i, &end) == OK && end <= n);
        CHECK(data_shard_ended(shard, end, &ended) == OK && ended == i);
        CHECK(data_shard_ended(shard, end - 1, &ended) == OK && ended == i - 1);
    }
    CHECK(end == n);
    Status verified = data_shard_verify(shard);
    CHECK(verified == OK || verified == ERR_FORMAT);
    free(ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *bytes = xmalloc(size + 1);
    memcpy(bytes, data, size);
    if (size >= HEADER_BYTES) {
        uint64_t hash = hash_bytes(bytes, HEADER_BYTES - 8);
        memcpy(bytes + HEADER_BYTES - 8, &hash, 8);
    }
    int fd = memfd_create("fuzz", 0);
    CHECK(fd >= 0 && write(fd, bytes, size) == (ssize_t)size);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    Shard shard;
    if (data_shard_open(path, &shard) == OK) {
        read_all(&shard);
        data_shard_close(&shard);
    }
    close(fd);
    free(bytes);
    return 0;
}
