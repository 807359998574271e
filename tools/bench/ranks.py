#!/usr/bin/env python3
"""Two MPI ranks of one thread each beside one process of two threads: tokens per second of the same training.

  tools/bench/ranks.py [--rounds 3] [--steps 6] [--share batch|context] [--only small,medium,moe,long] [--dtype f32,bf16] [SETTING=VALUE ...]

They share the batch, or each sequence (context): keys and values gathered or passed round.

In each round the processes run one after the other, in turns: one process, then two ranks in each way of sharing. A line
gives medians over the rounds of the median step, their spread, the ratio to one process, and what a step waited for the
other rank, by kind. Settings are given to all runs.
"""
import argparse, json, os, shutil, statistics, subprocess, tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CONFIGS = {"small": ("bench-small", 16, 256), "medium": ("bench-medium", 4, 512), "moe": ("bench-moe", 16, 256),
           "long": ("bench-small", 1, 4096)}
WAYS = {"batch": {"one process": (1, []), "dp 2": (2, ["parallel.dp=2"]), "dp 2, no overlap": (2, ["parallel.dp=2", "parallel.overlap=false"]),
                  "dp 2, zero 1": (2, ["parallel.dp=2", "parallel.zero=1"]), "fsdp 2": (2, ["parallel.fsdp=2"])},
        "context": {"one process": (1, []), "cp 2, gather": (2, ["parallel.cp=2"]), "cp 2, ring": (2, ["parallel.cp=2", "parallel.context=ring"]),
                    "cp 2, gather, no overlap": (2, ["parallel.cp=2", "parallel.overlap=false"]),
                    "cp 2, ring, no overlap": (2, ["parallel.cp=2", "parallel.context=ring", "parallel.overlap=false"])}}


def settings(name, dtype, more):
    preset, batch, seq = CONFIGS[name]
    return [f"model={preset}", "data=[{synthetic: uniform}]", f"train.precision={dtype}", f"train.batch={batch}", f"train.seq={seq}",
            "train.balance=none", "train.warmup=0", "checkpoint.every=0", "checkpoint.async=false", "log.tensorboard=false", *more]


def run(name, dtype, steps, way, more):
    dir = tempfile.mkdtemp(prefix="drover-bench-")
    ranks, own = way
    mpi = [] if ranks == 1 else ["mpirun", "-n", str(ranks), "--bind-to", "core"]
    env = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    try:
        command = [*mpi, os.path.join(ROOT, "build/drover"), "train", "name=bench", f"dir={dir}", f"train.steps={steps + 2}",
                   f"train.threads={2 // ranks}", *settings(name, dtype, [*own, *more])]
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


def planned(name, dtype, more):
    """Bytes of the step's activations and gradients on the first rank, as the run would be planned."""
    command = [os.path.join(ROOT, "build/drover"), "train", "--dry-run", "train.threads=1", *settings(name, dtype, more)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tempfile.gettempdir())
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return int(next(line for line in done.stdout.splitlines() if "step: activations" in line).split()[3])


def print_memory(name, dtype, more):
    print("MiB of a rank's activations and gradients, planned:  cp  gather  ring")
    for n in 1, 2, 4, 8:
        way = [[f"parallel.cp={n}", f"parallel.context={context}"] for context in ("gather", "ring")]
        print(f"{name + ' ' + dtype:50s} {n:4d}  " + "  ".join(f"{planned(name, dtype, [*w, *more]) / 2**20:7.1f}" for w in way), flush=True)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--steps", type=int, default=6)
    ap.add_argument("--share", default="batch", choices=WAYS)
    ap.add_argument("--only")
    ap.add_argument("--dtype", default="f32,bf16")
    ap.add_argument("settings", nargs="*")
    a = ap.parse_args()
    ways = WAYS[a.share]
    print(f"{'configuration':14s} {'what':24s} {'tokens/s [min max]':>24s} {'ratio':>6s} {'plan MiB a rank':>16s}  exposed ms a step")
    for name in (a.only or ("small" if a.share == "batch" else "long")).split(","):
        for dtype in a.dtype.split(","):
            results = {what: [] for what in ways}
            for _ in range(a.rounds):
                for what, way in ways.items():
                    results[what].append(run(name, dtype, a.steps, way, a.settings))
            for what, rs in results.items():
                speeds = [r["tokens_per_s"] for r in rs]
                ratio = statistics.median(r["tokens_per_s"] / one["tokens_per_s"] for r, one in zip(rs, results["one process"]))
                kinds = sorted({k for r in rs for k in r["exposed"]})
                exposed = ", ".join(f"{k} {1e3 * statistics.median(r['exposed'].get(k, 0) for r in rs):.1f}" for k in kinds)
                spread = f"{statistics.median(speeds):.0f} [{min(speeds):.0f} {max(speeds):.0f}]"
                print(f"{name + ' ' + dtype:14s} {what:24s} {spread:>24s} {ratio:6.3f} {rs[0]['plan']:16.0f}  {exposed}", flush=True)
            if a.share == "context":
                print_memory(name, dtype, a.settings)


if __name__ == "__main__":
    main()
