"""What the parts of make parity share: running drover, opening a directory in transformers, comparing files."""
import json
import os
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
DROVER = os.environ.get("DROVER", os.path.join(ROOT, "build", "drover"))
sys.path.insert(0, os.path.join(ROOT, "tools", "golden"))


def drover(*args, check=True):
    done = subprocess.run([DROVER, *map(str, args)], capture_output=True, text=True)
    if check and done.returncode:
        sys.exit(f"drover {' '.join(map(str, args))}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout


def workshop():
    return tempfile.TemporaryDirectory(prefix="drover-parity-")


def write_json(path, value):
    with open(path, "w") as f:
        json.dump(value, f)
    return path


def read_tensors(path):
    """A safetensors file or a directory of them -> {name: (type, shape, bytes)}, without any library."""
    names = [path]
    if os.path.isdir(path):
        index = os.path.join(path, "model.safetensors.index.json")
        names = [os.path.join(path, "model.safetensors")]
        if os.path.exists(index):
            with open(index) as f:
                index = json.load(f)
            names = sorted({os.path.join(path, n) for n in index["weight_map"].values()})
    found = {}
    for name in names:
        with open(name, "rb") as f:
            raw = f.read()
        n = int.from_bytes(raw[:8], "little")
        for key, t in json.loads(raw[8:8 + n]).items():
            if key != "__metadata__":
                a, b = t["data_offsets"]
                found[key] = (t["dtype"], t["shape"], raw[8 + n + a:8 + n + b])
    if os.path.isdir(path) and len(names) > 1:
        assert index["metadata"]["total_size"] == sum(len(t[2]) for t in found.values()), f"{path}: total_size"
    return found


def f32(tensor):
    import numpy as np
    kind, shape, raw = tensor
    assert kind == "F32", kind
    return np.frombuffer(raw, "<f4").reshape(shape)


def in_transformers(path, out, **request):
    """Opens the directory in a fresh process, as a user would. What it printed on stderr: nothing, if all is well."""
    call = [sys.executable, os.path.join(HERE, "open_model.py"), path, out, json.dumps(request)]
    done = subprocess.run(call, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"transformers cannot open {path}:\n{done.stderr}")
    return done.stderr.strip()


class Report:
    """Rows of a table, and whether one of them failed."""

    def __init__(self):
        self.bad = 0

    def row(self, name, ok, text):
        self.bad += not ok
        print(f"  {name:44s} {text}  {'ok' if ok else 'DIFFERS'}", flush=True)

    def end(self):
        return 1 if self.bad else 0
