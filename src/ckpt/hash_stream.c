/* XXH3 with 128 bits over a stream: the same value as hash128_bytes over all of it at once. */
#include <stdlib.h>
#include <xxhash.h>

#include "ckpt/ckpt_internal.h"

struct HashStream {
    XXH3_state_t *state;
};

HashStream *hash_stream_create(void)
{
    HashStream *stream = xmalloc(sizeof *stream);
    stream->state = XXH3_createState(); /* aligned to 64 bytes, which malloc does not promise */
    CHECK(stream->state != NULL);
    hash_stream_reset(stream);
    return stream;
}

void hash_stream_reset(HashStream *stream) { XXH3_128bits_reset(stream->state); }

void hash_stream_add(HashStream *stream, const void *data, size_t n)
{
    XXH3_128bits_update(stream->state, data, n);
}

Hash128 hash_stream_result(const HashStream *stream)
{
    XXH128_hash_t h = XXH3_128bits_digest(stream->state);
    return (Hash128){h.low64, h.high64};
}

void hash_stream_destroy(HashStream *stream)
{
    if (!stream) return;
    XXH3_freeState(stream->state);
    free(stream);
}
