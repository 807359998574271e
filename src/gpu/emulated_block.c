/* The blocks of a launch, one after the other; the threads of a block as fibers. */
#include "gpu/emulated_internal.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

enum { MAX_THREADS = 1024, WARP = EMULATED_WARP, MAX_WARPS = MAX_THREADS / WARP };
enum { MAX_SHARED = 228 << 10, POISON = 0xff };
/* Dynamic shared memory begins at this address of the block's, as far from a multiple of 1024 as
 * launch.cuh promises no more than: who needs one must round up. */
enum { SHARED_BEGIN = 1024 + 128, SHARED_ALIGN = 1024, NAMED_BARRIERS = 16 };
/* The tops of stacks begin at different places of a page: else they would all fall into the same
 * lines of the first-level cache. */
enum { SHIFT = 5 * 64, PAGE = 4096 };
#if defined(__SANITIZE_ADDRESS__)
enum { STACK_BYTES = 96 << 10 };
#else
enum { STACK_BYTES = 32 << 10 };
#endif

/* Threads that wait for each other: all of a block, or of a warp. */
typedef struct Barrier {
    int members, arrived;
    unsigned round;
} Barrier;

typedef struct Fiber {
#if defined(__x86_64__)
    void *stack_at; /* where it stopped */
#else
    ucontext_t at;
#endif
    unsigned thread[3];
    bool done;
    const unsigned *waits; /* a number that changes when it is over; NULL: for nobody */
    unsigned round;        /* what that number was */
    unsigned exchanges;    /* it took part in */
} Fiber;

/* All that one host thread needs to run blocks. */
typedef struct Machine {
    const EmulatedLaunch *launch;
    Fiber fiber[MAX_THREADS], host;
    int n, now;
    int at, left; /* whose turn it is; threads that have not ended */
    bool yields;  /* the one that runs lets others go first */
    char *stacks; /* MAX_THREADS of STACK_BYTES */
    unsigned char *shared;
    Barrier block, warp[MAX_WARPS], named[NAMED_BARRIERS];
    EmulatedHopper *hopper;
    char fault[256]; /* what the block's threads did that no kernel may; empty: nothing */
    uint64_t slot[2][MAX_THREADS]; /* what lanes exchange, by turns */
    void *host_fake_stack;
    const void *host_stack;
    size_t host_stack_bytes;
} Machine;

__thread EmulatedPlace emulated_place;
static _Thread_local Machine *machine;

/* ---- fibers ------------------------------------------------------------------------------- */

#if defined(__x86_64__)
/* Saves what a callee must keep on the stack, and the stack in *from; goes on where `to` was saved.
 */
void emulated_switch(void **from, void *to);
__asm__(".text\n.p2align 4\n.globl emulated_switch\n.type emulated_switch,@function\n"
        "emulated_switch:\n"
        "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
        "movq %rsp,(%rdi)\nmovq %rsi,%rsp\n"
        "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n"
        ".size emulated_switch,.-emulated_switch\n");
#endif

static char *stack_of(const Machine *m, const Fiber *fiber)
{
    return m->stacks + (size_t)(fiber - m->fiber) * STACK_BYTES;
}

static void switch_fibers(Machine *m, Fiber *from, Fiber *to)
{
    (void)m; /* who it is matters to the sanitizer alone */
#if defined(__SANITIZE_ADDRESS__)
    void *fake = NULL;
    bool to_host = to == &m->host;
    __sanitizer_start_switch_fiber(from->done ? NULL : &fake,
                                   to_host ? m->host_stack : stack_of(m, to),
                                   to_host ? m->host_stack_bytes : STACK_BYTES);
#endif
#if defined(__x86_64__)
    emulated_switch(&from->stack_at, to->stack_at);
#else
    swapcontext(&from->at, &to->at);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, NULL, NULL);
#endif
}

static void go_on(Machine *m, Fiber *self);
static void leave(Barrier *barrier);

static void fiber_main(void)
{
    Machine *m = machine;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(NULL, &m->host_stack, &m->host_stack_bytes);
#endif
    Fiber *self = &m->fiber[m->now];
    m->launch->body(m->launch->context);
    self->done = true;
    m->left--;
    leave(&m->block);
    leave(&m->warp[m->now / WARP]);
    go_on(m, self);
    abort(); /* nobody goes on here */
}

static void fiber_start(Machine *m, Fiber *fiber)
{
    char *stack = stack_of(m, fiber);
    size_t bytes = STACK_BYTES - (size_t)(fiber - m->fiber) * SHIFT % PAGE;
#if defined(__SANITIZE_ADDRESS__)
    enum { FIRST_FRAME = 2048 }; /* of fiber_main, which never left it the last time */
    ASAN_UNPOISON_MEMORY_REGION(stack + bytes - FIRST_FRAME, FIRST_FRAME);
#endif
#if defined(__x86_64__)
    void **top = (void **)(void *)(stack + bytes);
    memset(top - 16, 0, 16 * sizeof *top);
    void (*start)(void) = fiber_main;
    memcpy(top - 2, &start, sizeof start); /* as if called: the stack is 8 off a multiple of 16 */
    fiber->stack_at = top - 8;
#else
    getcontext(&fiber->at);
    fiber->at.uc_stack.ss_sp = stack;
    fiber->at.uc_stack.ss_size = bytes;
    fiber->at.uc_link = NULL;
    makecontext(&fiber->at, fiber_main, 0);
#endif
}

/* ---- waiting for each other --------------------------------------------------------------- */

static void pass(Barrier *barrier)
{
    barrier->arrived = 0;
    barrier->round++;
}

/* The fiber that has turn i of n. */
static int turn(int order, int i, int n)
{
    if (order == 0) return i;
    if (order == 1) return n - 1 - i;
    return n % 7 ? (int)((int64_t)i * 7 % n) : n - 1 - i;
}

static bool can_go_on(const Fiber *f) { return !f->done && (!f->waits || *f->waits != f->round); }

/* One of a warp that can go on, behind the one that runs now if it is of this warp. */
static int next_of_warp(const Machine *m, int warp)
{
    int first = warp * WARP, n = m->n - first < WARP ? m->n - first : WARP;
    int from = m->now >= first && m->now < first + n ? m->now - first + 1 : 0;
    for (int k = 0; k < n; k++) {
        int i = first + (from + k) % n;
        if (can_go_on(&m->fiber[i])) return i;
    }
    return -1;
}

/* The number of the next fiber that waits for nobody; -1: there is none. They have turns; but where
 * warps wait for barriers in shared memory, each runs as far as it can, and the first (or the last)
 * of those that can go on runs before all others: so some are far ahead of the others. */
static int next_fiber(Machine *m)
{
    int order = m->launch->order, warps = (m->n + WARP - 1) / WARP;
    if (order < 2 && hopper_in_use(m->hopper)) {
        int i = m->yields ? -1 : next_of_warp(m, m->now / WARP);
        for (int w = 0; i < 0 && w < warps; w++) i = next_of_warp(m, order ? warps - 1 - w : w);
        return i;
    }
    for (int k = 0; k < m->n && m->left; k++) {
        if (++m->at >= m->n) m->at = 0;
        int i = turn(order, m->at, m->n);
        if (can_go_on(&m->fiber[i])) return i;
    }
    return -1;
}

/* The next one runs, which may be this one itself; without one what copies engines have under way
 * arrives, piece by piece; without that the host. */
static void go_on(Machine *m, Fiber *self)
{
    int i = next_fiber(m);
    while (i < 0 && m->left && hopper_copy_arrives(m->hopper, m->launch->order)) i = next_fiber(m);
    if (i < 0) {
        switch_fibers(m, self, &m->host);
        return;
    }
    Fiber *f = &m->fiber[i];
    m->now = i;
    m->yields = false;
    memcpy(emulated_place.thread, f->thread, sizeof f->thread);
    if (f != self) switch_fibers(m, self, f);
}

static void wait_from(const unsigned *at, unsigned round)
{
    Machine *m = machine;
    Fiber *self = &m->fiber[m->now];
    self->waits = at;
    self->round = round;
    if (*at == round) go_on(m, self);
    self->waits = NULL;
}

static void arrive(Barrier *barrier)
{
    unsigned round = barrier->round;
    if (++barrier->arrived == barrier->members) pass(barrier);
    wait_from(&barrier->round, round);
}

/* A thread that ended is waited for no longer. */
static void leave(Barrier *barrier)
{
    barrier->members--;
    if (barrier->members && barrier->arrived == barrier->members) pass(barrier);
}

void emulated_barrier(void) { arrive(&machine->block); }
void emulated_warp_barrier(void) { arrive(&machine->warp[machine->now / WARP]); }

void emulated_wait(const unsigned *round) { wait_from(round, *round); }

void emulated_yield(void)
{
    Machine *m = machine;
    Fiber *self = &m->fiber[m->now];
    m->yields = true;
    go_on(m, self);
}

void emulated_named_barrier(int id, int threads)
{
    CHECK(id > 0 && id < NAMED_BARRIERS && threads % WARP == 0);
    Barrier *barrier = &machine->named[id];
    if (barrier->arrived && barrier->members != threads)
        emulated_fault("barrier %d is waited for by %d and by %d threads", id, barrier->members,
                       threads);
    barrier->members = threads;
    arrive(barrier);
}

EmulatedHopper *emulated_hopper(void) { return machine->hopper; }
int emulated_thread(void) { return machine->now; }

void emulated_fault(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    if (!*machine->fault) vsnprintf(machine->fault, sizeof machine->fault, format, list);
    va_end(list);
}

uint32_t emulated_shared_address(const void *p)
{
    const unsigned char *at = p;
    CHECK(at >= machine->shared && at <= machine->shared + machine->launch->shared_bytes);
    return (uint32_t)(at - machine->shared) + SHARED_BEGIN;
}

const unsigned char *emulated_shared_at(uint32_t address, size_t bytes)
{
    if (address >= SHARED_BEGIN && address - SHARED_BEGIN + bytes <= machine->launch->shared_bytes)
        return machine->shared + (address - SHARED_BEGIN);
    emulated_fault("shared memory is read at %u, outside of what the block has", address);
    return machine->shared;
}

void emulated_gather(uint64_t mine, uint64_t all[WARP])
{
    Machine *m = machine;
    int self = m->now, first = self / WARP * WARP;
    uint64_t *slot = m->slot[m->fiber[self].exchanges++ % 2];
    slot[self] = mine;
    emulated_warp_barrier();
    for (int i = 0; i < WARP; i++)
        all[i] = first + i < m->n && !m->fiber[first + i].done ? slot[first + i] : 0;
}

uint64_t emulated_exchange(uint64_t mine, int from)
{
    Machine *m = machine;
    int self = m->now, other = self / WARP * WARP + from;
    uint64_t *slot = m->slot[m->fiber[self].exchanges++ % 2];
    slot[self] = mine;
    emulated_warp_barrier();
    return from >= 0 && from < WARP && other < m->n ? slot[other] : mine;
}

unsigned char *emulated_dynamic_shared(void) { return machine->shared; }

/* ---- blocks ------------------------------------------------------------------------------- */

static Machine *machine_of_thread(void)
{
    if (machine) return machine;
    machine = xcalloc(1, sizeof *machine);
    machine->stacks = mmap(NULL, (size_t)MAX_THREADS * STACK_BYTES, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(machine->stacks != MAP_FAILED);
    madvise(machine->stacks, (size_t)MAX_THREADS * STACK_BYTES, MADV_HUGEPAGE);
    unsigned char *shared = aligned_alloc(SHARED_ALIGN, MAX_SHARED + SHARED_ALIGN);
    CHECK(shared);
    machine->shared = shared + SHARED_BEGIN % SHARED_ALIGN;
    machine->hopper = hopper_create(MAX_THREADS);
    return machine;
}

static void block_begin(Machine *m, const unsigned block[3])
{
    const unsigned *dim = m->launch->block;
    memcpy(emulated_place.block, block, sizeof emulated_place.block);
    m->block = (Barrier){.members = m->n};
    for (int w = 0; w < MAX_WARPS; w++)
        m->warp[w] = (Barrier){.members = m->n - w * WARP < WARP ? m->n - w * WARP : WARP};
    memset(m->named, 0, sizeof m->named);
    memset(m->shared, POISON, m->launch->shared_bytes);
    hopper_block_begins(m->hopper, m->n);
    *m->fault = 0;
    for (int i = 0; i < m->n; i++) {
        Fiber *f = &m->fiber[i];
        *f = (Fiber){.thread = {(unsigned)i % dim[0], (unsigned)i / dim[0] % dim[1],
                                (unsigned)i / (dim[0] * dim[1])}};
        fiber_start(m, f);
    }
}

static Status run_block(Machine *m)
{
    m->left = m->n;
    m->at = m->n - 1;
    go_on(m, &m->host);
    if (!m->left) hopper_block_ends(m->hopper, m->n);
    if (*m->fault) return fail(ERR_DEVICE, "kernel %s: %s", m->launch->kernel, m->fault);
    return m->left
               ? fail(ERR_DEVICE, "kernel %s: %d of %d threads wait for others that do not come",
                      m->launch->kernel, m->left, m->n)
               : OK;
}

Status emulated_run_blocks(const EmulatedLaunch *launch)
{
    Machine *m = machine_of_thread();
    const unsigned *grid = launch->grid, *dim = launch->block;
    uint64_t threads = (uint64_t)dim[0] * dim[1] * dim[2],
             blocks = (uint64_t)grid[0] * grid[1] * grid[2];
    if (!threads || threads > MAX_THREADS || !blocks || grid[1] > 65535 || grid[2] > 65535)
        return fail(ERR_ARG, "kernel %s: a grid of %u x %u x %u blocks of %u x %u x %u threads",
                    launch->kernel, grid[0], grid[1], grid[2], dim[0], dim[1], dim[2]);
    if (launch->shared_bytes > MAX_SHARED - 1024)
        return fail(ERR_ARG, "kernel %s: %zu bytes of shared memory", launch->kernel,
                    launch->shared_bytes);
    m->launch = launch;
    m->n = (int)threads;
    memcpy(emulated_place.block_dim, dim, sizeof emulated_place.block_dim);
    memcpy(emulated_place.grid_dim, grid, sizeof emulated_place.grid_dim);
    for (uint64_t b = 0; b < blocks; b++) {
        uint64_t at = launch->order == 1 ? blocks - 1 - b : b;
        block_begin(m, (unsigned[]){(unsigned)(at % grid[0]), (unsigned)(at / grid[0] % grid[1]),
                                    (unsigned)(at / grid[0] / grid[1])});
        TRY(run_block(m));
    }
    return OK;
}
