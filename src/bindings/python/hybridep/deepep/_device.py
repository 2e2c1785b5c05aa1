# SPDX-License-Identifier: Apache-2.0
"""What depends on whether tensors lie on a GPU."""

from __future__ import annotations

from typing import Any, List, Optional

import torch

from .._memory import Memory

_ALIGNMENT = 256  # of the memory of a routing


def is_capturing(tensor: Any) -> bool:
    """Whether a graph records what is done with the tensor on the current stream."""
    return bool(tensor.is_cuda and torch.cuda.is_current_stream_capturing())


def on_host(numbers: List[int], dtype: Any, like: Any) -> Any:
    """Numbers as a CPU tensor: pinned, if tensors of the call lie on a GPU."""
    return torch.tensor(numbers, dtype=dtype, pin_memory=like.is_cuda)


def aligned_bytes(number: int, like: Any) -> Any:
    """uint8 [number] beside another tensor, aligned as routings want it."""
    made = torch.empty(number + _ALIGNMENT, dtype=torch.uint8, device=like.device)
    first = -made.data_ptr() % _ALIGNMENT
    return made[first : first + number]


def part(memory: Any, inside: Memory, dtype: Any) -> Any:
    """The numbers that a routing has in its memory, as a tensor that keeps the memory alive."""
    first = inside.pointer - memory.data_ptr()
    size = inside.shape[0] * torch.empty(0, dtype=dtype).element_size()
    return memory[first : first + size].view(dtype)


def low_words(numbers: Any) -> Any:
    """int64 [n] as int32 [n] that share its memory, without a kernel."""
    return numbers.view(torch.int32)[::2]


def use_on_current_stream(stream: Optional[int], *tensors: Any) -> None:
    """Tells PyTorch's allocator of tensors that were made on a stream, if it is not the current."""
    if stream is None:
        return
    current = torch.cuda.current_stream(tensors[0].device)
    if current.cuda_stream == stream:
        return
    for tensor in tensors:
        if tensor is not None:
            tensor.record_stream(current)


def current_stream(tensor: Any) -> Optional[int]:
    """None on the host, which has no streams."""
    if not tensor.is_cuda:
        return None
    stream: int = torch.cuda.current_stream(tensor.device).cuda_stream
    return stream
