"""Muon: momentum whose matrices are made nearly orthogonal before each step (Jordan, 2024).

It needs fewer steps than AdamW. Matrices of one shape are handled together: the
projections of all layers in one batched product.
"""

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the Newton-Schulz iteration, published with Muon
ITERATIONS = 5


def orthogonal(matrices):
    """[n, r, c] -> about U V^T of each one's singular value decomposition, in BF16."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(ITERATIONS):
        square = x @ x.transpose(1, 2)
        x = a * x + (b * square + c * square @ square) @ x
    return x.transpose(1, 2) if tall else x


class Muon(torch.optim.Optimizer):
    """For the matrices between embedding and head; the rest goes to AdamW.

    The matrices of one parameter group get their gradients together, all or none in a step.
    """

    def __init__(self, groups, lr, momentum=0.95):
        super().__init__([{"params": params} for params in groups], {"lr": lr})
        self.momentum = momentum
        self.buffers = {}

    @torch.no_grad()
    def step(self):
        for index, group in enumerate(self.param_groups):
            shapes = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(tuple(p.shape), []).append(p)
            for shape, params in shapes.items():
                grads = torch.stack([p.grad for p in params])
                buffer = self.buffers.setdefault((index, shape), torch.zeros_like(grads))
                buffer.lerp_(grads, 1 - self.momentum)
                update = orthogonal(grads.lerp_(buffer, self.momentum))
                rate = group["lr"] * max(1, shape[0] / shape[1]) ** 0.5
                for p, u in zip(params, update):
                    p.add_(u.float(), alpha=-rate)
