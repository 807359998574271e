/* Arenas, growing strings, and allocation of small metadata. */
#include "base/base.h"

#include <stdlib.h>
#include <string.h>

enum { BLOCK_BYTES = 64 * 1024, ALIGN = 16 };

typedef struct ArenaBlock {
    struct ArenaBlock *next;
    size_t used, size;
    _Alignas(ALIGN) unsigned char data[];
} ArenaBlock;

static _Noreturn void no_memory(size_t bytes)
{
    fprintf(stderr, "drover: no memory for %zu bytes of metadata\n", bytes);
    exit(1);
}

void *xmalloc(size_t bytes)
{
    void *p = malloc(bytes ? bytes : 1);
    if (!p) no_memory(bytes);
    return p;
}

void *xcalloc(size_t n, size_t bytes)
{
    void *p = calloc(n ? n : 1, bytes ? bytes : 1);
    if (!p) no_memory(n * bytes);
    return p;
}

void *xrealloc(void *old, size_t bytes)
{
    void *p = realloc(old, bytes ? bytes : 1);
    if (!p) no_memory(bytes);
    return p;
}

char *xstrdup(const char *text)
{
    size_t n = strlen(text) + 1;
    return memcpy(xmalloc(n), text, n);
}

void *arena_alloc(Arena *arena, size_t bytes)
{
    size_t need = round_up(bytes ? bytes : 1, ALIGN);
    if (need < bytes) no_memory(bytes);
    ArenaBlock *block = arena->head;
    if (!block || block->size - block->used < need) {
        size_t size = need > BLOCK_BYTES / 4 ? need : BLOCK_BYTES;
        ArenaBlock *fresh = xcalloc(1, sizeof *fresh + size);
        fresh->size = size;
        if (block &&
            size == need) { /* a large one goes behind, so that the open block stays open */
            fresh->next = block->next;
            block->next = fresh;
        } else {
            fresh->next = block;
            arena->head = fresh;
        }
        block = fresh;
    }
    void *p = block->data + block->used;
    block->used += need;
    arena->used_bytes += need;
    return p;
}

void *arena_copy(Arena *arena, const void *data, size_t bytes)
{
    void *p = arena_alloc(arena, bytes);
    if (bytes) memcpy(p, data, bytes);
    return p;
}

char *arena_strndup(Arena *arena, const char *text, size_t n)
{
    char *p = arena_alloc(arena, n + 1);
    if (n) memcpy(p, text, n);
    return p;
}

char *arena_strdup(Arena *arena, const char *text)
{
    return arena_strndup(arena, text, strlen(text));
}

char *arena_printf(Arena *arena, const char *format, ...)
{
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    CHECK(n >= 0);
    char *p = arena_alloc(arena, (size_t)n + 1);
    vsnprintf(p, (size_t)n + 1, format, again);
    va_end(again);
    return p;
}

void arena_deinit(Arena *arena)
{
    for (ArenaBlock *block = arena->head, *next; block; block = next) {
        next = block->next;
        free(block);
    }
    *arena = (Arena){0};
}

static void str_reserve(Str *s, size_t more)
{
    if (s->n + more + 1 <= s->cap) return;
    while (s->cap < s->n + more + 1) s->cap = s->cap ? 2 * s->cap : 128;
    s->at = xrealloc(s->at, s->cap);
}

void str_add_n(Str *s, const char *text, size_t n)
{
    str_reserve(s, n);
    if (n) memcpy(s->at + s->n, text, n);
    s->n += n;
    s->at[s->n] = 0;
}

void str_add(Str *s, const char *text) { str_add_n(s, text, strlen(text)); }

void str_printf(Str *s, const char *format, ...)
{
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    CHECK(n >= 0);
    str_reserve(s, (size_t)n);
    vsnprintf(s->at + s->n, (size_t)n + 1, format, again);
    va_end(again);
    s->n += (size_t)n;
}

void str_clear(Str *s)
{
    s->n = 0;
    if (s->at) s->at[0] = 0;
}

void str_deinit(Str *s)
{
    free(s->at);
    *s = (Str){0};
}
