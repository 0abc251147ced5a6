"""The CUDA driver through cuda-bindings, with every return code checked; devices, streams, events and memory."""

import contextlib
import copy
import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..cures import INSTALL_DRIVER
from ..errors import BackendUnavailable, CudaFailed, DeviceArrayInvalid, GpuMemoryShort, one_line
from ..hardware import driver_missing
from ..memory_shortage import is_shortage


class Driver:
    """Checked calls of the driver's API by name: `driver.cuMemAlloc(1024)` returns the pointer or raises."""

    def __init__(self, bindings: Any = None) -> None:
        """bindings: cuda.bindings.driver, by default imported here. Raises BackendUnavailable where there is no driver."""
        if bindings is None:
            try:
                from cuda.bindings import driver
            except ImportError as error:
                if is_shortage(error):
                    raise
                raise BackendUnavailable(
                    f"cuda-bindings cannot be imported ({one_line(error)})", "pip install cuda-bindings cuda-core"
                ) from None
            bindings = driver
        self.bindings = bindings
        try:
            self.cuInit(0)
        except CudaFailed as error:
            raise BackendUnavailable(str(error), INSTALL_DRIVER) from None
        except BackendUnavailable:
            if missing := driver_missing():
                raise BackendUnavailable(f"there is no NVIDIA driver ({missing})", INSTALL_DRIVER) from None
            raise

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)
        call = getattr(self.bindings, name)

        def checked(*arguments: Any) -> Any:
            try:
                code, *results = call(*arguments)
            except RuntimeError as error:  # the driver library is missing or has no such call
                raise BackendUnavailable(one_line(error).rstrip("."), INSTALL_DRIVER, subject=name) from None
            if int(code):
                short = code == self.bindings.CUresult.CUDA_ERROR_OUT_OF_MEMORY
                raise (GpuMemoryShort if short else CudaFailed)(f"{name} failed: {self._explain(code)}")
            return results[0] if len(results) == 1 else tuple(results)

        setattr(self, name, checked)
        return checked

    def _explain(self, code: Any) -> str:
        """A return code as text, such as "CUDA_ERROR_OUT_OF_MEMORY (2): out of memory"."""
        name, text = (
            value.decode() if not int(error) and value else ""
            for error, value in (self.bindings.cuGetErrorName(code), self.bindings.cuGetErrorString(code))
        )
        return f"{name or 'an unknown error'} ({int(code)}){': ' + text if text else ''}"


class Device:
    """A GPU with its primary context, which other libraries of the process share.

    ordinal: among the GPUs this process sees. capability: (major, minor). Closing releases the context.
    Raises BackendUnavailable, CudaFailed.
    """

    def __init__(self, ordinal: int = 0, driver: Driver | None = None) -> None:
        self.driver = driver or Driver()
        count = self.driver.cuDeviceGetCount()
        if not 0 <= ordinal < count:
            raise BackendUnavailable(
                f"GPU {ordinal}: this process sees {count}, numbered from 0",
                "look at nvidia-smi and CUDA_VISIBLE_DEVICES",
            )
        self.ordinal = ordinal
        self.handle = self.driver.cuDeviceGet(ordinal)
        attribute = self.driver.bindings.CUdevice_attribute
        self.capability = tuple(
            int(self.driver.cuDeviceGetAttribute(part, self.handle))
            for part in (
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        self.has_pools = bool(
            self.driver.cuDeviceGetAttribute(attribute.CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED, self.handle)
        )
        self.name = self.driver.cuDeviceGetName(256, self.handle).split(b"\0")[0].decode()
        self._context: Any = self.driver.cuDevicePrimaryCtxRetain(self.handle)

    def __str__(self) -> str:
        return f"GPU {self.ordinal} ({self.name}, compute capability {self.capability[0]}.{self.capability[1]})"

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make this GPU's context current in the thread, and restore the previous one."""
        self.driver.cuCtxPushCurrent(self._context)
        try:
            yield
        finally:
            self.driver.cuCtxPopCurrent()

    def again(self) -> "Device":
        """The same GPU for another owner, closed separately. The context lives until all are closed."""
        other = copy.copy(self)
        other._context = self.driver.cuDevicePrimaryCtxRetain(self.handle)
        return other

    def check_owns(self, pointer: int, name: str) -> None:
        """Raises DeviceArrayInvalid where an address is not in this GPU's memory. name: of the array, for the message."""
        attribute = self.driver.bindings.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
        try:
            ordinal = int(self.driver.cuPointerGetAttribute(attribute, pointer))
        except CudaFailed as error:
            raise DeviceArrayInvalid(
                f"{name} at {pointer:#x} is no memory of a GPU ({error}); expected memory of {self}"
            ) from None
        if ordinal != self.ordinal:
            raise DeviceArrayInvalid(f"{name} lies on GPU {ordinal}; expected memory of {self}", "copy it there")

    @property
    def free_bytes(self) -> int:
        """Free memory in bytes."""
        with self.current():
            return int(self.driver.cuMemGetInfo()[0])

    def close(self) -> None:
        """Closing twice is fine."""
        if self._context is not None:
            self._context = None
            self.driver.cuDevicePrimaryCtxRelease(self.handle)


class Stream:
    """A CUDA stream. `with` waits for its work, then destroys it. handle: for CUDA calls."""

    def __init__(self, device: Device) -> None:
        self._device = device
        with device.current():
            flag = device.driver.bindings.CUstream_flags.CU_STREAM_NON_BLOCKING
            self.handle = int(device.driver.cuStreamCreate(int(flag)))

    def wait(self) -> None:
        with self._device.current():
            self._device.driver.cuStreamSynchronize(self.handle)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        with self._device.current():
            try:
                self._device.driver.cuStreamSynchronize(self.handle)
            finally:
                self._device.driver.cuStreamDestroy(self.handle)


class PinnedArray:
    """A numpy array in page-locked memory, for asynchronous copies. `close` frees it."""

    def __init__(self, device: Device, shape: tuple[int, ...], dtype: str) -> None:
        self._device = device
        self.size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        with device.current():
            self.pointer = int(device.driver.cuMemHostAlloc(self.size, 0))
        memory = (ctypes.c_uint8 * self.size).from_address(self.pointer)
        self.array = np.ctypeslib.as_array(memory).view(dtype).reshape(shape)

    def close(self) -> None:
        """The array must not be used afterwards. Closing twice is fine."""
        if self.pointer:
            pointer, self.pointer = self.pointer, 0
            del self.array
            with self._device.current():
                self._device.driver.cuMemFreeHost(pointer)


class Event:
    """A CUDA event: a point in a stream's work that other streams can wait for."""

    def __init__(self, device: Device) -> None:
        self._device = device
        with device.current():
            flag = device.driver.bindings.CUevent_flags.CU_EVENT_DISABLE_TIMING
            self._handle: Any = device.driver.cuEventCreate(int(flag))

    def record(self, stream: int) -> None:
        """Mark the work enqueued on `stream` so far."""
        with self._device.current():
            self._device.driver.cuEventRecord(self._handle, stream)

    def hold(self, stream: int) -> None:
        """Later work of `stream` waits for the work marked last, if any."""
        with self._device.current():
            self._device.driver.cuStreamWaitEvent(stream, self._handle, 0)

    def close(self) -> None:
        """Closing twice is fine."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            with self._device.current():
                self._device.driver.cuEventDestroy(handle)


class Memory:
    """GPU memory at `pointer`, a multiple of 256. `with` or `close` frees it, once no work uses it."""

    def __init__(self, device: Device, size: int, stream: int | None = None) -> None:
        """stream: allocate in its order if the GPU has memory pools, so that nothing else waits and no recording breaks."""
        self._device, self.size = device, size
        self._pooled = stream is not None and device.has_pools
        with device.current():
            if self._pooled:
                self.pointer = int(device.driver.cuMemAllocAsync(size, stream))
            else:
                self.pointer = int(device.driver.cuMemAlloc(size))

    def upload(self, array: np.ndarray, stream: int = 0) -> None:
        """Copy an array to this memory on the stream, and wait."""
        array = np.ascontiguousarray(array)
        self._check(array.nbytes)
        with self._device.current():
            self._device.driver.cuMemcpyHtoDAsync(self.pointer, array.ctypes.data, array.nbytes, stream)
            self._device.driver.cuStreamSynchronize(stream)

    def download(self, array: np.ndarray, stream: int = 0) -> np.ndarray:
        """Fill a contiguous array from this memory on the stream, and wait. Returns the array."""
        if not array.flags.c_contiguous:
            raise ValueError("the array that a download fills must be contiguous")
        self._check(array.nbytes)
        with self._device.current():
            self._device.driver.cuMemcpyDtoHAsync(array.ctypes.data, self.pointer, array.nbytes, stream)
            self._device.driver.cuStreamSynchronize(stream)
        return array

    def close(self) -> None:
        """Closing twice is fine."""
        if self.pointer:
            pointer, self.pointer = self.pointer, 0
            with self._device.current():
                try:
                    if self._pooled:  # cuMemFree does not wait for the users of such memory
                        self._device.driver.cuCtxSynchronize()
                finally:
                    self._device.driver.cuMemFree(pointer)

    def __enter__(self) -> "Memory":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, size: int) -> None:
        if size > self.size:
            raise ValueError(f"{size} bytes do not fit the {self.size} of this memory")
