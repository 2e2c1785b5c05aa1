# SPDX-License-Identifier: Apache-2.0
"""Means by which ranks agree on a rendezvous."""

from __future__ import annotations

import ctypes
import sys
from typing import Any, Callable, List, Optional, Sequence, Tuple

from . import _abi
from ._errors import InvalidArgumentError

AllGather = Callable[[bytes], Sequence[bytes]]


def unique_id_struct(identity: bytes) -> _abi.UniqueId:
    if len(identity) != _abi.UNIQUE_ID_BYTES:
        raise InvalidArgumentError(
            f"identity has {len(identity)} bytes, but a unique id has {_abi.UNIQUE_ID_BYTES}"
        )
    return _abi.UniqueId.from_buffer_copy(bytes(identity))


class Callback:
    """An all-gather of Python as one of C. Keeps what it raised."""

    def __init__(self, all_gather: AllGather, num_ranks: int) -> None:
        self.raised: Optional[BaseException] = None
        self.function = _abi.AllGather(self._call)
        self._all_gather = all_gather
        self._num_ranks = num_ranks

    def _call(self, send: int, receive: int, size: int, _: Optional[int]) -> int:
        try:
            parts = [bytes(part) for part in self._all_gather(ctypes.string_at(send, size))]
            self._check(parts, size)
            ctypes.memmove(receive, b"".join(parts), size * self._num_ranks)
        except BaseException as error:  # goes through C, which knows no exceptions
            self.raised = error
            return 1
        return 0

    def _check(self, parts: List[bytes], size: int) -> None:
        sizes = [len(part) for part in parts]
        if sizes != [size] * self._num_ranks:
            raise InvalidArgumentError(
                f"all_gather returned parts of {sizes} bytes, but must return {self._num_ranks} "
                f"of {size}"
            )


def torch_group(group: Any) -> Tuple[int, int, AllGather]:
    """Size, rank and all-gather of a group of torch.distributed."""
    import torch
    import torch.distributed as distributed

    on_host = any(name in distributed.get_backend(group) for name in ("gloo", "mpi"))
    device = torch.device("cpu" if on_host else f"cuda:{torch.cuda.current_device()}")
    num_ranks = distributed.get_world_size(group)

    def all_gather(mine: bytes) -> List[bytes]:
        send = torch.tensor(list(mine), dtype=torch.uint8, device=device)
        parts = [torch.empty_like(send) for _ in range(num_ranks)]
        distributed.all_gather(parts, send, group=group)
        return [bytes(part.tolist()) for part in parts]

    return num_ranks, distributed.get_rank(group), all_gather
