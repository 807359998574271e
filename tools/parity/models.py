#!/usr/bin/env python3
"""Random tiny Llama 3 and Llama 4 models: logits and every weight's gradient, drover beside transformers, in f32.

The cases cover every pair of choices below (norm of q and k, query temperature, chunks shorter than the text, where the
experts are, how many a token gets, scaling of the positions, tied head, heads); sizes and weights are random. SEED=N
in the environment repeats a run, CASES=N makes more of them.
"""
import itertools
import os
import random
import sys
import time

from common import Report, drover, f32, read_tensors, workshop, write_json
import make_golden as golden
import torch
from transformers.utils import logging

LOGITS_BAR, GRADIENT_BAR = 1e-4, 1e-3
AT_LEAST = 6  # of each family

CHOICES = {
    "llama": {
        "rope": ["default", "linear", "llama3"],
        "heads": ["mha", "gqa", "mqa"],
        "tied": [False, True],
        "head_dim": ["hidden/heads", "other"],
    },
    "llama4_text": {
        "qk_norm": [False, True],
        "temperature": [False, True],
        "chunk": ["none", "divides", "odd"],
        "layers": ["dense", "all moe", "every second", "list"],
        "top": [1, 2],
        "rope": ["default", "linear", "llama3", "llama3 no blend"],
        "nope": [2, 3, 0],
        "tied": [False, True],
    },
}


def pairs(case):
    return set(itertools.combinations(sorted(case.items(), key=str), 2))


def covering(choices, rng, at_least):
    """Cases such that any two values of two choices meet in one: each time the best of some random ones."""
    every = [dict(zip(choices, values)) for values in itertools.product(*choices.values())]
    left = set().union(*(pairs(c) for c in every))
    cases = []
    while left or len(cases) < at_least:
        best = max(rng.sample(every, min(200, len(every))), key=lambda c: len(pairs(c) & left))
        left -= pairs(best)
        cases.append(best)
    return cases


def rope(kind, head_dim, rng):
    theta = rng.choice([10000.0, 500000.0])
    if kind == "default":
        return {"rope_type": "default", "rope_theta": theta}
    if kind == "linear":
        return {"rope_type": "linear", "rope_theta": theta, "factor": rng.choice([2.0, 4.0, 7.5])}
    high = 1.0 if "no blend" in kind else rng.choice([4.0, 8.0])
    return golden.llama3_rope(rng.choice([4.0, 8.0, 16.0]), 1.0, high, rng.choice([32, 64, 128]), theta)


def fields_of(kind, case, rng):
    heads, head_dim = rng.choice([2, 4]), rng.choice([8, 12, 16])
    kv = {"mha": heads, "gqa": heads // 2, "mqa": 1}[case.get("heads", "gqa")]
    hidden = heads * head_dim
    if case.get("head_dim") == "other":
        head_dim += 4
    tokens = rng.randrange(24, 41)
    f = dict(hidden_size=hidden, num_attention_heads=heads, num_key_value_heads=max(kv, 1), head_dim=head_dim,
             vocab_size=rng.randrange(60, 90), intermediate_size=rng.randrange(7, 30), num_hidden_layers=rng.randrange(2, 4),
             rms_norm_eps=rng.choice([1e-5, 1e-6, 1e-3]), tie_word_embeddings=case["tied"],
             rope_parameters=rope(case["rope"], head_dim, rng))
    if kind == "llama":
        return tokens, f
    layers = f["num_hidden_layers"] = rng.randrange(2, 5)
    f["num_local_experts"] = rng.randrange(3, 7)
    f["num_experts_per_tok"] = case["top"]
    f["intermediate_size_mlp"] = rng.randrange(10, 40)
    f["interleave_moe_layer_step"] = 2 if case["layers"] == "every second" else 1
    if case["layers"] == "dense":
        f["moe_layers"] = []
    elif case["layers"] == "list":
        f["moe_layers"] = sorted(rng.sample(range(layers), max(1, layers // 2)))
    f["use_qk_norm"], f["attn_temperature_tuning"] = case["qk_norm"], case["temperature"]
    f["floor_scale"], f["attn_scale"] = rng.randrange(3, 9), rng.choice([0.1, 0.3])
    if case["nope"]:
        f["no_rope_layer_interval"] = case["nope"]
    else:
        f["no_rope_layers"] = [1] * layers
    f["attention_chunk_size"] = {"none": 8192, "divides": 8, "odd": rng.choice([7, 11])}[case["chunk"]]
    return (tokens // 8 * 8 if case["chunk"] == "divides" else tokens), f


def relative(ours, theirs):
    theirs = theirs.double()
    return ((torch.from_numpy(ours.copy()).double() - theirs).norm() / (theirs.norm() + 1e-8)).item()


def compare(kind, case, seed, shop):
    rng = random.Random(seed)
    tokens, fields = fields_of(kind, case, rng)
    model, ids, logits, loss, grads, _ = golden.build_model(kind, tokens, fields, seed)
    path = os.path.join(shop, str(seed))
    model.save_pretrained(path)
    request = write_json(os.path.join(path, "ids.json"), {"ids": ids.tolist()})
    out = os.path.join(shop, "out.safetensors")
    drover("logits", path, "--ids", request, "--out", out, "--dtype", "f32")
    ours = f32(read_tensors(out)["logits"])
    worst = (torch.from_numpy(ours.copy()) - logits).abs().max().item()
    drover("grads", path, "--ids", request, "--out", out)
    ours = read_tensors(out)
    missing = [n for n in grads if n not in ours]
    assert not missing, missing
    return worst, max((relative(f32(ours[n]), g), n) for n, g in grads.items()), abs(float(f32(ours["loss"])) - loss.item())


def main():
    seed = int(os.environ.get("SEED") or time.time_ns() // 1000 % 10 ** 9)
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    print(f"SEED={seed}; bars: logits {LOGITS_BAR:g} (largest difference), gradients {GRADIENT_BAR:g} (of the worst weight, relative to its norm)")
    print(f"  {'model':112s} logits   gradient loss     worst gradient's weight")
    report, n = Report(), 0
    with workshop() as shop:
        for kind, choices in CHOICES.items():
            for case in covering(choices, random.Random(seed), max(AT_LEAST, int(os.environ.get("CASES") or 0))):
                n += 1
                logits, (gradient, name), loss = compare(kind, case, seed + n, shop)
                good = logits <= LOGITS_BAR and gradient <= GRADIENT_BAR
                what = f"{n:3d} {kind:11s} " + " ".join(f"{k}={v}" for k, v in case.items())
                report.row(f"{what:112s}", good, f"{logits:.1e}  {gradient:.1e}  {loss:.1e}  {name}")
    print(f"{n - report.bad} of {n} models agree")
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
