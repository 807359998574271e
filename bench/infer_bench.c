/* infer_bench [PRESET [THREADS]] : tokens per second of taking in a prompt and of making tokens one
 * by one, in f32 and bf16, one sequence and eight, and eight that share the pages of their prompt.
 * Decoding reads every weight once a step: the last column is that traffic. */
#include <stdio.h>
#include <stdlib.h>

#include "infer/infer.h"

enum { PROMPT = 256, MADE = 16, ROUNDS = 2 };

static Status measure(const InferModel *model, DType dtype, int threads, int batch, bool shared)
{
    Infer *infer;
    GenerateStats stats, best = {.prompt_s = 1e9, .made_s = 1e9};
    int32_t ids[PROMPT];
    for (int i = 0; i < PROMPT; i++)
        ids[i] = (int32_t)rng_below(1, (uint64_t)i, (uint64_t)model->config.vocab);
    TRY(infer_create(model,
                     (InferOptions){.dtype_set = true,
                                    .dtype = dtype,
                                    .threads = threads,
                                    .batch = batch,
                                    .context = PROMPT + MADE},
                     &infer));
    Status status = OK;
    for (int round = 0; round < ROUNDS && status == OK; round++) {
        GenerateRequest r[8];
        for (int i = 0; i < batch; i++) {
            r[i] = (GenerateRequest){
                .prompt = ids, .n_prompt = PROMPT, .max_tokens = MADE, .sampler = {.top_p = 1}};
            infer_truncate(infer, i, 0);
        }
        status = shared ? infer_generate_all(infer, r, batch, &stats)
                        : infer_generate(infer, r, batch, &stats);
        for (int i = 0; i < batch; i++) VEC_FREE(&r[i].tokens);
        if (stats.prompt_s < best.prompt_s) best.prompt_s = stats.prompt_s;
        if (stats.made_s < best.made_s) best.made_s = stats.made_s;
    }
    const ModelConfig *c =
        &model->config; /* of an embedding that is no head too, only single rows are read */
    double unread = c->tied ? 0 : (double)c->vocab * (double)c->embed * (double)dtype_bytes(dtype);
    double weights = (double)infer_planned(infer).weight_bytes - unread,
           made = (double)stats.made_tokens;
    printf("%-14s %-5s batch %d%s  prompt %8.0f tokens/s  made %7.1f tokens/s  weights %.2f GB/s\n",
           model->path, dtype_name(dtype), batch, shared ? " shared" : "       ",
           (double)stats.prompt_tokens / best.prompt_s, made / best.made_s,
           weights * made / (double)batch / best.made_s * 1e-9);
    fflush(stdout);
    infer_destroy(infer);
    return status;
}

int main(int argc, char **argv)
{
    InferModel model;
    int threads = argc > 2 ? (int)strtol(argv[2], NULL, 10) : 0;
    Status status = infer_model_preset(argc > 1 ? argv[1] : "bench-medium", 0, &model);
    static const struct {
        int batch;
        bool shared;
    } rows[] = {{1, false}, {8, false}, {8, true}};
    for (int i = 0; i < 2 * COUNT_OF(rows) && status == OK; i++)
        status = measure(&model, i % 2 ? DTYPE_BF16 : DTYPE_F32, threads, rows[i / 2].batch,
                         rows[i / 2].shared);
    if (status != OK)
        log_error("%s", status_message());
    else
        infer_model_deinit(&model);
    return status != OK;
}
