# SPDX-License-Identifier: Apache-2.0
"""Ranks meet by every means, as threads and as processes."""

import os
import pathlib
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import unittest

import hybridep
from hybridep import Communicator, InvalidUsageError, _bootstrap, _environment
from ranks import config, run_threads

NUM_RANKS = 3
# What each process does with a communicator: a dispatch that all ranks take part in.
WORK = """
import array, hybridep
config = hybridep.Config(16, 8, 12, backend=hybridep.Backend.HOST)

def work(communicator):
    num_ranks = communicator.num_ranks
    ids = memoryview(array.array("i", range(num_ranks))).cast("B").cast("i", (1, num_ranks))
    with communicator, hybridep.Routing(communicator) as routing:
        routing.update(ids)
        assert routing.counts().num_flat_rows == (num_ranks if communicator.rank == 0 else 0)
"""


def check_group(communicator):
    """All experts of the job's first rank are selected by every rank."""
    with communicator, hybridep.Routing(communicator) as routing:
        ids = memoryview(bytearray(4)).cast("i", (1, 1))
        routing.update(ids)
        expected = communicator.num_ranks if communicator.rank == 0 else 0
        assert routing.counts().num_flat_rows == expected


class AllGather:
    """What mpi4py offers, for threads."""

    def __init__(self, num_ranks):
        self.parts = [None] * num_ranks
        self.barrier = threading.Barrier(num_ranks)

    def of_rank(self, rank):
        def all_gather(mine):
            self.parts[rank] = mine
            self.barrier.wait()
            return list(self.parts)

        return all_gather


class Threads(unittest.TestCase):
    def test_callback(self):
        gather = AllGather(NUM_RANKS)

        def run(rank):
            made = Communicator.from_callback(
                config(num_experts=3), NUM_RANKS, rank, gather.of_rank(rank)
            )
            self.assertEqual((made.rank, made.num_ranks), (rank, NUM_RANKS))
            check_group(made)

        run_threads(NUM_RANKS, run)

    def test_what_a_callback_raises_is_raised(self):
        def fails(_):
            raise KeyError("no network")

        with self.assertRaisesRegex(KeyError, "no network"):
            Communicator.from_callback(config(), 1, 0, fails)
        with self.assertRaisesRegex(ValueError, r"parts of \[1, 1\] bytes, but must return 1 of"):
            Communicator.from_callback(config(), 1, 0, lambda _: [b"a", b"b"])

    def test_mpi(self):
        gather = AllGather(NUM_RANKS)

        def run(rank):
            class Mpi:
                size = NUM_RANKS
                allgather = staticmethod(gather.of_rank(rank))

            Mpi.rank = rank
            check_group(Communicator.from_mpi(config(num_experts=3), Mpi()))

        run_threads(NUM_RANKS, run)

    def test_all_ranks_of_one_process(self):
        made = Communicator.from_devices(config(num_experts=3), NUM_RANKS)
        self.assertEqual([communicator.rank for communicator in made], list(range(NUM_RANKS)))
        run_threads(NUM_RANKS, lambda rank: check_group(made[rank]))

    def test_stores(self):
        class Missing(dict):
            def set(self, key, value):
                self[key] = value

        class Raises(Missing):
            def get(self, key):
                return self[key]

        class Bytes(Missing):
            def set(self, key, value):
                self[key] = value.encode()

        for store in (Missing(), Raises(), Bytes()):

            def run(rank):
                made = Communicator.from_store(
                    config(num_experts=3), NUM_RANKS, rank, store, "a key"
                )
                check_group(made)

            run_threads(NUM_RANKS, run)
            self.assertEqual(list(store), ["a key"])

    def test_a_store_that_stays_empty_is_a_timeout(self):
        class Store(dict):
            def set(self, key, value):
                pass

        with self.assertRaisesRegex(TimeoutError, "'hybridep' of the store within 50 ms"):
            Communicator.from_store(config(init_timeout_ms=50), 2, 1, Store())


class File(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = pathlib.Path(folder.name) / "rendezvous"

    def test_ranks_meet_and_leave_nothing_behind(self):
        def run(rank):
            made = Communicator.from_file(config(num_experts=3), NUM_RANKS, rank, str(self.path))
            check_group(made)

        run_threads(NUM_RANKS, run)
        self.assertEqual(list(self.path.parent.iterdir()), [])

    def test_its_user_alone_can_read_it(self):
        _bootstrap.write_file(self.path, b"secret")
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)
        self.assertEqual(_bootstrap.read_file(self.path, 1000), b"secret")

    def test_a_file_that_exists_is_refused(self):
        self.path.write_bytes(b"old")
        with self.assertRaisesRegex(InvalidUsageError, "exists already"):
            Communicator.from_file(config(), 1, 0, self.path)
        self.assertEqual(self.path.read_bytes(), b"old")

    def test_a_file_that_others_can_write_is_refused(self):
        self.path.write_bytes(bytes(128))
        self.path.chmod(0o622)
        with self.assertRaisesRegex(InvalidUsageError, "with mode 622"):
            Communicator.from_file(config(), 2, 1, self.path)

    def test_a_file_that_does_not_come_is_a_timeout(self):
        with self.assertRaisesRegex(TimeoutError, "rendezvous within 50 ms"):
            Communicator.from_file(config(init_timeout_ms=50), 2, 1, self.path)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Processes(unittest.TestCase):
    def run_processes(self, script, environment_of):
        text = WORK + textwrap.dedent(script)
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", text],
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(sys.path),
                    **environment_of(rank),
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(NUM_RANKS)
        ]
        ended = [(process.communicate(timeout=60)[0], process.returncode) for process in processes]
        self.assertEqual(ended, [("", 0)] * NUM_RANKS)

    def test_file(self):
        with tempfile.TemporaryDirectory() as folder:
            script = f"""
                import os
                rank, path = int(os.environ["TEST_RANK"]), {folder!r} + "/id"
                work(hybridep.Communicator.from_file(config, {NUM_RANKS}, rank, path))
                """
            self.run_processes(script, lambda rank: {"TEST_RANK": str(rank)})

    def test_environment_of_mpirun_without_mpi4py(self):
        script = """
            import sys
            sys.modules["mpi4py"] = None  # as if it were not installed
            for _ in range(2):
                work(hybridep.Communicator.from_environment(config))
            """
        self.run_processes(
            script,
            lambda rank: {
                "OMPI_COMM_WORLD_RANK": str(rank),
                "OMPI_COMM_WORLD_SIZE": str(NUM_RANKS),
                "OMPI_COMM_WORLD_LOCAL_RANK": str(rank),
                "OMPI_COMM_WORLD_LOCAL_SIZE": str(NUM_RANKS),
                "PMIX_NAMESPACE": f"job/{os.getpid()}",
            },
        )

    @unittest.skipUnless(shutil.which("mpirun"), "mpirun is not installed")
    def test_mpirun(self):
        script = WORK + "work(hybridep.Communicator.from_environment(config))\n"
        options = ["-np", str(NUM_RANKS)]
        version = subprocess.run(["mpirun", "--version"], stdout=subprocess.PIPE, check=True)
        if b"Open MPI" in version.stdout:
            options += ["--allow-run-as-root", "--oversubscribe"]
        done = subprocess.run(
            ["mpirun", *options, sys.executable, "-c", script],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        self.assertEqual((done.returncode, done.stdout), (0, ""))

    def run_under_torchrun(self, script):
        try:
            __import__("torch.distributed")
        except ImportError:
            self.skipTest("PyTorch is not installed")
        ports = str(free_port()), str(free_port())
        self.run_processes(
            script,
            lambda rank: {
                "RANK": str(rank),
                "WORLD_SIZE": str(NUM_RANKS),
                "LOCAL_RANK": str(rank),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": ports[0],
                "TEST_PORT": ports[1],
            },
        )

    def test_torchrun_and_groups_and_stores_of_torch(self):
        """One test for all of them, because each process imports PyTorch, which takes seconds."""
        self.run_under_torchrun("""
            import os
            for _ in range(2):
                work(hybridep.Communicator.from_environment(config))
            import torch.distributed as distributed
            os.environ["MASTER_PORT"] = os.environ["TEST_PORT"]
            distributed.init_process_group("gloo")
            work(hybridep.Communicator.from_torch(config))
            work(hybridep.Communicator.from_environment(config))
            pair = distributed.new_group([0, 2])
            if distributed.get_rank() != 1:
                made = hybridep.Communicator.from_torch(config, pair)
                assert made.num_ranks == 2 and made.rank == distributed.get_rank() // 2
                work(made)
            store = distributed.TCPStore("127.0.0.1", int(os.environ["TEST_PORT"]), 3, False)
            work(hybridep.Communicator.from_store(config, 3, distributed.get_rank(), store))
            distributed.barrier()
            """)


class Environment(unittest.TestCase):
    def test_a_process_without_a_launcher_is_told_so(self):
        ranks = [launcher.rank for launcher in _environment._LAUNCHERS]
        kept = {name: os.environ.pop(name) for name in ranks if name in os.environ}
        self.addCleanup(os.environ.update, kept)
        with self.assertRaisesRegex(InvalidUsageError, "RANK and WORLD_SIZE, OMPI_COMM"):
            Communicator.from_environment(config())
