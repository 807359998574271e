#!/usr/bin/env python3
"""drover convert: every tensor bit for bit, other files byte for byte, element types as torch rounds them."""
import json
import os
import sys

from common import ROOT, Report, drover, f32, in_transformers, read_tensors, workshop
import make_golden
import make_gpt
import numpy as np
import torch
from transformers.utils import logging

SAVED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
CASES = ["llama3-tied", "llama3-sharded", "llama4-scout", "gpt2-untied", "mpt-six-heads"]
BESIDE = {"generation_config.json": '{"eos_token_id": [1, 2], "temperature": 0.25, "do_sample": true, "our_key": 3}\n',
          "chat_template.jinja": "{% for m in messages %}{{ m.content }}{% endfor %}\n",
          "special_tokens_map.json": "{}\n", "README.md": "# a card\n"}


def same_bits(a, b):
    return a.keys() == b.keys() and all(a[k] == b[k] for k in a)


def save(case, dtype, path):
    model, *_ = (make_gpt if case in make_gpt.CASES else make_golden).build(case)
    model.to(dtype).save_pretrained(path, max_shard_size="20KB")
    with open(os.path.join(path, "config.json")) as f:
        config = json.load(f)
    config["a_key_of_nobody"] = {"kept": [1, 2.5, "x"]}
    with open(os.path.join(path, "config.json"), "w") as f:
        json.dump(config, f, indent=1)
    for name, text in BESIDE.items():
        with open(os.path.join(path, name), "w") as f:
            f.write(text)


def others(path):
    names = sorted(n for n in os.listdir(path) if ".safetensors" not in n)
    return {n: open(os.path.join(path, n), "rb").read() for n in names}


def check(report, case, name, shop):
    source = os.path.join(shop, f"{case}-{name}")
    save(case, SAVED[name], source)
    want = read_tensors(source)
    there, back = source + "-there", source + "-back"
    drover("convert", source, there)
    report.row(f"{case} {name}: same", same_bits(want, read_tensors(there)) and others(source) == others(there), "tensors and files")
    drover("convert", there, back, "--shard-size", "9kB")
    shards = [n for n in os.listdir(back) if n.endswith(".safetensors")]
    report.row(f"{case} {name}: other shards", same_bits(want, read_tensors(back)) and len(shards) > 2, f"{len(shards)} files")
    if name == "BF16":  # of scout's frequencies transformers has something to say, whoever wrote the directory
        said, before = (in_transformers(path, os.path.join(shop, "answer.json"), ids=[[1, 2, 3]]) for path in (back, source))
        report.row(f"{case} {name}: opens in transformers", said == before, "no word more than the source")
    wide = source + "-f32"
    drover("convert", source, wide, "--dtype", "f32")
    narrow = wide + "-narrow"
    drover("convert", wide, narrow, "--dtype", {"F32": "bf16", "BF16": "bf16", "F16": "f16"}[name])
    rounded = {k: torch.from_numpy(f32(t).copy()).to(SAVED["BF16" if name == "F32" else name]) for k, t in read_tensors(wide).items()}
    got = read_tensors(narrow)
    good = all(np.frombuffer(got[k][2], "<i2").tolist() == t.view(torch.int16).flatten().tolist() for k, t in rounded.items())
    report.row(f"{case} {name}: to f32 and back", good and (name == "F32" or same_bits(want, got)), "bit for bit")
    with open(os.path.join(narrow, "config.json")) as f:
        config = json.load(f)
    kept = config["a_key_of_nobody"] == {"kept": [1, 2.5, "x"]} and config["dtype"] == ("float16" if name == "F16" else "bfloat16")
    report.row(f"{case} {name}: config.json", kept, "dtype told, unknown keys kept")


def meta(report, shop):
    """Meta's layout in one file, two and eight becomes the directory that was cut into it."""
    golden_meta = os.path.join(ROOT, "tests", "golden_meta")
    for family in ("llama3", "llama4"):
        want = read_tensors(os.path.join(golden_meta, family, "hf"))
        for layout in sorted(n for n in os.listdir(os.path.join(golden_meta, family)) if n.startswith("meta")):
            made = os.path.join(shop, f"{family}-{layout}")
            drover("convert", os.path.join(golden_meta, family, layout), made)
            report.row(f"{family} {layout}", same_bits(want, read_tensors(made)), f"{len(want)} tensors")
        said = in_transformers(made, os.path.join(shop, "answer.json"), ids=[[1, 2, 3]])
        report.row(f"{family} {layout}: opens in transformers", not said or "high_freq_factor" in said, said or "silent")


def main():
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    report = Report()
    with workshop() as shop:
        for case in CASES:
            for name in SAVED:
                check(report, case, name, shop)
        meta(report, shop)
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
