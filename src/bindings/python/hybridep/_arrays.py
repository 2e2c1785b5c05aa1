# SPDX-License-Identifier: Apache-2.0
"""Arrays of any framework as memory: where it lies, its shape and type, and who makes another one.

A framework is recognised by the object, and only if its module is loaded: nothing is imported here.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any, Callable, Dict, NamedTuple, Optional, Sequence, Tuple

from . import _dlpack
from ._enums import DataType
from ._errors import InvalidArgumentError
from ._memory import Memory

HOST = -1  # the device of memory of the process
UNKNOWN_DEVICE = -2  # a GPU that the array does not name

ELEMENT_BYTES = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "int16": 2,
    "uint16": 2,
    "int32": 4,
    "uint32": 4,
    "int64": 8,
    "uint64": 8,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "float8_e8m0fnu": 1,
    "bfloat16": 2,
    "float16": 2,
    "float32": 4,
    "float64": 8,
}

# The element types of rows, and the library's name of each.
ROW_TYPES = {
    "bfloat16": DataType.BFLOAT16,
    "float16": DataType.FLOAT16,
    "float32": DataType.FLOAT32,
    "float8_e4m3fn": DataType.FLOAT8_E4M3,
    "float8_e5m2": DataType.FLOAT8_E5M2,
    "uint8": DataType.BYTES,
    "int8": DataType.BYTES,
}
NAME_OF_ROW_TYPE = {
    DataType.BFLOAT16: "bfloat16",
    DataType.FLOAT16: "float16",
    DataType.FLOAT32: "float32",
    DataType.FLOAT8_E4M3: "float8_e4m3fn",
    DataType.FLOAT8_E5M2: "float8_e5m2",
    DataType.BYTES: "uint8",
}

Shape = Tuple[int, ...]


class Framework(NamedTuple):
    """How a framework allocates and which stream is its current one.

    empty   (shape, type name, array whose device it shares) -> array of that type, or of plain
            integers of its size where the framework lacks it
    like    (shape, array) -> array of the same element type on the same device
    address (array that was just allocated) -> where it lies
    stream  (device) -> handle of its current stream
    """

    name: str
    empty: Callable[[Shape, str, Any], Any]
    like: Callable[[Shape, Any], Any]
    address: Callable[[Any], int]
    stream: Callable[[int], int]


class View(NamedTuple):
    """The memory of an array."""

    pointer: int
    shape: Shape
    type: str  # a name of ELEMENT_BYTES, or whatever else the array says
    device: int  # CUDA ordinal, HOST or UNKNOWN_DEVICE
    writable: bool
    contiguous: bool
    framework: Framework
    array: Any  # what the framework allocates like
    owner: Any  # keeps the memory alive

    @property
    def nbytes(self) -> int:
        total = ELEMENT_BYTES[self.type]
        for size in self.shape:
            total *= size
        return total


def _is_dense(shape: Sequence[int], strides: Optional[Sequence[int]], step: int) -> bool:
    """Whether strides, in units of which an element has `step`, are those of a row-major array."""
    if strides is None or 0 in shape:
        return True
    for size, stride in zip(reversed(shape), reversed(strides)):
        if size > 1 and stride != step:
            return False
        step *= size
    return True


def _substitute(type_name: str) -> str:
    """Plain integers of the size of a type that a framework may lack."""
    return {1: "uint8", 2: "int16", 4: "int32", 8: "int64"}[ELEMENT_BYTES[type_name]]


# ----------------------------------------------------------------------------------------- torch

_torch_names: Dict[Any, str] = {}


def _torch_name(torch: Any, dtype: Any) -> str:
    if not _torch_names:
        known = {getattr(torch, name): name for name in ELEMENT_BYTES if hasattr(torch, name)}
        _torch_names.update(known)
    return _torch_names.get(dtype, str(dtype))


def _torch_empty(shape: Shape, type_name: str, array: Any) -> Any:
    torch = sys.modules["torch"]
    dtype = getattr(torch, type_name, None) or getattr(torch, _substitute(type_name))
    return torch.empty(shape, dtype=dtype, device=array.device)


def _torch_like(shape: Shape, array: Any) -> Any:
    return sys.modules["torch"].empty(shape, dtype=array.dtype, device=array.device)


def _torch_stream(device: int) -> int:
    stream: int = sys.modules["torch"].cuda.current_stream(device).cuda_stream
    return stream


def _torch_address(tensor: Any) -> int:
    address: int = tensor.data_ptr()
    return address


TORCH = Framework("torch", _torch_empty, _torch_like, _torch_address, _torch_stream)


def _view_torch(torch: Any, tensor: Any) -> View:
    """Most calls are of such tensors, so no more is called here than is needed."""
    device = tensor.get_device() if tensor.is_cuda else HOST
    if device == HOST and (not tensor.is_cpu or tensor.layout is not torch.strided):
        raise TypeError(f"a {tensor.layout} tensor on {tensor.device}")
    name = _torch_names.get(tensor.dtype) or _torch_name(torch, tensor.dtype)
    shape, contiguous = tuple(tensor.shape), tensor.is_contiguous()
    return View(tensor.data_ptr(), shape, name, device, True, contiguous, TORCH, tensor, tensor)


# ----------------------------------------------------------------------------------------- NumPy


def _numpy_dtype(type_name: str) -> Any:
    numpy = sys.modules["numpy"]
    ml_dtypes = sys.modules.get("ml_dtypes")
    if hasattr(ml_dtypes, type_name):
        return getattr(ml_dtypes, type_name)
    return getattr(numpy, "bool_" if type_name == "bool" else type_name, None)


def _numpy_empty(shape: Shape, type_name: str, _: Any) -> Any:
    dtype = _numpy_dtype(type_name) or _numpy_dtype(_substitute(type_name))
    return sys.modules["numpy"].empty(shape, dtype)


def _numpy_like(shape: Shape, array: Any) -> Any:
    return sys.modules["numpy"].empty(shape, array.dtype)


def _default_stream(_: int) -> int:
    """The legacy default stream."""
    return 0


def _numpy_address(array: Any) -> int:
    address: int = array.ctypes.data
    return address


NUMPY = Framework("numpy", _numpy_empty, _numpy_like, _numpy_address, _default_stream)


def _view_numpy(array: Any) -> View:
    return View(
        pointer=array.ctypes.data,
        shape=array.shape,
        type=array.dtype.name,
        device=HOST,
        writable=array.flags.writeable,
        contiguous=array.flags.c_contiguous,
        framework=NUMPY,
        array=array,
        owner=array,
    )


# ------------------------------------------------------------------------------- buffer protocol

_BUFFER_TYPES = {("f", 4): "float32", ("d", 8): "float64", ("e", 2): "float16", ("?", 1): "bool"}
_BUFFER_FORMATS = {
    "bool": "?",
    "uint8": "B",
    "int8": "b",
    "int16": "h",
    "uint16": "H",
    "int32": "i",
    "uint32": "I",
    "int64": "q",
    "uint64": "Q",
    "float32": "f",
    "float64": "d",
}


class _Buffer(ctypes.Structure):
    """Py_buffer"""

    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


def _address_of(view: memoryview) -> int:
    buffer = _Buffer()
    full_read_only = 0x11C  # PyBUF_FULL_RO
    ctypes.pythonapi.PyObject_GetBuffer(
        ctypes.py_object(view), ctypes.byref(buffer), ctypes.c_int(full_read_only)
    )
    address: int = buffer.buf or 0
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))
    return address


def _buffer_type(view: memoryview) -> str:
    code = view.format.lstrip("@=<")
    if (code, view.itemsize) in _BUFFER_TYPES:
        return _BUFFER_TYPES[code, view.itemsize]
    if code in ("c", "B", "b"):
        return "int8" if code == "b" else "uint8"
    if code in tuple("hilqn"):
        return f"int{8 * view.itemsize}"
    return f"uint{8 * view.itemsize}" if code in tuple("HILQN") else view.format


def _buffer_empty(shape: Shape, type_name: str, _: Any) -> memoryview:
    native = type_name if type_name in _BUFFER_FORMATS else _substitute(type_name)
    return _plain_memory(shape, _BUFFER_FORMATS[native], ELEMENT_BYTES[native])


def _buffer_like(shape: Shape, array: memoryview) -> memoryview:
    return _buffer_empty(shape, _buffer_type(array), array)


def _plain_memory(shape: Shape, code: str, element_bytes: int) -> memoryview:
    """Memory of the process. An array without elements has one dimension: views have no others."""
    num_bytes = element_bytes
    for size in shape:
        num_bytes *= size
    memory: Any = memoryview(bytearray(num_bytes))
    plain: memoryview = memory.cast(code, shape) if num_bytes > 0 else memory.cast(code)
    return plain


BUFFER = Framework("the buffer protocol", _buffer_empty, _buffer_like, _address_of, _default_stream)


def _view_buffer(array: Any) -> View:
    view = memoryview(array)
    return View(
        pointer=_address_of(view),
        shape=view.shape or (),
        type=_buffer_type(view),
        device=HOST,
        writable=not view.readonly,
        contiguous=view.c_contiguous,
        framework=BUFFER,
        array=view,
        owner=view,
    )


# ---------------------------------------------------------------------- __cuda_array_interface__


def _cupy_empty(shape: Shape, type_name: str, array: Any) -> Any:
    dtype = _numpy_dtype(type_name) or _numpy_dtype(_substitute(type_name))
    with array.device:
        return sys.modules["cupy"].empty(shape, dtype)


def _cupy_like(shape: Shape, array: Any) -> Any:
    with array.device:
        return sys.modules["cupy"].empty(shape, array.dtype)


def _cupy_stream(device: int) -> int:
    cuda = sys.modules["cupy"].cuda
    with cuda.Device(device):
        stream: int = cuda.get_current_stream().ptr
    return stream


def _cupy_address(array: Any) -> int:
    address: int = array.data.ptr
    return address


CUPY = Framework("cupy", _cupy_empty, _cupy_like, _cupy_address, _cupy_stream)


def _cannot_allocate(*_: Any) -> Any:
    raise TypeError("the package cannot allocate arrays of this framework: give all outputs")


OTHER = Framework("other", _cannot_allocate, _cannot_allocate, _cannot_allocate, _default_stream)

_INTERFACE_KINDS = {"f": "float", "i": "int", "u": "uint"}


def _interface_type(array: Any, typestr: str) -> str:
    kind, size = typestr[1], int(typestr[2:])
    if kind == "b":
        return "bool"
    if kind in _INTERFACE_KINDS:
        return f"{_INTERFACE_KINDS[kind]}{8 * size}"
    return getattr(getattr(array, "dtype", None), "name", typestr)


def _view_interface(array: Any, interface: Dict[str, Any]) -> View:
    pointer, read_only = interface["data"]
    name = _interface_type(array, interface["typestr"])
    shape = tuple(interface["shape"])
    strides = interface.get("strides")
    device = getattr(getattr(array, "device", None), "id", UNKNOWN_DEVICE)
    is_cupy = type(array).__module__.split(".")[0] == "cupy"
    return View(
        pointer=pointer or 0,
        shape=shape,
        type=name,
        device=device,
        writable=not read_only,
        contiguous=_is_dense(shape, strides, int(interface["typestr"][2:])),
        framework=CUPY if is_cupy else OTHER,
        array=array,
        owner=array,
    )


# ---------------------------------------------------------------------------------------- DLPack


def _jax_dtype(type_name: str) -> Any:
    numpy = sys.modules["jax"].numpy
    return getattr(numpy, type_name, None) or getattr(numpy, _substitute(type_name))


def _jax_empty(shape: Shape, type_name: str, array: Any) -> Any:
    return _jax_allocate(shape, _jax_dtype(type_name), array)


def _jax_like(shape: Shape, array: Any) -> Any:
    return _jax_allocate(shape, array.dtype, array)


def _jax_allocate(shape: Shape, dtype: Any, array: Any) -> Any:
    """A new array that nobody has seen yet: the one time that JAX's memory may be written."""
    jax = sys.modules["jax"]
    device = next(iter(array.devices()))
    return jax.device_put(jax.numpy.zeros(shape, dtype), device).block_until_ready()


def _jax_stream(_: int) -> int:
    raise TypeError("JAX does not tell its stream: give one")


def _jax_address(array: Any) -> int:
    address: int = array.unsafe_buffer_pointer()
    return address


JAX = Framework("jax", _jax_empty, _jax_like, _jax_address, _jax_stream)


def _view_dlpack(array: Any) -> View:
    is_jax = type(array).__module__.split(".")[0] in ("jax", "jaxlib")
    if is_jax:
        array.block_until_ready()  # JAX computes behind the caller's back, on streams of its own
    tensor = _dlpack.borrow(array)
    return View(
        pointer=tensor.pointer,
        shape=tensor.shape,
        type=tensor.type,
        device=tensor.device,
        writable=not (tensor.read_only or is_jax),  # arrays of JAX never change
        contiguous=_is_dense(tensor.shape, tensor.strides, 1),
        framework=JAX if is_jax else OTHER,
        array=array,
        owner=(array, tensor.capsule),
    )


# ------------------------------------------------------------------------------------------ view


def _view_memory(memory: Memory) -> View:
    return View(
        pointer=memory.pointer,
        shape=memory.shape,
        type=memory.type,
        device=memory.device,
        writable=not memory.read_only,
        contiguous=True,
        framework=OTHER,
        array=memory,
        owner=memory,
    )


def _recognise(array: Any) -> View:
    if isinstance(array, Memory):
        return _view_memory(array)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        return _view_torch(torch, array)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(array, numpy.ndarray):
        return _view_numpy(array)
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is not None:
        return _view_interface(array, interface)
    if hasattr(array, "__dlpack__"):
        return _view_dlpack(array)
    return _view_buffer(array)


def view(array: Any, name: str) -> View:
    """The memory of the array that the caller gave as argument `name`."""
    try:
        return _recognise(array)
    except (TypeError, BufferError) as error:
        raise TypeError(f"{name} is no array that the package can use: {error}") from error


def row_type(seen: View, dtype: Optional[DataType], name: str) -> DataType:
    """The library's type of the elements of rows: as told, or as the array says."""
    if dtype is None or dtype == DataType.DEFAULT:
        if seen.type not in ROW_TYPES:
            raise InvalidArgumentError(
                f"{name} has elements of type {seen.type}. Rows have one of "
                f"{', '.join(sorted(ROW_TYPES))}, or plain integers and dtype= that says what they "
                "hold"
            )
        return ROW_TYPES[seen.type]
    wanted = DataType(dtype)
    told = NAME_OF_ROW_TYPE[wanted]
    plain = (
        seen.type.startswith(("int", "uint")) and ELEMENT_BYTES[seen.type] == ELEMENT_BYTES[told]
    )
    if seen.type != told and not plain:
        raise InvalidArgumentError(
            f"{name} has elements of type {seen.type}, which cannot be those of dtype {wanted.name}"
        )
    return wanted
