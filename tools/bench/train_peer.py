#!/usr/bin/env python3
"""Training speed and memory beside PyTorch, one after the other in the same run.

  tools/bench/train_peer.py [--rounds 3] [--steps 6] [--only small,medium,moe] [--dtype f32,bf16]
                            [--torch PYTHON ...]

Each round of a configuration runs ours, then each PyTorch; a table of medians over the rounds, with the
spread, is printed. --torch names Python programs that can import torch (default: python3 and
/usr/bin/python3, as far as they can); torch >= 2 is also measured compiled and with its fused attention.
The model, the FLOP counting and the JSON are those of torch_llama.py beside this file. Memory is the peak
resident set of the process; "plan" is what drover said before its first step.
"""
import argparse, json, os, re, resource, shutil, statistics, subprocess, sys, tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
CONFIGS = {"small": ("bench-small", 16, 256, ["--config", "small"]),
           "medium": ("bench-medium", 4, 512, ["--config", "medium"]),
           "moe": ("bench-moe", 16, 256, ["--config", "small", "--moe"])}


def child(cmd, **kw):
    """Runs cmd; (stdout, stderr, peak resident set in MiB)."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.posix_spawnp(cmd[0], cmd, dict(os.environ, OMP_NUM_THREADS=str(os.cpu_count()), **kw),
                              file_actions=[(os.POSIX_SPAWN_DUP2, out.fileno(), 1), (os.POSIX_SPAWN_DUP2, err.fileno(), 2)])
        _, status, usage = os.wait4(pid, 0)
        out.seek(0), err.seek(0)
        text, errors = out.read().decode(), err.read().decode()
        if status:
            raise RuntimeError(f"{' '.join(cmd)}: status {status}\n{errors[-2000:]}")
        return text, errors, usage.ru_maxrss / 1024


def ours(name, dtype, steps):
    preset, batch, seq, _ = CONFIGS[name]
    dir = tempfile.mkdtemp(prefix="drover-bench-")
    try:
        _, log, rss = child([os.path.join(ROOT, "build/drover"), "train", "name=bench", f"dir={dir}", f"model={preset}",
                             "data=[{synthetic: uniform}]", f"train.precision={dtype}", f"train.batch={batch}",
                             f"train.seq={seq}", f"train.steps={steps + 2}", "train.balance=none", "train.warmup=0",
                             "train.recompute=" + ("none" if name == "small" or dtype == "bf16" else "selective"),
                             "checkpoint.every=0", "checkpoint.async=false", "log.tensorboard=false"])
        rows = [json.loads(line) for line in open(os.path.join(dir, "metrics.jsonl"))]
        rows = [r for r in rows if "loss" in r][2:]
        peak = float(re.search(r"peak ([0-9.]+) GFLOP/s", log).group(1))
        return {"tokens_per_s": statistics.median(r["tokens_per_s"] for r in rows), "rss": rss,
                "plan": rows[0]["peak_bytes"] / 2**20, "share": statistics.median(r["mfu"] for r in rows), "peak": peak}
    finally:
        shutil.rmtree(dir)


def peer(python, name, dtype, steps, extra):
    text, _, rss = child([python, os.path.join(HERE, "torch_llama.py"), *CONFIGS[name][3], "--dtype",
                          "fp32" if dtype == "f32" else dtype, "--steps", str(steps), "--warmup", "3" if extra else "2", "--json", *extra])
    r = json.loads(text.strip().splitlines()[-1])
    return {"tokens_per_s": r["tokens_per_s"], "rss": rss, "torch": r["torch"], "blas": r.get("blas", "")}


def pythons(given):
    found = {}
    for p in given or ["python3", "/usr/bin/python3"]:
        try:
            version = subprocess.run([p, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True).stdout.strip()
        except OSError:
            continue
        if version:
            found.setdefault(version, p)
    return found


def spread(values):
    return f"{statistics.median(values):8.0f} [{min(values):.0f} {max(values):.0f}]"


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--steps", type=int, default=6)
    ap.add_argument("--only", default="small,medium,moe")
    ap.add_argument("--dtype", default="f32,bf16")
    ap.add_argument("--torch", action="append")
    a = ap.parse_args()
    peers = []
    for version, python in pythons(a.torch).items():
        peers.append((f"torch {version}", python, []))
        if int(version.split(".")[0]) >= 2:
            peers.append((f"torch {version} compiled", python, ["--compile", "--sdpa"]))
    if not peers:
        print("no Python here can import torch: no peer (python3-torch, or --torch PYTHON)")
    print(f"{'configuration':14s} {'what':26s} {'tokens/s [min max]':>26s} {'ours/it':>8s} {'of peak':>8s} {'memory MiB':>11s} {'plan MiB':>9s} {'ours/it':>8s}")
    for name in a.only.split(","):
        for dtype in a.dtype.split(","):
            runs = {"drover": []}
            for _ in range(a.rounds):
                runs["drover"].append(ours(name, dtype, a.steps))
                for label, python, extra in peers:
                    try:
                        runs.setdefault(label, []).append(peer(python, name, dtype, a.steps, extra))
                    except RuntimeError as e:
                        print(e, file=sys.stderr)
            mine = runs["drover"]
            speed = statistics.median(r["tokens_per_s"] for r in mine)
            memory = statistics.median(r["rss"] for r in mine)
            for label, rows in runs.items():
                it = statistics.median(r["tokens_per_s"] for r in rows)
                rss = statistics.median(r["rss"] for r in rows)
                share = f"{100 * statistics.median(r['share'] for r in rows):7.1f}%" if "share" in rows[0] else ""
                plan = f"{rows[0]['plan']:9.0f}" if "plan" in rows[0] else ""
                print(f"{name + ' ' + dtype:14s} {label:26s} {spread([r['tokens_per_s'] for r in rows]):>26s} {speed / it:8.2f} "
                      f"{share:>8s} {rss:11.0f} {plan:>9s} {memory / rss:8.2f}", flush=True)
                if rows[0].get("blas"):
                    print(f"{'':14s} ({rows[0]['blas']})")


if __name__ == "__main__":
    main()
