# SPDX-License-Identifier: Apache-2.0
"""Which memory the package sees in an array, and which arrays it makes."""

import array
import ctypes
import gc
import unittest

import hybridep
from hybridep import DataType, _arrays, _dlpack
from ranks import run_ranks

try:
    import numpy as np
except ImportError:
    np = None
needs_numpy = unittest.skipIf(np is None, "NumPy is not installed")


class Producer:
    """An object with nothing but DLPack, of memory that `owner` keeps."""

    def __init__(self, owner, **fields):
        address = ctypes.addressof(owner)
        self.memory = hybridep.Memory(address, fields.pop("shape"), "float32", -1, False, owner)
        self.knows_versions = fields.pop("knows_versions", True)
        self.memory.read_only = fields.pop("read_only", False)

    def __dlpack_device__(self):
        return self.memory.__dlpack_device__()

    def __dlpack__(self, **arguments):
        if not self.knows_versions and arguments:
            raise TypeError("unexpected keywords")
        return self.memory.__dlpack__(**arguments)


class Buffers(unittest.TestCase):
    """Objects with the buffer protocol."""

    def test_types_and_shapes_are_those_of_the_view(self):
        for given, type_name, shape in (
            (bytearray(8), "uint8", (8,)),
            (array.array("f", [1, 2, 3]), "float32", (3,)),
            (array.array("q", [1, 2]), "int64", (2,)),
            (array.array("i", [1, 2]), "int32", (2,)),
            (memoryview(bytearray(24)).cast("H", (3, 4)), "uint16", (3, 4)),
            ((ctypes.c_float * 2 * 3)(), "float32", (3, 2)),
        ):
            seen = _arrays.view(given, "x")
            self.assertEqual((seen.type, seen.shape), (type_name, shape))
            self.assertTrue(seen.writable and seen.contiguous)

    def test_the_address_is_that_of_the_memory(self):
        memory = (ctypes.c_float * 4)()
        self.assertEqual(_arrays.view(memory, "x").pointer, ctypes.addressof(memory))

    def test_bytes_are_read_only(self):
        self.assertFalse(_arrays.view(b"1234", "x").writable)

    def test_steps_are_seen(self):
        self.assertFalse(_arrays.view(memoryview(bytearray(8))[::2], "x").contiguous)

    def test_what_is_no_array_is_refused_by_name(self):
        for thing in (None, 3, [1, 2], "text"):
            with self.assertRaisesRegex(TypeError, "^x is no array"):
                _arrays.view(thing, "x")

    def test_a_layer_works_without_any_framework(self):
        """Two tokens of four FP32 numbers, each to one of two experts."""

        def body(communicator):
            x = array.array("f", [1, 2, 3, 4, 5, 6, 7, 8])
            ids = memoryview(array.array("i", [1, 0])).cast("B").cast("i", (2, 1))
            with hybridep.Routing(communicator) as routing:
                routing.update(ids)
                rows = routing.dispatch(memoryview(x).cast("B").cast("f", (2, 4))).rows
                self.assertEqual(rows.tolist(), [[5, 6, 7, 8], [1, 2, 3, 4]])
                out = routing.combine(rows).out
                self.assertEqual(out.tolist(), [[1, 2, 3, 4], [5, 6, 7, 8]])

        float32 = DataType.FLOAT32
        run_ranks(1, body, hidden=4, num_experts=2, type=float32, partial_type=float32)


class DLPack(unittest.TestCase):
    def test_both_forms_are_read(self):
        memory = (ctypes.c_float * 6)(*range(6))
        for knows_versions in (True, False):
            producer = Producer(memory, shape=(2, 3), knows_versions=knows_versions)
            seen = _arrays.view(producer, "x")
            self.assertEqual(seen.pointer, ctypes.addressof(memory))
            self.assertEqual((seen.shape, seen.type, seen.device), ((2, 3), "float32", -1))
            self.assertTrue(seen.writable and seen.contiguous)

    def test_read_only_is_told_by_the_new_form(self):
        producer = Producer((ctypes.c_float * 6)(), shape=(6,), read_only=True)
        self.assertFalse(_arrays.view(producer, "x").writable)

    def test_memory_lives_as_long_as_its_view(self):
        before = len(_dlpack._offered)
        seen = _arrays.view(Producer((ctypes.c_float * 6)(), shape=(6,)), "x")
        self.assertEqual(len(_dlpack._offered), before + 1)
        del seen
        gc.collect()
        self.assertEqual(len(_dlpack._offered), before)

    @needs_numpy
    def test_numpy_takes_the_librarys_memory(self):
        before = len(_dlpack._offered)
        owner = (ctypes.c_float * 6)(*range(6))
        taken = np.from_dlpack(Producer(owner, shape=(2, 3), knows_versions=False))
        del owner
        gc.collect()
        np.testing.assert_array_equal(taken, [[0, 1, 2], [3, 4, 5]])
        del taken
        gc.collect()
        self.assertEqual(len(_dlpack._offered), before)


@needs_numpy
class NumPy(unittest.TestCase):
    def test_what_the_array_says_is_seen(self):
        given = np.zeros((3, 5), "int16")
        seen = _arrays.view(given, "x")
        self.assertEqual(seen.pointer, given.ctypes.data)
        self.assertEqual((seen.shape, seen.type, seen.nbytes), ((3, 5), "int16", 30))
        self.assertFalse(_arrays.view(given.T, "x").contiguous)
        given.flags.writeable = False
        self.assertFalse(_arrays.view(given, "x").writable)

    def test_a_type_that_numpy_lacks_is_made_of_integers(self):
        made = _arrays.NUMPY.empty((2, 3), "bfloat16", np.zeros(1))
        self.assertEqual((made.shape, made.dtype.itemsize), ((2, 3), 2))
        self.assertEqual(_arrays.NUMPY.empty((2,), "float8_e4m3fn", np.zeros(1)).itemsize, 1)


class Interface(unittest.TestCase):
    """`__cuda_array_interface__`, which needs no GPU to be read."""

    class Array:
        def __init__(self, **changes):
            self.__cuda_array_interface__ = {
                "version": 3,
                "shape": (2, 4),
                "typestr": "<f4",
                "data": (4096, False),
                **changes,
            }

    def test_what_the_interface_says_is_seen(self):
        for changes, contiguous in (
            ({}, True),
            ({"strides": None}, True),
            ({"strides": (16, 4)}, True),
            ({"strides": (4, 8)}, False),
            ({"shape": (1, 4), "strides": (999, 4)}, True),
        ):
            seen = _arrays.view(self.Array(**changes), "x")
            self.assertEqual((seen.pointer, seen.type), (4096, "float32"))
            self.assertEqual(seen.contiguous, contiguous)
        self.assertFalse(_arrays.view(self.Array(data=(4096, True)), "x").writable)
        self.assertEqual(_arrays.view(self.Array(typestr="|b1"), "x").type, "bool")

    def test_it_is_refused_on_the_host_backend(self):
        def body(communicator):
            with hybridep.Routing(communicator) as routing:
                with self.assertRaisesRegex(hybridep.InvalidArgumentError, "indices lies on a GPU"):
                    routing.update(self.Array(typestr="<i4"))

        run_ranks(1, body)


class Heap(unittest.TestCase):
    @needs_numpy
    def test_tokens_in_the_heap_are_dispatched(self):
        def body(communicator):
            x = communicator.allocate((4, 8), DataType.FLOAT32)
            self.assertEqual(x.pointer % 256, 0)
            mine = np.asarray(x)
            mine[:] = np.arange(32).reshape(4, 8) + 100 * communicator.rank
            with hybridep.Routing(communicator) as routing:
                routing.update(np.full((4, 1), communicator.rank, "int32"))
                rows = np.empty((4, 8), "float32")
                routing.dispatch(x, rows=rows)
                np.testing.assert_array_equal(rows, mine)
            communicator.free(x)

        run_ranks(2, body, num_experts=2, type=DataType.FLOAT32, heap_bytes=1 << 20)

    def test_a_full_heap_is_an_error_of_memory(self):
        def body(communicator):
            with self.assertRaises(MemoryError) as caught:
                communicator.allocate((1 << 20,), DataType.FLOAT32)
            self.assertEqual(caught.exception.result, hybridep.Result.OUT_OF_MEMORY)
            communicator.allocate((16,), DataType.FLOAT32)

        run_ranks(1, body, heap_bytes=4096)

    def test_memory_that_is_not_of_the_heap_is_refused(self):
        def body(communicator):
            memory = communicator.allocate((16,), DataType.BYTES)
            communicator.free(memory)
            with self.assertRaises(hybridep.InvalidArgumentError):
                communicator.free(memory)

        run_ranks(1, body, heap_bytes=4096)

    def test_arrays_are_registered_by_all_ranks(self):
        def body(communicator):
            mine = bytearray(4096) if communicator.rank == 0 else None
            communicator.register(mine)
            communicator.deregister(mine)

        run_ranks(2, body)
