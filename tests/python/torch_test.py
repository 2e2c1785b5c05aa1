# SPDX-License-Identifier: Apache-2.0
"""Tensors of PyTorch on the CPU, and the differentiable functions, against plain PyTorch."""

import unittest

import hybridep
from hybridep import DataType, Layout, WeightMode
from ranks import run_ranks

try:
    import torch
except ImportError:
    raise unittest.SkipTest("PyTorch is not installed") from None

import hybridep.torch
from layer import HIDDEN, NUM_EXPERTS, Batch, expert, plain_layer, rows_of_experts

FLOAT32 = {"type": DataType.FLOAT32, "partial_type": DataType.FLOAT32, "hidden": HIDDEN}


class Tensors(unittest.TestCase):
    def test_a_layer_of_each_type_is_exact_in_small_numbers(self):
        for dtype, name in (
            (torch.bfloat16, DataType.BFLOAT16),
            (torch.float16, DataType.FLOAT16),
            (torch.float32, DataType.FLOAT32),
        ):

            def body(communicator):
                batch = Batch(communicator.rank, dtype)
                with hybridep.Routing(communicator) as routing:
                    for ids in (batch.ids, batch.ids.int()):
                        routing.update(ids)
                        rows = routing.dispatch(batch.x).rows
                        self.assertEqual((rows.dtype, rows.shape[1]), (dtype, HIDDEN))
                        out = routing.combine(rows).out
                        times = (batch.ids >= 0).sum(1, keepdim=True)
                        self.assertTrue(torch.equal(out, batch.x * times.to(dtype)))

            run_ranks(2, body, type=name, hidden=HIDDEN)

    def test_a_map_of_bools_is_taken(self):
        def body(communicator):
            batch = Batch(communicator.rank)
            chosen = torch.zeros(len(batch.x), NUM_EXPERTS, dtype=torch.bool)
            chosen.scatter_(1, batch.ids.clamp(min=0), batch.ids >= 0)
            with hybridep.Routing(communicator) as routing:
                routing.update(chosen)
                out = routing.combine(routing.dispatch(batch.x).rows).out
                self.assertTrue(torch.equal(out, batch.x * chosen.sum(1, keepdim=True)))

        run_ranks(2, body, **FLOAT32)

    def test_outputs_may_be_given(self):
        def body(communicator):
            batch = Batch(communicator.rank)
            with hybridep.Routing(communicator) as routing:
                routing.update(batch.ids)
                rows = torch.full((routing.counts().num_padded_rows, HIDDEN), 77.0)
                weights = torch.empty(len(rows))
                result = routing.dispatch(
                    batch.x, rows=rows, weights=batch.weights, row_weights=weights
                )
                self.assertIs(result.rows, rows)
                self.assertIs(result.row_weights, weights)
                out = torch.empty_like(batch.x)
                routing.combine(rows, weight_mode=WeightMode.DISPATCHED, out=out)
                factors = (batch.weights * (batch.ids >= 0)).sum(1, keepdim=True)
                torch.testing.assert_close(out, batch.x * factors)

        run_ranks(2, body, **FLOAT32)

    def test_a_rank_without_tokens_takes_part(self):
        def body(communicator):
            batch = Batch(communicator.rank, tokens=0 if communicator.rank == 0 else 7)
            with hybridep.Routing(communicator) as routing:
                routing.update(batch.ids)
                out = routing.combine(routing.dispatch(batch.x).rows).out
                self.assertEqual(out.shape, batch.x.shape)
                self.assertTrue(torch.equal(out, batch.x * (batch.ids >= 0).sum(1, keepdim=True)))

        run_ranks(2, body, **FLOAT32)

    def test_tensors_that_do_not_fit_are_refused(self):
        def body(communicator):
            batch = Batch(communicator.rank, tokens=4)
            with hybridep.Routing(communicator) as routing:
                routing.update(batch.ids)
                for x, words in (
                    (batch.x.t().contiguous().t(), "x is strided"),
                    (batch.x.double(), "x has elements of type float64"),
                    (batch.x.to_sparse(), "x is no array"),
                    (torch.empty(4, HIDDEN, device="meta"), "x is no array"),
                ):
                    with self.assertRaisesRegex((ValueError, TypeError), words):
                        routing.dispatch(x)
                routing.combine(routing.dispatch(batch.x).rows)

        run_ranks(1, body, **FLOAT32)

    def test_memory_of_the_library_becomes_a_tensor(self):
        def body(communicator):
            memory = communicator.allocate((2, HIDDEN), DataType.FLOAT32)
            tensor = torch.from_dlpack(memory)
            tensor.fill_(3)
            self.assertEqual(tensor.data_ptr(), memory.pointer)
            self.assertEqual(tuple(tensor.shape), (2, HIDDEN))
            with hybridep.Routing(communicator) as routing:
                routing.update(torch.zeros(2, 1, dtype=torch.int64))
                rows = routing.dispatch(tensor).rows
                self.assertTrue(torch.equal(rows, tensor))
                counts = torch.from_dlpack(routing.view().tokens_per_expert)
                self.assertEqual(counts.tolist(), [2, 0, 0, 0])

        run_ranks(1, body, heap_bytes=4096, **FLOAT32)


class Gradients(unittest.TestCase):
    """A layer of two ranks against the same layer on one."""

    def check(self, layer, **fields):
        """layer(routing, batch, x, weights) -> out"""

        def body(communicator):
            batch = Batch(communicator.rank)
            x, weights = batch.x.clone().requires_grad_(), batch.weights.clone().requires_grad_()
            plain_x, plain_weights = (t.detach().clone().requires_grad_() for t in (x, weights))
            expected = plain_layer(batch, plain_x, plain_weights)
            (expected * batch.target).sum().backward()
            with hybridep.Routing(communicator, alignment=4) as routing:
                out = layer(routing, batch, x, weights)
                torch.testing.assert_close(out, expected)
                (out * batch.target).sum().backward()
            torch.testing.assert_close(x.grad, plain_x.grad)
            torch.testing.assert_close(weights.grad, plain_weights.grad * (batch.ids >= 0))

        run_ranks(2, body, **{**FLOAT32, **fields})

    def test_expert_major_rows(self):
        def layer(routing, batch, x, weights):
            routing.update(batch.ids)
            rows, row_weights = hybridep.torch.dispatch(routing, x, weights)
            y = rows_of_experts(rows, routing.counts(), 4, routing.communicator.rank)
            return hybridep.torch.combine(routing, y, row_weights)

        self.check(layer)

    def test_weights_are_applied_by_the_caller(self):
        def layer(routing, batch, x, weights):
            routing.update(batch.ids)
            rows, row_weights = hybridep.torch.dispatch(routing, x, weights)
            y = rows_of_experts(rows, routing.counts(), 4, routing.communicator.rank)
            return hybridep.torch.combine(routing, y * row_weights.unsqueeze(1))

        self.check(layer)

    def test_a_capacity_and_an_update_in_the_call(self):
        def layer(routing, batch, x, weights):
            rows, row_weights = hybridep.torch.dispatch(
                routing, x, weights, capacity=60, indices=batch.ids
            )
            self.assertEqual(len(rows), 60)
            y = rows_of_experts(rows, routing.counts(), 4, routing.communicator.rank)
            self.assertFalse(y[routing.counts().num_padded_rows :].any())
            return hybridep.torch.combine(routing, y, row_weights)

        self.check(layer)

    def test_padded_rows(self):
        def layer(routing, batch, x, weights):
            routing.update(batch.ids)
            layout = Layout.EXPERT_PADDED
            rows, row_weights = hybridep.torch.dispatch(routing, x, weights, layout=layout)
            first = 2 * routing.communicator.rank
            y = torch.stack([expert(first + local, block) for local, block in enumerate(rows)])
            return hybridep.torch.combine(routing, y, row_weights, layout=layout)

        self.check(layer)

    def test_flat_rows(self):
        def layer(routing, batch, x, weights):
            routing.update(batch.ids)
            experts = routing.dispatch(x.detach(), layout=Layout.FLAT, row_experts=True).row_experts
            rows, row_weights = hybridep.torch.dispatch(routing, x, weights, layout=Layout.FLAT)
            y = torch.zeros_like(rows)
            for local in range(2):
                number = 2 * routing.communicator.rank + local
                factor = torch.where(experts == local, row_weights, torch.zeros(())).sum(1)
                y = y + expert(number, rows) * factor.unsqueeze(1)
            return hybridep.torch.combine(routing, y, layout=Layout.FLAT)

        self.check(layer)

    def test_bf16_gradients_have_the_types_of_their_inputs(self):
        def body(communicator):
            batch = Batch(communicator.rank, torch.bfloat16)
            x, weights = batch.x.requires_grad_(), batch.weights.requires_grad_()
            with hybridep.Routing(communicator) as routing:
                routing.update(batch.ids)
                rows, row_weights = hybridep.torch.dispatch(routing, x, weights)
                hybridep.torch.combine(routing, rows, row_weights).float().sum().backward()
            self.assertEqual((x.grad.dtype, weights.grad.dtype), (torch.bfloat16, torch.float32))
            expected = (batch.weights.detach() * (batch.ids >= 0)).sum(1, keepdim=True)
            torch.testing.assert_close(
                x.grad.float(), expected.expand_as(x.grad), rtol=0.02, atol=0.01
            )

        run_ranks(2, body, hidden=HIDDEN)

    def test_a_routing_that_was_updated_since_is_refused(self):
        def body(communicator):
            batch = Batch(communicator.rank)
            x = batch.x.requires_grad_()
            with hybridep.Routing(communicator) as routing:
                routing.update(batch.ids)
                rows, row_weights = hybridep.torch.dispatch(routing, x)
                self.assertIsNone(row_weights)
                out = hybridep.torch.combine(routing, rows)
                routing.update(batch.ids)
                with self.assertRaisesRegex(RuntimeError, "updated 1 times since the forward"):
                    out.sum().backward()

        run_ranks(1, body, **FLOAT32)

    def test_batches_in_flight_have_a_routing_each(self):
        def body(communicator):
            batches = [Batch(communicator.rank, tokens=count) for count in (3, 8, 5)]
            routings = [hybridep.Routing(communicator) for _ in batches]
            outs = []
            for routing, batch in zip(routings, batches):
                routing.update(batch.ids)
                rows, _ = hybridep.torch.dispatch(routing, batch.x.requires_grad_())
                outs.append(hybridep.torch.combine(routing, rows))
            for out, batch in reversed(list(zip(outs, batches))):
                out.sum().backward()
                times = (batch.ids >= 0).sum(1, keepdim=True)
                self.assertTrue(torch.equal(batch.x.grad, times.float().expand_as(batch.x)))

        run_ranks(2, body, **FLOAT32)


class Namespace(unittest.TestCase):
    def test_the_name_hybridep_is_left_to_others(self):
        library = torch.library.Library("hybridep", "DEF")
        library.define("something(Tensor x) -> Tensor")


@unittest.skipUnless(hasattr(torch.library, "custom_op"), "PyTorch is older than 2.4")
class Operators(unittest.TestCase):
    def layer(self, routing, x, weights, ids):
        rows, row_weights = hybridep.torch.dispatch(routing, x, weights, capacity=128, indices=ids)
        y = torch.tanh(rows)
        return hybridep.torch.combine(routing, y, row_weights, num_tokens=x.shape[0])

    def plain(self, x, weights, ids):
        return torch.tanh(x) * (weights * (ids >= 0)).sum(1, keepdim=True)

    def test_they_are_registered_under_the_librarys_name(self):
        for name in ("dispatch", "dispatch_backward", "combine", "combine_backward"):
            self.assertTrue(hasattr(torch.ops.libhybridep, name))

    def test_a_compiled_layer_gives_values_and_gradients(self):
        def body(communicator):
            compiled = torch.compile(self.layer, fullgraph=True, backend="aot_eager")
            with hybridep.Routing(communicator) as routing:
                for count in (5, 5, 9):
                    batch = Batch(communicator.rank, tokens=count)
                    x, weights = batch.x.clone().requires_grad_(), batch.weights.requires_grad_()
                    plain_x, plain_weights = (
                        t.detach().clone().requires_grad_() for t in (x, weights)
                    )
                    out = compiled(routing, x, weights, batch.ids)
                    expected = self.plain(plain_x, plain_weights, batch.ids)
                    torch.testing.assert_close(out, expected)
                    (out * batch.target).sum().backward()
                    (expected * batch.target).sum().backward()
                    torch.testing.assert_close(x.grad, plain_x.grad)
                    torch.testing.assert_close(weights.grad, plain_weights.grad)

        run_ranks(1, body, **FLOAT32)

    def test_compiled_code_needs_a_capacity(self):
        def layer(routing, x):
            return hybridep.torch.dispatch(routing, x)[0]

        def body(communicator):
            batch = Batch(communicator.rank)
            with hybridep.Routing(communicator) as routing:
                routing.update(batch.ids)
                with self.assertRaisesRegex(Exception, "capacity is None"):
                    torch.compile(layer, fullgraph=True, backend="aot_eager")(routing, batch.x)

        run_ranks(1, body, **FLOAT32)

    def test_the_operators_pass_pytorchs_own_checks(self):
        def body(communicator):
            batch = Batch(communicator.rank)
            x, weights = batch.x.requires_grad_(), batch.weights.requires_grad_()
            with hybridep.Routing(communicator) as routing:
                routing.update(batch.ids)
                number = routing._number
                tests = ("test_schema", "test_faketensor", "test_autograd_registration")
                torch.library.opcheck(
                    hybridep.torch._dispatch, (x, weights, None, number, 64, 1, 0), test_utils=tests
                )
                rows = torch.randn(64, HIDDEN, requires_grad=True)
                torch.library.opcheck(
                    hybridep.torch._combine, (rows, None, number, 1, len(x)), test_utils=tests
                )

        run_ranks(1, body, **FLOAT32)
