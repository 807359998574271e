/* The blocks of rows in which gradients of weights that every row meets are summed: norms, biases.
 */
#ifndef OPS_ROW_BLOCKS_H
#define OPS_ROW_BLOCKS_H

#include "base/base.h"

/* At most 32 blocks of at least 16 rows, by the shape alone; the partial sums of the blocks are
 * added in their order. */
static inline int64_t row_block_rows(int64_t rows) { return max_i64(16, (rows + 31) / 32); }
static inline int64_t row_blocks(int64_t rows)
{
    int64_t each = row_block_rows(rows);
    return (rows + each - 1) / each;
}

/* On GPUs: at most 256, about two for each multiprocessor. */
static inline int64_t gpu_row_block_rows(int64_t rows) { return max_i64(4, (rows + 255) / 256); }
static inline int64_t gpu_row_blocks(int64_t rows)
{
    int64_t each = gpu_row_block_rows(rows);
    return (rows + each - 1) / each;
}

#endif
