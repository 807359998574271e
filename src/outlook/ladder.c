/* The least good size of a ladder, with few tries: each is a search over layouts. */
#include "outlook/outlook_internal.h"

int outlook_climb(Ladder *ladder, int guess)
{
    int bad = -1, good = ladder->n, at = guess < 0 ? 0 : guess < ladder->n ? guess : ladder->n - 1;
    for (int stride = 1; bad + 1 < good; stride *= 2) {
        if (ladder->good(ladder, at))
            good = at;
        else
            bad = at;
        if (bad >= 0 && good < ladder->n) break;
        if (good < ladder->n) {
            at = at > stride ? at - stride : 0;
            continue;
        }
        if (ladder->hopeless || at == ladder->n - 1) return -1;
        at = at + stride < ladder->n ? at + stride : ladder->n - 1;
    }
    while (bad + 1 < good) {
        int middle = bad + (good - bad) / 2;
        if (ladder->good(ladder, middle))
            good = middle;
        else
            bad = middle;
    }
    return good;
}
