# SPDX-License-Identifier: Apache-2.0
"""Memory of the library as an array that frameworks can read."""

from __future__ import annotations

from typing import Any, Dict, Optional, Tuple

from . import _dlpack

# What NumPy's interfaces call the types; those that they do not know are bytes or words.
_TYPE_STRINGS = {
    "bfloat16": "<u2",
    "float16": "<f2",
    "float32": "<f4",
    "float8_e4m3fn": "|u1",
    "float8_e5m2": "|u1",
    "uint8": "|u1",
    "int32": "<i4",
    "int64": "<i8",
}


class Memory:
    """An array in memory of the library: of a communicator's heap, or of a routing.

    `torch.from_dlpack`, `numpy.asarray` and `cupy.asarray` make arrays of theirs that share the
    memory. These keep the communicator alive, but closing it, or the routing, ends the memory.

    pointer    address
    shape      numbers of elements
    type       name of the elements' type, as NumPy and PyTorch have it
    device     CUDA ordinal; -1: memory of the process
    read_only  must not be written
    """

    def __init__(
        self,
        pointer: int,
        shape: Tuple[int, ...],
        type_name: str,
        device: int,
        read_only: bool,
        owner: Any,
    ) -> None:
        """For the package alone."""
        self.pointer = pointer
        self.shape = shape
        self.type = type_name
        self.device = device
        self.read_only = read_only
        self._owner = owner

    def _interface(self, read_only: bool) -> Dict[str, Any]:
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": _TYPE_STRINGS[self.type],
            "data": (self.pointer, read_only),
            "strides": None,
        }

    @property
    def __array_interface__(self) -> Dict[str, Any]:
        """NumPy's protocol. BF16 and FP8 are plain integers there."""
        if self.device >= 0:
            raise AttributeError("__array_interface__: the memory is a GPU's")
        return self._interface(self.read_only)

    @property
    def __cuda_array_interface__(self) -> Dict[str, Any]:
        """The protocol of CuPy and others. It never says read-only, which PyTorch refuses."""
        if self.device < 0:
            raise AttributeError("__cuda_array_interface__: the memory is not a GPU's")
        return self._interface(False)

    def __dlpack_device__(self) -> Tuple[int, int]:
        return _dlpack.device_of(self.device)

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: Optional[Tuple[int, int]] = None,
        dl_device: Optional[Tuple[int, int]] = None,
        copy: Optional[bool] = None,
    ) -> Any:
        """DLPack 1.0, or the older form. The caller orders streams: what the header says of the
        memory's contents holds.
        """
        if copy or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError("the memory cannot be copied, nor moved to another device")
        return _dlpack.offer(
            self.pointer, self.shape, self.type, self.device, self.read_only, self, max_version
        )

    def __repr__(self) -> str:
        place = "the host" if self.device < 0 else f"GPU {self.device}"
        return f"<hybridep.Memory {self.type} {list(self.shape)} on {place}>"
