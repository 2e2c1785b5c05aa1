# SPDX-License-Identifier: Apache-2.0
"""The few calls of the CUDA driver that the package makes itself. No framework is needed."""

from __future__ import annotations

import ctypes
import functools
from typing import Any, List, NamedTuple, Optional

from ._errors import CudaError

_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76


class Device(NamedTuple):
    """A GPU of this machine."""

    ordinal: int
    name: str
    compute_capability: str


@functools.lru_cache(maxsize=None)
def _driver() -> Optional[ctypes.CDLL]:
    """The driver, or None where there is none that works."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return driver if driver.cuInit(0) == 0 else None


def _check(result: int, call: str) -> None:
    if result != 0:
        raise CudaError(f"{call} returned CUresult {result}")


def _number(driver: Any, call: str, *arguments: Any) -> int:
    number = ctypes.c_int()
    _check(getattr(driver, call)(ctypes.byref(number), *arguments), call)
    return number.value


def driver_version() -> Optional[str]:
    """The newest CUDA version that the driver serves, or None without a driver."""
    driver = _driver()
    if driver is None:
        return None
    version = _number(driver, "cuDriverGetVersion")
    return f"{version // 1000}.{version % 1000 // 10}"


def device_count() -> int:
    driver = _driver()
    return 0 if driver is None else _number(driver, "cuDeviceGetCount")


def _describe(driver: Any, ordinal: int) -> Device:
    device = _number(driver, "cuDeviceGet", ordinal)
    name = ctypes.create_string_buffer(256)
    _check(driver.cuDeviceGetName(name, len(name), device), "cuDeviceGetName")
    major = _number(driver, "cuDeviceGetAttribute", _COMPUTE_CAPABILITY_MAJOR, device)
    minor = _number(driver, "cuDeviceGetAttribute", _COMPUTE_CAPABILITY_MINOR, device)
    return Device(ordinal, name.value.decode(), f"{major}.{minor}")


def devices() -> List[Device]:
    return [_describe(_driver(), ordinal) for ordinal in range(device_count())]


def can_access(first: int, second: int) -> bool:
    """Whether one device can map memory of another."""
    return _number(_driver(), "cuDeviceCanAccessPeer", first, second) != 0


def has_current_device() -> bool:
    """Whether this thread has chosen a device already."""
    driver = _driver()
    context = ctypes.c_void_p()
    if driver is None or driver.cuCtxGetCurrent(ctypes.byref(context)) != 0:
        return False
    return context.value is not None


def set_device(ordinal: int) -> None:
    """Makes a device current for this thread: a communicator of the cuda backend is bound to the
    current device of the thread that creates it. For callers without a framework that does so.
    """
    driver = _driver()
    if driver is None:
        raise CudaError("there is no CUDA driver that works")
    device = _number(driver, "cuDeviceGet", ordinal)
    context = ctypes.c_void_p()
    result = driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
    _check(result, "cuDevicePrimaryCtxRetain")
    _check(driver.cuCtxSetCurrent(context), "cuCtxSetCurrent")
