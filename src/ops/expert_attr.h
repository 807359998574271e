/* Attributes of the ops that bring rows of experts to where they are multiplied, for their kernels.
 * Internal to ops/. */
#ifndef OPS_EXPERT_ATTR_H
#define OPS_EXPERT_ATTR_H

/* expert_plan, expert_dispatch, expert_collect */
typedef struct ExchangeAttr {
    int n, rank; /* along MESH_EP */
    int apart; /* not 0: rows of an expert that came from several ranks are told apart, for sums in
                  canonical order */
    int columns; /* not 0: along MESH_TP each rank has a part of the columns of all rows */
} ExchangeAttr;

/* expert_unite, expert_divide */
typedef struct ColumnsAttr {
    int n, rank; /* along MESH_TP */
} ColumnsAttr;

/* expert_share, expert_pick, expert_put */
typedef struct FoldAttr {
    int n, rank; /* along MESH_TP */
} FoldAttr;

#endif
