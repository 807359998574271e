/* Things as text for people, for drover inspect and its relatives. */
#ifndef CLI_SHOW_H
#define CLI_SHOW_H

#include "cli/cli.h"

void show_tokenizer(const Tokenizer *tokenizer, Str *out);
/* Bytes of a token or a text on one line: \n, \x00 and quotes escaped. */
void show_visible(Bytes text, Str *out);
void show_config(const ModelConfig *config, Str *out);
/* Bytes and elements by type, and the largest or all tensors. */
void show_tensors(const SafetensorsEntry *(*at)(const void *from, int i), const void *from, int n, bool all, Str *out);
void show_plan(const InferPlan *plan, Str *out);
Status show_run(const char *dir, Str *out);

#endif
