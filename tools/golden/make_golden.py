#!/usr/bin/env python3
"""Makes the golden files: tiny random Llama 3 and Llama 4 models with their logits, loss and gradients.

Each case is a directory OUT/NAME with the model as Hugging Face transformers saves it, and
  ids.json              {"ids": [[...], [...]]}, two rows of token ids
  expected.safetensors  f32: logits [rows, n, vocab]; loss, a scalar: the mean cross entropy of every next token of
                        both rows; grad.NAME, the gradient of that loss, for each weight by its name in the model file
  config.v4.json        (some cases) the same configuration in the field names of transformers 4 and of the released
                        checkpoints: rope_theta and rope_scaling instead of rope_parameters, no layer_types

    python3 tools/golden/make_golden.py tests/golden             all cases
    python3 tools/golden/make_golden.py tests/golden llama4-top2 only these
    python3 tools/golden/check_golden.py tests/golden            an independent look at the result

The files in tests/golden were made with Python 3.11.7, torch 2.15.0, transformers 5.23.0, safetensors 0.8.0; the cases
rope-linear and top2-interleave2 with transformers 5.24.0.
Do not use transformers 4.55.0 to 4.56.0: they multiply the experts' input by the scores of other tokens.
Arithmetic is f32 on the CPU, one thread, eager attention. Files made again with the same versions agree to rounding.
"""
import argparse
import json
import os
import shutil
import zlib

import torch
from safetensors.torch import save_file
from transformers import Llama4ForCausalLM, Llama4TextConfig, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

ROWS = 2
MIN_GAP = 5e-3  # between the last expert chosen and the first one not chosen: no rounding may change the choice


def llama3_rope(factor, low, high, original, theta):
    return {"rope_type": "llama3", "rope_theta": theta, "factor": factor, "low_freq_factor": low,
            "high_freq_factor": high, "original_max_position_embeddings": original}


# What a case does not say comes from here. Widths are no powers of two where that is cheap: padding bugs show.
LLAMA3 = dict(vocab_size=66, hidden_size=32, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4,
              num_key_value_heads=2, head_dim=8, max_position_embeddings=256, rms_norm_eps=1e-5,
              rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
LLAMA4 = dict(vocab_size=64, hidden_size=32, intermediate_size=7, intermediate_size_mlp=20, num_hidden_layers=2,
              num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=256, rms_norm_eps=1e-5,
              num_local_experts=4, num_experts_per_tok=1, interleave_moe_layer_step=1, no_rope_layer_interval=2,
              use_qk_norm=True, attn_temperature_tuning=False, attention_chunk_size=8192,
              rope_parameters={"rope_type": "default", "rope_theta": 500000.0})

TWO_HEADS = dict(num_attention_heads=2, num_key_value_heads=1)
DENSE = dict(**TWO_HEADS, moe_layers=[])  # where the experts are not the point
TEMPERATURE = dict(attn_temperature_tuning=True, floor_scale=4, attn_scale=0.1)  # > 1 from the 4th token on, not from the 8192nd
ROPE_3_1 = llama3_rope(factor=8.0, low=1.0, high=4.0, original=64, theta=500000.0)
ROPE_3_2 = llama3_rope(factor=32.0, low=1.0, high=4.0, original=64, theta=10000.0)
ROPE_OTHER = llama3_rope(factor=4.0, low=2.0, high=8.0, original=128, theta=10000.0)
ROPE_LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
ROPE_SCOUT = llama3_rope(factor=16.0, low=1.0, high=1.0, original=64, theta=500000.0)

# name: (model_type, tokens a row, fields). Fields that start with "_" are orders to this script: _v4, write config.v4.json;
# _shard, cut the weights into files of this size; _idle, look for a seed that leaves an expert without a token.
CASES = {
    "llama3-gqa": ("llama", 24, dict()),
    "llama3-tied": ("llama", 24, dict(tie_word_embeddings=True)),
    "llama3-mha": ("llama", 21, dict(num_key_value_heads=4, rms_norm_eps=1e-2)),  # an eps that shows when it is ignored
    "llama3-mqa": ("llama", 21, dict(num_key_value_heads=1)),
    # heads x head_dim is one and a half times the hidden size
    "llama3-head-dim": ("llama", 24, dict(head_dim=12)),
    # frequencies of every band: kept, blended, divided; the constants of 3.1, of 3.2, and none of the usual ones
    "llama3-rope-3.1": ("llama", 40, dict(**TWO_HEADS, head_dim=16, rope_parameters=ROPE_3_1, _v4=True)),
    "llama3-rope-3.2": ("llama", 40, dict(**TWO_HEADS, head_dim=16, rope_parameters=ROPE_3_2, tie_word_embeddings=True, _v4=True)),
    "llama3-rope-other": ("llama", 40, dict(**TWO_HEADS, head_dim=16, rope_parameters=ROPE_OTHER)),
    # all frequencies divided by the same factor
    "llama3-rope-linear": ("llama", 40, dict(**TWO_HEADS, head_dim=16, rope_parameters=ROPE_LINEAR, _v4=True)),
    # weights in several files with an index; odd widths
    "llama3-sharded": ("llama", 24, dict(hidden_size=36, num_attention_heads=6, num_key_value_heads=3, head_dim=6,
                                         intermediate_size=26, vocab_size=71, _shard="25KB")),

    "llama4-moe-top1": ("llama4_text", 24, dict()),
    "llama4-top2": ("llama4_text", 24, dict(num_local_experts=6, num_experts_per_tok=2)),
    # dense, MoE, dense
    "llama4-interleave2": ("llama4_text", 24, dict(num_hidden_layers=3, interleave_moe_layer_step=2)),
    # MoE, dense, MoE: the list beats the step
    "llama4-moe-list": ("llama4_text", 24, dict(num_hidden_layers=3, num_local_experts=3, interleave_moe_layer_step=2,
                                                moe_layers=[0, 2])),
    # ten tokens in all: an expert gets none
    "llama4-idle-expert": ("llama4_text", 5, dict(**TWO_HEADS, num_local_experts=6, moe_layers=[0], _idle=True)),
    "llama4-qk-norm-off": ("llama4_text", 24, dict(use_qk_norm=False)),
    # chunks that divide the text, and that do not; in the other cases the text does not fill one
    "llama4-chunk8": ("llama4_text", 32, dict(attention_chunk_size=8, moe_layers=[0])),
    "llama4-chunk7": ("llama4_text", 30, dict(attention_chunk_size=7, moe_layers=[1], use_qk_norm=False)),
    "llama4-temperature": ("llama4_text", 32, dict(**DENSE, **TEMPERATURE)),
    "llama4-temperature-strong": ("llama4_text", 30, dict(**DENSE, attn_temperature_tuning=True, floor_scale=5, attn_scale=0.5,
                                                          use_qk_norm=False)),
    # layers without positions: every 4th, every 2nd, the first
    "llama4-nope4": ("llama4_text", 30, dict(**DENSE, num_hidden_layers=4, no_rope_layer_interval=4, attention_chunk_size=8)),
    "llama4-nope2": ("llama4_text", 30, dict(**DENSE, num_hidden_layers=3, no_rope_layer_interval=2, attention_chunk_size=8,
                                            rms_norm_eps=1e-2)),
    "llama4-nope-list": ("llama4_text", 30, dict(**DENSE, **TEMPERATURE, num_hidden_layers=3, no_rope_layers=[0, 1, 1],
                                                 attention_chunk_size=9)),
    # low_freq_factor = high_freq_factor: nothing is blended, and the formula of the blend would divide zero by zero
    "llama4-rope-scaled": ("llama4_text", 40, dict(**DENSE, head_dim=16, rope_parameters=ROPE_SCOUT)),
    "llama4-rope-linear": ("llama4_text", 40, dict(**TWO_HEADS, **TEMPERATURE, head_dim=16, moe_layers=[1], attention_chunk_size=16,
                                                    rope_parameters=ROPE_LINEAR)),
    # two experts a token in every second layer of a tied model, with query temperature and chunks
    "llama4-top2-interleave2": ("llama4_text", 26, dict(**TWO_HEADS, **TEMPERATURE, num_hidden_layers=3, num_local_experts=5,
                                                       num_experts_per_tok=2, interleave_moe_layer_step=2, attention_chunk_size=10,
                                                       tie_word_embeddings=True)),
    # the dense relatives: positions and full causal attention in every layer
    "llama4-dense": ("llama4_text", 30, dict(moe_layers=[], no_rope_layers=[1, 1], layer_types=["full_attention"] * 2,
                                             use_qk_norm=False, attention_chunk_size=8, tie_word_embeddings=True)),
    # everything at once, as the released pair has it
    "llama4-scout": ("llama4_text", 30, dict(**TEMPERATURE, num_hidden_layers=4, no_rope_layer_interval=4,
                                             attention_chunk_size=8, rope_parameters=ROPE_SCOUT, _v4=True, _shard="60KB")),
    "llama4-maverick": ("llama4_text", 30, dict(**TEMPERATURE, num_hidden_layers=4, num_local_experts=5, use_qk_norm=False,
                                                interleave_moe_layer_step=2, no_rope_layer_interval=4,
                                                attention_chunk_size=8, _v4=True)),
}


def fill(model, gen):
    """Random weights under which every part of the model matters: sharp attention, experts of unlike scores."""
    for name, p in model.named_parameters():
        z = torch.randn(p.shape, generator=gen)
        if name.endswith("norm.weight"):
            p.data = 1 + 0.25 * z
        elif "embed_tokens" in name:
            p.data = z * (0.35 if model.config.tie_word_embeddings else 1.0)
        else:  # [out, in]; packed experts are [experts, in, out]
            fan_in = p.shape[1]
            gain = 1.6 if ("q_proj" in name or "k_proj" in name or "router" in name or "lm_head" in name) else 1.0
            p.data = z * (gain / fan_in ** 0.5)


def run(model, ids):
    """logits, loss, gradients; the smallest gap between a chosen and a not chosen expert; is an expert without a token."""
    gaps, idle = [float("inf")], [False]

    def watch(router, _inputs, out):
        v, order = out[1].detach().sort(-1, descending=True)
        gaps.append((v[:, router.top_k - 1] - v[:, router.top_k]).min().item())
        idle.append(len(order[:, :router.top_k].unique()) < router.num_experts)

    hooks = [m.register_forward_hook(watch) for m in model.modules() if type(m).__name__ == "Llama4Router"]
    model.zero_grad(set_to_none=True)
    out = model(input_ids=ids, labels=ids, use_cache=False)
    out.loss.backward()
    for h in hooks:
        h.remove()
    return out.logits.detach(), out.loss.detach(), {n: p.grad for n, p in model.named_parameters()}, min(gaps), any(idle)


def describe(model):
    """What each layer really does, read from the built model; and a check that config.json will say the same."""
    c, lines = model.config, []
    if c.model_type == "llama4_text":
        for i, layer in enumerate(model.model.layers):
            attn = layer.self_attn
            assert bool(attn.use_rope) == bool(c.no_rope_layers[i]) and layer.is_moe_layer == (i in c.moe_layers)
            assert hasattr(attn, "qk_norm") == bool(attn.use_rope and c.use_qk_norm)
            lines.append("{} {} {}{}{}".format(
                "rope" if attn.use_rope else "nope",
                f"chunk{c.attention_chunk_size}" if c.layer_types[i] == "chunked_attention" else "full",
                "moe" if layer.is_moe_layer else "dense",
                " qknorm" if hasattr(attn, "qk_norm") else "",
                " temp" if attn.attn_temperature_tuning and not attn.use_rope else ""))
    rope = c.rope_parameters
    if rope["rope_type"] == "llama3":
        base = 1.0 / rope["rope_theta"] ** (torch.arange(0, c.head_dim, 2).float() / c.head_dim)
        ratio = base / model.model.rotary_emb.inv_freq
        kept, divided = (ratio < 1.0001).sum().item(), (ratio > rope["factor"] * 0.9999).sum().item()
        blended = len(ratio) - kept - divided
        assert kept and divided and bool(blended) == (rope["high_freq_factor"] > rope["low_freq_factor"])
        lines.append(f"frequencies kept {kept} blended {blended} divided {divided}")
    return lines


def config_v4(c):
    """The configuration as transformers 4 and the released checkpoints write it."""
    d = json.loads(c.to_json_string())
    for key in ("rope_parameters", "dtype", "transformers_version", "layer_types"):
        d.pop(key, None)
    rope = dict(c.rope_parameters)
    d["rope_theta"] = rope.pop("rope_theta")
    d["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    d["torch_dtype"] = "float32"
    if "no_rope_layers" in d:
        d["no_rope_layers"] = []  # empty means: by no_rope_layer_interval
        del d["moe_layers"]       # absent means: by interleave_moe_layer_step
    return d


def build_model(kind, n, fields, first_seed, idle=None):
    """A model of this configuration with the first seed whose choices of experts are all clear; idle: whether an expert
    gets no token, None: either."""
    if kind == "llama":
        config, cls = LlamaConfig(**{**LLAMA3, **fields}), LlamaForCausalLM
    else:
        config, cls = Llama4TextConfig(**{**LLAMA4, **fields}), Llama4ForCausalLM
    model = cls._from_config(config, attn_implementation="eager").float().eval()
    for seed in range(first_seed, first_seed + 1000):
        gen = torch.Generator().manual_seed(seed)
        fill(model, gen)
        ids = torch.randint(0, config.vocab_size, (ROWS, n), generator=gen)
        logits, loss, grads, gap, is_idle = run(model, ids)
        if gap >= MIN_GAP and (idle is None or is_idle == idle):
            return model, ids, logits, loss, grads, gap
    raise SystemExit(f"{fields}: no seed gives such a choice of experts")


def build(name):
    kind, n, fields = CASES[name]
    opts = {k: v for k, v in fields.items() if k.startswith("_")}
    fields = {k: v for k, v in fields.items() if not k.startswith("_")}
    return *build_model(kind, n, fields, zlib.crc32(name.encode()), "_idle" in opts), opts


def make(out_dir, name):
    model, ids, logits, loss, grads, gap, opts = build(name)
    path = os.path.join(out_dir, name)
    shutil.rmtree(path, ignore_errors=True)
    model.save_pretrained(path, **({"max_shard_size": opts["_shard"]} if "_shard" in opts else {}))
    with open(os.path.join(path, "ids.json"), "w") as f:
        json.dump({"ids": ids.tolist()}, f)
        f.write("\n")
    tensors = {"logits": logits, "loss": loss, **{"grad." + k: v for k, v in grads.items()}}
    save_file({k: v.contiguous() for k, v in tensors.items()}, os.path.join(path, "expected.safetensors"))

    # What was saved must be the model that was run, and so must the older spelling of its configuration.
    again = type(model).from_pretrained(path, attn_implementation="eager", dtype=torch.float32).eval()
    assert torch.equal(run(again, ids)[0], logits), name
    if "_v4" in opts:
        old = config_v4(model.config)
        with open(os.path.join(path, "config.v4.json"), "w") as f:
            json.dump(old, f, indent=2, sort_keys=True)
            f.write("\n")
        twin = type(model)._from_config(type(model.config).from_dict(old), attn_implementation="eager").float().eval()
        twin.load_state_dict(model.state_dict())
        assert torch.equal(run(twin, ids)[0], logits), name

    for f in os.listdir(path):
        os.chmod(os.path.join(path, f), 0o644)
    size = sum(os.path.getsize(os.path.join(path, f)) for f in os.listdir(path))
    zero = [k for k, v in grads.items() if not v.abs().max() > 0]
    print(f"{name:26s} loss {loss.item():.4f}  logits std {logits.std():.2f} max {logits.abs().max():.1f}  "
          f"expert gap {gap:.3g}  {size / 1024:.0f} KB{'  zero gradient: ' + ' '.join(zero) if zero else ''}")
    for i, line in enumerate(describe(model)):
        print(f"    {i}: {line}" if not line.startswith("freq") else f"    {line}")
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
