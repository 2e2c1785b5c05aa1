# SPDX-License-Identifier: Apache-2.0
"""The structs and functions of hybridep.h for ctypes. A test compares them with the header."""

from __future__ import annotations

import ctypes
import functools
from ctypes import c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from typing import Any, ClassVar, List, Type, TypeVar

from . import _library

# The version of the header that this module was written after.
MAJOR, MINOR, PATCH = 0, 1, 0
HEADER_VERSION = MAJOR * 10000 + MINOR * 100 + PATCH
UNIQUE_ID_BYTES = 128


def version_text(version: int) -> str:
    return f"{version // 10000}.{version // 100 % 100}.{version % 100}"


Made = TypeVar("Made", bound="Struct")


class Struct(ctypes.Structure):
    """A struct that is passed by pointer. It begins with size, magic number and version."""

    magic_number: ClassVar[int]
    _blank: ClassVar[bytes]

    def __init__(self, **fields: Any) -> None:
        super().__init__(ctypes.sizeof(self), self.magic_number, HEADER_VERSION, **fields)

    @classmethod
    def make(cls: Type[Made]) -> Made:
        """A struct without fields, for what is called often: this takes a quarter of the time."""
        if "_blank" not in cls.__dict__:
            cls._blank = bytes(cls())
        return cls.from_buffer_copy(cls._blank)


_HEAD: List[Any] = [("size", c_size_t), ("magic", c_uint32), ("version", c_uint32)]

LogCallback = ctypes.CFUNCTYPE(None, c_int, ctypes.c_char_p, c_void_p)
AllGather = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t, c_void_p)


class Config(Struct):
    magic_number = 0x48455043
    _fields_ = _HEAD + [
        ("backend", c_int32),
        ("type", c_int32),
        ("max_tokens", c_int32),
        ("hidden", c_int32),
        ("num_experts", c_int32),
        ("max_top_k", c_int32),
        ("scale_bytes", c_int32),
        ("low_latency_tokens", c_int32),
        ("heap_bytes", c_int64),
        ("timeout_ms", c_int32),
        ("sm_budget", c_int32),
        ("lanes", c_int32),
        ("domain_size", c_int32),
        ("routing_threads", c_int32),
        ("routing_blocks", c_int32),
        ("dispatch_stages", c_int32),
        ("dispatch_blocks", c_int32),
        ("combine_load_stages", c_int32),
        ("combine_store_stages", c_int32),
        ("combine_blocks", c_int32),
        ("log", LogCallback),
        ("log_context", c_void_p),
        ("combine_type", c_int32),
        ("partial_type", c_int32),
        ("low_latency_blocks", c_int32),
        ("init_timeout_ms", c_int32),
        ("network_bytes", c_int64),
    ]


class Workspace(Struct):
    magic_number = 0x48455057
    _fields_ = _HEAD + [
        ("total_bytes", c_uint64),
        ("token_bytes", c_uint64),
        ("partial_bytes", c_uint64),
        ("record_bytes", c_uint64),
        ("signal_bytes", c_uint64),
        ("heap_bytes", c_uint64),
        ("routing_bytes", c_uint64),
        ("scratch_bytes", c_uint64),
        ("low_latency_bytes", c_uint64),
        ("low_latency_routing_bytes", c_uint64),
        ("network_bytes", c_uint64),
    ]


class UniqueId(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_ubyte * UNIQUE_ID_BYTES)]


class Limits(Struct):
    magic_number = 0x4845504C
    _fields_ = _HEAD + [
        ("max_tokens", c_int32),
        ("max_top_k", c_int32),
        ("num_experts", c_int32),
        ("num_local_experts", c_int32),
        ("row_bytes", c_int64),
        ("max_flat_rows", c_int64),
        ("max_expert_rows", c_int64),
        ("routing_blocks", c_int32),
        ("dispatch_blocks", c_int32),
        ("combine_blocks", c_int32),
        ("timeout_ms", c_int32),
        ("lanes", c_int32),
        ("low_latency_lanes", c_int32),
        ("low_latency_tokens", c_int32),
        ("low_latency_blocks", c_int32),
        ("num_domains", c_int32),
        ("domain_size", c_int32),
        ("layout_dispatch_blocks", c_int32 * 3),
        ("layout_combine_blocks", c_int32 * 3),
    ]


class Failure(Struct):
    magic_number = 0x48455046
    _fields_ = _HEAD + [
        ("result", c_int32),
        ("operation", c_int32),
        ("phase", c_int32),
        ("rank", c_int32),
        ("missing_rank", c_int32),
        ("number", c_uint64),
        ("expected", c_uint64),
        ("seen", c_uint64),
        ("mode", c_int32),
        ("lane", c_int32),
        ("via_rank", c_int32),
        ("reserved", c_int32),
    ]


class RoutingConfig(Struct):
    magic_number = 0x48455052
    _fields_ = _HEAD + [
        ("alignment", c_int32),
        ("mode", c_int32),
        ("lane", c_int32),
        ("memory", c_void_p),
        ("memory_bytes", c_uint64),
        ("max_tokens", c_int32),
        ("max_top_k", c_int32),
    ]


class Update(Struct):
    magic_number = 0x48455055
    _fields_ = _HEAD + [
        ("indices", c_void_p),
        ("num_tokens", c_int64),
        ("top_k", c_int32),
        ("index_type", c_int32),
    ]


class RowCounters(ctypes.Structure):
    _fields_ = [("needed", c_int64), ("written", c_int64), ("overflow", c_int64)]


class RoutingView(Struct):
    magic_number = 0x48455056
    _fields_ = _HEAD + [
        ("tokens_per_expert", c_void_p),
        ("expert_offsets", c_void_p),
        ("num_flat_rows", c_void_p),
        ("num_expert_rows", c_void_p),
        ("row_counters", c_void_p),
    ]


class RoutingCounts(Struct):
    magic_number = 0x4845504E
    _fields_ = _HEAD + [
        ("tokens_per_expert", c_void_p),
        ("num_flat_rows", c_int64),
        ("num_expert_rows", c_int64),
        ("num_padded_rows", c_int64),
        ("max_expert_rows", c_int64),
        ("max_selections", c_int64),
    ]


class DispatchArgs(Struct):
    magic_number = 0x48455044
    _fields_ = _HEAD + [
        ("layout", c_int32),
        ("overflow", c_int32),
        ("type", c_int32),
        ("quantize", c_int32),
        ("x", c_void_p),
        ("weights", c_void_p),
        ("scales", c_void_p),
        ("rows", c_void_p),
        ("capacity", c_int64),
        ("row_weights", c_void_p),
        ("row_experts", c_void_p),
        ("row_sources", c_void_p),
        ("row_tokens", c_void_p),
        ("gather", c_void_p),
        ("gather_capacity", c_int64),
        ("expert_rows", c_void_p),
        ("row_scales", c_void_p),
        ("row_scales_stride", c_int64),
        ("scale_element_bytes", c_int64),
        ("update", ctypes.POINTER(Update)),
        ("hidden", c_int64),
        ("group_sizes", c_void_p),
        ("row_counters", c_void_p),
        ("dense_weights", c_void_p),
    ]


class CombineArgs(Struct):
    magic_number = 0x48455042
    _fields_ = _HEAD + [
        ("layout", c_int32),
        ("weight_mode", c_int32),
        ("type", c_int32),
        ("partial_type", c_int32),
        ("y", c_void_p),
        ("capacity", c_int64),
        ("row_weights", c_void_p),
        ("out", c_void_p),
        ("row_gradients", c_void_p),
        ("gradients", c_void_p),
        ("hidden", c_int64),
        ("dense_gradients", c_void_p),
    ]


_HANDLE = c_void_p
_STREAM = c_void_p
_ARGUMENTS = {
    "hepGetVersion": [ctypes.POINTER(c_int)],
    "hepConfigCheck": [ctypes.POINTER(Config), c_int],
    "hepWorkspaceSize": [ctypes.POINTER(Config), c_int, ctypes.POINTER(Workspace)],
    "hepGetUniqueId": [ctypes.POINTER(UniqueId)],
    "hepCommInitRank": [
        ctypes.POINTER(_HANDLE),
        c_int,
        ctypes.POINTER(UniqueId),
        c_int,
        ctypes.POINTER(Config),
    ],
    "hepCommInitAll": [
        ctypes.POINTER(_HANDLE),
        c_int,
        ctypes.POINTER(c_int),
        ctypes.POINTER(Config),
    ],
    "hepCommInitCallback": [
        ctypes.POINTER(_HANDLE),
        c_int,
        c_int,
        AllGather,
        c_void_p,
        ctypes.POINTER(Config),
    ],
    "hepCommInitNccl": [ctypes.POINTER(_HANDLE), c_void_p, ctypes.POINTER(Config)],
    "hepCommDestroy": [_HANDLE],
    "hepCommAbort": [_HANDLE],
    "hepCommCount": [_HANDLE, ctypes.POINTER(c_int)],
    "hepCommUserRank": [_HANDLE, ctypes.POINTER(c_int)],
    "hepCommDevice": [_HANDLE, ctypes.POINTER(c_int)],
    "hepCommBackend": [_HANDLE, ctypes.POINTER(c_int)],
    "hepCommLimits": [_HANDLE, ctypes.POINTER(Limits)],
    "hepMemAlloc": [_HANDLE, c_size_t, ctypes.POINTER(c_void_p)],
    "hepMemFree": [_HANDLE, c_void_p],
    "hepCommRegister": [_HANDLE, c_void_p, c_size_t],
    "hepCommDeregister": [_HANDLE, c_void_p],
    "hepCommGetAsyncError": [_HANDLE, ctypes.POINTER(c_int)],
    "hepCommGetFailure": [_HANDLE, ctypes.POINTER(Failure)],
    "hepRoutingMemoryBytes": [
        _HANDLE,
        ctypes.POINTER(RoutingConfig),
        ctypes.POINTER(c_uint64),
    ],
    "hepRoutingCreate": [ctypes.POINTER(_HANDLE), _HANDLE, ctypes.POINTER(RoutingConfig)],
    "hepRoutingDestroy": [_HANDLE],
    "hepRoutingUpdate": [_HANDLE, ctypes.POINTER(Update), _STREAM],
    "hepRoutingGetView": [_HANDLE, ctypes.POINTER(RoutingView)],
    "hepRoutingQuery": [_HANDLE, ctypes.POINTER(RoutingCounts), _STREAM],
    "hepDispatch": [_HANDLE, ctypes.POINTER(DispatchArgs), _STREAM],
    "hepDispatchSend": [_HANDLE, ctypes.POINTER(DispatchArgs), _STREAM],
    "hepDispatchReceive": [_HANDLE, _STREAM],
    "hepCombine": [_HANDLE, ctypes.POINTER(CombineArgs), _STREAM],
    "hepCombineSend": [_HANDLE, ctypes.POINTER(CombineArgs), _STREAM],
    "hepCombineReceive": [_HANDLE, _STREAM],
}


def _check_version(library: ctypes.CDLL) -> None:
    """Fields are only appended, so a library serves the package if it is not older."""
    loaded = c_int()
    library.hepGetVersion(ctypes.byref(loaded))
    if loaded.value // 10000 != MAJOR or loaded.value < HEADER_VERSION:
        raise ImportError(
            f"the package is of version {version_text(HEADER_VERSION)}, but the library "
            f"{_library.get_library()} is of version {version_text(loaded.value)}. It must be of "
            f"version {MAJOR}.x and not older than the package"
        )


@functools.lru_cache(maxsize=None)
def library() -> ctypes.CDLL:
    """The library, with the types of its functions declared."""
    opened = _library.open_library()
    _check_version(opened)
    opened.hepGetLastError.restype = ctypes.c_char_p
    opened.hepGetErrorString.restype = ctypes.c_char_p
    opened.hepGetErrorString.argtypes = [c_int]
    for name, types in _ARGUMENTS.items():
        getattr(opened, name).argtypes = types
    return opened


def last_error() -> str:
    """The library's sentence for the latest error of this thread."""
    sentence: bytes = library().hepGetLastError()
    return sentence.decode(errors="replace")
