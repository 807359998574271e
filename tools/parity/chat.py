#!/usr/bin/env python3
"""Compares `drover tokenizer chat` with transformers on the published chat templates, as they are.

    make parity-chat TEMPLATES=DIR
    python3 tools/parity/chat.py [--drover build/drover] [--templates DIR] [--random N] [--seed S] [--llama3 FILE] [--llama4 FILE]

DIR holds the templates as llama3.jinja, llama3.1.jinja, llama3.2.jinja, llama4.jinja (docs/chat.md says where they are found);
others of these names with a dot and more behind, llama3.1.other.jinja, are compared too. Without DIR there is that of Llama 4,
which transformers has inside, and our own. Each is put beside a tokenizer, so that drover must recognise it and take its texts.
Conversations are those of tools/golden/chat_cases.py and N more at random. --llama3 and --llama4 give the released tokenizer.model
files; without them the small tokenizers of tests/golden_chat serve. Exit code 0: every id and every mask is the same. Needs
transformers (compared with 5.24.0).
"""
import argparse
import glob
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tools", "golden"))
import chat_cases as cc


def convert_tiktoken(drover, path, work):
    """A released tokenizer.model as tokenizer.json: ranks by tiktoken, special tokens and pattern as drover names them."""
    from transformers.convert_slow_tokenizer import TikTokenConverter
    shown = subprocess.run([drover, "tokenizer", "inspect", path], check=True, stdout=subprocess.PIPE, text=True).stdout
    pattern = [line.split(None, 1)[1] for line in shown.splitlines() if line.startswith("  pattern")][0]
    ids = int(shown.split("BPE, ")[1].split(" ids")[0])
    plain = int(shown.split(" ids: ")[1].split(" plain")[0])
    specials = subprocess.run([drover, "tokenizer", "decode", path, "-"], check=True, stdout=subprocess.PIPE, text=True,
                              input=" ".join(map(str, range(plain, ids)))).stdout
    names = ["<|" + s for s in specials.split("<|")[1:]]
    assert len(names) == ids - plain, (len(names), ids, plain)
    converter = TikTokenConverter(vocab_file=path, pattern=pattern, extra_special_tokens=names)
    tokenizer = converter.converted()
    os.makedirs(work, exist_ok=True)
    tokenizer.save(os.path.join(work, "tokenizer.json"))
    return work


def tokenizer_dir(args, name, template, work):
    """A directory with the tokenizer and the template beside it."""
    vocabulary = "llama4" if name == "llama4" else "llama3"
    released = getattr(args, vocabulary)
    path = os.path.join(work, os.path.basename(template))
    if released:
        base = os.path.join(work, "released-" + vocabulary)
        if not os.path.exists(base):
            convert_tiktoken(args.drover, released, base)
        shutil.copytree(base, path)
    else:
        shutil.copytree(os.path.join(ROOT, "tests", "golden_chat", vocabulary), path)
    shutil.copy(template, os.path.join(path, "chat_template.jinja"))
    return path


def compare(args, path, name, chats):
    file = os.path.join(path, "chats.jsonl")
    with open(file, "w", encoding="utf-8") as f:
        f.writelines(cc.dump(chat) + "\n" for chat in chats)
    done = subprocess.run([args.drover, "tokenizer", "chat", path, file], stdout=subprocess.PIPE, text=True)
    lines = done.stdout.splitlines()
    if done.returncode or len(lines) != len(chats):
        print(f"{path}: drover ended with {done.returncode} after {len(lines)} of {len(chats)} conversations")
        print(cc.dump(chats[len(lines)]))
        return 1
    tokenizer = cc.load_tokenizer(path, open(os.path.join(path, "chat_template.jinja"), encoding="utf-8").read())
    wrong = tokens = 0
    for chat, line in zip(chats, lines):
        ours = json.loads(line)
        ids, mask = cc.render(tokenizer, chat)
        tokens += len(ids)
        if ours["format"] != name or ours["ids"] != ids or ours["mask"] != mask:
            wrong += 1
            first = next((i for i, (a, b) in enumerate(zip(ours["ids"], ids)) if a != b), min(len(ids), len(ours["ids"])))
            print(f"{os.path.basename(path)}: differs, format {ours['format']}, ids from {first}: {cc.dump(chat)[:500]}")
    print(f"{os.path.basename(path)}: {len(chats)} conversations, {tokens} tokens, {wrong} differ")
    return wrong


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--drover", default=os.path.join(ROOT, "build", "drover"))
    parser.add_argument("--templates", default=os.environ.get("TEMPLATES", ""))
    parser.add_argument("--random", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--llama3")
    parser.add_argument("--llama4")
    args = parser.parse_args()
    files = sorted(glob.glob(os.path.join(args.templates, "*.jinja"))) if args.templates else []
    if args.templates and not files:
        sys.exit(f"{args.templates} holds no .jinja files")
    wrong = 0
    with tempfile.TemporaryDirectory() as work:
        if not any(os.path.basename(f) == "llama4.jinja" for f in files):
            from transformers.models.llama4.processing_llama4 import chat_template
            files.append(os.path.join(work, "llama4.jinja"))
            open(files[-1], "w", encoding="utf-8").write(chat_template)
        for vocabulary in ("llama3", "llama4"):
            own = os.path.join(work, f"drover.{vocabulary}.jinja")
            source = getattr(args, vocabulary) or os.path.join(ROOT, "tests", "golden_chat", vocabulary)
            with open(own, "w") as f:
                subprocess.run([args.drover, "tokenizer", "chat", source, "--template"], check=True, stdout=f)
        for template in files + sorted(glob.glob(os.path.join(work, "drover.*.jinja"))):
            stem = os.path.basename(template)
            name = max((n for n in cc.FORMATS if stem.startswith(n + ".")), key=len)
            if name != "drover":
                cc.check_preambles(open(template, encoding="utf-8").read())
            r = random.Random(args.seed)
            chats = [c for c, formats in cc.cases() if name in formats] + [cc.random_chat(r, name) for _ in range(args.random)]
            if stem == "drover.llama3.jinja":
                chats = [c for c in chats if '"type":"image"' not in cc.dump(c)]
            vocabulary = "llama4" if name == "llama4" or "llama4" in stem else "llama3"
            wrong += compare(args, tokenizer_dir(args, vocabulary, template, os.path.join(work, "dirs")), name, chats)
    missing = [n for n in cc.FORMATS[:3] if not any(os.path.basename(f).startswith(n + ".jinja") for f in files)]
    if missing:
        print("not compared, for their templates were not given (TEMPLATES=DIR):", ", ".join(missing))
    sys.exit(wrong != 0)


main()
