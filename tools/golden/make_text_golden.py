#!/usr/bin/env python3
"""Makes the golden files of the tokenizers: small vocabularies, texts, and the ids that the reference libraries give.

    python3 tools/golden/make_text_golden.py tests/golden_text

For each case two files:
  NAME.model or NAME.json    a SentencePiece BPE model, or a tokenizer.json with added tokens of all kinds
  NAME.expected.json         {"texts": [...], "ids": [[...], ...]}; for a SentencePiece model also "decoded", what each row
                             of ids decodes to; for a tokenizer.json also "ids_as_text", with special tokens as plain text

The files in tests/golden_text were made with sentencepiece 0.2.3 and tokenizers 0.23.3. Training and texts are
deterministic, so the same versions make the same files.
"""
import io
import json
import os
import random
import sys

import sentencepiece
import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

LLAMA4 = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORDS = ("the drover walks a herd to where it has to be and who asks for water finds it behind the next hill where all of them "
         "rest in the shade while one of the men counts again until no number is missing; rain over the plains, dust on the "
         "road. Überall wächst Gras, niemand weiß warum. Стадо идёт на юг, а мы за ним. 牛の群れは丘を越えて行く。").split()
GROK_LIKE = (["\n" * n for n in range(1, 5)] + list("0123456789") + ["\t" * n for n in range(1, 4)] +
             [" " * n for n in range(2, 5)] + ["<|separator|>", "<|control1|>"])


def corpus(n_lines):
    draw = random.Random(1)
    for _ in range(n_lines):
        words = [draw.choice(WORDS) for _ in range(draw.randrange(3, 14))]
        line = draw.choice([" ", " ", "  "]).join(words)
        yield draw.choice([line, line, "    " + line, f"{line} = {draw.randrange(1000)};", line.upper(), f"({line})"])


def train(**options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=corpus(3000), model_writer=model, model_type="bpe", num_threads=1, minloglevel=2,
        normalization_rule_name="identity", **options)
    return model.getvalue()


GROK = dict(byte_fallback=True, remove_extra_whitespaces=False, pad_id=0, bos_id=1, eos_id=2, unk_id=3, pad_piece="[PAD]",
            bos_piece="[BOS]", eos_piece="[EOS]", unk_piece="[UNK]", character_coverage=0.999)
SENTENCEPIECE = {
    # as Grok-1's: byte pieces, digits, runs of newlines, tabs and spaces by hand, all spaces kept
    "sp-grok": dict(vocab_size=600, user_defined_symbols=GROK_LIKE, allow_whitespace_only_pieces=True, **GROK),
    # what the trainer does by default: spaces made one, no byte pieces; user-defined pieces that spaces stand in
    "sp-default": dict(vocab_size=360, user_defined_symbols=["a  b", "<sep>", " x ", "\u2581herd", "ab", "abc", "  "],
                       character_coverage=0.98),
    # no space in front; pieces over several words
    "sp-noprefix": dict(vocab_size=620, add_dummy_prefix=False, split_by_whitespace=False, max_sentencepiece_length=40,
                        allow_whitespace_only_pieces=True, **GROK),
    # all kept, no byte pieces: unknown characters, alone and in runs
    "sp-unknown": dict(vocab_size=200, remove_extra_whitespaces=False, character_coverage=0.98),
}

PARTS = WORDS + ["<|separator|>", "<|control1|>", "[BOS]", "[UNK]", "<unk>", "<s>", "<sep>", "abc", "ab", "a  b", "a b", " x ", "\u2581",
                 "\u2581herd", "herd", "\u2047", "\ufffd", "\0", "\x7f", "\u00e9", "e\u0301", "\u4e2d\u6587", "\U0001F600", "\U0001F468\u200d\U0001F469",
                 "\u200b", "\ufeff", "123", "3.14", "<0x0A>", "\u00a0", "\u3000", "{}", "=>", "//", "\U0010FFFF"]
GLUE = ["", "", " ", " ", "  ", "   ", "        ", "\n", "\n\n\n", "\n\n\n\n\n\n", "\t", "\t\t\t\t", "\r\n", " \n ", "\u2581"]


def texts(n):
    yield from ["", " ", "  ", "\n", "a", " a", "a ", "  a  ", "\u2581", "\u2581 ", " \u2581a", "aaaaaaaaaaaaaaaaaaaaaa", "ab" * 40, "the" * 30]
    for i in range(n):
        draw = random.Random(i)
        yield "".join(draw.choice(PARTS) + draw.choice(GLUE) for _ in range(1 + i % 24))


def write(folder, name, rows):
    with open(os.path.join(folder, name + ".expected.json"), "w") as file:
        file.write("{\n")
        file.write(",\n".join(f'"{key}": [\n' + ",\n".join(json.dumps(row, separators=(",", ":")) for row in value) + "\n]"
                              for key, value in rows.items()))
        file.write("\n}\n")


def make_sentencepiece(folder, name, options):
    data = train(**options)
    with open(os.path.join(folder, name + ".model"), "wb") as file:
        file.write(data)
    processor = sentencepiece.SentencePieceProcessor(model_proto=data)
    all_texts = list(texts(140))
    ids = [processor.encode(text) for text in all_texts]
    write(folder, name, {"texts": all_texts, "ids": ids, "decoded": [processor.decode(row) for row in ids]})


# ---- tokenizer.json ----------------------------------------------------------------------------------


def byte_level(ignore_merges):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("\u0120", "the"), ("h", "e"), ("e", "r"), ("he", "r"), ("her", "d"), ("o", "n"), ("a", "b")]
    vocab = {token: i for i, token in enumerate(alphabet)}
    for left, right in merges:
        vocab[left + right] = len(vocab)
    vocab["whole"] = len(vocab)  # no merges lead there
    return Tokenizer(models.BPE(vocab, merges, ignore_merges=ignore_merges))


def split_llama4():
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA4), "isolated"),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def added(content, **flags):
    return AddedToken(content, **{"normalized": False, **flags})


PLAIN = [added("<|a|>", special=True), added("<|ab|>", special=True), added("<|a|><|b|>"), added("<|"), added("ok")]
TOKENIZERS = {
    "hf-plain": (split_llama4, False, PLAIN),
    "hf-strip": (split_llama4, False, [added("<l>", lstrip=True), added("<r>", rstrip=True), added("<b>", lstrip=True, rstrip=True),
                                       added("<S>", special=True, lstrip=True, rstrip=True), added(" x"), added("\n")]),
    "hf-word": (lambda: pre_tokenizers.ByteLevel(add_prefix_space=False), False,
                [added("ab", single_word=True), added("\u00e9t", single_word=True), added("-", single_word=True),
                 added("_x", single_word=True, lstrip=True), added("abc")]),
    "hf-normalized": (split_llama4, True, [added("<n>", normalized=True), added("<n><m>"), added("n>", normalized=True, rstrip=True),
                                           added("<m>", normalized=True, single_word=True), added("M|m", special=True)]),
    "hf-in-vocab": (lambda: pre_tokenizers.ByteLevel(add_prefix_space=False), False,
                    [added("herd", single_word=True), added("the", single_word=True, normalized=True), added("whole", single_word=True)]),
    "hf-one-piece": (lambda: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), True, [added("<|x|>", special=True)]),
}
SPACES = ["", "", " ", "  ", "\n", "\t", "\u00a0", "\u2003", "\u3000", "\u0085", "\u2028", "\u200b", "\x1c", "\u180e", "\ufeff"]
AROUND = ["", "", "a", "Z", "_", "9", "\u00e9", "\u0301", "\u4e2d", "\u24b6", "\u00b2", "\u2167", "\u200c", "\u203f", ".", "-", "<", ">", "|", "'s",
          "\U0001F600", "\U0001F170", "\u0967", "\u3007"]


def added_texts(names, n):
    for i in range(n):
        draw = random.Random(i)
        parts = []
        for _ in range(1 + i % 8):
            name = draw.choice(names)
            parts += [draw.choice([name, name, name, name[:-1], name[1:]]), draw.choice(SPACES), draw.choice(AROUND), draw.choice(SPACES)]
            if draw.randrange(3) == 0:
                parts.append(draw.choice([" the herd", "whole", "on", "12345", "theherd", "abab"]))
        yield "".join(parts)


def make_tokenizer(folder, name, case):
    pre_tokenizer, ignore_merges, tokens = case
    tokenizer = byte_level(ignore_merges)
    tokenizer.pre_tokenizer = pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(tokens)
    with open(os.path.join(folder, name + ".json"), "w") as file:
        file.write(tokenizer.to_str())
    all_texts = list(added_texts([str(token.content) for token in tokens], 120))
    rows = {"texts": all_texts}
    for key, as_text in (("ids", False), ("ids_as_text", True)):
        tokenizer.encode_special_tokens = as_text
        rows[key] = [tokenizer.encode(text).ids for text in all_texts]
    write(folder, name, rows)


def main():
    folder = sys.argv[1]
    os.makedirs(folder, exist_ok=True)
    print(f"sentencepiece {sentencepiece.__version__}, tokenizers {tokenizers.__version__}")
    for name, options in SENTENCEPIECE.items():
        make_sentencepiece(folder, name, options)
    for name, case in TOKENIZERS.items():
        make_tokenizer(folder, name, case)


if __name__ == "__main__":
    main()
