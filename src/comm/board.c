/* The board: a slot for each rank that says what it did last, and the first failure of the world.
 *
 * It is read when something hangs, so reading needs nobody's help: a rank that is stopped, dead or
 * deep in a computation has left its row behind. Writers never wait. */
#include "comm/comm_internal.h"

#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>

enum { READ_TRIES = 100 };
_Static_assert(sizeof(CommRow) % 8 == 0, "rows are copied by words");

size_t comm_board_bytes(int n) { return sizeof(CommBoard) + (size_t)n * sizeof(CommSlot); }

/* On zeroed memory; of several processes on the same memory each writes the same values. */
void comm_board_init(CommBoard *board, int n)
{
    board->n = (uint32_t)n;
    board->slot_bytes = sizeof(CommSlot);
    board->header_bytes = sizeof(CommBoard);
    memcpy(board->magic, COMM_BOARD_MAGIC, sizeof board->magic);
}

/* The words are released one by one, and the version before them: who reads a new word also sees
 * the odd version, or a later one. */
void comm_board_write(CommBoard *board, int rank, const CommRow *row)
{
    CommSlot *slot = &board->slot[rank];
    uint64_t word[COMM_ROW_WORDS];
    uint64_t version = atomic_load_explicit(&slot->version, memory_order_relaxed);
    memcpy(word, row, sizeof word);
    atomic_store_explicit(&slot->version, version + 1, memory_order_relaxed);
    for (int i = 0; i < COMM_ROW_WORDS; i++)
        atomic_store_explicit(&slot->word[i], word[i], memory_order_release);
    atomic_store_explicit(&slot->version, version + 2, memory_order_release);
}

bool comm_board_read(const CommBoard *board, int rank, CommRow *row)
{
    const CommSlot *slot = &board->slot[rank];
    for (int try = 0; try < READ_TRIES; try++) {
        uint64_t word[COMM_ROW_WORDS];
        uint64_t before = atomic_load_explicit(&slot->version, memory_order_acquire);
        if (!before) return false;
        for (int i = 0; i < COMM_ROW_WORDS; i++)
            word[i] = atomic_load_explicit(&slot->word[i], memory_order_acquire);
        if (!(before & 1) && atomic_load_explicit(&slot->version, memory_order_relaxed) == before) {
            memcpy(row, word, sizeof *row);
            row->group[sizeof row->group - 1] = row->head.node[sizeof row->head.node - 1] =
                row->doing[sizeof row->doing - 1] = 0;
            return true;
        }
        sched_yield();
    }
    return false; /* its owner was stopped in the middle of a write */
}

bool comm_board_fail(CommBoard *board, int rank, Status status, const char *sentence)
{
    uint32_t none = 0;
    if (!atomic_compare_exchange_strong(&board->failed, &none, 1)) return false;
    board->failed_rank = rank;
    board->failed_status = (int32_t)status;
    snprintf(board->sentence, sizeof board->sentence, "%s", sentence);
    atomic_store_explicit(&board->failed, 2, memory_order_release);
    return true;
}

/* ---- looking at a rank ------------------------------------------------------------------ */

/* The letter of /proc/PID/stat behind the name, which may itself hold parentheses; 'X' without such
 * a process. */
static int process_state(int pid)
{
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 'X';
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    text[n > 0 ? n : 0] = 0;
    const char *end = strrchr(text, ')');
    return end && end[1] == ' ' ? end[2] : 0;
}

CommSeen comm_board_look(const CommBoard *board, int rank, bool own_processes)
{
    CommSeen seen = {0};
    seen.known = comm_board_read(board, rank, &seen.row);
    if (!seen.known) return seen;
    seen.age_s = clock_s() - seen.row.time_s;
    seen.waits_age_s = clock_s() - seen.row.waits_s;
    if (own_processes) seen.state = process_state(seen.row.pid);
    return seen;
}

/* ---- from outside ----------------------------------------------------------------------- */

static void read_ranks(Arena *arena, const CommBoard *board, CommStatus *out)
{
    out->rank = ARENA_ARRAY(arena, CommStatusRank, out->n);
    for (int r = 0; r < out->n; r++) {
        CommRow row;
        if (!comm_board_read(board, r, &row)) continue;
        CommStatusRank *rank = &out->rank[out->n_ranks++];
        *rank = (CommStatusRank){.rank = r,
                                 .pid = row.pid,
                                 .step = row.step,
                                 .active_s = row.time_s > row.note_s ? row.time_s : row.note_s};
        memcpy(rank->doing, row.doing, sizeof rank->doing);
    }
}

Status comm_status_read(Arena *arena, const char *path, CommStatus *status)
{
    FileMap map;
    TRY(file_map(path, &map));
    const CommBoard *board = (const CommBoard *)(const void *)map.at;
    bool good = map.n >= sizeof *board &&
                !memcmp(board->magic, COMM_BOARD_MAGIC, sizeof board->magic) &&
                board->slot_bytes == sizeof(CommSlot) && board->header_bytes == sizeof *board &&
                board->n <= 1u << 24 && map.n == comm_board_bytes((int)board->n);
    if (good) {
        *status = (CommStatus){.n = (int)board->n, .failed = comm_board_failed(board)};
        if (status->failed)
            snprintf(status->sentence, sizeof status->sentence, "%.*s", COMM_SENTENCE_BYTES - 1,
                     board->sentence);
        read_ranks(arena, board, status);
    }
    file_unmap(&map);
    return good ? OK : fail(ERR_FORMAT, "%s is no status file of a run", path);
}
