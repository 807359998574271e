/* The rates of this processor's multiply-add units and of its memory, measured: what "share of
 * peak" is a share of. */
#ifndef OPS_PROBE_H
#define OPS_PROBE_H

#include "graph/graph.h"

/* Runs independent multiply-adds in registers for about `seconds` on each of `threads` threads and
 * returns their FLOP per second together: f32 lanes, or bf16 pairs into f32 where the level has
 * them (else the f32 rate). The best of several short rounds, since neighbours only ever slow it
 * down. */
double probe_peak_flop_per_s(Isa isa, DType dtype, int threads, double seconds);

/* Bytes per second that all threads together read from memory far beyond the caches, and read and
 * write copying there: the best of several walks. 0 when there is no memory for it. */
double probe_read_bytes_per_s(int threads, double seconds);
double probe_copy_bytes_per_s(int threads, double seconds);

#endif
