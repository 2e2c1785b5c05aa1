# SPDX-License-Identifier: Apache-2.0
"""The structs of hybridep.h that callers read and write, as dataclasses."""

from __future__ import annotations

import ctypes
import dataclasses
from dataclasses import dataclass
from typing import Any, Callable, Optional, Tuple, Type, TypeVar

from . import _abi
from ._enums import Backend, DataType, Layout, LogLevel, Mode, Operation, Phase, Result
from ._errors import check, integer

Value = TypeVar("Value")


def from_struct(kind: Type[Value], struct: ctypes.Structure, **others: Any) -> Value:
    """A value of the dataclass with the struct's fields of the same names."""
    dataclass_: Any = kind
    names = [field.name for field in dataclasses.fields(dataclass_)]
    fields = {name: getattr(struct, name) for name in names if name not in others}
    return kind(**fields, **others)


@dataclass(frozen=True)
class Workspace:
    """hepWorkspace_t: device memory that a communicator takes on each rank, in bytes."""

    total_bytes: int
    token_bytes: int
    partial_bytes: int
    record_bytes: int
    signal_bytes: int
    heap_bytes: int
    routing_bytes: int
    scratch_bytes: int
    low_latency_bytes: int
    low_latency_routing_bytes: int
    network_bytes: int


@dataclass
class Config:
    """hepConfig_t: what a communicator is for. 0 is the library's choice where it has one.

    All ranks give the same values, except `log`. The header documents each field; sizes are in
    elements unless their name says bytes.

    log  receives the process' messages: called with level and text, on any thread, until the
         communicator is closed
    """

    max_tokens: int
    hidden: int
    num_experts: int
    max_top_k: int = 0
    backend: Backend = Backend.AUTO
    type: DataType = DataType.DEFAULT
    scale_bytes: int = 0
    low_latency_tokens: int = 0
    heap_bytes: int = 0
    timeout_ms: int = 0
    sm_budget: int = 0
    lanes: int = 0
    domain_size: int = 0
    routing_threads: int = 0
    routing_blocks: int = 0
    dispatch_stages: int = 0
    dispatch_blocks: int = 0
    combine_load_stages: int = 0
    combine_store_stages: int = 0
    combine_blocks: int = 0
    log: Optional[Callable[[LogLevel, str], None]] = None
    combine_type: DataType = DataType.DEFAULT
    partial_type: DataType = DataType.DEFAULT
    low_latency_blocks: int = 0
    init_timeout_ms: int = 0
    network_bytes: int = 0

    def check(self, num_ranks: int) -> None:
        """Raises unless `num_ranks` ranks can create a communicator of it. Needs no GPU."""
        check(_abi.library().hepConfigCheck(self._struct(), integer("num_ranks", num_ranks)))

    def workspace(self, num_ranks: int) -> Workspace:
        """How much device memory a communicator of this config takes on each rank. No GPU."""
        sizes = _abi.Workspace()
        num_ranks = integer("num_ranks", num_ranks)
        check(_abi.library().hepWorkspaceSize(self._struct(), num_ranks, sizes))
        return from_struct(Workspace, sizes)

    def _struct(self) -> _abi.Config:
        """The library's struct. It owns the callback, which must outlive the communicator."""
        struct = _abi.Config()
        for field in dataclasses.fields(self):
            if field.name != "log":
                bits = 64 if field.name.endswith("_bytes") and field.name != "scale_bytes" else 32
                value = integer(f"config.{field.name}", getattr(self, field.name), bits)
                setattr(struct, field.name, value)
        if self.log is not None:
            struct.log = _log_callback(self.log)
        return struct


def _log_callback(log: Callable[[LogLevel, str], None]) -> Any:
    def deliver(level: int, message: bytes, _: Optional[int]) -> None:
        log(LogLevel(level), message.decode(errors="replace"))

    return _abi.LogCallback(deliver)


@dataclass(frozen=True)
class Limits:
    """hepLimits_t: what a communicator can do, and what the library chose for it."""

    max_tokens: int
    max_top_k: int
    num_experts: int
    num_local_experts: int
    row_bytes: int
    max_flat_rows: int
    max_expert_rows: int
    routing_blocks: int
    dispatch_blocks: int
    combine_blocks: int
    timeout_ms: int
    lanes: int
    low_latency_lanes: int
    low_latency_tokens: int
    low_latency_blocks: int
    num_domains: int
    domain_size: int
    layout_dispatch_blocks: Tuple[int, int, int]
    """By layout, in the order of `Layout`; `layout_combine_blocks` likewise."""
    layout_combine_blocks: Tuple[int, int, int]

    @classmethod
    def _of(cls, struct: _abi.Limits) -> Limits:
        return from_struct(
            cls,
            struct,
            layout_dispatch_blocks=tuple(struct.layout_dispatch_blocks),
            layout_combine_blocks=tuple(struct.layout_combine_blocks),
        )


@dataclass(frozen=True)
class Failure:
    """hepFailure_t: the first failure of a communicator on this rank."""

    result: Result
    operation: Operation
    phase: Phase
    rank: int
    missing_rank: int
    number: int
    expected: int
    seen: int
    mode: Mode
    lane: int
    via_rank: int

    @classmethod
    def _of(cls, struct: _abi.Failure) -> Failure:
        return from_struct(
            cls,
            struct,
            result=Result(struct.result),
            operation=Operation(struct.operation),
            phase=Phase(struct.phase),
            mode=Mode(struct.mode),
        )


@dataclass(frozen=True)
class Counts:
    """hepRoutingCounts_t: how many rows the latest update of a routing has.

    tokens_per_expert  [EL] expert rows of each local expert, without padding
    num_flat_rows      rows that the flat layout needs
    num_expert_rows    expert rows without padding
    num_padded_rows    rows that the expert-major layout needs, with padding
    max_expert_rows    the largest of tokens_per_expert: capacity of the expert-padded layout
    max_selections     the most selections that a token of any rank made, cut ones included
    """

    tokens_per_expert: Tuple[int, ...]
    num_flat_rows: int
    num_expert_rows: int
    num_padded_rows: int
    max_expert_rows: int
    max_selections: int

    def capacity(self, layout: Layout) -> int:
        """The capacity that takes all rows of a layout, and no more."""
        if layout == Layout.FLAT:
            return self.num_flat_rows
        if layout == Layout.EXPERT_MAJOR:
            return self.num_padded_rows
        return self.max_expert_rows
