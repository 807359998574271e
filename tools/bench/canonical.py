#!/usr/bin/env python3
"""What canonical mode costs: tokens per second of the same training with and without it, on one process of two threads and
on two MPI ranks of one thread.

  tools/bench/canonical.py [--rounds 3] [--steps 6] [--only small,moe] [--dtype f32,bf16] [SETTING=VALUE ...]

In each round the runs follow one another, in turns. "whole batch" is the mode that one would choose otherwise: as many
sequences at once as there are. A line gives medians over the rounds of the median step, their spread, and the ratio to the
same ranks without the mode, leaf by leaf and with the whole batch at once. Settings are given to all runs.
"""
import argparse, shutil, statistics

from ranks import run

LEAF = ["train.micro_batch=1"]
CANONICAL = ["train.canonical=true", "train.micro_batch=1"]


def ways():
    layouts = {"one process": (1, [])}
    if shutil.which("mpirun"):
        layouts |= {"dp 2": (2, ["parallel.dp=2"]), "tp 2": (2, ["parallel.tp=2"])}
    for name, (ranks, settings) in layouts.items():
        yield name, {"whole batch": (ranks, settings), "by leaf": (ranks, settings + LEAF), "canonical": (ranks, settings + CANONICAL)}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--steps", type=int, default=6)
    ap.add_argument("--only", default="small,moe")
    ap.add_argument("--dtype", default="f32,bf16")
    ap.add_argument("settings", nargs="*")
    a = ap.parse_args()
    print(f"{'configuration':14s} {'ranks':12s} {'what':12s} {'tokens/s [min max]':>24s} {'by leaf':>8s} {'whole':>6s} {'plan MiB a rank':>16s}")
    for name in a.only.split(","):
        for dtype in a.dtype.split(","):
            for layout, modes in ways():
                results = {what: [] for what in modes}
                for _ in range(a.rounds):
                    for what, way in modes.items():
                        results[what].append(run(name, dtype, a.steps, way, a.settings))
                for what, rs in results.items():
                    speeds = [r["tokens_per_s"] for r in rs]
                    ratio = {base: statistics.median(r["tokens_per_s"] / o["tokens_per_s"] for r, o in zip(rs, results[base])) for base in ("by leaf", "whole batch")}
                    spread = f"{statistics.median(speeds):.0f} [{min(speeds):.0f} {max(speeds):.0f}]"
                    print(f"{name + ' ' + dtype:14s} {layout:12s} {what:12s} {spread:>24s} {ratio['by leaf']:8.3f} {ratio['whole batch']:6.3f} {rs[0]['plan']:16.0f}", flush=True)


main()
