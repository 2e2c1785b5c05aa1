# SPDX-License-Identifier: Apache-2.0
"""The few calls of the CUDA driver that the package makes itself. No framework is needed."""

from __future__ import annotations

import ctypes
import functools
from typing import Any, List, NamedTuple, Optional

from ._errors import CudaError

# CUdevice_attribute
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76
_CAN_SHARE_BY = {103: "file descriptor", 128: "fabric handle"}


class Device(NamedTuple):
    """A GPU of this machine."""

    ordinal: int
    name: str
    compute_capability: str
    shares_by: List[str]  # means by which other processes can map its memory, beside cudaIpc


@functools.lru_cache(maxsize=None)
def _find_driver() -> Optional[ctypes.CDLL]:
    """The driver, or None where there is none that works."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return driver if driver.cuInit(0) == 0 else None


def _driver() -> ctypes.CDLL:
    driver = _find_driver()
    if driver is None:
        raise CudaError("there is no CUDA driver that works")
    return driver


def _check(result: int, call: str) -> None:
    if result != 0:
        raise CudaError(f"{call} returned CUresult {result}")


def _number(call: str, *arguments: Any) -> int:
    number = ctypes.c_int()
    _check(getattr(_driver(), call)(ctypes.byref(number), *arguments), call)
    return number.value


def driver_version() -> Optional[str]:
    """The newest CUDA version that the driver serves, or None without a driver."""
    if _find_driver() is None:
        return None
    version = _number("cuDriverGetVersion")
    return f"{version // 1000}.{version % 1000 // 10}"


def device_count() -> int:
    return 0 if _find_driver() is None else _number("cuDeviceGetCount")


def _describe(ordinal: int) -> Device:
    device = _number("cuDeviceGet", ordinal)
    name = ctypes.create_string_buffer(256)
    _check(_driver().cuDeviceGetName(name, len(name), device), "cuDeviceGetName")

    def attribute(which: int) -> int:
        return _number("cuDeviceGetAttribute", which, device)

    return Device(
        ordinal=ordinal,
        name=name.value.decode(),
        compute_capability=(
            f"{attribute(_COMPUTE_CAPABILITY_MAJOR)}.{attribute(_COMPUTE_CAPABILITY_MINOR)}"
        ),
        shares_by=[way for which, way in _CAN_SHARE_BY.items() if attribute(which)],
    )


def devices() -> List[Device]:
    return [_describe(ordinal) for ordinal in range(device_count())]


def can_access(first: int, second: int) -> bool:
    """Whether one device can map memory of another."""
    return _number("cuDeviceCanAccessPeer", first, second) != 0


def has_current_device() -> bool:
    """Whether this thread has chosen a device already."""
    driver = _find_driver()
    context = ctypes.c_void_p()
    if driver is None or driver.cuCtxGetCurrent(ctypes.byref(context)) != 0:
        return False
    return context.value is not None


def set_device(ordinal: int) -> None:
    """Makes a device current for this thread: a communicator of the cuda backend is bound to the
    current device of the thread that creates it. For callers without a framework that does so.
    """
    device = _number("cuDeviceGet", ordinal)
    context = ctypes.c_void_p()
    result = _driver().cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
    _check(result, "cuDevicePrimaryCtxRetain")
    _check(_driver().cuCtxSetCurrent(context), "cuCtxSetCurrent")


def copy_in(pointer: int, contents: bytes) -> None:
    """Copies to device memory of the current device. Waits."""
    size = ctypes.c_size_t(len(contents))
    _check(_driver().cuMemcpyHtoD_v2(ctypes.c_uint64(pointer), contents, size), "cuMemcpyHtoD")


def copy_out(pointer: int, num_bytes: int) -> bytes:
    """Copies from device memory of the current device, after all work of the default stream."""
    contents = ctypes.create_string_buffer(num_bytes)
    size = ctypes.c_size_t(num_bytes)
    _check(_driver().cuMemcpyDtoH_v2(contents, ctypes.c_uint64(pointer), size), "cuMemcpyDtoH")
    return contents.raw
