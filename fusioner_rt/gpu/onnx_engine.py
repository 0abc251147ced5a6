"""Opens a bundle's ONNX graphs on ONNX Runtime's CUDA, with the picture's preparation and the mask head beside them on the
GPU (`gpu_executor`): for whoever has onnxruntime-gpu and no TensorRT.
"""

import contextlib
import threading
from collections.abc import Callable, Mapping

from ..bundle import Bundle
from ..device_array import DeviceArray
from ..errors import BackendUnavailable, KernelsUnusable
from ..executor import Executor
from ..onnx.executor import LoadedGraphs, OnnxRuntimeExecutor
from ..onnx.runtime import Graph, OnnxRuntime
from .driver import Device, Event, Memory, Stream
from .executor import GpuExecutor, kernels_folder

NAME = "onnxruntime-cuda"
_KEPT = 16  # contexts given back
_DTYPE = "float32"  # of what goes into image_fusion and comes out of it


def open_graphs(bundle: Bundle, threads: int | None) -> tuple[Executor, str]:
    """On the first GPU this process sees; returns also what runs, in words. Without the bundle's kernels, or without
    cuda-bindings, pictures are prepared and masks made on the CPU, and a note says so.

    threads: of what runs on the CPU. Raises BackendUnavailable, GraphUnusable, GpuMemoryShort, CudaFailed.
    """
    runtime = OnnxRuntime(NAME, threads)
    what = "ONNX Runtime, CUDA"
    try:
        kernels_folder(bundle)
        device = Device()
    except (KernelsUnusable, BackendUnavailable) as error:
        note = f"pictures are prepared and masks made on the CPU: {error}"
        return OnnxRuntimeExecutor(bundle, NAME, threads, note), what
    with contextlib.ExitStack() as stack:
        stack.callback(device.close)
        engine = OnnxRuntimeEngine(bundle, runtime, device)
        stack.pop_all()
    text = LoadedGraphs(bundle, runtime)
    executor = GpuExecutor(bundle, device, engine, lambda: text("text"), threads, close=text.close)
    return executor, f"{what} on {device}"


class OnnxRuntimeEngine:
    """`image_fusion` on a stream of its own, which takes turns with those of its callers. Threads may share it."""

    records = False  # ONNX Runtime allocates as it runs

    def __init__(self, bundle: Bundle, runtime: OnnxRuntime, device: Device) -> None:
        """Raises GraphUnusable, BackendUnavailable, CudaFailed."""
        self._bundle, self._device = bundle, device
        self._running = threading.Lock()
        self._idle: list[OnnxRuntimeContext] = []
        with contextlib.ExitStack() as stack:
            self._stream = stack.enter_context(Stream(device))
            self._event = Event(device)
            stack.callback(self._event.close)
            path = bundle.graph("image_fusion")
            self._graph: Graph | None = runtime.load(path, stream=self._stream.handle)
            self._owned = stack.pop_all()

    def context(self, shapes: Mapping[str, tuple[int, ...]], stream: int) -> "OnnxRuntimeContext":
        """Runs the graph once, to find the shapes of what it gives. Raises GraphUnusable, GpuMemoryShort, CudaFailed."""
        assert self._graph is not None
        with self._running:
            for held in self._idle:
                if held.inputs == shapes:
                    self._idle.remove(held)
                    return held
        with contextlib.ExitStack() as stack, self._running:
            inputs = {}
            for name, shape in shapes.items():
                size = DeviceArray(0, shape, _DTYPE).nbytes
                memory = stack.enter_context(Memory(self._device, size))
                with self._device.current():
                    self._device.driver.cuMemsetD8Async(memory.pointer, 0, size, self._stream.handle)
                inputs[name] = DeviceArray(memory.pointer, shape, _DTYPE)
            outputs = self._graph.output_shapes(inputs)
            self._stream.wait()
        return OnnxRuntimeContext(self, self._graph, shapes, outputs)

    def give_back(self, context: "OnnxRuntimeContext") -> None:
        with self._running:
            self._idle.append(context)
            del self._idle[:-_KEPT]

    def most(self, name: str) -> int:
        return self._bundle.batch.max

    def close(self) -> None:
        self._idle.clear()
        self._graph = None
        self._owned.close()
        self._owned = contextlib.ExitStack()

    def turn(self, stream: int, run: Callable[[], None]) -> None:
        """Give the work of `run` to this engine's stream: after what `stream` was given, before what it will be."""
        with self._running:  # also: one event, and libraries that take one caller at a time
            self._event.record(stream)
            self._event.hold(self._stream.handle)
            run()
            self._event.record(self._stream.handle)
            self._event.hold(stream)


class OnnxRuntimeContext:
    """The graph on arrays of certain shapes. Used by one thread at a time."""

    workspace_bytes = 0

    def __init__(
        self, engine: OnnxRuntimeEngine, graph: Graph, inputs: Mapping[str, tuple[int, ...]],
        outputs: Mapping[str, tuple[int, ...]],
    ) -> None:  # fmt: skip
        self._engine, self._graph = engine, graph
        self.inputs, self.outputs = dict(inputs), dict(outputs)

    def place(self, pointers: Mapping[str, int], workspace: int) -> None:
        inputs, outputs = (
            {name: DeviceArray(pointers[name], shape, _DTYPE) for name, shape in shapes.items()}
            for shapes in (self.inputs, self.outputs)
        )
        self._run = self._graph.on_gpu(inputs, outputs)

    def recordable(self, stream: int) -> bool:
        return False

    def enqueue(self, stream: int) -> None:
        self._engine.turn(stream, self._run)
