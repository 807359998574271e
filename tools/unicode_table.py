#!/usr/bin/env python3
"""Writes src/text/unicode_ranges.c: the classes of code points that pre-tokenizer patterns ask for.

    pip install unicodedata2==16.0.0 tokenizers==0.23.3 && tools/unicode_table.py > src/text/unicode_ranges.c

Unicode 16 is what tiktoken 0.14 and Hugging Face tokenizers 0.23 use; Python's own unicodedata is
as old as the Python. Which characters make words, for added tokens that must not stand inside one,
is asked of tokenizers itself: the property Alphabetic is not in unicodedata.
"""
import tokenizers
import unicodedata2 as unicode

# The White_Space property, less CR and LF, which have a class of their own.
SPACES = {0x09, 0x0B, 0x0C, 0x20, 0x85, 0xA0, 0x1680, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000}
SPACES |= set(range(0x2000, 0x200B))
CLASS = {"Lu": 0x02, "Lt": 0x02, "Ll": 0x04, "Lm": 0x08, "Lo": 0x08}  # as in text_internal.h


def class_of(code_point):
    if code_point in (0x0A, 0x0D):
        return 0x80
    if code_point in SPACES:
        return 0x40
    category = unicode.category(chr(code_point))
    if category[0] == "M":
        return 0x10
    if category[0] == "N":
        return 0x20
    return CLASS.get(category, 0x01)


def words():
    """The code points before which tokenizers does not see a token with single_word."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"unknown": 0, "Z": 1}, unk_token="unknown"))
    tokenizer.add_tokens([tokenizers.AddedToken("Z", single_word=True, normalized=False)])
    found = set()
    for first in range(0, 0x110000, 0x800):
        if 0xD800 <= first < 0xE000:
            continue
        encoding = tokenizer.encode("".join(f"Z{chr(first + i)}  " for i in range(0x800)))
        seen = {span[0] // 4 for span, token in zip(encoding.offsets, encoding.ids) if token == 1 and span[0] % 4 == 0}
        found.update(first + i for i in range(0x800) if i not in seen)
    return found


def print_word_ranges():
    word, ranges = words(), []
    for code_point in range(0x110000):
        if (unicode.category(chr(code_point))[0] in "LMN") == (code_point in word):
            continue
        if ranges and ranges[-1][1] == code_point - 1:
            ranges[-1][1] = code_point
        else:
            ranges.append([code_point, code_point])
    print("const uint32_t unicode_word_ranges[UNICODE_WORD_RANGES][2] = {")
    for i in range(0, len(ranges), 5):
        print("    " + " ".join(f"{{0x{first:05x}, 0x{last:05x}}}," for first, last in ranges[i:i + 5]))
    print("};")
    print(f'_Static_assert(UNICODE_WORD_RANGES == {len(ranges)}, "text_internal.h gives another size");')


def main():
    entries, last = [], None
    for code_point in range(0x110000):
        kind = class_of(code_point)
        if kind != last:
            entries.append(code_point << 8 | kind)
            last = kind
    print(f"/* Classes of code points, Unicode {unicode.unidata_version}. Written by tools/unicode_table.py.")
    print(" *")
    print(" * An entry holds the first code point of a range in its upper 24 bits and the CharClass in its")
    print(" * lower 8; the range ends before the next entry, the last one at U+10FFFF.")
    print(" */")
    print('#include "text/text_internal.h"\n')
    print("/* clang-format off */")
    print(f"const uint32_t unicode_ranges[UNICODE_RANGES] = {{")
    for i in range(0, len(entries), 9):
        print("    " + " ".join(f"0x{entry:08x}," for entry in entries[i:i + 9]))
    print("};")
    print(f'_Static_assert(UNICODE_RANGES == {len(entries)}, "text_internal.h gives another size");')
    print_word_ranges()


if __name__ == "__main__":
    main()
