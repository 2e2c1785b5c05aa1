# SPDX-License-Identifier: Apache-2.0
"""Dispatch and combine as differentiable functions of PyTorch.

    rows, row_weights = hybridep.torch.dispatch(routing, x, weights)
    y = experts(rows)
    out = hybridep.torch.combine(routing, y, row_weights)

The backward pass of a dispatch is a combine, and that of a combine is a dispatch, on the same
routing and for the same update: a routing that has been updated since is refused. Both are
collective: all ranks run them in the same order. They may run on autograd's own thread.

Where PyTorch has torch.library.custom_op (2.4 and newer), all are operators of the namespace
libhybridep with fake versions. torch.compile(fullgraph=True) takes them with a given capacity.
"""

from __future__ import annotations

from typing import Any, Callable, List, Optional, Sequence, Tuple

import torch

from ._enums import Layout, WeightMode
from ._errors import InvalidArgumentError, InvalidUsageError
from ._routing import Routing, by_number

_UNKNOWN = -1  # a capacity: the counts are queried


def dispatch(
    routing: Routing,
    x: torch.Tensor,
    weights: Optional[torch.Tensor] = None,
    *,
    capacity: Optional[int] = None,
    layout: Layout = Layout.EXPERT_MAJOR,
    indices: Optional[torch.Tensor] = None,
    top_k: Optional[int] = None,
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """Brings every token to the ranks of its selected experts. Collective. Runs on the current
    stream. Differentiable in x and weights.

    x         [T, H] of BF16, FP16 or FP32
    weights   FP32 [T, K]
    capacity  n: rows of the output. None: the counts are queried, which waits for the stream
    indices   an update in the same call, as in `Routing.update`, with top_k

    Returns rows [n, H] and, with weights, their weights FP32 [n]; FLAT: [n, K]; EXPERT_PADDED:
    [EL, n, H] and [EL, n]. Rows that nothing comes to are zero, because experts that multiply what
    happens to lie there would spoil the gradients of their parameters.
    """
    size = _UNKNOWN if capacity is None else capacity
    number = routing._number
    rows, row_weights, _ = _dispatch(x, weights, indices, number, size, int(layout), top_k or 0)
    return rows, None if weights is None else row_weights


def combine(
    routing: Routing,
    y: torch.Tensor,
    row_weights: Optional[torch.Tensor] = None,
    *,
    layout: Layout = Layout.EXPERT_MAJOR,
    num_tokens: Optional[int] = None,
) -> torch.Tensor:
    """Brings the experts' results back and sums them for each token. Collective. Runs on the
    current stream. Differentiable in y and row_weights.

    y            [n, H] at the places that the dispatch gave; EXPERT_PADDED: [EL, n, H]
    row_weights  FP32, one for each row of y: the factors of the sum. None: all are 1
    num_tokens   T; None: that of the routing. In compiled code whose dispatch brings the update it
                 must be given, because the routing does not know it while the code is traced

    Returns [T, H] of the type of y.
    """
    size = routing.num_tokens if num_tokens is None else num_tokens
    out: torch.Tensor = _combine(y, row_weights, routing._number, int(layout), size)[0]
    return out


# ------------------------------------------------------------------------------------- routings


def _routing_of(number: int) -> Routing:
    """Operators take tensors and numbers: a number stands for a routing."""
    routing = by_number.get(number)
    if routing is None:
        raise InvalidUsageError("the routing is gone: keep it until its backward pass is done")
    return routing


def _serial(routing: Routing) -> torch.Tensor:
    """Tells a backward pass of which update it is. A tensor: graphs keep numbers for ever."""
    return torch.tensor(routing._updated().serial)


def _routing_of_pass(number: int, serial: torch.Tensor) -> Routing:
    routing = _routing_of(number)
    later = routing._updated().serial - int(serial)
    if later != 0:
        raise InvalidUsageError(
            f"the routing has been updated {later} times since the forward pass, so the backward "
            "pass has lost its routing: take another routing for each batch in flight"
        )
    return routing


# ----------------------------------------------------------------------------------- operations


def _shape_of_rows(number: int, layout: int, capacity: int) -> List[int]:
    if layout != Layout.EXPERT_PADDED:
        return [capacity]
    return [_routing_of(number).communicator.limits.num_local_experts, capacity]


def _outputs_of_dispatch(
    x: torch.Tensor, weights: Optional[torch.Tensor], shape: Sequence[int], layout: int, clear: bool
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Rows and their weights. An operator cannot return None: there is an empty tensor instead."""
    make = torch.zeros if clear else torch.empty
    rows = make((*shape, x.shape[1]), dtype=x.dtype, device=x.device)
    if weights is None:
        return rows, torch.empty(0, dtype=torch.float32, device=x.device)
    columns = (weights.shape[1],) if layout == Layout.FLAT else ()
    return rows, make((*shape, *columns), dtype=torch.float32, device=x.device)


def _run_dispatch(
    x: torch.Tensor,
    weights: Optional[torch.Tensor],
    indices: Optional[torch.Tensor],
    number: int,
    capacity: int,
    layout: int,
    top_k: int,
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    routing = _routing_of(number)
    is_exact = capacity == _UNKNOWN and layout != Layout.EXPERT_PADDED
    if capacity == _UNKNOWN:
        if indices is not None:
            raise InvalidArgumentError("capacity is None, but the call brings an update")
        capacity = routing.counts().capacity(Layout(layout))
    shape = _shape_of_rows(number, layout, capacity)
    rows, row_weights = _outputs_of_dispatch(x, weights, shape, layout, not is_exact)
    routing.dispatch(
        x.contiguous(),
        layout=Layout(layout),
        capacity=capacity,
        weights=None if weights is None else weights.contiguous(),
        rows=rows,
        row_weights=None if weights is None else row_weights,
        indices=indices,
        top_k=top_k or None,
    )
    return rows, row_weights, _serial(routing)


def _run_dispatch_backward(
    grad_rows: torch.Tensor,
    grad_row_weights: Optional[torch.Tensor],
    serial: torch.Tensor,
    number: int,
    layout: int,
    num_tokens: int,
    top_k: int,
) -> Tuple[torch.Tensor, torch.Tensor]:
    result = _routing_of_pass(number, serial).combine(
        grad_rows.contiguous(),
        layout=Layout(layout),
        row_gradients=None if grad_row_weights is None else grad_row_weights.contiguous(),
    )
    if grad_row_weights is None:
        return result.out, torch.empty(0, dtype=torch.float32, device=grad_rows.device)
    return result.out, result.gradients


def _run_combine(
    y: torch.Tensor, row_weights: Optional[torch.Tensor], number: int, layout: int, num_tokens: int
) -> Tuple[torch.Tensor, torch.Tensor]:
    routing = _routing_of(number)
    if num_tokens != routing.num_tokens:
        raise InvalidArgumentError(
            f"num_tokens is {num_tokens}, but the routing has {routing.num_tokens}"
        )
    result = routing.combine(
        y.contiguous(),
        layout=Layout(layout),
        weight_mode=WeightMode.NONE if row_weights is None else WeightMode.ROW,
        row_weights=None if row_weights is None else row_weights.contiguous(),
    )
    return result.out, _serial(routing)


def _run_combine_backward(
    grad_out: torch.Tensor,
    y: Optional[torch.Tensor],
    row_weights: Optional[torch.Tensor],
    serial: torch.Tensor,
    number: int,
    layout: int,
    shape: Sequence[int],
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Each row has contributed its weight times itself to its token."""
    grad_rows = torch.zeros(
        (*shape, grad_out.shape[1]), dtype=grad_out.dtype, device=grad_out.device
    )
    _routing_of_pass(number, serial).dispatch(
        grad_out.contiguous(), layout=Layout(layout), capacity=shape[-1], rows=grad_rows
    )
    if row_weights is None or y is None:
        return grad_rows, torch.empty(0, dtype=torch.float32, device=grad_out.device)
    weighted = grad_rows.float()
    grad_row_weights = (weighted * y.float()).sum(-1)
    return (weighted * row_weights.unsqueeze(-1)).to(grad_rows.dtype), grad_row_weights


# ---------------------------------------------------------------------------------- derivatives


def _keep_of_dispatch(ctx: Any, inputs: Tuple[Any, ...], output: Tuple[Any, ...]) -> None:
    x, weights, indices, number, _, layout, top_k = inputs
    ctx.save_for_backward(output[2])
    ctx.has_weights = weights is not None
    ctx.size = (x.shape[0], weights.shape[1] if weights is not None else 0)
    ctx.number, ctx.layout = number, layout


def _derive_dispatch(ctx: Any, grad_rows: Any, grad_row_weights: Any, _: Any) -> Tuple[Any, ...]:
    (serial,) = ctx.saved_tensors
    given = grad_row_weights if ctx.has_weights else None
    grad_x, grad_weights = _dispatch_backward(
        grad_rows, given, serial, ctx.number, ctx.layout, *ctx.size
    )
    return grad_x, grad_weights if ctx.has_weights else None, None, None, None, None, None


def _keep_of_combine(ctx: Any, inputs: Tuple[Any, ...], output: Tuple[Any, ...]) -> None:
    y, row_weights, number, layout, _ = inputs
    is_weighted = row_weights is not None
    ctx.save_for_backward(output[1], *((y, row_weights) if is_weighted else ()))
    ctx.is_weighted = is_weighted
    ctx.shape = list(y.shape[:-1])
    ctx.number, ctx.layout = number, layout


def _derive_combine(ctx: Any, grad_out: Any, _: Any) -> Tuple[Any, ...]:
    serial, *weighted = ctx.saved_tensors
    y, row_weights = weighted if ctx.is_weighted else (None, None)
    grad_y, grad_row_weights = _combine_backward(
        grad_out, y, row_weights, serial, ctx.number, ctx.layout, ctx.shape
    )
    return grad_y, grad_row_weights if ctx.is_weighted else None, None, None, None


# ----------------------------------------------------------------- what operators would return


def _no_serial() -> torch.Tensor:
    return torch.empty((), dtype=torch.int64)


def _fake_dispatch(
    x: torch.Tensor,
    weights: Optional[torch.Tensor],
    indices: Optional[torch.Tensor],
    number: int,
    capacity: int,
    layout: int,
    top_k: int,
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if capacity == _UNKNOWN:
        raise InvalidArgumentError("capacity is None, but compiled code needs a number")
    shape = _shape_of_rows(number, layout, capacity)
    return (*_outputs_of_dispatch(x, weights, shape, layout, False), _no_serial())


def _fake_dispatch_backward(
    grad_rows: torch.Tensor,
    grad_row_weights: Optional[torch.Tensor],
    serial: torch.Tensor,
    number: int,
    layout: int,
    num_tokens: int,
    top_k: int,
) -> Tuple[torch.Tensor, torch.Tensor]:
    size = (0,) if grad_row_weights is None else (num_tokens, top_k)
    grad_weights = grad_rows.new_empty(size, dtype=torch.float32)
    return grad_rows.new_empty((num_tokens, grad_rows.shape[-1])), grad_weights


def _fake_combine(
    y: torch.Tensor, row_weights: Optional[torch.Tensor], number: int, layout: int, num_tokens: int
) -> Tuple[torch.Tensor, torch.Tensor]:
    return y.new_empty((num_tokens, y.shape[-1])), _no_serial()


def _fake_combine_backward(
    grad_out: torch.Tensor,
    y: Optional[torch.Tensor],
    row_weights: Optional[torch.Tensor],
    serial: torch.Tensor,
    number: int,
    layout: int,
    shape: Sequence[int],
) -> Tuple[torch.Tensor, torch.Tensor]:
    size = (0,) if row_weights is None else tuple(shape)
    grad_row_weights = grad_out.new_empty(size, dtype=torch.float32)
    return grad_out.new_empty((*shape, grad_out.shape[-1])), grad_row_weights


# ------------------------------------------------------------------------------------ operators


def _operator(name: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """An operator of libhybridep, or the function itself where PyTorch is too old for operators."""
    if not hasattr(torch.library, "custom_op"):
        return run
    made = torch.library.custom_op(f"libhybridep::{name}", run, mutates_args=(), schema=schema)
    made.register_fake(fake)
    return made


def _differentiable(made: Any, keep: Callable[..., None], derive: Callable[..., Any]) -> Any:
    if hasattr(made, "register_autograd"):
        made.register_autograd(derive, setup_context=keep)
        return made

    def forward(ctx: Any, *inputs: Any) -> Any:
        output = made(*inputs)
        keep(ctx, inputs, output)
        return output

    methods = {"forward": staticmethod(forward), "backward": staticmethod(derive)}
    differentiable: Any = type("Differentiable", (torch.autograd.Function,), methods)
    return differentiable.apply


_dispatch_backward = _operator(
    "dispatch_backward",
    "(Tensor grad_rows, Tensor? grad_row_weights, Tensor serial, int routing, int layout, "
    "SymInt num_tokens, SymInt top_k) -> (Tensor, Tensor)",
    _run_dispatch_backward,
    _fake_dispatch_backward,
)
_combine_backward = _operator(
    "combine_backward",
    "(Tensor grad_out, Tensor? y, Tensor? row_weights, Tensor serial, int routing, int layout, "
    "SymInt[] shape) -> (Tensor, Tensor)",
    _run_combine_backward,
    _fake_combine_backward,
)
_dispatch = _differentiable(
    _operator(
        "dispatch",
        "(Tensor x, Tensor? weights, Tensor? indices, int routing, SymInt capacity, int layout, "
        "int top_k) -> (Tensor, Tensor, Tensor)",
        _run_dispatch,
        _fake_dispatch,
    ),
    _keep_of_dispatch,
    _derive_dispatch,
)
_combine = _differentiable(
    _operator(
        "combine",
        "(Tensor y, Tensor? row_weights, int routing, int layout, SymInt num_tokens) "
        "-> (Tensor, Tensor)",
        _run_combine,
        _fake_combine,
    ),
    _keep_of_combine,
    _derive_combine,
)
