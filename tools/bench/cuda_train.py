#!/usr/bin/env python3
"""Training on a GPU beside PyTorch, one after the other in the same run.

  tools/bench/cuda_train.py [--rounds 2] [--steps 10] [--only 1b,3b,scout] [--torch PYTHON ...] [--device cpu]

Llama 3.2 1B and 3B and a Scout of two layers and eight experts, sequences of 8,192 tokens, bf16 with f32 master weights,
one GPU. Each round of a configuration runs ours, then PyTorch in eager mode and compiled, both with its fused attention and
optimizer; a table of medians over the rounds is printed. FLOP are counted as torch_llama.py does, for both; the peak is that
of the GPU's sheet, as ours says it. "first" is from the start of the process to the end of the first step: for ours with the
fastest products of an earlier run at hand (train.tune), for PyTorch compiled with what it has cached. Where no Python here has
a torch that sees the GPU, that is said, and ours stands alone. --device cpu with --tiny shows that everything runs.
"""
import argparse, json, os, re, shutil, statistics, subprocess, sys, tempfile, time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, HERE)
from train_peer import child  # noqa: E402

SEQ = 8192
# name: (our preset and fields, recompute, torch_llama.py's options)
CONFIGS = {
    "1b": (["model=llama3.2-1b"], "none", ["--config", "1b"]),
    "3b": (["model=llama3.2-3b"], "full", ["--config", "3b", "--checkpoint"]),
    "scout": (["model=llama4-scout", "model.num_hidden_layers=2", "model.num_local_experts=8", "model.vocab_size=25256"],
              "none", ["--config", "scout", "--moe"]),
    "tiny": (["model=bench-small", "model.num_hidden_layers=2"], "none", ["--config", "tiny"]),
}


def has_line(path):
    try:
        with open(path) as f:
            return any('"loss"' in line for line in f)
    except OSError:
        return False


def run_and_wait_for(cmd, path):
    """Runs cmd; (stderr, seconds until the file at path has a step's line)."""
    with tempfile.TemporaryFile() as err:
        begin, first = time.perf_counter(), None
        process = subprocess.Popen(cmd, stdout=subprocess.DEVNULL, stderr=err)
        while process.poll() is None:
            if first is None and has_line(path):
                first = time.perf_counter() - begin
            time.sleep(0.01)
        err.seek(0)
        text = err.read().decode()
        if process.returncode:
            raise RuntimeError(f"{' '.join(cmd)}: status {process.returncode}\n{text[-2000:]}")
        return text, first


def ours(name, a):
    fields, recompute, _ = CONFIGS[name]
    dir = tempfile.mkdtemp(prefix="drover-bench-")
    metrics = os.path.join(dir, "metrics.jsonl")
    try:
        log, first = run_and_wait_for([a.drover, "train", "name=bench", f"dir={dir}", *fields, "data=[{synthetic: uniform}]",
                                       f"train.device={a.device}", "train.precision=" + ("bf16" if a.device == "cuda" else "f32"),
                                       "train.batch=1", f"train.seq={SEQ if name != 'tiny' else 32}",
                                       f"train.steps={a.steps + 3}", "train.balance=none", "train.warmup=0",
                                       f"train.recompute={recompute}", "checkpoint.every=0", "checkpoint.async=false",
                                       "log.every=1", "log.tensorboard=false"], metrics)
        rows = [r for r in map(json.loads, open(metrics)) if "loss" in r]
        peak = re.search(r"peak ([0-9.]+) GFLOP/s", log)
        return {"tokens_per_s": statistics.median(r["tokens_per_s"] for r in rows[3:]),
                "mfu": statistics.median(r.get("mfu") or 0 for r in rows[3:]), "first": first,
                "memory": rows[0]["peak_bytes"] / 2**20, "gflops": float(peak.group(1)) if peak else 0}
    finally:
        shutil.rmtree(dir)


def peer(python, name, extra, a):
    dtype = "bf16" if a.device == "cuda" else "fp32"
    text, _, _ = child([python, os.path.join(HERE, "torch_llama.py"), *CONFIGS[name][2], "--device", a.device, "--dtype", dtype,
                        "--steps", str(a.steps), "--warmup", "3", "--json", *extra])
    r = json.loads(text.strip().splitlines()[-1])
    return {"tokens_per_s": r["tokens_per_s"], "gflops": r["gflops"], "first": r["first_step_s"],
            "memory": r["peak_gpu_mib"] if a.device == "cuda" else r["peak_rss_mib"]}


def peers(a):
    """(label, python, options) of each way in which a torch of this machine trains on the device."""
    ask = "import torch; print(torch.__version__, torch.cuda.is_available())"
    for python in a.torch or ["python3", "/usr/bin/python3"]:
        try:
            words = subprocess.run([python, "-c", ask], capture_output=True, text=True).stdout.split()
        except OSError:
            continue
        if len(words) == 2 and (words[1] == "True" or a.device == "cpu"):
            two = int(words[0].split(".")[0]) >= 2
            found = [(f"torch {words[0]} eager", python, ["--sdpa"] if two else [])]
            return found + ([(f"torch {words[0]} compiled", python, ["--sdpa", "--compile"])] if two else [])
    print(f"no Python here has a torch that sees {'a GPU' if a.device == 'cuda' else 'anything'}: no peer (--torch PYTHON)")
    return []


def table(name, runs):
    mine = statistics.median(r["tokens_per_s"] for r in runs["drover"])
    peak = runs["drover"][0]["gflops"]
    for label, rows in runs.items():
        if not rows:
            continue
        def middle(key):
            return statistics.median(r[key] or 0 for r in rows)
        share = middle("mfu") if label == "drover" else (middle("gflops") / peak if peak else 0)
        speeds = [r["tokens_per_s"] for r in rows]
        print(f"{name:8s} {label:26s} {statistics.median(speeds):10.0f} [{min(speeds):.0f} {max(speeds):.0f}] "
              f"{mine / statistics.median(speeds):8.2f} {100 * share:8.1f}% {middle('memory'):11.0f} {middle('first'):8.1f}", flush=True)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--rounds", type=int, default=2)
    ap.add_argument("--steps", type=int, default=10, help="that are timed, after three")
    ap.add_argument("--only", default="1b,3b,scout")
    ap.add_argument("--tiny", action="store_true", help="one tiny model: shows that everything runs")
    ap.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    ap.add_argument("--drover", default=os.path.join(ROOT, "build/drover"))
    ap.add_argument("--torch", action="append")
    a = ap.parse_args()
    found = peers(a)
    print(f"{'model':8s} {'what':26s} {'tokens/s [min max]':>24s} {'ours/it':>8s} {'of peak':>9s} {'memory MiB':>11s} {'first s':>8s}")
    for name in ["tiny"] if a.tiny else a.only.split(","):
        runs = {"drover": [], **{label: [] for label, _, _ in found}}
        for _ in range(a.rounds):
            try:
                runs["drover"].append(ours(name, a))
            except RuntimeError as e:
                print(f"{name:8s} drover: {str(e).strip().splitlines()[-1]}")
                break
            for label, python, extra in found:
                try:
                    runs[label].append(peer(python, name, extra, a))
                except RuntimeError as e:
                    print(f"{name:8s} {label}: {str(e).strip().splitlines()[-1]}")
        if runs["drover"]:
            table(name, runs)


main()
