# SPDX-License-Identifier: Apache-2.0
"""Handles: tuples that callers keep, whose opaque elements own the routing of a dispatch."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Dict, Optional, Set, Tuple, Union

import torch

from .._communicator import Communicator
from .._enums import Layout
from .._errors import InvalidArgumentError
from .._routing import Routing
from .._values import Counts
from . import _choice, _device
from ._tokens import check_matrix

if TYPE_CHECKING:
    from .hybrid_ep_buffer import HybridEPBuffer

Handle = Tuple[Any, ...]

# Elements of the handle of `dispatch_with_permute` and of `dispatch`.
PERMUTED_SIZE = 11
FLAT_SIZE = 7
_NAMES = {PERMUTED_SIZE: "dispatch_with_permute", FLAT_SIZE: "dispatch"}

# What graphs were captured with and do not own. A graph may be launched until the process ends:
# nobody tells when it is gone.
_of_graphs: Set[Union[Routing, Communicator]] = set()


class Batch:
    """The opaque element of a handle. When the last reference goes, the routing is free.

    memory             uint8, of PyTorch's allocator: a graph owns that of routings made in it
    num_local_experts  of the call, which may be fewer than the communicator's
    row_experts        int32 [n, K] of `dispatch`: local experts of each row, -1 elsewhere
    """

    row_experts: Optional[Any] = None

    def __init__(
        self,
        buffer: HybridEPBuffer,
        routing: Routing,
        memory: Any,
        pad_multiple: int,
        num_local_experts: int,
    ) -> None:
        self.routing = routing
        self.memory = memory
        self.pad_multiple = pad_multiple
        self.num_local_experts = num_local_experts
        self._buffer = weakref.ref(buffer)
        self._stream = _device.current_stream(memory)
        self._is_of_graph = _device.is_capturing(memory)

    @property
    def num_tokens(self) -> int:
        return self.routing.num_tokens

    @property
    def num_rows(self) -> int:
        """Rows of `dispatch`."""
        assert self.row_experts is not None
        return int(self.row_experts.shape[0])

    def weights(self, probs: Optional[Any], topk_weights: Optional[Any]) -> Dict[str, Any]:
        """Arguments of a dispatch for weights by expert, which decide, or by selection."""
        if probs is not None:
            num_experts = self.num_local_experts * self.routing.communicator.num_ranks
            check_matrix(probs, "probs", self.num_tokens, num_experts, torch.float32)
            return {"dense_weights": _choice.spread_columns(probs, *self._experts())}
        if topk_weights is None:
            return {}
        top_k = self.routing.top_k
        check_matrix(topk_weights, "topk_weights", self.num_tokens, top_k, torch.float32)
        return {"weights": topk_weights}

    def _experts(self) -> Tuple[int, int, int]:
        """Ranks, experts of each in the call, and as many as the communicator has room for."""
        communicator = self.routing.communicator
        return communicator.num_ranks, self.num_local_experts, communicator.limits.num_local_experts

    def use(self) -> None:
        """To be said before each operation: what it needs must be there when it runs."""
        _device.use_on_current_stream(self._stream, self.memory, self.row_experts)
        if _device.is_capturing(self.memory):
            _of_graphs.add(self.routing.communicator if self._is_of_graph else self.routing)

    def tokens_per_expert(self) -> Any:
        """int32 [EL] without padding"""
        numbers = _device.part(self.memory, self.routing.view().tokens_per_expert, torch.int32)
        return numbers[: self.num_local_experts]

    def num_flat_rows(self, counts: Optional[Counts]) -> Any:
        """int32 [1] the rows of `dispatch`: on the host, if the host has waited for the counts."""
        if counts is not None:
            return _device.on_host([counts.num_flat_rows], torch.int32, self.memory)
        numbers = _device.part(self.memory, self.routing.view().num_flat_rows, torch.int64)
        return _device.low_words(numbers)

    def combine(
        self, rows: Any, row_gradients: Optional[Any], layout: Layout = Layout.EXPERT_MAJOR
    ) -> Tuple[Any, Optional[Any]]:
        """The tokens' sums [T, H], and the gradients FP32 [T, E] of dense weights."""
        self.use()
        result = self.routing.combine(
            rows,
            layout=layout,
            row_gradients=row_gradients,
            dense_gradients=row_gradients is not None,
        )
        if result.dense_gradients is None:
            return result.out, None
        return result.out, _choice.own_columns(result.dense_gradients, *self._experts())

    def is_of(self, buffer: HybridEPBuffer) -> bool:
        return self._buffer() is buffer


def open_handle(handle: Any, size: int, buffer: HybridEPBuffer) -> Batch:
    """The batch of a handle, which must come from the right method of this buffer."""
    if handle is None:
        raise TypeError("handle is None, but must be what a dispatch has returned")
    batch = handle[0] if isinstance(handle, tuple) and len(handle) in _NAMES else None
    if not isinstance(batch, Batch):
        raise TypeError(f"handle is {handle!r}, but must be what a dispatch has returned")
    if len(handle) != size:
        raise InvalidArgumentError(
            f"handle is of {_NAMES[len(handle)]}, but must be of {_NAMES[size]}"
        )
    if not batch.is_of(buffer):
        raise InvalidArgumentError("handle is of another HybridEPBuffer")
    return batch


def check_tokens(batch: Batch, num_tokens: int) -> None:
    if num_tokens != batch.num_tokens:
        raise InvalidArgumentError(
            f"hidden has {num_tokens} tokens, but handle is of {batch.num_tokens}"
        )
