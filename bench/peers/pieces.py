"""The pieces of `bench/peers/run`: each measures ours and theirs once, one after the other, and
prints one JSON object. They are short, so that a piece can have the machine to itself."""

import json
import os
import statistics
import subprocess
import sys
import time

from ours import BUILD

THREADS = 2


def busy():
    """Seconds of all CPUs that were not idle, and those that this process and its children had."""
    with open("/proc/stat", encoding="ascii") as file:
        ticks = [int(field) for field in file.readline().split()[1:]]
    times = os.times()
    idle = ticks[3] + ticks[4]
    return (sum(ticks[:8]) - idle) / os.sysconf("SC_CLK_TCK"), sum(times[:4])


class Watch:
    """The share of the CPUs that others had (or that the host of this virtual machine took)."""

    def __enter__(self):
        self.start, self.busy = time.perf_counter(), busy()
        return self

    def __exit__(self, *ignored):
        everything, mine = busy()
        seconds = (time.perf_counter() - self.start) * THREADS
        others = (everything - self.busy[0]) - (mine - self.busy[1])
        self.others = max(0.0, others / seconds)


class Cells:
    """A list of measurements: cell, contestant, tokens per second, what else is known of it."""

    def __init__(self):
        self.rows = []

    def add(self, cell, name, rate, watch, **more):
        row = {"cell": cell, "name": name, "tps": round(rate, 3), "others": round(watch.others, 3)}
        self.rows.append(row | {k: v for k, v in more.items() if v})

    def ours(self, name, folder, *options):
        """`dsi-bench model` in a process of its own; the limits are measured between its steps."""
        command = [f"{BUILD}/dsi-bench", "model", "-m", folder, "--threads", str(THREADS), "--json"]
        with Watch() as watch:
            done = subprocess.run(command + [str(o) for o in options], capture_output=True,
                                  text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr.strip() or f"dsi-bench ended with {done.returncode}")
        result = json.loads(done.stdout.splitlines()[-1])
        for run in result["runs"]:
            cell = f"{run['work']} tokens={run['tokens'] if run['work'] == 'prefill' else 1} " \
                   f"depth={run['depth']} sessions={run['batch']}"
            self.add(cell, name, run["tps"], watch, gbs=run.get("gbs"), gflops=run.get("gflops"),
                     read_gbs=run.get("read_gbs"), bf16=run.get("peak_bf16_gflops"),
                     int8=run.get("peak_int8_gops"), clock=result.get("clock_ghz"),
                     engine=result.get("engine"))


def prefill_cell(tokens):
    return f"prefill tokens={tokens} depth=0 sessions=1"


def decode_cell(depth, sessions):
    return f"decode tokens=1 depth={depth} sessions={sessions}"


def llama_decode(llama, steps, position, sessions=1):
    """Tokens per second of the median step; positions go on from `position`."""
    seconds = []
    for step in range(steps):
        rows = [(5 + (step * 7 + s) % 1000, position + step, s) for s in range(sessions)]
        start = time.perf_counter()
        llama.decode(rows)
        for row in range(sessions):
            llama.logits(row)
        seconds.append(time.perf_counter() - start)
    return sessions / statistics.median(seconds)


def llama_prefill(llama, tokens, limit=100.0, part=512):
    """Tokens per second, and whether the time limit cut it (then of the tokens so far)."""
    llama.clear()
    start, done = time.perf_counter(), 0
    while done < tokens:
        n = min(part, tokens - done)
        llama.decode([(2 + (done + i) * 31 % 4000, done + i, 0) for i in range(n)])
        done += n
        if time.perf_counter() - start > limit:
            break
    llama.logits(n - 1)
    return done / (time.perf_counter() - start), done < tokens


def open_peer(models, key, repack=False, flash="off", sessions=1, context=512, **more):
    from llama import Llama

    llama = Llama(models[key], THREADS, sessions, context, repack, flash, **more)
    llama.name = f"llama.cpp {key}" + (", repacked" if repack else "")
    llama.bytes, llama.params = active(models[key])
    return llama


def active(path):
    """Bytes and numbers of the weights that one token uses."""
    import gguf

    reader = gguf.GGUFReader(path)
    used, experts = (int(reader.fields[f"deepseek2.expert_{key}"].parts[-1][0])
                     for key in ("used_count", "count"))
    n_bytes = n_numbers = 0
    for tensor in reader.tensors:
        share = used / experts if "_exps" in tensor.name else 1
        if tensor.name != "token_embd.weight":
            n_bytes += share * int(tensor.n_bytes)
            n_numbers += share * int(tensor.n_elements)
    return n_bytes, n_numbers


def peer_name(llama, flash):
    return f"{llama.name}, flash {flash}"


OURS8 = (("fp8", "fp8", ()), ("int8 a8", "int8", ("--activations", "a8")))
OURS4 = (("int4", "int4", ()), ("int4 a8", "int4", ("--activations", "a8")))


def both(cells, models, pairs, llama, flashes, work):
    """Ours and theirs, once each. work: decode or a number of prompt tokens."""
    for name, key, options in pairs:
        if work == "decode":
            cells.ours(name, models[key], "--prefill", 0, "--decode", 12, *options)
        else:
            cells.ours(name, models[key], "--prefill", work, "--decode", 0, *options)
    for flash in flashes:
        llama.configure(1, 512 if work == "decode" else work + 64, flash)
        llama_decode(llama, 3, 0)
        with Watch() as watch:
            if work == "decode":
                cell, cut, rate = decode_cell(0, 1), False, llama_decode(llama, 12, 3)
            else:
                cell = prefill_cell(work)
                rate, cut = llama_prefill(llama, work, limit=60)
        arithmetic = {"gbs": round(rate * llama.bytes / 1e9, 3)} if work == "decode" else {
            "gflops": round(2 * rate * llama.params / 1e9, 2)}
        cells.add(cell, peer_name(llama, flash), rate, watch, cut=cut, **arithmetic)


def piece_decode8(cells, models):
    both(cells, models, OURS8, open_peer(models, "q8_0"), ("off", "on"), "decode")


def piece_decode4(cells, models, key="q4_0", repack=True):
    both(cells, models, OURS4, open_peer(models, key, repack), ("off",), "decode")


def piece_decode4_stored(cells, models):
    piece_decode4(cells, models, repack=False)


def piece_decode4_k(cells, models):
    piece_decode4(cells, models, "q4_k")


def piece_decode4_k_stored(cells, models):
    piece_decode4(cells, models, "q4_k", False)


def piece_prefill128(cells, models):
    both(cells, models, OURS8, open_peer(models, "q8_0"), ("off", "on"), 128)


def piece_prefill4(cells, models):
    both(cells, models, OURS4, open_peer(models, "q4_0", True), ("off", "on"), 128)


def piece_prefill4_k(cells, models):
    both(cells, models, OURS4, open_peer(models, "q4_k", True), ("on",), 128)


def piece_prefill1024(cells, models):
    both(cells, models, OURS8, open_peer(models, "q8_0"), ("on",), 1024)


def piece_prefill1024_plain(cells, models):
    both(cells, models, OURS8[:1], open_peer(models, "q8_0"), ("off",), 1024)


def piece_prefill4096(cells, models):
    """Ours alone: llama.cpp needs minutes."""
    for name, key, options in OURS8:
        cells.ours(name, models[key], "--prefill", 4096, "--decode", 0, *options)


def depth(cells, models, depth_tokens, steps):
    llama = open_peer(models, "q8_0")
    cells.ours("fp8", models["fp8"], "--prefill", 0, "--decode", 12, "--depth",
               f"0,{depth_tokens}")
    for flash in ("off", "on"):
        llama.configure(depth_tokens // 256, depth_tokens + 512, flash, unified=True)
        position = llama.fill(depth_tokens)
        llama_decode(llama, 1, position)
        with Watch() as watch:
            rate = llama_decode(llama, steps, position + 1)
        cells.add(decode_cell(depth_tokens, 1), peer_name(llama, flash), rate, watch,
                  gbs=round(rate * llama.bytes / 1e9, 3))


def piece_depth1024(cells, models):
    depth(cells, models, 1024, 6)


def piece_depth8192(cells, models):
    depth(cells, models, 8192, 3)


def piece_sessions(cells, models):
    llama = open_peer(models, "q8_0")
    cells.ours("fp8", models["fp8"], "--prefill", 0, "--decode", 8, "--batch", "4,8")
    for sessions in (4, 8):
        for flash in ("off", "on"):
            llama.configure(sessions, 256, flash)
            llama_decode(llama, 1, 0, sessions)
            with Watch() as watch:
                rate = llama_decode(llama, 6, 1, sessions)
            cells.add(decode_cell(0, sessions), peer_name(llama, flash), rate, watch)


def piece_moe(cells, models):
    """The experts of a layer as an operator. Rows per second; the rest follows from them."""
    from kt import EXPERTS, HIDDEN, INTER, TOP_K, Experts

    del models
    peer = Experts(THREADS)
    command = [f"{BUILD}/dsi-bench", "moe", "--m", "1,4,128,512", "--threads", str(THREADS)]
    with Watch() as watch:
        done = subprocess.run(command + ["--json"], capture_output=True, text=True, check=True)
    for row in json.loads(done.stdout)["moe"]:
        cells.add(f"experts rows={row['rows']}", "fp8", 1e3 * row["rows"] / row["ms"], watch,
                  gbs=row["gbs"], gflops=row["gflops"])
    for rows in (1, 4, 128, 512):
        with Watch() as watch:
            seconds = peer.seconds(rows)
        touched = EXPERTS * (1 - (1 - TOP_K / EXPERTS) ** rows)
        one = 3 * HIDDEN * INTER
        cells.add(f"experts rows={rows}", "kt-kernel fp8", rows / seconds, watch,
                  gbs=round(touched * one / seconds / 1e9, 3),
                  gflops=round(2 * rows * TOP_K * one / seconds / 1e9, 2))
    limits(cells)


def limits(cells):
    """What the machine gives in this minute."""
    command = [f"{BUILD}/dsi-bench", "limits", "--threads", str(THREADS), "--rounds", "3", "--json"]
    with Watch() as watch:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    r = json.loads(done.stdout.splitlines()[-1])
    cells.add("limits", "machine", 0, watch, read_gbs=r["read_gbs"], bf16=r["peak_bf16_gflops"],
              int8=r["peak_int8_gops"], clock=r.get("clock_ghz"))


# Which files a piece reads, so that they are in memory before it begins.
PIECES = {
    "decode8": ("fp8", "int8", "q8_0"), "depth1024": ("fp8", "q8_0"),
    "depth8192": ("fp8", "q8_0"), "sessions": ("fp8", "q8_0"),
    "prefill128": ("fp8", "int8", "q8_0"), "prefill1024": ("fp8", "int8", "q8_0"),
    "prefill1024_plain": ("fp8", "q8_0"), "prefill4096": ("fp8", "int8"),
    "decode4": ("int4", "q4_0"), "decode4_stored": ("int4", "q4_0"),
    "decode4_k": ("int4", "q4_k"), "decode4_k_stored": ("int4", "q4_k"),
    "moe": (), "prefill4": ("int4", "q4_0"), "prefill4_k": ("int4", "q4_k"),
}
SLOW = ("prefill1024", "prefill1024_plain", "prefill4096", "depth8192")


def main():
    """usage: pieces.py PIECE MODELS(json)"""
    name, models = sys.argv[1], json.loads(sys.argv[2])
    cells, error = Cells(), None
    try:
        globals()[f"piece_{name}"](cells, models)
    except RuntimeError as failure:
        error = str(failure)
    print(json.dumps({"piece": name, "rows": cells.rows, "error": error}))


if __name__ == "__main__":
    main()
