/* The MPI transport: a world of processes, and who moves its operations on.
 *
 * MPI moves data only inside its calls, so somebody must keep calling. A rank that waits does it
 * itself, which costs no hand-over; while none waits and there is something to move, a helper
 * thread does, so that an operation goes on while the rank computes. It sleeps when there is
 * nothing, and ever longer when nothing happens; with several hosts it looks for messages all the
 * same, so that a rank deep in a computation answers for its host. All hold one lock when they call
 * MPI (MPI_THREAD_SERIALIZED). */
#include "comm/mpi_transport.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sched.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* ---- moving ----------------------------------------------------------------------------- */

static bool same_channel(const CommRequest *a, const CommRequest *b)
{
    return a->comm == b->comm && a->op.kind == b->op.kind && a->op.peer == b->op.peer &&
           a->op.tag == b->op.tag;
}

/* Collectives of a group take turns in their order, and so do messages with the same peer and tag.
 */
static bool has_turn(MpiWorld *w, MpiOp *op)
{
    CommRequest *r = op->request;
    if (comm_kind_is_message(r->op.kind)) {
        for (MpiOp *before = w->ops; before != op; before = before->next)
            if (same_channel(before->request, r)) return false;
        return true;
    }
    MpiGroup *g = r->comm->state;
    if (g->pass == w->pass) return false;
    g->pass = w->pass;
    return true;
}

/* Under the lock. Moves what can be moved; true when anything was. */
static bool progress(MpiWorld *w)
{
    bool moved = false;
    mpi_control_poll(w);
    w->pass++;
    MpiOp *last = NULL;
    for (MpiOp **at = &w->ops; *at && !comm_board_failed(w->world->board);) {
        MpiOp *op = *at;
        if (has_turn(w, op)) moved |= mpi_op_move(op);
        if (op->phase == MPI_PHASE_DONE) {
            *at = op->next;
            continue;
        }
        last = op;
        at = &op->next;
    }
    if (!w->ops || last) w->last = last;
    return moved;
}

/* How long to leave the processor to others after `idle` looks at which nothing had happened: not
 * at all at first, when an answer may be a microsecond away, in the end a millisecond. */
enum { SPINS = 200, YIELDS = 2000 };
static void back_off(int idle)
{
    if (idle < SPINS) return;
    if (idle < YIELDS)
        sched_yield();
    else
        nanosleep(&(struct timespec){.tv_nsec = min_i64(1000000,
                                                        20000 + (int64_t)(idle - YIELDS) * 1000)},
                  NULL);
}

/* Under the lock, until there is work or, with several hosts, it is time to look for messages. */
static void rest(MpiWorld *w)
{
    enum { LOOK_EVERY_NS = 50000000, NS = 1000000000 };
    struct timespec until;
    if (w->hosts.n < 2) {
        pthread_cond_wait(&w->work, &w->lock);
        return;
    }
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += LOOK_EVERY_NS;
    until.tv_sec += until.tv_nsec / NS;
    until.tv_nsec %= NS;
    pthread_cond_timedwait(&w->work, &w->lock, &until);
    if (!w->stop) mpi_control_poll(w);
}

static void *help(void *context)
{
    MpiWorld *w = context;
    int idle = 0;
    pthread_mutex_lock(&w->lock);
    while (!w->stop) {
        if (!w->ops || w->waiting || comm_board_failed(w->world->board)) {
            rest(w);
            idle = 0;
            continue;
        }
        idle = progress(w) ? 0 : idle + 1;
        pthread_mutex_unlock(&w->lock);
        back_off(idle + 1000); /* the rank computes: no spinning beside it */
        pthread_mutex_lock(&w->lock);
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

/* ---- start and wait --------------------------------------------------------------------- */

static Status start(CommRequest *r)
{
    MpiWorld *w = r->comm->world->state;
    MpiOp *op = mpi_op_create(r);
    if (!op)
        return fail(ERR_MEMORY, "%s: no memory for the segments of %s #%lld", r->comm->name,
                    comm_kind_name(r->op.kind), (long long)r->number);
    r->state = op;
    pthread_mutex_lock(&w->lock);
    if (w->last)
        w->last->next = op;
    else
        w->ops = op;
    w->last = op;
    progress(w);
    if (op->phase != MPI_PHASE_DONE) pthread_cond_signal(&w->work);
    pthread_mutex_unlock(&w->lock);
    return OK;
}

/* The operation that has the turn which this one waits for, or this one. */
static const MpiOp *in_front(const MpiWorld *w, const MpiOp *op)
{
    const CommRequest *r = op->request;
    for (const MpiOp *before = w->ops; before && before != op; before = before->next) {
        const CommRequest *b = before->request;
        if (comm_kind_is_message(r->op.kind)
                ? same_channel(b, r)
                : b->comm == r->comm && !comm_kind_is_message(b->op.kind))
            return before;
    }
    return op;
}

/* From time to time of a long wait: says whom it waits for; and that it has waited long enough. Who
 * has not come to an operation in front has not come to this one either. */
static Status tell(const MpiWorld *w, CommRequest *r, double start_s)
{
    double now_s = clock_s();
    if (now_s <= r->say_s && now_s <= r->until_s) return OK;
    const MpiOp *op = r->state;
    bool arrived = op->phase == MPI_PHASE_DATA;
    bool *missing = xcalloc((size_t)r->comm->n, sizeof *missing);
    Status status = OK;
    mpi_op_missing(in_front(w, op), missing);
    comm_board_say_waits(r, missing, arrived);
    if (now_s > r->until_s) status = comm_fail_late(r, missing, arrived, now_s - start_s);
    free(missing);
    return status;
}

static Status wait(CommRequest *r)
{
    CommWorld *world = r->comm->world;
    MpiWorld *w = world->state;
    MpiOp *op = r->state;
    double start_s = clock_s();
    Status status = OK;
    pthread_mutex_lock(&w->lock);
    w->waiting++;
    for (int idle = 0; op->phase != MPI_PHASE_DONE;) {
        idle = progress(w) ? 0 : idle + 1;
        if (op->phase == MPI_PHASE_DONE) break;
        if (comm_board_failed(world->board)) {
            status = comm_failure(world);
            break;
        }
        /* on a busy host every yield may take a tenth of a second */
        if (idle > SPINS || idle % 64 == 63) status = tell(w, r, start_s);
        if (status != OK) break;
        pthread_mutex_unlock(&w->lock);
        back_off(idle);
        pthread_mutex_lock(&w->lock);
    }
    if (!--w->waiting && w->ops) pthread_cond_signal(&w->work);
    if (status == OK)
        mpi_op_free(op); /* else MPI may still write into what it was given: it stays */
    pthread_mutex_unlock(&w->lock);
    return status;
}

/* ---- the world -------------------------------------------------------------------------- */

/* The board of this host: a file in shared memory, named by the job and the host. */
static Status map_board(CommWorld *world, const char *dir, uint64_t job)
{
    MpiWorld *w = world->state;
    char path[512];
    const char *host = world->host[world->first];
    w->board_bytes = comm_board_bytes(world->n);
    snprintf(path, sizeof path, "%s/drover-comm.%016llx.%s", dir ? dir : "/dev/shm",
             (unsigned long long)job, host);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, (off_t)w->board_bytes) != 0) {
        if (fd >= 0) close(fd);
        return fail(ERR_IO, "comm: cannot make the status file %s: %s", path, strerror(errno));
    }
    void *at = mmap(NULL, w->board_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (at == MAP_FAILED)
        return fail(ERR_IO, "comm: cannot map the status file %s: %s", path, strerror(errno));
    world->board = at;
    comm_board_init(world->board, world->n);
    MPI_Barrier(w->all);
    if (!dir) unlink(path); /* all have it; with a supervisor it stays for him */
    return OK;
}

static void name_hosts(CommWorld *world, const CommOptions *options)
{
    MpiWorld *w = world->state;
    char mine[sizeof world->host[0]] = "";
    if (options && options->host)
        snprintf(mine, sizeof mine, "%s", options->host);
    else if (!comm_test_host(world->first, mine) && gethostname(mine, sizeof mine - 1) != 0)
        snprintf(mine, sizeof mine, "host-of-rank-%d", world->first);
    for (char *p = mine; *p; p++)
        if (*p == '/') *p = '-'; /* it becomes part of a path */
    MPI_Allgather(mine, sizeof mine, MPI_CHAR, world->host, sizeof mine, MPI_CHAR, w->all);
}

static Status check_tags(const MpiWorld *w)
{
    int found = 0, *limit = NULL, largest = TAG_MESSAGES + (COMM_GROUP_LIMIT + 2) * COMM_TAG_LIMIT;
    MPI_Comm_get_attr(w->all, MPI_TAG_UB, (void *)&limit, &found);
    if (found && *limit >= largest) return OK;
    return fail(ERR_UNSUPPORTED, "comm: this MPI has tags up to %d; %d are needed",
                found ? *limit : 0, largest);
}

/* All ranks come here before any leaves, so that MPI_Finalize waits for nobody: it has no deadline.
 * The last checkpoint may still be on its way to the disk on one of them. False when somebody did
 * not come. */
static bool part(MpiWorld *w)
{
    static const double longest_s = 3600;
    double until_s = clock_s() +
                     (w->world->deadline_s > longest_s ? w->world->deadline_s : longest_s);
    MPI_Request all_here;
    int done = 0;
    MPI_Ibarrier(w->all, &all_here);
    for (int idle = 0; !done || w->sends; idle++) {
        MPI_Test(&all_here, &done, MPI_STATUS_IGNORE);
        mpi_control_poll(w);
        if (comm_board_failed(w->world->board) || clock_s() > until_s) return false;
        back_off(idle);
    }
    return true;
}

static void destroy(CommWorld *world)
{
    MpiWorld *w = world->state;
    pthread_mutex_lock(&w->lock);
    w->stop = true;
    pthread_cond_signal(&w->work);
    pthread_mutex_unlock(&w->lock);
    if (w->has_helper) pthread_join(w->helper, NULL);
    bool failed = comm_board_failed(world->board) || !part(w);
    mpi_control_close(w);
    if (!failed) {
        MPI_Comm_free(&w->all);
        MPI_Finalize();
    }
    munmap(world->board, w->board_bytes);
    pthread_cond_destroy(&w->work);
    pthread_mutex_destroy(&w->lock);
    if (!failed) free(w); /* MPI holds the control message of a lost world */
}

static const CommTransport mpi_transport = {
    .name = "mpi",
    .open = mpi_group_open,
    .close = mpi_group_close,
    .start = start,
    .wait = wait,
    .look = mpi_lost_look,
    .listen = mpi_lost_listen,
    .report = mpi_lost_report,
    .destroy = destroy,
};

static Status begin_mpi(void)
{
    int done = 0, level = 0;
    MPI_Initialized(&done);
    if (done)
        return fail(ERR_ARG, "comm: MPI was started before in this process, and starts only once");
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &level) != MPI_SUCCESS)
        return fail(ERR_COMM, "comm: MPI does not start");
    if (level < MPI_THREAD_SERIALIZED)
        return fail(ERR_UNSUPPORTED,
                    "comm: this MPI was built without threads (MPI_THREAD_SERIALIZED)");
    return OK;
}

static void init_lock(MpiWorld *w)
{
    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&w->lock, &attr);
    pthread_mutexattr_destroy(&attr);
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&w->work, &clock);
    pthread_condattr_destroy(&clock);
}

Status comm_world_create_mpi(const CommOptions *options, CommWorld **out)
{
    int n, rank;
    TRY(begin_mpi());
    MpiWorld *w = xcalloc(1, sizeof *w);
    MPI_Comm_dup(MPI_COMM_WORLD, &w->all);
    MPI_Comm_set_errhandler(w->all, MPI_ERRORS_RETURN);
    MPI_Comm_size(w->all, &n);
    MPI_Comm_rank(w->all, &rank);
    TRY(check_tags(w));
    CommWorld *world = comm_world_new(&mpi_transport, n, options);
    world->state = w;
    world->first = rank;
    w->world = world;
    init_lock(w);
    name_hosts(world, options);
    uint64_t job = (uint64_t)getpid() << 32 ^ (uint64_t)(clock_wall_s() * 1e6);
    MPI_Bcast(&job, 1, MPI_UINT64_T, 0, w->all);
    TRY(map_board(world, options ? options->status_dir : NULL, job));
    mpi_control_open(w);
    comm_world_add_ranks(world, rank, 1);
    w->has_helper = pthread_create(&w->helper, NULL, help, w) ==
                    0; /* without it, operations move in waits only */
    *out = world;
    return OK;
}

const char *comm_mpi_version(char buf[64])
{
    char text[MPI_MAX_LIBRARY_VERSION_STRING];
    int n;
    MPI_Get_library_version(text, &n);
    text[strcspn(text, ",\n")] = 0; /* "Open MPI v4.1.4" before what it was built by */
    snprintf(buf, 64, "%s", text);
    return buf;
}
