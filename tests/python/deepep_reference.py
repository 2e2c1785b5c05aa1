# SPDX-License-Identifier: Apache-2.0
"""What the ranks of a HybridEPBuffer must get, in plain torch. Shares no code with the package."""

import torch

SCALE_BLOCK = 128


class Job:
    """The batches of all ranks, which every rank can make.

    ids      [R] int64 [T, K], distinct experts, -1 for none
    maps     [R] bool [T, E]
    weights  [R] FP32 [T, K]
    probs    [R] FP32 [T, E], also where nothing is selected
    tokens   [R] BF16 [T, H]
    bytes    [R] uint8 [T, H] with scales FP32 [T, H / 128]
    """

    def __init__(self, seed, tokens, hidden=128, num_local_experts=2, top_k=3, only=None):
        """only: experts that are selected"""
        random = torch.Generator().manual_seed(seed)
        self.num_ranks = len(tokens)
        self.num_local_experts = num_local_experts
        self.num_experts = num_local_experts * self.num_ranks
        self.top_k = top_k
        self.hidden = hidden
        self.num_tokens = tokens
        experts = list(range(self.num_experts)) if only is None else only
        self.ids = [self._choose(random, count, experts) for count in tokens]
        self.maps = [self._map(ids) for ids in self.ids]
        self.weights = [torch.rand(count, top_k, generator=random) for count in tokens]
        self.probs = [torch.rand(count, self.num_experts, generator=random) for count in tokens]
        self.tokens = [torch.randn(count, hidden, generator=random).bfloat16() for count in tokens]
        self.bytes = [
            torch.randint(0, 256, (count, hidden), generator=random).to(torch.uint8)
            for count in tokens
        ]
        self.scales = [
            torch.rand(count, hidden // SCALE_BLOCK, generator=random) for count in tokens
        ]

    def _choose(self, random, count, experts):
        ids = torch.full((count, self.top_k), -1)
        for token in range(count):
            for k, choice in enumerate(
                torch.randperm(len(experts), generator=random)[: self.top_k]
            ):
                ids[token, k] = experts[choice]
        skipped = torch.rand(count, self.top_k, generator=random) < 0.2
        return ids.masked_fill(skipped, -1)

    def _map(self, ids):
        selected = torch.zeros(len(ids), self.num_experts, dtype=torch.bool)
        for token, experts in enumerate(ids):
            for expert in experts[experts >= 0]:
                selected[token, expert] = True
        return selected

    def dense_weights(self):
        """FP32 [T, E] of each rank: the weights of the ids"""
        dense = []
        for ids, weights in zip(self.ids, self.weights):
            made = torch.zeros(len(ids), self.num_experts)
            for token, k in (ids >= 0).nonzero().tolist():
                made[token, ids[token, k]] = weights[token, k]
            dense.append(made)
        return dense

    def experts_of(self, rank):
        return range(rank * self.num_local_experts, (rank + 1) * self.num_local_experts)

    def needed(self, rank, pad):
        """(source, token, expert) of each row by expert, None for padding."""
        rows = []
        for expert in self.experts_of(rank):
            for source, selected in enumerate(self.maps):
                rows += [
                    (source, token, expert)
                    for token in selected[:, expert].nonzero().flatten().tolist()
                ]
            rows += [None] * (-len(rows) % pad)
        return rows

    def flat(self, rank):
        """(source, token) of each row by source"""
        rows = []
        for source, selected in enumerate(self.maps):
            here = selected[:, list(self.experts_of(rank))].any(1)
            rows += [(source, token) for token in here.nonzero().flatten().tolist()]
        return rows

    def counts(self, rank):
        return [
            sum(int(selected[:, expert].sum()) for selected in self.maps)
            for expert in self.experts_of(rank)
        ]

    def group_sizes(self, rank, pad, capacity):
        """Rows of each expert that are left, padding included."""
        sizes = []
        for count in self.counts(rank):
            padded = (count + pad - 1) // pad * pad
            sizes.append(min(padded, capacity - sum(sizes)))
        return sizes

    def gather(self, rows, per_token):
        """[n, columns] by the rows' tokens, zeros for padding."""
        made = torch.zeros(len(rows), per_token[0].shape[1], dtype=per_token[0].dtype)
        for place, row in enumerate(rows):
            if row is not None:
                made[place] = per_token[row[0]][row[1]]
        return made

    def gather_probs(self, rows, dense):
        """FP32 [n]"""
        return torch.tensor(
            [0.0 if row is None else float(dense[row[0]][row[1], row[2]]) for row in rows]
        )

    def combined(self, rank, rows_of, results):
        """The sums of this rank's tokens, and whether a row of theirs is left.

        rows_of  [R] the rows of each rank by (source, token, ...), None for padding
        results  [R] what each rank combines
        """
        total = torch.zeros(self.num_tokens[rank], self.hidden)
        seen = torch.zeros(self.num_tokens[rank], dtype=torch.bool)
        dtype = results[0].dtype
        for rows, result in zip(rows_of, results):
            partial = torch.zeros_like(total)
            started = torch.zeros_like(seen)
            for place, row in enumerate(rows[: len(result)]):
                if row is not None and row[0] == rank:
                    value = result[place].float()
                    partial[row[1]] = partial[row[1]] + value if started[row[1]] else value
                    started[row[1]] = True
            partial = partial.bfloat16().float()
            for token in started.nonzero().flatten().tolist():
                total[token] = total[token] + partial[token] if seen[token] else partial[token]
            seen |= started
        return total.to(dtype)

    def gradients(self, rank, rows_of, row_gradients):
        """FP32 [T, E] of dense weights"""
        dense = torch.zeros(self.num_tokens[rank], self.num_experts)
        for rows, values in zip(rows_of, row_gradients):
            for place, row in enumerate(rows[: len(values)]):
                if row is not None and row[0] == rank:
                    dense[row[1], row[2]] = values[place]
        return dense


def results_for(rows, hidden, seed, dtype=torch.bfloat16):
    """What experts return: every rank can make those of all ranks."""
    random = torch.Generator().manual_seed(seed)
    made = torch.randn(len(rows), hidden, generator=random).to(dtype)
    return made, torch.rand(len(rows), generator=random)
