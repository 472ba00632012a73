"""SmolLM2-135M, real weights in Q4_1, beside a dequantised reference and beside llama.cpp.

Logits of the library with f32 activations against the same weights, dequantised by gguf-py and
computed here in double; ids of tokens and greedy texts against llama.cpp's, each first difference
explained by its margin; speed in turns. Exit code 1 if a limit is not met; speed is printed alone.

usage: build/peers/bin/python tests/long/smollm2.py FILE.gguf [--no-speed] [--only-speed]
"""

import argparse
import ctypes
import os
import statistics
import sys
import time

import gguf
import numpy

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, f"{ROOT}/bench/peers")
from llama import Llama, llama_cpp  # noqa: E402
from ours import Ours  # noqa: E402

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea, there lived",
    "The three laws of thermodynamics say that",
    "def fibonacci(n):\n    ",
    "To bake a loaf of bread you need",
    "In 1969, the first humans",
    "The difference between weather and climate is",
    "Dear Sir or Madam,\n\nI am writing to",
    "Water boils at a lower temperature on a mountain because",
    "A list of the planets, from the sun outwards: Mercury,",
]
N_GREEDY = 64
MOST_KL = 1e-5
THREADS = 2


def log_softmax(logits):
    logits = logits.astype(numpy.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - numpy.log(numpy.exp(logits).sum(axis=-1, keepdims=True))


def mean_kl(p, q):
    """KL(p || q), mean of the rows of logits."""
    p, q = log_softmax(p), log_softmax(q)
    return float((numpy.exp(p) * (p - q)).sum(axis=-1).mean())


class Reference:
    """A Llama in GGUF, its weights dequantised by gguf-py, computed in double."""

    def __init__(self, path):
        reader = gguf.GGUFReader(path)
        self.w = {t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(numpy.float64)
                  for t in reader.tensors}
        key = {k: f.contents() for k, f in reader.fields.items() if k.startswith("llama.")}
        self.n_layers, self.heads = key["llama.block_count"], key["llama.attention.head_count"]
        self.kv_heads = key["llama.attention.head_count_kv"]
        self.head_dim = key["llama.embedding_length"] // self.heads
        self.eps = key["llama.attention.layer_norm_rms_epsilon"]
        self.theta = key["llama.rope.freq_base"]

    def norm(self, x, name):
        scale = 1 / numpy.sqrt((x * x).mean(axis=-1, keepdims=True) + self.eps)
        return x * scale * self.w[name]

    def rotate(self, x):
        """x: [rows][heads][head_dim]; GGUF's Llama turns neighbouring columns."""
        frequency = self.theta ** (-numpy.arange(0, self.head_dim, 2) / self.head_dim)
        angle = numpy.arange(len(x))[:, None, None] * frequency
        c, s, a, b = numpy.cos(angle), numpy.sin(angle), x[..., 0::2], x[..., 1::2]
        return numpy.stack([a * c - b * s, a * s + b * c], axis=-1).reshape(x.shape)

    def attention(self, x, blk):
        n = len(x)
        q, k, v = ((x @ self.w[f"{blk}.attn_{p}.weight"].T).reshape(n, -1, self.head_dim)
                   for p in "qkv")
        q, k = self.rotate(q), self.rotate(k)
        group = self.heads // self.kv_heads
        k, v = k.repeat(group, axis=1), v.repeat(group, axis=1)
        score = numpy.einsum("ihd,jhd->hij", q, k) / numpy.sqrt(self.head_dim)
        score += numpy.triu(numpy.full((n, n), -numpy.inf), 1)
        share = numpy.exp(log_softmax(score))
        out = numpy.einsum("hij,jhd->ihd", share, v).reshape(n, -1)
        return out @ self.w[f"{blk}.attn_output.weight"].T

    def mlp(self, x, blk):
        gate = x @ self.w[f"{blk}.ffn_gate.weight"].T
        up = x @ self.w[f"{blk}.ffn_up.weight"].T
        return (gate / (1 + numpy.exp(-gate)) * up) @ self.w[f"{blk}.ffn_down.weight"].T

    def logits(self, tokens):
        x = self.w["token_embd.weight"][tokens]
        for i in range(self.n_layers):
            x = x + self.attention(self.norm(x, f"blk.{i}.attn_norm.weight"), f"blk.{i}")
            x = x + self.mlp(self.norm(x, f"blk.{i}.ffn_norm.weight"), f"blk.{i}")
        head = self.w.get("output.weight", self.w["token_embd.weight"])
        return self.norm(x, "output_norm.weight") @ head.T


def their_tokens(model, text):
    vocabulary = llama_cpp.llama_model_get_vocab(model.model)
    room = (llama_cpp.llama_token * 4096)()
    data = text.encode()
    n = llama_cpp.llama_tokenize(vocabulary, data, len(data), room, 4096, False, False)
    assert n >= 0, n
    return list(room[:n])


def our_tokens(model, text):
    data, n = text.encode(), ctypes.c_size_t()
    room = (ctypes.c_int32 * 4096)()
    model.call("dsi_tokenize", model.model, data, ctypes.c_size_t(len(data)), ctypes.c_uint32(0),
               room, ctypes.c_size_t(4096), ctypes.byref(n), handle=model.model)
    return list(room[:n.value])


def our_greedy(model, prompt, n):
    """Tokens, and the logits that each was taken from."""
    model.renew()
    session, tokens, rows = model.sessions[0], [], []
    model.append(session, prompt)
    for _ in range(n):
        model.drain()
        rows.append(model.logits(session)[-1])
        tokens.append(int(rows[-1].argmax()))
        model.append(session, tokens[-1:])
    return tokens, rows


def their_greedy(model, prompt, n):
    model.clear()
    tokens, rows = [], []
    model.decode([(token, i, 0) for i, token in enumerate(prompt)])
    for i in range(n):
        rows.append(model.logits(-1))
        tokens.append(int(rows[-1].argmax()))
        model.decode([(tokens[-1], len(prompt) + i, 0)])
    return tokens, rows


def check_logits(reference, path, prompts):
    ok = True
    for activations, limit in (("f32", MOST_KL), ("bf16", None)):
        model = Ours(path, THREADS, context=1024, activations=activations, all_logits=True)
        total = rows = same = 0
        for tokens in prompts:
            model.renew()
            model.append(model.sessions[0], tokens)
            model.drain()
            got, wanted = model.logits(model.sessions[0]), reference.logits(tokens)
            total += mean_kl(wanted, got) * len(tokens)
            same += int((wanted.argmax(axis=1) == got.argmax(axis=1)).sum())
            rows += len(tokens)
        kl = total / rows
        ok &= limit is None or kl <= limit
        print(f"logits, {activations} activations: {rows} rows, mean KL {kl:.2e}"
              + (f" (at most {limit:.0e})" if limit else "")
              + f", same best token {same / rows:.4f}")
    return ok


def check_greedy(reference, path, theirs, prompts):
    """Where the texts part, the two best tokens of the reference are nearer to each other than the
    errors of the two engines there."""
    model = Ours(path, THREADS, context=1024, activations="f32")
    n_same, ok = 0, True
    for index, prompt in enumerate(prompts):
        mine, my_rows = our_greedy(model, prompt, N_GREEDY)
        other, their_rows = their_greedy(theirs, prompt, N_GREEDY)
        at = next((i for i in range(N_GREEDY) if mine[i] != other[i]), None)
        if at is None:
            n_same += 1
            continue
        true = reference.logits(prompt + mine[:at])[-1]
        a, b = mine[at], other[at]
        margins = [float(row[a] - row[b]) for row in (true, my_rows[at], their_rows[at])]
        errors = [abs(margin - margins[0]) for margin in margins[1:]]
        explained = abs(margins[0]) <= max(errors) and errors[0] <= errors[1]
        ok &= explained
        print(f"greedy {index}: first difference at token {at} of {N_GREEDY}: {a} here, {b} in "
              f"llama.cpp; margin {margins[0]:+.4f} in the reference, {margins[1]:+.4f} here, "
              f"{margins[2]:+.4f} in llama.cpp: errors {errors[0]:.4f} and {errors[1]:.4f}"
              + ("" if explained else " NOT EXPLAINED"))
    print(f"greedy: {n_same} of {len(prompts)} texts of {N_GREEDY} tokens are equal to llama.cpp's")
    return ok


def our_speed(model, n_prompt, n_decode):
    model.renew()
    session = model.sessions[0]
    model.append(session, [3 + i * 7 % 40000 for i in range(n_prompt)])
    start = time.perf_counter()
    model.drain()
    middle = time.perf_counter()
    for i in range(n_decode):
        model.append(session, [100 + i])
        model.step()
    return n_prompt / (middle - start), n_decode / (time.perf_counter() - middle)


def their_speed(model, n_prompt, n_decode):
    model.clear()
    rows = [(3 + i * 7 % 40000, i, 0) for i in range(n_prompt)]
    start = time.perf_counter()
    model.decode(rows)
    middle = time.perf_counter()
    for i in range(n_decode):
        model.decode([(100 + i, n_prompt + i, 0)])
    return n_prompt / (middle - start), n_decode / (time.perf_counter() - middle)


def compare_speed(path, n_prompt=256, n_decode=48, rounds=5):
    sides = {f"here, {a} activations": (our_speed, Ours(path, THREADS, activations=a, chunk=512))
             for a in ("bf16", "f32", "a8") if can_open(path, a)}
    for repack in (False, True):
        for flash in ("on", "off"):
            name = f"llama.cpp, {'repacked, ' if repack else ''}flash {flash}"
            sides[name] = (their_speed, Llama(path, THREADS, repack=repack, flash=flash))
    found = {name: [] for name in sides}
    for _ in range(rounds):
        for name, (measure, model) in sides.items():
            found[name].append(measure(model, n_prompt, n_decode))
    table = {name: [statistics.median(column) for column in zip(*rows)]
             for name, rows in found.items()}
    best = [max(row[i] for name, row in table.items() if name.startswith("llama")) for i in (0, 1)]
    for name, (prefill, decode) in table.items():
        print(f"speed, {THREADS} threads, {name}: prefill {n_prompt} {prefill:.0f} tok/s "
              f"({prefill / best[0]:.2f} of llama.cpp's best), decode {decode:.1f} "
              f"({decode / best[1]:.2f})", flush=True)


def can_open(path, activations):
    try:
        Ours(path, THREADS, activations=activations)
    except RuntimeError:
        return False
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("--no-speed", action="store_true")
    parser.add_argument("--only-speed", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    ok = True
    if not options.only_speed:
        theirs = Llama(options.file, THREADS, flash="off")
        reader = Ours(options.file, THREADS)
        prompts = [their_tokens(theirs, text) for text in PROMPTS]
        odd = ["a\x04b \x13", "１２３ 4567 naïve 中文\U0001F600", "  two\n\n\tlines  "]
        same = sum(our_tokens(reader, text) == their_tokens(theirs, text) for text in PROMPTS + odd)
        print(f"tokens: {same} of {len(PROMPTS + odd)} texts have llama.cpp's ids")
        reference = Reference(options.file)
        ok = same == len(PROMPTS + odd)
        ok &= check_logits(reference, options.file, prompts)
        ok &= check_greedy(reference, options.file, theirs, prompts)
        theirs.close()
    if not options.no_speed:
        compare_speed(options.file, rounds=options.rounds)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
