/* The newest good checkpoint of a run. */
#include "ckpt/ckpt_internal.h"

/* latest, then the steps before it (the same course of training), then those after it (committed by a
 * save that died before `latest` moved, or left from a course that was given up). */
static int order_candidates(const int64_t *steps, int n, int64_t latest, int64_t *out)
{
    int count = 0;
    if (latest >= 0) out[count++] = latest;
    for (int i = 0; i < n; i++)
        if (latest < 0 || steps[i] < latest) out[count++] = steps[i];
    for (int i = 0; i < n; i++)
        if (latest >= 0 && steps[i] > latest) out[count++] = steps[i];
    return count;
}

static Status find_among(Arena *arena, const char *root, const int64_t *order, int n, Ckpt **out)
{
    for (int i = 0; i < n; i++) {
        char name[STEP_NAME];
        step_name(order[i], name);
        const char *path = path_join(arena, root, name);
        if (ckpt_open(path, CKPT_VERIFY_HASHES, out) == OK) {
            if (ckpt_has_manifest(*out)) {
                if (i > 0) log_warn("going on from %s instead", path);
                return OK;
            }
            ckpt_close(*out);
            (void)fail(ERR_FORMAT, "%s has no manifest", path);
        }
        log_warn("checkpoint %s is not used: %s", path, status_message());
    }
    return fail(ERR_FORMAT, "%s: none of its %d checkpoints is good; the newest: %s", root, n, status_message());
}

Status ckpt_find(const char *root, Ckpt **out)
{
    Arena arena = {0};
    int64_t *steps, latest = -1;
    int n;
    Status status = OK;
    Ckpt *found = NULL;
    if (!dir_exists(root)) goto done;
    if (latest_read(root, &latest) != OK) log_warn("%s; taking the newest step instead", status_message());
    TRY_GOTO(steps_list(&arena, root, &steps, &n), done);
    if (n == 0 && latest < 0) goto done;
    int64_t *order = ARENA_ARRAY(&arena, int64_t, n + 1);
    n = order_candidates(steps, n, latest, order);
    status = find_among(&arena, root, order, n, &found);
done:
    if (status == OK) *out = found;
    arena_deinit(&arena);
    return status;
}
