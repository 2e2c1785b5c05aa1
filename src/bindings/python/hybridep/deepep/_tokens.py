# SPDX-License-Identifier: Apache-2.0
"""The tokens of a dispatch: rows of one or two bytes an element, and the scales of the former."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple, Optional

import torch

from .._errors import InvalidArgumentError
from ._room import SCALE_BLOCK

_FP8_NAMES = ("float8_e4m3fn", "float8_e5m2", "uint8")
FP8_TYPES = tuple(getattr(torch, name) for name in _FP8_NAMES if hasattr(torch, name))
WIDE_TYPES = (torch.bfloat16, torch.float16)


class Tokens(NamedTuple):
    """rows [T, H], and with FP8 scales [T, H / 128]"""

    rows: Any
    scales: Optional[Any]
    use_fp8: bool

    @property
    def num_tokens(self) -> int:
        return int(self.rows.shape[0])

    @property
    def hidden(self) -> int:
        return int(self.rows.shape[1])


def check_contiguous(tensor: Any, name: str) -> None:
    if not tensor.is_contiguous():
        raise InvalidArgumentError(f"{name} is strided, but must be contiguous and row-major")


def check_matrix(tensor: Any, name: str, rows: int, columns: int, *types: Any) -> None:
    """Raises unless the tensor is a matrix of this shape, of one of these types."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} is {tensor!r}, but must be a tensor")
    if tensor.dtype not in types:
        have = " or ".join(str(dtype) for dtype in types)
        raise InvalidArgumentError(f"{name} has elements of {tensor.dtype}, but must have {have}")
    if tuple(tensor.shape) != (rows, columns):
        raise InvalidArgumentError(
            f"{name} has shape {list(tensor.shape)}, but must have {[rows, columns]}"
        )
    check_contiguous(tensor, name)


def _check_rows(hidden: Any) -> None:
    if not isinstance(hidden, torch.Tensor):
        raise TypeError(f"hidden is {hidden!r}, but must be a tensor")
    if hidden.dim() != 2:
        raise InvalidArgumentError(f"hidden has shape {list(hidden.shape)}, but must have [T, H]")
    if hidden.dtype not in WIDE_TYPES + FP8_TYPES:
        raise InvalidArgumentError(
            f"hidden has elements of {hidden.dtype}, but must have BF16, FP16, or FP8 or uint8"
        )
    check_contiguous(hidden, "hidden")


def read_tokens(hidden: Any, scaling_factor: Any, use_fp8: Optional[bool]) -> Tokens:
    """The tokens of a dispatch. use_fp8 None: the type of `hidden` decides."""
    _check_rows(hidden)
    is_fp8 = hidden.dtype in FP8_TYPES
    if use_fp8 is not None and use_fp8 != is_fp8:
        raise InvalidArgumentError(
            f"use_fp8 is {use_fp8}, but hidden has elements of {hidden.dtype}"
        )
    if not is_fp8:
        return Tokens(hidden, None, False)
    num_tokens, columns = hidden.shape
    if columns % SCALE_BLOCK != 0:
        raise InvalidArgumentError(
            f"hidden has {columns} columns, but with FP8 must have a multiple of {SCALE_BLOCK}"
        )
    if scaling_factor is None:
        raise InvalidArgumentError("scaling_factor is None, but use_fp8 is True")
    check_matrix(
        scaling_factor, "scaling_factor", num_tokens, columns // SCALE_BLOCK, torch.float32
    )
    return Tokens(hidden, scaling_factor, True)


def padded_scales(tokens: Tokens, scale_bytes: int) -> Optional[Any]:
    """The scales as wide as the communicator's, which may be made for longer rows."""
    if tokens.scales is None:
        return None
    missing = scale_bytes // 4 - tokens.scales.shape[1]
    return torch.nn.functional.pad(tokens.scales, (0, missing)) if missing > 0 else tokens.scales


def own_scales(row_scales: Optional[Any], tokens: Tokens) -> Optional[Any]:
    """The columns of `padded_scales` that the tokens have."""
    if row_scales is None:
        return None
    return row_scales[:, : tokens.hidden // SCALE_BLOCK].contiguous()


def check_results(hidden: Any) -> None:
    """Raises unless a combine can add up these rows."""
    if not isinstance(hidden, torch.Tensor):
        raise TypeError(f"hidden is {hidden!r}, but must be a tensor")
    if hidden.dim() != 2 or hidden.dtype not in WIDE_TYPES:
        raise InvalidArgumentError(
            f"hidden has elements of {hidden.dtype} and shape {list(hidden.shape)}, but a combine "
            "takes BF16 or FP16 of [n, H]"
        )
    check_contiguous(hidden, "hidden")


def check_vector(tensor: Any, name: str, rows: int) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} is {tensor!r}, but must be a tensor")
    if tensor.dtype != torch.float32 or tuple(tensor.shape) != (rows,):
        raise InvalidArgumentError(
            f"{name} has elements of {tensor.dtype} and shape {list(tensor.shape)}, but must have "
            f"torch.float32 and {[rows]}"
        )
    check_contiguous(tensor, name)


def number_of_rows(name: str, told: Any) -> Optional[int]:
    """A number of rows, as an int or a tensor without dimensions."""
    if told is None:
        return None
    rows = operator.index(told.item() if isinstance(told, torch.Tensor) else told)
    if rows < 0:
        raise InvalidArgumentError(f"{name} is {rows}, but must not be negative")
    return rows


def most_tokens(tokens: Tokens, num_of_tokens_per_rank: Optional[int]) -> int:
    """The most tokens of any rank, as far as this rank knows."""
    if num_of_tokens_per_rank is None:
        return tokens.num_tokens
    if num_of_tokens_per_rank < tokens.num_tokens:
        raise InvalidArgumentError(
            f"num_of_tokens_per_rank is {num_of_tokens_per_rank}, but hidden has "
            f"{tokens.num_tokens} tokens"
        )
    return num_of_tokens_per_rank
