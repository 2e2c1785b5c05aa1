# SPDX-License-Identifier: Apache-2.0
"""Routings, and the dispatches and combines on them."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Type, Union

from . import _abi, _arrays, _streams
from ._arrays import Shape, View
from ._communicator import Communicator
from ._enums import DataType, IndexType, Layout, Mode, Overflow, Quantization, WeightMode
from ._errors import InvalidArgumentError, InvalidUsageError
from ._values import Counts, from_struct

# An optional output: an array to fill, True to allocate one, False or None for none.
Output = Union[bool, None, Any]

_INDEX_TYPES = {
    "int32": IndexType.INT32,
    "int64": IndexType.INT64,
    "bool": IndexType.MAP,
    "uint8": IndexType.MAP,
}
_ROW_ALIGNMENT = 16


@dataclass(frozen=True)
class Dispatched:
    """The outputs of a dispatch. None: was not asked for.

    n is the capacity. In the layout EXPERT_PADDED read [EL, n] for [n].

    rows         [n, H]
    row_weights  FP32 [n]; FLAT: [n, K]
    row_scales   [n, scales of a token], or column-major as told
    row_experts  int32 [n, K] local expert ids, -1 elsewhere; FLAT alone
    row_sources  int32 [n] source rank of each row
    row_tokens   int32 [n] token of each row on its source rank
    gather       int32 [places of the expert-major layout] flat row of each place, or -1; FLAT alone
    expert_rows  int32 [EL] rows of each expert that were written; EXPERT_PADDED alone
    capacity     n
    layout       of the rows
    """

    rows: Any
    row_weights: Any
    row_scales: Any
    row_experts: Any
    row_sources: Any
    row_tokens: Any
    gather: Any
    expert_rows: Any
    capacity: int
    layout: Layout


@dataclass(frozen=True)
class Combined:
    """The outputs of a combine.

    out        [T, H] in the tokens' own order
    gradients  FP32 [T, K] of the weights, or None
    """

    out: Any
    gradients: Any


class _Batch(NamedTuple):
    """T and K of an update, and the array that it was made from."""

    num_tokens: int
    top_k: int
    indices: View


class _Arguments:
    """The arrays of a call, checked one by one as they are added."""

    def __init__(self, device: int) -> None:
        self._device = device
        self._ranges: List[Tuple[int, int, str, bool]] = []  # begin, end, name, is output
        self.keep: List[Any] = []

    def _check_place(self, seen: View, name: str) -> None:
        if seen.device != self._device and seen.device != _arrays.UNKNOWN_DEVICE:
            raise InvalidArgumentError(
                f"{name} lies on {_place(seen.device)}, but the communicator is of "
                f"{_place(self._device)}"
            )
        if seen.device == _arrays.UNKNOWN_DEVICE and self._device < 0:
            raise InvalidArgumentError(f"{name} lies on a GPU, but the communicator is of the host")

    def add(
        self,
        seen: View,
        name: str,
        shape: Optional[Shape],
        types: Sequence[str],
        alignment: int = 0,
        is_output: bool = False,
    ) -> Optional[int]:
        """The address of an array, None if it has no elements.

        shape      that it must have, -1 for any size; None: any shape
        types      that its elements may have; none: any
        alignment  0: the size of an element
        """
        self._check_place(seen, name)
        if types and seen.type not in types:
            raise InvalidArgumentError(
                f"{name} has elements of type {seen.type}, but must have {' or '.join(types)}"
            )
        if shape is not None and not _fits(seen.shape, shape):
            raise InvalidArgumentError(
                f"{name} has shape {list(seen.shape)}, but must have {_shape_text(shape)}"
            )
        if not seen.contiguous:
            raise InvalidArgumentError(f"{name} is strided, but must be contiguous and row-major")
        if is_output and not seen.writable:
            raise InvalidArgumentError(f"{name} is read-only, but is an output")
        num_bytes = seen.nbytes
        if num_bytes == 0:
            return None
        if seen.pointer % (alignment or seen.element_bytes) != 0:
            raise InvalidArgumentError(
                f"{name} lies at {seen.pointer:#x}, but must be aligned to "
                f"{alignment or seen.element_bytes} bytes"
            )
        self._ranges.append((seen.pointer, seen.pointer + num_bytes, name, is_output))
        self.keep.append(seen.owner)
        return seen.pointer

    def check_overlaps(self) -> None:
        """No output may share memory with another array of the call."""
        ranges = sorted(self._ranges)
        for first, second in zip(ranges, ranges[1:]):
            if second[0] < first[1] and (first[3] or second[3]):
                raise InvalidArgumentError(f"{first[2]} and {second[2]} overlap in memory")


def _place(device: int) -> str:
    return "the host" if device < 0 else f"GPU {device}"


def _fits(shape: Shape, wanted: Shape) -> bool:
    return len(shape) == len(wanted) and all(w in (-1, s) for s, w in zip(shape, wanted))


def _shape_text(shape: Shape) -> str:
    return "[" + ", ".join("any" if size < 0 else str(size) for size in shape) + "]"


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
    ) -> None:
        """Creates a routing and its device memory. Local; waits for nothing. All ranks give the
        same values.

        alignment  each expert's block of expert-major rows starts at a multiple of it
        mode       LOW_LATENCY needs low_latency_tokens in the communicator's config
        lane       the sequence of operations that it lives on
        """
        self._handle = 0
        self._communicator = communicator
        self._library = communicator._library
        self._alignment = _abi.integer("alignment", alignment)
        self._mode = Mode(mode)
        self._lane = communicator._lane(self._mode, _abi.integer("lane", lane))
        self._batch: Optional[_Batch] = None
        self._pending: Any = None
        self._in_flight: List[Any] = []
        config = _abi.RoutingConfig(alignment=self._alignment, mode=int(mode), lane=lane)
        handle = ctypes.c_void_p()
        with communicator._alone():
            owner = communicator._alive()
            communicator._destroy_abandoned()
            communicator._check(self._library.hepRoutingCreate(handle, owner, config))
            self._handle = handle.value or 0
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
        top_k    of a map: K, the most selections of a token; None: max_top_k. The same on all ranks
        stream   None: the current stream of the framework of `indices`
        """
        arguments = _Arguments(self._communicator.device)
        batch, struct = self._make_update(indices, top_k, arguments)
        with self._lane:
            handle = self._alive()
            where = self._stream(stream, batch.indices)
            self._check(self._library.hepRoutingUpdate(handle, struct, where))
            self._batch = batch

    def counts(self, stream: Any = None) -> Counts:
        """Waits until all work on `stream` is done, and returns the counts of the latest update."""
        with self._lane:
            handle = self._alive()
            per_expert = (ctypes.c_int32 * self._communicator.limits.num_local_experts)()
            struct = _abi.RoutingCounts(tokens_per_expert=ctypes.addressof(per_expert))
            indices = self._batch.indices if self._batch is not None else None
            where = self._stream(stream, indices)
            self._check(self._library.hepRoutingQuery(handle, struct, where))
            return from_struct(Counts, struct, tokens_per_expert=tuple(per_expert))

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
        scales: Any = None,
        rows: Any = None,
        row_weights: Output = None,
        row_scales: Output = None,
        row_experts: Output = None,
        row_sources: Output = None,
        row_tokens: Output = None,
        gather: Output = None,
        expert_rows: Output = None,
        row_scales_stride: int = 0,
        scale_element_bytes: int = 0,
        indices: Any = None,
        top_k: Optional[int] = None,
        send_only: bool = False,
        stream: Any = None,
    ) -> Dispatched:
        """Brings every token to the ranks of its selected experts. Collective.

        Inputs:
        x         [T, H]
        capacity  n: rows that the outputs hold (EXPERT_PADDED: of each expert). None: as many as
                  `rows` holds; without `rows` the counts are queried, which waits for the stream
        dtype     what x holds, if it is of plain integers; quantised rows: what they become
        quantize  of BF16 to FP8 on the way
        weights   FP32 [T, K]; kept for a combine in weight mode DISPATCHED
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
        arguments = _Arguments(self._communicator.device)
        with self._lane:
            handle = self._alive()
            update: Optional[_abi.Update] = None
            batch = self._batch
            if indices is not None:
                batch, update = self._make_update(indices, top_k, arguments)
            elif top_k is not None:
                raise InvalidArgumentError(f"top_k is {top_k}, but there are no indices")
            if batch is None:
                raise InvalidUsageError("the routing has not been updated")
            call = _DispatchCall(self, batch, Layout(layout), arguments)
            call.take_inputs(x, dtype, Quantization(quantize), weights, scales)
            where = self._stream(stream, call.x)
            call.choose_capacity(rows, capacity, update is not None, stream)
            outputs = call.make_outputs(
                rows=rows,
                row_weights=row_weights,
                row_experts=row_experts,
                row_sources=row_sources,
                row_tokens=row_tokens,
                gather=gather,
                expert_rows=expert_rows,
                row_scales=row_scales,
                stride=_abi.integer("row_scales_stride", row_scales_stride, 64),
                element_bytes=_abi.integer("scale_element_bytes", scale_element_bytes, 64),
            )
            arguments.check_overlaps()
            struct = call.struct
            struct.overflow = Overflow(overflow)
            if update is not None:
                struct.update = ctypes.pointer(update)
            function = self._library.hepDispatchSend if send_only else self._library.hepDispatch
            self._check(function(handle, struct, where))
            self._batch = batch
            if send_only:
                self._in_flight = arguments.keep
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
                       back as `gradients`

        Outputs:
        out            [T, H]; None: allocated by the framework of y
        gradients      FP32 [T, K]; allocated if there are row_gradients

        send_only  the first half alone, of a low-latency routing: `combine_receive` is the second
        stream     None: the current stream of the framework of y
        """
        arguments = _Arguments(self._communicator.device)
        with self._lane:
            handle = self._alive()
            batch = self._updated()
            call = _CombineCall(self, batch, Layout(layout), arguments)
            call.take_inputs(y, dtype, weight_mode, row_weights, row_gradients)
            where = self._stream(stream, call.y)
            wants_gradients = gradients if gradients is not None else row_gradients is not None
            outputs = call.make_outputs(out, wants_gradients)
            arguments.check_overlaps()
            call.struct.partial_type = DataType(partial_dtype)
            function = self._library.hepCombineSend if send_only else self._library.hepCombine
            self._check(function(handle, call.struct, where))
            if send_only:
                self._in_flight = arguments.keep
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
                self._handle = 0

    def __enter__(self) -> Routing:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        value: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", 0) != 0:
            self._communicator._abandoned.append((self._handle, None))

    def __repr__(self) -> str:
        state = "closed" if self._handle == 0 else self._mode.name.lower()
        return f"<hybridep.Routing of {self._communicator!r}, {state}>"

    # --------------------------------------------------------------------------------- private

    def _alive(self) -> int:
        """The handle, unless this routing can no longer be used."""
        self._communicator._alive()
        if self._handle == 0:
            raise InvalidUsageError("the routing is closed")
        return self._handle

    def _updated(self) -> _Batch:
        if self._batch is None:
            raise InvalidUsageError("the routing has not been updated")
        return self._batch

    def _check(self, result: int) -> None:
        self._communicator._check(result)

    def _stream(self, stream: Any, seen: Optional[View]) -> Optional[int]:
        return _streams.handle_of(stream, self._communicator.device, seen)

    def _receive(self, function: Any, stream: Any) -> None:
        with self._lane:
            handle = self._alive()
            indices = self._batch.indices if self._batch is not None else None
            self._check(function(handle, self._stream(stream, indices)))
            self._in_flight = []

    def _make_update(
        self, indices: Any, top_k: Optional[int], arguments: _Arguments
    ) -> Tuple[_Batch, _abi.Update]:
        seen = _arrays.view(indices, "indices")
        pointer = arguments.add(seen, "indices", (-1, -1), tuple(_INDEX_TYPES))
        kind = _INDEX_TYPES[seen.type]
        num_tokens, columns = seen.shape
        limits = self._communicator.limits
        if kind == IndexType.MAP:
            if columns != limits.num_experts:
                raise InvalidArgumentError(
                    f"indices is a map of {columns} experts, but there are {limits.num_experts}"
                )
            columns = limits.max_top_k if top_k is None else _abi.integer("top_k", top_k)
        elif top_k not in (None, columns):
            raise InvalidArgumentError(f"top_k is {top_k}, but indices has {columns} columns")
        struct = _abi.Update(
            indices=pointer, num_tokens=num_tokens, top_k=columns, index_type=int(kind)
        )
        return _Batch(num_tokens, columns, seen), struct


class _Call:
    """What dispatch and combine share: shapes of rows, and outputs that may be given."""

    def __init__(
        self, routing: Routing, batch: _Batch, layout: Layout, arguments: _Arguments
    ) -> None:
        self.limits = routing._communicator.limits
        self.hidden = routing._communicator.config.hidden
        self.routing = routing
        self.batch = batch
        self.layout = layout
        self.arguments = arguments
        self.capacity = 0

    def by_row(self, *others: int) -> Shape:
        """The shape of an array with an entry for each row."""
        if self.layout == Layout.EXPERT_PADDED:
            return (self.limits.num_local_experts, self.capacity, *others)
        return (self.capacity, *others)

    def weights_shape(self) -> Shape:
        """The shape of weights of rows."""
        if self.layout == Layout.FLAT:
            return self.by_row(self.batch.top_k)
        return self.by_row()

    def optional_input(self, array: Any, name: str, shape: Shape) -> Optional[int]:
        if array is None:
            return None
        return self.arguments.add(_arrays.view(array, name), name, shape, ("float32",))

    def output(
        self,
        wanted: Output,
        name: str,
        shape: Shape,
        type_name: str,
        like: View,
        alignment: int = 0,
    ) -> Tuple[Any, Optional[int]]:
        """An output and its address: the caller's array, a new one, or none."""
        if wanted is None or wanted is False:
            return None, None
        if wanted is True:
            made = like.framework.empty(shape, type_name, like.array)
            return self.add_output(made, True, name, shape, (), alignment)
        return self.add_output(wanted, False, name, shape, (type_name,), alignment)

    def add_output(
        self,
        array: Any,
        is_new: bool,
        name: str,
        shape: Shape,
        types: Sequence[str],
        alignment: int,
    ) -> Tuple[Any, Optional[int]]:
        seen = _arrays.allocated(array, name) if is_new else _arrays.view(array, name)
        if is_new and 0 in shape:
            return array, None
        pointer = self.arguments.add(seen, name, shape, types, alignment, is_output=True)
        return array, pointer


class _DispatchCall(_Call):
    """Builds the arguments of a dispatch."""

    struct: _abi.DispatchArgs
    x: View

    def take_inputs(
        self,
        x: Any,
        dtype: Optional[DataType],
        quantize: Quantization,
        weights: Any,
        scales: Any,
    ) -> None:
        num_tokens = self.batch.num_tokens
        self.x = _arrays.view(x, "x")
        if quantize != Quantization.NONE:
            given = _arrays.row_type(self.x, DataType.BFLOAT16, "x")
            self.type = DataType.FLOAT8_E4M3 if dtype is None else DataType(dtype)
        else:
            given = self.type = _arrays.row_type(self.x, dtype, "x")
        self.quantize = quantize
        self.is_native = self.type == given
        shape = (num_tokens, self.hidden)
        self.scales = _arrays.view(scales, "scales") if scales is not None else None
        self.struct = _abi.DispatchArgs(
            layout=int(self.layout),
            type=int(self.type),
            quantize=int(quantize),
            x=self.arguments.add(self.x, "x", shape, (), _ROW_ALIGNMENT),
            weights=self.optional_input(weights, "weights", (num_tokens, self.batch.top_k)),
            scales=self._take_scales(),
        )

    def _take_scales(self) -> Optional[int]:
        if self.scales is None:
            return None
        pointer = self.arguments.add(self.scales, "scales", (self.batch.num_tokens, -1), ())
        given = self.scales.shape[1] * self.scales.element_bytes
        wanted = self.routing._communicator.config.scale_bytes
        if given != wanted:
            raise InvalidArgumentError(
                f"scales has {given} bytes a token, but scale_bytes of the config is {wanted}"
            )
        return pointer

    def choose_capacity(
        self, rows: Any, capacity: Optional[int], has_update: bool, stream: Any
    ) -> None:
        if capacity is not None:
            self.capacity = _abi.integer("capacity", capacity, 64)
            if self.capacity < 0:
                raise InvalidArgumentError(f"capacity is {capacity}, but must not be negative")
        elif rows is not None:
            shape = _arrays.view(rows, "rows").shape
            self.capacity = shape[-2] if len(shape) >= 2 else 0
        elif has_update:
            raise InvalidArgumentError(
                "capacity is None, but the counts of an update in the same call are not known yet"
            )
        else:
            self.capacity = self._needed(self.routing.counts(stream))

    def _needed(self, counts: Counts) -> int:
        if self.layout == Layout.FLAT:
            return counts.num_flat_rows
        if self.layout == Layout.EXPERT_MAJOR:
            return counts.num_padded_rows
        return max(counts.tokens_per_expert)

    def make_outputs(
        self,
        rows: Any,
        row_weights: Output,
        row_experts: Output,
        row_sources: Output,
        row_tokens: Output,
        gather: Output,
        expert_rows: Output,
        row_scales: Output,
        stride: int,
        element_bytes: int,
    ) -> Dispatched:
        struct, x = self.struct, self.x
        struct.capacity = self.capacity
        rows, struct.rows = self._rows(rows)
        if struct.rows is None:
            struct.capacity = 0
        weights, struct.row_weights = self.output(
            row_weights, "row_weights", self.weights_shape(), "float32", x
        )
        experts, struct.row_experts = self._flat_only(
            row_experts, "row_experts", self.weights_shape()
        )
        sources, struct.row_sources = self.output(
            row_sources, "row_sources", self.by_row(), "int32", x
        )
        tokens, struct.row_tokens = self.output(row_tokens, "row_tokens", self.by_row(), "int32", x)
        places, struct.gather = self._gather(gather)
        filled, struct.expert_rows = self._expert_rows(expert_rows)
        scaled, struct.row_scales = self._row_scales(row_scales, stride, element_bytes)
        return Dispatched(
            rows=rows,
            row_weights=weights,
            row_scales=scaled,
            row_experts=experts,
            row_sources=sources,
            row_tokens=tokens,
            gather=places,
            expert_rows=filled,
            capacity=self.capacity,
            layout=self.layout,
        )

    def _rows(self, rows: Any) -> Tuple[Any, Optional[int]]:
        shape = self.by_row(self.hidden)
        if rows is None:
            framework, array = self.x.framework, self.x.array
            if self.is_native:
                made = framework.like(shape, array)
            else:
                made = framework.empty(shape, _arrays.NAME_OF_ROW_TYPE[self.type], array)
            return self.add_output(made, True, "rows", shape, (), _ROW_ALIGNMENT)
        _arrays.row_type(_arrays.view(rows, "rows"), self.type, "rows")
        return self.add_output(rows, False, "rows", shape, (), _ROW_ALIGNMENT)

    def _flat_only(self, wanted: Output, name: str, shape: Shape) -> Tuple[Any, Optional[int]]:
        if wanted is not None and wanted is not False and self.layout != Layout.FLAT:
            raise InvalidArgumentError(f"{name} is an output of Layout.FLAT, not {self.layout!r}")
        return self.output(wanted, name, shape, "int32", self.x)

    def _gather(self, wanted: Output) -> Tuple[Any, Optional[int]]:
        size = -1
        if wanted is True:
            size = self.places_at_most()
        elif wanted is not None and wanted is not False:
            size = _arrays.view(wanted, "gather").shape[0]
        array, pointer = self._flat_only(wanted, "gather", (size,))
        self.struct.gather_capacity = size if pointer is not None else 0
        return array, pointer

    def places_at_most(self) -> int:
        """Places of the expert-major layout, whatever the routing is."""
        limits, routing = self.limits, self.routing
        tokens = limits.max_tokens
        if routing.mode == Mode.LOW_LATENCY:
            tokens = limits.low_latency_tokens
        selections = routing._communicator.num_ranks * tokens * self.batch.top_k
        return selections + limits.num_local_experts * (routing.alignment - 1)

    def _expert_rows(self, wanted: Output) -> Tuple[Any, Optional[int]]:
        if wanted is not None and wanted is not False and self.layout != Layout.EXPERT_PADDED:
            raise InvalidArgumentError(
                f"expert_rows is an output of Layout.EXPERT_PADDED, not {self.layout!r}"
            )
        shape = (self.limits.num_local_experts,)
        return self.output(wanted, "expert_rows", shape, "int32", self.x)

    def _row_scales(
        self, wanted: Output, stride: int, element_bytes: int
    ) -> Tuple[Any, Optional[int]]:
        quantized = self.quantize != Quantization.NONE
        if wanted is None:
            wanted = quantized or self.scales is not None
        if wanted is False:
            return None, None
        if not quantized and self.scales is None:
            raise InvalidArgumentError("row_scales is an output of tokens with scales")
        self.struct.row_scales_stride = stride
        self.struct.scale_element_bytes = element_bytes
        type_name = self._scale_type(element_bytes)
        columns = self.routing._communicator.config.scale_bytes
        columns //= _arrays.ELEMENT_BYTES[type_name]
        shape = self.by_row(columns)
        if stride != 0:
            experts = (self.limits.num_local_experts,)
            shape = (columns, stride)
            shape = experts + shape if self.layout == Layout.EXPERT_PADDED else shape
        alignment = _ROW_ALIGNMENT if stride != 0 else 0
        if wanted is not True:
            seen = _arrays.view(wanted, "row_scales")
            return self.add_output(wanted, False, "row_scales", shape, (seen.type,), alignment)
        like = self.scales if self.scales is not None else self.x
        return self.output(True, "row_scales", shape, type_name, like, alignment)

    def _scale_type(self, element_bytes: int) -> str:
        if self.quantize == Quantization.FLOAT32:
            return "float32"
        if self.quantize == Quantization.UE8M0:
            return "uint8"
        assert self.scales is not None
        return self.scales.type


class _CombineCall(_Call):
    """Builds the arguments of a combine."""

    struct: _abi.CombineArgs
    y: View

    def take_inputs(
        self,
        y: Any,
        dtype: Optional[DataType],
        weight_mode: Optional[WeightMode],
        row_weights: Any,
        row_gradients: Any,
    ) -> None:
        self.y = _arrays.view(y, "y")
        self.type = _arrays.row_type(self.y, dtype, "y")
        self.capacity = self.y.shape[-2] if len(self.y.shape) >= 2 else 0
        if weight_mode is None:
            weight_mode = WeightMode.NONE if row_weights is None else WeightMode.ROW
        pointer = self.arguments.add(self.y, "y", self.by_row(self.hidden), (), _ROW_ALIGNMENT)
        self.struct = _abi.CombineArgs(
            layout=int(self.layout),
            weight_mode=int(WeightMode(weight_mode)),
            type=int(self.type),
            y=pointer,
            capacity=self.capacity if pointer is not None else 0,
            row_weights=self.optional_input(row_weights, "row_weights", self.by_row()),
            row_gradients=self.optional_input(
                row_gradients, "row_gradients", self.weights_shape()
            ),
        )

    def make_outputs(self, out: Any, gradients: Output) -> Combined:
        struct, num_tokens = self.struct, self.batch.num_tokens
        shape = (num_tokens, self.hidden)
        is_new = out is None
        if is_new:
            out = self.y.framework.like(shape, self.y.array)
        else:
            _arrays.row_type(_arrays.view(out, "out"), self.type, "out")
        out, struct.out = self.add_output(out, is_new, "out", shape, (), _ROW_ALIGNMENT)
        weights_shape = (num_tokens, self.batch.top_k)
        returned, struct.gradients = self.output(
            gradients, "gradients", weights_shape, "float32", self.y
        )
        return Combined(out=out, gradients=returned)
