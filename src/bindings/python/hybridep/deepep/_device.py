# SPDX-License-Identifier: Apache-2.0
"""What depends on whether tensors lie on a GPU."""

from __future__ import annotations

from typing import Any, List, Optional

import torch

from .._routing import RoutingView
from .._values import Counts


def is_capturing(tensor: Any) -> bool:
    """Whether a graph records what is done with the tensor on the current stream."""
    return bool(tensor.is_cuda and torch.cuda.is_current_stream_capturing())


def on_host(numbers: List[int], dtype: Any, like: Any) -> Any:
    """Numbers as a CPU tensor: pinned, if tensors of the call lie on a GPU."""
    return torch.tensor(numbers, dtype=dtype, pin_memory=like.is_cuda)


def as_tensor(memory: Any) -> Any:
    """The memory of a routing as a tensor, which keeps the routing alive."""
    if memory.device < 0:
        return torch.from_dlpack(memory)
    return torch.as_tensor(memory, device=f"cuda:{memory.device}")


def low_words(numbers: Any) -> Any:
    """int64 [n] as int32 [n] that share its memory, without a kernel."""
    return numbers.view(torch.int32)[::2]


def flat_rows(view: RoutingView, counts: Optional[Counts], like: Any) -> Any:
    """int32 [1] the rows of `dispatch`: on the host, if the host has waited for the counts."""
    if counts is not None:
        return on_host([counts.num_flat_rows], torch.int32, like)
    return low_words(as_tensor(view.num_flat_rows))
