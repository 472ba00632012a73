"""Trains tiny-gov: first its tokenizer, then its weights, on the corpus of generate.py.

usage: python train.py tokenizer CORPUS.jsonl DIR         writes DIR/tokenizer.json
       python train.py fit CORPUS.jsonl DIR MINUTES [--init MODEL.pt]
           [--workers N] [--rate SHARE] [--decay-from SHARE]
           [--questions SHARE] [--watch FILE.jsonl ...]
                                                          writes DIR/model.pt and DIR/curve.tsv
"""

import argparse
import json
import os
import random
import time
from array import array

import torch
import torch.distributed as dist
import torch.multiprocessing
import torch.nn as nn
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from generate import render
from model import CONFIG, EOS, PAD, SPECIAL_TOKENS
from muon import Muon
from start import start

STEP_TOKENS = 2560  # one step trains on rows of about equal length, this many tokens with padding
LENGTH_STEP = 8  # rows are padded to a multiple of it: few shapes, prepared once
POOL = 2048  # documents that are sorted by length together
PEAK_MUON, PEAK_LR, FLOOR_LR, WARMUP_STEPS = 0.01, 2e-3, 0.01, 40
MTP_EVERY = 2  # steps
SYNC_STEPS = 8  # see fit
WATCH_SECONDS, WATCH_RECORDS = 120, 120
THINK_SHARE = 0.15  # share of the chats that are rendered with their reasoning
TOKENIZER_ROWS = 60000

# DeepSeek-V3's pre-tokenizer: digits by three, runs of Chinese or Japanese, then the rest.
DIGITS = r"\p{N}{1,3}"
CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
REST = (
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"
    "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*"
    "|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)


def read_jsonl(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def train_tokenizer(corpus, out):
    """Byte-level BPE; tokens of at most 9 bytes (3 Chinese characters)."""
    tokenizer = Tokenizer(models.BPE())
    splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in (DIGITS, CJK, REST)]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=9,
        show_progress=False,
    )
    records = read_jsonl(corpus)[:TOKENIZER_ROWS]
    texts = (f"{rec['user']}\n{rec['think']}\n{rec['answer']}" for rec in records)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(f"{out}/tokenizer.json")
    sample = tokenizer.encode("请对以下工单进行分拨").tokens[:8]
    print("vocab", tokenizer.get_vocab_size(), sample)


def padded(docs):
    """The length that the rows of `docs` get: a multiple of LENGTH_STEP, and one more target."""
    return -(-max(map(len, docs)) // LENGTH_STEP) * LENGTH_STEP + 1


def pad(docs, answer_start):
    """Token ids [rows, longest] and which of them belong to an answer: all behind `answer_start`.

    A row is one document: attention never reaches into another one, as in use.
    """
    longest = padded(docs)
    ids = torch.full((len(docs), longest), PAD)
    in_answer = torch.zeros(len(docs), longest, dtype=torch.bool)
    for row, doc in enumerate(docs):
        ids[row, : len(doc)] = torch.tensor(doc.tolist())
        in_answer[row, doc.index(answer_start) + 1 : len(doc)] = True
    return ids, in_answer


def batches(docs, answer_start, rng):
    """Endless batches of pad(); documents of about the same length go together."""
    while True:
        rng.shuffle(docs)
        for first in range(0, len(docs), POOL):
            pool = sorted(docs[first : first + POOL], key=len)
            groups = []
            while pool:
                count = max(1, STEP_TOKENS // padded(pool[-1:]))
                groups.append(pool[-count:])
                del pool[-count:]
            rng.shuffle(groups)
            for group in groups:
                yield pad(group, answer_start)


def losses(model, ids, in_answer, with_mtp, questions):
    """Cross entropy of the main head over the answers, and of MTP (0 if not `with_mtp`).

    `questions`: the share of the questions' tokens that count as well.
    """
    in_answer = in_answer | (ids != PAD) & (torch.rand(ids.shape) < questions)
    target, second = ids[:, 1:], ids[:, 2:]
    hidden = model(ids[:, :-1])
    chosen = in_answer[:, 1:]
    main = F.cross_entropy(model.head(hidden[chosen]).float(), target[chosen])
    if not with_mtp:
        return main, torch.zeros(())
    ahead = model.mtp_hidden(hidden[:, :-1], target[:, :-1])
    chosen = in_answer[:, 2:]
    draft = model.head(model.mtp.norm(ahead[chosen])).float()
    return main, F.cross_entropy(draft, second[chosen])


@torch.no_grad()
def exact(model, docs, answer_start):
    """Share of the documents whose greedy answer is the expected one.

    A greedy answer is equal exactly if every token of it is the most likely one behind the right
    beginning, so one forward pass tells.
    """
    model.eval()
    right = 0
    for first in range(0, len(docs), 32):
        ids, in_answer = pad(docs[first : first + 32], answer_start)
        hidden = model(ids[:, :-1])
        chosen = in_answer[:, 1:]
        wrong = torch.zeros_like(chosen)
        wrong[chosen] = model.head(hidden[chosen]).argmax(-1) != ids[:, 1:][chosen]
        right += int((~wrong.any(1)).sum())
    model.train()
    return right / len(docs)


def make_optimizers(model):
    """Muon for attention, dense layers and shared experts, AdamW for the rest.

    The routed experts would do as well with Muon, but are so many that it would take a fifth of
    the time of a step.
    """
    inner, mtp, outer = [], [], []
    for name, p in model.named_parameters():
        is_outer = name.startswith(("embed.", "head.")) or ".gate." in name or ".experts." in name
        if p.dim() < 2 or is_outer:
            outer.append(p)
        else:
            (mtp if name.startswith("mtp.") else inner).append(p)
    adam = torch.optim.AdamW(outer, lr=PEAK_LR, betas=(0.9, 0.95), weight_decay=0)
    optimizers = [Muon([inner, mtp], lr=PEAK_MUON), adam]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def learning_rate(step, progress, decay_from):
    """Share of the peak: linear warm-up, 1, from `decay_from` on a straight line to FLOOR_LR."""
    decay = min(1, (1 - progress) / (1 - decay_from))
    warmup = min(1, (step + 1) / WARMUP_STEPS)
    return warmup * (decay * (1 - FLOOR_LR) + FLOOR_LR)


@torch.no_grad()
def average(model, progress):
    """Makes the weights of all workers their mean; returns the mean of their progress."""
    if not dist.is_initialized():
        return progress
    tensors = [t for t in model.state_dict().values() if t.is_floating_point()]
    flat = torch.cat([t.reshape(-1) for t in tensors] + [torch.tensor([progress])])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors] + [1])):
        tensor.copy_(mean.view_as(tensor))
    return flat[-1].item()


def documents(records, tokenizer, think=lambda: False):
    """The records as token ids."""
    return [array("H", tokenizer.encode(render(rec, think())).ids) for rec in records]


def watched(path, tokenizer):
    """The first documents of every task in a file of records: [(name, docs)]."""
    tasks = {}
    for rec in read_jsonl(path):
        tasks.setdefault(rec["task"], []).append(rec)
    return [
        (f"{os.path.basename(path)}:{task}", documents(records[:WATCH_RECORDS], tokenizer))
        for task, records in tasks.items()
        if len(records) > 100
    ]


def fit(rank, args):
    """One worker: trains for `args.minutes` of its own computing, not of the clock on the wall.

    The workers train on their own and take the mean of their weights every SYNC_STEPS. Worker 0
    saves them, and judges the records of `args.watch` every WATCH_SECONDS: a line of DIR/curve.tsv.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if args.workers > 1:
        meeting = f"file://{os.path.abspath(args.dir)}/workers"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=args.workers)
    model = start()
    if args.init:
        model.load_state_dict(torch.load(args.init, weights_only=True))
    rng = random.Random(f"{rank} {args.init}")
    tokenizer = Tokenizer.from_file(f"{args.dir}/tokenizer.json")
    assert tokenizer.token_to_id(SPECIAL_TOKENS[EOS]) == EOS
    answer_start = tokenizer.token_to_id("<｜Assistant｜>")
    docs = documents(read_jsonl(args.corpus), tokenizer, lambda: rng.random() < THINK_SHARE)
    tests = [test for path in args.watch for test in watched(path, tokenizer)]
    optimizers = make_optimizers(model)
    began = time.process_time()
    next_look, progress = began, 0
    for step, (ids, in_answer) in enumerate(batches(docs, answer_start, rng)):
        if step % SYNC_STEPS == 0:
            progress = average(model, (time.process_time() - began) / (60 * args.minutes))
            if rank == 0 and (time.process_time() >= next_look or progress >= 1):
                next_look = time.process_time() + WATCH_SECONDS
                curve = f"{args.dir}/curve.tsv"
                look(model, tests, answer_start, curve, step, progress * args.minutes)
                torch.save(model.state_dict(), f"{args.dir}/model.pt")
            if progress >= 1:
                break
        share = args.rate * learning_rate(step, progress, args.decay_from)
        with torch.autocast("cpu", torch.bfloat16):
            main, mtp = losses(model, ids, in_answer, step % MTP_EVERY == 0, args.questions)
        model.zero_grad()
        (main + 0.5 * mtp).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = share * group["peak"]
            optimizer.step()
        if rank == 0 and step % 48 == 0:
            print(f"step {step} {progress:.3f} main {main:.4f} mtp {mtp:.4f}", flush=True)


def look(model, tests, answer_start, path, step, minutes):
    """Appends one line to the curve: step, minutes, the share of exact answers of every test."""
    shares = [f"{exact(model, docs, answer_start):.3f}" for _, docs in tests]
    with open(path, "a", encoding="utf-8") as file:
        if step == 0:
            print("step", "minutes", *(label for label, _ in tests), sep="\t", file=file)
        print(step, f"{minutes:.1f}", *shares, sep="\t", file=file)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    tokenizer = commands.add_parser("tokenizer", help="train the tokenizer")
    weights = commands.add_parser("fit", help="train the weights")
    for command in (tokenizer, weights):
        command.add_argument("corpus", help="output of generate.py")
        command.add_argument("dir", help="folder to write to")
    weights.add_argument("minutes", type=float, help="minutes of computing")
    weights.add_argument("--init", help="weights to go on from")
    weights.add_argument("--workers", type=int, default=1, help="processes, one thread each")
    weights.add_argument("--decay-from", type=float, default=0.3, help="full rate up to there")
    weights.add_argument("--rate", type=float, default=1, help="share of the usual learning rate")
    weights.add_argument("--questions", type=float, default=0, help="share that is learnt, too")
    weights.add_argument("--watch", nargs="*", default=[], help="records to judge on the way")
    args = parser.parse_args()
    if args.command == "tokenizer":
        train_tokenizer(args.corpus, args.dir)
    else:
        meeting = f"{args.dir}/workers"
        if os.path.exists(meeting):  # of a run that was broken off
            os.remove(meeting)
        spawn = torch.multiprocessing.spawn
        spawn(fit, (args,), args.workers) if args.workers > 1 else fit(0, args)


if __name__ == "__main__":
    main()
