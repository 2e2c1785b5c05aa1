# SPDX-License-Identifier: Apache-2.0
"""Where the ranks of a buffer meet again after its creation, in bounded time.

A collective of torch.distributed would wait for a rank that does not come as long as the group's
own timeout, which is half an hour by default.
"""

from __future__ import annotations

import contextlib
import os
import time
from datetime import timedelta
from typing import Any, List

from .._errors import PeerTimeoutError, UnsupportedError

_DEFAULT_TIMEOUT_MS = 30000
_RULE = (
    "A buffer grows on all ranks in the same call. Ranks whose own tokens fit take part if "
    "num_of_tokens_per_rank tells them the most tokens of any rank"
)


def _timeout_ms() -> int:
    """As long as the creation of a communicator may take."""
    return int(os.environ.get("HEP_INIT_TIMEOUT_MS") or 0) or _DEFAULT_TIMEOUT_MS


def _default_store() -> Any:
    """The store over which the processes have met, or None."""
    from torch.distributed import distributed_c10d

    find = getattr(distributed_c10d, "_get_default_store", None)
    return None if find is None else find()


class Meeting:
    """An all-gather of bytes over the store of torch.distributed.

    name  the same on all ranks, of this buffer alone
    """

    def __init__(self, name: str, rank: int, num_ranks: int) -> None:
        self._name = name
        self._rank = rank
        self._num_ranks = num_ranks
        self._number = 0  # of this meeting: all ranks hold equally many

    def all_gather(self, mine: bytes) -> List[bytes]:
        """The bytes of all ranks. Raises, and names a missing rank, if one does not come."""
        store = _default_store()
        if store is None:
            raise UnsupportedError(
                "this version of torch.distributed has no store: make a new buffer"
            )
        own = self._key(self._rank)
        store.set(own, mine.hex())
        try:
            parts = self._await_all(store, time.monotonic() + _timeout_ms() / 1000)
        except PeerTimeoutError:
            with contextlib.suppress(RuntimeError):  # a store of files cannot delete
                store.delete_key(own)
            raise
        self._number += 1
        return parts

    def _key(self, rank: int) -> str:
        return f"hybridep-{self._name}-{self._number}-{rank}"

    def _await_all(self, store: Any, end: float) -> List[bytes]:
        return [self._await(store, rank, end) for rank in range(self._num_ranks)]

    def _await(self, store: Any, rank: int, end: float) -> bytes:
        left = max(end - time.monotonic(), 0.001)
        try:
            store.wait([self._key(rank)], timedelta(seconds=left))
        except RuntimeError as error:
            raise PeerTimeoutError(
                f"rank {self._rank}: rank {rank} has not come within {_timeout_ms()} ms to make "
                f"the buffer larger. {_RULE}"
            ) from error
        return bytes.fromhex(store.get(self._key(rank)).decode())
