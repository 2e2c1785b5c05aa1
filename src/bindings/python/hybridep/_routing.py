# SPDX-License-Identifier: Apache-2.0
"""Routings, and the dispatches and combines on them."""

from __future__ import annotations

import ctypes
import itertools
import weakref
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Optional, Tuple, Type

from . import _abi, _arrays, _streams
from ._arguments import Arguments
from ._arrays import Framework
from ._calls import INDEX_TYPES, Batch, Combined, CombineCall, Dispatched, DispatchCall, Output
from ._communicator import Communicator
from ._enums import DataType, IndexType, Layout, Mode, Overflow, Quantization, WeightMode
from ._errors import InvalidArgumentError, InvalidUsageError, integer
from ._memory import Memory
from ._values import Counts, from_struct


@dataclass(frozen=True)
class RoutingView:
    """hepRoutingView_t: a routing's results in device memory, read-only, valid in stream order.

    tokens_per_expert  int32 [EL] expert rows of each local expert
    expert_offsets     int32 [EL + 1] aligned starts of their blocks; the last: padded rows
    num_flat_rows      int64 [1]
    num_expert_rows    int64 [1] without padding
    row_counters       int64 [3] of the latest dispatch: rows needed, rows written, 1 if they
                       overflowed
    """

    tokens_per_expert: Memory
    expert_offsets: Memory
    num_flat_rows: Memory
    num_expert_rows: Memory
    row_counters: Memory


_MEMORY_ALIGNMENT = 256
_INDEX_TYPE_NAMES = tuple(INDEX_TYPES)

# Operators of PyTorch take no objects but numbers.
by_number: weakref.WeakValueDictionary[int, Routing] = weakref.WeakValueDictionary()
_numbers = itertools.count(1)


class Routing:
    """The routing of one batch: which token of which rank goes to which expert.

    A context manager; `close` may be called twice. It keeps its communicator alive. Calls on it
    take inputs that must not change, and outputs that must not be read, until their work is done in
    stream order (host backend: until the call has returned).
    """

    def __init__(
        self,
        communicator: Communicator,
        alignment: int = 1,
        mode: Mode = Mode.THROUGHPUT,
        lane: int = 0,
        *,
        memory: Any = None,
        max_tokens: int = 0,
        max_top_k: int = 0,
    ) -> None:
        """Creates a routing and its device memory. Local; waits for nothing. All ranks give the
        same values, except memory.

        alignment   each expert's block of expert-major rows starts at a multiple of it
        mode        LOW_LATENCY needs low_latency_tokens in the communicator's config
        lane        the sequence of operations that it lives on
        memory      an array of at least `Communicator.routing_bytes`, aligned to 256 bytes: the
                    routing lives there, and no call of CUDA creates it. It is kept alive until the
                    routing is destroyed; its contents belong to the library. None: the library's
        max_tokens  of an update, at most the communicator's; 0: that
        max_top_k   likewise
        """
        self._handle = 0
        if not isinstance(communicator, Communicator):
            raise TypeError(f"communicator is {communicator!r}, but must be a Communicator")
        self._communicator = communicator
        self._library = communicator._library
        self._alignment = integer("alignment", alignment)
        self._mode = Mode(mode)
        self._lane = communicator._lane(self._mode, integer("lane", lane))
        self._batch: Optional[Batch] = None
        self._serials = itertools.count(1)
        self._number = next(_numbers)
        by_number[self._number] = self
        self._in_flight: Any = None  # the arrays of a first half
        self._memory: Any = None
        config = _abi.RoutingConfig(
            alignment=self._alignment,
            mode=self._mode,
            lane=lane,
            max_tokens=integer("max_tokens", max_tokens),
            max_top_k=integer("max_top_k", max_top_k),
        )
        if memory is not None:
            self._take_memory(memory, config)
        self._max_tokens = max_tokens or self._tokens_of_mode()
        self._max_top_k = max_top_k or communicator._limits.max_top_k
        handle = ctypes.c_void_p()
        with communicator._alone():
            owner = communicator._alive()
            communicator._destroy_abandoned()
            communicator._check(self._library.hepRoutingCreate(handle, owner, config))
            self._handle = handle.value or 0
            communicator._routing_handles.add(self._handle)
            communicator._routings.add(self)

    # ------------------------------------------------------------------------------ properties

    @property
    def communicator(self) -> Communicator:
        return self._communicator

    @property
    def alignment(self) -> int:
        return self._alignment

    @property
    def mode(self) -> Mode:
        return self._mode

    @property
    def num_tokens(self) -> int:
        """T of the latest update."""
        return self._updated().num_tokens

    @property
    def top_k(self) -> int:
        """K of the latest update."""
        return self._updated().top_k

    @property
    def closed(self) -> bool:
        return self._handle == 0

    # ---------------------------------------------------------------------------------- update

    def update(self, indices: Any, *, top_k: Optional[int] = None, stream: Any = None) -> None:
        """Digests the router's choice for a batch and exchanges it with all ranks. Collective.

        indices  int32 or int64 [T, K] expert ids, -1 for no selection; or a map, bool or uint8
                 [T, E], in which every byte that is not 0 selects an expert
        top_k    of a map: K, the most selections of a token; None: max_top_k of the routing. The
                 same on all ranks
        stream   None: the current stream of the framework of `indices`
        """
        with self._lane:
            handle = self._alive()
            batch, struct = self._make_update(indices, top_k)
            where = self._stream(stream, batch.framework)
            self._check(self._library.hepRoutingUpdate(handle, struct, where))
            self._batch = batch

    def counts(self, stream: Any = None) -> Counts:
        """Waits until all work on `stream` is done, and returns the counts of the latest update."""
        with self._lane:
            handle = self._alive()
            per_expert = (ctypes.c_int32 * self._communicator.limits.num_local_experts)()
            struct = _abi.RoutingCounts(tokens_per_expert=ctypes.addressof(per_expert))
            where = self._stream(stream, self._updated().framework)
            self._check(self._library.hepRoutingQuery(handle, struct, where))
            return from_struct(Counts, struct, tokens_per_expert=tuple(per_expert))

    def view(self) -> RoutingView:
        """The routing's results in device memory. The addresses stay until it is closed."""
        struct = _abi.RoutingView()
        with self._lane:
            self._check(self._library.hepRoutingGetView(self._alive(), struct))
        num_experts = self._communicator.limits.num_local_experts

        def memory(pointer: int, type_name: str, size: int) -> Memory:
            device = self._communicator.device
            return Memory(pointer, (size,), type_name, device, True, self)

        return RoutingView(
            tokens_per_expert=memory(struct.tokens_per_expert, "int32", num_experts),
            expert_offsets=memory(struct.expert_offsets, "int32", num_experts + 1),
            num_flat_rows=memory(struct.num_flat_rows, "int64", 1),
            num_expert_rows=memory(struct.num_expert_rows, "int64", 1),
            row_counters=memory(struct.row_counters, "int64", 3),
        )

    # -------------------------------------------------------------------------------- dispatch

    def dispatch(
        self,
        x: Any,
        *,
        layout: Layout = Layout.EXPERT_MAJOR,
        capacity: Optional[int] = None,
        overflow: Overflow = Overflow.DROP,
        dtype: Optional[DataType] = None,
        quantize: Quantization = Quantization.NONE,
        weights: Any = None,
        dense_weights: Any = None,
        scales: Any = None,
        rows: Any = None,
        row_weights: Output = None,
        row_scales: Output = None,
        row_experts: Output = None,
        row_sources: Output = None,
        row_tokens: Output = None,
        gather: Output = None,
        expert_rows: Output = None,
        group_sizes: Output = None,
        row_counters: Output = None,
        row_scales_stride: int = 0,
        scale_element_bytes: int = 0,
        indices: Any = None,
        top_k: Optional[int] = None,
        send_only: bool = False,
        stream: Any = None,
    ) -> Dispatched:
        """Brings every token to the ranks of its selected experts. Collective.

        Inputs:
        x         [T, H]; H may be another one than the config's if the rows fit, see `Limits`
        capacity  n: rows that the outputs hold (EXPERT_PADDED: of each expert). None: as many as
                  `rows` holds; without `rows` the counts are queried, which waits for the stream
        dtype     what x holds, if it is of plain integers; quantised rows: what they become
        quantize  of BF16 to FP8 on the way
        weights   FP32 [T, K]; kept for a combine in weight mode DISPATCHED
        dense_weights  in place of them: FP32 [T, E], a weight for each token and expert
        scales    [T, any], scale_bytes of the config for each token, forwarded bit for bit
        indices   an update in the same call, as in `update`, with `top_k`

        Outputs, each an array to fill or True to allocate one of the framework of x: see
        `Dispatched`. `rows` is allocated if it is None, and `row_scales` if there are scales.
        row_scales_stride and scale_element_bytes ask for column-major scales
        [columns, row_scales_stride] (EXPERT_PADDED: [EL, columns, row_scales_stride]).

        send_only  the first half alone, of a low-latency routing: `dispatch_receive` is the second,
                   and the outputs hold nothing before it
        stream     None: the current stream of the framework of x
        """
        with self._lane:
            handle = self._alive()
            batch, update = self._batch_of(indices, top_k)
            call = DispatchCall(self, batch, Layout(layout))
            call.take_inputs(x, dtype, quantize, weights, dense_weights, scales)
            where = self._stream(stream, call.x.framework)
            call.choose_capacity(rows, capacity, update is not None, stream)
            outputs = call.make_outputs(
                rows,
                row_scales,
                gather,
                integer("row_scales_stride", row_scales_stride, 64),
                integer("scale_element_bytes", scale_element_bytes, 64),
                {
                    "row_weights": row_weights,
                    "row_experts": row_experts,
                    "row_sources": row_sources,
                    "row_tokens": row_tokens,
                    "expert_rows": expert_rows,
                    "group_sizes": group_sizes,
                    "row_counters": row_counters,
                },
            )
            call.arguments.check_overlaps()
            struct = call.struct
            struct.overflow = overflow
            if update is not None:
                struct.update = ctypes.pointer(update)
            function = self._library.hepDispatchSend if send_only else self._library.hepDispatch
            self._check(function(handle, struct, where))
            self._batch = batch
            self._in_flight = (call, outputs) if send_only else None
            return outputs

    def dispatch_receive(self, stream: Any = None) -> None:
        """The second half of a dispatch: waits for what the peers have sent, and writes the outputs
        that the first half returned.
        """
        self._receive(self._library.hepDispatchReceive, stream)

    # --------------------------------------------------------------------------------- combine

    def combine(
        self,
        y: Any,
        *,
        layout: Layout = Layout.EXPERT_MAJOR,
        weight_mode: Optional[WeightMode] = None,
        row_weights: Any = None,
        dtype: Optional[DataType] = None,
        partial_dtype: DataType = DataType.DEFAULT,
        row_gradients: Any = None,
        out: Any = None,
        gradients: Output = None,
        dense_gradients: Output = None,
        send_only: bool = False,
        stream: Any = None,
    ) -> Combined:
        """Brings the experts' results back and sums them for each token. Collective.

        Inputs:
        y              [n, H] at the places that the dispatch gave; EXPERT_PADDED: [EL, n, H]
        weight_mode    None: ROW with row_weights, otherwise NONE
        row_weights    FP32, one for each row, in weight mode ROW
        dtype          what y holds, if it is of plain integers
        partial_dtype  of the sums that travel between ranks
        row_gradients  FP32: the gradients of the dispatch's row_weights, in their shape. They come
                       back as `gradients` or `dense_gradients`

        Outputs:
        out              [T, H]; None: allocated by the framework of y
        gradients        FP32 [T, K]; None: allocated if row_gradients come back in no other way
        dense_gradients  FP32 [T, E], 0 where nothing was selected

        send_only  the first half alone, of a low-latency routing: `combine_receive` is the second
        stream     None: the current stream of the framework of y
        """
        with self._lane:
            handle = self._alive()
            call = CombineCall(self, self._updated(), Layout(layout))
            call.take_inputs(y, dtype, weight_mode, row_weights, row_gradients)
            where = self._stream(stream, call.y.framework)
            outputs = call.make_outputs(out, gradients, dense_gradients)
            call.arguments.check_overlaps()
            call.struct.partial_type = partial_dtype
            function = self._library.hepCombineSend if send_only else self._library.hepCombine
            self._check(function(handle, call.struct, where))
            self._in_flight = (call, outputs) if send_only else None
            return outputs

    def combine_receive(self, stream: Any = None) -> None:
        """The second half of a combine: adds up what the ranks have sent, and writes the outputs
        that the first half returned.
        """
        self._receive(self._library.hepCombineReceive, stream)

    # ----------------------------------------------------------------------------------- close

    def close(self) -> None:
        """Destroys the routing. Waits for no peer and no stream: work that reads its memory must be
        done, or come before the next operation of the lane.
        """
        with self._communicator._alone():
            if self._handle != 0:
                self._check(self._library.hepRoutingDestroy(self._handle))
                self._communicator._routing_handles.discard(self._handle)
                self._handle, self._memory = 0, None

    def __enter__(self) -> Routing:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        value: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        if kind is None:
            self.close()
        else:  # between halves this fails, which would hide the exception
            self._abandon()

    def __del__(self) -> None:
        self._abandon()

    def __repr__(self) -> str:
        state = "closed" if self._handle == 0 else self._mode.name.lower()
        return f"<hybridep.Routing of {self._communicator!r}, {state}>"

    # --------------------------------------------------------------------------------- private

    def _take_memory(self, memory: Any, config: _abi.RoutingConfig) -> None:
        seen = _arrays.view(memory, "memory")
        arguments = Arguments(self._communicator._device)
        config.memory = arguments.add(seen, "memory", seen.shape, (), _MEMORY_ALIGNMENT, True)
        config.memory_bytes = seen.nbytes
        self._memory = seen.owner

    def _tokens_of_mode(self) -> int:
        limits = self._communicator._limits
        throughput = self._mode == Mode.THROUGHPUT
        return limits.max_tokens if throughput else limits.low_latency_tokens

    def _abandon(self) -> None:
        """Leaves the routing to its communicator, which destroys it when it can. Waits for nothing:
        a finaliser may run on any thread at any time.
        """
        if getattr(self, "_handle", 0) != 0:
            kept = (self._memory, self._in_flight)
            self._communicator._abandoned.append((self._handle, kept))
            self._handle = 0

    def _alive(self) -> int:
        """The handle, unless this routing can no longer be used."""
        self._communicator._alive()
        if self._handle == 0:
            raise InvalidUsageError("the routing is closed")
        return self._handle

    def _updated(self) -> Batch:
        if self._batch is None:
            raise InvalidUsageError("the routing has not been updated")
        return self._batch

    def _check(self, result: int) -> None:
        self._communicator._check(result)

    def _stream(self, stream: Any, framework: Framework) -> Optional[int]:
        return _streams.handle_of(stream, self._communicator.device, framework)

    def _receive(self, function: Any, stream: Any) -> None:
        with self._lane:
            handle = self._alive()
            where = self._stream(stream, self._updated().framework)
            self._check(function(handle, where))
            self._in_flight = None

    def _batch_of(self, indices: Any, top_k: Optional[int]) -> Tuple[Batch, Optional[_abi.Update]]:
        """The batch that a dispatch is of, and the update that it brings."""
        if indices is not None:
            return self._make_update(indices, top_k)
        if top_k is not None:
            raise InvalidArgumentError(f"top_k is {top_k}, but there are no indices")
        return self._updated(), None

    def _make_update(self, indices: Any, top_k: Optional[int]) -> Tuple[Batch, _abi.Update]:
        seen = _arrays.view(indices, "indices")
        arguments = Arguments(self._communicator._device)
        struct = _abi.Update.make()
        struct.indices = arguments.add(seen, "indices", (-1, -1), _INDEX_TYPE_NAMES)
        struct.index_type = INDEX_TYPES[seen.type]
        struct.num_tokens, columns = seen.shape
        struct.top_k = self._top_k_of(struct.index_type, columns, top_k)
        batch = Batch(next(self._serials), struct.num_tokens, struct.top_k, seen.framework)
        return batch, struct

    def _top_k_of(self, index_type: IndexType, columns: int, top_k: Optional[int]) -> int:
        """K of an update, whose array has so many columns."""
        limits = self._communicator._limits
        if index_type != IndexType.MAP:
            if top_k not in (None, columns):
                raise InvalidArgumentError(f"top_k is {top_k}, but indices has {columns} columns")
            return columns
        if columns != limits.num_experts:
            raise InvalidArgumentError(
                f"indices is a map of {columns} experts, but there are {limits.num_experts}"
            )
        return self._max_top_k if top_k is None else integer("top_k", top_k)
