#!/usr/bin/env python3
"""gen_unicode.py: writes lib/text/unicode_tables.c, the category groups of every code point.

The pre-tokenizer needs to know for a code point whether it is a letter, mark, number, punctuation,
symbol or white space. Python's unicodedata is the only source, so nothing is downloaded. The
Unicode version is checked: the reference tokenizer's regular expressions speak Unicode 14.
"""
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


def main():
    if unicodedata.unidata_version != UNICODE_VERSION:
        sys.exit(f"gen_unicode.py: this Python has Unicode {unicodedata.unidata_version}, "
                 f"{UNICODE_VERSION} is needed: use Python 3.11")
    first, blocks = [], {}
    for start in range(0, 0x110000, BLOCK):
        block = bytes(group(c) for c in range(start, start + BLOCK))
        first.append(blocks.setdefault(block, len(blocks)))
    second = [value for block in blocks for value in block]
    assert len(blocks) <= 256 and BLOCK == 128  # the header's inline lookup says 128
    out = f"""\
/* unicode_tables.c: category groups of all code points, Unicode {UNICODE_VERSION}.
 * Generated, do not edit: python3 tools/gen_unicode.py lib/text/unicode_tables.c */
#include "unicode_tables.h"

/* Block number of each {BLOCK} code points. */
const uint8_t dsi_unicode_block_of[{len(first)}] = {{
{rows(first, 100)}
}};

/* DSI_CAT_* of each code point of each distinct block. */
const uint8_t dsi_unicode_category_of[{len(blocks)} * {BLOCK}] = {{
{rows(second, 100)}
}};

uint32_t dsi_unicode_category(uint32_t code_point) {{
    return code_point <= 0x10FFFF ? dsi_unicode_lookup(code_point) : 0;
}}
"""
    with open(sys.argv[1], "w", encoding="ascii", newline="\n") as file:
        file.write(out)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: gen_unicode.py OUTPUT.c")
    main()
