#!/usr/bin/env python3
"""Makes measured.json and a table of what bench/peers/run has measured, and puts the table into
README.md and README.zh.md.

A rate is the median of its rounds, of ours those of the newest commit; rounds in which other
programs had more than a tenth of the CPUs are left out where there are others. Of a peer the
fastest setting counts. A ratio is the median of the ratios of the rounds that have both, else the
ratio of the medians; there is none where one setting of llama.cpp alone was measured.

usage: bench/peers/table.py [--results FILE] [--readme]
"""

import argparse
import json
import os
import statistics

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.environ.get("BUILD", f"{ROOT}/build")
MEASURED = f"{ROOT}/bench/peers/measured.json"
DISTURBED = 0.1
DECODE, PREFILL = "decode tokens=1 depth={} sessions={}", "prefill tokens={} depth=0 sessions=1"
# (English, Chinese, cell, ours, beginning of the peers' names)
LINES = []
for ours in ("fp8", "int8 a8"):
    LINES.append(("decode, 1 session", "生成，1 个会话", DECODE.format(0, 1), ours, "llama.cpp q8"))
for depth in (1024, 8192):
    LINES.append((f"decode behind {depth:,} tokens", f"上下文 {depth:,} 词元后生成",
                  DECODE.format(depth, 1), "fp8", "llama.cpp q8"))
for sessions in (4, 8):
    LINES.append((f"decode, {sessions} sessions", f"生成，{sessions} 个会话",
                  DECODE.format(0, sessions), "fp8", "llama.cpp q8"))
for tokens in (128, 1024, 4096):
    for ours in ("fp8", "int8 a8"):
        LINES.append((f"prefill {tokens:,}", f"预填充 {tokens:,}", PREFILL.format(tokens), ours,
                      "llama.cpp q8"))
for ours in ("int4", "int4 a8"):
    LINES.append(("decode, 4 bits", "生成，4 位", DECODE.format(0, 1), ours, "llama.cpp q4"))
for ours in ("int4", "int4 a8"):
    LINES.append(("prefill 128, 4 bits", "预填充 128，4 位", PREFILL.format(128), ours,
                  "llama.cpp q4"))
for rows in (1, 4, 128, 512):
    LINES.append((f"32 experts, 8 per row: rows {rows}", f"32 专家，每行 8 个：{rows} 行",
                  f"experts rows={rows}", "fp8", "kt-kernel"))


def clean(rows):
    quiet = [row for row in rows if row["others"] <= DISTURBED]
    return quiet or rows


def newest(rows):
    """Those of the last commit that was measured."""
    return [row for row in rows if row.get("commit") == rows[-1].get("commit")]


def median(rows, key):
    values = [row[key] for row in rows if row.get(key)]
    return statistics.median(values) if values else None


def summary(rows):
    rows = clean(rows)
    out = {"tps": median(rows, "tps"), "rounds": len(rows),
           "disturbed": min(r["others"] for r in rows) > DISTURBED}
    for key in ("gbs", "gflops"):
        if median(rows, key):
            out[key] = round(median(rows, key), 2)
    if any(row.get("cut") for row in rows):
        out["cut"] = True
    return out


def ratio(ours, peer):
    by_round = {row["time"]: row["tps"] for row in clean(peer)}
    both = [row["tps"] / by_round[row["time"]] for row in clean(ours) if row["time"] in by_round]
    return statistics.median(both) if both else median(clean(ours), "tps") / median(
        clean(peer), "tps")


def evaluate(rows):
    """One entry per line of the table that was measured."""
    by_cell = {}
    for row in rows:
        by_cell.setdefault(row["cell"], {}).setdefault(row["name"], []).append(row)
    lines = []
    for english, chinese, cell, name, peers in LINES:
        contestants = by_cell.get(cell, {})
        if name not in contestants:
            continue
        line = {"work": english, "work_zh": chinese, "cell": cell, "ours": name}
        mine = newest(contestants[name])
        line["libdsinfer"], line["commit"] = summary(mine), mine[-1].get("commit", "")
        rivals = {k: v for k, v in contestants.items() if k.startswith(peers)}
        if rivals:
            best = max(rivals, key=lambda k: summary(rivals[k])["tps"])
            line["peer"], line["rival"] = best, summary(rivals[best])
            # A ratio is claimed over the peer's best, so there must have been a choice.
            line["one_setting"] = best.startswith("llama.cpp") and len(rivals) == 1
            if not line["one_setting"]:
                line["ratio"] = round(ratio(mine, rivals[best]), 3)
            line["settings"] = {k: summary(v)["tps"] for k, v in rivals.items()}
        lines.append(line)
    return lines


def machine(rows):
    quiet = clean([row for row in rows if row.get("read_gbs")])
    return {"cpu": rows[-1]["cpu"], "threads": 2,
            "read_gbs": median(quiet, "read_gbs"),
            "read_gbs_range": [min(r["read_gbs"] for r in quiet),
                               max(r["read_gbs"] for r in quiet)],
            "bf16_gflops": median(quiet, "bf16"), "int8_gops": median(quiet, "int8"),
            "clock_ghz": median(quiet, "clock"), "from": rows[0]["time"], "to": rows[-1]["time"],
            "load_before": [min(r["load"] for r in rows), max(r["load"] for r in rows)],
            "engine": next((r["engine"] for r in reversed(rows) if r.get("engine")), "")}


def versions():
    with open(f"{ROOT}/bench/peers/requirements.txt", encoding="utf-8") as file:
        pins = dict(line.strip().split("==") for line in file if "==" in line)
    return {"llama.cpp": "0c1e570 (llama_cpp_python " + pins["llama_cpp_python"] + ")",
            "kt-kernel": pins["kt-kernel"]}


def rate(entry, cell):
    """Tokens per second, and the figure that bounds such work: bytes or multiply-adds."""
    if not entry or entry["tps"] is None:
        return "-"
    text = f"{entry['tps']:,.1f}" + (" (cut)" if entry.get("cut") else "")
    rows = int(cell.split("rows=")[1]) if "rows=" in cell else 1
    if cell.startswith("prefill") or rows > 16:
        return text + (f"; {entry['gflops']:.0f} GFLOP/s" if entry.get("gflops") else "")
    return text + (f"; {entry['gbs']:.1f} GB/s" if entry.get("gbs") else "")


def markdown(lines, chinese=False):
    head = ("| 工作 | 权重 | libdsinfer，词元/秒 | 对手（其最快设置） | 词元/秒 | 倍数 |" if chinese else
            "| work | weights | libdsinfer, tok/s | peer (its fastest setting) | tok/s | ratio |")
    alone = "（只测了此设置）" if chinese else " (no other setting measured)"
    out = [head, "|---|---|---|---|---|---|"]
    for line in lines:
        peer = line.get("peer", "未测" if chinese else "not measured")
        if line.get("one_setting"):
            peer += alone
        ratio_text = f"{line['ratio']:.2f}" if "ratio" in line else "-"
        out.append(f"| {line['work_zh' if chinese else 'work']} | {line['ours'].upper()} | "
                   f"{rate(line['libdsinfer'], line['cell'])} | {peer} | "
                   f"{rate(line.get('rival'), line['cell'])} | {ratio_text} |")
    return "\n".join(out) + "\n"


def place(path, table):
    with open(path, encoding="utf-8") as file:
        text = file.read()
    begin, end = "<!-- peers: begin -->\n", "<!-- peers: end -->"
    before, rest = text.split(begin)
    with open(path, "w", encoding="utf-8") as file:
        file.write(before + begin + table + end + rest.split(end)[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", default=f"{BUILD}/peers/results.jsonl")
    parser.add_argument("--readme", action="store_true", help="and write measured.json, README*")
    args = parser.parse_args()
    with open(args.results, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    result = {"machine": machine(rows), "versions": versions(), "lines": evaluate(rows)}
    print(markdown(result["lines"]))
    print(json.dumps(result["machine"]))
    if args.readme:
        with open(MEASURED, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1, ensure_ascii=False)
            file.write("\n")
        place(f"{ROOT}/README.md", markdown(result["lines"]))
        place(f"{ROOT}/README.zh.md", markdown(result["lines"], True))


if __name__ == "__main__":
    main()
