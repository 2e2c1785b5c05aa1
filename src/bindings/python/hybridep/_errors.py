# SPDX-License-Identifier: Apache-2.0
"""An exception for each hepResult_t. `str()` of one is the library's sentence."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Dict, Optional, Type

from . import _abi
from ._enums import Result

if TYPE_CHECKING:
    from ._values import Failure


class Error(Exception):
    """An error of the library, or an argument that the package refuses.

    result   the result of the call
    failure  what made the communicator fail, if it has failed
    """

    result: Result = Result.INTERNAL
    failure: Optional[Failure] = None


class InvalidArgumentError(Error, ValueError):
    """An argument, field or shape breaks a rule."""

    result = Result.INVALID_ARGUMENT


class InvalidUsageError(Error, RuntimeError):
    """The call does not fit the state of its object."""

    result = Result.INVALID_USAGE


class UnsupportedError(Error, NotImplementedError):
    """Legal, but not served by this version or this machine."""

    result = Result.UNSUPPORTED


class OutOfMemoryError(Error, MemoryError):
    """The system or the device has no host or device memory left."""

    result = Result.OUT_OF_MEMORY


class SystemCallError(Error, OSError):
    """A system call failed."""

    result = Result.SYSTEM


class CudaError(Error, RuntimeError):
    """A CUDA call failed."""

    result = Result.CUDA


class MismatchError(Error, RuntimeError):
    """Two ranks disagree on version, config, topology or a call."""

    result = Result.MISMATCH


class UnreachableError(Error, ConnectionError):
    """Two devices cannot map each other's memory."""

    result = Result.UNREACHABLE


class PeerTimeoutError(Error, TimeoutError):
    """A wait for a peer expired."""

    result = Result.TIMEOUT


class AbortedError(Error, ConnectionAbortedError):
    """A rank aborted the communicator."""

    result = Result.ABORTED


class PeerLostError(Error, ConnectionResetError):
    """A peer's process is gone, or the peer has left."""

    result = Result.PEER_LOST


class InternalError(Error, RuntimeError):
    """A bug in the library; please report it."""

    result = Result.INTERNAL


class RowOverflowError(Error, RuntimeError):
    """Rows did not fit in the capacity of a dispatch."""

    result = Result.OVERFLOW


class NetworkError(Error, ConnectionError):
    """The network between domains failed, or does not connect them."""

    result = Result.NETWORK


_CLASSES: Dict[int, Type[Error]] = {
    int(class_.result): class_
    for class_ in (
        InvalidArgumentError,
        InvalidUsageError,
        UnsupportedError,
        OutOfMemoryError,
        SystemCallError,
        CudaError,
        MismatchError,
        UnreachableError,
        PeerTimeoutError,
        AbortedError,
        PeerLostError,
        InternalError,
        RowOverflowError,
        NetworkError,
    )
}


def make_error(result: int, failure: Optional[Failure] = None) -> Error:
    """The exception for the latest error of this thread."""
    error = _CLASSES.get(result, Error)(_abi.last_error())
    error.result = Result(result)
    error.failure = failure
    return error


def check(result: int) -> None:
    """Raises unless the call has succeeded."""
    if result != 0:
        raise make_error(result)


def integer(name: str, value: object, bits: int = 32) -> int:
    """The value as a number of an int32 or int64 field: ctypes would cut it without a word."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} is {value!r}, but must be an integer") from None
    if not -(1 << (bits - 1)) <= number < 1 << (bits - 1):
        raise InvalidArgumentError(f"{name} is {number}, which does not fit in {bits} bits")
    return number
