#!/usr/bin/env python3
"""What drover trains opens in transformers without a word: from scratch (Llama 3, Llama 4, one whose experts are balanced by
a bias, GPT-2 and MPT), and continued from a bf16 directory of transformers. Same logits, same token ids, what was there
is kept."""
import json
import os
import sys

from common import ROOT, Report, drover, f32, in_transformers, read_tensors, workshop, write_json
import numpy as np

BAR = 1e-4
TEXTS = ["int main(void)\n{\n    return 0;\n}\n", "  two blanks, naïve 東京 <|eot|> x=3.14;\t\n\n\n", "'tis IT'LL 12345 \u00a0é"]
IDS = [[5, 17, 99, 200, 3, 41, 250, 7, 7, 300] * 5, [1, 2, 3]]
SMALL = ("vocab_size: 512, hidden_size: 48, num_hidden_layers: 3, num_attention_heads: 4, num_key_value_heads: 2, intermediate_size: 40, "
         "max_position_embeddings: 256")
LLAMA = "model={model_type: llama, %s, a_key_of_nobody: kept}" % SMALL
LLAMA4 = ("model={model_type: llama4_text, %s, num_local_experts: 4, interleave_moe_layer_step: 2, attention_chunk_size: 16, "
          "floor_scale: 8, a_key_of_nobody: kept}" % SMALL)
GPT2 = "model={model_type: gpt2, vocab_size: 512, n_embd: 48, n_layer: 3, n_head: 4, n_positions: 256, a_key_of_nobody: kept}"
MPT = "model={model_type: mpt, vocab_size: 512, d_model: 48, n_layers: 3, n_heads: 6, max_seq_len: 256, a_key_of_nobody: kept}"


def train(shop, name, *settings):
    run = os.path.join(shop, name)
    file = os.path.join(shop, name + ".yaml")
    with open(file, "w") as f:
        f.write(f"name: {name}\n")
    drover("train", file, f"dir={run}", f"data={ROOT}/src/base/*.c", "train.steps=6", "train.batch=4", "train.seq=48",
           "train.lr=3e-3", "train.precision=f32", "train.val_batches=1", "log.tensorboard=false", *settings)
    with open(os.path.join(run, "ckpt", "latest")) as f:
        return os.path.join(run, "ckpt", f.readline().strip())


def our_logits(path, shop):
    out = os.path.join(shop, "logits.safetensors")
    found = []
    for row in IDS:
        drover("logits", path, "--ids", write_json(os.path.join(shop, "ids.json"), {"ids": [row]}), "--out", out, "--dtype", "f32")
        found.append(f32(read_tensors(out)["logits"]))
    return found


def our_tokens(path, text, shop):
    file = os.path.join(shop, "text")
    with open(file, "wb") as f:
        f.write(text.encode())
    return [int(i) for i in drover("tokenizer", "encode", path, file).split()]


def difference(ours, theirs):
    return max(float(np.abs(a - np.array(b, dtype="f4")).max()) for a, b in zip(ours, theirs))


def check(report, name, path, shop, logits=True):
    answer = os.path.join(shop, "answer.json")
    said = in_transformers(path, answer, ids=IDS, texts=TEXTS)
    report.row(f"{name}: opens", not said, said or "not a word")
    with open(answer) as f:
        answer = json.load(f)
    d = difference(our_logits(path, shop), answer["logits"])
    if logits:
        report.row(f"{name}: logits", d <= BAR and answer["dtype"] == "torch.float32", f"{d:.1e} apart, opened as {answer['dtype'][6:]}")
    else:
        print(f"  {name}: logits {d:.1e} apart: transformers chooses without the bias (docs/checkpoints.md)")
    # text that looks like a special token is text to ours and that token to transformers
    plain = [i for i, t in enumerate(TEXTS) if "<|" not in t]
    good = all(our_tokens(path, TEXTS[i], shop) == answer["tokens"][i] and answer["back"][i] == TEXTS[i] for i in plain)
    bos = all(b[1:] == t and len(b) == len(t) + 1 for b, t in zip(answer["with_bos"], answer["tokens"]))
    report.row(f"{name}: token ids", good and bos, "as drover tokenizer encode, begin-of-text in front")
    return answer


def kept(report, name, path, source=None):
    with open(os.path.join(path, "config.json")) as f:
        config = json.load(f)
    good = config["a_key_of_nobody"] == "kept"
    if source:
        for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "chat_template.jinja"):
            pair = [open(os.path.join(d, file), "rb").read() for d in (source, path)]
            good = good and pair[0] == pair[1]
    report.row(f"{name}: what was there", good, "kept")


def foreign(shop, scratch):
    """A bf16 directory as transformers saves it, with files that drover would write otherwise."""
    from transformers import AutoModelForCausalLM
    import torch
    path = os.path.join(shop, "foreign")
    model = AutoModelForCausalLM.from_pretrained(scratch, dtype=torch.bfloat16)
    model.save_pretrained(path)
    with open(os.path.join(path, "generation_config.json"), "w") as f:
        f.write('{"eos_token_id": [2, 3], "do_sample": true, "temperature": 0.5}')
    with open(os.path.join(path, "special_tokens_map.json"), "w") as f:
        f.write("{}")
    with open(os.path.join(path, "chat_template.jinja"), "w") as f:
        f.write("{% for m in messages %}{{ m.content }}{% endfor %}")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        with open(os.path.join(scratch, name)) as f, open(os.path.join(path, name), "w") as g:
            json.dump(json.load(f), g, separators=(",", ":"))
    return path


def speaks(report, name, path, shop):
    """With tokenizer.chat_template a checkpoint brings our template: transformers makes the same ids and mask of it."""
    chat = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "1 + 1?"},
            {"role": "assistant", "content": " two\n"}, {"role": "user", "content": "No. naïve 東京"}]
    answer = os.path.join(shop, "answer.json")
    in_transformers(path, answer, texts=[], chat=chat)
    with open(answer) as f:
        theirs = json.load(f).get("chat")
    ours = json.loads(drover("tokenizer", "chat", path, write_json(os.path.join(shop, "chat.json"), chat)))
    same = theirs and ours["ids"] == theirs["ids"] and [int(m) for m in ours["mask"]] == theirs["mask"]
    report.row(f"{name}: chat template", same, f"{len(ours['ids'])} ids and their mask")


def main():
    report = Report()
    vocab = "tokenizer.train.vocab_size=512"
    with workshop() as shop:
        llama = train(shop, "llama3", LLAMA, vocab)
        check(report, "llama 3 from scratch", llama, shop)
        kept(report, "llama 3 from scratch", llama)
        llama4 = train(shop, "llama4", LLAMA4, vocab, "tokenizer.chat_template=drover")
        check(report, "llama 4 from scratch", llama4, shop)
        speaks(report, "llama 4 from scratch", llama4, shop)
        for name, model in (("gpt2", GPT2), ("mpt", MPT)):
            path = train(shop, name, model, vocab)
            check(report, f"{name} from scratch", path, shop)
            kept(report, f"{name} from scratch", path)
        bias = train(shop, "bias", LLAMA4, vocab, "train.balance=bias", "train.balance_rate=0.3")
        check(report, "llama 4 balanced by bias", bias, shop, logits=False)
        plain = os.path.join(shop, "without-bias")
        drover("convert", bias, plain)
        check(report, "the same, converted", plain, shop)
        source = foreign(shop, llama4)
        more = train(shop, "more", f"model={{from: {source}}}")
        check(report, "llama 4 continued from bf16", more, shop)
        kept(report, "llama 4 continued from bf16", more, source)
        half = os.path.join(shop, "half")
        drover("convert", more, half, "--dtype", "bf16")
        said = in_transformers(half, os.path.join(shop, "answer.json"), ids=IDS)
        with open(os.path.join(shop, "answer.json")) as f:
            report.row("the same, converted to bf16: opens", not said and "bfloat16" in json.load(f)["dtype"], said or "not a word")
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
