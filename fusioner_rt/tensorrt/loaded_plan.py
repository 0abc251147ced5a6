"""A loaded TensorRT plan: its tensors, profiles and contexts."""

import contextlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..cures import plans_command, plans_for_this_gpu
from ..errors import GpuMemoryShort, PlanUnusable, SizeOutsideProfile, one_line, session_closed
from ..gpu.driver import Device, Memory, Stream
from ..plans import FLAVOURS, Plan
from . import versions
from .runtime_cache import RuntimeCache

Shapes = Mapping[str, tuple[int, ...]]
_MAX_IDLE = 16  # contexts kept for reuse
_RESERVE = 256 << 20  # bytes for TensorRT and a context, besides the plan


class EngineContext:
    """A context with its shapes set. workspace_bytes: device memory for `place`. inputs, outputs: shapes by name.

    One thread uses it at a time.
    """

    def __init__(
        self, context: Any, config: Any, name: str, inputs: Shapes, outputs: Shapes, workspace_bytes: int
    ) -> None:
        """config: must live as long as the context. name: for messages."""
        self._context, self._config, self._name = context, config, name
        self.inputs = dict(inputs)
        self.outputs, self.workspace_bytes = outputs, workspace_bytes

    def place(self, pointers: Mapping[str, int], workspace: int) -> None:
        """Set the addresses of inputs, outputs and workspace, multiples of 256. Raises PlanUnusable."""
        for tensor, pointer in pointers.items():
            if not self._context.set_tensor_address(tensor, pointer):
                raise PlanUnusable(f"TensorRT does not take the address of {tensor}", subject=self._name)
        if self.workspace_bytes:
            self._context.set_device_memory(workspace, self.workspace_bytes)

    def recordable(self, stream: int) -> bool:
        """Whether TensorRT allows recording its work on the stream."""
        return versions.recordable(self._context, stream)

    def enqueue(self, stream: int) -> None:
        """Enqueue one run on the stream. Raises PlanUnusable."""
        if not self._context.execute_async_v3(stream):
            raise PlanUnusable("TensorRT could not run it", subject=self._name)


@dataclass(frozen=True)
class Range:
    """The shapes of an input that a profile allows: minimum and maximum of each axis."""

    min: tuple[int, ...]
    max: tuple[int, ...]

    def holds(self, shape: Sequence[int]) -> bool:
        return len(shape) == len(self.min) and all(
            low <= length <= high for low, length, high in zip(self.min, shape, self.max, strict=True)
        )

    def __str__(self) -> str:
        return "x".join(
            str(low) if low == high else f"{low}..{high}" for low, high in zip(self.min, self.max, strict=True)
        )


class Engine:
    """A plan on a GPU. Threads may share it, each with its own contexts.

    profiles: ranges by input, in the plan's order. note: TensorRT's warning about the plan, or None.
    Raises PlanUnusable, GpuMemoryShort, PlanForAnotherGpu, PlanForAnotherVersion.
    """

    records = True

    def __init__(self, bundle: Bundle, plan: Plan, device: Device, cache: RuntimeCache | None = None) -> None:
        """cache: of kernels that TensorRT-RTX compiles."""
        self.plan, self._device, self._bundle = plan, device, bundle
        self._trt = versions.load(plan.flavour)
        self._log = versions.error_log(self._trt)
        self._cache = cache
        self._making = threading.Lock()
        self._idle: list[EngineContext] = []
        needed = bundle.files[plan.file].bytes + _RESERVE
        if device.free_bytes < needed:
            raise GpuMemoryShort(
                f"needs about {needed >> 20} MiB, {device} has {device.free_bytes >> 20} MiB free",
                "end what else uses it (nvidia-smi lists it), or choose another backend",
                subject=plan.file,
            )
        content = bundle.read(plan.file)
        with device.current():
            self._runtime = self._trt.Runtime(self._log.logger)
            self.note = versions.check_plan(
                self._trt, self._runtime, content, str(plan.file), self._rebuild(), self._for_this_gpu()
            )
            if self.note:
                self.note += f"; {self._for_this_gpu(alone=True)}"
            if plan.version_compatible:
                self._runtime.engine_host_code_allowed = True
            self._log.take()
            self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise PlanUnusable(
                f"{FLAVOURS[plan.flavour]} {self._trt.__version__} does not load it ({self._log.take()})",
                self._rebuild(),
                subject=plan.file,
            )
        self._check_tensors()
        self.profiles = [
            {name: self._range(name, index) for name in self._inputs}
            for index in range(self._engine.num_optimization_profiles)
        ]

    def max_batch(self, name: str) -> int:
        """The maximum first dimension of an input over all profiles."""
        return max(ranges[name].max[0] for ranges in self.profiles)

    def profile(self, shapes: Shapes) -> int:
        """Index of the first profile that allows all shapes. Raises SizeOutsideProfile."""
        for index, ranges in enumerate(self.profiles):
            if all(ranges[name].holds(shape) for name, shape in shapes.items()):
                return index
        asked = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
        built = " or ".join(", ".join(f"{name} {span}" for name, span in ranges.items()) for ranges in self.profiles)
        raise SizeOutsideProfile(
            f"was asked for {asked}, and was built for {built}",
            f"build it with a wider profile: {plans_command(self._bundle.folder, self.plan.flavour, profiles='any-size')}",
            subject=self.plan.file,
        )

    def context(self, shapes: Shapes, stream: int) -> EngineContext:
        """A context for these input shapes, new or reused. May enqueue work on `stream`.

        Raises SizeOutsideProfile, PlanUnusable.
        """
        index = self.profile(shapes)
        with self._making, self._device.current():
            for idle in self._idle:
                if idle.inputs == shapes:
                    self._idle.remove(idle)
                    return idle
            self._log.take()
            context, config = versions.create_context(self._trt, self._engine, self._cache.of if self._cache else None)
            if context is None or not context.set_optimization_profile_async(index, stream):
                raise self._refused("gives no context for it")
            for name, shape in shapes.items():
                if not context.set_input_shape(name, shape):
                    raise self._refused(f"does not take {name} of {shape}")
            try:
                unknown = context.infer_shapes()
            except RuntimeError as error:
                raise self._refused(f"cannot tell its shapes: {one_line(error)}") from None
            if unknown:
                raise self._refused(f"cannot tell the shapes of {', '.join(unknown)}")
            outputs = {name: tuple(context.get_tensor_shape(name)) for name in self._outputs}
            workspace = int(context.update_device_memory_size_for_shapes())
            max_workspace = int(self._engine.get_device_memory_size_for_profile_v2(index))
            if not workspace and max_workspace:  # TensorRT returns 0 on failure
                raise self._refused(
                    f"tells no size of the memory it works in, of which the profile needs up to {max_workspace} bytes"
                )
            return EngineContext(context, config, str(self.plan.file), shapes, outputs, workspace)

    def give_back(self, context: EngineContext) -> None:
        """Keep a context for the next call with its shapes; TensorRT-RTX would compile for a new one."""
        with self._making, self._device.current():
            self._idle.append(context)
            del self._idle[:-_MAX_IDLE]

    def dtype(self, name: str) -> np.dtype:
        """Dtype of a tensor."""
        return np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name)))

    def close(self) -> None:
        """All contexts must have been given back. Closing twice is fine."""
        with self._making, self._device.current():
            self._idle.clear()
            self._engine = self._runtime = None

    def _check_tensors(self) -> None:
        graph = self._bundle.graphs[self.plan.graph]
        modes = self._trt.TensorIOMode
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        self._inputs = [name for name in names if self._engine.get_tensor_mode(name) == modes.INPUT]
        self._outputs = [name for name in names if self._engine.get_tensor_mode(name) == modes.OUTPUT]
        for kind, names, tensors in (
            ("inputs", self._inputs, graph.inputs), ("outputs", self._outputs, graph.outputs)
        ):  # fmt: skip
            actual = {name: self.dtype(name).name for name in names}
            expected = {name: tensor.dtype for name, tensor in tensors.items()}
            if actual != expected:
                raise PlanUnusable(
                    f"its {kind} are {_listed(actual)}, the manifest says {_listed(expected)} for {self.plan.graph}",
                    self._rebuild(),
                    subject=self.plan.file,
                )

    def _range(self, name: str, index: int) -> Range:
        minimum, _, maximum = self._engine.get_tensor_profile_shape(name, index)
        return Range(tuple(minimum), tuple(maximum))

    def _refused(self, reason: str) -> PlanUnusable:
        return PlanUnusable(f"TensorRT {reason} ({self._log.take()})", self._rebuild(), subject=self.plan.file)

    def _for_this_gpu(self, alone: bool = False) -> str:
        bundle = self._bundle
        return plans_for_this_gpu(bundle.folder, bundle.precision, self.plan.flavour, self._device.capability, alone)

    def _rebuild(self) -> str:
        return f"build it again: {plans_command(self._bundle.folder, self.plan.flavour)}"


class PlanGraph:
    """A plan called like its ONNX graph, with arrays by input name; returns arrays by output name. Threads may share one.

    Every call allocates its memory, so it is for words, which are encoded once, and for proofs.
    """

    def __init__(self, engine: Engine, device: Device) -> None:
        """This object closes the engine."""
        self._engine, self._device = engine, device
        self._running, self._closed = 0, False
        self._change = threading.Condition()

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Raises SizeOutsideProfile, PlanUnusable, CudaFailed, and UsageError once closed."""
        with self._change:
            if self._closed:
                raise session_closed()
            self._running += 1
        try:
            return self._run(inputs)
        finally:
            with self._change:
                self._running -= 1
                self._change.notify_all()

    def close(self) -> None:
        """Wait for running calls, and close the engine. Closing twice is fine."""
        with self._change:
            self._closed = True
            self._change.wait_for(lambda: self._running == 0)
        self._engine.close()

    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        arrays = {name: np.ascontiguousarray(array, self._engine.dtype(name)) for name, array in inputs.items()}
        with contextlib.ExitStack() as stack:
            stream = stack.enter_context(Stream(self._device)).handle
            context = self._engine.context({name: array.shape for name, array in arrays.items()}, stream)
            stack.callback(self._engine.give_back, context)
            outputs = {name: np.empty(shape, self._engine.dtype(name)) for name, shape in context.outputs.items()}
            memory = {
                name: stack.enter_context(Memory(self._device, array.nbytes))
                for name, array in {**arrays, **outputs}.items()
            }
            workspace = stack.enter_context(Memory(self._device, max(1, context.workspace_bytes)))
            for name, array in arrays.items():
                memory[name].upload(array, stream)
            context.place({name: piece.pointer for name, piece in memory.items()}, workspace.pointer)
            with self._device.current():
                context.enqueue(stream)
            return {name: memory[name].download(array, stream) for name, array in outputs.items()}


def _listed(dtypes: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {dtype}" for name, dtype in sorted(dtypes.items())) or "none"
