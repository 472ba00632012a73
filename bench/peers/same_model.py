"""Shows that llama.cpp and libdsinfer compute the same model from the two files of dsi-bench synth.

Writes the preset in BF16 as a checkpoint and as GGUF (equal weights, bit by bit), feeds both the
same random tokens and prints the Kullback-Leibler divergence of their logits. Then it rounds the
weights with ggml's own code and compares with the bytes of the Q8_0, Q4_0 and Q4_K files.

usage: build/peers/bin/python bench/peers/same_model.py [--preset tiny] [--tokens 96]
"""

import argparse
import ctypes
import os
import subprocess
import tempfile

import gguf
import numpy
from llama import Llama
from ours import BUILD, Ours


def synth(preset, *options):
    command = [f"{BUILD}/dsi-bench", "synth", "--preset", preset, "--dtype", "bf16"]
    subprocess.run(command + list(options), check=True, stderr=subprocess.DEVNULL)


def log_softmax(logits):
    logits = logits.astype(numpy.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - numpy.log(numpy.exp(logits).sum(axis=1, keepdims=True))


def divergence(p, q):
    return float((numpy.exp(p) * (p - q)).sum(axis=1).mean())


def compare_logits(preset, n_tokens, folder):
    synth(preset, "--out", folder)
    synth(preset, "--gguf", "bf16", "--out", f"{folder}/model.gguf")
    theirs = Llama(f"{folder}/model.gguf", 2, flash="off")
    tokens = numpy.random.default_rng(1).integers(2, theirs.vocab_size, n_tokens).tolist()
    theirs.decode([(token, i, 0) for i, token in enumerate(tokens)], all_logits=True)
    peer = log_softmax(numpy.stack([theirs.logits(i) for i in range(n_tokens)]))
    entropy = float(-(numpy.exp(peer) * peer).sum(axis=1).mean())
    print(f"{preset}, {n_tokens} tokens; entropy of llama.cpp's distribution {entropy:.3f} nats")
    for activations in ("f32", "bf16"):
        ours = Ours(folder, 2, activations=activations, all_logits=True)
        ours.append(ours.sessions[0], tokens)
        ours.drain()
        mine = log_softmax(ours.logits(ours.sessions[0]))
        top = float((mine.argmax(axis=1) == peer.argmax(axis=1)).mean())
        print(f"  libdsinfer {activations:4}: KL {divergence(peer, mine):.3e}, "
              f"largest difference of a log-probability {abs(mine - peer).max():.3e}, "
              f"same best token {top:.3f}")
    theirs.close()


def reference_rows(values, kind):
    """The rows as ggml's own quantiser stores them."""
    import llama_cpp

    folder = f"{os.path.dirname(llama_cpp.__file__)}/lib"
    lib = ctypes.CDLL(f"{folder}/libggml-base.so")
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    lib.ggml_row_size.restype = ctypes.c_size_t
    lib.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
    values = numpy.ascontiguousarray(values, numpy.float32)
    n_rows, n_columns = values.shape
    out = numpy.empty((n_rows, lib.ggml_row_size(kind, n_columns)), numpy.uint8)
    lib.ggml_quantize_chunk(
        ctypes.c_int(kind), values.ctypes.data_as(ctypes.c_void_p),
        out.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(0), ctypes.c_int64(n_rows),
        ctypes.c_int64(n_columns), None)
    return out


def compare_rounding(preset, folder):
    def read(kind):
        synth(preset, "--gguf", kind, "--out", f"{folder}/{kind}.gguf")
        return {t.name: t for t in gguf.GGUFReader(f"{folder}/{kind}.gguf").tensors}

    def bits(tensor):
        return tensor.data.reshape(-1).view(numpy.uint16).astype(numpy.uint32)

    exact = read("bf16")
    for kind in ("q8_0", "q4_0", "q4_k"):
        same = total = 0
        for name, tensor in read(kind).items():
            if tensor.tensor_type == gguf.GGMLQuantizationType.F32:
                continue
            n_columns = int(tensor.shape[0])
            values = (bits(exact[name]) << 16).view(numpy.float32).reshape(-1, n_columns)
            expected = reference_rows(values, int(tensor.tensor_type)).reshape(-1)
            stored = tensor.data.reshape(-1).view(numpy.uint8)
            same += int((expected == stored).sum())
            total += stored.size
        print(f"  {kind}: {same} of {total} bytes as ggml's quantiser writes them"
              f" ({100 * same / total:.3f} %)")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--tokens", type=int, default=96)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare_logits(args.preset, args.tokens, folder)
        compare_rounding(args.preset, folder)


if __name__ == "__main__":
    main()
