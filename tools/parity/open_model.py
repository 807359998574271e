"""open_model.py DIR OUT REQUEST : AutoModelForCausalLM and AutoTokenizer on DIR, as they are; answers to OUT as JSON.
REQUEST: {"ids": [[...]], "texts": [...], "generate": {"ids": [...], "n": N}, "dtype": "float32"}, each part optional.
Run as a process of its own, so that whatever a library says is seen on stderr."""
import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

logging.disable_progress_bar()  # no warning, and all that is silenced
torch.set_num_threads(1)
path, out, request = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
answer = {}
options = {"dtype": getattr(torch, request["dtype"])} if "dtype" in request else {}
model = AutoModelForCausalLM.from_pretrained(path, **options).eval()
answer["dtype"] = str(model.dtype)
with torch.no_grad():
    if "ids" in request:
        answer["logits"] = [model(torch.tensor([row])).logits[0].float().tolist() for row in request["ids"]]
    if "generate" in request:
        ids = torch.tensor([request["generate"]["ids"]])
        n = request["generate"]["n"]
        made = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, temperature=None, top_p=None,
                              max_new_tokens=n)
        answer["made"] = made[0, ids.shape[1]:].tolist()
if "texts" in request:
    tokenizer = AutoTokenizer.from_pretrained(path)
    answer["tokens"] = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in request["texts"]]
    answer["with_bos"] = [tokenizer(text)["input_ids"] for text in request["texts"]]
    answer["back"] = [tokenizer.decode(ids) for ids in answer["tokens"]]
    if tokenizer.chat_template and "chat" in request:
        made = tokenizer.apply_chat_template(request["chat"], return_dict=True, return_assistant_tokens_mask=True)
        answer["chat"] = {"ids": made["input_ids"], "mask": made["assistant_masks"]}
with open(out, "w") as f:
    json.dump(answer, f)
