# SPDX-License-Identifier: Apache-2.0
"""Builds the arguments of dispatch and combine from arrays, and the arrays that they return."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Dict, NamedTuple, Optional, Sequence, Tuple, Union

from . import _abi, _arrays
from ._arguments import Arguments
from ._arrays import Framework, Shape, View
from ._enums import DataType, IndexType, Layout, Quantization, WeightMode
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
_ROW_ALIGNMENT = 16
_FLOAT32 = ("float32",)


class Dispatched(NamedTuple):
    """The outputs of a dispatch. None: was not asked for.

    n is the capacity. In the layout EXPERT_PADDED read [EL, n] for [n].

    rows          [n, H]
    capacity      n
    layout        of the rows
    row_weights   FP32 [n]; FLAT: [n, K]
    row_scales    [n, scales of a token], or column-major as told
    row_experts   int32 [n, K] local expert ids, -1 elsewhere; FLAT alone
    row_sources   int32 [n] source rank of each row
    row_tokens    int32 [n] token of each row on its source rank
    gather        int32 [places of the expert-major layout] flat row of each place, or -1; FLAT
                  alone
    expert_rows   int32 [EL] rows of each expert that were written, without padding; expert layouts
    group_sizes   int64 [EL] rows of each expert's block that were written, with padding: the group
                  sizes of a grouped GEMM; EXPERT_MAJOR alone
    row_counters  int64 [3]: rows needed, rows written, 1 if they overflowed
    """

    rows: Any
    capacity: int
    layout: Layout
    row_weights: Any = None
    row_scales: Any = None
    row_experts: Any = None
    row_sources: Any = None
    row_tokens: Any = None
    gather: Any = None
    expert_rows: Any = None
    group_sizes: Any = None
    row_counters: Any = None


class Combined(NamedTuple):
    """The outputs of a combine.

    out              [T, H] in the tokens' own order
    gradients        FP32 [T, K] of the weights, or None
    dense_gradients  FP32 [T, E] of dense weights, or None
    """

    out: Any
    gradients: Any = None
    dense_gradients: Any = None


class Batch(NamedTuple):
    """T and K of an update, the framework of its indices, and its number among the routing's."""

    serial: int
    num_tokens: int
    top_k: int
    framework: Framework


class Call:
    """What dispatch and combine share: shapes of rows, and outputs that may be given."""

    def __init__(self, routing: Routing, batch: Batch, layout: Layout) -> None:
        self.routing = routing
        self.batch = batch
        self.layout = layout
        self.limits = routing._communicator._limits
        self.arguments = Arguments(routing._communicator._device)
        self.hidden = 0
        self.capacity = 0

    def by_row(self) -> Shape:
        """The shape of an array with an entry for each row."""
        if self.layout == Layout.EXPERT_PADDED:
            return (self.limits.num_local_experts, self.capacity)
        return (self.capacity,)

    def by_expert(self) -> Shape:
        return (self.limits.num_local_experts,)

    def weights_shape(self) -> Shape:
        """The shape of weights of rows."""
        if self.layout == Layout.FLAT:
            return (self.capacity, self.batch.top_k)
        return self.by_row()

    def weights(self, array: Any, name: str, shape: Shape) -> int:
        """An optional input."""
        if array is None:
            return 0
        return self.arguments.add(_arrays.view(array, name), name, shape, _FLOAT32)

    def given(self, array: Any, name: str, shape: Shape, types: Sequence[str], align: int) -> int:
        """An output that the caller has given."""
        seen = _arrays.view(array, name)
        return self.arguments.add(seen, name, shape, types, align, is_output=True)

    def output(
        self, wanted: Output, name: str, shape: Shape, type_name: str, like: View
    ) -> Tuple[Any, int]:
        """An output that was asked for, and its address: the caller's array, or a new one."""
        if wanted is True:
            made = like.framework.empty(shape, type_name, like.array)
            return made, like.framework.address(made)
        return wanted, self.given(wanted, name, shape, (type_name,), 0)

    def rows(
        self, wanted: Any, name: str, shape: Shape, dtype: DataType, like: View, is_native: bool
    ) -> Tuple[Any, int]:
        """Rows of tokens as an output. is_native: their type is that of `like`."""
        if wanted is not None:
            _arrays.row_type(_arrays.view(wanted, name), dtype, name)
            return wanted, self.given(wanted, name, shape, (), _ROW_ALIGNMENT)
        if is_native:
            made = like.framework.like(shape, like.array)
        else:
            made = like.framework.empty(shape, _arrays.NAME_OF_ROW_TYPE[dtype], like.array)
        return made, like.framework.address(made)


def is_wanted(output: Output) -> bool:
    return output is not None and output is not False


# -------------------------------------------------------------------------------------- dispatch


class _Optional(NamedTuple):
    """An optional output of a dispatch: its elements, its shape, and the layouts that have it."""

    type: str
    shape: Callable[[Call], Shape]
    layouts: Tuple[Layout, ...]


_OPTIONAL = {
    "row_weights": _Optional("float32", Call.weights_shape, tuple(Layout)),
    "row_experts": _Optional("int32", Call.weights_shape, (Layout.FLAT,)),
    "row_sources": _Optional("int32", Call.by_row, tuple(Layout)),
    "row_tokens": _Optional("int32", Call.by_row, tuple(Layout)),
    "expert_rows": _Optional("int32", Call.by_expert, (Layout.EXPERT_MAJOR, Layout.EXPERT_PADDED)),
    "group_sizes": _Optional("int64", Call.by_expert, (Layout.EXPERT_MAJOR,)),
    "row_counters": _Optional("int64", lambda _: (3,), tuple(Layout)),
}


def _check_layout(name: str, layout: Layout, layouts: Sequence[Layout]) -> None:
    if layout not in layouts:
        have = " and ".join(f"Layout.{other.name}" for other in layouts)
        raise InvalidArgumentError(f"{name} is an output of {have}, not of Layout.{layout.name}")


class DispatchCall(Call):
    """Builds the arguments of a dispatch."""

    def take_inputs(
        self,
        x: Any,
        dtype: Optional[DataType],
        quantize: Quantization,
        weights: Any,
        dense_weights: Any,
        scales: Any,
    ) -> None:
        self.x = seen = _arrays.view(x, "x")
        given = self._choose_type(dtype, quantize)
        self.is_native = self.type == given
        self.hidden = seen.shape[-1] if seen.shape else 0
        num_tokens = self.batch.num_tokens
        self.struct = struct = _abi.DispatchArgs.make()
        struct.layout = self.layout
        struct.type = self.type
        struct.quantize = quantize
        struct.hidden = self.hidden
        struct.x = self.arguments.add(seen, "x", (num_tokens, self.hidden), (), _ROW_ALIGNMENT)
        struct.weights = self.weights(weights, "weights", (num_tokens, self.batch.top_k))
        if dense_weights is not None:
            shape = (num_tokens, self.limits.num_experts)
            struct.dense_weights = self.weights(dense_weights, "dense_weights", shape)
        self.scales = None if scales is None else _arrays.view(scales, "scales")
        if self.scales is not None:
            struct.scales = self._take_scales(self.scales)

    def _choose_type(self, dtype: Optional[DataType], quantize: Quantization) -> DataType:
        """Decides the type of the rows, and returns that of x."""
        if quantize == Quantization.NONE:
            self.type = _arrays.row_type(self.x, dtype, "x")
            return self.type
        self.type = DataType.FLOAT8_E4M3 if dtype is None else DataType(dtype)
        return _arrays.row_type(self.x, DataType.BFLOAT16, "x")

    def _take_scales(self, scales: View) -> int:
        pointer = self.arguments.add(scales, "scales", (self.batch.num_tokens, -1))
        given = scales.shape[1] * _arrays.ELEMENT_BYTES[scales.type]
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
        row_scales: Output,
        gather: Output,
        stride: int,
        element_bytes: int,
        optional: Dict[str, Output],
    ) -> Dispatched:
        self.struct.capacity = self.capacity
        shape = (*self.by_row(), self.hidden)
        rows, self.struct.rows = self.rows(rows, "rows", shape, self.type, self.x, self.is_native)
        made: Dict[str, Any] = {}
        for name, wanted in optional.items():
            if wanted is not None and wanted is not False:
                made[name] = self._optional(name, wanted)
        if is_wanted(gather):
            made["gather"] = self._gather(gather)
        if row_scales is None:
            row_scales = self.struct.quantize != 0 or self.scales is not None
        if row_scales is not False:
            made["row_scales"] = self._row_scales(row_scales, stride, element_bytes)
        return Dispatched(rows, self.capacity, self.layout, **made)

    def _optional(self, name: str, wanted: Output) -> Any:
        kind = _OPTIONAL[name]
        _check_layout(name, self.layout, kind.layouts)
        array, pointer = self.output(wanted, name, kind.shape(self), kind.type, self.x)
        setattr(self.struct, name, pointer)
        return array

    def _gather(self, wanted: Output) -> Any:
        _check_layout("gather", self.layout, (Layout.FLAT,))
        size = self._most_places()
        if wanted is not True:
            shape = _arrays.view(wanted, "gather").shape
            size = shape[0] if shape else 0
        array, self.struct.gather = self.output(wanted, "gather", (size,), "int32", self.x)
        self.struct.gather_capacity = size
        return array

    def _most_places(self) -> int:
        """Places of the expert-major layout, whatever the routing is."""
        routing = self.routing
        tokens = routing._communicator.num_ranks * routing._max_tokens
        padding = self.limits.num_local_experts * (routing.alignment - 1)
        return tokens * self.batch.top_k + padding

    def _row_scales(self, wanted: Output, stride: int, element_bytes: int) -> Any:
        like = self.x if self.scales is None else self.scales
        type_name = self._scale_type()
        columns = self.routing._communicator.config.scale_bytes
        columns //= _arrays.ELEMENT_BYTES[type_name]
        shape = (*self.by_row(), columns)
        if stride != 0:
            shape = (*self.by_row()[:-1], columns, stride)
        self.struct.row_scales_stride = stride
        self.struct.scale_element_bytes = element_bytes
        if wanted is True:
            array, pointer = self.output(True, "row_scales", shape, type_name, like)
        else:
            alignment = _ROW_ALIGNMENT if stride != 0 else 0
            array, pointer = wanted, self.given(wanted, "row_scales", shape, (), alignment)
        self.struct.row_scales = pointer
        return array

    def _scale_type(self) -> str:
        if self.struct.quantize == Quantization.FLOAT32:
            return "float32"
        if self.struct.quantize == Quantization.UE8M0:
            return "uint8"
        if self.scales is None:
            raise InvalidArgumentError("row_scales is an output of tokens with scales")
        return self.scales.type


# --------------------------------------------------------------------------------------- combine


class CombineCall(Call):
    """Builds the arguments of a combine."""

    def take_inputs(
        self,
        y: Any,
        dtype: Optional[DataType],
        weight_mode: Optional[WeightMode],
        row_weights: Any,
        row_gradients: Any,
    ) -> None:
        self.y = seen = _arrays.view(y, "y")
        self.type = _arrays.row_type(seen, dtype, "y")
        if len(seen.shape) >= 2:
            self.capacity, self.hidden = seen.shape[-2:]
        if weight_mode is None:
            weight_mode = WeightMode.NONE if row_weights is None else WeightMode.ROW
        self.struct = struct = _abi.CombineArgs.make()
        struct.layout = self.layout
        struct.weight_mode = weight_mode
        struct.type = self.type
        struct.capacity = self.capacity
        struct.hidden = self.hidden
        shape = (*self.by_row(), self.hidden)
        struct.y = self.arguments.add(seen, "y", shape, (), _ROW_ALIGNMENT)
        struct.row_weights = self.weights(row_weights, "row_weights", self.by_row())
        if row_gradients is not None:
            shape = self.weights_shape()
            struct.row_gradients = self.weights(row_gradients, "row_gradients", shape)

    def make_outputs(self, out: Any, gradients: Output, dense_gradients: Output) -> Combined:
        shape = (self.batch.num_tokens, self.hidden)
        out, self.struct.out = self.rows(out, "out", shape, self.type, self.y, True)
        if gradients is None:
            gradients = bool(self.struct.row_gradients) and not is_wanted(dense_gradients)
        sparse = self._gradients("gradients", gradients, self.batch.top_k)
        dense = self._gradients("dense_gradients", dense_gradients, self.limits.num_experts)
        return Combined(out, sparse, dense)

    def _gradients(self, name: str, wanted: Output, columns: int) -> Any:
        if not is_wanted(wanted):
            return None
        shape = (self.batch.num_tokens, columns)
        array, pointer = self.output(wanted, name, shape, "float32", self.y)
        setattr(self.struct, name, pointer)
        return array
