/* What the first rank makes while the others wait: tokenizer and shards, which takes what it takes.
 *
 * So that the others need no deadline of a day, which would hide a rank that is lost meanwhile, the
 * first one's helper thread tells them again and again that it is still there, and at last that all
 * is made. Each of these messages has the run's own deadline. */
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "train/trainer_internal.h"

typedef enum Word { WORD_AT_WORK = 1, WORD_DONE } Word;

struct FirstRank {
    Comm *world;
    double every_s;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool ended;
};

static Status pass_word(Comm *world, int32_t *word)
{
    return comm_run(world, &(CommOp){.kind = COMM_BROADCAST,
                                     .dtype = DTYPE_I32,
                                     .send = word,
                                     .recv = word,
                                     .count = 1,
                                     .node = "set-up"});
}

/* ---- on the first rank ------------------------------------------------------------------ */

/* Under the lock; true when the work has ended. */
static bool ends_within(FirstRank *f, double seconds)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    int64_t ns = until.tv_nsec + (int64_t)(seconds * 1e9);
    until.tv_sec += ns / 1000000000;
    until.tv_nsec = ns % 1000000000;
    while (!f->ended && !pthread_cond_timedwait(&f->changed, &f->lock, &until)) continue;
    return f->ended;
}

/* The rank itself may be at its work for long, and is ended with the others before it hears. */
static void say_lost(Comm *world)
{
    if (comm_failed_rank(world) != comm_rank(world)) return;
    log_set_thread_quiet(false);
    log_error("%s", status_message());
}

/* Until the work has ended, or the others are lost. */
static void *tell(void *context)
{
    FirstRank *f = context;
    Status status = OK;
    log_set_thread_quiet(true);
    fault_set_rank(comm_rank(f->world), false);
    pthread_mutex_lock(&f->lock);
    while (status == OK && !ends_within(f, f->every_s)) {
        int32_t word = WORD_AT_WORK;
        pthread_mutex_unlock(&f->lock);
        status = pass_word(f->world, &word);
        pthread_mutex_lock(&f->lock);
    }
    bool alone = status != OK && !f->ended; /* else the rank hears of it next */
    pthread_mutex_unlock(&f->lock);
    if (alone) say_lost(f->world);
    return NULL;
}

Status first_rank_begin(Trainer *t, FirstRank **out)
{
    static const double longest_s = 10;
    *out = NULL;
    if (!t->world) return OK;
    FirstRank *f = xcalloc(1, sizeof *f);
    f->world = t->world;
    f->every_s = fmin(longest_s, t->config->parallel.deadline / 4);
    pthread_mutex_init(&f->lock, NULL);
    pthread_cond_init(&f->changed, NULL);
    if (pthread_create(&f->thread, NULL, tell, f)) {
        free(f);
        return fail(ERR_MEMORY, "no thread to tell other ranks of the set-up");
    }
    *out = f;
    return OK;
}

Status first_rank_end(FirstRank *f, Status made)
{
    if (!f) return made;
    int32_t word = WORD_DONE;
    pthread_mutex_lock(&f->lock);
    f->ended = true;
    pthread_cond_signal(&f->changed);
    pthread_mutex_unlock(&f->lock);
    pthread_join(f->thread, NULL);
    if (made == OK) made = pass_word(f->world, &word);
    pthread_mutex_destroy(&f->lock);
    pthread_cond_destroy(&f->changed);
    free(f);
    return made;
}

/* ---- on the others ---------------------------------------------------------------------- */

Status first_rank_await(Trainer *t)
{
    for (int32_t word = WORD_AT_WORK; word != WORD_DONE;) TRY(pass_word(t->world, &word));
    return OK;
}
