#!/usr/bin/env python3
"""Checks the golden files with a second implementation of Llama 3, Llama 4 text, Grok-1, GPT-2 and MPT, in double precision.

Written from the description of the models, without transformers or JAX: token by token where that is plainest, nothing fused.
Angles of the rotary positions are formed in f32 as the reference does; all else is f64. Each case's logits, loss and
gradients (by autograd) must agree with expected.safetensors, and config.v4.json, where there is one, must mean the same.

    python3 tools/golden/check_golden.py tests/golden [CASE ...]

Needs numpy and torch (1.13 or newer). Exit code 0: all agree.
"""
import json
import math
import os
import sys

import numpy as np
import torch


def read_safetensors(path):
    """f32 file -> {name: f64 tensor}. 8 bytes of header length, JSON header, data."""
    with open(path, "rb") as f:
        raw = f.read()
    n = int.from_bytes(raw[:8], "little")
    out = {}
    for name, t in json.loads(raw[8:8 + n]).items():
        if name != "__metadata__":
            assert t["dtype"] == "F32", (path, name, t["dtype"])
            a, b = t["data_offsets"]
            out[name] = torch.from_numpy(np.frombuffer(raw[8 + n + a:8 + n + b], "<f4").astype("f8").reshape(t["shape"]))
    return out


def read_model(path):
    index = os.path.join(path, "model.safetensors.index.json")
    files = ["model.safetensors"]
    if os.path.exists(index):
        with open(index) as f:
            where = json.load(f)["weight_map"]
        files = sorted(set(where.values()))
    weights = {}
    for name in files:
        weights.update(read_safetensors(os.path.join(path, name)))
    return weights


def rms(x, eps):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)


def frequencies(c):
    """f32 frequencies of the pairs of one head, from the new or the old spelling of the configuration."""
    rope = c.get("rope_parameters") or {"rope_theta": c["rope_theta"], **(c.get("rope_scaling") or {})}
    hd = c["head_dim"]
    f = np.float32(1) / np.float32(rope["rope_theta"]) ** (np.arange(0, hd, 2, dtype=np.float32) / np.float32(hd))
    kind = rope.get("rope_type", "default")
    if kind == "linear":
        f = f / np.float32(rope["factor"])
    if kind == "llama3":
        s, lo, hi, n = (rope[k] for k in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"))
        for j in range(len(f)):
            wave = 2 * math.pi / f[j]
            if wave > n / lo:
                f[j] /= s
            elif wave >= n / hi:
                t = (n / wave - lo) / (hi - lo)
                f[j] = (1 - t) * f[j] / s + t * f[j]
    return f


def rotate(x, freqs, interleaved):
    """x [tokens, heads, head_dim], row p at position p. Pairs (2j, 2j+1), or (j, j + head_dim/2)."""
    angle = np.arange(x.shape[0], dtype=np.float32)[:, None] * freqs[None]  # f32 product
    cos, sin = (torch.from_numpy(g(angle.astype("f8")))[:, None] for g in (np.cos, np.sin))
    half = x.shape[-1] // 2
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
    pair = (a * cos - b * sin, a * sin + b * cos)
    return torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)


def attend(q, k, v, chunk, scale=None, cap=0, slopes=None):
    """Token p of head h sees the keys from the start of its chunk (0 if no chunks) to p; kv head h / (heads / kv heads). A key
    d tokens before the query loses slope * d."""
    group, scale = q.shape[1] // k.shape[1], scale or 1 / math.sqrt(q.shape[-1])
    rows = []
    for p in range(q.shape[0]):
        start = p // chunk * chunk if chunk else 0
        heads = []
        for h in range(q.shape[1]):
            score = k[start:p + 1, h // group] @ q[p, h] * scale
            if cap:
                score = cap * torch.tanh(score / cap)
            if slopes:
                score = score - slopes[h] * torch.arange(p - start, -1, -1, dtype=torch.float64)
            heads.append(torch.softmax(score, 0) @ v[start:p + 1, h // group])
        rows.append(torch.cat(heads))
    return torch.stack(rows)


def swiglu(x, gate, up, down):
    """gate, up [in, ffn], down [ffn, out]"""
    g = x @ gate
    return (g * torch.sigmoid(g) * (x @ up)) @ down


def experts(x, w, name, top_k):
    """Sigmoid of the k highest router logits scales the input of those experts; plus the shared expert, unscaled."""
    logits = x @ w[name + "router.weight"].T
    packed, down = w[name + "experts.gate_up_proj"], w[name + "experts.down_proj"]
    ffn = down.shape[1]
    rows = []
    for p in range(x.shape[0]):
        y = swiglu(x[p], *(w[f"{name}shared_expert.{m}_proj.weight"].T for m in ("gate", "up", "down")))
        for e in sorted(range(packed.shape[0]), key=lambda i: -logits[p, i].item())[:top_k]:
            y = y + swiglu(x[p] * torch.sigmoid(logits[p, e]), packed[e][:, :ffn], packed[e][:, ffn:], down[e])
        rows.append(y)
    return torch.stack(rows)


class Plan:
    """What each layer does, from either spelling of the configuration."""

    def __init__(self, c):
        layers = range(c["num_hidden_layers"])
        self.llama4 = c["model_type"] == "llama4_text"
        self.rope, self.chunk, self.moe = [True] * len(layers), [0] * len(layers), [False] * len(layers)
        if self.llama4:
            every, step = c["no_rope_layer_interval"], c["interleave_moe_layer_step"]
            self.rope = [bool(r) for r in c.get("no_rope_layers") or [(i + 1) % every for i in layers]]
            kinds = c.get("layer_types") or ["chunked_attention" if r else "full_attention" for r in self.rope]
            self.chunk = [c["attention_chunk_size"] if k == "chunked_attention" else 0 for k in kinds]
            moe = c.get("moe_layers")
            self.moe = [(i in moe) if moe is not None else (i + 1) % step == 0 for i in layers]


def temperature(c, n):
    return torch.tensor([1 + c["attn_scale"] * math.log(1 + (p + 1) // c["floor_scale"]) for p in range(n)], dtype=torch.float64)


def forward(c, w, ids):
    """logits [n, vocab] of one row"""
    plan, freqs, eps, hd, n = Plan(c), frequencies(c), c["rms_norm_eps"], c["head_dim"], len(ids)
    h = w["model.embed_tokens.weight"][ids]
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}."
        a = rms(h, eps) * w[at + "input_layernorm.weight"]
        q, k, v = ((a @ w[f"{at}self_attn.{m}_proj.weight"].T).view(n, -1, hd) for m in "qkv")
        if plan.rope[i]:
            q, k = rotate(q, freqs, plan.llama4), rotate(k, freqs, plan.llama4)
            if plan.llama4 and c["use_qk_norm"]:
                q, k = rms(q, eps), rms(k, eps)
        elif c["attn_temperature_tuning"]:
            q = q * temperature(c, n)[:, None, None]
        h = h + attend(q, k, v, plan.chunk[i]) @ w[at + "self_attn.o_proj.weight"].T
        b = rms(h, eps) * w[at + "post_attention_layernorm.weight"]
        if plan.moe[i]:
            h = h + experts(b, w, at + "feed_forward.", c["num_experts_per_tok"])
        else:
            ff = at + ("feed_forward." if plan.llama4 else "mlp.")
            h = h + swiglu(b, *(w[f"{ff}{m}_proj.weight"].T for m in ("gate", "up", "down")))
    head = w["model.embed_tokens.weight" if c["tie_word_embeddings"] else "lm_head.weight"]
    return (rms(h, eps) * w["model.norm.weight"]) @ head.T


def geglu_experts(x, w, name, top_k, cap):
    """The k experts of highest probability, of all experts' softmax, each output times its probability."""
    logits = x @ w[name + "gate.weight"].T
    if cap:
        logits = cap * torch.tanh(logits / cap)
    prob = torch.softmax(logits, -1)
    rows = []
    for p in range(x.shape[0]):
        y = 0
        for e in sorted(range(prob.shape[1]), key=lambda i: -prob[p, i].item())[:top_k]:
            gate, up, down = (w[f"{name}experts.{e}.{m}.weight"] for m in ("linear", "linear_v", "linear_1"))
            g = gate @ x[p]
            gelu = g / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (g + 0.044715 * g ** 3)))
            y = y + prob[p, e] * (down @ (gelu * (up @ x[p])))
        rows.append(y)
    return torch.stack(rows)


def forward_grok1(c, w, ids):
    """logits [n, vocab] of one row"""
    freqs, eps, n, head = frequencies(c), c["rms_norm_eps"], len(ids), w["model.embed_tokens.weight"]
    h = head[ids] * c["embedding_multiplier_scale"]
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}."
        a = rms(h, eps) * w[at + "pre_attn_norm.scale"]
        q, k, v = ((a @ w[f"{at}attn.{m}_proj.weight"].T).view(n, -1, c["head_dim"]) for m in "qkv")
        q, k = rotate(q, freqs, False), rotate(k, freqs, False)
        o = attend(q, k, v, 0, c["attn_output_multiplier"], c["max_attn_value"]) @ w[at + "attn.o_proj.weight"].T
        h = h + rms(o, eps) * w[at + "post_attn_norm.scale"]
        b = rms(h, eps) * w[at + "pre_moe_norm.scale"]
        m = geglu_experts(b, w, at + "moe_block.", c["num_experts_per_tok"], c.get("router_logit_softcapping", 0))
        h = h + rms(m, eps) * w[at + "post_moe_norm.scale"]
    return (rms(h, eps) * w["model.norm.scale"]) @ head.T * c["output_multiplier_scale"]


def layer_norm(x, w, name, eps):
    x = x - x.mean(-1, keepdim=True)
    y = x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * w[name + ".weight"]
    return y + w[name + ".bias"] if name + ".bias" in w else y


def gelu(x, tanh):
    share = 1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)) if tanh else torch.erfc(-x / math.sqrt(2))
    return x / 2 * share


def forward_gpt2(c, w, ids):
    """logits [n, vocab] of one row; matrices are [in, out]"""
    eps, n, heads, wte = c["layer_norm_epsilon"], len(ids), c["n_head"], w["transformer.wte.weight"]
    tanh = c["activation_function"] != "gelu"
    scale = None if c["scale_attn_weights"] else 1.0
    h = wte[ids] + w["transformer.wpe.weight"][:n]
    for i in range(c["n_layer"]):
        at = f"transformer.h.{i}."
        linear = lambda x, name: x @ w[f"{at}{name}.weight"] + w[f"{at}{name}.bias"]
        q, k, v = (t.view(n, heads, -1) for t in linear(layer_norm(h, w, at + "ln_1", eps), "attn.c_attn").chunk(3, -1))
        h = h + linear(attend(q, k, v, 0, scale), "attn.c_proj")
        h = h + linear(gelu(linear(layer_norm(h, w, at + "ln_2", eps), "mlp.c_fc"), tanh), "mlp.c_proj")
    return layer_norm(h, w, "transformer.ln_f", eps) @ (wte if c["tie_word_embeddings"] else w["lm_head.weight"]).T


def alibi_slopes(heads):
    """Press, Smith and Lewis: of a power of two a geometric series down to 2^-8; else that of the power below, then every
    second one of that above."""
    below = 2 ** int(math.log2(heads))
    series = lambda n: [2 ** (-8 * (i + 1) / n) for i in range(n)]
    return series(below) + series(2 * below)[0::2][:heads - below]


def forward_mpt(c, w, ids):
    """logits [n, vocab] of one row; no biases"""
    eps, n, heads, wte = c["layer_norm_epsilon"], len(ids), c["n_heads"], w["transformer.wte.weight"]
    slopes, h = alibi_slopes(heads), wte[ids]
    for i in range(c["n_layers"]):
        at = f"transformer.blocks.{i}."
        linear = lambda x, name: x @ w[f"{at}{name}.weight"].T
        q, k, v = (t.view(n, heads, -1) for t in linear(layer_norm(h, w, at + "norm_1", eps), "attn.Wqkv").chunk(3, -1))
        h = h + linear(attend(q, k, v, 0, c["attn_config"]["softmax_scale"], 0, slopes), "attn.out_proj")
        h = h + linear(gelu(linear(layer_norm(h, w, at + "norm_2", eps), "ffn.up_proj"), False), "ffn.down_proj")
    return layer_norm(h, w, "transformer.norm_f", eps) @ wte.T


FORWARD = {"grok-1": forward_grok1, "gpt2": forward_gpt2, "mpt": forward_mpt}


def check(path):
    """-> largest differences of logits, loss and gradients (relative to the largest entry of that gradient)"""
    with open(os.path.join(path, "ids.json")) as f:
        rows = json.load(f)["ids"]
    want = read_safetensors(os.path.join(path, "expected.safetensors"))
    weights = {k: t.requires_grad_() for k, t in read_model(path).items()}
    assert {"grad." + k for k in weights} == {k for k in want if k.startswith("grad.")}, "weights and gradients have other names"
    worst = [0.0, 0.0, 0.0]
    for name in ("config.json", "config.v4.json"):
        if not os.path.exists(os.path.join(path, name)):
            continue
        with open(os.path.join(path, name)) as f:
            config = json.load(f)
        run = FORWARD.get(config["model_type"], forward)
        logits = torch.stack([run(config, weights, ids) for ids in rows])
        labels = torch.tensor([ids[1:] for ids in rows])
        loss = -torch.log_softmax(logits[:, :-1], -1).gather(-1, labels[..., None]).mean()
        grads = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        grads = [torch.zeros_like(w) if g is None else g for w, g in zip(weights.values(), grads)]  # an expert without tokens
        relative = [(g - want["grad." + k]).abs().max() / max(g.abs().max(), 1e-12) for k, g in zip(weights, grads)]
        found = [(logits - want["logits"]).abs().max().item(), (loss - want["loss"]).abs().item(), torch.stack(relative).max().item()]
        worst = [max(a, b) if math.isfinite(b) else math.inf for a, b in zip(worst, found)]
    return worst


def main():
    root, names = sys.argv[1], sys.argv[2:]
    names = names or sorted(d for d in os.listdir(root) if os.path.exists(os.path.join(root, d, "expected.safetensors")))
    bad = 0
    for name in names:
        logits, loss, grad = check(os.path.join(root, name))
        ok = logits < 1e-4 and loss < 1e-5 and grad < 1e-4
        bad += not ok
        print(f"{name:26s} logits {logits:.1e}  loss {loss:.1e}  gradients {grad:.1e}  {'ok' if ok else 'DIFFERS'}")
    print(f"{len(names) - bad} of {len(names)} cases agree")
    return 1 if bad or not names else 0


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    sys.exit(main())
