# SPDX-License-Identifier: Apache-2.0
"""Stands in for the compiled module `hybrid_ep_cpp`, with what callers use of it."""

from __future__ import annotations

from typing import Any

from ._config import (
    BufferConfig,
    Configurer,
    HybridEpConfigInstance,
    TokenDataType,
    domain_size_told,
)

__all__ = [
    "UINT16",
    "UINT8",
    "BufferConfig",
    "Configurer",
    "ExtendedMemoryAllocator",
    "HybridEpConfigInstance",
]

UINT8 = TokenDataType.UINT8
UINT16 = TokenDataType.UINT16


class ExtendedMemoryAllocator:
    """Tells how many ranks share an NVLink domain."""

    def detect_accessible_ranks(self, group: Any) -> int:
        """Ranks of the group in the domain of this rank: as the environment tells, otherwise all.
        Whether they map each other's memory shows when a buffer is made.
        """
        size = int(group.size())
        return min(domain_size_told() or size, size)
