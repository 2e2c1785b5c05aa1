# SPDX-License-Identifier: Apache-2.0
"""Makes the routing of a new batch, and room for it."""

from __future__ import annotations

from typing import Any, NamedTuple, Optional, Tuple

from .._errors import InvalidUsageError
from .._routing import Routing
from .._values import Counts
from . import _choice, _device
from ._choice import Choice
from ._room import Room, Sizes


class Route(NamedTuple):
    """A routing that has been updated, and the memory that it lives in."""

    routing: Routing
    memory: Any


def _updated(room: Room, choice: Choice, wanted: Sizes, alignment: int, max_tokens: int) -> Route:
    """max_tokens: of any rank, as far as all ranks know; 0: as many as there is room for"""
    room.make(wanted, _device.is_capturing(choice.indices))
    communicator = room.communicator
    limits = communicator.limits
    indices = _choice.spread_indices(
        choice, room.num_ranks, wanted.num_local_experts, limits.num_local_experts
    )
    top_k = limits.max_top_k if choice.is_map else wanted.top_k
    num_bytes = communicator.routing_bytes(max_tokens=max_tokens, max_top_k=top_k)
    memory = _device.aligned_bytes(num_bytes, indices)
    routing = Routing(
        communicator,
        alignment=alignment,
        memory=memory,
        max_tokens=max_tokens,
        max_top_k=top_k,
    )
    routing.update(indices, top_k=top_k)
    return Route(routing, memory)


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
    room: Room, choice: Choice, wanted: Sizes, alignment: int, max_tokens: int, blocks: bool
) -> Tuple[Route, Optional[Counts]]:
    """The routing, and the counts if the host waits for them.

    All ranks learn the same number of selections of a token from a map that has been counted. So
    they make room together.
    """
    learns_top_k = choice.is_map and not room.knows_top_k
    if _device.is_capturing(choice.indices):
        _check_capture(learns_top_k, blocks)
    made = _updated(room, choice, wanted, alignment, max_tokens)
    if not blocks and not learns_top_k:
        return made, None
    counts = made.routing.counts()
    room.knows_top_k = room.knows_top_k or choice.is_map
    if counts.max_selections > made.routing.top_k:
        wanted = wanted._replace(top_k=counts.max_selections)
        made = _updated(room, choice, wanted, alignment, max_tokens)
        counts = made.routing.counts()
    return made, counts if blocks else None
