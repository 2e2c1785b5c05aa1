# SPDX-License-Identifier: Apache-2.0
"""Communicators: one rank's membership in a group of ranks."""

from __future__ import annotations

import atexit
import collections
import contextlib
import ctypes
import itertools
import math
import os
import pathlib
import threading
import weakref
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Deque,
    Dict,
    Iterator,
    List,
    Optional,
    Sequence,
    Set,
    Tuple,
    Type,
    Union,
)

from . import _abi, _arrays, _bootstrap, _cuda, _environment
from ._arguments import Arguments
from ._enums import Backend, DataType, Mode, Result
from ._errors import (
    Error,
    InvalidArgumentError,
    InvalidUsageError,
    UnsupportedError,
    check,
    integer,
    make_error,
)
from ._memory import Memory
from ._values import Config, Failure, Limits

if TYPE_CHECKING:
    from ._routing import Routing

_LANES_OF_A_MODE = 4
_all: weakref.WeakSet[Communicator] = weakref.WeakSet()
_numbers = itertools.count()  # of communicators that met over torchrun's store


def unique_id() -> bytes:
    """Opens a rendezvous in this process and returns its id, 128 bytes, for `from_unique_id`.

    The id is a secret. It serves one communicator. This process must live until all ranks have
    created theirs.
    """
    identity = _abi.UniqueId()
    check(_abi.library().hepGetUniqueId(identity))
    return bytes(identity.bytes)


class Communicator:
    """One rank of a group of ranks. Create it on all ranks by one of the methods `from_...`.

    It is a context manager. Calls on it and on its routings may come from any thread; a lock for
    each lane makes them follow each other. `close` may be called twice.
    """

    def __init__(self, handle: int, config: Config, struct: _abi.Config) -> None:
        """For the methods `from_...` alone."""
        self._library = _abi.library()
        self._handle = handle
        self._config = config
        self._struct = struct  # owns the log callback
        self._why_closed = ""
        self._lanes = _new_lanes()
        self._routings: weakref.WeakSet[Routing] = weakref.WeakSet()
        # Handles of all routings: a garbage collection clears weak references to routings before
        # it calls the finaliser of their communicator.
        self._routing_handles: Set[int] = set()
        # Routings that nobody holds any more: a finaliser may run on any thread at any time, so it
        # must not wait for a lock.
        self._abandoned: Deque[Tuple[int, Any]] = collections.deque()
        self._registered: Dict[Optional[int], Any] = {}
        self._num_ranks = self._number("hepCommCount")
        self._rank = self._number("hepCommUserRank")
        self._device = self._number("hepCommDevice")
        self._backend = Backend(self._number("hepCommBackend"))
        limits = _abi.Limits()
        self._check(self._library.hepCommLimits(handle, limits))
        self._limits = Limits._of(limits)
        _all.add(self)

    # -------------------------------------------------------------------------------- creation

    @classmethod
    def from_unique_id(
        cls, config: Config, num_ranks: int, rank: int, identity: bytes
    ) -> Communicator:
        """Creates this rank's communicator. Collective; waits for all ranks, at most
        `init_timeout_ms`. On the cuda backend the rank is bound to the thread's current device.

        num_ranks  R, 1 to 72
        rank       this rank, from 0
        identity   what `unique_id` returned on any one rank
        """
        struct = config._struct()
        handle = ctypes.c_void_p()
        num_ranks, rank = integer("num_ranks", num_ranks), integer("rank", rank)
        given = _bootstrap.unique_id_struct(identity)
        check(_abi.library().hepCommInitRank(handle, num_ranks, given, rank, struct))
        return cls(_value(handle), config, struct)

    @classmethod
    def from_callback(
        cls,
        config: Config,
        num_ranks: int,
        rank: int,
        all_gather: Callable[[bytes], Sequence[bytes]],
    ) -> Communicator:
        """Creates this rank's communicator over an all-gather of the caller's. Collective.

        all_gather  takes this rank's bytes and returns those of all ranks, in the order of ranks.
                    Called once, on this thread. What it raises is raised here.
        """
        struct = config._struct()
        handle = ctypes.c_void_p()
        num_ranks, rank = integer("num_ranks", num_ranks), integer("rank", rank)
        callback = _bootstrap.Callback(all_gather, num_ranks)
        result = _abi.library().hepCommInitCallback(
            handle, num_ranks, rank, callback.function, None, struct
        )
        if callback.raised is not None:
            raise callback.raised
        check(result)
        return cls(_value(handle), config, struct)

    @classmethod
    def from_torch(cls, config: Config, group: Any = None) -> Communicator:
        """Creates this rank's communicator over a group of torch.distributed, of NCCL or Gloo.

        group  a process group, used in this call alone; None: the default group
        """
        num_ranks, rank, all_gather = _bootstrap.torch_group(group)
        return cls.from_callback(config, num_ranks, rank, all_gather)

    @classmethod
    def from_devices(
        cls, config: Config, num_ranks: int, devices: Optional[Sequence[int]] = None
    ) -> List[Communicator]:
        """Creates the communicators of all ranks, which are ranks of this process.

        devices  CUDA ordinals, rank by rank; None: 0, 1, 2, ...
        """
        struct = config._struct()
        num_ranks = integer("num_ranks", num_ranks)
        ordinals = None
        if devices is not None:
            if len(devices) != num_ranks:
                raise InvalidArgumentError(f"devices has {len(devices)} of {num_ranks} ranks")
            ordinals = (ctypes.c_int * num_ranks)(*devices)
        handles = (ctypes.c_void_p * max(num_ranks, 1))()
        check(_abi.library().hepCommInitAll(handles, num_ranks, ordinals, struct))
        return [cls(handle, config, struct) for handle in handles if handle is not None]

    @classmethod
    def from_nccl(cls, config: Config, nccl: int) -> Communicator:
        """Creates this rank's communicator over one of NCCL, with its ranks and its device.
        Collective.

        nccl  address of an ncclComm_t, used in this call alone
        """
        struct = config._struct()
        handle = ctypes.c_void_p()
        check(_abi.library().hepCommInitNccl(handle, nccl, struct))
        return cls(_value(handle), config, struct)

    @classmethod
    def from_mpi(cls, config: Config, mpi: Any) -> Communicator:
        """Creates this rank's communicator over one of mpi4py. Collective.

        mpi  has `rank`, `size` and `allgather`, and is used in this call alone
        """
        num_ranks, rank, all_gather = _bootstrap.mpi(mpi)
        return cls.from_callback(config, num_ranks, rank, all_gather)

    @classmethod
    def from_store(
        cls, config: Config, num_ranks: int, rank: int, store: Any, key: str = "hybridep"
    ) -> Communicator:
        """Creates this rank's communicator. Collective. Rank 0 puts a unique id in a store.

        store  of torch.distributed, or any object with set(key, text) and get(key). Where the key
               is missing, get may wait, return None or raise KeyError
        key    another one for each communicator
        """
        if rank == 0:
            identity = unique_id()
            _bootstrap.put_in_store(store, key, identity)
        else:
            identity = _bootstrap.take_from_store(store, key, config.init_timeout_ms)
        return cls.from_unique_id(config, num_ranks, rank, identity)

    @classmethod
    def from_file(
        cls, config: Config, num_ranks: int, rank: int, path: Union[str, os.PathLike[str]]
    ) -> Communicator:
        """Creates this rank's communicator. Collective. Rank 0 writes a unique id to a file, and
        removes it when it has its communicator.

        path  in a folder that all ranks share; another one for each communicator. Rank 0 refuses
              one that exists. The file is readable by its user alone
        """
        timeout_ms = config.init_timeout_ms
        file = pathlib.Path(path)
        with _bootstrap.identity_by_file(file, rank, unique_id, timeout_ms) as identity:
            return cls.from_unique_id(config, num_ranks, rank, identity)

    @classmethod
    def from_environment(cls, config: Config) -> Communicator:
        """Creates this rank's communicator among the processes that torchrun or mpirun started.
        Collective.

        Under torchrun the ranks meet over the default group of torch.distributed, if there is one,
        otherwise over torchrun's store. Under mpirun they meet over mpi4py, if it is installed,
        otherwise over a file, if all are on one machine. A thread that has no current device takes
        that of its local rank.
        """
        place = _environment.find_place()
        if config.backend != Backend.HOST and not _cuda.has_current_device():
            count = _cuda.device_count()
            if count > 0:
                _cuda.set_device(place.local_rank % count)
        if place.launcher.name == "torchrun":
            return cls._under_torchrun(config, place)
        return cls._under_mpirun(config, place)

    @classmethod
    def _under_torchrun(cls, config: Config, place: _environment.Place) -> Communicator:
        if _bootstrap.has_torch_group():
            return cls.from_torch(config)
        store = _bootstrap.torchrun_store(place.rank, place.num_ranks)
        key = f"hybridep-{next(_numbers)}"
        return cls.from_store(config, place.num_ranks, place.rank, store, key)

    @classmethod
    def _under_mpirun(cls, config: Config, place: _environment.Place) -> Communicator:
        world = _bootstrap.mpi_world()
        if world is not None:
            return cls.from_mpi(config, world)
        file = _environment.job_file(place)
        if file is None or not place.is_one_machine:
            raise UnsupportedError(
                f"{place.launcher.name} has started processes on several machines, or does not "
                "tell its job: install mpi4py"
            )
        return cls.from_file(config, place.num_ranks, place.rank, file)

    # ------------------------------------------------------------------------------ properties

    @property
    def config(self) -> Config:
        return self._config

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def num_ranks(self) -> int:
        return self._num_ranks

    @property
    def device(self) -> int:
        """The CUDA ordinal of the rank's device; -1 on the host backend."""
        return self._device

    @property
    def backend(self) -> Backend:
        """The backend that was chosen: never AUTO."""
        return self._backend

    @property
    def limits(self) -> Limits:
        return self._limits

    @property
    def closed(self) -> bool:
        return self._handle == 0

    # ---------------------------------------------------------------------------------- errors

    def async_error(self) -> Optional[Error]:
        """What has gone wrong on the device or with the peers, or None. Waits for nothing. The
        header's hepCommGetAsyncError says which errors the communicator survives.
        """
        result = ctypes.c_int()
        check(self._library.hepCommGetAsyncError(self._alive(), result))
        return None if result.value == 0 else make_error(result.value, self.failure())

    def failure(self) -> Optional[Failure]:
        """What failed first on this rank, or None. Waits for nothing."""
        struct = _abi.Failure()
        check(self._library.hepCommGetFailure(self._alive(), struct))
        return None if struct.result == Result.SUCCESS else Failure._of(struct)

    def abort(self) -> None:
        """Ends the running operations of all ranks early. From any thread, at any time."""
        check(self._library.hepCommAbort(self._alive()))

    # ---------------------------------------------------------------------------------- memory

    def routing_bytes(
        self, mode: Mode = Mode.THROUGHPUT, max_tokens: int = 0, max_top_k: int = 0
    ) -> int:
        """Bytes of memory that a routing takes, for one that the caller brings: see `Routing`."""
        config = _abi.RoutingConfig(
            mode=integer("mode", mode),
            max_tokens=integer("max_tokens", max_tokens),
            max_top_k=integer("max_top_k", max_top_k),
        )
        num_bytes = ctypes.c_uint64()
        self._check(self._library.hepRoutingMemoryBytes(self._alive(), config, num_bytes))
        return num_bytes.value

    def allocate(self, shape: Sequence[int], dtype: DataType) -> Memory:
        """An array in the heap (`heap_bytes` of the config), from which peers read tokens in place.
        Local. It is not cleared, and is aligned to 256 bytes. It lives until `free` or `close`.

        dtype  type of its elements
        """
        name = _arrays.NAME_OF_ROW_TYPE[DataType(dtype)]
        num_bytes = math.prod(shape) * _arrays.ELEMENT_BYTES[name]
        pointer = ctypes.c_void_p()
        with self._alone():
            self._check(self._library.hepMemAlloc(self._alive(), num_bytes, pointer))
        return Memory(pointer.value or 0, tuple(shape), name, self._device, False, self)

    def free(self, memory: Memory) -> None:
        """Gives memory back to the heap. No enqueued operation may use it."""
        with self._alone():
            self._check(self._library.hepMemFree(self._alive(), memory.pointer))

    def register(self, array: Any) -> None:
        """Registers an array, so that peers read tokens in it in place. Collective: all ranks call
        it, each with an array of its own or None. Waits for all ranks.

        array  contiguous, of the rank's device. It is kept alive until `deregister` or `close`
        """
        pointer, num_bytes, owner = self._range_of(array)
        with self._alone():
            self._check(self._library.hepCommRegister(self._alive(), pointer, num_bytes))
            if pointer is not None:
                self._registered[pointer] = owner

    def deregister(self, array: Any) -> None:
        """Undoes `register` of the same array. Collective, with None likewise. Waits for all ranks.
        No enqueued operation may use the array.
        """
        pointer, _, _ = self._range_of(array)
        with self._alone():
            self._check(self._library.hepCommDeregister(self._alive(), pointer))
            self._registered.pop(pointer, None)

    def _range_of(self, array: Any) -> Tuple[Optional[int], int, Any]:
        if array is None:
            return None, 0, None
        arguments = Arguments(self._device)
        seen = _arrays.view(array, "array")
        pointer = arguments.add(seen, "array", seen.shape, is_output=True)
        return pointer, seen.nbytes, seen.owner

    # ----------------------------------------------------------------------------------- close

    def close(self) -> None:
        """Destroys the routings and the communicator. Waits for no peer. On the cuda backend it
        waits until the communicator's operations have left the device. An operation between its
        halves is ended as by `abort`.
        """
        with self._alone():
            if self._handle == 0:
                return
            self._destroy_routings()
            self._check(self._library.hepCommDestroy(self._handle))
            self._forget("is closed")
            self._registered.clear()

    def __enter__(self) -> Communicator:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        value: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def __del__(self) -> None:
        """No routing is in use, since each keeps its communicator. Routings that go in the same
        garbage collection may have a finaliser that has not been called.
        """
        if getattr(self, "_handle", 0) != 0:
            with contextlib.suppress(Error):
                self.close()

    def __repr__(self) -> str:
        state = self._why_closed or self._backend.name.lower()
        return f"<hybridep.Communicator rank {self._rank} of {self._num_ranks}, {state}>"

    # --------------------------------------------------------------------------------- private

    def _number(self, name: str) -> int:
        number = ctypes.c_int()
        check(getattr(self._library, name)(self._handle, number))
        return number.value

    def _alive(self) -> int:
        """The handle, unless this communicator can no longer be used."""
        if self._handle == 0:
            raise InvalidUsageError(f"the communicator {self._why_closed}")
        return self._handle

    def _check(self, result: int) -> None:
        """Raises the error of a call on this communicator, with what made it fail."""
        if result != 0:
            struct = _abi.Failure()
            error = make_error(result)
            self._library.hepCommGetFailure(self._handle, struct)
            error.failure = None if struct.result == 0 else Failure._of(struct)
            raise error

    def _lane(self, mode: Mode, lane: int) -> threading.RLock:
        if not 0 <= lane < _LANES_OF_A_MODE:
            raise InvalidArgumentError(f"lane is {lane}, but must be 0 to {_LANES_OF_A_MODE - 1}")
        return self._lanes[mode * _LANES_OF_A_MODE + lane]

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeps all other calls on the communicator out, those of every lane."""
        with contextlib.ExitStack() as held:
            for lock in self._lanes:
                held.enter_context(lock)
            yield

    def _destroy_abandoned(self) -> None:
        """Destroys the routings that nobody holds any more. The caller is alone.

        Between its halves a routing cannot be destroyed. It stays for the next time.
        """
        for _ in range(len(self._abandoned)):
            entry = self._abandoned.popleft()
            if self._library.hepRoutingDestroy(entry[0]) != 0:
                self._abandoned.append(entry)
            else:
                self._routing_handles.discard(entry[0])

    def _destroy_routings(self) -> None:
        """Destroys all routings. Between its halves one can be destroyed only after an abort."""
        for routing in list(self._routings):
            routing._abandon()
        for handle in self._routing_handles.difference(entry[0] for entry in self._abandoned):
            self._abandoned.append((handle, None))
        self._destroy_abandoned()
        if self._abandoned:
            self._check(self._library.hepCommAbort(self._handle))
            self._destroy_abandoned()

    def _forget(self, why: str) -> None:
        self._handle = 0
        self._why_closed = why
        for routing in list(self._routings):
            routing._handle = 0

    def _close_at_exit(self) -> None:
        """A daemon thread may be in a call, and would hold a lock until it times out."""
        if self._handle == 0:
            return
        if not all([lock.acquire(blocking=False) for lock in self._lanes]):
            self._library.hepCommAbort(self._handle)
        self.close()


def _new_lanes() -> List[threading.RLock]:
    """A lock for each lane of each mode."""
    return [threading.RLock() for _ in range(2 * _LANES_OF_A_MODE)]


def _value(handle: ctypes.c_void_p) -> int:
    assert handle.value is not None
    return handle.value


def _close_all() -> None:
    for communicator in list(_all):
        try:
            communicator._close_at_exit()
        except Exception:  # the process ends: nobody is left who could handle it
            pass


def _forget_all() -> None:
    """Runs in a child of fork(), where locks may be held by threads that do not exist there."""
    for communicator in list(_all):
        communicator._forget(
            f"belongs to the parent of process {os.getpid()}: a child of fork() must create its own"
        )
        communicator._lanes = _new_lanes()
        for routing in list(communicator._routings):
            routing._lane = threading.RLock()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_all)
