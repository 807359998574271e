/* What cuDNN says of attention's graphs, where the library is: engines are chosen for an H100 that
 * need not be here, and are asked for their workspace. Nothing runs. */
#include "gpu/cudnn.h"

#include <dlfcn.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

/* The libraries that cuDNN loads and unloads leave memory behind, which would be reported. */
const char *__asan_default_options(void) __attribute__((visibility("default")));
const char *__asan_default_options(void) { return "detect_leaks=0"; }

#define assert_ok(call) assert_int_equal((call), OK)

/* In cuDNN's words. */
static const char h100[] =
    "{\"deviceName\": \"H100\", \"deviceVer\": 900, \"driverVer\": 13000, \"cudaDeviceId\": 0, "
    "\"multiProcessorCount\": 132, \"smClockRateKHz\": 1980000, \"memClockRateKHz\": 2619000, "
    "\"l2CacheSize\": 52428800, \"totalGlobalMem\": 85045739520, \"warpSize\": 32, "
    "\"maxGridSize\": [2147483647, 65535, 65535], \"maxBlockSize\": [1024, 1024, 64], "
    "\"regsPerBlock\": 65536, \"maxRegistersPerSM\": 65536, \"maxCtasPerSM\": 32, "
    "\"maxThreadsPerBlock\": 1024, \"maxThreadsPerSM\": 2048, \"maxSharedMemoryPerBlock\": 49152, "
    "\"maxSharedMemoryPerBlockOptin\": 232448, \"reservedSharedMemoryPerBlock\": 1024, "
    "\"pciDeviceId\": 0, \"isTccDriver\": 0, \"supportCoopLaunch\": 1}";

static Cudnn *cudnn;
static bool has_driver;

/* Engines look for CUDA's driver before they say what they can; where there is none, for its stub
 * beside cuDNN, which can do nothing and is not asked to. */
static void find_driver(void)
{
    Dl_info info;
    char path[4096];
    has_driver = dlopen("libcuda.so.1", RTLD_NOW) != NULL;
    void *library = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_NOLOAD);
    if (has_driver || !library || !dladdr(dlsym(library, "cudnnGetVersion"), &info)) return;
    const char *slash = strrchr(info.dli_fname, '/');
    snprintf(path, sizeof path, "%.*s/stubs/libcuda.so", slash ? (int)(slash - info.dli_fname) : 0,
             info.dli_fname);
    has_driver = dlopen(path, RTLD_NOW) != NULL;
}

static int setup(void **state)
{
    (void)state;
    if (cudnn_open(&cudnn) != OK) {
        print_message("no cuDNN: %s\n", status_message());
        return 0;
    }
    find_driver();
    return cudnn_begin_absent(cudnn, h100) != OK;
}

static int teardown(void **state)
{
    (void)state;
    cudnn_close(cudnn);
    return 0;
}

/* Rows of q, k and v from one product, as models have them. */
static GpuAttention attention_of(int64_t batch, int64_t tokens, int64_t heads, int64_t kv_heads,
                                 int64_t d)
{
    int64_t row = (heads + 2 * kv_heads) * d;
    return (GpuAttention){.batch = batch,
                          .tokens = tokens,
                          .heads = heads,
                          .kv_heads = kv_heads,
                          .d = d,
                          .q_pitch = row,
                          .k_pitch = row,
                          .v_pitch = row,
                          .o_pitch = heads * d,
                          .dout_pitch = heads * d,
                          .dq_pitch = row,
                          .dk_pitch = row,
                          .dv_pitch = row,
                          .scale = 0.125f,
                          .statistics = true};
}

/* There is an engine, and it is content with what plans count on. */
static void check(GpuAttention a)
{
    CudnnPlan *plan = NULL;
    a.workspace_bytes = gpu_attention_bytes(&a);
    Status status = cudnn_attention_plan(cudnn, &a, &plan);
    if (!has_driver) { /* descriptors and graph are right; engines do not say */
        assert_int_equal(status, ERR_UNSUPPORTED);
        assert_non_null(strstr(status_message(), "has no engine for it"));
        return;
    }
    if (status != OK) print_error("%s\n", status_message());
    assert_ok(status);
    assert_true(cudnn_plan_bytes(plan) <= a.workspace_bytes);
    cudnn_plan_destroy(plan);
}

static void test_shapes(void **state)
{
    (void)state;
    if (!cudnn) skip();
    static const int64_t shape[][5] = {
        {1, 64, 2, 2, 64},    {4, 128, 8, 8, 64},   {3, 1000, 8, 2, 64}, {1, 8192, 32, 8, 128},
        {2, 4096, 64, 1, 64}, {7, 1023, 5, 1, 128}, {1, 2, 4, 2, 64},    {64, 200, 16, 16, 128}};
    for (int i = 0; i < COUNT_OF(shape); i++) {
        const int64_t *s = shape[i];
        GpuAttention a = attention_of(s[0], s[1], s[2], s[3], s[4]);
        check(a);
        a.statistics = false;
        check(a);
        a.gradient = true;
        check(a);
    }
}

static void test_refusals(void **state)
{
    (void)state;
    if (!cudnn || !has_driver) skip();
    CudnnPlan *plan = NULL;
    GpuAttention a = attention_of(1, 256, 4, 2, 64);
    a.gradient = true;
    a.workspace_bytes = gpu_attention_bytes(&a) / 2;
    assert_int_equal(cudnn_attention_plan(cudnn, &a, &plan), ERR_UNSUPPORTED);
    assert_non_null(strstr(status_message(), "bytes of workspace"));
    assert_non_null(strstr(status_message(), "attention's gradient of 1 sequences of 256 tokens"));
    a = attention_of(1, 256, 4, 2, 68); /* rows of heads that are no multiple of 16 bytes */
    a.workspace_bytes = gpu_attention_bytes(&a);
    assert_int_equal(cudnn_attention_plan(cudnn, &a, &plan), ERR_UNSUPPORTED);
    assert_null(plan);
}

/* By shapes alone, and never less than two bytes a pair of tokens; too large to count is said so.
 */
static void test_bytes(void **state)
{
    (void)state;
    GpuAttention a = attention_of(2, 300, 4, 2, 64);
    a.statistics = false;
    size_t forward = gpu_attention_bytes(&a);
    a.gradient = true;
    assert_true(forward >= 2 * 4 * 300 * sizeof(float) && forward < 1 << 16);
    assert_true(gpu_attention_bytes(&a) >= (size_t)2 * 2 * 4 * 300 * 300);
    assert_true(gpu_attention_bytes(&a) < (size_t)2 << 20 << 2);
    a.batch = INT32_MAX;
    a.tokens = INT32_MAX;
    assert_true(gpu_attention_bytes(&a) == SIZE_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_bytes),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
