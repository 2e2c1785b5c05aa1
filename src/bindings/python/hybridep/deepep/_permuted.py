# SPDX-License-Identifier: Apache-2.0
"""Dispatch to rows by expert, and the combine of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, List, NamedTuple, Optional, Tuple

import torch

from .._calls import Dispatched
from .._errors import InvalidArgumentError
from .._values import Counts
from . import _device, _tokens
from ._choice import Choice
from ._handles import PERMUTED_SIZE, Batch, Handle, check_tokens, open_handle
from ._tokens import Tokens

if TYPE_CHECKING:
    from .hybrid_ep_buffer import HybridEPBuffer

Result = Tuple[Any, Any, Any, Any, Handle]


class Shape(NamedTuple):
    """num_rows      of the output; None: as many as there are
    pad_multiple  of each expert's block
    blocks        whether the host waits for the counts
    """

    num_rows: Optional[int]
    pad_multiple: int
    blocks: bool


def read_shape(num_permuted_tokens: Any, pad_multiple: Optional[int], non_blocking: bool) -> Shape:
    rows = _tokens.number_of_rows("num_permuted_tokens", num_permuted_tokens)
    pad = pad_multiple or 1
    if non_blocking and rows is None:
        raise InvalidArgumentError("num_permuted_tokens is None, but non_blocking needs it")
    if non_blocking and rows is not None and rows % pad != 0:
        raise InvalidArgumentError(
            f"num_permuted_tokens is {rows}, but must be a multiple of pad_multiple, {pad}"
        )
    return Shape(rows, pad, not non_blocking)


# -------------------------------------------------------------------------------------- dispatch


def dispatch(
    buffer: HybridEPBuffer,
    tokens: Tokens,
    choice: Choice,
    shape: Shape,
    num_local_experts: int,
    num_of_tokens_per_rank: Optional[int],
) -> Result:
    """By a new routing."""
    batch, counts = buffer._route(
        choice, tokens, shape.pad_multiple, num_local_experts, num_of_tokens_per_rank, shape.blocks
    )
    rows = shape.num_rows
    if rows is None:
        assert counts is not None
        rows = counts.num_padded_rows
    outputs = _rows_of(batch, tokens, rows, choice.probs, choice.weights, with_counts=True)
    sizes = _group_sizes(counts, shape.pad_multiple, rows, tokens, outputs)
    handle = _handle(buffer, batch, counts, tokens, outputs)
    scales = _tokens.own_scales(outputs.row_scales, tokens)
    return outputs.rows, outputs.row_weights, scales, sizes[:num_local_experts], handle


def redispatch(
    buffer: HybridEPBuffer,
    handle: Handle,
    tokens: Tokens,
    probs: Optional[Any],
    topk_weights: Optional[Any],
    num_permuted_tokens: Any,
    pad_multiple: Optional[int],
) -> Result:
    """By the routing of an earlier call. Never waits."""
    batch = open_handle(handle, PERMUTED_SIZE, buffer)
    check_tokens(batch, tokens.num_tokens)
    if pad_multiple is not None and (pad_multiple or 1) != batch.pad_multiple:
        raise InvalidArgumentError(
            f"pad_multiple is {pad_multiple}, but handle is of pad_multiple {batch.pad_multiple}"
        )
    rows = _tokens.number_of_rows("num_permuted_tokens", num_permuted_tokens)
    if rows is None:
        raise TypeError("num_permuted_tokens is None, but a call with a handle needs it")
    outputs = _rows_of(batch, tokens, rows, probs, topk_weights)
    scales = _tokens.own_scales(outputs.row_scales, tokens)
    return outputs.rows, outputs.row_weights, scales, None, handle


def _rows_of(
    batch: Batch,
    tokens: Tokens,
    num_rows: int,
    probs: Optional[Any],
    topk_weights: Optional[Any],
    with_counts: bool = False,
) -> Dispatched:
    weights = batch.weights(probs, topk_weights)
    config = batch.routing.communicator.config
    batch.use()
    return batch.routing.dispatch(
        tokens.rows,
        capacity=num_rows,
        scales=_tokens.padded_scales(tokens, config.scale_bytes),
        row_weights=bool(weights),
        group_sizes=with_counts,
        row_counters=with_counts,
        **weights,
    )


def _group_sizes(
    counts: Optional[Counts], pad: int, num_rows: int, tokens: Tokens, outputs: Dispatched
) -> Any:
    """int64 [EL] rows of each expert's block that were written, padding included."""
    if counts is None:
        return outputs.group_sizes
    return _device.on_host(
        _clipped(counts.tokens_per_expert, pad, num_rows), torch.int64, tokens.rows
    )


def _clipped(tokens_per_expert: Tuple[int, ...], pad: int, num_rows: int) -> List[int]:
    sizes, left = [], num_rows
    for number in tokens_per_expert:
        sizes.append(min(-(-number // pad) * pad, left))
        left -= sizes[-1]
    return sizes


def _handle(
    buffer: HybridEPBuffer,
    batch: Batch,
    counts: Optional[Counts],
    tokens: Tokens,
    outputs: Dispatched,
) -> Handle:
    config = buffer._call_config(tokens, batch.pad_multiple, batch.num_local_experts)
    return (
        batch,
        batch,
        batch,
        batch.num_flat_rows(counts),
        batch,
        batch,
        batch,
        batch.tokens_per_expert(),
        tokens.num_tokens,
        config,
        _device.low_words(outputs.row_counters)[2:],
    )


# --------------------------------------------------------------------------------------- combine


def combine(
    buffer: HybridEPBuffer, handle: Optional[Handle], hidden: Any, probs: Optional[Any]
) -> Tuple[Any, Optional[Any]]:
    batch = open_handle(handle, PERMUTED_SIZE, buffer)
    _tokens.check_results(hidden)
    if probs is not None:
        _tokens.check_vector(probs, "probs", hidden.shape[0])
    return batch.combine(hidden, probs)
