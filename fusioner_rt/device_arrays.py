"""Arrays that come from, and go to, other libraries in GPU memory: `__cuda_array_interface__` and DLPack, no copy."""

import contextlib
from typing import Any

import numpy as np

from .cuda_driver import Device, Event, Memory
from .cuda_mask_head import DeviceArray
from .errors import DeviceArrayInvalid, one_line

_LEGACY_DEFAULT = 1  # how both protocols name CUDA's default stream, whose handle is 0


class GpuArray:
    """An array in GPU memory that owns it. torch.as_tensor, cupy.asarray and from_dlpack take it without a copy.

    shape, dtype: as numpy's. stream: the CUDA stream whose work fills it; who reads it by either protocol on another
    stream waits there. `numpy()` copies it to the host.
    """

    def __init__(self, device: Device, shape: tuple[int, ...], dtype: str, stream: int) -> None:
        self.shape, self.dtype, self.stream = shape, np.dtype(dtype), stream
        self._device = device
        self._memory = Memory(device, int(np.prod(shape)) * self.dtype.itemsize)
        self._filled = Event(device)

    @property
    def array(self) -> DeviceArray:
        return DeviceArray(self._memory.pointer, self.shape, self.dtype.name)

    def filled(self) -> None:
        """Mark that `stream` was given the work that fills it."""
        self._filled.record(self.stream)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3, "shape": self.shape, "typestr": self.dtype.str, "data": (self._memory.pointer, False),
            "strides": None, "stream": self.stream or _LEGACY_DEFAULT,
        }  # fmt: skip

    def __dlpack__(self, *, stream: int | None = None, **options: Any) -> Any:
        from cuda.core.utils import StridedMemoryView

        if stream != -1:  # the consumer's stream waits; None means the default one
            self._filled.hold(0 if stream in (None, _LEGACY_DEFAULT) else stream)
        return StridedMemoryView.from_cuda_array_interface(self, stream_ptr=-1).__dlpack__(stream=-1, **options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self._device.ordinal  # kDLCUDA

    def numpy(self) -> np.ndarray:
        """A copy in host memory, complete when this returns."""
        return self._memory.download(np.empty(self.shape, self.dtype), self.stream)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # at interpreter shutdown, or where making it failed
            self._filled.close()
            self._memory.close()  # waits for what uses it


def view(array: Any, name: str, device: Device, stream: int) -> tuple[DeviceArray, Any]:
    """What an object of another library holds in GPU memory, and what must be kept alive while it is used.

    array: with `__cuda_array_interface__` or `__dlpack__`, contiguous. stream: waits for the work that fills the array,
    where the object tells of it. Raises DeviceArrayInvalid.
    """
    if isinstance(array, DeviceArray):
        return array, array
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is not None:
        _wait(interface.get("stream"), device, stream)
        return DeviceArray.of(array, name), array
    if not hasattr(array, "__dlpack__"):
        raise DeviceArrayInvalid(
            f"{name} is a {type(array).__name__}; give an array in GPU memory with __cuda_array_interface__ or __dlpack__ "
            "(torch, CuPy, PyCUDA, Numba), or use segment for pictures in host memory"
        )
    if array.__dlpack_device__()[0] != 2:
        raise DeviceArrayInvalid(
            f"{name} is a {type(array).__name__} in host memory; copy it to {device}, or use segment, which does"
        )
    from cuda.core.utils import StridedMemoryView

    try:
        held = StridedMemoryView.from_dlpack(array, stream_ptr=stream or _LEGACY_DEFAULT)
    except Exception as error:  # the producer's, of any kind
        raise DeviceArrayInvalid(f"{name}: its __dlpack__ failed ({one_line(error)})") from None
    interface = {
        "shape": tuple(held.shape), "typestr": np.dtype(held.dtype).str, "data": (held.ptr, held.readonly),
        "strides": None if held.strides is None else tuple(step * np.dtype(held.dtype).itemsize for step in held.strides),
    }  # fmt: skip
    described = type("Described", (), {"__cuda_array_interface__": interface})()
    return DeviceArray.of(described, name), held


def _wait(producer: int | None, device: Device, stream: int) -> None:
    """Where a producer names its stream, `stream` waits for what that was given."""
    if producer is None or producer == (stream or _LEGACY_DEFAULT):
        return
    event = Event(device)
    try:
        event.record(0 if producer == _LEGACY_DEFAULT else producer)
        event.hold(stream)
    finally:
        event.close()
