"""tiny-gov's network in PyTorch: the DeepSeek-V3 architecture, small, in f32, for training.

The module names follow the published checkpoint, so that export.py only has to add prefixes.
Shapes: B batch, T tokens, h hidden_size, H heads, E experts, n/r/v the nope, rope and value
dimensions of one head. Formulas: the DeepSeek-V2 paper (MLA), the DeepSeek-V3 paper (router with
a selection bias, multi-token prediction), the YaRN paper (rope).
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F

CONFIG = dict(
    vocab_size=4096,
    hidden_size=256,
    intermediate_size=512,
    moe_intermediate_size=128,
    num_hidden_layers=6,
    num_attention_heads=8,
    num_key_value_heads=8,
    q_lora_rank=128,
    kv_lora_rank=128,
    qk_nope_head_dim=32,
    qk_rope_head_dim=32,
    v_head_dim=32,
    n_routed_experts=16,
    num_experts_per_tok=4,
    n_shared_experts=1,
    n_group=4,
    topk_group=2,
    routed_scaling_factor=2.5,
    first_k_dense_replace=1,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    num_nextn_predict_layers=1,
    max_position_embeddings=2048,
)
YARN = dict(
    type="yarn",
    factor=4.0,
    original_max_position_embeddings=512,
    beta_fast=32,
    beta_slow=1,
    mscale=1.0,
    mscale_all_dim=1.0,
)
SPECIAL_TOKENS = [
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜▁pad▁｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<think>",
    "</think>",
]
EOS, PAD = 1, 2  # indices in SPECIAL_TOKENS
ROW_BLOCK = 64  # see MoE
BIAS_STEP = 0.001  # how far the router's selection bias moves in one training step


def yarn_inv_freq():
    """[r / 2] rotation per position: slow pairs are stretched by `factor`, fast ones are kept."""
    dim, base = CONFIG["qk_rope_head_dim"], CONFIG["rope_theta"]
    freq = 1.0 / base ** (torch.arange(0, dim, 2).float() / dim)

    def pair_of(rotations):
        """The pair that turns `rotations` times within the original context."""
        length = YARN["original_max_position_embeddings"]
        return dim * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(pair_of(YARN["beta_fast"])), 0)
    high = min(math.ceil(pair_of(YARN["beta_slow"])), dim - 1)
    ramp = ((torch.arange(dim // 2).float() - low) / max(high - low, 0.001)).clamp(0, 1)
    return freq / YARN["factor"] * ramp + freq * (1 - ramp)


def yarn_mscale(mscale):
    """YaRN's temperature: 0.1 * mscale * ln(factor) + 1."""
    return 0.1 * mscale * math.log(YARN["factor"]) + 1.0


def rope(x, cos, sin):
    """Rotates the pairs (2i, 2i + 1) of x [..., T, r]; cos and sin are [T, r / 2]."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2)


def linear(n_in, n_out):
    """A projection without bias, weights N(0, 0.02)."""
    layer = nn.Linear(n_in, n_out, bias=False)
    nn.init.normal_(layer.weight, std=0.02)
    return layer


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight."""

    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight, CONFIG["rms_norm_eps"])


class MLA(nn.Module):
    """Multi-head latent attention, expanded form: keys and values are made from the latent."""

    def __init__(self):
        super().__init__()
        hidden, heads = CONFIG["hidden_size"], CONFIG["num_attention_heads"]
        q_rank, kv_rank = CONFIG["q_lora_rank"], CONFIG["kv_lora_rank"]
        self.heads, self.kv_rank = heads, kv_rank
        self.nope, self.rope = CONFIG["qk_nope_head_dim"], CONFIG["qk_rope_head_dim"]
        self.value = CONFIG["v_head_dim"]
        qk = self.nope + self.rope
        self.scale = qk**-0.5 * yarn_mscale(YARN["mscale_all_dim"]) ** 2
        self.q_a_proj = linear(hidden, q_rank)
        self.q_a_layernorm = RMSNorm(q_rank)
        self.q_b_proj = linear(q_rank, heads * qk)
        self.kv_a_proj_with_mqa = linear(hidden, kv_rank + self.rope)
        self.kv_a_layernorm = RMSNorm(kv_rank)
        self.kv_b_proj = linear(kv_rank, heads * (self.nope + self.value))
        self.o_proj = linear(heads * self.value, hidden)

    def forward(self, x, cos, sin):
        """x [B, T, h] -> [B, T, h], causal."""
        B, T, _ = x.shape
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        q = q.view(B, T, self.heads, -1).transpose(1, 2)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split([self.kv_rank, self.rope], -1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent))
        kv = kv.view(B, T, self.heads, -1).transpose(1, 2)
        q_nope, q_rope = q.split([self.nope, self.rope], -1)
        k_nope, v = kv.split([self.nope, self.value], -1)
        k_rope = rope(k_rope.float(), cos, sin)[:, None].expand(B, self.heads, T, self.rope)
        q = torch.cat([q_nope, rope(q_rope.float(), cos, sin).to(v.dtype)], -1)
        k = torch.cat([k_nope, k_rope.to(v.dtype)], -1)
        v = F.pad(v, (0, q.shape[-1] - self.value))  # the fast kernel wants one size of head
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        out = out[..., : self.value]
        return self.o_proj(out.transpose(1, 2).reshape(B, T, self.heads * self.value))


class MLP(nn.Module):
    """down(silu(gate x) * up x)."""

    def __init__(self, size):
        super().__init__()
        hidden = CONFIG["hidden_size"]
        self.gate_proj = linear(hidden, size)
        self.up_proj = linear(hidden, size)
        self.down_proj = linear(size, hidden)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Gate(nn.Module):
    """The router "noaux_tc": sigmoid scores, chosen with a bias that balances the experts."""

    def __init__(self):
        super().__init__()
        experts = CONFIG["n_routed_experts"]
        self.weight = nn.Parameter(torch.randn(experts, CONFIG["hidden_size"]) * 0.02)
        self.register_buffer("e_score_correction_bias", torch.zeros(experts))

    def forward(self, x):
        """x [n, h] -> expert ids [n, top_k] and weights [n, top_k].

        A group ranks by the sum of its two best biased scores; the weights are unbiased.
        """
        experts, groups = CONFIG["n_routed_experts"], CONFIG["n_group"]
        scores = (x.float() @ self.weight.float().T).sigmoid()
        biased = scores.detach() + self.e_score_correction_bias
        group_score = biased.view(-1, groups, experts // groups).topk(2, -1)[0].sum(-1)
        kept = group_score.topk(CONFIG["topk_group"], -1)[1]
        mask = torch.zeros_like(group_score).scatter_(1, kept, 1)
        mask = mask.repeat_interleave(experts // groups, 1)
        ids = biased.masked_fill(mask == 0, float("-inf"))
        ids = ids.topk(CONFIG["num_experts_per_tok"], -1)[1]
        weights = scores.gather(1, ids)
        if self.training:  # balancing without a loss: nudge the bias towards the idle experts
            load = torch.bincount(ids.flatten(), minlength=experts).float()
            self.e_score_correction_bias += BIAS_STEP * (load.mean() - load).sign()
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return ids, weights * CONFIG["routed_scaling_factor"]


class MoE(nn.Module):
    """Routed experts and the shared expert."""

    def __init__(self):
        super().__init__()
        size = CONFIG["moe_intermediate_size"]
        self.gate = Gate()
        self.experts = nn.ModuleList(MLP(size) for _ in range(CONFIG["n_routed_experts"]))
        self.shared_experts = MLP(size * CONFIG["n_shared_experts"])

    def forward(self, x):
        """x [B, T, h] -> [B, T, h]: tokens sorted by expert, one product per expert.

        The rows of an expert are filled up to a multiple of ROW_BLOCK: a matrix library prepares
        every new shape anew, and takes longer for that than for the product.
        """
        flat = x.reshape(-1, x.shape[-1])
        ids, weights = self.gate(flat)
        expert, order = ids.flatten().sort(stable=True)
        load = torch.bincount(expert, minlength=len(self.experts))
        room = (load + ROW_BLOCK - 1) // ROW_BLOCK * ROW_BLOCK
        first = (room.cumsum(0) - room) - (load.cumsum(0) - load)
        slot = torch.arange(len(expert)) + first[expert]
        token = order // ids.shape[1]
        rows = flat.new_zeros(int(room.sum()), flat.shape[1]).index_copy(0, slot, flat[token])
        parts = zip(self.experts, rows.split(room.tolist()))
        out = torch.cat([mlp(part) for mlp, part in parts])[slot]
        routed = out.float() * weights.flatten()[order, None]
        return self.shared_experts(flat).float().index_add(0, token, routed).view(x.shape)


class Layer(nn.Module):
    """x += MLA(norm(x)); x += MLP or MoE(norm(x))."""

    def __init__(self, moe):
        super().__init__()
        hidden = CONFIG["hidden_size"]
        self.input_layernorm = RMSNorm(hidden)
        self.self_attn = MLA()
        self.post_attention_layernorm = RMSNorm(hidden)
        self.mlp = MoE() if moe else MLP(CONFIG["intermediate_size"])

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class MTP(nn.Module):
    """The block that predicts one token further (DeepSeek-V3 paper, section 2.2)."""

    def __init__(self):
        super().__init__()
        hidden = CONFIG["hidden_size"]
        self.enorm, self.hnorm = RMSNorm(hidden), RMSNorm(hidden)
        self.eh_proj = linear(2 * hidden, hidden)
        self.block = Layer(moe=True)
        self.norm = RMSNorm(hidden)


class Model(nn.Module):
    """Token ids -> hidden states; `head` makes logits of them."""

    def __init__(self):
        super().__init__()
        hidden, vocab = CONFIG["hidden_size"], CONFIG["vocab_size"]
        self.embed = nn.Embedding(vocab, hidden)
        nn.init.normal_(self.embed.weight, std=0.02)
        dense = CONFIG["first_k_dense_replace"]
        layers = range(CONFIG["num_hidden_layers"])
        self.layers = nn.ModuleList(Layer(moe=i >= dense) for i in layers)
        self.norm, self.head, self.mtp = RMSNorm(hidden), linear(hidden, vocab), MTP()
        positions = torch.arange(CONFIG["max_position_embeddings"]).float()
        angles = positions[:, None] * yarn_inv_freq()
        factor = yarn_mscale(YARN["mscale"]) / yarn_mscale(YARN["mscale_all_dim"])
        self.register_buffer("cos", angles.cos() * factor, persistent=False)
        self.register_buffer("sin", angles.sin() * factor, persistent=False)

    def forward(self, ids):
        """ids [B, T] -> [B, T, h] after the final norm: the input of the head and of MTP."""
        T = ids.shape[1]
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x, self.cos[:T], self.sin[:T])
        return self.norm(x)

    def mtp_hidden(self, hidden, next_ids):
        """State of token t [B, T, h] and the token t + 1 -> the state that predicts t + 2."""
        T = hidden.shape[1]
        both = [self.mtp.enorm(self.embed(next_ids)), self.mtp.hnorm(hidden)]
        x = self.mtp.eh_proj(torch.cat(both, -1))
        return self.mtp.block(x, self.cos[:T], self.sin[:T])

    def draft(self, hidden, next_ids):
        """As mtp_hidden, after MTP's own norm: `head` of it are the draft's logits."""
        return self.mtp.norm(self.mtp_hidden(hidden, next_ids))
