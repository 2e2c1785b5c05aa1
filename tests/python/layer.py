# SPDX-License-Identifier: Apache-2.0
"""A small layer in plain PyTorch, which shares no code with the package."""

import torch

HIDDEN, NUM_EXPERTS, TOP_K = 16, 4, 2
TOKENS = [5, 9]


class Batch:
    """Tokens, choice and weights of a rank. Each token selects two different experts, or one."""

    def __init__(self, rank, dtype=torch.float32, tokens=None):
        generator = torch.Generator().manual_seed(rank)
        count = TOKENS[rank] if tokens is None else tokens
        scores = torch.rand(count, NUM_EXPERTS, generator=generator)
        self.ids = scores.topk(TOP_K).indices
        self.ids[::4, 1] = -1
        self.x = torch.randint(-8, 9, (count, HIDDEN), generator=generator).to(dtype)
        self.weights = torch.rand(count, TOP_K, generator=generator)
        self.target = torch.randn(count, HIDDEN, generator=generator)

    def to(self, device):
        for name, tensor in vars(self).items():
            setattr(self, name, tensor.to(device))
        return self


def expert(number, rows):
    """What an expert of that number makes of rows: no linear function."""
    return torch.tanh(rows * (0.1 + 0.05 * number)) + 0.01 * number * rows


def plain_layer(batch, x, weights):
    """The whole layer on one rank: every token through its experts, weighted and summed."""
    out = torch.zeros_like(x)
    for k in range(TOP_K):
        for number in range(NUM_EXPERTS):
            chosen = (batch.ids[:, k] == number).unsqueeze(1)
            part = expert(number, x) * weights[:, k : k + 1]
            out = out + torch.where(chosen, part, torch.zeros_like(part))
    return out


def rows_of_experts(rows, counts, alignment, rank):
    """Runs each local expert on its block of expert-major rows; what lies past them stays 0."""
    parts, begin = [], 0
    for local, count in enumerate(counts.tokens_per_expert):
        end = begin + -(-count // alignment) * alignment
        parts.append(expert(rank * len(counts.tokens_per_expert) + local, rows[begin:end]))
        begin = end
    return torch.cat([*parts, torch.zeros_like(rows[begin:])])
