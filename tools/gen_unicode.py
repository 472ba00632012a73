#!/usr/bin/env python3
"""gen_unicode.py: writes lib/text/unicode_tables.c and nfc_tables.c.

The pre-tokenizers need to know for a code point whether it is a letter, mark, number, punctuation,
symbol or white space; the normalizer needs combining classes, decompositions and compositions.
Python's unicodedata is the only source, so nothing is downloaded. The Unicode version is checked:
the reference tokenizer's regular expressions speak Unicode 14.
"""
import pathlib
import sys
import unicodedata

UNICODE_VERSION = "14.0.0"
BLOCK = 128  # code points per block of the second stage
GROUPS = {"L": 1, "M": 2, "N": 4, "P": 8, "S": 16}  # DSI_CAT_* of text.h
SPACE = 32
CASED = 128
# White_Space of PropList.txt, which unicodedata does not offer; unchanged since Unicode 6.3.
WHITE_SPACE = (
    list(range(0x09, 0x0E)) + [0x20, 0x85, 0xA0, 0x1680] + list(range(0x2000, 0x200B))
    + [0x2028, 0x2029, 0x202F, 0x205F, 0x3000]
)

# The letters of DeepSeek-V2's word pattern \s?[...]+, as its tokenizer.json lists them.
CASED_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚ"
    "Ḁ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼ"
    "ℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿ"
    "ﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)


def members(character_class):
    """Code points of a regular expression's class of single characters and ranges."""
    result, rest = set(), character_class
    while rest:
        width = 3 if rest[1:2] == "-" else 1
        first, last = ord(rest[0]), ord(rest[width - 1])
        assert first <= last
        result.update(range(first, last + 1))
        rest = rest[width:]
    return result


CASED_SET = members(CASED_LETTERS)


def group(code_point):
    if code_point in WHITE_SPACE:
        return SPACE
    cased = CASED if code_point in CASED_SET else 0
    return GROUPS.get(unicodedata.category(chr(code_point))[0], 0) | cased


def rows(values, width):
    """Comma-separated numbers in lines of at most `width` columns."""
    lines, line = [], "   "
    for value in values:
        item = f" {value},"
        if len(line) + len(item) > width:
            lines.append(line)
            line = "   "
        line += item
    return "\n".join(lines + [line])


def two_stages(value_of):
    """Block numbers, and the distinct blocks of `value_of` over all code points, one behind the
    other."""
    first, blocks = [], {}
    for start in range(0, 0x110000, BLOCK):
        block = bytes(value_of(c) for c in range(start, start + BLOCK))
        first.append(blocks.setdefault(block, len(blocks)))
    assert len(blocks) <= 256 and BLOCK == 128  # the headers' inline lookups say 128
    return first, [value for block in blocks for value in block]


def category_file():
    first, second = two_stages(group)
    return f"""\
/* unicode_tables.c: category groups of all code points, Unicode {UNICODE_VERSION}.
 * Generated, do not edit: python3 tools/gen_unicode.py lib/text */
#include "unicode_tables.h"

/* Block number of each {BLOCK} code points. */
const uint8_t dsi_unicode_block_of[{len(first)}] = {{
{rows(first, 100)}
}};

/* DSI_CAT_* of each code point of each distinct block. */
const uint8_t dsi_unicode_category_of[{len(second) // BLOCK} * {BLOCK}] = {{
{rows(second, 100)}
}};

uint32_t dsi_unicode_category(uint32_t code_point) {{
    return code_point <= 0x10FFFF ? dsi_unicode_lookup(code_point) : 0;
}}
"""


# ---- Normalization form C ----------------------------------------------------------------------

DECOMPOSES, NOT_SURE = 0x40, 0x80  # DSI_NFC_* of nfc.h
HANGUL = range(0xAC00, 0xD7A4)  # syllables, composed by arithmetic
HANGUL_JAMO = list(range(0x1161, 0x1176)) + list(range(0x11A8, 0x11C3))  # vowels, finals


def decompositions():
    """(composed, first, second or 0): one level of each canonical decomposition."""
    result = []
    for c in range(0x110000):
        field = unicodedata.decomposition(chr(c))
        if not field or field.startswith("<") or c in HANGUL:
            continue
        parts = [int(part, 16) for part in field.split()]
        result.append((c, parts[0], parts[1] if len(parts) == 2 else 0))
    return result


def nfc_file():
    pairs = decompositions()
    composes = [p for p in pairs if p[2] and unicodedata.normalize("NFC", chr(p[0])) == chr(p[0])]
    composes.sort(key=lambda p: (p[1], p[2]))
    not_sure = {p[2] for p in composes} | set(HANGUL_JAMO)
    decomposes = {p[0] for p in pairs}
    classes = sorted({unicodedata.combining(chr(c)) for c in range(0x110000)})
    assert len(classes) <= 64
    rank = {value: i for i, value in enumerate(classes)}

    def kind(c):
        value = rank[unicodedata.combining(chr(c))]
        if c in decomposes:
            value |= DECOMPOSES
        if c in not_sure or unicodedata.normalize("NFC", chr(c)) != chr(c):
            value |= NOT_SURE
        return value

    def table(entries):
        return rows([f"{{0x{c:X}, 0x{a:X}, 0x{b:X}}}" for c, a, b in entries], 100)

    first, second = two_stages(kind)
    return f"""\
/* nfc_tables.c: what normalization form C needs to know, Unicode {UNICODE_VERSION}.
 * Generated, do not edit: python3 tools/gen_unicode.py lib/text */
#include "nfc.h"

/* Block number of each {BLOCK} code points. */
const uint8_t dsi_nfc_block_of[{len(first)}] = {{
{rows(first, 100)}
}};

/* Rank of the combining class and DSI_NFC_* of each code point of each distinct block. */
const uint8_t dsi_nfc_kind_of[{len(second) // BLOCK} * {BLOCK}] = {{
{rows(second, 100)}
}};

/* By composed character; second 0: a single character stands for it. */
const dsi_nfc_pair dsi_nfc_decompositions[DSI_NFC_N_DECOMPOSITIONS] = {{
{table(pairs)}
}};

/* By first, then second. */
const dsi_nfc_pair dsi_nfc_compositions[DSI_NFC_N_COMPOSITIONS] = {{
{table(composes)}
}};
""", len(pairs), len(composes)


def main():
    if unicodedata.unidata_version != UNICODE_VERSION:
        sys.exit(f"gen_unicode.py: this Python has Unicode {unicodedata.unidata_version}, "
                 f"{UNICODE_VERSION} is needed: use Python 3.11")
    folder = pathlib.Path(sys.argv[1])
    nfc, n_decompositions, n_compositions = nfc_file()
    (folder / "unicode_tables.c").write_text(category_file(), encoding="ascii")
    (folder / "nfc_tables.c").write_text(nfc, encoding="ascii")
    print(f"nfc.h must say: {n_decompositions} decompositions, {n_compositions} compositions")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: gen_unicode.py FOLDER")
    main()
