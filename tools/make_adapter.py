"""Writes tests/data/adapter/: a small LoRA adapter of tests/data/golden/v2-lite as the peft package
saves it, and the logits that PyTorch gives with it. Needs torch, transformers, peft.

    python tools/make_adapter.py [FOLDER of golden checkpoints] [FOLDER to write]
"""

import os
import sys

import peft
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

N_TOKENS = 8


def main():
    goldens = sys.argv[1] if len(sys.argv) > 1 else "tests/data/golden"
    out = sys.argv[2] if len(sys.argv) > 2 else "tests/data/adapter"
    torch.manual_seed(5)
    base = os.path.join(goldens, "v2-lite")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = peft.LoraConfig(
        r=2,
        lora_alpha=8,
        use_rslora=True,
        rank_pattern={"o_proj": 3},
        alpha_pattern={"kv_b_proj": 6},
        target_modules=["q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"],
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    model = peft.get_peft_model(model, config)
    adapted = [p for name, p in model.named_parameters() if "lora_" in name]
    for p in adapted:
        p.data = (p.data * 3).bfloat16().float()
    tokens = torch.randint(0, 512, (N_TOKENS,), generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        logits = model(tokens[None]).logits[0]
    model.base_model.model.config._name_or_path = "v2-lite"
    model.peft_config["default"].base_model_name_or_path = "v2-lite"
    for p in adapted:
        p.data = p.data.bfloat16()
    model.save_pretrained(out)
    os.remove(os.path.join(out, "README.md"))
    golden = {"tokens": tokens.int(), "logits": logits.float().contiguous()}
    save_file(golden, os.path.join(out, "golden.safetensors"))
    for name in os.listdir(out):
        os.chmod(os.path.join(out, name), 0o644)


if __name__ == "__main__":
    main()
