/* The same work on many things, on several threads, with the first failure handed to the caller. */
#include <stdlib.h>
#include <string.h>

#include "ckpt/ckpt_internal.h"

/* Below this, waking threads costs more than the work, and they spin afterwards. */
enum { SENTENCE = 1024, SMALL_BYTES = 4 << 20 };

int parallel_threads(uint64_t bytes) { return bytes < SMALL_BYTES ? 1 : cpu_count(); }

Status parallel_each(int n, int threads, Status (*run)(void *context, int i), void *context)
{
    Status first = OK;
    int first_i = n;
    char sentence[SENTENCE] = "";
    (void)threads; /* without OpenMP the loop is serial */
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1 && n > 1)
    for (int i = 0; i < n; i++) {
        Status status = run(context, i);
        if (status == OK) continue;
            /* the sentence belongs to the thread that failed: it is carried over */
#pragma omp critical(ckpt_parallel_each)
        if (i < first_i) {
            first_i = i;
            first = status;
            snprintf(sentence, sizeof sentence, "%s", status_message());
        }
    }
    return first == OK ? OK : fail(first, "%s", sentence);
}
