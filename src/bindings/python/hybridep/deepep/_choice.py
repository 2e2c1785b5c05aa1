# SPDX-License-Identifier: Apache-2.0
"""What the router chose for the tokens of a dispatch, by map or by ids, and with which weights."""

from __future__ import annotations

from typing import Any, NamedTuple, Optional

import torch

from .._errors import InvalidArgumentError
from ._tokens import check_matrix


class Choice(NamedTuple):
    """indices   bool [T, E], or int [T, K] ids
    weights   FP32 [T, K] of the ids, or None
    probs     FP32 [T, E], or None; decides over weights
    """

    indices: Any
    weights: Optional[Any]
    probs: Optional[Any]

    @property
    def is_map(self) -> bool:
        return bool(self.indices.dtype == torch.bool)


def local_experts(
    told: Optional[int], num_of_experts: Optional[int], num_ranks: int, otherwise: int
) -> int:
    """Experts of a rank in this call: as told, or by those of all ranks, or the buffer's."""
    if told is None and num_of_experts is not None:
        told = num_of_experts // num_ranks
    if told is None:
        return otherwise
    if told < 1:
        raise InvalidArgumentError(f"num_of_experts_per_rank is {told}, but must be at least 1")
    if num_of_experts is not None and num_of_experts != told * num_ranks:
        raise InvalidArgumentError(
            f"num_of_experts is {num_of_experts}, but {num_ranks} ranks of {told} experts have "
            f"{told * num_ranks}"
        )
    return told


def read_choice(
    num_tokens: int,
    num_experts: int,
    routing_map: Optional[Any],
    topk_idx: Optional[Any],
    topk_weights: Optional[Any],
    num_of_experts: Optional[int],
    probs: Optional[Any],
) -> Choice:
    """A map decides over ids, and dense probs over the weights of ids."""
    if probs is not None:
        check_matrix(probs, "probs", num_tokens, num_experts, torch.float32)
    if routing_map is not None:
        check_matrix(routing_map, "routing_map", num_tokens, num_experts, torch.bool)
        return Choice(routing_map, None, probs)
    if topk_idx is None:
        raise InvalidArgumentError("routing_map, topk_idx and handle are None, but one is needed")
    if num_of_experts is None:
        raise InvalidArgumentError("num_of_experts is None, but topk_idx needs it")
    top_k = topk_idx.shape[-1] if topk_idx.dim() > 0 else 0
    check_matrix(topk_idx, "topk_idx", num_tokens, top_k, torch.int64, torch.int32)
    if probs is not None or topk_weights is None:
        return Choice(topk_idx, None, probs)
    check_matrix(topk_weights, "topk_weights", num_tokens, top_k, torch.float32)
    return Choice(topk_idx, topk_weights, None)


# A communicator may have room for more experts than a call has. Expert e of the call is then local
# expert e % EL of rank e / EL by the call's EL, and the other experts get no tokens.


def spread_columns(dense: Any, num_ranks: int, own: int, room: int) -> Any:
    """[T, R * own] as [T, R * room], with zeros for the experts that the call does not have."""
    if own == room:
        return dense
    by_rank = dense.view(-1, num_ranks, own)
    return torch.nn.functional.pad(by_rank, (0, room - own)).view(-1, num_ranks * room)


def own_columns(dense: Any, num_ranks: int, own: int, room: int) -> Any:
    """What `spread_columns` has spread."""
    if own == room:
        return dense
    return dense.view(-1, num_ranks, room)[:, :, :own].reshape(-1, num_ranks * own)


def _spread_ids(ids: Any, num_ranks: int, own: int, room: int) -> Any:
    """Ids out of range stay out of range."""
    if own == room:
        return ids
    inside = ids.div(own, rounding_mode="floor") * room + ids % own
    return inside.where(
        (ids >= 0) & (ids < num_ranks * own), ids.where(ids < 0, ids + room * num_ranks)
    )


def spread_indices(choice: Choice, num_ranks: int, own: int, room: int) -> Any:
    """The map or the ids in the numbers of experts that a communicator has room for."""
    spread = spread_columns if choice.is_map else _spread_ids
    return spread(choice.indices, num_ranks, own, room)
