/* Fuzz target: a safetensors file as a model's only one, with names of scales and experts and
 * shapes of any kind. What is listed can be read, whole. The file really lies on a disk in memory:
 * the way in is the one that users take. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "weights/weights_internal.h"

static char dir[64], path[96];

static void make_directory(void)
{
    static const char config[] = "{\"quantization_config\": {\"weight_block_size\": [2, 4]}}";
    char name[96];
    if (*dir) return;
    snprintf(dir, sizeof dir, "%s/drover-fuzz-%d",
             access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp", (int)getpid());
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    snprintf(name, sizeof name, "%s/config.json", dir);
    CHECK(dir_create(dir) == OK && file_write_atomic(name, config, sizeof config - 1) == OK);
}

static void read_weight(const Weight *w)
{
    enum { MAX_READ = 1 << 14 };
    int64_t n = shape_count(&w->shape);
    if (w->dtype == DTYPE_COUNT || n > MAX_READ) return;
    DType to = w->dtype == DTYPE_I32 || w->dtype == DTYPE_I64 || w->dtype == DTYPE_U8 ? w->dtype
                                                                                      : DTYPE_F32;
    void *values = xmalloc((size_t)n * dtype_bytes(to));
    CHECK(weights_read_range(w, 0, n, to, values) == OK);
    free(values);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    Weights *weights;
    int fd = -1;
    make_directory();
    CHECK(file_create(path, &fd) == OK && file_write(fd, data, size, path) == OK &&
          file_close(fd, path) == OK);
    if (weights_open(dir, CKPT_VERIFY_SIZES, &weights) == OK) {
        for (int i = 0; i < weights_count(weights); i++) read_weight(weights_at(weights, i));
        weights_close(weights);
    }
    unlink(path);
    return 0;
}
