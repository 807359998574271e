#!/usr/bin/env python3
"""Makes the same tiny random models in Hugging Face's layout and in Meta's, for the tests of src/weights.

    python3 tools/golden/make_meta.py tests/golden_meta

For each family a directory with
  hf/       config.json and model.safetensors, bf16
  meta1/    params.json and consolidated.00.pth
  meta2/    two files; Llama 4 here with the names of its other release: wqkv, fc1_weight, layer_norm_weight
  meta8/    eight
and small.pth, one file with every element type that torch.save writes, and expected.safetensors with the same tensors.

Made with Python 3.11.7, torch 2.15.0, safetensors 0.8.0. Random numbers only; nothing of any published model.
"""
import json
import os
import shutil
import sys

import torch
from safetensors.torch import save_file

HEADS, KV, HD = 8, 8, 4
DIM = HEADS * HD
VOCAB = 24
EXPERTS = 3


def width(multiplier, multiple, divisor=1):
    h = int(2 * (4 * DIM) / 3)
    h = int(int(multiplier * h) / divisor)
    return (h + multiple - 1) // multiple * multiple


def rand(gen, *shape):
    return torch.randn(shape, generator=gen).to(torch.bfloat16)


def to_neighbours(w, heads):
    """Rows of q or k from Hugging Face's order (halves) to Meta's (neighbours)."""
    return w.view(heads, 2, HD // 2, DIM).transpose(1, 2).reshape(heads * HD, DIM)


def attention(t, gen, i):
    p = f"model.layers.{i}."
    t[p + "input_layernorm.weight"] = rand(gen, DIM)
    t[p + "post_attention_layernorm.weight"] = rand(gen, DIM)
    for name, rows in ("q", HEADS * HD), ("k", KV * HD), ("v", KV * HD):
        t[p + f"self_attn.{name}_proj.weight"] = rand(gen, rows, DIM)
    t[p + "self_attn.o_proj.weight"] = rand(gen, DIM, HEADS * HD)


def dense(t, gen, p, f):
    t[p + "gate_proj.weight"], t[p + "up_proj.weight"] = rand(gen, f, DIM), rand(gen, f, DIM)
    t[p + "down_proj.weight"] = rand(gen, DIM, f)


def outside(t, gen, tied=False):
    t["model.embed_tokens.weight"], t["model.norm.weight"] = rand(gen, VOCAB, DIM), rand(gen, DIM)
    if not tied:
        t["lm_head.weight"] = rand(gen, VOCAB, DIM)


def llama3():
    gen, t, f, layers = torch.Generator().manual_seed(3), {}, width(0.4, 16), 1
    outside(t, gen)
    for i in range(layers):
        attention(t, gen, i)
        dense(t, gen, f"model.layers.{i}.mlp.", f)
    config = dict(model_type="llama", vocab_size=VOCAB, hidden_size=DIM, num_hidden_layers=layers, intermediate_size=f,
                  num_attention_heads=HEADS, num_key_value_heads=KV, head_dim=HD, rms_norm_eps=1e-5, rope_theta=500000.0,
                  max_position_embeddings=131072, tie_word_embeddings=False, torch_dtype="bfloat16",
                  rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                    original_max_position_embeddings=8192))
    params = dict(dim=DIM, n_layers=layers, n_heads=HEADS, n_kv_heads=KV, vocab_size=VOCAB, ffn_dim_multiplier=0.4,
                  multiple_of=16, norm_eps=1e-5, rope_theta=500000.0, use_scaled_rope=True)
    return t, config, params


def llama4():
    gen, t = torch.Generator().manual_seed(4), {}
    f, fe, layers = width(0.4, 16), width(0.4, 16, 2), 2
    outside(t, gen)
    for i in range(layers):
        attention(t, gen, i)
        p = f"model.layers.{i}.feed_forward."
        if (i + 1) % 2:
            dense(t, gen, p, f)
            continue
        t[p + "router.weight"] = rand(gen, EXPERTS, DIM)
        t[p + "experts.gate_up_proj"] = rand(gen, EXPERTS, DIM, 2 * fe)
        t[p + "experts.down_proj"] = rand(gen, EXPERTS, fe, DIM)
        dense(t, gen, p + "shared_expert.", fe)
    config = dict(model_type="llama4_text", vocab_size=VOCAB, hidden_size=DIM, num_hidden_layers=layers, intermediate_size=fe,
                  intermediate_size_mlp=f, num_attention_heads=HEADS, num_key_value_heads=KV, head_dim=HD, rms_norm_eps=1e-5,
                  num_local_experts=EXPERTS, num_experts_per_tok=1, interleave_moe_layer_step=2, no_rope_layer_interval=4,
                  attention_chunk_size=8192, use_qk_norm=True, attn_temperature_tuning=4, floor_scale=8192, attn_scale=0.1,
                  rope_theta=500000.0, max_position_embeddings=10485760, tie_word_embeddings=False, torch_dtype="bfloat16",
                  rope_scaling=dict(rope_type="llama3", factor=16.0, low_freq_factor=1.0, high_freq_factor=1.0,
                                    original_max_position_embeddings=8192))
    params = dict(dim=DIM, n_layers=layers, n_heads=HEADS, n_kv_heads=KV, vocab_size=VOCAB, ffn_exp=4.0, ffn_dim_multiplier=0.4,
                  multiple_of=16, norm_eps=1e-5, rope_theta=500000, use_scaled_rope=True, rope_scaling_factor=16.0,
                  rope_high_freq_factor=1.0, nope_layer_interval=4, use_qk_norm=True, attention_chunk_size=8192,
                  moe_args=dict(num_experts=EXPERTS, capacity_factor=1.0, auto_scale_F=True, top_k=1, interleave_moe_layer_step=2))
    return t, config, params


def cut(w, n, i, dim):
    return w.chunk(n, dim)[i].clone() if n > 1 else w


def shard_attention(out, t, n, i, layer, llama4, fused):
    p, m = f"model.layers.{layer}.", f"layers.{layer}."
    q, k, v = (t[p + f"self_attn.{x}_proj.weight"] for x in "qkv")
    if not llama4:
        q, k = to_neighbours(q, HEADS), to_neighbours(k, KV)
    parts = [cut(x, n, i, 0) for x in (q, k, v)]
    if fused:
        out[m + "attention.wqkv.weight"] = torch.cat(parts)
    else:
        for x, part in zip("qkv", parts):
            out[m + f"attention.w{x}.weight"] = part
    out[m + "attention.wo.weight"] = cut(t[p + "self_attn.o_proj.weight"], n, i, 1)
    out[m + ("attention.wqkv.layer_norm_weight" if fused else "attention_norm.weight")] = t[p + "input_layernorm.weight"]


def shard_dense(out, t, n, i, p, m, fused):
    gate, up = cut(t[p + "gate_proj.weight"], n, i, 0), cut(t[p + "up_proj.weight"], n, i, 0)
    down = cut(t[p + "down_proj.weight"], n, i, 1)
    if fused:
        out[m + "mlp.fc1_weight"], out[m + "mlp.fc2_weight"] = torch.cat([gate, up]), down
    else:
        out[m + "w1.weight"], out[m + "w3.weight"], out[m + "w2.weight"] = gate, up, down


def shard_experts(out, t, n, i, p, m):
    gate, up = t[p + "experts.gate_up_proj"].chunk(2, 2)
    flat = lambda x: x.reshape(-1, x.shape[2]).clone()  # [experts x in, out]
    out[m + "experts.moe_w_in_eD_F"] = flat(cut(gate, n, i, 2))
    out[m + "experts.moe_w_swiglu_eD_F"] = flat(cut(up, n, i, 2))
    out[m + "experts.moe_w_out_eF_D"] = flat(cut(t[p + "experts.down_proj"], n, i, 1))
    out[m + "router_DE"] = t[p + "router.weight"].t().contiguous()
    out[m + "w_in_shared_FD.weight"] = cut(t[p + "shared_expert.gate_proj.weight"], n, i, 0)
    out[m + "w_swiglu_FD.weight"] = cut(t[p + "shared_expert.up_proj.weight"], n, i, 0)
    out[m + "w_out_shared_DF.weight"] = cut(t[p + "shared_expert.down_proj.weight"], n, i, 1)
    out[m + "running_gate_stats_3E"] = torch.zeros(3, EXPERTS)  # statistics that nothing reads


def shard(t, n, i, llama4, fused):
    out = {"tok_embeddings.weight": cut(t["model.embed_tokens.weight"], n, i, 0), "norm.weight": t["model.norm.weight"],
           "output.weight": cut(t["lm_head.weight"], n, i, 0)}
    if not llama4:
        out["rope.freqs"] = torch.zeros(HD // 2)
    for layer in range(1 + llama4):
        p, m = f"model.layers.{layer}.", f"layers.{layer}."
        shard_attention(out, t, n, i, layer, llama4, fused)
        moe = p + "feed_forward.router.weight" in t
        norm = "ffn_norm" if not fused else "feed_forward.norm" if moe else None
        out[m + (norm + ".weight" if norm else "feed_forward.mlp.layer_norm_weight")] = t[p + "post_attention_layernorm.weight"]
        if moe:
            shard_experts(out, t, n, i, p + "feed_forward.", m + "feed_forward.")
        else:
            shard_dense(out, t, n, i, p + ("feed_forward." if llama4 else "mlp."), m + "feed_forward.", fused)
    return out


def write_json(path, what):
    with open(path, "w") as f:
        json.dump(what, f, indent=1)
        f.write("\n")


def family(out_dir, name, made):
    t, config, params = made
    hf = os.path.join(out_dir, name, "hf")
    os.makedirs(hf)
    save_file(t, os.path.join(hf, "model.safetensors"))
    write_json(os.path.join(hf, "config.json"), config)
    for n in 1, 2, 8:
        d = os.path.join(out_dir, name, f"meta{n}")
        os.makedirs(d)
        write_json(os.path.join(d, "params.json"), params)
        for i in range(n):
            torch.save(shard(t, n, i, name == "llama4", name == "llama4" and n == 2), os.path.join(d, f"consolidated.{i:02d}.pth"))


def small(out_dir):
    gen = torch.Generator().manual_seed(5)
    base = torch.randn((4, 6), generator=gen)
    t = {"f32": base, "bf16": base.to(torch.bfloat16), "f16": base.half(), "f64": base.double(), "i64": torch.arange(5),
         "i32": torch.arange(3, dtype=torch.int32), "i8": torch.tensor([-3, 4], dtype=torch.int8),
         "e4m3": base.to(torch.float8_e4m3fn), "e5m2": base.to(torch.float8_e5m2), "scalar": torch.tensor(2.5),
         "empty": torch.zeros(0, 3)}
    t["turned"], t["part"] = t["bf16"].t(), t["f32"][1:3, 2:5]  # views: strides, and a beginning inside a storage
    torch.save({**t, "parameter": torch.nn.Parameter(base[0])}, os.path.join(out_dir, "small.pth"))
    save_file({k: v.clone().contiguous() for k, v in {**t, "parameter": base[0]}.items()},
              os.path.join(out_dir, "expected.safetensors"))


def main():
    out_dir = sys.argv[1]
    shutil.rmtree(out_dir, ignore_errors=True)
    family(out_dir, "llama3", llama3())
    family(out_dir, "llama4", llama4())
    small(out_dir)


main()
