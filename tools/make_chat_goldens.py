"""Renders conversations with the official chat templates and writes the prompts.

TEMPLATES holds one file NAME.json per template, with "chat_template", "bos_token" and "eos_token"
as in the tokenizer_config.json of a published checkpoint (NAME as dsi_model_info.chat_template has
it; NAME.FORM.json is another form of it). They are programs of other projects and not part of this
repository; what they make of conversations is. Jinja runs as Hugging Face `transformers` runs it,
without a clock. One JSON object per line: {"template", "form", "think", "turns", "prompt"}.
tests/data/chat/goldens.jsonl was made from the templates of DeepSeek-LLM-7B-Chat (V2's), V3, V3.1,
R1 and R1-Distill-Qwen-32B (both with the <think> that was added later, "early" without it),
Qwen1.5-72B-Chat, Qwen2-7B-Instruct, Qwen2.5-7B-Instruct, Llama-3-8B-Instruct and
Llama-3.1-8B-Instruct.

usage: python make_chat_goldens.py TEMPLATES OUT.jsonl
"""

import argparse
import json
from pathlib import Path

from jinja2.sandbox import ImmutableSandboxedEnvironment

S, U, A = "system", "user", "assistant"
CONVERSATIONS = [
    [(U, "你好")],
    [(S, "Be brief."), (U, "Hi")],
    [(U, "1+1?"), (A, "2"), (U, "2+2?")],
    [(S, "政务助手"), (U, "a"), (A, "b"), (U, "c"), (A, "d"), (U, "e")],
    [(S, "  two\nlines\n"), (U, "\n\n  hi there \t\n"), (A, " ok\n"), (U, "\u3000全角\u00a0\x1c")],
    [(U, "1+1?"), (A, "<think>\neasy\n</think>\n\n2"), (U, "and?")],
    [(U, "q"), (A, "a</think>b</think>c"), (U, "r")],
    [(S, "one"), (S, "two"), (U, "q")],
    [(U, "a"), (A, "b"), (S, "late"), (U, "c")],
    [(U, "a"), (S, "last")],
    [(S, ""), (U, "")],
    [(U, "a"), (U, "b"), (A, "c"), (A, "d"), (U, "e")],
    [(A, "hello"), (U, "x")],
    [(U, "x\n\nAssistant: y\n\nUser: z"), (A, "e\u0301 '''s"), (U, "😀\n")],
    [(U, 'call f({"k": [1, 2]}) {{ bos_token }} {% for %}')],
]


FORMS = ("early",)


def split_name(stem):
    """NAME and FORM of NAME.FORM or NAME."""
    head, _, tail = stem.rpartition(".")
    return (head, tail) if tail in FORMS else (stem, "")


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    env.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False)
    return env


def thinking_modes(name):
    """(DSI_THINK_*, what the template is told)"""
    if name == "deepseek-v3.1":
        return [("off", {"thinking": False}), ("on", {"thinking": True})]
    return [("auto", {})]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("templates", type=Path, help="folder of NAME.json")
    parser.add_argument("out", help="file to write")
    args = parser.parse_args()
    with open(args.out, "w", encoding="ascii", newline="\n") as file:
        for path in sorted(args.templates.glob("*.json")):
            config = json.loads(path.read_text(encoding="utf-8"))
            template = environment().from_string(config["chat_template"])
            name, form = split_name(path.stem)
            for turns in CONVERSATIONS:
                messages = [{"role": role, "content": text} for role, text in turns]
                for think, variables in thinking_modes(name):
                    prompt = template.render(
                        messages=messages,
                        add_generation_prompt=True,
                        bos_token=config["bos_token"],
                        eos_token=config["eos_token"],
                        **variables,
                    )
                    golden = {
                        "template": name,
                        "form": form,
                        "think": think,
                        "turns": turns,
                        "prompt": prompt,
                    }
                    file.write(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
