/* The rate of this processor's multiply-add units, measured: what "share of peak" is a share of. */
#ifndef OPS_PROBE_H
#define OPS_PROBE_H

#include "graph/graph.h"

/* Runs independent multiply-adds in registers for about `seconds` on each of `threads` threads and returns
 * their FLOP per second together: f32 lanes, or bf16 pairs into f32 where the level has them (else
 * the f32 rate). The best of several short rounds, since neighbours only ever slow it down. */
double probe_peak_flop_per_s(Isa isa, DType dtype, int threads, double seconds);

#endif
