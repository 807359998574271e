/* The table of ops, from list.h. */
#include "ops/ops.h"

#include <string.h>

#define OP(name) extern const OpDef op_def_##name;
#include "ops/list.h"
#undef OP

static const OpDef *const table[] = {
#define OP(name) &op_def_##name,
#include "ops/list.h"
#undef OP
    NULL,
};

const OpDef *op_at(int index)
{
    return index >= 0 && index < COUNT_OF(table) ? table[index] : NULL;
}

const OpDef *op_find(const char *name)
{
    for (int i = 0; table[i]; i++)
        if (!strcmp(table[i]->name, name)) return table[i];
    return NULL;
}
