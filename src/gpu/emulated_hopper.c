/* Hopper's own instructions on the emulated device: barriers in shared memory (mbarrier), boxes of
 * tensors by the bulk copy engine, products of warpgroups (wgmma). After the PTX ISA 9.0; the
 * sections are named where their rules are followed.
 *
 * All is as late as it can be. A box is NaN from the moment its copy begins, and arrives when some
 * thread waits for its barrier and no thread of the block can go on; of several any one may be
 * first. Operands of a product are read from shared memory, and from registers, when a warp waits
 * for the product, and its sums are NaN until then. Each warp does its quarter of a product by
 * itself, since only an mbarrier or a barrier tells it what the other three have done. So who does
 * not wait, or lets go of a buffer too early, computes NaN. What registers are written or read with
 * no wgmma.fence between, or between the begin of a product and the wait for it, cannot be seen in
 * general; what can is refused: sums that changed meanwhile, and products after a wait that no
 * fence came before.
 */
#include "gpu/emulated_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WARP = EMULATED_WARP, GROUP_WARPS = 4, MAX_MBARRIERS = 64, MAX_SUMS = 8 };
enum { MAX_N = 256, M = 16, K = 16 }; /* of a warp's quarter of a product */

/* "Parallel Synchronization and Communication: mbarrier": a phase ends when its arrivals are there
 * and so are its bytes; the next one begins at once. */
typedef struct Mbarrier {
    const void *at;
    unsigned arrivals, pending; /* of a phase; of this one, still */
    int64_t bytes;              /* expected and not there yet */
    unsigned phase;
    int waiters; /* threads */
} Mbarrier;

_Static_assert(sizeof(GpuTiling) <= sizeof(GpuBoxes), "what kernels are given holds a tiling");

typedef struct BoxCopy {
    unsigned char *to;
    GpuTiling tiling;
    int at[GPU_BOX_AXES];
    Mbarrier *barrier;
} BoxCopy;

/* A thread's sums of products that are under way. */
typedef struct Sums {
    float *d; /* NULL: this place is free */
    int n, under_way;
    float value[MAX_N / 2];
} Sums;

typedef struct Product {
    EmulatedWgmma of;
    int sums;
    unsigned group; /* the number of the wgmma-group that it went into, from 1 on; 0: none yet */
} Product;

typedef struct Thread {
    VEC(Product) product; /* under way, in order */
    Sums *sums;           /* MAX_SUMS of them, once there was a product */
    unsigned groups;      /* committed so far */
    uint64_t issued;      /* a hash of all products */
    bool fenced;          /* since the last wait */
} Thread;

struct EmulatedHopper {
    Mbarrier mbarrier[MAX_MBARRIERS];
    int n_mbarriers;
    VEC(BoxCopy) copy;
    Thread *thread;
};

EmulatedHopper *hopper_create(int threads)
{
    EmulatedHopper *hopper = xcalloc(1, sizeof *hopper);
    hopper->thread = xcalloc((size_t)threads, sizeof *hopper->thread);
    return hopper;
}

bool hopper_in_use(const EmulatedHopper *hopper) { return hopper->n_mbarriers > 0; }

void hopper_block_begins(EmulatedHopper *hopper, int threads)
{
    hopper->n_mbarriers = 0;
    hopper->copy.n = 0;
    for (int i = 0; i < threads; i++) {
        Thread *t = &hopper->thread[i];
        t->product.n = 0;
        t->groups = 0;
        t->issued = 0;
        t->fenced = false;
        for (int s = 0; t->sums && s < MAX_SUMS; s++) t->sums[s].d = NULL;
    }
}

/* What must be over when the threads are, and what the warps of a warpgroup do together. */
void hopper_block_ends(EmulatedHopper *hopper, int threads)
{
    if (hopper->copy.n) emulated_fault("it ends before %zu copies have arrived", hopper->copy.n);
    for (int i = 0; i < threads; i++) {
        const Thread *t = &hopper->thread[i], *first = &hopper->thread[i / 128 * 128];
        if (t->product.n) emulated_fault("it ends before its products are waited for");
        if (t->issued != first->issued)
            emulated_fault("threads %d and %d of a warpgroup issued different products", i,
                           i / 128 * 128);
    }
}

/* ---- barriers ----------------------------------------------------------------------------- */

static Mbarrier *find(const void *at)
{
    EmulatedHopper *hopper = emulated_hopper();
    for (int i = 0; i < hopper->n_mbarriers; i++)
        if (hopper->mbarrier[i].at == at) return &hopper->mbarrier[i];
    return NULL;
}

static Mbarrier *find_begun(const void *at)
{
    Mbarrier *barrier = find(at);
    if (!barrier) emulated_fault("an mbarrier is used before it is begun");
    return barrier;
}

void emulated_mbarrier_begin(void *at, unsigned arrivals)
{
    EmulatedHopper *hopper = emulated_hopper();
    CHECK((uintptr_t)at % 8 == 0 && arrivals && hopper->n_mbarriers < MAX_MBARRIERS);
    (void)emulated_shared_address(at);
    if (find(at)) emulated_fault("an mbarrier is begun twice");
    hopper->mbarrier[hopper->n_mbarriers++] = (Mbarrier){at, arrivals, arrivals, 0, 0, 0};
}

static void phase_ends(Mbarrier *barrier)
{
    if (barrier->pending || barrier->bytes) return;
    barrier->pending = barrier->arrivals;
    barrier->phase++;
}

/* mbarrier.arrive, and with bytes mbarrier.arrive.expect_tx */
void emulated_mbarrier_arrive(void *at, unsigned expected_bytes)
{
    Mbarrier *barrier = find_begun(at);
    if (!barrier) return;
    if (!barrier->pending) {
        emulated_fault("more threads arrive at an mbarrier than it was begun for");
        return;
    }
    barrier->bytes += expected_bytes;
    barrier->pending--;
    unsigned phase = barrier->phase;
    phase_ends(barrier);
    if (barrier->phase != phase) emulated_yield(); /* who waited for it may be the faster one */
}

/* mbarrier.try_wait.parity until it is true: the phase of this parity is over when the current one
 * has the other. */
void emulated_mbarrier_wait(void *at, unsigned parity)
{
    Mbarrier *barrier = find_begun(at);
    if (!barrier) return;
    barrier->waiters++;
    while (barrier->phase % 2 == parity) emulated_wait(&barrier->phase);
    barrier->waiters--;
}

/* ---- boxes -------------------------------------------------------------------------------- */

Status gpu_boxes_make(GpuStream *stream, const GpuTiling *t, GpuBoxes *boxes)
{
    (void)stream;
    bool good = t->axes >= 1 && t->axes <= GPU_BOX_AXES && (uintptr_t)t->data % 16 == 0 &&
                (t->box[0] == 16 || t->box[0] == 32 || t->box[0] == 64);
    for (int a = 0; good && a < t->axes; a++) {
        good = t->size[a] >= 1 && t->size[a] <= (int64_t)1 << 32 && t->box[a] >= 1 &&
               t->box[a] <= 256;
        if (a) good = good && t->pitch_bytes[a] % 16 == 0 && t->pitch_bytes[a] < (int64_t)1 << 40;
    }
    if (!good) return fail(ERR_DEVICE, "the emulated device refuses a tensor map");
    *boxes = (GpuBoxes){{0}};
    memcpy(boxes, t, sizeof *t);
    return OK;
}

static size_t box_lines(const GpuTiling *t)
{
    size_t lines = 1;
    for (int a = 1; a < t->axes; a++) lines *= (size_t)t->box[a];
    return lines;
}
static size_t line_bytes(const GpuTiling *t) { return (size_t)t->box[0] * sizeof(uint16_t); }

/* cp.async.bulk.tensor, .tile, to shared memory */
void emulated_box_copy(void *to, const GpuBoxes *boxes, const int *at, void *barrier)
{
    BoxCopy copy = {.to = to, .barrier = find_begun(barrier)};
    memcpy(&copy.tiling, boxes, sizeof copy.tiling);
    const GpuTiling *t = &copy.tiling;
    for (int a = 0; a < t->axes; a++) copy.at[a] = at[a];
    /* "Swizzling modes": the pattern is one of addresses, and has a period of 8 lines */
    if (emulated_shared_address(to) % (8 * line_bytes(t)))
        emulated_fault("a box begins at %u, within a pattern of swizzles",
                       emulated_shared_address(to));
    (void)emulated_shared_address((char *)to + box_lines(t) * line_bytes(t));
    memset(to, 0xff, box_lines(t) * line_bytes(t));
    if (copy.barrier) VEC_PUSH(&emulated_hopper()->copy, copy);
}

/* Line number `line` of the box; elements outside of the tensor are zeros. */
static void copy_line(const BoxCopy *copy, size_t line)
{
    const GpuTiling *t = &copy->tiling;
    size_t rest = line, pieces = line_bytes(t) / 16;
    const char *from = t->data;
    bool there = true;
    for (int a = 1; a < t->axes; a++) {
        int64_t i = copy->at[a] + (int64_t)(rest % (size_t)t->box[a]);
        rest /= (size_t)t->box[a];
        there = there && i >= 0 && i < t->size[a];
        from += i * t->pitch_bytes[a];
    }
    for (size_t piece = 0; piece < pieces; piece++) {
        uint16_t x[8] = {0};
        for (int i = 0; there && i < 8; i++) {
            int64_t column = copy->at[0] + (int64_t)piece * 8 + i;
            if (column >= 0 && column < t->size[0])
                x[i] = ((const uint16_t *)(const void *)from)[column];
        }
        size_t turned = piece ^ line * pieces / 8 % pieces;
        memcpy(copy->to + line * line_bytes(t) + turned * 16, x, sizeof x);
    }
}

bool hopper_copy_arrives(EmulatedHopper *hopper, int order)
{
    size_t n = hopper->copy.n, awaited = 0, which, i = 0;
    for (size_t c = 0; c < n; c++) awaited += hopper->copy.at[c].barrier->waiters > 0;
    if (!awaited) return false;
    which = order == 0 ? 0 : order == 1 ? awaited - 1 : awaited / 2;
    while (!hopper->copy.at[i].barrier->waiters || which--) i++;
    BoxCopy copy = hopper->copy.at[i];
    memmove(&hopper->copy.at[i], &hopper->copy.at[i + 1], (n - 1 - i) * sizeof *hopper->copy.at);
    hopper->copy.n--;
    for (size_t line = 0; line < box_lines(&copy.tiling); line++) copy_line(&copy, line);
    /* the bytes of the whole box count, also those outside of the tensor */
    copy.barrier->bytes -= (int64_t)(box_lines(&copy.tiling) * line_bytes(&copy.tiling));
    if (copy.barrier->bytes < 0)
        emulated_fault("more bytes arrive at an mbarrier than it was told to expect");
    else
        phase_ends(copy.barrier);
    return true;
}

/* ---- operands in shared memory ------------------------------------------------------------ */

/* "Matrix Descriptor Format" */
typedef struct Matrix {
    uint32_t start, leading, stride; /* bytes */
    uint32_t line;                   /* bytes of a line that swizzles permute; 16: none */
} Matrix;

static Matrix matrix_of(uint64_t bits)
{
    static const uint32_t line[4] = {16, 128, 64, 32};
    Matrix m = {(uint32_t)(bits & 0x3fff) << 4, (uint32_t)(bits >> 16 & 0x3fff) << 4,
                (uint32_t)(bits >> 32 & 0x3fff) << 4, line[bits >> 62]};
    /* "base offset" is 0 where the pattern begins at a multiple of its 8 lines: then a matrix may
     * begin within the pattern's first line only */
    if (bits >> 49 & 7) emulated_fault("a matrix with a base offset");
    if (m.line > 16 && m.start % (8 * m.line) >= m.line)
        emulated_fault("a matrix begins at %u, not in the first line of a pattern", m.start);
    return m;
}

/* "Canonical Layouts": where the eight elements from (i, k) on lie, along the axis that is
 * contiguous; i counts along M or N. T elements are 16 bytes, so are lines without swizzles. */
static uint32_t piece_at(const Matrix *m, bool by_mn, uint32_t i, uint32_t k)
{
    uint32_t address, line = m->line;
    if (!by_mn && line == 16) /* ((8,m),(T,2k)):((1T,SBO),(1,LBO)) */
        address = i % 8 * 16 + i / 8 * m->stride + k / 8 * m->leading;
    else if (!by_mn) /* ((8,m),(T,2k)):((line,SBO),(1,T)) */
        address = i % 8 * line + i / 8 * m->stride + k / 8 * 16;
    else if (line == 16) /* ((T,1,m),(8,k)):((1,T,SBO),(1T,LBO)) */
        address = i / 8 * m->stride + k % 8 * 16 + k / 8 * m->leading;
    else { /* ((T,line/16,m),(8,k)):((1,T,LBO),(line,SBO)) */
        uint32_t across = line / 2;
        address = i % across * 2 + i / across * m->leading + k % 8 * line + k / 8 * m->stride;
    }
    address += m->start;
    /* Swizzle<log2(line / 16), 4, 3> of the address: its bits from 4 on are turned by those from 7
     * on */
    return address ^ (address >> 7 & (line / 16 - 1)) << 4;
}

static float value_of(uint16_t bits)
{
    uint32_t word = (uint32_t)bits << 16;
    float x;
    memcpy(&x, &word, sizeof x);
    return x;
}

/* to[k][i]: rows or columns first..first+n-1 of an operand, n a multiple of 8 */
static void load_operand(uint64_t bits, bool by_mn, uint32_t first, uint32_t n, float (*to)[MAX_N])
{
    Matrix m = matrix_of(bits);
    for (uint32_t k = 0; k < K; k += by_mn ? 1 : 8)
        for (uint32_t i = 0; i < n; i += by_mn ? 8 : 1) {
            uint16_t x[8];
            memcpy(x, emulated_shared_at(piece_at(&m, by_mn, first + i, k), sizeof x), sizeof x);
            for (uint32_t e = 0; e < 8; e++)
                to[by_mn ? k : k + e][by_mn ? i + e : i] = value_of(x[e]);
        }
}

/* "Register Fragments", m64nNk16, a warp's 16 rows of a: with g = lane / 4 and t = lane % 4, word w
 * has row g + 8 (w % 2), columns 2t + 8 (w / 2) and one more. */
static void load_registers(const EmulatedHopper *hopper, int first, size_t number,
                           float (*to)[MAX_N])
{
    for (int lane = 0; lane < WARP; lane++) {
        const uint32_t *a = hopper->thread[first + lane].product.at[number].of.a;
        for (int w = 0; w < 4; w++)
            for (int half = 0; half < 2; half++)
                to[lane % 4 * 2 + w / 2 * 8 + half][lane / 4 + w % 2 * 8] = value_of(
                    (uint16_t)(a[w] >> (16 * half)));
    }
}

/* ---- products ----------------------------------------------------------------------------- */

/* The same: element e of a lane's sums is row g + 8 (e / 2 % 2), column 8 (e / 4) + 2t + e % 2. */
static int sum_row(int lane, int e) { return lane / 4 + e / 2 % 2 * 8; }
static int sum_column(int lane, int e) { return e / 4 * 8 + lane % 4 * 2 + e % 2; }

static Sums *sums_of(EmulatedHopper *hopper, int thread, size_t number)
{
    Thread *t = &hopper->thread[thread];
    return &t->sums[t->product.at[number].sums];
}

/* The quarter that the warp of thread `first` has of its product number `number`. */
static void multiply(EmulatedHopper *hopper, int first, size_t number)
{
    static _Thread_local float a[K][MAX_N], b[K][MAX_N], c[M][MAX_N];
    const EmulatedWgmma *p = &hopper->thread[first].product.at[number].of;
    int n = p->n;
    if (p->a)
        load_registers(hopper, first, number, a);
    else
        load_operand(p->a_matrix, p->a_by_m, (uint32_t)(first / WARP % GROUP_WARPS * M), M, a);
    load_operand(p->b_matrix, p->b_by_n, 0, (uint32_t)n, b);
    for (int lane = 0; lane < WARP; lane++) {
        const float *value = sums_of(hopper, first + lane, number)->value;
        for (int e = 0; e < n / 2; e++)
            c[sum_row(lane, e)][sum_column(lane, e)] = p->add ? value[e] : 0;
    }
    for (int i = 0; i < M; i++)
        for (int k = 0; k < K; k++)
            for (int j = 0; j < n; j++) c[i][j] += a[k][i] * b[k][j];
    for (int lane = 0; lane < WARP; lane++) {
        float *value = sums_of(hopper, first + lane, number)->value;
        for (int e = 0; e < n / 2; e++) value[e] = c[sum_row(lane, e)][sum_column(lane, e)];
    }
}

static void hide(float *d, int n) { memset(d, 0xff, (size_t)n / 2 * sizeof *d); }

static bool is_hidden(const float *d, int n)
{
    const unsigned char *bytes = (const void *)d;
    for (size_t i = 0; i < (size_t)n / 2 * sizeof *d; i++)
        if (bytes[i] != 0xff) return false;
    return true;
}

/* The place of sums at d: theirs, or a free one. */
static int place_of(Thread *t, const EmulatedWgmma *product)
{
    int empty = -1;
    if (!t->sums) t->sums = xcalloc(MAX_SUMS, sizeof *t->sums);
    for (int s = 0; s < MAX_SUMS; s++) {
        const Sums *sums = &t->sums[s];
        if (!sums->d)
            empty = s;
        else if (sums->d == product->d) {
            if (sums->n != product->n)
                emulated_fault("products of other shapes on the same sums, not waited for");
            return s;
        }
    }
    CHECK(empty >= 0);
    Sums *sums = &t->sums[empty];
    sums->d = product->d;
    sums->n = product->n;
    sums->under_way = 0;
    memcpy(sums->value, product->d, (size_t)product->n / 2 * sizeof(float));
    hide(product->d, product->n);
    /* "wgmma.fence": before the first product, and between an access of registers and the product
     * that accesses them too, unless both are products on the same sums */
    if (!t->fenced) emulated_fault("a product begins after a wait, with no fence between");
    return empty;
}

static uint64_t mix(uint64_t hash, uint64_t x) { return (hash ^ x) * 0x9e3779b97f4a7c15u + 1; }

void emulated_wgmma(const EmulatedWgmma *product)
{
    Thread *t = &emulated_hopper()->thread[emulated_thread()];
    CHECK(product->n % 8 == 0 && product->n >= 8 && product->n <= MAX_N);
    if (product->a && !t->fenced) emulated_fault("operands in registers, with no fence before");
    int place = place_of(t, product);
    t->sums[place].under_way++;
    VEC_PUSH(&t->product, ((Product){.of = *product, .sums = place}));
    t->issued = mix(t->issued, product->a ? 1 : product->a_matrix);
    t->issued = mix(t->issued, product->b_matrix);
    t->issued = mix(t->issued, (uint64_t)product->n * 8 + product->a_by_m * 4u +
                                   product->b_by_n * 2u + product->add);
}

void emulated_wgmma_fence(void) { emulated_hopper()->thread[emulated_thread()].fenced = true; }

void emulated_wgmma_commit(void)
{
    Thread *t = &emulated_hopper()->thread[emulated_thread()];
    t->groups++;
    for (size_t i = 0; i < t->product.n; i++)
        if (!t->product.at[i].group) t->product.at[i].group = t->groups;
}

/* Sums that no product is under way on are the thread's again. */
static void give_back(Thread *t)
{
    for (int s = 0; s < MAX_SUMS; s++) {
        Sums *sums = &t->sums[s];
        if (!sums->d || sums->under_way) continue;
        if (!is_hidden(sums->d, sums->n))
            emulated_fault("sums were written while a product was under way on them");
        memcpy(sums->d, sums->value, (size_t)sums->n / 2 * sizeof(float));
        sums->d = NULL;
    }
}

/* The first `n` products of a warp. */
static void finish(EmulatedHopper *hopper, int first, size_t n)
{
    for (size_t i = 0; i < n; i++) multiply(hopper, first, i);
    for (int lane = 0; lane < WARP; lane++) {
        Thread *t = &hopper->thread[first + lane];
        for (size_t i = 0; i < n; i++) t->sums[t->product.at[i].sums].under_way--;
        t->product.n -= n;
        memmove(t->product.at, t->product.at + n, t->product.n * sizeof *t->product.at);
        if (t->sums) give_back(t);
    }
}

void emulated_wgmma_wait(int left)
{
    EmulatedHopper *hopper = emulated_hopper();
    int self = emulated_thread(), first = self / WARP * WARP;
    Thread *t = &hopper->thread[self];
    t->fenced = false;
    emulated_warp_barrier(); /* all threads of a warp wait for the same */
    if (self == first) {
        size_t n = 0;
        bool same = true;
        for (int lane = 1; lane < WARP; lane++)
            same = same && hopper->thread[first + lane].issued == t->issued &&
                   hopper->thread[first + lane].groups == t->groups;
        if (!same) emulated_fault("lanes of a warp issued different products");
        while (same && n < t->product.n && t->product.at[n].group &&
               t->product.at[n].group + (unsigned)left <= t->groups)
            n++;
        finish(hopper, first, n);
    }
    emulated_warp_barrier();
}
