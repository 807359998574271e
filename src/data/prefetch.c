/* A thread that fills batches ahead of the step loop, in a ring of buffers.
 *
 * The thread fills the places (step, micro_index) in order; `generation` changes when the consumer
 * jumps, so that a batch that was being filled for the old place is thrown away. An error waits in
 * the ring like a batch and is handed to the consumer who asks for that place. */
#include "data/data_internal.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 64, MAX_DEPTH = 64, MAX_SENTENCE = 512 };

typedef struct Place {
    int64_t step, micro_index;
} Place;

typedef struct Slot {
    DataBatch batch;
    Place place;
    Status status;
    char sentence[MAX_SENTENCE];
} Slot;

struct DataPrefetch {
    DataLoader *loader;
    int64_t n_micro, part, stride;
    int depth;
    void *block; /* of all batches */
    Slot *slot;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    /* under the lock: */
    Place next;         /* that the thread fills */
    int first, n_ready; /* of the ring */
    bool held;          /* the consumer reads slot `first` */
    uint64_t generation;
    bool stop;
    double wait_s;
};

/* Four arrays per batch, each on a cache line of its own. */
static Status batch_bytes(const DataPlan *plan, size_t *array, size_t *total, int depth)
{
    size_t n;
    if (!size_mul((size_t)plan->micro_batch, (size_t)plan->seq, &n) || !size_mul(n, 4, &n) ||
        n > SIZE_MAX / 1024)
        return fail(ERR_ARG, "data: a batch of %lld x %lld tokens is too large",
                    (long long)plan->micro_batch, (long long)plan->seq);
    *array = round_up(n, ALIGNMENT);
    if (!size_mul(*array, 4 * (size_t)depth, total))
        return fail(ERR_ARG, "data: prefetch buffers are too large");
    return OK;
}

Status data_prefetch_bytes(const DataPlan *plan, int depth, size_t *bytes)
{
    size_t array;
    if (depth < 2 || depth > MAX_DEPTH)
        return fail(ERR_ARG, "data: prefetch depth %d; 2 to %d are possible", depth, MAX_DEPTH);
    return batch_bytes(plan, &array, bytes, depth);
}

static Place place_after(const DataPrefetch *p, Place at)
{
    if (++at.micro_index == p->n_micro) at = (Place){at.step + 1, 0};
    return at;
}

static bool same(Place a, Place b) { return a.step == b.step && a.micro_index == b.micro_index; }

/* Fills slots while there are free ones; holds the lock except while filling. */
static void *run(void *context)
{
    DataPrefetch *p = context;
    pthread_mutex_lock(&p->lock);
    while (!p->stop) {
        if (p->n_ready == p->depth) {
            pthread_cond_wait(&p->changed, &p->lock);
            continue;
        }
        Slot *slot = &p->slot[(p->first + p->n_ready) % p->depth];
        uint64_t generation = p->generation;
        slot->place = p->next;
        pthread_mutex_unlock(&p->lock);
        slot->status = data_fill(p->loader, slot->place.step,
                                 slot->place.micro_index * p->stride + p->part, &slot->batch);
        if (slot->status != OK)
            snprintf(slot->sentence, sizeof slot->sentence, "%s", status_message());
        pthread_mutex_lock(&p->lock);
        if (generation != p->generation) continue; /* the consumer jumped meanwhile */
        p->next = place_after(p, p->next);
        p->n_ready++;
        pthread_cond_broadcast(&p->changed);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

static Status allocate(DataPrefetch *p, const DataPlan *plan)
{
    size_t array = 0, total = 0;
    TRY(batch_bytes(plan, &array, &total, p->depth));
    p->block = fault_hit("tensor_alloc") ? NULL : aligned_alloc(ALIGNMENT, total);
    if (!p->block)
        return fail(ERR_MEMORY, "data: no memory for prefetch buffers of %zu bytes", total);
    p->slot = xcalloc((size_t)p->depth, sizeof *p->slot);
    for (int i = 0; i < p->depth; i++) {
        char *at = (char *)p->block + (size_t)i * 4 * array;
        p->slot[i].batch = (DataBatch){(int32_t *)(void *)at, (int32_t *)(void *)(at + array),
                                       (int32_t *)(void *)(at + 2 * array),
                                       (float *)(void *)(at + 3 * array)};
    }
    return OK;
}

Status data_prefetch_create(DataLoader *loader, int64_t first_step, int depth, DataPrefetch **out)
{
    const DataPlan *plan = data_loader_plan(loader);
    size_t bytes;
    TRY(data_prefetch_bytes(plan, depth, &bytes));
    DataPrefetch *p = xcalloc(1, sizeof *p);
    p->loader = loader;
    int64_t parts = plan->parts > 0 ? plan->parts : 1;
    p->part = plan->part;
    p->stride = plan->stride > 0 ? plan->stride : parts;
    p->n_micro = plan->batch / plan->micro_batch / parts;
    p->depth = depth;
    p->next = (Place){first_step, 0};
    Status status = allocate(p, plan);
    if (status != OK) {
        free(p);
        return status;
    }
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->changed, NULL);
    if (pthread_create(&p->thread, NULL, run, p) != 0) {
        free(p->slot);
        free(p->block);
        free(p);
        return fail(ERR_IO, "data: cannot start the prefetch thread");
    }
    *out = p;
    return OK;
}

void data_prefetch_destroy(DataPrefetch *p)
{
    if (!p) return;
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
    pthread_join(p->thread, NULL);
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->changed);
    free(p->slot);
    free(p->block);
    free(p);
}

static void drop_first(DataPrefetch *p)
{
    p->first = (p->first + 1) % p->depth;
    p->n_ready--;
}

/* What was read ahead is of no use: the thread starts again at `place`, once it has finished the
 * slot that it may be filling. */
static void jump(DataPrefetch *p, Place place)
{
    p->generation++;
    p->n_ready = 0;
    p->next = place;
}

Status data_prefetch_next(DataPrefetch *p, int64_t step, int64_t micro_index,
                          const DataBatch **batch)
{
    Place place = {step, micro_index};
    if (step < 0 || micro_index < 0 || micro_index >= p->n_micro)
        return fail(ERR_ARG, "data: there is no micro-batch %lld in step %lld",
                    (long long)micro_index, (long long)step);
    pthread_mutex_lock(&p->lock);
    if (p->held) drop_first(p);
    p->held = false;
    Place coming = p->n_ready ? p->slot[p->first].place : p->next;
    if (!same(coming, place)) jump(p, place);
    pthread_cond_broadcast(&p->changed);
    double start_s = clock_s();
    while (!p->n_ready) pthread_cond_wait(&p->changed, &p->lock);
    p->wait_s += clock_s() - start_s;
    Slot *slot = &p->slot[p->first];
    Status status = slot->status;
    if (status == OK) {
        *batch = &slot->batch;
        p->held = true;
    } else { /* the place may be asked for again: the fault may have passed */
        status = fail(status, "%s", slot->sentence);
        jump(p, place);
    }
    pthread_mutex_unlock(&p->lock);
    return status;
}

double data_prefetch_wait_s(const DataPrefetch *p) { return p->wait_s; }
