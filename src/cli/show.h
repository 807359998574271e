/* Things as text for people, for drover inspect and its relatives. */
#ifndef CLI_SHOW_H
#define CLI_SHOW_H

#include "cli/cli.h"

void show_tokenizer(const Tokenizer *tokenizer, Str *out);
/* Bytes on one line: control characters, quotes and malformed UTF-8 escaped. */
void show_visible(Bytes text, Str *out);
void show_config(const ModelConfig *config, Str *out);

/* Elements and bytes by type, then the tensors: the 16 largest, or all. */
typedef struct ShownTensor {
    const char *name, *type;
    Shape shape;
    uint64_t bytes;
} ShownTensor;
typedef struct TensorList {
    ShownTensor *at;
    int n;
} TensorList;
void show_tensors(TensorList tensors, bool all, Str *out);

/* A model directory or checkpoint. */
Status show_model(const char *path, bool all, Str *out);
Status show_safetensors(const char *path, bool all, Str *out);
Status show_pth(const char *path, bool all, Str *out);
/* A run's directory: what it was told, how far it is, which checkpoints it has. */
Status show_run(const char *path, Str *out);

/* Graph or program of a preset or a model directory. */
typedef struct ProgramFlags {
    int kind; /* 0: none; loss, logits, decode, prefill, step */
    int64_t batch, seq;
    int dtype; /* f32, bf16 */
    bool program, dot;
} ProgramFlags;
Status show_program(const ModelConfig *config, const ProgramFlags *flags, Str *out);

#endif
