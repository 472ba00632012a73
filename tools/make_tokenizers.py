"""Trains a small tokenizer of each family and writes what Hugging Face `tokenizers` makes of texts.

Each OUT/FAMILY/ gets tokenizer.json, with the family's true normalizer, pre-tokenizer, options and
added tokens around a vocabulary of at most 512 that was trained on sentences made here, and
vectors.jsonl. Its lines belong to the texts of OUT/vectors.jsonl (make_tokenizer_vectors.py) and
hold "ids"; "decoded" only if that differs from the text. Further lines have a "text" of their own,
around the family's added tokens. Special tokens in texts are recognised, no begin token is added.
tests/data/tokenizer/ was made with --seed 1; requirements: tools/tiny_gov/requirements.txt.

usage: python make_tokenizers.py OUT [--seed 1]
"""

import argparse
import json
import random
from pathlib import Path

from tokenizers import Tokenizer, pre_tokenizers, trainers

from gen_unicode import CASED_LETTERS
from make_tokenizer_vectors import COMMON_HANZI, random_text

N_TRAINED = 430
NEVER_IN_UTF8 = "ÀÁõö÷øùúûüýþÿ"  # bytes C0, C1, F5-FF in the byte-level alphabet

# ---- The families' parts, as their tokenizer.json files have them ----

LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def steps(*patterns, digits=False):
    """A pre-tokenizer of these expressions."""
    result = [
        {"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False}
        for p in patterns
    ]
    if digits:
        result.append({"type": "Digits", "individual_digits": True})
    result.append(BYTE_LEVEL | {"use_regex": False})
    return {"type": "Sequence", "pretokenizers": result}


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
DEEPSEEK_V2 = steps(
    "[\r\n]",
    rf"\s?[{CASED_LETTERS}]+",
    r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
    r"\s+$",
    "[一-龥ࠀ-一가-\ud7ff]+",
    digits=True,
)
NOTHING = {"type": "Sequence", "normalizers": []}
BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
DEEPSEEK_MARKS = [
    "<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>", "<｜completion｜>", "<｜User｜>",
    "<｜Assistant｜>", "<|EOT|>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁outputs▁begin｜>",
    "<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>", "<｜tool▁sep｜>",
]  # fmt: skip
QWEN_PLAIN = [
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>",
    "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>",
]  # fmt: skip
QWEN_SPECIAL = [
    "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>",
    "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>",
    "<|video_pad|>",
]  # fmt: skip
LLAMA_SPECIAL = [
    "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>", "<|finetune_right_pad_id|>", "<|reserved_special_token_2|>",
    "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>",
]  # fmt: skip


def special(texts, normalized=False):
    return [{"content": t, "normalized": normalized, "special": True} for t in texts]


def plain(texts, normalized=False):
    return [{"content": t, "normalized": normalized, "special": False} for t in texts]


FAMILIES = {
    "deepseek-v2": dict(
        normalizer=NOTHING,
        pre_tokenizer=DEEPSEEK_V2,
        added=special([BOS, EOS], True) + plain(DEEPSEEK_MARKS, True),
    ),
    "deepseek-llm": dict(
        normalizer=NOTHING,
        pre_tokenizer=DEEPSEEK_V2,
        added=special([BOS, EOS], True) + plain(NEVER_IN_UTF8, True),
    ),
    "qwen2": dict(
        normalizer={"type": "NFC"},
        pre_tokenizer=steps(LLAMA % r"\p{N}"),
        added=special(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
        + special(QWEN_SPECIAL)
        + plain(QWEN_PLAIN),
    ),
    "llama-3": dict(
        normalizer=None,
        pre_tokenizer=steps(LLAMA % r"\p{N}{1,3}"),
        ignore_merges=True,
        bos="<|begin_of_text|>",
        added=special(LLAMA_SPECIAL),
    ),
    "r1-distill-qwen": dict(
        normalizer={"type": "NFC"},
        pre_tokenizer=steps(LLAMA % r"\p{N}"),
        bos=BOS,
        added=special([EOS])
        + plain(["<｜User｜>", "<｜Assistant｜>"])
        + special([BOS])
        + plain(["<|EOT|>", "<think>", "</think>"])
        + special(QWEN_SPECIAL[4:])
        + plain(QWEN_PLAIN),
    ),
    "r1-distill-llama": dict(
        normalizer=None,
        pre_tokenizer=steps(LLAMA % r"\p{N}{1,3}"),
        ignore_merges=True,
        bos=BOS,
        added=special([BOS, EOS])
        + special(LLAMA_SPECIAL[2:])
        + plain(["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"])
        + special(["<｜▁pad▁｜>"]),
    ),
}

# ---- Training ----

WORDS = (
    "the of and to in a is that for it as was with be by on not he I this are or his from at which "
    "but have an had they you were their one all we can her has there been if more when will would "
    "who so no user assistant system User Assistant helpful question answer You Today date think "
    "don't we'll I've it's you're city office permit street light report please thank hello world"
).split()


def sentence(rng):
    if rng.random() < 0.5:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(3, 12))) + rng.choice(".?!\n")
    return "".join(rng.choice(COMMON_HANZI[:120]) for _ in range(rng.randint(4, 20))) + "。"


def skeleton(family):
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": family["normalizer"],
        "pre_tokenizer": family["pre_tokenizer"],
        "post_processor": None,
        "decoder": BYTE_LEVEL | {"add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": family.get("ignore_merges", False),
            "vocab": {},
            "merges": [],
        },
    }


def post_processor(bos, bos_id):
    byte_level = BYTE_LEVEL | {"use_regex": True}
    if bos is None:
        return byte_level
    piece = {"Sequence": {"id": "A", "type_id": 0}}
    mark = {"SpecialToken": {"id": bos, "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    template = {
        "type": "TemplateProcessing",
        "single": [mark, piece],
        "pair": [mark, piece, {"SpecialToken": {"id": bos, "type_id": 1}}, second],
        "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
    }
    return {"type": "Sequence", "processors": [byte_level, template]}


def all_cuts(vocab, dropped):
    """Merges as Llama-3's file has them: every way to cut a token in two, tokens in order. Those of
    `dropped` tokens are left out, so that only ignore_merges finds them."""
    merges = []
    for token in sorted(vocab, key=vocab.get):
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        cuts = [(a, b) for a, b in cuts if a in vocab and b in vocab and token not in dropped]
        merges += sorted(cuts, key=lambda cut: (vocab[cut[0]], vocab[cut[1]]))
    return merges


def train(name, family, rng):
    file = skeleton(family)
    tokenizer = Tokenizer.from_str(json.dumps(file))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if name.startswith("deepseek"):
        alphabet = [c for c in alphabet if c not in NEVER_IN_UTF8]
    trainer = trainers.BpeTrainer(
        vocab_size=N_TRAINED, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([sentence(rng) for _ in range(2000)], trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    vocab, merges = trained["vocab"], [tuple(pair) for pair in trained["merges"]]
    if family.get("ignore_merges"):
        longer = [token for token in vocab if len(token) > 2]
        merges = all_cuts(vocab, set(longer[::9]))
    file["model"]["vocab"] = vocab
    file["model"]["merges"] = [f"{a} {b}" for a, b in merges]
    if name == "qwen2":  # as newer files write them
        file["model"]["merges"] = [list(pair) for pair in merges]
    extra = {"single_word": False, "lstrip": False, "rstrip": False}
    file["added_tokens"] = [
        {"id": len(vocab) + i, **token, **extra} for i, token in enumerate(family["added"])
    ]
    ids = {token["content"]: token["id"] for token in file["added_tokens"]}
    file["post_processor"] = post_processor(family.get("bos"), ids.get(family.get("bos")))
    assert len(vocab) + len(ids) <= 512
    return file


# ---- Vectors ----


def own_texts(family, rng):
    """Texts around the family's added tokens."""
    marks = [token["content"] for token in family["added"]]
    texts = ["".join(marks), " ".join(marks), "e\u0301".join(marks), "\u0338".join(marks)]
    texts += [mark[:-1] for mark in marks[:4]] + [f"<{mark}>" for mark in marks[:4]]
    for _ in range(30):
        parts = [rng.choice([rng.choice(marks), random_text(rng)[:8]]) for _ in range(6)]
        texts.append("".join(parts))
    return texts


def vector(name, tokenizer, text, own):
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    decoded = tokenizer.decode(ids, skip_special_tokens=False)
    result = {"text": text} if own else {}
    result["ids"] = ids
    # For DeepSeek LLM's letters the reference answers U+FFFD: it takes them for bytes. They are
    # decoded as the letters they were here.
    if decoded != text and name != "deepseek-llm":
        result["decoded"] = decoded
    return json.dumps(result, separators=(",", ":"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path, help="folder with vectors.jsonl; families go beside it")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    lines = (args.out / "vectors.jsonl").read_text(encoding="utf-8").split("\n")
    texts = [json.loads(line)["text"] for line in lines if line]
    for name, family in FAMILIES.items():
        rng = random.Random(args.seed)
        text = json.dumps(train(name, family, rng), ensure_ascii=False, separators=(",", ":"))
        tokenizer = Tokenizer.from_str(text)
        folder = args.out / name
        folder.mkdir(exist_ok=True)
        (folder / "tokenizer.json").write_text(text + "\n", encoding="utf-8", newline="\n")
        vectors = [vector(name, tokenizer, t, False) for t in texts]
        vectors += [vector(name, tokenizer, t, True) for t in own_texts(family, rng)]
        (folder / "vectors.jsonl").write_text("\n".join(vectors) + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
