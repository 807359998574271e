/* The board: a slot for each rank that says what it did last, and the first failure of the world.
 *
 * It is read when something hangs, so reading needs nobody's help: a rank that is stopped, dead or deep in
 * a computation has left its row behind. Writers never wait. */
#include "comm/comm_internal.h"

#include <sched.h>
#include <string.h>

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

/* The words are released one by one, and the version before them: who reads a new word also sees the odd
 * version, or a later one. */
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
            row->group[sizeof row->group - 1] = row->node[sizeof row->node - 1] = 0;
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
