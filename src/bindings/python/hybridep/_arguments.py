# SPDX-License-Identifier: Apache-2.0
"""Checks the arrays of a call before the library is called."""

from __future__ import annotations

from typing import List, Sequence, Tuple

from ._arrays import ELEMENT_BYTES, UNKNOWN_DEVICE, Shape, View
from ._errors import InvalidArgumentError


class Arguments:
    """The arrays that the caller gave for a call. Each is checked as it is added."""

    def __init__(self, device: int) -> None:
        self._device = device
        self._given: List[Tuple[View, str, bool]] = (
            []
        )  # the array, its name, whether it is an output
        self._has_outputs = False

    def add(
        self,
        seen: View,
        name: str,
        shape: Shape,
        types: Sequence[str] = (),
        alignment: int = 0,
        is_output: bool = False,
    ) -> int:
        """The address of an array, anything if it has no elements.

        shape      that it must have, -1 for any size
        types      that its elements may have; none: any
        alignment  0: the size of an element
        """
        if seen.device != self._device:
            self._check_place(seen, name)
        if types and seen.type not in types:
            raise InvalidArgumentError(
                f"{name} has elements of type {seen.type}, but must have {' or '.join(types)}"
            )
        if seen.type not in ELEMENT_BYTES:
            raise InvalidArgumentError(
                f"{name} has elements of type {seen.type}, which is not known"
            )
        if seen.shape != shape and not _fits(seen.shape, shape):
            raise InvalidArgumentError(
                f"{name} has shape {list(seen.shape)}, but must have {_shape_text(shape)}"
            )
        if not seen.contiguous:
            raise InvalidArgumentError(f"{name} is strided, but must be contiguous and row-major")
        if is_output:
            self._has_outputs = True
            if not seen.writable:
                raise InvalidArgumentError(f"{name} is read-only, but is an output")
        if seen.pointer % (alignment or ELEMENT_BYTES[seen.type]) != 0:
            self._check_alignment(seen, name, alignment)
        self._given.append((seen, name, is_output))
        return seen.pointer

    def _check_place(self, seen: View, name: str) -> None:
        if seen.device != UNKNOWN_DEVICE or self._device < 0:
            raise InvalidArgumentError(
                f"{name} lies on {_place(seen.device)}, but the communicator is of "
                f"{_place(self._device)}"
            )

    def _check_alignment(self, seen: View, name: str, alignment: int) -> None:
        if seen.nbytes > 0:
            raise InvalidArgumentError(
                f"{name} lies at {seen.pointer:#x}, but must be aligned to "
                f"{alignment or ELEMENT_BYTES[seen.type]} bytes"
            )

    def check_overlaps(self) -> None:
        """No output may share memory with another array of the call. Those that were just allocated
        do not.
        """
        if not self._has_outputs:
            return
        ranges = sorted(
            (seen.pointer, seen.pointer + seen.nbytes, name, is_output)
            for seen, name, is_output in self._given
            if seen.nbytes > 0
        )
        for first, second in zip(ranges, ranges[1:]):
            if second[0] < first[1] and (first[3] or second[3]):
                raise InvalidArgumentError(f"{first[2]} and {second[2]} overlap in memory")


def _place(device: int) -> str:
    if device == UNKNOWN_DEVICE:
        return "a GPU"
    return "the host" if device < 0 else f"GPU {device}"


def _fits(shape: Shape, wanted: Shape) -> bool:
    return len(shape) == len(wanted) and all(w in (-1, s) for s, w in zip(shape, wanted))


def _shape_text(shape: Shape) -> str:
    return "[" + ", ".join("any" if size < 0 else str(size) for size in shape) + "]"
