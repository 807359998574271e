#!/usr/bin/env python3
"""Whether our token ids are those of the libraries that the vocabularies come from. `make parity-tokenizers` runs it.

    tools/parity/token_ids.py [--tokenizers DIR] [--megabytes N] [--first-part P] [--drover build/drover]

Each *.model below DIR is encoded by drover and by its library, id by id: a tiktoken file by tiktoken, and by Hugging
Face tokenizers from the tokenizer.json that drover writes of it; a SentencePiece model by sentencepiece. Names of special
tokens are compared as text and as tokens. Then everything is decoded again and must be what it was, byte strings that
are no text included, which the libraries do not take. Texts are taken in parts that fit in memory, so that N may be
thousands; the small models of tests/golden_text, byte strings and names are compared with the first part. A run that was cut off goes on with --first-part.

The texts are made here, the same on the same machine: files of /usr/include and /usr/share, characters of many scripts,
emoji, all code points in several orders, runs of one character, mixtures, random and damaged bytes.

It makes a Python environment of its own in build/token-ids-venv. Ends with 1 if anything differs.
"""
import argparse
import array
import base64
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PINNED = ["tiktoken==0.14.0", "tokenizers==0.23.3", "sentencepiece==0.2.3"]
DOCUMENT = 1 << 20  # about so many bytes each
PART = 128 << 20  # bytes of documents held at a time

TAIL = r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n%s]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
PREFIX = r"[^\r\n\p{L}\p{N}]?"
HEAD, REST = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
PATTERNS = {  # by the number of ranks
    128000: SUFFIX + "|" + PREFIX + r"\p{L}+|" + TAIL % "",
    200000: f"{PREFIX}{HEAD}*{REST}+{SUFFIX}?|{PREFIX}{HEAD}+{REST}*{SUFFIX}?|" + TAIL % "/",
}


def enter_environment():
    """Runs this script again in its environment, which is made on first use."""
    home = os.path.join(ROOT, "build", "token-ids-venv")
    python = os.path.join(home, "bin", "python")
    if os.path.realpath(sys.prefix) == os.path.realpath(home):
        return
    stamp = os.path.join(home, "pinned")
    wanted = "\n".join(PINNED)
    if not os.path.exists(stamp) or open(stamp).read() != wanted:
        shutil.rmtree(home, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", home], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PINNED], check=True)
        with open(stamp, "w") as file:
            file.write(wanted)
    os.execv(python, [python, os.path.abspath(__file__), *sys.argv[1:]])


# ---- texts -------------------------------------------------------------------------------------------

BLOCKS = [(0x20, 0x7F), (0x9, 0xE), (0x80, 0x250), (0x250, 0x300), (0x300, 0x370), (0x370, 0x400), (0x400, 0x530),
          (0x530, 0x590), (0x590, 0x600), (0x600, 0x700), (0x900, 0x980), (0x980, 0xE00), (0xE00, 0xE80), (0x10A0, 0x1100),
          (0x1100, 0x1200), (0x1200, 0x1380), (0x1780, 0x1800), (0x1E00, 0x1F00), (0x1F00, 0x2000), (0x2000, 0x2070),
          (0x2070, 0x2190), (0x2190, 0x2600), (0x2600, 0x27C0), (0x3000, 0x3040), (0x3040, 0x3100), (0x4E00, 0x9FFF),
          (0xAC00, 0xD7A4), (0xF900, 0xFB00), (0xFE00, 0x10000), (0x10000, 0x10800), (0x1D400, 0x1D800), (0x1F300, 0x1F700),
          (0x20000, 0x2A6E0), (0xE0000, 0xE0200)]
GLUE = ["", "", " ", " ", "  ", "\n", "\n\n", "\t", "\r\n", "\r\n\r\n", "'s", "'LL ", "'t", "/", "//", ".", ", ", "123", "12345678",
        "\u00a0", "\u3000", "\u2028", " \n ", "   \n", "_", "--", "\u200d", "\ufe0f", "\u2019s", "\u017f"]
EMOJI = ["\U0001F600", "\U0001F44D\U0001F3FD", "\U0001F468\u200d\U0001F469\u200d\U0001F467\u200d\U0001F466", "\U0001F1E9\U0001F1EA",
         "\u2764\ufe0f", "\U0001F3F4\U000E0067\U000E0062\U000E0065\U000E006E\U000E0067\U000E007F", "\U0001F9D1\U0001F3FF\u200d\U0001F680",
         "1\ufe0f\u20e3", "\U0001F469\u200d\u2764\ufe0f\u200d\U0001F48B\u200d\U0001F468", "\u3297\ufe0f"]
WORDS = ("the of and to in is that for it as was with be by on not he his but at are this have from or had an they which one you "
         "were all her she there would their we him been has when who will no more if out so said what up its about than into "
         "Naïve café Straße Ærøskøbing Łódź Ελληνικά Русский язык עברית العربية हिन्दी ไทย 日本語 中文 한국어 tiếng Việt don't we'll I'VE").split()


def code_points():
    return [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]


def random_text(draw, n_chars):
    parts, n = [], 0
    while n < n_chars:
        first, end = draw.choice(BLOCKS)
        part = "".join(chr(draw.randrange(first, end)) for _ in range(draw.randrange(1, 9))) + draw.choice(GLUE)
        parts.append(part)
        n += len(part)
    return "".join(parts)


def mixed_text(draw, n_chars):
    parts, n = [], 0
    while n < n_chars:
        kind = draw.randrange(10)
        if kind < 6:
            word = draw.choice(WORDS)
            part = draw.choice([word, word.upper(), word.capitalize(), word[::-1], word + draw.choice(WORDS)])
        elif kind < 7:
            part = draw.choice(EMOJI) * draw.randrange(1, 4)
        elif kind < 8:
            part = draw.choice(" \n\t-=*#.a\u2581\u00e9\u4e2d0") * draw.randrange(1, 70)
        else:
            part = random_text(draw, 8)
        part += draw.choice(GLUE)
        parts.append(part)
        n += len(part)
    return "".join(parts)


def code_texts(budget):
    """Files that are UTF-8, packed into documents."""
    held, size = [], 0
    for top in ("/usr/include", "/usr/share"):
        for folder, folders, names in os.walk(top):
            folders.sort()
            for name in sorted(names):
                path = os.path.join(folder, name)
                try:
                    if os.path.islink(path) or os.path.getsize(path) > 8 * DOCUMENT:
                        continue
                    with open(path, encoding="utf-8", newline="") as file:
                        text = file.read()
                except (UnicodeDecodeError, OSError):
                    continue
                if "\0" in text:
                    continue
                held.append(text)
                size += len(text)
                budget -= len(text)
                if size >= DOCUMENT or budget < 0:
                    yield "".join(held)
                    held, size = [], 0
                if budget < 0:
                    return
    if held:
        yield "".join(held)


def texts(megabytes):
    """(name, text) in order; all but the files of this machine are the same everywhere."""
    million = 1000 * 1000
    n_made = 0
    for name, text in made_texts():
        n_made += len(text.encode())
        yield name, text
    left = megabytes * million - n_made
    for i, text in enumerate(code_texts(max(left, 0))):
        left -= len(text.encode())
        yield f"code {i}", text
    for i in itertools.count():  # where the files do not suffice
        if left <= 0:
            return
        text = mixed_text(random.Random(100000 + i), DOCUMENT // 2)
        left -= len(text.encode())
        yield f"more mixtures {i}", text


def made_texts():
    all_chars, draw = code_points(), random.Random(1)
    yield "every code point", "".join(all_chars)
    yield "every code point after a space", " ".join(all_chars)
    yield "every code point between letters", "a".join(all_chars)
    yield "every code point twice, lines", "\n".join(c + c for c in all_chars)
    shuffled = all_chars[:]
    draw.shuffle(shuffled)
    yield "every code point, shuffled", "".join(shuffled)
    yield "characters that are assigned in blocks, shuffled", "".join(
        draw.choice([c, c + " ", " " + c]) for c in shuffled if ord(c) < 0x30000)
    for i in range(10):
        yield f"scripts {i}", random_text(random.Random(100 + i), DOCUMENT // 3)
    for i in range(6):
        yield f"mixture {i}", mixed_text(random.Random(200 + i), DOCUMENT // 2)
    for i, c in enumerate(" a\n0.\t\u4e2d\u00e9-\u2581A\u0301\U0001F600/'"):
        yield f"a run of {ascii(c)}", c * (100 * 1000 + i)
        yield f"runs of {ascii(c)}", "".join(c * n + draw.choice(["x", " ", "\n", "1", "."]) for n in range(1, 600))
    small = ["", " ", "  ", "\n", "a", " a", "a ", "\u2581", "\u2581a", " \u2581", "'s", "\ufeff", "\0", "a\0b", "\r", " \r\n "]
    for text in small:
        yield f"small {ascii(text)}", text
    for i in range(300):
        yield f"short {i}", mixed_text(random.Random(1000 + i), 1 + i % 60)


def byte_strings():
    """What is not text: for round trips."""
    draw = random.Random(7)
    yield "random bytes", draw.randbytes(2 * DOCUMENT)
    yield "every pair of bytes", b"".join(bytes([a, b]) for a in range(256) for b in range(256))
    yield "surrogates", b"".join(bytes([0xED, 0x80 | c >> 6 & 0x3F, 0x80 | c & 0x3F]) for c in range(0x800, 0x1000))
    for i in range(4):
        damaged = bytearray(mixed_text(random.Random(300 + i), DOCUMENT // 4).encode())
        for _ in range(len(damaged) // 50):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        yield f"damaged text {i}", bytes(damaged)
    for i in range(200):
        yield f"short bytes {i}", draw.randbytes(1 + i % 20)


# ---- drover ------------------------------------------------------------------------------------------


class Documents:
    """Texts as files for drover, and what is known of them."""

    def __init__(self, folder, pairs):
        self.names, self.data, self.paths = [], [], []
        os.makedirs(folder, exist_ok=True)
        for i, (name, data) in enumerate(pairs):
            path = os.path.join(folder, f"{i}")
            data = data.encode() if isinstance(data, str) else data
            with open(path, "wb") as file:
                file.write(data)
            self.names.append(name)
            self.data.append(data)
            self.paths.append(path)
        self.n_bytes = sum(map(len, self.data))

    def text(self, i):
        return self.data[i].decode()


def call(command, **more):
    done = subprocess.run(command, stdout=subprocess.PIPE, **more)
    if done.returncode:
        sys.exit(f"{' '.join(command[:4])} ... ended with {done.returncode}")
    return done.stdout


def our_ids(drover, tokenizer, documents, *flags):
    if not documents.paths:
        return []
    lines = call([drover, "tokenizer", "encode", *flags, tokenizer, *documents.paths]).split(b"\n")
    return [array.array("i", map(int, line.split())) for line in lines[:len(documents.paths)]]


def decode(drover, tokenizer, rows, folder):
    """The texts of rows of ids, one after another."""
    os.makedirs(folder, exist_ok=True)
    paths = []
    if not rows:
        return b""
    for i, row in enumerate(rows):
        paths.append(os.path.join(folder, f"{i}"))
        with open(paths[-1], "w") as file:
            file.write(" ".join(map(str, row)))
    return call([drover, "tokenizer", "decode", tokenizer, *paths])


# ---- libraries ---------------------------------------------------------------------------------------


class Tiktoken:
    name = "tiktoken 0.14.0"

    def __init__(self, path, specials):
        import tiktoken
        with open(path, "rb") as file:
            pairs = (line.split() for line in file if line.strip())
            ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
        self.encoding = tiktoken.Encoding(path, pat_str=PATTERNS[len(ranks)], mergeable_ranks=ranks, special_tokens=specials)

    def encode(self, texts, specials=False):
        if specials:
            return [self.encoding.encode(text, allowed_special="all") for text in texts]
        return [self.encoding.encode_ordinary(text) for text in texts]


class Tokenizers:
    name = "tokenizers 0.23.3"

    def __init__(self, path):
        import tokenizers
        self.tokenizer = tokenizers.Tokenizer.from_file(path)

    def encode(self, texts, specials=False):
        self.tokenizer.encode_special_tokens = not specials
        return [row.ids for row in self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


class SentencePiece:
    name = "sentencepiece 0.2.3"

    def __init__(self, path):
        import sentencepiece
        self.processor = sentencepiece.SentencePieceProcessor(model_file=path)

    def encode(self, texts, specials=False):
        return [self.processor.encode(text) for text in texts]

    def decode(self, row):
        return self.processor.decode(row).encode()


# ---- comparison --------------------------------------------------------------------------------------


class Report:
    def __init__(self):
        self.n_differences = 0

    def differs(self, what, name, detail):
        self.n_differences += 1
        if self.n_differences <= 20:
            print(f"DIFFERS {what}: {name}: {detail}", flush=True)


def first_difference(ours, theirs):
    i = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
    return f"from token {i} on: ours {list(ours[i:i + 5])}, theirs {theirs[i:i + 5]}"


def compare(report, label, library, documents, ours, specials=False):
    before, seconds, n_tokens, batch = report.n_differences, 0.0, 0, 4
    for at in range(0, len(documents.paths), batch):
        some = range(at, min(at + batch, len(documents.paths)))
        given = [documents.text(i) for i in some]
        start = time.perf_counter()
        rows = library.encode(given, specials)
        seconds += time.perf_counter() - start
        for i, theirs in zip(some, rows):
            n_tokens += len(theirs)
            if ours[i] != array.array("i", theirs):
                report.differs(f"{label} {library.name}", documents.names[i], first_difference(ours[i], theirs))
    print(f"{label:40} {library.name:20} {len(documents.paths)} texts, {documents.n_bytes / 1e6:.1f} MB, {n_tokens} tokens: "
          f"{report.n_differences - before} differ ({documents.n_bytes / 1e6 / max(seconds, 1e-9):.1f} MB/s)", flush=True)


def round_trip(report, label, documents, back, expected):
    """expected: what each document is to become."""
    at, before = 0, report.n_differences
    for name, data in zip(documents.names, map(expected, documents.data)):
        if back[at:at + len(data)] != data:
            report.differs(f"{label} round trip", name, f"{back[at:at + 20]!r} instead of {data[:20]!r}")
        at += len(data)
    if at != len(back):
        report.differs(f"{label} round trip", "all", f"{len(back)} bytes instead of {at}")
    print(f"{label:40} {'decode(encode(x))':20} {len(documents.paths)} byte strings, {documents.n_bytes / 1e6:.1f} MB: "
          f"{report.n_differences - before} differ", flush=True)


def with_specials(specials, draw):
    """Texts in which the names of special tokens stand, and parts of them."""
    names = sorted(specials)
    for i in range(200):
        parts = []
        for _ in range(30):
            name = draw.choice(names[:40] + [draw.choice(names)])
            parts.append(draw.choice([name, name[:-1], name[1:], mixed_text(draw, 10), " " + name + "\n", name.upper()]))
        yield f"specials {i}", "".join(parts)


def timed(function, *arguments):
    start = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - start


def check_tiktoken(report, options, path, documents, strings, work):
    name = os.path.basename(path)
    saved = os.path.join(work, name + ".saved")
    call([options.bench, "save", path, saved])
    with open(os.path.join(saved, "tokenizer.json")) as file:
        added = json.load(file)["added_tokens"]
    specials = {token["content"]: token["id"] for token in added}
    ours, seconds = timed(our_ids, options.drover, path, documents)
    print(f"{name}: drover {documents.n_bytes / 1e6 / seconds:.1f} MB/s, loading, printing and parsing the ids included", flush=True)
    if our_ids(options.drover, saved, documents) != ours:
        report.differs(name, "tokenizer.json", "the ids of the saved files are others")
    libraries = [Tiktoken(path, specials), Tokenizers(os.path.join(saved, "tokenizer.json"))]
    for library in libraries:
        compare(report, name, library, documents, ours)
    for what in (documents, strings):
        rows = ours if what is documents else our_ids(options.drover, path, what)
        round_trip(report, name, what, decode(options.drover, path, rows, os.path.join(work, "ids")), lambda data: data)
    if not strings.paths:
        return
    marked = Documents(os.path.join(work, "specials"), with_specials(specials, random.Random(9)))
    as_tokens, as_text = our_ids(options.drover, path, marked, "--specials"), our_ids(options.drover, path, marked)
    for library in libraries:
        compare(report, f"{name}, names as text", library, marked, as_text)
        compare(report, f"{name}, names as tokens", library, marked, as_tokens, specials=True)


def check_sentencepiece(report, options, path, documents, strings, work):
    name = os.path.relpath(path, ROOT) if path.startswith(ROOT) else os.path.basename(path)
    library = SentencePiece(path)
    ours, seconds = timed(our_ids, options.drover, path, documents)
    print(f"{name}: drover {documents.n_bytes / 1e6 / seconds:.1f} MB/s, loading, printing and parsing the ids included", flush=True)
    compare(report, name, library, documents, ours)
    folder = os.path.join(work, "ids")
    back = decode(options.drover, path, ours, folder)
    theirs = [library.decode(row.tolist()) for row in ours]
    if b"".join(theirs) != back:
        report.differs(name, "decode", "sentencepiece decodes to other texts")
    describe = call([options.drover, "tokenizer", "inspect", path]).decode()
    if "bytes come back yes" not in " ".join(describe.split()):
        return
    # U+2581 stands for a space in the model, so it comes back as one.
    round_trip(report, name, documents, back, lambda data: data.replace("\u2581".encode(), b" "))
    back = decode(options.drover, path, our_ids(options.drover, path, strings), folder)
    round_trip(report, name, strings, back, lambda data: data.replace("\u2581".encode(), b" "))


def models(folder, with_small):
    for top in (folder, os.path.join(ROOT, "tests", "golden_text"))[:2 if with_small else 1]:
        for name in sorted(os.listdir(top)) if os.path.isdir(top) else []:
            if name.endswith(".model"):
                yield os.path.join(top, name)


def is_sentencepiece(path):
    with open(path, "rb") as file:
        return file.read(1) == b"\n"


def parts(pairs):
    """Documents in runs of at most PART bytes, more or less."""
    held, size = [], 0
    for name, text in pairs:
        data = text.encode()
        held.append((name, data))
        size += len(data)
        if size >= PART:
            yield held
            held, size = [], 0
    if held:
        yield held


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokenizers", default=os.path.join(ROOT, "..", "shared", "data", "tokenizers"))
    parser.add_argument("--megabytes", type=int, default=110)
    parser.add_argument("--first-part", type=int, default=1)
    parser.add_argument("--drover", default=os.path.join(ROOT, "build", "drover"))
    parser.add_argument("--bench", default=os.path.join(ROOT, "build", "text_bench"))
    options = parser.parse_args()
    enter_environment()
    work = os.path.join(ROOT, "build", "parity")
    shutil.rmtree(work, ignore_errors=True)
    report, n_bytes = Report(), 0
    for n, some in enumerate(parts(texts(options.megabytes))):
        if n + 1 < options.first_part:
            continue
        shutil.rmtree(work, ignore_errors=True)
        documents = Documents(os.path.join(work, "texts"), some)
        strings = Documents(os.path.join(work, "bytes"), byte_strings() if n == 0 else [])
        n_bytes += documents.n_bytes
        print(f"part {n + 1}: {len(documents.paths)} texts, {documents.n_bytes / 1e6:.1f} MB; {len(strings.paths)} byte strings, "
              f"{strings.n_bytes / 1e6:.1f} MB", flush=True)
        for path in models(options.tokenizers, n == 0):
            check = check_sentencepiece if is_sentencepiece(path) else check_tiktoken
            check(report, options, path, documents, strings, work)
    shutil.rmtree(work)
    n_models = len(list(models(options.tokenizers, True)))
    print(f"{n_models} tokenizers, {n_bytes / 1e6:.1f} MB of text: {report.n_differences} differences")
    if not n_models:
        sys.exit(f"no .model file in {options.tokenizers}")
    return 1 if report.n_differences else 0


if __name__ == "__main__":
    sys.exit(main())
