# SPDX-License-Identifier: Apache-2.0
"""DLPack: reads the tensors of others, and offers memory of the library to others."""

from __future__ import annotations

import ctypes
from typing import Any, Dict, NamedTuple, Optional, Tuple

VERSION = (1, 0)
CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13
_READ_ONLY = 1

_KINDS = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 6: "bool"}
_FLOAT8 = {10: "float8_e4m3fn", 12: "float8_e5m2", 14: "float8_e8m0fnu"}
# Codes and bits of the types that the library's memory may have.
_CODES = {
    "bfloat16": (4, 16),
    "float16": (2, 16),
    "float32": (2, 32),
    "float8_e4m3fn": (10, 8),
    "float8_e5m2": (12, 8),
    "uint8": (1, 8),
    "int32": (0, 32),
    "int64": (0, 64),
}


class _Device(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int32), ("id", ctypes.c_int32)]


class _Type(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _Managed(ctypes.Structure):
    """DLManagedTensor, of consumers that know no versions."""

    _fields_ = [
        ("tensor", _Tensor),
        ("manager_context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    ]


class _Versioned(ctypes.Structure):
    """DLManagedTensorVersioned"""

    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager_context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    ]


def _python(name: str, result: Any, *arguments: Any) -> Any:
    """A function of Python's own C API."""
    return ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))


_is_valid = _python("PyCapsule_IsValid", ctypes.c_int, ctypes.py_object, ctypes.c_char_p)
_pointer_of = _python("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)


class Borrowed(NamedTuple):
    """A tensor of somebody else, alive as long as its capsule."""

    pointer: int
    shape: Tuple[int, ...]
    strides: Optional[Tuple[int, ...]]  # in elements
    type: str
    device: int  # CUDA ordinal; -1: memory of the process
    read_only: bool
    capsule: Any


def _request(array: Any) -> Any:
    """The capsule, for a consumer that orders streams itself (-1)."""
    kind = array.__dlpack_device__()[0]
    arguments: Dict[str, Any] = {} if int(kind) in (CPU, CUDA_HOST) else {"stream": -1}
    try:
        return array.__dlpack__(max_version=VERSION, **arguments)
    except TypeError:  # of a producer that knows no versions
        return array.__dlpack__(**arguments)


def _type_name(dtype: _Type) -> str:
    if dtype.lanes != 1:
        return f"vector of {dtype.lanes}"
    if dtype.code in _FLOAT8:
        return _FLOAT8[dtype.code]
    kind = _KINDS.get(dtype.code, f"type {dtype.code} of ")
    return kind if kind == "bool" else f"{kind}{dtype.bits}"


def _open(capsule: Any) -> Tuple[_Tensor, bool]:
    """The capsule's tensor, and whether it is read-only."""
    if _is_valid(capsule, b"dltensor_versioned"):
        versioned = _Versioned.from_address(_pointer_of(capsule, b"dltensor_versioned"))
        if versioned.major != VERSION[0]:
            raise BufferError(f"DLPack {versioned.major}.{versioned.minor} is not understood")
        return versioned.tensor, bool(versioned.flags & _READ_ONLY)
    managed = _Managed.from_address(_pointer_of(capsule, b"dltensor"))
    return managed.tensor, False


def borrow(array: Any) -> Borrowed:
    """The memory of an array that offers DLPack. The capsule is kept and never consumed."""
    capsule = _request(array)
    tensor, read_only = _open(capsule)
    if tensor.device.type not in (CPU, CUDA, CUDA_HOST):
        raise BufferError(f"memory of a DLPack device of type {tensor.device.type}")
    dimensions = range(tensor.ndim)
    return Borrowed(
        pointer=(tensor.data or 0) + tensor.byte_offset,
        shape=tuple(tensor.shape[i] for i in dimensions),
        strides=tuple(tensor.strides[i] for i in dimensions) if tensor.strides else None,
        type=_type_name(tensor.dtype),
        device=tensor.device.id if tensor.device.type == CUDA else -1,
        read_only=read_only,
        capsule=capsule,
    )


# -------------------------------------------------------------------------------------- offering

# The names live as long as capsules, which keep no copy.
_LEGACY_NAME = ctypes.c_char_p(b"dltensor")
_VERSIONED_NAME = ctypes.c_char_p(b"dltensor_versioned")

_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_Destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
_new_capsule = _python(
    "PyCapsule_New", ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, _Destructor
)
# A capsule that is being destroyed must not be referenced again: it is passed as an address.
_is_valid_address = _python("PyCapsule_IsValid", ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)
_pointer_of_address = _python(
    "PyCapsule_GetPointer", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p
)

# What consumers hold: the struct, its shape and the owner of the memory, by the struct's address.
_offered: Dict[int, Any] = {}


def _delete(address: int) -> None:
    _offered.pop(address, None)


def _destroy(capsule: int) -> None:
    """A capsule that nobody has consumed still owns its tensor."""
    for name in (_LEGACY_NAME, _VERSIONED_NAME):
        if _is_valid_address(capsule, name):
            _delete(_pointer_of_address(capsule, name))


_deleter = _Deleter(_delete)
_destructor = _Destructor(_destroy)


def offer(
    pointer: int,
    shape: Tuple[int, ...],
    type_name: str,
    device: int,
    read_only: bool,
    owner: Any,
    max_version: Optional[Tuple[int, int]],
) -> Any:
    """A capsule for memory that `owner` keeps alive. Its consumer may drop it on any thread."""
    code, bits = _CODES[type_name]
    sizes = (ctypes.c_int64 * len(shape))(*shape)
    managed: Any
    if max_version is not None and tuple(max_version) >= VERSION:
        flags = _READ_ONLY if read_only else 0
        managed, name = _Versioned(major=VERSION[0], minor=VERSION[1], flags=flags), _VERSIONED_NAME
    else:
        managed, name = _Managed(), _LEGACY_NAME
    managed.deleter = ctypes.cast(_deleter, ctypes.c_void_p)
    managed.tensor = _Tensor(
        data=pointer,
        device=device_of(device),
        ndim=len(shape),
        dtype=_Type(code, bits, 1),
        shape=sizes,
    )
    address = ctypes.addressof(managed)
    _offered[address] = (managed, sizes, owner)
    return _new_capsule(address, name, _destructor)


def device_of(device: int) -> Tuple[int, int]:
    """DLPack's name of a CUDA ordinal, or of -1 for the memory of the process."""
    return (CPU, 0) if device < 0 else (CUDA, device)
