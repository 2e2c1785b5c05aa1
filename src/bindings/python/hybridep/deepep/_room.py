# SPDX-License-Identifier: Apache-2.0
"""The communicator of a buffer, and how it grows."""

from __future__ import annotations

import secrets
import struct
import threading
import warnings
from typing import Any, NamedTuple, Optional

from .. import _bootstrap
from .._communicator import Communicator
from .._enums import Result
from .._errors import Error, InvalidArgumentError, InvalidUsageError
from .._values import Config
from . import _config
from ._meeting import Meeting

DEFAULT_TOP_K = 8
SCALE_BLOCK = 128  # elements of a row that share a scale
_SCALE_BYTES = 4
_NAME_BYTES = 16


class Sizes(NamedTuple):
    """What a communicator has room for, on each rank.

    hidden             elements of a row of two bytes each
    num_tokens         of a batch
    num_local_experts  EL
    top_k              selections of a token
    """

    hidden: int
    num_tokens: int
    num_local_experts: int
    top_k: int

    def covers(self, other: Sizes) -> bool:
        return all(own >= wanted for own, wanted in zip(self, other))

    def joined(self, other: Sizes) -> Sizes:
        return Sizes(*(max(own, wanted) for own, wanted in zip(self, other)))


_SIZES = struct.Struct("<4q")
_GREETING = struct.Struct(f"<q{_NAME_BYTES}s")


class Room:
    """The communicator of a buffer, and the ranks that share it. Growth makes another one. The old
    one lives as long as handles hold routings of it.
    """

    def __init__(
        self,
        group: Any,
        sizes: Sizes,
        max_top_k: Optional[int],
        sms: _config.SmBudgets,
    ) -> None:
        """Collective."""
        self.num_ranks, self.rank, all_gather = _bootstrap.torch_group(group)
        greeting = _GREETING.pack(sizes.num_tokens, secrets.token_bytes(_NAME_BYTES))
        greetings = [_GREETING.unpack(part) for part in all_gather(greeting)]
        most = max(num_tokens for num_tokens, _ in greetings)
        self._meeting = Meeting(greetings[0][1].hex(), self.rank, self.num_ranks)
        self._sms = sms
        self._growth = threading.Lock()
        self.knows_top_k = max_top_k is not None  # what tokens of maps select at most
        self.domain_size = self._domain_size()
        self.sizes = sizes._replace(num_tokens=_config.rounded_tokens(most))
        self.communicator = self._create(self.sizes, all_gather)
        self._warned: Optional[Communicator] = None

    def _domain_size(self) -> int:
        told = _config.domain_size_told()
        if told is None:
            return self.num_ranks
        if not 1 <= told <= self.num_ranks or self.num_ranks % told != 0:
            raise InvalidArgumentError(
                f"{_config.DOMAIN_VARIABLE} is {told}, but must divide the {self.num_ranks} ranks "
                "of the group"
            )
        return told

    def _create(self, sizes: Sizes, all_gather: _bootstrap.AllGather) -> Communicator:
        config = Config(
            max_tokens=sizes.num_tokens,
            hidden=sizes.hidden,
            num_experts=sizes.num_local_experts * self.num_ranks,
            max_top_k=sizes.top_k,
            scale_bytes=sizes.hidden // SCALE_BLOCK * _SCALE_BYTES,
            sm_budget=self._sms.largest,
            routing_blocks=self._sms.blocks(self._sms.preprocessing),
            dispatch_blocks=self._sms.blocks(self._sms.dispatch),
            combine_blocks=self._sms.blocks(self._sms.combine),
            domain_size=0 if self.domain_size == self.num_ranks else self.domain_size,
        )
        try:
            return Communicator.from_callback(config, self.num_ranks, self.rank, all_gather)
        except Error as error:
            if config.domain_size != 0 and "domain_size" in str(error):
                error.args = (f"{_config.DOMAIN_VARIABLE} is {self.domain_size}: {error}",)
            raise

    def make(self, wanted: Sizes, is_capturing: bool = False) -> None:
        """Makes room for at least these sizes. Collective if they exceed what there is."""
        if self.sizes.covers(wanted):
            return
        if is_capturing:
            raise InvalidUsageError(
                f"the buffer has room for {self.sizes}, but {wanted} is needed: it cannot grow "
                "while a graph is captured"
            )
        with self._growth:
            if not self.sizes.covers(wanted):
                self._grow(wanted)

    def _grow(self, wanted: Sizes) -> None:
        sizes = self.sizes.joined(wanted)
        sizes = sizes._replace(num_tokens=_config.rounded_tokens(sizes.num_tokens))
        for part in self._meeting.all_gather(_SIZES.pack(*sizes)):
            sizes = sizes.joined(Sizes(*_SIZES.unpack(part)))
        self.communicator = self._create(sizes, self._meeting.all_gather)
        self.sizes = sizes

    def check(self) -> None:
        """Raises what has made the communicator fail, or has spoilt earlier calls unseen. Warns
        once of ids out of range.
        """
        communicator = self.communicator
        error = communicator.async_error()
        if error is None or error.result == Result.OVERFLOW:
            return
        if error.result != Result.INVALID_ARGUMENT:
            raise error
        if "the map of token" in str(error):
            raise InvalidArgumentError(
                f"an earlier dispatch lost selections: {error}. Give max_top_k to HybridEPBuffer: "
                f"it has room for {self.sizes.top_k}"
            )
        if self._warned is not communicator:
            self._warned = communicator
            warnings.warn(str(error), RuntimeWarning, stacklevel=3)
