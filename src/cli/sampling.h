/* The options of commands that draw tokens. */
#ifndef CLI_SAMPLING_H
#define CLI_SAMPLING_H

#include "cli/cli.h"

typedef struct SamplingFlags {
    double temperature, top_p, min_p; /* NAN: as the model says */
    int64_t top_k;                    /* INT64_MIN: as the model says */
    int64_t seed;
} SamplingFlags;

/* clang-format off */
#define SAMPLING_FLAGS(T, member)                                                                  \
    {"temperature", OPTION_FLOAT, "T", 0, 100, NULL, NULL, offsetof(T, member.temperature),        \
     "0: always the likeliest; else as the model's files say, else 0.6"},                          \
    {"top-k", OPTION_INT, "K", 0, 1 << 24, NULL, NULL, offsetof(T, member.top_k),                  \
     "only the K likeliest; 0: all"},                                                              \
    {"top-p", OPTION_FLOAT, "P", 0.001, 1, NULL, NULL, offsetof(T, member.top_p),                  \
     "only the likeliest whose mass reaches P; else as the model's files say, else 0.9"},          \
    {"min-p", OPTION_FLOAT, "P", 0, 1, NULL, NULL, offsetof(T, member.min_p),                      \
     "only those at least P times as likely as the likeliest"},                                    \
    {"seed", OPTION_INT, "N", 0, 9e18, "0", NULL, offsetof(T, member.seed),                        \
     "same seed, same text"}
/* clang-format on */

SamplerOptions sampling_apply(const SamplingFlags *flags, const InferModel *model);

#endif
