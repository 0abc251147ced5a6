"""The CUDA driver through cuda-bindings: every return code is read, memory and streams are given back."""

import contextlib
import copy
import ctypes
import gc
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import numpy as np

from ..errors import BackendUnavailable, CudaFailed, DeviceArrayInvalid, GpuMemoryShort, one_line
from ..hardware import driver_missing

INSTALL = "install NVIDIA's driver, or a newer one"


class Driver:
    """Calls of the driver's API by their names, checked: `driver.cuMemAlloc(1024)` returns the pointer or raises."""

    def __init__(self, bindings: Any = None) -> None:
        """bindings: cuda.bindings.driver, by default imported here. Raises BackendUnavailable where there is no driver."""
        if bindings is None:
            try:
                from cuda.bindings import driver
            except ImportError as error:
                raise BackendUnavailable(
                    f"cuda-bindings cannot be imported ({one_line(error)})", "pip install cuda-bindings cuda-core"
                ) from None
            bindings = driver
        self.bindings = bindings
        try:
            self.cuInit(0)
        except CudaFailed as error:
            raise BackendUnavailable(str(error), INSTALL) from None
        except BackendUnavailable:
            if missing := driver_missing():
                raise BackendUnavailable(f"there is no NVIDIA driver ({missing})", INSTALL) from None
            raise

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)
        call = getattr(self.bindings, name)

        def checked(*arguments: Any) -> Any:
            try:
                code, *results = call(*arguments)
            except (
                RuntimeError
            ) as error:  # cuda-bindings raises where there is no driver library, or one without this call
                raise BackendUnavailable(f"{one_line(error).rstrip('.')}", INSTALL, subject=name) from None
            if int(code):
                short = code == self.bindings.CUresult.CUDA_ERROR_OUT_OF_MEMORY
                raise (GpuMemoryShort if short else CudaFailed)(f"{name} failed: {self._explained(code)}")
            return results[0] if len(results) == 1 else tuple(results)

        setattr(self, name, checked)
        return checked

    def _explained(self, code: Any) -> str:
        """CUDA_ERROR_OUT_OF_MEMORY (2): out of memory."""
        name, text = (
            answer.decode() if not int(failed) and answer else ""
            for failed, answer in (self.bindings.cuGetErrorName(code), self.bindings.cuGetErrorString(code))
        )
        return f"{name or 'an unknown error'} ({int(code)}){': ' + text if text else ''}"


class Device:
    """One GPU with its primary context, which other libraries of the process share.

    ordinal: among the GPUs this process sees. capability: (major, minor). Closing gives the context back.
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
            int(self.driver.cuDeviceGetAttribute(which, self.handle))
            for which in (
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
        """Make this GPU's context the thread's current one, and put back what was current before."""
        self.driver.cuCtxPushCurrent(self._context)
        try:
            yield
        finally:
            self.driver.cuCtxPopCurrent()

    def again(self) -> "Device":
        """The same GPU for another owner, who closes it for himself: the context lives as long as one of them."""
        other = copy.copy(self)
        other._context = self.driver.cuDevicePrimaryCtxRetain(self.handle)
        return other

    def check_owns(self, pointer: int, name: str) -> None:
        """Raises DeviceArrayInvalid where an address is no memory of this GPU. name: of the array, for the message."""
        which = self.driver.bindings.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
        try:
            ordinal = int(self.driver.cuPointerGetAttribute(which, pointer))
        except CudaFailed as error:
            raise DeviceArrayInvalid(
                f"{name} at {pointer:#x} is no memory of a GPU ({error}); expected memory of {self}"
            ) from None
        if ordinal != self.ordinal:
            raise DeviceArrayInvalid(f"{name} lies on GPU {ordinal}; expected memory of {self}: copy it there")

    @property
    def free_bytes(self) -> int:
        """Memory that nobody uses now."""
        with self.current():
            return int(self.driver.cuMemGetInfo()[0])

    def close(self) -> None:
        """Closing twice is fine."""
        if self._context is not None:
            self._context = None
            self.driver.cuDevicePrimaryCtxRelease(self.handle)


class Stream:
    """Work on a GPU in order. `with` waits for it, then destroys it. handle: what CUDA calls take."""

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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._device.current():
            try:
                self._device.driver.cuStreamSynchronize(self.handle)
            finally:
                self._device.driver.cuStreamDestroy(self.handle)


class PinnedArray:
    """A numpy array in page-locked memory, which a GPU copies from and to without the CPU. `close` frees it."""

    def __init__(self, device: Device, shape: tuple[int, ...], dtype: str) -> None:
        self._device = device
        self.size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        with device.current():
            self.pointer = int(device.driver.cuMemHostAlloc(self.size, 0))
        held = (ctypes.c_uint8 * self.size).from_address(self.pointer)
        self.array = np.ctypeslib.as_array(held).view(dtype).reshape(shape)

    def close(self) -> None:
        """The array must not be used any more; closing twice is fine."""
        if self.pointer:
            pointer, self.pointer = self.pointer, 0
            del self.array
            with self._device.current():
                self._device.driver.cuMemFreeHost(pointer)


class Event:
    """A point in a stream's work that other streams can wait for."""

    def __init__(self, device: Device) -> None:
        self._device = device
        with device.current():
            flag = device.driver.bindings.CUevent_flags.CU_EVENT_DISABLE_TIMING
            self._handle: Any = device.driver.cuEventCreate(int(flag))

    def record(self, stream: int) -> None:
        """Mark what `stream` has been given so far."""
        with self._device.current():
            self._device.driver.cuEventRecord(self._handle, stream)

    def hold(self, stream: int) -> None:
        """What `stream` is given from now on waits for what was marked last; for nothing if nothing was."""
        with self._device.current():
            self._device.driver.cuStreamWaitEvent(stream, self._handle, 0)

    def close(self) -> None:
        """Closing twice is fine."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            with self._device.current():
                self._device.driver.cuEventDestroy(handle)


class Graph:
    """Work that was recorded once and is launched as a whole (a CUDA graph). Its buffers must stay where they are."""

    def __init__(self, device: Device, stream: int, record: Callable[[], None]) -> None:
        """record: gives `stream` its work; nothing of it runs yet. Raises CudaFailed where it cannot be recorded."""
        self._device, driver = device, device.driver
        self._executable: Any = None
        mode = driver.bindings.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        with _uncollected(), device.current():
            driver.cuStreamBeginCapture(stream, mode)
            try:
                record()
            except BaseException:
                with contextlib.suppress(CudaFailed):  # the capture is broken, and says so again
                    driver.cuGraphDestroy(driver.cuStreamEndCapture(stream))
                raise
            graph = driver.cuStreamEndCapture(stream)
            try:
                self._executable = driver.cuGraphInstantiate(graph, 0)
            finally:
                driver.cuGraphDestroy(graph)

    def launch(self, stream: int) -> None:
        """Returns at once, the stream does the work. One launch after another: they share their buffers."""
        with self._device.current():
            self._device.driver.cuGraphLaunch(self._executable, stream)

    def close(self) -> None:
        """No launch may still be running; closing twice is fine."""
        if self._executable is not None:
            executable, self._executable = self._executable, None
            with self._device.current():
                self._device.driver.cuGraphExecDestroy(executable)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage is collected inside: a GPU array that goes frees its memory, which must not happen in a recording."""
    with _RECORDING:
        enabled = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if enabled:
                gc.enable()


_RECORDING = threading.Lock()


class Memory:
    """Bytes on a GPU, at `pointer` (a multiple of 256). `with`, or `close`, frees them once no work uses them."""

    def __init__(self, device: Device, size: int, stream: int | None = None) -> None:
        """stream: allocates in its order, where the GPU has memory pools: nothing else waits, and no recording breaks."""
        self._device, self.size = device, size
        self._pooled = stream is not None and device.has_pools
        with device.current():
            if self._pooled:
                self.pointer = int(device.driver.cuMemAllocAsync(size, stream))
            else:
                self.pointer = int(device.driver.cuMemAlloc(size))

    def upload(self, array: np.ndarray, stream: int = 0) -> None:
        """Copy an array's bytes here, in the stream's order, and wait for it."""
        array = np.ascontiguousarray(array)
        self._check(array.nbytes)
        with self._device.current():
            self._device.driver.cuMemcpyHtoDAsync(self.pointer, array.ctypes.data, array.nbytes, stream)
            self._device.driver.cuStreamSynchronize(stream)

    def download(self, array: np.ndarray, stream: int = 0) -> np.ndarray:
        """Copy from here over all of a contiguous array, and wait for it; returns the array."""
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
                    if self._pooled:  # of such memory cuMemFree waits for nothing
                        self._device.driver.cuCtxSynchronize()
                finally:
                    self._device.driver.cuMemFree(pointer)

    def __enter__(self) -> "Memory":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, size: int) -> None:
        if size > self.size:
            raise ValueError(f"{size} bytes do not fit the {self.size} of this memory")
