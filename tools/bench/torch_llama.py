#!/usr/bin/env python3
"""How fast PyTorch trains on this machine's processor or GPU: the peer our own training speed is put beside.

A decoder of the Llama family with random weights on random tokens: RMS norm, rotary positions, grouped-query attention,
SwiGLU, cross entropy, gradient clipping, AdamW. With --moe the feed-forward of every layer is the one of Llama 4: a shared
expert beside routed ones, one of which is chosen by a sigmoid score that scales its input.

    OMP_NUM_THREADS=2 python3 tools/bench/torch_llama.py --config small            f32
    ... --config medium --dtype bf16      autocast: f32 weights, bf16 products
    ... --sdpa --compile                  torch 2: fused attention; generated and fused kernels (needs a C++ compiler)
    ... --device cuda --config 1b --dtype bf16 --sdpa     a GPU; AdamW in one kernel where torch has that
    ... --checkpoint                      layers are made again in the backward pass
    ... --json                            one line, for scripts

Works with torch 1.13 and later. Debian's python3-torch multiplies f32 matrices with whatever libblas.so.3 is: install
libopenblas0-openmp for it. With the reference BLAS it is 30 times slower, with libopenblas0-pthread (two pools of threads that
get into each other's way) by a third or more; the result names the library in "blas".

Floating-point operations a token: 6 for every weight that a token is multiplied by (all
matrices but the embedding; of the routed experts one) plus 6 x layers x seq x dim for causal attention, forward and backward.
"""
import time
START = time.perf_counter()
import argparse
import json
import re
import resource
import statistics
import sys
from collections import namedtuple

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

# tied: the head is the embedding; experts: routed ones of a layer, with --moe
Shape = namedtuple("Shape", "dim layers heads kv_heads ffn vocab seq batch tied experts", defaults=(False, 8))
CONFIGS = {
    "tiny": Shape(64, 2, 2, 1, 128, 256, 32, 2),
    "small": Shape(384, 6, 6, 2, 1024, 4096, 256, 16),
    "medium": Shape(768, 12, 12, 4, 2048, 32000, 512, 4),
    # Llama 3.2; a Llama 4 Scout of two layers, eight experts and an eighth of its vocabulary
    "1b": Shape(2048, 16, 32, 8, 8192, 128256, 8192, 1, True),
    "3b": Shape(3072, 28, 24, 8, 8192, 128256, 8192, 1, True),
    "scout": Shape(5120, 2, 40, 8, 8192, 25256, 8192, 1),
}
ROPE_THETA = 10000.0
EPS = 1e-5


def matrix(n_out, n_in, device):
    return nn.Parameter(torch.empty(n_out, n_in, device=device).normal_(std=0.02))


def rms_norm(x, weight):
    """Statistics in f32, result in the type of x."""
    wide = x.float()
    unit = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)
    return unit.to(x.dtype) * weight.to(x.dtype)


def rotate(x, cos, sin):
    """x [batch, heads, seq, head_dim]; element j turns with element j + head_dim/2."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class SwiGLU(nn.Module):
    def __init__(self, s, device):
        super().__init__()
        self.gate, self.up = (matrix(s.ffn, s.dim, device) for _ in range(2))
        self.down = matrix(s.dim, s.ffn, device)

    def forward(self, x):
        return F.linear(F.silu(F.linear(x, self.gate)) * F.linear(x, self.up), self.down)


class Experts(nn.Module):
    def __init__(self, s, device):
        super().__init__()
        self.experts = s.experts
        self.router = matrix(s.experts, s.dim, device)
        self.shared = SwiGLU(s, device)
        self.routed = nn.ModuleList([SwiGLU(s, device) for _ in range(s.experts)])

    def forward(self, x):
        rows = x.flatten(0, 1)
        best, expert = F.linear(rows, self.router).max(-1)
        scaled = rows * best.float().sigmoid().to(rows.dtype)[:, None]
        order = expert.argsort()  # rows of one expert side by side
        pieces = scaled[order].split(expert.bincount(minlength=self.experts).tolist())
        routed = torch.cat([net(piece) for net, piece in zip(self.routed, pieces)])
        shared = self.shared(rows)
        return shared.index_add(0, order, routed.to(shared.dtype)).view_as(x)


class Layer(nn.Module):
    def __init__(self, s, moe, sdpa, device):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim, self.sdpa = s.heads, s.kv_heads, s.dim // s.heads, sdpa
        self.norm_attn, self.norm_ffn = nn.Parameter(torch.ones(s.dim)), nn.Parameter(torch.ones(s.dim))
        self.q, self.o = (matrix(s.dim, s.dim, device) for _ in range(2))
        self.k, self.v = (matrix(s.kv_heads * self.head_dim, s.dim, device) for _ in range(2))
        self.ffn = Experts(s, device) if moe else SwiGLU(s, device)

    def attention(self, x, cos, sin, mask):
        batch, seq, dim = x.shape
        q, k, v = (F.linear(x, w).view(batch, seq, -1, self.head_dim).transpose(1, 2) for w in (self.q, self.k, self.v))
        cos, sin = cos.to(q.dtype), sin.to(q.dtype)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        group = self.heads // self.kv_heads
        if self.sdpa:
            k, v = (t.repeat_interleave(group, 1) for t in (k, v))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            # The query heads of one key-value head stand one below the other: one product, and nothing is copied.
            q = q.reshape(batch, self.kv_heads, group * seq, self.head_dim)
            score = (q @ k.transpose(2, 3) * self.head_dim ** -0.5).view(batch, self.kv_heads, group, seq, seq)
            prob = (score + mask).float().softmax(-1).to(v.dtype)
            y = prob.view(batch, self.kv_heads, group * seq, seq) @ v
        y = y.reshape(batch, self.heads, seq, self.head_dim).transpose(1, 2).reshape(batch, seq, dim)
        return F.linear(y, self.o)

    def forward(self, x, cos, sin, mask):
        x = x + self.attention(rms_norm(x, self.norm_attn), cos, sin, mask)
        return x + self.ffn(rms_norm(x, self.norm_ffn))


class Decoder(nn.Module):
    def __init__(self, s, moe, sdpa, checkpoint, device):
        super().__init__()
        self.checkpoint = checkpoint
        self.embedding = matrix(s.vocab, s.dim, device)
        self.head = self.embedding if s.tied else matrix(s.vocab, s.dim, device)
        self.layers = nn.ModuleList([Layer(s, moe, sdpa, device) for _ in range(s.layers)])
        self.norm = nn.Parameter(torch.ones(s.dim))
        head_dim = s.dim // s.heads
        turn = ROPE_THETA ** (-torch.arange(0, head_dim, 2).float() / head_dim)
        angle = torch.arange(s.seq).float()[:, None] * turn
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())
        self.register_buffer("mask", None if sdpa else torch.full((s.seq, s.seq), float("-inf")).triu(1))

    def forward(self, ids, labels):
        x = F.embedding(ids, self.embedding)
        for layer in self.layers:
            if self.checkpoint:
                x = torch.utils.checkpoint.checkpoint(layer, x, self.cos, self.sin, self.mask, use_reentrant=False)
            else:
                x = layer(x, self.cos, self.sin, self.mask)
        logits = F.linear(rms_norm(x, self.norm), self.head)
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


def blas_in_use():
    """The BLAS libraries in this process, as folder/file; torch's own builds have theirs inside."""
    with open("/proc/self/maps") as f:
        files = {line.split()[-1] for line in f if "/" in line}
    return sorted("/".join(f.split("/")[-2:]) for f in files if re.match(r"lib(open)?blas|libmkl|libblis", f.split("/")[-1]))


def multiplied_weights(model, s, moe):
    """Weights that one token is multiplied by."""
    n = sum(p.numel() for p in model.parameters() if p.dim() == 2) - (0 if s.tied else model.embedding.numel())
    return n - (s.layers * (s.experts - 1) * 3 * s.dim * s.ffn if moe else 0)


class Trainer:
    def __init__(self, args):
        torch.manual_seed(1)
        self.args, self.shape = args, CONFIGS[args.config]
        self.model = Decoder(self.shape, args.moe, args.sdpa, args.checkpoint, args.device).to(args.device)
        self.loss_of = torch.compile(self.model) if args.compile else self.model
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1,
                                           **({"fused": True} if args.device == "cuda" else {"foreach": args.foreach}))
        tokens = torch.randint(0, self.shape.vocab, (self.shape.batch, self.shape.seq + 1)).to(args.device)
        self.ids, self.labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step(self):
        """-> loss, seconds of (forward, backward, optimizer)"""
        now = time.perf_counter
        if self.args.device == "cuda":
            def now():
                torch.cuda.synchronize()
                return time.perf_counter()
        clock = [now()]
        with torch.set_grad_enabled(not self.args.forward_only), \
                torch.autocast(self.args.device, dtype=torch.bfloat16, enabled=self.args.dtype == "bf16"):
            loss = self.loss_of(self.ids, self.labels)
        clock.append(now())
        if not self.args.forward_only:
            loss.backward()
        clock.append(now())
        if not self.args.forward_only:
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        clock.append(now())
        return loss.item(), [b - a for a, b in zip(clock, clock[1:])]


def measure(args):
    trainer = Trainer(args)
    s, model = trainer.shape, trainer.model
    losses, parts = [], []
    for i in range(args.warmup + args.steps):
        loss, seconds = trainer.step()
        losses.append(loss)
        if i == 0:
            first_step_s = time.perf_counter() - START
        if i >= args.warmup:
            parts.append(seconds)
    whole = [sum(p) for p in parts]
    step_s = statistics.median(whole)
    weights = multiplied_weights(model, s, args.moe)
    flop = (6 * weights + 6 * s.layers * s.seq * s.dim) / (3 if args.forward_only else 1)
    tokens = s.batch * s.seq
    result = {
        "torch": torch.__version__, "config": args.config, "moe": args.moe, "dtype": args.dtype, "compile": args.compile,
        "sdpa": args.sdpa, "blas": ", ".join(blas_in_use()) or "built in", "threads": torch.get_num_threads(),
        "params": sum(p.numel() for p in model.parameters()),
        "active_matmul_params": weights, "tokens_per_step": tokens, "mflop_per_token": flop / 1e6,
        "step_s_median": step_s, "step_s_min": min(whole), "step_s_max": max(whole),
        **{name: statistics.median(col) for name, col in zip(("fwd_s", "bwd_s", "opt_s"), zip(*parts))},
        "tokens_per_s": tokens / step_s, "gflops": tokens * flop / step_s / 1e9, "first_step_s": first_step_s,
        "peak_gpu_mib": torch.cuda.max_memory_allocated() / 2**20 if args.device == "cuda" else 0,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "loss_first": losses[0], "loss_last": losses[-1],
    }
    if args.peak:
        result["pct_fp32_peak"] = 100 * result["gflops"] / args.peak
    return trainer, result


def show_profile(trainer):
    from torch.profiler import ProfilerActivity, profile
    with profile(activities=[ProfilerActivity.CPU]) as p:
        trainer.step()
    print(p.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=40))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--config", default="small", choices=CONFIGS)
    ap.add_argument("--dtype", default="fp32", choices=["fp32", "bf16"])
    ap.add_argument("--moe", action="store_true", help="shared expert and 8 routed ones, top-1")
    ap.add_argument("--steps", type=int, default=8, help="steps that are timed")
    ap.add_argument("--warmup", type=int, default=2, help="steps before them; with --compile the first one compiles")
    ap.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    ap.add_argument("--checkpoint", action="store_true", help="make layers again in the backward pass")
    ap.add_argument("--threads", type=int, default=0)
    ap.add_argument("--sdpa", action="store_true", help="scaled_dot_product_attention (torch 2)")
    ap.add_argument("--compile", action="store_true", help="torch.compile (torch 2 and a C++ compiler)")
    ap.add_argument("--foreach", action="store_true", help="AdamW over all tensors at once")
    ap.add_argument("--forward-only", action="store_true")
    ap.add_argument("--peak", type=float, default=0, metavar="GFLOPS", help="f32 peak of the machine: adds a percentage of it")
    ap.add_argument("--profile", action="store_true", help="then one more step, by operator")
    ap.add_argument("--show", action="store_true", help="how this torch was built, on stderr")
    ap.add_argument("--json", action="store_true")
    args = ap.parse_args()
    for option, place, name in (("sdpa", F, "scaled_dot_product_attention"), ("compile", torch, "compile")):
        if getattr(args, option) and not hasattr(place, name):
            ap.error(f"--{option} needs torch 2; this is torch {torch.__version__}")
    if args.device == "cuda" and not torch.cuda.is_available():
        ap.error("this torch sees no GPU")
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.show:
        print(torch.__config__.show(), torch.__config__.parallel_info(), file=sys.stderr)
    if any(name.startswith("blas/") for name in blas_in_use()):
        print("torch_llama: this torch uses the reference BLAS; install libopenblas0-openmp for a fair figure", file=sys.stderr)
    trainer, result = measure(args)
    if args.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key:22s} {value}")
    if args.profile:
        show_profile(trainer)


if __name__ == "__main__":
    main()
