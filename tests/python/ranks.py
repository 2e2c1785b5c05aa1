# SPDX-License-Identifier: Apache-2.0
"""Ranks as threads of the test, on the host backend."""

import threading
import traceback

import hybridep


def config(**fields):
    """A config of the host backend for small tests."""
    small = {"max_tokens": 16, "hidden": 8, "num_experts": 4, "max_top_k": 2}
    return hybridep.Config(backend=hybridep.Backend.HOST, **{**small, **fields})


def run_threads(num_ranks, body):
    """Runs body(rank) on a thread for each rank, and raises what any of them raised."""
    raised = []

    def run(rank):
        try:
            body(rank)
        except BaseException as error:
            raised.append((rank, error, traceback.format_exc()))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(num_ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        rank, error, text = raised[0]
        raise AssertionError(f"rank {rank} of {num_ranks}: {text}") from error


def run_ranks(num_ranks, body, **fields):
    """Runs body(communicator) on a thread for each rank of a new communicator."""
    identity = hybridep.unique_id()

    def run(rank):
        made = hybridep.Communicator.from_unique_id(config(**fields), num_ranks, rank, identity)
        with made as communicator:
            body(communicator)

    run_threads(num_ranks, run)
