# SPDX-License-Identifier: Apache-2.0
"""Expert-parallel all-to-all for Mixture-of-Experts layers: libhybridep from Python.

    with hybridep.Communicator.from_torch(config) as communicator:
        with hybridep.Routing(communicator) as routing:
            routing.update(expert_ids)
            rows = routing.dispatch(x, weights=weights).rows
            y = experts(rows)
            out = routing.combine(y, weight_mode=hybridep.WeightMode.DISPATCHED).out

The library is loaded when one of the classes that need it is used for the first time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import _abi
from ._cuda import set_device
from ._enums import (
    Backend,
    DataType,
    IndexType,
    Layout,
    LogLevel,
    Mode,
    Operation,
    Overflow,
    Phase,
    Quantization,
    Result,
    WeightMode,
)
from ._errors import (
    AbortedError,
    CudaError,
    Error,
    InternalError,
    InvalidArgumentError,
    InvalidUsageError,
    MismatchError,
    NetworkError,
    OutOfMemoryError,
    PeerLostError,
    PeerTimeoutError,
    RowOverflowError,
    SystemCallError,
    UnreachableError,
    UnsupportedError,
)
from ._library import get_include, get_library
from ._memory import Memory
from ._values import Config, Counts, Failure, Limits, Workspace

if TYPE_CHECKING:
    from ._calls import Combined, Dispatched
    from ._communicator import Communicator, unique_id
    from ._routing import Routing, RoutingView

__version__ = _abi.version_text(_abi.HEADER_VERSION)

# Importing one of these loads the library, so that one that does not fit is refused there.
_MODULE_OF = {
    "Communicator": "_communicator",
    "unique_id": "_communicator",
    "Routing": "_routing",
    "Dispatched": "_calls",
    "Combined": "_calls",
    "RoutingView": "_routing",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _abi.library()
    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)


__all__ = [
    "AbortedError",
    "Backend",
    "Combined",
    "Communicator",
    "Config",
    "Counts",
    "CudaError",
    "DataType",
    "Dispatched",
    "Error",
    "Failure",
    "IndexType",
    "InternalError",
    "InvalidArgumentError",
    "InvalidUsageError",
    "Layout",
    "Limits",
    "LogLevel",
    "Memory",
    "MismatchError",
    "Mode",
    "NetworkError",
    "Operation",
    "OutOfMemoryError",
    "Overflow",
    "PeerLostError",
    "PeerTimeoutError",
    "Phase",
    "Quantization",
    "Result",
    "Routing",
    "RoutingView",
    "RowOverflowError",
    "SystemCallError",
    "UnreachableError",
    "UnsupportedError",
    "WeightMode",
    "Workspace",
    "get_include",
    "get_library",
    "set_device",
    "unique_id",
]
