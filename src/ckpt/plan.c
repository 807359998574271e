/* Which tensor lies where in the files of a checkpoint: a function of the tensors alone, so that
 * every rank of every layout comes to the same bytes. Files take the tensors in the order of their
 * names, numbers in them read as numbers (layers.2 before layers.10), the model's apart from the
 * optimizer's; within a file the order is that of the reference writer. */
#include <stdlib.h>
#include <string.h>

#include "ckpt/ckpt_internal.h"

static bool is_digit(char c) { return c >= '0' && c <= '9'; }

/* Digits are compared as one number: by length without leading zeros, then by digits. */
static int compare_names(const char *a, const char *b)
{
    const char *x = a, *y = b;
    while (*x && *y) {
        if (!is_digit(*x) || !is_digit(*y)) {
            if (*x != *y) return (unsigned char)*x < (unsigned char)*y ? -1 : 1;
            x++, y++;
            continue;
        }
        while (*x == '0' && is_digit(x[1])) x++;
        while (*y == '0' && is_digit(y[1])) y++;
        size_t n = strspn(x, "0123456789"), m = strspn(y, "0123456789");
        int order = n != m ? (n < m ? -1 : 1) : strncmp(x, y, n);
        if (order) return order;
        x += n, y += m;
    }
    if (*x || *y) return *x ? 1 : -1;
    return strcmp(a, b); /* "01" and "1" are two names */
}

static int by_name(const void *a, const void *b, void *tensors)
{
    const CkptTensor *all = tensors;
    return compare_names(all[*(const int *)a].name, all[*(const int *)b].name);
}

/* Model or optimizer: the indices of its tensors, in order. */
static int *list_kind(Arena *arena, const CkptShare *share, bool optimizer, int *n)
{
    int *index = ARENA_ARRAY(arena, int, share->n_tensors);
    *n = 0;
    for (int i = 0; i < share->n_tensors; i++)
        if (share->tensors[i].optimizer == optimizer) index[(*n)++] = i;
    qsort_r(index, (size_t)*n, sizeof *index, by_name, (void *)(uintptr_t)share->tensors);
    return index;
}

static Status fill_file(Arena *arena, const SafetensorsItem *items, const int *index, int n,
                        PlannedFile *file)
{
    Str header = {0};
    int *order = ARENA_ARRAY(arena, int, n);
    Status status = safetensors_header(items, n, file->path, order, &header);
    if (status == OK) {
        file->header = arena_copy(arena, header.at, header.n);
        file->header_bytes = header.n;
    }
    str_deinit(&header);
    TRY(status);
    file->n = n;
    file->tensor = ARENA_ARRAY(arena, int, n);
    file->at = ARENA_ARRAY(arena, uint64_t, n);
    for (int i = 0; i < n; i++) {
        file->tensor[i] = index[order[i]];
        file->at[i] = file->header_bytes + file->tensor_bytes;
        file->tensor_bytes += safetensors_item_bytes(&items[order[i]]);
    }
    file->bytes = file->header_bytes + file->tensor_bytes;
    return OK;
}

static Status plan_kind(Arena *arena, const CkptShare *share, const char *dir, bool optimizer,
                        uint64_t shard_bytes, FilePlan *plan)
{
    int n;
    const int *index = list_kind(arena, share, optimizer, &n);
    SafetensorsItem *items = ARENA_ARRAY(arena, SafetensorsItem, n);
    for (int i = 0; i < n; i++) {
        const CkptTensor *t = &share->tensors[index[i]];
        items[i] = (SafetensorsItem){.name = t->name, .dtype = t->dtype, .shape = t->shape};
    }
    int n_files = shard_count(items, n, shard_bytes);
    for (int first = 0, number = 1; first < n; number++) {
        int end = shard_end(items, n, first, shard_bytes);
        PlannedFile *file = &plan->file[plan->n++];
        file->name = arena_printf(arena, "%s-%05d-of-%05d.safetensors",
                                  optimizer ? "optimizer" : "model", number, n_files);
        file->path = path_join(arena, dir, file->name);
        TRY(fill_file(arena, &items[first], &index[first], end - first, file));
        plan->bytes += file->bytes;
        first = end;
    }
    return OK;
}

Status plan_files(Arena *arena, const CkptShare *share, const char *dir, uint64_t shard_bytes,
                  FilePlan *plan)
{
    if (shard_bytes == 0) shard_bytes = (uint64_t)DEFAULT_SHARD_BYTES_GB * 1000000000;
    *plan = (FilePlan){.file = ARENA_ARRAY(arena, PlannedFile, share->n_tensors)};
    TRY(plan_kind(arena, share, dir, false, shard_bytes, plan));
    plan->n_model = plan->n;
    return plan_kind(arena, share, dir, true, shard_bytes, plan);
}
