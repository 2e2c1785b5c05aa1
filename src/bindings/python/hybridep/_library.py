# SPDX-License-Identifier: Apache-2.0
"""Finds the library and its header, and loads the library."""

from __future__ import annotations

import ctypes
import functools
import os
import pathlib

SONAME = "libhybridep.so.0"
HEADER = "hybridep.h"
PACKAGE = pathlib.Path(__file__).resolve().parent


class _SymbolInfo(ctypes.Structure):
    """Dl_info of dladdr()."""

    _fields_ = [
        ("file_name", ctypes.c_char_p),
        ("file_base", ctypes.c_void_p),
        ("symbol_name", ctypes.c_char_p),
        ("symbol_address", ctypes.c_void_p),
    ]


def _name_to_open() -> str:
    """What to give to dlopen(): the user's choice, the package's own library, or the system's."""
    chosen = os.environ.get("HYBRIDEP_LIBRARY")
    if chosen:
        return chosen
    packed = PACKAGE / "lib" / SONAME
    return str(packed) if packed.exists() else SONAME


@functools.lru_cache(maxsize=None)
def open_library() -> ctypes.CDLL:
    """Opens the library once in a process. Every function of it runs with the GIL released."""
    name = _name_to_open()
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        where = "named by HYBRIDEP_LIBRARY"
        if name == SONAME:
            where = f"HYBRIDEP_LIBRARY is not set, and {PACKAGE / 'lib'} has none"
        raise ImportError(f"cannot open the library ({where}): {error}") from error


def get_library() -> str:
    """The path of the library that this process uses, for a linker. Loads it."""
    dladdr = ctypes.CDLL(None).dladdr
    dladdr.argtypes = [ctypes.c_void_p, ctypes.POINTER(_SymbolInfo)]
    info = _SymbolInfo()
    address = ctypes.cast(open_library().hepGetVersion, ctypes.c_void_p)
    if dladdr(address, ctypes.byref(info)) == 0:
        raise FileNotFoundError(f"the system does not tell where {_name_to_open()} lies")
    return os.path.realpath(os.fsdecode(info.file_name))


def get_include() -> str:
    """The folder that holds hybridep.h, for a compiler: the package's, or that of the library."""
    library = pathlib.Path(get_library())
    folders = [PACKAGE / "include"]
    folders += [parent / "include" for parent in library.parents]
    for folder in folders:
        if (folder / HEADER).is_file():
            return str(folder)
    raise FileNotFoundError(f"there is no {HEADER} in any of {', '.join(map(str, folders))}")
