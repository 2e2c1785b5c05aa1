# SPDX-License-Identifier: Apache-2.0
"""Makes the routing of a new batch, and room for it."""

from __future__ import annotations

from typing import Optional, Tuple

from .._errors import InvalidUsageError
from .._routing import Routing
from .._values import Counts
from . import _choice, _device
from ._choice import Choice
from ._room import Room, Sizes


def _updated(room: Room, choice: Choice, wanted: Sizes, alignment: int) -> Routing:
    """A routing that has been updated with the choice."""
    room.make(wanted, _device.is_capturing(choice.indices))
    communicator = room.communicator
    experts = (room.num_ranks, wanted.num_local_experts, communicator.limits.num_local_experts)
    indices = _choice.spread_indices(choice, *experts)
    routing = Routing(communicator, alignment=alignment)
    top_k = communicator.limits.max_top_k if choice.is_map else None
    routing.update(indices, top_k=top_k)
    return routing


def _check_capture(learns_top_k: bool, blocks: bool) -> None:
    """A host that waits would end a capture."""
    if blocks:
        raise InvalidUsageError(
            "non_blocking is False, so that the host waits for the counts, which a graph that is "
            "captured forbids"
        )
    if learns_top_k:
        raise InvalidUsageError(
            "the first map of a buffer tells how many experts a token selects, and the host waits "
            "for it, which a graph that is captured forbids: give max_top_k to HybridEPBuffer"
        )


def route(
    room: Room, choice: Choice, wanted: Sizes, alignment: int, blocks: bool
) -> Tuple[Routing, Optional[Counts]]:
    """The routing, and the counts if the host waits for them.

    All ranks learn the same number of selections of a token from a map that has been counted. So
    they make room together.
    """
    learns_top_k = choice.is_map and not room.knows_top_k
    if _device.is_capturing(choice.indices):
        _check_capture(learns_top_k, blocks)
    routing = _updated(room, choice, wanted, alignment)
    if not blocks and not learns_top_k:
        return routing, None
    counts = routing.counts()
    room.knows_top_k = room.knows_top_k or choice.is_map
    if counts.max_selections > routing.top_k:
        wanted = wanted._replace(top_k=counts.max_selections)
        routing = _updated(room, choice, wanted, alignment)
        counts = routing.counts()
    return routing, counts if blocks else None
