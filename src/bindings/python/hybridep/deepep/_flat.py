# SPDX-License-Identifier: Apache-2.0
"""Dispatch to one row for each token with an expert here, and the combine of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional, Tuple

import torch

from .._calls import Dispatched
from .._enums import Layout
from .._errors import InvalidArgumentError, InvalidUsageError
from .._values import Counts
from . import _dense, _device, _tokens
from ._choice import Choice
from ._handles import FLAT_SIZE, Batch, Handle, check_tokens, open_handle
from ._tokens import Tokens

if TYPE_CHECKING:
    from .hybrid_ep_buffer import HybridEPBuffer

Result = Tuple[Any, Any, Any, Handle]


def read_rows(num_dispatched_tokens: Any, told_by_tensor: Optional[Any]) -> Optional[int]:
    """Rows of the output, if the caller tells them."""
    if num_dispatched_tokens is None and told_by_tensor is not None:
        num_dispatched_tokens = told_by_tensor.reshape(-1)[0]
    return _tokens.number_of_rows("num_dispatched_tokens", num_dispatched_tokens)


def dispatch(
    buffer: HybridEPBuffer,
    tokens: Tokens,
    choice: Choice,
    num_rows: Optional[int],
    num_local_experts: int,
    num_of_tokens_per_rank: Optional[int],
) -> Result:
    """By a new routing. Waits for the counts unless num_rows is told."""
    if num_rows is None and _device.is_capturing(tokens.rows):
        raise InvalidUsageError(
            "num_dispatched_tokens is None, but is needed while a graph is captured"
        )
    batch, counts = buffer._route(
        choice, tokens, 1, num_local_experts, num_of_tokens_per_rank, num_rows is None
    )
    if num_rows is None:
        assert counts is not None
        num_rows = counts.num_flat_rows
    outputs = _rows_of(batch, tokens, num_rows, choice.probs, choice.weights)
    batch.row_experts = outputs.row_experts
    handle = (
        batch,
        batch,
        batch,
        batch.num_flat_rows(counts),
        _local_map(batch),
        tokens.num_tokens,
        buffer._call_config(tokens, 1, num_local_experts),
    )
    return _result(buffer, batch, tokens, outputs, handle)


def redispatch(
    buffer: HybridEPBuffer,
    handle: Handle,
    tokens: Tokens,
    probs: Optional[Any],
    topk_weights: Optional[Any],
    num_rows: Optional[int],
) -> Result:
    """By the routing of an earlier call. Never waits."""
    batch = open_handle(handle, FLAT_SIZE, buffer)
    check_tokens(batch, tokens.num_tokens)
    rows = batch.num_rows if num_rows is None else num_rows
    outputs = _rows_of(batch, tokens, rows, probs, topk_weights)
    return _result(buffer, batch, tokens, outputs, handle)


def _rows_of(
    batch: Batch, tokens: Tokens, num_rows: int, probs: Optional[Any], topk_weights: Optional[Any]
) -> Dispatched:
    """Rows that are not written have no experts, and weights of 0."""
    weights = batch.weights(probs, topk_weights)
    shape, device = (num_rows, batch.routing.top_k), tokens.rows.device
    row_weights = None
    if weights:
        row_weights = torch.zeros(shape, dtype=torch.float32, device=device)
    batch.use()
    return batch.routing.dispatch(
        tokens.rows,
        layout=Layout.FLAT,
        capacity=num_rows,
        scales=_tokens.padded_scales(tokens, batch.routing.communicator.config.scale_bytes),
        row_weights=row_weights,
        row_experts=torch.full(shape, -1, dtype=torch.int32, device=device),
        **weights,
    )


def _result(
    buffer: HybridEPBuffer, batch: Batch, tokens: Tokens, outputs: Dispatched, handle: Handle
) -> Result:
    row_probs = None
    if outputs.row_weights is not None:
        num_experts = batch.num_local_experts * buffer.group_size
        columns = _columns(outputs.row_experts, buffer.rank * batch.num_local_experts)
        row_probs = _dense.by_expert(outputs.row_weights, columns, num_experts)
    return outputs.rows, row_probs, _tokens.own_scales(outputs.row_scales, tokens), handle


def _columns(row_experts: Any, first: int) -> Any:
    """Global ids of local experts, -1 elsewhere."""
    ids = row_experts.long()
    return ids.where(ids < 0, ids + first)


def _local_map(batch: Batch) -> Any:
    """bool [n, EL]: the local experts of each row"""
    assert batch.row_experts is not None
    ones = torch.ones_like(batch.row_experts, dtype=torch.float32)
    return _dense.by_expert(ones, batch.row_experts.long(), batch.num_local_experts) > 0


def combine(
    buffer: HybridEPBuffer, handle: Optional[Handle], hidden: Any, probs: Optional[Any]
) -> Tuple[Any, Optional[Any]]:
    batch = open_handle(handle, FLAT_SIZE, buffer)
    _tokens.check_results(hidden)
    if probs is None:
        return batch.combine(hidden, None, Layout.FLAT)
    num_experts = batch.num_local_experts * buffer.group_size
    if hidden.shape[0] != batch.num_rows:
        raise InvalidArgumentError(
            f"hidden has {hidden.shape[0]} rows, but with probs must have {batch.num_rows}, as the "
            "dispatch of handle"
        )
    _tokens.check_matrix(probs, "probs", batch.num_rows, num_experts, torch.float32)
    columns = _columns(batch.row_experts, buffer.rank * batch.num_local_experts)
    return batch.combine(hidden, _dense.by_selection(probs, columns), Layout.FLAT)
