#!/usr/bin/env python3
"""Two MPI ranks of one thread each beside one process of two threads: tokens per second of the same training.

  tools/bench/ranks.py [--rounds 3] [--steps 6] [--only small,medium,moe] [--dtype f32,bf16] [SETTING=VALUE ...]

In each round the processes run one after the other, in turns: one process, then two ranks in each way of sharing. A line
gives medians over the rounds of the median step, their spread, the ratio to one process, and what a step waited for the
other rank, by kind. Settings are given to all runs.
"""
import argparse, json, os, shutil, statistics, subprocess, tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CONFIGS = {"small": ("bench-small", 16, 256), "medium": ("bench-medium", 4, 512), "moe": ("bench-moe", 16, 256)}
WAYS = {"one process": None, "dp 2": ["parallel.dp=2"], "dp 2, no overlap": ["parallel.dp=2", "parallel.overlap=false"],
        "dp 2, zero 1": ["parallel.dp=2", "parallel.zero=1"], "fsdp 2": ["parallel.fsdp=2"]}


def run(name, dtype, steps, way, more):
    preset, batch, seq = CONFIGS[name]
    dir = tempfile.mkdtemp(prefix="drover-bench-")
    ranks = 1 if way is None else 2
    mpi = [] if way is None else ["mpirun", "-n", "2", "--bind-to", "core"]
    env = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    try:
        command = [*mpi, os.path.join(ROOT, "build/drover"), "train", "name=bench", f"dir={dir}", f"model={preset}",
                   "data=[{synthetic: uniform}]", f"train.precision={dtype}", f"train.batch={batch}", f"train.seq={seq}",
                   f"train.steps={steps + 2}", f"train.threads={2 // ranks}", "train.balance=none", "train.warmup=0",
                   "checkpoint.every=0", "checkpoint.async=false", "log.tensorboard=false", *(way or []), *more]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        rows = [json.loads(line) for line in open(os.path.join(dir, "metrics.jsonl"))]
        rows = [r for r in rows if "loss" in r][2:]
        exposed = {}
        for r in rows:
            for kind, seconds in r.get("exposed_s", {}).items():
                exposed.setdefault(kind, []).append(seconds)
        return {"tokens_per_s": statistics.median(r["tokens_per_s"] for r in rows), "step_s": statistics.median(r["step_s"] for r in rows),
                "plan": rows[0]["peak_bytes"] / 2**20, "exposed": {k: statistics.median(v) for k, v in exposed.items()}}
    finally:
        shutil.rmtree(dir)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--steps", type=int, default=6)
    ap.add_argument("--only", default="small")
    ap.add_argument("--dtype", default="f32,bf16")
    ap.add_argument("settings", nargs="*")
    a = ap.parse_args()
    print(f"{'configuration':14s} {'what':20s} {'tokens/s [min max]':>24s} {'ratio':>6s} {'plan MiB a rank':>16s}  exposed ms a step")
    for name in a.only.split(","):
        for dtype in a.dtype.split(","):
            results = {what: [] for what in WAYS}
            for _ in range(a.rounds):
                for what, way in WAYS.items():
                    results[what].append(run(name, dtype, a.steps, way, a.settings))
            for what, rs in results.items():
                speeds = [r["tokens_per_s"] for r in rs]
                ratio = statistics.median(r["tokens_per_s"] / one["tokens_per_s"] for r, one in zip(rs, results["one process"]))
                kinds = sorted({k for r in rs for k in r["exposed"]})
                exposed = ", ".join(f"{k} {1e3 * statistics.median(r['exposed'].get(k, 0) for r in rs):.1f}" for k in kinds)
                spread = f"{statistics.median(speeds):.0f} [{min(speeds):.0f} {max(speeds):.0f}]"
                print(f"{name + ' ' + dtype:14s} {what:20s} {spread:>24s} {ratio:6.3f} {rs[0]['plan']:16.0f}  {exposed}", flush=True)


main()
