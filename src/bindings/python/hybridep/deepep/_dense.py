# SPDX-License-Identifier: Apache-2.0
"""Weights and gradients of tokens and experts, as those of selections and back."""

from __future__ import annotations

from typing import Any

import torch

from ._choice import Choice


def selections_of(choice: Choice, top_k: int) -> Any:
    """int64 ids [T, K], -1 for none. By map, the k of a selection is its rank among them."""
    if not choice.is_map:
        return choice.indices.long()
    selected, order = choice.indices.to(torch.uint8).sort(dim=1, descending=True, stable=True)
    ids = order.where(selected != 0, torch.full_like(order, -1))[:, :top_k]
    return torch.nn.functional.pad(ids, (0, top_k - ids.shape[1]), value=-1)


def _inside(selections: Any, num_experts: int) -> Any:
    return (selections >= 0) & (selections < num_experts)


def by_selection(dense: Any, selections: Any) -> Any:
    """FP32 [T, K] of [T, E]"""
    inside = _inside(selections, dense.shape[1])
    return dense.gather(1, selections.where(inside, torch.zeros_like(selections)))


def by_expert(values: Any, selections: Any, num_experts: int) -> Any:
    """FP32 [T, E] of [T, K]"""
    inside = _inside(selections, num_experts)
    beyond = torch.full_like(selections, num_experts)
    dense = values.new_zeros((values.shape[0], num_experts + 1))
    dense.scatter_add_(1, selections.where(inside, beyond), values)
    return dense[:, :num_experts].contiguous()
