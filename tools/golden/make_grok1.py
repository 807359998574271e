#!/usr/bin/env python3
"""Makes Grok-1's golden files: tiny random models run by xAI's own published code in JAX.

Each case is a directory OUT/NAME as make_golden.py describes it: config.json and model.safetensors in the names and
the [out, in] orientation of the public Hugging Face conversion, ids.json, expected.safetensors.

    git clone https://github.com/xai-org/grok-1 && git -C grok-1 checkout 7050ed204b8206bb8645c7b7bbef7252f79561b0
    python3 tools/golden/make_grok1.py grok-1 tests/golden              all cases
    python3 tools/golden/make_grok1.py grok-1 tests/golden grok1-mqa    only these
    python3 tools/golden/check_golden.py tests/golden                   an independent look at the result

The files in tests/golden were made with that commit, Python 3.11.7, jax 0.4.25, jaxlib 0.4.25, dm-haiku 0.0.12,
numpy 1.26.4, scipy 1.12.0, safetensors 0.8.0, on the CPU.

The released model.py is loaded as it is. It computes in bf16, and its mixture of experts only with quantised weights and
8 experts; so that it computes in f32 with any number of them,
  - fprop_dtype is float32;
  - the module's name jnp stands for jax.numpy with bfloat16 = float32 (MoELayer casts its result and the scores to bf16);
  - expert weights are QuantizedWeight8bit(weight f32, scales f32 all 1), as without scales MoELayer returns its input;
  - the module's jax.nn.one_hot(x, 8), which picks the experts' outputs, takes the number of experts for 8;
  - the mesh is one device.
grok1-router-cap is not the released code: there the router's logits go through cap * tanh(logits / cap), as in other
ports, before the softmax.
"""
import argparse
import importlib.util
import json
import os
import shutil
import sys
import zlib

os.environ["JAX_PLATFORMS"] = "cpu"
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

ROWS = 2
MIN_GAP = 1e-3  # in probability, between the last expert chosen and the first one not chosen: no rounding may change the choice

# What a case does not say comes from here. The code fixes cap 30, eps 1e-5 and theta 10000, and makes widths of experts
# multiples of 8 by its rule (ffn = 2/3 widening * emb).
BASE = dict(vocab=67, emb=32, ffn=8, layers=2, heads=4, kv_heads=2, head_dim=8, experts=8, top=2, scale=8 ** -0.5,
            embed_by=32 ** 0.5, logits_by=3 ** -0.5, tokens=24, router_cap=0.0, gain=1.6)
CASES = {
    "grok1-gqa": dict(),
    # two experts of four; one would leave the router's gradient to rounding, as the norm behind cancels a common factor
    "grok1-mha": dict(kv_heads=4, experts=4, vocab=65, tokens=21),
    # all heads share a key head; three experts of six; other multipliers
    "grok1-mqa-top3": dict(emb=24, heads=3, kv_heads=1, experts=6, top=3, vocab=71, embed_by=3.5, logits_by=1.25),
    # scores far beyond the cap: a missing or misplaced one shows; longer than a tile of keys
    "grok1-cap": dict(scale=4.0, gain=2.0, experts=4, tokens=50),
    # heads * head_dim is one and a half times the width; a score factor that is not 1/sqrt(head_dim)
    "grok1-head-dim": dict(head_dim=12, scale=0.45, experts=4, ffn=16, vocab=69, layers=3),
    # ten tokens in all: an expert gets none
    "grok1-idle-expert": dict(tokens=5, vocab=66, idle=True),
    "grok1-router-cap": dict(router_cap=0.8, experts=5, vocab=63),
}


class View:
    """A module with some names replaced."""

    def __init__(self, module, **replaced):
        self.__dict__.update(replaced)
        self._module = module

    def __getattr__(self, name):
        return getattr(self._module, name)


def load_release(checkout):
    spec = importlib.util.spec_from_file_location("grok1_model", os.path.join(checkout, "model.py"))
    release = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = release  # its dataclasses look themselves up
    spec.loader.exec_module(release)
    release.jnp = View(jnp, bfloat16=jnp.float32)
    return release


class Model:
    """One case: the released model in f32, its weights as a haiku dictionary."""

    def __init__(self, release, c):
        self.release, self.c = release, c
        release.jax = View(jax, nn=View(jax.nn, one_hot=self.one_hot))
        self.mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
        widening = next(w / 64 for w in range(1, 4096) if release.ffn_size(c["emb"], w / 64) == c["ffn"])
        config = release.LanguageModelConfig(
            vocab_size=c["vocab"], pad_token=0, eos_token=2, sequence_len=256, fprop_dtype=jnp.float32,
            embedding_multiplier_scale=c["embed_by"], output_multiplier_scale=c["logits_by"],
            model=release.TransformerConfig(
                emb_size=c["emb"], key_size=c["head_dim"], num_q_heads=c["heads"], num_kv_heads=c["kv_heads"],
                num_layers=c["layers"], widening_factor=widening, attn_output_multiplier=c["scale"],
                num_experts=c["experts"], num_selected_experts=c["top"]))
        self.probabilities = []
        self.forward = hk.without_apply_rng(hk.transform(lambda ids: config.make(mesh=self.mesh)(ids).logits))
        self.watch()
        self.run, self.slopes = jax.jit(self.logits_and_probabilities), jax.jit(jax.value_and_grad(self.loss))
        self.shapes = jax.eval_shape(self.forward.init, jax.random.PRNGKey(0), jnp.ones((ROWS, 3), jnp.int32))

    def one_hot(self, x, n, axis=-1):
        assert n == 8
        return jax.nn.one_hot(x, self.c["experts"], axis=axis)

    def watch(self):
        """Keeps the router's probabilities of a run; caps its logits where the case says so."""
        router, cap, kept = self.release.Router, self.c["router_cap"], self.probabilities
        if not hasattr(router, "released"):
            router.released = router._compute_routing_prob, router._router_weights
        compute, weights = router.released

        def capped(self, x, n, sharding=None):
            logits = weights(self, x, n, sharding=sharding)
            return cap * jnp.tanh(logits / cap) if cap else logits

        def watched(self, inputs, mask, n):
            out = compute(self, inputs, mask, n)
            kept.append(out[0].reshape(-1, n))
            return out

        router._router_weights, router._compute_routing_prob = capped, watched

    def random_weights(self, rng):
        """Random weights under which every part of the model matters: sharp attention, experts of unlike scores."""
        params = {}
        for module, leaves in self.shapes.items():
            for name, leaf in leaves.items():
                z = rng.standard_normal(leaf.shape).astype(np.float32)
                if name == "scale":
                    w = 1 + 0.25 * z
                elif name == "embeddings":
                    w = 0.35 * z
                else:  # [in, out]
                    gain = self.c["gain"] if module.rsplit("/", 1)[1] in ("query", "key", "router") else 1.0
                    w = z * (gain / leaf.shape[-2] ** 0.5)
                w = jnp.asarray(w, jnp.float32)
                if "/moe/" in module and "router" not in module:
                    w = self.release.QuantizedWeight8bit(w, jnp.ones((w.shape[0], 1, w.shape[2]), jnp.float32))
                params.setdefault(module, {})[name] = w
        return params

    def logits_and_probabilities(self, params, ids):
        self.probabilities.clear()
        logits = self.forward.apply(params, ids)
        assert len(self.probabilities) == self.c["layers"]
        return logits, list(self.probabilities)

    def loss(self, params, ids):
        logits = self.forward.apply(params, ids)[:, :-1]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), ids[:, 1:, None], -1)
        return -chosen.mean()


def published(c, params):
    """{name of the public conversion: array [out, in]} from haiku's dictionary; QuantizedWeight8bit by its weight."""
    def matrix(path):
        w = next(v for k, v in params.items() if k.endswith(path))["w"]
        return np.asarray(getattr(w, "weight", w)).swapaxes(-1, -2)

    def scale(path):
        return np.asarray(next(v for k, v in params.items() if k.endswith(path))["scale"])

    out = {"model.embed_tokens.weight": np.asarray(next(v for k, v in params.items() if k.endswith("in_out_embed"))["embeddings"]),
           "model.norm.scale": scale("language_model/rms_norm")}
    norms = ("pre_attn_norm", "post_attn_norm", "pre_moe_norm", "post_moe_norm")
    for i in range(c["layers"]):
        at, layer = f"model.layers.{i}.", f"decoder_layer_{i}/"
        for k, name in enumerate(norms):
            out[f"{at}{name}.scale"] = scale(f"{layer}rms_norm_{k}" if k else f"{layer}rms_norm")
        for name, theirs in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "linear")):
            out[f"{at}attn.{name}_proj.weight"] = matrix(f"{layer}multi_head_attention/{theirs}")
        out[at + "moe_block.gate.weight"] = matrix(layer + "router")
        for name in ("linear", "linear_v", "linear_1"):
            packed = matrix(f"{layer}moe/{name}")
            for e in range(c["experts"]):
                out[f"{at}moe_block.experts.{e}.{name}.weight"] = packed[e]
    return {k: np.ascontiguousarray(v) for k, v in out.items()}


def config_json(c):
    d = {"architectures": ["Grok1ModelForCausalLM"], "model_type": "grok-1", "vocab_size": c["vocab"], "hidden_size": c["emb"],
         "intermediate_size": c["ffn"], "num_hidden_layers": c["layers"], "num_attention_heads": c["heads"],
         "num_key_value_heads": c["kv_heads"], "head_dim": c["head_dim"], "num_experts": c["experts"],
         "num_experts_per_tok": c["top"], "attn_output_multiplier": c["scale"], "max_attn_value": 30.0,
         "embedding_multiplier_scale": c["embed_by"], "output_multiplier_scale": c["logits_by"],
         "max_position_embeddings": 256, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "tie_word_embeddings": True,
         "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32"}
    if c["router_cap"]:
        d["router_logit_softcapping"] = c["router_cap"]
    return d


def choose(model, name):
    """Weights and ids of the first seed whose choices of experts are all clear, and idle as ordered."""
    c, top = model.c, model.c["top"]
    for seed in range(2000):
        rng = np.random.default_rng(zlib.crc32(name.encode()) + seed)
        params = model.random_weights(rng)
        ids = jnp.asarray(rng.integers(1, c["vocab"], (ROWS, c["tokens"])), jnp.int32)  # 0 is padding to the released code
        logits, probabilities = model.run(params, ids)
        probabilities = [np.asarray(p) for p in probabilities]
        best = [np.sort(p)[:, ::-1] for p in probabilities]
        gap = min((b[:, top - 1] - b[:, top]).min() for b in best)
        idle = any(len(np.unique(np.argsort(-p)[:, :top])) < c["experts"] for p in probabilities)
        if gap >= MIN_GAP and idle == c.get("idle", False):
            return params, ids, np.asarray(logits), gap
    raise SystemExit(f"{name}: no seed gives such a choice of experts")


def make(release, out_dir, name):
    model = Model(release, {**BASE, **CASES[name]})
    params, ids, logits, gap = choose(model, name)
    loss, grads = model.slopes(params, ids)
    weights, grads = published(model.c, params), published(model.c, grads)
    assert sum(w.size for w in weights.values()) == sum(np.prod(s.shape) for m in model.shapes.values() for s in m.values())
    path = os.path.join(out_dir, name)
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(path)
    save_file(weights, os.path.join(path, "model.safetensors"), metadata={"format": "pt"})
    expected = {"logits": logits, "loss": np.asarray(loss), **{"grad." + k: g for k, g in grads.items()}}
    save_file(expected, os.path.join(path, "expected.safetensors"))
    for file, value in (("config.json", config_json(model.c)), ("ids.json", {"ids": np.asarray(ids).tolist()})):
        with open(os.path.join(path, file), "w") as f:
            json.dump(value, f, indent=2 if file == "config.json" else None)
            f.write("\n")
    size = sum(os.path.getsize(os.path.join(path, f)) for f in os.listdir(path))
    zero = [k for k, g in grads.items() if not np.abs(g).max() > 0]
    print(f"{name:20s} loss {float(loss):.4f}  logits std {logits.std():.2f} max {np.abs(logits).max():.1f}  expert gap {gap:.3g}  "
          f"{size / 1024:.0f} KB{'  zero gradient: ' + ' '.join(zero) if zero else ''}", flush=True)
    return size


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("checkout", help="directory with the released model.py")
    ap.add_argument("out", help="directory that gets one directory a case")
    ap.add_argument("case", nargs="*", choices=[*CASES, []], help="only these cases")
    args = ap.parse_args()
    release = load_release(args.checkout)
    total = sum(make(release, args.out, name) for name in (args.case or CASES))
    print(f"{total / 1024:.0f} KB in all")


if __name__ == "__main__":
    main()
