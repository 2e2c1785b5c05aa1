# SPDX-License-Identifier: Apache-2.0
"""Tensors of PyTorch on GPUs: one rank, a thread of its own, on each of at most four."""

import unittest

import hybridep
from hybridep import Backend, DataType
from ranks import config, run_threads

try:
    import torch
except ImportError:
    raise unittest.SkipTest("PyTorch is not installed") from None
if not torch.cuda.is_available():
    raise unittest.SkipTest("PyTorch finds no GPU")

import hybridep.torch
from layer import HIDDEN, Batch, plain_layer, rows_of_experts

ALIGNMENT = 4
NUM_RANKS = {1: 1, 2: 2, 3: 2}.get(torch.cuda.device_count(), 4)  # divides the experts
FLOAT32 = {"type": DataType.FLOAT32, "partial_type": DataType.FLOAT32, "hidden": HIDDEN}
A_WHILE = 500_000_000  # cycles: a quarter of a second


def run_ranks(num_ranks, body, **fields):
    """Runs body(communicator, device) with a device and a current stream for each rank."""
    identity = hybridep.unique_id()
    shape = config(**{**FLOAT32, "timeout_ms": 10000, **fields})
    shape.backend = Backend.CUDA

    def run(rank):
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
        with torch.cuda.stream(torch.cuda.Stream()):
            made = hybridep.Communicator.from_unique_id(shape, num_ranks, rank, identity)
            with made as communicator:
                body(communicator, device)
                torch.cuda.synchronize()

    run_threads(num_ranks, run)


def run_rank(body, **fields):
    run_ranks(1, body, **fields)


class Layer(unittest.TestCase):
    def test_values_and_gradients_are_those_of_plain_pytorch(self):
        def body(communicator, device):
            self.assertEqual(communicator.device, device.index)
            batch = Batch(communicator.rank, tokens=9 - communicator.rank).to(device)
            x, weights = batch.x.clone().requires_grad_(), batch.weights.clone().requires_grad_()
            plain_x, plain_weights = (t.detach().clone().requires_grad_() for t in (x, weights))
            expected = plain_layer(batch, plain_x, plain_weights)
            (expected * batch.target).sum().backward()
            with hybridep.Routing(communicator, alignment=ALIGNMENT) as routing:
                routing.update(batch.ids)
                rows, row_weights = hybridep.torch.dispatch(routing, x, weights)
                y = rows_of_experts(rows, routing.counts(), ALIGNMENT, communicator.rank)
                out = hybridep.torch.combine(routing, y, row_weights)
                (out * batch.target).sum().backward()
                torch.testing.assert_close(out, expected)
                torch.testing.assert_close(x.grad, plain_x.grad)
                torch.testing.assert_close(weights.grad, plain_weights.grad * (batch.ids >= 0))

        run_ranks(NUM_RANKS, body)


class Streams(unittest.TestCase):
    def test_calls_follow_the_current_stream_and_do_not_wait(self):
        """What a call reads is written on the stream, after a kernel that is still running when the
        calls have returned.
        """

        def body(communicator, device):
            batch = Batch(0, tokens=9).to(device)
            x, ids = torch.zeros_like(batch.x), torch.zeros_like(batch.ids)
            with hybridep.Routing(communicator) as routing:
                routing.update(ids)  # starts CUDA's lazy loading of kernels
                routing.combine(routing.dispatch(x, capacity=64).rows)
                torch.cuda.synchronize()
                busy = torch.cuda.Event()
                torch.cuda._sleep(A_WHILE)
                busy.record()
                x.copy_(batch.x)
                ids.copy_(batch.ids)
                routing.update(ids)
                rows = routing.dispatch(x, capacity=64).rows
                out = routing.combine(rows).out
                self.assertFalse(busy.query())
                times = (batch.ids >= 0).sum(1, keepdim=True)
                self.assertTrue(torch.equal(out, batch.x * times))

        run_rank(body)

    def test_streams_are_taken_in_every_form(self):
        def body(communicator, device):
            batch = Batch(0, tokens=9).to(device)
            torch.cuda.synchronize()
            stream = torch.cuda.Stream()

            class Protocol:
                def __cuda_stream__(self):
                    return (0, stream.cuda_stream)

            with hybridep.Routing(communicator) as routing:
                for given in (stream, stream.cuda_stream, Protocol()):
                    torch.cuda.synchronize()
                    routing.update(batch.ids, stream=given)
                    rows = torch.empty(64, HIDDEN, device=device)
                    out = torch.empty_like(batch.x)
                    routing.dispatch(batch.x, rows=rows, stream=given)
                    routing.combine(rows, out=out, stream=given)
                    stream.synchronize()
                    times = (batch.ids >= 0).sum(1, keepdim=True)
                    self.assertTrue(torch.equal(out, batch.x * times))

        run_rank(body)


class Graphs(unittest.TestCase):
    def test_replays_take_what_the_tensors_hold(self):
        def body(communicator, device):
            batch = Batch(0, tokens=9).to(device)
            x, ids = batch.x.clone(), batch.ids.clone()
            with hybridep.Routing(communicator) as routing:

                def layer():
                    routing.update(ids)
                    return routing.combine(routing.dispatch(x, capacity=64).rows).out

                layer()
                torch.cuda.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    out = layer()
                for seed in range(1, 4):
                    other = Batch(seed, tokens=9).to(device)
                    x.copy_(other.x)
                    ids.copy_(other.ids)
                    graph.replay()
                    times = (other.ids >= 0).sum(1, keepdim=True)
                    self.assertTrue(torch.equal(out, other.x * times))
                    self.assertTrue(torch.equal(layer(), out))
                del graph

        run_rank(body)

    def test_a_graph_outlives_the_routing_that_it_captured(self):
        """The routing is created during the capture, in memory that belongs to the graph."""

        def body(communicator, device):
            batch = Batch(0, tokens=9).to(device)
            x, ids = batch.x.clone(), batch.ids.clone()
            with hybridep.Routing(communicator) as routing:
                routing.update(ids)  # starts CUDA's lazy loading of kernels
                routing.combine(routing.dispatch(x, capacity=64).rows)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                num_bytes = communicator.routing_bytes()
                memory = torch.empty(num_bytes, dtype=torch.uint8, device=device)
                routing = hybridep.Routing(communicator, memory=memory)
                routing.update(ids)
                out = routing.combine(routing.dispatch(x, capacity=64).rows).out
            del routing, memory
            for seed in range(1, 4):
                other = Batch(seed, tokens=9).to(device)
                x.copy_(other.x)
                ids.copy_(other.ids)
                graph.replay()
                times = (other.ids >= 0).sum(1, keepdim=True)
                self.assertTrue(torch.equal(out, other.x * times))
            torch.cuda.synchronize()
            del graph

        run_rank(body)


class Memory(unittest.TestCase):
    def test_memory_of_the_library_becomes_a_tensor(self):
        def body(communicator, device):
            memory = communicator.allocate((9, HIDDEN), DataType.FLOAT32)
            batch = Batch(0, tokens=9).to(device)
            for tensor in (torch.from_dlpack(memory), torch.as_tensor(memory, device=device)):
                self.assertEqual(tensor.data_ptr(), memory.pointer)
                tensor.copy_(batch.x)
                with hybridep.Routing(communicator) as routing:
                    routing.update(batch.ids)
                    out = routing.combine(routing.dispatch(tensor).rows).out
                    counts = torch.from_dlpack(routing.view().tokens_per_expert)
                    self.assertEqual(int(counts.sum()), int((batch.ids >= 0).sum()))
                    times = (batch.ids >= 0).sum(1, keepdim=True)
                    self.assertTrue(torch.equal(out, batch.x * times))

        run_rank(body, heap_bytes=1 << 20)

    def test_registered_tensors_are_dispatched(self):
        def body(communicator, device):
            batch = Batch(communicator.rank, tokens=9).to(device)
            communicator.register(batch.x)
            with hybridep.Routing(communicator) as routing:
                routing.update(batch.ids)
                out = routing.combine(routing.dispatch(batch.x).rows).out
                times = (batch.ids >= 0).sum(1, keepdim=True)
                self.assertTrue(torch.equal(out, batch.x * times))
                torch.cuda.synchronize()
            communicator.deregister(batch.x)

        run_ranks(NUM_RANKS, body)

    def test_tensors_elsewhere_are_refused(self):
        def body(communicator, device):
            batch = Batch(0, tokens=9)
            with hybridep.Routing(communicator) as routing:
                with self.assertRaisesRegex(ValueError, "indices lies on the host"):
                    routing.update(batch.ids)
                routing.update(batch.ids.to(device))
                with self.assertRaisesRegex(ValueError, "x lies on the host, .* of GPU 0"):
                    routing.dispatch(batch.x)
                if torch.cuda.device_count() > 1:
                    with self.assertRaisesRegex(ValueError, "x lies on GPU 1, .* of GPU 0"):
                        routing.dispatch(batch.x.to("cuda:1"))
                    with self.assertRaisesRegex(ValueError, "stream is of device 1"):
                        routing.dispatch(batch.x.to(device), stream=torch.cuda.Stream("cuda:1"))
                routing.combine(routing.dispatch(batch.x.to(device)).rows)

        run_rank(body)


@unittest.skipUnless(hasattr(torch, "float8_e4m3fn"), "PyTorch has no FP8")
class Formats(unittest.TestCase):
    def test_bf16_is_quantised_to_tensors_of_fp8(self):
        def body(communicator, device):
            x = torch.full((4, HIDDEN), 2.0, dtype=torch.bfloat16, device=device)
            x[:, 0] = 448
            ids = torch.zeros(4, 1, dtype=torch.int64, device=device)
            with hybridep.Routing(communicator) as routing:
                routing.update(ids)
                result = routing.dispatch(x, quantize=hybridep.Quantization.FLOAT32)
                self.assertEqual(result.rows.dtype, torch.float8_e4m3fn)
                self.assertTrue(torch.equal(result.rows.to(torch.bfloat16), x))
                self.assertTrue(torch.equal(result.row_scales, torch.ones(4, 1, device=device)))

        run_rank(body, type=DataType.BFLOAT16, partial_type=DataType.BFLOAT16, scale_bytes=4)


@unittest.skipUnless(hasattr(torch.library, "custom_op"), "PyTorch is older than 2.4")
class Compiled(unittest.TestCase):
    def test_a_compiled_layer_gives_values_and_gradients(self):
        def layer(routing, x, weights, ids):
            rows, row_weights = hybridep.torch.dispatch(
                routing, x, weights, capacity=64, indices=ids
            )
            y = torch.tanh(rows)
            return hybridep.torch.combine(routing, y, row_weights, num_tokens=x.shape[0])

        def body(communicator, device):
            batch = Batch(0, tokens=9).to(device)
            x, weights = batch.x.clone().requires_grad_(), batch.weights.requires_grad_()
            compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
            with hybridep.Routing(communicator) as routing:
                out = compiled(routing, x, weights, batch.ids)
                factors = (weights * (batch.ids >= 0)).sum(1, keepdim=True)
                torch.testing.assert_close(out, torch.tanh(x) * factors)
                out.sum().backward()
                self.assertEqual(x.grad.shape, x.shape)

        run_rank(body)
