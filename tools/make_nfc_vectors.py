"""Writes what Python's unicodedata makes of texts in normalization form C.

The first line of OUT holds, for each 4,096 code points, the CRC-32 of all that the texts around
each of them (see AROUND) become, one behind the other with a byte 0xFF after each; the lines behind
hold random texts of marks, letters and jamo with their form C. tests/data/nfc.jsonl was made with
the defaults under Python 3.11 (Unicode 14).

usage: python make_nfc_vectors.py OUT.jsonl [--seed 1] [--count 500]
"""

import argparse
import json
import random
import sys
import unicodedata
import zlib

AROUND = ("%s", "a%s", "%s\u0300", "%s\u0327\u0301", "\u1100%s\u11a8", "e\u0301%s\u0323")
BLOCK = 4096


def block_digest(first):
    digest = 0
    for code_point in range(first, first + BLOCK):
        if 0xD800 <= code_point <= 0xDFFF:
            continue
        for form in AROUND:
            text = unicodedata.normalize("NFC", form % chr(code_point))
            digest = zlib.crc32(text.encode() + b"\xff", digest)
    return digest


def pools():
    everything = [chr(c) for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
    return [
        [c for c in everything if unicodedata.combining(c)],
        [c for c in everything if unicodedata.decomposition(c)[:1] not in ("", "<")],
        [chr(c) for c in (*range(0x1100, 0x1113), *range(0x1161, 0x1176), *range(0x11A7, 0x11C3))],
        [chr(c) for c in range(0xAC00, 0xD7A4)],
        list("aAeEoOuUiIcCsSdD<>=\u0308\u0301\u0327\u0323\u0302\u0307"),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", help="file to write")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=500, help="random texts")
    args = parser.parse_args()
    if unicodedata.unidata_version != "14.0.0":
        sys.exit(f"this Python has Unicode {unicodedata.unidata_version}: use Python 3.11")
    rng = random.Random(args.seed)
    choices = pools()
    with open(args.out, "w", encoding="ascii", newline="\n") as file:
        digests = [block_digest(first) for first in range(0, 0x110000, BLOCK)]
        file.write(json.dumps({"crc32": digests}) + "\n")
        for i in range(args.count):
            chosen = rng.sample(choices, 2)
            length = 100 if i % 100 == 0 else rng.randint(1, 12)
            text = "".join(rng.choice(rng.choice(chosen)) for _ in range(length))
            pair = {"text": text, "nfc": unicodedata.normalize("NFC", text)}
            file.write(json.dumps(pair) + "\n")


if __name__ == "__main__":
    main()
