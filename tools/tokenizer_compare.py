#!/usr/bin/env python3
"""Whether our token ids are those of tiktoken: encodes files with both and compares id by id.

    tools/tokenizer_compare.py --tokenizer llama4.model [--drover build/drover] FILE|@LIST|DIR...

A directory stands for the files below it; files that are not UTF-8 are left out, since tiktoken takes
text only. Prints the files that differ and where, then a line of totals; ends with 1 if any differ.
With --generate N the files are followed by N texts of random characters of many scripts, and by one
of every code point. Needs tiktoken (written for 0.14.0).
"""
import argparse
import base64
import os
import random
import subprocess
import sys
import tempfile

import tiktoken

TAIL = r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n%s]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
PREFIX = r"[^\r\n\p{L}\p{N}]?"
HEAD, TAIL_LETTERS = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
PATTERNS = {  # by the number of ranks
    128000: SUFFIX + "|" + PREFIX + r"\p{L}+|" + TAIL % "",
    200000: f"{PREFIX}{HEAD}*{TAIL_LETTERS}+{SUFFIX}?|{PREFIX}{HEAD}+{TAIL_LETTERS}*{SUFFIX}?|" + TAIL % "/",
}
BLOCKS = [(0x20, 0x7F), (0x9, 0xE), (0x80, 0x250), (0x300, 0x370), (0x370, 0x590), (0x590, 0x700), (0x900, 0xE80),
          (0x1E00, 0x2100), (0x2000, 0x2070), (0x3000, 0x3100), (0x4E00, 0x9FFF), (0xAC00, 0xD7A4), (0x1F300, 0x1F700),
          (0x10000, 0x10FFFF)]


def load(path):
    with open(path, "rb") as file:
        pairs = (line.split() for line in file if line.strip())
        ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
    if len(ranks) not in PATTERNS:
        sys.exit(f"{path} has {len(ranks)} ranks; 128000 (Llama 3) and 200000 (Llama 4) are known")
    return tiktoken.Encoding(path, pat_str=PATTERNS[len(ranks)], mergeable_ranks=ranks, special_tokens={})


def files_of(arguments):
    for argument in arguments:
        if argument.startswith("@"):
            with open(argument[1:]) as names:
                yield from names.read().split("\n")[:-1]
        elif os.path.isdir(argument):
            for folder, _, names in sorted(os.walk(argument)):
                yield from (os.path.join(folder, name) for name in sorted(names))
        else:
            yield argument


def random_text(seed):
    draw = random.Random(seed)
    text = ""
    while len(text) < 400:
        first, end = draw.choice(BLOCKS)
        text += "".join(chr(draw.randrange(first, end)) for _ in range(draw.randrange(1, 9)))
        text += draw.choice(["", " ", "  ", "\n", "'s", "'LL ", "\r\n\r\n", "/", "123456"])
    return text


def generated(n):
    if n:
        yield "all code points", "".join(chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000)
    yield from ((f"random text {seed}", random_text(seed)) for seed in range(n))


def texts_of(arguments, n_generated):
    for path in files_of(arguments):
        try:
            with open(path, encoding="utf-8", newline="") as file:
                yield path, file.read()
        except (UnicodeDecodeError, OSError):
            continue
    yield from generated(n_generated)


def our_ids(drover, tokenizer, text):
    with tempfile.NamedTemporaryFile() as file:
        file.write(text.encode())
        file.flush()
        done = subprocess.run(drover + [tokenizer, file.name], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(drover)}: {done.stderr.strip()}")
    return [int(token) for token in done.stdout.split()]


def first_difference(ours, theirs):
    for i, (a, b) in enumerate(zip(ours, theirs)):
        if a != b:
            return i
    return min(len(ours), len(theirs))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokenizer", required=True, help="a tiktoken file")
    parser.add_argument("--drover", default="build/drover")
    parser.add_argument("--command", default="tokenizer encode", help="what of the program prints the ids")
    parser.add_argument("--generate", type=int, default=0)
    parser.add_argument("files", nargs="*")
    options = parser.parse_args()
    encoding = load(options.tokenizer)
    drover = [options.drover] + options.command.split()
    n_files = n_tokens = n_differ = 0
    for name, text in texts_of(options.files, options.generate):
        theirs, ours = encoding.encode_ordinary(text), our_ids(drover, options.tokenizer, text)
        n_files, n_tokens = n_files + 1, n_tokens + len(theirs)
        if ours != theirs:
            n_differ += 1
            i = first_difference(ours, theirs)
            print(f"{name}: differs from token {i} on: ours {ours[i:i + 5]}, tiktoken {theirs[i:i + 5]}")
    print(f"{n_files} texts, {n_tokens} tokens, {n_differ} texts differ")
    return 1 if n_differ else 0


if __name__ == "__main__":
    sys.exit(main())
