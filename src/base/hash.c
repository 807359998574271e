/* Hashes: XXH3, fast enough to run over every byte of a checkpoint. */
#include "base/base.h"

#include <xxhash.h>

uint64_t hash_bytes(const void *data, size_t n) { return XXH3_64bits(data, n); }

Hash128 hash128_bytes(const void *data, size_t n)
{
    XXH128_hash_t h = XXH3_128bits(data, n);
    return (Hash128){h.low64, h.high64};
}

/* The order of `xxhsum -H128`, so that a hash in a manifest can be checked from a shell. */
void hash128_hex(Hash128 hash, char out[33])
{
    snprintf(out, 33, "%016llx%016llx", (unsigned long long)hash.high,
             (unsigned long long)hash.low);
}
