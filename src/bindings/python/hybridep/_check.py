# SPDX-License-Identifier: Apache-2.0
"""The small job of `python -m hybridep --check`, on ranks of one process."""

from __future__ import annotations

import ctypes
import threading
from typing import List, Sequence

from . import _cuda
from ._communicator import Communicator
from ._enums import Backend, DataType
from ._memory import Memory
from ._routing import Routing
from ._values import Config

_TOKENS, _HIDDEN, _EXPERTS_OF_RANK = 8, 64, 2
_ROW_BYTES = 2 * _HIDDEN


def _row(rank: int, token: int) -> bytes:
    """A token, of BF16 numbers that are small and not zero."""
    return bytes([0x80 + 8 * (rank % 8) + token, 0x3F]) * _HIDDEN


def _expert(rank: int, token: int, num_experts: int) -> int:
    return (3 * rank + token) % num_experts


def _expected_rows(rank: int, num_ranks: int) -> bytes:
    """Expert-major rows: by local expert, source rank and token."""
    num_experts = num_ranks * _EXPERTS_OF_RANK
    return b"".join(
        _row(source, token)
        for expert in range(rank * _EXPERTS_OF_RANK, (rank + 1) * _EXPERTS_OF_RANK)
        for source in range(num_ranks)
        for token in range(_TOKENS)
        if _expert(source, token, num_experts) == expert
    )


def _write(memory: Memory, contents: bytes) -> None:
    if memory.device >= 0:
        _cuda.copy_in(memory.pointer, contents)
    else:
        ctypes.memmove(memory.pointer, contents, len(contents))


def _read(memory: Memory, num_bytes: int) -> bytes:
    if memory.device >= 0:
        return _cuda.copy_out(memory.pointer, num_bytes)
    return ctypes.string_at(memory.pointer, num_bytes)


def _compare(name: str, memory: Memory, expected: bytes) -> None:
    if _read(memory, len(expected)) != expected:
        raise AssertionError(f"{name} differs from what it must be")


def _run_rank(communicator: Communicator) -> None:
    rank, num_ranks = communicator.rank, communicator.num_ranks
    if communicator.device >= 0:
        _cuda.set_device(communicator.device)
    num_experts = num_ranks * _EXPERTS_OF_RANK
    x = communicator.allocate((_TOKENS, _HIDDEN), DataType.BFLOAT16)
    out = communicator.allocate((_TOKENS, _HIDDEN), DataType.BFLOAT16)
    selected = communicator.allocate((_TOKENS, num_experts), DataType.BYTES)
    tokens = b"".join(_row(rank, token) for token in range(_TOKENS))
    chosen = bytearray(_TOKENS * num_experts)
    for token in range(_TOKENS):
        chosen[token * num_experts + _expert(rank, token, num_experts)] = 1
    _write(x, tokens)
    _write(selected, bytes(chosen))
    expected = _expected_rows(rank, num_ranks)
    with Routing(communicator) as routing:
        routing.update(selected)
        capacity = routing.counts().num_padded_rows
        if capacity * _ROW_BYTES != len(expected):
            raise AssertionError(f"{capacity} rows came, instead of {len(expected) // _ROW_BYTES}")
        rows = communicator.allocate((capacity, _HIDDEN), DataType.BFLOAT16)
        routing.dispatch(x, rows=rows)
        routing.combine(rows, out=out)
        _compare("rows", rows, expected)
        _compare("out", out, tokens)


def run(backend: Backend, num_ranks: int, devices: Sequence[int]) -> None:
    """Runs the job on ranks that are threads, and raises what any of them raised."""
    config = Config(
        max_tokens=_TOKENS,
        hidden=_HIDDEN,
        num_experts=num_ranks * _EXPERTS_OF_RANK,
        max_top_k=1,
        backend=backend,
        heap_bytes=1 << 20,
    )
    raised: List[BaseException] = []

    def run_rank(communicator: Communicator) -> None:
        try:
            _run_rank(communicator)
        except BaseException as error:
            raised.append(error)
            communicator.abort()  # the others would wait for this rank

    communicators = Communicator.from_devices(config, num_ranks, devices or None)
    threads = [threading.Thread(target=run_rank, args=(made,)) for made in communicators]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for communicator in communicators:
        communicator.close()
    if raised:
        raise raised[0]
