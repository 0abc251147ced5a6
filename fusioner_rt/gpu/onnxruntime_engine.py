"""ONNX Runtime's CUDA provider as an engine, for machines without TensorRT."""

import contextlib
import threading
from collections.abc import Callable, Mapping
from typing import Protocol

from ..bundle import Bundle
from ..device_array import DeviceArray
from .driver import Device, Event, Memory, Stream

_MAX_IDLE = 16  # contexts kept for reuse
_DTYPE = "float32"  # of the inputs and outputs of image_fusion


class LoadedGraph(Protocol):
    """`image_fusion`, loaded to run on one stream."""

    def output_shapes(self, inputs: Mapping[str, DeviceArray]) -> dict[str, tuple[int, ...]]:
        """Output shapes, found by a run. inputs: in GPU memory, of any content."""

    def on_gpu(self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray]) -> Callable[[], None]:
        """A function that enqueues the graph on its stream, with these arrays."""


class OnnxRuntimeEngine:
    """`image_fusion` on its own stream, ordered with the callers' streams by events. Threads may share it."""

    records = False  # ONNX Runtime allocates as it runs

    def __init__(self, bundle: Bundle, load: Callable[[int], LoadedGraph], device: Device) -> None:
        """load: loads the graph for a stream's handle. Raises the errors of `load`, and CudaFailed."""
        self._bundle, self._device = bundle, device
        self._running = threading.Lock()
        self._idle: list[OnnxRuntimeContext] = []
        with contextlib.ExitStack() as stack:
            self._stream = stack.enter_context(Stream(device))
            self._event = Event(device)
            stack.callback(self._event.close)
            self._graph: LoadedGraph | None = load(self._stream.handle)
            self._owned = stack.pop_all()

    def context(self, shapes: Mapping[str, tuple[int, ...]], stream: int) -> "OnnxRuntimeContext":
        """A context; a new one runs the graph once to find output shapes. Raises GraphUnusable, GpuMemoryShort, CudaFailed."""
        assert self._graph is not None
        with self._running:
            for context in self._idle:
                if context.inputs == shapes:
                    self._idle.remove(context)
                    return context
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
            del self._idle[:-_MAX_IDLE]

    def max_batch(self, name: str) -> int:
        return self._bundle.batch.max

    def close(self) -> None:
        self._idle.clear()
        self._graph = None
        self._owned.close()
        self._owned = contextlib.ExitStack()

    def turn(self, stream: int, run: Callable[[], None]) -> None:
        """Enqueue `run` on this engine's stream, after the past and before the future work of `stream`."""
        with self._running:  # one event, and libraries that take one caller at a time
            self._event.record(stream)
            self._event.hold(self._stream.handle)
            run()
            self._event.record(self._stream.handle)
            self._event.hold(stream)


class OnnxRuntimeContext:
    """The graph with certain shapes. One thread uses it at a time."""

    workspace_bytes = 0

    def __init__(
        self, engine: OnnxRuntimeEngine, graph: LoadedGraph, inputs: Mapping[str, tuple[int, ...]],
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
