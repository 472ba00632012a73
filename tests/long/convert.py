"""GGUF files that llama.cpp's converter writes, opened by the library: logits and tokens.

Converts small checkpoints of the repository (and tiny-gov, with its tokenizer) with the converter
inside the source archive of llama_cpp_python, then compares the library's logits on each file with
the golden ones, which an independent implementation computed from the checkpoint. The small ones
have no tokenizer: they get a vocabulary of the right size without meaning. Exit code 1 if a limit
is not met.

usage: build/peers/bin/python tests/long/convert.py CONVERTER FOLDER
       CONVERTER: the folder of convert_hf_to_gguf.py; FOLDER: where the GGUF files go
"""

import json
import os
import runpy
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
GOLDEN = f"{ROOT}/tests/data/golden"
TINY = f"{ROOT}/examples/models/tiny-gov"
CASES = [(f"{GOLDEN}/{name}", name) for name in ("v3-bf16", "v2-lite", "llama", "qwen2")]
CASES.append((TINY, "tiny-gov"))
KINDS = ("f32", "q8_0")
MOST_KL = 1e-6  # of the logits with f32 activations


def convert(converter, source, out, kind):
    """In a process of its own: the converter as its authors run it, but for two questions that
    these checkpoints cannot answer: which tokenizer, and which pre-tokenizer by its hash."""
    sys.path.insert(0, converter)
    sys.path.insert(1, f"{converter}/gguf-py")
    from conversion import base

    def made_up(model):
        n = model.hparams["vocab_size"]
        writer = model.gguf_writer
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("deepseek-v3")
        writer.add_token_list([f"t{i}" for i in range(n)])
        writer.add_token_types([1] * n)
        writer.add_token_merges(["t 0"])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)

    base.TextModel.get_vocab_base_pre = lambda model, tokenizer: "deepseek-v3"
    if not os.path.exists(f"{source}/tokenizer.json"):
        from conversion import get_model_class

        with open(f"{source}/config.json", encoding="utf-8") as file:
            get_model_class(json.load(file)["architectures"][0]).set_vocab = made_up
    sys.argv = ["convert_hf_to_gguf.py", source, "--outfile", out, "--outtype", kind]
    runpy.run_path(f"{converter}/convert_hf_to_gguf.py", run_name="__main__")


def logits_of(path, tokens):
    from smollm2 import Ours

    model = Ours(path, 2, context=512, activations="f32", all_logits=True)
    model.append(model.sessions[0], tokens)
    model.drain()
    return model.logits(model.sessions[0])


def in_f32(path):
    """The same file with the numbers of its blocks, as gguf-py decodes them, in F32."""
    import gguf

    reader = gguf.GGUFReader(path)
    out = path.replace(".gguf", "-in-f32.gguf")
    writer = gguf.GGUFWriter(out, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    for t in reader.tensors:
        writer.add_tensor(t.name, gguf.quants.dequantize(t.data, t.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def same_ids(source, path):
    """Texts whose ids in both are the same, and all."""
    from smollm2 import Ours, our_tokens

    inside, folder = Ours(path, 2), Ours(source, 2)
    with open(f"{source}/heldback.jsonl", encoding="utf-8") as file:
        texts = [line for _, line in zip(range(200), file)] + ["<think>\n你好 hello １２３４"]
    return sum(our_tokens(inside, t) == our_tokens(folder, t) for t in texts), len(texts)


def compare(source, name, path, kind):
    from safetensors.numpy import load_file
    from smollm2 import mean_kl

    golden = load_file(f"{source}/golden.safetensors")
    tokens = golden["tokens"].reshape(-1).tolist()
    wanted = golden["logits"].reshape(len(tokens), -1)
    got = logits_of(path, tokens)
    kl = mean_kl(wanted, got)
    words, ok = f"mean KL {kl:.2e} to the golden logits", kl <= MOST_KL
    if kind != "f32":
        rounded = mean_kl(logits_of(in_f32(path), tokens), got)
        ok = rounded <= MOST_KL
        words = f"mean KL {rounded:.2e} to its numbers in F32 ({kl:.1e} to the golden logits)"
    if name == "tiny-gov":
        equal, n = same_ids(source, path)
        ok &= equal == n
        words += f"; {equal} of {n} texts have the ids of tokenizer.json"
    print(f"{name:9} {kind:5}: {os.path.getsize(path):,} bytes, {words}; at most {MOST_KL:.0e}"
          f"{'' if ok else '  FAILED'}", flush=True)
    return ok


def main():
    if len(sys.argv) == 6 and sys.argv[1] == "--one":
        return convert(*sys.argv[2:])
    converter, folder = sys.argv[1:]
    os.makedirs(folder, exist_ok=True)
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    ok = True
    for source, name in CASES:
        for kind in KINDS:
            path = f"{folder}/{name}-{kind}.gguf"
            command = [sys.executable, __file__, "--one", converter, source, path, kind]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{name} {kind}: the converter fails: {done.stderr[-2000:]}")
                ok = False
            else:
                ok &= compare(source, name, path, kind)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
