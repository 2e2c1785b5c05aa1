# SPDX-License-Identifier: Apache-2.0
"""The enums of hybridep.h, with its values. The header documents each."""

from __future__ import annotations

import enum
from typing import Optional


class FromLibrary(enum.IntEnum):
    """An enum of what the library tells. A newer library may know members that this package does
    not.
    """

    @classmethod
    def _missing_(cls, value: object) -> Optional[FromLibrary]:
        if not isinstance(value, int):
            return None
        member = int.__new__(cls, value)
        member._name_, member._value_ = f"UNKNOWN_{value}", value
        return member


class Result(FromLibrary):
    """hepResult_t"""

    SUCCESS = 0
    INVALID_ARGUMENT = 1
    INVALID_USAGE = 2
    UNSUPPORTED = 3
    OUT_OF_MEMORY = 4
    SYSTEM = 5
    CUDA = 6
    MISMATCH = 7
    UNREACHABLE = 8
    TIMEOUT = 9
    ABORTED = 10
    PEER_LOST = 11
    INTERNAL = 12
    OVERFLOW = 13
    NETWORK = 14


class Backend(enum.IntEnum):
    """hepBackend_t"""

    AUTO = 0
    CUDA = 1
    HOST = 2


class DataType(enum.IntEnum):
    """hepDataType_t"""

    DEFAULT = 0
    BFLOAT16 = 1
    FLOAT16 = 2
    FLOAT32 = 3
    FLOAT8_E4M3 = 4
    FLOAT8_E5M2 = 5
    BYTES = 6


class LogLevel(enum.IntEnum):
    """hepLogLevel_t"""

    NONE = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    DEBUG = 4


class Operation(FromLibrary):
    """hepOperation_t"""

    NONE = 0
    ROUTING = 1
    DISPATCH = 2
    COMBINE = 3


class Phase(FromLibrary):
    """hepPhase_t"""

    NONE = 0
    BLOCKS = 1
    RECORDS = 2
    ROWS = 3
    WEIGHTS = 4
    READERS = 5
    SLOTS = 6
    PARTIALS = 7
    NETWORK = 8
    LANDING = 9


class Mode(enum.IntEnum):
    """hepMode_t"""

    THROUGHPUT = 0
    LOW_LATENCY = 1


class IndexType(enum.IntEnum):
    """hepIndexType_t"""

    INT32 = 0
    INT64 = 1
    MAP = 2


class Layout(enum.IntEnum):
    """hepLayout_t"""

    FLAT = 0
    EXPERT_MAJOR = 1
    EXPERT_PADDED = 2


class Overflow(enum.IntEnum):
    """hepOverflow_t"""

    DROP = 0
    ERROR = 1


class Quantization(enum.IntEnum):
    """hepQuantization_t"""

    NONE = 0
    FLOAT32 = 1
    UE8M0 = 2


class WeightMode(enum.IntEnum):
    """hepWeightMode_t"""

    NONE = 0
    DISPATCHED = 1
    ROW = 2
