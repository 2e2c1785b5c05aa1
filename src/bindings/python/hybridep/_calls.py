# SPDX-License-Identifier: Apache-2.0
"""Builds the arguments of dispatch and combine from arrays, and the arrays that they return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Optional, Sequence, Tuple, Union

from . import _abi, _arrays
from ._arguments import Arguments
from ._arrays import Framework, Shape, View
from ._enums import DataType, IndexType, Layout, Mode, Quantization, WeightMode
from ._errors import InvalidArgumentError, integer

if TYPE_CHECKING:
    from ._routing import Routing

# An optional output: an array to fill, True to allocate one, False or None for none.
Output = Union[bool, None, Any]

INDEX_TYPES = {
    "int32": IndexType.INT32,
    "int64": IndexType.INT64,
    "bool": IndexType.MAP,
    "uint8": IndexType.MAP,
}
ROW_ALIGNMENT = 16


@dataclass(frozen=True)
class Dispatched:
    """The outputs of a dispatch. None: was not asked for.

    n is the capacity. In the layout EXPERT_PADDED read [EL, n] for [n].

    rows          [n, H]
    row_weights   FP32 [n]; FLAT: [n, K]
    row_scales    [n, scales of a token], or column-major as told
    row_experts   int32 [n, K] local expert ids, -1 elsewhere; FLAT alone
    row_sources   int32 [n] source rank of each row
    row_tokens    int32 [n] token of each row on its source rank
    gather        int32 [places of the expert-major layout] flat row of each place, or -1; FLAT alone
    expert_rows   int32 [EL] rows of each expert that were written, without padding; expert layouts
    group_sizes   int64 [EL] rows of each expert's block that were written, with padding: the group
                  sizes of a grouped GEMM; EXPERT_MAJOR alone
    row_counters  int64 [3]: rows needed, rows written, 1 if they overflowed
    capacity      n
    layout        of the rows
    """

    rows: Any
    row_weights: Any
    row_scales: Any
    row_experts: Any
    row_sources: Any
    row_tokens: Any
    gather: Any
    expert_rows: Any
    group_sizes: Any
    row_counters: Any
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


class Batch(NamedTuple):
    """T and K of an update, the framework of its indices, and its number among the routing's."""

    serial: int
    num_tokens: int
    top_k: int
    framework: Framework


class Call:
    """What dispatch and combine share: shapes of rows, and outputs that may be given."""

    def __init__(
        self, routing: Routing, batch: Batch, layout: Layout, arguments: Arguments
    ) -> None:
        self.limits = routing._communicator.limits
        self.hidden = 0  # of the rows of this call
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


class DispatchCall(Call):
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
        self.hidden = self.x.shape[-1] if self.x.shape else 0
        shape = (num_tokens, self.hidden)
        self.scales = _arrays.view(scales, "scales") if scales is not None else None
        self.struct = _abi.DispatchArgs(
            layout=int(self.layout),
            type=int(self.type),
            quantize=int(quantize),
            x=self.arguments.add(self.x, "x", shape, (), ROW_ALIGNMENT),
            weights=self.optional_input(weights, "weights", (num_tokens, self.batch.top_k)),
            scales=self._take_scales(),
            hidden=self.hidden,
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
            self.capacity = integer("capacity", capacity, 64)
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
            self.capacity = self.routing.counts(stream).capacity(self.layout)

    def make_outputs(
        self,
        rows: Any,
        row_weights: Output,
        row_experts: Output,
        row_sources: Output,
        row_tokens: Output,
        gather: Output,
        expert_rows: Output,
        group_sizes: Output,
        row_counters: Output,
        row_scales: Output,
        stride: int,
        element_bytes: int,
    ) -> Dispatched:
        struct, x = self.struct, self.x
        struct.capacity = self.capacity
        rows, struct.rows = self._rows(rows)
        weights, struct.row_weights = self.output(
            row_weights, "row_weights", self.weights_shape(), "float32", x
        )
        experts, struct.row_experts = self._of_layout(
            row_experts, "row_experts", self.weights_shape(), "int32", Layout.FLAT
        )
        sources, struct.row_sources = self.output(
            row_sources, "row_sources", self.by_row(), "int32", x
        )
        tokens, struct.row_tokens = self.output(row_tokens, "row_tokens", self.by_row(), "int32", x)
        places, struct.gather = self._gather(gather)
        by_expert = (self.limits.num_local_experts,)
        filled, struct.expert_rows = self._of_layout(
            expert_rows,
            "expert_rows",
            by_expert,
            "int32",
            Layout.EXPERT_MAJOR,
            Layout.EXPERT_PADDED,
        )
        sizes, struct.group_sizes = self._of_layout(
            group_sizes, "group_sizes", by_expert, "int64", Layout.EXPERT_MAJOR
        )
        counted, struct.row_counters = self.output(row_counters, "row_counters", (3,), "int64", x)
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
            group_sizes=sizes,
            row_counters=counted,
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
            return self.add_output(made, True, "rows", shape, (), ROW_ALIGNMENT)
        _arrays.row_type(_arrays.view(rows, "rows"), self.type, "rows")
        return self.add_output(rows, False, "rows", shape, (), ROW_ALIGNMENT)

    def _of_layout(
        self, wanted: Output, name: str, shape: Shape, type_name: str, *layouts: Layout
    ) -> Tuple[Any, Optional[int]]:
        """An output that some layouts have."""
        if wanted is not None and wanted is not False and self.layout not in layouts:
            have = " and ".join(f"Layout.{layout.name}" for layout in layouts)
            raise InvalidArgumentError(
                f"{name} is an output of {have}, not of Layout.{self.layout.name}"
            )
        return self.output(wanted, name, shape, type_name, self.x)

    def _gather(self, wanted: Output) -> Tuple[Any, Optional[int]]:
        size = -1
        if wanted is True:
            size = self.places_at_most()
        elif wanted is not None and wanted is not False:
            size = _arrays.view(wanted, "gather").shape[0]
        array, pointer = self._of_layout(wanted, "gather", (size,), "int32", Layout.FLAT)
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
        alignment = ROW_ALIGNMENT if stride != 0 else 0
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


class CombineCall(Call):
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
        self.hidden = self.y.shape[-1] if self.y.shape else 0
        pointer = self.arguments.add(self.y, "y", self.by_row(self.hidden), (), ROW_ALIGNMENT)
        self.struct = _abi.CombineArgs(
            layout=int(self.layout),
            weight_mode=int(WeightMode(weight_mode)),
            type=int(self.type),
            y=pointer,
            capacity=self.capacity,
            row_weights=self.optional_input(row_weights, "row_weights", self.by_row()),
            row_gradients=self.optional_input(
                row_gradients, "row_gradients", self.weights_shape()
            ),
            hidden=self.hidden,
        )

    def make_outputs(self, out: Any, gradients: Output) -> Combined:
        struct, num_tokens = self.struct, self.batch.num_tokens
        shape = (num_tokens, self.hidden)
        is_new = out is None
        if is_new:
            out = self.y.framework.like(shape, self.y.array)
        else:
            _arrays.row_type(_arrays.view(out, "out"), self.type, "out")
        out, struct.out = self.add_output(out, is_new, "out", shape, (), ROW_ALIGNMENT)
        weights_shape = (num_tokens, self.batch.top_k)
        returned, struct.gradients = self.output(
            gradients, "gradients", weights_shape, "float32", self.y
        )
        return Combined(out=out, gradients=returned)
