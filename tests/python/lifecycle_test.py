# SPDX-License-Identifier: Apache-2.0
"""Creation, closing, errors, threads, fork and exit."""

import array
import ctypes
import gc
import os
import subprocess
import sys
import textwrap
import threading
import unittest
import weakref

import hybridep
from hybridep import DataType, _errors
from ranks import config, run_ranks, run_threads

FLOAT32 = {"type": DataType.FLOAT32, "partial_type": DataType.FLOAT32}


def ids(tokens, expert=0):
    return memoryview(array.array("i", [expert] * tokens)).cast("B").cast("i", (tokens, 1))


def floats(rows):
    return memoryview(bytearray(32 * rows)).cast("f", (rows, 8))


def alone(**fields):
    return hybridep.Communicator.from_devices(config(**{**FLOAT32, **fields}), 1)[0]


def run_python(script, **environment):
    """Runs a script in a process of its own: its output, and what it says on standard error."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


class Close(unittest.TestCase):
    def test_objects_can_be_closed_twice(self):
        communicator = alone()
        routing = hybridep.Routing(communicator)
        for _ in range(2):
            routing.close()
        for _ in range(2):
            communicator.close()
        self.assertTrue(routing.closed and communicator.closed)

    def test_closing_a_communicator_closes_its_routings(self):
        with alone() as communicator:
            routing = hybridep.Routing(communicator)
        self.assertTrue(routing.closed)

    def test_a_closed_object_says_so(self):
        communicator = alone()
        closed = hybridep.Routing(communicator)
        closed.close()
        with self.assertRaisesRegex(hybridep.InvalidUsageError, "the routing is closed"):
            closed.update(ids(1))
        routing = hybridep.Routing(communicator)
        communicator.close()
        for call in (
            lambda: routing.update(ids(1)),
            lambda: hybridep.Routing(communicator),
            communicator.abort,
            communicator.failure,
            communicator.async_error,
            lambda: communicator.allocate((1,), DataType.FLOAT32),
            lambda: communicator.register(None),
        ):
            with self.assertRaisesRegex(hybridep.InvalidUsageError, "the communicator is closed"):
                call()

    def test_a_routing_keeps_its_communicator_alive(self):
        communicator = alone()
        routing = hybridep.Routing(communicator)
        kept = weakref.ref(communicator)
        del communicator
        gc.collect()
        routing.update(ids(2))
        self.assertEqual(routing.counts().num_flat_rows, 2)
        del routing
        gc.collect()
        self.assertIsNone(kept())

    def test_a_garbage_collection_takes_routings_with_their_communicator(self):
        """Their memory can be had again. The collector may finalise the communicator first."""
        communicator, other = alone(), alone()
        num_bytes = communicator.routing_bytes()
        whole = (ctypes.c_char * (num_bytes + 256))()
        start = -ctypes.addressof(whole) % 256
        memory = memoryview(whole).cast("B")[start : start + num_bytes]
        routing = hybridep.Routing(communicator, memory=memory)
        communicator.cycle = routing
        del communicator, routing
        gc.collect()
        hybridep.Routing(other, memory=memory).close()
        other.close()

    def test_dropped_routings_are_destroyed(self):
        """A finaliser may run anywhere, so it leaves the routing to the next creation."""
        communicator = alone()
        for _ in range(10):
            hybridep.Routing(communicator)
        self.assertEqual(len(communicator._abandoned), 1)
        communicator.close()
        self.assertEqual(len(communicator._abandoned), 0)

    def test_a_routing_between_its_halves_is_destroyed_later(self):
        communicator = alone(low_latency_tokens=4)
        routing = hybridep.Routing(communicator, mode=hybridep.Mode.LOW_LATENCY)
        routing.update(ids(2))
        routing.dispatch(floats(2), send_only=True)
        with self.assertRaises(hybridep.InvalidUsageError):
            routing.close()
        routing.dispatch_receive()
        routing.close()
        communicator.close()

    def test_arrays_live_from_the_first_half_to_the_second(self):
        """The caller holds neither inputs nor outputs in between."""
        with alone(low_latency_tokens=4) as communicator:
            routing = hybridep.Routing(communicator, mode=hybridep.Mode.LOW_LATENCY)
            routing.update(ids(2))
            for send, receive in (
                (lambda x: routing.dispatch(x, send_only=True).rows, routing.dispatch_receive),
                (lambda y: routing.combine(y, send_only=True).out, routing.combine_receive),
            ):
                given = (ctypes.c_float * 8 * 2)()
                kept = [weakref.ref(given), weakref.ref(send(given))]
                del given
                gc.collect()
                self.assertTrue(all(memory() is not None for memory in kept))
                receive()
                gc.collect()
                self.assertEqual([memory() for memory in kept], [None, None])

    def test_a_communicator_can_be_closed_between_halves(self):
        """An exception that ends the work there reaches the caller."""
        with self.assertRaisesRegex(KeyError, "the work"):
            with alone(low_latency_tokens=4) as communicator:
                mode = hybridep.Mode.LOW_LATENCY
                with hybridep.Routing(communicator, mode=mode) as routing:
                    routing.update(ids(2))
                    routing.dispatch(floats(2), send_only=True)
                    raise KeyError("the work")
        self.assertTrue(routing.closed and communicator.closed)

    def test_calls_before_an_update_are_refused(self):
        with alone() as communicator, hybridep.Routing(communicator) as routing:
            for call in (
                lambda: routing.dispatch(floats(2)),
                lambda: routing.combine(floats(2)),
                routing.counts,
                lambda: routing.num_tokens,
            ):
                with self.assertRaisesRegex(hybridep.InvalidUsageError, "not been updated"):
                    call()


class Errors(unittest.TestCase):
    def test_each_result_has_a_class_that_python_knows(self):
        expected = {
            "INVALID_ARGUMENT": ValueError,
            "INVALID_USAGE": RuntimeError,
            "UNSUPPORTED": NotImplementedError,
            "OUT_OF_MEMORY": MemoryError,
            "SYSTEM": OSError,
            "CUDA": RuntimeError,
            "MISMATCH": RuntimeError,
            "UNREACHABLE": ConnectionError,
            "TIMEOUT": TimeoutError,
            "ABORTED": ConnectionError,
            "PEER_LOST": ConnectionError,
            "INTERNAL": RuntimeError,
            "OVERFLOW": RuntimeError,
            "NETWORK": ConnectionError,
        }
        self.assertEqual(
            {r.name for r in hybridep.Result} - {"SUCCESS"}, set(expected), "results of the header"
        )
        for name, base in expected.items():
            class_ = _errors._CLASSES[hybridep.Result[name]]
            self.assertTrue(issubclass(class_, base) and issubclass(class_, hybridep.Error), name)
            self.assertEqual(str(class_("a sentence")), "a sentence")

    def test_results_of_newer_libraries_are_errors_too(self):
        error = _errors.make_error(99)
        self.assertIs(type(error), hybridep.Error)
        self.assertEqual((error.result, error.result.name), (99, "UNKNOWN_99"))
        self.assertEqual(hybridep.Phase(77).name, "UNKNOWN_77")

    def test_a_missing_rank_is_a_timeout_that_names_it(self):
        def body(communicator):
            if communicator.rank == 1:
                return waits.wait(30)
            with hybridep.Routing(communicator) as routing:
                with self.assertRaises(TimeoutError) as caught:
                    routing.update(ids(1))
            waits.set()
            error = caught.exception
            self.assertEqual(error.result, hybridep.Result.TIMEOUT)
            self.assertEqual(error.failure.missing_rank, 1)
            self.assertEqual(error.failure.operation, hybridep.Operation.ROUTING)
            self.assertIn("rank 1", str(error))
            self.assertEqual(communicator.failure(), error.failure)
            self.assertIsInstance(communicator.async_error(), hybridep.PeerTimeoutError)

        waits = threading.Event()
        run_ranks(2, body, timeout_ms=100)

    def test_an_abort_ends_a_wait(self):
        def body(communicator):
            if communicator.rank == 1:
                created.wait(30)
                return communicator.abort()
            with hybridep.Routing(communicator) as routing:
                created.set()
                with self.assertRaises(hybridep.AbortedError):
                    routing.update(ids(1))

        created = threading.Event()
        run_ranks(2, body)

    def test_an_id_out_of_range_is_told_later(self):
        with alone() as communicator, hybridep.Routing(communicator) as routing:
            self.assertIsNone(communicator.async_error())
            self.assertIsNone(communicator.failure())
            routing.update(ids(2, expert=77))
            error = communicator.async_error()
            self.assertIsInstance(error, hybridep.InvalidArgumentError)
            self.assertIn("77", str(error))
            self.assertIsNone(error.failure)
            self.assertEqual(routing.counts().num_flat_rows, 0)

    def test_ranks_that_differ_are_a_mismatch(self):
        identity = hybridep.unique_id()

        def run(rank):
            with self.assertRaisesRegex(hybridep.MismatchError, "hidden"):
                hybridep.Communicator.from_unique_id(
                    config(hidden=8 * (rank + 1)), 2, rank, identity
                )

        run_threads(2, run)


class Values(unittest.TestCase):
    def test_limits_and_properties_are_those_of_the_config(self):
        def body(communicator):
            self.assertEqual(communicator.num_ranks, 2)
            self.assertEqual(
                (communicator.device, communicator.backend), (-1, hybridep.Backend.HOST)
            )
            limits = communicator.limits
            self.assertEqual((limits.max_tokens, limits.num_local_experts), (16, 2))
            self.assertEqual(limits.max_expert_rows, 2 * 16 * 2)
            self.assertEqual(limits.layout_dispatch_blocks, (0, 0, 0))  # the host has no SMs
            seen[communicator.rank] = True

        seen = {}
        run_ranks(2, body)
        self.assertEqual(sorted(seen), [0, 1])

    def test_a_workspace_is_known_without_a_communicator(self):
        workspace = config(heap_bytes=4096).workspace(2)
        self.assertEqual(workspace.heap_bytes, 4096)
        self.assertGreater(workspace.total_bytes, workspace.heap_bytes)

    def test_log_messages_reach_the_callback(self):
        script = """
            import hybridep
            heard = []
            log = lambda level, text: heard.append((level, text))
            config = hybridep.Config(16, 8, 4, backend=hybridep.Backend.AUTO, log=log)
            hybridep.Communicator.from_devices(config, 1)[0].close()
            said = [text for level, text in heard if level is hybridep.LogLevel.INFO]
            assert any(text.startswith("rank 0: backend ") for text in said), heard
            """
        self.assertEqual(run_python(script, HEP_LOG="info"), (0, "", ""))


class Threads(unittest.TestCase):
    def test_calls_on_one_routing_follow_each_other(self):
        with alone() as communicator, hybridep.Routing(communicator) as routing:
            routing.update(ids(3))

            def run(_):
                for _ in range(50):
                    rows = routing.dispatch(floats(3)).rows
                    self.assertEqual(routing.combine(rows).out.shape, (3, 8))

            run_threads(4, run)

    def test_lanes_do_not_wait_for_each_other(self):
        """Ranks issue the lanes in different orders, each on a thread of its own."""

        def body(communicator):
            routings = [hybridep.Routing(communicator, lane=lane) for lane in (0, 1)]
            order = [0, 1] if communicator.rank == 0 else [1, 0]
            begun = threading.Event()

            def issue(place):
                if place == 1:
                    begun.wait(30)
                else:
                    begun.set()
                routings[order[place]].update(ids(1))

            run_threads(2, issue)

        run_ranks(2, body, lanes=2)


class Fork(unittest.TestCase):
    def test_a_child_is_told_that_the_objects_are_its_parents(self):
        with alone() as communicator, hybridep.Routing(communicator) as routing:
            routing.update(ids(1))
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:
                try:
                    routing.update(ids(1))
                except hybridep.InvalidUsageError as error:
                    os.write(writer, str(error).encode())
                communicator.close()
                os._exit(0)
            os.close(writer)
            with os.fdopen(reader) as said:
                self.assertIn("belongs to the parent of process", said.read())
            self.assertEqual(os.waitpid(child, 0)[1], 0)
            routing.update(ids(2))
            self.assertEqual(routing.counts().num_flat_rows, 2)

    def test_a_child_does_not_wait_for_its_parents_threads(self):
        """A thread of the parent is in a call at the moment of the fork."""

        def body(communicator):
            if communicator.rank == 1:
                return forked.wait(30)
            routing = hybridep.Routing(communicator)
            waiting = threading.Thread(
                target=lambda: self.assertRaises(hybridep.AbortedError, routing.update, ids(1))
            )
            waiting.start()
            while routing._lane.acquire(blocking=False):
                routing._lane.release()
            child = os.fork()
            if child == 0:
                try:
                    routing.update(ids(1))
                except hybridep.InvalidUsageError:
                    communicator.close()
                    os._exit(0)
                os._exit(1)
            self.assertEqual(os.waitpid(child, 0)[1], 0)
            communicator.abort()
            waiting.join()
            forked.set()

        forked = threading.Event()
        run_ranks(2, body)


MAKE = """
    import hybridep
    config = hybridep.Config(16, 8, 4, backend=hybridep.Backend.HOST)
    """


class Report(unittest.TestCase):
    """python -m hybridep"""

    def run_report(self, *arguments, **environment):
        command = [sys.executable, "-m", "hybridep", *arguments]
        environment = {**os.environ, **environment}
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, text=True, timeout=60
        )
        lines = [line.split(None, 1) for line in done.stdout.splitlines() if line[0] != " "]
        return done.returncode, {words[0]: words[1] for words in lines}

    def test_it_tells_versions_backends_and_settings(self):
        code, said = self.run_report(HEP_LOG="error")
        self.assertEqual(code, 0)
        self.assertTrue(said["package"].startswith(hybridep.__version__))
        self.assertTrue(said["library"].endswith(hybridep.get_library()))
        self.assertEqual(said["backends"], "host: works")
        self.assertEqual(said["settings"], "HEP_LOG=error")

    def test_the_check_passes(self):
        code, said = self.run_report("--check")
        self.assertEqual((code, said["check"]), (0, "2 ranks on the host backend: right"))

    def test_a_missing_library_is_told(self):
        code, said = self.run_report(HYBRIDEP_LIBRARY="/nowhere/lib.so")
        self.assertEqual(code, 1)
        self.assertIn("/nowhere/lib.so", said["library"])

    def test_a_wrong_result_fails_the_check(self):
        script = """
            import sys
            from hybridep import __main__, _check
            _check._expected_rows = lambda rank, num_ranks: bytes(1024)
            sys.exit(0 if __main__.check() else 1)
            """
        code, said, _ = run_python(script)
        self.assertEqual(code, 1)
        self.assertIn("AssertionError", said)


class Exit(unittest.TestCase):
    """Each script ends without noise."""

    def check(self, script, code=0):
        script = textwrap.dedent(MAKE) + textwrap.dedent(script)
        self.assertEqual(run_python(script), (code, "", ""))

    def test_what_is_open_is_closed(self):
        self.check("""
            communicator = hybridep.Communicator.from_devices(config, 1)[0]
            routing = hybridep.Routing(communicator)
            """)

    def test_cycles_and_globals_are_closed(self):
        self.check("""
            import builtins
            communicator = hybridep.Communicator.from_devices(config, 1)[0]
            builtins.routing = [hybridep.Routing(communicator)]
            builtins.routing.append(builtins.routing)
            """)

    def test_a_call_of_a_daemon_thread_is_ended(self):
        self.check("""
            import array, threading, time
            first, second = hybridep.Communicator.from_devices(config, 2)
            routing = hybridep.Routing(first)
            ids = memoryview(array.array("i", [0])).cast("B").cast("i", (1, 1))
            waits = threading.Event()

            def wait():
                waits.set()
                try:
                    routing.update(ids)
                except hybridep.Error:
                    pass

            threading.Thread(target=wait, daemon=True).start()
            waits.wait()
            time.sleep(0.05)
            """)

    def test_an_operation_between_its_halves_is_ended(self):
        self.check("""
            import array
            config.low_latency_tokens = 4
            communicator = hybridep.Communicator.from_devices(config, 1)[0]
            routing = hybridep.Routing(communicator, mode=hybridep.Mode.LOW_LATENCY)
            routing.update(memoryview(array.array("i", [0])).cast("B").cast("i", (1, 1)))
            rows = memoryview(bytearray(16)).cast("H", (1, 8))
            routing.dispatch(rows, dtype=hybridep.DataType.BFLOAT16, send_only=True)
            """)

    def test_a_child_of_fork_leaves_its_parents_objects_alone(self):
        self.check("""
            import os, sys
            communicator = hybridep.Communicator.from_devices(config, 1)[0]
            routing = hybridep.Routing(communicator)
            child = os.fork()
            if child == 0:
                sys.exit(0)
            assert os.waitpid(child, 0)[1] == 0
            routing.close()
            """)


class Library(unittest.TestCase):
    def test_it_is_the_one_that_the_environment_names(self):
        self.assertEqual(hybridep.get_library(), os.path.realpath(os.environ["HYBRIDEP_LIBRARY"]))

    def test_the_header_is_found(self):
        self.assertTrue(os.path.isfile(os.path.join(hybridep.get_include(), "hybridep.h")))

    def test_importing_needs_neither_library_nor_framework(self):
        script = """
            import sys
            import hybridep
            assert hybridep.Backend.HOST == 2
            found = {"numpy", "torch", "cupy", "jax"} & set(sys.modules)
            assert not found, found
            """
        self.assertEqual(run_python(script, HYBRIDEP_LIBRARY="/nowhere/lib.so"), (0, "", ""))

    def test_a_missing_library_is_named_at_the_first_object(self):
        script = """
            import hybridep
            try:
                from hybridep import Communicator
            except ImportError as error:
                print(error)
            """
        _, said, _ = run_python(script, HYBRIDEP_LIBRARY="/nowhere/lib.so")
        self.assertIn("cannot open the library (named by HYBRIDEP_LIBRARY)", said)
        self.assertIn("/nowhere/lib.so", said)

    def test_a_library_of_another_version_is_refused_with_both_versions(self):
        script = """
            from hybridep import _abi
            _abi.HEADER_VERSION += 1
            import hybridep
            try:
                hybridep.Communicator
            except ImportError as error:
                print(error)
            """
        _, said, _ = run_python(script)
        major, minor, patch = hybridep.__version__.split(".")
        self.assertIn(f"package is of version {major}.{minor}.{int(patch) + 1}", said)
        self.assertIn(f"is of version {hybridep.__version__}", said)
        self.assertIn(hybridep.get_library(), said)
