#!/usr/bin/env python3
"""Writes tests/golden_chat: conversations, two small tokenizers, and what transformers makes of each conversation.

    python3 tools/golden/make_chat.py build/drover TEMPLATES tests/golden_chat

TEMPLATES holds the published chat templates as llama3.jinja, llama3.1.jinja, llama3.2.jinja and llama4.jinja; docs/chat.md
says where they are found. They are not ours and are not kept: before anything is rendered, the texts in them that introduce
tools, checked by length and sha256, are replaced by our own words (preambles.json). What the golden files then hold of a
template are its special tokens and short lines such as "Environment: ipython".

transformers 5.24.0, tokenizers 0.23.3, jinja2 3.1.6.
"""
import json
import os
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import chat_cases as cc

VOCAB = 832
RENAMED = {"header_start": "start_header_id", "header_end": "end_header_id", "eom": "eom_id", "eot": "eot_id",
           "python_start": "python_tag", "python_end": "unused_0", "image": "unused_1"}
LLAMA3_PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
                  r"\s+(?!\S)|\s+")
PREAMBLES = {"system": "Functions can be called, described below. A call is JSON with the keys \"name\" and \"parameters\".\n\n",
             "user": "Call one of these functions where it helps. A call is JSON:\n\n{\"name\": ..., \"parameters\": {...}}\n\n"}


def make_tokenizers(drover, out):
    """One trained on the conversations, with the names of Llama 4; one with the names and the pattern of Llama 3."""
    with tempfile.TemporaryDirectory() as work:
        with open(os.path.join(work, "text.txt"), "w", encoding="utf-8") as f:
            for chat, _ in cc.cases():
                f.write(json.dumps(chat, ensure_ascii=False, indent=4) + "\n\nassistant\n\nuser\n\nToday Date: Environment: ipython\n")
        subprocess.run([drover, "tokenizer", "train", work + "/text.txt", "--vocab-size", str(VOCAB), "--out", out + "/llama4"],
                       check=True, stdout=subprocess.DEVNULL)
    os.makedirs(out + "/llama3", exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = open(f"{out}/llama4/{name}", encoding="utf-8").read()
        for a, b in RENAMED.items():
            text = text.replace(f"\"<|{a}|>\"", f"\"<|{b}|>\"")
        if name == "tokenizer.json":
            spec = json.loads(text)
            spec["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = LLAMA3_PATTERN
            text = json.dumps(spec, ensure_ascii=False, indent=0, separators=(",", ":")) + "\n"
        open(f"{out}/llama3/{name}", "w", encoding="utf-8").write(text)


def with_our_words(template):
    """The first literal of each preamble becomes our text, the others empty."""
    for run, ours in zip(cc.check_preambles(template), PREAMBLES.values()):
        for i, literal in enumerate(run):
            spelt = [q + literal.replace("\n", n) + q for q in "'\"" for n in ("\\n", "\n") if q + literal.replace("\n", n) + q in template]
            assert spelt, literal
            new = json.dumps(ours) if i == 0 else "''"
            at = template.index(spelt[0])
            template = template[:at] + new + template[at + len(spelt[0]):]
    return template


def spans(mask):
    out = []
    for i, m in enumerate(mask):
        if m and (i == 0 or not mask[i - 1]):
            out.append([i, i])
        if m:
            out[-1][1] = i + 1
    return out


def main():
    drover, templates, out = sys.argv[1:]
    os.makedirs(out, exist_ok=True)
    make_tokenizers(drover, out)
    with open(f"{out}/preambles.json", "w") as f:
        f.write(json.dumps(PREAMBLES, indent=1) + "\n")
    cases = cc.cases()
    with open(f"{out}/conversations.jsonl", "w", encoding="utf-8") as f:
        f.writelines(cc.dump(chat) + "\n" for chat, _ in cases)
    for name, vocabulary in [(n, "llama4" if n == "llama4" else "llama3") for n in cc.FORMATS] + [("drover", "llama4")]:
        if name == "drover":
            template = subprocess.run([drover, "tokenizer", "chat", f"{out}/{vocabulary}", "--template"], check=True,
                                      stdout=subprocess.PIPE, text=True).stdout
        else:
            template = with_our_words(open(f"{templates}/{name}.jinja", encoding="utf-8").read())
        tokenizer = cc.load_tokenizer(f"{out}/{vocabulary}", template)
        taken = 0
        with open(f"{out}/{name}.{vocabulary}.jsonl", "w") as f:
            for chat, formats in cases:
                # Llama 3's vocabulary has no token for images.
                images = vocabulary == "llama3" and '"type": "image"' in json.dumps(chat)
                if name not in formats or images:
                    f.write("null\n")
                    continue
                if name == "llama3.2" and "date_string" not in chat:
                    f.write("\"today\"\n")
                    continue
                ids, mask = cc.render(tokenizer, chat)
                f.write(cc.dump({"ids": ids, "said": spans(mask)}) + "\n")
                taken += 1
        print(f"{name} with {vocabulary}: {taken} conversations, {len(cases) - taken} to be refused")


main()
