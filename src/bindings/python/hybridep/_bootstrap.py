# SPDX-License-Identifier: Apache-2.0
"""Means by which ranks agree on a rendezvous."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pathlib
import stat
import sys
import time
from typing import Any, Callable, Iterator, List, Optional, Sequence, Tuple, TypeVar

from . import _abi
from ._errors import InvalidArgumentError, InvalidUsageError, PeerTimeoutError

AllGather = Callable[[bytes], Sequence[bytes]]
Found = TypeVar("Found")

_PAUSE = 0.01  # seconds between two looks for what another rank is to bring
_DEFAULT_TIMEOUT_MS = 30000


def unique_id_struct(identity: bytes) -> _abi.UniqueId:
    if len(identity) != _abi.UNIQUE_ID_BYTES:
        raise InvalidArgumentError(
            f"identity has {len(identity)} bytes, but a unique id has {_abi.UNIQUE_ID_BYTES}"
        )
    return _abi.UniqueId.from_buffer_copy(bytes(identity))


class Callback:
    """An all-gather of Python as one of C. Keeps what it raised."""

    def __init__(self, all_gather: AllGather, num_ranks: int) -> None:
        self.raised: Optional[BaseException] = None
        self.function = _abi.AllGather(self._call)
        self._all_gather = all_gather
        self._num_ranks = num_ranks

    def _call(self, send: int, receive: int, size: int, _: Optional[int]) -> int:
        try:
            parts = [bytes(part) for part in self._all_gather(ctypes.string_at(send, size))]
            self._check(parts, size)
            ctypes.memmove(receive, b"".join(parts), size * self._num_ranks)
        except BaseException as error:  # goes through C, which knows no exceptions
            self.raised = error
            return 1
        return 0

    def _check(self, parts: List[bytes], size: int) -> None:
        sizes = [len(part) for part in parts]
        if sizes != [size] * self._num_ranks:
            raise InvalidArgumentError(
                f"all_gather returned parts of {sizes} bytes, but must return {self._num_ranks} "
                f"of {size}"
            )


def torch_group(group: Any) -> Tuple[int, int, AllGather]:
    """Size, rank and all-gather of a group of torch.distributed."""
    import torch
    import torch.distributed as distributed

    on_host = any(name in distributed.get_backend(group) for name in ("gloo", "mpi"))
    device = torch.device("cpu" if on_host else f"cuda:{torch.cuda.current_device()}")
    num_ranks = distributed.get_world_size(group)

    def all_gather(mine: bytes) -> List[bytes]:
        send = torch.tensor(list(mine), dtype=torch.uint8, device=device)
        parts = [torch.empty_like(send) for _ in range(num_ranks)]
        distributed.all_gather(parts, send, group=group)
        return [bytes(part.tolist()) for part in parts]

    return num_ranks, distributed.get_rank(group), all_gather


def mpi(communicator: Any) -> Tuple[int, int, AllGather]:
    """Size, rank and all-gather of a communicator of mpi4py, or of what looks like one."""
    return communicator.size, communicator.rank, communicator.allgather


def _await(look: Callable[[], Optional[Found]], what: str, timeout_ms: int) -> Found:
    """Looks again and again, as long as the creation of a communicator may take."""
    timeout_ms = int(os.environ.get("HEP_INIT_TIMEOUT_MS") or 0) or timeout_ms
    timeout_ms = timeout_ms or _DEFAULT_TIMEOUT_MS
    end = time.monotonic() + timeout_ms / 1000
    while True:
        found = look()
        if found is not None:
            return found
        if time.monotonic() > end:
            raise PeerTimeoutError(f"rank 0 has not brought {what} within {timeout_ms} ms")
        time.sleep(_PAUSE)


# ----------------------------------------------------------------------------------------- store


def put_in_store(store: Any, key: str, identity: bytes) -> None:
    store.set(key, identity.hex())


def take_from_store(store: Any, key: str, timeout_ms: int) -> bytes:
    def look() -> Optional[bytes]:
        try:
            value = store.get(key)
        except KeyError:
            return None
        if value is None:
            return None
        return bytes.fromhex(value if isinstance(value, str) else bytes(value).decode())

    return _await(look, f"the key {key!r} of the store", timeout_ms)


# ------------------------------------------------------------------------------------------ file


def write_file(path: pathlib.Path, identity: bytes) -> None:
    """Creates the file with all its contents at once. Its user alone can read it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(identity)
        os.link(draft, path)
    except FileExistsError:
        raise InvalidUsageError(
            f"{path} exists already: each communicator needs a path of its own"
        ) from None
    finally:
        os.unlink(draft)


def read_file(path: pathlib.Path, timeout_ms: int) -> bytes:
    def look() -> Optional[bytes]:
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            with os.fdopen(descriptor, "rb") as file:
                _check_secret(path, os.fstat(file.fileno()))
                return file.read()
        return None

    return _await(look, str(path), timeout_ms)


def _check_secret(path: pathlib.Path, status: os.stat_result) -> None:
    """A file that somebody else could have written would lead to a rendezvous of theirs."""
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != os.geteuid() or mode & 0o077 != 0:
        raise InvalidUsageError(
            f"{path} is of user {status.st_uid} with mode {mode:o}, but must be of user "
            f"{os.geteuid()} alone"
        )


@contextlib.contextmanager
def identity_by_file(
    path: pathlib.Path, rank: int, make: Callable[[], bytes], timeout_ms: int
) -> Iterator[bytes]:
    """The id that rank 0 makes. The file is there until rank 0 has created its communicator."""
    if rank != 0:
        yield read_file(path, timeout_ms)
        return
    identity = make()
    write_file(path, identity)
    try:
        yield identity
    finally:
        path.unlink()


# ----------------------------------------------------------------------------------- environment


def torchrun_store(rank: int, num_ranks: int) -> Any:
    """The store at MASTER_ADDR and MASTER_PORT: torchrun's own, or one that rank 0 opens."""
    import torch.distributed as distributed

    launcher_has_it = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if not host or not port:
        raise InvalidUsageError("RANK and WORLD_SIZE are set, but not MASTER_ADDR and MASTER_PORT")
    is_master = rank == 0 and not launcher_has_it
    return distributed.TCPStore(host, int(port), num_ranks, is_master)


def has_torch_group() -> bool:
    """Whether the process has a default group of torch.distributed already."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available():
        return False
    return bool(distributed.is_initialized())


def mpi_world() -> Optional[Any]:
    """The communicator of all processes, if mpi4py is installed."""
    try:
        from mpi4py import MPI
    except ImportError:
        return None
    return MPI.COMM_WORLD
