"""Writes small random checkpoints with the logits that `transformers` computes for them.

tests/data/golden/ was made with seed 1; requirements: tools/tiny_gov/requirements.txt.
Each OUT/CASE/ holds config.json and model.safetensors in the Hugging Face layout, and
golden.safetensors with
  tokens [96] int32, logits [96, vocab] f32    after every token, all in f32 arithmetic
  greedy [16] int32                            the greedy continuation
FP8 cases store E4M3 weights with 128x128 multipliers. Their logits come from the dequantised
weights, so an engine that also rounds activations differs by that rounding alone.
V3.2 chooses tokens by scores of which several may be equal, zeros above all. torch.topk promises
nothing then; here the lower position wins. Beside the logits of transformers' formula there are
  logits_fp8 [96, vocab] f32                   with the Hadamard transform and the FP8 rounding of
                                               DeepSeek's own code, which transformers leaves out

usage: python make_golden.py OUT SEED [CASE ...]
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent / "tiny_gov"))
from export import dequantize, quantize  # noqa: E402

N_TOKENS, N_GREEDY = 96, 16
F32_EAGER = dict(dtype=torch.float32, attn_implementation="eager", experts_implementation="eager")


def yarn(factor, original):
    """rope_scaling of a checkpoint stretched from `original` positions by `factor`."""
    return dict(
        type="yarn",
        rope_type="yarn",
        factor=factor,
        original_max_position_embeddings=original,
        beta_fast=32,
        beta_slow=1,
        mscale=1.0,
        mscale_all_dim=1.0,
    )


# Sizes are multiples of nothing in particular: partial FP8 blocks and vector tails are the point.
MLA = dict(
    vocab_size=512,
    hidden_size=192,
    intermediate_size=320,
    moe_intermediate_size=80,
    num_attention_heads=4,
    num_key_value_heads=4,
    kv_lora_rank=128,
    qk_rope_head_dim=32,
    v_head_dim=32,
    qk_nope_head_dim=32,
    n_shared_experts=1,
    max_position_embeddings=512,
    bos_token_id=0,
    eos_token_id=1,
)
V3 = MLA | dict(
    num_hidden_layers=3,
    n_routed_experts=12,
    num_experts_per_tok=4,
    n_group=4,
    topk_group=2,
    routed_scaling_factor=2.5,
    norm_topk_prob=True,
    q_lora_rank=128,
    first_k_dense_replace=1,
)
V3_ODD = V3 | dict(
    hidden_size=320,
    num_attention_heads=5,
    num_key_value_heads=5,
    kv_lora_rank=96,
    q_lora_rank=80,
    qk_nope_head_dim=48,
    v_head_dim=40,
    n_routed_experts=24,
    n_group=3,
    topk_group=1,
    num_experts_per_tok=3,
    moe_intermediate_size=72,
    n_shared_experts=2,
    vocab_size=389,
    routed_scaling_factor=1.7,
)
V2_LITE = MLA | dict(
    num_hidden_layers=3,
    n_routed_experts=8,
    num_experts_per_tok=3,
    q_lora_rank=None,
    first_k_dense_replace=1,
    topk_method="greedy",
    norm_topk_prob=False,
    routed_scaling_factor=1.0,
    n_group=1,
    topk_group=1,
)
V2 = MLA | dict(
    num_hidden_layers=3,
    n_routed_experts=12,
    num_experts_per_tok=4,
    q_lora_rank=96,
    first_k_dense_replace=1,
    topk_method="group_limited_greedy",
    n_group=4,
    topk_group=2,
    norm_topk_prob=False,
    routed_scaling_factor=16.0,
)
QWEN2 = dict(
    vocab_size=512,
    hidden_size=96,
    intermediate_size=208,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=512,
    rope_theta=1000000.0,
    tie_word_embeddings=True,
)
LLAMA3_ROPE = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
LLAMA = dict(
    vocab_size=512,
    hidden_size=96,
    intermediate_size=208,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=3,
    max_position_embeddings=512,
    rope_theta=500000.0,
    rope_scaling=LLAMA3_ROPE,
)
V32 = V3 | dict(index_topk=24, index_head_dim=64, index_n_heads=4)
V3_YARN = V3 | dict(rope_scaling=yarn(8.0, 64), rope_theta=10000.0)

# name: (class of transformers, configuration, how matrices are stored)
CASES = {
    "v3-bf16": ("DeepseekV3", V3, "bf16"),
    "v3-fp8": ("DeepseekV3", V3, "fp8"),
    "v3-yarn": ("DeepseekV3", V3_YARN, "bf16"),
    "v3-odd": ("DeepseekV3", V3_ODD, "fp8"),
    "v32": ("DeepseekV32", V32, "bf16"),
    "v2-lite": ("DeepseekV2", V2_LITE, "bf16"),
    "v2": ("DeepseekV2", V2, "bf16"),
    "qwen2": ("Qwen2", QWEN2, "bf16"),
    "llama": ("Llama", LLAMA, "bf16"),
}


def hadamard(x):
    """Sylvester's transform of the last dimension, times its length^-0.5."""
    n = x.shape[-1]
    y, half = x, 1
    while half < n:
        y = y.view(*x.shape[:-1], n // (2 * half), 2, half)
        a, b = y[..., 0, :], y[..., 1, :]
        y, half = torch.stack((a + b, a - b), -2).view(x.shape), 2 * half
    return y * n**-0.5


def round_fp8(x):
    """E4M3 with one multiplier for the last dimension, a power of two (act_quant, "ue8m0")."""
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-4) / 448
    scale = torch.exp2(torch.ceil(torch.log2(scale)))
    return (x / scale).to(torch.float8_e4m3fn).float() * scale


def choose_tokens(fp8):
    """A forward of transformers' DeepseekV32Indexer that says what equal scores mean."""
    from transformers.models.deepseek_v32.modeling_deepseek_v32 import apply_rotary_pos_emb

    def forward(self, hidden, q_resid, position, mask, position_ids=None, past_key_values=None):
        rope, rest = self.qk_rope_head_dim, self.head_dim - self.qk_rope_head_dim
        q = self.wq_b(q_resid).unflatten(-1, (self.n_heads, self.head_dim))
        k = self.k_norm(self.wk(hidden)).unsqueeze(2)
        (q_rot, q_pass), (k_rot, k_pass) = q.split([rope, rest], -1), k.split([rope, rest], -1)
        q_rot, k_rot = apply_rotary_pos_emb(q_rot, k_rot, *position, unsqueeze_dim=2)
        q, k = torch.cat([q_rot, q_pass], -1), torch.cat([k_rot, k_pass], -1).squeeze(2)
        if fp8:
            q, k = round_fp8(hadamard(q)), round_fp8(hadamard(k))
        scores = (q @ k.transpose(-1, -2).unsqueeze(1)).relu()  # [1, rows, heads, cached]
        scores = (self.weights_proj(hidden).unsqueeze(-2) @ scores).squeeze(-2) + mask
        order = scores.sort(dim=-1, descending=True, stable=True).indices
        return order[..., : min(self.index_topk, scores.shape[-1])].int()

    return forward


@torch.no_grad()
def randomize(model, rng):
    """Weights that keep activations near 1 and leave no term of the formulas invisible."""
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if not value.is_floating_point() or "inv_freq" in name or "rotary" in name:
            continue
        if name.endswith("e_score_correction_bias"):
            value.copy_(torch.randn(value.shape, generator=rng) * 0.05)
        elif value.dim() >= 2:
            std = 1.0 if "embed" in name else 1.6 * value.shape[-1] ** -0.5
            value.copy_(torch.randn(value.shape, generator=rng) * std)
        elif name.endswith("bias"):
            value.copy_(0.1 * torch.randn(value.shape, generator=rng))
        elif "norm" in name:
            value.copy_(1 + 0.1 * torch.randn(value.shape, generator=rng))


def store_tensors(tensors, store):
    """Tensors as the file holds them: FP8 for the projections if asked for, else BF16."""
    stored = {}
    for name, value in tensors.items():
        projection = name.endswith(("_proj.weight", "kv_a_proj_with_mqa.weight"))
        if name.endswith("e_score_correction_bias") or not value.is_floating_point():
            stored[name] = value
        elif store == "fp8" and value.dim() == 2 and projection:
            stored[name], stored[name + "_scale_inv"] = quantize(value)
        else:
            stored[name] = value.bfloat16()
    return stored


def f32_tensors(stored):
    """What an engine reads out of the stored tensors, as f32."""
    tensors = {}
    for name, value in stored.items():
        if value.dtype == torch.float8_e4m3fn:
            tensors[name] = dequantize(value, stored[name + "_scale_inv"])
        elif not name.endswith("_scale_inv"):
            tensors[name] = value.float() if value.is_floating_point() else value
    return tensors


def set_indexers(model, fp8):
    """Every indexer of the model chooses by choose_tokens."""
    for module in model.modules():
        if type(module).__name__ == "DeepseekV32Indexer":
            module.forward = choose_tokens(fp8).__get__(module)


@torch.no_grad()
def golden_values(model, vocab_size, rng):
    """Random tokens [96] behind the begin token, their logits [96, vocab], 16 greedy tokens."""
    ids = torch.randint(2, vocab_size, (1, N_TOKENS), generator=rng)
    ids[0, 0] = 0
    logits = model(ids, use_cache=False).logits[0]
    longer = ids.clone()
    for _ in range(N_GREEDY):
        best = model(longer, use_cache=False).logits[:, -1:].argmax(-1)
        longer = torch.cat([longer, best], 1)
    return {
        "tokens": ids[0].int(),
        "logits": logits.contiguous(),
        "greedy": longer[0, N_TOKENS:].int().contiguous(),
    }


def write_config(path, kind, store):
    """Rewrites the config.json of transformers with the keys of the published ones."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("transformers_version", "_attn_implementation", "num_nextn_predict_layers"):
        config.pop(key, None)
    if kind in ("DeepseekV3", "DeepseekV32"):
        config.update(scoring_func="sigmoid", topk_method="noaux_tc")
    if kind == "DeepseekV2":
        config.update(scoring_func="softmax")
    if store == "fp8":
        config["quantization_config"] = dict(
            activation_scheme="dynamic",
            fmt="e4m3",
            quant_method="fp8",
            weight_block_size=[128, 128],
        )
    path.write_text(json.dumps(config, indent=1), encoding="utf-8")


def make(name, out, seed):
    """Writes OUT/name."""
    kind, settings, store = CASES[name]
    model_class = getattr(transformers, kind + "ForCausalLM")
    config = getattr(transformers, kind + "Config")(**settings)
    rng = torch.Generator().manual_seed(seed)
    model = model_class(config).float()
    randomize(model, rng)
    folder = out / name
    model.save_pretrained(folder)  # gives the tensors their published names
    (folder / "generation_config.json").unlink(missing_ok=True)
    weights = folder / "model.safetensors"
    stored = store_tensors({k: v.contiguous() for k, v in load_file(weights).items()}, store)
    save_file(stored, weights, metadata={"format": "pt"})
    with tempfile.TemporaryDirectory() as plain:
        save_file(f32_tensors(stored), f"{plain}/model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(plain)
        reader = model_class.from_pretrained(plain, **F32_EAGER).eval()
    set_indexers(reader, fp8=False)
    golden = golden_values(reader, config.vocab_size, rng)
    if kind == "DeepseekV32":
        set_indexers(reader, fp8=True)
        ids = golden["tokens"].long().unsqueeze(0)
        with torch.no_grad():
            golden["logits_fp8"] = reader(ids, use_cache=False).logits[0].contiguous()
    save_file(golden, folder / "golden.safetensors")
    write_config(folder / "config.json", kind, store)
    entropy = torch.distributions.Categorical(logits=golden["logits"]).entropy().mean()
    print(
        f"{name}: tensors {len(stored)} bytes {weights.stat().st_size} "
        f"logit std {golden['logits'].std():.3f} entropy {entropy:.2f}",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("seed", type=int)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="default: all")
    args = parser.parse_args()
    for name in args.cases or CASES:
        make(name, args.out, args.seed)


if __name__ == "__main__":
    main()
