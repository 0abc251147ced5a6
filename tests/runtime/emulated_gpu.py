"""A GPU in host memory: the emulated driver with streams that can be recorded, its kernels done by their definitions,
and TensorRT whose plans name an ONNX graph that ONNX Runtime runs on the emulated memory.

What it proves is the runtime's side: which calls are made, in which order, on which memory, and that what comes out is
what the CPU backend gives. It says nothing of TensorRT itself or of a GPU's speed.
"""

from __future__ import annotations

import ctypes
import enum
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import torch
from cuda.bindings import driver as real
from emulated_driver import OK, EmulatedDriver

from fusioner_rt.bundle import MANIFEST, write_manifest
from fusioner_rt.resample import resize
from kernels import reference

VERSION = "1.7.1.116"
ERROR = real.CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED


def at(pointer: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """The array at an address."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(int(pointer))).view(dtype).reshape(shape)


class EmulatedGpu(EmulatedDriver):
    """launches: of graphs. allocations: of device and pinned memory. free: bytes that are left on the GPU."""

    CUevent_flags = real.CUevent_flags
    CUstreamCaptureMode = real.CUstreamCaptureMode
    CUresult = real.CUresult

    def __init__(self, bundle: Path, capability: tuple[int, int] = (8, 0)) -> None:
        """bundle: whose kernels are launched."""
        super().__init__(capability, self.compute)
        manifest = json.loads((bundle / MANIFEST).read_text())
        self.resample = manifest["preprocessing"]["resample"]
        self.names = {path.read_bytes() + b"\0": path.stem for path in (bundle / "kernels").rglob("*.[cp][ut][bx]*")}
        self.recorded: dict[int, list[Callable[[], None]]] = {}  # by stream
        self.recorders: set[int] = set()  # threads
        self.recordable = self.engine_recordable = True
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.pinned: dict[int, Any] = {}
        self.events = self.streams = 0
        self.free = 8 << 30
        self.order: list[tuple[str, int]] = []

    def submit(self, stream: int, work: Callable[[], None]) -> None:
        """Do it, or record it."""
        if int(stream) in self.recorded:
            self.recorded[int(stream)].append(work)
        else:
            work()

    @property
    def recording(self) -> bool:
        """Whether this thread may not do what cannot be recorded (CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)."""
        return threading.get_ident() in self.recorders

    # memory
    def cuMemGetInfo(self) -> Any:
        return OK, self.free, 80 << 30

    def cuMemAlloc(self, size: int) -> Any:
        if self.recording:
            return (ERROR,)
        if size > self.free:
            return (real.CUresult.CUDA_ERROR_OUT_OF_MEMORY,)
        self.free -= size
        return super().cuMemAlloc(size)

    def cuMemFree(self, pointer: int) -> Any:
        self.free += len(self.memory[pointer])
        return super().cuMemFree(pointer)

    def cuMemHostAlloc(self, size: int, flags: int) -> Any:
        buffer = (ctypes.c_uint8 * size)()
        self.pinned[ctypes.addressof(buffer)] = buffer
        return OK, ctypes.addressof(buffer)

    def cuMemFreeHost(self, pointer: int) -> Any:
        del self.pinned[pointer]
        return (OK,)

    def cuMemcpyHtoDAsync(self, to: int, source: int, size: int, stream: int) -> Any:
        self._within(to, size)
        if self.recording:  # what is replayed must be there then
            assert any(start <= source < start + len(held) for start, held in self.pinned.items())
        self.submit(stream, lambda: ctypes.memmove(to, source, size))
        return (OK,)

    def cuMemcpyDtoHAsync(self, to: int, source: int, size: int, stream: int) -> Any:
        self._within(source, size)
        self.submit(stream, lambda: ctypes.memmove(to, source, size))
        return (OK,)

    def cuMemcpyDtoDAsync(self, to: int, source: int, size: int, stream: int) -> Any:
        self._within(to, size)
        self._within(source, size)
        self.order.append(("copy", stream))
        self.submit(stream, lambda: ctypes.memmove(to, source, size))
        return (OK,)

    def cuMemsetD8Async(self, to: int, value: int, size: int, stream: int) -> Any:
        self._within(to, size)
        ctypes.memset(to, value, size)
        return (OK,)

    def _within(self, pointer: int, size: int) -> None:
        assert any(start <= pointer and pointer + size <= start + len(piece) for start, piece in self.memory.items())

    # streams, events, graphs
    def cuStreamCreate(self, flags: int) -> Any:
        self.streams += 1
        return OK, real.CUstream(100 + self.streams)

    def cuStreamDestroy(self, stream: int) -> Any:
        return (OK,)

    def cuStreamSynchronize(self, stream: int) -> Any:
        return (ERROR,) if int(stream) in self.recorded else (OK,)

    def cuEventCreate(self, flags: int) -> Any:
        self.events += 1
        return OK, real.CUevent(self.events)

    def cuEventRecord(self, event: Any, stream: int) -> Any:
        self.order.append(("record", stream))
        return (OK,)

    def cuStreamWaitEvent(self, stream: int, event: Any, flags: int) -> Any:
        self.order.append(("wait", stream))
        return (OK,)

    def cuEventDestroy(self, event: Any) -> Any:
        return (OK,)

    def cuStreamBeginCapture(self, stream: int, mode: Any) -> Any:
        assert mode == real.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self.recorders.add(threading.get_ident())
        self.recorded[int(stream)] = []
        return (OK,)

    def cuStreamEndCapture(self, stream: int) -> Any:
        self.recorders.remove(threading.get_ident())
        recorded = self.recorded.pop(int(stream))
        if not self.recordable:
            return (real.CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,)
        self.graphs[len(self.graphs) + 1] = recorded
        return OK, real.CUgraph(len(self.graphs))

    def cuGraphInstantiate(self, graph: Any, flags: int) -> Any:
        return OK, real.CUgraphExec(int(graph))

    def cuGraphDestroy(self, graph: Any) -> Any:
        return (OK,)

    def cuGraphLaunch(self, executable: Any, stream: int) -> Any:
        self.order.append(("launch", stream))
        for work in self.graphs[int(executable)]:
            work()
        return (OK,)

    def cuGraphExecDestroy(self, executable: Any) -> Any:
        self.graphs[int(executable)] = []
        return (OK,)

    def cuLibraryLoadData(self, code: bytes, *options: Any) -> Any:
        if self.recording:
            return (ERROR,)
        return super().cuLibraryLoadData(code, *options)

    # kernels, by their definitions
    def cuLaunchKernel(self, function: Any, *arguments: Any) -> Any:
        self.order.append(("kernel", arguments[7]))
        launch = super().cuLaunchKernel
        self.submit(arguments[7], lambda: launch(function, *arguments))
        return (OK,)

    def compute(self, code: bytes, grid: tuple[int, int], values: tuple) -> None:
        symbol = next(symbol for symbol, loaded in self.kernels if loaded == code)
        if symbol.startswith("resize"):
            values = (self.names[code].endswith(".float32"), *values)
        getattr(self, symbol)(grid[1], *values)

    def measure_kernel(self, pictures: int, *values: Any) -> None:
        pass  # maps_kernel does it all

    def maps_kernel(self, pictures: int, features: int, words: int, *rest: Any) -> None:
        *_, scores, gram, h, w, count, d = rest
        found = reference.score_maps(
            torch.from_numpy(at(features, (pictures, h, w, d), "float32").copy()),
            torch.from_numpy(at(words, (pictures, count, d), "float32").copy()),
        )
        at(scores, (pictures, count, h, w), "float32")[:] = found[0]
        at(gram, (pictures, 5, h, w), "float32")[:] = found[1]

    def labels_kernel(self, pictures: int, scores: int, gram: int, labels: int, confidence: int, *rest: Any) -> None:
        h, w, count, height, width, _, inverse, threshold = rest
        found = reference.resolve(
            torch.from_numpy(at(scores, (pictures, count, h, w), "float32").copy()),
            torch.from_numpy(at(gram, (pictures, 5, h, w), "float32").copy()),
            (height, width), 1 / inverse, threshold,
        )  # fmt: skip
        at(labels, (pictures, height, width), "uint16")[:] = found[0]
        at(confidence, (pictures, height, width), "float32")[:] = found[1]

    def resize_rows_kernel(self, pictures: int, *values: Any) -> None:
        self._resize(pictures, 1, *values)

    def resize_columns_kernel(self, pictures: int, *values: Any) -> None:
        self._resize(pictures, 0, *values)

    def _resize(
        self, count: int, axis: int, planes: bool, source: int, first: int, weights: int, out: int, *rest: Any
    ) -> None:
        gain, shift = np.array(rest[:3], np.float32), np.array(rest[3:6], np.float32)
        height, width, length, _ = rest[6:]
        after = (length, width) if axis == 0 else (height, length)
        for index in range(count):
            before = at(source + index * height * width * 3, (height, width, 3), "uint8")
            resized = resize(before, after, self.resample)
            if planes:
                plane = (resized.astype(np.float32) * gain - shift).transpose(2, 0, 1)
                at(out + index * plane.nbytes, plane.shape, "float32")[:] = plane
            else:
                at(out + index * resized.nbytes, resized.shape, "uint8")[:] = resized


DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64"}


def tensorrt(gpu: EmulatedGpu, flavour: str = "tensorrt-rtx", version: str = VERSION) -> ModuleType:
    """A module that stands where TensorRT's does; its plans are those of `plan`."""
    module = ModuleType(flavour.replace("-", "_"))

    class Severity(enum.IntEnum):
        INTERNAL_ERROR, ERROR, WARNING = 0, 1, 2

    class ILogger:
        Severity: Any = None

    ILogger.Severity = Severity
    mode = enum.Enum("TensorIOMode", "NONE INPUT OUTPUT")
    strategy = enum.Enum("ExecutionContextAllocationStrategy", "STATIC ON_PROFILE_CHANGE USER_MANAGED")
    validity = enum.Enum("EngineValidity", "VALID SUBOPTIMAL INVALID")

    class Diagnostics(enum.IntFlag):
        VERSION_MISMATCH, UNSUPPORTED_CC, OLD_CUDA_DRIVER, OLD_CUDA_RUNTIME = 1, 2, 4, 8
        INSUFFICIENT_GPU_MEMORY, MALFORMED_ENGINE, CUDA_ERROR = 16, 32, 64

    class Context:
        def __init__(self, engine: Any) -> None:
            self.engine, self.shapes, self.addresses = engine, {}, {}
            self.index, self.memory, self.ran = -1, (0, 0), False

        def set_optimization_profile_async(self, index: int, stream: int) -> bool:
            self.index = index
            return True

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            least, _, most = self.engine.get_tensor_profile_shape(name, self.index)
            self.shapes[name] = shape
            return all(low <= length <= high for low, length, high in zip(least, shape, most, strict=True))

        def infer_shapes(self) -> list[str]:
            inputs = {item.name: np.zeros(self.shapes[item.name], DTYPES[item.type])
                      for item in self.engine.session.get_inputs()}  # fmt: skip
            found = self.engine.session.run(None, inputs)
            names = [item.name for item in self.engine.session.get_outputs()]
            self.outputs = {name: array.shape for name, array in zip(names, found, strict=True)}
            return []

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return self.outputs[name]

        def update_device_memory_size_for_shapes(self) -> int:
            return 12345

        def set_tensor_address(self, name: str, pointer: int) -> bool:
            assert pointer % 256 == 0
            self.addresses[name] = pointer
            return True

        def set_device_memory(self, pointer: int, size: int) -> None:
            assert pointer % 256 == 0
            gpu._within(pointer, size)
            self.memory = (pointer, size)

        def execute_async_v3(self, stream: int) -> bool:
            assert gpu.contexts > 0, "no context is current"
            assert self.memory[1] >= 12345
            if int(stream) in gpu.recorded and not (self.ran and gpu.engine_recordable):
                return False  # TensorRT wants one run before it is recorded
            self.ran = True
            gpu.order.append(("engine", stream))
            gpu.submit(stream, self.compute)
            return True

        def compute(self) -> None:
            session = self.engine.session
            inputs = {item.name: at(self.addresses[item.name], self.shapes[item.name], DTYPES[item.type]).copy()
                      for item in session.get_inputs()}  # fmt: skip
            for item, array in zip(session.get_outputs(), session.run(None, inputs), strict=True):
                at(self.addresses[item.name], array.shape, "float32")[:] = array

    class Config:
        dynamic_shapes_kernel_specialization_strategy = cuda_graph_strategy = None

        def set_execution_context_allocation_strategy(self, chosen: Any) -> None:
            assert chosen is strategy.USER_MANAGED

        def create_runtime_cache(self) -> Any:
            return Cache()

        def set_runtime_cache(self, cache: Any) -> bool:
            cache.used += 1
            return True

    class Cache:
        def __init__(self) -> None:
            self.used = 0

        def serialize(self) -> bytes:
            return b"compiled" * self.used

        def deserialize(self, content: bytes) -> bool:
            return content.startswith(b"compiled")

    class Engine:
        def __init__(self, described: dict[str, Any]) -> None:
            self.described = described
            self.session = onnxruntime.InferenceSession(described["graph"], providers=["CPUExecutionProvider"])
            inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
            self.tensors = {item.name: item for item in (*inputs, *outputs)}
            self.inputs = {item.name for item in inputs}
            self.num_io_tensors = len(self.tensors)
            self.num_optimization_profiles = len(described["profiles"])

        def get_tensor_name(self, index: int) -> str:
            return list(self.tensors)[index]

        def get_tensor_mode(self, name: str) -> Any:
            return mode.INPUT if name in self.inputs else mode.OUTPUT

        def get_tensor_dtype(self, name: str) -> str:
            return self.described.get("dtypes", {}).get(name, DTYPES[self.tensors[name].type])

        def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
            return [tuple(shape) for shape in self.described["profiles"][index][name]]

        def create_runtime_config(self) -> Any:
            return Config()

        def create_execution_context(self, chosen: Any) -> Any:
            assert isinstance(chosen, Config) if flavour == "tensorrt-rtx" else chosen is strategy.USER_MANAGED
            return Context(self)

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, content: bytes) -> Any:
            assert gpu.contexts > 0, "no context is current"
            try:
                described = json.loads(content)
            except ValueError:
                self.logger.log(Severity.ERROR, "magicTag == expected\nfailed")
                return None
            return Engine(described)

    if flavour == "tensorrt-rtx":

        def get_engine_validity(self: Any, content: bytes) -> tuple[Any, int]:
            found = json.loads(content).get("diagnostics", 0) if content.startswith(b"{") else 0
            return (validity.INVALID if found else validity.VALID), found

        Runtime.get_engine_validity = get_engine_validity  # type: ignore[attr-defined]
        module.DynamicShapesKernelSpecializationStrategy = enum.Enum("S", "LAZY EAGER NONE")  # type: ignore[attr-defined]
        module.CudaGraphStrategy = enum.Enum("C", "DISABLED WHOLE_GRAPH_CAPTURE")  # type: ignore[attr-defined]
    module.__dict__.update(
        __version__=version, ILogger=ILogger, Runtime=Runtime, TensorIOMode=mode, EngineValidity=validity,
        ExecutionContextAllocationStrategy=strategy, EngineInvalidityDiagnostics=Diagnostics, nptype=lambda dtype: dtype,
    )  # fmt: skip
    return module


def plan(bundle: Path, graph: str, flavour: str = "tensorrt-rtx", version: str = VERSION, capability: str = "8.0+",
         profiles: list[dict[str, Any]] | None = None, **more: Any) -> None:  # fmt: skip
    """Give a bundle a plan of a graph."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    ranges, letters = manifest["profiles"], {"K": "words", "B": "batch", "P": "batch", "H": "size", "W": "size"}
    every = {**{letter: ranges[name] for letter, name in letters.items()},
             "N": {"min": 1, "opt": 2, "max": 256}, "L": {"min": 1, "opt": 8, "max": 64}}  # fmt: skip
    inputs = manifest["graphs"][graph]["inputs"]
    whole = {name: [[every[edge][bound] if isinstance(edge, str) else edge for edge in shape]
                    for bound in ("min", "opt", "max")] for name, (_, shape) in inputs.items()}  # fmt: skip
    file = f"{graph}.{flavour}-{capability}.plan"
    described = {"graph": str((bundle / f"{graph}.onnx").absolute()), "profiles": profiles or [whole], **more}
    (bundle / file).write_text(json.dumps(described))
    manifest["engines"].append({"file": file, "graph": graph, "flavour": flavour, "version": version,
                                "compute_capability": capability})  # fmt: skip
    write_manifest(bundle, manifest)


def install(patch: Any, gpu: EmulatedGpu, flavour: str = "tensorrt-rtx", version: str = VERSION) -> ModuleType:
    """Put the GPU and TensorRT where the runtime looks for them."""
    from fusioner_rt import tensorrt_library

    module = tensorrt(gpu, flavour, version)
    patch.setitem(sys.modules, module.__name__, module)
    patch.setattr(tensorrt_library, "_logs", {})
    patch.setattr("cuda.bindings.driver", gpu)
    return module
