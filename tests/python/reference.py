# SPDX-License-Identifier: Apache-2.0
"""What ranks must get, computed with NumPy from the choices of all ranks. Shares no code with the
package. Numbers are FP32; tests choose numbers whose sums are exact.
"""

import copy

import numpy as np


class Job:
    """A batch of every rank.

    experts  [R] arrays of int [T, K], -1 for no selection
    x        [R] arrays of FP32 [T, H]
    weights  [R] arrays of FP32 [T, K]
    """

    def __init__(self, seed, num_ranks, tokens, hidden=8, num_experts=4, top_k=2):
        random = np.random.default_rng(seed)
        self.num_ranks = num_ranks
        self.num_local_experts = num_experts // num_ranks
        self.num_experts = num_experts
        self.top_k = top_k
        self.hidden = hidden
        self.experts = [random.integers(-1, num_experts, (count, top_k)) for count in tokens]
        self.x = [random.integers(-8, 9, (count, hidden)).astype("float32") for count in tokens]
        self.weights = [
            random.choice([0.5, 1.0, 2.0], (count, top_k)).astype("float32") for count in tokens
        ]

    def with_experts(self, experts):
        """The same tokens with another choice."""
        other = copy.copy(self)
        other.experts = experts
        return other

    def local_experts(self, rank):
        return range(rank * self.num_local_experts, (rank + 1) * self.num_local_experts)

    def selections(self, expert):
        """The selections of an expert by (source rank, token, k)."""
        for source, experts in enumerate(self.experts):
            for token, k in np.argwhere(experts == expert):
                yield source, token, k

    def expert_rows(self, rank, alignment=1):
        """The expert-major rows of a rank: (source, token, k), None for padding."""
        rows = []
        for expert in self.local_experts(rank):
            rows += self.selections(expert)
            rows += [None] * (-len(rows) % alignment)
        return rows

    def flat_rows(self, rank):
        """The flat rows of a rank: (source, token)."""
        local = self.local_experts(rank)
        return [
            (source, token)
            for source, experts in enumerate(self.experts)
            for token in range(len(experts))
            if np.isin(experts[token], local).any()
        ]

    def tokens_per_expert(self, rank):
        return [len(list(self.selections(expert))) for expert in self.local_experts(rank)]

    def dispatched(self, rank, alignment=1):
        """Rows, weights, source ranks and tokens of the expert-major layout."""
        zeros = np.zeros(self.hidden, "float32")
        rows = self.expert_rows(rank, alignment)
        return (
            np.array([zeros if r is None else self.x[r[0]][r[1]] for r in rows]).reshape(
                -1, self.hidden
            ),
            np.array([0 if r is None else self.weights[r[0]][r[1], r[2]] for r in rows], "float32"),
            np.array([-1 if r is None else r[0] for r in rows], "int32"),
            np.array([-1 if r is None else r[1] for r in rows], "int32"),
        )

    def combined(self, rank, weighted):
        """What a combine of the dispatched rows returns: every selection adds its token."""
        selected = (self.experts[rank] >= 0).astype("float32")
        factors = (selected * self.weights[rank] if weighted else selected).sum(axis=1)
        return self.x[rank] * factors[:, None]
