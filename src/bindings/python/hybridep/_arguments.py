# SPDX-License-Identifier: Apache-2.0
"""Checks the arrays of a call before the library is called."""

from __future__ import annotations

from typing import Any, List, Optional, Sequence, Tuple

from . import _arrays
from ._arrays import Shape, View
from ._errors import InvalidArgumentError


class Arguments:
    """The arrays of a call, checked one by one as they are added."""

    def __init__(self, device: int) -> None:
        self._device = device
        self._ranges: List[Tuple[int, int, str, bool]] = []  # begin, end, name, is output
        self.keep: List[Any] = []

    def _check_place(self, seen: View, name: str) -> None:
        if seen.device != self._device and seen.device != _arrays.UNKNOWN_DEVICE:
            raise InvalidArgumentError(
                f"{name} lies on {_place(seen.device)}, but the communicator is of "
                f"{_place(self._device)}"
            )
        if seen.device == _arrays.UNKNOWN_DEVICE and self._device < 0:
            raise InvalidArgumentError(f"{name} lies on a GPU, but the communicator is of the host")

    def add(
        self,
        seen: View,
        name: str,
        shape: Optional[Shape],
        types: Sequence[str],
        alignment: int = 0,
        is_output: bool = False,
    ) -> Optional[int]:
        """The address of an array, None if it has no elements.

        shape      that it must have, -1 for any size; None: any shape
        types      that its elements may have; none: any
        alignment  0: the size of an element
        """
        self._check_place(seen, name)
        if types and seen.type not in types:
            raise InvalidArgumentError(
                f"{name} has elements of type {seen.type}, but must have {' or '.join(types)}"
            )
        if shape is not None and not _fits(seen.shape, shape):
            raise InvalidArgumentError(
                f"{name} has shape {list(seen.shape)}, but must have {_shape_text(shape)}"
            )
        if not seen.contiguous:
            raise InvalidArgumentError(f"{name} is strided, but must be contiguous and row-major")
        if is_output and not seen.writable:
            raise InvalidArgumentError(f"{name} is read-only, but is an output")
        num_bytes = seen.nbytes
        if num_bytes == 0:
            return None
        if seen.pointer % (alignment or seen.element_bytes) != 0:
            raise InvalidArgumentError(
                f"{name} lies at {seen.pointer:#x}, but must be aligned to "
                f"{alignment or seen.element_bytes} bytes"
            )
        self._ranges.append((seen.pointer, seen.pointer + num_bytes, name, is_output))
        self.keep.append(seen.owner)
        return seen.pointer

    def check_overlaps(self) -> None:
        """No output may share memory with another array of the call."""
        ranges = sorted(self._ranges)
        for first, second in zip(ranges, ranges[1:]):
            if second[0] < first[1] and (first[3] or second[3]):
                raise InvalidArgumentError(f"{first[2]} and {second[2]} overlap in memory")


def _place(device: int) -> str:
    return "the host" if device < 0 else f"GPU {device}"


def _fits(shape: Shape, wanted: Shape) -> bool:
    return len(shape) == len(wanted) and all(w in (-1, s) for s, w in zip(shape, wanted))


def _shape_text(shape: Shape) -> str:
    return "[" + ", ".join("any" if size < 0 else str(size) for size in shape) + "]"
