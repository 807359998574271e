#!/usr/bin/env python3
"""Two settings side by side: both runs at once, one core and one thread each, then with the cores exchanged.

  tools/bench/pair.py [--model bench-small] [--batch 16] [--micro 4] [--seq 256] [--dtype f32] [--steps 6] [--rounds 2]
                      A=value[,B=value...] A=other[,B=other...]

What disturbs the machine disturbs both alike, so that differences of a per cent can be seen. Prints tokens/s of each
(medians over the steps but the first), the ratio second : first of each pass and their geometric mean, and the memory of the plans.
"""
import argparse, json, math, os, shutil, statistics, subprocess, tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def start(args, settings, core):
    dir = tempfile.mkdtemp(prefix="drover-pair-")
    command = ["taskset", "-c", str(core), os.path.join(ROOT, "build/drover"), "train", "name=pair", f"dir={dir}", f"model={args.model}",
               "data=[{synthetic: uniform}]", f"train.precision={args.dtype}", f"train.batch={args.batch}", f"train.micro_batch={args.micro}",
               f"train.seq={args.seq}", f"train.steps={args.steps + 1}", "train.balance=none", "train.warmup=0", "train.threads=1",
               "train.device=cpu", "checkpoint.every=0", "checkpoint.async=false", "log.tensorboard=false", *settings.split(",")]
    return dir, subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finish(dir, process):
    try:
        if process.wait():
            raise SystemExit(f"{' '.join(process.args)}: status {process.returncode}")
        rows = [json.loads(line) for line in open(os.path.join(dir, "metrics.jsonl"))]
        rows = [r for r in rows if "loss" in r]
        return statistics.median(r["tokens_per_s"] for r in rows[1:]), rows[0]["peak_bytes"] / 2**20, rows[-1]["loss"]
    finally:
        shutil.rmtree(dir)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", default="bench-small")
    ap.add_argument("--dtype", default="f32")
    for name, value in (("batch", 16), ("micro", 4), ("seq", 256), ("steps", 6), ("rounds", 2)):
        ap.add_argument(f"--{name}", type=int, default=value)
    ap.add_argument("first")
    ap.add_argument("second")
    args = ap.parse_args()
    ratios = []
    for turn in range(2 * args.rounds):
        a, b = start(args, args.first, turn % 2), start(args, args.second, 1 - turn % 2)
        (speed_a, memory_a, loss_a), (speed_b, memory_b, loss_b) = finish(*a), finish(*b)
        ratios.append(speed_b / speed_a)
        print(f"{args.model} {args.dtype}: {speed_a:.0f} and {speed_b:.0f} tokens/s, {ratios[-1]:.3f}; {memory_a:.0f} and {memory_b:.0f} MiB; "
              f"losses {'equal' if loss_a == loss_b else f'{loss_a} and {loss_b}'}", flush=True)
    print(f"{args.second} : {args.first}  {math.exp(statistics.fmean(map(math.log, ratios))):.3f} [{min(ratios):.3f} {max(ratios):.3f}]")


if __name__ == "__main__":
    main()
