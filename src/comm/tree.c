/* Which of the compiled forms of a reduction this processor takes. */
#include "comm/comm_internal.h"

void comm_tree_reduce_generic(const CommTree *tree, int64_t count);
#if defined(__x86_64__)
void comm_tree_reduce_avx2(const CommTree *tree, int64_t count);
void comm_tree_reduce_avx512(const CommTree *tree, int64_t count);
#endif

CommTreeForm *comm_tree_form(CommTreeLevel level)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("bmi2");
    bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("avx512vl");
    if (level == COMM_TREE_AVX2) return v3 ? comm_tree_reduce_avx2 : NULL;
    if (level == COMM_TREE_AVX512) return v4 ? comm_tree_reduce_avx512 : NULL;
#endif
    return level == COMM_TREE_GENERIC ? comm_tree_reduce_generic : NULL;
}

void comm_tree_reduce(const CommTree *tree, int64_t count)
{
    CommTreeForm *form = comm_tree_form(COMM_TREE_AVX512);
    if (!form) form = comm_tree_form(COMM_TREE_AVX2);
    if (!form) form = comm_tree_form(COMM_TREE_GENERIC);
    form(tree, count);
}
