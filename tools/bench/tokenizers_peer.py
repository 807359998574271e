#!/usr/bin/env python3
"""How fast the usual tokenizer libraries are on this machine, to put our own beside them. Prints one JSON line a measurement.

    python3 tools/bench/tokenizers_peer.py train --vocab-size 32000 FILE...
        Hugging Face tokenizers trains a byte-level BPE with the Llama 4 pre-token pattern; reading the files counts.
    python3 tools/bench/tokenizers_peer.py encode --tokenizer llama3.model --tokenizer llama4.model FILE...
        tiktoken encodes the files, one file a call, with the ranks of each .model file and its pattern; reading and loading
        do not count; mb_per_cpu_s is by the processors' time, which other work on the machine disturbs less. With
        --threads N, N Python threads share the files (tiktoken works outside Python's lock; making the list of ids does not).

A FILE may be @LIST: a file with one path a line. Files that are not UTF-8 are left out. MB are 10^6 bytes of UTF-8 text.
Written for tokenizers 0.23.3 and tiktoken 0.14.0.
"""
import argparse
import base64
import concurrent.futures
import json
import os
import statistics
import sys
import time

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA4_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# A .model file does not say which family it is; its size does. The ids prove that ranks and pattern belong together.
PROBE = "naïve café — 東京 2025!"
FAMILIES = {
    128000: ("llama3", LLAMA3_PATTERN, [3458, 38672, 588, 53050, 2001, 119109, 220, 2366, 20, 0]),
    200000: ("llama4", LLAMA4_PATTERN, [1499, 164301, 49652, 2290, 124590, 220, 837, 33, 13]),
}


def texts_of(arguments):
    """-> {path: text}; order kept"""
    paths = []
    for a in arguments:
        if a.startswith("@"):
            with open(a[1:], encoding="utf-8") as f:
                paths += f.read().split("\n")
        else:
            paths.append(a)
    texts, skipped = {}, 0
    for p in filter(None, paths):
        with open(p, "rb") as f:
            raw = f.read()
        try:
            texts[p] = raw.decode("utf-8")
        except UnicodeDecodeError:
            skipped += 1
    if skipped:
        print(f"tokenizers_peer: {skipped} files are not UTF-8 and are left out", file=sys.stderr)
    if not any(texts.values()):
        sys.exit("tokenizers_peer: no text to work on")
    return texts


def n_bytes(texts):
    return sum(len(t.encode("utf-8")) for t in texts.values())


def train(args):
    os.environ["RAYON_NUM_THREADS"] = str(args.threads)  # read when the library starts its threads
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    import tokenizers
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    texts = texts_of(args.files)
    seconds = []
    for _ in range(args.runs):
        tok = Tokenizer(models.BPE())
        tok.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(LLAMA4_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        trainer = trainers.BpeTrainer(vocab_size=args.vocab_size, show_progress=False,
                                      initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
        start = time.perf_counter()
        if args.unit == "line":
            tok.train(list(texts), trainer)
        else:
            tok.train_from_iterator((open(p, encoding="utf-8", newline="").read() for p in texts), trainer)
        seconds.append(time.perf_counter() - start)
    if args.save:
        tok.save(args.save)
    report("train", f"tokenizers {tokenizers.__version__}", args.threads, texts, seconds,
           unit=args.unit, vocab_size=args.vocab_size, vocab_size_reached=tok.get_vocab_size())


def load_ranks(path):
    import tiktoken
    with open(path, "rb") as f:
        lines = [line.split() for line in f if line.strip()]
    if any(len(line) != 2 for line in lines):
        sys.exit(f"tokenizers_peer: {path} is not a list of base64 tokens and ranks")
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    if len(ranks) not in FAMILIES:
        sys.exit(f"tokenizers_peer: {path} has {len(ranks)} entries: neither Llama 3 (128000) nor Llama 4 (200000)")
    name, pattern, expected = FAMILIES[len(ranks)]
    enc = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    if enc.encode_ordinary(PROBE) != expected:
        sys.exit(f"tokenizers_peer: {path} encodes the probe text to other ids than {name} should")
    return name, enc


def encode(args):
    import tiktoken
    texts = texts_of(args.files)
    # The largest first, so that threads end together.
    work = sorted(texts.values(), key=len, reverse=True)
    for path in args.tokenizer:
        name, enc = load_ranks(path)
        seconds, cpu_seconds = [], []
        with concurrent.futures.ThreadPoolExecutor(args.threads) as pool:
            run = map if args.threads == 1 else pool.map
            for _ in range(args.runs):
                start, cpu_start = time.perf_counter(), time.process_time()
                tokens = sum(run(lambda text: len(enc.encode_ordinary(text)), work))
                seconds.append(time.perf_counter() - start)
                cpu_seconds.append(time.process_time() - cpu_start)
        report("encode", f"tiktoken {tiktoken.__version__}", args.threads, texts, seconds,
               tokenizer=name, tokens=tokens, bytes_per_token=n_bytes(texts) / tokens,
               mb_per_cpu_s=n_bytes(texts) / 1e6 / statistics.median(cpu_seconds))


def report(what, library, threads, texts, seconds, **more):
    s = statistics.median(seconds)
    mb = n_bytes(texts) / 1e6
    print(json.dumps({
        "what": what, "library": library, "threads": threads, "files": len(texts), "bytes": n_bytes(texts), **more,
        "runs": len(seconds), "seconds": s, "seconds_min": min(seconds), "mb_per_s": mb / s,
        "mb_per_s_per_thread": mb / s / threads}), flush=True)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = ap.add_subparsers(required=True)
    t = sub.add_parser("train", help="Hugging Face tokenizers, BPE training")
    t.add_argument("--vocab-size", type=int, default=32000)
    t.add_argument("--threads", type=int, default=2)
    t.add_argument("--unit", choices=["line", "file"], default="line",
                   help="what the pattern sees at once: a line, as the library's training from files does, or a whole file")
    t.add_argument("--save", metavar="TOKENIZER.json", help="keep the result of the last run")
    t.set_defaults(do=train)
    e = sub.add_parser("encode", help="tiktoken, encoding")
    e.add_argument("--tokenizer", action="append", required=True, metavar="FILE.model")
    e.add_argument("--threads", type=int, default=1)
    e.set_defaults(do=encode)
    for p, runs in ((t, 1), (e, 3)):
        p.add_argument("--runs", type=int, default=runs, help="the median counts")
        p.add_argument("files", nargs="+", metavar="FILE")
    args = ap.parse_args()
    try:
        args.do(args)
    except OSError as error:
        sys.exit(f"tokenizers_peer: {error}")


if __name__ == "__main__":
    main()
