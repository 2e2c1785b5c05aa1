# SPDX-License-Identifier: Apache-2.0
"""Tells what the package finds on this machine.

usage: python -m hybridep [--check]

--check  runs two ranks on the host backend, and one on each GPU, and compares what they get
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import sys
from typing import Callable, Iterator, List, Tuple

from . import Backend, Config, Error, __version__, _abi, _cuda
from ._library import PACKAGE, get_library

_FRAMEWORKS = ["numpy", "torch", "cupy", "jax", "ml_dtypes", "mpi4py"]
_WORDS = 12  # columns of the first word of each line


def line(word: str, text: str) -> None:
    print(f"{word:<{_WORDS}}{text}")


def lines(word: str, texts: List[str]) -> None:
    for number, text in enumerate(texts or ["none"]):
        line(word if number == 0 else "", text)


def library_version() -> str:
    number = ctypes.c_int()
    _abi.library().hepGetVersion(number)
    return _abi.version_text(number.value)


def try_backend(backend: Backend) -> str:
    """Creates a communicator of one rank, and tells the library's sentence if it cannot."""
    from ._communicator import Communicator

    config = Config(max_tokens=1, hidden=8, num_experts=1, backend=backend)
    try:
        for communicator in Communicator.from_devices(config, 1):
            communicator.close()
    except Error as error:
        return f"does not work: {error}"
    return "works"


def devices() -> Iterator[str]:
    for device in _cuda.devices():
        ways = " and ".join(device.shares_by + ["cudaIpc"])
        yield (
            f"{device.ordinal}: {device.name}, compute capability {device.compute_capability}, "
            f"shares memory by {ways}"
        )


def pairs_without_access() -> Iterator[Tuple[int, int]]:
    count = _cuda.device_count()
    for first in range(count):
        for second in range(count):
            if first != second and not _cuda.can_access(first, second):
                yield first, second


def peers() -> str:
    if _cuda.device_count() < 2:
        return "fewer than two devices"
    missing = ", ".join(f"{first} of {second}" for first, second in pairs_without_access())
    return f"cannot map memory: {missing}" if missing else "all devices map each other's memory"


def frameworks() -> Iterator[str]:
    for name in _FRAMEWORKS:
        for distribution in (name, f"{name}-cuda13x", f"{name}-cuda12x"):
            try:
                yield f"{name} {importlib.metadata.version(distribution)}"
                break
            except importlib.metadata.PackageNotFoundError:
                pass


def settings() -> List[str]:
    return [
        f"{name}={value}"
        for name, value in sorted(os.environ.items())
        if name.startswith("HEP_") or name == "HYBRIDEP_LIBRARY"
    ]


def report() -> None:
    line("package", f"{__version__}, {PACKAGE}")
    line("library", f"{library_version()}, {get_library()}")
    lines("backends", [f"{b.name.lower()}: {try_backend(b)}" for b in (Backend.HOST, Backend.CUDA)])
    line("driver", f"CUDA {_cuda.driver_version()}" if _cuda.driver_version() else "none")
    lines("devices", list(devices()))
    line("peers", peers())
    lines("frameworks", list(frameworks()))
    lines("settings", settings())


def check() -> bool:
    """Runs the jobs, and tells whether all were right."""
    from . import _check

    jobs: List[Tuple[str, Callable[[], None]]] = [
        ("2 ranks on the host backend", lambda: _check.run(Backend.HOST, 2, []))
    ]
    count = _cuda.device_count()
    if count > 0:
        ordinals = range(count)
        jobs.append((f"{count} ranks on GPUs", lambda: _check.run(Backend.CUDA, count, ordinals)))
    passed = True
    for name, job in jobs:
        try:
            job()
            line("check", f"{name}: right")
        except (Error, AssertionError) as error:
            line("check", f"{name}: {type(error).__name__}: {error}")
            passed = False
    return passed


def main(arguments: List[str]) -> int:
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        report()
    except ImportError as error:
        line("library", str(error))
        return 1
    return 0 if not arguments or check() else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
