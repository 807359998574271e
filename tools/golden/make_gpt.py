#!/usr/bin/env python3
"""Makes the golden files of GPT blocks: tiny random GPT-2 and MPT models with their logits, loss and gradients.

Each case is a directory OUT/NAME as make_golden.py describes it.

    python3 tools/golden/make_gpt.py tests/golden               all cases
    python3 tools/golden/make_gpt.py tests/golden gpt2-untied   only these
    python3 tools/golden/check_golden.py tests/golden           an independent look at the result

The files in tests/golden were made with Python 3.11.7, torch 2.15.0, transformers 5.24.0, safetensors 0.8.0. That transformers
always takes ALiBi's bias_max for 8 and a feed-forward of MPT for four times the width, whatever config.json says, so no
case says otherwise. Arithmetic is f32 on the CPU, one thread, eager attention.
"""
import argparse
import json
import os
import shutil
import zlib

import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel, MptConfig, MptForCausalLM
from transformers.utils import logging

from make_golden import ROWS, run

# What a case does not say comes from here. No width is a power of two where that is cheap: padding bugs show.
GPT2 = dict(vocab_size=67, n_embd=32, n_layer=2, n_head=4, n_positions=40, bos_token_id=0, eos_token_id=0,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
MPT = dict(vocab_size=65, d_model=32, n_layers=2, n_heads=4, max_seq_len=64)

# name: (model_type, tokens a row, fields); _shard: cut the weights into files of this size
CASES = {
    "gpt2-plain": ("gpt2", 24, dict()),
    # as many tokens as there are positions; a width of its own, exact GELU, an eps that shows when it is ignored
    "gpt2-inner": ("gpt2", 40, dict(n_inner=50, activation_function="gelu", layer_norm_epsilon=1e-2)),
    # scores as they are, three layers, odd widths, several files with an index
    "gpt2-unscaled": ("gpt2", 21, dict(n_embd=36, n_head=6, n_layer=3, vocab_size=71, scale_attn_weights=False, _shard="40KB")),
    "gpt2-untied": ("gpt2", 24, dict(tie_word_embeddings=False, activation_function="gelu_pytorch_tanh")),
    "mpt-plain": ("mpt", 24, dict()),
    # heads that are no power of two, longer than a tile of keys
    "mpt-six-heads": ("mpt", 50, dict(d_model=36, n_heads=6, vocab_size=69)),
    "mpt-scale": ("mpt", 30, dict(n_heads=2, n_layers=3, layer_norm_epsilon=1e-2, attn_config=dict(softmax_scale=0.4))),
}


def fill(model, gen):
    """Random weights under which every part of the model matters: sharp attention, biases that are seen."""
    for name, p in model.named_parameters():
        z = torch.randn(p.shape, generator=gen)
        if p.dim() == 1:
            p.data = 0.3 * z if name.endswith("bias") else 1 + 0.25 * z
        elif "wte" in name or "wpe" in name:
            p.data = 0.35 * z
        else:  # GPT-2's matrices are [in, out], all others [out, in]
            in_out = model.config.model_type == "gpt2" and "lm_head" not in name
            fan_in, out = (p.shape[0], p.shape[1]) if in_out else (p.shape[1], p.shape[0])
            gain = torch.ones(out)
            if "c_attn" in name or "Wqkv" in name:
                gain[:out // 3 * 2] = 1.6  # queries and keys
            p.data = z * (gain if in_out else gain[:, None]) / fan_in ** 0.5


def build(name):
    kind, n, fields = CASES[name]
    fields = {k: v for k, v in fields.items() if not k.startswith("_")}
    config, cls = (GPT2Config(**{**GPT2, **fields}), GPT2LMHeadModel) if kind == "gpt2" else (MptConfig(**{**MPT, **fields}), MptForCausalLM)
    model = cls._from_config(config, attn_implementation="eager").float().eval()
    gen = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    fill(model, gen)
    ids = torch.randint(0, config.vocab_size, (ROWS, n), generator=gen)
    return model, ids, *run(model, ids)[:3]


def make(out_dir, name):
    model, ids, logits, loss, grads = build(name)
    path = os.path.join(out_dir, name)
    shutil.rmtree(path, ignore_errors=True)
    shard = CASES[name][2].get("_shard")
    model.save_pretrained(path, **({"max_shard_size": shard} if shard else {}))
    with open(os.path.join(path, "ids.json"), "w") as f:
        json.dump({"ids": ids.tolist()}, f)
        f.write("\n")
    tensors = {"logits": logits, "loss": loss, **{"grad." + k: v for k, v in grads.items()}}
    save_file({k: v.contiguous() for k, v in tensors.items()}, os.path.join(path, "expected.safetensors"))
    again = type(model).from_pretrained(path, attn_implementation="eager", dtype=torch.float32).eval()
    assert torch.equal(run(again, ids)[0], logits), name  # what was saved is the model that was run
    for f in os.listdir(path):
        os.chmod(os.path.join(path, f), 0o644)
    size = sum(os.path.getsize(os.path.join(path, f)) for f in os.listdir(path))
    zero = [k for k, v in grads.items() if not v.abs().max() > 0]
    print(f"{name:26s} loss {loss.item():.4f}  logits std {logits.std():.2f} max {logits.abs().max():.1f}  "
          f"{size / 1024:.0f} KB{'  zero gradient: ' + ' '.join(zero) if zero else ''}")
    return size


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("out", help="directory that gets one directory a case")
    ap.add_argument("case", nargs="*", choices=[*CASES, []], help="only these cases")
    args = ap.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    total = sum(make(args.out, name) for name in (args.case or CASES))
    print(f"{total / 1024:.0f} KB in all")


if __name__ == "__main__":
    main()
