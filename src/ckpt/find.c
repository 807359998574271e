/* The newest good checkpoint of a run. */
#include "ckpt/ckpt_internal.h"

/* latest, then the steps before it (the same course of training), then those after it (committed by
 * a save that died before `latest` moved, or left from a course that was given up). */
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
        const char *path = ckpt_step_path(arena, root, order[i]);
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
    return fail(ERR_FORMAT, "%s: none of its %d checkpoints is good; the newest: %s", root, n,
                status_message());
}

Status candidates_list(Arena *arena, const char *root, int64_t latest, int64_t **steps, int *n)
{
    int64_t *found;
    TRY(steps_list(arena, root, &found, n));
    *steps = ARENA_ARRAY(arena, int64_t, *n + 1);
    *n = order_candidates(found, *n, latest, *steps);
    return OK;
}

static Status find_once(const char *root, int64_t latest, Ckpt **out)
{
    Arena arena = {0};
    int64_t *order;
    int n;
    *out = NULL;
    Status status = candidates_list(&arena, root, latest, &order, &n);
    if (status == OK && n > 0) status = find_among(&arena, root, order, n, out);
    arena_deinit(&arena);
    return status;
}

/* A damaged one costs a warning and the order that it would have given. */
static int64_t read_latest(const char *root)
{
    int64_t latest = -1;
    if (latest_read(root, &latest) != OK)
        log_warn("%s; taking the newest step instead", status_message());
    return latest;
}

Status ckpt_candidates(Arena *arena, const char *root, int64_t **steps, int *n)
{
    *n = 0;
    return dir_exists(root) ? candidates_list(arena, root, read_latest(root), steps, n) : OK;
}

char *ckpt_step_path(Arena *arena, const char *root, int64_t step)
{
    char name[STEP_NAME];
    step_name(step, name);
    return path_join(arena, root, name);
}

Status ckpt_find(const char *root, Ckpt **out)
{
    enum { ATTEMPTS = 5 };
    Ckpt *found = NULL;
    if (dir_exists(root)) {
        for (int i = 0;; i++) {
            int64_t latest = read_latest(root), now = -1;
            Status status = find_once(root, latest, &found);
            if (status == OK) break;
            /* a run that goes on meanwhile may have replaced all that we saw: look again */
            char sentence[1024];
            snprintf(sentence, sizeof sentence, "%s", status_message());
            if (i + 1 >= ATTEMPTS || latest_read(root, &now) != OK || now == latest)
                return fail(status, "%s", sentence);
        }
    }
    *out = found;
    return OK;
}
