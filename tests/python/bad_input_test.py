# SPDX-License-Identifier: Apache-2.0
"""Each refused call raises an exception that names the argument and the values, before anything is
enqueued. The objects work afterwards.
"""

import contextlib
import ctypes
import unittest

import hybridep
from hybridep import DataType, InvalidArgumentError, Layout
from ranks import config, run_ranks

FLOAT32 = {"type": DataType.FLOAT32, "partial_type": DataType.FLOAT32}


def floats(*shape, aligned=True):
    """Plain memory of FP32 numbers of a shape."""
    count = 1
    for size in shape:
        count *= size
    memory = memoryview(bytearray(4 * count + 16))
    return memory[0 if aligned else 4 :][: 4 * count].cast("f", shape)


def numbers(*shape):
    return floats(*shape).cast("B").cast("i", shape)


class BadInput(unittest.TestCase):
    """One rank, T = 3, K = 2, H = 8, E = 4, EL = 4."""

    @contextlib.contextmanager
    def refused(self, *words, kind=InvalidArgumentError):
        with self.assertRaises(kind) as caught:
            yield
        for word in words:
            self.assertIn(word, str(caught.exception))

    def with_routing(self, body, **fields):
        def run(communicator):
            with hybridep.Routing(communicator) as routing:
                routing.update(numbers(3, 2))
                body(routing)
                rows = routing.dispatch(floats(3, 8)).rows
                self.assertEqual(rows.shape, (6, 8))
                routing.combine(rows)

        run_ranks(1, run, **{**FLOAT32, **fields})

    def test_shapes(self):
        def body(routing):
            with self.refused("indices has shape [6], but must have [any, any]"):
                routing.update(numbers(6))
            with self.refused("x has shape [2, 8], but must have [3, 8]"):
                routing.dispatch(floats(2, 8))
            with self.refused("hidden 12", "rows of 48 bytes", "rows of 32"):
                routing.dispatch(floats(3, 12))
            with self.refused("hidden", "3"):
                routing.dispatch(floats(3, 3))
            with self.refused("weights has shape [3, 1], but must have [3, 2]"):
                routing.dispatch(floats(3, 8), weights=floats(3, 1))
            with self.refused("dense_weights has shape [3, 2], but must have [3, 4]"):
                routing.dispatch(floats(3, 8), dense_weights=floats(3, 2))
            with self.refused("weights", "dense_weights"):
                routing.dispatch(floats(3, 8), weights=floats(3, 2), dense_weights=floats(3, 4))
            with self.refused("rows has shape [5, 8], but must have [6, 8]"):
                routing.dispatch(floats(3, 8), rows=floats(5, 8), capacity=6)
            with self.refused("row_weights has shape [5], but must have [6]"):
                routing.dispatch(floats(3, 8), row_weights=floats(5), capacity=6)
            with self.refused("y has shape [8], but must have"):
                routing.combine(floats(8))
            with self.refused("out has shape [2, 8], but must have [3, 8]"):
                routing.combine(floats(6, 8), out=floats(2, 8))
            with self.refused("row_weights has shape [3], but must have [6]"):
                routing.combine(floats(6, 8), row_weights=floats(3))
            with self.refused("gradients has shape [3, 1], but must have [3, 2]"):
                routing.combine(floats(6, 8), row_gradients=floats(6), gradients=floats(3, 1))

        self.with_routing(body)

    def test_types(self):
        def body(routing):
            with self.refused("indices has elements of type float32"):
                routing.update(floats(3, 2))
            with self.refused("x has elements of type int32"):
                routing.dispatch(numbers(3, 8))
            with self.refused("x has elements of type float32", "BFLOAT16"):
                routing.dispatch(floats(3, 8), dtype=DataType.BFLOAT16)
            with self.refused("weights has elements of type int32, but must have float32"):
                routing.dispatch(floats(3, 8), weights=numbers(3, 2))
            with self.refused("rows has elements of type float64"):
                doubles = floats(6, 16).cast("B").cast("d", (6, 8))
                routing.dispatch(floats(3, 8), rows=doubles)
            with self.refused("row_tokens has elements of type float32, but must have int32"):
                routing.dispatch(floats(3, 8), row_tokens=floats(6), capacity=6)
            with self.refused("hepTypeBytes"):
                routing.combine(memoryview(bytearray(48)).cast("B", (6, 8)))

        self.with_routing(body)

    def test_memory(self):
        def body(routing):
            with self.refused("x is strided"):
                routing.dispatch(floats(6, 8)[::2])
            with self.refused("x lies at", "aligned to 16 bytes"):
                routing.dispatch(floats(3, 8, aligned=False))
            with self.refused("rows is read-only"):
                routing.dispatch(floats(3, 8), rows=floats(6, 8).toreadonly())
            with self.refused("out is read-only"):
                routing.combine(floats(6, 8), out=floats(3, 8).toreadonly())
            same = floats(6, 8)
            with self.refused("row_sources and row_tokens overlap"):
                both = numbers(6)
                routing.dispatch(floats(3, 8), row_sources=both, row_tokens=both, capacity=6)
            with self.refused("x", "rows", "overlap"):
                routing.dispatch(same[:3], rows=same)
            with self.refused("y", "out", "overlap"):
                routing.combine(same, out=same[3:])

        self.with_routing(body)

    def test_inputs_may_be_one_object(self):
        def body(routing):
            same = floats(6)
            routing.combine(floats(6, 8), row_weights=same, row_gradients=same)

        self.with_routing(body)

    def test_what_is_not_optional(self):
        def body(routing):
            for call in (
                lambda: routing.update(None),
                lambda: routing.dispatch(None),
                lambda: routing.combine(None),
                lambda: hybridep.Routing(None),
            ):
                with self.refused(kind=TypeError):
                    call()

        self.with_routing(body)

    def test_streams(self):
        def body(routing):
            for stream in (0, 7, object()):
                with self.refused("stream is", "host backend"):
                    routing.dispatch(floats(3, 8), stream=stream)
                with self.refused("stream is", "host backend"):
                    routing.update(numbers(3, 2), stream=stream)

        self.with_routing(body)

    def test_numbers(self):
        def body(routing):
            with self.refused("capacity is -1"):
                routing.dispatch(floats(3, 8), capacity=-1)
            with self.refused("capacity is 1.5", kind=TypeError):
                routing.dispatch(floats(3, 8), capacity=1.5)
            with self.refused("capacity is None"):
                routing.dispatch(floats(3, 8), indices=numbers(3, 2))
            with self.refused("top_k is 1, but indices has 2 columns"):
                routing.update(numbers(3, 2), top_k=1)
            with self.refused("num_tokens", "17", "max_tokens, 16"):
                routing.update(numbers(17, 2))
            with self.refused("map of 3 experts, but there are 4"):
                routing.update(memoryview(bytearray(9)).cast("B", (3, 3)))
            with self.refused("lane is 4"):
                hybridep.Routing(routing.communicator, lane=4)
            for alignment in (-1, 4097):
                with self.refused("alignment", str(alignment)):
                    hybridep.Routing(routing.communicator, alignment=alignment)
            with self.refused("mode"):
                hybridep.Routing(routing.communicator, mode=hybridep.Mode.LOW_LATENCY)

        self.with_routing(body)

    def test_what_another_layout_has(self):
        def body(routing):
            for name in ("row_experts", "gather"):
                with self.refused(f"{name} is an output of Layout.FLAT"):
                    routing.dispatch(floats(3, 8), **{name: True})
            with self.refused(
                "group_sizes is an output of Layout.EXPERT_MAJOR, not of Layout.FLAT"
            ):
                routing.dispatch(floats(3, 8), layout=Layout.FLAT, group_sizes=True)
            with self.refused("row_scales is an output of tokens with scales"):
                routing.dispatch(floats(3, 8), row_scales=True)
            with self.refused("gather has shape [2, 3]"):
                routing.dispatch(floats(3, 8), layout=Layout.FLAT, gather=numbers(2, 3))

        self.with_routing(body)

    def test_scales_of_another_width(self):
        def body(routing):
            with self.refused("scales has 8 bytes a token, but scale_bytes of the config is 16"):
                routing.dispatch(floats(3, 8), scales=floats(3, 2))

        self.with_routing(body, scale_bytes=16)

    def test_configs(self):
        with self.refused("hidden"):
            config(hidden=3).check(1)
        with self.refused("config.hidden is 'wide'", kind=TypeError):
            config(hidden="wide").check(1)
        with self.refused("config.hidden is 1099511627776", kind=InvalidArgumentError):
            config(hidden=1 << 40).check(1)
        with self.refused("num_ranks"):
            config().workspace(100)
        with self.refused("identity has 5 bytes"):
            hybridep.Communicator.from_unique_id(config(), 1, 0, b"short")
        with self.refused("devices has 1 of 2 ranks"):
            hybridep.Communicator.from_devices(config(), 2, [0])


class Streams(unittest.TestCase):
    """The handle of a stream, which needs no GPU to be read."""

    def handle(self, stream):
        from hybridep import _arrays, _streams

        return _streams.handle_of(stream, 1, _arrays.BUFFER)

    def test_handles_are_found(self):
        class Protocol:
            def __cuda_stream__(self):
                return (0, 48)

        class Property:
            __cuda_stream__ = (0, 64)

        class Torch:
            cuda_stream, device_index = 80, 1

        class Cupy:
            ptr, device_id = 96, -1

        self.assertEqual(self.handle(32), 32)
        self.assertEqual(self.handle(None), 0)
        for stream, handle in ((Protocol(), 48), (Property(), 64), (Torch(), 80), (Cupy(), 96)):
            self.assertEqual(self.handle(stream), handle)

    def test_streams_of_another_device_or_version_are_refused(self):
        class Torch:
            cuda_stream, device_index = 80, 0

        class Newer:
            __cuda_stream__ = (1, 64)

        with self.assertRaisesRegex(InvalidArgumentError, "stream is of device 0.*of device 1"):
            self.handle(Torch())
        with self.assertRaisesRegex(InvalidArgumentError, "version 1 of __cuda_stream__"):
            self.handle(Newer())
        for thing in (True, "stream", 1.5, ctypes.c_void_p(3)):
            with self.assertRaises(TypeError):
                self.handle(thing)
