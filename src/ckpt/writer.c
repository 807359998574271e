/* Who does the phases of a save: a thread of each rank, which rests between them until the caller
 * has learnt that all ranks have come so far. A single rank goes through without resting. */
#include <string.h>

#include "ckpt/ckpt_internal.h"

static bool is_alone(const CkptStore *s) { return s->share.ranks <= 1; }

static Status publish(CkptStore *s)
{
    TRY(commit_publish(&s->commit));
    VEC_PUSH(&s->known, s->save.step);
    if (commit_retain(&s->commit, &s->known) != OK)
        log_warn("old checkpoints stay: %s", status_message());
    return OK;
}

/* A save that failed has cleaned up after itself; what could not be removed then is tried again
 * here. */
static Status lay_out(CkptStore *s)
{
    if (s->share.rank == 0) commit_clean(s->root);
    TRY(commit_begin(&s->commit));
    return s->share.rank == 0 ? commit_lay_out(&s->commit) : OK;
}

static Status run_phase(CkptStore *s, SavePhase phase)
{
    switch (phase) {
    case SAVE_LAY_OUT: return lay_out(s);
    case SAVE_WRITE: return commit_write(&s->commit);
    case SAVE_VERIFY: return commit_verify(&s->commit);
    default: return s->share.rank == 0 ? publish(s) : OK;
    }
}

/* What becomes of a phase when all ranks have ended it, this one with `status`. */
static Status rest(CkptStore *s, Status status)
{
    if (is_alone(s)) return status;
    pthread_mutex_lock(&s->mutex);
    s->resting = true;
    s->rest_status = status;
    snprintf(s->rest_sentence, SAVE_SENTENCE, "%s", status == OK ? "" : status_message());
    pthread_cond_broadcast(&s->changed);
    while (!s->go && !s->closing) pthread_cond_wait(&s->changed, &s->mutex);
    bool told = s->go;
    Status agreed = s->go_status;
    s->resting = s->go = false;
    if (!told)
        agreed = fail(ERR_CANCELLED, "the run ended while the checkpoint was being written");
    else if (agreed != OK)
        agreed = fail(agreed, "%s", s->go_sentence);
    pthread_mutex_unlock(&s->mutex);
    return agreed;
}

static Status run_phases(CkptStore *s)
{
    for (SavePhase phase = SAVE_LAY_OUT; phase < SAVE_PHASES; phase++) {
        pthread_mutex_lock(&s->mutex);
        s->phase = phase;
        pthread_mutex_unlock(&s->mutex);
        TRY(rest(s, run_phase(s, phase)));
    }
    return OK;
}

/* When the run ends in between, other ranks may still be writing: then everything is left to the
 * next start. */
Status writer_save(CkptStore *s, int threads)
{
    char work[STEP_NAME + 64], step[STEP_NAME];
    step_name(s->save.step, step);
    snprintf(work, sizeof work, ".tmp-%s-%016llx-%lld", step, (unsigned long long)s->key,
             (long long)s->n_saves);
    s->commit = (Commit){
        .root = s->root, .options = s->options, .threads = threads, .save = &s->save, .work = work};
    Status status = run_phases(s);
    if (status != OK && status != ERR_CANCELLED && s->share.rank == 0) commit_give_up(&s->commit);
    return status;
}

static void finish(CkptStore *s, const CkptResult *result)
{
    pthread_mutex_lock(&s->mutex);
    VEC_PUSH(&s->results, *result);
    s->busy = false;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->mutex);
}

void *writer_run(void *context)
{
    CkptStore *s = context;
    double start = clock_s();
    CkptResult result = {.step = s->save.step, .snapshot_s = s->snapshot_s};
    result.status = writer_save(s, s->threads);
    if (result.status != OK)
        snprintf(result.message, sizeof result.message, "%s", status_message());
    result.bytes = s->commit.bytes;
    commit_end(&s->commit);
    result.write_s = clock_s() - start;
    finish(s, &result);
    return NULL;
}

/* ---- what the caller sees of it --------------------------------------------------------- */

static struct timespec moment_after(double wait_s)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    int64_t ns = at.tv_nsec + (int64_t)(wait_s * 1e9);
    at.tv_sec += ns / 1000000000;
    at.tv_nsec = ns % 1000000000;
    return at;
}

bool ckpt_rests(CkptStore *s, double wait_s, Status *status, const char **sentence)
{
    struct timespec until = moment_after(wait_s);
    bool late = wait_s <= 0;
    pthread_mutex_lock(&s->mutex);
    while (s->busy && !s->resting && !late)
        late = pthread_cond_timedwait(&s->changed, &s->mutex, &until) != 0;
    bool rests = s->resting || !s->busy;
    *status = s->resting ? s->rest_status : OK;
    *sentence = s->resting ? s->rest_sentence : "";
    pthread_mutex_unlock(&s->mutex);
    return rests;
}

CkptTally *ckpt_tallies(CkptStore *s, int *n)
{
    pthread_mutex_lock(&s->mutex);
    bool written = s->resting && s->phase == SAVE_WRITE && s->rest_status == OK;
    pthread_mutex_unlock(&s->mutex);
    *n = written ? s->share.n_tensors : 0;
    return written ? s->commit.total : NULL;
}

bool ckpt_go_on(CkptStore *s, Status status, const char *sentence)
{
    pthread_mutex_lock(&s->mutex);
    bool more = s->resting && status == OK && s->phase + 1 < SAVE_PHASES;
    if (s->resting) {
        s->go = true;
        s->resting = false; /* at once, so that a second question does not meet the same rest */
        s->go_status = status;
        snprintf(s->go_sentence, SAVE_SENTENCE, "%s", sentence ? sentence : "");
        pthread_cond_broadcast(&s->changed);
    }
    pthread_mutex_unlock(&s->mutex);
    return more;
}
