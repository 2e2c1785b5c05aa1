# SPDX-License-Identifier: Apache-2.0
"""A drop-in for `deep_ep.HybridEPBuffer` on libhybridep. There are three ways in:

    import hybridep.deepep as deep_ep

    hybridep.deepep.install()        # before the framework is imported

    PYTHONPATH=$(python -m hybridep.deepep --path) ...

`Buffer` of DeepEP is not here.
"""

from __future__ import annotations

from .. import __version__
from . import hybrid_ep_buffer
from ._config import HybridEpConfigInstance
from ._install import install
from .hybrid_ep_buffer import HybridEPBuffer

__all__ = ["HybridEPBuffer", "HybridEpConfigInstance", "hybrid_ep_buffer", "install"]
