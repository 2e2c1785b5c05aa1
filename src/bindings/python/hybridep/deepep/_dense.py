# SPDX-License-Identifier: Apache-2.0
"""Values by selection [T, K] as values by expert [T, E], and back."""

from __future__ import annotations

from typing import Any

import torch


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
