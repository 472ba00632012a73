"""Checks an exported tiny-gov: golden logits, agreement with transformers, held-back accuracy.

All arithmetic is f32 on the dequantised FP8 weights. Writes DIR/heldback.jsonl (1,000 records of
the generator with a seed that training never used), DIR/unseen.jsonl (ten tickets per category
with the saying that no training text held) and DIR/golden.safetensors:
  tokens [T] int32, logits [T, vocab] f32          main head, after every token
  mtp_next [T] int32, mtp_logits [T, vocab] f32    MTP block: the token it is given, its logits
  greedy_prompt [P] int32, greedy [G] int32        a prompt and its greedy answer, end token too

usage: python check.py DIR [--records N]
"""

import argparse
import json
import tempfile

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer

from export import MTP_LAYER, checkpoint_f32, load_model
from generate import prompt, render, write_corpus
from model import EOS

HELDBACK_COUNT, HELDBACK_SEED = 1000, 20261122
UNSEEN_PER_CATEGORY, UNSEEN_SEED = 10, 20261123
GOLDEN_TOKENS, GOLDEN_GREEDY = 192, 48
ANSWER_LIMIT = 160
MISTAKES_SHOWN = 6


@torch.no_grad()
def greedy(model, ids, limit):
    """Up to `limit` most likely tokens behind `ids`, the end token included. No cache."""
    out = []
    while len(out) < limit and (not out or out[-1] != EOS):
        out.append(int(model.head(model(torch.tensor([ids + out]))[:, -1:]).argmax()))
    return out


def answer(model, tokenizer, user):
    out = greedy(model, tokenizer.encode(prompt(user)).ids, ANSWER_LIMIT)
    if out[-1] == EOS:
        out.pop()
    return tokenizer.decode(out, skip_special_tokens=False)


@torch.no_grad()
def write_golden(model, tokenizer, records, path):
    """Writes the golden file; returns its tokens [1, T] and the main head's logits [T, vocab]."""
    ids = [i for rec in records[:6] for i in tokenizer.encode(render(rec, True)).ids]
    ids = torch.tensor([ids[: GOLDEN_TOKENS + 1]])
    tokens, after = ids[:, :-1], ids[:, 1:]
    hidden = model(tokens)
    logits = model.head(hidden)[0]
    mtp_logits = model.head(model.draft(hidden, after))[0]
    start = tokenizer.encode(prompt(records[0]["user"])).ids
    golden = {
        "tokens": tokens[0].int().contiguous(),
        "logits": logits.contiguous(),
        "mtp_next": after[0].int().contiguous(),
        "mtp_logits": mtp_logits.contiguous(),
        "greedy_prompt": torch.tensor(start).int(),
        "greedy": torch.tensor(greedy(model, start, GOLDEN_GREEDY)).int(),
    }
    save_file(golden, path)
    loss = F.cross_entropy(logits, after[0])
    accept = (mtp_logits[:-1].argmax(1) == logits[1:].argmax(1)).float().mean()
    print(f"tokens {tokens.shape[1]} loss {loss:.4f} mtp accept {accept:.3f}")
    return tokens, logits


@torch.no_grad()
def compare_transformers(folder, tokens, logits):
    """Prints how far the logits are from those of transformers on the same weights."""
    try:
        import transformers
    except ImportError:
        print("transformers not installed: not compared")
        return
    with open(f"{folder}/config.json", encoding="utf-8") as file:
        settings = json.load(file)
    settings = {
        k: v for k, v in settings.items() if k not in ("quantization_config", "architectures")
    }
    config = transformers.DeepseekV3Config(**settings)
    eager = dict(attn_implementation="eager", experts_implementation="eager")
    weights = checkpoint_f32(folder)
    weights = {name: w for name, w in weights.items() if not name.startswith(MTP_LAYER)}
    with tempfile.TemporaryDirectory() as plain:
        save_file(weights, f"{plain}/model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(plain)
        other = transformers.DeepseekV3ForCausalLM.from_pretrained(
            plain, dtype=torch.float32, **eager
        )
    gap = (other.eval()(tokens, use_cache=False).logits[0] - logits).abs()
    print(f"against transformers: max {gap.max():.2e} mean {gap.mean():.2e}")


def department(text):
    """The department of a dispatch answer; None if the text is not such an answer."""
    try:
        return json.loads(text)["部门"]
    except (ValueError, KeyError, TypeError):
        return None


def accuracy(model, tokenizer, label, records):
    """Answers the records; prints the first mistakes, then the counts of every task."""
    print(f"{label}, {len(records)} records")
    tasks = {}
    shown = 0
    for rec in records:
        got, want = answer(model, tokenizer, rec["user"]), rec["answer"]
        count = tasks.setdefault(rec["task"], dict(all=0, exact=0, department=0))
        count["all"] += 1
        count["exact"] += got == want
        if rec["task"] == "dispatch":
            count["department"] += department(got) == department(want)
        if got != want and shown < MISTAKES_SHOWN:
            shown += 1
            print("want", want)
            print("got ", got)
    for task, count in tasks.items():
        line = f"{task}: exact {count['exact']}/{count['all']}"
        if task == "dispatch":
            line += f", department right {count['department']}/{count['all']}"
        print(line)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("dir", help="the checkpoint folder")
    parser.add_argument("--records", type=int, default=200, help="records to answer, of each file")
    args = parser.parse_args()
    model = load_model(args.dir)
    tokenizer = Tokenizer.from_file(f"{args.dir}/tokenizer.json")
    records = write_corpus(f"{args.dir}/heldback.jsonl", HELDBACK_COUNT, HELDBACK_SEED)
    golden = f"{args.dir}/golden.safetensors"
    tokens, logits = write_golden(model, tokenizer, records, golden)
    compare_transformers(args.dir, tokens, logits)
    unseen = f"{args.dir}/unseen.jsonl"
    unseen = write_corpus(unseen, UNSEEN_PER_CATEGORY, UNSEEN_SEED, "unseen")
    accuracy(model, tokenizer, "heldback.jsonl", records[: args.records])
    step = max(1, len(unseen) // max(1, args.records))  # some of every category
    accuracy(model, tokenizer, "unseen.jsonl", unseen[::step][: args.records])


if __name__ == "__main__":
    main()
