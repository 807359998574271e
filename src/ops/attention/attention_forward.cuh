/* attention forward on the cuda device: what both its kernels share. Included by attention.cu. */
#ifndef OPS_ATTENTION_FORWARD_CUH
#define OPS_ATTENTION_FORWARD_CUH

#include "ops/attention/attention_mma.cuh"

struct AttentionForward {
    AttentionJob of;
    Rows o;
    Rows before; /* o after the parts of the keys before this one, f32; data NULL: none */
    float *lse;  /* [B H T] or NULL */
    const float *lse_before; /* with before */
    int splits;              /* > 1: each makes outputs of its share of the keys, */
    float *split_o;          /* [splits B n H d], of sum 1, */
    float *split_state;      /* [splits B n H 2]: maximum times log2 e, sum */
    bool aligned;
};

/* Blocks of keys from..to-1 of the split. */
struct AttentionShare {
    int from, to;
};

__device__ inline AttentionShare attention_share(const AttentionKeys &keys, int block, int split,
                                                 int splits)
{
    int blocks = (keys.end + block - 1) / block, each = (blocks + splits - 1) / splits;
    AttentionShare share;
    share.from = min(blocks, split * each);
    share.to = min(blocks, share.from + each);
    return share;
}

/* Of row r: its number among all rows [B n H], for splits. */
__device__ inline int64_t attention_split_row(const AttentionForward &f,
                                              const AttentionPlace &place, int split, int r)
{
    const AttentionJob &job = f.of;
    int row = place.row + r, token = row / job.group, head = row - token * job.group;
    return (((int64_t)split * job.batch + place.b) * job.tokens + token) * job.heads +
           place.h * job.group + head;
}

/* With the keys in parts, a row begins where the part before left it: the log-sum-exp as its
 * maximum, with a sum of 1. */
__device__ inline float attention_begin_top(const AttentionForward &f, int64_t stat_at)
{
    return f.before.data && stat_at >= 0 ? f.lse_before[stat_at] * LOG2_E : -INFINITY;
}

__device__ inline float attention_lse(float top, float sum) { return (top + log2f(sum)) * LN_2; }

#endif
