"""Conversations for comparing chat formats, and what Hugging Face transformers makes of them.

Shared by make_chat.py, which writes the golden files, and ../parity/chat.py, which compares the program with the
published templates. transformers 5.24 renders a template and its tokenizer encodes it; the mask follows from where the
assistant's headers stand in the rendered text, or, for a template with generation marks, from transformers itself.
"""
import hashlib
import json
import os
import random

FORMATS = ["llama3", "llama3.1", "llama3.2", "llama4", "drover"]
WITH_TOOLS = FORMATS[1:]
HEADERS = {"<|start_header_id|>": ("<|start_header_id|>assistant<|end_header_id|>\n\n", ("<|eot_id|>", "<|eom_id|>")),
           "<|header_start|>": ("<|header_start|>assistant<|header_end|>\n\n", ("<|eot|>", "<|eom|>"))}
# The texts that introduce tools in the published templates; both must be in a template that is called published.
PREAMBLE_SHA256 = {"system": (235, "dde995ffc1d7cae96ef289827daf09fc16c3e0b3ac6f28982f977241b8d5a0f2"),
                   "user": (267, "8f36ecf7b07dbfd6d06ccfad7a36db42a004cc8122b4584c61afa8b9bece1f42")}

# ---- by hand ----

WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "How the weather is in a place – now, or in some hours.",
    "parameters": {"type": "object", "properties": {
        "place": {"type": "string", "description": "A town, for instance \"Zürich\""},
        "hours": {"type": "integer", "default": 0, "minimum": 0},
        "unit": {"type": "string", "enum": ["°C", "°F"]}}, "required": ["place"]}}}
CLOCK = {"type": "function", "function": {"name": "clock", "description": "", "parameters": {"type": "object", "properties": {}}}}
ODD = {"name": "odd", "numbers": [1, -2, 0.1, 1e20, 1e16, 1e15, 123456789.125, 1e-5, 0.0001, -0.0, 5e-324, 1.7976931348623157e308],
       "empty": [{}, [], ""], "constants": [True, False, None], "text": "tab\tline\nquote\" back\\slash / del\x7f bell\x07 東京"}


def call(name, arguments):
    return {"type": "function", "id": "call_1", "function": {"name": name, "arguments": arguments}}


def say(role, content):
    return {"role": role, "content": content}


def plain_cases():
    """Conversations of texts only, for every format."""
    ask, answer = say("user", "What is a drover?"), say("assistant", "One who walks a herd to market.")
    system = say("system", "Answer in one sentence.")
    yield [ask]
    yield [ask, answer]
    yield [system, ask]
    yield [system, ask, answer]
    yield [system, ask, answer, say("user", "And then?"), say("assistant", "He walks home."), say("user", "Alone?")]
    yield [say("system", ""), ask]
    yield [say("system", "   ")]
    yield [say("user", "")]
    yield [ask, say("assistant", ""), ask]
    yield [say("assistant", "I begin."), say("user", "Fine.")]
    yield [ask, ask, answer, answer]
    yield [ask, system, answer]
    yield [system, system, ask]
    yield [system, answer]
    yield [ask, answer, say("user", "Why?"), answer, say("user", "Why?"), answer]
    for edge in (" x ", "\nx\n", "\n\n\nx \t\r\n", "\u00a0x\u2003", "\x1cx\x85", "\u3000\u2028x\u2029\u200b", "\ufeffx", "x\n\n",
                 "\n\n", "\t\ty", "   indented\n   twice"):
        yield [say("system", edge), say("user", edge), say("assistant", edge), say("user", "go on")]
    for text in ("Grüße aus Zürich — 東京 🐂🐑 e\u0301 \u202eabc", "def f(x):\n    return x**2  # ok\n", "1234567 89.0 ½ ٣",
                 "don't I'LL we've", "user\n\nassistant\n\n", "a" * 70, "{% raw %}{{ x }}{% endraw %}", "null", "<|", "|>", "<| eot |>", "{\"name\": \"f\", \"parameters\": {}}", "\\n is no newline"):
        yield [say("user", text), say("assistant", text), say("user", text)]


def tool_cases():
    """Conversations with tools, for formats that have them."""
    ask = say("user", "  How is the weather in Bern? ")
    used = {"role": "assistant", "tool_calls": [call("get_weather", {"place": "Bern", "hours": 3})]}
    yield {"messages": [ask], "tools": [ODD]}
    for tools in ([CLOCK], [CLOCK, WEATHER]):
        for system in ([], [say("system", " Be brief. ")], [say("system", "")]):
            for place in (None, True, False):
                chat = {"messages": system + [ask], "tools": tools}
                if place is not None:
                    chat["tools_in_user_message"] = place
                yield chat
    for arguments in ({}, {"place": "東京", "hours": 1.5}, ODD, {"deep": {"list": [1, [2, [3]], {"a": None}]}}, {"quote": "say \"hi\"\n"}):
        yield {"messages": [ask, {"role": "assistant", "tool_calls": [call("odd", arguments)]}]}
    for result in ("17 °C", "", "{\"t\": 17}", {"t": 17, "unit": "°C"}, {}, [1, 2.5, "x", None], [], {"list": [{"a": 1}]}, "two\nlines \"quoted\""):
        for role in ("tool", "ipython"):
            yield {"messages": [ask, used, say(role, result), say("assistant", "It is 17 °C.")], "tools": [WEATHER]}
    yield {"messages": [ask, used, say("tool", "17"), used, say("tool", {"t": 16}), say("user", "Thanks."), say("assistant", "Bye.")]}


def builtin_cases():
    """Built-in tools: Llama 3.1 alone."""
    ask = say("user", "Who won?")
    search = {"role": "assistant", "tool_calls": [call("brave_search", {"query": "who won"})]}
    code = {"role": "assistant", "tool_calls": [call("code_interpreter", {"code": "print(1)\nprint(2)", "mode": "x"})]}
    own = {"role": "assistant", "tool_calls": [call("get_weather", {"place": "Bern"})]}
    for builtins in ([], ["brave_search"], ["brave_search", "wolfram_alpha"], ["code_interpreter"], ["code_interpreter", "brave_search"]):
        yield {"messages": [ask], "builtin_tools": builtins}
        yield {"messages": [say("system", "Be brief."), ask, search, say("tool", "Nobody."), say("assistant", "Nobody won.")], "builtin_tools": builtins}
        yield {"messages": [ask, code, say("ipython", {"out": [1, 2]}), own, say("tool", "x")], "builtin_tools": builtins, "tools": [WEATHER]}
    yield {"messages": [ask, search], "builtin_tools": ["brave_search"], "tools": [WEATHER], "tools_in_user_message": False}


def part_cases():
    """Parts, images and several calls: Llama 4 and our own."""
    image, text = {"type": "image"}, {"type": "text", "text": "What is this?"}
    yield {"messages": [say("user", [image, text])]}
    yield {"messages": [say("user", [text, image, {"type": "text", "text": "\nAnd that?"}, image])]}
    yield {"messages": [say("system", [{"type": "text", "text": "Look closely."}]), say("user", [image]), say("assistant", "A cow.")]}
    yield {"messages": [say("user", [text]), say("assistant", [text, text]), say("user", [text, text])]}
    two = [call("get_weather", {"place": "Bern"}), call("clock", {})]
    yield {"messages": [say("user", "Now?"), {"role": "assistant", "tool_calls": two}, say("tool", "17"), say("tool", "12:00")], "tools": [WEATHER, CLOCK]}
    yield {"messages": [say("user", "Now?"), {"role": "assistant", "content": "I look.\n", "tool_calls": two}]}
    yield {"messages": [say("user", "Now?"), {"role": "assistant", "content": [text], "tool_calls": two[:1]}]}


def cases():
    """(chat, formats that take it); the others refuse it. Without a date Llama 3.2 takes today's."""
    out = []
    for i, messages in enumerate(plain_cases()):
        chat = {"messages": messages, "date_string": "05 Mar 2025"}
        if i % 3 == 0:
            chat["add_generation_prompt"] = True
        out.append((chat, FORMATS))
    for i, chat in enumerate(tool_cases()):
        chat["date_string"] = ["01 Jan 2024", "Freitag, 29. Februar"][i % 2]
        chat["add_generation_prompt"] = i % 2 == 0
        takes = list(WITH_TOOLS)
        if chat.get("tools_in_user_message"):
            takes.remove("drover")
        if chat.get("tools_in_user_message") is False and chat["messages"][0]["role"] != "system":
            takes.remove("llama4")
        out.append((chat, takes))
    out += [({"messages": [say("user", "Which day is it?")], "add_generation_prompt": True}, FORMATS)]
    out += [(chat, ["llama3.1"]) for chat in builtin_cases()]
    for chat in part_cases():
        takes = ["llama4", "drover"]
        calls = [len(m["tool_calls"]) for m in chat["messages"] if "tool_calls" in m]
        if '"image"' not in json.dumps(chat) and max(calls, default=0) < 2:
            takes += ["llama3.1", "llama3.2"] + ["llama3"] * (not calls)
            chat["date_string"] = "05 Mar 2025"
        out.append((chat, takes))
    return out


# ---- at random ----

WORDS = ["herd", " the", "drover's", "\n", "\n\n", " ", "   ", "\t", "42", "1234567", "Ärger", "東京", "🐂", "e\u0301", "\u00a0", "\u2003", "\r\n",
         "{", "}", "\"", "\\", "'ll", "//", "<", "|", "==", "\x1f", "\x85", "\u200d", "ﬁ", "Straße", "x", "Y", ".", "..."]


def random_text(r, n=12):
    return "".join(r.choice(WORDS) for _ in range(r.randrange(n)))


def random_json(r, depth=0):
    kind = r.randrange(9 if depth < 3 else 6)
    if kind < 2:
        return random_text(r)
    if kind == 2:
        return r.choice([True, False, None])
    if kind == 3:
        return r.randrange(-2 ** 40, 2 ** 40)
    if kind in (4, 5):
        return r.choice([r.random(), r.uniform(-1e9, 1e9), r.random() * 10.0 ** r.randrange(-30, 30), float(r.randrange(10 ** 17))])
    if kind in (6, 7):
        return {random_text(r, 4) + str(i): random_json(r, depth + 1) for i in range(r.randrange(4))}
    return [random_json(r, depth + 1) for _ in range(r.randrange(4))]


def random_object(r):
    return {random_text(r, 3) + str(i): random_json(r, 1) for i in range(r.randrange(4))}


def random_chat(r, name):
    """A conversation that format `name` takes."""
    tools = name != "llama3" and r.random() < 0.5
    chat = {"messages": [], "date_string": r.choice(["26 Jul 2024", "1. Mai"]), "add_generation_prompt": r.random() < 0.5}
    if tools and r.random() < 0.8:
        chat["tools"] = [{"name": "t", **random_object(r)} for _ in range(r.randrange(1, 4))]
    if name == "llama3.1" and r.random() < 0.4:
        chat["builtin_tools"] = r.sample(["brave_search", "wolfram_alpha", "code_interpreter"], r.randrange(4))
    if r.random() < 0.6:
        chat["messages"].append(say("system", random_text(r)))
    if "tools" in chat and name != "drover" and (chat["messages"] or name != "llama4"):
        chat["tools_in_user_message"] = r.random() < 0.5
    for _ in range(r.randrange(1, 5)):
        chat["messages"].append(say("user", random_content(r, name, "tools" not in chat)))
        if tools and r.random() < 0.6:
            chat["messages"].append({"role": "assistant", "tool_calls": random_calls(r, name, chat)})
            if name in ("llama4", "drover") and r.random() < 0.5:
                chat["messages"][-1]["content"] = random_text(r)
            chat["messages"].append(say(r.choice(["tool", "ipython"]), r.choice([random_text(r), random_object(r), [random_json(r)]])))
        if r.random() < 0.8:
            chat["messages"].append(say("assistant", random_text(r, 30)))
    return chat


def random_content(r, name, parts):
    if name not in ("llama4", "drover") or not parts or r.random() < 0.7:
        return random_text(r, 30)
    return [r.choice([{"type": "image"}, {"type": "text", "text": random_text(r)}]) for _ in range(r.randrange(1, 5))]


def random_calls(r, name, chat):
    if chat.get("builtin_tools") and r.random() < 0.6:
        return [call(r.choice(chat["builtin_tools"]), {"query": random_text(r), "more": random_text(r)})]
    count = r.randrange(1, 3) if name in ("llama4", "drover") else 1
    return [call("f%d" % i, random_object(r)) for i in range(count)]


# ---- the reference ----

def load_tokenizer(path, template):
    from transformers import PreTrainedTokenizerFast
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=os.path.join(path, "tokenizer.json"), bos_token="<|begin_of_text|>")
    tokenizer.chat_template = template
    return tokenizer


def spans_by_header(text):
    """[from, to) in characters of what the assistant says, end-of-turn token included."""
    spans = []
    for start, (header, ends) in HEADERS.items():
        at = text.find(header) if start in text else -1
        while at >= 0:
            begin = at + len(header)
            found = [(text.find(e, begin), e) for e in ends if text.find(e, begin) >= 0]
            if found:
                end, e = min(found)
                spans.append((begin, end + len(e)))
            at = text.find(header, begin)
    return spans


def joined(chat):
    """Texts in parts as one text: the templates of Llama 3 know no parts, and would print a list of Python."""
    def flat(content):
        return "".join(p["text"] for p in content) if isinstance(content, list) else content
    return {**chat, "messages": [{**m, "content": flat(m.get("content"))} if m["role"] in ("system", "user", "assistant") else m
                                 for m in chat["messages"]]}


def render(tokenizer, chat):
    """(ids, mask) as transformers has them."""
    marked = "{%- generation -%}" in tokenizer.chat_template
    chat = joined(chat) if "<|start_header_id|>" in tokenizer.chat_template and not marked else dict(chat)
    messages, tools = chat.pop("messages"), chat.pop("tools", None)
    kwargs = {k: v for k, v in chat.items()}
    if marked:
        out = tokenizer.apply_chat_template(messages, tools=tools, return_dict=True, return_assistant_tokens_mask=True, **kwargs)
        return out["input_ids"], out["assistant_masks"]
    text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **kwargs)
    out = tokenizer.apply_chat_template(messages, tools=tools, return_dict=True, **kwargs)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert encoded["input_ids"] == out["input_ids"]
    spans = spans_by_header(text)
    mask = [int(any(a < end and b > begin for begin, end in spans)) for a, b in encoded["offset_mapping"]]
    return out["input_ids"], mask


def check_preambles(template):
    """The run of literals before each loop over the tools, checked to be the published ones."""
    from jinja2 import Environment, nodes
    found = []
    tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", ""))
    for block in tree.find_all(nodes.If):
        run = []
        for part in block.body:
            if isinstance(part, nodes.Output) and all(isinstance(n, (nodes.TemplateData, nodes.Const)) for n in part.nodes):
                run += [n.value for n in part.nodes if isinstance(n, nodes.Const) and "<|" not in n.value]
            elif isinstance(part, nodes.For) and isinstance(part.iter, nodes.Name) and part.iter.name == "tools":
                found.append(run)
    for text, (n, digest) in zip(map("".join, found), PREAMBLE_SHA256.values()):
        assert len(text) == n and hashlib.sha256(text.encode()).hexdigest() == digest, "not the published preamble: " + text
    assert len(found) in (0, 2), found
    return found


def dump(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
