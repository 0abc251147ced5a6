"""CUDA graphs: GPU work is recorded once and launched as a whole."""

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import CudaFailed
from .driver import Device


class CudaGraph:
    """A recorded CUDA graph. The buffers it uses must keep their addresses."""

    def __init__(self, device: Device, stream: int, record: Callable[[], None]) -> None:
        """record: enqueues the work on `stream`, which does not run it yet. Raises CudaFailed where recording fails."""
        self._device, driver = device, device.driver
        self._executable: Any = None
        mode = driver.bindings.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        with _without_collection(), device.current():
            driver.cuStreamBeginCapture(stream, mode)
            try:
                record()
            except BaseException:
                with contextlib.suppress(CudaFailed):  # the broken capture raises again
                    driver.cuGraphDestroy(driver.cuStreamEndCapture(stream))
                raise
            graph = driver.cuStreamEndCapture(stream)
            try:
                self._executable = driver.cuGraphInstantiate(graph, 0)
            finally:
                driver.cuGraphDestroy(graph)

    def launch(self, stream: int) -> None:
        """Enqueue a launch. Launches share buffers, so they must run in order."""
        with self._device.current():
            self._device.driver.cuGraphLaunch(self._executable, stream)

    def close(self) -> None:
        """No launch may be running. Closing twice is fine."""
        if self._executable is not None:
            executable, self._executable = self._executable, None
            with self._device.current():
                self._device.driver.cuGraphExecDestroy(executable)


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Disable the garbage collector: it may free a GPU array, and a recording does not allow that."""
    with _RECORDING, uncollected():
        yield


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Disable the garbage collector. Threads that do so at once must take turns."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


_RECORDING = threading.Lock()
