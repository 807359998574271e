/* What ops/mma.cuh is on the emulated device. Lanes tell each other where their operands lie, on
 * the stacks of their fibers, and each works out its own results. */
#ifndef GPU_EMULATED_MMA_H
#define GPU_EMULATED_MMA_H

#include "gpu/emulated.h"

#include <vector>

/* Element `half` (0 or 1) of two bf16 in a word. */
static inline float emulated_half(uint32_t word, int half)
{
    return __uint_as_float(half ? word & 0xffff0000 : word << 16);
}

/* a and b of lane `lane` as all lanes see them: four words of a, then two of b. */
static inline void emulated_mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
    uint64_t all[EMULATED_WARP];
    int lane = emulated_lane();
    emulated_gather((uint64_t)(uintptr_t)mine, all);
    for (int k = 0; k < 16; k += 2) { /* products of bf16 are exact in f32 */
        const uint32_t *left = (const uint32_t *)(uintptr_t)all[lane / 4 * 4 + k % 8 / 2];
        const uint32_t *right = (const uint32_t *)(uintptr_t)all[lane % 4 * 8 + k % 8 / 2];
        const uint32_t *next = (const uint32_t *)(uintptr_t)all[lane % 4 * 8 + 4 + k % 8 / 2];
        for (int half = 0; half < 2; half++) {
            float top = emulated_half(left[k / 8 * 2], half),
                  low = emulated_half(left[1 + k / 8 * 2], half),
                  b_even = emulated_half(right[4 + k / 8], half),
                  b_odd = emulated_half(next[4 + k / 8], half);
            c[0] += top * b_even;
            c[1] += top * b_odd;
            c[2] += low * b_even;
            c[3] += low * b_odd;
        }
    }
    __syncwarp(); /* until then the others read `mine` */
}

static inline void emulated_load_blocks(uint32_t (&to)[4], const void *row, bool transposed)
{
    uint64_t all[EMULATED_WARP];
    int lane = emulated_lane();
    CHECK((uintptr_t)row % 16 == 0);
    emulated_gather((uint64_t)(uintptr_t)row, all);
    for (int i = 0; i < 4; i++) {
        uint16_t two[2];
        for (int j = 0; j < 2; j++) {
            int r = transposed ? lane % 4 * 2 + j : lane / 4,
                column = transposed ? lane / 4 : lane % 4 * 2 + j;
            two[j] = ((const uint16_t *)(uintptr_t)all[i * 8 + r])[column];
        }
        memcpy(&to[i], two, sizeof two);
    }
    __syncwarp(); /* nobody writes there before all have read */
}

/* ---- copies that arrive when they are waited for ------------------------------------------ */

struct EmulatedCopy {
    void *to;
    const void *from; /* NULL: zeros */
    unsigned bytes;
};
struct EmulatedCopies { /* of a thread */
    std::vector<EmulatedCopy> copy;
    std::vector<size_t> group; /* how many there were when it was committed */
};

static inline EmulatedCopies *emulated_copies(void)
{
    static thread_local EmulatedCopies of[1024];
    const EmulatedPlace *p = &emulated_place;
    return &of[(p->thread[2] * p->block_dim[1] + p->thread[1]) * p->block_dim[0] + p->thread[0]];
}

static inline void emulated_copy(void *to, const void *from, unsigned bytes, bool there)
{
    CHECK((uintptr_t)to % bytes == 0 && (uintptr_t)from % bytes == 0);
    memset(to, 0xff, bytes);
    emulated_copies()->copy.push_back(EmulatedCopy{to, there ? from : NULL, bytes});
}
static inline void emulated_copy_commit(void)
{
    EmulatedCopies *copies = emulated_copies();
    copies->group.push_back(copies->copy.size());
}
static inline void emulated_copy_wait(size_t left)
{
    EmulatedCopies *copies = emulated_copies();
    if (copies->group.size() <= left) return;
    size_t n = copies->group[copies->group.size() - 1 - left];
    for (size_t i = 0; i < n; i++) {
        const EmulatedCopy *c = &copies->copy[i];
        if (c->from)
            memcpy(c->to, c->from, c->bytes);
        else
            memset(c->to, 0, c->bytes);
    }
    copies->copy.erase(copies->copy.begin(), copies->copy.begin() + (long)n);
    copies->group.erase(copies->group.begin(), copies->group.end() - (long)left);
    for (size_t &g : copies->group) g -= n;
}

#endif
