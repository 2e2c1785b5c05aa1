# SPDX-License-Identifier: Apache-2.0
"""Streams of any framework as the handle that the library takes."""

from __future__ import annotations

from typing import Any, Optional

from ._arrays import Framework
from ._errors import InvalidArgumentError

# What PyTorch's and CuPy's streams call their handle and their device.
_HANDLES = (("cuda_stream", "device_index"), ("ptr", "device_id"))


def _of_protocol(stream: Any) -> int:
    """The handle of an object with `__cuda_stream__`: (version, handle), or a method of it."""
    protocol = stream.__cuda_stream__
    version, handle = protocol() if callable(protocol) else protocol
    if version != 0:
        raise InvalidArgumentError(
            f"stream has version {version} of __cuda_stream__, but only 0 is known"
        )
    return int(handle)


def _check_device(stream: Any, name: str, device: int) -> None:
    own = getattr(stream, name, -1)
    if own not in (-1, device):
        raise InvalidArgumentError(
            f"stream is of device {own}, but the communicator is of device {device}"
        )


def _given(stream: Any, device: int) -> int:
    if isinstance(stream, int) and not isinstance(stream, bool):
        return stream
    for handle, device_name in _HANDLES:
        if hasattr(stream, handle):
            _check_device(stream, device_name, device)
            return int(getattr(stream, handle))
    if hasattr(stream, "__cuda_stream__"):
        return _of_protocol(stream)
    raise TypeError(
        f"stream is {stream!r}, but must be None, a handle, a stream of PyTorch or CuPy, or have "
        "__cuda_stream__"
    )


def handle_of(stream: Any, device: int, framework: Framework) -> Optional[int]:
    """The handle of a stream on the device (-1: the host backend, which has none). None stands for
    the current stream of the framework.
    """
    if device < 0:
        if stream is not None:
            raise InvalidArgumentError(f"stream is {stream!r}, but the host backend has none: None")
        return None
    return framework.stream(device) if stream is None else _given(stream, device)
