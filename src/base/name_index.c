/* NameIndex: open addressing with linear probing, at most half full. */
#include "base/base.h"

#include <stdlib.h>
#include <string.h>

static NameSlot *slot_of(const NameIndex *index, const char *name, uint64_t hash)
{
    size_t at = (size_t)hash & (index->cap - 1);
    while (index->slot[at].name &&
           (index->slot[at].hash != hash || strcmp(index->slot[at].name, name) != 0))
        at = (at + 1) & (index->cap - 1);
    return &index->slot[at];
}

static void grow(NameIndex *index)
{
    NameIndex wider = {.cap = index->cap ? 2 * index->cap : 64, .n = index->n};
    wider.slot = xcalloc(wider.cap, sizeof *wider.slot);
    for (size_t i = 0; i < index->cap; i++)
        if (index->slot[i].name)
            *slot_of(&wider, index->slot[i].name, index->slot[i].hash) = index->slot[i];
    free(index->slot);
    *index = wider;
}

void name_index_put(NameIndex *index, const char *name, int value)
{
    uint64_t hash = hash_bytes(name, strlen(name));
    if (2 * (index->n + 1) > index->cap) grow(index);
    NameSlot *slot = slot_of(index, name, hash);
    if (slot->name) return;
    *slot = (NameSlot){.name = name, .hash = hash, .value = value};
    index->n++;
}

int name_index_find(const NameIndex *index, const char *name)
{
    if (!index->n) return -1;
    const NameSlot *slot = slot_of(index, name, hash_bytes(name, strlen(name)));
    return slot->name ? slot->value : -1;
}

void name_index_deinit(NameIndex *index)
{
    free(index->slot);
    *index = (NameIndex){0};
}
