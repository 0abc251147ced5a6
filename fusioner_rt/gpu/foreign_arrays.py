"""Exchange of GPU arrays with other libraries without a copy, by `__cuda_array_interface__` and DLPack."""

import contextlib
from typing import Any

import numpy as np

from ..device_array import DeviceArray
from ..errors import CudaFailed, DeviceArrayInvalid, one_line
from .driver import Device, Event, Memory
from .memory_pool import MemoryPool

_LEGACY_DEFAULT = 1  # CUDA's default stream in both protocols; its handle is 0
_ON_CUDA = 2  # kDLCUDA


class GpuArray:
    """An array that owns its GPU memory, also after its session is closed. torch.from_dlpack, torch.as_tensor and
    cupy.asarray take it without a copy.

    shape, dtype: as numpy's. stream: the CUDA stream that fills it. Read it on this stream, or by `from_dlpack`, which
    makes the reader's stream wait. `numpy()` copies it to the host.

    Memory that only `stream` used is reused by the next result on that stream. Memory that other readers may use is freed,
    for which CUDA waits for all work.
    """

    def __init__(
        self, pool: MemoryPool[Memory], device: Device, shape: tuple[int, ...], dtype: str, stream: int
    ) -> None:
        """pool: of the session. The array may outlive it."""
        self.shape, self.dtype, self.stream = shape, np.dtype(dtype), stream
        self._pool: MemoryPool[Memory] | None = pool
        self._shared = False  # with readers on other streams
        self._owns = False
        size = int(np.prod(shape)) * self.dtype.itemsize
        with contextlib.ExitStack() as stack:
            self._device = device.again()
            stack.callback(self._device.close)
            memory = pool.take(size, stream)
            if memory is None:
                self._pool, memory = None, Memory(self._device, size, stream)
            self._memory = memory
            stack.callback(self._give_back)
            self._filled = Event(self._device)
            stack.pop_all()
        self._owns = True

    @property
    def array(self) -> DeviceArray:
        return DeviceArray(self._memory.pointer, self.shape, self.dtype.name)

    def filled(self) -> None:
        """Mark that `stream` was given the work that fills it."""
        self._filled.record(self.stream)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        self._shared = True  # the reader's own stream is unknown
        return self._interface()

    def __dlpack__(self, *, stream: int | None = None, **options: Any) -> Any:
        from cuda.core.utils import StridedMemoryView

        if options.get("dl_device") == self.__dlpack_device__():  # the array is there already
            del options["dl_device"]
        if stream != -1:  # the consumer's stream waits; None means the default one
            self._filled.hold(0 if stream in (None, _LEGACY_DEFAULT) else stream)
        self._shared |= (stream or _LEGACY_DEFAULT) != (self.stream or _LEGACY_DEFAULT)
        strided = StridedMemoryView.from_cuda_array_interface(_Owner(self), stream_ptr=-1)
        return strided.__dlpack__(stream=-1, **options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return _ON_CUDA, self._device.ordinal

    def numpy(self) -> np.ndarray:
        """A copy in host memory, complete when this returns."""
        return self._memory.download(np.empty(self.shape, self.dtype), self.stream)

    def _interface(self) -> dict[str, Any]:
        return {
            "version": 3, "shape": self.shape, "typestr": self.dtype.str, "data": (self._memory.pointer, False),
            "strides": None, "stream": self.stream or _LEGACY_DEFAULT,
        }  # fmt: skip

    def _give_back(self) -> None:
        if self._pool is None:
            self._memory.close()  # waits for all work
        else:
            self._pool.give(self._memory, self.stream, alone=not self._shared)

    def __del__(self) -> None:
        if self._owns:
            # at interpreter shutdown, or on a GPU that failed
            with contextlib.suppress(Exception), contextlib.ExitStack() as stack:
                stack.callback(self._device.close)
                stack.callback(self._give_back)
                self._filled.close()


class _Owner:
    """Keeps a GpuArray alive for a reader of DLPack, without marking it as shared."""

    def __init__(self, array: GpuArray) -> None:
        self._array = array
        self.__cuda_array_interface__ = array._interface()


def view(array: Any, name: str, device: Device, stream: int, writable: bool = False) -> DeviceArray:
    """The GPU array of another library's object, which must outlive the work on it.

    array: with `__cuda_array_interface__` or `__dlpack__`, contiguous. stream: waits for the work that fills the array,
    where the object tells its stream. Raises DeviceArrayInvalid, also for memory of another GPU, and for read-only memory
    if `writable`.
    """
    if isinstance(array, GpuArray):
        return array.array
    if isinstance(array, DeviceArray):
        device.check_owns(array.pointer, name)
        return array
    try:
        interface = getattr(array, "__cuda_array_interface__", None)
        if interface is not None:
            _wait(array, interface.get("stream"), device, stream)
        else:
            interface = _from_dlpack(array, name, device, stream)
    except (DeviceArrayInvalid, CudaFailed):
        raise
    except Exception as error:  # the producer's, of any kind
        raise DeviceArrayInvalid(
            f"the {type(array).__name__} gives no array ({one_line(error)})", subject=name
        ) from None
    result = DeviceArray.of(type("Described", (), {"__cuda_array_interface__": interface})(), name)
    if writable and interface["data"][1]:
        raise DeviceArrayInvalid(f"{name} is read-only", "give an array that may be written")
    device.check_owns(result.pointer, name)
    return result


def _from_dlpack(array: Any, name: str, device: Device, stream: int) -> dict[str, Any]:
    """The `__cuda_array_interface__` of a DLPack object."""
    if not hasattr(array, "__dlpack__"):
        raise DeviceArrayInvalid(
            f"{name} is a {type(array).__name__}",
            "give an array in GPU memory with __cuda_array_interface__ or __dlpack__ (torch, CuPy, "
            "PyCUDA, Numba), or use segment for pictures in host memory",
        )
    if array.__dlpack_device__()[0] != _ON_CUDA:
        raise DeviceArrayInvalid(
            f"{name} is a {type(array).__name__} in host memory", f"copy it to {device}, or use segment, which does"
        )
    from cuda.core.utils import StridedMemoryView

    source = StridedMemoryView.from_dlpack(array, stream_ptr=stream or _LEGACY_DEFAULT)
    dtype = np.dtype(source.dtype)
    strides = None if source.strides is None else tuple(step * dtype.itemsize for step in source.strides)
    data = (source.ptr, source.readonly)
    return {"shape": tuple(source.shape), "typestr": dtype.str, "data": data, "strides": strides}


def _wait(array: Any, producer: int | None, device: Device, stream: int) -> None:
    """Let `stream` wait for the work that fills the array: for the producer's stream if known, else by `__dlpack__`, where
    the producer makes `stream` wait (PyTorch does only that).
    """
    if producer is None:
        if hasattr(array, "__dlpack__"):
            array.__dlpack__(stream=stream or _LEGACY_DEFAULT)
        return
    if producer == (stream or _LEGACY_DEFAULT):
        return
    event = Event(device)
    try:
        event.record(0 if producer == _LEGACY_DEFAULT else producer)
        event.hold(stream)
    finally:
        event.close()
