"""The weights that the training of tiny-gov starts from: random, but for heads that copy.

A model of this size finds the pair of heads that copies from its context (Olsson and others, 2022,
"induction heads") only after far more text than fits an hour of two processors. So the pair is set
by hand before training, and everything is trained from there:

  layer 0   two heads look one token back and write that token's code beside the present one
  layer 1   four heads look for a place whose token before is the present token, and write the
            code of the token that stands there where the head of the model reads it
  MTP       the same search in one layer: its input holds a token and the one behind it already

The 256 dimensions of the state, at the start: 0..62 and 64..127 the token's own random code (the
first half is compared, the second half is copied), 63 a constant, 128..191 the code of the token
before, 192..255 what is copied; the head's rows hold the second half of each token's code there.
All other heads and all other layers begin with outputs of zero, as usual.
"""

import math

import torch

from model import CONFIG, Model, yarn_inv_freq, yarn_mscale

CONSTANT, LEVEL = 63, 8.0  # the dimension that says "there is a token", and what stands in it
HALF = 64  # dimensions of one half of a code
BEFORE, COPIED = 128, 192  # where the code of the token before and the copied one begin
HEAD_SCALE = 0.12
TURNING = 6  # pairs of the rotary part by which a head finds the token before
SHARPNESS = 10.0  # logit that one of these pairs gives the token before
MATCH = 1.22
COPY = 2.0


def linear_start(model):
    """Inputs of every projection as wide as its input asks; outputs to the state zero."""
    for name, p in model.named_parameters():
        if p.dim() < 2:
            continue
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            p.zero_()
        elif "_proj" in name or ".gate." in name:
            p.normal_(std=p.shape[1] ** -0.5)


def attention_scale():
    qk = CONFIG["qk_nope_head_dim"] + CONFIG["qk_rope_head_dim"]
    return qk**-0.5 * yarn_mscale(1.0) ** 2


def parts(attn):
    """Views of the projections by head: q nope, q rope, k nope, v, and o by head [h, heads, v]."""
    heads, nope, rope = attn.heads, attn.nope, attn.rope
    q = attn.q_b_proj.weight.view(heads, nope + rope, -1)
    kv = attn.kv_b_proj.weight.view(heads, nope + attn.value, -1)
    out = attn.o_proj.weight.view(-1, heads, attn.value)
    return q[:, :nope], q[:, nope:], kv[:, :nope], kv[:, nope:], out


def look_back(attn):
    """Heads 0 and 1 attend to the token before and copy the first half of its code."""
    q_nope, q_rope, k_nope, v, out = parts(attn)
    keys = attn.kv_a_proj_with_mqa.weight
    keys[:HALF] = 0
    keys[torch.arange(HALF), torch.arange(HALF)] = 1
    keys[CONSTANT] = 0
    keys[HALF : attn.kv_rank] *= 0.3
    attn.q_a_proj.weight[0] = 0
    attn.q_a_proj.weight[0, CONSTANT] = 1
    level, query = 9.2, 7.1  # the constant after the norms of the state and of the latent
    reach = (SHARPNESS / attention_scale()) ** 0.5
    keys[attn.kv_rank :] = 0
    for pair, freq in enumerate(yarn_inv_freq()[:TURNING].tolist()):
        keys[attn.kv_rank + 2 * pair, CONSTANT] = reach / level
        for head in (0, 1):
            q_rope[head, 2 * pair : 2 * pair + 2] = 0
            q_rope[head, 2 * pair, 0] = reach / query * math.cos(freq)
            q_rope[head, 2 * pair + 1, 0] = -reach / query * math.sin(freq)
    for head in (0, 1):
        q_rope[head, 2 * TURNING :] = 0
        q_nope[head] = 0
        v[head] = 0
        for i in range(attn.value):
            v[head, i, head * attn.value + i] = 1
            out[BEFORE + head * attn.value + i, head, i] = 1


def look_up(attn):
    """Heads 0 to 3 attend to where the token before is the present one, and copy what is there."""
    q_nope, q_rope, k_nope, v, out = parts(attn)
    keys, queries = attn.kv_a_proj_with_mqa.weight, attn.q_a_proj.weight
    keys[: 2 * HALF] = 0
    queries[:HALF] = 0
    queries[HALF:] *= 0.3
    for i in range(HALF):
        keys[i, BEFORE + i] = 1
        keys[HALF + i, HALF + i] = 1
        queries[i, i] = float(i != CONSTANT)
    keys[attn.kv_rank :] *= 0.1
    for head in range(4):
        first = head % 2 * attn.value
        q_nope[head], q_rope[head], k_nope[head], v[head] = 0, 0, 0, 0
        for i in range(attn.value):
            q_nope[head, i, first + i] = MATCH
            k_nope[head, i, first + i] = MATCH
            v[head, i, HALF + first + i] = 1
            out[COPIED + first + i, head, i] = COPY


@torch.no_grad()
def start():
    """A model to train."""
    model = Model()
    linear_start(model)
    code = torch.randn(CONFIG["vocab_size"], 2 * HALF)
    code[:, CONSTANT] = LEVEL
    model.embed.weight.normal_(std=0.1)
    model.embed.weight[:, : 2 * HALF] = code
    model.head.weight.normal_(std=0.01)
    model.head.weight[:, COPIED:] = HEAD_SCALE * code[:, HALF:]
    look_back(model.layers[0].self_attn)
    look_up(model.layers[1].self_attn)
    eh_proj = model.mtp.eh_proj.weight
    hidden = CONFIG["hidden_size"]
    eh_proj *= 0.1
    for i in range(2 * HALF):
        eh_proj[i, i] = 1
    for i in range(HALF):
        eh_proj[BEFORE + i, hidden + i] = 2
    look_up(model.mtp.block.self_attn)
    return model
