#!/usr/bin/env python3
"""Plans beside runs on this machine: step time and memory of layouts and models, predicted by `drover plan` on a sheet of
this machine and measured by `drover train`.

  tools/bench/plan_run.py [--sheet FILE] [--steps 12] [--rounds 1] [--only TEXT] [SETTING=VALUE ...]

Without --sheet, `drover doctor --calibrate` measures the machine first, once for all rows. Each row is run as many times as
--rounds says, in turns with the others; what is measured is the median of all its steps but the first three. "threads":
ranks as threads of one process; "mpi": processes of one thread each. Memory is what a rank allocates for its programs: the
run's own count less the batches that it prefetches, which no plan has. The last lines are the median and the worst error,
and how many rows hold other bytes than planned. Settings are given to plans and runs. Exit code 1: a run failed, or bytes
differ.
"""
import argparse, json, os, shutil, statistics, subprocess, sys, tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DROVER = os.path.join(ROOT, "build/drover")
WARM_UP = 3
MODELS = {"llama3": ("bench-small", 16, 256), "llama4": ("bench-moe", 16, 256), "grok": ("grok1-micro", 16, 256),
          "medium": ("bench-medium", 4, 512), "micro": ("llama4-micro", 16, 256)}
# model, ranks, how they are started, settings
ROWS = [
    ("llama3", 1, "threads", "f32", ""),
    ("llama3", 1, "threads", "bf16", ""),
    ("llama3", 1, "threads", "f32", "train.micro_batch=4"),
    ("llama3", 1, "threads", "f32", "train.recompute=selective"),
    ("llama3", 1, "threads", "f32", "train.recompute=full"),
    ("llama3", 2, "threads", "f32", "parallel.dp=2"),
    ("llama3", 2, "mpi", "f32", "parallel.dp=2"),
    ("llama3", 2, "mpi", "bf16", "parallel.dp=2"),
    ("llama3", 2, "mpi", "f32", "parallel.dp=2 parallel.zero=1"),
    ("llama3", 2, "mpi", "f32", "parallel.dp=2 parallel.zero=2 train.micro_batch=2"),
    ("llama3", 2, "threads", "f32", "parallel.fsdp=2"),
    ("llama3", 2, "mpi", "f32", "parallel.fsdp=2"),
    ("llama3", 2, "threads", "f32", "parallel.tp=2"),
    ("llama3", 2, "mpi", "f32", "parallel.tp=2"),
    ("llama3", 2, "mpi", "f32", "parallel.cp=2"),
    ("llama3", 2, "threads", "f32", "parallel.pp=2 train.micro_batch=2"),
    ("llama3", 2, "mpi", "f32", "parallel.pp=2 train.micro_batch=2"),
    ("llama3", 2, "mpi", "f32", "parallel.pp=2 train.micro_batch=2 parallel.schedule=zb-h1"),
    ("medium", 1, "threads", "f32", ""),
    ("medium", 2, "mpi", "f32", "parallel.fsdp=2"),
    ("llama4", 1, "threads", "f32", ""),
    ("llama4", 1, "threads", "bf16", ""),
    ("llama4", 2, "mpi", "f32", "parallel.dp=2"),
    ("llama4", 2, "threads", "f32", "parallel.ep=2"),
    ("llama4", 2, "mpi", "f32", "parallel.ep=2"),
    ("llama4", 2, "mpi", "f32", "parallel.tp=2"),
    ("micro", 2, "mpi", "f32", "parallel.dp=2 train.recompute=selective"),
    ("grok", 1, "threads", "f32", ""),
    ("grok", 2, "threads", "f32", "parallel.tp=2"),
    ("grok", 2, "mpi", "f32", "parallel.ep=2"),
]


# models whose layout a search finds on all cores; what it writes is run as it is
FOUND = [("bench-small", 256), ("llama4-nano", 256)]


def command(arguments, ranks=1):
    mpi = [] if ranks == 1 else ["mpirun", "-n", str(ranks), "--bind-to", "core"]
    env = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    done = subprocess.run([*mpi, DROVER, *arguments], env=env, capture_output=True, text=True, cwd=tempfile.gettempdir())
    if done.returncode:
        raise RuntimeError(f"drover {' '.join(arguments)}: {done.stderr[-1000:].strip()}")
    return done.stdout


def settings(row, cores, more):
    model, ranks, _, dtype, own = row
    preset, batch, seq = MODELS[model]
    return [f"model={preset}", "name=plan_run", "data=[{synthetic: uniform}]", f"train.precision={dtype}", f"train.batch={batch}", f"train.seq={seq}",
            f"train.threads={max(1, cores // ranks)}", "train.warmup=0", "checkpoint.every=0", "checkpoint.async=false", "log.tensorboard=false",
            *own.split(), *more]


def plan(row, sheet, run_file):
    report = json.loads(command(["plan", run_file, "--cluster", sheet, "--json"]))
    return report["step_s"], report["memory"][0]["total"]


def prefetched(run_file):
    """Bytes beside the programs' own that the run counts too."""
    lines = [line.split() for line in command(["train", run_file, "--dry-run"]).splitlines()]
    return sum(int(words[2]) for words in lines if words[:2] in (["prefetched", "batches"], ["checkpoint", "snapshot"]))


def train(row, run_file, steps):
    directory = tempfile.mkdtemp(prefix="drover-plan-run-")
    try:
        command(["train", run_file, f"dir={directory}", f"train.steps={steps}"], row[1] if row[2] == "mpi" else 1)
        with open(os.path.join(directory, "metrics.jsonl")) as lines:
            rows = [r for r in map(json.loads, lines) if "loss" in r and "step_s" in r]
        return [r["step_s"] for r in rows[WARM_UP:]], rows[0]["peak_bytes"]
    finally:
        shutil.rmtree(directory)


def write_run_file(row, cores, steps, more, scratch):
    """What plan and run both read."""
    path, sections = os.path.join(scratch, "run.yaml"), {}
    for setting in [f"train.steps={steps}", *settings(row, cores, more)]:
        key, value = setting.split("=", 1)
        section, _, rest = key.partition(".")
        if rest:
            sections.setdefault(section, {})[rest] = value
        else:
            sections[section] = value
    with open(path, "w") as f:
        for section, value in sections.items():
            text = value if isinstance(value, str) else "{" + ", ".join(f"{k}: {v}" for k, v in value.items()) + "}"
            f.write(f"{section}: {text}\n")
    return path


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--sheet")
    ap.add_argument("--steps", type=int, default=12)
    ap.add_argument("--rounds", type=int, default=1)
    ap.add_argument("--only", default="")
    ap.add_argument("settings", nargs="*")
    a = ap.parse_args()
    cores = len(os.sched_getaffinity(0))
    scratch = tempfile.mkdtemp(prefix="drover-plan-run-")
    try:
        sys.exit(compare(a, cores, scratch))
    finally:
        shutil.rmtree(scratch)


def name_of(row):
    model, ranks, how, dtype, own = row
    own = " ".join(word.split(".", 1)[-1] for word in own.split())
    return f"{model} {dtype} {own}".strip(), f"{ranks} {how}" if ranks > 1 else f"{ranks}"


def found(preset, seq, sheet, steps, scratch):
    """Planned seconds and bytes of the layout that is found, measured seconds, bytes that the run holds."""
    path, where = os.path.join(scratch, "found.yaml"), os.path.join(scratch, "found")
    report = json.loads(command(["plan", "--model", preset, "--cluster", sheet, "--search", "--max-batch", "4k", "--json", "--out", path,
                                 f"train.seq={seq}", f"train.steps={steps}", "train.warmup=0", "train.threads=1", "checkpoint.every=0",
                                 "checkpoint.async=false", "log.tensorboard=false", f"dir={where}"]))
    command(["train", path])
    with open(os.path.join(where, "metrics.jsonl")) as lines:
        rows = [r for r in map(json.loads, lines) if "loss" in r and "step_s" in r]
    shutil.rmtree(where)
    layout = " ".join(f"{k}={v}" for k, v in report["layout"].items() if k in ("tp", "cp", "ep", "fsdp", "dp", "pp") and v > 1)
    return layout, report["step_s"], report["memory"][0]["total"], [r["step_s"] for r in rows[WARM_UP:]], rows[0]["peak_bytes"] - prefetched(path)


def line_of(what, ranks, step_s, measured, planned, held):
    real = statistics.median(measured)
    spread = f"{1e3 * real:.1f} [{1e3 * min(measured):.1f} {1e3 * max(measured):.1f}]"
    print(f"{what:56s} {ranks:10s} {1e3 * step_s:12.1f} {spread:>28s} {100 * (step_s / real - 1):+6.1f}%  {planned}"
          + ("" if planned == held else f", held {held}"), flush=True)
    return step_s / real - 1


def compare(a, cores, scratch):
    sheet = a.sheet
    if not sheet:
        sheet = os.path.join(scratch, "machine.yaml")
        print("measuring the machine", file=sys.stderr, flush=True)
        command(["doctor", "--calibrate", sheet])
    rows = [r for r in ROWS if a.only in " ".join(name_of(r)) and (r[2] != "mpi" or shutil.which("mpirun"))]
    measured = {r: [] for r in rows}
    held, wrong = {}, 0
    for _ in range(a.rounds):
        for row in rows:
            steps, peak = train(row, write_run_file(row, cores, a.steps, a.settings, scratch), a.steps)
            measured[row] += steps
            held[row] = peak
            print(f"{' '.join(name_of(row))}: {1e3 * statistics.median(steps):.1f} ms a step", file=sys.stderr, flush=True)
    print(f"{'model, layout':56s} {'ranks':10s} {'predicted ms':>12s} {'measured ms [min max]':>28s} {'error':>7s}  bytes", flush=True)
    errors = []
    for row in rows:
        run_file = write_run_file(row, cores, a.steps, a.settings, scratch)
        step_s, bytes_planned = plan(row, sheet, run_file)
        bytes_held = held[row] - prefetched(run_file)
        wrong += bytes_planned != bytes_held
        errors.append(line_of(*name_of(row), step_s, measured[row], bytes_planned, bytes_held))
    for preset, seq in FOUND if not a.only or a.only == "found" else []:
        layout, step_s, planned, real, held_here = found(preset, seq, sheet, a.steps, scratch)
        wrong += planned != held_here
        errors.append(line_of(f"{preset}, found: {layout}", f"{cores} threads", step_s, real, planned, held_here))
    size = sorted(abs(e) for e in errors)
    print(f"{len(errors)} rows: median error {100 * statistics.median(size):.1f}%, worst {100 * size[-1]:.1f}%, "
          f"{sum(e <= 0.1 for e in size)} within 10%; {wrong} hold other bytes than planned")
    return 1 if wrong else 0


main()
