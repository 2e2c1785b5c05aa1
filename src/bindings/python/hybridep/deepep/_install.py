# SPDX-License-Identifier: Apache-2.0
"""Puts the modules of this package under the names that users of Hybrid-EP import."""

from __future__ import annotations

import importlib
import pathlib
import sys
from types import ModuleType
from typing import Optional

_PACKAGE = "deep_ep"
_COMPILED = "hybrid_ep_cpp"
_SUBMODULE = "hybrid_ep_buffer"
_NAMES = ("HybridEPBuffer", "HybridEpConfigInstance")
FOLDER = pathlib.Path(__file__).resolve().parent / "path"  # has modules of these names


def _own() -> ModuleType:
    return importlib.import_module(__package__)


def _is_own(module: Optional[ModuleType]) -> bool:
    return module is None or module.__name__.startswith(__package__)


def _find_other() -> Optional[ModuleType]:
    """DeepEP itself, if it is installed and can be loaded. FOLDER does not count."""
    loaded = sys.modules.get(_PACKAGE)
    if loaded is not None and not _is_own(loaded) and not _lies_in_folder(loaded):
        return loaded
    hidden = {name: sys.modules.pop(name) for name in (_PACKAGE, _COMPILED) if name in sys.modules}
    path = list(sys.path)
    sys.path[:] = [entry for entry in path if not _is_folder(entry)]
    try:
        return importlib.import_module(_PACKAGE)
    except ImportError:
        sys.modules.update(hidden)
        return None
    finally:
        sys.path[:] = path


def _is_folder(entry: str) -> bool:
    return pathlib.Path(entry).resolve() == FOLDER


def _lies_in_folder(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and pathlib.Path(file).resolve().parent == FOLDER


def install() -> ModuleType:
    """Puts the modules under the names `deep_ep`, `deep_ep.hybrid_ep_buffer` and `hybrid_ep_cpp`.
    Where DeepEP itself is installed, its classes of these names are replaced; the rest of it stays.

    To be called before a framework imports these names. May be called twice. Returns `deep_ep`.
    """
    own = _own()
    other = _find_other()
    module = own if other is None else other
    buffer = importlib.import_module(f"{__package__}.{_SUBMODULE}")
    for name in _NAMES:
        setattr(module, name, getattr(own, name))
    setattr(module, _SUBMODULE, buffer)
    sys.modules[_PACKAGE] = module
    sys.modules[f"{_PACKAGE}.{_SUBMODULE}"] = buffer
    sys.modules[_COMPILED] = importlib.import_module(f"{__package__}.{_COMPILED}")
    return module
