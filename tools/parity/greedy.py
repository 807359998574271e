#!/usr/bin/env python3
"""A trained model goes on with the same tokens in drover and in transformers: greedy decoding in f32, 200 tokens each.
The model is that of `make run` when there is one, else a small one of the same kind, trained here in a moment."""
import json
import os
import sys

from common import ROOT, Report, drover, in_transformers, workshop

N = 200
PROMPTS = ["/* ", "#ifndef ", "static inline int "]


def model(shop):
    run = os.path.join(ROOT, "runs", "main")
    if os.path.exists(os.path.join(run, "ckpt", "latest")):
        print(f"  the model of make run: {run}")
    else:
        print("  no model of make run is there; training a quick one on the sources")
        run = os.path.join(shop, "run")
        file = os.path.join(shop, "run.yaml")
        with open(file, "w") as f:
            f.write("name: quick\n")
        drover("train", file, f"dir={run}", "model=llama4-nano", "tokenizer.train.vocab_size=1024", f"data={ROOT}/src/**/*.h",
               "train.steps=60", "train.batch=4", "train.seq=128", "train.lr=3e-3", "log.tensorboard=false", "train.val_batches=1")
    with open(os.path.join(run, "ckpt", "latest")) as f:
        return os.path.join(run, "ckpt", f.readline().strip())


def ours(path, prompt):
    made = json.loads(drover("generate", path, "--prompt", prompt, "--max-tokens", N, "--temperature", 0, "--dtype", "f32", "--json"))
    return made["samples"][0]["ids"]


def main():
    report = Report()
    with workshop() as shop:
        path, answer = model(shop), os.path.join(shop, "answer.json")
        in_transformers(path, answer, texts=PROMPTS)
        with open(answer) as f:
            prompts = json.load(f)["with_bos"]
        for text, ids in zip(PROMPTS, prompts):
            a = ours(path, text)
            said = in_transformers(path, answer, dtype="float32", generate={"ids": ids, "n": N})
            with open(answer) as f:
                b = json.load(f)["made"]
            same = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
            whole = a == b or (same == len(a) and len(b) == len(a) + 1)  # transformers keeps the token that ended it
            report.row(f"after {text!r}", whole and not said, f"{same} of {len(a)} tokens are the same{'; ' + said if said else ''}")
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
