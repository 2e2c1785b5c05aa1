# SPDX-License-Identifier: Apache-2.0
"""Processes that form a group of torch.distributed, are started once, and run many cases."""

import datetime
import multiprocessing
import os
import shutil
import tempfile
import traceback

_PATIENCE = 60  # seconds: longer than any case


class Failed(AssertionError):
    """What a process of a gang raised."""


def _work(pipe, folder, backend, rank, num_ranks):
    """Runs what comes over the pipe, until it closes. With NCCL each rank has a GPU of its own."""
    import torch
    import torch.distributed as distributed

    if backend == "nccl":
        torch.cuda.set_device(rank)
    store = distributed.FileStore(os.path.join(folder, "store"), num_ranks)
    distributed.init_process_group(
        backend,
        store=store,
        rank=rank,
        world_size=num_ranks,
        timeout=datetime.timedelta(seconds=_PATIENCE),
    )
    while True:
        task = pipe.recv()
        if task is None:
            break
        case, arguments = task
        try:
            pipe.send((True, case(rank, num_ranks, *arguments)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))


class Gang:
    """Processes, each with a rank. They are forked: what they run must be loaded already."""

    def __init__(self, num_ranks, backend="gloo"):
        context = multiprocessing.get_context("fork")
        self.num_ranks = num_ranks
        self._folder = tempfile.mkdtemp()
        self._pipes, self._processes = [], []
        for rank in range(num_ranks):
            ours, theirs = context.Pipe()
            arguments = (theirs, self._folder, backend, rank, num_ranks)
            process = context.Process(target=_work, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, case, *arguments):
        """What case(rank, num_ranks, *arguments) returns in each process."""
        for pipe in self._pipes:
            pipe.send((case, arguments))
        results = [self._receive(rank, pipe) for rank, pipe in enumerate(self._pipes)]
        for rank, (passed, result) in enumerate(results):
            if not passed:
                raise Failed(f"rank {rank} of {self.num_ranks}: {result}")
        return [result for _, result in results]

    def _receive(self, rank, pipe):
        if not pipe.poll(_PATIENCE):
            return False, f"has not answered for {_PATIENCE} s"
        try:
            return pipe.recv()
        except EOFError:
            return False, f"has ended with {self._processes[rank].exitcode}"

    def close(self):
        for pipe in self._pipes:
            try:
                pipe.send(None)
            except BrokenPipeError:
                pass
        for process in self._processes:
            process.join(_PATIENCE)
            if process.is_alive():
                process.kill()
        shutil.rmtree(self._folder)
