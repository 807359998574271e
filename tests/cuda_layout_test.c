/* Training on the cuda device, one rank and several, computes what one rank computes on the
 * processor: losses and gradient norms of several steps. On the emulated device ranks are threads
 * with a GPU each, and the host carries what they exchange. */
#include "layouts.h"

#include "gpu/gpu.h"

static const char *const layouts[] = {
    "cuda steps4",
    "cuda steps2 micro2",
    "cuda steps2 selective",
    "cuda steps2 full",
    "cuda steps2 aux",
    "cuda steps2 bf16",
    "cuda steps2 layers2 fp8",
    "cuda steps2 dp2",
    "cuda steps2 fsdp2",
    "cuda steps2 tp2",
    "cuda steps2 tp2 seq",
    "cuda steps2 cp2",
    "cuda steps2 cp2 ring",
    "cuda steps2 dp2 fsdp2 tp2 seq",
    "cuda steps2 pp2 micro4",
    "cuda steps2 pp2 micro4 zb-h1",
    "cuda steps2 pp2 micro4 interleaved",
};

static void check_all(const char *name, const char *model)
{
    const char *only = getenv("LAYOUT"); /* one of the list, or any other */
    int wrong = 0;
    if (!gpu_count(NULL)) skip();
    for (int i = 0; i < COUNT_OF(layouts) && !only; i++)
        wrong += check_against_one_rank(name, model, layouts[i]);
    if (only) wrong += check_against_one_rank(name, model, only);
    assert_int_equal(wrong, 0);
}

static void test_llama3(void **state)
{
    (void)state;
    check_all("llama3", llama3);
}

static void test_llama4(void **state)
{
    (void)state;
    check_all("llama4", llama4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_llama3),
                                       cmocka_unit_test(test_llama4)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
